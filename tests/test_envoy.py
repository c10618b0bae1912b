"""Rendering: manifests in, Envoy configuration out, with Istio's defaults."""

from typing import Any

import pytest
import yaml
from helpers import parse

from harness.manifests.base import Object
from harness.manifests.kubernetes import Deployment, Service
from harness.manifests.lookup import of_kind
from harness.manifests.read import read, to_document
from harness.meshes.mesh import ISTIO, ROOT, WORKLOADS
from harness.rendering.bootstrap import extension
from harness.rendering.clusters import Endpoint
from harness.rendering.clusters import clusters as render_clusters
from harness.rendering.routes import sidecar_routes
from harness.rendering.values import Address

V1 = "outbound|8080|v1|recommendation.tutorial.svc.cluster.local"
V2 = "outbound|8080|v2|recommendation.tutorial.svc.cluster.local"


def objects(*others: Object) -> list[Object]:
    keys = {o.key for o in others}
    return [o for o in read(*WORKLOADS, *ISTIO) if o.key not in keys] + list(others)


def routes(host: str, *others: Object) -> list[dict[str, Any]]:
    """Return a sidecar's routes for a host as callers name it."""
    hosts = sidecar_routes(objects(*others))["virtual_hosts"]
    return [route for h in hosts if host in h["domains"] for route in h["routes"]]


@pytest.mark.parametrize("host", ["recommendation", "recommendation.tutorial.svc.cluster.local."])
def test_callers_name_a_services_port_unless_it_is_80(host: str) -> None:
    assert [route["route"]["cluster"] for route in routes(f"{host}:8080")] == [V1]
    assert routes(host) == []
    recommendation = next(of_kind(read(WORKLOADS[2]), Service))
    [web] = parse(yaml.safe_dump(to_document(recommendation)).replace("port: 8080", "port: 80"), "web.yaml")
    assert len(routes(host, web)) == len(routes(f"{host}:80", web)) == 1


def test_a_service_without_routes_is_reached_and_any_other_host_is_not() -> None:
    [route] = routes("preference:8080")
    assert route["route"]["cluster"] == "outbound|8080||preference.tutorial.svc.cluster.local"
    [blocked] = routes("*")
    assert blocked["direct_response"]["status"] == 502


def test_the_sidecars_that_a_traffic_extension_selects_run_its_code() -> None:
    applied = objects(*read(ROOT / "istio" / "compare.yaml"))
    code = {
        workload.metadata.name: extension(applied, workload)["typed_config"].get("default_source_code")
        for workload in of_kind(applied, Deployment)
    }
    assert code["customer"] is code["preference"] is None
    assert code["recommendation-v1"] == code["recommendation-v2"]
    assert "dark-launch answer" in code["recommendation-v1"]["inline_string"]


def endpoint(port: int, **labels: str) -> Endpoint:
    workload = next(of_kind(read(WORKLOADS[0]), Deployment))
    return Endpoint(labels, Address("127.0.0.1", port), workload.container)


def clusters(*others: Object) -> dict[str, dict[str, Any]]:
    pods = [
        endpoint(1, app="recommendation", version="v1"),
        endpoint(2, app="recommendation", version="v2"),
        endpoint(3, app="customer", version="v1"),
    ]
    return {cluster["name"]: cluster for cluster in render_clusters(objects(*others), pods)}


def ports(cluster: dict[str, Any]) -> list[int]:
    [locality] = cluster["load_assignment"]["endpoints"]
    addresses = [e["endpoint"]["address"]["socket_address"] for e in locality["lb_endpoints"]]
    return [address["port_value"] for address in addresses]


def test_a_cluster_holds_the_pods_that_its_labels_select() -> None:
    found = clusters()
    assert ports(found[V1]) == [1]
    assert ports(found[V2]) == [2]
    assert ports(found["outbound|8080||recommendation.tutorial.svc.cluster.local"]) == [1, 2]
    assert ports(found["outbound|8080||preference.tutorial.svc.cluster.local"]) == []


def test_a_port_that_no_application_listens_at_has_no_pods() -> None:
    service = next(of_kind(read(WORKLOADS[2]), Service))
    [other] = parse(
        yaml.safe_dump(to_document(service)).replace("targetPort: http", "targetPort: metrics"), "other.yaml"
    )
    assert ports(clusters(other)[V1]) == []
