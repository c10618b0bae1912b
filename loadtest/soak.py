"""A soak test: what a long load does to memory and open files of every process of the local mesh."""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import click
import psutil

from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT, STATE
from harness.terminal import echo, progress, run, seconds_of
from loadtest.run import check_time

MIB = 2**20
SAMPLES = 120
LOCUST = "locust"


@dataclass(frozen=True)
class Sample:
    """What one process holds at one moment."""

    memory: int
    """Bytes that no other process shares."""
    files: int
    """Open files, sockets included."""


def growth(values: list[int]) -> tuple[float, float]:
    """Return the medians of the second quarter, when all is warm, and of the last."""
    quarter = max(len(values) // 4, 1)
    return statistics.median(values[quarter : 2 * quarter] or values), statistics.median(values[-quarter:])


def is_flat(samples: list[Sample]) -> bool:
    """Say whether memory and files grew by a tenth at most, beside 8 MiB and 16 files of noise."""
    before, after = growth([sample.memory for sample in samples])
    files_before, files_after = growth([sample.files for sample in samples])
    return after <= 1.1 * before + 8 * MIB and files_after <= 1.1 * files_before + 16


def steady(samples: dict[str, list[Sample]]) -> dict[str, bool]:
    """Say of each process whether it was there all the time, and stayed as it was."""
    rounds = max(map(len, samples.values()))
    return {name: len(found) == rounds and is_flat(found) for name, found in samples.items()}


def measure(process: psutil.Process) -> Sample:
    """Return what a process holds now."""
    with process.oneshot():
        return Sample(process.memory_full_info().uss, process.num_fds())


def report(samples: dict[str, list[Sample]]) -> str:
    """Return a table: what each process held when it was warm, and at the end."""
    good = steady(samples)
    rows = [["", "process", "MiB", "at end", "files", "at end"]]
    for name, found in samples.items():
        memory = [f"{value / MIB:.1f}" for value in growth([sample.memory for sample in found])]
        files = [f"{value:.0f}" for value in growth([sample.files for sample in found])]
        rows.append(["ok" if good[name] else "FAIL", name, *memory, *files])
    width = max(len(name) for _, name, *_ in rows)
    return "\n".join(
        f"  {mark:<4} {name:<{width}}" + "".join(f"{cell:>7}" for cell in cells)
        for mark, name, *cells in rows
    )


@click.command(epilog="\b\nExample:\n  make soak USERS=100 TIME=30m")
@click.option("--users", type=click.IntRange(1), default=50, show_default=True, help="How many callers.")
@click.option("--run-time", default="30m", callback=check_time, show_default=True, help="For how long.")
@click.pass_context
def soak(context: click.Context, users: int, run_time: str) -> None:
    """Load the local mesh, and see whether every process stays as it was.

    Exit 0: it did, and every claim on the load holds. 1: not so. 2: could not run.
    """
    mesh = LocalMesh(STATE / "local")
    words = ["--headless", "--only-summary", "--users", str(users), "--spawn-rate", str(users)]
    command = [sys.executable, "-m", "locust", "--locustfile", "loadtest/locustfile.py", *words]
    samples: dict[str, list[Sample]] = {}
    end = time.monotonic() + seconds_of(run_time)
    with subprocess.Popen(
        [*command, "--run-time", run_time], cwd=ROOT, env={**os.environ, "MESH": "local"}
    ) as locust:
        try:
            while (left := end - time.monotonic()) > 0 and locust.poll() is None:
                progress()(f"{left:.0f} s to go")
                processes = [
                    (f"{pod} {container}", process) for pod, container, process in mesh.runtime.processes()
                ]
                for name, process in [*processes, (LOCUST, psutil.Process(locust.pid))]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        samples.setdefault(f"{name} {process.pid}", []).append(measure(process))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    locust.wait(seconds_of(run_time) / SAMPLES)
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
