"""Findings in the rules that lead to the target, in the Services behind them, and in what overrules them."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from harness import Json
from harness.manifests.protocol import is_http, protocol_of
from harness.meshes.scene import named
from harness.proof.applied import GATEWAY, MESH, serves_mesh
from harness.proof.backends import Version
from harness.proof.doctor.facts import Facts, Finding, at, items, text
from harness.proof.rules import Destination, Reference, short_name

EXPORT = "networking.istio.io/exportTo"


def leads_nowhere(facts: Facts) -> Iterator[Finding]:
    """Find a destination or a mirror that names no Service, no subset, or labels that no workload bears."""
    for reference in facts.references:
        for version in facts.routing.behind(reference.destination):
            if version.problem:
                where, remedy = _cause(facts, reference, version)
                known = "it cannot be told what arrives there" if version.unreadable else "this leads nowhere"
                yield Finding(where, f"{version.problem}, so {known}", remedy)


def _cause(facts: Facts, reference: Reference, version: Version) -> tuple[str, str]:
    """Return where it stands that no workload is behind a destination, and what to do."""
    to, where = reference.destination, f"{reference.where}.{version.missing}"
    service, subsets = facts.services.get(to.host), facts.applied.subsets_of(to.host)
    if service is None:
        there = ", ".join(sorted(s["metadata"]["name"] for s in facts.scene.of_kind("Service")))
        known = f"name one of {there}, or create it"
        return where, "judge that Service in its own namespace" if version.unreadable else known
    if version.missing == "port":
        numbers = ", ".join(str(port["port"]) for _, port in items(service, "spec", "ports"))
        return where, f"write one that it has: {numbers}"
    if version.missing == "subset":
        remedy = "apply a DestinationRule with such a subset"
        for rule in facts.applied.destination_rules(to.host)[:1]:
            remedy = f"add it to {named(rule)} spec.subsets"
        return where, remedy + (f", or name one of {', '.join(subsets)}" if subsets else "")
    where = f"{subsets[to.subset][0]}.labels" if to.subset in subsets else f"{named(service)} spec.selector"
    remedy, template = "write labels that pods bear", ("spec", "template", "metadata", "labels")
    if pods := facts.routing.workloads_behind(Destination(to.host)):
        labels = {workload: at(facts.workload_object(workload), *template) or {} for workload in pods}
        bear = ["+".join(f"{k}={v}" for k, v in labels[workload].items()) or workload for workload in pods]
        remedy += f"; those of {short_name(to.host, facts.namespace)} bear {' or '.join(bear)}"
    return where, remedy


def mirrors_to_chance(facts: Facts) -> Iterator[Finding]:
    """Find a mirror that reaches several versions."""
    for mirror in facts.mirrors:
        behind = facts.routing.workloads_behind(mirror.destination)
        if len(behind) > 1:
            where = mirror.where if mirror.destination.subset else f"{mirror.where}.subset"
            problem = f"each copy reaches {' or '.join(behind)}, by chance"
            yield Finding(where, problem, "name a subset that only one version has")


def no_route_counts(facts: Facts) -> Iterator[Finding]:
    """Find a target of several versions that no route tells apart."""
    versions = facts.routing.versions
    if not facts.references and len(versions) > 1 and not facts.routing.not_http:
        counts = "no VirtualService and no HTTPRoute counts for it"
        problem = f"{counts}, so {' and '.join(versions)} answer callers by chance"
        remedy = "apply a route to one version, with a mirror to the other"
        yield Finding(f"service/{facts.service}", problem, remedy)


def no_rule_leads_there(facts: Facts) -> Iterator[Finding]:
    """Find a version that runs, and that no rule leads to."""
    source = ", ".join(dict.fromkeys(rule.source for rule in facts.rules if rule.references))
    for version in facts.routing.versions if source else ():
        if facts.routing.must_be_silent(version) and version not in facts.routing.gone:
            problem = f"no rule leads to {version} or mirrors to it, so nothing arrives there"
            yield Finding(source, problem, f"add a mirror to {version} to a rule, and apply it")


def mirrors_nothing(facts: Facts) -> Iterator[Finding]:
    """Find a mirror whose percentage is 0, or so small that a short run sees no copy."""
    for mirror in facts.mirrors:
        percent, where = mirror.percent or 0, mirror.percent_where
        if percent < 0.0001:  # Istio cuts it to millionths
            problem = "it is 0, which takes the mirror away" if percent <= 0 else "Istio cuts it to 0"
            remedy = "write a percentage above 0, or none for all"
            yield Finding(where, f"{problem}: nothing is mirrored", remedy)
        elif percent < 0.1:  # a short run may see no copy
            problem = f"{percent:g} % mirrors one request in {100 / percent:,.0f}"
            yield Finding(where, problem, "raise it, or send many more requests")


def is_not_understood(facts: Facts) -> Iterator[Finding]:
    """Find a field of a rule that is not understood."""
    for rule in facts.rules:
        for field in rule.problems:
            problem = "this field is not understood, so it cannot be told what must happen by this rule"
            yield Finding(f"{rule.source} {field}", problem, "take it out while a run is judged")


def cannot_be_told_apart(facts: Facts) -> Iterator[Finding]:
    """Find rules whose log lines look alike, though they expect different things."""
    for (_, name), places in facts.routing.called.items():
        rules = [facts.routing.rules[place] for place in places]
        if len(set(rules)) > 1:
            where = ", ".join(f"{rule.written.source} {rule.written.place}" for rule in rules)
            called = f"these rules are all called '{name}'" if name else "these rules have no name"
            problem = f"{called}, so the proxies' logs do not tell which one a request took"
            yield Finding(where, problem, "give each http rule a 'name' of its own")


def port_is_not_http(facts: Facts) -> Iterator[Finding]:
    """Find a Service of the target's that has no port which Istio routes as HTTP."""
    for service in facts.services.values():
        ports = items(service, "spec", "ports")
        if any(is_http(port) for _, port in ports):
            continue
        for i, port in ports:
            field, protocol = protocol_of(port)
            where = f"{named(service)} spec.ports[{i}].{field}"
            problem = f"Istio takes this port for {protocol}, not for HTTP, so nothing can be mirrored there"
            yield Finding(where, problem, "name the port http, http2 or grpc, or set appProtocol: http")


# --- what does not count ----------------------------------------------------------------------------------


def _for_target(facts: Facts) -> list[Json]:
    """Return the VirtualServices whose hosts name the target."""
    found = facts.scene.of_kind("VirtualService")
    return [v for v in found if facts.routing.host in facts.applied.hosts_of(v)]


def is_overruled(facts: Facts) -> Iterator[Finding]:
    """Find a VirtualService for the target that sidecars do not take, since another route counts."""
    routes, those = facts.applied.ruling(facts.routing.host, facts.namespace), _for_target(facts)
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
    objects += [rule for host in facts.hosts for rule in facts.applied.destination_rules(host)]
    exports = [(f"{named(found)} spec.exportTo", found, "it") for found in objects]
    for service in facts.services.values():
        written = text(service, "metadata", "annotations", EXPORT).replace(" ", "")
        as_written = {**service, "spec": {"exportTo": written.split(",") if written else []}}
        exports.append((f"{named(service)} metadata.annotations[{EXPORT}]", as_written, "this Service"))
    for namespace in {pod.namespace: pod for pod in facts.callers} or [facts.namespace]:
        who = f"the sidecars of namespace {namespace}, where callers are,"
        for where, found, what in exports:
            if not facts.applied.is_visible(found, namespace):
                yield Finding(where, f"{who} are not told of {what}", f"add '{namespace}' or '*' there")


def sidecar_hides_it(facts: Facts) -> Iterator[Finding]:
    """Find a Sidecar resource whose egress hosts leave the target out for a caller."""
    for pod in {pod.workload: pod for pod in facts.callers}.values():
        for sidecar in facts.selecting("Sidecar", pod)[:1]:
            egress = items(sidecar, "spec", "egress")
            shown = [entry for _, listener in egress for entry in at(listener, "hosts") or []]
            for host, service in facts.services.items() if egress else ():
                home = facts.applied.namespace_of(service)
                if not any(_covers(entry, pod.namespace, home, host) for entry in shown):
                    nobody = f"so the sidecar of {pod.workload} knows no route to it"
                    problem = f"they leave {short_name(host, facts.namespace)} out, {nobody}"
                    where = f"{named(sidecar)} spec.egress[0].hosts"
                    yield Finding(where, problem, f"add '{home}/{host}' there")


def _covers(entry: str, own: str, namespace: str, host: str) -> bool:
    """Say whether an entry of a Sidecar's hosts (``./*``, ``shop/*``, ``*/a.b.com``) has a host."""
    where, _, name = entry.rpartition("/")
    return fnmatchcase(f"{namespace}/{host}", f"{own if where in ('', '.') else where}/{name}")
