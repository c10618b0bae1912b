"""The control plane of the meshes whose Envoys the harness configures itself: local, and containers."""

import contextlib
import json
import os
import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from harness import Json
from harness.manifests.base import Object
from harness.manifests.check import check
from harness.manifests.istio import TrafficExtension
from harness.manifests.kubernetes import Deployment, Secret
from harness.manifests.lookup import NAMESPACE, of_kind
from harness.manifests.read import ManifestError, read, read_each, to_document, to_object
from harness.meshes.images import image
from harness.meshes.lock import lock, undisturbed
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
from harness.meshes.pods import EnvoyPod, pods_of, workload_of
from harness.meshes.scene import Pod, Scene
from harness.meshes.xds import Proxies, replace_file


class EnvoyMesh(Mesh, Proxies):
    """A mesh of Envoys that the harness configures itself, by files that they watch.

    All state lives in one folder: the applied objects, the proxies' configuration, the pods' logs.
    """

    still = 0.3
    quiet = 0.5
    manifests = (*WORKLOADS, *ISTIO)
    """What it starts with."""
    code: tuple[str, ...] = ("app.py",)
    """What it runs: folders that have one of these files."""

    def __init__(self, state: Path, port: int | None = None, progress: Progress = quietly) -> None:
        """Keep state in the folder ``state``; ``port`` is the gateway's when the mesh is started (8080)."""
        self.state = self.home = state.resolve()
        self.xds = self.state / "xds"
        self.progress = progress
        self._port = port

    # --- what a kind of mesh must bring ---------------------------------------------------------------

    @abstractmethod
    def running(self) -> dict[str, set[str]]:
        """Return the pods that are there: name → those of their containers that run."""

    @abstractmethod
    def start_pod(self, pod: EnvoyPod) -> None:
        """Start a pod and wait until it is ready."""

    @abstractmethod
    def stop_pods(self, names: Iterable[str]) -> None:
        """End all processes of pods, those of half-dead ones too, and wait until they are gone."""

    @abstractmethod
    def gateway_address(self) -> str:
        """Return host and port at which this machine reaches the gateway.

        :raises OSError: it does not run.
        """

    @abstractmethod
    def logs_of(self, workload: str) -> Iterator[tuple[str, str]]:
        """Yield (container, line) for all that a workload's pods logged."""

    @abstractmethod
    def has_ended(self, pod: str, container: str) -> bool:
        """Say whether a container that was started runs no more."""

    def start_pods(self, pods: list[EnvoyPod]) -> None:
        """Start pods and wait until they are ready."""

        def start(pod: EnvoyPod) -> None:
            self.progress(f"starting {pod.name}")
            self.start_pod(pod)

        with ThreadPoolExecutor(5) as pool:
            # The gateway first: by its container everybody's configuration is written.
            for group in ([p for p in pods if not p.deployment], [p for p in pods if p.deployment]):
                list(pool.map(start, group))

    def wait_for(self, pod: str, container: str, ask: Callable[[], object]) -> None:
        """Wait until a container is ready: until then ``ask`` raises an OSError, or a KeyError.

        :raises MeshError: it has ended, or takes too long.
        """
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError, KeyError):
                ask()
                return
            ended = self.has_ended(pod, container)
            if ended or time.monotonic() > end:
                log = self.container_log(pod, container).splitlines()
                said = [line.strip() for line in log if any(map(str.isalnum, line))] or ["(nothing)"]
                what = "ended" if ended else "is not ready"
                raise MeshError(f"{container} of {pod} {what}; its last words: {said[-1]}")
            time.sleep(0.02)

    @property
    def port(self) -> int:
        """The gateway's, on 127.0.0.1, since the mesh was started."""
        return int((self.state / "port").read_text())

    # --- commands -------------------------------------------------------------------------------------

    def up(self) -> None:
        with lock(self.state):
            running = self.running()
            try:
                stored = self.objects() if running else {}
            except MeshError:
                stored = {}  # damaged: start afresh
            if stored:
                if self._port not in (None, 0, self.port):
                    again = f"leave out PORT={self._port}, or 'make down{self._suffix()}' first"
                    raise MeshError(f"the {self.name} mesh runs on port {self.port}: {again}")
                if GATEWAY not in running:
                    _must_be_free(self.port)
                self._reconcile(stored)
                return
            self.remove_everything()
            port = 8080 if self._port is None else self._port
            _must_be_free(port)
            try:
                replace_file(self.state / "port", str(port))
                self._reconcile(self._first_state())
            except BaseException:
                self.remove_everything()
                raise

    def down(self) -> None:
        with lock(self.state) as held:
            self.remove_everything()
            held.unlink()
        with contextlib.suppress(OSError):
            self.state.parent.rmdir()

    def reset(self) -> None:
        """Return a running mesh to the state in which it was started."""
        with lock(self.state):
            self._reconcile(self._first_state())

    def apply(self, *paths: Path) -> list[str]:
        given = read_each(*paths)
        with lock(self.state):
            stored = self.must_run()
            lines = []
            new = dict(stored)
            for source, applied in given:
                old = new.get(applied.key)
                verb = "created" if not old else "unchanged" if old[1] == applied else "configured"
                lines.append(f"{applied.key} {verb}")
                new[applied.key] = (_relative(Path(source)), applied)
            workloads = {d.metadata.name for d in of_kind((found for _, found in given), Deployment)}
            self._reconcile(new, workloads)
            return lines

    def put(self, document: Json, hurry: Callable[[], bool] = bool) -> list[str]:
        path = self.state / "put.json"  # not YAML, in which some texts would be numbers, or truths
        path.write_text(json.dumps(document, indent=1))
        return self.apply(path)

    def delete(self, *paths: Path) -> list[str]:
        given = read_each(*paths)
        with lock(self.state):
            stored = self.must_run()
            for source, found in given:
                if found.key not in stored:
                    raise MeshError(f"{source}: {found.key} is not applied")
            keys = dict.fromkeys(found.key for _, found in given)
            self._reconcile({k: v for k, v in stored.items() if k not in keys}, set())
            return [f"{key} deleted" for key in keys]

    def scale(self, workload: str, replicas: int) -> None:
        with lock(self.state):
            stored = self.must_run()
            old = self.workload(workload)
            spec = old.spec.model_copy(update={"replicas": replicas})
            scaled = old.model_copy(update={"spec": spec})
            self._reconcile({**stored, old.key: (stored[old.key][0], scaled)}, {workload})

    def pods(self) -> list[PodStatus]:
        how = {True: "Running", False: f"Dead: run 'make up{self._suffix()}'"}
        return [
            PodStatus(pod.name, pod.workload, how[pod.ready], pod.addresses[0] if pod.ready else "-")
            for pod in self._pods()
        ]

    def url(self) -> str:
        self.must_run()
        try:
            return f"http://{self.gateway_address()}/customer"
        except OSError:
            again = f"start it again with 'make up{self._suffix()}'"
            raise MeshError(f"the ingress gateway is dead: {again}") from None

    def logs(self, workload: str) -> Iterator[tuple[str, str]]:
        self.must_run()
        if workload != GATEWAY:
            self.workload(workload)
        return self.logs_of(workload)

    def scene(self, namespace: str, callers: Iterable[str] = ()) -> Scene:
        if namespace != NAMESPACE:
            raise MeshError(
                f"the {self.name} mesh is one namespace, {NAMESPACE}: choose another with NAMESPACE="
            )
        pods = tuple(pod for pod in self._pods() if pod.proxy)
        objects = []
        for entry in self._entries():
            added = {"namespace": NAMESPACE, **{k: entry[k] for k in ("generation", "creationTimestamp")}}
            metadata = {**entry["object"]["metadata"], **added}
            objects.append({**entry["object"], "metadata": metadata})
        return Scene(NAMESPACE, tuple(objects), pods)

    def _pods(self) -> Iterator[Pod]:
        """Yield the pods that there should be, as the proof knows them."""
        wanted, running = pods_of(found for _, found in self.must_run().values()), self.running()
        for pod in wanted:
            addresses: tuple[str, ...] = ()
            with contextlib.suppress(OSError):
                found = self.inbound_address(pod)
                addresses = (f"{found.ip}:{found.port}",)
            yield Pod(
                pod.name, NAMESPACE, pod.workload, pod.labels, addresses, proxy=pod.proxied,
                ready=pod.is_whole(running) and bool(addresses), gateway=pod.deployment is None,
            )  # fmt: skip

    def objects(self) -> dict[str, tuple[str, Object]]:
        try:
            stored = [(e["source"], to_object(e["object"], e["source"])) for e in self._entries()]
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

    def _suffix(self) -> str:
        return "" if self.name == "local" else f" MESH={self.name}"

    @undisturbed()
    def remove_everything(self) -> None:
        """End and delete all that belongs to the mesh, whatever state it is in."""
        self.stop_pods(self.running())
        shutil.rmtree(self.state, ignore_errors=True)

    def _reconcile(self, stored: dict[str, tuple[str, Object]], mended: set[str] | None = None) -> None:
        """Make the mesh run what is ``stored``; if that fails, leave it as it was.

        :param mended: the workloads of which dead pods are started again; None: all. A pod that does not
            start must not keep a route from being applied.
        """
        check(stored.values())
        _must_have_code(stored.values(), self.code)
        objects = [found for _, found in stored.values()]
        objects_before = self.routes()
        known = {pod.name for pod in pods_of(objects_before)}
        wanted, running = pods_of(objects), self.running()
        dead = [pod for pod in wanted if not pod.is_whole(running)]
        missing = [p for p in dead if mended is None or p.workload in mended or p.name not in known]
        files = {p.name: p.read_text() for p in self.xds.glob("*.json")}
        self.stop_pods(pod.name for pod in missing if pod.name in running)
        if not files:
            self.write_clusters([])
            self.write_routes(objects)
        try:
            accepted = of_kind(objects_before, TrafficExtension)
            self.write_extensions([*of_kind(objects, Deployment), *accepted])
            self.start_pods(missing)
            alive = [pod for pod in wanted if pod not in dead or pod in missing]
            late = self.publish(objects, alive)
        except BaseException:
            self.stop_pods(pod.name for pod in missing)
            for name, text in files.items():
                self.write(name, text)
            raise
        self._store(stored)
        names = {pod.name for pod in wanted}
        gone = [name for name in running if name not in names]
        self._drain(gone, objects_before)
        self.stop_pods(gone)
        if late:
            raise MeshError(f"it is applied, but the proxy of {' and '.join(late)} does not answer")

    def _first_state(self) -> dict[str, tuple[str, Object]]:
        return {o.key: (_relative(path), o) for path in self.manifests for o in read(path)}

    def _store(self, stored: dict[str, tuple[str, Object]]) -> None:
        """Write down what is applied; as in a cluster, ``generation`` tells what was applied anew."""
        known, entries = {}, []
        with contextlib.suppress(FileNotFoundError):
            known = {entry["key"]: entry for entry in self._entries()}
        for key, (source, found) in stored.items():
            old, document = known.get(key, {}), to_document(found)
            generation = old["generation"] if old.get("object") == document else time.time_ns()
            created = old.get("creationTimestamp") or datetime.now(UTC).isoformat(timespec="microseconds")
            entries.append(
                {"key": key, "source": source, "object": document, "generation": generation,
                 "creationTimestamp": created}
            )  # fmt: skip
        replace_file(self.state / "objects.json", json.dumps(entries, indent=1))

    def _entries(self) -> list[Json]:
        """Return what ``_store`` wrote."""
        found: list[Json] = json.loads((self.state / "objects.json").read_text())
        return found

    def _drain(self, pods: list[str], objects: list[Object]) -> None:
        """Wait until pods that get no new requests have answered those they have, or their time is up."""
        grace = {
            d.metadata.name: d.spec.template.spec.termination_grace_period_seconds
            for d in of_kind(objects, Deployment)
        }
        start = time.monotonic()
        for pod in pods:
            while self.active(pod) and time.monotonic() < start + grace.get(workload_of(pod), 30):
                self.progress(f"{pod} answers what it has begun")
                time.sleep(0.05)

    def in_flight(self, pods: Iterable[Pod]) -> int:
        running = self.running()
        return sum(self.active(pod.name) for pod in pods if pod.name in running)

    def secrets(self, names: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
        return {s.metadata.name: s.values for s in of_kind(self.routes(), Secret) if s.metadata.name in names}

    def ask_proxy(self, pod: Pod, query: str) -> str | None:
        with contextlib.suppress(OSError):
            return self.admin(pod.name, f"/{query}")
        return None


def _must_be_free(port: int) -> None:
    remedy = f"stop the program that has it, or choose another port, for example 'make up PORT={port + 1}'"
    check_port(LOOPBACK, port, remedy)


def _must_have_code(given: Iterable[tuple[str, Object]], code: Iterable[str]) -> None:
    """Raise a ManifestError for an image that is not this project's, so that nobody can build it."""
    for source, workload in given:
        if isinstance(workload, Deployment):
            folder = ROOT / image(workload.container.image_name).folder
            if not any((folder / name).exists() for name in code):
                field = f"Deployment {workload.metadata.name}: spec.template.spec.containers[0].image"
                only = "only what is built from a folder here runs here"
                raise ManifestError(f"{source}: {field}: no app.py in {_relative(folder)}/: {only}")


def _relative(path: Path) -> str:
    path = Path(os.path.abspath(path)) if str(path) != "-" else path
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
