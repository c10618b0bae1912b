"""The control plane: it keeps what is applied, and makes the pods and their proxies run it."""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from harness import Json
from harness.manifests.base import Object
from harness.manifests.check import check
from harness.manifests.istio import TrafficExtension
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import NAMESPACE, of_kind
from harness.manifests.read import ManifestError, to_document, to_object
from harness.meshes.images import image
from harness.meshes.mesh import ROOT, MeshError, Objects, replace_file, wait_until
from harness.meshes.pods import EnvoyPod, pods_of
from harness.meshes.runtime import Runtime
from harness.rendering.bootstrap import EXTENSION, extension, extension_file
from harness.rendering.clusters import Endpoint, clusters
from harness.rendering.routes import gateway_routes, sidecar_routes
from harness.rendering.values import typed

CLUSTER = "config.cluster.v3.Cluster"
ROUTES = "config.route.v3.RouteConfiguration"
FILTER = "config.core.v3.TypedExtensionConfig"


class ObjectStore:
    """The applied objects, in a file, the oldest first."""

    def __init__(self, path: Path, again: str) -> None:
        """Keep them in ``path``; ``again`` is the command to type if it is damaged."""
        self._path, self._again = path, again

    def objects(self) -> Objects:
        """Return the objects; none before any was stored.

        :raises MeshError: the file is damaged.
        """
        try:
            entries = self._entries().items()
            return {key: (e["source"], to_object(e["object"], e["source"])) for key, e in entries}
        except (ValueError, KeyError, TypeError, AttributeError, ManifestError):
            raise MeshError(
                f"what {self._path.parent} says of the mesh is damaged: start afresh with '{self._again}'"
            ) from None

    def documents(self) -> Iterator[Json]:
        """Yield each object as an API server gives it, with what that adds to its metadata."""
        for entry in self._entries().values():
            added = {name: entry[name] for name in ("generation", "creationTimestamp")}
            metadata = entry["object"]["metadata"] | {"namespace": NAMESPACE} | added
            yield entry["object"] | {"metadata": metadata}

    def save(self, objects: Objects) -> None:
        """Store objects in place of all before; as in a cluster, ``generation`` tells what is new."""
        known, now = self._entries(), datetime.now(UTC).isoformat(timespec="microseconds")
        entries = {}
        for key, (source, found) in objects.items():
            old, document = known.get(key, {"creationTimestamp": now}), to_document(found)
            generation = old["generation"] if old.get("object") == document else time.time_ns()
            entries[key] = {**old, "source": source, "object": document, "generation": generation}
        replace_file(self._path, json.dumps(entries, indent=1))

    def _entries(self) -> dict[str, Json]:
        entries: dict[str, Json] = {}
        with contextlib.suppress(FileNotFoundError):
            entries = json.loads(self._path.read_text())
        return entries


class ControlPlane:
    """Makes a runtime run what is applied, and its proxies route by it."""

    def __init__(self, runtime: Runtime, store: ObjectStore, code: Iterable[str]) -> None:
        """Keep what is applied in ``store``.

        :param code: the files of which a folder must have one, so that it can be run.
        """
        self._runtime, self._store, self._code = runtime, store, code

    def reconcile(self, stored: Objects, mended: set[str] | None = None) -> None:
        """Make the mesh run what is ``stored``; if that fails, leave it as it was.

        :param mended: the workloads of which dead pods are started again; None: all. A pod that does not
            start must not keep a route from being applied.
        :raises HarnessError: it cannot run, a proxy rejects it, or one does not answer.
        """
        check(stored.values())
        _must_have_code(stored.values(), self._code)
        objects = [found for _, found in stored.values()]
        before = [found for _, found in self._store.objects().values()]
        wanted, known, running = pods_of(objects), pods_of(before), self._runtime.running()
        names = {pod.name for pod in known}
        dead = [pod for pod in wanted if not pod.is_whole(running)]
        missing = [p for p in dead if mended is None or p.workload in mended or p.name not in names]
        self._runtime.stop_pods(pod.name for pod in missing if pod.name in running)
        alive = [pod for pod in wanted if pod not in dead or pod in missing]
        late = sorted(self._roll_out(objects, before, missing, alive))
        self._store.save(stored)
        gone = running.keys() - {pod.name for pod in wanted}
        self._runtime.drain(pod for pod in known if pod.name in gone)
        self._runtime.stop_pods(gone)
        if late:
            raise MeshError(f"it is applied, but the proxy of {' and '.join(late)} does not answer")

    def _roll_out(
        self, objects: list[Object], before: list[Object], missing: list[EnvoyPod], alive: list[EnvoyPod]
    ) -> set[str]:
        """Start what is missing, and configure all that lives; return the pods whose proxies do not answer.

        If that fails, nothing that was missing runs, and proxies are configured as before.
        """
        files = self._files()
        try:
            if not files:
                self._write("clusters.json", CLUSTER, [])
                self.write_routes(before)
            # A proxy reads its workload's file at its start; those that run get nothing new by it.
            self._write_extensions([*of_kind(objects, Deployment), *of_kind(before, TrafficExtension)])
            self._runtime.start_pods(missing)
            return self._publish(objects, [pod for pod in alive if pod.proxied])
        except BaseException:
            self._runtime.stop_pods(pod.name for pod in missing)
            for name, text in files.items():
                self._runtime.write(name, text)
            raise

    def _publish(self, objects: list[Object], pods: list[EnvoyPod]) -> set[str]:
        """Give every proxy the new configuration: make before break, so that no request is lost."""
        endpoints, late = [], set()
        for pod in pods:
            try:
                address = self._runtime.address(pod)
            except OSError:
                late.add(pod.name)  # nothing is sent there, as in a cluster to a pod that is not ready
                continue
            if pod.deployment:
                endpoints.append(Endpoint(pod.labels, address, pod.deployment.container))
        new = clusters(objects, endpoints)
        names = {cluster["name"] for cluster in new}
        old = json.loads(self._files()["clusters.json"])["resources"]
        leaving = [cluster for cluster in old if cluster["name"] not in names]
        rejected = {pod.name: self._rejections(pod.name) for pod in pods if pod.name not in late}
        for step in (
            partial(self._write, "clusters.json", CLUSTER, leaving + new),
            partial(self.write_routes, objects),
            partial(self._write, "clusters.json", CLUSTER, new),
        ):
            step()
            late |= self._late([pod for pod in pods if pod.name not in late], rejected)
        return late

    def _late(self, pods: list[EnvoyPod], rejected: dict[str, int]) -> set[str]:
        """Wait until proxies run what the files say; return the pods of those that do not answer."""
        versions = {name: json.loads(text)["version_info"] for name, text in self._files().items()}
        end, late = time.monotonic() + 10, set()
        for pod in pods:
            has_taken = partial(self._has_taken, pod, versions, rejected[pod.name])
            if not wait_until(has_taken, end - time.monotonic(), pause=0.01):
                late.add(pod.name)
        return late

    def _has_taken(self, pod: EnvoyPod, versions: dict[str, str], rejected: int) -> bool:
        """Say whether a pod's proxy runs the files' ``versions``.

        :param rejected: how many it had rejected before.
        :raises MeshError: it rejects them.
        """
        routes = "sidecar" if pod.deployment else "gateway"
        wanted = {"cluster_manager.cds": "clusters.json", f".rds.{routes}": f"{routes}.json"}
        if pod.deployment:
            wanted[f".{EXTENSION}"] = extension_file(pod.workload)
        running = self._runtime.statistics(pod.name, "version_text")
        if all(
            any(
                name.endswith(f"{end}.version_text") and version == f'"{versions[file]}"'
                for name, version in running
            )
            for end, file in wanted.items()
        ):
            return True
        if self._rejections(pod.name) > rejected:
            said = re.findall(r"config update \w+: (.*)", self._runtime.log(pod.name, "istio-proxy"))
            reason = said[-1] if said else f"see the log of {pod.name}"
            raise MeshError(f"Envoy rejected the configuration ({reason}); the mesh runs on as it was")
        return False

    def _rejections(self, pod: str) -> int:
        """Return how many configurations a pod's proxy has rejected since it started."""
        return sum(int(count) for _, count in self._runtime.statistics(pod, "update_(rejected|failure)"))

    # --- the files that proxies watch -----------------------------------------------------------------

    def _files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self._runtime.xds.glob("*.json")}

    def write_routes(self, objects: list[Object]) -> None:
        self._write("sidecar.json", ROUTES, [sidecar_routes(objects)])
        self._write("gateway.json", ROUTES, [gateway_routes(objects)])
        self._write_extensions(objects)

    def _write_extensions(self, objects: list[Object]) -> None:
        for workload in of_kind(objects, Deployment):
            self._write(extension_file(workload.metadata.name), FILTER, [extension(objects, workload)])

    def _write(self, name: str, resource_type: str, resources: list[Json]) -> None:
        """Write a file, if it changes; its version comes back in the statistics of proxies that run it."""
        version = hashlib.sha256(json.dumps(resources).encode()).hexdigest()[:12]
        found = {"version_info": version, "resources": [typed(resource_type, **each) for each in resources]}
        text = json.dumps(found, indent=1)
        if self._files().get(name) != text:
            self._runtime.write(name, text)


def _must_have_code(given: Iterable[tuple[str, Object]], code: Iterable[str]) -> None:
    """Raise a ManifestError for an image that is not this project's, so that nobody can build it."""
    for source, workload in given:
        if isinstance(workload, Deployment):
            folder = ROOT / image(workload.container.image_name).folder
            if not any((folder / name).exists() for name in code):
                field = f"Deployment {workload.metadata.name}: spec.template.spec.containers[0].image"
                problem = f"no app.py in {relative(folder)}/: only what is built from a folder here runs here"
                raise ManifestError(f"{source}: {field}: {problem}")


def relative(path: Path | str) -> str:
    """Return a path as it is told: from the project's folder; ``-`` is standard input."""
    if str(path) == "-":
        return "-"
    whole = Path(os.path.abspath(path))
    return str(whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole)
