"""The Kubernetes objects that the harness understands, as frozen models."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from harness.manifests.base import Count, Labels, Model, Object, Port


def _not_reserved(variable: str) -> str:
    if variable in ("BIND", "HOSTNAME", "http_proxy"):
        raise ValueError(f"'{variable}' is set by the mesh")
    return variable


class ServiceAccount(Object):
    """The identity of a workload."""

    api_version: Literal["v1"]
    kind: Literal["ServiceAccount"]


class ServicePort(Model):
    """A port that callers use, and the container's port behind it."""

    name: str
    port: Port
    target_port: Port | str


class ServiceSpec(Model):
    """Which pods stand behind a Service."""

    selector: Annotated[Labels, Field(min_length=1)]
    ports: Annotated[list[ServicePort], Field(min_length=1, max_length=1)]


class Service(Object):
    """A host name that callers know."""

    api_version: Literal["v1"]
    kind: Literal["Service"]
    spec: ServiceSpec

    @property
    def port(self) -> int:
        """The port that callers use."""
        return self.spec.ports[0].port


class EnvVar(Model):
    """One environment variable; those that the harness sets itself are refused."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), AfterValidator(_not_reserved)]
    value: Annotated[str, Field(pattern=r"^[^\x00]*$")]


class ContainerPort(Model):
    """A port that the container listens on."""

    name: str
    container_port: Port


class HTTPGet(Model):
    """The request that a probe makes."""

    path: str
    port: Port | str


class Probe(Model):
    """How Kubernetes asks a container how it is."""

    http_get: HTTPGet
    period_seconds: Count = 10


class Sleep(Model):
    """A pause."""

    seconds: int


class PreStop(Model):
    """What happens before a container is stopped."""

    sleep: Sleep


class Lifecycle(Model):
    """Hooks of a container's life. Only a cluster needs the pause: a local stop takes routes away first."""

    pre_stop: PreStop


class ResourceList(Model):
    """An amount of CPU and memory, in Kubernetes' units (``500m``, ``192Mi``)."""

    cpu: str
    memory: str


class Resources(Model):
    """What a container asks for, and its limits."""

    requests: ResourceList
    limits: ResourceList


class Capabilities(Model):
    """Linux capabilities."""

    drop: list[Literal["ALL"]]


class SecurityContext(Model):
    """How a container is locked in. A process of the local mesh is not: it has its user's rights."""

    allow_privilege_escalation: Literal[False]
    read_only_root_filesystem: Literal[True]
    capabilities: Capabilities


class Container(Model):
    """The one application container of a pod."""

    name: str
    image: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    image_pull_policy: Literal["IfNotPresent"]
    command: list[str] = []
    """What to run in the image's folder, in place of what the image says."""
    ports: Annotated[list[ContainerPort], Field(min_length=1, max_length=1)]
    env: list[EnvVar] = []
    readiness_probe: Probe
    liveness_probe: Probe
    lifecycle: Lifecycle | None = None
    resources: Resources
    security_context: SecurityContext


class SeccompProfile(Model):
    """The system calls that a pod may make."""

    type: Literal["RuntimeDefault"]


class PodSecurityContext(Model):
    """How all containers of a pod are locked in."""

    run_as_non_root: Literal[True]
    seccomp_profile: SeccompProfile


class PodSpec(Model):
    """What a pod runs."""

    service_account_name: str
    automount_service_account_token: bool = True
    termination_grace_period_seconds: int = 30
    security_context: PodSecurityContext
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]


class PodMetadata(Model):
    """The labels of a workload's pods."""

    labels: Labels


class PodTemplate(Model):
    """What each pod of a workload looks like."""

    metadata: PodMetadata
    spec: PodSpec


class LabelSelector(Model):
    """Which pods belong to a workload."""

    match_labels: Labels


class DeploymentSpec(Model):
    """How many pods, and which."""

    replicas: Annotated[int, Field(ge=0)] = 1
    selector: LabelSelector
    template: PodTemplate


class Deployment(Object):
    """A workload."""

    api_version: Literal["apps/v1"]
    kind: Literal["Deployment"]
    spec: DeploymentSpec

    @property
    def labels(self) -> Labels:
        """The labels of its pods."""
        return self.spec.template.metadata.labels

    @property
    def container(self) -> Container:
        """Its one container."""
        return self.spec.template.spec.containers[0]

    @model_validator(mode="after")
    def _selects_its_pods(self) -> "Deployment":
        if not self.spec.selector.match_labels.items() <= self.labels.items():
            raise ValueError("spec.selector.matchLabels does not select the labels of spec.template")
        return self
