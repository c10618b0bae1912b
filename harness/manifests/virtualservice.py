"""The VirtualService: how callers' requests are routed.

What Istio's own validation refuses is refused here, too.
https://istio.io/latest/docs/reference/config/networking/virtual-service/
"""

from collections.abc import Iterator
from itertools import product
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, Field

from harness.manifests import values
from harness.manifests.base import IstioObject, Model, fields


class StringMatch(Model):
    """How a text is compared: exact, prefix or regex (RE2, over the whole text); nothing: it is there."""

    exact: str | None = None
    prefix: Annotated[str | None, Field(min_length=1)] = None
    regex: values.Regex | None = None

    def problems(self) -> Iterator[str]:
        if len(self.model_fields_set) > 1:
            yield "exact, prefix and regex exclude each other"


class WithoutMatch(StringMatch):
    """How a text is compared that must not be there."""

    regex: values.RegexOrAny | None = None
    """``*`` stands for any value."""


class UriMatch(StringMatch):
    """How a path is compared."""

    prefix: str | None = None


@fields(unused="statPrefix", only_cluster="sourceLabels sourceNamespace")
class HTTPMatchRequest(Model):
    """Conditions that must all hold for a request."""

    name: str | None = None
    uri: UriMatch | None = None
    ignore_uri_case: bool = False
    method: StringMatch | None = None
    authority: StringMatch | None = None
    scheme: StringMatch | None = None
    headers: dict[values.HeaderName, StringMatch] = {}
    without_headers: dict[values.HeaderName, WithoutMatch] = {}
    query_params: dict[str, StringMatch] = {}
    port: values.Port | None = None
    """The port that the caller asked for."""
    gateways: list[values.GatewayName] = []


class PortSelector(Model):
    """A port by number."""

    number: values.Port


class Destination(Model):
    """A Service, or a subset of its pods."""

    host: values.OneHost
    subset: values.SubsetOrAll | None = None
    port: PortSelector | None = None


class HeaderOperations(Model):
    """What is done to the headers of a request, or of a reply."""

    set: dict[values.HeaderOrAuthority, values.HeaderValue] = {}
    add: dict[values.HeaderOrAuthority, values.HeaderValue] = {}
    remove: list[values.HeaderName] = []


class Headers(Model):
    """What is done to headers."""

    request: HeaderOperations = HeaderOperations()
    response: HeaderOperations = HeaderOperations()

    def problems(self) -> Iterator[str]:
        changed = [*self.request.remove, *self.response.set, *self.response.add, *self.response.remove]
        if any(map(values.is_authority, changed)):
            yield "the host of a request can be set, and nothing else: take it out"

    @property
    def authorities(self) -> list[str]:
        """What is set in place of the caller's host."""
        entries = [*self.request.set.items(), *self.request.add.items()]
        return [value for key, value in entries if values.is_authority(key)]


class HTTPRouteDestination(Model):
    """A destination and its share of the traffic."""

    destination: Destination
    weight: Annotated[int, Field(ge=0, le=values.UINT32 // 1000)] = 0
    headers: Headers = Headers()


class PercentValue(Model):
    """A percentage, in the form in which Istio nests it."""

    value: values.Percent = 0.0


class HTTPMirrorPolicy(Model):
    """One of several mirrors."""

    destination: Destination
    percentage: PercentValue | None = None


class RegexRewrite(Model):
    """What replaces the parts of a path that match."""

    match: values.Regex
    rewrite: Annotated[str, Field(min_length=1)]


class HTTPRewrite(Model):
    """What replaces the matched part of the path, and the host."""

    uri: str = ""
    authority: str = ""
    uri_regex_rewrite: RegexRewrite | None = None

    def problems(self) -> Iterator[str]:
        if bool(self.uri) + bool(self.uri_regex_rewrite) > 1 or not (
            self.uri or self.uri_regex_rewrite or self.authority
        ):
            yield "needs authority, or one of uri and uriRegexRewrite"


@fields(unused="retryRemoteLocalities")
class HTTPRetry(Model):
    """When to try again: ``attempts`` counts the retries, 0 turns them off."""

    attempts: values.Count = 0
    per_try_timeout: values.Duration | None = None
    retry_on: values.RetryOn | None = None
    backoff: values.Duration | None = None
    retry_ignore_previous_hosts: bool = True

    def problems(self) -> Iterator[str]:
        if not self.attempts and self.model_fields_set & {"per_try_timeout", "retry_on"}:
            yield "needs attempts, since 0 turns retries off"


@fields(only_cluster="exponentialDelay")
class FaultDelay(Model):
    """A pause before a request is passed on; without a percentage no request is delayed."""

    fixed_delay: values.Duration
    percentage: PercentValue = PercentValue()
    percent: values.WholePercent = 0
    """Deprecated; it counts where there is no percentage."""


@fields(only_cluster="grpcStatus http2Error")
class FaultAbort(Model):
    """A failure instead of passing a request on; without a percentage no request fails."""

    http_status: Annotated[int, Field(ge=200, le=599)]
    percentage: PercentValue = PercentValue()


class HTTPFaultInjection(Model):
    """Faults to inject."""

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None

    def problems(self) -> Iterator[str]:
        if not (self.delay or self.abort):
            yield "needs delay or abort"


@fields(only_cluster="corsPolicy delegate directResponse redirect")
class HTTPRoute(Model):
    """What happens to the requests that match."""

    name: str | None = None
    match: list[HTTPMatchRequest] = []
    route: Annotated[list[HTTPRouteDestination], Field(min_length=1)]
    rewrite: HTTPRewrite | None = None
    headers: Headers = Headers()
    mirror: Destination | None = None
    mirrors: list[HTTPMirrorPolicy] = []
    mirror_percentage: PercentValue | None = None
    mirror_percent: Annotated[
        values.WholePercent | None,
        Field(validation_alias=AliasChoices("mirrorPercent", "mirror_percent")),
    ] = None
    """Deprecated; it counts where there is no mirrorPercentage."""
    timeout: values.Duration | None = None
    retries: HTTPRetry | None = None
    fault: HTTPFaultInjection | None = None

    def problems(self) -> Iterator[str]:
        if self.mirror and self.mirrors:
            yield "mirror and mirrors exclude each other"
        rewritten = [self.rewrite.authority] if self.rewrite and self.rewrite.authority else []
        for several in (rewritten + self.headers.authorities, *(r.headers.authorities for r in self.route)):
            if len(several) > 1:
                yield f"the host of a request is set to {' and to '.join(several)}: choose one"
        if len(self.route) > 1 and not sum(r.weight for r in self.route):
            yield "no destination of several has a weight, so nothing would be sent: weigh them"

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


@fields(only_cluster="tcp tls")
class VirtualServiceSpec(Model):
    """Routes for hosts."""

    hosts: Annotated[list[values.Host], Field(min_length=1)]
    gateways: Annotated[list[values.GatewayName], AfterValidator(lambda names: names or ["mesh"])] = ["mesh"]
    http: Annotated[list[HTTPRoute], Field(min_length=1)]
    export_to: values.ExportTo = []

    def problems(self) -> Iterator[str]:
        if "*" in self.hosts and "mesh" in self.gateways:
            yield "the host '*' is for gateways only: name the Service's host"
        if len(set(self.hosts)) < len(self.hosts):
            yield "a host stands twice"
        for wide, host in product((host for host in self.hosts if host.startswith("*")), self.hosts):
            if wide != host and values.covers(wide, host):
                yield f"the host '{wide}' stands for '{host}', too: take one out"


class VirtualService(IstioObject):
    """How callers' requests are routed."""

    spec: VirtualServiceSpec
