"""Send traffic through a mesh, read what its proxies logged, and judge."""

import itertools
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable

import requests

from harness import HarnessError
from harness.manifests.base import Object
from harness.meshes.mesh import LogFollower, Mesh, Progress, quietly
from harness.proof.expectation import Expectation, promise_for, promises, versions
from harness.proof.ledger import Ledger
from harness.proof.tickets import Ticket, new_run, probe
from harness.proof.verdict import Verdict, complete, enough, judge
from harness.rendering.accesslog import parse_line

TIMEOUT = 30
"""Seconds after which a caller gives up."""

PATIENCE = 10
"""Seconds without a line in any log after which what is still in flight counts as missing."""

HEADERS = {"accept": "text/plain"}
"""What each request bears beside its ticket."""

_VERSION = re.compile(r"recommendation (\S+) from ")


class Promise:
    """What routes promise each ticket of a run."""

    def __init__(self, objects: Iterable[Object], run: str) -> None:
        self._rules = promises(objects)
        self._run = run

    def __call__(self, number: int) -> Expectation:
        """Return what must happen to ticket ``number``."""
        headers = {"user-agent": str(Ticket(self._run, number)), **HEADERS}
        return promise_for(self._rules, probe(number).method, "/", headers)


class Proof:
    """A run that is to be judged: its ledger, the proxies' logs, and what the applied routes promise."""

    def __init__(
        self, mesh: Mesh, size: int, promised: Iterable[Object] | None = None, limit: int | None = None
    ) -> None:
        """Prepare a run of ``size`` requests; with a ``limit``, of as many more as will be sent."""
        self._mesh = mesh
        self._applied = mesh.routes()
        self._workloads = versions(self._applied)
        self._follower: LogFollower | None = None
        self.ledger = Ledger(new_run(), size, self._workloads.values(), limit)
        self.promise = Promise(promised or self._applied, self.ledger.run)

    def must_be_enough(self, numbers: Collection[int]) -> None:
        """Check that the tickets ``numbers`` are enough to judge every share.

        :raises HarnessError: they are not.
        """
        if too_few := enough(numbers, self.promise):
            raise HarnessError(
                f"{len(numbers):,} requests are too few to judge {too_few[0]}: send {too_few[1]:,} or more"
            )

    def follow(self) -> None:
        """Follow the logs from now on."""
        self._follower = self._mesh.follow(self._workloads)

    def read(self) -> None:
        """Enter what the proxies have logged meanwhile."""
        assert self._follower
        for workload, line in self._follower.lines():
            if entry := parse_line(line):
                self.ledger.logged(self._workloads[workload], entry)

    def settle(self, progress: Progress = quietly) -> None:
        """Read on until the logs say all: mirrored requests come late, and are logged when they end.

        That is when nothing is in flight any more and the logs are still and complete, or still for longer. A
        version that answers nothing at all for PATIENCE seconds has had its time.
        """
        entries, still_since = self.ledger.entries, time.monotonic()
        waited, checked = False, False
        while True:
            self.read()
            now = time.monotonic()
            if self.ledger.entries != entries:
                entries, still_since, checked = self.ledger.entries, now, False
            still = now - still_since
            if still > PATIENCE:
                return
            if still > self._mesh.quiet and not self._mesh.in_flight(self._workloads):
                if still > 5 * self._mesh.quiet or (not checked and complete(self.ledger, self.promise)):
                    return
                checked = True
            if still > 1 and not waited:
                progress("waiting for the proxies' logs")
                waited = True
            time.sleep(0.02)

    def close(self) -> None:
        """Follow the logs no longer."""
        if self._follower:
            self._follower.close()

    def verdict(self) -> Verdict:
        """Judge.

        :raises HarnessError: the routes changed meanwhile.
        """
        if self._mesh.routes() != self._applied:
            raise HarnessError(
                "what is applied changed during the run, so nothing can be said of it: verify again"
            )
        return judge(self.ledger, self.promise)


def verify(
    mesh: Mesh,
    size: int = 500,
    concurrency: int = 8,
    progress: Progress = quietly,
    promised: Iterable[Object] | None = None,
) -> Verdict:
    """Send ``size`` requests, ``concurrency`` at a time, and return the verdict on them.

    :param promised: the objects to judge by, if not those that are applied.
    :raises HarnessError: the mesh does not run, or the run could not be judged: too few requests for a share,
        routes that changed meanwhile, a route that matches what only a proxy knows.
    """
    proof = Proof(mesh, size, promised)
    proof.must_be_enough(range(size))
    proof.follow()
    try:
        send(mesh.url(), proof.ledger, concurrency, proof.read, progress)
        proof.settle(progress)
    finally:
        proof.close()
    return proof.verdict()


def send(url: str, ledger: Ledger, concurrency: int, read: Callable[[], None], progress: Progress) -> None:
    """Send every ticket once; ``read`` the logs meanwhile."""
    numbers = itertools.count()
    stop = threading.Event()

    def caller() -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not stop.is_set() and (number := next(numbers)) < ledger.size:
                ledger.saw(number, *_call(session, url, Ticket(ledger.run, number)))

    callers = [threading.Thread(target=caller, daemon=True) for _ in range(min(concurrency, ledger.size))]
    for thread in callers:
        thread.start()
    try:
        last = time.monotonic()
        while any(thread.is_alive() for thread in callers):
            read()
            time.sleep(0.02)
            if time.monotonic() - last > 1:
                last = time.monotonic()
                sent = sum(status > 0 for status in ledger.status)
                progress(f"{sent:,} of {ledger.size:,} requests answered")
    finally:
        stop.set()
        for thread in callers:
            thread.join()


def _call(session: requests.Session, url: str, ticket: Ticket) -> tuple[int, str | None, float]:
    """Send one request; return status (0: no answer), the version that answered, and seconds."""
    request = probe(ticket.number)
    start = time.perf_counter()
    try:
        answer = session.request(
            request.method,
            f"{url}?{request.query}",
            data=request.body or None,
            headers={"user-agent": str(ticket), **HEADERS},
            timeout=TIMEOUT,
        )
    except requests.RequestException:
        return 0, None, time.perf_counter() - start
    return answer.status_code, version_in(answer.text), time.perf_counter() - start


def version_in(answer: str) -> str | None:
    """Return the version that an answer names, if it does."""
    match = _VERSION.search(answer)
    return match[1] if match else None
