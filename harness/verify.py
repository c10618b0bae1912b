"""Send traffic through a mesh, read what its proxies logged, and judge."""

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable

import requests

from harness import HarnessError
from harness.accesslog import parse_line
from harness.expectation import Expectation, promise_for, promises, versions
from harness.ledger import Ledger
from harness.mesh import Mesh, Progress, quietly
from harness.models import Object
from harness.tickets import Ticket, new_run, probe
from harness.verdict import Verdict, complete, enough, judge

TIMEOUT = 30
"""Seconds after which a caller gives up."""

PATIENCE = 10
"""Seconds without a line in any log after which what is still in flight counts as missing."""

HEADERS = {"accept": "text/plain"}
"""What each request bears beside its ticket."""

_VERSION = re.compile(r"recommendation (\S+) from ")


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
    applied = mesh.routes()
    workloads = versions(applied)
    ledger = Ledger(new_run(), size, workloads.values())
    rules = promises(list(promised or applied))

    def promise(number: int) -> Expectation:
        headers = {"user-agent": str(Ticket(ledger.run, number)), **HEADERS}
        return promise_for(rules, probe(number).method, "/", headers)

    if too_few := enough(size, promise):
        raise HarnessError(
            f"{size:,} requests are too few to judge {too_few[0]}: send {too_few[1]:,} or more"
        )
    follower = mesh.follow(workloads)

    def read() -> None:
        for workload, line in follower.lines():
            if entry := parse_line(line):
                ledger.logged(workloads[workload], entry)

    try:
        _send(mesh.url(), ledger, concurrency, read, progress)
        _settle(mesh, workloads, ledger, promise, read, progress)
    finally:
        follower.close()
    if mesh.routes() != applied:
        raise HarnessError(
            "what is applied changed during the run, so nothing can be said of it: verify again"
        )
    return judge(ledger, promise)


def _send(url: str, ledger: Ledger, concurrency: int, read: Callable[[], None], progress: Progress) -> None:
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
    version = _VERSION.search(answer.text)
    return answer.status_code, version[1] if version else None, time.perf_counter() - start


def _settle(
    mesh: Mesh,
    workloads: Iterable[str],
    ledger: Ledger,
    promise: Callable[[int], Expectation],
    read: Callable[[], None],
    progress: Progress,
) -> None:
    """Read on until the logs say all: mirrored requests come late, and are logged when they end.

    That is when nothing is in flight any more and the logs are still and complete, or still for longer. A
    version that answers nothing at all for PATIENCE seconds has had its time.
    """
    entries, still_since = ledger.entries, time.monotonic()
    waited, checked = False, False
    while True:
        read()
        now = time.monotonic()
        if ledger.entries != entries:
            entries, still_since, checked = ledger.entries, now, False
        still = now - still_since
        if still > PATIENCE:
            return
        if still > mesh.quiet and not mesh.in_flight(workloads):
            if still > 5 * mesh.quiet or (not checked and complete(ledger, promise)):
                return
            checked = True
        if still > 1 and not waited:
            progress("waiting for the proxies' logs")
            waited = True
        time.sleep(0.02)
