"""The commands that judge: any Service, on any mesh; none of them needs the workshop's files."""

import contextlib
import functools
import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from harness import HarnessError
from harness.choice import MESHES, default_mesh, make_mesh
from harness.cluster.installation import Installation
from harness.cluster.platforms import KINDS
from harness.cluster.preflight import doubts
from harness.meshes.mesh import TARGET, Mesh
from harness.proof import doctor, trace
from harness.proof.evidence import Bounds
from harness.proof.report import harmless, to_junit, wrap
from harness.proof.target import Target
from harness.proof.verdict import Verdict
from harness.proof.watch import PATIENCE, Watch, verify
from harness.settings import TYPED, namespace
from harness.terminal import echo, progress, render, seconds_of

Command = TypeVar("Command", bound=Callable[..., Any])


def examples(*lines: str) -> str:
    """Return the last lines of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  dark-launch {line}" for line in lines)


# --- options ----------------------------------------------------------------------------------------------


def _address(value: str) -> str:
    if value and not re.match(r"https?://[^/?#\s\[]", value):
        raise click.BadParameter(f"'{value}' is not an address such as http://127.0.0.1:8080/")
    return value


def part(value: str) -> float:
    """Read a part of all: 0.001, or 0.1%."""
    with contextlib.suppress(ValueError):
        found = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        if 0 <= found <= 1:
            return found
    raise click.BadParameter(f"'{value}' is not a part such as 0.001 or 0.1%")


def _sample(value: str) -> int:
    one, _, of = value.partition("/")
    if one == "1" and (not of or (of.isdecimal() and 1 <= int(of) <= 10_000_000)):
        return int(of or 1)
    raise click.BadParameter(f"'{value}' is not a part such as 1/100")


def span(value: str) -> float:
    """Read how long: 90s, or 1h30m."""
    try:
        return seconds_of(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


class Number(click.FloatRange):
    """A number, and not ``nan``, which is neither more nor less than anything: no claim on it could fail."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        number = super().convert(value, parameter, context)
        return self.fail("'nan' is not a number", parameter, context) if math.isnan(number) else number


YES = click.option(
    "--yes", is_flag=True, envvar=f"{TYPED}YES",
    help="Do not ask before touching a cluster that may not be local.",
)  # fmt: skip


def agree(installation: Installation, yes: bool, question: str, where: str = "") -> None:
    """Say which cluster kubectl's context names; ask before it is changed, if it may be somebody else's.

    :param where: what of it is changed; nothing means the installation's namespace.
    :raises HarnessError: nobody can be asked.
    """
    facts, kubectl, platform = installation.facts(), installation.kubectl, installation.images.platform
    where = where or f"namespace {kubectl.namespace}"
    echo(wrap(f"{KINDS[platform.kind].title}, context {kubectl.context}, {where}"))
    if not platform.local and not yes:
        if not sys.stdin.isatty():
            raise HarnessError(f"this is not known to be a cluster on this machine: {question} with YES=1")
        asked = f"This is not known to be a cluster on this machine. {question.capitalize()}?"
        if not click.confirm(asked):
            echo("nothing was touched")
            click.get_current_context().exit(1)
    for doubt in doubts(facts, platform) if question == "deploy" else ():
        echo(wrap(f"note: {doubt}", 6))


def options(*many: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return what adds options to a command, in the order in which its help shows them."""

    def add(command: Command) -> Command:
        for option in reversed(many):
            command = option(command)
        return command

    return add


with_mesh = click.option(
    "--mesh", "mesh_name", envvar=f"{TYPED}MESH", type=click.Choice(MESHES), default=default_mesh,
    show_default=default_mesh(), help="Where to run.",
)  # fmt: skip

with_port = click.option(
    "--port", type=click.IntRange(1, 65535), envvar=f"{TYPED}PORT", show_default="8080",
    help="The gateway's port on 127.0.0.1.",
)  # fmt: skip


def with_traffic(default: int) -> Callable[[Command], Command]:
    """Return the option that says how much traffic is sent."""
    return click.option(
        "-n", "--requests", "size", envvar=f"{TYPED}N", type=click.IntRange(1, 10_000_000), default=default,
        show_default=True, help="How many requests to send.",
    )  # fmt: skip


with_callers = options(
    click.option(
        "-c", "--concurrency", envvar=f"{TYPED}C", type=click.IntRange(1, 1000), default=8,
        show_default=True, help="How many callers.",
    ),
    click.option(
        "--url", envvar=f"{TYPED}URL", type=_address, metavar="TEXT",
        help="Where to send requests. Default: the workshop's gateway.",
    ),
)  # fmt: skip

with_differences = options(
    click.option(
        "--max-differences", type=part, default="0", show_default=True, metavar="PART",
        help="How many answers may have another status: 0.001, or 0.1%.",
    ),
    click.option(
        "--ignore", envvar=f"{TYPED}IGNORE", default="", metavar="FIELDS",
        type=lambda value: tuple(value.replace(",", " ").split()),
        help="Fields of answers that may differ, with commas between: version,items[].price.",
    ),
)  # fmt: skip

with_html = click.option(
    "--html", envvar=f"{TYPED}HTML", type=click.Path(path_type=Path),
    help="Write the verdict as a page for browsers, too.",
)  # fmt: skip


def with_target(command: Command) -> Command:
    """Add the options that name the target; the command gets a mesh and a Target."""

    @with_mesh
    @click.option(
        "--service", envvar=f"{TYPED}SERVICE", default=TARGET, show_default=True, help="The Service to judge."
    )
    @click.option("--namespace", default=namespace, show_default="tutorial", help="Where the Service is.")
    @click.option(
        "--callers", envvar=f"{TYPED}CALLERS", default="", metavar="NAMES",
        help="Whose requests count: workloads, or NAMESPACE/WORKLOAD, with commas between. "
        "Default: everybody in the namespace, and the ingress gateways.",
    )  # fmt: skip
    @functools.wraps(command)
    def run(mesh_name: str, service: str, namespace: str, callers: str, **others: Any) -> Any:
        target = Target(service, namespace, tuple(c.strip() for c in callers.split(",") if c.strip()))
        with contextlib.closing(make_mesh(mesh_name, namespace=namespace)) as mesh:
            return command(mesh, target, **others)

    return run  # type: ignore[return-value]


def keep(html: Path | None, verdict: Verdict, mesh: Mesh) -> None:
    """Write a verdict as a page, if one was asked for."""
    if html:
        # Here, since few commands need Jinja, which takes a while to import.
        from harness.pages import report

        report.write(html, verdict, mesh.name)


def with_bounds(command: Command) -> Command:
    """Add the options that say what is asked of v2, and how the verdict is told; the command gets Bounds."""

    @with_html
    @with_differences
    @click.option("--same-size", is_flag=True, help="Ask for answers of the same size.")
    @click.option(
        "--max-p99-ratio", type=Number(0), help="How much slower v2 may be (1.5: half as slow again)."
    )
    @click.option(
        "--patience", type=Number(0, 3600), default=PATIENCE, show_default=True,
        help="Seconds that a request's last copy is waited for.",
    )  # fmt: skip
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.option("--junit", type=click.Path(path_type=Path), help="Write the verdict as JUnit XML, too.")
    @functools.wraps(command)
    def run(
        *given: Any, max_differences: float, same_size: bool, max_p99_ratio: float | None,
        ignore: tuple[str, ...], **more: Any,
    ) -> Any:  # fmt: skip
        bounds = Bounds(max_differences, same_size, max_p99_ratio, ignore)
        return command(*given, bounds=bounds, **more)

    return run  # type: ignore[return-value]


# --- commands ---------------------------------------------------------------------------------------------


def tell(
    mesh: Mesh, target: Target, verdict: Verdict, as_json: bool, junit: Path | None, html: Path | None,
    indent: int | None = 2,
) -> None:  # fmt: skip
    """Print a verdict, with what the doctor finds if it is no PASS, and end with its exit code."""
    verdict = doctor.explained(mesh, target, verdict)
    echo(json.dumps(verdict.to_dict(), indent=indent) if as_json else render(verdict))
    if junit:
        try:
            junit.write_text(to_junit(verdict))
        except OSError as error:
            raise HarnessError(f"{junit}: {error.strerror}") from None
    keep(html, verdict, mesh)
    sys.exit(verdict.exit_code)


@click.command("verify", epilog=examples("verify", "verify -n 100000 -c 16", "verify --json | jq .claims"))
@with_target
@with_traffic(500)
@with_callers
@with_bounds
def verify_command(
    mesh: Mesh, target: Target, size: int, concurrency: int, url: str | None, bounds: Bounds, patience: float,
    **reports: Any,
) -> None:  # fmt: skip
    """Send traffic, follow every request, and judge whether what is applied is what happens.

    Exit 0: every claim holds. 1: a claim failed. 2: something is unproven, or it could not run.
    """
    verdict = verify(mesh, target, size, concurrency, progress(), url=url, bounds=bounds, patience=patience)
    tell(mesh, target, verdict, **reports)


@click.command(
    "watch",
    epilog=examples("watch --for 60s", "watch --until-failure", "watch --service pricing --namespace shop"),
)
@with_target
@click.option(
    "--for", "duration", envvar=f"{TYPED}FOR", type=span, metavar="TIME",
    help="For how long, as 90s or 1h30m. Default: until Ctrl-C.",
)  # fmt: skip
@click.option("--until-failure", is_flag=True, help="End at the first request that breaks a claim.")
@click.option("--sample", type=_sample, default="1", metavar="1/N", help="Judge a part of all requests.")
@with_bounds
def watch_command(
    mesh: Mesh, target: Target, duration: float | None, until_failure: bool, sample: int, bounds: Bounds,
    patience: float, as_json: bool, **reports: Any,
) -> None:  # fmt: skip
    """Send nothing, and judge the traffic that flows.

    Exit 0: every claim holds. 1: a claim failed. 2: something is unproven, or it could not run.
    """
    watch = Watch(mesh, target, bounds=bounds, patience=patience, sample=sample)
    show = progress()
    show("opening the proxies' logs")
    watch.follow()
    begun = told = time.monotonic()
    with contextlib.closing(watch), contextlib.suppress(KeyboardInterrupt):
        while duration is None or time.monotonic() < begun + duration:
            watch.read()
            if until_failure and watch.broken:
                watch.read_first_broken()
                break
            if time.monotonic() > told + 1:
                told = time.monotonic()
                figures = watch.figures()
                if as_json:
                    echo(json.dumps(figures))
                elif sys.stdout.isatty():
                    echo(wrap(figures_in_words(figures), 10))
            time.sleep(0.02)
        else:
            watch.settle(show)
    verdict = watch.verdict()
    if watch.changes and not as_json:
        echo(wrap(harmless("\n".join(watch.changes)) + ": judged anew from then on\n"))
    if until_failure and watch.broken and not as_json:
        echo("\n".join(trace.tell(watch.routing, watch.broken[0])) + "\n")
    tell(mesh, target, verdict, as_json, **reports, indent=None)


def figures_in_words(figures: dict[str, Any]) -> str:
    """Return one line on how a watch stands."""
    rate = f"{figures['per_second']:>7,.0f} requests/s"
    words = [figures["time"], rate, f"{figures['requests']:>10,} judged"]
    words += [f"{version} {count:,}" for version, count in figures["received"].items()]
    words += [f"{figures['open']:,} open"]
    for state, ids in (("FAIL", figures["failed"]), ("?", figures["unproven"])):
        words += [f"{state} {', '.join(ids)}"] if ids else []
    return harmless("  ".join(words))


@click.command("doctor", epilog=examples("doctor", "doctor --service pricing --namespace shop"))
@with_target
def doctor_command(mesh: Mesh, target: Target) -> None:
    """Say why nothing arrives at v2, or why nothing is proven: each finding with what to do.

    Exit 0: nothing found. 1: something found. 2: could not run.
    """
    found = doctor.examine(mesh, target)
    for finding in found:
        echo(wrap(harmless(str(finding))))
    if not found:
        echo(wrap(f"nothing found that would keep copies from {target.service}'s versions"))
    sys.exit(1 if found else 0)


@click.command(
    "trace", epilog=examples("trace 68e67292-b34f-4a0a-b816-fb6d435b1a7d", "trace dark-launch/6e3a99a3/42")
)
@with_target
@click.argument("ticket")
def trace_command(mesh: Mesh, target: Target, ticket: str) -> None:
    """Print one request's story, in time order, by its ticket or its request id.

    Exit 0: found. 1: nobody logged it. 2: could not run.
    """
    lines = trace.find(mesh, target, ticket)
    for line in lines or [wrap(f"no proxy logged {harmless(ticket)} (logs are kept for a while only)")]:
        echo(line)
    sys.exit(0 if lines else 1)


COMMANDS = (verify_command, watch_command, doctor_command, trace_command)
