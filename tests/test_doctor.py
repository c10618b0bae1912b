"""The doctor finds what keeps copies from v2, and nothing where all is well."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from helpers import shadow, wait_for

from harness import HarnessError, Json
from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.mesh import ISTIO, ROOT, WORKLOADS
from harness.meshes.scene import Pod, Scene
from harness.proof import doctor
from harness.proof.evidence import Claim
from harness.proof.target import Target
from harness.proof.verdict import Side, Verdict

Write = Callable[[str | list[dict[str, Any]]], Path]

HOST = "recommendation.tutorial.svc.cluster.local"
TARGET = Target("recommendation", "tutorial")
MIRROR_V2 = {"host": "recommendation", "subset": "v2"}


# --- a mesh at the moment when the doctor looks -------------------------------------------------------


@dataclass
class Still:
    """Stands in for a mesh: objects, pods, and what proxies say."""

    objects: list[Json]
    pods: dict[str, Pod]
    logs: dict[str, list[str]] = field(default_factory=dict)
    clusters: str = ""
    silent: set[str] = field(default_factory=set)
    draining: dict[str, str] = field(default_factory=dict)
    name = "cluster"

    def scene(self, namespace: str, callers: Iterable[str] = ()) -> Scene:
        return Scene("tutorial", tuple(self.objects), tuple(self.pods.values()))

    def request_log(self, pod: Pod) -> Iterator[str]:
        yield from self.logs.get(pod.workload, [])

    def ask_proxy(self, pod: Pod, query: str) -> str | None:
        return self.clusters if query == "clusters" else None

    def listeners(self, pod: Pod) -> list[Json]:
        path = "/dev/null" if pod.workload in self.silent else "/dev/stdout"
        drains = {"name": self.draining.get(pod.workload, ""), "draining_state": {}}
        return [{"name": "virtualInbound", "access_log": [{"path": path}]}, drains]

    def secrets(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        found = {o["metadata"]["name"]: o["stringData"] for o in self.objects if o["kind"] == "Secret"}
        return {name: values for name, values in found.items() if name in names}

    # --- changes ------------------------------------------------------------------------------------

    def get(self, kind: str, name: str = "recommendation") -> Json:
        """Return an object, to be changed."""
        return next(o for o in self.objects if o["kind"] == kind and o["metadata"]["name"] == name)

    def add(self, kind: str, name: str, spec: Json, namespace: str = "tutorial", **metadata: Any) -> None:
        """Apply one more object."""
        named = {"name": name, "namespace": namespace, **metadata}
        self.objects.append({"kind": kind, "metadata": named, "spec": spec})

    def change(self, workload: str, **fields: Any) -> None:
        """Change a pod."""
        self.pods[workload] = replace(self.pods[workload], **fields)


def documents(*paths: Path) -> list[Json]:
    found = [d for path in paths for d in yaml.safe_load_all(path.read_text())]
    for document in found:
        document["metadata"]["namespace"] = "tutorial"
        document["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    return found


@pytest.fixture
def still() -> Still:
    """Return a mesh in which all is well, with a mirror to v2."""
    folder = ROOT / "istio"
    objects = documents(*WORKLOADS, *ISTIO[:2], folder / "mirror.yaml")
    objects += documents(folder / "cluster" / "telemetry.yaml", folder / "cluster" / "security.yaml")
    pods = {}
    for number, found in enumerate([o for o in objects if o["kind"] == "Deployment"]):
        name, labels = found["metadata"]["name"], found["spec"]["template"]["metadata"]["labels"]
        pods[name] = Pod(f"{name}-abc", "tutorial", name, labels, (f"10.0.0.{number}",), {"http": "8080"})
    gateway = "istio-ingressgateway"
    pods[gateway] = Pod(gateway, "istio-system", gateway, {"istio": "ingressgateway"}, (), gateway=True)
    return Still(objects, pods)


def find(still: Still, target: Target = TARGET) -> list[str]:
    return [str(finding) for finding in doctor.examine(still, target)]


def only(still: Still, where: str, problem: str, remedy: str, target: Target = TARGET) -> None:
    """Check that there is one finding, and what it says."""
    found = doctor.examine(still, target)
    assert len(found) == 1, "\n".join(map(str, found))
    assert found[0].where == where
    assert problem in found[0].problem
    assert remedy in found[0].remedy
    assert "\n" not in str(found[0])


def sent(cluster: str, authority: str) -> str:
    """Return a line of a caller's proxy."""
    return (
        '[2026-01-01T00:00:00.000Z] "GET / HTTP/1.1" 200 - via_upstream - "-" 0 5 1 1 "-" "curl" '
        f'"00000000-0000-0000-0000-000000000000" "{authority}" "10.0.0.9:8080" {cluster} '
        "10.0.0.1:1 10.0.0.2:8080 10.0.0.1:2 - default"
    )


def refused(details: str) -> str:
    """Return a line of the proxy of a pod that refused a request."""
    return (
        f'[2026-01-01T00:00:00.000Z] "GET / HTTP/1.1" 403 - {details} - "-" 0 19 0 - "-" "curl" '
        '"00000000-0000-0000-0000-000000000000" "recommendation:8080" "-" inbound|8080|| '
        "- 10.0.0.2:8080 10.0.0.1:2 - default"
    )


# --- nothing ------------------------------------------------------------------------------------------


def test_a_mirrored_mesh_has_no_finding(still: Still) -> None:
    assert find(still) == []


@pytest.mark.parametrize("name", ["mirror-10-percent", "canary"])
def test_a_state_in_which_v2_gets_requests_has_no_finding(still: Still, name: str) -> None:
    still.get("VirtualService")["spec"] = documents(ROOT / "istio" / f"{name}.yaml")[0]["spec"]
    if name == "canary":
        write_to(still, "postgresql://live:secret@store/live")
    assert find(still) == []


def test_an_httproute_that_mirrors_has_no_finding(still: Still) -> None:
    folder = ROOT / "istio" / "gateway-api"
    still.objects.remove(still.get("VirtualService"))
    still.objects += documents(folder / "versions.yaml", folder / "mirror.yaml")
    assert find(still) == []


def test_a_service_that_does_not_exist_is_an_error(still: Still) -> None:
    with pytest.raises(HarnessError, match="no Service 'reviews'"):
        find(still, Target("reviews", "tutorial"))


# --- destinations -------------------------------------------------------------------------------------


def test_labels_that_no_workload_bears_are_found(still: Still) -> None:
    still.get("DestinationRule")["spec"]["subsets"][1]["labels"] = {"version": "v3"}
    where = "destinationrule/recommendation spec.subsets[1].labels"
    found = [line for line in find(still) if line.startswith(where)]
    assert len(found) == 1
    assert "no workload's pods bear the labels app=recommendation, version=v3" in found[0]
    assert "version=v2" in found[0].rpartition(": ")[2]


def test_a_mirror_whose_service_selects_nothing_is_found(still: Still) -> None:
    still.add("Service", "twin", {"selector": {"app": "twin"}, "ports": [{"name": "http", "port": 8080}]})
    still.get("VirtualService")["spec"]["http"][0]["mirror"] = {"host": "twin"}
    assert any(f.startswith("service/twin spec.selector: no workload's pods bear") for f in find(still))


def test_a_mirror_to_no_service_is_found(still: Still) -> None:
    still.get("VirtualService")["spec"]["http"][0]["mirror"] = {"host": "reviews"}
    where = "virtualservice/recommendation spec.http[0].mirror.host"
    problem = "there is no Service 'reviews', so this leads nowhere"
    remedy = "name one of customer, preference, recommendation, or create it"
    assert f"{where}: {problem}: {remedy}" in find(still)


def test_a_mirror_to_no_subset_is_found(still: Still) -> None:
    still.get("VirtualService")["spec"]["http"][0]["mirror"]["subset"] = "v9"
    where = "virtualservice/recommendation spec.http[0].mirror.subset"
    [line] = [line for line in find(still) if line.startswith(where)]
    assert "no DestinationRule has a subset 'v9' of recommendation" in line
    assert line.endswith("add it to destinationrule/recommendation spec.subsets, or name one of v1, v2")


def test_a_mirror_without_a_subset_is_found(still: Still) -> None:
    del still.get("VirtualService")["spec"]["http"][0]["mirror"]["subset"]
    where = "virtualservice/recommendation spec.http[0].mirror.subset"
    only(still, where, "recommendation-v1 or recommendation-v2, by chance", "name a subset")


# --- pods ---------------------------------------------------------------------------------------------


def test_a_v2_scaled_to_nothing_is_found(still: Still) -> None:
    still.get("Deployment", "recommendation-v2")["spec"]["replicas"] = 0
    del still.pods["recommendation-v2"]
    command = "kubectl -n tutorial scale deployment/recommendation-v2 --replicas=1"
    only(still, "deployment/recommendation-v2 spec.replicas", "v2 has no pod", command)


def test_a_v2_that_got_no_pods_is_found(still: Still) -> None:
    del still.pods["recommendation-v2"]
    only(still, "deployment/recommendation-v2", "v2 has no pod", "kubectl -n tutorial describe")


def test_a_v2_that_is_not_ready_is_found(still: Still) -> None:
    still.change("recommendation-v2", ready=False)
    where = "deployment/recommendation-v2 (recommendation-v2-abc)"
    only(still, where, "none of the pods of v2 is ready", "describe pod recommendation-v2-abc")


def test_a_v2_without_a_sidecar_is_found(still: Still) -> None:
    still.change("recommendation-v2", proxy=False)
    only(
        still,
        "deployment/recommendation-v2",
        "nobody sees what arrives",
        "label namespace tutorial istio-injection=enabled",
    )


def test_a_caller_that_wants_no_sidecar_is_found(still: Still) -> None:
    still.objects = [o for o in still.objects if o["kind"] != "PeerAuthentication"]
    still.change("customer", proxy=False)
    still.get("Deployment", "customer")["spec"]["template"]["metadata"]["labels"][
        "sidecar.istio.io/inject"
    ] = "false"
    where = 'deployment/customer spec.template.metadata.labels["sidecar.istio.io/inject"]'
    only(still, where, "nothing of that is mirrored", "take it out")


def test_a_pod_that_does_not_count_as_a_caller_needs_no_sidecar(still: Still) -> None:
    still.change("customer", proxy=False)
    assert find(still, Target("recommendation", "tutorial", ("preference",))) == []


def test_a_v2_with_a_service_of_its_own_is_no_caller(still: Still) -> None:
    folder = ROOT / "istio" / "gateway-api"
    still.objects.remove(still.get("VirtualService"))
    still.objects += documents(folder / "versions.yaml", folder / "mirror.yaml")
    still.change("recommendation-v2", proxy=False)
    only(still, "deployment/recommendation-v2", "of v2 has no sidecar", "rollout restart")


# --- ports --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "which"),
    [
        ({"name": "tcp-web"}, "name"),
        ({"name": "mysql"}, "name"),
        ({"name": "https"}, "name"),
        ({"name": "http", "appProtocol": "tcp"}, "appProtocol"),
        ({"port": 3306}, "port"),
    ],
)
def test_a_port_that_istio_does_not_route_as_http_is_found(still: Still, port: Json, which: str) -> None:
    still.get("Service")["spec"]["ports"] = [{"port": 8080, "targetPort": "http", **port}]
    only(still, f"service/recommendation spec.ports[0].{which}", "not for HTTP", "name the port http")


@pytest.mark.parametrize(
    "port",
    [
        {},
        {"name": "web"},
        {"name": "http2-x"},
        {"name": "grpc-web"},
        {"name": "tcp", "appProtocol": "http"},
        {"name": "tcp", "appProtocol": "kubernetes.io/h2c"},
    ],
)
def test_a_port_that_istio_routes_as_http_is_no_finding(still: Still, port: Json) -> None:
    still.get("Service")["spec"]["ports"] = [{"port": 8080, "targetPort": "http", **port}]
    assert find(still) == []


# --- security policies --------------------------------------------------------------------------------


def allow(principal: str) -> Json:
    return {"rules": [{"from": [{"source": {"principals": [principal]}}]}]}


def test_a_policy_that_keeps_the_caller_from_v2_is_found(still: Still) -> None:
    v1, v2 = {"app": "recommendation", "version": "v1"}, {"app": "recommendation", "version": "v2"}
    still.get("AuthorizationPolicy")["spec"]["selector"]["matchLabels"] = v1
    spec = {"selector": {"matchLabels": v2}, **allow("cluster.local/ns/tutorial/sa/customer")}
    still.add("AuthorizationPolicy", "dark", spec)
    only(
        still,
        "authorizationpolicy/dark spec.rules, authorizationpolicy/deny-all spec.rules",
        "v2 does not admit */ns/tutorial/sa/preference, as v1 does",
        "admit the principals that v1 admits",
    )


def test_a_policy_by_which_v2_admits_nobody_is_found(still: Still) -> None:
    still.objects = [o for o in still.objects if o["kind"] != "AuthorizationPolicy"]
    still.add("AuthorizationPolicy", "dark", {"selector": {"matchLabels": {"version": "v2"}}})
    [line] = find(still)
    assert line.startswith("authorizationpolicy/dark spec.rules: v2 does not admit */ns/tutorial/sa/customer")


def test_a_policy_that_is_written_otherwise_and_admits_the_caller_is_no_finding(still: Still) -> None:
    spec = {"selector": {"matchLabels": {"version": "v2"}}, **allow("*/sa/preference")}
    still.get("AuthorizationPolicy")["spec"]["selector"]["matchLabels"]["version"] = "v1"
    still.add("AuthorizationPolicy", "dark", spec)
    assert find(still) == []


def test_conditions_that_cannot_be_judged_are_no_finding(still: Still) -> None:
    rules = [{"from": [{"source": {"namespaces": ["tutorial"]}}]}]
    still.get("AuthorizationPolicy")["spec"]["selector"]["matchLabels"]["version"] = "v1"
    still.add("AuthorizationPolicy", "dark", {"selector": {"matchLabels": {"version": "v2"}}, "rules": rules})
    assert find(still) == []


def test_a_policy_that_denies_at_v2_alone_is_found(still: Still) -> None:
    spec = {"action": "DENY", "selector": {"matchLabels": {"version": "v2"}}, **allow("*")}
    still.add("AuthorizationPolicy", "shut", spec)
    only(still, "authorizationpolicy/shut spec.rules", "hold for v2, not for v1", "delete it")


def test_what_the_sidecar_of_v2_refused_is_found(still: Still) -> None:
    still.logs["recommendation-v2"] = [refused("rbac_access_denied_matched_policy[none]")] * 3
    only(
        still,
        "pod/recommendation-v2-abc",
        "refused 3 of the last 3 requests",
        "admit the callers' principals at v2",
    )


def test_plain_text_to_a_v2_that_wants_mutual_tls_is_found(still: Still) -> None:
    still.get("DestinationRule")["spec"]["subsets"][1]["trafficPolicy"] = {"tls": {"mode": "DISABLE"}}
    where = "destinationrule/recommendation spec.subsets[1].trafficPolicy.tls.mode"
    only(still, where, "peerauthentication/default is STRICT", "ISTIO_MUTUAL")


def test_mutual_tls_that_a_caller_without_a_sidecar_cannot_speak_is_found(still: Still) -> None:
    still.change("customer", proxy=False)
    assert any(
        line.startswith("peerauthentication/default spec.mtls.mode") and "customer has no sidecar" in line
        for line in find(still)
    )


# --- routes that do not count -------------------------------------------------------------------------


def test_a_mirror_of_a_gateway_alone_is_found(still: Still) -> None:
    still.get("VirtualService")["spec"]["gateways"] = ["ingress"]
    where = "virtualservice/recommendation spec.gateways"
    only(still, where, "only the gateway takes this mirror", "add 'mesh' there")


def test_a_mirror_of_a_gateway_that_alone_calls_is_no_finding(still: Still) -> None:
    spec = still.get("VirtualService")["spec"]
    spec["gateways"], spec["hosts"] = ["ingress"], ["shop.example.com"]
    assert find(still) == []


def test_a_gateway_that_leads_to_the_target_without_the_mirror_is_found(still: Still) -> None:
    http = [{"route": [{"destination": {"host": "recommendation", "subset": "v1"}}]}]
    still.add("VirtualService", "entry", {"hosts": ["*"], "gateways": ["ingress"], "http": http})
    found = [line for line in find(still) if line.startswith("virtualservice/entry")]
    assert found == [
        "virtualservice/entry spec.http[0]: a gateway leads to recommendation by this rule, "
        "and mirrors nothing of it: add the mirror to this rule, too"
    ]


def test_a_virtualservice_that_an_older_one_overrules_is_found(still: Still) -> None:
    spec = copy.deepcopy(still.get("VirtualService")["spec"])
    still.add("VirtualService", "younger", spec, creationTimestamp="2026-02-01T00:00:00Z")
    only(
        still,
        "virtualservice/younger spec.hosts",
        "virtualservice/recommendation is for this host too, and is older",
        "move its rules to virtualservice/recommendation",
    )


def test_a_virtualservice_that_an_httproute_overrules_is_found(still: Still) -> None:
    folder = ROOT / "istio" / "gateway-api"
    still.objects += documents(folder / "versions.yaml", folder / "mirror.yaml")
    where = "virtualservice/recommendation spec.hosts"
    only(still, where, "httproute/recommendation overrules it", "delete one of the two")


def test_a_route_that_is_not_exported_to_callers_is_found(still: Still) -> None:
    still.get("VirtualService")["spec"]["exportTo"] = ["istio-system"]
    where = "virtualservice/recommendation spec.exportTo: the sidecars of namespace tutorial"
    assert any(
        line.startswith(where) and line.endswith("add 'tutorial' or '*' there") for line in find(still)
    )


def test_subsets_that_are_not_exported_to_callers_are_found(still: Still) -> None:
    still.get("DestinationRule")["spec"]["exportTo"] = ["~"]
    only(still, "destinationrule/recommendation spec.exportTo", "are not told of it", "add 'tutorial'")


def test_a_service_that_is_not_exported_to_callers_is_found(still: Still) -> None:
    still.get("Service")["metadata"]["annotations"] = {"networking.istio.io/exportTo": "~"}
    where = "service/recommendation metadata.annotations[networking.istio.io/exportTo]"
    only(still, where, "not told of this Service", "add 'tutorial'")


def test_a_sidecar_resource_that_hides_the_target_is_found(still: Still) -> None:
    still.add("Sidecar", "narrow", {"egress": [{"hosts": ["istio-system/*", f"./customer.{HOST[15:]}"]}]})
    target = Target("recommendation", "tutorial", ("preference",))
    only(
        still,
        "sidecar/narrow spec.egress[0].hosts",
        "they leave recommendation out, so the sidecar of preference knows no route",
        f"add 'tutorial/{HOST}' there",
        target,
    )


@pytest.mark.parametrize("host", ["./*", "*/*", f"tutorial/{HOST}", "*/*.tutorial.svc.cluster.local"])
def test_a_sidecar_resource_that_shows_the_target_is_no_finding(still: Still, host: str) -> None:
    still.add("Sidecar", "narrow", {"egress": [{"hosts": [host]}]})
    assert find(still) == []


def test_a_sidecar_resource_of_who_does_not_call_is_no_finding(still: Still) -> None:
    hidden = {"workloadSelector": {"labels": {"app": "customer"}}, "egress": [{"hosts": ["istio-system/*"]}]}
    still.add("Sidecar", "narrow", hidden)
    still.logs["preference"] = [sent(f"outbound|8080|v1|{HOST}", "recommendation:8080")]
    assert find(still) == []


# --- access logs --------------------------------------------------------------------------------------


def test_a_telemetry_that_switches_access_logs_off_is_found(still: Still) -> None:
    off = {
        "selector": {"matchLabels": {"version": "v2"}},
        "accessLogging": [{"providers": [{"name": "envoy"}], "disabled": True}],
    }
    still.add("Telemetry", "quiet", off)
    only(still, "telemetry/quiet spec.accessLogging[0].disabled", "of recommendation-v2 log no req", "false")


def test_a_telemetry_with_a_filter_is_found(still: Still) -> None:
    still.get("Telemetry", "access-log")["spec"]["accessLogging"][0]["filter"] = {"expression": "false"}
    where = "telemetry/access-log spec.accessLogging[0].filter"
    assert any(line.startswith(where) for line in find(still))


def test_a_proxy_that_logs_nothing_is_found(still: Still) -> None:
    still.objects.remove(still.get("Telemetry", "access-log"))
    still.silent = {"recommendation-v2"}
    only(
        still,
        "service/recommendation",
        "of recommendation-v2 log no requests",
        "apply a Telemetry whose spec.accessLogging",
    )


@pytest.mark.parametrize("listener", ["virtualInbound", "10.96.0.7_8080"])
def test_a_proxy_that_drains_where_requests_to_the_target_pass_is_found(still: Still, listener: str) -> None:
    still.draining = {"preference": listener}
    only(still, "the sidecars of preference", "take the old configuration", "wait 45 seconds")


def test_a_proxy_that_drains_where_a_neighbours_requests_passed_is_no_finding(still: Still) -> None:
    still.draining = {"preference": "10.96.0.9_7000"}
    assert find(still) == []


# --- fuses and loops ----------------------------------------------------------------------------------


def cluster(**numbers: int) -> str:
    """Return what a caller's proxy says of v2's cluster."""
    name = f"outbound|8080|v2|{HOST}"
    limits = [f"{name}::default_priority::{n}::{v}" for n, v in numbers.items() if n.startswith("max")]
    used = [f"{name}::10.0.0.3:8080::{n}::{v}" for n, v in numbers.items() if not n.startswith("max")]
    return "\n".join([*limits, *used, f"{name}::10.0.0.3:8080::health_flags::healthy"])


def test_a_fuse_that_is_blown_is_found(still: Still) -> None:
    pool = {"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}
    still.get("DestinationRule")["spec"]["subsets"][1]["trafficPolicy"] = {"connectionPool": pool}
    still.clusters = cluster(max_connections=1, max_pending_requests=1, cx_active=1, rq_active=1)
    target = Target("recommendation", "tutorial", ("preference",))
    where = "destinationrule/recommendation spec.subsets[1].trafficPolicy.connectionPool.tcp.maxConnections"
    only(still, where, "the fuse is blown: 1 requests of preference wait", "raise the limit", target)


def test_a_fuse_whose_connections_are_idle_is_no_finding(still: Still) -> None:
    pool = {"tcp": {"maxConnections": 1}}
    still.get("DestinationRule")["spec"]["subsets"][1]["trafficPolicy"] = {"connectionPool": pool}
    still.clusters = cluster(max_connections=1, cx_active=1, rq_active=0)
    assert find(still) == []


def test_a_pod_that_outlier_detection_ejected_is_found(still: Still) -> None:
    still.get("DestinationRule")["spec"]["trafficPolicy"] = {"outlierDetection": {"interval": "1s"}}
    still.clusters = cluster().replace("healthy", "/failed_outlier_check")
    target = Target("recommendation", "tutorial", ("preference",))
    where = "destinationrule/recommendation spec.trafficPolicy.outlierDetection"
    only(still, where, "preference sends nothing to 10.0.0.3:8080 of v2", "why v2 fails", target)


def test_a_mirror_that_leads_back_is_found(still: Still) -> None:
    still.get("VirtualService")["spec"]["http"][0]["mirror"] = {"host": "customer"}
    still.logs["customer"] = [sent(f"outbound|8080||preference.{HOST[15:]}", "preference:8080")]
    still.logs["preference"] = [sent(f"outbound|8080|v1|{HOST}", "recommendation:8080")]
    found = [
        line for line in find(still) if line.startswith("virtualservice/recommendation spec.http[0].mirror")
    ]
    assert found == [
        "virtualservice/recommendation spec.http[0].mirror: a copy leads back to the target, in a loop: "
        "customer -> preference -> recommendation: "
        "mirror to a version that does not call the target, or to a Service of its own"
    ]


def test_a_loop_that_a_run_saw_is_found(still: Still) -> None:
    [found] = doctor.examine(still, TARGET, ("recommendation-v2 -> recommendation",))
    assert "recommendation-v2 -> recommendation" in found.problem


# --- rules --------------------------------------------------------------------------------------------


def rule(**fields: Any) -> Json:
    return {"route": [{"destination": {"host": "recommendation", "subset": "v1"}}], **fields}


def test_rules_without_a_name_that_expect_different_things_are_found(still: Still) -> None:
    post = rule(match=[{"method": {"exact": "POST"}}])
    still.get("VirtualService")["spec"]["http"] = [post, rule(mirror=MIRROR_V2)]
    where = "virtualservice/recommendation spec.http[0], virtualservice/recommendation spec.http[1]"
    only(still, where, "these rules have no name", "'name' of its own")


def test_rules_with_names_of_their_own_are_no_finding(still: Still) -> None:
    post = rule(name="post", match=[{"method": {"exact": "POST"}}])
    still.get("VirtualService")["spec"]["http"] = [post, rule(name="rest", mirror=MIRROR_V2)]
    assert find(still) == []


def test_a_field_that_is_not_understood_is_found(still: Still) -> None:
    still.get("VirtualService")["spec"]["http"][0]["delegate"] = {"name": "other"}
    where = "virtualservice/recommendation spec.http[0].delegate"
    only(still, where, "not understood", "take it out")


@pytest.mark.parametrize(
    ("percent", "words"), [(0, "takes the mirror away"), (0.00001, "Istio cuts it to 0")]
)
def test_a_percentage_that_mirrors_nothing_is_found(still: Still, percent: float, words: str) -> None:
    still.get("VirtualService")["spec"]["http"][0]["mirrorPercentage"] = {"value": percent}
    where = "virtualservice/recommendation spec.http[0].mirrorPercentage.value"
    [line] = [line for line in find(still) if line.startswith(where)]
    assert words in line


def test_a_percentage_that_mirrors_seldom_is_found(still: Still) -> None:
    still.get("VirtualService")["spec"]["http"][0]["mirrorPercentage"] = {"value": 0.02}
    where = "virtualservice/recommendation spec.http[0].mirrorPercentage.value"
    only(still, where, "mirrors one request in 5,000", "raise it")


def test_a_version_that_no_rule_leads_to_is_found(still: Still) -> None:
    del still.get("VirtualService")["spec"]["http"][0]["mirror"]
    only(still, "virtualservice/recommendation", "no rule leads to v2", "add a mirror to v2")


def test_a_service_without_a_route_is_found(still: Still) -> None:
    still.objects.remove(still.get("VirtualService"))
    only(still, "service/recommendation", "v1 and v2 answer callers by chance", "apply a route")


# --- objects of any shape -----------------------------------------------------------------------------

WRONG: list[Any] = [None, [], {}, "x", 7, [None], [{}], {"x": None}]


def places(found: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value in an object."""
    pairs = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


def rich(still: Still) -> Still:
    """Return a mesh with an object of each kind that the doctor reads."""
    pool = {"connectionPool": {"tcp": {"maxConnections": 1}}, "tls": {"mode": "DISABLE"}}
    still.get("DestinationRule")["spec"]["subsets"][1]["trafficPolicy"] = pool
    still.get("VirtualService")["spec"]["http"][0] |= {"mirrorPercentage": {"value": 10}}
    mirrors = [{"destination": MIRROR_V2, "percentage": {"value": 50}}]
    spec = {"hosts": ["*"], "gateways": ["ingress"], "http": [rule(mirrors=mirrors)], "exportTo": ["."]}
    still.add("VirtualService", "entry", spec)
    still.add(
        "Sidecar", "narrow", {"workloadSelector": {"labels": {"app": "a"}}, "egress": [{"hosts": ["./*"]}]}
    )
    still.get("Service")["metadata"]["annotations"] = {"networking.istio.io/exportTo": "*"}
    still.objects += documents(ROOT / "istio" / "gateway-api" / "mirror-10-percent.yaml")
    still.objects[-1]["spec"]["parentRefs"].append({"name": "entry"})
    return still


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_objects_of_any_shape_raise_nothing_unforeseen(still: Still, wrong: Any) -> None:
    whole = rich(still)
    kept = [o for o in whole.objects if o["kind"] != "Deployment" or "v2" in o["metadata"]["name"]]
    for i, found in enumerate(kept):
        for path in places(found):
            if "containers" in path:
                continue
            mutilated = copy.deepcopy(found)
            inner = mutilated
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = wrong
            whole.objects = [*kept[:i], mutilated, *kept[i + 1 :]]
            try:
                doctor.examine(whole, TARGET)
            except HarnessError:
                continue


def test_an_object_that_cannot_be_read_is_a_finding(still: Still) -> None:
    still.add(
        "VirtualService",
        "odd",
        {"hosts": ["recommendation"], "http": [{"route": [{}]}]},
        creationTimestamp="1",
    )
    assert (
        "virtualservice/odd: its shape is not understood, so it is passed over: see 'istioctl analyze'"
        in find(still)
    )


@pytest.mark.parametrize("wrong", [None, "x", {}, {"kind": "Service"}, {"kind": 1, "metadata": {"name": 2}}])
def test_what_is_no_object_is_passed_over(still: Still, wrong: Any) -> None:
    still.objects.append(wrong)
    assert find(still) == []


# --- below a verdict ----------------------------------------------------------------------------------


def verdict_with(*claims: Claim) -> Verdict:
    return Verdict(
        "run", "recommendation.tutorial", 1, "", claims, (), Side("callers", 0, {}, None, None, None)
    )


def test_a_verdict_that_passes_needs_no_doctor(still: Still) -> None:
    del still.pods["recommendation-v2"]
    passed = verdict_with(Claim("answered", "", "holds", ""))
    assert doctor.explained(still, TARGET, passed) is passed


def test_a_verdict_that_fails_bears_what_is_found_and_what_it_saw(still: Still) -> None:
    del still.pods["recommendation-v2"]
    looped = Claim("no-loop", "", "fails", "recommendation-v2 -> recommendation")
    found = doctor.explained(still, TARGET, verdict_with(looped)).findings
    assert [line.partition(":")[0] for line in found] == [
        "deployment/recommendation-v2",
        "virtualservice/recommendation spec.http[0].mirror",
    ]


def test_a_verdict_bears_eight_findings_at_most(still: Still) -> None:
    fields = {f"odd{number}": 1 for number in range(20)}
    still.get("VirtualService")["spec"]["http"][0] |= fields
    failed = verdict_with(Claim("answered", "", "fails", ""))
    assert len(find(still)) == 20
    assert len(doctor.explained(still, TARGET, failed).findings) == 8


def test_a_verdict_stays_as_it_is_where_nothing_can_be_found(still: Still) -> None:
    failed = verdict_with(Claim("answered", "", "fails", ""))
    assert doctor.explained(still, Target("reviews", "tutorial"), failed) is failed


# --- real proxies -------------------------------------------------------------------------------------


def state(name: str) -> Path:
    return ROOT / "istio" / f"{name}.yaml"


def call(mesh: EnvoyMesh) -> bool:
    assert requests.get(mesh.url(), timeout=30).ok
    return True


def examined(mesh: EnvoyMesh) -> list[str]:
    return [str(finding) for finding in doctor.examine(mesh, Target())]


def test_real_proxies_that_mirror_have_no_finding(mesh: EnvoyMesh) -> None:
    mesh.apply(state("fuse"))
    mesh.apply(state("mirror"))
    call(mesh)
    assert examined(mesh) == []


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_a_stopped_v2_is_found(mesh: EnvoyMesh) -> None:
    mesh.apply(state("mirror"))
    mesh.scale("recommendation-v2", 0)
    remedy = "run 'make start W=recommendation-v2'"
    assert examined(mesh) == [
        f"deployment/recommendation-v2 spec.replicas: it is 0, so v2 has no pod: {remedy}"
    ]


@pytest.mark.of_any_mesh
def test_real_proxies_tell_of_a_blown_fuse(mesh: EnvoyMesh, manifest: Write) -> None:
    rules = yaml.safe_load(state("destination-rule").read_text())
    pool = {"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}
    rules["spec"]["subsets"][1]["trafficPolicy"] = {"connectionPool": pool}
    mesh.apply(manifest([*shadow("v2", DELAY="60"), rules]))
    mesh.apply(state("mirror"))
    [line] = wait_for(lambda: call(mesh) and examined(mesh), "a finding", 40)  # one by one they wait for v2
    where = "destinationrule/recommendation spec.subsets[1].trafficPolicy.connectionPool.tcp.maxConnections"
    assert line.startswith(
        f"{where}: the fuse is blown: 1 requests of preference wait for v2, no more than 1 may"
    )


@pytest.mark.of_any_mesh
def test_real_proxies_tell_of_a_loop(mesh: EnvoyMesh, manifest: Write) -> None:
    route = yaml.safe_load(state("mirror").read_text())
    route["spec"]["http"][0]["mirror"] = {"host": "customer"}
    mesh.apply(manifest([route]))
    call(mesh)
    words = "a copy leads back to the target, in a loop: customer -> preference -> recommendation"
    wait_for(lambda: any(words in line for line in examined(mesh)), "the loop")


# --- what the versions write --------------------------------------------------------------------------

WRITES = "deployment/recommendation-v2 DATABASE_URL"


def write_to(still: Still, url: str) -> None:
    """Let v2 write elsewhere."""
    still.get("Secret", "recommendation-v2")["stringData"]["DATABASE_URL"] = url


def test_a_mirror_of_writes_to_the_callers_store_is_found_and_one_of_reads_is_none(still: Still) -> None:
    write_to(still, "postgresql://live:secret@store/live")
    only(still, WRITES, "writes them to v1's database 'live' as well", "mirror nothing that writes")
    http = still.get("VirtualService")["spec"]["http"]
    for methods in (["GET"], ["GET", "HEAD"]):
        http[0]["match"] = [{"method": {"exact": method}} for method in methods]
        assert find(still) == []
    http[0]["match"] = [{"method": {"regex": "GET|HEAD"}}]
    assert find(still) == []
    for matches in (
        [{"method": {"exact": "GET"}}, {"method": {"exact": "POST"}}],
        [{"method": {"regex": "GET|POST"}}],
        [{"method": {"prefix": "G"}}],
        [{"uri": {"prefix": "/"}}],
    ):
        http[0]["match"] = matches
        assert len(find(still)) == 1


def test_a_role_that_may_not_write_where_it_is_pointed_is_found(still: Still) -> None:
    write_to(still, "postgresql://shadow:secret@store/live")
    only(still, WRITES, "where v2's role 'shadow' may not write", "give v2 its own")


def test_a_password_is_in_no_finding(still: Still) -> None:
    write_to(still, "postgresql://live:secret@store/live")
    assert "secret" not in "".join(find(still))


def test_a_version_that_answers_callers_from_the_shadow_is_found(still: Still) -> None:
    still.get("VirtualService")["spec"]["http"] = [
        {"route": [{"destination": {"host": "recommendation", "subset": "v2"}}]}
    ]
    [_, found] = find(still)  # nor does a rule lead to v1 any more
    assert found.startswith(f"{WRITES}: v2 answers callers, but writes to 'shadow'")
    assert "give it the live database first" in found
