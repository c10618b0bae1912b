"""Findings in what runs: pods that are missing, not ready, or without a proxy; and what proxies say now."""

import re
import time
from collections import Counter
from collections.abc import Iterator

from harness.manifests.podspec import INJECT
from harness.meshes.scene import Pod, named
from harness.proof.applied import GATEWAY
from harness.proof.doctor.facts import READ, Facts, Finding, at, items, text
from harness.proof.rules import Destination
from harness.proof.target import ways_back
from harness.rendering.accesslog import is_written


def is_not_ready(facts: Facts) -> Iterator[Finding]:
    """Find a version that a rule leads to, and of which no pod is ready, or there is none."""
    on_cluster = facts.mesh.name == "cluster"
    for name, version in facts.routing.versions.items():
        pods, where = facts.routing.pods_of(name), facts.workload(version.workload)
        if not version.workload or facts.routing.must_be_silent(name) or any(pod.ready for pod in pods):
            continue
        if pods:
            see = f"see why: {facts.kubectl(f'describe pod {pods[0].name}', pods[0].namespace)}"
            local = f"see 'make logs W={version.workload}', then run 'make up'"
            problem = f"none of the pods of {name} is ready ({len(pods)} there), so nothing is sent to it"
            yield Finding(f"{where} ({pods[0].name})", problem, see if on_cluster else local)
        elif at(facts.workload_object(version.workload), "spec", "replicas") == 0:
            scale, start = f"scale {where} --replicas=1", f"'make start W={version.workload}'"
            remedy = f"run {facts.kubectl(scale) if on_cluster else start}"
            yield Finding(f"{where} spec.replicas", f"it is 0, so {name} has no pod", remedy)
        else:
            yield Finding(where, f"{name} has no pod", f"see why: {facts.kubectl(f'describe {where}')}")


def cannot_be_made(facts: Facts) -> Iterator[Finding]:
    """Find a version of which the cluster lets no pod be made; those that run may be older than the rule."""
    for name, version in facts.routing.versions.items():
        workload = facts.workload_object(version.workload)
        if workload and (refusal := facts.mesh.refusal(version.namespace, workload)):
            yield Finding(facts.workload(version.workload), f"no new pod of {name} could be made", refusal)


def version_without_sidecar(facts: Facts) -> Iterator[Finding]:
    """Find a version whose pods have no sidecar: nobody sees what arrives there."""
    for name in facts.routing.versions:
        for pod in [pod for pod in facts.routing.pods_of(name) if not pod.proxy][:1]:
            problem = f"pod {pod.name} of {name} has no sidecar, so nobody sees what arrives there"
            yield _inject(facts, pod, problem)


def caller_without_sidecar(facts: Facts) -> Iterator[Finding]:
    """Find pods that may call the target, and have no sidecar that could mirror."""
    for pod in {pod.workload: pod for pod in facts.others if not pod.proxy}.values():
        problem = f"it has no sidecar, so if it calls {facts.service}, nothing of that is mirrored"
        yield _inject(facts, pod, problem)


def _inject(facts: Facts, pod: Pod, problem: str) -> Finding:
    where = facts.workload(pod.workload)
    found = facts.workload_object(pod.workload) if pod.namespace == facts.namespace else None
    for place in ("spec.template.metadata.labels", "spec.template.metadata.annotations"):
        if at(found, *place.split("."), INJECT) == "false":
            remedy = "take it out, and apply the workload"
            return Finding(f'{where} {place}["{INJECT}"]', f"it is false: {problem}", remedy)
    if pod.labels.get(INJECT) == "false":
        remedy = "take it out, and start the pod anew"
        return Finding(f'{where} labels["{INJECT}"]', f"it is false: {problem}", remedy)
    label = facts.kubectl(f"label namespace {pod.namespace} istio-injection=enabled", pod.namespace)
    restart = facts.kubectl(f"rollout restart {where}", pod.namespace)
    revision = "(istio.io/rev= its revision, where Istio has no default one)"
    return Finding(where, problem, f"run {label} {revision}, then {restart}")


def logs_nothing(facts: Facts) -> Iterator[Finding]:
    """Find versions and callers whose proxies write no access log, or not all of it."""
    silent: dict[tuple[str, str, str], list[str]] = {}
    for workload, pod in facts.proxies.items():
        if found := _silence(facts, pod):
            silent.setdefault(found, []).append(workload)
    for (where, problem, remedy), workloads in silent.items():
        yield Finding(where, problem.format(", ".join(workloads)), remedy)


def is_draining(facts: Facts) -> Iterator[Finding]:
    """Find proxies that took a new configuration, and answer on open connections by the old one.

    Istio's proxies do so for 45 seconds: https://www.envoyproxy.io/docs/envoy/latest/operations/cli
    (``--drain-time-s``).
    """
    services = facts.services.values()
    ports = {str(port.get("port")) for service in services for _, port in items(service, "spec", "ports")}
    # Others drain whenever a neighbour's Service ends: a listener is named by its address and port.
    ours = {"virtualInbound", *ports}
    found = []
    for workload, listeners in facts.listeners.items():
        draining = [text(each, "name").rpartition("_")[2] for each in listeners if "draining_state" in each]
        if not ours.isdisjoint(draining):
            found.append(workload)
    if found:
        problem = "requests on connections that were open before take the old configuration, its log too"
        yield Finding(f"the sidecars of {', '.join(found)}", problem, "wait 45 seconds, then try again")


def _silence(facts: Facts, pod: Pod) -> tuple[str, str, str] | None:
    """Return where it stands that a pod's proxy logs nothing, the problem and the remedy; None: it logs."""
    nothing = "the sidecars of {} log no requests, so nothing is proven there"
    where = f"service/{facts.service}"
    telemetries = [t for t in facts.selecting("Telemetry", pod) if items(t, "spec", "accessLogging")]
    for telemetry in telemetries[:1]:
        where = f"{named(telemetry)} spec.accessLogging"
        for i, each in items(telemetry, "spec", "accessLogging"):
            if each.get("disabled") is True:
                return f"{where}[{i}].disabled", f"it is true: {nothing}", "write false, or take it out"
            if text(each, "filter", "expression"):
                problem = "the sidecars of {} log only what the filter lets through"
                return f"{where}[{i}].filter", problem, "take the filter out while a run is judged"
    remedy = "apply a Telemetry whose spec.accessLogging has providers: [{name: envoy}]"
    return (where, nothing, remedy) if is_written(facts.listeners[pod.workload]) is False else None


# --- what proxies say -------------------------------------------------------------------------------------

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
    """Return the field of connectionPool, its limit and what is used, if a circuit breaker is full."""
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
    for version in facts.routing.copied:
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
    pods.sort(key=lambda pod: pod.name not in routing.version_of_pod)
    edges = [(p.workload, hop.cluster.rpartition("|")[2]) for p in pods[:READ] for hop in facts.log(p).sent]
    for way in dict.fromkeys([*ways_back(routing, edges), *facts.loops]):
        for mirror in facts.mirrors:
            if way.partition(" -> ")[0] in routing.workloads_behind(mirror.destination):
                problem = f"a copy leads back to the target, in a loop: {way}"
                remedy = "mirror to a version that does not call the target, or to a Service of its own"
                yield Finding(mirror.where, problem, remedy)
