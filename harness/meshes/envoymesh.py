"""The meshes whose Envoys the harness configures itself: local, and containers."""

import contextlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from harness import Json
from harness.manifests.kubernetes import Deployment, Secret
from harness.manifests.lookup import NAMESPACE, of_kind
from harness.manifests.read import read_each
from harness.meshes.controlplane import ControlPlane, ObjectStore, relative
from harness.meshes.lock import lock
from harness.meshes.mesh import (
    GATEWAY,
    ISTIO,
    LOOPBACK,
    WORKLOADS,
    Mesh,
    MeshError,
    Objects,
    PodStatus,
    check_port,
    replace_file,
)
from harness.meshes.pods import EnvoyPod, pods_of
from harness.meshes.runtime import Runtime
from harness.meshes.scene import Pod, Scene


class EnvoyMesh(Mesh):
    """A mesh of Envoys that the harness configures itself, by files that they watch.

    All state lives in one folder: the applied objects, the proxies' configuration, the pods' logs.
    """

    still = 0.3
    quiet = 0.5
    manifests = (*WORKLOADS, *ISTIO)
    """What it starts with."""
    code: tuple[str, ...] = ("app.py",)
    """What it runs: folders that have one of these files."""

    def __init__(self, runtime: Runtime, port: int | None) -> None:
        """Run pods by ``runtime``; ``port`` is the gateway's when the mesh is started (8080)."""
        self.runtime = runtime
        self.state = self.home = runtime.state
        self._port = port
        self._suffix = "" if self.name == "local" else f" MESH={self.name}"
        again = f"make down{self._suffix}; make up{self._suffix}"
        self._store = ObjectStore(self.state / "objects.json", again)
        self.control_plane = ControlPlane(runtime, self._store, self.code)

    # --- commands -------------------------------------------------------------------------------------

    def up(self) -> None:
        with lock(self.state):
            running = self.runtime.running()
            try:
                stored = self.objects() if running else {}
            except MeshError:
                stored = {}  # damaged: start afresh
            if not stored:
                self._start()
                return
            port = self.runtime.port
            if self._port not in (None, 0, port):
                again = f"leave out PORT={self._port}, or 'make down{self._suffix}' first"
                raise MeshError(f"the {self.name} mesh runs on port {port}: {again}")
            if GATEWAY not in running:
                _must_be_free(port)
            self.control_plane.reconcile(stored)

    def _start(self) -> None:
        self.runtime.remove_everything()
        port = 8080 if self._port is None else self._port
        _must_be_free(port)
        try:
            replace_file(self.state / "port", str(port))
            self.control_plane.reconcile(self._first_objects())
        except BaseException:
            self.runtime.remove_everything()
            raise

    def down(self) -> None:
        with lock(self.state) as held:
            self.runtime.remove_everything()
            held.unlink()
        with contextlib.suppress(OSError):
            self.state.parent.rmdir()

    def reset(self) -> None:
        """Return a running mesh to the state in which it was started."""
        with lock(self.state):
            self.control_plane.reconcile(self._first_objects())

    def _first_objects(self) -> Objects:
        return {found.key: (relative(source), found) for source, found in read_each(*self.manifests)}

    def apply(self, *paths: Path) -> list[str]:
        given = read_each(*paths)
        with lock(self.state):
            stored, lines = self.must_run(), []
            for source, applied in given:
                old = stored.get(applied.key)
                verb = "created" if not old else "unchanged" if old[1] == applied else "configured"
                lines.append(f"{applied.key} {verb}")
                stored[applied.key] = (relative(source), applied)
            workloads = {d.metadata.name for d in of_kind((found for _, found in given), Deployment)}
            self.control_plane.reconcile(stored, workloads)
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
            self.control_plane.reconcile({k: v for k, v in stored.items() if k not in keys}, set())
            return [f"{key} deleted" for key in keys]

    def scale(self, workload: str, replicas: int) -> None:
        with lock(self.state):
            stored = self.must_run()
            old = self.workload(workload)
            spec = old.spec.model_copy(update={"replicas": replicas})
            scaled = old.model_copy(update={"spec": spec})
            self.control_plane.reconcile({**stored, old.key: (stored[old.key][0], scaled)}, {workload})

    # --- what is applied, and what runs ---------------------------------------------------------------

    def objects(self) -> Objects:
        return self._store.objects()

    def must_run(self) -> Objects:
        """Return the applied objects.

        :raises MeshError: the mesh is not running.
        """
        stored = self.objects()
        if not stored:
            raise MeshError(f"the {self.name} mesh is not running: start it with 'make up{self._suffix}'")
        return stored

    def pods(self) -> list[PodStatus]:
        how = {True: "Running", False: f"Dead: run 'make up{self._suffix}'"}
        return [
            PodStatus(pod.name, pod.workload, how[pod.ready], pod.addresses[0] if pod.ready else "-")
            for pod in self._pods()
        ]

    def scene(self, namespace: str, callers: Iterable[str] = ()) -> Scene:
        if namespace != NAMESPACE:
            raise MeshError(
                f"the {self.name} mesh is one namespace, {NAMESPACE}: choose another with NAMESPACE="
            )
        pods = tuple(pod for pod in self._pods() if pod.proxy)
        return Scene(NAMESPACE, tuple(self._store.documents()), pods)

    def _pods(self) -> Iterator[Pod]:
        return self.runtime.pods(pods_of(found for _, found in self.must_run().values()))

    def url(self) -> str:
        self.must_run()
        try:
            return f"http://{self.runtime.address(EnvoyPod(GATEWAY, GATEWAY))}/customer"
        except OSError:
            again = f"start it again with 'make up{self._suffix}'"
            raise MeshError(f"the ingress gateway is dead: {again}") from None

    def logs(self, workload: str) -> Iterator[tuple[str, str]]:
        self.must_run()
        if workload != GATEWAY:
            self.workload(workload)
        return self.logs_of(workload)

    @abstractmethod
    def logs_of(self, workload: str) -> Iterator[tuple[str, str]]:
        """Yield (container, line) for all that a workload's pods logged."""

    def secrets(self, names: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
        return {s.metadata.name: s.values for s in of_kind(self.routes(), Secret) if s.metadata.name in names}

    def ask_proxy(self, pod: Pod, query: str) -> str | None:
        with contextlib.suppress(OSError):
            return self.runtime.admin(pod.name, f"/{query}")
        return None

    def in_flight(self, pods: Iterable[Pod]) -> int:
        return sum(self.runtime.active(pod.name) for pod in pods)


def _must_be_free(port: int) -> None:
    remedy = f"stop the program that has it, or choose another port, for example 'make up PORT={port + 1}'"
    check_port(LOOPBACK, port, remedy)
