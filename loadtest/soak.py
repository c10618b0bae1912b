"""A soak test: what a long load does to memory and open files of every process of the local mesh."""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import click
import psutil

from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT, STATE
from harness.options import span
from harness.terminal import echo, progress, run

MIB = 2**20
SAMPLES = 120


class Sample(NamedTuple):
    """What one process holds at one moment."""

    memory: float
    """Bytes that no other process shares."""
    files: float
    """Open files, sockets included."""


NOISE = Sample(8 * MIB, 16)
"""How much more a process may hold at the end, beside a tenth."""


def growth(samples: list[Sample]) -> list[Sample]:
    """Return the medians of the second quarter, when all is warm, and of the last."""
    quarter = max(len(samples) // 4, 1)
    parts = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    return [Sample(*map(statistics.median, zip(*part, strict=True))) for part in parts]


def is_flat(samples: list[Sample]) -> bool:
    """Say whether neither memory nor files grew."""
    return all(end <= 1.1 * warm + noise for warm, end, noise in zip(*growth(samples), NOISE, strict=True))


def steady(samples: dict[str, list[Sample]]) -> dict[str, bool]:
    """Say of each process whether it was there all the time, and stayed as it was."""
    rounds = max(map(len, samples.values()))
    return {name: len(found) == rounds and is_flat(found) for name, found in samples.items()}


def report(samples: dict[str, list[Sample]]) -> str:
    """Return a table: what each process held when it was warm, and at the end."""
    good = steady(samples)
    rows = [["", "process", "MiB", "at end", "files", "at end"]]
    for name, found in samples.items():
        memory = [f"{held.memory / MIB:.1f}" for held in growth(found)]
        files = [f"{held.files:.0f}" for held in growth(found)]
        rows.append(["ok" if good[name] else "FAIL", name, *memory, *files])
    width = max(len(name) for _, name, *_ in rows)
    return "\n".join(
        f"  {mark:<4} {name:<{width}}" + "".join(f"{cell:>7}" for cell in cells)
        for mark, name, *cells in rows
    )


def measure(mesh: LocalMesh, locust: "subprocess.Popen[bytes]", seconds: float) -> dict[str, list[Sample]]:
    """Return what each process of the mesh held, and Locust, while that ran: for ``seconds`` at most."""
    samples: dict[str, list[Sample]] = {}
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and locust.poll() is None:
        progress()(f"{left:.0f} s to go")
        processes = [(f"{pod} {container}", process) for pod, container, process in mesh.runtime.processes()]
        for name, process in [*processes, ("locust", psutil.Process(locust.pid))]:
            with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
                sample = Sample(process.memory_full_info().uss, process.num_fds())
                samples.setdefault(f"{name} {process.pid}", []).append(sample)
        with contextlib.suppress(subprocess.TimeoutExpired):
            locust.wait(seconds / SAMPLES)
    return samples


@click.command(epilog="\b\nExample:\n  make soak USERS=100 TIME=30m")
@click.option("--users", type=click.IntRange(1), default=50, show_default=True, help="How many callers.")
@click.option("--run-time", type=span, default="30m", metavar="TIME", show_default=True, help="For how long.")
@click.pass_context
def soak(context: click.Context, users: int, run_time: float) -> None:
    """Load the local mesh, and see whether every process stays as it was.

    Exit 0: it did, and every claim on the load holds. 1: not so. 2: could not run.
    """
    words = ["--headless", "--only-summary", "--users", str(users), "--spawn-rate", str(users)]
    words += ["--locustfile", "loadtest/locustfile.py", "--run-time", f"{run_time:.0f}s"]
    command, environment = [sys.executable, "-m", "locust", *words], {**os.environ, "MESH": "local"}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as locust:
        try:
            samples = measure(LocalMesh(STATE / "local"), locust, run_time)
        except BaseException:
            locust.terminate()
            locust.wait()
            raise
    if locust.returncode == 2:  # it has said why
        context.exit(2)
    echo("\n" + report(samples))
    context.exit(0 if all(steady(samples).values()) and locust.returncode == 0 else 1)


if __name__ == "__main__":
    sys.exit(run(soak, "python -m loadtest.soak"))
