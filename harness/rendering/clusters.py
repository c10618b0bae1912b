"""Clusters: where requests can go, one for each port of a Service, and for each subset of that."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from harness import Json
from harness.manifests.base import Object, seconds
from harness.manifests.destinationrule import (
    ConnectionPool,
    HTTPSettings,
    LoadBalancer,
    OutlierDetection,
    PolicySettings,
    TCPKeepalive,
    TCPSettings,
    TrafficPolicy,
)
from harness.manifests.kubernetes import Container, Service, ServicePort
from harness.manifests.lookup import full_host, host_of, of_kind, subsets, traffic_policy
from harness.rendering.values import Address, duration, type_url

UNLIMITED = 4294967295

PROTOCOLS = "extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True)
class Endpoint:
    """Where a pod is reached, by which labels it is found, and what runs in it."""

    labels: Mapping[str, str]
    address: Address
    container: Container


def clusters(objects: Iterable[Object], endpoints: Iterable[Endpoint]) -> list[Json]:
    """Return a cluster for each port of each Service, and one for each subset of it."""
    objects, endpoints = list(objects), list(endpoints)
    return [
        cluster
        for service in of_kind(objects, Service)
        for port in service.spec.ports
        if port.protocol_name != "udp"
        for cluster in _clusters(objects, service, port, endpoints)
    ]


def _clusters(
    objects: list[Object], service: Service, port: ServicePort, endpoints: list[Endpoint]
) -> Iterator[Json]:
    host = host_of(service)
    pods = [e for e in endpoints if service.selects(e.labels) and e.container.serves(port.target)]
    policy = traffic_policy(objects, host)
    yield outbound_cluster(cluster_name(host, port.port), port, pods, _for_port(port, policy))
    for subset in subsets(objects, host).values():
        chosen = [e for e in pods if subset.labels.items() <= e.labels.items()]
        own = _for_port(port, subset.traffic_policy, policy)
        yield outbound_cluster(cluster_name(host, port.port, subset.name), port, chosen, own)


def cluster_name(host: str, port: int, subset: str | None = "") -> str:
    """Return what Istio calls the cluster of a host's port."""
    return f"outbound|{port}|{subset or ''}|{full_host(host)}"


def _for_port(port: ServicePort, *policies: TrafficPolicy | None) -> PolicySettings:
    """Return how a port is treated: each field as the first policy says that has it.

    Where a policy has settings of one port, that port takes nothing else from it, nor from those behind it.
    """
    found: dict[str, object] = {}
    for policy in filter(None, policies):
        own = [p for p in policy.port_level_settings if p.port and p.port.number == port.port]
        for field in ("connection_pool", "outlier_detection", "load_balancer"):
            if value := getattr(own[0] if own else policy, field):
                found.setdefault(field, value)
        if own:
            break
    return PolicySettings.model_construct(**found)  # type: ignore[arg-type]


def outbound_cluster(name: str, port: ServicePort, pods: list[Endpoint], policy: PolicySettings) -> Json:
    """Return a cluster that leads to pods, treated as a policy says."""
    pool = policy.connection_pool or ConnectionPool()
    cluster = static_cluster(name, [pod.address for pod in pods], pool)
    cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
    if policy.outlier_detection:
        cluster |= _outlier_detection(policy.outlier_detection)
    cluster["lb_policy"] = _lb_policy(policy.load_balancer or LoadBalancer())
    # Where Istio finds out what callers speak, proxies go on in that: to HTTP/2 nobody is upgraded.
    http2 = port.is_http2 or bool(port.protocol_name and pool.http.h2_upgrade_policy == "UPGRADE")
    if options := _protocol_options(pool.http, pool.tcp, http2=http2):
        cluster["typed_extension_protocol_options"] = {
            f"envoy.{PROTOCOLS}": {"@type": type_url(PROTOCOLS), **options}
        }
    return cluster


def static_cluster(name: str, addresses: Iterable[Address], pool: ConnectionPool | None = None) -> Json:
    """Return a cluster that leads to addresses."""
    pool = pool or ConnectionPool()
    limits = {
        "max_connections": pool.tcp.max_connections,
        "max_pending_requests": pool.http.http1_max_pending_requests,
        "max_requests": pool.http.http2_max_requests,
        "max_retries": pool.http.max_retries,
    }
    endpoints = [{"endpoint": {"address": address.render()}} for address in addresses]
    cluster: Json = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": duration(pool.tcp.connect_timeout or "10s"),
        "circuit_breakers": {
            "thresholds": [{k: v or UNLIMITED for k, v in limits.items()} | {"track_remaining": True}]
        },
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }
    if keepalive := pool.tcp.tcp_keepalive:
        cluster["upstream_connection_options"] = {"tcp_keepalive": _keepalive(keepalive)}
    return cluster


def _keepalive(settings: TCPKeepalive) -> Json:
    wanted = {
        "keepalive_probes": settings.probes,
        "keepalive_time": settings.time and int(seconds(settings.time)),
        "keepalive_interval": settings.interval and int(seconds(settings.interval)),
    }
    return {k: v for k, v in wanted.items() if v}


def _lb_policy(settings: LoadBalancer) -> str:
    default = {"UNSPECIFIED": "LEAST_REQUEST", "LEAST_CONN": "LEAST_REQUEST"}
    return default.get(settings.simple, settings.simple)


def _outlier_detection(settings: OutlierDetection) -> Json:
    """Return when a pod is ejected, and which part of the pods must be left.

    Istio switches off what judges by success rate.
    """
    found: Json = {"enforcing_success_rate": 0}

    def count(errors: int | None, field: str) -> None:
        if errors is not None:
            found[field] = errors
            found[f"enforcing_{field}"] = 100 if errors else 0

    count(settings.consecutive_5xx_errors, "consecutive_5xx")
    count(settings.consecutive_gateway_errors, "consecutive_gateway_failure")
    if settings.interval:
        found["interval"] = duration(settings.interval)
    if settings.base_ejection_time:
        found["base_ejection_time"] = duration(settings.base_ejection_time)
    if settings.max_ejection_percent:
        found["max_ejection_percent"] = settings.max_ejection_percent
    if settings.split_external_local_origin_errors:
        found |= {"split_external_local_origin_errors": True, "enforcing_local_origin_success_rate": 0}
        count(settings.consecutive_local_origin_failures or None, "consecutive_local_origin_failure")
    panic = {"healthy_panic_threshold": {"value": settings.min_health_percent}}
    return {"outlier_detection": found, "common_lb_config": panic}


def _protocol_options(http: HTTPSettings, tcp: TCPSettings, *, http2: bool) -> Json:
    """Return which protocol a proxy speaks to pods, and how long its connections last."""
    idle = http.idle_timeout or tcp.idle_timeout
    common = {
        "idle_timeout": idle and duration(idle),
        "max_requests_per_connection": http.max_requests_per_connection,
        "max_connection_duration": tcp.max_connection_duration and duration(tcp.max_connection_duration),
    }
    common = {k: v for k, v in common.items() if v}
    streams = {"max_concurrent_streams": http.max_concurrent_streams} if http.max_concurrent_streams else {}
    options: Json = {"common_http_protocol_options": common} if common else {}
    if http.use_client_protocol:
        both: Json = {"http_protocol_options": {}, "http2_protocol_options": streams}
        return options | {"use_downstream_protocol_config": both}
    if http2:
        return options | {"explicit_http_config": {"http2_protocol_options": streams}}
    return options and options | {"explicit_http_config": {"http_protocol_options": {}}}
