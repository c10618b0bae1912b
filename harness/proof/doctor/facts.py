"""What a finding is, and what the findings are made from: what is applied, what runs, what proxies say."""

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from harness import Json
from harness.meshes.mesh import Mesh
from harness.meshes.scene import Pod, named
from harness.meshes.stores import Access
from harness.proof.applied import ROOT
from harness.proof.attribution import Attribution
from harness.proof.backends import WORKLOADS
from harness.proof.rules import Destination
from harness.proof.stores import writers
from harness.proof.story import hops_in
from harness.proof.target import Routing
from harness.rendering.accesslog import Hop

READ = 20
"""How many proxies' logs are read, at most, to see who calls the target."""


def at(found: Any, *path: str) -> Any:
    """Return what stands at a path, whatever shape an object has; None where nothing does."""
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def items(found: Any, *path: str) -> list[tuple[int, Json]]:
    """Return the objects of the list at a path, each with its place."""
    there = at(found, *path)
    return [(i, e) for i, e in enumerate(there) if isinstance(e, dict)] if isinstance(there, list) else []


def text(found: Any, *path: str) -> str:
    """Return the text at a path; nothing where none is."""
    there = at(found, *path)
    return there if isinstance(there, str) else ""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where it stands, what it does, and what to do."""

    where: str
    """The object and the field, as in ``virtualservice/recommendation spec.http[0].mirror``."""
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}: {self.remedy}"


class Log(NamedTuple):
    """What the last 20,000 lines of a pod's proxy's log say."""

    sent: list[Hop]
    """An example of each request that it passed on, by the host that was asked and the cluster."""
    got: list[Hop]
    """The last 50 requests that arrived."""


class Facts:
    """What is applied and runs for a target, and what its proxies say when they are asked."""

    def __init__(self, mesh: Mesh, routing: Routing, loops: tuple[str, ...] = ()) -> None:
        """Gather facts; ``loops`` are the ways on which copies were seen to lead back."""
        self.mesh, self.routing, self.loops = mesh, routing, loops
        self.scene, self.target, self.applied = routing.scene, routing.target, routing.applied
        self._attribution = Attribution(routing)
        self.service, self.namespace = self.target.service, self.target.namespace
        self.rules = [rule.written for rule in routing.rules]
        self.references = [reference for rule in self.rules for reference in rule.references]
        self.mirrors = [reference for reference in self.references if reference.percent is not None]
        self.hosts = list(dict.fromkeys([routing.host, *(r.destination.host for r in self.references)]))
        self.services = {host: routing.services[host] for host in self.hosts if host in routing.services}
        self._logs: dict[str, Log] = {}

    def kubectl(self, command: str, namespace: str = "") -> str:
        """Return a command for kubectl in words."""
        return f"'kubectl -n {namespace or self.namespace} {command}'"

    def workload(self, name: str) -> str:
        """Return a workload's kind and name: ``deployment/recommendation-v2``."""
        if found := self.workload_object(name):
            return named(found)
        return f"pod/{name}" if any(pod.name == name for pod in self.scene.pods) else f"workload/{name}"

    def workload_object(self, name: str) -> Json | None:
        """Return the object of a workload, if it is known."""
        found = [o for o in self.scene.objects if o["kind"] in WORKLOADS]
        return next((workload for workload in found if workload["metadata"]["name"] == name), None)

    def traffic_policy(self, to: Destination, name: str) -> tuple[str, Json] | None:
        """Return where a DestinationRule sets something for a destination, and the value; None: nowhere."""
        holders = [(f"{named(rule)} spec", rule["spec"]) for rule in self.applied.destination_rules(to.host)]
        if own := self.applied.subsets_of(to.host).get(to.subset):
            holders.insert(0, own)
        for where, holder in holders:
            if value := at(holder, "trafficPolicy", name):
                return f"{where}.trafficPolicy.{name}", value
        return None

    def selecting(self, kind: str, pod: Pod) -> list[Json]:
        """Return the policies that hold for a pod: its own first, then its namespace's, then the mesh's."""
        ranked = []
        for found in self.scene.of_kind(kind):
            home, spec = self.applied.namespace_of(found), found.get("spec")
            chosen = at(spec, "selector", "matchLabels") or at(spec, "workloadSelector", "labels") or {}
            elsewhere = home not in (pod.namespace, ROOT) or at(spec, "targetRefs") or at(spec, "targetRef")
            if not elsewhere and chosen.items() <= pod.labels.items():
                rank = 0 if chosen else 1 if home == pod.namespace else 2
                ranked.append((rank, text(found, "metadata", "creationTimestamp"), found))
        return [found for _, _, found in sorted(ranked, key=lambda each: each[:2])]

    @cached_property
    def access(self) -> dict[str, Access]:
        """How each version that has a database comes in."""
        return dict(writers(self.mesh, self.routing))

    @cached_property
    def others(self) -> list[Pod]:
        """The pods that may call the target: those that count, and are neither its own nor gateways.

        A mirror may lead to a Service that is a caller: its pods are among them if they were seen to call.
        """
        behind = self.routing.workloads_behind
        own = {version.workload for version in self.routing.versions.values()}
        mirrored = {workload for mirror in self.mirrors for workload in behind(mirror.destination)}
        elsewhere = mirrored - {*behind(Destination(self.routing.host))}
        pods = [pod for pod in self.scene.pods if not pod.gateway and self.target.counts(pod)]
        return [p for p in pods if p.workload not in own or (p.workload in elsewhere and self.calls(p))]

    @cached_property
    def seen(self) -> list[Pod]:
        """The pods whose sidecars were seen to call the target."""
        return [pod for pod in [p for p in self.others if p.proxy][:READ] if self.calls(pod)]

    @cached_property
    def callers(self) -> list[Pod]:
        """The pods with a sidecar that call the target: those named, else those seen, else all others."""
        sidecars = [pod for pod in self.others if pod.proxy]
        return sidecars if self.target.callers else self.seen or sidecars

    @cached_property
    def proxies(self) -> dict[str, Pod]:
        """A pod with a proxy for each version and each caller, by its workload; READ of them at most."""
        versions = [pod for name in self.routing.versions for pod in self.routing.pods_of(name)]
        found = {pod.workload: pod for pod in [*versions, *self.callers] if pod.proxy}
        return dict([*found.items()][:READ])

    @cached_property
    def listeners(self) -> dict[str, list[Json]]:
        """The listeners of each of those proxies, by its workload."""
        return {workload: self.mesh.listeners(pod) for workload, pod in self.proxies.items()}

    def calls(self, pod: Pod) -> bool:
        """Say whether a pod's sidecar was seen to call the target."""
        return any(self._attribution.is_for_target(pod, hop) for hop in self.log(pod).sent)

    def log(self, pod: Pod) -> Log:
        if pod.name not in self._logs:
            hops = [*hops_in(deque(self.mesh.request_log(pod) if pod.proxy else (), 20_000))]
            got = [hop for hop in hops if hop.cluster.startswith("inbound|")]
            sent = {(h.authority, h.cluster): h for h in hops if not h.cluster.startswith("inbound|")}
            self._logs[pod.name] = Log([*sent.values()], got[-50:])
        return self._logs[pod.name]
