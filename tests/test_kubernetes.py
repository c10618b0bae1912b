"""What a real cluster does with manifests, and what is said of it: pytest --mesh cluster."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import route, shadow, wait_for

from harness.cluster import readiness
from harness.cluster.mesh import ClusterMesh
from harness.meshes.mesh import ROOT, MeshError
from harness.proof import doctor
from harness.proof.report import table
from harness.proof.status import status_of
from harness.proof.target import Target
from harness.proof.watch import verify

pytestmark = pytest.mark.only_on_cluster

Write = Callable[[str | list[dict[str, Any]]], Path]

MIRROR = ROOT / "istio" / "mirror.yaml"


@pytest.fixture
def other(mesh: ClusterMesh) -> Iterator[ClusterMesh]:
    """Yield another namespace, which somebody made by hand."""
    there = ClusterMesh(namespace=f"{mesh.namespace}-other")
    there.kubectl.run("create", "namespace", there.namespace)
    yield there
    there.kubectl.run("delete", "namespace", there.namespace, timeout=120)


def as_everybody_does(mesh: ClusterMesh, *documents: dict[str, Any]) -> None:
    """Apply objects by plain kubectl."""
    mesh.kubectl.run("apply", "--filename=-", given=yaml.safe_dump_all(documents))


def written(path: str) -> list[dict[str, Any]]:
    return [*yaml.safe_load_all((ROOT / path).read_text())]


def told(mesh: ClusterMesh) -> str:
    """Return what the doctor finds."""
    return "\n".join(map(str, doctor.examine(mesh, Target())))


# --- pods that cannot run -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"image": "localhost:1/no/such:image"}, "Err|ImagePull"), ({"command": ["false"]}, "CrashLoopBackOff")],
)
def test_a_pod_that_cannot_start_is_said_at_once_and_harms_nobody(
    mesh: ClusterMesh, manifest: Write, changed: dict[str, Any], reason: str
) -> None:
    [broken] = shadow("v2")
    broken["spec"]["template"]["spec"]["containers"][0] |= changed
    with pytest.raises(MeshError, match=f"recommendation-v2 does not become ready: ({reason})"):
        mesh.apply(manifest([broken]))
    mesh.apply(MIRROR)
    verdict = verify(mesh, Target(), 50)
    assert verdict.passed, table(verdict)  # the pod that ran runs on


def test_a_namespace_that_lets_no_pod_in_is_told_before_anything_is_built(other: ClusterMesh) -> None:
    bounds = {"limits": [{"type": "Container", "max": {"memory": "1Mi"}}]}
    limit = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "tiny"}, "spec": bounds}
    as_everybody_does(other, limit)
    other.kubectl.run("label", "namespace", other.namespace, "istio-injection=enabled")
    with pytest.raises(MeshError, match=r"maximum memory usage per Container is 1Mi"):
        other.up()
    assert other.kubectl.items("deployments") == []


def test_a_version_of_which_no_new_pod_could_be_made_is_found(mesh: ClusterMesh) -> None:
    bounds = {"limits": [{"type": "Container", "max": {"memory": "1Mi"}}]}
    limit = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "tiny"}, "spec": bounds}
    mesh.apply(MIRROR)
    as_everybody_does(mesh, limit)
    try:
        found = told(mesh)
    finally:
        mesh.kubectl.run("delete", "limitrange", "tiny")
    assert "deployment/recommendation-v2: no new pod of v2 could be made: [maximum memory" in found


# --- routes that do not count -------------------------------------------------------------------------


def test_an_older_route_of_another_namespace_rules_and_is_named(
    mesh: ClusterMesh, other: ClusterMesh
) -> None:
    host = f"recommendation.{mesh.namespace}.svc.cluster.local"
    mesh.delete(ROOT / "istio" / "v1-only.yaml")
    [theirs] = written("istio/promote.yaml")
    theirs["metadata"]["name"] = "theirs"
    theirs["spec"]["hosts"] = [host]
    for each in theirs["spec"]["http"]:
        each["route"][0]["destination"]["host"] = host
    as_everybody_does(other, theirs)
    with pytest.raises(MeshError, match=rf"virtualservice/theirs of namespace {other.namespace} is .* older"):
        mesh.apply(MIRROR)
    assert "virtualservice/theirs: all to v2" in "\n".join(status_of(mesh, Target()))


def test_an_http_route_rules_and_is_in_the_status(mesh: ClusterMesh) -> None:
    mesh.apply(*(ROOT / "istio" / "gateway-api" / f"{name}.yaml" for name in ("versions", "mirror")))
    with pytest.raises(MeshError, match=r"httproute/recommendation of namespace .* comes before"):
        mesh.apply(ROOT / "istio" / "canary.yaml")
    status = "\n".join(status_of(mesh, Target()))
    assert "httproute/recommendation: all to v1; mirrored 100 % to v2" in status


def test_an_envoy_filter_that_keeps_a_route_from_the_proxies_is_named(
    mesh: ClusterMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = f"recommendation.{mesh.namespace}.svc.cluster.local"
    match = {"context": "SIDECAR_OUTBOUND", "routeConfiguration": {"vhost": {"name": f"{host}:8080"}}}
    to_v2 = {"operation": "MERGE", "value": {"route": {"cluster": f"outbound|8080|v2|{host}"}}}
    spec = {"configPatches": [{"applyTo": "HTTP_ROUTE", "match": match, "patch": to_v2}]}
    api = {"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter"}
    as_everybody_does(mesh, {**api, "metadata": {"name": "strange"}, "spec": spec})
    monkeypatch.setattr(readiness, "ROUTE_DEADLINE", 15.0)
    try:
        with pytest.raises(
            MeshError, match=r"it leads all to v2.*; envoyfilter/strange of namespace"
        ) as caught:
            mesh.apply(MIRROR)
        assert "does not have the route after 15 s" in str(caught.value)
    finally:
        mesh.kubectl.run("delete", "envoyfilter", "strange")


def listeners(mesh: ClusterMesh) -> str:
    """Return the listeners of v1's proxy."""
    [v1] = [pod for pod in mesh.scene(mesh.namespace).pods if pod.workload == "recommendation-v1"]
    return mesh.ask_proxy(v1, "config_dump?resource=dynamic_listeners") or ""


def test_open_connections_that_keep_the_old_log_are_found(mesh: ClusterMesh) -> None:
    telemetry = ROOT / "istio" / "cluster" / "telemetry.yaml"
    [off] = written("istio/cluster/telemetry.yaml")
    off["spec"]["accessLogging"][0]["disabled"] = True
    mesh.apply(MIRROR)
    assert verify(mesh, Target(), 20).passed  # connections are open
    ports = [{"name": "tcp-quotes", "port": 7000}, {"name": "http", "port": 7001}]
    passing = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "passing"},
        "spec": {"ports": ports},
    }
    as_everybody_does(mesh, passing)
    wait_for(lambda: "_7000" in listeners(mesh), "the neighbour's listener")
    mesh.kubectl.run("delete", "service", "passing")
    wait_for(lambda: "draining_state" in listeners(mesh), "its end")
    assert "wait 45 seconds" not in told(mesh)
    as_everybody_does(mesh, off)
    wait_for(lambda: "log no requests" in told(mesh), "the end of the log")
    mesh.apply(telemetry)
    wait_for(lambda: "wait 45 seconds, then try again" in told(mesh), "the drain")


# --- what is left behind --------------------------------------------------------------------------------


def test_undeploy_removes_what_the_files_name_whoever_applied_it_and_nothing_else(other: ClusterMesh) -> None:
    [reviews] = route()
    reviews["metadata"] = {"name": "reviews"}
    note = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "note"}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "customer"}}
    ours = [*written("istio/canary.yaml"), *written("istio/destination-rule.yaml")]
    as_everybody_does(other, *ours, reviews, note, account)
    other.down()
    kinds = "virtualservices.networking.istio.io,destinationrules.networking.istio.io,configmaps"
    left = {found["metadata"]["name"] for found in other.kubectl.items(f"{kinds},serviceaccounts")}
    assert left >= {"reviews", "note", "customer"}
    assert "recommendation" not in left


def test_istios_gateway_is_deleted_though_the_gateway_api_has_one_too(mesh: ClusterMesh) -> None:
    path = ROOT / "istio" / "gateway.yaml"
    deleted = " ".join(mesh.delete(path))
    assert 'gateway.networking.istio.io "ingress" deleted' in deleted
    mesh.apply(path)
    assert "gateway/ingress" in mesh.objects()


def test_a_later_apply_needs_no_registry(mesh: ClusterMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    def images() -> list[str]:
        found = mesh.kubectl.items("deployments", "--selector=app=recommendation")
        return [json.dumps(each["spec"]["template"]["spec"]["containers"][0]["image"]) for each in found]

    before = images()
    for name in ("REGISTRY", "BASE_IMAGE", "STORE_BASE_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    mesh.apply(ROOT / "recommendation" / "kubernetes.yaml")
    assert images() == before
