"""Traffic of the harness's own: requests that bear tickets, and what their callers saw.

A ticket travels in the User-Agent: Istio's default access log prints it, and the workshop's services
forward it. Where an application does not, the proof does without: it joins hops by x-request-id.
"""

import contextlib
import itertools
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import requests
from urllib3.exceptions import HTTPError  # of a body that breaks off

from harness.meshes.mesh import TARGET, Progress

TIMEOUT = 30.0
"""Seconds after which a caller gives up, however the answer drips in."""

ENOUGH = 64 * 1024
"""How many bytes of an answer are looked at."""

_TICKET = re.compile(r"dark-launch/([0-9a-z]+)/(\d{1,18})")

Saw = Callable[[int, int, str | None, float], None]
"""Takes what a caller saw: its ticket's number, the status (0: no answer), the version named, seconds."""


class Ticket(NamedTuple):
    """The run that a request belongs to, and its number in the run, from 0."""

    run: str
    number: int

    def __str__(self) -> str:
        """Return the User-Agent that carries the ticket."""
        return f"dark-launch/{self.run}/{self.number}"


def parse_ticket(user_agent: str) -> Ticket | None:
    """Return the ticket that a User-Agent carries, if it does."""
    match = _TICKET.fullmatch(user_agent)
    return Ticket(match[1], int(match[2])) if match else None


def new_run() -> str:
    """Return the name of a new run; no two are the same."""
    return secrets.token_hex(4)


class Probe(NamedTuple):
    """A request of the harness."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes


def probe(url: str, ticket: Ticket) -> Probe:
    """Return the request to ``url`` that bears a ticket: a GET, or a POST of up to 2 KiB, by turns.

    Every second GET asks for JSON. No two look alike, so that a copy that was mixed up with another shows.
    """
    number = ticket.number
    where = f"{url}{'&' if '?' in url else '?'}item={number}"
    headers = {"user-agent": str(ticket), "accept": "application/json" if number % 4 == 2 else "text/plain"}
    if number % 2 == 0:
        return Probe("GET", where, headers, b"")
    return Probe("POST", where, headers, b"x" * (number * 37 % 2048))


def version_in(answer: str, service: str = TARGET) -> str | None:
    """Return the version that an answer names in the words of the workshop's services, if it does."""
    name = re.escape(service)
    words = rf'{name} (\S{{1,60}}) from |"service": ?"{name}", ?"version": ?"([^"]{{1,60}})"'
    match = re.search(words, answer)
    return match[1] or match[2] if match else None


class Traffic:
    """Callers that send a run's requests, each as soon as the one before is answered."""

    def __init__(
        self, url: str, run: str, size: int, concurrency: int, service: str = TARGET,
        headers: Callable[[int], Mapping[str, str]] = lambda ticket: {},
    ) -> None:  # fmt: skip
        """Prepare ``size`` requests; ``headers`` gives those that the request of a ticket bears beside."""
        self._url, self._run, self._size, self._service = url, run, size, service
        self._headers = headers
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._seen: queue.SimpleQueue[tuple[int, int, str | None, float]] = queue.SimpleQueue()
        self._since: dict[int, tuple[int, float]] = {}
        """Caller → the ticket that it waits for, and since when."""
        numbers = range(min(concurrency, size))
        self._callers = [threading.Thread(target=self._caller, args=(i,), daemon=True) for i in numbers]

    def send(self, saw: Saw, meanwhile: Callable[[], bool], progress: Progress) -> None:
        """Send every ticket once, and return when each caller knows its answer or has given up.

        No more are sent when nobody was answered for as long as a caller waits, or when ``meanwhile`` says
        that it makes no sense to go on.
        """
        for thread in self._callers:
            thread.start()
        answered = 0
        last_answer = shown = time.monotonic()
        try:
            while True:
                alive = [i for i, thread in enumerate(self._callers) if thread.is_alive()]
                with contextlib.suppress(queue.Empty):
                    while sight := self._seen.get_nowait():
                        saw(*sight)
                        if sight[1]:
                            answered, last_answer = answered + 1, time.monotonic()
                now = time.monotonic()
                if now - last_answer > TIMEOUT:
                    self._stop.set()
                overdue = [i for i in alive if now - self._since.get(i, (0, now))[1] > TIMEOUT + 1]
                if not set(alive).difference(overdue) and self._seen.empty():
                    for caller in overdue:
                        saw(self._since[caller][0], 0, None, TIMEOUT)
                    return
                if meanwhile():
                    self._stop.set()
                if now - shown > 1:
                    shown = now
                    progress(f"{answered:,} of {self._size:,} requests answered")
                time.sleep(0.02)
        finally:
            self._stop.set()  # callers that still wait are daemons: nobody waits for them

    def _caller(self, index: int) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self._stop.is_set() and (number := next(self._numbers)) < self._size:
                self._since[index] = number, time.monotonic()
                ticket = Ticket(self._run, number)
                status, answer, seconds = call(session, self._url, ticket, self._headers(number))
                self._seen.put((number, status, version_in(answer, self._service), seconds))


def call(
    session: requests.Session, url: str, ticket: Ticket, more: Mapping[str, str]
) -> tuple[int, str, float]:
    """Send one request; return status (0: no whole answer in time), the answer's beginning, and seconds."""
    request = probe(url, ticket)
    start, status, kept = time.perf_counter(), 0, b""
    with (
        contextlib.suppress(requests.RequestException, HTTPError, OSError, ValueError),
        session.request(request.method, request.url, data=request.body or None,
                        headers={**request.headers, **more}, timeout=TIMEOUT, stream=True,
                        allow_redirects=False) as answer,
    ):  # fmt: skip
        # One piece at a time: the timeout of a read is not that of the answer.
        while piece := answer.raw.read1(ENOUGH, decode_content=True):
            kept += piece[: ENOUGH - len(kept)]
            if time.perf_counter() - start > TIMEOUT:
                break
        else:
            status = answer.status_code
    return status, kept.decode(errors="replace") if status else "", time.perf_counter() - start
