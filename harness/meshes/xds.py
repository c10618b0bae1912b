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
from harness.meshes.mesh import MeshError
from harness.meshes.pods import Pod
from harness.rendering.bootstrap import CLUSTER, ROUTES, discovery_response
from harness.rendering.clusters import Endpoint, clusters
from harness.rendering.routes import gateway_routes, sidecar_routes
from harness.rendering.values import Address


class Proxies(ABC):
    """Proxies that are configured by files which they watch."""

    xds: Path
    """The folder of the files."""

    @abstractmethod
    def inbound_address(self, pod: Pod) -> Address:
        """Return where other proxies reach a running pod."""

    @abstractmethod
    def admin(self, pod: str, path: str) -> str:
        """Return what the admin interface of a pod's proxy answers.

        :raises OSError: it does not answer.
        """

    @abstractmethod
    def proxy_log(self, pod: str) -> str:
        """Return what a pod's proxy said of itself."""

    def write(self, name: str, text: str) -> None:
        """Write a file of the proxies' configuration."""
        replace_file(self.xds / name, text)


def publish(mesh: Proxies, objects: list[Object], pods: list[Pod]) -> list[str]:
    """Give every proxy the new configuration: make before break, so that no request is lost.

    :returns: the pods whose proxies do not answer.
    :raises MeshError: a proxy rejects it.
    """
    endpoints, late = [], set()
    for pod in pods:
        try:
            address = mesh.inbound_address(pod)
        except OSError:
            late.add(pod.name)  # nothing is sent there, as in a cluster to a pod that is not ready
            continue
        if pod.deployment:
            endpoints.append(Endpoint(pod.labels, address, pod.deployment.container))
    new = clusters(objects, endpoints)
    names = {cluster["name"] for cluster in new}
    old = json.loads((mesh.xds / "clusters.json").read_text())["resources"]
    leaving = [c for c in old if c["name"] not in names]
    rejected = {pod.name: _rejections(mesh, pod.name) for pod in pods if pod.name not in late}
    steps = [
        partial(write_clusters, mesh, leaving + new),
        partial(write_routes, mesh, objects),
        *([partial(write_clusters, mesh, new)] if leaving else []),
    ]
    for step in steps:
        step()
        late |= _wait_for_proxies(mesh, [pod for pod in pods if pod.name not in late], rejected)
    return sorted(late)


def write_clusters(mesh: Proxies, clusters: list[Json]) -> None:
    """Write what every proxy reads of where requests can go."""
    _write_resources(mesh, "clusters.json", CLUSTER, clusters)


def write_routes(mesh: Proxies, objects: list[Object]) -> None:
    """Write what sidecars and gateway read of which requests go where."""
    _write_resources(mesh, "sidecar.json", ROUTES, [sidecar_routes(objects)])
    _write_resources(mesh, "gateway.json", ROUTES, [gateway_routes(objects)])


def _write_resources(mesh: Proxies, name: str, resource_type: str, resources: list[Json]) -> None:
    version = hashlib.sha256(json.dumps(resources).encode()).hexdigest()[:12]
    response = discovery_response(version, resource_type, resources)
    mesh.write(name, json.dumps(response, indent=1))


def replace_file(path: Path, text: str) -> None:
    """Replace a file in one step, which is also what Envoy watches for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    os.rename(temporary, path)


def _wait_for_proxies(
    mesh: Proxies, pods: list[Pod], rejected: dict[str, int], deadline: float = 10
) -> set[str]:
    """Wait until every proxy runs what the files say; return those that do not in ``deadline`` seconds.

    :raises MeshError: a proxy rejects it.
    """
    versions = {p.stem: json.loads(p.read_text())["version_info"] for p in mesh.xds.glob("*.json")}
    end, late = time.monotonic() + deadline, set()
    for pod in pods:
        routes = "sidecar" if pod.deployment else "gateway"
        wanted = {"cluster_manager.cds": versions["clusters"], f".rds.{routes}": versions[routes]}
        while not _runs(mesh, pod.name, wanted):
            if _rejections(mesh, pod.name) > rejected[pod.name]:
                said = re.findall(r"config update \w+: (.*)", mesh.proxy_log(pod.name))
                reason = said[-1] if said else f"see the log of {pod.name}"
                raise MeshError(f"Envoy rejected the configuration ({reason}); the mesh runs on as it was")
            if time.monotonic() > end:
                late.add(pod.name)
                break
            time.sleep(0.01)
    return late


def _runs(mesh: Proxies, pod: str, wanted: dict[str, str]) -> bool:
    """Say whether a pod's proxy runs the versions ``wanted`` (end of a statistic's name → version)."""
    running = _statistics(mesh, pod, "version_text")
    return all(
        any(name.endswith(f"{end}.version_text") and value == f'"{version}"' for name, value in running)
        for end, version in wanted.items()
    )


def _rejections(mesh: Proxies, pod: str) -> int:
    """Return how many configurations a pod's proxy has rejected since it started."""
    statistics = _statistics(mesh, pod, "update_(rejected|failure)")
    return sum(int(value) for _, value in statistics)


def _statistics(mesh: Proxies, pod: str, name: str) -> list[tuple[str, str]]:
    try:
        text = mesh.admin(pod, f"/stats?filter={name}")
    except OSError:
        return []
    return [(line.partition(": ")[0], line.partition(": ")[2]) for line in text.splitlines()]


def active(mesh: Proxies, pod: str) -> int:
    """Return how many requests a pod's sidecar has begun and not yet ended."""
    return sum(int(value) for _, value in _statistics(mesh, pod, "http.inbound.downstream_rq_active"))
