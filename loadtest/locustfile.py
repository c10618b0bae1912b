"""Callers as Locust plays them, every reply checked, and the whole run judged as by ``verify``.

The master, or the only process, keeps the ledger and follows the proxies' logs. With ``--processes``, workers
send what their callers saw together with Locust's own statistics.
"""

import itertools
import logging
import random
import sys
import time
from dataclasses import replace
from typing import Any

import click
import gevent
from locust import FastHttpUser, between, constant_pacing, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from harness import HarnessError
from harness.__main__ import MESHES, make_mesh
from harness.tickets import Ticket, probe
from harness.verdict import ANSWERED, Claim, Verdict
from harness.verify import HEADERS, TIMEOUT, Proof, version_in
from loadtest.ledger_tab import Tally, add_tab

LIMIT = 10_000_000
"""What a ledger can hold: no ticket has this number."""

# Longer than a caller waits: no caller may be cut off, since what it would have seen could not be judged.
STOP_TIMEOUT = TIMEOUT + 5


class Run:
    """One load test, from start to stop, as one process sees it."""

    def __init__(self, environment: Environment) -> None:
        """Begin: the master names the run, and Locust hands the name to workers among the options."""
        runner, options = environment.runner, environment.parsed_options
        assert runner is not None
        assert options is not None
        self.mesh = mesh = make_mesh(options.mesh)
        self.proof = Proof(mesh, 0, limit=LIMIT)
        index, workers = 0, 1
        if isinstance(runner, WorkerRunner):
            self.proof.ledger.run = options.run
            index, workers = runner.worker_index, options.expect_workers
        else:
            options.run = self.proof.ledger.run
            environment.host = mesh.url()
            environment.stop_timeout = STOP_TIMEOUT
        # probe() makes a GET of every even number and a POST of every odd one; no two workers share any.
        self.numbers = {
            method: itertools.count(2 * index + odd, 2 * workers)
            for odd, method in enumerate(("GET", "POST"))
        }
        self.tally = Tally(self.proof)
        self.unreported: list[tuple[int, int, str | None, float]] = []
        """What callers of this worker saw since its last report."""
        for count in range(2):
            self.proof.promise(count)  # what cannot be told is better said now than after the run

    def saw(self, number: int, status: int, version: str | None, seconds: float) -> None:
        """Enter what a caller saw."""
        self.proof.ledger.saw(number, status, version, seconds)
        self.tally.add(number)

    def follow(self) -> None:
        """Read the proxies' logs from now on."""
        self.proof.follow()
        self._reader = gevent.spawn(self._read)

    def _read(self) -> None:
        while True:
            self.proof.read()
            gevent.sleep(0.1)

    def end(self, environment: Environment) -> Verdict:
        """Return the verdict, with a claim for each threshold."""
        self._reader.kill()
        try:
            self.proof.settle()
        finally:
            self.proof.close()
            self.mesh.close()
        self.proof.must_be_enough(self.proof.ledger.numbers())
        verdict, options, total = self.proof.verdict(), environment.parsed_options, environment.stats.total
        assert options
        claims = list(verdict.claims)
        if options.max_failures:
            statement = f"at most {options.max_failures:.2%} of requests failed"
            claims = [claim for claim in claims if claim.statement != ANSWERED]
            claims.insert(
                0, Claim(statement, total.fail_ratio <= options.max_failures, f"{total.fail_ratio:.2%}")
            )
        p95 = total.get_response_time_percentile(0.95) or 0
        statement = f"95 % of callers waited at most {options.max_p95} ms"
        claims.append(Claim(statement, p95 <= options.max_p95, f"{p95:.0f} ms"))
        return replace(verdict, claims=tuple(claims))


class State:
    """What event listeners share."""

    run: Run | None = None
    verdict: str = ""


@events.init_command_line_parser.add_listener
def options(parser: LocustArgumentParser) -> None:
    """Add the choice of the mesh, and the thresholds; leaks and missing mirrors are never forgiven."""
    hidden: dict[str, Any] = {"include_in_web_ui": False}
    parser.add_argument(
        "--mesh", choices=MESHES, default="local", env_var="MESH", help="where to run", **hidden
    )
    parser.add_argument(
        "--max-failures", type=float, default=0, env_var="MAX_FAILURES", metavar="RATIO",
        help="fail if more than this part of all requests fails", **hidden,
    )  # fmt: skip
    parser.add_argument(
        "--max-p95", type=int, default=1000, env_var="MAX_P95", metavar="MS",
        help="fail if more than 5 %% of callers wait longer than this many milliseconds", **hidden,
    )  # fmt: skip


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Check that there is something to load, and add the ledger to the web page."""
    if not isinstance(environment.runner, WorkerRunner):
        try:
            Run(environment).mesh.close()
        except HarnessError as error:
            print(f"Error: {error}", file=sys.stderr)
            sys.exit(2)
    if environment.web_ui:
        add_tab(environment.web_ui, lambda: State.run.tally if State.run else None)


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    """Open a ledger; the process that keeps it follows the logs."""
    State.run, State.verdict = None, ""
    try:
        State.run = Run(environment)
        if not isinstance(environment.runner, WorkerRunner):
            State.run.follow()
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
    if State.run:
        data["seen"], State.run.unreported = State.run.unreported, []


@events.worker_report.add_listener
def receive(data: dict[str, Any], **_: Any) -> None:
    """Enter what a worker's callers saw."""
    if State.run:
        for sight in data.get("seen", ()):
            State.run.saw(*sight)


@events.test_stopping.add_listener
def await_workers(environment: Environment, **_: Any) -> None:
    """Let workers end and report. Of itself a headless master would end before they do."""
    runner = environment.runner
    if isinstance(runner, MasterRunner) and not environment.web_ui:
        runner.send_message("quit")
        deadline = time.monotonic() + STOP_TIMEOUT
        while runner.user_count and time.monotonic() < deadline:
            gevent.sleep(0.05)


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    """Judge the run: verdict and thresholds decide the exit code."""
    if isinstance(environment.runner, WorkerRunner):
        environment.stop_timeout = 0  # all have ended; a worker would sleep so long before it can start anew
        return
    run = State.run
    if not run or State.verdict:
        return
    assert environment.runner
    try:
        verdict = run.end(environment)
    except HarnessError as error:
        give_up(environment, error)
    else:
        environment.process_exit_code = 0 if verdict.passed and not environment.runner.exceptions else 1
        State.verdict = verdict.render(lambda word, good: click.style(word, fg="green" if good else "red"))
    if environment.web_ui:
        show()


@events.quitting.add_listener
def stop(environment: Environment, **_: Any) -> None:
    """End a run that was interrupted, while the exit code can still be set."""
    if State.run and environment.runner and not isinstance(environment.runner, WorkerRunner):
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
        run = State.run
        if not run or (number := next(run.numbers[method])) >= LIMIT:
            raise StopUser
        # Locust may end a caller just as it begins to ask; its request must be heard out all the same.
        asking = gevent.spawn(self._ask, run, number)
        try:
            asking.get()
        finally:
            asking.join()

    def _ask(self, run: Run, number: int) -> None:
        """Enter what the reply was; one from a version that no route allows is a leak."""
        request = probe(number)
        status, version, start = 0, None, time.perf_counter()
        try:
            with self.client.request(
                request.method,
                f"{self.host}?{request.query}",
                name="/customer",
                data=request.body.decode(),
                headers={"user-agent": str(Ticket(run.proof.ledger.run, number)), **HEADERS},
                catch_response=True,
            ) as reply:
                status, version = reply.status_code, version_in(reply.text or "")
                if 200 <= status < 300 and version not in dict(run.proof.promise(number).answers):
                    reply.failure(Leak())
        finally:
            sight = number, status, version, time.perf_counter() - start
            if isinstance(self.environment.runner, WorkerRunner):
                run.unreported.append(sight)
            else:
                run.saw(*sight)


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
    """A program that sends something each second."""

    wait_time = constant_pacing(1)

    @task
    def send(self) -> None:
        """Send it."""
        self.ask("POST")
