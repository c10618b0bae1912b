"""Give proxies their configuration, by files that they watch, and wait until they run it."""

import hashlib
import json
import os
import re
import time
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path

from harness import Json
from harness.manifests.base import Object
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import of_kind
from harness.meshes.mesh import MeshError, wait_until
from harness.meshes.pods import EnvoyPod
from harness.rendering.bootstrap import EXTENSION, extension, extension_file
from harness.rendering.clusters import Endpoint, clusters
from harness.rendering.routes import gateway_routes, sidecar_routes
from harness.rendering.values import Address, typed

CLUSTER = "config.cluster.v3.Cluster"
ROUTES = "config.route.v3.RouteConfiguration"
FILTER = "config.core.v3.TypedExtensionConfig"


class Proxies(ABC):
    """Proxies that are configured by files which they watch."""

    xds: Path
    """The folder of the files."""

    @abstractmethod
    def inbound_address(self, pod: EnvoyPod) -> Address:
        """Return where other proxies reach a running pod.

        :raises OSError: its proxy does not run.
        """

    @abstractmethod
    def admin(self, pod: str, path: str) -> str:
        """Return what the admin interface of a pod's proxy answers.

        :raises OSError: it does not answer.
        """

    @abstractmethod
    def container_log(self, pod: str, container: str) -> str:
        """Return what a container of a pod printed."""

    def write(self, name: str, text: str) -> None:
        """Write a file of the proxies' configuration."""
        replace_file(self.xds / name, text)

    def publish(self, objects: list[Object], pods: list[EnvoyPod]) -> list[str]:
        """Give every proxy the new configuration: make before break, so that no request is lost.

        :returns: the pods whose proxies do not answer.
        :raises MeshError: a proxy rejects it.
        """
        pods = [pod for pod in pods if pod.proxied]
        endpoints, late = [], set()
        for pod in pods:
            try:
                address = self.inbound_address(pod)
            except OSError:
                late.add(pod.name)  # nothing is sent there, as in a cluster to a pod that is not ready
                continue
            if pod.deployment:
                endpoints.append(Endpoint(pod.labels, address, pod.deployment.container))
        new = clusters(objects, endpoints)
        names = {cluster["name"] for cluster in new}
        old = json.loads((self.xds / "clusters.json").read_text())["resources"]
        leaving = [c for c in old if c["name"] not in names]
        rejected = {pod.name: self._rejections(pod.name) for pod in pods if pod.name not in late}
        steps = [
            partial(self.write_clusters, leaving + new),
            partial(self.write_routes, objects),
            *([partial(self.write_clusters, new)] if leaving else []),
        ]
        for step in steps:
            step()
            versions = {p.stem: json.loads(p.read_text())["version_info"] for p in self.xds.glob("*.json")}
            end = time.monotonic() + 10
            for pod in pods:
                if pod.name not in late:
                    taken = partial(self._has_taken, pod, versions, rejected[pod.name])
                    if not wait_until(taken, end - time.monotonic(), pause=0.01):
                        late.add(pod.name)
        return sorted(late)

    def write_clusters(self, clusters: list[Json]) -> None:
        """Write what every proxy reads of where requests can go."""
        self.write("clusters.json", _response(CLUSTER, clusters))

    def write_routes(self, objects: list[Object]) -> None:
        """Write what sidecars and gateway read of which requests go where."""
        self.write("sidecar.json", _response(ROUTES, [sidecar_routes(objects)]))
        self.write("gateway.json", _response(ROUTES, [gateway_routes(objects)]))
        self.write_extensions(objects)

    def write_extensions(self, objects: list[Object]) -> None:
        """Write what the sidecars of each workload read of its extension, where that has changed."""
        for workload in of_kind(objects, Deployment):
            name = extension_file(workload.metadata.name)
            text = _response(FILTER, [extension(objects, workload)])
            if not (self.xds / name).exists() or (self.xds / name).read_text() != text:
                self.write(name, text)

    def _has_taken(self, pod: EnvoyPod, versions: dict[str, str], rejected: int) -> bool:
        """Say whether a pod's proxy runs the files' ``versions``.

        :param rejected: how many it had rejected before.
        :raises MeshError: it rejects them.
        """
        routes = "sidecar" if pod.deployment else "gateway"
        running = self._statistics(pod.name, "version_text")
        wanted = {"cluster_manager.cds": versions["clusters"], f".rds.{routes}": versions[routes]}
        if pod.deployment:
            wanted[f".{EXTENSION}"] = versions[Path(extension_file(pod.workload)).stem]
        if all(
            any(name.endswith(f"{end}.version_text") and value == f'"{version}"' for name, value in running)
            for end, version in wanted.items()
        ):
            return True
        if self._rejections(pod.name) > rejected:
            said = re.findall(r"config update \w+: (.*)", self.container_log(pod.name, "istio-proxy"))
            reason = said[-1] if said else f"see the log of {pod.name}"
            raise MeshError(f"Envoy rejected the configuration ({reason}); the mesh runs on as it was")
        return False

    def _rejections(self, pod: str) -> int:
        """Return how many configurations a pod's proxy has rejected since it started."""
        return sum(int(value) for _, value in self._statistics(pod, "update_(rejected|failure)"))

    def active(self, pod: str) -> int:
        """Return how many requests a pod's sidecar has begun and not yet ended."""
        return sum(int(value) for _, value in self._statistics(pod, "http.inbound.downstream_rq_active"))

    def _statistics(self, pod: str, name: str) -> list[tuple[str, str]]:
        try:
            lines = self.admin(pod, f"/stats?filter={name}").splitlines()
        except OSError:
            return []
        return [(line.partition(": ")[0], line.partition(": ")[2]) for line in lines]


def _response(resource_type: str, resources: list[Json]) -> str:
    """Return what Envoy reads from a file of dynamic configuration; the version comes back in its admin."""
    version = hashlib.sha256(json.dumps(resources).encode()).hexdigest()[:12]
    found = {"version_info": version, "resources": [typed(resource_type, **each) for each in resources]}
    return json.dumps(found, indent=1)


def replace_file(path: Path, text: str) -> None:
    """Replace a file in one step, which is also what Envoy watches for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    os.rename(temporary, path)
