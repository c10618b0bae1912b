"""The command line: ``python -m harness COMMAND``; ``make`` has a target for each."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from harness import HarnessError
from harness.choice import MESHES, make_mesh
from harness.cluster.mesh import ClusterMesh
from harness.cluster.wayin import DASHBOARDS
from harness.demo import demo
from harness.manifests.istio import VirtualService
from harness.manifests.lookup import of_kind, short_host
from harness.meshes.mesh import STATE, get
from harness.proof.expectation import HOST, promise_for, promises
from harness.proof.verify import verify
from harness.terminal import echo, progress, render

Command = TypeVar("Command", bound=Callable[..., Any])


def with_mesh(command: Command) -> Command:
    """Add the option that chooses the mesh."""
    return click.option(
        "--mesh", "mesh_name", type=click.Choice(MESHES), default="local", show_default=True,
        help="Where to run.",
    )(command)  # fmt: skip


def with_port(command: Command) -> Command:
    """Add the option that sets the gateway's port."""
    return click.option(
        "--port", type=click.IntRange(1, 65535), default=8080, show_default=True,
        help="The gateway's port on 127.0.0.1.",
    )(command)  # fmt: skip


def with_traffic(default: int) -> Callable[[Command], Command]:
    """Add the options that say how much traffic is sent."""
    return lambda command: click.option(
        "-n", "--requests", "size", type=click.IntRange(1, 10_000_000), default=default, show_default=True,
        help="How many requests to send.",
    )(command)  # fmt: skip


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  python -m harness {line}" for line in lines)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]}, epilog=_examples("demo", "verify --help")
)
def cli() -> None:
    """Run the dark launch workshop on a mesh, and prove that the launch stays dark."""


@cli.command(epilog=_examples("up", "up --port 9090"))
@with_mesh
@with_port
@click.pass_context
def up(context: click.Context, mesh_name: str, port: int) -> None:
    """Start the mesh, or what of it has died; harmless if it runs."""
    if mesh_name == "cluster":
        context.invoke(deploy, yes=False)
        return
    mesh = make_mesh(mesh_name, port)
    mesh.up()
    echo(f"{len(mesh.pods())} pods run; {mesh.way_in()}")


@cli.command()
@with_mesh
@click.pass_context
def down(context: click.Context, mesh_name: str) -> None:
    """Stop the mesh and leave nothing behind."""
    if mesh_name == "cluster":
        context.invoke(undeploy, yes=False)
        return
    make_mesh(mesh_name).down()
    (STATE / "error.log").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        STATE.rmdir()
    echo(f"the {mesh_name} mesh is down")


def _found_cluster(yes: bool, question: str) -> ClusterMesh:
    """Return the cluster that kubectl's context names; ask first if it may be somebody else's."""
    mesh = ClusterMesh(progress())
    platform = mesh.platform(mesh.facts())
    where = f"{platform.title}, context {mesh.kubectl.context}, namespace {mesh.namespace}"
    echo(where)
    if not platform.local and not yes:
        if not sys.stdin.isatty():
            raise HarnessError(f"this is not known to be a cluster on this machine: {question} with YES=1")
        click.confirm(
            f"This is not known to be a cluster on this machine. {question.capitalize()}?", abort=True
        )
    return mesh


YES = click.option("--yes", is_flag=True, help="Do not ask before touching a cluster that may not be local.")


@cli.command(epilog=_examples("deploy"))
@YES
def deploy(yes: bool) -> None:
    """Bring the workshop to the cluster of kubectl's current context; harmless if it is there."""
    with contextlib.closing(_found_cluster(yes, "deploy")) as mesh:
        mesh.up()
        echo(f"{len(mesh.pods())} pods run; {mesh.way_in()}")


@cli.command(epilog=_examples("undeploy"))
@YES
def undeploy(yes: bool) -> None:
    """Remove exactly what deploy made."""
    with contextlib.closing(_found_cluster(yes, "undeploy")) as mesh:
        mesh.down()
    echo("the workshop is gone from the cluster")


@cli.command(epilog=_examples("url"))
def url() -> None:
    """Print how callers reach customer on the cluster. Exit 1 if only a port-forward leads there."""
    mesh = ClusterMesh(progress())
    address = mesh.reachable_address()
    echo(f"http://{address}/customer" if address else mesh.way_in())
    click.get_current_context().exit(0 if address else 1)


@cli.command(epilog=_examples("dashboard kiali"))
@click.argument("name", type=click.Choice(list(DASHBOARDS)))
def dashboard(name: str) -> None:
    """Open one of Istio's addons, and stay until Ctrl-C."""
    ClusterMesh(progress()).dashboard(name)


@cli.command()
@with_mesh
def status(mesh_name: str) -> None:
    """Show pods, ports and applied routes."""
    mesh = make_mesh(mesh_name)
    rows = [("POD", "STATE", "ADDRESS"), *((p.name, p.state, p.address) for p in mesh.pods())]
    for row in rows:
        echo("  ".join(f"{cell:<{max(len(r[i]) for r in rows)}}" for i, cell in enumerate(row)).rstrip())
    echo("")
    echo(mesh.way_in())
    rules = promises(mesh.routes())
    for source, route in mesh.objects().values():
        if isinstance(route, VirtualService):
            words = ""
            if HOST in map(short_host, route.spec.hosts):
                words = ": " + " | ".join(expectation.describe() for _, expectation in rules)
            echo(f"{route.key}{words} ({source})")
    routes = of_kind(mesh.routes(), VirtualService)
    if not any(HOST in map(short_host, route.spec.hosts) for route in routes):
        echo(f"no route for {HOST}: {promise_for(rules, 'GET', '/', {}).describe()}")


@cli.command(epilog=_examples("apply istio/mirror.yaml"))
@with_mesh
@click.argument("file", type=click.Path(path_type=Path))
def apply(mesh_name: str, file: Path) -> None:
    """Apply a manifest, as kubectl apply would."""
    for line in make_mesh(mesh_name).apply(file):
        echo(line)


@cli.command(epilog=_examples("delete istio/mirror.yaml"))
@with_mesh
@click.argument("file", type=click.Path(path_type=Path))
def delete(mesh_name: str, file: Path) -> None:
    """Delete a manifest's objects, as kubectl delete would."""
    for line in make_mesh(mesh_name).delete(file):
        echo(line)


@cli.command()
@with_mesh
@click.pass_context
def curl(context: click.Context, mesh_name: str) -> None:
    """Make one call and print the reply. Exit 1 if it is a failure."""
    with contextlib.closing(make_mesh(mesh_name)) as mesh:
        where = mesh.url()
        try:
            answer = get(where)
        except OSError as error:
            problem = f"nobody answers at {where} ({type(error).__name__})"
            raise HarnessError(f"{problem}: see 'make status'") from None
    echo(answer.text.rstrip("\n") or f"{answer.status_code} {answer.reason}")
    context.exit(0 if answer.ok else 1)


@cli.command("verify", epilog=_examples("verify", "verify -n 100000 -c 16", "verify --json | jq .claims"))
@with_mesh
@with_traffic(500)
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=8,
    show_default=True,
    help="How many callers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.pass_context
def verify_command(
    context: click.Context, mesh_name: str, size: int, concurrency: int, as_json: bool
) -> None:
    """Send traffic, follow every request, and judge whether what is applied is what happens.

    Exit 0: every claim holds. 1: a claim failed. 2: could not run.
    """
    with contextlib.closing(make_mesh(mesh_name)) as mesh:
        verdict = verify(mesh, size, concurrency, progress())
    echo(json.dumps(verdict.to_dict(), indent=2) if as_json else render(verdict))
    context.exit(0 if verdict.passed else 1)


@cli.command(epilog=_examples("logs recommendation-v2"))
@with_mesh
@click.argument("workload", default="recommendation-v2")
def logs(mesh_name: str, workload: str) -> None:
    """Print what a workload and its sidecar logged."""
    for container, line in make_mesh(mesh_name).logs(workload):
        echo(f"{container:<11} | {line}")


@cli.command(epilog=_examples("stop recommendation-v2"))
@with_mesh
@click.argument("workload")
def stop(mesh_name: str, workload: str) -> None:
    """Scale a workload to 0."""
    make_mesh(mesh_name).scale(workload, 0)
    echo(f"{workload} is stopped")


@cli.command(epilog=_examples("start recommendation-v2"))
@with_mesh
@click.argument("workload")
def start(mesh_name: str, workload: str) -> None:
    """Scale a workload back to 1."""
    make_mesh(mesh_name).scale(workload, 1)
    echo(f"{workload} runs")


@cli.command("demo", epilog=_examples("demo", "demo --requests 1000"))
@with_mesh
@with_port
@with_traffic(200)
@click.pass_context
def demo_command(context: click.Context, mesh_name: str, port: int, size: int) -> None:
    """Tell the whole story, proving each step. Exit 0 only if every claim held."""
    with contextlib.closing(make_mesh(mesh_name, port)) as mesh:
        held = demo(mesh, size, echo, render, progress())
    echo(
        "\nEvery claim held: v2 saw production, and no caller saw v2."
        if held
        else "\nA claim failed: see above."
    )
    context.exit(0 if held else 1)
