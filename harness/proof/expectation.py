"""What routes say: for each rule who answers callers, and who gets copies.

Objects are read as the API server gives them. A field that has no bearing on where requests go is passed
over; one that may have, and is not understood, is named in ``RouteRule.problems``.
"""

from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

from harness import Json
from harness.manifests.values import covers
from harness.meshes.scene import Scene, named

DOMAIN = "svc.cluster.local"
MESH, GATEWAY = "mesh", "gateway"

ROOT = "istio-system"
"""Istio's root namespace: what stands there without a selector holds everywhere."""

# Fields of a VirtualService's rule: where a request goes, and what does not change that.
_UNDERSTOOD = {
    "name", "match", "route", "mirror", "mirrors", "mirrorPercentage", "mirrorPercent", "mirror_percent",
    "timeout", "retries", "fault", "headers", "rewrite", "corsPolicy", "redirect", "directResponse",
}  # fmt: skip
_FILTERS = {
    "RequestMirror", "RequestHeaderModifier", "ResponseHeaderModifier", "URLRewrite", "RequestRedirect",
    "CORS",
}  # fmt: skip


@dataclass(frozen=True)
class Destination:
    """Where a route leads: a host as Istio's registry has it, a subset's name or nothing, a port or 0."""

    host: str
    subset: str = ""
    port: int = 0

    def __str__(self) -> str:
        return self.subset or self.host.partition(".")[0]


@dataclass(frozen=True)
class Reference:
    """A place where a rule names a destination, or a mirror."""

    scope: str
    """Whose proxies take the rule: ``mesh`` (sidecars) or ``gateway``."""
    where: str
    """The object and the field, as in ``virtualservice/recommendation spec.http[0].mirror``."""
    destination: Destination
    percent: float | None = None
    """A mirror's percentage, as it is written; None: this is no mirror."""
    percent_where: str = ""
    """Where that stands, or would stand."""


@dataclass(frozen=True)
class RouteRule:
    """One rule of a VirtualService or an HTTPRoute, as it is written."""

    source: str
    """The object, as in ``virtualservice/recommendation``."""
    scope: str
    place: str
    """Its field, as in ``spec.http[0]``."""
    title: str
    """Its name, or its place."""
    route_names: frozenset[str]
    """What the callers' proxies log as the route's name; empty if it has none."""
    answers: tuple[tuple[Destination, float | None], ...]
    """Who answers callers, with its share (0 to 1); None: no route sets it."""
    references: tuple[Reference, ...] = ()
    """Where it names destinations and mirrors, those without a share included."""
    problems: tuple[str, ...] = ()
    """Fields that are not understood."""
    only_reads: bool = False
    """Whether it takes GET and HEAD alone."""

    @property
    def mirrors(self) -> tuple[tuple[Destination, float], ...]:
        """Who gets copies, each with its percentage: cut, as Istio does, to millionths."""
        written = ((r.destination, int(r.percent * 10_000) / 10_000) for r in self.references if r.percent)
        return tuple((destination, percent) for destination, percent in written if percent > 0)


@dataclass(frozen=True)
class Expectation:
    """What must happen to a request.

    :param answers: (version, share) of those that answer callers; the share (0 to 1) is None where no
        route sets it.
    :param copies: (version, percentages of its mirrors) of those that get copies.
    """

    answers: tuple[tuple[str, float | None], ...]
    copies: tuple[tuple[str, tuple[float, ...]], ...] = ()

    @cached_property
    def allowed(self) -> list[str]:
        """The versions that may answer callers."""
        return [version for version, _ in self.answers]

    @cached_property
    def copied(self) -> list[str]:
        """The versions that get copies."""
        return [version for version, _ in self.copies]

    @cached_property
    def dark(self) -> list[str]:
        """The versions that get copies, and do not answer callers."""
        return [version for version in self.copied if version not in self.allowed]

    @cached_property
    def always(self) -> list[str]:
        """The versions that get a copy of every request, each as often as it does."""
        return [version for version, percentages in self.copies for p in percentages if p == 100]

    def describe(self, gone: frozenset[str] = frozenset()) -> str:
        """Return it in words; ``gone`` are the versions without a pod."""
        names = {v: f"{v} (no pod)" if v in gone else v for v in (*self.allowed, *self.copied)}
        answering = [(names[version], share) for version, share in self.answers]
        if len(answering) == 1:
            words = f"all to {answering[0][0]}"
        elif any(share is None for _, share in answering):
            words = f"to {' and '.join(name for name, _ in answering)}"
        else:
            words = ", ".join(f"{100 * (share or 0):g} % to {name}" for name, share in answering)
        mirrors = [f"mirrored {percent:g} % to {names[v]}" for v, many in self.copies for percent in many]
        return "; ".join([words or "to nobody", *mirrors])


def full_name(host: str, namespace: str) -> str:
    """Return a host as Istio's registry has it: a name without a dot belongs to the object's namespace.

    Only hosts of VirtualServices may be in another case: a destination in one leads nowhere.
    """
    host = host.rstrip(".")
    return host if "." in host else f"{host}.{namespace}.{DOMAIN}"


def short_name(host: str, namespace: str) -> str:
    """Return a host as objects of a namespace call it."""
    return host.removesuffix(f".{namespace}.{DOMAIN}")


def serves_mesh(found: Json) -> bool:
    """Say whether sidecars take a VirtualService; they may take any HTTPRoute."""
    return "mesh" in (found["spec"].get("gateways") or ["mesh"])


def serves_gateways(found: Json) -> bool:
    """Say whether a gateway takes a VirtualService or an HTTPRoute."""
    if found["kind"] == "HTTPRoute":
        return any(p.get("kind", "Gateway") == "Gateway" for p in found["spec"].get("parentRefs") or [])
    return any(gateway != "mesh" for gateway in found["spec"].get("gateways") or [])


class Applied:
    """What a scene's objects say of routes; its functions are Istio's rules of who takes which."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.of_kind = scene, scene.of_kind

    def namespace_of(self, found: Json) -> str:
        return str(found["metadata"].get("namespace") or self.scene.namespace)

    def hosts_of(self, found: Json) -> list[str]:
        """Return the hosts of a VirtualService as Istio's registry has them."""
        home = self.namespace_of(found)
        return [full_name(host.lower(), home) for host in found["spec"].get("hosts") or []]

    def virtual_services(self) -> list[Json]:
        """Return the VirtualServices, the oldest first: of two for one host, Istio's sidecars take the older.

        https://istio.io/latest/docs/ops/best-practices/traffic-management/#split-virtual-services
        """
        return sorted(self.of_kind("VirtualService"), key=_age)

    def is_visible(self, found: Json, namespace: str) -> bool:
        """Say whether proxies of a namespace are told of an object: its ``exportTo``."""
        exported = found["spec"].get("exportTo") or ["*"]
        here = {"*", namespace} | ({"."} if self.namespace_of(found) == namespace else set())
        return not here.isdisjoint(exported)

    def ruling(self, host: str, namespace: str) -> list[Json]:
        """Return what routes a host for the sidecars of a namespace, the one that counts first.

        An HTTPRoute of the Service overrules VirtualServices; an exact host overrules a wildcard, and a
        longer one a shorter one.
        """
        of_service, matching = [], []
        for found in self.of_kind("HTTPRoute"):
            for parent in found["spec"].get("parentRefs") or []:
                where = parent.get("namespace") or self.namespace_of(found)
                if parent.get("kind") == "Service" and full_name(parent["name"], where) == host:
                    of_service.append(found)
        for found in self.virtual_services():
            wanted = [(name == host, len(name)) for name in self.hosts_of(found) if covers(name, host)]
            if wanted and serves_mesh(found) and self.is_visible(found, namespace):
                matching.append((max(wanted), found))
        matching.sort(key=itemgetter(0), reverse=True)  # of equals, the oldest stays first
        return [*of_service, *(found for _, found in matching)]

    def rules_of(self, found: Json, scope: str = "") -> list[RouteRule]:
        """Return the rules of a VirtualService or an HTTPRoute, in order.

        :param scope: whose proxies take them; sidecars, or else gateways, if it is not named.
        """
        scope = scope or (MESH if serves_mesh(found) else GATEWAY)
        read, field = (_http_route_rule, "rules") if found["kind"] == "HTTPRoute" else (_rule, "http")
        rules, namespace = enumerate(found["spec"].get(field) or []), self.namespace_of(found)
        return [read(namespace, found, i, rule, scope) for i, rule in rules if _is_for(rule, scope)]

    def destination_rules(self, host: str) -> list[Json]:
        """Return the DestinationRules for a host, the oldest first: its own, or the longest wildcard's."""
        rules = sorted(self.of_kind("DestinationRule"), key=_age)
        hosts = [full_name(rule["spec"].get("host", ""), self.namespace_of(rule)) for rule in rules]
        matching = [(name, rule) for name, rule in zip(hosts, rules, strict=True) if covers(name, host)]
        longest = max((len(name) for name, _ in matching), default=0)
        return [rule for name, rule in matching if len(name) == longest]

    def subsets_of(self, host: str) -> dict[str, tuple[str, Json]]:
        """Return the subsets that DestinationRules give a host, by name, each behind where it stands.

        Of two with one name, Istio takes the older rule's.
        """
        found: dict[str, tuple[str, Json]] = {}
        for rule in self.destination_rules(host):
            for i, subset in enumerate(rule["spec"].get("subsets") or []):
                found.setdefault(subset["name"], (f"{named(rule)} spec.subsets[{i}]", subset))
        return found


def _age(found: Json) -> tuple[str, str]:
    return str(found["metadata"].get("creationTimestamp") or ""), found["metadata"]["name"]


def _is_for(http: Json, scope: str) -> bool:
    """Say whether proxies of a scope take a rule: its matches may name gateways."""
    named = [match.get("gateways") for match in http.get("match") or [{}]]
    return any(not gateways or any((g == "mesh") == (scope == MESH) for g in gateways) for gateways in named)


def _rule(namespace: str, found: Json, number: int, http: Json, scope: str) -> RouteRule:
    source, place = named(found), f"spec.http[{number}]"
    where = f"{source} {place}"

    def refer(field: str, to: Json, *percentage: Any) -> Reference:
        port = (to.get("port") or {}).get("number") or 0
        destination = Destination(full_name(to.get("host", ""), namespace), to.get("subset") or "", port)
        return Reference(scope, f"{where}.{field}", destination, *percentage)

    routes = http.get("route") or []
    references = [refer(f"route[{i}].destination", route["destination"]) for i, route in enumerate(routes)]
    weights = [route.get("weight") or 0 for route in routes] if len(routes) > 1 else [1] * len(routes)
    shares = [weight / sum(weights) if any(weights) else None for weight in weights]
    answers = [(r.destination, share) for r, share in zip(references, shares, strict=True) if share != 0]
    if http.get("mirror"):
        references.append(refer("mirror", http["mirror"], *_percentage(http, where, "mirrorPercentage")))
    for i, mirror in enumerate(http.get("mirrors") or []):
        percentage = _percentage(mirror, f"{where}.mirrors[{i}]", "percentage")
        references.append(refer(f"mirrors[{i}].destination", mirror["destination"], *percentage))
    name = http.get("name") or ""
    matches = [match["name"] for match in http.get("match") or [] if match.get("name")]
    logged = frozenset({name, *(f"{name}.{match}" for match in matches)} - {""})
    problems = tuple(f"{place}.{field}" for field in http if field not in _UNDERSTOOD)
    return RouteRule(
        source, scope, place, name or place, logged, tuple(answers), tuple(references), problems,
        _only_reads([match.get("method") for match in http.get("match") or []]),
    )  # fmt: skip


def _percentage(written: Json, where: str, key: str) -> tuple[float, str]:
    """Return a mirror's percentage, and where it stands: absent is 100."""
    if (value := written.get(key)) is not None:
        return float(value.get("value", 0)), f"{where}.{key}.value"
    for old in ("mirrorPercent", "mirror_percent"):
        if written.get(old) is not None:
            return float(written[old]), f"{where}.{old}"
    return 100.0, f"{where}.{key}"


def _http_route_rule(namespace: str, found: Json, number: int, rule: Json, scope: str) -> RouteRule:
    source, place = named(found), f"spec.rules[{number}]"
    where = f"{source} {place}"

    def refer(field: str, to: Json, *percentage: Any) -> Reference:
        host = full_name(to["name"], to.get("namespace") or namespace)
        return Reference(scope, f"{where}.{field}", Destination(host, port=to.get("port") or 0), *percentage)

    backends = rule.get("backendRefs") or []
    references = [refer(f"backendRefs[{i}]", backend) for i, backend in enumerate(backends)]
    weights = [backend.get("weight", 1) for backend in backends]
    weighted = [(reference, weight) for reference, weight in zip(references, weights, strict=True) if weight]
    answers = tuple((reference.destination, weight / sum(weights)) for reference, weight in weighted)
    problems = []
    for i, asked in enumerate(rule.get("filters") or []):
        kind = asked.get("type")
        if kind == "RequestMirror":
            field, mirror = f"filters[{i}].requestMirror", asked["requestMirror"]
            percentage = _fraction(mirror, f"{where}.{field}")
            references.append(refer(f"{field}.backendRef", mirror["backendRef"], *percentage))
        elif kind == "RequestRedirect":
            answers = ()
        elif kind not in _FILTERS:
            problems.append(f"{place}.filters[{i}] ({kind})")
    problems += [f"{place}.backendRefs[{i}].filters" for i, b in enumerate(backends) if b.get("filters")]
    title = rule.get("name") or place
    # Istio names what it makes of an HTTPRoute's rule so, if the rule has no name of its own.
    logged = frozenset({rule.get("name") or f"{namespace}.{found['metadata']['name']}.{number}"})
    only_reads = _only_reads([match.get("method") for match in rule.get("matches") or []])
    return RouteRule(
        source, scope, place, title, logged, answers, tuple(references), tuple(problems), only_reads
    )


def _only_reads(methods: list[Any]) -> bool:
    """Say whether matches take GET and HEAD alone; each has a method as it is written, or None."""
    named: set[str] = set()
    for method in methods:
        written = method if isinstance(method, dict) else {"exact": method}
        # Of an expression only alternatives are understood: GET|HEAD.
        named.update(str(written.get("exact") or written.get("regex")).split("|"))
    return bool(named) and named <= {"GET", "HEAD"}


def _fraction(mirror: Json, where: str) -> tuple[float, str]:
    if (fraction := mirror.get("fraction")) is not None:
        return 100 * float(fraction["numerator"]) / fraction.get("denominator", 100), f"{where}.fraction"
    return float(mirror.get("percent", 100)), f"{where}.percent"
