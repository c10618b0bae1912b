"""The control plane of the meshes whose Envoys the harness configures itself: local, and containers."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import Json
from harness.manifests.base import Object
from harness.manifests.check import check
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import of_kind
from harness.manifests.read import ManifestError, parse, read
from harness.meshes.images import image
from harness.meshes.mesh import (
    GATEWAY,
    ISTIO,
    LOOPBACK,
    ROOT,
    WORKLOADS,
    Mesh,
    MeshError,
    PodStatus,
    Progress,
    check_port,
    quietly,
)
from harness.rendering.bootstrap import CLUSTER, ROUTES, discovery_response
from harness.rendering.clusters import Endpoint, clusters
from harness.rendering.routes import gateway_routes, sidecar_routes
from harness.rendering.values import Address


@dataclass(frozen=True)
class Pod:
    """One running copy of a workload: an application and its sidecar, or the ingress gateway alone."""

    name: str
    workload: str
    deployment: Deployment | None = None

    @property
    def labels(self) -> dict[str, str]:
        """The labels by which Services and subsets find the pod."""
        return self.deployment.labels if self.deployment else {"istio": "ingressgateway"}


class EnvoyMesh(Mesh):
    """A mesh of Envoys that the harness configures itself, by files that they watch.

    All state lives in one folder: the applied objects, the proxies' configuration, the pods' logs.
    """

    quiet = 0.5

    def __init__(self, state: Path, port: int | None = None, progress: Progress = quietly) -> None:
        """Keep state in the folder ``state``; ``port`` is the gateway's when the mesh is started (8080)."""
        self.state = state.resolve()
        self.xds = self.state / "xds"
        self.progress = progress
        self._port = port

    # --- what a kind of mesh must bring ---------------------------------------------------------------

    @abstractmethod
    def running(self) -> dict[str, bool]:
        """Return the pods of which anything runs: name → whether all of it does."""

    @abstractmethod
    def start_pods(self, pods: list[Pod]) -> None:
        """Start pods and wait until they are ready."""

    @abstractmethod
    def stop_pods(self, names: Iterable[str]) -> None:
        """End all processes of pods, those of half-dead ones too, and wait until they are gone."""

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

    # --- commands -------------------------------------------------------------------------------------

    def up(self) -> None:
        with self._lock():
            running = self.running()
            try:
                stored = self.objects() if running else {}
            except MeshError:
                stored = {}  # damaged: start afresh
            port = self.state / "port"
            if stored and port.exists():
                if GATEWAY not in running:
                    _must_be_free(int(port.read_text()))
                self._reconcile(stored, "manifests")
                return
            self.remove_everything()
            number = 8080 if self._port is None else self._port
            _must_be_free(number)
            try:
                self._write_text(port, str(number))
                self._reconcile(_first_state(), "manifests")
            except BaseException:
                self.remove_everything()
                raise

    def down(self) -> None:
        with self._lock() as lock:
            self.remove_everything()
            lock.unlink()
        with contextlib.suppress(OSError):
            self.state.parent.rmdir()

    def reset(self) -> None:
        """Return a running mesh to the state in which it was started."""
        with self._lock():
            self._reconcile(_first_state(), "manifests")

    def apply(self, path: Path) -> list[str]:
        objects, source = read(path), str(path)
        with self._lock():
            stored = self.must_run()
            lines = []
            new = dict(stored)
            for applied in objects:
                old = stored.get(applied.key)
                verb = "created" if not old else "unchanged" if old[1] == applied else "configured"
                lines.append(f"{applied.key} {verb}")
                new[applied.key] = (source, applied)
            self._reconcile(new, source)
            return lines

    def delete(self, path: Path) -> list[str]:
        doomed = read(path)
        with self._lock():
            stored = self.must_run()
            for found in doomed:
                if found.key not in stored:
                    raise MeshError(f"{path}: {found.key} is not applied")
            keys = {found.key for found in doomed}
            self._reconcile({k: v for k, v in stored.items() if k not in keys}, str(path))
            return [f"{found.key} deleted" for found in doomed]

    def scale(self, workload: str, replicas: int) -> None:
        with self._lock():
            stored = self.must_run()
            old = self.workload(workload)
            spec = old.spec.model_copy(update={"replicas": replicas})
            scaled = old.model_copy(update={"spec": spec})
            source = stored[old.key][0]
            self._reconcile({**stored, old.key: (source, scaled)}, source)

    def pods(self) -> list[PodStatus]:
        stored = self.must_run()
        running = self.running()
        statuses = []
        for pod in self._wanted(found for _, found in stored.values()):
            address, state = None, f"Dead: run 'make up{self._suffix()}'"
            if running.get(pod.name):
                with contextlib.suppress(OSError):
                    address, state = self.inbound_address(pod), "Running"
            statuses.append(
                PodStatus(pod.name, pod.workload, state, f"{address.ip}:{address.port}" if address else "-")
            )
        return statuses

    def objects(self) -> dict[str, tuple[str, Object]]:
        try:
            entries = json.loads((self.state / "objects.json").read_text())
            stored = [(e["source"], parse(json.dumps(e["object"]), e["source"])[0]) for e in entries]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, ManifestError):
            again = f"make down{self._suffix()}; make up{self._suffix()}"
            raise MeshError(
                f"what {self.state} says of the mesh is damaged: start afresh with '{again}'"
            ) from None
        return {found.key: (source, found) for source, found in stored}

    # --- the control plane ----------------------------------------------------------------------------

    def must_run(self) -> dict[str, tuple[str, Object]]:
        """Return the applied objects.

        :raises MeshError: the mesh is not running.
        """
        stored = self.objects()
        if not stored:
            raise MeshError(f"the {self.name} mesh is not running: start it with 'make up{self._suffix()}'")
        return stored

    def check_workload(self, name: str) -> None:
        """Check that something called ``name`` has logs.

        :raises MeshError: neither a workload nor the gateway is called so, or the mesh is not running.
        """
        self.must_run()
        if name != GATEWAY:
            self.workload(name)

    def dead_gateway(self) -> MeshError:
        """Return what to raise when the gateway does not run."""
        return MeshError(f"the ingress gateway is dead: start it again with 'make up{self._suffix()}'")

    def _suffix(self) -> str:
        return "" if self.name == "local" else f" MESH={self.name}"

    @contextlib.contextmanager
    def _lock(self) -> Iterator[Path]:
        """Let one command at a time change the mesh; yield the lock's path."""
        path, current = self.state.with_suffix(".lock"), False
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                # Whoever had it may have deleted it: then somebody else may hold a new one.
                with contextlib.suppress(FileNotFoundError):
                    current = os.path.samestat(os.fstat(lock.fileno()), path.stat())
                if current:
                    yield path
                    return

    def remove_everything(self) -> None:
        """End and delete all that belongs to the mesh, whatever state it is in."""
        self.stop_pods(self.running())
        shutil.rmtree(self.state, ignore_errors=True)

    def _wanted(self, objects: Iterable[Object]) -> list[Pod]:
        pods = [Pod(GATEWAY, GATEWAY)]
        for workload in of_kind(objects, Deployment):
            template = workload.spec.template.model_dump_json()
            name = f"{workload.metadata.name}-{hashlib.sha256(template.encode()).hexdigest()[:5]}"
            pods += [
                Pod(f"{name}-{i}", workload.metadata.name, workload) for i in range(workload.spec.replicas)
            ]
        return pods

    def _reconcile(self, stored: dict[str, tuple[str, Object]], source: str) -> None:
        """Make the mesh run what is ``stored``; if that fails, leave it as it was."""
        objects = [found for _, found in stored.values()]
        check(objects, source)
        for workload in of_kind(objects, Deployment):
            folder = ROOT / image(workload.container.image).folder
            if not (folder / "app.py").exists():
                field = f"Deployment {workload.metadata.name}: spec.template.spec.containers[0].image"
                raise ManifestError(f"{source}: {field}: no app.py in {_relative(folder)}/")
        wanted = self._wanted(objects)
        running = self.running()
        missing = [pod for pod in wanted if not running.get(pod.name)]
        objects_before = self.routes()
        before = {p.name: p.read_text() for p in self.xds.glob("*.json")}
        self.stop_pods(pod.name for pod in missing if pod.name in running)
        if not before:
            self._write_clusters([])
            self._write_routes(objects)
        try:
            self.start_pods(missing)
            self._publish(objects, wanted)
        except BaseException:
            self.stop_pods(pod.name for pod in missing)
            for name, text in before.items():
                self.write(name, text)
            raise
        self._write_text(self.state / "objects.json", json.dumps([
            {"source": s, "object": json.loads(o.model_dump_json(by_alias=True, exclude_unset=True))}
            for s, o in stored.values()
        ], indent=1))  # fmt: skip
        names = {pod.name for pod in wanted}
        gone = [name for name in running if name not in names]
        self._drain(gone, objects_before)
        self.stop_pods(gone)

    def _publish(self, objects: list[Object], pods: list[Pod]) -> None:
        """Give every proxy the new configuration: make before break, so that no request is lost."""
        endpoints = [Endpoint(p.labels, self.inbound_address(p)) for p in pods if p.deployment]
        new = clusters(objects, endpoints)
        names = {cluster["name"] for cluster in new}
        old = json.loads((self.xds / "clusters.json").read_text())["resources"]
        leaving = [c for c in old if c["name"] not in names]
        rejected = {pod.name: self._rejections(pod.name) for pod in pods}
        self._write_clusters(leaving + new)
        self._wait_for_proxies(pods, rejected)
        self._write_routes(objects)
        self._wait_for_proxies(pods, rejected)
        if leaving:
            self._write_clusters(new)
            self._wait_for_proxies(pods, rejected)

    def _write_clusters(self, clusters: list[Json]) -> None:
        self._write_resources("clusters.json", CLUSTER, clusters)

    def _write_routes(self, objects: list[Object]) -> None:
        self._write_resources("sidecar.json", ROUTES, [sidecar_routes(objects)])
        self._write_resources("gateway.json", ROUTES, [gateway_routes(objects)])

    def _write_resources(self, name: str, resource_type: str, resources: list[Json]) -> None:
        version = hashlib.sha256(json.dumps(resources).encode()).hexdigest()[:12]
        response = discovery_response(version, resource_type, resources)
        self.write(name, json.dumps(response, indent=1))

    def write(self, name: str, text: str) -> None:
        """Write a file of the proxies' configuration."""
        self._write_text(self.xds / name, text)

    @staticmethod
    def _write_text(path: Path, text: str) -> None:
        """Replace a file in one step, which is also what Envoy watches for."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(text)
        os.rename(temporary, path)

    def _wait_for_proxies(self, pods: list[Pod], rejected: dict[str, int], deadline: float = 10) -> None:
        """Wait until every proxy runs what the files say.

        :raises MeshError: a proxy rejected it, or does not answer in ``deadline`` seconds.
        """
        versions = {p.stem: json.loads(p.read_text())["version_info"] for p in self.xds.glob("*.json")}
        end = time.monotonic() + deadline
        for pod in pods:
            routes = "sidecar" if pod.deployment else "gateway"
            wanted = {"cluster_manager.cds": versions["clusters"], f".rds.{routes}": versions[routes]}
            while not self._runs(pod.name, wanted):
                if self._rejections(pod.name) > rejected[pod.name]:
                    said = re.findall(r"config update \w+: (.*)", self.proxy_log(pod.name))
                    reason = said[-1] if said else f"see the log of {pod.name}"
                    raise MeshError(
                        f"Envoy rejected the configuration ({reason}); the mesh runs on as it was"
                    )
                if time.monotonic() > end:
                    raise MeshError(f"the proxy of {pod.name} did not take the configuration in {deadline} s")
                time.sleep(0.01)

    def _runs(self, pod: str, wanted: dict[str, str]) -> bool:
        """Say whether a pod's proxy runs the versions ``wanted`` (end of a statistic's name → version)."""
        running = self._statistics(pod, "version_text")
        return all(
            any(name.endswith(f"{end}.version_text") and value == f'"{version}"' for name, value in running)
            for end, version in wanted.items()
        )

    def _rejections(self, pod: str) -> int:
        """Return how many configurations a pod's proxy has rejected since it started."""
        statistics = self._statistics(pod, "update_(rejected|failure)")
        return sum(int(value) for _, value in statistics)

    def _statistics(self, pod: str, name: str) -> list[tuple[str, str]]:
        try:
            text = self.admin(pod, f"/stats?filter={name}")
        except OSError:
            return []
        return [(line.partition(": ")[0], line.partition(": ")[2]) for line in text.splitlines()]

    def _drain(self, pods: list[str], objects: list[Object]) -> None:
        """Wait until pods that get no new requests have answered those they have, or their time is up."""
        grace = {
            d.metadata.name: d.spec.template.spec.termination_grace_period_seconds
            for d in of_kind(objects, Deployment)
        }
        start = time.monotonic()
        for pod in pods:
            while self._active(pod) and time.monotonic() < start + grace.get(workload_of(pod), 30):
                self.progress(f"{pod} answers what it has begun")
                time.sleep(0.05)

    def in_flight(self, workloads: Iterable[str]) -> int:
        wanted = set(workloads)
        return sum(self._active(pod) for pod in self.running() if workload_of(pod) in wanted)

    def _active(self, pod: str) -> int:
        """Return how many requests a pod's sidecar has begun and not yet ended."""
        return sum(int(value) for _, value in self._statistics(pod, "http.inbound.downstream_rq_active"))


def _must_be_free(port: int) -> None:
    remedy = f"stop the program that has it, or choose another port, for example 'make up PORT={port + 1}'"
    check_port(LOOPBACK, port, remedy)


def _first_state() -> dict[str, tuple[str, Object]]:
    return {o.key: (_relative(path), o) for path in [*WORKLOADS, *ISTIO] for o in read(path)}


def workload_of(pod: str) -> str:
    """Return the workload that a pod's name tells."""
    return pod if pod == GATEWAY else pod.rsplit("-", 2)[0]


def is_whole(pod: str, containers: set[str]) -> bool:
    """Say whether ``containers`` are all that a pod has."""
    return containers == ({"istio-proxy"} if pod == GATEWAY else {"app", "istio-proxy"})


def not_ready(container: str, pod: str, ended: bool, log: str) -> MeshError:
    """Return what to raise when a container has ended, or takes too long to become ready."""
    said = [line for line in log.splitlines() if any(map(str.isalnum, line))]
    last = said[-1].strip() if said else "(nothing)"
    return MeshError(f"{container} of {pod} {'ended' if ended else 'is not ready'}; its last words: {last}")


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
