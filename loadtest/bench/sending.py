"""The benchmark's callers: greenlets, as Locust's are.

What sends must not take much of the processors it shares.
"""

import contextlib
import itertools
import time
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

import gevent
from gevent.pool import Pool
from geventhttpclient import HTTPClient

from harness.meshes.mesh import LOOPBACK

SENDERS = 16

# All hosts here are addresses; of itself gevent has a thread look up each of them.
gevent.config.resolver = "block"


def ask(client: HTTPClient, path: str, body: bytes) -> None:
    """Wait for an answer to a GET, or to a POST where there is a body."""
    headers = {"accept": "text/plain"}
    answer = client.post(path, body, headers) if body else client.get(path, headers)
    answer.read()
    assert answer.status_code == 200, answer.status_code


def at_once(
    count: int, url: str, work: Callable[[int, Callable[[], None]], list[float]], body: bytes = b""
) -> list[float]:
    """Let ``count`` callers do their ``work`` on kept-alive connections; return what it yields."""
    parts = urlsplit(url)
    client = HTTPClient(parts.hostname or LOOPBACK, parts.port, concurrency=count, network_timeout=30)
    with contextlib.closing(client):
        asked = partial(ask, client, f"{parts.path or '/'}?{parts.query}", body)
        return [*itertools.chain(*Pool(count).map(lambda index: work(index, asked), range(count)))]


def at_rate(url: str, rate: float, seconds: float) -> list[float]:
    """Send at a steady rate; return for each request the seconds from when it was due to its answer.

    So a request that waits because others are late counts as late itself.
    """
    start = time.perf_counter() + 0.1

    def work(index: int, ask: Callable[[], None]) -> list[float]:
        waited = []
        for number in range(index, int(rate * seconds), SENDERS):
            due = start + number / rate
            gevent.sleep(max(0, due - time.perf_counter()))
            ask()
            waited.append(time.perf_counter() - due)
        return waited

    return at_once(SENDERS, url, work)


def per_second(url: str, seconds: float, callers: int = SENDERS, body: bytes = b"") -> float:
    """Return how many requests per second are answered when callers ask again at once."""
    start = time.perf_counter()

    def work(index: int, ask: Callable[[], None]) -> list[float]:
        answered = []
        while time.perf_counter() < start + seconds:
            ask()
            answered.append(time.perf_counter())
        return answered

    answered = at_once(callers, url, work, body)
    return len(answered) / (max(answered) - start)
