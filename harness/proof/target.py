"""The target: the Service that is judged, its versions, and what each rule that leads there promises."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from harness import HarnessError, Json, settings
from harness.manifests.protocol import is_http, protocol_of
from harness.meshes.mesh import ANSWER, TARGET
from harness.meshes.scene import Pod, Scene
from harness.proof.expectation import (
    DOMAIN,
    GATEWAY,
    MESH,
    ROOT,
    Applied,
    Destination,
    Expectation,
    RouteRule,
    full_name,
    serves_gateways,
    serves_mesh,
    short_name,
)
from harness.rendering.accesslog import Hop

Workload = tuple[str, str]
"""A workload's namespace and name."""

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")


@dataclass(frozen=True)
class Target:
    """Which Service to judge, and who calls it."""

    service: str = TARGET
    namespace: str = field(default_factory=settings.namespace)
    callers: tuple[str, ...] = ()
    """The workloads whose proxies are read as callers'; none: all of the namespace, and the gateways."""


@dataclass(frozen=True)
class Version:
    """What stands behind a destination: the pods of one workload, or nobody."""

    name: str
    workload: str = ""
    namespace: str = ""
    """The workload's."""
    problem: str = ""
    """Why no workload stands behind it."""
    missing: str = ""
    """What is wrong then: the destination's ``host``, ``port`` or ``subset``, or the pods' ``labels``."""
    unreadable: bool = False
    """Whether somebody may stand behind it whose proxy nobody here can read."""


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
        self.host = full_name(target.service, target.namespace)
        homes = [(service, self.applied.namespace_of(service)) for service in scene.of_kind("Service")]
        self.services = {full_name(service["metadata"]["name"], home): service for service, home in homes}
        """All Services, by host."""
        if self.host not in self.services:
            missing = f"there is no Service '{target.service}' in namespace {target.namespace}"
            there = sorted(s["metadata"]["name"] for s in self.services.values())
            raise HarnessError(f"{missing} (there are: {', '.join(there) or 'none'})")
        self._workloads = dict(_workloads(self.applied))
        known = [*self._workloads, *((pod.namespace, pod.workload) for pod in scene.pods)]
        for caller in sorted(set(target.callers).difference(*(_as_caller(*who) for who in known))):
            workloads = ", ".join(sorted({name for _, name in known}))
            raise HarnessError(f"there is no workload '{caller}' (there are: {workloads})")
        written = self._written()
        self._gateway_hosts = {d.host for r in written if r.scope == GATEWAY for d, _ in r.answers}
        self._asked = [p["port"] for p in self._ports_of(self.host) if is_http(p)]
        """The ports by which callers in the mesh ask for the target, and are routed by HTTP."""
        if self.not_http:
            written = []
        self.hosts = {self.host, *(d.host for r in written for d, _ in r.answers)}
        """The hosts that answer callers."""
        others = [d for r in written for d, _ in (*r.answers, *r.mirrors)]
        self._found = {d: self.behind(d) for d in (Destination(self.host), *others)}
        self._hosts = {destination.host for destination in self._found}
        everybody = [version for versions in self._found.values() for version in versions]
        self._names = _names(everybody, self._workloads)
        self.versions = {self._names[v]: v for v in everybody}
        """All versions by name: those behind the Service, and those behind every destination and mirror."""
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
        ports = [port for host in self._hosts for port in self._ports_of(host)]
        inbound = [str(port.get("targetPort") or port["port"]) for port in ports]
        self.version_of_pod: dict[str, str] = {}
        self._version_at: dict[str, str] = {}
        self._inbound: dict[str, set[str]] = {}
        """Pod → its ports that are the target's; none: it is not known which it has."""
        for pod in scene.pods:
            if version := by_workload.get((pod.namespace, pod.workload)):
                self.version_of_pod[pod.name] = version
                self._version_at |= dict.fromkeys(pod.addresses, version)
                self._inbound[pod.name] = {str(pod.ports.get(p, p)) for p in inbound if pod.ports}

    def objects(self) -> Iterator[Json]:
        """Yield the objects on which it depends where requests go, but for workloads."""
        yield from self._sources
        for host in self._hosts:
            if host in self.services:
                yield self.services[host]
            yield from self.applied.destination_rules(host)

    # --- who is who -------------------------------------------------------------------------------------

    def pods_of(self, version: str) -> list[Pod]:
        return [self.pods[pod] for pod, name in self.version_of_pod.items() if name == version]

    def version_at(self, upstream: str) -> str | None:
        """Return the version whose pod has an address (``10.0.0.1:8080``); None if it is not known."""
        return self._version_at.get(upstream) or self._version_at.get(upstream.rpartition(":")[0])

    @property
    def gone(self) -> frozenset[str]:
        """The versions of which no pod is ready."""
        return frozenset(v for v in self.versions if not any(pod.ready for pod in self.pods_of(v)))

    def names_for(self, namespace: str) -> set[str]:
        """Return the hosts by which callers of a namespace ask for the target, without a port.

        What a VirtualService of the target's names beside it takes the same rules.
        """
        spec = self.services[self.host].get("spec", {})
        names = {*(spec.get("clusterIPs") or []), spec.get("clusterIP") or ""} - {"", "None"}
        hosts = [host for f in self._sources if serves_mesh(f) for host in self.applied.hosts_of(f)]
        for host in (self.host, *hosts):
            names.add(host)
            short = host.removesuffix(f".{DOMAIN}")
            if short != host:
                names |= {short, f"{short}.svc", short.removesuffix(f".{namespace}")}
        return names

    def rule_of(self, hop: Hop, scope: str) -> int | None:
        """Return the place of the rule that a call took, by the route's name; None: it cannot be told."""
        nameless = hop.route in ("-", "default") and (scope, hop.route) not in self.called
        places = self.called.get((scope, "" if nameless else hop.route), [])
        return places[0] if len({self.rules[place] for place in places}) == 1 else None

    def counts(self, caller: Pod) -> bool:
        """Say whether the target names a caller, or names none."""
        wanted = self.target.callers
        return not wanted or not _as_caller(caller.namespace, caller.workload).isdisjoint(wanted)

    def is_for_target(self, caller: Pod, hop: Hop) -> bool:
        """Say whether a caller's request asked for the target, and the caller counts."""
        if not self.counts(caller):
            return False
        host = hop.cluster.rpartition("|")[2]
        if caller.gateway:
            return host in self._gateway_hosts
        asked = hop.authority.rpartition(":")[0] if ":" in hop.authority else hop.authority
        if asked.lower().rstrip(".") in self.names_for(caller.namespace):
            return True
        # A rule may have rewritten the authority, but then it has a name of its own.
        return (MESH, hop.route) in self.called and host in self.hosts

    def version_of_call(self, hop: Hop) -> str | None:
        """Return the version whose pod got a call: by its address, or by a cluster with one version."""
        if hop.upstream == "-":
            return None
        known = self.version_at(hop.upstream)
        if known or hop.cluster.count("|") != 3:
            return known
        _, port, subset, host = hop.cluster.split("|")
        exact = Destination(host, subset, int(port) if port.isdecimal() else 0)
        behind = self._found.get(exact) or self._found.get(Destination(host, subset)) or ()
        return self._names[behind[0]] if len(behind) == 1 else None

    def workloads_behind(self, destination: Destination) -> list[str]:
        """Return the workloads behind any host of the namespace's."""
        return [version.workload for version in self.behind(destination) if version.workload]

    def serves(self, pod: str, cluster: str) -> bool:
        """Say whether a version's cluster ``inbound|8080||`` is for a port of the target's."""
        ports = self._inbound[pod]
        return not ports or cluster.split("|", 2)[1] in ports

    def _ports_of(self, host: str) -> list[Json]:
        return self.services.get(host, {}).get("spec", {}).get("ports") or []

    @property
    def not_http(self) -> str:
        """Why no route counts for the target: Istio takes none of its ports for HTTP. Nothing if it does."""
        if self._asked or not (ports := self._ports_of(self.host)):
            return ""
        taken = " and ".join(dict.fromkeys(protocol_of(port)[1] for port in ports))
        problem = f"Istio takes the port of service/{self.target.service} for {taken}, not for HTTP"
        return f"{problem}: no route counts there, and nothing can be mirrored"

    @cached_property
    def logs_answers(self) -> bool:
        """Whether what is applied tells the proxies to log answers, as istio/compare.yaml does."""
        here = (self.scene.namespace, ROOT)
        found = [e for e in self.scene.of_kind("TrafficExtension") if self.applied.namespace_of(e) in here]
        codes = (each["spec"].get("lua") or {} for each in found)
        return any(ANSWER.strip() in str(code.get("inlineCode")) for code in codes)

    def is_dark(self, version: str) -> bool:
        """Say whether no rule lets a version answer callers."""
        return version not in self._answering

    def must_be_silent(self, version: str) -> bool:
        """Say whether no rule leads to a version."""
        return version not in self._answering and version not in self.copied

    def loops(self, edges: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        """Return the ways on which copies lead back to the target: ``v2 -> customer -> recommendation``.

        :param edges: which workload was seen to call which host.
        """
        called: dict[str, list[str]] = {}
        for caller, host in edges:
            called.setdefault(caller, []).append(host)

        def way_back(way: tuple[str, ...]) -> tuple[str, ...]:
            for host in called.get(way[-1], ()):
                if host in self.hosts:
                    return (*way, self.target.service)
                for callee in self.workloads_behind(Destination(host)):
                    if callee not in way and (found := way_back((*way, callee))):
                        return found
            return ()

        ways = [way_back((self.versions[version].workload,)) for version in self.copied]
        return tuple(" -> ".join(way) for way in ways if way)

    # --- resolving --------------------------------------------------------------------------------------

    def _written(self) -> list[RouteRule]:
        """Return the rules that sidecars take, and those of gateways that lead to the target or a version."""
        found = self.applied.ruling(self.host, self.target.namespace)
        self._sources = [f for f in found if f["kind"] == "HTTPRoute"] or found[:1]
        rules = [rule for f in self._sources for rule in self.applied.rules_of(f, MESH)]
        related = {self.host, *(d.host for rule in rules for d, _ in rule.answers)}
        routes = [*self.applied.virtual_services(), *self.scene.of_kind("HTTPRoute")]
        for route in filter(serves_gateways, routes):
            written = self.applied.rules_of(route, GATEWAY)
            leading = [rule for rule in written if any(d.host in related for d, _ in rule.answers)]
            self._sources += [route] if leading else []
            rules += leading
        return rules

    def behind(self, to: Destination) -> tuple[Version, ...]:
        """Return what stands behind a destination: workloads, or one version that says why there is none."""

        def nobody(missing: str, problem: str, unreadable: bool = False) -> tuple[Version, ...]:
            return (Version(str(to), problem=problem, missing=missing, unreadable=unreadable),)

        service, shown = self.services.get(to.host), short_name(to.host, self.target.namespace)
        if service is None and to.host.endswith(f".{self.target.namespace}.{DOMAIN}"):
            return nobody("host", f"there is no Service '{shown}'")
        if service is None:
            return nobody("host", f"'{shown}' is outside namespace {self.target.namespace}", unreadable=True)
        ports = [port["port"] for port in self._ports_of(to.host)]
        if to.port and to.port not in ports:
            return nobody("port", f"Service '{shown}' has no port {to.port}")
        elsewhere = self._asked and ports and set(self._asked).isdisjoint(ports)
        if elsewhere and not to.port and to.host not in self._gateway_hosts:
            return nobody("port", f"Service '{shown}' has no port {self._asked[0]}, by which callers ask")
        wanted = service.get("spec", {}).get("selector") or {}
        if not wanted:
            return nobody("labels", f"Service '{shown}' has no selector", unreadable=True)
        if to.subset:
            subsets = self.applied.subsets_of(to.host)
            if to.subset not in subsets:
                return nobody("subset", f"no DestinationRule has a subset '{to.subset}' of {shown}")
            wanted = wanted | (subsets[to.subset][1].get("labels") or {})
        home = self.applied.namespace_of(service)
        found = [
            Version(name, name, namespace)
            for (namespace, name), labels in self._workloads.items()
            if namespace == home and wanted.items() <= labels.items()
        ]
        words = ", ".join(f"{name}={value}" for name, value in wanted.items())
        return tuple(found) or nobody("labels", f"no workload's pods bear the labels {words}")

    def _promise(self, written: RouteRule) -> Rule:
        found = self._found
        problems = [f"{written.source}: {field} is not understood" for field in written.problems]
        answers: dict[str, float | None] = {}
        mirrored = {v for destination, _ in written.mirrors for v in found[destination]}
        sole = {found[d][0] for d, _ in written.answers if len(found[d]) == 1}
        for destination, share in written.answers:
            # A version that the rule mirrors to is meant to be dark: it may not answer because its labels
            # let it stand behind another's Service, too; only because a destination leads to it alone.
            meant = [v for v in found[destination] if v not in mirrored or v in sole]
            behind = [self._names[v] for v in meant or found[destination]]
            for version in behind:
                known = answers.get(version, 0.0)
                single = len(behind) == 1 and known is not None and share is not None
                answers[version] = (known or 0.0) + (share or 0.0) if single else None
        copies: dict[str, tuple[float, ...]] = {}
        for destination, percent in written.mirrors:
            behind = [self._names[v] for v in found[destination]]
            if len(behind) > 1:
                chance = f"reaches {' or '.join(behind)} by chance: name a subset"
                problems.append(f"{written.source}: the mirror to {destination} {chance}")
            for version in behind:
                copies[version] = (*copies.get(version, ()), percent)
        for destination, _ in (*written.answers, *written.mirrors):
            problems += [f"{written.source}: {v.problem}" for v in found[destination] if v.unreadable]
        return Rule(written, Expectation(tuple(answers.items()), tuple(copies.items())), tuple(problems))

    def _without_route(self) -> Rule:
        here = Destination(self.host)
        written = RouteRule("no route", MESH, "", "default", frozenset(), ((here, None),))
        shares = tuple((self._names[v], None) for v in self._found[here])
        return Rule(written, Expectation(shares), (self.not_http,) if self.not_http else ())


def _as_caller(namespace: str, workload: str) -> set[str]:
    """Return how a target may name a caller."""
    return {workload, f"{namespace}/{workload}", f"{namespace}/*"}


def _workloads(applied: Applied) -> Iterator[tuple[Workload, Mapping[str, str]]]:
    """Yield each workload, those without a pod included, and the labels of its pods."""
    for found in applied.scene.objects:
        if found.get("kind") in WORKLOADS:
            labels = found["spec"]["template"]["metadata"].get("labels") or {}
            yield (applied.namespace_of(found), found["metadata"]["name"]), labels
    for pod in applied.scene.pods:
        if not pod.gateway:
            yield (pod.namespace, pod.workload), pod.labels


def _names(
    versions: Iterable[Version], workloads: Mapping[Workload, Mapping[str, str]]
) -> dict[Version, str]:
    """Return what to call each version: its label ``version`` if that tells them apart, else its workload."""
    distinct = list(dict.fromkeys(versions))
    labels = {v: workloads[v.namespace, v.workload].get("version", v.name) for v in distinct if v.workload}
    often = Counter(labels.values())
    names = {v: label if often[label] == 1 else v.name for v, label in labels.items()}
    for version in distinct:
        if not version.workload:
            taken = version.name in names.values()
            names[version] = f"subset {version.name}" if taken else version.name
    return names
