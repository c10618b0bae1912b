"""Routes: which requests go where."""

from collections.abc import Iterable

from harness import Json
from harness.manifests.base import Object
from harness.manifests.istio import (
    Destination,
    Gateway,
    HTTPMatchRequest,
    HTTPRetry,
    HTTPRoute,
    PercentValue,
    UriMatch,
    VirtualService,
)
from harness.manifests.kubernetes import Service
from harness.manifests.lookup import DOMAIN, find_service, host_names, of_kind, short_host
from harness.rendering.clusters import cluster_name
from harness.rendering.values import duration, type_url


def sidecar_routes(objects: Iterable[Object]) -> Json:
    """Return the routes of every sidecar: a virtual host for each Service, 502 for any other host."""
    objects = list(objects)
    hosts = []
    for service in of_kind(objects, Service):
        name = service.metadata.name
        virtual_service = _virtual_service_for(objects, name)
        if virtual_service:
            routes = [r for http in virtual_service.spec.http for r in _routes(objects, http)]
        else:
            default = {"cluster": cluster_name(service, ""), **_policies(None, None)}
            routes = [{"name": "default", "match": {"prefix": "/"}, "route": default}]
        domains = [d for host in host_names(name) for d in (host, f"{host}:{service.port}")]
        hosts.append({"name": f"{name}.{DOMAIN}:{service.port}", "domains": domains, "routes": routes})
    unknown = {"status": 502, "body": {"inline_string": "no such host in the mesh"}}
    block_all = {"name": "block_all", "match": {"prefix": "/"}, "direct_response": unknown}
    hosts.append({"name": "block_all", "domains": ["*"], "routes": [block_all]})
    return {"name": "sidecar", "virtual_hosts": hosts}


def _virtual_service_for(objects: list[Object], service: str) -> VirtualService | None:
    for virtual_service in of_kind(objects, VirtualService):
        in_mesh = "mesh" in virtual_service.spec.gateways
        if in_mesh and service in map(short_host, virtual_service.spec.hosts):
            return virtual_service
    return None


def gateway_routes(objects: Iterable[Object]) -> Json:
    """Return the routes of the ingress gateway: those of VirtualServices that name a Gateway.

    Of several for one host Istio makes one list, in which routes that match every request stand last.
    https://istio.io/latest/docs/ops/best-practices/traffic-management/#split-virtual-services
    """
    objects = list(objects)
    found: dict[str, list[Json]] = {}
    for gateway in of_kind(objects, Gateway):
        allowed = gateway.spec.servers[0].hosts
        for virtual_service in of_kind(objects, VirtualService):
            if gateway.metadata.name not in virtual_service.spec.gateways:
                continue
            wanted = virtual_service.spec.hosts
            domains = [h for h in wanted if "*" in allowed or h in allowed]
            if "*" in wanted:
                domains = list(allowed)
            routes = [r for http in virtual_service.spec.http for r in _routes(objects, http)]
            for domain in domains:
                found.setdefault(domain, []).extend(routes)
    hosts: list[Json] = [
        {"name": domain, "domains": [domain], "routes": sorted(routes, key=_is_catch_all)}
        for domain, routes in found.items()
    ]
    return {"name": "gateway", "virtual_hosts": hosts}


def _is_catch_all(route: Json) -> bool:
    return bool(route["match"] == {"prefix": "/"})


def _routes(objects: list[Object], http: HTTPRoute) -> list[Json]:
    """Return one Envoy route for each match (they are alternatives), or one that matches everything."""

    def cluster(destination: Destination) -> str:
        service = find_service(objects, destination.host)
        assert service, f"{destination.host} was checked"
        return cluster_name(service, destination.subset or "")

    action: Json = _policies(http.timeout, http.retries)
    shares = [(cluster(d), weight) for d, weight in _weights(http)]
    if len(shares) == 1:
        action["cluster"] = shares[0][0]
    else:
        action["weighted_clusters"] = {"clusters": [{"name": c, "weight": w} for c, w in shares]}
    if http.rewrite:
        action["prefix_rewrite"] = http.rewrite.uri
    if http.copies():
        action["request_mirror_policies"] = [
            {
                "cluster": cluster(destination),
                "runtime_fraction": {"default_value": _fraction(percent)},
                "trace_sampled": False,
                "disable_shadow_host_suffix_append": True,
            }
            for destination, percent in http.copies()
        ]
    fault = _fault(http)
    route: Json = {"route": action}
    if fault:
        route["typed_per_filter_config"] = {"envoy.filters.http.fault": fault}
    return [{"name": _name(http, m), "match": _match(m), **route} for m in http.match or [HTTPMatchRequest()]]


def _name(http: HTTPRoute, match: HTTPMatchRequest) -> str:
    """Return what the proxies log as the route's name, as in Istio: nothing unless the rule has a name."""
    return f"{http.name or ''}.{match.name}" if match.name else http.name or ""


def _weights(http: HTTPRoute) -> list[tuple[Destination, int]]:
    if len(http.route) == 1:
        return [(http.route[0].destination, 1)]
    return [(r.destination, r.weight) for r in http.route]


def _policies(timeout: str | None, retries: HTTPRetry | None) -> Json:
    """Return the time limit (none unless set) and the retries (two unless set) of a route."""
    policies: Json = {"timeout": duration(timeout) if timeout else "0s"}
    if retries and retries.attempts == 0:
        return policies
    retry_on = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
    codes: list[int] = []  # not even 503, since Istio 1.24
    if retries and retries.retry_on:
        words = [w.strip() for w in retries.retry_on.split(",") if w.strip()]
        codes = [int(w) for w in words if w.isdigit()]
        names = [w for w in words if not w.isdigit()]
        if codes and "retriable-status-codes" not in names:
            names.append("retriable-status-codes")
        retry_on = ",".join(names)
    policies["retry_policy"] = {
        "retry_on": retry_on,
        "num_retries": retries.attempts if retries else 2,
        "retriable_status_codes": codes,
        "host_selection_retry_max_attempts": 5,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": type_url("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")
                },
            }
        ],
    }
    if retries and retries.per_try_timeout:
        policies["retry_policy"]["per_try_timeout"] = duration(retries.per_try_timeout)
    return policies


def _match(request: HTTPMatchRequest) -> Json:
    match: Json = {"prefix": "/"}
    if request.uri:
        match = (
            {"path": request.uri.exact} if request.uri.exact is not None else {"prefix": request.uri.prefix}
        )
    headers = dict(request.headers)
    if request.method:
        headers[":method"] = request.method
    if headers:
        match["headers"] = [{"name": n, "string_match": _string_match(m)} for n, m in headers.items()]
    return match


def _string_match(match: UriMatch) -> Json:
    values: Json = match.model_dump(exclude_none=True)
    if "regex" in values:
        return {"safe_regex": values}
    return values


def _fault(http: HTTPRoute) -> Json | None:
    if not http.fault:
        return None
    fault: Json = {"@type": type_url("extensions.filters.http.fault.v3.HTTPFault")}
    if delay := http.fault.delay:
        percentage = _fraction(_percent(delay.percentage))
        fault["delay"] = {"fixed_delay": duration(delay.fixed_delay), "percentage": percentage}
    if abort := http.fault.abort:
        percentage = _fraction(_percent(abort.percentage))
        fault["abort"] = {"http_status": abort.http_status, "percentage": percentage}
    return fault


def _percent(value: PercentValue | None) -> float:
    return value.value if value else 100.0


def _fraction(percent: float) -> Json:
    return {"numerator": int(percent * 10_000), "denominator": "MILLION"}  # cut, as Istio does
