"""The command line: ``python -m harness COMMAND``; ``make`` has a target for each."""

import contextlib
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click

from harness import HarnessError, judging, learning, options
from harness.cluster import rooms
from harness.cluster.mesh import ClusterMesh
from harness.cluster.wayin import DASHBOARDS, open_dashboard
from harness.demo import demo, started
from harness.manifests.check import services_named, warnings, warnings_here
from harness.meshes.mesh import STATE, TARGET, Mesh, get, must_be_clone
from harness.options import examples
from harness.proof import doctor
from harness.proof.report import harmless, wrap
from harness.proof.status import status_of
from harness.proof.target import Target
from harness.release import commands as release
from harness.settings import TYPED, namespace
from harness.terminal import echo, progress, render, run


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog=examples("watch --for 60s", "verify --help"),
)
def cli() -> None:
    """Run the dark launch workshop on a mesh, and prove that the launch stays dark."""


@cli.command(epilog=examples("up", "up --port 9090"))
@options.mesh
@options.port
def up(mesh: Mesh) -> None:
    """Start the mesh, or what of it has died; harmless if it runs."""
    _start(mesh)


def _ask_first(mesh: Mesh, yes: bool, question: str) -> None:
    """Ask before a cluster is changed that may be somebody else's; a seat's room is its own."""
    if isinstance(mesh, ClusterMesh):
        options.agree(mesh.installation, yes or bool(mesh.installation.images.built), question)


def _start(mesh: Mesh, yes: bool = False) -> None:
    _ask_first(mesh, yes, "deploy")
    mesh.up()
    echo(started(mesh))


@cli.command()
@options.mesh
def down(mesh: Mesh) -> None:
    """Stop the mesh and leave nothing behind."""
    _remove(mesh)


def _remove(mesh: Mesh, yes: bool = False) -> None:
    _ask_first(mesh, yes, "undeploy")
    mesh.down()
    for left in (mesh.home / "live.json", STATE / "error.log"):
        left.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        STATE.rmdir()
    is_cluster = mesh.name == "cluster"
    echo("the workshop is gone from the cluster" if is_cluster else f"the {mesh.name} mesh is down")


@cli.command(epilog=examples("deploy"))
@options.yes
def deploy(yes: bool) -> None:
    """Bring the workshop to the cluster of kubectl's current context; harmless if it is there."""
    must_be_clone("'deploy'")
    with contextlib.closing(ClusterMesh(progress())) as mesh:
        _start(mesh, yes)


@cli.command(epilog=examples("undeploy"))
@options.yes
def undeploy(yes: bool) -> None:
    """Remove exactly what deploy made."""
    must_be_clone("'undeploy'")
    with contextlib.closing(ClusterMesh(progress())) as mesh:
        _remove(mesh, yes)


def _prefix(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch("[a-z]([-a-z0-9]{0,40}[a-z0-9])?", value):
        raise click.BadParameter(f"'{value}' cannot begin the name of a namespace: seat, or room-a")
    return value


with_prefix = click.option(
    "--prefix", envvar=f"{TYPED}PREFIX", default="seat", callback=_prefix, help="How the rooms' names begin.",
)  # fmt: skip


@cli.command("rooms", epilog=examples("rooms --seats 40 --for 8h"))
@options.yes
@with_prefix
@click.option(
    "--seats", envvar=f"{TYPED}N", type=click.IntRange(1, 200), required=True, help="How many rooms."
)
@click.option(
    "--for", "duration", envvar=f"{TYPED}FOR", type=options.span, default="24h",
    metavar="TIME", help="How long the kubeconfigs are good.",
)  # fmt: skip
def rooms_command(yes: bool, prefix: str, seats: int, duration: float) -> None:
    """Make a room for each seat: a namespace, and a kubeconfig in .rooms/; harmless if it is there."""
    must_be_clone("'rooms'")
    first, *_, last = [*rooms.seats(prefix, seats)] * 2
    with contextlib.closing(ClusterMesh(progress(), first)) as mesh:
        mesh.gateway.is_own = True
        options.agree(mesh.installation, yes, "rooms", f"namespaces {first} to {last}")
        paths = rooms.make(mesh.installation, prefix, seats, int(duration))
    echo(wrap(f"{len(paths)} rooms: give each seat one file of {rooms.FOLDER}, and docs/room.md"))


@cli.command("rooms-down", epilog=examples("rooms-down"))
@options.yes
@with_prefix
def rooms_down(yes: bool, prefix: str) -> None:
    """Remove the rooms with all that is in them."""
    with contextlib.closing(ClusterMesh(progress(), f"{prefix}-01")) as mesh:
        options.agree(mesh.installation, yes, "rooms-down", f"namespaces {prefix}-…")
        names = rooms.remove(mesh.installation, prefix)
    echo(f"{len(names)} rooms are gone from the cluster")


@cli.command("bundle", epilog=examples("bundle", "bundle --output /media/usb/room.tar.gz"))
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), envvar=f"{TYPED}BUNDLE",
    default="dark-launch-bundle.tar.gz", help="Where to write it.",
)  # fmt: skip
def bundle_command(output: Path) -> None:
    """Make one archive from which a room without network installs: wheels, lock files and images."""
    must_be_clone("'bundle'")
    # Here, since only a clone has what it needs.
    from harness import bundle

    for line in bundle.make(output, tell=progress()):
        echo(wrap(f"warning: {harmless(line)}", 9))
    size = output.stat().st_size / 1e6
    echo(wrap(f"{output}: {size:.0f} MB; in the room: make install BUNDLE={output.name}"))


@cli.command(epilog=examples("url"))
def url() -> None:
    """Print how callers reach customer on the cluster. Exit 1 if only a port-forward leads there."""
    mesh = ClusterMesh(progress())
    address = mesh.gateway.reachable_address()
    echo(f"http://{address}/customer" if address else mesh.way_in())
    sys.exit(0 if address else 1)


@cli.command(epilog=examples("dashboard kiali"))
@click.argument("name", type=click.Choice(list(DASHBOARDS)), envvar=f"{TYPED}D", default="kiali")
def dashboard(name: str) -> None:
    """Open one of Istio's addons, and stay until Ctrl-C."""
    with contextlib.closing(open_dashboard(ClusterMesh().kubectl, name)) as way:
        echo(f"http://{way.address}  (Ctrl-C ends it)")
        threading.Event().wait()


@cli.command(epilog=examples("status", "status --service pricing --namespace shop"))
@options.target
def status(mesh: Mesh, target: Target) -> None:
    """Show pods, ports and applied routes."""
    for line in status_of(mesh, target):
        echo(wrap(harmless(line)))


def _files(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> list[Path]:
    """Read the names of manifests, as kubectl does: several stand apart, or with commas between."""
    return [Path(name) for words in value for name in ([words] if Path(words).exists() else words.split(","))]


with_files = click.argument("files", nargs=-1, required=True, metavar="FILE...", callback=_files)


def _change(mesh: Mesh, change: Callable[..., list[str]], files: list[Path]) -> None:
    """Change what is applied, and tell what of it does nothing, or not what it seems to."""
    before = {found.key: found for found in mesh.routes()}
    lines = change(*files)
    for line in lines:
        echo(line)
    after = {found.key: found for found in mesh.routes()}
    changed = [found for one, other in ((before, after), (after, before))
               for key, found in one.items() if other.get(key) != found]  # fmt: skip
    keys = {found.key for found in changed}
    useless = list(warnings(after.values()))
    if mesh.name != "cluster":
        useless += warnings_here(after.values())
    told = [line for line in useless if line.partition(" ")[0] in keys]
    touched = services_named(after.values(), changed)
    if any(line.startswith("secret/") for line in lines):
        touched.append(TARGET)  # it says where the workshop's versions write
    told += map(str, doctor.warnings(mesh, namespace(), touched) if touched else ())
    for line in dict.fromkeys(told):
        echo(wrap(f"warning: {harmless(line)}", 9))


@cli.command(epilog=examples("apply istio/mirror.yaml", "apply a.yaml b.yaml", "apply - < a.yaml"))
@options.mesh
@with_files
def apply(mesh: Mesh, files: list[Path]) -> None:
    """Apply manifests, as kubectl apply would: files, folders, or - for standard input."""
    _change(mesh, mesh.apply, files)


@cli.command(epilog=examples("delete istio/mirror.yaml"))
@options.mesh
@with_files
def delete(mesh: Mesh, files: list[Path]) -> None:
    """Delete the objects of manifests, as kubectl delete would."""
    _change(mesh, mesh.delete, files)


@cli.command()
@options.mesh
def curl(mesh: Mesh) -> None:
    """Make one call and print the reply. Exit 1 if it is a failure."""
    where = mesh.url()
    try:
        answer = get(where)
    except OSError as error:
        problem = f"nobody answers at {where} ({type(error).__name__})"
        raise HarnessError(f"{problem}: see 'make status'") from None
    echo(harmless(answer.text.rstrip("\n")) or f"{answer.status_code} {answer.reason}")
    sys.exit(0 if answer.ok else 1)


@cli.command(epilog=examples("logs recommendation-v2"))
@options.mesh
@click.argument("workload", default="recommendation-v2")
def logs(mesh: Mesh, workload: str) -> None:
    """Print what a workload and its sidecar logged."""
    for container, line in mesh.logs(workload):
        echo(harmless(f"{container:<11} | {line}"))


@cli.command(epilog=examples("stop recommendation-v2"))
@options.mesh
@click.argument("workload")
def stop(mesh: Mesh, workload: str) -> None:
    """Scale a workload to 0."""
    mesh.scale(workload, 0)
    echo(f"{workload} is stopped")


@cli.command(epilog=examples("start recommendation-v2"))
@options.mesh
@click.argument("workload")
def start(mesh: Mesh, workload: str) -> None:
    """Scale a workload back to 1."""
    mesh.scale(workload, 1)
    echo(f"{workload} runs")


for _command in (*judging.COMMANDS, *learning.COMMANDS, *release.COMMANDS):
    cli.add_command(_command)


@cli.command("demo", epilog=examples("demo", "demo --requests 1000"))
@options.mesh
@options.port
@options.traffic(200)
def demo_command(mesh: Mesh, size: int) -> None:
    """Tell a dark launch from its start to its end. Exit 0 only if each step ends as it must."""
    held = demo(mesh, size, echo, render, progress())
    echo(
        "\nEvery step ended as it must: v2 saw production, and no caller saw v2."
        if held
        else "\nA step did not end as it must: see above."
    )
    sys.exit(0 if held else 1)


def main(name: str = "dark-launch") -> None:
    """Run the command line, by the name that its help shows."""
    sys.exit(run(cli, name))
