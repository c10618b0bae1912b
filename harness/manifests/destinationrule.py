"""The DestinationRule: the subsets of a Service, and how proxies treat them.

What Istio's own validation refuses is refused here, too.
https://istio.io/latest/docs/reference/config/networking/destination-rule/
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from harness.manifests.base import (
    Count,
    Duration,
    IstioObject,
    Labels,
    Model,
    Uint32,
    WholePercent,
    fields,
    one_of,
)
from harness.manifests.texts import ExportTo, Host, SubsetName
from harness.manifests.virtualservice import PortSelector


class TCPKeepalive(Model):
    """When to ask whether the other side of a connection is still there."""

    probes: Count = 0
    time: Duration | None = None
    interval: Duration | None = None


class TCPSettings(Model):
    """Limits of connections."""

    max_connections: Count = 0
    connect_timeout: Duration | None = None
    tcp_keepalive: TCPKeepalive | None = None
    max_connection_duration: Duration | None = None
    idle_timeout: Duration | None = None


@fields(only_cluster="http2KeepAlive")
class HTTPSettings(Model):
    """Limits of requests; 0 is none."""

    http1_max_pending_requests: Count = 0
    http2_max_requests: Count = 0
    max_requests_per_connection: Count = 0
    max_retries: Count = 0
    idle_timeout: Duration | None = None
    h2_upgrade_policy: Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"] = "DEFAULT"
    use_client_protocol: bool = False
    max_concurrent_streams: Count = 0

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

    consecutive_5xx_errors: Annotated[Uint32 | None, Field(alias="consecutive5xxErrors")] = None
    consecutive_gateway_errors: Uint32 | None = None
    consecutive_local_origin_failures: Uint32 | None = None
    split_external_local_origin_errors: bool = False
    interval: Duration | None = None
    base_ejection_time: Duration | None = None
    max_ejection_percent: WholePercent = 0
    min_health_percent: WholePercent = 0

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

    name: SubsetName
    labels: Labels = {}
    traffic_policy: TrafficPolicy | None = None


@fields(only_cluster="workloadSelector")
class DestinationRuleSpec(Model):
    """Subsets of a host."""

    host: Host
    subsets: list[Subset] = []
    traffic_policy: TrafficPolicy | None = None
    export_to: ExportTo = []

    def problems(self) -> Iterator[str]:
        names = [subset.name for subset in self.subsets]
        for name in names:
            if names.count(name) > 1:
                yield f"the subset '{name}' stands twice"


class DestinationRule(IstioObject):
    """The subsets of a Service, and the policies that hold for them."""

    spec: DestinationRuleSpec
