"""The Istio objects that the harness understands, as frozen models."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from harness.manifests.base import UINT32, Count, Duration, Labels, Model, Object, Percent, Port


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is not a regular expression: {error}") from None
    return pattern


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
