"""The target: the Service that is judged, its versions, and what each rule that leads there promises."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from harness import HarnessError, Json, settings
from harness.manifests.protocol import is_http, protocol_of
from harness.meshes.mesh import TARGET
from harness.meshes.scene import Pod, Scene
from harness.proof.expectation import (
    DOMAIN,
    GATEWAY,
    MESH,
    Destination,
    Expectation,
    RouteRule,
    full_name,
    hosts_of,
    namespace_of,
    rules_of,
    ruling,
    serves_gateways,
    serves_mesh,
    virtual_services,
)
from harness.rendering.accesslog import Hop

Workload = tuple[str, str]
"""A workload's namespace and name."""


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
    problem: str = ""
    """Why no workload stands behind it."""
    unreadable: bool = False
    """Whether somebody may stand behind it whose proxy nobody here can read."""
    namespace: str = ""
    """The workload's."""


@dataclass(frozen=True)
class Rule:
    """A rule of the target's, and what must happen to a request that takes it."""

    written: RouteRule
    expectation: Expectation
    problems: tuple[str, ...] = ()
    """Why it cannot be told what must happen."""

    @property
    def title(self) -> str:
        """Its name, or its place in its object."""
        return self.written.title


class Routing:
    """What is applied for a target, resolved to the workloads that run."""

    def __init__(self, scene: Scene, target: Target) -> None:
        """Resolve.

        :raises HarnessError: there is no such Service.
        """
        self.scene, self.target = scene, target
        self.host = full_name(target.service, target.namespace)
        self.services = {
            full_name(s["metadata"]["name"], namespace_of(s, scene)): s for s in scene.of_kind("Service")
        }
        """All Services, by host."""
        if self.host not in self.services:
            there = sorted(s["metadata"]["name"] for s in self.services.values())
            raise HarnessError(
                f"there is no Service '{target.service}' in namespace {target.namespace} "
                f"(there are: {', '.join(there) or 'none'})"
            )
        self._workloads = dict(_workloads(scene))
        self._check_callers()
        self._sources: list[Json] = []
        in_mesh = self._mesh_rules()
        written = [*in_mesh, *self._gateway_rules(in_mesh)]
        self._gateway_hosts = {d.host for r in written if r.scope == GATEWAY for d, _ in r.answers}
        self._asked = [p["port"] for p in self._ports_of(self.host) if is_http(p)]
        """The ports by which callers in the mesh ask for the target, and are routed by HTTP."""
        if self.not_http:
            written = []
        found = {d: self._resolve(d) for r in written for d, _ in (*r.answers, *r.mirrors)}
        own = self._resolve(Destination(self.host))
        everybody = [*own, *(v for versions in found.values() for v in versions)]
        names = _names(everybody, self._workloads)
        self.versions = {names[v]: v for v in everybody}
        """All versions by name: those behind the Service, and those behind every destination and mirror."""
        self._names = names
        self.rules = tuple(self._promise(r, found) for r in written) or (self._without_route(own),)
        self._found = {Destination(self.host): own, **found}
        self._answering = {v for rule in self.rules for v, _ in rule.expectation.answers}
        self._copied = {v for rule in self.rules for v, _ in rule.expectation.copies}
        self._by_name = self._named()
        self._nameless = dict(self._only_nameless())
        self._served: dict[tuple[str, str], bool] = {}
        self.hosts = {d.host for r in written for d, _ in r.answers} | {self.host}
        self._pods = {pod.name: pod for pod in scene.pods}
        by_workload = {(v.namespace, v.workload): name for name, v in self.versions.items() if v.workload}
        self._version_of_pod = {
            p.name: by_workload[p.namespace, p.workload]
            for p in scene.pods
            if (p.namespace, p.workload) in by_workload
        }
        self._version_at = {
            a: self._version_of_pod[p.name]
            for p in scene.pods
            for a in p.addresses
            if p.name in self._version_of_pod
        }

    def objects(self) -> Iterator[Json]:
        """Yield the objects on which it depends where requests go, but for workloads."""
        hosts = {self.host} | {destination.host for destination in self._found}
        yield from self._sources
        yield from (self.services[host] for host in hosts if host in self.services)
        yield from (rule for host in hosts for rule in destination_rules(self.scene, host))

    # --- who is who -------------------------------------------------------------------------------------

    def pod(self, name: str) -> Pod | None:
        """Return the pod of that name, if it is known."""
        return self._pods.get(name)

    def pods_of(self, version: str) -> list[Pod]:
        """Return the pods of a version."""
        return [self._pods[pod] for pod, name in self._version_of_pod.items() if name == version]

    def version_of_pod(self, pod: str) -> str | None:
        """Return the version that a pod is of; None if it is none of the target's."""
        return self._version_of_pod.get(pod)

    def version_at(self, upstream: str) -> str | None:
        """Return the version whose pod has an address (``10.0.0.1:8080``); None if it is not known."""
        return self._version_at.get(upstream) or self._version_at.get(upstream.rpartition(":")[0])

    @property
    def gone(self) -> frozenset[str]:
        """The versions of which no pod is ready."""
        return frozenset(v for v in self.versions if not any(pod.ready for pod in self.pods_of(v)))

    def names_for(self, namespace: str) -> frozenset[str]:
        """Return the hosts by which callers of a namespace ask for the target, without a port.

        What a VirtualService of the target's names beside it takes the same rules.
        """
        spec = self.services[self.host].get("spec", {})
        names = {*(spec.get("clusterIPs") or []), spec.get("clusterIP") or ""} - {"", "None"}
        ruled = [f for f in self._sources if f["kind"] == "VirtualService" and serves_mesh(f)]
        for host in {self.host, *(h for f in ruled for h in hosts_of(f, self.scene))}:
            short = host.removesuffix(f".{DOMAIN}")
            names |= {host} if short == host else {short, f"{short}.svc", host}
            if short != host and short.endswith(f".{namespace}"):
                names.add(short.removesuffix(f".{namespace}"))
        return frozenset(names)

    def rule_of(self, hop: Hop, scope: str) -> int | None:
        """Return the place of the rule that a call took, by the route's name; None: it cannot be told."""
        named = self._by_name.get((scope, hop.route))
        return named if named is not None or hop.route not in ("-", "default") else self._nameless.get(scope)

    def _check_callers(self) -> None:
        """Check that there are the callers that the target names.

        :raises HarnessError: there is one that is not.
        """
        known = [*self._workloads, *((pod.namespace, pod.workload) for pod in self.scene.pods)]
        names = (
            {name for _, name in known} | {f"{n}/{name}" for n, name in known} | {f"{n}/*" for n, _ in known}
        )
        for caller in self.target.callers:
            if caller not in names:
                there = ", ".join(sorted({name for _, name in known}))
                raise HarnessError(f"there is no workload '{caller}' (there are: {there})")

    def counts(self, caller: Pod) -> bool:
        """Say whether the target names a caller, or names none."""
        who = {caller.workload, f"{caller.namespace}/{caller.workload}", f"{caller.namespace}/*"}
        return not self.target.callers or not who.isdisjoint(self.target.callers)

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
        return (MESH, hop.route) in self._by_name and host in self.hosts

    def version_of_call(self, hop: Hop) -> str | None:
        """Return the version whose pod got a call: by its address, or by a cluster with one version."""
        if hop.upstream == "-":
            return None
        known = self.version_at(hop.upstream)
        if known or hop.cluster.count("|") != 3:
            return known
        _, port, subset, host = hop.cluster.split("|")
        exact = Destination(host, subset, int(port)) if port.isdecimal() else None
        behind = (exact and self._found.get(exact)) or self._found.get(Destination(host, subset), ())
        return self._names[behind[0]] if len(behind) == 1 else None

    def workloads_behind(self, destination: Destination) -> list[str]:
        """Return the workloads behind any host of the namespace's."""
        return [version.workload for version in self._resolve(destination) if version.workload]

    def serves(self, pod: str, cluster: str) -> bool:
        """Say whether a pod's cluster ``inbound|8080||`` is for a port of the target's."""
        known = self._served.get((pod, cluster))
        if known is None:
            ports = frozenset(self._ports(self._pods[pod]))
            known = self._served[pod, cluster] = not ports or cluster.split("|")[1] in ports
        return known

    def _ports(self, pod: Pod) -> Iterator[str]:
        for host in {self.host} | {d.host for d in self._found}:
            for port in self._ports_of(host):
                wanted = str(port.get("targetPort") or port["port"])
                if pod.ports:
                    yield str(pod.ports.get(wanted, wanted))

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

    def wrong_port(self, to: Destination) -> str:
        """Return why a destination's port leads nowhere; nothing if it leads somewhere."""
        known, shown = [port["port"] for port in self._ports_of(to.host)], to.host.partition(".")[0]
        if to.port and to.port not in known:
            return f"Service '{shown}' has no port {to.port}"
        elsewhere = self._asked and known and not set(self._asked) & set(known)
        if not to.port and elsewhere and to.host not in self._gateway_hosts:
            return f"Service '{shown}' has no port {self._asked[0]}, by which callers ask"
        return ""

    def is_dark(self, version: str) -> bool:
        """Say whether no rule lets a version answer callers."""
        return version not in self._answering

    def must_be_silent(self, version: str) -> bool:
        """Say whether no rule leads to a version."""
        return version not in self._answering and version not in self._copied

    # --- resolving --------------------------------------------------------------------------------------

    def _mesh_rules(self) -> list[RouteRule]:
        found = ruling(self.scene, self.host, self.target.namespace)
        routes = [f for f in found if f["kind"] == "HTTPRoute"] or found[:1]
        self._sources += routes
        return [rule for f in routes for rule in rules_of(self.scene, f, MESH)]

    def _gateway_rules(self, in_mesh: list[RouteRule]) -> list[RouteRule]:
        """Return the rules of gateways that lead to the target, or to a Service of one of its versions."""
        related = {self.host} | {d.host for rule in in_mesh for d, _ in rule.answers}
        found = [v for v in virtual_services(self.scene) if serves_gateways(v)]
        found += [
            r
            for r in self.scene.of_kind("HTTPRoute")
            if any(p.get("kind", "Gateway") == "Gateway" for p in r["spec"].get("parentRefs") or [])
        ]
        rules = []
        for f in found:
            leading = [
                r for r in rules_of(self.scene, f, GATEWAY) if any(d.host in related for d, _ in r.answers)
            ]
            self._sources += [f] if leading else []
            rules += leading
        return rules

    def _resolve(self, destination: Destination) -> tuple[Version, ...]:
        service = self.services.get(destination.host)
        shown = destination.host.removesuffix(f".{self.target.namespace}.{DOMAIN}")
        if service is None:
            elsewhere = not destination.host.endswith(f".{self.target.namespace}.{DOMAIN}")
            return (Version(str(destination), "", f"no Service '{shown}' is known here", elsewhere),)
        if problem := self.wrong_port(destination):
            return (Version(str(destination), "", problem),)
        selector = service.get("spec", {}).get("selector") or {}
        if not selector:
            return (Version(str(destination), "", f"Service '{shown}' has no selector", unreadable=True),)
        labels: Mapping[str, str] = {}
        if destination.subset:
            subsets = subsets_of(self.scene, destination.host)
            if destination.subset not in subsets:
                return (
                    Version(
                        str(destination),
                        "",
                        f"no DestinationRule has subset '{destination.subset}' of '{shown}'",
                    ),
                )
            labels = subsets[destination.subset].get("labels") or {}
        wanted, namespace = {**selector, **labels}, namespace_of(service, self.scene)
        found = tuple(
            Version(name, name, namespace=where)
            for (where, name), has in self._workloads.items()
            if where == namespace and wanted.items() <= has.items()
        )
        words = ", ".join(f"{k}={v}" for k, v in wanted.items())
        return found or (Version(str(destination), "", f"no pod bears the labels {words}"),)

    def _promise(self, written: RouteRule, found: Mapping[Destination, tuple[Version, ...]]) -> Rule:
        problems = [f"{written.source}: {field} is not understood" for field in written.problems]
        answers: dict[str, float | None] = {}
        mirrored = {v for destination, _ in written.mirrors for v in found[destination]}
        named = {found[d][0] for d, _ in written.answers if len(found[d]) == 1}
        for destination, share in written.answers:
            # A version that the rule mirrors to is meant to be dark: it may not answer because its labels
            # let it stand behind another's Service, too; only because a destination leads to it alone.
            meant = [v for v in found[destination] if v not in mirrored or v in named]
            behind = [self._names[v] for v in meant or found[destination]]
            for version in behind:
                known = answers.get(version, 0.0)
                single = len(behind) == 1 and known is not None and share is not None
                answers[version] = (known or 0.0) + (share or 0.0) if single else None
        copies: dict[str, tuple[float, ...]] = {}
        for destination, percent in written.mirrors:
            behind = [self._names[v] for v in found[destination]]
            if len(behind) > 1:
                problems.append(
                    f"{written.source}: the mirror to {destination} reaches {' or '.join(behind)}"
                    " by chance: name a subset"
                )
            for version in behind:
                copies[version] = (*copies.get(version, ()), percent)
        for destination, _ in (*written.answers, *written.mirrors):
            problems += [f"{written.source}: {v.problem}" for v in found[destination] if v.unreadable]
        return Rule(written, Expectation(tuple(answers.items()), tuple(copies.items())), tuple(problems))

    def _named(self) -> dict[tuple[str, str], int | None]:
        """Return the place of the rule that bears a name; None where rules that differ bear the same one."""
        found: dict[tuple[str, str], int | None] = {}
        for place, rule in enumerate(self.rules):
            for name in rule.written.route_names:
                known = found.setdefault((rule.written.scope, name), place)
                if known is not None and self._promised(known) != self._promised(place):
                    found[rule.written.scope, name] = None
        return found

    def _promised(self, place: int) -> tuple[Expectation, tuple[str, ...]]:
        return self.rules[place].expectation, self.rules[place].problems

    def _only_nameless(self) -> Iterator[tuple[str, int]]:
        """Yield (scope, place) of the rule without a name that all calls took which took none with a name."""
        for scope in (MESH, GATEWAY):
            places = [
                i for i, r in enumerate(self.rules) if r.written.scope == scope and not r.written.route_names
            ]
            if len({self._promised(i) for i in places}) == 1:
                yield scope, places[0]

    def _without_route(self, own: Iterable[Version]) -> Rule:
        shares = tuple((self._names[v], None) for v in own)
        written = RouteRule("no route", MESH, "", "default", frozenset(), ((Destination(self.host), None),))
        return Rule(written, Expectation(shares), (self.not_http,) if self.not_http else ())


def destination_rules(scene: Scene, host: str) -> list[Json]:
    """Return the DestinationRules for a host."""
    return [
        rule
        for rule in scene.of_kind("DestinationRule")
        if full_name(rule["spec"].get("host", ""), namespace_of(rule, scene)) == host
    ]


def subsets_of(scene: Scene, host: str) -> dict[str, Json]:
    """Return the subsets that DestinationRules define for a host, by name."""
    return {s["name"]: s for r in destination_rules(scene, host) for s in r["spec"].get("subsets") or []}


def _workloads(scene: Scene) -> Iterator[tuple[Workload, Mapping[str, str]]]:
    """Yield each workload, those without a pod included, and the labels of its pods."""
    for found in scene.objects:
        if found.get("kind") in ("Deployment", "StatefulSet", "DaemonSet"):
            labels = found["spec"]["template"]["metadata"].get("labels") or {}
            yield (namespace_of(found, scene), found["metadata"]["name"]), labels
    for pod in scene.pods:
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
