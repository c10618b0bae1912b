"""How fast a release is called off under load, and how many callers are harmed until then."""

import contextlib
import threading
import time
from typing import NamedTuple

import psutil

from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT, SHADOW, quietly
from harness.proof.target import Target
from harness.proof.traffic import Traffic, new_run
from harness.release.routes import Plan, parse_steps
from harness.release.run import Release

INTERVAL = 60.0
"""Seconds between two analyses, as controllers of canaries have it by default."""


class BailOut(NamedTuple):
    """What one bail-out cost."""

    seconds: float
    """From the first bad reply to the last one."""
    harmed: int
    """How many callers got one."""
    rate: float
    """Bad replies a second, while nobody does anything."""

    @property
    def harmed_by_interval(self) -> float:
        """How many callers would have got one until an analysis, half an interval later on average."""
        return self.rate * INTERVAL / 2


def bail_out_under_load(mesh: LocalMesh, callers: int = 8) -> BailOut:
    """Release v2 to every second caller, let it die under load, and measure until nobody sees it any more.

    Its sidecar answers 503 then. Afterwards v2 runs again, and v1 answers.
    """
    mesh.apply(ROOT / "istio" / "v1-only.yaml")
    plan = Plan(steps=parse_steps("50% 100%"), seconds=INTERVAL)
    told: list[str] = []
    release = threading.Thread(target=Release(mesh, Target(), plan, told.append).climb)
    bad: list[float] = []
    by_v2: list[float] = []
    killed = 0.0

    def saw(number: int, status: int, version: str | None, seconds: float) -> None:
        if status >= 500:
            bad.append(time.monotonic())
        elif version == "v2":
            by_v2.append(time.monotonic())

    def meanwhile() -> bool:
        nonlocal killed
        if not killed and by_v2 and time.monotonic() > by_v2[0] + 3:
            killed = time.monotonic()
            for process in shadow_processes(mesh):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        return bool(killed) and not release.is_alive()

    release.start()
    Traffic(mesh.url(), new_run(), 1_000_000, callers).send(saw, meanwhile, quietly)
    release.join()
    assert told[0].startswith("FAIL"), told
    mesh.up()
    return BailOut(bad[-1] - bad[0], len(bad), len(by_v2) / (killed - by_v2[0]))


def shadow_processes(mesh: LocalMesh) -> list[psutil.Process]:
    """Return the processes of v2 itself, without its sidecar."""
    return [
        p for pod, container, p in mesh.runtime.processes() if pod.startswith(SHADOW) and container == "app"
    ]
