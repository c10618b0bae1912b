"""Load a cluster from inside: Locust runs there as a Job (kubernetes.yaml), and is judged here."""

import base64
import contextlib
import gzip
import io
import json
import queue
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import click

from harness import Json, settings
from harness.cluster import pods
from harness.cluster.kubectl import ContainerLog, container_status
from harness.cluster.mesh import ClusterMesh
from harness.cluster.preflight import OURS, PROJECT
from harness.manifests import read
from harness.meshes.mesh import ROOT, TARGET, MeshError
from harness.options import span
from harness.proof.target import Target
from harness.terminal import echo, progress, render
from harness.terminal import run as run_command
from loadtest.run import SEEN, Run, publish

MANIFEST = ROOT / "loadtest" / "kubernetes.yaml"
LABEL = f"app=loadtest,{OURS}={PROJECT}"
KINDS = "jobs.batch,services,serviceaccounts,authorizationpolicies.security.istio.io"

FOLDER = Path(".load")
"""Where the reports are, in the clone's folder."""

START_DEADLINE = 180.0
"""Seconds in which the master must run, its image pulled."""

REPORT = "report:"
"""The line before the report, which is a compressed archive in Base64."""


class Job:
    """Locust inside a cluster, until the context ends."""

    def __init__(self, mesh: ClusterMesh) -> None:
        self._mesh = mesh
        self._log: ContainerLog | None = None

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self._mesh.progress("removing Locust from the cluster")
        try:
            self._remove()
        except MeshError as error:
            command = (
                f"{self._mesh.kubectl.program} delete {KINDS} --selector={LABEL} -n {self._mesh.namespace}"
            )
            echo(f"Locust may still be in the cluster: {command} ({error})", err=True)

    def start(self, environment: dict[str, str], workers: int, duration: float) -> None:
        """Start Locust with ``workers`` beside its master, and wait until the master runs.

        :param duration: seconds for which it is to send.
        :raises MeshError: it does not.
        """
        self._mesh.installation.images.bring("loadtest")
        self._remove()
        documents = self._mesh.installation.render(document for _, document in read.documents(MANIFEST))
        [job] = [document for document in documents if document["kind"] == "Job"]
        job["spec"] |= {"completions": workers + 1, "parallelism": workers + 1}
        job["spec"]["activeDeadlineSeconds"] += int(duration)
        [container] = job["spec"]["template"]["spec"]["containers"]
        container["env"] = [{"name": name, "value": value} for name, value in environment.items()]
        if refusal := self._mesh.refusal(self._mesh.namespace, job):
            raise MeshError(f"no pod can be made for Locust: {refusal}")
        self._mesh.installation.create(documents)
        end = time.monotonic() + START_DEADLINE
        while not {"running", "terminated"} & (state := self._state()).keys():
            waiting = state.get("waiting", {}).get("reason", "")
            if time.monotonic() > end or waiting.startswith(("Err", "ImagePull", "CreateContainer")):
                raise MeshError(f"Locust does not start in the cluster\n{self._last_words()}")
            self._mesh.progress("waiting for Locust to start in the cluster")
            time.sleep(0.5)
        self._log = ContainerLog(self._mesh.kubectl, self._master()["metadata"]["name"], "locust")

    def _last_words(self) -> str:
        return pods.why(self._mesh.kubectl, self._mesh.kubectl.items("pods", f"--selector={LABEL}"))

    def _master(self) -> Json:
        """Return the master's pod, or nothing where there is none."""
        index = "batch.kubernetes.io/job-completion-index"
        found = self._mesh.kubectl.items("pods", f"--selector={LABEL},{index}=0")
        return found[0] if found else {}

    def _state(self) -> Json:
        """Return the state of the master's container; nothing where there is none."""
        state: Json = container_status(self._master(), "locust").get("state", {})
        return state

    def lines(self) -> Iterator[str]:
        """Yield what the master prints; every now and then nothing (""), until it ended."""
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        def read() -> None:
            try:
                for line in self._log or ():
                    lines.put(line.decode(errors="replace").rstrip("\n"))
            finally:
                lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        line: str | None = ""
        while line is not None:
            yield line
            try:
                line = lines.get(timeout=0.1)
            except queue.Empty:
                line = ""

    def must_have_ended_well(self) -> None:
        """Check how the master ended.

        :raises MeshError: not well.
        """
        state = self._state()
        if state.get("terminated", {}).get("exitCode") == 0:
            return
        # A worker that is lost makes the Job fail, which removes the master too.
        job = self._mesh.kubectl.get("jobs.batch", "loadtest")
        failed = [c for c in job.get("status", {}).get("conditions", []) if c["type"] == "Failed"]
        reasons = [f"{c.get('reason')}: {c.get('message')}" for c in failed]
        reasons += [str(state["terminated"].get("reason"))] if "terminated" in state else []
        reasons += ["its log can no longer be read"] if "running" in state else []
        why = "; ".join(reasons) or "somebody removed it"
        raise MeshError(f"Locust did not end well in the cluster ({why})\n{self._last_words()}")

    def _remove(self) -> None:
        if self._log:
            self._log.close()
        words = [KINDS, f"--selector={LABEL}", "--ignore-not-found", "--cascade=foreground", "--wait=true"]
        self._mesh.kubectl.run("delete", *words, timeout=120)


def follow(job: Job, run: Run, folder: Path) -> bool:
    """Enter what callers saw and proxies logged, until Locust ends; print the rest.

    Return whether Locust left its report in ``folder``: not if a copy leads back to the target, since nobody
    waits for the end then.

    :raises MeshError: Locust did not end as it should, or cannot be asked.
    """
    encoded: list[str] | None = None
    for line in job.lines():
        if line.startswith(SEEN):
            for sight in json.loads(line.removeprefix(SEEN)):
                run.sightings.saw(*sight)
        elif line == REPORT:
            encoded = []
        elif encoded is not None:
            encoded.append(line)
        elif line:
            echo(line, err=True)
        if run.watch.read():
            return False
    job.must_have_ended_well()
    return unpack("".join(encoded or []), folder)


def unpack(encoded: str, folder: Path) -> bool:
    """Unpack Locust's report into a folder; return whether it arrived whole."""
    folder.mkdir(exist_ok=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(encoded))) as archive:
            for member in archive:
                if content := archive.extractfile(member):
                    (folder / Path(member.name).name).write_bytes(content.read())
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        echo(f"Locust's report did not arrive whole, but the verdict stands: {error}", err=True)
        return False
    return True


@click.command(epilog="\b\nExample:\n  make load MESH=cluster USERS=100 WORKERS=4 TIME=5m")
@click.option("--users", type=click.IntRange(1), default=50, show_default=True, help="How many callers.")
@click.option("--spawn-rate", default=10.0, show_default=True, help="How many more start each second.")
@click.option("--run-time", type=span, default="30s", metavar="TIME", show_default=True, help="For how long.")
@click.option(
    "--workers", type=click.IntRange(1, 100), default=1, show_default=True, help="How many pods send."
)
@click.option("--service", envvar="SERVICE", default=TARGET, show_default=True, help="The Service to judge.")
@click.option(
    "--namespace", default=settings.namespace, show_default="tutorial",
    help="Where the Service is, and where Locust runs.",
)  # fmt: skip
@click.option("--url", envvar="URL", help="What callers ask, if not the workshop's gateway.")
@click.option(
    "--max-failures", envvar="MAX_FAILURES", type=click.FloatRange(0, 1), default=0.0,
    help="Which part of requests may fail.",
)  # fmt: skip
@click.option("--max-p95", envvar="MAX_P95", default=1000.0, help="Milliseconds that 95 % may wait at most.")
@click.pass_context
def load(
    context: click.Context, users: int, spawn_rate: float, run_time: float, workers: int, service: str,
    namespace: str, url: str | None, max_failures: float, max_p95: float,
) -> None:  # fmt: skip
    """Load the mesh of a cluster from inside, and judge every request.

    Exit 0: every claim holds. 1: a claim failed. 2: something is unproven, or it could not run.
    """
    mesh = ClusterMesh(progress(), namespace)
    run = Run(mesh, Target(service, namespace), max_failures, max_p95)
    with contextlib.closing(run), Job(mesh) as job:
        environment = {
            "LOCUST_HOST": url or mesh.gateway.inner_url(),
            "SERVICE": service,
            "LOCUST_USERS": str(users),
            "LOCUST_SPAWN_RATE": str(spawn_rate),
            "LOCUST_RUN_TIME": f"{run_time:.0f}s",
            "LOCUST_EXPECT_WORKERS": str(workers),
            "DARK_LAUNCH_RUN": run.watch.run,
            "DARK_LAUNCH_ALLOWED": run.allowed,
        }
        run.watch.follow()
        job.start(environment, workers, run_time)
        reported = follow(job, run, FOLDER)
        verdict = run.end()
    echo("\n" + render(verdict))
    if reported:
        publish(FOLDER / "report.html", verdict, mesh.name)
    context.exit(verdict.exit_code)


if __name__ == "__main__":
    sys.exit(run_command(load, "python -m loadtest.job"))
