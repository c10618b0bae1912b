"""Load a cluster from inside: Locust runs there as a Job (kubernetes.yaml), and the ledger is kept here."""

import base64
import contextlib
import io
import json
import queue
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click

from harness import Json
from harness.cluster import ClusterMesh
from harness.kubectl import ProcessStream
from harness.manifests import dump
from harness.mesh import ROOT, MeshError
from harness.terminal import echo, progress, render
from harness.terminal import run as run_command
from loadtest.run import SEEN, Run, check_time, time_span

MANIFEST = ROOT / "loadtest" / "kubernetes.yaml"
LABEL = "app=loadtest"
KINDS = "jobs.batch,services,serviceaccounts,authorizationpolicies.security.istio.io"

START_DEADLINE = 180.0
"""Seconds in which the master must run, its image pulled."""

RETRIES = 30
"""How often in a row the API server may fail to answer, a second apart."""

REPORT = "report:"
"""The line before the report, which is a compressed archive in Base64."""


class Job:
    """Locust inside a cluster."""

    def __init__(self, mesh: ClusterMesh) -> None:
        self._mesh = mesh
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def start(self, environment: dict[str, str], workers: int, duration: int) -> None:
        """Start Locust with ``workers`` beside its master, and wait until the master runs.

        :param duration: seconds for which it is to send.
        :raises MeshError: it does not.
        """
        self._mesh.bring("loadtest", self._mesh.platform(self._mesh.facts()))
        self.remove()
        documents = self._mesh.render([MANIFEST])
        [job] = [document for document in documents if document["kind"] == "Job"]
        job["spec"] |= {"completions": workers + 1, "parallelism": workers + 1}
        job["spec"]["activeDeadlineSeconds"] += duration
        for variable in job["spec"]["template"]["spec"]["containers"][0]["env"]:
            variable["value"] = environment[variable["name"]]
        self._mesh.create(documents)
        end = time.monotonic() + START_DEADLINE
        while not {"running", "terminated"} & (state := self._state()).keys():
            waiting = state.get("waiting", {}).get("reason", "")
            if time.monotonic() > end or waiting.startswith(("Err", "ImagePull", "CreateContainer")):
                raise MeshError(f"Locust does not start in the cluster\n{self._mesh.why(self._pods())}")
            self._mesh.progress("waiting for Locust to start in the cluster")
            time.sleep(0.5)
        threading.Thread(target=self._follow, daemon=True).start()

    def _pods(self) -> list[Json]:
        return self._mesh.kubectl.items("pods", f"--selector={LABEL}")

    def _master(self) -> Json:
        """Return the master's pod, or nothing where there is none."""
        index = "batch.kubernetes.io/job-completion-index"
        pods = self._mesh.kubectl.items("pods", f"--selector={LABEL},{index}=0")
        return pods[0] if pods else {}

    def _state(self) -> Json:
        """Return the state of the master's container; nothing where there is none."""
        statuses = self._master().get("status", {}).get("containerStatuses", [])
        return next((dict(s["state"]) for s in statuses if s["name"] == "locust"), {})

    def _follow(self) -> None:
        """Read what the master prints, from where it broke off if it does; None is the end of it."""
        read = failures = 0
        while failures < RETRIES:
            try:
                state = self._state()
                if not state:
                    break
                name = self._master()["metadata"]["name"]
            except (MeshError, KeyError):
                failures += 1
                time.sleep(1)
                continue
            stream = self._mesh.kubectl.start("logs", "--follow", name, "--container=locust")
            for number, line in enumerate(ProcessStream(stream)):
                if number >= read:
                    self._lines.put(line.decode(errors="replace").rstrip("\n"))
                    read += 1
            failures = failures + 1 if stream.wait() else 0
            if "terminated" in state:
                break
        self._lines.put(None)

    def lines(self) -> Iterator[str]:
        """Yield what the master printed; every now and then nothing (""), until it ended."""
        while True:
            try:
                line = self._lines.get(timeout=0.1)
            except queue.Empty:
                yield ""
                continue
            if line is None:
                return
            yield line

    def must_have_ended_well(self) -> None:
        """Check how the master ended.

        :raises MeshError: not well.
        """
        ended = self._state().get("terminated", {"reason": "somebody removed it"})
        if ended.get("exitCode") != 0:
            raise MeshError(
                f"Locust ended early in the cluster ({ended.get('reason')})\n{self._mesh.why(self._pods())}"
            )

    def remove(self) -> None:
        """Remove what ``start`` made."""
        words = [KINDS, f"--selector={LABEL}", "--ignore-not-found", "--cascade=foreground", "--wait=true"]
        self._mesh.kubectl.run("delete", *words, timeout=120)


def follow(job: Job, run: Run, report: Path) -> None:
    """Enter what callers saw and proxies logged, until Locust ends; print the rest, and keep the report.

    :raises MeshError: Locust did not end as it should.
    """
    encoded: list[str] | None = None
    for line in job.lines():
        if line.startswith(SEEN):
            for sight in json.loads(line.removeprefix(SEEN)):
                run.proof.ledger.saw(*sight)
        elif line == REPORT:
            encoded = []
        elif encoded is not None:
            encoded.append(line)
        elif line:
            echo(line, err=True)
        run.proof.read()
    job.must_have_ended_well()
    report.mkdir(exist_ok=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode("".join(encoded or [])))) as archive:
            archive.extractall(report, filter="data")
    except (tarfile.TarError, ValueError) as error:
        raise MeshError(f"Locust's report did not arrive whole ({error})") from None


@click.command(epilog="\b\nExample:\n  make load MESH=cluster USERS=100 WORKERS=4 TIME=5m")
@click.option("--users", type=click.IntRange(1), default=50, show_default=True, help="How many callers.")
@click.option("--spawn-rate", default=10.0, show_default=True, help="How many more start each second.")
@click.option("--run-time", default="30s", callback=check_time, show_default=True, help="For how long.")
@click.option(
    "--workers", type=click.IntRange(1, 100), default=1, show_default=True, help="How many pods send."
)
@click.option("--max-failures", envvar="MAX_FAILURES", default=0.0, help="Which part of requests may fail.")
@click.option("--max-p95", envvar="MAX_P95", default=1000.0, help="Milliseconds that 95 % may wait at most.")
@click.pass_context
def load(
    context: click.Context,
    users: int,
    spawn_rate: float,
    run_time: str,
    workers: int,
    max_failures: float,
    max_p95: float,
) -> None:
    """Load the mesh of a cluster from inside, and judge every request.

    Exit 0: every claim holds. 1: a claim failed. 2: could not run.
    """
    mesh = ClusterMesh(progress())
    run = Run(mesh, max_failures, max_p95)
    job = Job(mesh)
    try:
        environment = {
            "LOCUST_HOST": mesh.inner_url(),
            "LOCUST_USERS": str(users),
            "LOCUST_SPAWN_RATE": str(spawn_rate),
            "LOCUST_RUN_TIME": run_time,
            "LOCUST_EXPECT_WORKERS": str(workers),
            "DARK_LAUNCH_RUN": run.proof.ledger.run,
            "DARK_LAUNCH_ROUTES": dump(mesh.routes()),
        }
        run.proof.follow()
        job.start(environment, workers, time_span(run_time))
        follow(job, run, ROOT / ".load")
        verdict = run.end()
    finally:
        mesh.progress("removing Locust from the cluster")
        run.proof.close()
        with contextlib.suppress(MeshError):
            job.remove()
    echo("\n" + render(verdict))
    context.exit(0 if verdict.passed else 1)


if __name__ == "__main__":
    sys.exit(run_command(load, "python -m loadtest.job"))
