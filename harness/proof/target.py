"""The target: the Service that is judged, its versions, and what each rule that leads there promises."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from harness import HarnessError, Json, settings
from harness.meshes.mesh import ANSWER, TARGET
from harness.meshes.scene import Pod, Scene
from harness.proof.applied import GATEWAY, MESH, ROOT, Applied, serves_gateways
from harness.proof.backends import Backends, Version
from harness.proof.expectation import Expectation
from harness.proof.rules import Destination, RouteRule
from harness.proof.story import DIRECT, Call


@dataclass(frozen=True)
class Target:
    """Which Service to judge, and who calls it."""

    service: str = TARGET
    namespace: str = field(default_factory=settings.namespace)
    callers: tuple[str, ...] = ()
    """The workloads whose proxies are read as callers'; none: all of the namespace, and the gateways."""

    def counts(self, caller: Pod) -> bool:
        """Say whether a caller is named, or none is."""
        return not self.callers or not _as_caller(caller.namespace, caller.workload).isdisjoint(self.callers)


def _as_caller(namespace: str, workload: str) -> set[str]:
    """Return how a target may name a caller."""
    return {workload, f"{namespace}/{workload}", f"{namespace}/*"}


@dataclass(frozen=True)
class Rule:
    """A rule of the target's, and what must happen to a request that takes it: by that, two are equal."""

    written: RouteRule = field(compare=False)
    expectation: Expectation
    problems: tuple[str, ...] = ()
    """Why it cannot be told what must happen."""


class Routing:
    """What is applied for a target, resolved to the workloads that run."""

    def __init__(self, scene: Scene, target: Target) -> None:
        """Resolve.

        :raises HarnessError: there is no such Service, or no such caller.
        """
        self.scene, self.target, self.applied = scene, target, Applied(scene)
        self.backends = Backends(self.applied, target.service, target.namespace)
        self.host, self.services = self.backends.host, self.backends.services
        self.not_http = self.backends.not_http
        """Why no route counts for the target; nothing if routes do."""
        self._must_have_callers()
        self.sources: list[Json] = []
        """The VirtualServices and HTTPRoutes that lead to the target."""
        written = self._written()
        self.gateway_hosts = {d.host for r in written if r.scope == GATEWAY for d, _ in r.answers}
        """The hosts to which gateways lead."""
        if self.not_http:
            written = []
        self.hosts = {self.host, *(d.host for r in written for d, _ in r.answers)}
        """The hosts that answer callers."""
        others = [d for r in written for d, _ in (*r.answers, *r.mirrors)]
        found = {destination: self.behind(destination) for destination in (Destination(self.host), *others)}
        everybody = [version for versions in found.values() for version in versions]
        names = self.backends.names_of(everybody)
        self.versions = {names[version]: version for version in everybody}
        """All versions by name: those behind the Service, and those behind every destination and mirror."""
        self.destinations = {to: [names[version] for version in versions] for to, versions in found.items()}
        """Destination → the versions behind it."""
        self.rules = tuple(map(self._promise, written)) or (self._without_route(),)
        self._answering = {version for rule in self.rules for version in rule.expectation.allowed}
        self.copied = dict.fromkeys(version for rule in self.rules for version in rule.expectation.copied)
        self.called: dict[tuple[str, str], list[int]] = {}
        """Scope and what proxies log as the route's name ("": none) → the places of the rules."""
        for place, rule in enumerate(self.rules):
            for name in rule.written.route_names or {""}:
                self.called.setdefault((rule.written.scope, name), []).append(place)
        self.pods = {pod.name: pod for pod in scene.pods}
        by_workload = {(v.namespace, v.workload): name for name, v in self.versions.items() if v.workload}
        versions = {pod.name: by_workload.get((pod.namespace, pod.workload)) for pod in scene.pods}
        self.version_of_pod = {pod: version for pod, version in versions.items() if version}

    # --- what is applied --------------------------------------------------------------------------------

    def objects(self) -> Iterator[Json]:
        """Yield the objects on which it depends where requests go, but for workloads."""
        yield from self.sources
        for host in {destination.host for destination in self.destinations}:
            if host in self.services:
                yield self.services[host]
            yield from self.applied.destination_rules(host)

    @cached_property
    def logs_answers(self) -> bool:
        """Whether what is applied tells the proxies to log answers, as istio/compare.yaml does."""
        here = (self.scene.namespace, ROOT)
        found = [e for e in self.scene.of_kind("TrafficExtension") if self.applied.namespace_of(e) in here]
        codes = (each["spec"].get("lua") or {} for each in found)
        return any(ANSWER.strip() in str(code.get("inlineCode")) for code in codes)

    def behind(self, destination: Destination) -> tuple[Version, ...]:
        """Return what stands behind a destination: workloads, or one version that says why there is none."""
        return self.backends.behind(destination, by_gateway=destination.host in self.gateway_hosts)

    def workloads_behind(self, destination: Destination) -> list[str]:
        """Return the workloads behind any host of the namespace's."""
        return [version.workload for version in self.behind(destination) if version.workload]

    # --- what runs, and what may answer -----------------------------------------------------------------

    def pods_of(self, version: str) -> list[Pod]:
        return [self.pods[pod] for pod, name in self.version_of_pod.items() if name == version]

    @property
    def gone(self) -> frozenset[str]:
        """The versions of which no pod is ready."""
        return frozenset(v for v in self.versions if not any(pod.ready for pod in self.pods_of(v)))

    def is_dark(self, version: str) -> bool:
        """Say whether no rule lets a version answer callers."""
        return version not in self._answering

    def must_be_silent(self, version: str) -> bool:
        """Say whether no rule leads to a version."""
        return version not in self._answering and version not in self.copied

    def is_leak(self, call: Call) -> bool:
        """Say whether a caller got the answer of a version that may not answer."""
        if call.version is None or call.rule < 0:
            return call.rule == DIRECT
        return call.version not in self.rules[call.rule].expectation.allowed

    # --- resolving --------------------------------------------------------------------------------------

    def _must_have_callers(self) -> None:
        known = [*self.backends.workloads, *((pod.namespace, pod.workload) for pod in self.scene.pods)]
        for caller in sorted(set(self.target.callers).difference(*(_as_caller(*who) for who in known))):
            workloads = ", ".join(sorted({name for _, name in known}))
            raise HarnessError(f"there is no workload '{caller}' (there are: {workloads})")

    def _written(self) -> list[RouteRule]:
        """Return the rules that sidecars take, and those of gateways that lead to the target or a version."""
        found = self.applied.ruling(self.host, self.target.namespace)
        self.sources = [f for f in found if f["kind"] == "HTTPRoute"] or found[:1]
        rules = [rule for f in self.sources for rule in self.applied.rules_of(f, MESH)]
        related = {self.host, *(d.host for rule in rules for d, _ in rule.answers)}
        routes = [*self.applied.virtual_services(), *self.scene.of_kind("HTTPRoute")]
        for route in filter(serves_gateways, routes):
            written = self.applied.rules_of(route, GATEWAY)
            leading = [rule for rule in written if any(d.host in related for d, _ in rule.answers)]
            self.sources += [route] if leading else []
            rules += leading
        return rules

    def _promise(self, written: RouteRule) -> Rule:
        behind = self.destinations
        problems = [f"{written.source}: {field} is not understood" for field in written.problems]
        answers: dict[str, float | None] = {}
        mirrored = {version for destination, _ in written.mirrors for version in behind[destination]}
        sole = {behind[d][0] for d, _ in written.answers if len(behind[d]) == 1}
        for destination, share in written.answers:
            # A version that the rule mirrors to is meant to be dark: it may not answer because its labels
            # let it stand behind another's Service, too; only because a destination leads to it alone.
            meant = [v for v in behind[destination] if v not in mirrored or v in sole] or behind[destination]
            for version in meant:
                known = answers.get(version, 0.0)
                single = len(meant) == 1 and known is not None and share is not None
                answers[version] = (known or 0.0) + (share or 0.0) if single else None
        copies: dict[str, tuple[float, ...]] = {}
        for destination, percent in written.mirrors:
            if len(behind[destination]) > 1:
                chance = f"reaches {' or '.join(behind[destination])} by chance: name a subset"
                problems.append(f"{written.source}: the mirror to {destination} {chance}")
            for version in behind[destination]:
                copies[version] = (*copies.get(version, ()), percent)
        for destination, _ in (*written.answers, *written.mirrors):
            there = self.behind(destination)
            problems += [f"{written.source}: {version.problem}" for version in there if version.unreadable]
        return Rule(written, Expectation(tuple(answers.items()), tuple(copies.items())), tuple(problems))

    def _without_route(self) -> Rule:
        here = Destination(self.host)
        written = RouteRule("no route", MESH, "", "default", frozenset(), ((here, None),))
        return replace(self._promise(written), problems=(self.not_http,) if self.not_http else ())


def ways_back(routing: Routing, edges: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return the ways on which copies lead back to the target: ``v2 -> customer -> recommendation``.

    :param edges: which workload was seen to call which host.
    """
    called: dict[str, list[str]] = {}
    for caller, host in edges:
        called.setdefault(caller, []).append(host)

    def way_back(way: tuple[str, ...]) -> tuple[str, ...]:
        for host in called.get(way[-1], ()):
            if host in routing.hosts:
                return (*way, routing.target.service)
            for callee in routing.workloads_behind(Destination(host)):
                if callee not in way and (found := way_back((*way, callee))):
                    return found
        return ()

    ways = [way_back((routing.versions[version].workload,)) for version in routing.copied]
    return tuple(" -> ".join(way) for way in ways if way)
