"""What the proof costs: beside sending, on one core, and in memory; and how fast it tells of a leak."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import psutil

from harness.manifests.lookup import NAMESPACE
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT, quietly
from harness.proof.target import Target
from harness.proof.traffic import Traffic, new_run
from harness.proof.watch import verify
from harness.terminal import collect_rarely
from loadtest.bench import replay
from loadtest.bench.figures import MIB, Effort, Figure, by_turns, ratios
from loadtest.bench.mirror import MIRROR


def measure_stories(mesh: LocalMesh, effort: Effort) -> Iterator[Figure]:
    """Measure how many requests a core can judge whose lines are there, and what memory that takes."""
    collect_rarely()
    size = effort.sent * 50
    forms = {"text": (replay.TEXT, ">= 25000"), "JSON": (replay.JSON, "")}
    measures = {("judge", name): partial(replay.judge, size, form) for name, (form, _) in forms.items()}
    measures |= {("parse", name): partial(replay.parse, size, form) for name, (form, _) in forms.items()}
    rates = by_turns(effort.rounds, measures)
    for name, (_, aim) in forms.items():
        judged, note = rates["judge", name], "three lines each"
        yield Figure(f"requests judged on one core, {name}", "requests/s", judged, aim, note)
        part = ratios(judged, rates["parse", name])
        yield Figure(f"part of that which reading lines takes, {name}", "", part)
    few, many = effort.replayed, 10 * effort.replayed
    more = replaying(many) - replaying(few)
    yield Figure(f"memory to watch {many:,} requests rather than {few:,}", "MiB", [more / MIB], "<= 20")


def replaying(size: int) -> int:
    """Return the most memory that a process holds while it judges ``size`` requests."""
    return peak_memory("-m", "loadtest.bench.replay", str(size))


def measure_proof(mesh: LocalMesh, effort: Effort) -> Iterator[Figure]:
    """Measure what it costs to verify requests beside sending them."""
    mesh.apply(MIRROR)
    size, large = effort.sent, effort.verified

    def send() -> float:
        start = time.perf_counter()
        traffic = Traffic(mesh.url(), new_run(), size, 8)
        traffic.send(lambda *sight: None, lambda: False, quietly)
        return size / (time.perf_counter() - start)

    def verified() -> float:
        start = time.perf_counter()
        assert verify(mesh, Target(), size).passed
        return size / (time.perf_counter() - start)

    rates = by_turns(effort.rounds, {"sent": send, "verified": verified})
    values, note = ratios(rates["verified"], rates["sent"]), f"{size:,} at a time"
    yield Figure("requests verified / only sent, per second", "", values, ">= 0.8", note)
    more = verifying(mesh, large) - verifying(mesh, large // 20)
    yield Figure(f"memory to verify {large:,} rather than {large // 20:,}", "MiB", [more / MIB], "<= 50")


def verifying(mesh: LocalMesh, size: int) -> int:
    """Return the most memory that a process holds while it verifies ``size`` requests."""
    return peak_memory(*command(mesh, "verify", "--requests", str(size)))


def command(mesh: LocalMesh, name: str, *words: str) -> list[str]:
    """Return the words by which Python runs a command of the harness on a mesh in any folder."""
    code = (
        "import sys; from pathlib import Path; from harness import choice, cli;"
        "choice.STATE = Path(sys.argv.pop(1)); cli.main()"
    )
    return ["-c", code, str(mesh.state.parent), name, "--mesh=local", f"--namespace={NAMESPACE}", *words]


def peak_memory(*words: str) -> int:
    """Return the most memory that a run of Python holds.

    Looked at from outside: what the kernel remembers as the peak includes what the parent held at the fork.
    """
    process = psutil.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # it has just ended
            peak = max(peak, process.memory_info().rss)
        time.sleep(0.02)
    assert process.returncode == 0
    return peak


def measure_leak(mesh: LocalMesh, effort: Effort) -> Iterator[Figure]:
    """Measure how long a watch takes to end after the first reply that leaks."""
    mesh.apply(MIRROR)
    seconds = [seconds_to_a_leak(mesh) for _ in range(effort.rounds)]
    yield Figure("from the first leaked reply to the end of a watch", "s", seconds, "<= 1")


def seconds_to_a_leak(mesh: LocalMesh) -> float:
    """Let v2 answer callers under load; return how long after the first such reply a watch ends.

    What is applied stays as it is. It is the proxies that do otherwise, so only their logs can tell.
    """
    words = [sys.executable, *command(mesh, "watch", "--until-failure", "--json")]
    leaks: list[float] = []
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout
        watch.stdout.readline()  # once a second it tells how it stands
        routes = json.loads((mesh.runtime.xds / "sidecar.json").read_text())
        leaky = json.dumps(routes | {"version_info": "leaky"}).replace("|v1|", "|v2|")
        mesh.runtime.write("sidecar.json", leaky)

        def saw(number: int, status: int, version: str | None, seconds: float) -> None:
            if version == "v2":
                leaks.append(time.monotonic())

        traffic = Traffic(mesh.url(), new_run(), 1_000_000, 8)
        traffic.send(saw, lambda: watch.poll() is not None, quietly)
        ended = time.monotonic()
    mesh.apply(MIRROR)
    assert watch.returncode == 1
    return ended - leaks[0]
