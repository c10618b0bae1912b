"""Findings in routes that do not count: overruled, hidden, or taken by other proxies than one thinks."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from harness import Json
from harness.meshes.scene import named
from harness.proof.doctor.facts import Facts, Finding, at, items, text
from harness.proof.expectation import (
    GATEWAY,
    MESH,
    hosts_of,
    is_visible,
    namespace_of,
    ruling,
    serves_mesh,
    short_name,
)
from harness.proof.target import destination_rules

EXPORT = "networking.istio.io/exportTo"


def _for_target(facts: Facts) -> list[Json]:
    """Return the VirtualServices whose hosts name the target."""
    found = facts.scene.of_kind("VirtualService")
    return [v for v in found if facts.routing.host in hosts_of(v, facts.scene)]


def is_overruled(facts: Facts) -> Iterator[Finding]:
    """Find a VirtualService for the target that sidecars do not take, since another route counts."""
    routes, those = ruling(facts.scene, facts.routing.host, facts.namespace), _for_target(facts)
    for found in [route for route in routes[1:] if route in those]:
        first = named(routes[0])
        why = "is for this host too, and is older" if routes[0] in those else "overrules it"
        problem = f"{first} {why}: sidecars do not take the rules of this one"
        remedy = f"move its rules to {first}, or delete one of the two"
        yield Finding(f"{named(found)} spec.hosts", problem, remedy)


def gateways_and_sidecars_differ(facts: Facts) -> Iterator[Finding]:
    """Find a mirror that only a gateway applies, though callers are in the mesh, or that only sidecars do."""
    callers = ", ".join(dict.fromkeys(pod.workload for pod in facts.callers[:3]))
    in_mesh = any(mirror.scope == MESH for mirror in facts.mirrors)
    for rule in [rule for rule in facts.rules if rule.scope == GATEWAY]:
        is_mirrored = any(reference in facts.mirrors for reference in rule.references)
        if in_mesh and not is_mirrored:
            problem = f"a gateway leads to {facts.service} by this rule, and mirrors nothing of it"
            yield Finding(f"{rule.source} {rule.place}", problem, "add the mirror to this rule, too")
        elif is_mirrored and not in_mesh and (facts.seen or _is_meant_for_mesh(facts, rule.source)):
            only = f"only the gateway takes this mirror, not the sidecars of callers in the mesh ({callers})"
            problem = f"{only}: their requests are not mirrored"
            remedy = "add 'mesh' there, and the Service to spec.hosts"
            yield Finding(f"{rule.source} spec.gateways", problem, remedy)


def _is_meant_for_mesh(facts: Facts, source: str) -> bool:
    """Say whether a route names the target as callers in the mesh do, and no gateway was seen to call."""
    gateways_call = any(pod.gateway and facts.calls(pod) for pod in facts.scene.pods)
    return bool(facts.callers) and source in map(named, _for_target(facts)) and not gateways_call


def is_not_exported(facts: Facts) -> Iterator[Finding]:
    """Find a route, a DestinationRule or a Service that callers' proxies are not told of."""
    objects = [v for v in _for_target(facts) if serves_mesh(v)]
    objects += [rule for host in facts.hosts for rule in destination_rules(facts.scene, host)]
    exports = [(f"{named(found)} spec.exportTo", found, "it") for found in objects]
    for service in facts.services.values():
        written = text(service, "metadata", "annotations", EXPORT).replace(" ", "")
        as_written = {**service, "spec": {"exportTo": written.split(",") if written else []}}
        exports.append((f"{named(service)} metadata.annotations[{EXPORT}]", as_written, "this Service"))
    for namespace in {pod.namespace: pod for pod in facts.callers} or [facts.namespace]:
        who = f"the sidecars of namespace {namespace}, where callers are,"
        for where, found, what in exports:
            if not is_visible(found, facts.scene, namespace):
                yield Finding(where, f"{who} are not told of {what}", f"add '{namespace}' or '*' there")


def sidecar_hides_it(facts: Facts) -> Iterator[Finding]:
    """Find a Sidecar resource whose egress hosts leave the target out for a caller."""
    for pod in {pod.workload: pod for pod in facts.callers}.values():
        for sidecar in facts.selecting("Sidecar", pod)[:1]:
            egress = items(sidecar, "spec", "egress")
            shown = [entry for _, listener in egress for entry in at(listener, "hosts") or []]
            for host, service in facts.services.items() if egress else ():
                home = namespace_of(service, facts.scene)
                if not any(_covers(entry, pod.namespace, home, host) for entry in shown):
                    who = f"the sidecar of {pod.workload}"
                    problem = (
                        f"they leave {short_name(host, facts.namespace)} out, so {who} knows no route to it"
                    )
                    where = f"{named(sidecar)} spec.egress[0].hosts"
                    yield Finding(where, problem, f"add '{home}/{host}' there")


def _covers(entry: str, own: str, namespace: str, host: str) -> bool:
    """Say whether an entry of a Sidecar's hosts (``./*``, ``shop/*``, ``*/a.b.com``) has a host."""
    where, _, name = entry.rpartition("/")
    return fnmatchcase(f"{namespace}/{host}", f"{own if where in ('', '.') else where}/{name}")
