"""One dark launch from the start to the end, told by the first steps of the workshop, each proven."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from harness.meshes.lock import undisturbed
from harness.meshes.mesh import ROOT, SHADOW, Mesh, MeshError, Progress, get, quietly
from harness.proof.report import wrap
from harness.proof.target import Target
from harness.proof.verdict import Verdict
from harness.release.router import bail_out
from harness.release.routes import Versions
from harness.steps import TOLD, Step, make, parse
from harness.workshop import as_told, catch_up, prove


def started(mesh: Mesh) -> str:
    """Say of a mesh that runs how many pods it has, and how callers come in."""
    return wrap(f"{len(mesh.pods())} pods run; {mesh.way_in()}")


@dataclass(frozen=True)
class Narrator:
    """Shows each command as it is typed, does it, and shows what it says."""

    mesh: Mesh
    size: int
    """How many requests a ``verify`` sends."""
    show: Callable[[str], None]
    render: Callable[[Verdict], str]
    progress: Progress

    def tell(self, step: Step) -> bool:
        """Tell a step; return whether it ended as it must."""
        self.show(f"\n== {step.number}. {step.title}")
        held = [self._run(step, command) for command in step.commands if command != "status"]
        if step.fails:
            failing = " and ".join(step.fails)
            self.show(
                f"As it must be: {failing} alone fails, and callers noticed nothing."
                if held[-1]
                else f"Not as it must be: {failing} should fail, and nothing else."
            )
        return all(held)

    def _run(self, step: Step, command: str) -> bool:
        mesh, (verb, variables) = self.mesh, parse(command)
        typed = f"verify N={self.size}" if verb == "verify" else command
        self.show(f"$ {make(typed, mesh.name)}")
        if verb == "verify":
            verdict = prove(mesh, step, self.progress, self.size)
            self.show(self.render(verdict))
            return as_told(step, verdict) if command == step.commands[-1] else verdict.passed
        if verb == "up":
            catch_up(mesh, 1)
            self.show(started(mesh))
        elif verb == "curl":
            self.show(wrap(get(mesh.url()).text.strip()))
        elif verb in ("stop", "start"):
            mesh.scale(SHADOW, int(verb == "start"))
            self.show(f"{SHADOW} {'runs' if verb == 'start' else 'is stopped'}")
        else:
            given = [ROOT / file for file in variables.values()]
            for line in mesh.apply(*given) if given else bail_out(mesh, Target(), Versions()):
                self.show(line)
        return True


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
    narrator = Narrator(mesh, size, show, render, progress)
    try:
        held = [narrator.tell(step) for step in TOLD]
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
