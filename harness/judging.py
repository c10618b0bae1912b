"""The commands that judge: any Service, on any mesh; none of them needs the workshop's files."""

import contextlib
import json
import sys
import threading
import time
import webbrowser
from pathlib import Path
from typing import Any

import click

from harness import HarnessError, options, settings
from harness.cluster.mesh import ClusterMesh
from harness.meshes.mesh import Mesh
from harness.options import examples
from harness.proof import doctor, trace
from harness.proof.evidence import Bounds
from harness.proof.report import harmless, to_junit, wrap
from harness.proof.target import Target
from harness.proof.verdict import Verdict
from harness.proof.watch import Watch, verify
from harness.settings import TYPED
from harness.terminal import echo, progress, render


def keep(html: Path | None, verdict: Verdict, mesh: Mesh) -> None:
    """Write a verdict as a page, if one was asked for."""
    if html:
        # Here, since few commands need Jinja, which takes a while to import.
        from harness.pages import report

        report.write(html, verdict, mesh.name)


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
@options.target
@options.traffic(500)
@options.callers
@options.bounds
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
@options.target
@click.option(
    "--for", "duration", envvar=f"{TYPED}FOR", type=options.span, metavar="TIME",
    help="For how long, as 90s or 1h30m. Default: until Ctrl-C.",
)  # fmt: skip
@click.option("--until-failure", is_flag=True, help="End at the first request that breaks a claim.")
@click.option(
    "--sample", type=options.sample, default="1", show_default=False, metavar="1/N",
    help="Judge a part of all requests.",
)  # fmt: skip
@options.bounds
def watch_command(
    mesh: Mesh, target: Target, duration: float | None, until_failure: bool, sample: int, bounds: Bounds,
    patience: float, as_json: bool, **reports: Any,
) -> None:  # fmt: skip
    """Send nothing, and judge the traffic that flows.

    Exit 0: every claim holds. 1: a claim failed. 2: something is unproven, or it could not run.
    """
    watch = Watch(mesh, target, bounds=bounds, patience=patience)
    show = progress()
    show("opening the proxies' logs")
    watch.follow(sample)
    begun = told = time.monotonic()
    with contextlib.closing(watch), contextlib.suppress(KeyboardInterrupt):
        while duration is None or time.monotonic() < begun + duration:
            watch.read()
            if until_failure and watch.broken:
                watch.read_first_broken()
                break
            if time.monotonic() > told + 1:
                told = time.monotonic()
                _tell_figures(watch.figures(), as_json)
            time.sleep(0.02)
        else:
            watch.settle(show)
    verdict = watch.verdict()
    if watch.changes and not as_json:
        echo(wrap(harmless("\n".join(watch.changes)) + ": judged anew from then on\n"))
    if until_failure and watch.broken and not as_json:
        echo("\n".join(trace.tell(watch.evidence, watch.broken[0])) + "\n")
    tell(mesh, target, verdict, as_json, **reports, indent=None)


def _tell_figures(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo(json.dumps(figures))
    elif sys.stdout.isatty():
        echo(wrap(figures_in_words(figures), 10))


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
@options.target
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
    "trace",
    epilog=examples("trace 68e67292-b34f-4a0a-b816-fb6d435b1a7d", "trace dark-launch/6e3a99a3/42"),
)
@options.target
@click.argument("ticket")
def trace_command(mesh: Mesh, target: Target, ticket: str) -> None:
    """Print one request's story, in time order, by its ticket or its request id.

    Exit 0: found. 1: nobody logged it. 2: could not run.
    """
    lines = trace.find(mesh, target, ticket)
    for line in lines or [wrap(f"no proxy logged {harmless(ticket)} (logs are kept for a while only)")]:
        echo(line)
    sys.exit(0 if lines else 1)


@click.command(
    "live",
    epilog=examples("live", "live --read-only", "live --service pricing --namespace shop --read-only"),
)
@options.target
@click.option("--read-only", is_flag=True, help="Show everything, and change nothing.")
@options.yes
def live_command(mesh: Mesh, target: Target, read_only: bool, yes: bool) -> None:
    """Serve a page for the room: what flows, what is proven of it, and the workshop's states as buttons.

    It judges the traffic that flows, as watch does, until Ctrl-C. Only browsers on this machine that know
    its address reach it.
    """
    # Here, since only this command needs Flask, which takes a while to import.
    from harness.live.server import Server
    from harness.live.state import Live

    if isinstance(mesh, ClusterMesh) and not read_only:
        options.agree(mesh.installation, yes, "live")
    mesh.home.mkdir(parents=True, exist_ok=True)
    with (
        contextlib.closing(Live(mesh, target, read_only=read_only)) as live,
        contextlib.closing(Server(live, mesh.home / "live.json")) as server,
    ):
        echo(wrap(f"{server.url}  (Ctrl-C ends it)"))
        if settings.has_screen():
            webbrowser.open(server.url)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


COMMANDS = (verify_command, watch_command, doctor_command, trace_command, live_command)
