"""What Kubernetes' pods run: containers, with their environment, ports, probes and volumes."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.manifests.base import Model, fields
from harness.manifests.values import Count, Labels, Port, matches

INJECT = "sidecar.istio.io/inject"
"""The label (before: the annotation) by which a pod says whether it gets a sidecar."""

ANY_PORT = 8080
"""Where an application listens whose container names no port."""


@fields(only_cluster="valueFrom")
class EnvVar(Model):
    """One environment variable; those that the harness sets itself are refused."""

    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"),
        matches(r"(?!(BIND|HOSTNAME|http_proxy)$).*", "is set by the mesh"),
    ]
    value: Annotated[str, Field(pattern=r"^[^\x00]*$")] = ""


class SecretRef(Model):
    """The name of a Secret."""

    name: str
    optional: bool = False


@fields(only_cluster="configMapRef prefix")
class EnvFrom(Model):
    """A Secret whose keys become environment variables."""

    secret_ref: SecretRef


@fields(only_cluster="hostIP hostPort")
class ContainerPort(Model):
    """A port that the container listens on."""

    name: str = ""
    container_port: Port
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


@fields(unused="host httpHeaders scheme")
class HTTPGet(Model):
    """The request that a probe makes."""

    path: str = "/"
    port: Port | str


class Exec(Model):
    """The command that a probe runs."""

    command: list[str] = []


@fields(
    unused="failureThreshold grpc initialDelaySeconds successThreshold tcpSocket "
    "terminationGracePeriodSeconds timeoutSeconds"
)
class Probe(Model):
    """How Kubernetes asks a container how it is: by the path of ``httpGet``, or a command where none is."""

    http_get: HTTPGet | None = None
    exec: Exec = Exec()
    period_seconds: Count = 10


Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]


def quantity(text: str) -> float:
    """Return a Kubernetes quantity such as ``500m`` or ``192Mi`` as a number (of CPUs, of bytes)."""
    number = text.rstrip("mkMGTi")
    units = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    units |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(number) * units[text.removeprefix(number)]


@fields(unused="requests")
class Resources(Model):
    """What a container asks for, and its limits, in Kubernetes' units (``500m``, ``192Mi``)."""

    limits: dict[str, Quantity | int | float] = {}


@fields(unused="readOnly subPath")
class VolumeMount(Model):
    """Where a container sees a volume."""

    name: str
    mount_path: str


@fields(
    unused="imagePullPolicy lifecycle livenessProbe securityContext startupProbe terminationMessagePath "
    "terminationMessagePolicy",
    only_cluster="restartPolicy volumeDevices workingDir",
)
class Container(Model):
    """The one application container of a pod."""

    name: str
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+([-._:/@]+[A-Za-z0-9]+)*$")]
    command: list[str] = []
    """What to run in the image's folder, in place of what the image says."""
    args: list[str] = []
    ports: list[ContainerPort] = []
    env: list[EnvVar] = []
    readiness_probe: Probe = Probe()
    resources: Resources = Resources()
    volume_mounts: list[VolumeMount] = []
    env_from: list[EnvFrom] = []

    @property
    def image_name(self) -> str:
        """The image without registry, tag and digest."""
        return re.sub(r"[:@].*", "", self.image.rpartition("/")[2])

    @property
    def words(self) -> list[str]:
        """What to run, if not what the image says."""
        return [*self.command, *self.args]

    @property
    def port(self) -> int:
        """Where the application listens: the port that its probe asks, or else the first."""
        get = self.readiness_probe.http_get
        asked = [p for p in self.ports if get and get.port in (p.name, p.container_port)]
        return next((p.container_port for p in asked + self.ports), ANY_PORT)

    @property
    def readiness_path(self) -> str:
        """What to ask the application for when it starts: nothing but any answer, if no probe says so."""
        return self.readiness_probe.http_get.path if self.readiness_probe.http_get else ""

    def serves(self, port: int | str) -> bool:
        """Say whether the application listens at a port of this name or number."""
        mine = [p for p in self.ports if p.container_port == self.port]
        return any(port in (p.name, p.container_port) for p in mine) or (not mine and isinstance(port, int))


@fields(only_cluster="configMap hostPath persistentVolumeClaim projected secret")
class Volume(Model):
    """A volume of a pod: an empty folder. It means nothing to a process, and is a tmpfs in a container."""

    name: str
    empty_dir: dict[str, Any] | None = None


@fields(
    unused="affinity automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks hostAliases "
    "hostname imagePullSecrets nodeName nodeSelector os preemptionPolicy priority priorityClassName "
    "readinessGates restartPolicy runtimeClassName schedulerName securityContext serviceAccount "
    "tolerations topologySpreadConstraints",
    only_cluster="hostNetwork hostPID initContainers shareProcessNamespace",
)
class PodSpec(Model):
    """What a pod runs."""

    containers: Annotated[list[Container], Field(min_length=1)]
    service_account_name: str = "default"
    termination_grace_period_seconds: int = 30
    volumes: list[Volume] = []

    def problems(self) -> Iterator[str]:
        if len(self.containers) > 1:
            yield f"has {len(self.containers)} containers, and a pod of this mesh has one"


@fields(unused="creationTimestamp name namespace")
class PodMetadata(Model):
    """The labels of a workload's pods."""

    labels: Labels
    annotations: dict[str, str] = {}

    def problems(self) -> Iterator[str]:
        if (self.labels | self.annotations).get(INJECT) == "false":
            yield f"{INJECT}: every pod of this mesh has a sidecar: take it out"


class PodTemplate(Model):
    """What each pod of a workload looks like."""

    metadata: PodMetadata
    spec: PodSpec
