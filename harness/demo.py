"""One dark launch from the start to the end, told by the first steps of the workshop, each proven."""

import contextlib
from collections.abc import Callable

from harness.meshes.lock import undisturbed
from harness.meshes.mesh import ROOT, SHADOW, Mesh, MeshError, Progress, get, quietly
from harness.proof.report import wrap
from harness.proof.target import Target
from harness.proof.verdict import Verdict
from harness.release.router import bail_out
from harness.release.routes import Versions
from harness.steps import TOLD, make, parse
from harness.workshop import as_told, catch_up, prove


def started(mesh: Mesh) -> str:
    """Say of a mesh that runs how many pods it has, and how callers come in."""
    return wrap(f"{len(mesh.pods())} pods run; {mesh.way_in()}")


def demo(mesh: Mesh, size: int, show: Callable[[str], None], render: Callable[[Verdict], str],
         progress: Progress = quietly) -> bool:  # fmt: skip
    """Tell the story; return whether every step ended as it must.

    The local and the container mesh must not run yet, and are gone afterwards. On a cluster everything must
    have been deployed, and v1 answers afterwards, as it did then.
    """
    lasting = mesh.name == "cluster"
    if mesh.objects() and not lasting:
        raise MeshError(
            f"the {mesh.name} mesh is running already; the demo brings its own: 'make down' first"
        )

    def run(command: str) -> None:
        """Show a command as it is typed, and do it."""
        verb, variables = parse(command)
        show(f"$ {make(command, mesh.name)}")
        if verb == "up":
            catch_up(mesh, 1)
            show(started(mesh))
        elif verb == "curl":
            show(wrap(get(mesh.url()).text.strip()))
        elif verb in ("apply", "bail-out"):
            given = [ROOT / file for file in variables.values()]
            for line in mesh.apply(*given) if given else bail_out(mesh, Target(), Versions()):
                show(line)
        else:
            mesh.scale(SHADOW, int(verb == "start"))
            show(f"{SHADOW} {'runs' if verb == 'start' else 'is stopped'}")

    held = []
    try:
        for step in TOLD:
            show(f"\n== {step.number}. {step.title}")
            proofs = sum(command.startswith("verify") for command in step.commands)
            for command in step.commands:
                if command.startswith("verify"):
                    show(f"$ {make(f'verify N={size}', mesh.name)}")
                    verdict = prove(mesh, step, progress, size)
                    show(render(verdict))
                    proofs -= 1
                    held.append(verdict.passed if proofs else as_told(step, verdict))
                elif command != "status":
                    run(command)
            if step.fails:
                show(
                    f"As it must be: {' and '.join(step.fails)} alone fails, and callers noticed nothing."
                    if held[-1]
                    else f"Not as it must be: {' and '.join(step.fails)} should fail, and nothing else."
                )
    finally:
        if lasting:
            catch_up(mesh, 1)
        else:
            with undisturbed():
                with contextlib.suppress(OSError):  # nobody may read what it prints any more
                    show("\n== Clean up")
                    show(f"$ {make('down', mesh.name)}")
                mesh.down()
    return all(held)
