"""What callers wait with a mirror against without, whatever becomes of v2."""

import contextlib
from collections.abc import Iterator
from functools import partial

from harness.manifests.lookup import NAMESPACE
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT, SHADOW, wait_until
from loadtest.bench.bail_out import shadow_processes
from loadtest.bench.figures import Effort, Figure, by_turns, quantile, ratios
from loadtest.bench.sending import at_rate, per_second

ISTIO = ROOT / "istio"
MIRROR, V1_ONLY = ISTIO / "mirror.yaml", ISTIO / "v1-only.yaml"
FUSE, NO_FUSE = ISTIO / "fuse.yaml", ISTIO / "destination-rule.yaml"
STATES = ("no mirror", "mirror", "v2 hangs", "v2 hangs behind a fuse", "v2 is dead")


def measure_mirror(mesh: LocalMesh, effort: Effort) -> Iterator[Figure]:
    """Measure what callers wait with a mirror against without, at half of what the mirrored mesh can do."""
    mesh.apply(MIRROR)
    rate = per_second(mesh.url(), effort.seconds) / 2
    yield Figure("steady rate for what follows: half of capacity", "requests/s", [rate])

    def waits(state: str) -> list[float]:
        with shadow_in(mesh, state):
            # Longer than elsewhere: of few requests, the slowest in a hundred are left to chance.
            return at_rate(mesh.url(), rate, 3 * effort.seconds)

    waited = by_turns(effort.rounds, {state: partial(waits, state) for state in STATES})
    for q, percent, aim in ((0.5, "median", "<= 1.05"), (0.99, "99th percentile", "<= 1.10")):
        of_rounds = {state: [quantile(values, q) for values in waited[state]] for state in STATES}
        base = of_rounds.pop("no mirror")
        yield Figure(f"callers' {percent} without a mirror", "ms", [1000 * b for b in base])
        for state, values in of_rounds.items():
            yield Figure(f"callers' {percent}, {state} / no mirror", "", ratios(values, base), aim)


@contextlib.contextmanager
def shadow_in(mesh: LocalMesh, state: str) -> Iterator[None]:
    """Mirror or not, to a v2 that is well, hangs or is dead; afterwards v2 is well and has nothing to do."""
    mesh.apply(V1_ONLY if state == "no mirror" else MIRROR)
    mesh.apply(FUSE if "fuse" in state else NO_FUSE)
    mesh.scale(SHADOW, 0 if state == "v2 is dead" else 1)
    at_rate(mesh.url(), 100, 1)  # warm up what is new
    hanging = shadow_processes(mesh) if "hangs" in state else []
    try:
        for process in hanging:
            process.suspend()
        yield
    finally:
        for process in hanging:
            process.resume()
        mesh.scale(SHADOW, 1)
        pods = [pod for pod in mesh.scene(NAMESPACE).pods if pod.workload == SHADOW]
        assert wait_until(lambda: not mesh.in_flight(pods), 60, 0.05), "v2 does not answer what it was sent"
