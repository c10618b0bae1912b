"""Findings in routes that do not count: overruled, hidden, or taken by other proxies than one thinks."""

from collections.abc import Iterator

from harness import Json
from harness.meshes.scene import Pod, named
from harness.proof.doctor.facts import Facts, Finding
from harness.proof.doctor.pods import selecting
from harness.proof.doctor.reading import at, items, text, words
from harness.proof.expectation import (
    GATEWAY,
    MESH,
    hosts_of,
    http_routes,
    is_visible,
    namespace_of,
    serves_mesh,
    virtual_services,
)

EXPORT = "networking.istio.io/exportTo"


def _for_target(facts: Facts) -> list[Json]:
    """Return the VirtualServices whose hosts name the target, the oldest first."""
    return [v for v in virtual_services(facts.scene) if facts.routing.host in hosts_of(v, facts.scene)]


def is_overruled(facts: Facts) -> Iterator[Finding]:
    """Find a VirtualService for the target that sidecars do not take, since another route counts."""
    routes = http_routes(facts.scene, facts.routing.host)
    there = [v for v in _for_target(facts) if serves_mesh(v) and is_visible(v, facts.scene, facts.namespace)]
    by = routes[:1] or there[:1]
    for found in there if routes else there[1:]:
        why = "overrules it" if routes else "is for this host too, and is older"
        problem = f"{named(by[0])} {why}: sidecars do not take the rules of this one"
        yield Finding(
            f"{named(found)} spec.hosts",
            problem,
            f"move its rules to {named(by[0])}, or delete one of the two",
        )


# --- gateways ---------------------------------------------------------------------------------------------


def only_gateways_mirror(facts: Facts) -> Iterator[Finding]:
    """Find a mirror that only a gateway applies, while the target's callers are in the mesh."""
    if any(mirror.scope == MESH for mirror in facts.mirrors):
        return
    for mirror in facts.mirrors:
        found = mirror.found
        is_for_mesh = (
            facts.routing.host in hosts_of(found, facts.scene) if found["kind"] == "VirtualService" else False
        )
        nobody = not facts.seen and not any(p.gateway and facts.calls(p) for p in facts.scene.pods)
        if facts.seen or (nobody and is_for_mesh and facts.callers):
            who = ", ".join(dict.fromkeys(pod.workload for pod in facts.callers[:3]))
            problem = f"only the gateway takes this mirror, not the sidecars of callers in the mesh ({who})"
            where = f"{named(found)} spec.gateways"
            remedy = "add 'mesh' there, and the Service to spec.hosts"
            yield Finding(where, f"{problem}: their requests are not mirrored", remedy)


def gateway_does_not_mirror(facts: Facts) -> Iterator[Finding]:
    """Find a gateway's rule that leads to the target without the mirror that sidecars apply."""
    if not any(mirror.scope == MESH for mirror in facts.mirrors):
        return
    mirrored = {(named(m.found), m.rule) for m in facts.mirrors if m.scope == GATEWAY}
    for reference in facts.references:
        here = named(reference.found), reference.rule
        direct = reference.destination.host in facts.routing.hosts
        if reference.scope == GATEWAY and direct and not reference.mirror and here not in mirrored:
            problem = f"a gateway leads to {facts.service} by this rule, and mirrors nothing of it"
            yield Finding(" ".join(here), problem, "add the mirror to this rule, too")


# --- what is hidden from callers --------------------------------------------------------------------------


def _namespaces(facts: Facts) -> list[str]:
    """Return the namespaces of the target's callers."""
    return list(dict.fromkeys(pod.namespace for pod in facts.callers)) or [facts.namespace]


def is_not_exported(facts: Facts) -> Iterator[Finding]:
    """Find a route, a DestinationRule or a Service that callers' proxies are not told of."""
    hosts = dict.fromkeys([facts.routing.host, *(r.destination.host for r in facts.references)])
    objects = [v for v in _for_target(facts) if serves_mesh(v)]
    objects += [rule for host in hosts for rule in facts.destination_rules(host)]
    for namespace in _namespaces(facts):
        remedy = f"add '{namespace}' or '*' there"
        for found in objects:
            if not is_visible(found, facts.scene, namespace):
                problem = f"the sidecars of namespace {namespace}, where callers are, are not told of it"
                yield Finding(f"{named(found)} spec.exportTo", problem, remedy)
        for service in [s for host in hosts for s in facts.services(host)]:
            exported = text(service, "metadata", "annotations", EXPORT).replace(" ", "").split(",")
            home = namespace_of(service, facts.scene)
            told = {"", "*", namespace} | ({"."} if home == namespace else set())
            if told.isdisjoint(exported):
                problem = (
                    f"the sidecars of namespace {namespace}, where callers are, are not told of this Service"
                )
                yield Finding(f"{named(service)} metadata.annotations[{EXPORT}]", problem, remedy)


def sidecar_hides_it(facts: Facts) -> Iterator[Finding]:
    """Find a Sidecar resource whose egress hosts leave the target out for a caller."""
    hosts = dict.fromkeys([facts.routing.host, *(m.destination.host for m in facts.mirrors)])
    for pod in {pod.workload: pod for pod in facts.callers}.values():
        sidecar = _sidecar(facts, pod)
        egress = items(sidecar, "spec", "egress")
        if sidecar is None or not egress:
            continue
        allowed = [host for _, listener in egress for host in words(listener, "hosts")]
        for host in hosts:
            for service in facts.services(host):
                home = namespace_of(service, facts.scene)
                if not any(_covers(entry, pod.namespace, home, host) for entry in allowed):
                    who = f"the sidecar of {pod.workload}"
                    problem = f"they leave {facts.short(host)} out, so {who} knows no route to it"
                    yield Finding(
                        f"{named(sidecar)} spec.egress[0].hosts", problem, f"add '{home}/{host}' there"
                    )


def _sidecar(facts: Facts, pod: Pod) -> Json | None:
    """Return the Sidecar resource that counts for a pod."""
    return next(iter(_sidecars(facts, pod)), None)


def _sidecars(facts: Facts, pod: Pod) -> list[Json]:
    renamed = []
    for found in facts.scene.of_kind("Sidecar"):
        chosen = at(found, "spec", "workloadSelector", "labels")
        renamed.append({**found, "spec": {**found["spec"], "selector": {"matchLabels": chosen}}})
    scene = type(facts.scene)(facts.scene.namespace, tuple(renamed), facts.scene.pods)
    return selecting(scene, "Sidecar", pod)


def _covers(entry: str, own: str, namespace: str, host: str) -> bool:
    """Say whether an entry of a Sidecar's hosts (``./*``, ``shop/*``, ``*/a.b.com``) has a host."""
    where, _, name = entry.rpartition("/")
    if where not in ("*", namespace) and not (where in (".", "") and own == namespace):
        return False
    return name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]))
