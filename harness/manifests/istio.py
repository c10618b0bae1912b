"""Istio's objects beside the VirtualService: the Gateway, the DestinationRule, the TrafficExtension.

What Istio's own validation refuses is refused here, too.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from harness.manifests import values
from harness.manifests.base import HostMetadata, IstioObject, Model, Object, fields
from harness.manifests.values import Labels, one_of
from harness.manifests.virtualservice import PortSelector

# --- https://istio.io/latest/docs/reference/config/networking/gateway/ ------------------------------------


class GatewayPort(Model):
    """The port that callers use. The harness's gateway has but one, whatever its number here."""

    number: values.Port
    name: Annotated[str, Field(min_length=1)]
    protocol: Annotated[str, AfterValidator(str.upper), one_of("HTTP", "HTTP2", "GRPC")]


@fields(unused="name", only_cluster="bind defaultEndpoint tls")
class GatewayServer(Model):
    """One listener of the ingress gateway."""

    port: GatewayPort
    hosts: Annotated[list[values.ServedHost], Field(min_length=1)]


class GatewaySpec(Model):
    """What the ingress gateway serves."""

    selector: Labels = {}
    servers: Annotated[list[GatewayServer], Field(min_length=1)]

    def problems(self) -> Iterator[str]:
        if len({server.port.name for server in self.servers}) < len(self.servers):
            yield "several servers need a port.name each"


class Gateway(IstioObject):
    """Where callers outside come in."""

    metadata: HostMetadata
    spec: GatewaySpec


# --- https://istio.io/latest/docs/reference/config/networking/destination-rule/ ---------------------------


class TCPKeepalive(Model):
    """When to ask whether the other side of a connection is still there."""

    probes: values.Count = 0
    time: values.Duration | None = None
    interval: values.Duration | None = None


class TCPSettings(Model):
    """Limits of connections."""

    max_connections: values.Count = 0
    connect_timeout: values.Duration | None = None
    tcp_keepalive: TCPKeepalive | None = None
    max_connection_duration: values.Duration | None = None
    idle_timeout: values.Duration | None = None


@fields(only_cluster="http2KeepAlive")
class HTTPSettings(Model):
    """Limits of requests; 0 is none."""

    http1_max_pending_requests: values.Count = 0
    http2_max_requests: values.Count = 0
    max_requests_per_connection: values.Count = 0
    max_retries: values.Count = 0
    idle_timeout: values.Duration | None = None
    h2_upgrade_policy: Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"] = "DEFAULT"
    use_client_protocol: bool = False
    max_concurrent_streams: values.Count = 0

    def problems(self) -> Iterator[str]:
        if self.use_client_protocol and self.h2_upgrade_policy == "UPGRADE":
            yield "useClientProtocol and h2UpgradePolicy: UPGRADE exclude each other"


class ConnectionPool(Model):
    """A fuse: what goes beyond it fails at once."""

    tcp: TCPSettings = TCPSettings()
    http: HTTPSettings = HTTPSettings()


@fields(unused="consecutiveErrors")  # deprecated, and without effect in Istio
class OutlierDetection(Model):
    """When a pod that fails gets no requests for a while."""

    consecutive_5xx_errors: Annotated[values.Uint32 | None, Field(alias="consecutive5xxErrors")] = None
    consecutive_gateway_errors: values.Uint32 | None = None
    consecutive_local_origin_failures: values.Uint32 | None = None
    split_external_local_origin_errors: bool = False
    interval: values.Duration | None = None
    base_ejection_time: values.Duration | None = None
    max_ejection_percent: values.WholePercent = 0
    min_health_percent: values.WholePercent = 0

    def problems(self) -> Iterator[str]:
        if self.consecutive_local_origin_failures and not self.split_external_local_origin_errors:
            yield "consecutiveLocalOriginFailures needs splitExternalLocalOriginErrors: true"


@fields(only_cluster="consistentHash localityLbSetting warmup warmupDurationSecs")
class LoadBalancer(Model):
    """Which pod gets a request."""

    simple: Annotated[str, one_of("LEAST_REQUEST", "ROUND_ROBIN", "RANDOM", "LEAST_CONN", "UNSPECIFIED")] = (
        "UNSPECIFIED"
    )


@fields(
    unused="caCertificates clientCertificate credentialName insecureSkipVerify privateKey sni subjectAltNames"
)
class ClientTLS(Model):
    """How callers' proxies encrypt: not at all, on one machine."""

    mode: Annotated[str, one_of("ISTIO_MUTUAL", "DISABLE")] = "DISABLE"


class PolicySettings(Model):
    """How a proxy treats the destination, or a port of it."""

    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    load_balancer: LoadBalancer | None = None
    tls: ClientTLS | None = None

    def problems(self) -> Iterator[str]:
        if not any(getattr(self, field) for field in self.model_fields_set - {"port"}):
            yield "says nothing: take it out"


class PortTrafficPolicy(PolicySettings):
    """How a proxy treats one port of the destination."""

    port: PortSelector


@fields(only_cluster="proxyProtocol retryBudget tunnel")
class TrafficPolicy(PolicySettings):
    """How a proxy treats the destination."""

    port_level_settings: list[PortTrafficPolicy] = []


class Subset(Model):
    """A name for some pods of a Service."""

    name: values.SubsetName
    labels: Labels = {}
    traffic_policy: TrafficPolicy | None = None


@fields(only_cluster="workloadSelector")
class DestinationRuleSpec(Model):
    """Subsets of a host."""

    host: values.Host
    subsets: list[Subset] = []
    traffic_policy: TrafficPolicy | None = None
    export_to: values.ExportTo = []

    def problems(self) -> Iterator[str]:
        names = [subset.name for subset in self.subsets]
        for name in names:
            if names.count(name) > 1:
                yield f"the subset '{name}' stands twice"


class DestinationRule(IstioObject):
    """The subsets of a Service, and the policies that hold for them."""

    spec: DestinationRuleSpec


# --- https://istio.io/latest/docs/reference/config/proxy_extensions/ --------------------------------------


class WorkloadSelector(Model):
    """The labels of the workloads that are meant; none: all of the namespace."""

    match_labels: Labels = {}


@fields(only_cluster="ports")
class TrafficSelector(Model):
    """Which traffic it sees: only what comes in, on the harness's own meshes."""

    mode: Annotated[str, one_of("SERVER")] = Field("CLIENT_AND_SERVER", validate_default=True)


class Lua(Model):
    """A script with ``envoy_on_request``, ``envoy_on_response``, or both."""

    inline_code: Annotated[str, Field(min_length=1, max_length=65536)]


# Where in the chain it runs changes nothing: the harness's proxies have none of Istio's own filters, and no
# workload may have more than one of these.
@fields(unused="phase priority", only_cluster="targetRefs wasm")
class TrafficExtensionSpec(Model):
    """What runs where."""

    selector: WorkloadSelector = WorkloadSelector()
    match: list[TrafficSelector] = Field([{}], min_length=1, validate_default=True)
    lua: Lua


class TrafficExtension(Object):
    """Code that runs in the proxies of workloads."""

    api_version: Literal["extensions.istio.io/v1alpha1"]
    spec: TrafficExtensionSpec

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Say whether a workload with these labels runs it."""
        return self.spec.selector.match_labels.items() <= labels.items()
