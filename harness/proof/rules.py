"""The rules of routes, as they are written: where each leads, and who gets copies.

Objects are read as the API server gives them. A field that has no bearing on where requests go is passed
over; one that may have, and is not understood, is named in ``RouteRule.problems``.
"""

from dataclasses import dataclass
from typing import Any

from harness import Json
from harness.meshes.scene import named

DOMAIN = "svc.cluster.local"

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


def full_name(host: str, namespace: str) -> str:
    """Return a host as Istio's registry has it: a name without a dot belongs to the object's namespace.

    Only hosts of VirtualServices may be in another case: a destination in one leads nowhere.
    """
    host = host.rstrip(".")
    return host if "." in host else f"{host}.{namespace}.{DOMAIN}"


def short_name(host: str, namespace: str) -> str:
    """Return a host as objects of a namespace call it."""
    return host.removesuffix(f".{namespace}.{DOMAIN}")


def rule_of(namespace: str, found: Json, number: int, http: Json, scope: str) -> RouteRule:
    """Return a rule of a VirtualService."""
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


def rule_of_http_route(namespace: str, found: Json, number: int, rule: Json, scope: str) -> RouteRule:
    """Return a rule of an HTTPRoute."""
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
