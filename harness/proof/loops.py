"""Loops: ways on which a copy leads back to the target, as they were seen."""

from collections.abc import Iterable

from harness.proof.expectation import Destination
from harness.proof.target import Routing

Edge = tuple[str, str]
"""A workload that was seen to call, and the host that it called."""


def loops(routing: Routing, edges: Iterable[Edge]) -> tuple[str, ...]:
    """Return the ways, each as ``v2 -> customer -> preference -> recommendation``."""
    edges = list(edges)
    copied = dict.fromkeys(v for rule in routing.rules for v, _ in rule.expectation.copies)
    starts = [routing.versions[version].workload for version in copied]
    ways = [_way_back(routing, edges, (workload,)) for workload in starts]
    return tuple(" -> ".join(way) for way in ways if way)


def _way_back(routing: Routing, edges: list[Edge], way: tuple[str, ...]) -> tuple[str, ...]:
    for host in [host for caller, host in edges if caller == way[-1]]:
        if host in routing.hosts:
            return (*way, routing.target.service)
        for callee in routing.workloads_behind(Destination(host)):
            if callee not in way and (found := _way_back(routing, edges, (*way, callee))):
                return found
    return ()
