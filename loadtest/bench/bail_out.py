"""How fast a release is called off under load, and how many callers are harmed until then."""

import contextlib
import threading
import time
from collections.abc import Iterator

import psutil

from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT, SHADOW, quietly
from harness.proof.target import Target
from harness.proof.traffic import Traffic, new_run
from harness.release.routes import Plan, parse_steps
from harness.release.run import Release
from loadtest.bench.figures import Effort, Figure

INTERVAL = 60.0
"""Seconds between two analyses, as controllers of canaries have it by default."""


def bail_out_under_load(mesh: LocalMesh) -> tuple[float, float, float]:
    """Release v2 to every second caller, and let it die under load: its sidecar answers 503 then.

    Return the seconds from the first bad reply to the last, how many callers got one, and how many would have
    got one until an analysis: half an interval later on average. Afterwards v2 runs again, and v1 answers.
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
    Traffic(mesh.url(), new_run(), 1_000_000, 8).send(saw, meanwhile, quietly)
    release.join()
    assert told[0].startswith("FAIL"), told
    mesh.up()
    per_second = len(by_v2) / (killed - by_v2[0])
    return bad[-1] - bad[0], len(bad), per_second * INTERVAL / 2


def shadow_processes(mesh: LocalMesh) -> list[psutil.Process]:
    """Return the processes of v2 itself, without its sidecar."""
    return [
        p for pod, container, p in mesh.runtime.processes() if pod.startswith(SHADOW) and container == "app"
    ]


def measure_bail_out(mesh: LocalMesh, effort: Effort) -> Iterator[Figure]:
    """Measure how long callers are harmed by a v2 that dies at 50 % of a release, and how many."""
    runs = [bail_out_under_load(mesh) for _ in range(effort.rounds)]
    seconds, harmed, harmed_by_interval = map(list, zip(*runs, strict=True))
    yield Figure("from the first bad reply of a release to the last", "s", seconds, "<= 1")
    yield Figure("callers harmed until then", "", harmed)
    yield Figure(
        "harmed if somebody looked once a minute", "", harmed_by_interval,
        note="at the same rate, after half a minute on average",
    )  # fmt: skip
