"""The load: whom Locust plays, and what they do how often.

Every reply is checked (callers.py), and the whole run is judged as by ``verify`` (judging.py).
"""

import random

import gevent
from locust import between, poisson, task

import loadtest.options  # noqa: F401 (it listens to Locust's events)
from loadtest.callers import Caller


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
