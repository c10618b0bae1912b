"""The options that several commands share, and what their texts mean."""

import contextlib
import functools
import inspect
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from harness import HarnessError, settings
from harness.choice import MESHES, default_mesh, make_mesh
from harness.cluster.installation import Installation
from harness.cluster.platforms import KINDS
from harness.cluster.preflight import doubts
from harness.meshes.mesh import TARGET, Mesh
from harness.proof.evidence import Bounds
from harness.proof.report import wrap
from harness.proof.run import PATIENCE
from harness.proof.target import Target
from harness.settings import TYPED
from harness.terminal import echo, seconds_of

Command = Callable[..., Any]

Option = Callable[[Command], Command]
"""What adds an option to a command, or several."""


def examples(*lines: str) -> str:
    """Return the last lines of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  dark-launch {line}" for line in lines)


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


def sample(value: str) -> int:
    """Read one in how many: 1/100."""
    one, _, of = value.partition("/")
    if one == "1" and (not of or (of.isdecimal() and 1 <= int(of) <= 10_000_000)):
        return int(of or 1)
    raise click.BadParameter(f"'{value}' is not a part such as 1/100")


def _words(value: str) -> tuple[str, ...]:
    return tuple(value.replace(",", " ").split())


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


yes = click.option(
    "--yes", is_flag=True, envvar=f"{TYPED}YES",
    help="Do not ask before touching a cluster that may not be local.",
)  # fmt: skip


def together(*many: Option) -> Option:
    """Return what adds options to a command, in the order in which its help shows them."""

    def add(command: Command) -> Command:
        for option in reversed(many):
            command = option(command)
        return command

    return add


def gathered(kind: Callable[..., Any], name: str, *many: Option) -> Option:
    """Return what adds options; those that are called as fields of a ``kind`` reach the command as one.

    Where an option has no value, the field has the kind's own.
    """
    fields = inspect.signature(kind).parameters

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def run(**given: Any) -> Any:
            said = {field: given.pop(field) for field in fields if field in given}
            made = kind(**{field: value for field, value in said.items() if value is not None})
            return command(**given, **{name: made})

        return together(*many)(run)

    return add


def _opened(mesh_name: str, port: int | None = None) -> Mesh:
    """Return the mesh that is named; it is closed when the command ends."""
    context = click.get_current_context()
    found = make_mesh(mesh_name, port, context.params.get("namespace"))
    return context.with_resource(contextlib.closing(found))


mesh = gathered(
    _opened, "mesh",
    click.option(
        "--mesh", "mesh_name", envvar=f"{TYPED}MESH", type=click.Choice(MESHES), default=default_mesh,
        show_default=default_mesh(), help="Where to run.",
    ),
)  # fmt: skip

port = click.option(
    "--port", type=click.IntRange(1, 65535), envvar=f"{TYPED}PORT", show_default="8080",
    help="The gateway's port on 127.0.0.1.",
)  # fmt: skip


def traffic(default: int) -> Option:
    """Return the option that says how much traffic is sent."""
    return click.option(
        "-n", "--requests", "size", envvar=f"{TYPED}N", type=click.IntRange(1, 10_000_000), default=default,
        help="How many requests to send.",
    )  # fmt: skip


callers = together(
    click.option(
        "-c", "--concurrency", envvar=f"{TYPED}C", type=click.IntRange(1, 1000), default=8,
        help="How many callers.",
    ),
    click.option(
        "--url", envvar=f"{TYPED}URL", type=_address, metavar="TEXT",
        help="Where to send requests. Default: the workshop's gateway.",
    ),
)  # fmt: skip

differences = together(
    click.option(
        "--max-differences", type=part, default="0", metavar="PART",
        help="How many answers may have another status: 0.001, or 0.1%.",
    ),
    click.option(
        "--ignore", "ignored", envvar=f"{TYPED}IGNORE", type=_words, metavar="FIELDS",
        help="Fields of answers that may differ, with commas between: version,items[].price.",
    ),
)  # fmt: skip

html = click.option(
    "--html", envvar=f"{TYPED}HTML", type=click.Path(path_type=Path),
    help="Write the verdict as a page for browsers, too.",
)  # fmt: skip


target = together(
    mesh,
    gathered(
        Target, "target",
        click.option(
            "--service", envvar=f"{TYPED}SERVICE", default=TARGET, help="The Service to judge.",
        ),
        click.option(
            "--namespace", default=settings.namespace, show_default="tutorial", help="Where the Service is.",
        ),
        click.option(
            "--callers", envvar=f"{TYPED}CALLERS", type=_words, metavar="NAMES",
            help="Whose requests count: workloads, or NAMESPACE/WORKLOAD, with commas between. "
            "Default: everybody in the namespace, and the ingress gateways.",
        ),
    ),
)  # fmt: skip
"""The command gets a Mesh, for the namespace of its Target."""

bounds = gathered(
    Bounds, "bounds", html, differences,
    click.option("--same-size", is_flag=True, help="Ask for answers of the same size."),
    click.option(
        "--max-p99-ratio", type=Number(0), help="How much slower v2 may be (1.5: half as slow again)."
    ),
    click.option(
        "--patience", type=Number(0, 3600), default=PATIENCE,
        help="Seconds that a request's last copy is waited for.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    click.option("--junit", type=click.Path(path_type=Path), help="Write the verdict as JUnit XML, too."),
)  # fmt: skip
"""What is asked of v2, and how the verdict is told."""


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
