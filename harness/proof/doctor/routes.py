"""Findings in the rules that lead to the target, and in the Services behind them."""

from collections import defaultdict
from collections.abc import Iterator

from harness import Json
from harness.meshes.scene import named
from harness.proof.doctor.facts import Facts, Finding, Reference
from harness.proof.doctor.reading import at, items, labels, text
from harness.proof.expectation import DOMAIN, RouteRule, rules_of

SELDOM = 0.1
"""The percentage below which a short run may see no copy."""

_NOT_HTTP = {"tcp", "udp", "https", "tls", "mongo", "mysql", "redis", "hbone", "double-hbone"}
_KUBERNETES = {"kubernetes.io/h2c": "http2", "kubernetes.io/ws": "http", "kubernetes.io/wss": "https"}
_WELL_KNOWN = {25, 53, 3306, 27017}
"""Ports whose protocol Istio does not try to find out."""


# --- destinations -----------------------------------------------------------------------------------------


def leads_nowhere(facts: Facts) -> Iterator[Finding]:
    """Find a destination or a mirror that names no Service, no subset, or labels that no workload bears."""
    for reference in facts.references:
        if not facts.routing.workloads_behind(reference.destination):
            yield from _why(facts, reference)


def _why(facts: Facts, reference: Reference) -> Iterator[Finding]:
    destination, scene = reference.destination, facts.scene
    short = facts.short(destination.host)
    services = facts.services(destination.host)
    if not services:
        if destination.host.endswith(f".{facts.namespace}.{DOMAIN}"):
            there = sorted(s["metadata"]["name"] for s in scene.of_kind("Service"))
            remedy = f"name one of {', '.join(there)}, or create it"
            yield Finding(f"{reference.where}.host", f"there is no Service '{short}'", remedy)
        else:
            yield Finding(
                f"{reference.where}.host",
                f"'{short}' is outside namespace {facts.namespace}, so it cannot be told what arrives there",
                "judge it with --service and --namespace of its own",
            )
        return
    [service, *_] = services
    selector = labels(service, "spec", "selector")
    if not selector:
        problem = "the Service has no selector, so it cannot be told which pods stand behind it"
        yield Finding(f"{named(service)} spec.selector", problem, "write the labels of the pods there")
        return
    where, wanted = f"{named(service)} spec.selector", selector
    if destination.subset:
        found = facts.subset(destination)
        if found is None:
            yield _no_subset(facts, reference)
            return
        rule, place, subset = found
        where, wanted = f"{named(rule)} {place}.labels", {**selector, **labels(subset, "labels")}
    pairs = ", ".join(f"{name}={value}" for name, value in wanted.items())
    there = [
        _labels_of(facts, w) for w in facts.routing.workloads_behind(type(destination)(destination.host))
    ]
    remedy = (
        f"write labels that pods bear; those of {short} bear {' or '.join(there)}"
        if there
        else "write labels that pods bear"
    )
    yield Finding(where, f"no workload's pods bear the labels {pairs}, so nothing arrives there", remedy)


def _no_subset(facts: Facts, reference: Reference) -> Finding:
    host = reference.destination.host
    rules = facts.destination_rules(host)
    known = [text(subset, "name") for rule in rules for _, subset in items(rule, "spec", "subsets")]
    add = (
        f"add it to {named(rules[0])} spec.subsets" if rules else "apply a DestinationRule with such a subset"
    )
    remedy = f"{add}, or name one of {', '.join(known)}" if known else add
    problem = f"no DestinationRule has a subset '{reference.destination.subset}' of {facts.short(host)}"
    return Finding(f"{reference.where}.subset", problem, remedy)


def _labels_of(facts: Facts, workload: str) -> str:
    found = facts.workload_object(workload)
    bears = labels(found, "spec", "template", "metadata", "labels")
    return "+".join(f"{name}={value}" for name, value in bears.items()) or workload


def mirrors_to_chance(facts: Facts) -> Iterator[Finding]:
    """Find a mirror that reaches several versions."""
    for mirror in facts.mirrors:
        behind = facts.routing.workloads_behind(mirror.destination)
        if len(behind) > 1:
            missing = "" if mirror.destination.subset else ".subset"
            problem = f"each copy reaches {' or '.join(behind)}, by chance"
            yield Finding(f"{mirror.where}{missing}", problem, "name a subset that only one version has")


# --- rules ------------------------------------------------------------------------------------------------


def no_rule_leads_there(facts: Facts) -> Iterator[Finding]:
    """Find a version that runs, and that no rule leads to."""
    if not facts.references:
        versions = " and ".join(facts.routing.versions)
        problem = f"no VirtualService and no HTTPRoute counts for it, so {versions} answer callers by chance"
        remedy = "apply a route to one version, with a mirror to the other"
        if len(facts.routing.versions) > 1:
            yield Finding(f"service/{facts.service}", problem, remedy)
        return
    source = ", ".join(dict.fromkeys(named(r.found) for r in facts.references))
    for version in facts.routing.versions:
        if facts.routing.must_be_silent(version) and version not in facts.routing.gone:
            problem = f"no rule leads to {version} or mirrors to it, so nothing arrives there"
            yield Finding(source, problem, f"add a mirror to {version} to a rule, and apply it")


def mirrors_nothing(facts: Facts) -> Iterator[Finding]:
    """Find a mirror whose percentage is 0, or so small that a short run sees no copy."""
    for mirror in facts.mirrors:
        field, percent = _percentage(mirror)
        if percent is None or percent >= SELDOM:
            continue
        where = f"{named(mirror.found)} {field}"
        if percent < 0.0001:  # Istio cuts it to millionths
            problem = "it is 0, which takes the mirror away" if percent <= 0 else "Istio cuts it to 0"
            yield Finding(
                where, f"{problem}: nothing is mirrored", "write a percentage above 0, or none for all"
            )
        else:
            problem = f"{percent:g} % mirrors one request in {100 / percent:,.0f}"
            yield Finding(where, problem, "raise it, or send many more requests")


def _percentage(mirror: Reference) -> tuple[str, float | None]:
    """Return a mirror's field of the percentage, and its value; None: all, or it cannot be read."""
    i = int(mirror.rule.partition("[")[2].rstrip("]"))
    kind = "http" if mirror.rule.startswith("spec.http") else "rules"
    rule = dict(items(mirror.found, "spec", kind))[i]
    j = int(mirror.field.removeprefix(mirror.rule).partition("[")[2].partition("]")[0] or 0)
    if kind == "rules":
        asked = at(dict(items(rule, "filters"))[j], "requestMirror")
        where = f"{mirror.rule}.filters[{j}].requestMirror"
        if isinstance(fraction := at(asked, "fraction"), dict):
            parts = fraction.get("denominator", 100)
            return f"{where}.fraction", 100 * float(fraction["numerator"]) / float(parts)
        percent = at(asked, "percent")
        return f"{where}.percent", None if percent is None else float(percent)
    if ".mirrors[" in mirror.field:
        value, where = (
            at(dict(items(rule, "mirrors"))[j], "percentage"),
            f"{mirror.rule}.mirrors[{j}].percentage",
        )
    else:
        value, where = rule.get("mirrorPercentage"), f"{mirror.rule}.mirrorPercentage"
    if not isinstance(value, dict):
        old = rule.get("mirrorPercent", rule.get("mirror_percent"))
        return f"{mirror.rule}.mirrorPercent", None if old is None else float(old)
    return f"{where}.value", float(value.get("value") or 0)


def is_not_understood(facts: Facts) -> Iterator[Finding]:
    """Find a field of a rule that is not understood."""
    for rule in facts.routing.rules:
        for field in rule.written.problems:
            problem = "this field is not understood, so it cannot be told what must happen by this rule"
            yield Finding(f"{rule.written.source} {field}", problem, "take it out while a run is judged")


def cannot_be_told_apart(facts: Facts) -> Iterator[Finding]:
    """Find rules whose log lines look alike, though they expect different things."""
    alike: dict[tuple[str, str], list[RouteRule]] = defaultdict(list)
    differ: dict[tuple[str, str], set[object]] = defaultdict(set)
    for rule in facts.routing.rules:
        for name in rule.written.route_names or {""}:
            alike[rule.written.scope, name].append(rule.written)
            differ[rule.written.scope, name].add((rule.expectation, rule.problems))
    for key, rules in alike.items():
        if len(differ[key]) > 1:
            where = ", ".join(dict.fromkeys(_place(facts, rule) for rule in rules))
            called = f"these rules are all called '{key[1]}'" if key[1] else "these rules have no name"
            problem = f"{called}, so the proxies' logs do not tell which one a request took"
            yield Finding(where, problem, "give each http rule a 'name' of its own")


def _place(facts: Facts, rule: RouteRule) -> str:
    """Return an object and the place of a rule in it."""
    for found in facts.scene.objects:
        if found.get("kind") in ("VirtualService", "HTTPRoute") and named(found) == rule.source:
            for i, written in enumerate(rules_of(facts.scene, found, rule.scope)):
                if written == rule:
                    return (
                        f"{rule.source} spec.{'http' if found['kind'] == 'VirtualService' else 'rules'}[{i}]"
                    )
    return f"{rule.source} {rule.title}"


# --- ports ------------------------------------------------------------------------------------------------


def port_is_not_http(facts: Facts) -> Iterator[Finding]:
    """Find a Service of the target's that has no port which Istio routes as HTTP."""
    hosts = dict.fromkeys([facts.routing.host, *(r.destination.host for r in facts.references)])
    for service in [s for host in hosts for s in facts.services(host)]:
        ports = items(service, "spec", "ports")
        protocols = [(i, *_protocol(port)) for i, port in ports]
        if not all(protocol in _NOT_HTTP for _, _, protocol in protocols):
            continue
        for i, field, protocol in protocols:
            where = f"{named(service)} spec.ports[{i}].{field}"
            problem = f"Istio takes this port for {protocol}, not for HTTP, so nothing can be mirrored there"
            yield Finding(where, problem, "name the port http, http2 or grpc, or set appProtocol: http")


def _protocol(port: Json) -> tuple[str, str]:
    """Return the field by which Istio tells a port's protocol, and the protocol; "" if it finds it out."""
    if port.get("protocol") == "UDP":
        return "protocol", "udp"
    field = "appProtocol" if text(port, "appProtocol") else "name"
    name = text(port, field).lower()
    name = _KUBERNETES.get(name, name)
    word = "grpc-web" if name.startswith("grpc-web") else name.partition("-")[0]
    if word in _NOT_HTTP or word in ("http", "http2", "grpc", "grpc-web"):
        return field, word
    return ("port", "tcp") if port.get("port") in _WELL_KNOWN else (field, "")
