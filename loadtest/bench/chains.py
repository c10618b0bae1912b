"""The services against the same chain written otherwise; what sidecars cost, and what a store does."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

from harness.meshes.local import LocalMesh
from harness.meshes.mesh import LOOPBACK, ROOT, get, wait_until
from loadtest.bench.figures import Effort, Figure, by_turns, ratios
from loadtest.bench.mirror import V1_ONLY
from loadtest.bench.sending import SENDERS, per_second

Command = tuple[list[str], dict[str, str]]
"""How to run a service, and in what environment."""


@contextlib.contextmanager
def chain(command: Callable[[str, int, str], Command]) -> Iterator[str]:
    """Run three services that call each other directly; yield the URL of the first.

    :param command: (name, port, the next one's URL or "") → how to run a service.
    """
    with contextlib.ExitStack() as stack:
        url = ""
        for name in ("recommendation", "preference", "customer"):
            with socket.create_server((LOOPBACK, 0)) as probe:
                port = probe.getsockname()[1]
            words, environment = command(name, port, url)
            process = subprocess.Popen(
                words, cwd=ROOT, env={"PATH": os.environ["PATH"], **environment},
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.terminate)
            url = f"http://{LOOPBACK}:{port}"
            assert wait_until(partial(get, url, timeout=1), 20, 0.02), f"nobody answers at {url}"
        yield url


def services(name: str, port: int, upstream: str, store: str = "") -> Command:
    """Return how to run a service of this project; ``store`` is where recommendation keeps what is posted."""
    module = "recommendation.v1" if name == "recommendation" else name
    words = [sys.executable, "-m", "gunicorn", "--config", "common/gunicorn.conf.py", f"{module}.app:app"]
    urls = {"PREFERENCE_URL": upstream, "RECOMMENDATION_URL": upstream, "DATABASE_URL": store}
    return words, {"BIND": f"{LOOPBACK}:{port}", **urls}


def naive(name: str, port: int, upstream: str) -> Command:
    """Return how to run a service of the naive chain."""
    bind, app = f"{LOOPBACK}:{port}", "loadtest.bench.baseline.app:app"
    return [sys.executable, "-m", "gunicorn", "--bind", bind, app], {"NAME": name, "UPSTREAM": upstream}


def node(name: str, port: int, upstream: str) -> Command:
    """Return how to run a service of the chain in Node."""
    environment = {"NAME": name, "PORT": str(port), "UPSTREAM": upstream}
    return ["node", "loadtest/bench/baseline/app.js"], environment


def node_server() -> str:
    """Return what serves in the Node chain."""
    script = 'try { require("express"); console.log("Express") } catch { console.log("node:http") }'
    found = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def measure_chains(mesh: LocalMesh, effort: Effort) -> Iterator[Figure]:
    """Measure the services against the same chain written otherwise, and what the sidecars cost."""
    mesh.apply(V1_ONLY)
    commands = {"services": services, "naive": naive, **({"node": node} if shutil.which("node") else {})}
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(chain(command)) for name, command in commands.items()}
        urls["mesh"] = mesh.url()
        wanted = [(name, SENDERS) for name in urls] + [("services", 1), ("mesh", 1)]
        rates = by_turns(
            effort.rounds,
            {(name, n): partial(per_second, urls[name], effort.seconds, n) for name, n in wanted},
        )
    ours = rates["services", SENDERS]
    yield Figure("services without a mesh", "requests/s", ours)
    yield Figure("services / naive Flask chain", "", ratios(ours, rates["naive", SENDERS]), ">= 2.5")
    if "node" in commands:
        against_node = ratios(ours, rates["node", SENDERS])
        yield Figure("services / Node chain", "", against_node, note=f"with {node_server()}")
    else:
        yield Figure("services / Node chain", "", [], note="skipped: no node")
    yield Figure("requests/s: mesh / services without", "", ratios(rates["mesh", SENDERS], ours))
    alone = zip(rates["mesh", 1], rates["services", 1], strict=True)
    added = [1000 / with_proxies - 1000 / without for with_proxies, without in alone]
    yield Figure("what four proxies add for one caller", "ms", added)


def measure_store(mesh: LocalMesh, effort: Effort) -> Iterator[Figure]:
    """Measure what it costs to keep what is posted, and to count it, in a file of SQLite's."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        bare = stack.enter_context(chain(services))
        stored = stack.enter_context(chain(partial(services, store=f"sqlite:///{folder}/live.db")))

        def rate(url: str, body: bytes) -> float:
            return per_second(f"{url}?item=shoes-{time.time_ns()}", effort.seconds, body=body)

        bodies = {"POST": b"x" * 100, "GET": b""}
        rates = by_turns(
            effort.rounds,
            {
                (url, what): partial(rate, url, body)
                for url in (bare, stored)
                for what, body in bodies.items()
            },
        )
    for what in bodies:
        values = ratios(rates[stored, what], rates[bare, what])
        yield Figure(f"{what}s with a store / without", "", values, note="no mesh")
