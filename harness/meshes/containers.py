"""The container mesh: the images that go to a cluster, locked in as a cluster would, beside real Envoys.

A pod is two containers that share a network namespace. Nothing is mounted from this machine, so the engine
may be anywhere that a port on loopback reaches: Docker, rootless Docker, podman's socket.
"""

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import docker.errors
import requests
from docker.models.containers import Container
from testcontainers.core.config import testcontainers_config
from testcontainers.core.docker_client import DockerClient

from harness.manifests.kubernetes import quantity
from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.images import Image, image
from harness.meshes.lock import undisturbed
from harness.meshes.logs import Stream, StreamFollower
from harness.meshes.mesh import (
    GATEWAY,
    ISTIO,
    LOOPBACK,
    ROOT,
    WITH_STORE,
    LogFollower,
    MeshError,
    Progress,
    get,
    quietly,
)
from harness.meshes.pods import EnvoyPod, by_pod, pods_of, workload_of
from harness.meshes.scene import Pod
from harness.meshes.stores import psql, rows_of
from harness.rendering.bootstrap import FLAGS, READINESS, Listeners, bootstrap
from harness.rendering.values import Address

# The mesh outlives the command that starts it, so testcontainers' reaper must not end it with the command.
# The labels below do the reaper's work: at `down`, and at the next `up`.
testcontainers_config.ryuk_disabled = True

LABEL = "dark-launch"
"""Every container, network, volume and image bears labels that start so."""

USER = "54321:0"
"""An arbitrary UID in group 0, as OpenShift assigns them; rootless engines map no UID above 65535."""

# As in an Istio pod.
INBOUND, OUTBOUND, ADMIN, STATUS = 15006, 15001, 15000, 15021
INGRESS = 8080
XDS, STDOUT = "/xds", "/dev/stdout"
ANY_ADDRESS = "0.0.0.0"  # noqa: S104 (inside the pod, whose network is the mesh's own)


class ContainerMesh(EnvoyMesh):
    """A mesh of containers in the engine that DOCKER_HOST, or Docker's context, names."""

    name = "containers"
    manifests = (*WITH_STORE, *ISTIO)
    code = ("app.py", "Dockerfile")

    def __init__(self, state: Path, port: int | None = None, progress: Progress = quietly) -> None:
        super().__init__(state, port, progress)
        self.id = f"{LABEL}-{hashlib.sha256(str(self.state).encode()).hexdigest()[:8]}"
        self._ours = {f"{LABEL}.mesh": self.id}
        self._images: dict[str, str] = {}
        """The ids of the images that pods are started from, by their names."""
        try:
            self.engine = DockerClient().client
            # A rootless engine may not be allowed to.
            self._limits_cpu = bool(self.engine.info().get("CpuCfsQuota"))
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            reason = " ".join(str(error).split())[:120]
            raise MeshError(
                "no container engine answers: install and start Docker (on Debian: docker.io), or let "
                f"DOCKER_HOST name podman's socket; MESH=local needs none ({reason})"
            ) from None

    def close(self) -> None:
        self.engine.close()

    # --- images ---------------------------------------------------------------------------------------

    def image(self, name: str) -> str:
        """Return the id of an image; load or build it if it is not there.

        :raises MeshError: it does not build.
        """
        wanted = image(name)
        if there := self._found(wanted):
            return there
        if archive := wanted.archive():
            self.progress(f"loading {wanted.tag}: a minute, once")
            with archive.open("rb") as file:
                self.engine.images.load(file)
            if there := self._found(wanted):
                return there
        labels = {f"{LABEL}.source": wanted.digest(), f"{LABEL}.files": wanted.sources_key()}
        lines: list[str] = []
        for event in self.engine.api.build(
            path=str(ROOT), dockerfile=str(wanted.dockerfile.relative_to(ROOT)), tag=wanted.tag,
            buildargs=wanted.arguments(), labels=labels, rm=True, forcerm=True, decode=True,
        ):  # fmt: skip
            lines += event.get("stream", "").strip().splitlines()
            if lines:
                self.progress(f"building {wanted.tag}: {lines[-1]}")
            if "error" in event:
                last = "\n".join(f"  {line}" for line in lines[-10:])
                raise MeshError(f"the image {wanted.tag} does not build: {event['error']}\n{last}")
        return self._found(wanted)

    def _found(self, wanted: Image) -> str:
        """Return the id of an image of the same files and, if somebody asks for one, on the same base."""
        labels = [f"{LABEL}.files={wanted.sources_key()}"]
        if wanted.other_base():
            labels.append(f"{LABEL}.source={wanted.digest()}")
        built = self.engine.images.list(filters={"label": labels})
        return next((str(each.id) for each in built), "")

    # --- pods -----------------------------------------------------------------------------------------

    def containers(self) -> Iterator[tuple[str, str, Container]]:
        """Yield (pod, container, container object) for each container of this mesh, running or not."""
        ours = {"label": f"{LABEL}.mesh={self.id}"}
        # One that goes while they are listed is no error.
        for found in self.engine.containers.list(all=True, filters=ours, ignore_removed=True):
            yield found.labels[f"{LABEL}.pod"], found.labels[f"{LABEL}.container"], found

    def running(self) -> dict[str, set[str]]:
        return by_pod((pod, name, each.status == "running") for pod, name, each in self.containers())

    def start_pods(self, pods: list[EnvoyPod]) -> None:
        if not pods:
            return
        names = {"envoy", *(pod.deployment.container.image_name for pod in pods if pod.deployment)}
        self._images = {name: self.image(name) for name in sorted(names)}
        if not self.engine.networks.list(names=[self.id]):
            self.engine.networks.create(self.id, driver="bridge", labels=self._ours)
            self.engine.volumes.create(self.id, labels=self._ours)
        super().start_pods(pods)

    def start_pod(self, pod: EnvoyPod) -> None:
        if not pod.proxied:
            self._start_alone(pod)
            return
        self._start_proxy(pod)
        self.wait_for(pod.name, "istio-proxy", partial(self.admin, pod.name, "/stats?filter=server.live"))
        if pod.deployment:
            bind, way_out = f"{ANY_ADDRESS}:{pod.deployment.container.port}", f"http://{LOOPBACK}:{OUTBOUND}"
            network = f"container:{self._container(pod.name).id}"
            self._start_app(pod, {"BIND": bind, "http_proxy": way_out}, network_mode=network)
            if pod.deployment.container.readiness_path:
                self.wait_for(pod.name, "app", partial(self.admin, pod.name, READINESS))

    def _start_proxy(self, pod: EnvoyPod) -> None:
        listeners = Listeners(
            Address(ANY_ADDRESS, INBOUND if pod.deployment else INGRESS), Address(LOOPBACK, OUTBOUND),
            admin=Address(LOOPBACK, ADMIN), status=Address(ANY_ADDRESS, STATUS),
        )  # fmt: skip
        app, readiness = None, ""
        published: dict[str, tuple[str, int]] = {f"{STATUS}/tcp": (LOOPBACK, 0)}
        if pod.deployment:
            app = Address(LOOPBACK, pod.deployment.container.port)
            readiness = pod.deployment.container.readiness_path
        else:
            published[f"{INGRESS}/tcp"] = (LOOPBACK, self.port)
        told = bootstrap(pod.name, pod.workload, XDS, STDOUT, listeners, app, readiness)
        proxy = self._create(
            pod, "istio-proxy", "envoy", command=["--config-yaml", json.dumps(told), *FLAGS],
            hostname=pod.name[:63], network=self.id, ports=published,
            # Only the gateway's container can write the configuration, when the harness makes it.
            volumes={self.id: {"bind": XDS, "mode": "ro" if pod.deployment else "rw"}},
            mem_limit="1g", nano_cpus=2_000_000_000,
        )  # fmt: skip
        if not pod.deployment:
            proxy.put_archive(XDS, _tar({p.name: p.read_bytes() for p in self.xds.glob("*.json")}))
        proxy.start()

    def _start_alone(self, pod: EnvoyPod) -> None:
        """Start a pod without a proxy, which others reach by the names of its Services."""
        assert pod.deployment
        spec = pod.deployment.spec.template.spec
        on_disk = {v.name for v in spec.volumes if (v.empty_dir or {}).get("medium") != "Memory"}
        mounts = {m.mount_path: m.name for m in pod.deployment.container.volume_mounts if m.name in on_disk}
        volumes = {f"{self.id}-{pod.name}-{name}": {"bind": path} for path, name in mounts.items()}
        for name in volumes:  # it outlives the container, as on a node
            self.engine.volumes.create(name, labels=self._ours)
        known_as = self.engine.api.create_endpoint_config(aliases=list(pod.hosts))
        self._start_app(
            pod, {}, network=self.id, networking_config={self.id: known_as}, hostname=pod.name[:63],
            volumes=volumes,
        )  # fmt: skip
        if command := pod.deployment.container.readiness_probe.exec.command:
            self.wait_for(pod.name, "app", partial(self._run, pod.name, "app", command))

    def _start_app(self, pod: EnvoyPod, mesh: dict[str, str], **settings: Any) -> None:
        """Start the container of a pod's application; ``mesh`` is what the mesh adds to its environment."""
        assert pod.deployment
        container = pod.deployment.container
        limits = {name: quantity(str(amount)) for name, amount in container.resources.limits.items()}
        on_disk = {volume["bind"] for volume in settings.get("volumes", {}).values()}
        self._create(
            pod, "app", container.image_name, command=container.words or None,
            environment={**pod.environment, "HOSTNAME": pod.name, **mesh},
            tmpfs={m.mount_path: "" for m in container.volume_mounts if m.mount_path not in on_disk},
            mem_limit=round(limits.get("memory", 0)), nano_cpus=round(limits.get("cpu", 0) * 1e9), **settings,
        ).start()  # fmt: skip

    def _create(self, pod: EnvoyPod, name: str, image: str, **settings: Any) -> Container:
        """Create a container, locked in as Kubernetes' restricted profile and OpenShift's would."""
        if not self._limits_cpu:
            settings.pop("nano_cpus")
        return self.engine.containers.create(
            self._images[image], name=f"{self.id}-{pod.name}-{name}", detach=True,
            labels={**self._ours, f"{LABEL}.pod": pod.name, f"{LABEL}.container": name},
            user=USER, read_only=True, cap_drop=["ALL"], security_opt=["no-new-privileges"], **settings,
        )  # fmt: skip

    def has_ended(self, pod: str, container: str) -> bool:
        return bool(self._container(pod, container).status != "running")

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

    def _container(self, pod: str, container: str = "istio-proxy") -> Container:
        """Return a container of a pod; where there is none, the engine's NotFound is an OSError."""
        return self.engine.containers.get(f"{self.id}-{pod}-{container}")

    def _run(self, pod: str, container: str, command: list[str]) -> str:
        """Return what a command prints in a container.

        :raises ConnectionError: it fails; its message is what the command prints.
        """
        code, output = self._container(pod, container).exec_run(command)
        text = str(output.decode(errors="replace"))
        if code:
            raise ConnectionError(text)
        return text

    def _published(self, pod: str, port: int) -> str:
        """Return the address on this machine at which a port of a pod is reached.

        :raises OSError: there is none.
        """
        bindings = self._container(pod).ports.get(f"{port}/tcp")
        if not bindings:
            raise ConnectionError(f"{pod} is not running")
        return f"{LOOPBACK}:{bindings[0]['HostPort']}"

    # --- what the control plane needs -----------------------------------------------------------------

    def inbound_address(self, pod: EnvoyPod) -> Address:
        found = self._container(pod.name, "istio-proxy" if pod.proxied else "app")
        port = INBOUND if pod.deployment else INGRESS
        if pod.deployment and not pod.proxied:
            port = pod.deployment.container.port
        return Address(found.attrs["NetworkSettings"]["Networks"][self.id]["IPAddress"], port)

    def admin(self, pod: str, path: str) -> str:
        answer = get(f"http://{self._published(pod, STATUS)}{path}")
        answer.raise_for_status()
        return answer.text

    def write(self, name: str, text: str) -> None:
        super().write(name, text)
        with contextlib.suppress(docker.errors.NotFound):
            self._container(GATEWAY).put_archive(XDS, _tar({f".{name}": text.encode()}))
            try:
                # Envoy watches for a rename, which is also what makes it read the whole file or none of it.
                self._run(GATEWAY, "istio-proxy", ["mv", f"{XDS}/.{name}", f"{XDS}/{name}"])
            except ConnectionError as error:
                raise MeshError(f"the gateway did not take {name}: {error}") from None

    def query(self, host: str, database: str, sql: str) -> list[list[str]]:
        running = self.running()
        pods = [pod for pod in pods_of(self.routes()) if host in pod.hosts and pod.is_whole(running)]
        if not pods:
            raise MeshError(f"no pod of {host} runs: 'make start W={host} MESH=containers', or 'make up'")
        try:
            return rows_of(self._run(pods[0].name, "app", psql(database, sql)))
        except ConnectionError as error:
            raise MeshError(f"the store does not answer: {str(error).strip()}") from None

    def gateway_address(self) -> str:
        return self._published(GATEWAY, INGRESS)

    # --- logs -----------------------------------------------------------------------------------------

    def container_log(self, pod: str, container: str) -> str:
        return str(self._container(pod, container).logs().decode(errors="replace"))

    def logs_of(self, workload: str) -> Iterator[tuple[str, str]]:
        for pod, name, container in sorted(self.containers(), key=lambda found: found[:2]):
            if workload_of(pod) == workload:
                for line in container.logs().decode(errors="replace").splitlines():
                    yield name, line

    def request_log(self, pod: Pod) -> Iterator[str]:
        with contextlib.suppress(docker.errors.NotFound):
            yield from self._container(pod.name).logs(stderr=False).decode(errors="replace").splitlines()

    def follow(self, namespace: str, callers: Iterable[str] = (), known: Iterable[Pod] = ()) -> LogFollower:
        def streams(new: bool) -> Iterator[Stream]:
            for pod, name, container in self.containers():
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
