"""The whole story of a dark launch, told step by step, each step proven."""

import contextlib
from collections.abc import Callable

from harness.meshes.mesh import ROOT, Mesh, MeshError, Progress, get, quietly
from harness.proof.report import wrap
from harness.proof.target import Target
from harness.proof.verdict import Verdict
from harness.proof.watch import verify

SHADOW = "recommendation-v2"


def demo(mesh: Mesh, size: int, show: Callable[[str], None], render: Callable[[Verdict], str],
         progress: Progress = quietly) -> bool:  # fmt: skip
    """Tell the story; return whether every claim held.

    The local and the container mesh must not run yet, and are gone afterwards. On a cluster everything must
    have been deployed, and v1 answers afterwards, as it did then.
    """
    steps = iter(range(1, 100))

    def step(title: str, *commands: str) -> None:
        show(f"\n== {next(steps)}. {title}")
        for command in commands:
            show(f"$ {command}{where if command.split()[1] != 'deploy' else ''}")

    def apply(name: str) -> None:
        for line in mesh.apply(ROOT / "istio" / name):
            show(line)

    def prove() -> Verdict:
        verdict = verify(mesh, Target(), size, progress=progress)
        show("\n" + render(verdict))
        return verdict

    lasting = mesh.name == "cluster"
    where = "" if mesh.name == "local" else f" MESH={mesh.name}"
    if mesh.objects() and not lasting:
        raise MeshError(
            f"the {mesh.name} mesh is running already; the demo brings its own: 'make down' first"
        )
    held = []
    try:
        start = "make deploy" if lasting else "make up"
        step("Start: customer -> preference -> recommendation, an Envoy beside each", start, "make curl")
        if lasting:
            mesh.scale(SHADOW, 1)
            mesh.apply(ROOT / "istio" / "v1-only.yaml")
        else:
            mesh.up()
        show(wrap(get(mesh.url()).text.strip()))

        step("Version 2 runs in production, and hears nothing: all routes lead to v1", "make verify")
        held.append(prove().passed)

        step("Go dark: v2 gets a copy of every request", "make apply F=istio/mirror.yaml", "make verify")
        apply("mirror.yaml")
        held.append(prove().passed)

        step(
            "Stop v2 under the mirror: callers must not notice, and the proof must",
            f"make stop W={SHADOW}",
            "make verify",
        )
        mesh.scale(SHADOW, 0)
        verdict = prove()
        missed = verdict.claim("exactly-once").figures["missing"]
        held.append(verdict.failed() == ["exactly-once"] and not verdict.unproven() and missed == size)
        show(
            f"As it must be: v2 missed all {size} requests, and callers noticed nothing."
            if held[-1]
            else "Not as it must be: v2 should miss all requests, and only that claim should fail."
        )

        step(
            "Bail out: v2 is back, but no copy goes to it",
            f"make start W={SHADOW}", "make apply F=istio/v1-only.yaml", "make verify",
        )  # fmt: skip
        mesh.scale(SHADOW, 1)
        apply("v1-only.yaml")
        held.append(prove().passed)
    finally:
        if lasting:
            mesh.scale(SHADOW, 1)
            mesh.apply(ROOT / "istio" / "v1-only.yaml")
        else:
            with contextlib.suppress(OSError):  # nobody may read what it prints any more
                step("Clean up", "make down")
            mesh.down()
    return all(held)
