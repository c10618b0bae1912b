"""Rendering: manifests in, Envoy configuration out, with Istio's defaults."""

from typing import Any

import pytest
import yaml
from helpers import to, virtual_service

from harness.manifests.base import Object
from harness.manifests.istio import DestinationRule, VirtualService
from harness.manifests.read import parse, read
from harness.meshes.mesh import ISTIO, ROOT, WORKLOADS
from harness.rendering.clusters import Endpoint
from harness.rendering.clusters import clusters as render_clusters
from harness.rendering.routes import gateway_routes, sidecar_routes
from harness.rendering.values import Address

V1 = "outbound|8080|v1|recommendation.tutorial.svc.cluster.local"
V2 = "outbound|8080|v2|recommendation.tutorial.svc.cluster.local"
MIRROR_V2 = {"host": "recommendation", "subset": "v2"}


def objects(*others: Object) -> list[Object]:
    keys = {o.key for o in others}
    return [o for o in read(*WORKLOADS, *ISTIO) if o.key not in keys] + list(others)


def rendered(**http: Any) -> dict[str, Any]:
    """Return Envoy's one route for recommendation, given these fields of Istio's."""
    spec = {"hosts": ["recommendation"], "http": [{"route": [to("v1")], **http}]}
    [route] = routes(VirtualService.model_validate(virtual_service(spec)))
    return route


def routes(*others: Object, host: str = "recommendation") -> list[dict[str, Any]]:
    hosts = sidecar_routes(objects(*others))["virtual_hosts"]
    [found] = [h["routes"] for h in hosts if host in h["domains"]]
    return list(found)


def test_the_defaults_are_istios() -> None:
    action = rendered()["route"]
    assert action["cluster"] == V1
    assert action["timeout"] == "0s"
    policy = action["retry_policy"]
    assert policy["retry_on"] == "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
    assert (policy["num_retries"], policy["retriable_status_codes"]) == (2, [])
    assert "request_mirror_policies" not in action


@pytest.mark.parametrize(
    ("fields", "numerators"),
    [
        ({"mirror": MIRROR_V2}, [1_000_000]),
        ({"mirror": MIRROR_V2, "mirrorPercentage": {"value": 50}}, [500_000]),
        ({"mirror": MIRROR_V2, "mirrorPercentage": {"value": 10}}, [100_000]),
        ({"mirror": MIRROR_V2, "mirrorPercentage": {"value": 0.0001}}, [1]),
        ({"mirror": MIRROR_V2, "mirrorPercentage": {"value": 0}}, None),
        ({"mirrors": [{"destination": MIRROR_V2}, {"destination": MIRROR_V2, "percentage": {"value": 1}}]},
         [1_000_000, 10_000]),
    ],
)  # fmt: skip
def test_mirrors_are_sampled_in_millionths(fields: dict[str, Any], numerators: list[int] | None) -> None:
    policies = rendered(**fields)["route"].get("request_mirror_policies")
    if numerators is None:
        assert policies is None
        return
    assert [p["runtime_fraction"]["default_value"]["numerator"] for p in policies] == numerators
    for policy in policies:
        assert policy["cluster"] == V2
        assert policy["runtime_fraction"]["default_value"]["denominator"] == "MILLION"
        assert policy["disable_shadow_host_suffix_append"] is True
        assert policy["trace_sampled"] is False


def test_weights_become_weighted_clusters() -> None:
    action = rendered(route=[to("v1", 90), to("v2", 10)])["route"]
    assert action["weighted_clusters"] == {
        "clusters": [{"name": V1, "weight": 90}, {"name": V2, "weight": 10}]
    }


def test_each_match_becomes_a_route() -> None:
    match = [
        {"uri": {"exact": "/a"}, "method": {"exact": "POST"}},
        {"uri": {"prefix": "/b"}, "headers": {"x-a": {"regex": "a.*"}, "x-b": {"prefix": "b"}}},
    ]
    spec = {
        "hosts": ["recommendation"],
        "http": [{"match": match, "route": [to("v2")]}, {"route": [to("v1")]}],
    }
    found = routes(VirtualService.model_validate(virtual_service(spec)))
    assert [route["match"] for route in found] == [
        {"path": "/a", "headers": [{"name": ":method", "string_match": {"exact": "POST"}}]},
        {
            "prefix": "/b",
            "headers": [
                {"name": "x-a", "string_match": {"safe_regex": {"regex": "a.*"}}},
                {"name": "x-b", "string_match": {"prefix": "b"}},
            ],
        },
        {"prefix": "/"},
    ]
    assert [route["route"]["cluster"] for route in found] == [V2, V2, V1]


def test_timeout_retries_and_rewrite() -> None:
    retries = {"attempts": 3, "perTryTimeout": "250ms", "retryOn": "5xx, reset,429"}
    action = rendered(timeout="1m30s", retries=retries, rewrite={"uri": "/x"})["route"]
    assert action["timeout"] == "90.000s"
    assert action["prefix_rewrite"] == "/x"
    policy = action["retry_policy"]
    assert (policy["num_retries"], policy["per_try_timeout"]) == (3, "0.250s")
    assert policy["retry_on"] == "5xx,reset,retriable-status-codes"
    assert policy["retriable_status_codes"] == [429]
    assert "retry_policy" not in rendered(retries={"attempts": 0})["route"]


def test_faults() -> None:
    delay, abort = {"fixedDelay": "2s", "percentage": {"value": 5}}, {"httpStatus": 418}
    fault = rendered(fault={"delay": delay, "abort": abort})["typed_per_filter_config"][
        "envoy.filters.http.fault"
    ]
    assert fault["delay"]["fixed_delay"] == "2.000s"
    assert fault["delay"]["percentage"] == {"numerator": 50_000, "denominator": "MILLION"}
    assert fault["abort"]["http_status"] == 418
    assert fault["abort"]["percentage"]["numerator"] == 1_000_000


def test_a_service_without_routes_is_reached_and_any_other_host_is_not() -> None:
    [route] = routes(host="preference:8080")
    assert route["route"]["cluster"] == "outbound|8080||preference.tutorial.svc.cluster.local"
    [blocked] = routes(host="*")
    assert blocked["direct_response"]["status"] == 502


def test_the_gateway_serves_what_names_it() -> None:
    [host] = gateway_routes(objects())["virtual_hosts"]
    assert host["domains"] == ["*"]
    assert [route["match"] for route in host["routes"]] == [{"path": "/customer"}, {"prefix": "/customer/"}]
    assert all(route["route"]["prefix_rewrite"] == "/" for route in host["routes"])


@pytest.mark.parametrize(
    ("gateway", "service", "domains"),
    [
        (["*"], ["a.test", "b.test"], ["a.test", "b.test"]),
        (["a.test"], ["*"], ["a.test"]),
        (["a.test"], ["a.test", "b.test"], ["a.test"]),
        (["a.test"], ["b.test"], None),
    ],
)
def test_a_host_must_be_allowed_by_gateway_and_route(
    gateway: list[str], service: list[str], domains: list[str] | None
) -> None:
    text = (ROOT / "istio" / "gateway.yaml").read_text()
    text = text.replace('  hosts:\n    - "*"', f"  hosts: {service}").replace(
        '      hosts:\n        - "*"', f"      hosts: {gateway}"
    )
    found = gateway_routes(objects(*parse(text, "gateway.yaml")))["virtual_hosts"]
    assert [domain for host in found for domain in host["domains"]] == (domains or [])


def test_a_gateway_merges_the_routes_of_one_host_and_a_catch_all_stands_last() -> None:
    text = (ROOT / "istio" / "gateway.yaml").read_text()
    rest = text.split("---")[1].replace("name: customer", "name: rest")
    match = rest[rest.index("      match:") : rest.index("      rewrite:")]
    rest = rest.replace(match, "")
    [gateway, customer] = parse(text, "gateway.yaml")
    found = gateway_routes(objects(gateway, *parse(rest, "rest.yaml"), customer))["virtual_hosts"]
    assert [host["domains"] for host in found] == [["*"]]
    assert [r["match"] for r in found[0]["routes"]] == [
        {"path": "/customer"}, {"prefix": "/customer/"}, {"prefix": "/"}
    ]  # fmt: skip


def test_a_route_bears_the_name_of_its_rule_and_match_or_none() -> None:
    http = [
        {"name": "quote", "match": [{"name": "v2", "uri": {"prefix": "/v2"}}, {"method": {"exact": "PUT"}}],
         "route": [to("v1")]},
        {"match": [{"name": "v3", "uri": {"prefix": "/v3"}}], "route": [to("v1")]},
        {"route": [to("v1")]},
    ]  # fmt: skip
    [rule] = parse(yaml.safe_dump(virtual_service({"hosts": ["recommendation"], "http": http})), "names.yaml")
    assert [r["name"] for r in routes(rule)] == ["quote.v2", "quote", ".v3", ""]


def endpoint(port: int, **labels: str) -> Endpoint:
    return Endpoint(labels, Address("127.0.0.1", port))


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


def test_circuit_breakers_are_open_wide_unless_a_connection_pool_is_set() -> None:
    pool = {
        "tcp": {"maxConnections": 1, "connectTimeout": "5s"},
        "http": {
            "http1MaxPendingRequests": 2, "http2MaxRequests": 3,
            "maxRetries": 4, "maxRequestsPerConnection": 5,
        },
    }  # fmt: skip
    [rule] = read(ROOT / "istio" / "destination-rule.yaml")
    data = rule.model_dump(by_alias=True, exclude_unset=True)
    data["spec"]["subsets"][1]["trafficPolicy"] = {"connectionPool": pool}
    found = clusters(DestinationRule.model_validate(data))
    [open_wide], [fuse] = (found[name]["circuit_breakers"]["thresholds"] for name in (V1, V2))
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    assert [open_wide[limit] for limit in limits] == [4294967295] * 4
    assert [fuse[limit] for limit in limits] == [1, 2, 3, 4]
    assert (found[V1]["connect_timeout"], found[V2]["connect_timeout"]) == ("10.000s", "5.000s")
    [options] = found[V2]["typed_extension_protocol_options"].values()
    assert options["common_http_protocol_options"] == {"max_requests_per_connection": 5}
