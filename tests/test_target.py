"""The target: what routes promise is read from anybody's objects, and resolved to what runs."""

from dataclasses import replace
from typing import Any

import pytest
from scenes import PODS, documents, hop, scene, virtual_service

from harness import HarnessError
from harness.meshes.scene import Pod, Scene
from harness.proof.applied import GATEWAY, MESH
from harness.proof.attribution import Attribution
from harness.proof.target import Routing, Target


def to(subset: str = "v1", host: str = "recommendation", **more: Any) -> dict[str, Any]:
    return {"destination": {"host": host, "subset": subset} if subset else {"host": host}, **more}


MIRROR_V2 = {"host": "recommendation", "subset": "v2"}


def routing(*objects: dict[str, Any], **options: Any) -> Routing:
    return Routing(scene(*objects, **options), Target())


def words(*http: dict[str, Any], **options: Any) -> list[str]:
    found = routing(virtual_service(*http), **options)
    return [rule.expectation.describe(found.gone) for rule in found.rules]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("v1-only", "all to v1"),
        ("mirror", "all to v1; mirrored 100 % to v2"),
        ("mirror-10-percent", "all to v1; mirrored 10 % to v2"),
        ("canary", "90 % to v1, 10 % to v2"),
        ("promote", "all to v2"),
    ],
)
def test_each_state_promises_what_its_name_says(state: str, expected: str) -> None:
    found = routing(state=state)
    assert [rule.expectation.describe() for rule in found.rules] == [expected]
    assert [rule.written.title for rule in found.rules] == [state]


def test_without_a_route_every_version_answers() -> None:
    found = Routing(
        replace(scene(), objects=tuple(o for o in scene().objects if o["kind"] != "VirtualService")), Target()
    )
    assert [rule.expectation.describe() for rule in found.rules] == ["to v1 and v2"]
    assert Attribution(found).rule_of(hop(route="default"), MESH) == 0


def test_percentages_are_read_in_every_form() -> None:
    for field in (
        {"mirrorPercentage": {"value": 10}},
        {"mirrorPercentage": {"value": "10"}},
        {"mirrorPercent": 10},
        {"mirror_percent": 10},
    ):
        assert words({"route": [to()], "mirror": MIRROR_V2, **field}) == ["all to v1; mirrored 10 % to v2"]
    for nothing in ({"mirrorPercentage": {"value": 0}}, {"mirrorPercentage": {}}):
        assert words({"route": [to()], "mirror": MIRROR_V2, **nothing}) == ["all to v1"]
    several = {
        "mirrors": [{"destination": MIRROR_V2}, {"destination": MIRROR_V2, "percentage": {"value": 0.00019}}]
    }
    assert words({"route": [to()], **several}) == ["all to v1; mirrored 100 % to v2; mirrored 0.0001 % to v2"]


def test_a_version_without_a_pod_is_said_to_have_none() -> None:
    pods = {name: pod for name, pod in PODS.items() if name != "v2"}
    assert words({"route": [to()], "mirror": MIRROR_V2}, pods=pods) == [
        "all to v1; mirrored 100 % to v2 (no pod)"
    ]


def test_a_subset_whose_labels_no_pod_bears_is_not_the_version_of_its_name() -> None:
    rule = documents("destination-rule")[0]
    rule["spec"]["subsets"][1]["labels"] = {"version": "v2-typo"}
    objects = [o for o in scene().objects if o["kind"] != "DestinationRule"]
    found = Routing(replace(scene(), objects=(*objects, rule)), Target())
    assert (
        found.rules[0].expectation.describe(found.gone) == "all to v1; mirrored 100 % to subset v2 (no pod)"
    )
    assert set(found.versions) == {"v1", "v2", "subset v2"}
    assert (
        found.versions["subset v2"].problem
        == "no workload's pods bear the labels app=recommendation, version=v2-typo"
    )


def test_subsets_are_those_of_the_older_rule_for_the_host_or_else_of_a_wildcards() -> None:
    def versions(*rules: dict[str, Any]) -> str:
        objects = [o for o in scene().objects if o["kind"] != "DestinationRule"]
        found = Routing(replace(scene(), objects=(*objects, *rules)), Target())
        return found.rules[0].expectation.describe(found.gone)

    def rule(name: str, created: str, host: str, v2: str) -> dict[str, Any]:
        [written] = documents("destination-rule")
        written["metadata"] = {"name": name, "creationTimestamp": created}
        written["spec"]["host"] = host
        written["spec"]["subsets"][1]["labels"] = {"version": v2}
        return written

    wide = rule("wide", "2026-01-01T00:00:00Z", "*.tutorial.svc.cluster.local", "v2")
    typo = rule("typo", "2026-02-01T00:00:00Z", "recommendation", "v2-typo")
    right = rule("right", "2026-03-01T00:00:00Z", "recommendation", "v2")
    assert versions(wide) == "all to v1; mirrored 100 % to v2"
    assert versions(wide, right, typo) == "all to v1; mirrored 100 % to subset v2 (no pod)"
    assert versions(wide, right) == "all to v1; mirrored 100 % to v2"


@pytest.mark.parametrize(
    ("mirror", "problem"),
    [
        ({"host": "nowhere"}, "there is no Service 'nowhere'"),
        ({"host": "Recommendation"}, "there is no Service 'Recommendation'"),
        (
            {"host": "customer", "port": {"number": 9}},
            "Service 'customer' has no port 9",
        ),
        (
            {"host": "recommendation", "subset": "v9"},
            "no DestinationRule has a subset 'v9' of recommendation",
        ),
    ],
)
def test_a_mirror_that_leads_nowhere_is_a_version_without_a_pod(mirror: dict[str, Any], problem: str) -> None:
    found = routing(virtual_service({"route": [to()], "mirror": mirror}))
    name = mirror.get("subset", mirror["host"])
    assert found.rules[0].expectation.describe(found.gone) == f"all to v1; mirrored 100 % to {name} (no pod)"
    assert found.versions[name].problem == problem
    assert found.rules[0].problems == ()


def test_what_nobody_here_can_read_is_a_problem_of_its_rule() -> None:
    found = routing(virtual_service({"route": [to()], "mirror": {"host": "audit.other.svc.cluster.local"}}))
    [problem] = found.rules[0].problems
    assert "audit.other.svc.cluster.local" in problem


def test_a_mirror_to_several_versions_by_chance_is_a_problem() -> None:
    found = routing(virtual_service({"route": [to()], "mirror": {"host": "recommendation"}}))
    assert found.rules[0].problems == (
        "virtualservice/recommendation: the mirror to recommendation reaches v1 or v2 by chance: "
        "name a subset",
    )


def test_a_field_that_may_matter_and_is_not_understood_is_named() -> None:
    found = routing(virtual_service({"route": [to()], "delegate": {"name": "x"}, "corsPolicy": {}}))
    assert found.rules[0].problems == (
        "virtualservice/recommendation: spec.http[0].delegate is not understood",
    )


def test_hosts_are_read_as_istio_reads_them() -> None:
    for host in ("recommendation", "Recommendation", "recommendation.tutorial.svc.cluster.local",
                 "*.tutorial.svc.cluster.local", "*"):  # fmt: skip
        found = routing(
            virtual_service({"route": [to(host="recommendation.tutorial.svc.cluster.local")]}, hosts=[host])
        )
        assert found.rules[0].expectation.describe() == "all to v1", host
    other = routing(virtual_service({"route": [to()]}, hosts=["recommendation.other.svc.cluster.local"]))
    assert other.rules[0].written.source == "no route"


def test_a_rule_for_gateways_is_none_of_the_meshs() -> None:
    match = [{"gateways": ["ingress"], "uri": {"prefix": "/"}}]
    outside = {"match": match, "route": [to("v2")], "mirror": MIRROR_V2}
    found = routing(virtual_service(outside, {"route": [to()]}))
    assert [rule.expectation.describe() for rule in found.rules] == ["all to v1"]


def test_of_two_wildcards_the_longer_counts() -> None:
    wide = virtual_service({"route": [to("v2")]}, hosts=["*.cluster.local"])
    narrow = virtual_service({"route": [to()]}, hosts=["*.tutorial.svc.cluster.local"])
    narrow["metadata"] = {"name": "narrow"}
    assert routing(wide, narrow).rules[0].written.source == "virtualservice/narrow"


def test_on_a_port_that_is_not_http_no_rule_counts() -> None:
    found = scene()
    [service] = [o for o in found.of_kind("Service") if o["metadata"]["name"] == "recommendation"]
    service["spec"]["ports"][0] |= {"name": "tcp-data"}
    [rule] = Routing(found, Target()).rules
    assert rule.expectation.describe() == "to v1 and v2"
    assert "Istio takes the port of service/recommendation for tcp" in rule.problems[0]


def test_of_two_virtual_services_the_oldest_counts() -> None:
    old, new = virtual_service({"route": [to("v2")]}), virtual_service({"route": [to()]})
    old["metadata"] = {"name": "zzz", "creationTimestamp": "2026-01-01T00:00:00Z"}
    new["metadata"] = {"name": "aaa", "creationTimestamp": "2026-02-01T00:00:00Z"}
    assert routing(new, old).rules[0].expectation.describe() == "all to v2"


def test_what_is_not_exported_to_the_namespace_does_not_count() -> None:
    hidden = virtual_service({"route": [to()]}, exportTo=["elsewhere"])
    assert routing(hidden).rules[0].written.source == "no route"


def test_a_rule_is_told_by_the_routes_name_in_the_log() -> None:
    post = {
        "name": "post",
        "match": [{"name": "form"}, {"name": "json"}],
        "route": [to()],
        "mirror": MIRROR_V2,
    }
    found = Attribution(routing(virtual_service(post, {"name": "rest", "route": [to()]})))
    assert [found.rule_of(hop(route=r), MESH) for r in ("post.form", "post", "rest", "-", "x")] == [
        0,
        0,
        1,
        None,
        None,
    ]
    assert found.rule_of(hop(route="post"), GATEWAY) is None


def test_rules_that_differ_and_bear_one_name_are_not_told_apart() -> None:
    dark = {"name": "same", "match": [{"method": {"exact": "POST"}}], "route": [to()], "mirror": MIRROR_V2}
    rest = {"name": "same", "route": [to()]}
    assert Attribution(routing(virtual_service(dark, rest))).rule_of(hop(route="same"), MESH) is None
    alike = Attribution(routing(virtual_service(dark, {**rest, "mirror": MIRROR_V2})))
    assert alike.rule_of(hop(route="same"), MESH) == 0


def service(name: str, **selector: str) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": 9898}]
    metadata = {"name": name, "namespace": "shop"}
    return {"kind": "Service", "metadata": metadata, "spec": {"selector": selector, "ports": ports}}


def flagger() -> tuple[list[dict[str, Any]], dict[str, Pod]]:
    """Return a Service for each version, and a Gateway's VirtualService, as Flagger makes them."""
    answers = [
        {"destination": {"host": "podinfo-primary"}, "weight": 100},
        {"destination": {"host": "podinfo-canary"}, "weight": 0},
    ]
    routed = virtual_service({"route": answers, "mirror": {"host": "podinfo-canary"}})
    routed["metadata"] = {"name": "podinfo", "namespace": "shop"}
    routed["spec"] |= {"hosts": ["app.example.com", "podinfo"], "gateways": ["public", "mesh"]}
    objects = [
        service("podinfo", app="podinfo-primary"),
        service("podinfo-primary", app="podinfo-primary"),
        service("podinfo-canary", app="podinfo"),
        routed,
    ]
    one, two = {"9898": "9898"}, {"9898": "9898", "9999": "9999"}
    pods = {
        "p": Pod("p", "shop", "podinfo-primary", {"app": "podinfo-primary"}, ("10.1.0.1",), ports=one),
        "c": Pod("c", "shop", "podinfo", {"app": "podinfo"}, ("10.1.0.2",), ports=two),
        "gateway": PODS["gateway"],
        "web": Pod("web", "shop", "web", {}, ("10.1.0.3",)),
    }
    return objects, pods


def test_a_service_for_each_version_is_resolved_to_workloads() -> None:
    objects, pods = flagger()
    found = Routing(Scene("shop", tuple(objects), tuple(pods.values())), Target("podinfo", "shop"))
    assert {rule.expectation.describe() for rule in found.rules} == {
        "all to podinfo-primary; mirrored 100 % to podinfo"
    }
    assert {rule.written.scope for rule in found.rules} == {MESH, GATEWAY}
    web, gateway, attribution = pods["web"], pods["gateway"], Attribution(found)
    host = "outbound|80||podinfo-primary.shop.svc.cluster.local"
    assert attribution.is_for_target(web, hop(authority="podinfo", cluster=host))
    assert attribution.is_for_target(web, hop(authority="podinfo.shop:80", cluster=host))
    assert not attribution.is_for_target(web, hop(authority="podinfo-canary", cluster=host))
    assert attribution.is_for_target(gateway, hop(authority="app.example.com", cluster=host))
    assert attribution.version_of_call(hop(upstream="10.1.0.2:9898", cluster=host)) == "podinfo"
    assert attribution.version_of_call(hop(upstream="10.9.9.9:9898", cluster=host)) == "podinfo-primary"
    assert attribution.version_that_got("c", hop(cluster="inbound|9898||")) == "podinfo"
    assert attribution.version_that_got("c", hop(cluster="inbound|9999||")) is None


def test_only_the_callers_that_are_named_count() -> None:
    objects, pods = flagger()
    whole = Scene("shop", tuple(objects), tuple(pods.values()))
    call = hop(authority="podinfo", cluster="outbound|80||podinfo-primary.shop.svc.cluster.local")
    for callers, counts in (
        (("web",), True),
        (("shop/web",), True),
        (("shop/*",), True),
        (("podinfo",), False),
    ):
        attribution = Attribution(Routing(whole, Target("podinfo", "shop", callers)))
        assert attribution.is_for_target(pods["web"], call) is counts


def http_route(**rule: Any) -> dict[str, Any]:
    parents = [{"group": "", "kind": "Service", "name": "recommendation", "port": 8080}]
    return {"kind": "HTTPRoute", "metadata": {"name": "r"}, "spec": {"parentRefs": parents, "rules": [rule]}}


def test_an_http_route_of_the_service_overrules_virtual_services() -> None:
    copied = {
        "type": "RequestMirror",
        "requestMirror": {"backendRef": {"name": "recommendation-v2"}, "percent": 10},
    }
    backends = [{"name": "recommendation-v1", "port": 8080}]
    services = documents("gateway-api/versions")
    found = routing(*documents("v1-only"), *services, http_route(backendRefs=backends, filters=[copied]))
    assert [rule.expectation.describe() for rule in found.rules] == ["all to v1; mirrored 10 % to v2"]
    assert Attribution(found).rule_of(hop(route="tutorial.r.0"), MESH) == 0
    strange = http_route(backendRefs=backends, filters=[{"type": "ExtensionRef"}])
    assert routing(*services, strange).rules[0].problems == (
        "httproute/r: spec.rules[0].filters[0] (ExtensionRef) is not understood",
    )


def test_pods_of_rollouts_and_bare_pods_are_versions() -> None:
    pods = PODS | {
        "v2": Pod(
            "v2",
            "tutorial",
            "recommendation-7d9f",
            {"app": "recommendation", "version": "v2", "x": "y"},
            ("10.0.2.1",),
        ),
        "bare": Pod("bare", "tutorial", "bare", {"app": "recommendation"}, ("10.0.4.1",)),
    }
    found = routing(pods=pods)
    assert found.version_of_pod["bare"] == "bare"
    assert found.version_of_pod["v2"] == "recommendation-7d9f"  # two workloads bear the label version: v2


def test_a_service_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(
        HarnessError, match=r"no Service 'pricing' in namespace tutorial \(there are: customer, pref"
    ):
        Routing(scene(), Target("pricing"))


def test_a_caller_that_is_not_there_is_named() -> None:
    with pytest.raises(HarnessError, match=r"there is no workload 'nonsense' \(there are: customer, "):
        Routing(scene(), Target(callers=("nonsense",)))


def test_answers_are_compared_where_proxies_of_this_namespace_log_them() -> None:
    [extension] = documents("compare")
    for namespace, expected in (("tutorial", True), ("istio-system", True), ("seat-02", False)):
        there = {**extension, "metadata": {**extension["metadata"], "namespace": namespace}}
        assert Routing(scene(*documents("mirror"), there), Target()).logs_answers is expected
