"""The container engine: how it is found, the images in it, and what a pod's containers are created with.

Nothing is mounted from this machine, so the engine may be anywhere that a port on loopback reaches: Docker,
rootless Docker, podman's socket.
"""

import json
from dataclasses import replace

import docker.errors
import requests
from testcontainers.core.config import testcontainers_config
from testcontainers.core.docker_client import DockerClient

from harness import Json
from harness.manifests.podspec import quantity
from harness.meshes.images import Image, image
from harness.meshes.mesh import LOOPBACK, ROOT, MeshError, Progress
from harness.meshes.pods import EnvoyPod
from harness.rendering.bootstrap import FLAGS, Proxy, bootstrap
from harness.rendering.values import Address

# The mesh outlives the command that starts it, so testcontainers' reaper must not end it with the command.
# The labels below do the reaper's work: at `down`, and at the next `up`.
testcontainers_config.ryuk_disabled = True

LABEL = "dark-launch"
"""Every container, network, volume and image bears labels that start so."""

LOCKED_IN = {
    # An arbitrary UID in group 0, as OpenShift assigns them; rootless engines map no UID above 65535.
    "user": "54321:0",
    "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"],
}  # fmt: skip
"""How Kubernetes' restricted profile, and OpenShift's, would have a container run."""

# As in an Istio pod.
INBOUND, OUTBOUND, ADMIN, STATUS = 15006, 15001, 15000, 15021
INGRESS = 8080
XDS, STDOUT = "/xds", "/dev/stdout"
ANY_ADDRESS = "0.0.0.0"  # noqa: S104 (inside the pod, whose network is the mesh's own)


def connect() -> docker.DockerClient:
    """Return the engine that DOCKER_HOST, or Docker's context, names.

    :raises MeshError: none answers.
    """
    try:
        engine = DockerClient().client
        engine.ping()
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise MeshError(
            "no container engine answers: install and start Docker (on Debian: docker.io), or let "
            f"DOCKER_HOST name podman's socket; MESH=local needs none ({reason})"
        ) from None
    return engine


class Images:
    """The project's images in an engine."""

    def __init__(self, engine: docker.DockerClient, progress: Progress) -> None:
        self._engine, self._progress = engine, progress

    def id(self, name: str) -> str:
        """Return the id of an image; load or build it if it is not there.

        :raises MeshError: it does not build.
        """
        wanted = image(name)
        if there := self._found(wanted):
            return there
        if archive := wanted.archive():
            self._progress(f"loading {wanted.tag}: a minute, once")
            with archive.open("rb") as file:
                self._engine.images.load(file)
            if there := self._found(wanted):
                return there
        self._build(wanted)
        return self._found(wanted)

    def _build(self, wanted: Image) -> None:
        labels = {f"{LABEL}.source": wanted.digest(), f"{LABEL}.files": wanted.sources_key()}
        lines: list[str] = []
        for event in self._engine.api.build(
            path=str(ROOT), dockerfile=str(wanted.dockerfile.relative_to(ROOT)), tag=wanted.tag,
            buildargs=wanted.arguments(), labels=labels, rm=True, forcerm=True, decode=True,
        ):  # fmt: skip
            lines += event.get("stream", "").strip().splitlines()
            if lines:
                self._progress(f"building {wanted.tag}: {lines[-1]}")
            if "error" in event:
                last = "\n".join(f"  {line}" for line in lines[-10:])
                raise MeshError(f"the image {wanted.tag} does not build: {event['error']}\n{last}")

    def _found(self, wanted: Image) -> str:
        """Return the id of an image of the same files and, if somebody asks for one, on the same base."""
        labels = [f"{LABEL}.files={wanted.sources_key()}"]
        if wanted.other_base():
            labels.append(f"{LABEL}.source={wanted.digest()}")
        built = self._engine.images.list(filters={"label": labels})
        return next((str(each.id) for each in built), "")


def proxy(pod: EnvoyPod, mesh: str, port: int) -> Json:
    """Return what the container of a pod's proxy is created with.

    :param mesh: the name of the mesh's network, and of the volume of the files that proxies watch.
    :param port: the gateway's, on loopback.
    """
    told = Proxy(
        pod.name, pod.workload, XDS, STDOUT, inbound=Address(ANY_ADDRESS, INGRESS),
        outbound=Address(LOOPBACK, OUTBOUND), admin=Address(LOOPBACK, ADMIN),
        status=Address(ANY_ADDRESS, STATUS),
    )  # fmt: skip
    published: dict[str, tuple[str, int]] = {f"{STATUS}/tcp": (LOOPBACK, 0)}
    if pod.deployment:
        container = pod.deployment.container
        app, inbound = Address(LOOPBACK, container.port), Address(ANY_ADDRESS, INBOUND)
        told = replace(told, app=app, inbound=inbound, readiness=container.readiness_path)
    else:
        published[f"{INGRESS}/tcp"] = (LOOPBACK, port)
    return {
        "command": ["--config-yaml", json.dumps(bootstrap(told)), *FLAGS],
        "hostname": pod.name[:63], "network": mesh, "ports": published,
        # Only the gateway's container can write the configuration, when the harness makes it.
        "volumes": {mesh: {"bind": XDS, "mode": "ro" if pod.deployment else "rw"}},
        "mem_limit": "1g", "nano_cpus": 2_000_000_000,
    }  # fmt: skip


def app_beside_proxy(pod: EnvoyPod, proxy: str) -> Json:
    """Return what the container of an application is created with that is reached by a proxy.

    :param proxy: the id of the proxy's container, whose network it shares.
    """
    assert pod.deployment
    port = pod.deployment.container.port
    mesh = {"BIND": f"{ANY_ADDRESS}:{port}", "http_proxy": f"http://{LOOPBACK}:{OUTBOUND}"}
    return _app(pod, mesh, {}) | {"network_mode": f"container:{proxy}"}


def app_alone(pod: EnvoyPod, mesh: str) -> Json:
    """Return what the container of an application is created with that is reached itself.

    Its volumes outlive it, as on a node.

    :param mesh: the name of the mesh's network.
    """
    assert pod.deployment
    spec = pod.deployment.spec.template.spec
    on_disk = {v.name for v in spec.volumes if (v.empty_dir or {}).get("medium") != "Memory"}
    mounts = {m.mount_path: m.name for m in pod.deployment.container.volume_mounts if m.name in on_disk}
    volumes = {f"{mesh}-{pod.name}-{name}": {"bind": path} for path, name in mounts.items()}
    return _app(pod, {}, volumes) | {"hostname": pod.name[:63], "network": mesh}


def _app(pod: EnvoyPod, mesh: dict[str, str], volumes: dict[str, dict[str, str]]) -> Json:
    """Return what every application's container is created with; ``mesh`` is added to its environment."""
    assert pod.deployment
    container = pod.deployment.container
    limits = {name: quantity(str(amount)) for name, amount in container.resources.limits.items()}
    on_disk = {volume["bind"] for volume in volumes.values()}
    return {
        "command": container.words or None,
        "environment": {**pod.environment, "HOSTNAME": pod.name, **mesh},
        "tmpfs": {m.mount_path: "" for m in container.volume_mounts if m.mount_path not in on_disk},
        "volumes": volumes,
        "mem_limit": round(limits.get("memory", 0)), "nano_cpus": round(limits.get("cpu", 0) * 1e9),
    }  # fmt: skip
