"""Callers as Locust plays them, every reply checked, and the whole run judged as by ``verify``.

The master, or the only process, follows the proxies' logs and judges. Workers send what their callers saw
together with Locust's own statistics. Inside a cluster the master prints that, and job.py judges.
"""

import itertools
import json
import logging
import random
import signal
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import click
import gevent
from locust import FastHttpUser, between, events, poisson, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from harness import HarnessError, settings
from harness.choice import MESHES, make_mesh
from harness.cluster.mesh import ClusterMesh
from harness.meshes.mesh import LOOPBACK, TARGET, check_port
from harness.proof.target import Target
from harness.proof.traffic import HEADERS, TIMEOUT, Ticket, probe, version_in
from harness.terminal import collect_rarely, render
from loadtest.ledger_tab import add_tab
from loadtest.run import LIMIT, SEEN, Run

# Longer than a caller waits: no caller may be cut off, since what it would have seen could not be judged.
STOP_TIMEOUT = TIMEOUT + 5

Sight = tuple[int, int, str | None, float]
"""What a caller saw: its ticket's number, status, the version that answered, seconds."""


class Callers:
    """What a process knows that plays callers."""

    def __init__(self, environment: Environment) -> None:
        """Take over what the master says among the options: the run's name, and who may answer."""
        runner, options = environment.runner, environment.parsed_options
        assert options
        self.run: str = options.run
        self.service: str = options.service
        self.allowed = frozenset(options.allowed.split(","))
        index, workers = 0, 1
        if isinstance(runner, WorkerRunner):
            index, workers = runner.worker_index, options.expect_workers
        # probe() makes a GET of every even number and a POST of every odd one; no two workers share any.
        self.numbers = {
            method: itertools.count(2 * index + odd, 2 * workers)
            for odd, method in enumerate(("GET", "POST"))
        }
        self.unreported: list[Sight] = []
        """What callers of this worker saw since its last report."""


class State:
    """What event listeners share."""

    inside = False
    """Whether this is the master of a load test inside a cluster, which is judged outside."""
    run: Run | None = None
    reader: gevent.Greenlet
    reading = False
    callers: Callers | None = None
    verdict: str = ""


def ratio(text: str) -> float:
    """Read a number from 0 to 1."""
    if not 0 <= (value := float(text)) <= 1:
        raise ValueError
    return value


@events.init_command_line_parser.add_listener
def options(parser: LocustArgumentParser) -> None:
    """Add mesh, target and thresholds; leaks and missing mirrors are never forgiven."""
    hidden: dict[str, Any] = {"include_in_web_ui": False}
    parser.add_argument(
        "--mesh", choices=MESHES, default="local", env_var="MESH", help="where to run", **hidden
    )
    parser.add_argument("--service", default=TARGET, env_var="SERVICE", help="the Service to judge", **hidden)
    parser.add_argument("--namespace", default=settings.namespace(), help="where the Service is", **hidden)
    parser.add_argument(
        "--url", default="", env_var="URL", help="what callers ask, if not the workshop's gateway", **hidden
    )
    parser.add_argument(
        "--max-failures", type=ratio, default=0, env_var="MAX_FAILURES", metavar="RATIO",
        help="fail if more than this part of all requests fails", **hidden,
    )  # fmt: skip
    parser.add_argument(
        "--max-p95", type=float, default=1000, env_var="MAX_P95", metavar="MS",
        help="fail if more than 5 %% of callers wait longer than this many milliseconds", **hidden,
    )  # fmt: skip
    parser.add_argument(
        "--run",
        default="",
        env_var="DARK_LAUNCH_RUN",
        help="the name of a run that is judged elsewhere",
        **hidden,
    )
    parser.add_argument(
        "--allowed", default="", env_var="DARK_LAUNCH_ALLOWED", metavar="VERSIONS",
        help="who may answer callers then, with commas between", **hidden,
    )  # fmt: skip


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Check that there is something to load, and add the ledger to the web page."""
    options = environment.parsed_options
    assert options
    State.inside = bool(options.run)
    collect_rarely()
    if isinstance(environment.runner, WorkerRunner):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the master, who tells workers
        return
    try:
        if environment.web_ui:
            check_port(options.web_host or LOOPBACK, options.web_port, "set LOCUST_WEB_PORT")
        elif options.num_users is not None and options.num_users < 1:
            raise HarnessError("a load needs callers: USERS=1 or more")
        elif options.run_time == 0:
            raise HarnessError("a load needs time: TIME=30s, for example")
        if not State.inside:
            new_run(environment).close()
    except HarnessError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    if environment.web_ui:
        add_tab(environment.web_ui, lambda: State.run.watch if State.run else None)


def new_run(environment: Environment) -> Run:
    """Look at what is applied, and set the options that tell callers of the run.

    :raises HarnessError: there is nothing to load, or no way there.
    """
    options = environment.parsed_options
    assert options
    if options.url and not options.url.startswith(("http://", "https://")):
        raise HarnessError(f"URL={options.url} is not an address such as http://127.0.0.1:8080/")
    mesh = make_mesh(options.mesh, namespace=options.namespace)
    if isinstance(mesh, ClusterMesh) and not options.url and not mesh.reachable_address():
        raise HarnessError("only a port-forward leads there, too narrow for a load: make load MESH=cluster")
    run = Run(mesh, Target(options.service, options.namespace), options.max_failures, options.max_p95)
    environment.host = options.url or mesh.url()
    options.run, options.allowed = run.watch.run, run.allowed
    return run


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    """Open a run; the process that judges it follows the logs."""
    State.run, State.callers, State.verdict = None, None, ""
    try:
        if not isinstance(environment.runner, WorkerRunner):
            environment.stop_timeout = STOP_TIMEOUT
            if not State.inside:
                State.run = new_run(environment)
                State.run.watch.follow()
                State.reading, State.reader = True, gevent.spawn(read, environment, State.run)
        if not isinstance(environment.runner, MasterRunner):
            State.callers = Callers(environment)
    except HarnessError as error:
        give_up(environment, error)


def read(environment: Environment, run: Run) -> None:
    """Enter what the proxies log, and end the load when a copy leads back to the target."""
    try:
        while State.reading:
            if run.watch.read() and environment.runner:
                gevent.spawn(environment.runner.stop if environment.web_ui else environment.runner.quit)
                return
            gevent.sleep(0.1)
    except HarnessError as error:
        give_up(environment, error)


def give_up(environment: Environment, error: HarnessError) -> None:
    """Say that nothing can be said."""
    logging.error("%s", error)
    State.verdict = f"Error: {error}"
    environment.process_exit_code = 2


@events.report_to_master.add_listener
def report(data: dict[str, Any], **_: Any) -> None:
    """Send what callers saw along with a worker's statistics."""
    if State.callers:
        data["seen"], State.callers.unreported = State.callers.unreported, []


@events.worker_report.add_listener
def receive(data: dict[str, Any], **_: Any) -> None:
    """Enter what a worker's callers saw, or tell whoever judges."""
    seen = data.get("seen", ())
    if State.inside:
        for start in range(0, len(seen), 300):  # container engines split lines of more than 16 KiB
            print(SEEN + json.dumps(seen[start : start + 300]), flush=True)
    elif State.run:
        for sight in seen:
            State.run.sightings.saw(*sight)


@events.test_stopping.add_listener
def await_workers(environment: Environment, **_: Any) -> None:
    """Let workers end and report. Of itself a headless master would end before they do."""
    runner = environment.runner
    if isinstance(runner, MasterRunner) and not environment.web_ui:
        runner.send_message("quit")
        deadline = time.monotonic() + STOP_TIMEOUT
        while runner.clients and time.monotonic() < deadline:
            gevent.sleep(0.05)
        for worker in runner.clients:
            logging.error("worker %s did not report what its last callers saw", worker)


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    """Judge the run: verdict and thresholds decide the exit code."""
    if isinstance(environment.runner, WorkerRunner):
        environment.stop_timeout = 0  # all have ended; a worker would sleep so long before it can start anew
        return
    assert environment.runner
    run = State.run
    if State.inside and environment.runner.exceptions:
        environment.process_exit_code = 1
    if not run or State.verdict:
        return
    State.reading = False
    State.reader.join()  # a line that it has in hand must be entered
    if State.verdict:
        return
    try:
        verdict = run.end()
    except HarnessError as error:
        give_up(environment, error)
    except KeyboardInterrupt:
        give_up(environment, HarnessError("interrupted before the proxies' logs were complete"))
    else:
        environment.process_exit_code = verdict.exit_code or int(bool(environment.runner.exceptions))
        State.verdict = render(verdict)
    if environment.web_ui:
        show()


@events.quitting.add_listener
def stop(environment: Environment, **_: Any) -> None:
    """End a run that was interrupted, while the exit code can still be set."""
    if (State.run or State.inside) and environment.runner:
        environment.runner.stop()


@events.quit.add_listener
def show(**_: Any) -> None:
    """Print the verdict below Locust's summary."""
    if State.verdict:
        click.echo("\n" + State.verdict)


class Leak(Exception):
    """A version answered that no route allows to; all of Locust's tables call it ``leak``."""

    def __repr__(self) -> str:
        return "leak"


class Caller(FastHttpUser):
    """Whoever asks for something: customer, if nobody else is named."""

    abstract = True
    network_timeout = connection_timeout = TIMEOUT

    def ask(self, method: str) -> None:
        """Send the next request of a kind, with its ticket."""
        callers = State.callers
        if not callers or (number := next(callers.numbers[method])) >= LIMIT:
            raise StopUser
        # Locust may end a caller just as it begins to ask; its request must be heard out all the same.
        asking = gevent.spawn(self._ask, callers, number)
        try:
            asking.get()
        finally:
            asking.join()

    def _ask(self, callers: Callers, number: int) -> None:
        """Enter what the reply was; one from a version that no route allows is a leak."""
        request = probe(number)
        status, version, start = 0, None, time.perf_counter()
        try:
            with self.client.request(
                request.method,
                f"{self.host}{'&' if '?' in (self.host or '') else '?'}{request.query}",
                name=urlsplit(self.host or "").path or "/",
                data=request.body.decode(),
                headers={"user-agent": str(Ticket(callers.run, number)), **HEADERS},
                catch_response=True,
            ) as reply:
                status, version = reply.status_code, version_in(reply.text or "", callers.service)
                if 200 <= status < 300 and version and version not in callers.allowed:
                    reply.failure(Leak())
        finally:
            sight = number, status, version, time.perf_counter() - start
            if State.run:
                State.run.sightings.saw(*sight)
            else:
                callers.unreported.append(sight)


class Browser(Caller):
    """Somebody who looks around, sends a form at times, leaves, and comes back on a new connection."""

    weight = 4
    wait_time = between(0.5, 1.5)

    @task(12)
    def look(self) -> None:
        """Load a page."""
        self.ask("GET")

    @task(3)
    def send(self) -> None:
        """Send a form."""
        self.ask("POST")

    @task(1)
    def come_back(self) -> None:
        """Leave, and load a page some time later."""
        self.client.client.clientpool.close()
        gevent.sleep(random.uniform(1, 2))
        self.ask("GET")


class Sender(Caller):
    """A program that sends something once a second, on average: at even intervals all would send at once."""

    wait_time = poisson(1)

    @task
    def send(self) -> None:
        """Send it."""
        self.ask("POST")
