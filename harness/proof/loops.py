"""Loops: ways on which a copy leads back to the target, as they were seen."""

from collections.abc import Iterable

from harness.proof.expectation import Destination
from harness.proof.target import Routing


def loops(routing: Routing, edges: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return the ways, each as ``v2 -> customer -> preference -> recommendation``.

    :param edges: which workload was seen to call which host.
    """
    hosts: dict[str, list[str]] = {}
    for caller, host in edges:
        hosts.setdefault(caller, []).append(host)

    def way_back(way: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts.get(way[-1], ()):
            if host in routing.hosts:
                return (*way, routing.target.service)
            for callee in routing.workloads_behind(Destination(host)):
                if callee not in way and (found := way_back((*way, callee))):
                    return found
        return ()

    copied = dict.fromkeys(v for rule in routing.rules for v, _ in rule.expectation.copies)
    ways = [way_back((routing.versions[version].workload,)) for version in copied]
    return tuple(" -> ".join(way) for way in ways if way)
