"""The backends: which workloads stand behind the destinations that routes name."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from harness import HarnessError, Json
from harness.manifests.protocol import is_http, protocol_of
from harness.proof.applied import Applied
from harness.proof.rules import DOMAIN, Destination, full_name, short_name

Workload = tuple[str, str]
"""A workload's namespace and name."""

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")


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


class Backends:
    """The Services of a scene, and the workloads behind them, as callers of one of them see it."""

    def __init__(self, applied: Applied, service: str, namespace: str) -> None:
        """Look for Services and workloads.

        :raises HarnessError: there is no Service called ``service``, for which callers ask.
        """
        self._applied, self._service, self._namespace = applied, service, namespace
        homes = [(found, applied.namespace_of(found)) for found in applied.of_kind("Service")]
        self.services = {full_name(found["metadata"]["name"], home): found for found, home in homes}
        """All Services, by host."""
        self.host = full_name(service, namespace)
        if self.host not in self.services:
            missing = f"there is no Service '{service}' in namespace {namespace}"
            there = sorted(s["metadata"]["name"] for s in self.services.values())
            raise HarnessError(f"{missing} (there are: {', '.join(there) or 'none'})")
        self.workloads = dict(_workloads(applied))
        """The labels of each workload's pods."""

    def ports_of(self, host: str) -> list[Json]:
        return self.services.get(host, {}).get("spec", {}).get("ports") or []

    @cached_property
    def _asked(self) -> list[int]:
        """The ports by which callers in the mesh ask for the Service, and are routed by HTTP."""
        return [port["port"] for port in self.ports_of(self.host) if is_http(port)]

    @property
    def not_http(self) -> str:
        """Why no route counts for the Service: Istio takes none of its ports for HTTP. Nothing if it does."""
        if self._asked or not (ports := self.ports_of(self.host)):
            return ""
        taken = " and ".join(dict.fromkeys(protocol_of(port)[1] for port in ports))
        problem = f"Istio takes the port of service/{self._service} for {taken}, not for HTTP"
        return f"{problem}: no route counts there, and nothing can be mirrored"

    def behind(self, to: Destination, *, by_gateway: bool = False) -> tuple[Version, ...]:
        """Return what stands behind a destination: workloads, or one version that says why there is none.

        :param by_gateway: whether a gateway leads there, which asks by whatever port the Service has.
        """

        def nobody(missing: str, problem: str, unreadable: bool = False) -> tuple[Version, ...]:
            return (Version(str(to), problem=problem, missing=missing, unreadable=unreadable),)

        service, shown = self.services.get(to.host), short_name(to.host, self._namespace)
        if service is None and to.host.endswith(f".{self._namespace}.{DOMAIN}"):
            return nobody("host", f"there is no Service '{shown}'")
        if service is None:
            return nobody("host", f"'{shown}' is outside namespace {self._namespace}", unreadable=True)
        ports = [port["port"] for port in self.ports_of(to.host)]
        if to.port and to.port not in ports:
            return nobody("port", f"Service '{shown}' has no port {to.port}")
        elsewhere = self._asked and ports and set(self._asked).isdisjoint(ports)
        if elsewhere and not to.port and not by_gateway:
            return nobody("port", f"Service '{shown}' has no port {self._asked[0]}, by which callers ask")
        wanted = service.get("spec", {}).get("selector") or {}
        if not wanted:
            return nobody("labels", f"Service '{shown}' has no selector", unreadable=True)
        if to.subset:
            subsets = self._applied.subsets_of(to.host)
            if to.subset not in subsets:
                return nobody("subset", f"no DestinationRule has a subset '{to.subset}' of {shown}")
            wanted = wanted | (subsets[to.subset][1].get("labels") or {})
        home = self._applied.namespace_of(service)
        found = [
            Version(name, name, namespace)
            for (namespace, name), labels in self.workloads.items()
            if namespace == home and wanted.items() <= labels.items()
        ]
        words = ", ".join(f"{name}={value}" for name, value in wanted.items())
        return tuple(found) or nobody("labels", f"no workload's pods bear the labels {words}")

    def names_of(self, versions: Iterable[Version]) -> dict[Version, str]:
        """Return what to call each version: its label ``version`` if that is its own, or its workload."""
        distinct = list(dict.fromkeys(versions))
        bear = self.workloads
        labels = {v: bear[v.namespace, v.workload].get("version", v.name) for v in distinct if v.workload}
        often = Counter(labels.values())
        names = {v: label if often[label] == 1 else v.name for v, label in labels.items()}
        for version in distinct:
            if not version.workload:
                taken = version.name in names.values()
                names[version] = f"subset {version.name}" if taken else version.name
        return names


def _workloads(applied: Applied) -> Iterator[tuple[Workload, Mapping[str, str]]]:
    """Yield each workload, those without a pod included, and the labels of its pods."""
    for found in applied.scene.objects:
        if found.get("kind") in WORKLOADS:
            labels = found["spec"]["template"]["metadata"].get("labels") or {}
            yield (applied.namespace_of(found), found["metadata"]["name"]), labels
    for pod in applied.scene.pods:
        if not pod.gateway:
            yield (pod.namespace, pod.workload), pod.labels
