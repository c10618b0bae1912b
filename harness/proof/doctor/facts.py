"""What a finding is, and what the findings are made from: what is applied, what runs, what proxies say."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from harness import Json
from harness.meshes.mesh import Mesh
from harness.meshes.scene import Pod, Scene, named
from harness.proof.doctor.reading import at, items, text
from harness.proof.expectation import (
    DOMAIN,
    GATEWAY,
    MESH,
    Destination,
    full_name,
    namespace_of,
    ruling,
    serves_gateways,
    virtual_services,
)
from harness.proof.target import Routing
from harness.rendering.accesslog import Hop, Unreadable, parse_line

READ = 20
"""How many proxies' logs are read, at most, to see who calls the target."""

LINES = 20_000
"""How many of a log's lines are read, the last ones."""

RECENT = 50
"""How many of the last requests that arrived at a pod are looked at."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where it stands, what it does, and what to do."""

    where: str
    """The object and the field, as in ``virtualservice/recommendation spec.http[0].mirror``."""
    problem: str
    remedy: str

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.where}: {self.problem}: {self.remedy}"


@dataclass(frozen=True)
class Reference:
    """A place where one of the target's rules names a destination."""

    scope: str
    """Whose proxies take the rule: ``mesh`` or ``gateway``."""
    found: Json
    rule: str
    """The rule's field, as in ``spec.http[0]``."""
    field: str
    """The destination's field, as in ``spec.http[0].mirror``."""
    destination: Destination
    mirror: bool

    @property
    def where(self) -> str:
        """The object and the field."""
        return f"{named(self.found)} {self.field}"


@dataclass
class Log:
    """What a pod's proxy has logged."""

    sent: dict[tuple[str, str], Hop] = field(default_factory=dict)
    """An example of each request that it passed on, by the host that was asked and the cluster."""
    got: deque[Hop] = field(default_factory=lambda: deque(maxlen=RECENT))
    """The last requests that arrived."""


class Facts:
    """What is applied and runs for a target, and what its proxies say when they are asked."""

    def __init__(self, mesh: Mesh, routing: Routing, loops: tuple[str, ...] = ()) -> None:
        """Gather facts; ``loops`` are the ways on which copies were seen to lead back."""
        self.mesh, self.routing, self.loops = mesh, routing, loops
        self.scene: Scene = routing.scene
        self.target = routing.target
        self.service, self.namespace = self.target.service, self.target.namespace
        self._logs: dict[str, Log] = {}

    # --- names --------------------------------------------------------------------------------------------

    def short(self, host: str) -> str:
        """Return a host as objects of the target's namespace call it."""
        return host.removesuffix(f".{DOMAIN}").removesuffix(f".{self.namespace}")

    def kubectl(self, command: str, namespace: str = "") -> str:
        """Return a command for kubectl in words."""
        return f"'kubectl -n {namespace or self.namespace} {command}'"

    def workload(self, name: str) -> str:
        """Return a workload's kind and name: ``deployment/recommendation-v2``."""
        found = self.workload_object(name)
        if found is None and any(pod.name == name for pod in self.scene.pods):
            return f"pod/{name}"
        return named(found) if found else f"workload/{name}"

    def workload_object(self, name: str) -> Json | None:
        """Return the object of a workload of the target's namespace, if it is known."""
        for found in self.scene.objects:
            kind, metadata = found.get("kind"), found["metadata"]
            if kind in ("Deployment", "StatefulSet", "DaemonSet") and metadata["name"] == name:
                return found
        return None

    def services(self, host: str) -> list[Json]:
        """Return the Service that a host names, if it is known."""
        return [
            s
            for s in self.scene.of_kind("Service")
            if full_name(s["metadata"]["name"], namespace_of(s, self.scene)) == host
        ]

    def destination_rules(self, host: str) -> list[Json]:
        """Return the DestinationRules for a host."""
        return [
            rule
            for rule in self.scene.of_kind("DestinationRule")
            if full_name(text(rule, "spec", "host"), namespace_of(rule, self.scene)) == host
        ]

    def subset(self, destination: Destination) -> tuple[Json, str, Json] | None:
        """Return the DestinationRule, the field and the subset that a destination names; None: none."""
        for rule in self.destination_rules(destination.host):
            for i, subset in items(rule, "spec", "subsets"):
                if subset.get("name") == destination.subset:
                    return rule, f"spec.subsets[{i}]", subset
        return None

    # --- the target's rules -------------------------------------------------------------------------------

    @cached_property
    def references(self) -> list[Reference]:
        """All places where the target's rules name a destination or a mirror."""
        routes = ruling(self.scene, self.routing.host, self.namespace)
        routes = [f for f in routes if f["kind"] == "HTTPRoute"] or routes[:1]
        found = [reference for route in routes for reference in self.destinations(route, MESH)]
        for route in [
            *filter(serves_gateways, virtual_services(self.scene)),
            *self.scene.of_kind("HTTPRoute"),
        ]:
            parents = [text(p, "kind") or "Gateway" for _, p in items(route, "spec", "parentRefs")]
            if route["kind"] == "VirtualService" or "Gateway" in parents:
                there = list(self.destinations(route, GATEWAY))
                leading = {r.rule for r in there if not r.mirror and r.destination.host in self.routing.hosts}
                found += [r for r in there if r.rule in leading]
        return found

    @property
    def mirrors(self) -> list[Reference]:
        """The places where the target's rules name a mirror."""
        return [reference for reference in self.references if reference.mirror]

    def destinations(self, found: Json, scope: str) -> Iterator[Reference]:
        """Yield the places where an object names a destination or a mirror."""
        namespace = namespace_of(found, self.scene)

        def refer(rule: str, place: str, where: Json | None, mirror: bool) -> Iterator[Reference]:
            host = text(where, "host") or text(where, "name")
            if host:
                home = text(where, "namespace") or namespace
                to = Destination(full_name(host, home), text(where, "subset"))
                yield Reference(scope, found, rule, f"{rule}.{place}", to, mirror)

        for i, http in items(found, "spec", "http"):
            rule = f"spec.http[{i}]"
            for j, route in items(http, "route"):
                yield from refer(rule, f"route[{j}].destination", at(route, "destination"), False)
            yield from refer(rule, "mirror", at(http, "mirror"), True)
            for j, mirror in items(http, "mirrors"):
                yield from refer(rule, f"mirrors[{j}].destination", at(mirror, "destination"), True)
        for i, http in items(found, "spec", "rules"):
            rule = f"spec.rules[{i}]"
            for j, backend in items(http, "backendRefs"):
                yield from refer(rule, f"backendRefs[{j}]", backend, False)
            for j, asked in items(http, "filters"):
                backend = at(asked, "requestMirror", "backendRef")
                yield from refer(rule, f"filters[{j}].requestMirror.backendRef", backend, True)

    # --- who calls ----------------------------------------------------------------------------------------

    def counts(self, pod: Pod) -> bool:
        """Say whether a pod's requests count, if it sends any."""
        who = {pod.workload, f"{pod.namespace}/{pod.workload}", f"{pod.namespace}/*"}
        return not self.target.callers or not who.isdisjoint(self.target.callers)

    @cached_property
    def others(self) -> list[Pod]:
        """The pods that may call the target: those that count, and are neither its own nor gateways.

        A mirror may lead to a Service that is a caller: its pods are among them if they were seen to call.
        """
        versions = {version.workload for version in self.routing.versions.values()}
        mirrored = {w for m in self.mirrors for w in self.routing.workloads_behind(m.destination)}
        elsewhere = mirrored - {*self.routing.workloads_behind(Destination(self.routing.host))}
        return [
            pod
            for pod in self.scene.pods
            if not pod.gateway
            and self.counts(pod)
            and (pod.workload not in versions or (pod.workload in elsewhere and self.calls(pod)))
        ]

    @cached_property
    def seen(self) -> list[Pod]:
        """The pods whose sidecars were seen to call the target."""
        return [pod for pod in [p for p in self.others if p.proxy][:READ] if self.calls(pod)]

    @cached_property
    def callers(self) -> list[Pod]:
        """The pods with a sidecar that call the target: those named, else those seen, else all others."""
        sidecars = [pod for pod in self.others if pod.proxy]
        return sidecars if self.target.callers else self.seen or sidecars

    def calls(self, pod: Pod) -> bool:
        """Say whether a pod's sidecar was seen to call the target."""
        return any(self.routing.is_for_target(pod, hop) for hop in self.log(pod).sent.values())

    def log(self, pod: Pod) -> Log:
        """Return what a pod's proxy has logged."""
        if pod.name not in self._logs:
            log = self._logs[pod.name] = Log()
            for line in deque(self.mesh.request_log(pod) if pod.proxy else (), LINES):
                try:
                    hop = parse_line(line)
                except Unreadable:
                    continue
                if hop and hop.cluster.startswith("inbound|"):
                    log.got.append(hop)
                elif hop:
                    log.sent.setdefault((hop.authority, hop.cluster), hop)
        return self._logs[pod.name]
