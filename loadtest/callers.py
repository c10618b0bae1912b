"""Callers: each request bears a ticket, and what its caller saw is kept until whoever judges hears of it."""

import itertools
import time
from collections.abc import Iterator
from typing import Any, ClassVar
from urllib.parse import urlsplit

import gevent
from locust import FastHttpUser, events
from locust.env import Environment
from locust.rpc import Message
from locust.runners import LocalRunner, WorkerRunner

from harness.proof.traffic import TIMEOUT, Ticket, probe, version_in

Sight = tuple[int, int, str | None, float]
"""What a caller saw: its ticket's number, status, the version that answered, seconds."""


class Leak(Exception):
    """A version answered that no route allows to; all of Locust's tables call it ``leak``."""

    def __repr__(self) -> str:
        return "leak"


class Caller(FastHttpUser):
    """Whoever asks for something: customer, if nobody else is named."""

    abstract = True
    network_timeout = connection_timeout = TIMEOUT

    run_name = ""
    """The run that the tickets of this process's callers belong to."""
    numbers: ClassVar[Iterator[int]]
    """Half the numbers of tickets; no two workers share any."""
    unreported: ClassVar[list[Sight]] = []
    """What this process's callers saw of the run since the last report."""

    def ask(self, method: str) -> None:
        """Send the next request of a kind, with its ticket."""
        number = 2 * next(self.numbers) + (method == "POST")  # as probe() has it
        # Locust may end a caller just as it begins to ask; its request must be heard out all the same.
        asking = gevent.spawn(self._ask, number)
        try:
            asking.get()
        finally:
            asking.join()

    def _ask(self, number: int) -> None:
        """Keep what the reply was; one from a version that no route allows is a leak."""
        options, run = self.environment.parsed_options, self.run_name
        assert options
        request = probe(self.host or "", Ticket(run, number))
        status, version, start = 0, None, time.perf_counter()
        try:
            with self.client.request(
                request.method, request.url, name=urlsplit(request.url).path or "/",
                data=request.body.decode(), headers=request.headers, catch_response=True,
            ) as reply:  # fmt: skip
                status, version = reply.status_code, version_in(reply.text or "", options.service)
                if 200 <= status < 300 and version and version not in options.allowed.split(","):
                    reply.failure(Leak())
        finally:
            if run == self.run_name:
                self.unreported.append((number, status, version, time.perf_counter() - start))


def take() -> list[Sight]:
    """Return what was not reported yet."""
    seen, Caller.unreported = Caller.unreported, []
    return seen


def begin(environment: Environment) -> None:
    """Let callers ask, for the run that the options name."""
    runner, options = environment.runner, environment.parsed_options
    assert isinstance(runner, LocalRunner | WorkerRunner)
    assert options
    Caller.numbers = itertools.count(runner.worker_index, options.expect_workers)
    Caller.run_name, Caller.unreported = options.run, []


def renew(environment: Environment, msg: Message) -> None:
    """Begin the run anew, under the name that a message says."""
    vars(environment.parsed_options).update(msg.data)
    Caller.run_name, Caller.unreported = msg.data["run"], []


@events.test_start.add_listener
def begin_in_worker(environment: Environment, **_: Any) -> None:
    """Let a worker's callers ask: Locust has sent it the options."""
    if isinstance(environment.runner, WorkerRunner):
        begin(environment)


@events.report_to_master.add_listener
def report(data: dict[str, Any], **_: Any) -> None:
    """Send what callers saw along with a worker's statistics."""
    data["run"], data["seen"] = Caller.run_name, take()


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    """Let a worker report what it has not reported."""
    if isinstance(environment.runner, WorkerRunner):
        environment.runner._send_stats()  # of itself it may report only after it has said that it stopped
        environment.stop_timeout = 0  # all have ended; a worker would sleep so long before it can start anew
