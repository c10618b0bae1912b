"""The command ``live``."""

import contextlib
import threading
import webbrowser

import click

from harness import settings
from harness.cluster.mesh import ClusterMesh
from harness.judging import YES, agree, examples, with_target
from harness.meshes.mesh import Mesh
from harness.proof.report import wrap
from harness.proof.target import Target
from harness.terminal import echo


@click.command(
    "live", epilog=examples("live", "live --read-only", "live --service pricing --namespace shop --read-only")
)
@with_target
@click.option("--read-only", is_flag=True, help="Show everything, and change nothing.")
@YES
def live_command(mesh: Mesh, target: Target, read_only: bool, yes: bool) -> None:
    """Serve a page for the room: what flows, what is proven of it, and the workshop's states as buttons.

    It judges the traffic that flows, as watch does, until Ctrl-C. Only browsers on this machine that know
    its address reach it.
    """
    # Here, since only this command needs Flask, which takes a while to import.
    from harness.live.server import Server
    from harness.live.state import Live

    if isinstance(mesh, ClusterMesh) and not read_only:
        agree(mesh.installation, yes, "live")
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
