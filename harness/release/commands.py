"""The commands of a release: ``release`` and ``bail-out``."""

import sys
from pathlib import Path

import click

from harness import options
from harness.judging import keep
from harness.meshes.mesh import Mesh
from harness.options import examples
from harness.proof import trace
from harness.proof.evidence import Bounds
from harness.proof.report import wrap
from harness.proof.target import Target
from harness.release.router import bail_out
from harness.release.routes import LADDER, Group, Plan, Step, Versions, parse_steps
from harness.release.run import Release
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


with_versions = options.gathered(
    Versions, "versions",
    click.option(
        "--stable", default=Versions().stable, help="The subset that answers callers now."
    ),
    click.option(
        "--candidate", default=Versions().candidate, help="The subset that is released."
    ),
)  # fmt: skip

with_bounds = options.gathered(
    Bounds, "bounds",
    click.option(
        "--max-failures", type=options.part, default="0", metavar="PART",
        help="How many more callers than by the stable version may get a failure.",
    ),
    options.differences,
    click.option(
        "--max-p99-ratio", envvar=f"{TYPED}MAX_P99_RATIO", type=options.Number(0), default=10,
        help="How many times as slow the slowest answers may be.",
    ),
)  # fmt: skip

with_plan = options.gathered(
    Plan, "plan",
    click.option(
        "--steps", envvar=f"{TYPED}STEPS", type=_steps, metavar="STEPS",
        default=" ".join(str(step).replace(" ", "") for step in LADDER),
        help="Whom the candidate answers, step by step.",
    ),
    click.option(
        "--step-time", "seconds", envvar=f"{TYPED}STEP_TIME", type=options.span, default="60s",
        metavar="TIME", help="How long to judge each step, at least, on the traffic that flows.",
    ),
    click.option(
        "-n", "--requests", envvar=f"{TYPED}N", type=click.IntRange(1, 10_000_000),
        help="Send requests: so many at each step, or more where more are needed.",
    ),
    options.callers,
    click.option(
        "--testers", envvar=f"{TYPED}TESTERS", type=_group, default=":".join(Group()),
        metavar="HEADER:VALUE", help="Whose requests the candidate answers first.",
    ),
    click.option(
        "--defect", "part", type=options.part, default="2%", metavar="PART",
        help="How rare a defect may be that a step must have shown: it says how many answers are enough.",
    ),
)  # fmt: skip


@click.command(
    "release",
    epilog=examples("release", "release -n 500 --steps 'dark testers 10% 100%'", "release --step-time 5m"),
)
@options.target
@options.html
@with_versions
@with_bounds
@with_plan
def release_command(mesh: Mesh, target: Target, plan: Plan, html: Path | None) -> None:
    """Release the candidate step by step, each left only when every claim holds.

    At any violation, and at Ctrl-C, every caller is led back to the stable version at once.

    Exit 0: it answers everybody. 1: a claim failed. 2: something is unproven, or it could not run.
    """
    verdict = Release(mesh, target, plan, lambda line: echo(wrap(line, 8)), progress()).climb()
    keep(html, verdict, mesh)
    if verdict.passed:
        echo(f"{plan.versions.candidate} answers every caller")
        return
    echo("\n" + render(verdict))
    if verdict.failed() and verdict.evidence and verdict.evidence.broken:
        evidence = verdict.evidence
        echo("\n" + "\n".join(trace.tell(evidence, evidence.broken[0])))
    sys.exit(verdict.exit_code)


@click.command("bail-out", epilog=examples("bail-out", "bail-out --service pricing --namespace shop"))
@options.target
@with_versions
def bail_out_command(mesh: Mesh, target: Target, versions: Versions) -> None:
    """Lead every caller to the stable version, whatever is applied and whatever release is under way."""
    for line in bail_out(mesh, target, versions):
        echo(line)
    echo(f"{versions.stable} answers every caller, and nothing goes to {versions.candidate}")


COMMANDS = (release_command, bail_out_command)
