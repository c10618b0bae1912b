"""Render manifests for Envoy as Istio's control plane renders them. Pure: objects in, dictionaries out.

All sidecars share one list of clusters and one list of routes; the ingress gateway has routes of its own.
Defaults are Istio's, not Envoy's: no route timeout, two retries, unlimited circuit breakers, least-request
load balancing, no ``-shadow`` on a mirrored request's Host.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness import Json
from harness.manifests.base import Object, seconds
from harness.manifests.istio import (
    Destination,
    DestinationRule,
    Gateway,
    HTTPMatchRequest,
    HTTPRetry,
    HTTPRoute,
    PercentValue,
    TrafficPolicy,
    UriMatch,
    VirtualService,
)
from harness.manifests.kubernetes import Service
from harness.manifests.lookup import DOMAIN, NAMESPACE, find_service, host_names, of_kind, short_host, subsets

# https://istio.io/latest/docs/tasks/observability/logs/access-log/#default-access-log-format
ACCESS_LOG_FORMAT = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE%'
    " %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS%"
    ' "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION%'
    ' %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%"'
    ' "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW%'
    " %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS%"
    " %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)

UNLIMITED = 4294967295

# How every proxy is started. Istio's, too, are told to write their access logs without delay.
FLAGS = [
    "--reject-unknown-dynamic-fields",
    "--disable-hot-restart",
    "--concurrency",
    "1",
    "--log-level",
    "warning",
    "--file-flush-interval-msec",
    "100",
]


@dataclass(frozen=True)
class Address:
    """An IP address and a TCP port; port 0 lets the system choose."""

    ip: str
    port: int

    def render(self) -> Json:
        """Return Envoy's form of the address."""
        return {"socket_address": {"address": self.ip, "port_value": self.port}}


@dataclass(frozen=True)
class Endpoint:
    """Where a pod is reached, and by which labels it is found."""

    labels: Mapping[str, str]
    address: Address


# --- clusters: where requests can go ------------------------------------------------------------------


def clusters(objects: Iterable[Object], endpoints: Iterable[Endpoint]) -> list[Json]:
    """Return one cluster for each Service, and one for each subset of it."""
    objects, endpoints = list(objects), list(endpoints)
    rendered = []
    for service in of_kind(objects, Service):
        name = service.metadata.name
        rules = [r for r in of_kind(objects, DestinationRule) if short_host(r.spec.host) == name]
        policy = rules[0].spec.traffic_policy if rules else None
        pods = [e for e in endpoints if service.spec.selector.items() <= e.labels.items()]
        rendered.append(_cluster(_cluster_name(service, ""), pods, policy))
        for subset in subsets(objects, name).values():
            chosen = [e for e in pods if subset.labels.items() <= e.labels.items()]
            cluster_name = _cluster_name(service, subset.name)
            rendered.append(_cluster(cluster_name, chosen, subset.traffic_policy or policy))
    return rendered


def _cluster_name(service: Service, subset: str) -> str:
    return f"outbound|{service.port}|{subset}|{service.metadata.name}.{DOMAIN}"


def _cluster(name: str, pods: Iterable[Endpoint], policy: TrafficPolicy | None = None) -> Json:
    tcp = policy.connection_pool.tcp if policy else None
    http = policy.connection_pool.http if policy else None
    limits = {
        "max_connections": tcp and tcp.max_connections,
        "max_pending_requests": http and http.http1_max_pending_requests,
        "max_requests": http and http.http2_max_requests,
        "max_retries": http and http.max_retries,
    }
    cluster: Json = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": _duration((tcp and tcp.connect_timeout) or "10s"),
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {
            "thresholds": [{k: v or UNLIMITED for k, v in limits.items()} | {"track_remaining": True}]
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": pod.address.render()}} for pod in pods]}
            ],
        },
    }
    if http and http.max_requests_per_connection:
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _type("extensions.upstreams.http.v3.HttpProtocolOptions"),
                "common_http_protocol_options": {
                    "max_requests_per_connection": http.max_requests_per_connection
                },
                "explicit_http_config": {"http_protocol_options": {}},
            }
        }
    return cluster


# --- routes: which requests go where ------------------------------------------------------------------


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
            default = {"cluster": _cluster_name(service, ""), **_policies(None, None)}
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
    """Return the routes of the ingress gateway: those of VirtualServices that name a Gateway."""
    objects = list(objects)
    hosts = []
    for gateway in of_kind(objects, Gateway):
        allowed = gateway.spec.servers[0].hosts
        for virtual_service in of_kind(objects, VirtualService):
            if gateway.metadata.name not in virtual_service.spec.gateways:
                continue
            wanted = virtual_service.spec.hosts
            domains = [h for h in wanted if "*" in allowed or h in allowed]
            if "*" in wanted:
                domains = list(allowed)
            if domains:
                routes = [r for http in virtual_service.spec.http for r in _routes(objects, http)]
                hosts.append({"name": domains[0], "domains": domains, "routes": routes})
    return {"name": "gateway", "virtual_hosts": hosts}


def _routes(objects: list[Object], http: HTTPRoute) -> list[Json]:
    """Return one Envoy route for each match (they are alternatives), or one that matches everything."""

    def cluster(destination: Destination) -> str:
        service = find_service(objects, destination.host)
        assert service, f"{destination.host} was checked"
        return _cluster_name(service, destination.subset or "")

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
    route: Json = {"name": http.name or "default", "route": action}
    if fault:
        route["typed_per_filter_config"] = {"envoy.filters.http.fault": fault}
    return [{"match": _match(m), **route} for m in http.match or [HTTPMatchRequest()]]


def _weights(http: HTTPRoute) -> list[tuple[Destination, int]]:
    if len(http.route) == 1:
        return [(http.route[0].destination, 1)]
    return [(r.destination, r.weight) for r in http.route]


def _policies(timeout: str | None, retries: HTTPRetry | None) -> Json:
    """Return the time limit (none unless set) and the retries (two unless set) of a route."""
    policies: Json = {"timeout": _duration(timeout) if timeout else "0s"}
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
                    "@type": _type("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")
                },
            }
        ],
    }
    if retries and retries.per_try_timeout:
        policies["retry_policy"]["per_try_timeout"] = _duration(retries.per_try_timeout)
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
    fault: Json = {"@type": _type("extensions.filters.http.fault.v3.HTTPFault")}
    if delay := http.fault.delay:
        percentage = _fraction(_percent(delay.percentage))
        fault["delay"] = {"fixed_delay": _duration(delay.fixed_delay), "percentage": percentage}
    if abort := http.fault.abort:
        percentage = _fraction(_percent(abort.percentage))
        fault["abort"] = {"http_status": abort.http_status, "percentage": percentage}
    return fault


def _percent(value: PercentValue | None) -> float:
    return value.value if value else 100.0


def _fraction(percent: float) -> Json:
    return {"numerator": int(percent * 10_000), "denominator": "MILLION"}  # cut, as Istio does


def _duration(text: str) -> str:
    return f"{seconds(text):.3f}s"


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.{name}"


# --- the proxies themselves ---------------------------------------------------------------------------


def discovery_response(version: str, resource_type: str, resources: Iterable[Json]) -> Json:
    """Return what Envoy reads from a file of dynamic configuration; ``version`` comes back in its admin."""
    typed = [{"@type": _type(resource_type), **r} for r in resources]
    return {"version_info": version, "resources": typed}


CLUSTER = "config.cluster.v3.Cluster"
ROUTES = "config.route.v3.RouteConfiguration"


ANY_PORT = Address("127.0.0.1", 0)


def sidecar(
    name: str,
    xds: str,
    log: str,
    app: Address,
    *,
    inbound: Address = ANY_PORT,
    outbound: Address = ANY_PORT,
    admin: Address = ANY_PORT,
    status: Address | None = None,
    readiness: str = "/",
) -> Json:
    """Return the bootstrap of the sidecar of pod ``name``.

    :param xds: the folder of the files ``clusters.json`` and ``sidecar.json``, which Envoy watches.
    :param log: the access log's path.
    :param app: where the pod's application listens.
    :param inbound: where other proxies send requests for the application.
    :param outbound: where the application sends its own: an HTTP forward proxy.
    :param status: where to serve ``/stats``, and the application's path ``readiness``, to the harness if it
        cannot reach ``admin``.
    """
    inbound_cluster = f"inbound|{app.port}||"
    # Since Istio 1.24 a sidecar tries again what was reset before its application saw it.
    again = {"retry_policy": {"retry_on": "reset-before-request", "num_retries": 2}}
    to_app = {"name": "default", "match": {"prefix": "/"}, "route": {**_to(inbound_cluster), **again}}
    listeners = [
        _listener("inbound", inbound, log, {"route_config": _static_routes(inbound_cluster, [to_app])}),
        _listener("outbound", outbound, log, {"rds": _rds(xds, "sidecar")}),
    ]
    clusters = [_cluster(inbound_cluster, [Endpoint({}, app)])]
    probe = {"match": {"path": READINESS}, "route": {**_to(inbound_cluster), "prefix_rewrite": readiness}}
    return _bootstrap(f"sidecar~{name}", xds, listeners, clusters, admin, status, [probe])


def gateway(
    name: str, xds: str, log: str, inbound: Address, admin: Address = ANY_PORT, status: Address | None = None
) -> Json:
    """Return the bootstrap of the ingress gateway; it replaces a caller's ``x-request-id``."""
    rds = {"rds": _rds(xds, "gateway"), "use_remote_address": True}
    return _bootstrap(f"router~{name}", xds, [_listener("ingress", inbound, log, rds)], [], admin, status, [])


# As Istio's agent serves an application's probe to the kubelet.
READINESS = "/app-health/app/readyz"


def _bootstrap(
    node: str,
    xds: str,
    listeners: list[Json],
    clusters: list[Json],
    admin: Address,
    status: Address | None,
    probes: list[Json],
) -> Json:
    if status:
        stats = {"match": {"prefix": "/stats"}, "route": _to("admin")}
        routes = {"route_config": _static_routes("status", [stats, *probes])}
        listeners = [*listeners, _listener("status", status, None, routes)]
        clusters = [*clusters, _cluster("admin", [Endpoint({}, admin)])]
    return {
        "node": {"id": node, "cluster": NAMESPACE},
        "admin": {"address": admin.render()},
        "static_resources": {"listeners": listeners, "clusters": clusters},
        "dynamic_resources": {"cds_config": _file(f"{xds}/clusters.json")},
    }


def _to(cluster: str) -> Json:
    return {"cluster": cluster, "timeout": "0s"}


def _static_routes(name: str, routes: list[Json]) -> Json:
    return {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]}


def _rds(xds: str, name: str) -> Json:
    return {"route_config_name": name, "config_source": _file(f"{xds}/{name}.json")}


def _file(path: str) -> Json:
    return {"path_config_source": {"path": path}, "resource_api_version": "V3"}


def _listener(name: str, address: Address, log: str | None, settings: Json) -> Json:
    access_log = {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": _type("extensions.access_loggers.file.v3.FileAccessLog"),
            "path": log,
            "log_format": {"text_format_source": {"inline_string": ACCESS_LOG_FORMAT}},
        },
    }
    filters = [
        {
            "name": "envoy.filters.http.fault",
            "typed_config": {"@type": _type("extensions.filters.http.fault.v3.HTTPFault")},
        },
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": _type("extensions.filters.http.router.v3.Router")},
        },
    ]
    manager = {
        "@type": _type("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "normalize_path": True,
        "stream_idle_timeout": "0s",
        "access_log": [access_log] if log else [],
        "http_filters": filters,
        **settings,
    }
    network_filter = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {"name": name, "address": address.render(), "filter_chains": [{"filters": [network_filter]}]}
