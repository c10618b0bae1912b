"""Findings in routes that do not count: overruled, hidden, or taken by other proxies than one thinks."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from harness import Json
from harness.meshes.scene import named
from harness.proof.doctor.facts import Facts, Finding
from harness.proof.doctor.reading import at, items, text
from harness.proof.expectation import GATEWAY, MESH, hosts_of, is_visible, namespace_of, ruling, serves_mesh
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
        first, is_older = named(routes[0]), routes[0] in those
        why = "is for this host too, and is older" if is_older else "overrules it"
        problem = f"{first} {why}: sidecars do not take the rules of this one"
        yield Finding(
            f"{named(found)} spec.hosts", problem, f"move its rules to {first}, or delete one of the two"
        )


def only_gateways_mirror(facts: Facts) -> Iterator[Finding]:
    """Find a mirror that only a gateway applies, while the target's callers are in the mesh."""
    if any(mirror.scope == MESH for mirror in facts.mirrors):
        return
    who = ", ".join(dict.fromkeys(pod.workload for pod in facts.callers[:3]))
    gateways_call = any(pod.gateway and facts.calls(pod) for pod in facts.scene.pods)
    for source in dict.fromkeys(mirror.source for mirror in facts.mirrors):
        is_for_mesh = source in map(named, _for_target(facts))
        if facts.seen or (who and is_for_mesh and not gateways_call):
            problem = f"only the gateway takes this mirror, not the sidecars of callers in the mesh ({who})"
            remedy = "add 'mesh' there, and the Service to spec.hosts"
            yield Finding(f"{source} spec.gateways", f"{problem}: their requests are not mirrored", remedy)


def gateway_does_not_mirror(facts: Facts) -> Iterator[Finding]:
    """Find a gateway's rule that leads to the target without the mirror that sidecars apply."""
    if not any(mirror.scope == MESH for mirror in facts.mirrors):
        return
    for rule in facts.rules:
        if rule.scope == GATEWAY and not any(mirror in facts.mirrors for mirror in rule.references):
            problem = f"a gateway leads to {facts.service} by this rule, and mirrors nothing of it"
            yield Finding(f"{rule.source} {rule.place}", problem, "add the mirror to this rule, too")


def is_not_exported(facts: Facts) -> Iterator[Finding]:
    """Find a route, a DestinationRule or a Service that callers' proxies are not told of."""
    for namespace in {pod.namespace: pod for pod in facts.callers} or [facts.namespace]:
        for where, found, what in _exports(facts):
            if not is_visible(found, facts.scene, namespace):
                who = f"the sidecars of namespace {namespace}, where callers are,"
                yield Finding(where, f"{who} are not told of {what}", f"add '{namespace}' or '*' there")


def _exports(facts: Facts) -> Iterator[tuple[str, Json, str]]:
    """Yield (field, object whose ``spec.exportTo`` says to whom it is shown, what to call it)."""
    routes = [v for v in _for_target(facts) if serves_mesh(v)]
    rules = [rule for host in facts.hosts for rule in destination_rules(facts.scene, host)]
    for found in routes + rules:
        yield f"{named(found)} spec.exportTo", found, "it"
    for service in facts.services.values():
        written = text(service, "metadata", "annotations", EXPORT).replace(" ", "")
        spec = {"exportTo": written.split(",") if written else []}
        where = f"{named(service)} metadata.annotations[{EXPORT}]"
        yield where, {**service, "spec": spec}, "this Service"


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
                    problem = f"they leave {facts.short(host)} out, so {who} knows no route to it"
                    where = f"{named(sidecar)} spec.egress[0].hosts"
                    yield Finding(where, problem, f"add '{home}/{host}' there")


def _covers(entry: str, own: str, namespace: str, host: str) -> bool:
    """Say whether an entry of a Sidecar's hosts (``./*``, ``shop/*``, ``*/a.b.com``) has a host."""
    where, _, name = entry.rpartition("/")
    return fnmatchcase(f"{namespace}/{host}", f"{own if where in ('', '.') else where}/{name}")
