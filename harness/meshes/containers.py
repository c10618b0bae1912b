"""The container mesh: the images that go to a cluster, locked in as a cluster would, beside real Envoys.

A pod is two containers that share a network namespace.
"""

import contextlib
import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import docker.errors
from docker.models.containers import Container

from harness import Json
from harness.manifests.podspec import Container as App
from harness.meshes import engine
from harness.meshes.engine import INBOUND, INGRESS, LABEL, STATUS, XDS, Images
from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.lock import undisturbed
from harness.meshes.logs import Stream, StreamFollower
from harness.meshes.mesh import (
    GATEWAY,
    ISTIO,
    LOOPBACK,
    WITH_STORE,
    LogFollower,
    MeshError,
    Progress,
    get,
    quietly,
)
from harness.meshes.pods import EnvoyPod, pods_of, workload_of
from harness.meshes.runtime import Runtime
from harness.meshes.scene import Pod
from harness.meshes.stores import psql, rows_of
from harness.rendering.bootstrap import READINESS
from harness.rendering.values import Address


class Containers(Runtime):
    """Runs pods as containers of the engine that DOCKER_HOST, or Docker's context, names."""

    def __init__(self, state: Path, progress: Progress) -> None:
        super().__init__(state, progress)
        self.id = f"{LABEL}-{hashlib.sha256(str(self.state).encode()).hexdigest()[:8]}"
        """The name of the mesh's network, and of the volume of the files that proxies watch."""
        self._ours = {f"{LABEL}.mesh": self.id}
        self.engine = engine.connect()
        self.images = Images(self.engine, progress)

    @cached_property
    def _limits_cpu(self) -> bool:
        """Whether the engine can: a rootless one may not be allowed to."""
        return bool(self.engine.info().get("CpuCfsQuota"))

    def containers(self) -> Iterator[tuple[str, str, Container]]:
        """Yield (pod, container, container object) for each container of this mesh, running or not."""
        ours = {"label": f"{LABEL}.mesh={self.id}"}
        # One that goes while they are listed is no error.
        for found in self.engine.containers.list(all=True, filters=ours, ignore_removed=True):
            yield found.labels[f"{LABEL}.pod"], found.labels[f"{LABEL}.container"], found

    def container_statuses(self) -> Iterator[tuple[str, str, bool]]:
        return ((pod, name, each.status == "running") for pod, name, each in self.containers())

    # --- starting and stopping ------------------------------------------------------------------------

    def start_pods(self, pods: list[EnvoyPod]) -> None:
        if not pods:
            return
        names = {"envoy", *(pod.deployment.container.image_name for pod in pods if pod.deployment)}
        images = {name: self.images.id(name) for name in sorted(names)}
        if not self.engine.networks.list(names=[self.id]):
            self.engine.networks.create(self.id, driver="bridge", labels=self._ours)
            self.engine.volumes.create(self.id, labels=self._ours)
        self.start_each(pods, partial(self._start_pod, images))

    def _start_pod(self, images: dict[str, str], pod: EnvoyPod) -> None:
        self.progress(f"starting {pod.name}")
        if pod.proxied:
            self._start_proxy(pod, images["envoy"])
        if pod.deployment:
            start = self._start_beside_proxy if pod.proxied else self._start_alone
            start(pod, pod.deployment.container, images[pod.deployment.container.image_name])

    def _start_proxy(self, pod: EnvoyPod, image: str) -> None:
        proxy = self._create(pod, "istio-proxy", image, engine.proxy(pod, self.id, self.port))
        if not pod.deployment:
            proxy.put_archive(XDS, _tar({p.name: p.read_bytes() for p in self.xds.glob("*.json")}))
        proxy.start()
        self.wait_for(pod.name, "istio-proxy", partial(self.admin, pod.name, "/stats?filter=server.live"))

    def _start_beside_proxy(self, pod: EnvoyPod, app: App, image: str) -> None:
        settings = engine.app_beside_proxy(pod, self.container(pod.name).id)
        self._create(pod, "app", image, settings).start()
        if app.readiness_path:
            self.wait_for(pod.name, "app", partial(self.admin, pod.name, READINESS))

    def _start_alone(self, pod: EnvoyPod, app: App, image: str) -> None:
        """Start a pod without a proxy, which others reach by the names of its Services."""
        settings = engine.app_alone(pod, self.id)
        for name in settings["volumes"]:
            self.engine.volumes.create(name, labels=self._ours)
        known_as = self.engine.api.create_endpoint_config(aliases=list(pod.hosts))
        self._create(pod, "app", image, {**settings, "networking_config": {self.id: known_as}}).start()
        if command := app.readiness_probe.exec.command:
            self.wait_for(pod.name, "app", partial(self.run, pod.name, "app", command))

    def _create(self, pod: EnvoyPod, name: str, image: str, settings: Json) -> Container:
        if not self._limits_cpu:
            settings.pop("nano_cpus")
        return self.engine.containers.create(
            image, name=f"{self.id}-{pod.name}-{name}", detach=True,
            labels={**self._ours, f"{LABEL}.pod": pod.name, f"{LABEL}.container": name},
            **engine.LOCKED_IN, **settings,
        )  # fmt: skip

    def has_ended(self, pod: str, container: str) -> bool:
        return bool(self.container(pod, container).status != "running")

    def stop_pods(self, names: Iterable[str]) -> None:
        doomed = set(names)
        found = [container for pod, _, container in self.containers() if pod in doomed]

        def remove(container: Container) -> None:
            with contextlib.suppress(docker.errors.NotFound):
                container.stop(timeout=2)
                container.remove(force=True, v=True)

        if found:
            with ThreadPoolExecutor(len(found)) as pool:
                list(pool.map(remove, found))

    @undisturbed()
    def remove_everything(self) -> None:
        super().remove_everything()
        for kept in (self.engine.networks, self.engine.volumes):
            for found in kept.list(filters={"label": f"{LABEL}.mesh={self.id}"}):
                with contextlib.suppress(docker.errors.NotFound):
                    found.remove()

    # --- asking what runs -----------------------------------------------------------------------------

    def container(self, pod: str, container: str = "istio-proxy") -> Container:
        """Return a container of a pod; where there is none, the engine's NotFound is an OSError."""
        return self.engine.containers.get(f"{self.id}-{pod}-{container}")

    def run(self, pod: str, container: str, command: list[str]) -> str:
        """Return what a command prints in a container.

        :raises ConnectionError: it fails; its message is what the command prints.
        """
        code, output = self.container(pod, container).exec_run(command)
        text = str(output.decode(errors="replace"))
        if code:
            raise ConnectionError(text)
        return text

    def _published(self, pod: str, port: int) -> Address:
        """Return the address on this machine at which a port of a pod is reached.

        :raises OSError: there is none.
        """
        bindings = self.container(pod).ports.get(f"{port}/tcp")
        if not bindings:
            raise ConnectionError(f"{pod} is not running")
        return Address(LOOPBACK, int(bindings[0]["HostPort"]))

    def address(self, pod: EnvoyPod) -> Address:
        if not pod.deployment:
            return self._published(pod.name, INGRESS)
        found = self.container(pod.name, "istio-proxy" if pod.proxied else "app")
        port = INBOUND if pod.proxied else pod.deployment.container.port
        return Address(found.attrs["NetworkSettings"]["Networks"][self.id]["IPAddress"], port)

    def admin(self, pod: str, path: str) -> str:
        answer = get(f"http://{self._published(pod, STATUS)}{path}")
        answer.raise_for_status()
        return answer.text

    def log(self, pod: str, container: str) -> str:
        return str(self.container(pod, container).logs().decode(errors="replace"))

    def write(self, name: str, text: str) -> None:
        with contextlib.suppress(docker.errors.NotFound):
            self.container(GATEWAY).put_archive(XDS, _tar({f".{name}": text.encode()}))
            try:
                # Envoy watches for a rename, which is also what makes it read the whole file or none of it.
                self.run(GATEWAY, "istio-proxy", ["mv", f"{XDS}/.{name}", f"{XDS}/{name}"])
            except ConnectionError as error:
                raise MeshError(f"the gateway did not take {name}: {error}") from None
        super().write(name, text)


class ContainerMesh(EnvoyMesh):
    """A mesh of containers in the engine that DOCKER_HOST, or Docker's context, names."""

    name = "containers"
    manifests = (*WITH_STORE, *ISTIO)
    code = ("app.py", "Dockerfile")
    runtime: Containers

    def __init__(self, state: Path, port: int | None = None, progress: Progress = quietly) -> None:
        """Keep state in the folder ``state``; ``port`` is the gateway's when the mesh is started (8080)."""
        super().__init__(Containers(state, progress), port)

    def close(self) -> None:
        self.runtime.engine.close()

    def query(self, host: str, database: str, sql: str) -> list[list[str]]:
        running = self.runtime.running()
        pods = [pod for pod in pods_of(self.routes()) if host in pod.hosts and pod.is_whole(running)]
        if not pods:
            raise MeshError(f"no pod of {host} runs: 'make start W={host} MESH=containers', or 'make up'")
        try:
            return rows_of(self.runtime.run(pods[0].name, "app", psql(database, sql)))
        except ConnectionError as error:
            raise MeshError(f"the store does not answer: {str(error).strip()}") from None

    def logs_of(self, workload: str) -> Iterator[tuple[str, str]]:
        for pod, name, container in sorted(self.runtime.containers(), key=lambda found: found[:2]):
            if workload_of(pod) == workload:
                for line in container.logs().decode(errors="replace").splitlines():
                    yield name, line

    def request_log(self, pod: Pod) -> Iterator[str]:
        with contextlib.suppress(docker.errors.NotFound):
            log = self.runtime.container(pod.name).logs(stderr=False)
            yield from log.decode(errors="replace").splitlines()

    def follow(self, namespace: str, callers: Iterable[str] = (), known: Iterable[Pod] = ()) -> LogFollower:
        def streams(new: bool) -> Iterator[Stream]:
            for pod, name, container in self.runtime.containers():
                if name == "istio-proxy":
                    # A stream goes back a little, since the engine may be where another clock is.
                    tail: int | str = "all" if new else 100
                    start = partial(container.logs, stream=True, follow=True, tail=tail)
                    yield Stream(f"{container.id}/stdout", pod, partial(start, stderr=False))
                    # Mixed, a line of one may stand within a long line of the other.
                    yield Stream(f"{container.id}/stderr", pod, partial(start, stdout=False))

        return StreamFollower(streams)


def _tar(files: dict[str, bytes]) -> bytes:
    """Return a tar of files that group 0 may replace."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o664
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
