"""Clusters: where requests can go, one for each port of a Service, and for each subset of that."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness import Json
from harness.manifests.base import Object
from harness.manifests.istio import (
    ConnectionPool,
    HTTPSettings,
    LoadBalancer,
    OutlierDetection,
    PolicySettings,
    TCPSettings,
    TrafficPolicy,
)
from harness.manifests.kubernetes import Service, ServicePort
from harness.manifests.lookup import full_host, host_of, of_kind, subsets, traffic_policy
from harness.manifests.podspec import Container
from harness.manifests.protocol import HTTP2
from harness.manifests.values import UINT32, seconds
from harness.rendering.values import Address, duration, given, typed

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
    return [each for where in ports(objects) for each in _clusters(objects, *where, endpoints)]


def ports(objects: Iterable[Object]) -> Iterator[tuple[Service, ServicePort]]:
    """Yield each port to which proxies send requests, with its Service."""
    for service in of_kind(objects, Service):
        yield from ((service, port) for port in service.spec.ports if port.protocol_name != "udp")


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
    wanted = (policy.load_balancer or LoadBalancer()).simple
    cluster["lb_policy"] = "LEAST_REQUEST" if wanted in ("UNSPECIFIED", "LEAST_CONN") else wanted
    # Where Istio finds out what callers speak, proxies go on in that: to HTTP/2 nobody is upgraded.
    upgrades = pool.http.h2_upgrade_policy == "UPGRADE"
    http2 = port.protocol_name in HTTP2 or bool(port.protocol_name and upgrades)
    if options := _http_options(pool.http, pool.tcp, http2=http2):
        cluster |= protocol_options(**options)
    return cluster


def protocol_options(**options: Any) -> Json:
    """Return the field of a cluster that says how proxies speak HTTP to it."""
    return {"typed_extension_protocol_options": {f"envoy.{PROTOCOLS}": typed(PROTOCOLS, **options)}}


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
            "thresholds": [{k: v or UINT32 for k, v in limits.items()} | {"track_remaining": True}]
        },
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }
    if keepalive := pool.tcp.tcp_keepalive:
        wanted = given(
            keepalive_probes=keepalive.probes,
            keepalive_time=keepalive.time and int(seconds(keepalive.time)),
            keepalive_interval=keepalive.interval and int(seconds(keepalive.interval)),
        )
        cluster["upstream_connection_options"] = {"tcp_keepalive": wanted}
    return cluster


def _outlier_detection(settings: OutlierDetection) -> Json:
    """Return when a pod is ejected, and which part of the pods must be left.

    Istio switches off what judges by success rate.
    """
    found = {"enforcing_success_rate": 0} | given(
        interval=duration(settings.interval),
        base_ejection_time=duration(settings.base_ejection_time),
        max_ejection_percent=settings.max_ejection_percent,
    )

    def count(errors: int | None, field: str) -> None:
        if errors is not None:
            found[field] = errors
            found[f"enforcing_{field}"] = 100 if errors else 0

    count(settings.consecutive_5xx_errors, "consecutive_5xx")
    count(settings.consecutive_gateway_errors, "consecutive_gateway_failure")
    if settings.split_external_local_origin_errors:
        found |= {"split_external_local_origin_errors": True, "enforcing_local_origin_success_rate": 0}
        count(settings.consecutive_local_origin_failures or None, "consecutive_local_origin_failure")
    panic = {"healthy_panic_threshold": {"value": settings.min_health_percent}}
    return {"outlier_detection": found, "common_lb_config": panic}


def _http_options(http: HTTPSettings, tcp: TCPSettings, *, http2: bool) -> Json:
    """Return which protocol a proxy speaks to pods, and how long its connections last."""
    common = given(
        idle_timeout=duration(http.idle_timeout or tcp.idle_timeout),
        max_requests_per_connection=http.max_requests_per_connection,
        max_connection_duration=duration(tcp.max_connection_duration),
    )
    streams = given(max_concurrent_streams=http.max_concurrent_streams)
    options = given(common_http_protocol_options=common)
    if http.use_client_protocol:
        both: Json = {"http_protocol_options": {}, "http2_protocol_options": streams}
        return options | {"use_downstream_protocol_config": both}
    if http2:
        return options | {"explicit_http_config": {"http2_protocol_options": streams}}
    return options and options | {"explicit_http_config": {"http_protocol_options": {}}}
