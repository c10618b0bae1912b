"""The Istio objects that the harness understands, as frozen models.

What Istio's own validation refuses is refused here, too.
https://istio.io/latest/docs/reference/config/networking/
"""

import re
from http import HTTPStatus
from itertools import product
from typing import Annotated, Literal

import re2
from pydantic import AfterValidator, AliasChoices, Field, model_validator

from harness.manifests.base import (
    DNS,
    UINT32,
    Count,
    Duration,
    HostMetadata,
    IstioObject,
    Labels,
    Model,
    NotHere,
    Percent,
    Port,
    Unused,
    WholePercent,
    covers,
    one_of,
)

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False


def _regex(pattern: str) -> str:
    if not 0 < len(pattern) <= 1024:
        raise ValueError("a regular expression has 1 to 1024 characters")
    try:
        re2.compile(pattern, _OPTIONS)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
        raise ValueError(f"'{pattern}' is not a regular expression of RE2: {reason}") from None
    return pattern


def _host(name: str) -> str:
    if len(name) > 255 or not re.fullmatch(rf"(\*|(\*-?)?{DNS})(\.{DNS})*", name):
        raise ValueError(f"'{name}' is not a host such as recommendation or *.example.com")
    return name


def _one_host(name: str) -> str:
    if "*" in name:
        raise ValueError(f"'{name}' stands for many hosts: name one")
    return _host(name)


def _served_host(text: str) -> str:
    if not re.fullmatch(rf"(([.*]|{DNS})/)?(\*|(\*|{DNS})(\.{DNS})+)", text):
        raise ValueError(f"'{text}' is not '*' or a whole host such as shop.example.com, or namespace/host")
    return text


def _exported(to: list[str]) -> list[str]:
    known = all(re.fullmatch(rf"[.*]|{DNS}", name) for name in to)
    if not known or len(set(to)) < len(to) or ("*" in to and len(to) > 1):
        raise ValueError("is either '*', or '.' and names of namespaces, each once")
    return to


def _retry_on(conditions: str) -> str:
    for word in conditions.split(",") if conditions else ():
        if word not in _RETRIED and not (word.isdigit() and int(word) in set(HTTPStatus)):
            raise ValueError(f"'{word}' is no condition of Envoy's such as 5xx or reset, and no status")
    return conditions


_RETRIED = {
    "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx",
    "refused-stream", "retriable-status-codes", "retriable-headers", "envoy-ratelimited",
    "http3-post-connect-failure", "cancelled", "deadline-exceeded", "internal", "resource-exhausted",
    "unavailable",
}  # fmt: skip


def _header_value(value: str) -> str:
    if re.sub(r"%%|%[^%(]+(\(.*?\)[^%]*)?%", "", value).count("%"):
        raise ValueError("has a % that begins nothing: write %% for %")
    return value


Regex = Annotated[str, AfterValidator(_regex)]
Host = Annotated[str, AfterValidator(_host)]
GatewayName = Annotated[str, Field(pattern=rf"^({DNS}/)?{DNS}(\.{DNS})*$")]
SubsetName = Annotated[str, Field(pattern=rf"^{DNS}$")]
ExportTo = Annotated[list[str], AfterValidator(_exported)]
HeaderName = Annotated[str, Field(pattern=r"^[-!#$%&'*+.^_`|~0-9A-Za-z]+$")]
HeaderOrAuthority = Annotated[str, Field(pattern=r"^(:authority|[-!#$%&'*+.^_`|~0-9A-Za-z]+)$")]
HeaderValue = Annotated[str, Field(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]*$"), AfterValidator(_header_value)]


def is_authority(header: str) -> bool:
    """Say whether a header is the host of a request."""
    return header.lower() in (":authority", "host")


class StringMatch(Model):
    """How a text is compared: exact, prefix or regex (RE2, over the whole text); nothing: it is there."""

    exact: str | None = None
    prefix: Annotated[str | None, Field(min_length=1)] = None
    regex: Regex | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "StringMatch":
        if len(self.model_fields_set) > 1:
            raise ValueError("exact, prefix and regex exclude each other")
        return self


class WithoutMatch(StringMatch):
    """How a text is compared that must not be there."""

    regex: Annotated[str | None, AfterValidator(lambda r: r if r == "*" else _regex(r))] = None
    """``*`` stands for any value."""


class UriMatch(StringMatch):
    """How a path is compared."""

    prefix: str | None = None


class HTTPMatchRequest(Model):
    """Conditions that must all hold for a request."""

    name: str | None = None
    uri: UriMatch | None = None
    ignore_uri_case: bool = False
    method: StringMatch | None = None
    authority: StringMatch | None = None
    scheme: StringMatch | None = None
    headers: dict[HeaderName, StringMatch] = {}
    without_headers: dict[HeaderName, WithoutMatch] = {}
    query_params: dict[str, StringMatch] = {}
    port: Port | None = None
    """The port that the caller asked for."""
    gateways: list[GatewayName] = []
    stat_prefix: Unused = None
    source_labels: NotHere = None
    source_namespace: NotHere = None


class PortSelector(Model):
    """A port by number."""

    number: Port


class Destination(Model):
    """A Service, or a subset of its pods."""

    host: Annotated[str, AfterValidator(_one_host)]
    subset: Annotated[str, Field(pattern=rf"^({DNS})?$")] | None = None
    port: PortSelector | None = None


class HeaderOperations(Model):
    """What is done to the headers of a request, or of a reply."""

    set: dict[HeaderOrAuthority, HeaderValue] = {}
    add: dict[HeaderOrAuthority, HeaderValue] = {}
    remove: list[HeaderName] = []


class Headers(Model):
    """What is done to headers."""

    request: HeaderOperations = HeaderOperations()
    response: HeaderOperations = HeaderOperations()

    @model_validator(mode="after")
    def _keeps_the_host(self) -> "Headers":
        changed = [*self.request.remove, *self.response.set, *self.response.add, *self.response.remove]
        if any(map(is_authority, changed)):
            raise ValueError("the host of a request can be set, and nothing else: take it out")
        return self

    @property
    def authorities(self) -> list[str]:
        """What is set in place of the caller's host."""
        entries = [*self.request.set.items(), *self.request.add.items()]
        return [value for key, value in entries if is_authority(key)]


class HTTPRouteDestination(Model):
    """A destination and its share of the traffic."""

    destination: Destination
    weight: Annotated[int, Field(ge=0, le=UINT32 // 1000)] = 0
    headers: Headers = Headers()


class PercentValue(Model):
    """A percentage, in the form in which Istio nests it."""

    value: Percent = 0.0


class HTTPMirrorPolicy(Model):
    """One of several mirrors."""

    destination: Destination
    percentage: PercentValue | None = None


class RegexRewrite(Model):
    """What replaces the parts of a path that match."""

    match: Regex
    rewrite: Annotated[str, Field(min_length=1)]


class HTTPRewrite(Model):
    """What replaces the matched part of the path, and the host."""

    uri: str = ""
    authority: str = ""
    uri_regex_rewrite: RegexRewrite | None = None

    @model_validator(mode="after")
    def _is_any(self) -> "HTTPRewrite":
        if bool(self.uri) + bool(self.uri_regex_rewrite) > 1 or not (
            self.uri or self.uri_regex_rewrite or self.authority
        ):
            raise ValueError("needs authority, or one of uri and uriRegexRewrite")
        return self


class HTTPRetry(Model):
    """When to try again: ``attempts`` counts the retries, 0 turns them off."""

    attempts: Count = 0
    per_try_timeout: Duration | None = None
    retry_on: Annotated[str | None, AfterValidator(lambda words: words and _retry_on(words))] = None
    backoff: Duration | None = None
    retry_ignore_previous_hosts: bool = True
    retry_remote_localities: Unused = None

    @model_validator(mode="after")
    def _tries_again(self) -> "HTTPRetry":
        if not self.attempts and self.model_fields_set & {"per_try_timeout", "retry_on"}:
            raise ValueError("needs attempts, since 0 turns retries off")
        return self


class FaultDelay(Model):
    """A pause before a request is passed on; without a percentage no request is delayed."""

    fixed_delay: Duration
    percentage: PercentValue = PercentValue()
    percent: WholePercent = 0
    """Deprecated; it counts where there is no percentage."""
    exponential_delay: NotHere = None


class FaultAbort(Model):
    """A failure instead of passing a request on; without a percentage no request fails."""

    http_status: Annotated[int, Field(ge=200, le=599)]
    percentage: PercentValue = PercentValue()
    grpc_status: NotHere = None
    http2_error: Annotated[NotHere, Field(alias="http2Error")] = None


class HTTPFaultInjection(Model):
    """Faults to inject."""

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None

    @model_validator(mode="after")
    def _is_any(self) -> "HTTPFaultInjection":
        if not (self.delay or self.abort):
            raise ValueError("needs delay or abort")
        return self


class HTTPRoute(Model):
    """What happens to the requests that match."""

    name: str | None = None
    match: list[HTTPMatchRequest] = []
    redirect: NotHere = None
    direct_response: NotHere = None
    delegate: NotHere = None
    cors_policy: NotHere = None
    route: Annotated[list[HTTPRouteDestination], Field(min_length=1)]
    rewrite: HTTPRewrite | None = None
    headers: Headers = Headers()
    mirror: Destination | None = None
    mirrors: list[HTTPMirrorPolicy] = []
    mirror_percentage: PercentValue | None = None
    mirror_percent: Annotated[
        WholePercent | None,
        Field(validation_alias=AliasChoices("mirrorPercent", "mirror_percent")),
    ] = None
    """Deprecated; it counts where there is no mirrorPercentage."""
    timeout: Duration | None = None
    retries: HTTPRetry | None = None
    fault: HTTPFaultInjection | None = None

    @model_validator(mode="after")
    def _as_istio_validates(self) -> "HTTPRoute":
        if self.mirror and self.mirrors:
            raise ValueError("mirror and mirrors exclude each other")
        rewritten = [self.rewrite.authority] if self.rewrite and self.rewrite.authority else []
        for several in (rewritten + self.headers.authorities, *(r.headers.authorities for r in self.route)):
            if len(several) > 1:
                raise ValueError(f"the host of a request is set to {' and to '.join(several)}: choose one")
        if len(self.route) > 1 and not sum(r.weight for r in self.route):
            raise ValueError("no destination of several has a weight, so nothing would be sent: weigh them")
        return self

    @property
    def destinations(self) -> list[Destination]:
        """All that it names, mirrors too."""
        mirrors = [self.mirror] if self.mirror else [mirror.destination for mirror in self.mirrors]
        return [*(route.destination for route in self.route), *mirrors]

    def copies(self) -> list[tuple[Destination, float]]:
        """Return each mirror that gets traffic, with its percentage: absent is 100, 0 is no mirror."""
        old = None if self.mirror_percent is None else PercentValue(value=self.mirror_percent)
        single = [(self.mirror, self.mirror_percentage or old)] if self.mirror else []
        mirrors = single + [(m.destination, m.percentage) for m in self.mirrors]
        percentages = [(destination, p.value if p else 100.0) for destination, p in mirrors]
        return [(destination, percent) for destination, percent in percentages if percent > 0]


class VirtualServiceSpec(Model):
    """Routes for hosts."""

    hosts: Annotated[list[Host], Field(min_length=1)]
    gateways: Annotated[list[GatewayName], AfterValidator(lambda names: names or ["mesh"])] = ["mesh"]
    tcp: NotHere = None
    tls: NotHere = None
    http: Annotated[list[HTTPRoute], Field(min_length=1)]
    export_to: ExportTo = []

    @model_validator(mode="after")
    def _as_istio_validates(self) -> "VirtualServiceSpec":
        if "*" in self.hosts and "mesh" in self.gateways:
            raise ValueError("the host '*' is for gateways only: name the Service's host")
        if len(set(self.hosts)) < len(self.hosts):
            raise ValueError("a host stands twice")
        for wide, host in product((host for host in self.hosts if host.startswith("*")), self.hosts):
            if wide != host and covers(wide, host):
                raise ValueError(f"the host '{wide}' stands for '{host}', too: take one out")
        return self


class VirtualService(IstioObject):
    """How callers' requests are routed."""

    kind: Literal["VirtualService"]
    spec: VirtualServiceSpec


class Some(Model):
    """What must say something."""

    @model_validator(mode="after")
    def _is_any(self) -> "Some":
        if not any(getattr(self, field) for field in self.model_fields_set - {"port"}):
            raise ValueError("says nothing: take it out")
        return self


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


class HTTPSettings(Model):
    """Limits of requests; 0 is none."""

    http1_max_pending_requests: Annotated[Count, Field(alias="http1MaxPendingRequests")] = 0
    http2_max_requests: Annotated[Count, Field(alias="http2MaxRequests")] = 0
    max_requests_per_connection: Count = 0
    max_retries: Count = 0
    idle_timeout: Duration | None = None
    h2_upgrade_policy: Annotated[
        Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"], Field(alias="h2UpgradePolicy")
    ] = "DEFAULT"
    use_client_protocol: bool = False
    max_concurrent_streams: Count = 0
    http2_keep_alive: Annotated[NotHere, Field(alias="http2KeepAlive")] = None

    @model_validator(mode="after")
    def _chooses_a_protocol(self) -> "HTTPSettings":
        if self.use_client_protocol and self.h2_upgrade_policy == "UPGRADE":
            raise ValueError("useClientProtocol and h2UpgradePolicy: UPGRADE exclude each other")
        return self


class ConnectionPool(Model):
    """A fuse: what goes beyond it fails at once."""

    tcp: TCPSettings = TCPSettings()
    http: HTTPSettings = HTTPSettings()


class OutlierDetection(Model):
    """When a pod that fails gets no requests for a while."""

    consecutive_5xx_errors: Annotated[int | None, Field(ge=0, le=UINT32, alias="consecutive5xxErrors")] = None
    consecutive_gateway_errors: Annotated[int | None, Field(ge=0, le=UINT32)] = None
    consecutive_local_origin_failures: Annotated[int | None, Field(ge=0, le=UINT32)] = None
    split_external_local_origin_errors: bool = False
    interval: Duration | None = None
    base_ejection_time: Duration | None = None
    max_ejection_percent: WholePercent = 0
    min_health_percent: WholePercent = 0
    consecutive_errors: Unused = None
    """Deprecated, and without effect in Istio."""

    @model_validator(mode="after")
    def _tells_errors_apart(self) -> "OutlierDetection":
        if self.consecutive_local_origin_failures and not self.split_external_local_origin_errors:
            raise ValueError("consecutiveLocalOriginFailures needs splitExternalLocalOriginErrors: true")
        return self


class LoadBalancer(Model):
    """Which pod gets a request."""

    simple: Annotated[str, one_of("LEAST_REQUEST", "ROUND_ROBIN", "RANDOM", "LEAST_CONN", "UNSPECIFIED")] = (
        "UNSPECIFIED"
    )
    consistent_hash: NotHere = None
    locality_lb_setting: NotHere = None
    warmup_duration_secs: NotHere = None
    warmup: NotHere = None


class ClientTLS(Model):
    """How callers' proxies encrypt: not at all, on one machine."""

    mode: Annotated[str, one_of("ISTIO_MUTUAL", "DISABLE")] = "DISABLE"
    client_certificate: Unused = None
    private_key: Unused = None
    ca_certificates: Unused = None
    credential_name: Unused = None
    subject_alt_names: Unused = None
    sni: Unused = None
    insecure_skip_verify: Unused = None


class PolicySettings(Some):
    """How a proxy treats the destination, or a port of it."""

    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    load_balancer: LoadBalancer | None = None
    tls: ClientTLS | None = None


class PortTrafficPolicy(PolicySettings):
    """How a proxy treats one port of the destination."""

    port: PortSelector


class TrafficPolicy(PolicySettings):
    """How a proxy treats the destination."""

    port_level_settings: list[PortTrafficPolicy] = []
    tunnel: NotHere = None
    proxy_protocol: NotHere = None
    retry_budget: NotHere = None


class Subset(Model):
    """A name for some pods of a Service."""

    name: SubsetName
    labels: Labels = {}
    traffic_policy: TrafficPolicy | None = None


class DestinationRuleSpec(Model):
    """Subsets of a host."""

    host: Host
    subsets: list[Subset] = []
    traffic_policy: TrafficPolicy | None = None
    export_to: ExportTo = []
    workload_selector: NotHere = None

    @model_validator(mode="after")
    def _tells_subsets_apart(self) -> "DestinationRuleSpec":
        known: set[str] = set()
        for subset in self.subsets:
            if subset.name in known:
                raise ValueError(f"the subset '{subset.name}' stands twice")
            known.add(subset.name)
        return self


class DestinationRule(IstioObject):
    """The subsets of a Service, and the policies that hold for them."""

    kind: Literal["DestinationRule"]
    spec: DestinationRuleSpec


class GatewayPort(Model):
    """The port that callers use. The harness's gateway has but one, whatever its number here."""

    number: Port
    name: Annotated[str, Field(min_length=1)]
    protocol: Annotated[str, AfterValidator(str.upper), one_of("HTTP", "HTTP2", "GRPC")]


class GatewayServer(Model):
    """One listener of the ingress gateway."""

    port: GatewayPort
    hosts: Annotated[list[Annotated[str, AfterValidator(_served_host)]], Field(min_length=1)]
    name: Unused = None
    tls: NotHere = None
    bind: NotHere = None
    default_endpoint: NotHere = None


class GatewaySpec(Model):
    """What the ingress gateway serves."""

    selector: Labels = {}
    servers: Annotated[list[GatewayServer], Field(min_length=1)]

    @model_validator(mode="after")
    def _tells_ports_apart(self) -> "GatewaySpec":
        if len({server.port.name for server in self.servers}) < len(self.servers):
            raise ValueError("several servers need a port.name each")
        return self


class Gateway(IstioObject):
    """Where callers outside come in."""

    kind: Literal["Gateway"]
    metadata: HostMetadata
    spec: GatewaySpec
