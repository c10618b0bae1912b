"""The whole story of a dark launch, told step by step, each step proven."""

import contextlib
from collections.abc import Callable

from harness.meshes.lock import undisturbed
from harness.meshes.mesh import ROOT, Mesh, MeshError, Progress, get, quietly
from harness.proof.report import wrap
from harness.proof.target import Target
from harness.proof.verdict import Verdict
from harness.proof.watch import verify

SHADOW = "recommendation-v2"


def started(mesh: Mesh) -> str:
    """Say of a mesh that runs how many pods it has, and how callers come in."""
    return wrap(f"{len(mesh.pods())} pods run; {mesh.way_in()}")


def demo(mesh: Mesh, size: int, show: Callable[[str], None], render: Callable[[Verdict], str],
         progress: Progress = quietly) -> bool:  # fmt: skip
    """Tell the story; return whether every claim held.

    The local and the container mesh must not run yet, and are gone afterwards. On a cluster everything must
    have been deployed, and v1 answers afterwards, as it did then.
    """
    steps = iter(range(1, 100))
    lasting = mesh.name == "cluster"
    where = "" if mesh.name == "local" else f" MESH={mesh.name}"

    def step(title: str) -> None:
        show(f"\n== {next(steps)}. {title}")

    def make(command: str) -> None:
        show(f"$ make {command}{where}")

    def apply(name: str) -> None:
        make(f"apply F=istio/{name}")
        for line in mesh.apply(ROOT / "istio" / name):
            show(line)

    def scale(replicas: int) -> None:
        verb, state = ("start", "runs") if replicas else ("stop", "is stopped")
        make(f"{verb} W={SHADOW}")
        mesh.scale(SHADOW, replicas)
        show(f"{SHADOW} {state}")

    def prove() -> Verdict:
        make("verify")
        verdict = verify(mesh, Target(), size, progress=progress)
        show(render(verdict))
        return verdict

    if mesh.objects() and not lasting:
        raise MeshError(
            f"the {mesh.name} mesh is running already; the demo brings its own: 'make down' first"
        )
    held = []
    try:
        step("Start: customer -> preference -> recommendation, an Envoy beside each")
        if lasting:
            scale(1)
            apply("v1-only.yaml")
        else:
            make("up")
            mesh.up()
            show(started(mesh))
        make("curl")
        show(wrap(get(mesh.url()).text.strip()))

        step("Version 2 runs in production, and hears nothing: all routes lead to v1")
        held.append(prove().passed)

        step("Go dark: v2 gets a copy of every request")
        apply("mirror.yaml")
        held.append(prove().passed)

        step("Stop v2 under the mirror: callers must not notice, and the proof must")
        scale(0)
        verdict = prove()
        missed = verdict.claim("exactly-once").figures["missing"]
        held.append(verdict.failed() == ["exactly-once"] and not verdict.unproven() and missed == size)
        show(
            f"As it must be: v2 missed all {size} requests, and callers noticed nothing."
            if held[-1]
            else "Not as it must be: v2 should miss all requests, and only that claim should fail."
        )

        step("Bail out: v2 is back, but no copy goes to it")
        scale(1)
        apply("v1-only.yaml")
        held.append(prove().passed)
    finally:
        if lasting:
            mesh.scale(SHADOW, 1)
            mesh.apply(ROOT / "istio" / "v1-only.yaml")
        else:
            with undisturbed():
                with contextlib.suppress(OSError):  # nobody may read what it prints any more
                    step("Clean up")
                    make("down")
                mesh.down()
    return all(held)
