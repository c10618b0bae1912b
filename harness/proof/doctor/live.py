"""Findings in what proxies say now: a blown fuse, an ejected pod, a refusal, a loop."""

import re
import time
from collections import Counter
from collections.abc import Iterator

from harness.meshes.scene import Pod
from harness.proof.doctor.facts import READ, Facts, Finding
from harness.proof.expectation import GATEWAY, Destination
from harness.proof.loops import loops

_LIMITS = (
    ("max_connections", "rq_active", "tcp.maxConnections"),
    ("max_requests", "rq_active", "http.http2MaxRequests"),
    ("max_pending_requests", "rq_pending_active", "http.http1MaxPendingRequests"),
)
"""Envoy's limit, the number of a host that counts against it, and the field of connectionPool."""

_LINE = re.compile(r"outbound\|\d+\|([^|]*)\|([^:]+)::(?!high_priority)(.+)::(\w+)::(.*)")
"""A line of what a proxy says of its clusters: subset, host, address, name, value."""


def _senders(facts: Facts, policy: str) -> Iterator[tuple[str, Destination, Pod]]:
    """Yield (field, destination, pod) for the pods that send copies where a traffic policy is set."""
    gateways = [pod for pod in facts.scene.pods if pod.gateway and pod.proxy]
    for scope, to in dict.fromkeys((mirror.scope, mirror.destination) for mirror in facts.mirrors):
        if found := facts.traffic_policy(to, policy):
            for pod in (gateways if scope == GATEWAY else facts.callers)[:READ]:
                yield found[0], to, pod


def _look(facts: Facts, pod: Pod, to: Destination) -> Iterator[tuple[str, str, str]]:
    """Yield (address, name, value) of what a pod's proxy says of a destination."""
    for line in (facts.mesh.ask_proxy(pod, "clusters") or "").splitlines():
        match = _LINE.fullmatch(line)
        if match and match.group(1, 2) == (to.subset, to.host):
            yield match[3], match[4], match[5]


def _full(facts: Facts, pod: Pod, to: Destination) -> tuple[str, int, int] | None:
    """Return the field of connectionPool, the limit and what is used, if a circuit breaker is full."""
    numbers: Counter[str] = Counter()
    for _, name, value in _look(facts, pod, to):
        if value.isdecimal():
            numbers[name] += int(value)
    for limit, used, field in _LIMITS:
        if limit in numbers and numbers[used] >= max(1, numbers[limit]):
            return field, numbers[limit], numbers[used]
    return None


def fuse_is_blown(facts: Facts) -> Iterator[Finding]:
    """Find a circuit breaker of a mirror's destination that is full in a caller's proxy."""
    for where, to, pod in _senders(facts, "connectionPool"):
        if not _full(facts, pod, to):
            continue
        time.sleep(0.5)  # a fuse that is full at both looks is blown
        if full := _full(facts, pod, to):
            field, most, used = full
            waiting = f"{used} requests of {pod.workload} wait for {to}, no more than {most} may"
            problem = f"the fuse is blown: {waiting}, and further copies are dropped"
            remedy = f"find out why {to} does not answer, or raise the limit"
            yield Finding(f"{where}.{field}", problem, remedy)


def is_ejected(facts: Facts) -> Iterator[Finding]:
    """Find a pod of a mirror's destination that outlier detection has taken out in a caller's proxy."""
    for where, to, pod in _senders(facts, "outlierDetection"):
        for address, name, value in _look(facts, pod, to):
            if name == "health_flags" and "failed_outlier_check" in value:
                problem = f"{pod.workload} sends nothing to {address} of {to}, which failed too often"
                yield Finding(where, problem, f"find out why {to} fails, or wait until the ejection is over")


def was_refused(facts: Facts) -> Iterator[Finding]:
    """Find a version that gets copies, and whose sidecar refused the last of them by a policy."""
    for version in dict.fromkeys(v for rule in facts.routing.rules for v, _ in rule.expectation.copies):
        for pod in facts.routing.pods_of(version):
            got = facts.log(pod).got
            refused = [hop for hop in got if hop.details.startswith("rbac_access_denied")]
            if refused and got[-1] is refused[-1]:
                policy = re.search(r"policy\[([^\]]+)\]-rule", refused[-1].details)
                no_rule = "an AuthorizationPolicy: no ALLOW rule matched"
                by = f"authorizationpolicy/{policy[1]}" if policy else no_rule
                count = f"{len(refused)} of the last {len(got)} requests"
                problem = f"the sidecar of {version} refused {count} by {by}"
                remedy = f"let a policy admit the callers' principals at {version}"
                yield Finding(f"pod/{pod.name}", problem, remedy)


def leads_back(facts: Facts) -> Iterator[Finding]:
    """Find a mirror whose copies were seen to lead back to the target."""
    routing = facts.routing
    pods = [pod for pod in facts.scene.pods if not pod.gateway]
    pods.sort(key=lambda pod: routing.version_of_pod(pod.name) is None)
    edges = [(p.workload, hop.cluster.rpartition("|")[2]) for p in pods[:READ] for hop in facts.log(p).sent]
    for way in dict.fromkeys([*loops(routing, edges), *facts.loops]):
        for mirror in facts.mirrors:
            if way.partition(" -> ")[0] in routing.workloads_behind(mirror.destination):
                problem = f"a copy leads back to the target, in a loop: {way}"
                remedy = "mirror to a version that does not call the target, or to a Service of its own"
                yield Finding(mirror.where, problem, remedy)
