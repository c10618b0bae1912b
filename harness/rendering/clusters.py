"""Clusters: where requests can go."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness import Json
from harness.manifests.base import Object
from harness.manifests.istio import DestinationRule, TrafficPolicy
from harness.manifests.kubernetes import Service
from harness.manifests.lookup import DOMAIN, of_kind, short_host, subsets
from harness.rendering.values import Address, duration, type_url

UNLIMITED = 4294967295


@dataclass(frozen=True)
class Endpoint:
    """Where a pod is reached, and by which labels it is found."""

    labels: Mapping[str, str]
    address: Address


def clusters(objects: Iterable[Object], endpoints: Iterable[Endpoint]) -> list[Json]:
    """Return one cluster for each Service, and one for each subset of it."""
    objects, endpoints = list(objects), list(endpoints)
    rendered = []
    for service in of_kind(objects, Service):
        name = service.metadata.name
        rules = [r for r in of_kind(objects, DestinationRule) if short_host(r.spec.host) == name]
        policy = rules[0].spec.traffic_policy if rules else None
        pods = [e for e in endpoints if service.spec.selector.items() <= e.labels.items()]
        rendered.append(static_cluster(cluster_name(service, ""), pods, policy))
        for subset in subsets(objects, name).values():
            chosen = [e for e in pods if subset.labels.items() <= e.labels.items()]
            rendered.append(
                static_cluster(cluster_name(service, subset.name), chosen, subset.traffic_policy or policy)
            )
    return rendered


def cluster_name(service: Service, subset: str) -> str:
    """Return what Istio calls the cluster of a Service's subset; no subset is ``""``."""
    return f"outbound|{service.port}|{subset}|{service.metadata.name}.{DOMAIN}"


def static_cluster(name: str, pods: Iterable[Endpoint], policy: TrafficPolicy | None = None) -> Json:
    """Return a cluster that leads to ``pods``."""
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
        "connect_timeout": duration((tcp and tcp.connect_timeout) or "10s"),
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
                "@type": type_url("extensions.upstreams.http.v3.HttpProtocolOptions"),
                "common_http_protocol_options": {
                    "max_requests_per_connection": http.max_requests_per_connection
                },
                "explicit_http_config": {"http_protocol_options": {}},
            }
        }
    return cluster
