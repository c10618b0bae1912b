"""The Kubernetes and Istio objects that the harness understands, as frozen models.

Every field that is accepted here is honoured by the meshes that the harness renders, but for what only a
cluster can do: liveness probes, pauses before a stop and, on the local mesh, limits and isolation. Anything
else is an error that names object and field: a silently ignored route would make the proof a lie.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel


def _duration(text: str) -> str:
    seconds(text)
    return text


def seconds(duration: str) -> float:
    """Return a Go duration such as ``1m30s`` or ``250ms`` in seconds.

    :raises ValueError: it is not one, or shorter than the millisecond that Istio allows.
    """
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    if not re.fullmatch(r"(\d+(\.\d+)?(h|ms|m|s))+", duration):
        raise ValueError(f"'{duration}' is not a duration such as 2s or 250ms")
    total = sum(float(n) * units[u] for n, _, u in re.findall(r"(\d+(\.\d+)?)(h|ms|m|s)", duration))
    if not 0.001 <= total <= 315_576_000_000:
        raise ValueError(f"'{duration}' is shorter than 1ms, or longer than 10,000 years")
    return total


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is not a regular expression: {error}") from None
    return pattern


def _not_reserved(variable: str) -> str:
    if variable in ("BIND", "HOSTNAME", "http_proxy"):
        raise ValueError(f"'{variable}' is set by the mesh")
    return variable


Duration = Annotated[str, AfterValidator(_duration)]
Percent = Annotated[float, Field(ge=0, le=100)]
UINT32 = 2**32 - 1
Count = Annotated[int, Field(ge=1, le=UINT32)]
Port = Annotated[int, Field(ge=1, le=65535)]
Labels = dict[str, str]


class Model(BaseModel):
    """A frozen object with Kubernetes' camelCase names and no field beyond those named."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, alias_generator=to_camel, populate_by_name=True
    )


class Metadata(Model):
    """What names an object."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
    labels: Labels = {}


class Object(Model):
    """What every manifest has: a kind and a name."""

    api_version: str
    kind: str
    metadata: Metadata

    @property
    def key(self) -> str:
        """Kind and name, as kubectl prints them."""
        return f"{self.kind.lower()}/{self.metadata.name}"


# --- Kubernetes ---------------------------------------------------------------------------------------


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


# --- Istio --------------------------------------------------------------------------------------------

ISTIO_NETWORKING = "networking.istio.io/v1"


class UriMatch(Model):
    """How a path is compared: exact or prefix."""

    exact: str | None = None
    prefix: str | None = None

    @model_validator(mode="after")
    def _has_one(self) -> "UriMatch":
        if len(self.model_fields_set) != 1:
            raise ValueError(f"needs exactly one of {', '.join(type(self).model_fields)}")
        return self

    def matches(self, text: str) -> bool:
        """Say whether ``text`` matches."""
        return text == self.exact if self.exact is not None else text.startswith(self.prefix or "")


class StringMatch(UriMatch):
    """How a text is compared: exact, prefix or regex (RE2, over the whole text)."""

    regex: Annotated[str, AfterValidator(_regex)] | None = None

    def matches(self, text: str) -> bool:
        """Say whether ``text`` matches."""
        return re.fullmatch(self.regex, text) is not None if self.regex is not None else super().matches(text)


class HTTPMatchRequest(Model):
    """Conditions that must all hold for a request."""

    name: str | None = None
    uri: UriMatch | None = None
    method: StringMatch | None = None
    headers: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], StringMatch] = {}


class PortSelector(Model):
    """A port by number."""

    number: Port


class Destination(Model):
    """A Service, or a subset of its pods."""

    host: str
    subset: str | None = None
    port: PortSelector | None = None


class HTTPRouteDestination(Model):
    """A destination and its share of the traffic."""

    destination: Destination
    weight: Annotated[int, Field(ge=0, le=UINT32 // 1000)] = 0


class PercentValue(Model):
    """A percentage, in the form in which Istio nests it."""

    value: Percent


class HTTPMirrorPolicy(Model):
    """One of several mirrors."""

    destination: Destination
    percentage: PercentValue | None = None


class HTTPRewrite(Model):
    """What replaces the matched part of the path."""

    uri: str


class HTTPRetry(Model):
    """When to try again: ``attempts`` counts the retries, 0 turns them off."""

    attempts: Annotated[int, Field(ge=0, le=UINT32)]
    per_try_timeout: Duration | None = None
    retry_on: str | None = None


class FaultDelay(Model):
    """A pause before a request is passed on."""

    fixed_delay: Duration
    percentage: PercentValue | None = None


class FaultAbort(Model):
    """A failure instead of passing a request on."""

    http_status: Annotated[int, Field(ge=200, le=599)]
    percentage: PercentValue | None = None


class HTTPFaultInjection(Model):
    """Faults to inject."""

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None


class HTTPRoute(Model):
    """What happens to the requests that match."""

    name: str | None = None
    match: list[HTTPMatchRequest] = []
    route: Annotated[list[HTTPRouteDestination], Field(min_length=1)]
    rewrite: HTTPRewrite | None = None
    mirror: Destination | None = None
    mirrors: list[HTTPMirrorPolicy] = []
    mirror_percentage: PercentValue | None = None
    timeout: Duration | None = None
    retries: HTTPRetry | None = None
    fault: HTTPFaultInjection | None = None

    @model_validator(mode="after")
    def _as_istio_validates(self) -> "HTTPRoute":
        if self.mirror and self.mirrors:
            raise ValueError("mirror and mirrors exclude each other")
        if self.mirror_percentage and not self.mirror:
            raise ValueError("mirrorPercentage needs mirror")
        if len(self.route) > 1 and not sum(r.weight for r in self.route):
            raise ValueError("total destination weight = 0")
        return self

    def shares(self) -> list[tuple[Destination, float]]:
        """Return each destination that gets traffic, with its share (0 to 1)."""
        if len(self.route) == 1:
            return [(self.route[0].destination, 1.0)]
        total = sum(r.weight for r in self.route)
        return [(r.destination, r.weight / total) for r in self.route if r.weight]

    def copies(self) -> list[tuple[Destination, float]]:
        """Return each mirror that gets traffic, with its percentage: absent is 100, 0 is no mirror."""
        single = [(self.mirror, self.mirror_percentage)] if self.mirror else []
        mirrors = single + [(m.destination, m.percentage) for m in self.mirrors]
        percentages = [(destination, p.value if p else 100.0) for destination, p in mirrors]
        return [(destination, percent) for destination, percent in percentages if percent > 0]


class VirtualServiceSpec(Model):
    """Routes for hosts."""

    hosts: Annotated[list[str], Field(min_length=1)]
    gateways: list[str] = ["mesh"]
    http: Annotated[list[HTTPRoute], Field(min_length=1)]


class VirtualService(Object):
    """How callers' requests are routed."""

    api_version: Literal["networking.istio.io/v1"]
    kind: Literal["VirtualService"]
    spec: VirtualServiceSpec


class TCPSettings(Model):
    """Limits of connections."""

    max_connections: Count | None = None
    connect_timeout: Duration | None = None


class HTTPSettings(Model):
    """Limits of requests."""

    http1_max_pending_requests: Count | None = None
    http2_max_requests: Count | None = None
    max_requests_per_connection: Count | None = None
    max_retries: Count | None = None


class ConnectionPool(Model):
    """A fuse: what goes beyond it fails at once."""

    tcp: TCPSettings = TCPSettings()
    http: HTTPSettings = HTTPSettings()


class TrafficPolicy(Model):
    """How a proxy treats the destination."""

    connection_pool: ConnectionPool


class Subset(Model):
    """A name for some pods of a Service."""

    name: str
    labels: Annotated[Labels, Field(min_length=1)]
    traffic_policy: TrafficPolicy | None = None


class DestinationRuleSpec(Model):
    """Subsets of a host."""

    host: str
    subsets: list[Subset] = []
    traffic_policy: TrafficPolicy | None = None


class DestinationRule(Object):
    """The subsets of a Service, and the policies that hold for them."""

    api_version: Literal["networking.istio.io/v1"]
    kind: Literal["DestinationRule"]
    spec: DestinationRuleSpec


class GatewayPort(Model):
    """The port that callers outside the mesh use."""

    number: Port
    name: str
    protocol: Literal["HTTP"]


class GatewayServer(Model):
    """One listener of the ingress gateway."""

    port: GatewayPort
    hosts: Annotated[list[str], Field(min_length=1)]


class GatewaySpec(Model):
    """What the ingress gateway serves."""

    selector: dict[Literal["istio"], Literal["ingressgateway"]]
    servers: Annotated[list[GatewayServer], Field(min_length=1, max_length=1)]


class Gateway(Object):
    """Where callers outside come in."""

    api_version: Literal["networking.istio.io/v1"]
    kind: Literal["Gateway"]
    spec: GatewaySpec


KINDS: dict[str, type[Object]] = {
    model.__name__: model
    for model in (ServiceAccount, Service, Deployment, Gateway, VirtualService, DestinationRule)
}
