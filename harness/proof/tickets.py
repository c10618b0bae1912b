"""Tickets: the unique mark on each request that the harness sends.

A ticket travels in the User-Agent: Istio's default access log prints it, and the services forward it, so
it can be followed on any cluster. (``x-request-id`` cannot serve: an ingress gateway replaces a caller's.)
"""

import re
import secrets
from typing import NamedTuple

_TICKET = re.compile(r"dark-launch/([0-9a-z]+)/(\d+)")


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
    """A request of the harness: method, query string and body."""

    method: str
    query: str
    body: bytes


def probe(number: int) -> Probe:
    """Return the request that bears ticket ``number``: a GET, or a POST of up to 2 KiB, by turns.

    No two look alike, so that a copy that was mixed up with another shows.
    """
    query = f"item={number}"
    if number % 2 == 0:
        return Probe("GET", query, b"")
    return Probe("POST", query, b"x" * (number * 37 % 2048))
