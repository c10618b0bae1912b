"""The commands by which attendees take the steps, and do the exercises."""

import secrets

import click

from harness import exercise, options
from harness.meshes.mesh import Mesh
from harness.options import examples
from harness.proof.report import harmless, wrap
from harness.settings import TYPED
from harness.steps import PROVEN, STEPS, announce, make
from harness.terminal import echo, progress
from harness.workshop import catch_up, examine, mark, standing


def _tell(code: int, lines: list[str]) -> None:
    for line in lines:
        echo(wrap(harmless(line), 8))
    click.get_current_context().exit(code)


@click.command(epilog=examples("check", "check --step 3", "check --answer bytes"))
@options.mesh
@click.option("--step", "number", envvar=f"{TYPED}STEP", type=click.IntRange(1, len(STEPS)),
              help="Which step. Default: the exercise, else the one where you are.")  # fmt: skip
@click.option("--answer", envvar=f"{TYPED}ANSWER", help="In the first exercise: what v2 does wrong.")
def check(mesh: Mesh, number: int | None, answer: str | None) -> None:
    """Say whether a step is done, or an exercise. Exit 0: it is. 1: it is not. 2: that cannot be told."""
    if number is None and mark(mesh).exists():
        _tell(*exercise.judge(mesh, answer, progress()))
    else:
        _tell(*examine(mesh, STEPS[(number or standing(mesh) or 1) - 1], progress()))


@click.command(epilog=examples("step 5", "step 0"))
@options.mesh
@options.port
@click.argument("number", type=click.IntRange(0, PROVEN[-1].number), envvar=f"{TYPED}N")
def step(mesh: Mesh, number: int) -> None:
    """Catch up: bring the mesh to the state after a step, and prove it; 0 starts afresh."""
    catch_up(mesh, number)
    if number:
        _tell(*examine(mesh, STEPS[number - 1], progress()))
    else:
        _tell(0, [f"step 1 is next: {make('next', mesh.name)}"])


@click.command("next", epilog=examples("next"))
@options.mesh
def next_step(mesh: Mesh) -> None:
    """Print what to do in the next step."""
    for line in announce(STEPS[standing(mesh)], mesh.name):
        echo(wrap(line, 0))


@click.command("exercise", epilog=examples("exercise 1", "exercise 2"))
@options.mesh
@options.port
@click.argument("number", type=click.IntRange(1, 2), envvar=f"{TYPED}N")
def exercise_command(mesh: Mesh, number: int) -> None:
    """Begin an exercise: 1, v2 has a defect: find it. 2, somebody broke the mirror: mend it."""
    exercise.begin(mesh, number, secrets.choice([*(exercise.DEFECTS if number == 1 else exercise.BREAKS)]))
    tasks = ("v2 has a defect, and hears nothing yet. Find it,", "somebody broke the mirror. Mend it,")
    solved = make("check ANSWER=..." if number == 1 else "check", mesh.name)
    echo(wrap(f"{tasks[number - 1]} and harm no caller. Then: '{solved}'"))


COMMANDS = (check, step, next_step, exercise_command)
