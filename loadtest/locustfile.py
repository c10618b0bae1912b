"""Callers as Locust plays them, every reply checked, and the whole run judged as by ``verify``.

The master, or the only process, follows the proxies' logs and judges. Workers send what their callers saw
together with Locust's own statistics. Inside a cluster the master prints that, and job.py judges.
"""

import contextlib
import itertools
import json
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import click
import gevent
import psutil
from locust import FastHttpUser, between, events, poisson, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.rpc import Message
from locust.runners import STATE_CLEANUP, STATE_INIT, STATE_MISSING, MasterRunner, WorkerNode, WorkerRunner
from locust.stats import StatsCSVFileWriter

from harness import HarnessError, settings
from harness.choice import MESHES, make_mesh
from harness.cluster.mesh import ClusterMesh
from harness.meshes.mesh import LOOPBACK, TARGET, check_port
from harness.pages import report as pages
from harness.proof.target import Target
from harness.proof.traffic import TIMEOUT, Ticket, probe, version_in
from harness.proof.verdict import Verdict
from harness.terminal import collect_rarely, render
from loadtest.proof_tab import add_tab, standing
from loadtest.run import LIMIT, PROOF, SEEN, Run, link, where

# "Sending spawn jobs of 50 users … to 1 ready workers" looks like an error, and says nothing that helps.
logging.getLogger("locust.runners").setLevel(logging.WARNING)

# Longer than a caller waits: no caller may be cut off, since what it would have seen could not be judged.
STOP_TIMEOUT = TIMEOUT + 5

GRACE = 1.0
"""Seconds that a worker that is told to end waits for its master's word: it may be told as well."""

_write_figures = StatsCSVFileWriter.stats_writer


def write_figures(writer: StatsCSVFileWriter) -> None:
    """Write Locust's figures until the end. Locust closes the files a moment before it ends."""
    with contextlib.suppress(ValueError):
        _write_figures(writer)


StatsCSVFileWriter.stats_writer = write_figures  # type: ignore[assignment, method-assign]

Sight = tuple[int, int, str | None, float]
"""What a caller saw: its ticket's number, status, the version that answered, seconds."""


class Callers:
    """What a process knows that plays callers."""

    def __init__(self, environment: Environment) -> None:
        """Count tickets, and take over what the master says among the options."""
        runner, options = environment.runner, environment.parsed_options
        assert options
        self.service: str = options.service
        index, workers = 0, 1
        if isinstance(runner, WorkerRunner):
            index, workers = runner.worker_index, options.expect_workers
        # probe() makes a GET of every even number and a POST of every odd one; no two workers share any.
        self.numbers = {
            method: itertools.count(2 * index + odd, 2 * workers)
            for odd, method in enumerate(("GET", "POST"))
        }
        self.hear(environment)

    def hear(self, environment: Environment) -> None:
        """Take over the run's name, and who may answer."""
        options = environment.parsed_options
        assert options
        self.run: str = options.run
        self.allowed = frozenset(options.allowed.split(","))
        self.unreported: list[Sight] = []
        """What callers of this worker saw of the run since its last report."""


class State:
    """What event listeners share."""

    inside = False
    """Whether this is the master of a load test inside a cluster, which is judged outside."""
    run: Run | None = None
    workers: dict[str, WorkerNode]
    """Who plays the run's callers, as the master knows them."""
    follower: gevent.Greenlet | None = None
    following = False
    renewing = False
    """Whether the run is to begin anew."""
    callers: Callers | None = None
    lost = False
    """Whether a worker leaves."""
    stopping = False
    """Whether callers are told to stop."""
    ending: gevent.Greenlet | None = None
    """What ends the run and judges it, once."""
    interrupted = False
    verdict: str = ""
    final: Verdict | None = None
    """That of the last run, once it has ended."""
    report: Path | None = None
    """What Locust is to write when it ends."""


def ratio(text: str) -> float:
    """Read a number from 0 to 1."""
    if not 0 <= (value := float(text)) <= 1:
        raise ValueError
    return value


@events.init_command_line_parser.add_listener
def options(parser: LocustArgumentParser) -> None:
    """Add mesh, target and thresholds; leaks and missing mirrors are never forgiven."""
    if "--processes" in sys.argv:
        with socket.create_server((LOOPBACK, 0)) as probe:  # if its usual port is busy, Locust fails
            port = probe.getsockname()[1]
        parser.set_defaults(master_bind_port=port, master_port=port)
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
    """Check that there is something to load, and add the proof to the web page."""
    options = environment.parsed_options
    assert options
    State.inside = bool(options.run)
    collect_rarely()
    heed_signals(environment)
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.register_message("renewed", hear)
        return
    if isinstance(environment.runner, MasterRunner):
        environment.runner.register_message("leaving", lose)
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
        leave(error)
    if environment.web_ui:
        add_tab(environment.web_ui, shown)


def shown() -> Verdict | None:
    """Return what the web page shows: the verdict on the last run, or how one that goes on stands."""
    return State.final or (standing(State.run.watch) if State.run else None)


def leave(error: HarnessError) -> NoReturn:
    """End before anything was sent, at once. Locust would leave workers behind."""
    on_signals(lambda *_: None)
    click.echo(f"Error: {error}", err=True)
    for worker in psutil.Process().children():
        worker.kill()
    os._exit(2)


def on_signals(handler: Callable[[int, Any], object]) -> None:
    """Call ``handler`` for each signal that is to end the load."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, handler)


def leave_early(*_: Any) -> None:
    """End before Locust is ready. A worker would look for its master for minutes."""
    if os.getpid() != STARTED:
        os._exit(2)
    leave(HarnessError("interrupted before anything was sent"))


STARTED = os.getpid()
"""The process that starts workers."""
on_signals(leave_early)


def heed_signals(environment: Environment) -> None:
    """Have signals end the load in order. Left to Locust, they cut callers and the judge off."""
    gevent.signal_handler = lambda *_: None  # Locust's own for SIGTERM, which fails if that comes twice
    on_signals(lambda number, _: gevent.spawn(interrupt, environment, number))


def interrupt(environment: Environment, number: int) -> None:
    """End the load: what was sent until then is judged. Ctrl-C again ends it without a verdict."""
    runner = environment.runner
    assert runner
    if isinstance(runner, WorkerRunner):
        gevent.sleep(GRACE)
        if State.callers and not State.stopping:
            runner.send_message("leaving")
            gevent.sleep(GRACE)
        while State.stopping:
            gevent.sleep(0.05)
        runner.quit()
        return
    again, State.interrupted = State.interrupted, True
    if again:
        if number == signal.SIGINT:  # others come twice, since make passes them on
            abandon(environment)
    elif runner.state == STATE_INIT and not environment.web_ui:
        leave_early()
    else:
        stop(environment)
        if environment.web_ui:
            while State.stopping and not is_judged():  # STOP was pressed
                gevent.sleep(0.05)
            runner.quit()
            environment.web_ui.stop()  # type: ignore[no-untyped-call]


def is_judged() -> bool:
    """Say whether the last run has ended, and all is said of it."""
    return State.ending is not None and State.ending.ready()


def abandon(environment: Environment) -> None:
    """Give a run up that is not judged yet."""
    if not State.run or State.verdict or is_judged():
        return
    give_up(environment, HarnessError("interrupted before the proxies' logs were complete"))
    if State.ending and not State.following:
        State.ending.kill()


def new_run(environment: Environment) -> Run:
    """Look at what is applied, and set the options that tell callers of the run.

    :raises HarnessError: there is nothing to load, or no way there.
    """
    options = environment.parsed_options
    assert options
    if options.url and not options.url.startswith(("http://", "https://")):
        raise HarnessError(f"URL={options.url} is not an address such as http://127.0.0.1:8080/")
    mesh = make_mesh(options.mesh, namespace=options.namespace)
    if isinstance(mesh, ClusterMesh) and not options.url and not mesh.gateway.reachable_address():
        raise HarnessError("a port-forward is too narrow for a load: make load MESH=cluster")
    run = Run(mesh, Target(options.service, options.namespace), options.max_failures, options.max_p95)
    environment.host = options.url or mesh.url()
    tell(environment, run)
    return run


def tell(environment: Environment, run: Run) -> None:
    """Set the options that tell callers of a run."""
    assert environment.parsed_options
    environment.parsed_options.run, environment.parsed_options.allowed = run.watch.run, run.allowed


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    """Open a run; the process that judges it follows the logs."""
    runner, options = environment.runner, environment.parsed_options
    assert options
    State.run, State.workers, State.callers, State.verdict, State.final = None, {}, None, "", None
    State.lost = State.stopping = State.renewing = False
    State.ending = None
    if isinstance(runner, WorkerRunner):
        State.callers = Callers(environment)
        return
    environment.stop_timeout = STOP_TIMEOUT
    if options.html_file and not State.inside:
        State.report = Path(options.html_file)
        State.report.unlink(missing_ok=True)
    run = None
    try:
        if not State.inside:
            run = new_run(environment)
            run.watch.follow()
    except HarnessError as error:
        give_up(environment, error)
        gevent.spawn(stop, environment)
        return
    if isinstance(runner, MasterRunner):
        State.workers = {name: w for name, w in runner.clients.items() if w.state != STATE_MISSING}
    else:
        State.callers = Callers(environment)
    State.run, State.following, State.follower = run, True, gevent.spawn(follow, environment, run)


def follow(environment: Environment, run: Run | None) -> None:
    """Enter what the proxies log; end the load when a copy leads back to the target, or a worker is lost."""
    runner = environment.runner
    try:
        while State.following:
            if isinstance(runner, MasterRunner) and not State.stopping and lacks_workers(runner):
                raise WorkerLost
            if run and State.renewing:
                run.renew()
                gevent.spawn_later(run.mesh.quiet, announce, environment, run)
                State.renewing = False
            if run and run.watch.read():
                break
            gevent.sleep(0.1)
        else:
            return
    except HarnessError as error:
        give_up(environment, error)
    gevent.spawn(stop, environment)


def lacks_workers(runner: MasterRunner) -> bool:
    """Say whether a worker leaves, has left, or is silent."""
    there = [name for name, worker in runner.clients.items() if worker.state != STATE_MISSING]
    return State.lost or bool(State.workers.keys() - there)


def lose(**_: Any) -> None:
    """Hear from a worker that it leaves."""
    State.lost = True


def stop(environment: Environment) -> None:
    """End the load; without a web page that ends Locust as well."""
    assert environment.runner
    if environment.web_ui:
        assert environment.web_ui.app
        environment.web_ui.app.test_client().post("/stop")  # ends what starts callers, too
    else:
        environment.runner.quit()


class WorkerLost(HarnessError):
    """A worker ended or died, and with it what its callers saw."""

    def __str__(self) -> str:
        return "a worker was lost, so nothing can be said of this run"


def give_up(environment: Environment, error: HarnessError) -> None:
    """Say that nothing can be said."""
    State.verdict = f"Error: {error}"
    environment.process_exit_code = 2


@events.reset_stats.add_listener
def reset(**_: Any) -> None:
    """Let a run begin anew, and forget one that has ended."""
    if State.following:
        State.renewing = True
    else:
        State.run = State.final = None
    while State.renewing and State.following:
        gevent.sleep(0.02)


def announce(environment: Environment, run: Run) -> None:
    """Tell callers the name of a run that began anew: what they saw under the old one does not count."""
    if State.run is not run or not State.following:
        return
    tell(environment, run)
    if isinstance(environment.runner, MasterRunner):
        environment.runner.send_message("renewed", {"run": run.watch.run, "allowed": run.allowed})
    elif State.callers:
        State.callers.hear(environment)


def hear(environment: Environment, msg: Message) -> None:
    """Hear from the master that the run began anew."""
    vars(environment.parsed_options).update(msg.data)
    if State.callers:
        State.callers.hear(environment)


@events.report_to_master.add_listener
def report(data: dict[str, Any], **_: Any) -> None:
    """Send what callers saw along with a worker's statistics."""
    if State.callers:
        data["run"] = State.callers.run
        data["seen"], State.callers.unreported = State.callers.unreported, []


@events.worker_report.add_listener
def receive(data: dict[str, Any], **_: Any) -> None:
    """Enter what a worker's callers saw, or tell whoever judges."""
    seen = data.get("seen", ())
    if State.inside:
        for start in range(0, len(seen), 300):  # container engines split lines of more than 16 KiB
            print(SEEN + json.dumps(seen[start : start + 300]), flush=True)
    elif seen:
        enter(data["run"], seen)


def enter(run: str, seen: Iterable[Sight]) -> None:
    """Enter what callers saw of a run, if it is the one that is judged."""
    if State.run and State.run.watch.run == run:
        for sight in seen:
            State.run.sightings.saw(*sight)


@events.test_stopping.add_listener
def gather(environment: Environment, **_: Any) -> None:
    """Let workers end and report. Of itself a headless master would end before they do."""
    State.stopping = True
    runner = environment.runner
    if isinstance(runner, MasterRunner) and not environment.web_ui:
        runner.update_state(STATE_CLEANUP)  # while it runs, others take the place of callers that end
        runner.send_message("quit")
        have_stopped(runner, STOP_TIMEOUT)


def have_stopped(runner: MasterRunner, patience: float) -> bool:
    """Wait until workers have stopped; return whether all did."""

    def playing() -> list[WorkerNode]:
        return [w for name, w in State.workers.items() if runner.clients.get(name) is w]

    deadline = time.monotonic() + patience
    while any(w.state != STATE_MISSING for w in playing()) and time.monotonic() < deadline:
        gevent.sleep(0.05)
    return not playing()


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    """Judge the run: verdict and thresholds decide the exit code."""
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        runner._send_stats()  # of itself it may report only after it has said that it stopped
        environment.stop_timeout = 0  # all have ended; a worker would sleep so long before it can start anew
        State.callers, State.stopping = None, False
        return
    State.ending = State.ending or gevent.spawn(judge, environment)
    State.ending.join()


def judge(environment: Environment) -> None:
    """Let the run end, and judge it."""
    runner, run = environment.runner, State.run
    assert runner
    if isinstance(runner, MasterRunner) and not have_stopped(
        runner, STOP_TIMEOUT if environment.web_ui else 0
    ):
        give_up(environment, WorkerLost())
    State.following = False
    if State.follower:
        State.follower.join()  # a line that it has in hand must be entered
    if run and State.verdict:
        run.close()
    elif run:
        try:
            verdict = run.end()
        except HarnessError as error:
            give_up(environment, error)
        else:
            environment.process_exit_code = verdict.exit_code or int(bool(runner.exceptions))
            State.verdict, State.final = render(verdict), verdict
            if State.report:
                proof = State.report.parent / PROOF
                pages.write(proof, verdict, run.mesh.name, pages.as_typed("load"), State.report.name)
    elif State.inside and runner.exceptions and not State.verdict:
        environment.process_exit_code = 1
    if environment.web_ui:
        show()


@events.quitting.add_listener
def finish(environment: Environment, **_: Any) -> None:
    """End a run that goes on, while the exit code can still be set."""
    if State.following and environment.runner:
        environment.runner.stop()
    if State.ending:
        State.ending.join()


@events.quit.add_listener
def show(**_: Any) -> None:
    """Print the verdict below Locust's summary, and where its report is."""
    if State.verdict:
        click.echo("\n" + State.verdict)
        State.verdict = ""
    if State.report and State.report.exists():
        link(State.report)
        click.echo(where(State.report))


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
        request, run = probe(number), callers.run
        status, version, start = 0, None, time.perf_counter()
        try:
            with self.client.request(
                request.method,
                f"{self.host}{'&' if '?' in (self.host or '') else '?'}{request.query}",
                name=urlsplit(self.host or "").path or "/",
                data=request.body.decode(),
                headers={"user-agent": str(Ticket(run, number)), "accept": request.accept},
                catch_response=True,
            ) as reply:
                status, version = reply.status_code, version_in(reply.text or "", callers.service)
                if 200 <= status < 300 and version and version not in callers.allowed:
                    reply.failure(Leak())
        finally:
            sight = number, status, version, time.perf_counter() - start
            if State.run:
                enter(run, [sight])
            elif run == callers.run:
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
