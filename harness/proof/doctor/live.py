"""Findings in what proxies say now: a blown fuse, an ejected pod, a refusal, a loop."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from harness import Json
from harness.meshes.scene import Pod, named
from harness.proof.doctor.facts import READ, Facts, Finding, Reference
from harness.proof.doctor.reading import at, items
from harness.proof.expectation import GATEWAY, Destination

PAUSE = 0.5
"""Seconds between two looks: a fuse that is full at both is blown."""

_LIMITS = (
    ("max_connections", "rq_active", "tcp.maxConnections"),
    ("max_requests", "rq_active", "http.http2MaxRequests"),
    ("max_pending_requests", "rq_pending_active", "http.http1MaxPendingRequests"),
)
"""Envoy's limit, the number of a host that counts against it, and the field of connectionPool."""

_LINE = re.compile(r"outbound\|\d+\|([^|]*)\|([^:]+)::(?:default_priority|(.+))::(\w+)::(.*)")


@dataclass
class Cluster:
    """What a caller's proxy says of one of its clusters."""

    limits: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    ejected: list[str] = field(default_factory=list)
    """The addresses that outlier detection has taken out."""

    def full(self) -> tuple[str, int, int] | None:
        """Return the field of connectionPool, the limit and what is used, if a circuit breaker is full."""
        for limit, number, name in _LIMITS:
            most, used = self.limits.get(limit), self.used.get(number, 0)
            if most is not None and used and used >= most:
                return name, most, used
        return None


def _look(facts: Facts, pod: Pod) -> dict[Destination, Cluster]:
    """Return what a pod's proxy says of its clusters."""
    clusters: dict[Destination, Cluster] = {}
    for line in (facts.mesh.ask_proxy(pod, "clusters") or "").splitlines():
        if not (match := _LINE.fullmatch(line)):
            continue
        subset, host, address, name, value = match.groups()
        cluster = clusters.setdefault(Destination(host, subset), Cluster())
        if address is None and value.isdecimal():
            cluster.limits[name] = int(value)
        elif address and value.isdecimal():
            cluster.used[name] = cluster.used.get(name, 0) + int(value)
        elif address and name == "health_flags" and "failed_outlier_check" in value:
            cluster.ejected.append(address)
    return clusters


def _asked(facts: Facts, mirror: Reference) -> list[Pod]:
    """Return the pods whose proxies send a mirror's copies."""
    gateways = [pod for pod in facts.scene.pods if pod.gateway and pod.proxy]
    return gateways[:READ] if mirror.scope == GATEWAY else facts.callers[:READ]


def _distinct(facts: Facts) -> list[Reference]:
    """Return the mirrors, one for each destination and for whose proxies send copies there."""
    return list({(mirror.scope, mirror.destination): mirror for mirror in facts.mirrors}.values())


def _policies(facts: Facts, destination: Destination, name: str) -> Iterator[tuple[Json, str, Json]]:
    """Yield (DestinationRule, field, value) where a traffic policy of a destination sets something."""
    for rule in facts.destination_rules(destination.host):
        for i, subset in items(rule, "spec", "subsets"):
            found = at(subset, "trafficPolicy", name)
            if subset.get("name") == destination.subset and isinstance(found, dict):
                yield rule, f"spec.subsets[{i}].trafficPolicy.{name}", found
        if isinstance(found := at(rule, "spec", "trafficPolicy", name), dict):
            yield rule, f"spec.trafficPolicy.{name}", found


def fuse_is_blown(facts: Facts) -> Iterator[Finding]:
    """Find a circuit breaker of a mirror's destination that is full in a caller's proxy."""
    for mirror in _distinct(facts):
        to = mirror.destination
        for rule, place, _ in list(_policies(facts, to, "connectionPool"))[:1]:
            for pod in _asked(facts, mirror):
                if not _look(facts, pod).get(to, Cluster()).full():
                    continue
                time.sleep(PAUSE)
                if full := _look(facts, pod).get(to, Cluster()).full():
                    name, most, used = full
                    problem = (
                        f"the fuse is blown: {used} requests of {pod.workload} wait for {to}, no more than "
                        f"{most} may, and further copies are dropped"
                    )
                    remedy = f"find out why {to} does not answer, or raise the limit"
                    yield Finding(f"{named(rule)} {place}.{name}", problem, remedy)


def is_ejected(facts: Facts) -> Iterator[Finding]:
    """Find a pod of a mirror's destination that outlier detection has taken out in a caller's proxy."""
    for mirror in _distinct(facts):
        to = mirror.destination
        for rule, place, _ in list(_policies(facts, to, "outlierDetection"))[:1]:
            for pod in _asked(facts, mirror):
                for address in _look(facts, pod).get(to, Cluster()).ejected:
                    problem = f"{pod.workload} sends nothing to {address} of {to}, which failed too often"
                    remedy = f"find out why {to} fails, or wait until the ejection is over"
                    yield Finding(f"{named(rule)} {place}", problem, remedy)


def was_refused(facts: Facts) -> Iterator[Finding]:
    """Find a version that gets copies, and whose sidecar refused the last of them by a policy."""
    for name in dict.fromkeys(name for rule in facts.routing.rules for name, _ in rule.expectation.copies):
        for pod in facts.routing.pods_of(name):
            got = facts.log(pod).got
            refused = [hop for hop in got if hop.details.startswith("rbac_access_denied")]
            if got and refused and got[-1] is refused[-1]:
                policy = re.search(r"policy\[([^\]]+)\]-rule", refused[-1].details)
                by = (
                    f"authorizationpolicy/{policy[1]}"
                    if policy
                    else "an AuthorizationPolicy: no ALLOW rule matched"
                )
                problem = (
                    f"the sidecar of {name} refused {len(refused)} of the last {len(got)} requests by {by}"
                )
                yield Finding(
                    f"pod/{pod.name}", problem, f"let a policy admit the callers' principals at {name}"
                )


# --- loops ------------------------------------------------------------------------------------------------


def leads_back(facts: Facts) -> Iterator[Finding]:
    """Find a mirror whose workload was seen to call on, and back to the target."""
    remedy = "mirror to a version that does not call the target, or to a Service of its own"
    seen = list(facts.loops)
    for mirror in facts.mirrors:
        for workload in facts.routing.workloads_behind(mirror.destination):
            if way := _way_back(facts, workload, (workload,)):
                words = " -> ".join(way)
                seen = [loop for loop in seen if loop != words]
                yield Finding(mirror.where, f"a copy leads back to the target, in a loop: {words}", remedy)
    for loop in seen:
        where = facts.mirrors[0].where if facts.mirrors else f"service/{facts.service}"
        yield Finding(where, f"a copy was seen to lead back to the target, in a loop: {loop}", remedy)


def _way_back(facts: Facts, workload: str, way: tuple[str, ...]) -> tuple[str, ...]:
    """Return the workloads by which a request to one leads to the target; nothing if none was seen to."""
    hosts: set[str] = set()
    for pod in [pod for pod in facts.scene.pods if pod.workload == workload][:3]:
        hosts |= {cluster.rpartition("|")[2] for _, cluster in facts.log(pod).sent if "|" in cluster}
    if hosts & facts.routing.hosts:
        return (*way, facts.service)
    for host in sorted(hosts):
        for callee in facts.routing.workloads_behind(Destination(host)):
            if callee not in way and (found := _way_back(facts, callee, (*way, callee))):
                return found
    return ()
