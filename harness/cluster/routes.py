"""Routes on a cluster: what rules a host for sidecars, and whether their proxies have it."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain

from harness import Json
from harness.cluster.kubectl import Kubectl, served
from harness.cluster.scene import ROUTES, SUBSETS, everywhere
from harness.meshes.mesh import MeshError
from harness.meshes.scene import Scene, named
from harness.proof.applied import MESH, Applied, serves_mesh
from harness.proof.expectation import Expectation
from harness.proof.rules import RouteRule

QUERY = "config_dump?resource=dynamic_route_configs"
"""How a proxy's admin interface is asked for its routes."""

FOR_SOME = {"gateways", "sourceLabels", "sourceNamespace"}
"""Fields of a match by which only some proxies have it."""

EVERY: tuple[Json, ...] = ({}, {"uri": {"prefix": "/"}}, {"uri": {"regex": ".*"}})
SAY_NOTHING = ("name", "port", "ignoreUriCase")
"""How a match looks that every request has, and the fields of it that do not count."""

Way = tuple[tuple[str, str], float]
"""A host and a subset, or nothing, and how much goes there: a share (0 to 1) or a percentage."""

Route = tuple[str, str, list[str], list[Way], list[Way]]
"""A route as far as it tells: its name, the path and the headers it asks for, who answers, who gets copies.

No path is told of a regular expression, nor what a header must be.
"""

PARTS = {"HUNDRED": 1, "TEN_THOUSAND": 100, "MILLION": 10_000}
"""How many of Envoy's fractions are a percent."""


def routes_of(kubectl: Kubectl) -> Applied:
    """Return the VirtualServices, HTTPRoutes and DestinationRules that are applied."""
    found = everywhere(kubectl, ",".join(served(kubectl, [*ROUTES, SUBSETS])), [])
    return Applied(Scene(kubectl.namespace, tuple(found), ()))


def must_rule(kubectl: Kubectl, given: Iterable[Json]) -> None:
    """Raise a MeshError if sidecars would not take a VirtualService: another route overrules it."""
    written = [each for each in given if each["kind"] == "VirtualService" and serves_mesh(each)]
    if not written:
        return
    applied = routes_of(kubectl)
    for document, host in ((each, host) for each in written for host in applied.hosts_of(each)):
        for found in applied.ruling(host, kubectl.namespace)[:1]:
            where, is_route = applied.namespace_of(found), found["kind"] == "HTTPRoute"
            is_itself = (where, named(found)) == (kubectl.namespace, named(document))
            if is_route or (host in applied.hosts_of(found) and not is_itself):
                why = "comes before VirtualServices" if is_route else "is for the same host, and is older"
                raise MeshError(
                    f"{named(found)} of namespace {where} {why}: proxies would take nothing of "
                    f"{named(document)}. {kubectl.program} delete {named(found)} -n {where}"
                )


def without_rules(host: str) -> Json:
    """Return the VirtualService that says what proxies have for a host without one."""
    rule = {"name": "default", "route": [{"destination": {"host": host}}]}
    return {"kind": "VirtualService", "metadata": {"name": "none"}, "spec": {"hosts": [host], "http": [rule]}}


class Ruling:
    """What a VirtualService says of its hosts, and whether proxies do that."""

    def __init__(self, namespace: str, document: Json) -> None:
        self._applied = Applied(Scene(document["metadata"].get("namespace") or namespace, (), ()))
        self._hosts, self._rules = self._applied.hosts_of(document), document["spec"].get("http") or []
        self._is_understood = not any(rule.problems for rule in self._read(self._rules))

    def _read(self, rules: list[Json]) -> list[RouteRule]:
        document = {"kind": "VirtualService", "metadata": {"name": ""}, "spec": {"http": rules}}
        return self._applied.rules_of(document, MESH)

    def instead(self, said: str) -> str | None:
        """Say what a proxy does with requests to the hosts instead; nothing where it knows none of them.

        None: it does as the rules say, or they are not understood.

        :param said: what its admin interface answers to QUERY.
        """
        known = [
            host
            for config in json.loads(said).get("configs", [])
            for host in config.get("route_config", {}).get("virtual_hosts", [])
            if host["name"].partition(":")[0] in self._hosts
        ]
        for host in known if self._is_understood else ():
            routes = [_running(route) for route in host.get("routes", [])]
            if not self._are(routes, *host["name"].partition(":")[::2]):
                return " | ".join(map(_in_words, routes))
        return None if known or not self._is_understood else ""

    def _are(self, routes: list[Route], host: str, port: str) -> bool:
        """Say whether the routes that a proxy has for a host's port are all these rules, and no others."""
        written = list(_at(self._rules, port)) or without_rules(host)["spec"]["http"]
        promised = {
            rule.place: _promised(rule, given.get("match") or [{}])
            for rule, given in zip(self._read(written), written, strict=True)
        }
        found = [[place for place, known in promised.items() if route in known] for route in routes]
        return all(found) and set(_needed(written)).issubset(chain(*found))


def _at(rules: list[Json], port: str) -> Iterator[Json]:
    """Yield the rules of a VirtualService that count at a port, with the matches that do."""
    for rule in rules:
        matches = [match for match in rule.get("match") or [{}] if str(match.get("port", port)) == port]
        if matches:
            yield {**rule, "match": matches}


def _needed(rules: list[Json]) -> Iterator[str]:
    """Yield the places of the rules that each proxy has, up to the one that takes every request."""
    for number, rule in enumerate(rules):
        matches = rule.get("match") or [{}]
        if any(FOR_SOME.isdisjoint(match) for match in matches):
            yield f"spec.http[{number}]"
        if any({k: v for k, v in match.items() if k not in SAY_NOTHING} in EVERY for match in matches):
            return


def _promised(rule: RouteRule, matches: list[Json]) -> list[Route]:
    names = rule.route_names if rule.title in rule.route_names else {*rule.route_names, ""}
    answers = [((to.host, to.subset), share or 0.0) for to, share in rule.answers]
    mirrors = [((to.host, to.subset), percent) for to, percent in rule.mirrors]
    return [
        (name, *_asked_for(match), sorted(answers), sorted(mirrors)) for name in names for match in matches
    ]


def _asked_for(match: Json) -> tuple[str, list[str]]:
    """Return the path and the headers that a match of a VirtualService asks for, as Envoy calls them."""
    uri = match.get("uri") or {"prefix": "/"}
    headers = [*(match.get("headers") or {}), *(match.get("withoutHeaders") or {})]
    headers += [f":{name}" for name in ("method", "scheme", "authority") if name in match]
    return uri.get("exact") or uri.get("prefix") or "", sorted(headers)


def _running(route: Json) -> Route:
    action = route.get("route", {})
    single = [{"name": action["cluster"], "weight": 1}] if "cluster" in action else []
    weighted = [c for c in action.get("weighted_clusters", {}).get("clusters", single) if c.get("weight")]
    total = sum(cluster["weight"] for cluster in weighted)
    answers = [(_place(cluster["name"]), cluster["weight"] / total) for cluster in weighted]
    mirrors = []
    for mirror in action.get("request_mirror_policies", []):
        part = mirror.get("runtime_fraction", {}).get("default_value", {})
        percent = part.get("numerator", 0) / PARTS[part.get("denominator", "HUNDRED")]
        mirrors.append((_place(mirror["cluster"]), percent))
    match = route.get("match", {})
    headers = sorted(header["name"] for header in match.get("headers", []))
    path = match.get("path") or match.get("prefix") or ""
    return route.get("name", ""), path, headers, sorted(answers), sorted(mirrors)


def _place(cluster: str) -> tuple[str, str]:
    """Return the host and the subset that a cluster's name says: ``outbound|8080|v2|recommendation…``."""
    *_, subset, host = ["", *cluster.split("|")]
    return host, subset


def _in_words(route: Route) -> str:
    *_, answers, mirrors = route
    ways = tuple((subset or "any version", share) for (_, subset), share in answers)
    copies = tuple((subset or host, (percent,)) for (host, subset), percent in mirrors)
    return Expectation(ways, copies).describe()
