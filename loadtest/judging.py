"""From Locust's events to a verdict: the master, or the only process, follows the proxies' logs and judges.

Workers send what their callers saw together with Locust's own statistics. Inside a cluster the master prints
that, and job.py judges.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import gevent
from gevent.lock import RLock
from locust.env import Environment
from locust.runners import STATE_MISSING, MasterRunner, WorkerNode

from harness import HarnessError
from harness.choice import make_mesh
from harness.cluster.mesh import ClusterMesh
from harness.meshes.mesh import wait_until
from harness.proof.target import Target
from harness.proof.traffic import TIMEOUT
from harness.proof.verdict import Verdict
from harness.terminal import render
from loadtest import callers
from loadtest.callers import Caller, Sight
from loadtest.proof_tab import standing
from loadtest.run import SEEN, Run, publish

# Longer than a caller waits: no caller may be cut off, since what it would have seen could not be judged.
STOP_TIMEOUT = TIMEOUT + 5

LOST = "a worker was lost, so nothing can be said of this run"


class Workers:
    """Who plays the callers of one run, as the master knows them; nobody where one process does all."""

    def __init__(self, environment: Environment) -> None:
        """Remember who is there."""
        self._runner, self._is_headless = environment.runner, environment.web_ui is None
        self._nodes = self._runner.clients if isinstance(self._runner, MasterRunner) else {}
        self._players = self._present()

    def _present(self) -> dict[str, WorkerNode]:
        """Return the workers that are neither silent nor gone."""
        return {name: node for name, node in self._nodes.items() if node.state != STATE_MISSING}

    def are_there(self) -> bool:
        """Say whether nobody is silent or gone."""
        return self._players.keys() <= self._present().keys()

    def have_stopped(self) -> bool:
        """Wait until all have stopped; return whether they did."""

        def some_play(nodes: Mapping[str, WorkerNode]) -> bool:
            return any(nodes.get(name) is player for name, player in self._players.items())

        if isinstance(self._runner, MasterRunner) and self._is_headless:
            self._runner.send_message("quit")  # of itself a headless master ends before they do
        wait_until(lambda: not some_play(self._present()), STOP_TIMEOUT, 0.05)
        return not some_play(self._nodes)


class Outcome:
    """What is said of one test, the verdict or why there is none; and the exit code."""

    def __init__(self, environment: Environment) -> None:
        """Say nothing yet."""
        self._environment = environment
        self.verdict: Verdict | None = None
        self.said = ""
        """In words, until they are printed."""

    def give_up(self, error: HarnessError) -> None:
        """Say that nothing can be said."""
        self.said = f"Error: {error}"
        self._environment.process_exit_code = 2

    def judge(self, run: Run | None) -> None:
        """Judge what was seen of a run: verdict and thresholds decide the exit code.

        :param run: None inside a cluster.
        :raises HarnessError: there can be no verdict.
        """
        assert self._environment.runner
        code = int(bool(self._environment.runner.exceptions))
        if run:
            self.verdict = run.end()
            self.said = render(self.verdict)
            self._environment.process_exit_code = self.verdict.exit_code or code
        elif code:
            self._environment.process_exit_code = code

    def tell(self, run: Run | None) -> None:
        """Print it; then where the reports are, once Locust has written its own."""
        if self.said:
            click.echo("\n" + self.said)
            self.said = ""
        assert self._environment.parsed_options
        report = Path(self._environment.parsed_options.html_file or "")
        if run and self.verdict and report.is_file():
            publish(report, self.verdict, run.mesh.name)


class Judge:
    """Judges each test of Locust's, from its start until all is said of it."""

    def __init__(self, environment: Environment) -> None:
        """Listen to Locust's events."""
        assert environment.runner
        assert environment.parsed_options
        self._environment, self._runner = environment, environment.runner
        self._options = environment.parsed_options
        self.is_inside = bool(self._options.run)
        """Whether this is the master of a load test inside a cluster, which is judged outside."""
        self._reading = RLock()
        self._forget()
        environment.events.test_start.add_listener(self._begin)
        environment.events.reset_stats.add_listener(self._renew)
        environment.events.worker_report.add_listener(self._receive)
        environment.events.test_stopping.add_listener(self._stop)
        environment.events.test_stop.add_listener(self._end)
        environment.events.quitting.add_listener(self._end)  # while the exit code can still be set
        environment.events.quit.add_listener(lambda **_: self._outcome.tell(self._run))

    def _forget(self) -> None:
        self._run: Run | None = None
        self._outcome = Outcome(self._environment)
        self._following = self._stopping = False
        self._ending: gevent.Greenlet | None = None
        """What judges the run, once."""

    # --- while a test goes on -------------------------------------------------------------------------------

    def _begin(self, **_: Any) -> None:
        """Open a run and follow it; inside a cluster, follow the workers alone."""
        self._forget()
        self._workers = Workers(self._environment)
        self._environment.stop_timeout = STOP_TIMEOUT
        if self._options.html_file:
            Path(self._options.html_file).unlink(missing_ok=True)
        try:
            if not self.is_inside:
                self._run = open_run(self._environment)
                vars(self._options).update(self._run.told())  # workers that start get them
                self._run.watch.follow()
            self._following = True
        except HarnessError as error:
            self._give_up(error)
        self._follower = gevent.spawn(self._follow)
        if not isinstance(self._runner, MasterRunner):
            callers.begin(self._environment)

    def _follow(self) -> None:
        """End the load where it makes no sense to go on, or a worker is lost."""
        try:
            while self._following and not self._must_end():
                gevent.sleep(0.1)
        except HarnessError as error:
            self._give_up(error)
        if not self._stopping:
            gevent.spawn(stop, self._environment)

    def _must_end(self) -> bool:
        """Enter what was seen and logged meanwhile; return whether a copy leads back to the target."""
        if not self._stopping and not self._workers.are_there():
            raise HarnessError(LOST)
        with self._reading:
            self._enter(Caller.run_name, callers.take())
            return bool(self._run and self._run.watch.read())

    def _receive(self, data: dict[str, Any], **_: Any) -> None:
        """Enter what a worker's callers saw, or tell whoever judges."""
        seen = data["seen"]
        if self.is_inside:
            for start in range(0, len(seen), 300):  # container engines split lines of more than 16 KiB
                print(SEEN + json.dumps(seen[start : start + 300]), flush=True)
        self._enter(data["run"], seen)

    def _enter(self, run: str, seen: Iterable[Sight]) -> None:
        """Enter what callers saw of a run, if it is the one that is judged."""
        if self._run and self._run.watch.run == run:
            for sight in seen:
                self._run.sightings.saw(*sight)

    def _renew(self, **_: Any) -> None:
        """Let a run begin anew, and forget one that has ended: what was sent until now is not judged."""
        if self._is_over():
            self._forget()
        if not self._run or not self._following:
            return
        try:
            with self._reading:
                self._run.renew()
            gevent.spawn_later(self._run.mesh.quiet, self._announce, self._run)
        except HarnessError as error:
            self._give_up(error)

    def _announce(self, run: Run) -> None:
        """Tell callers that a run began anew: what they saw under its old name does not count."""
        if self._run is run and self._following:
            vars(self._options).update(run.told())
            self._runner.send_message("renewed", run.told())

    def shown(self) -> Verdict | None:
        """Return what the web page shows: the verdict on the last run, or how one that goes on stands."""
        return self._outcome.verdict or (standing(self._run.watch) if self._run else None)

    # --- the end --------------------------------------------------------------------------------------------

    def _stop(self, **_: Any) -> None:
        """Hear that callers are told to stop: workers may leave from now on."""
        self._stopping = True
        if self._following and not self._workers.are_there():
            self._give_up(HarnessError(LOST))

    def _end(self, **_: Any) -> None:
        """Judge a run that has begun, unless it is judged already; return when that is done."""
        if self._following or self._outcome.said:
            self._ending = self._ending or gevent.spawn(self._judge)
        if self._ending:
            self._ending.join()

    def _is_over(self) -> bool:
        return self._ending is not None and self._ending.ready()

    def _judge(self) -> None:
        if not self._workers.have_stopped():
            self._give_up(HarnessError(LOST))
        self._following = False
        self._follower.join()  # a line that it has in hand must be entered
        self._enter(Caller.run_name, callers.take())
        try:
            if not self._outcome.said:
                self._outcome.judge(self._run)
        except HarnessError as error:
            self._give_up(error)
        finally:
            if self._run:
                self._run.close()
            if self._environment.web_ui:
                self._outcome.tell(self._run)

    def abandon(self) -> None:
        """Give a run up that is not judged yet."""
        if self._outcome.said or not self._stopping or self._is_over():
            return
        waits_for_logs = not self._following
        self._give_up(HarnessError("interrupted before the proxies' logs were complete"))
        if waits_for_logs and self._ending:
            self._ending.kill()

    def _give_up(self, error: HarnessError) -> None:
        self._following = False
        self._outcome.give_up(error)


def open_run(environment: Environment) -> Run:
    """Look at what is applied, and at which address callers reach it.

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
    return run


def stop(environment: Environment) -> None:
    """End the load; without a web page that ends Locust as well."""
    assert environment.runner
    if environment.web_ui:
        assert environment.web_ui.app
        environment.web_ui.app.test_client().post("/stop")  # ends what starts callers, too
    else:
        environment.runner.quit()
