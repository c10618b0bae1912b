"""Callers as Locust plays them, every reply checked, and the whole run judged as by ``verify``.

The master, or the only process, keeps the ledger and follows the proxies' logs. Workers send what their
callers saw together with Locust's own statistics. Inside a cluster the master prints that, and job.py keeps
the ledger.
"""

import itertools
import json
import logging
import random
import signal
import sys
import time
from typing import Any

import click
import gevent
from locust import FastHttpUser, between, events, poisson, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from harness import HarnessError
from harness.choice import MESHES, make_mesh
from harness.cluster.mesh import ClusterMesh
from harness.manifests.read import dump, parse
from harness.meshes.mesh import LOOPBACK, check_port
from harness.proof.tickets import Ticket, probe
from harness.proof.verify import HEADERS, TIMEOUT, Promise, version_in
from harness.terminal import render
from loadtest.ledger_tab import Tally, add_tab
from loadtest.run import LIMIT, SEEN, Run

# Longer than a caller waits: no caller may be cut off, since what it would have seen could not be judged.
STOP_TIMEOUT = TIMEOUT + 5

Sight = tuple[int, int, str | None, float]
"""What a caller saw: its ticket's number, status, the version that answered, seconds."""


class Callers:
    """What a process knows that plays callers."""

    def __init__(self, environment: Environment) -> None:
        """Take over what the master says among the options: the run's name, and the routes."""
        runner, options = environment.runner, environment.parsed_options
        assert options
        self.run: str = options.run
        self.promise = Promise(parse(options.routes, "the routes"), self.run)
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
    """Whether this is the master of a load test inside a cluster, whose ledger is kept outside."""
    run: Run | None = None
    reader: gevent.Greenlet
    tally: Tally | None = None
    """What the web page shows, if there is one."""
    callers: Callers | None = None
    verdict: str = ""


def ratio(text: str) -> float:
    """Read a number from 0 to 1."""
    if not 0 <= (value := float(text)) <= 1:
        raise ValueError
    return value


@events.init_command_line_parser.add_listener
def options(parser: LocustArgumentParser) -> None:
    """Add the choice of the mesh, and the thresholds; leaks and missing mirrors are never forgiven."""
    hidden: dict[str, Any] = {"include_in_web_ui": False}
    parser.add_argument(
        "--mesh", choices=MESHES, default="local", env_var="MESH", help="where to run", **hidden
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
        help="the name of a run whose ledger is kept elsewhere",
        **hidden,
    )
    parser.add_argument(
        "--routes", default="", env_var="DARK_LAUNCH_ROUTES", help="what is applied then", **hidden
    )


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Check that there is something to load, and add the ledger to the web page."""
    options = environment.parsed_options
    assert options
    State.inside = bool(options.run)
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
            new_run(environment).mesh.close()
    except HarnessError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    if environment.web_ui:
        add_tab(environment.web_ui, lambda: State.tally)


def new_run(environment: Environment) -> Run:
    """Open a ledger, and set the options that tell callers of it.

    :raises HarnessError: there is nothing to load, or no way there.
    """
    options = environment.parsed_options
    assert options
    mesh = make_mesh(options.mesh)
    if isinstance(mesh, ClusterMesh) and not mesh.reachable_address():
        raise HarnessError("only a port-forward leads there, too narrow for a load: make load MESH=cluster")
    run = Run(mesh, options.max_failures, options.max_p95)
    environment.host = mesh.url()
    options.run, options.routes = run.proof.ledger.run, dump(run.mesh.routes())
    return run


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    """Open a ledger; the process that keeps it follows the logs."""
    State.run, State.callers, State.verdict = None, None, ""
    try:
        if not isinstance(environment.runner, WorkerRunner):
            environment.stop_timeout = STOP_TIMEOUT
            if not State.inside:
                State.run = new_run(environment)
                State.tally = Tally(State.run.proof) if environment.web_ui else None
                State.run.proof.follow()
                State.reader = gevent.spawn(read, State.run)
        if not isinstance(environment.runner, MasterRunner):
            State.callers = Callers(environment)
    except HarnessError as error:
        give_up(environment, error)


def read(run: Run) -> None:
    """Enter what the proxies log."""
    while True:
        run.proof.read()
        gevent.sleep(0.1)


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
    """Enter what a worker's callers saw, or tell whoever keeps the ledger."""
    seen = data.get("seen", ())
    if State.inside:
        for start in range(0, len(seen), 300):  # container engines split lines of more than 16 KiB
            print(SEEN + json.dumps(seen[start : start + 300]), flush=True)
    elif State.run:
        for sight in seen:
            enter(sight)


def enter(sight: Sight) -> None:
    """Enter into the ledger what a caller saw."""
    assert State.run
    State.run.proof.ledger.saw(*sight)
    if State.tally:
        State.tally.add(sight[0])


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
    State.reader.kill()
    try:
        verdict = run.end()
    except HarnessError as error:
        give_up(environment, error)
    except KeyboardInterrupt:
        give_up(environment, HarnessError("interrupted before the proxies' logs were complete"))
    else:
        environment.process_exit_code = 0 if verdict.passed and not environment.runner.exceptions else 1
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
    """Whoever asks customer for something."""

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
                f"{self.host}?{request.query}",
                name="/customer",
                data=request.body.decode(),
                headers={"user-agent": str(Ticket(callers.run, number)), **HEADERS},
                catch_response=True,
            ) as reply:
                status, version = reply.status_code, version_in(reply.text or "")
                if 200 <= status < 300 and version not in dict(callers.promise(number).answers):
                    reply.failure(Leak())
        finally:
            sight = number, status, version, time.perf_counter() - start
            if State.run:
                enter(sight)
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
