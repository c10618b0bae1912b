"""The commands of a release: ``release`` and ``bail-out``."""

import sys
from pathlib import Path

import click

from harness.judging import (
    Number,
    examples,
    keep,
    options,
    part,
    span,
    with_callers,
    with_differences,
    with_html,
    with_target,
)
from harness.meshes.mesh import Mesh
from harness.proof import trace
from harness.proof.evidence import Bounds
from harness.proof.report import wrap
from harness.proof.target import Target
from harness.release.routes import LADDER, Group, Plan, Step, Versions, parse_steps
from harness.release.run import Release
from harness.release.standing import bail_out
from harness.settings import TYPED
from harness.terminal import echo, progress, render


def _steps(value: str) -> tuple[Step, ...]:
    try:
        return parse_steps(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _group(value: str) -> Group:
    header, _, wanted = value.partition(":")
    if not header.strip() or not wanted.strip():
        raise click.BadParameter(f"'{value}' is not HEADER:VALUE, such as baggage:group=testers")
    return Group(header.strip().lower(), wanted.strip())


with_versions = options(
    click.option(
        "--stable", default=Versions().stable, show_default=True, help="The subset that answers callers now."
    ),
    click.option(
        "--candidate", default=Versions().candidate, show_default=True, help="The subset that is released."
    ),
)


@click.command(
    "release",
    epilog=examples("release", "release -n 500 --steps 'dark testers 10% 100%'", "release --step-time 5m"),
)
@with_target
@with_versions
@click.option(
    "--steps", envvar=f"{TYPED}STEPS", type=_steps, metavar="STEPS",
    default=" ".join(str(step).replace(" ", "") for step in LADDER), show_default=True,
    help="Whom the candidate answers, step by step.",
)  # fmt: skip
@click.option(
    "--step-time", envvar=f"{TYPED}STEP_TIME", type=span, default="60s", show_default=True, metavar="TIME",
    help="How long to judge each step, at least, on the traffic that flows.",
)  # fmt: skip
@click.option(
    "-n", "--requests", "size", envvar=f"{TYPED}N", type=click.IntRange(1, 10_000_000),
    help="Send requests: so many at each step, or more where more are needed.",
)  # fmt: skip
@with_callers
@with_html
@click.option(
    "--testers", envvar=f"{TYPED}TESTERS", type=_group, default=":".join(Group()), show_default=True,
    metavar="HEADER:VALUE", help="Whose requests the candidate answers first.",
)  # fmt: skip
@click.option(
    "--defect", type=part, default="2%", show_default=True, metavar="PART",
    help="How rare a defect may be that a step must have shown: it says how many answers are enough.",
)  # fmt: skip
@click.option(
    "--max-failures", type=part, default="0", show_default=True, metavar="PART",
    help="How many more callers than by the stable version may get a failure.",
)  # fmt: skip
@with_differences
@click.option(
    "--max-p99-ratio", envvar=f"{TYPED}MAX_P99_RATIO", type=Number(0), default=10, show_default=True,
    help="How many times as slow the slowest answers may be.",
)  # fmt: skip
def release_command(
    mesh: Mesh, target: Target, stable: str, candidate: str, steps: tuple[Step, ...], step_time: float,
    size: int | None, concurrency: int, url: str | None, testers: Group, defect: float, max_failures: float,
    max_differences: float, ignore: tuple[str, ...], max_p99_ratio: float, html: Path | None,
) -> None:  # fmt: skip
    """Release the candidate step by step, each left only when every claim holds.

    At any violation, and at Ctrl-C, every caller is led back to the stable version at once.

    Exit 0: it answers everybody. 1: a claim failed. 2: something is unproven, or it could not run.
    """
    bounds = Bounds(max_differences, False, max_p99_ratio, ignore, max_failures)
    plan = Plan(
        Versions(stable, candidate), steps, testers, step_time, size or 0, concurrency, url, defect, bounds
    )
    running = Release(mesh, target, plan, lambda line: echo(wrap(line, 8)), progress())
    verdict = running.climb()
    keep(html, verdict, mesh)
    if verdict.passed:
        echo(f"{candidate} answers every caller")
        return
    echo("\n" + render(verdict))
    if running.story:
        echo("\n" + "\n".join(trace.tell(*running.story)))
    sys.exit(verdict.exit_code)


@click.command("bail-out", epilog=examples("bail-out", "bail-out --service pricing --namespace shop"))
@with_target
@with_versions
def bail_out_command(mesh: Mesh, target: Target, stable: str, candidate: str) -> None:
    """Lead every caller to the stable version, whatever is applied and whatever release is under way."""
    for line in bail_out(mesh, target, Versions(stable, candidate)):
        echo(line)
    echo(f"{stable} answers every caller, and nothing goes to {candidate}")


COMMANDS = (release_command, bail_out_command)
