"""The cluster: what is found out, refused, rendered and run. A double stands in for kubectl."""

import contextlib
import copy
import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from helpers import run

from harness.cluster.deploy import CLUSTER_ONLY, images_of, ours, registry_of, render
from harness.cluster.kubectl import Kubectl
from harness.cluster.mesh import ClusterMesh
from harness.cluster.platforms import KINDS, Platform, detect, forget_command, image_commands
from harness.cluster.preflight import Facts, doubts, injection_label, istio_version, problems
from harness.cluster.readiness import is_rolled_out, stuck
from harness.cluster.wayin import addresses
from harness.manifests import read as manifests
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import of_kind
from harness.manifests.read import read
from harness.meshes.images import image, version
from harness.meshes.mesh import ISTIO, ROOT, WITH_STORE, WORKLOADS, MeshError
from harness.proof.report import table
from harness.proof.target import Target
from harness.proof.watch import Watch, verify

RECORDED: dict[str, Any] = json.loads((ROOT / "tests" / "recorded" / "cluster.json").read_text())


def facts(change: Callable[[dict[str, Any]], object] = lambda f: None) -> Facts:
    """Return what a real API server said, with a change."""
    recorded = copy.deepcopy(RECORDED)
    recorded["pods"][0]["spec"]["initContainers"] = [{"name": "istio-proxy"}]
    change(recorded)
    return Facts(**recorded)


# --- where it runs ------------------------------------------------------------------------------------

API = ["v1", "apps/v1", "networking.istio.io/v1"]
ROUTES = [*API, "route.openshift.io/v1", "security.openshift.io/v1"]


def node(provider: str = "", **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": "n", "labels": labels}, "spec": {"providerID": provider}}


@pytest.mark.parametrize(
    ("server", "api", "nodes", "expected"),
    [
        (
            "https://192.168.49.2:8443",
            API,
            [node(**{"minikube.k8s.io/name": "p2"})],
            ("minikube", "p2", True),
        ),
        ("https://127.0.0.1:4", API, [node("kind://docker/lab/lab-control-plane")], ("kind", "lab", True)),
        ("https://0.0.0.0:4", API, [node("k3s://k3d-my-lab-server-0")], ("k3d", "my-lab", True)),
        (
            "https://api.crc.testing:6443",
            [*ROUTES, "build.openshift.io/v1"],
            [node()],
            ("openshift", "ctx", True),
        ),
        ("https://api.crc.testing:6443", ROUTES, [node()], ("microshift", "ctx", True)),
        ("https://api.prod:6443", [*ROUTES, "build.openshift.io/v1"], [node()], ("openshift", "ctx", False)),
        ("https://1.2.3.4", API, [node("aws:///eu-west-1/i-0")], ("other", "ctx", False)),
        ("https://1.2.3.4", API, [], ("other", "ctx", False)),
    ],
)
def test_a_platform_is_told_by_what_the_cluster_says(
    server: str, api: list[str], nodes: list[Any], expected: tuple[str, str, bool]
) -> None:
    found = detect("ctx", server, api, nodes)
    assert (found.kind, found.name, found.local) == expected


def test_the_recorded_cluster_is_minikube() -> None:
    recorded = facts()
    assert detect("x", "https://127.0.0.1:6443", recorded.api_versions, recorded.nodes).kind == "minikube"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put every builder on the PATH."""
    for name in ("minikube", "oc", "kind", "k3d", "docker", "podman", "crc"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    ("kind", "registry", "expected"),
    [
        (
            "minikube",
            "",
            [
                "minikube --profile p image build --tag customer:1 /ctx",
                "minikube --profile p image ls | grep -q -E '(^|/)customer:1$'",
            ],
        ),
        ("kind", "", ["docker build --tag customer:1 /ctx", "kind load docker-image customer:1 --name p"]),
        (
            "k3d",
            "",
            ["docker build --tag customer:1 /ctx", "k3d image import customer:1 --cluster p --mode direct"],
        ),
        (
            "other",
            "r.test/me/",
            ["docker build --tag r.test/me/customer:1 /ctx", "docker push r.test/me/customer:1"],
        ),
    ],
)
def test_images_reach_each_platform(kind: str, registry: str, expected: list[str]) -> None:
    platform = Platform(kind, "p", local=True)
    image = f"{registry}customer:1"
    assert image_commands(platform, image, "/ctx", ["kubectl"]) == expected


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    ("kind", "registry", "last"),
    [
        ("minikube", "", "minikube --profile p image ls | grep -q -E '(^|/)customer:1$'"),
        ("openshift", "", "oc --context=c --namespace=n set image-lookup customer"),
        ("kind", "", "kind load docker-image customer:1 --name p"),
        ("k3d", "", "k3d image import customer:1 --cluster p --mode direct"),
        ("microshift", "", " sudo podman load"),
        ("other", "r.test/me/", "docker push r.test/me/customer:1"),
    ],
)
def test_images_of_a_bundle_reach_each_platform_and_nothing_is_built(
    kind: str, registry: str, last: str
) -> None:
    platform, archive = Platform(kind, "p", local=True), Path("/my bundle/amd64.tar")
    kubectl = ["kubectl", "--context=c", "--namespace=n"]
    commands = image_commands(platform, f"{registry}customer:1", "/ctx", kubectl, archive)
    assert " load " in commands[0]
    assert commands[0].endswith("'/my bundle/amd64.tar'")
    assert commands[-1].endswith(last)
    assert not any("build" in command or "/ctx" in command for command in commands)
    if kind == "openshift":
        assert "registry info --public)/n/customer:1" in commands[2]
    if kind not in ("minikube", "openshift"):
        assert re.fullmatch(rf"\w+ tag customer:{version()} \S*customer:1", commands[1])


@pytest.mark.usefixtures("tools")
def test_kind_on_podman_loads_an_archive() -> None:
    platform = detect("ctx", "https://127.0.0.1:4", API, [node("kind://podman/lab/lab-control-plane")])
    build, save, load = image_commands(platform, "customer:1", "/ctx", ["kubectl"])
    assert build == "podman build --tag docker.io/library/customer:1 /ctx"
    assert save == "podman save --output /ctx/image.tar docker.io/library/customer:1"
    assert load.endswith("kind load image-archive /ctx/image.tar --name lab")


@pytest.mark.usefixtures("tools")
def test_minikube_forgets_images() -> None:
    command = forget_command(Platform("minikube", "p", local=True), ["customer:1", "preference:1"])
    assert command == "minikube --profile p image rm customer:1 preference:1"
    assert forget_command(Platform("openshift", "p", local=True), ["customer:1"]) is None


@pytest.mark.usefixtures("tools")
def test_openshift_builds_in_the_cluster_and_looks_images_up_by_bare_name() -> None:
    kubectl = ["kubectl", "--context=c", "--namespace=n"]
    commands = image_commands(Platform("openshift", "c", local=True), "customer:1", "/ctx", kubectl)
    assert all("oc --context=c --namespace=n" in command for command in commands)
    assert "new-build --binary --strategy=docker --name=customer --to=customer:1" in commands[0]
    assert commands[1].endswith("start-build customer --from-dir=/ctx --follow --wait")
    assert commands[2].endswith("set image-lookup customer")


@pytest.mark.usefixtures("tools")
def test_microshift_loads_what_podman_saved() -> None:
    commands = image_commands(Platform("microshift", "c", local=True), "customer:1", "/ctx", ["oc"])
    assert "; podman save docker.io/library/customer:1 | ssh " in commands[1]
    assert commands[1].endswith(" sudo podman load")


@pytest.mark.usefixtures("tools")
def test_a_cluster_that_is_not_known_needs_a_registry() -> None:
    with pytest.raises(MeshError, match=r"make deploy REGISTRY="):
        image_commands(Platform("other", "p", local=False), "customer:1", "/ctx", ["kubectl"])


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MeshError, match=r"^minikube is not installed"):
        image_commands(Platform("minikube", "p", local=True), "customer:1", "/ctx", ["kubectl"])
    monkeypatch.delenv("KUBECTL", raising=False)
    with pytest.raises(MeshError, match=r"^kubectl is not installed: see https://"):
        Kubectl.find("tutorial")


@pytest.mark.parametrize("name", ["recommendation-v2", "recommendation-store", "loadtest", "envoy"])
def test_a_staged_folder_holds_what_an_image_needs_and_its_arguments(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE_IMAGE", "python:x")
    monkeypatch.setenv("STORE_BASE_IMAGE", "postgres:x")
    image(name).stage(tmp_path)
    dockerfile = (tmp_path / "Dockerfile").read_text()
    base = "postgres:x" if name == "recommendation-store" else "python:x"
    for line in (f"ARG BASE={base}\n", f"ARG VERSION={version()}\n"):
        assert dockerfile.count(line) == 1
    assert ("ARG SERVICE=recommendation/v2\n" in dockerfile) == (name == "recommendation-v2")
    for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE):
        for copied in line.replace("${SERVICE}", "recommendation/v2").split():
            assert list(tmp_path.glob(copied))


def test_an_image_is_built_on_what_its_own_dockerfile_says_or_else_the_services(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("BASE_IMAGE", "STORE_BASE_IMAGE"):
        monkeypatch.delenv(variable, raising=False)
    bases = {name: image(name).arguments()["BASE"] for name in ("customer", "envoy", "recommendation-store")}
    assert "/python:" in bases["customer"] == bases["envoy"]
    assert "/postgres:" in bases["recommendation-store"]


def test_the_stores_image_holds_its_folder_without_the_manifest() -> None:
    names = {path.name for path in image("recommendation-store").sources}
    assert names == {"start.sh", "init.sql", "postgresql.conf", "pg_hba.conf"}


# --- what it must have --------------------------------------------------------------------------------


def labelled(**labels: str | None) -> Callable[[dict[str, Any]], object]:
    def change(recorded: dict[str, Any]) -> None:
        found = recorded["namespace"]["metadata"]["labels"]
        found.pop("istio-injection")
        names = {"rev": "istio.io/rev", "part_of": "app.kubernetes.io/part-of"}
        found.update({names.get(k, k.replace("_", "-")): v for k, v in labels.items()})

    return change


def istiod(tag: str) -> Callable[[dict[str, Any]], object]:
    def change(recorded: dict[str, Any]) -> None:
        pod = recorded["control_planes"][0]["spec"]["template"]["spec"]
        pod["containers"][0]["image"] = f"docker.io/istio/pilot:{tag}"

    return change


def test_a_cluster_that_has_everything_has_no_problem() -> None:
    assert list(problems(facts(), "tutorial", "kubectl")) == []
    assert list(problems(facts(lambda f: f.update(namespace={}, pods=[])), "tutorial", "kubectl")) == []
    assert list(problems(facts(labelled()), "tutorial", "kubectl")) == []  # ours, not labelled yet
    assert istio_version(facts()) == (1, 30)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda f: f.update(api_versions=["v1"]),
            "Istio is not installed: istioctl install --set profile=demo",
        ),
        (
            lambda f: f.update(api_versions=["v1", "route.openshift.io/v1"]),
            "Istio is not installed: istioctl install --set profile=openshift",
        ),
        (lambda f: f.update(api_versions=["networking.istio.io/v1beta1"]), "Istio is too old"),
        (
            lambda f: f.update(control_planes=[]),
            "control plane is not ready: kubectl get pods -n istio-system",
        ),
        (lambda f: f["control_planes"][0].update(status={}), "Istio's control plane is not ready"),
        (istiod("1.27.4"), "Istio 1.27 is not supported (only 1.28 to 1.31): istioctl upgrade"),
        (istiod("2.0.0"), "Istio 2.0 is not supported"),
        (lambda f: f.update(injectors=[]), "Istio injects no sidecars"),
        (lambda f: f.update(gateways=[]), "there is no ingress gateway"),
        (
            lambda f: f["istio_gateways"][0]["metadata"].update(namespace="room-2"),
            "the ingress gateway leads to the workshop in namespace room-2: use that one (NAMESPACE=room-2)",
        ),
        (
            lambda f: f["istio_gateways"][0]["metadata"].update(namespace="room-2", labels={}),
            "the Gateway ingress of namespace room-2 takes every host of the ingress gateway",
        ),
        (
            labelled(part_of="somebody"),
            "is not labelled for injection: kubectl label --overwrite namespace tutorial istio-injection=en",
        ),
        (labelled(istio_injection="disabled"), "is not labelled for injection"),
        (
            labelled(rev="1-29"),
            "is labelled for revision 1-29, which is not there: kubectl label --overwrite",
        ),
        (
            lambda f: f["namespace"]["metadata"].update(deletionTimestamp="2026-11-22T09:23:36Z"),
            "is being deleted: kubectl wait --for=delete namespace/tutorial",
        ),
        (
            lambda f: f["pods"][0]["spec"].pop("initContainers"),
            "pods without a sidecar, made before the label (customer-",
        ),
    ],
)
def test_each_thing_that_is_missing_is_one_line_with_its_remedy(
    change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    [line] = problems(facts(change), "tutorial", "kubectl")
    assert problem in line
    assert "\n" not in line


@pytest.mark.parametrize("tag", ["1.28.0", "1.31.3-distroless", "1.31-alpha", "latest", "1.32.0"])
def test_a_supported_newer_or_nameless_version_is_no_problem(tag: str) -> None:
    assert list(problems(facts(istiod(tag)), "tutorial", "kubectl")) == []


def test_what_is_newer_than_all_that_was_tried_or_not_read_is_told() -> None:
    platform = Platform("k3d", "p", local=True)
    assert list(doubts(facts(), platform)) == [f"not checked: {KINDS['k3d'].unchecked}"]

    def odd(recorded: dict[str, Any]) -> None:
        istiod("1.32.0")(recorded)
        recorded["nodes"][0]["status"]["nodeInfo"] = {"kubeletVersion": "v1.38.1"}
        recorded["unread"] = frozenset({"injectors", "control_planes"})

    assert [*doubts(facts(odd), platform)][:3] == [
        "Istio 1.32 is newer than what was tried (1.28 to 1.31)",
        "Kubernetes 1.38 was not tried (1.30 to 1.37 were)",
        "not checked, since this user may not read it: control planes, injectors",
    ]
    assert next(doubts(facts(istiod("latest")), platform)).endswith("which its image does not tell")


def test_a_cluster_with_revisions_is_labelled_for_one() -> None:
    def revisions(recorded: dict[str, Any]) -> None:
        recorded["injectors"][0]["metadata"]["labels"] = {"istio.io/rev": "1-30"}

    assert injection_label(facts()) == "istio-injection=enabled"
    assert injection_label(facts(revisions)) == "istio.io/rev=1-30"
    [line] = problems(facts(revisions), "tutorial", "kubectl")
    assert line.endswith("kubectl label --overwrite namespace tutorial istio-injection- istio.io/rev=1-30")


def test_a_classic_sidecar_counts_too() -> None:
    def classic(recorded: dict[str, Any]) -> None:
        spec = recorded["pods"][0]["spec"]
        spec["containers"].append(spec.pop("initContainers")[0])

    assert list(problems(facts(classic), "tutorial", "kubectl")) == []


# --- what is applied ----------------------------------------------------------------------------------

EVERYTHING = [*WITH_STORE, *ISTIO, *CLUSTER_ONLY]


def documents(namespace: str = "tutorial", registry: str = "") -> list[dict[str, Any]]:
    everything = [document for path in EVERYTHING for _, document in manifests.documents(path)]
    return render(everything, namespace, registry, "*/ns/gw/sa/door", {}, {})


def principals(rendered: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {
        d["metadata"]["name"]: re.findall(r"\*/ns/[-\w/]+", json.dumps(d["spec"]))
        for d in rendered
        if d["kind"] == "AuthorizationPolicy"
    }


def test_everything_that_is_applied_bears_the_label_it_is_removed_by() -> None:
    for document in documents():
        assert document["metadata"]["labels"]["app.kubernetes.io/part-of"] == "dark-launch", document


def images(registry: str) -> set[str]:
    deployments = [d for d in documents(registry=registry) if d["kind"] == "Deployment"]
    return {d["spec"]["template"]["spec"]["containers"][0]["image"] for d in deployments}


IMAGES = ("customer", "preference", "recommendation-store", "recommendation-v1", "recommendation-v2")


def test_images_bear_one_tag_and_in_a_registry_one_for_each_state() -> None:
    assert images("") == {f"{name}:{version()}" for name in IMAGES}
    pushed = {f"r.test/me/{name}:{version()}-{image(name).digest()}" for name in IMAGES}
    assert images("r.test/me/") == pushed


def test_what_is_applied_later_keeps_the_deployed_image_and_its_registry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployed = [d for d in documents(registry="r.test:5000/me") if d["kind"] == "Deployment"]
    assert registry_of(deployed) == "r.test:5000/me"
    assert registry_of(d for d in documents() if d["kind"] == "Deployment") == ""
    monkeypatch.setenv("BASE_IMAGE", "another")
    manifest = ROOT / "recommendation" / "kubernetes.yaml"
    given = [document for _, document in manifests.documents(manifest)]
    again = render(given, "tutorial", "", "*/ns/gw/sa/door", images_of(deployed), {})
    assert images_of(d for d in again if d["kind"] == "Deployment").items() <= images_of(deployed).items()


def test_only_the_chain_may_talk() -> None:
    assert principals(documents("mine")) == {
        "deny-all": [],
        "customer": ["*/ns/gw/sa/door"],
        "preference": ["*/ns/mine/sa/customer"],
        "recommendation": ["*/ns/mine/sa/preference"],
        "store": ["*/ns/mine/sa/recommendation", "*/ns/mine/sa/recommendation-v2"],
    }


def test_v2_may_call_nobody_but_the_store() -> None:
    [sidecar] = [d for d in documents("mine") if d["kind"] == "Sidecar"]
    assert sidecar["spec"]["outboundTrafficPolicy"] == {"mode": "REGISTRY_ONLY"}
    assert sidecar["spec"]["egress"] == [{"hosts": ["./store.mine.svc.cluster.local"]}]


def test_policies_name_workloads_and_accounts_that_exist() -> None:
    workloads = list(of_kind(read(*WITH_STORE), Deployment))
    accounts = {w.spec.template.spec.service_account_name for w in workloads}
    for document in documents():
        if document["kind"] == "AuthorizationPolicy" and "selector" in document["spec"]:
            labels = document["spec"]["selector"]["matchLabels"]
            assert any(labels.items() <= w.labels.items() for w in workloads)
    for chain in principals(documents()).values():
        assert all(p.rpartition("/")[2] in {*accounts, "door"} for p in chain)


def test_gateway_api_routes_lead_to_services_that_exist() -> None:
    folder = ROOT / "istio" / "gateway-api"
    services = {d["metadata"]["name"]: d for d in yaml.safe_load_all((folder / "versions.yaml").read_text())}
    workloads = list(of_kind(read(*WORKLOADS), Deployment))
    for service in services.values():
        assert len([w for w in workloads if service["spec"]["selector"].items() <= w.labels.items()]) == 1
    for path in folder.glob("*.yaml"):
        text = path.read_text()
        if "HTTPRoute" in text:
            assert set(re.findall(r"name: (recommendation-v\d)", text)) <= services.keys()


def test_a_change_of_the_code_makes_new_pods_though_the_tag_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def sources() -> dict[str, str]:
        return {
            d["metadata"]["name"]: d["spec"]["template"]["metadata"]["annotations"]["dark-launch/source"]
            for d in documents()
            if d["kind"] == "Deployment"
        }

    before = sources()
    assert len(set(before.values())) == 5
    monkeypatch.setenv("BASE_IMAGE", "another")
    monkeypatch.setenv("STORE_BASE_IMAGE", "another")
    assert not set(before.values()) & set(sources().values())


# --- how it is reached --------------------------------------------------------------------------------


def test_the_best_address_comes_first() -> None:
    gateway = copy.deepcopy(RECORDED["gateways"][0])
    node_port = next(p["nodePort"] for p in gateway["spec"]["ports"] if p["port"] == 80)
    nodes = RECORDED["nodes"]
    assert addresses(gateway, [], nodes) == [("127.0.0.9", node_port)]
    gateway["status"] = {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}, {"hostname": "lb.test"}]}}
    route = {"spec": {"host": "door.apps-crc.testing"}}
    assert addresses(gateway, [route], nodes)[:3] == [
        ("door.apps-crc.testing", 80), ("10.0.0.1", 80), ("lb.test", 80),
    ]  # fmt: skip


# --- the workshop's steps, on the double --------------------------------------------------------------


def test_a_log_that_breaks_off_is_read_on_from_there(
    cluster: ClusterMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGS_BREAK_OFF", "150")
    monkeypatch.setattr(ClusterMesh, "quiet", 4.0)
    assert cluster.apply(ROOT / "istio" / "mirror.yaml") == ["virtualservice/recommendation configured"]
    verdict = verify(cluster, Target(), 200)
    assert verdict.passed, table(verdict)
    assert [side.requests for side in verdict.sides] == [200, 200]
    assert verdict.claim("same-writes").figures["same"] == 100


def test_an_api_server_that_is_away_for_seconds_does_not_cost_the_run(
    cluster: ClusterMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, flaky = tmp_path / "away", tmp_path / "flaky"
    flaky.write_text(
        f'#!/bin/sh\ncase " $* " in *" get "*) if [ -e {away} ]; then\n'
        "echo 'The connection to the server was refused' >&2; exit 1; fi;; esac\n"
        f'exec {cluster.kubectl.program} "$@"\n'
    )
    flaky.chmod(0o755)
    monkeypatch.setenv("KUBECTL", str(flaky))
    mesh = ClusterMesh()
    mesh.apply(ROOT / "istio" / "mirror.yaml")
    watch = Watch(mesh, Target())
    watch.follow()
    with contextlib.closing(watch):
        for _ in range(20):
            assert requests.get(mesh.url(), timeout=10).ok
        watch.settle()
        away.touch()
        back = threading.Timer(3, away.unlink)
        back.start()
        verdict = watch.verdict()
        back.join()
    mesh.close()
    # The double's streams may begin with older requests, of which one log has more than another.
    assert verdict.failed() == [], table(verdict)
    assert verdict.claim("exactly-once").figures["received"] >= 20


def test_routes_on_a_cluster_are_told_by_the_file_they_came_from(cluster: ClusterMesh) -> None:
    assert cluster.objects()["virtualservice/recommendation"][0] == "istio/v1-only.yaml"
    cluster.apply(ROOT / "istio" / "canary.yaml")
    assert cluster.objects()["virtualservice/recommendation"][0] == "istio/canary.yaml"
    cluster.delete(ROOT / "istio" / "canary.yaml")
    assert "virtualservice/recommendation" not in cluster.objects()


def test_a_gateway_that_takes_no_calls_is_not_called_again_and_again(
    cluster: ClusterMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "1")
    with pytest.raises(MeshError, match="the ingress gateway takes no calls: make apply"):
        verify(cluster, Target(), 10)


def test_status_and_logs_of_a_cluster(cluster: ClusterMesh) -> None:
    pods = cluster.pods()
    assert [pod.state for pod in pods] == ["Running"] * 5
    assert pods[0].workload == "istio-ingressgateway"
    assert any(
        "Starting gunicorn" in line for name, line in cluster.logs("recommendation-v2") if name == "app"
    )


def test_kubectls_complaint_is_one_line(cluster: ClusterMesh) -> None:
    with pytest.raises(MeshError, match=r"kubectl fly: the double does not know: fly$"):
        cluster.kubectl.run("fly")


def test_an_istio_without_extensions_says_what_is_compared(cluster: ClusterMesh) -> None:
    with pytest.raises(MeshError, match=r"this Istio has no TrafficExtension, which came with 1\.30: status"):
        cluster.apply(ROOT / "istio" / "compare.yaml")


def test_the_commands_of_a_cluster(cluster: ClusterMesh, checkout: Path) -> None:
    def harness(*words: str) -> tuple[int, str]:
        done = run(checkout, sys.executable, "-m", "harness", *words)
        return done.returncode, done.stdout + done.stderr

    code, out = harness("url")
    assert code == 1
    assert "port-forward --namespace=istio-system service/istio-ingressgateway 8080:80, then http://" in out
    code, out = harness("curl", "--mesh", "cluster")
    assert (code, out.startswith("customer => preference => recommendation v1")) == (0, True)
    code, out = harness("status", "--mesh", "cluster")
    assert "virtualservice/recommendation: all to v1 (istio/v1-only.yaml)" in out
    assert harness("dashboard", "kiali")[1].startswith("Error: kiali is not installed: in the folder of")


def test_a_missing_context_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\necho 'error: current-context is not set' >&2; exit 1\n")
    kubectl.chmod(0o755)
    monkeypatch.setenv("KUBECTL", str(kubectl))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(MeshError, match=r"has no current context: start a cluster \(minikube start"):
        Kubectl.find("tutorial")


def test_in_a_pod_no_context_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text('#!/bin/sh\n[ "$1" = config ] && exit 1; echo "$@"\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("KUBECTL", str(kubectl))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    assert Kubectl.find("shop").run("get", "pods") == "--namespace=shop get pods\n"


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        '#!/bin/sh\n[ "$1" = config ] && echo minikube && exit\n'
        "echo 'dial tcp 192.168.49.2:8443: connect: no route to host' >&2; exit 1\n"
    )
    kubectl.chmod(0o755)
    monkeypatch.setenv("KUBECTL", str(kubectl))
    with pytest.raises(
        MeshError, match=r"context minikube does not answer: is it running\?.*no route to host"
    ):
        ClusterMesh().installation.facts()


def deployment(**status: Any) -> dict[str, Any]:
    found = {"name": "v2", "generation": 3}
    selector = {"matchLabels": {"app": "v2"}}
    return {"metadata": found, "spec": {"replicas": 2, "selector": selector}, "status": status}


@pytest.mark.parametrize(
    ("counts", "generation", "expected"),
    [((2, 2, 2), 3, True), ((2, 2, 2), 2, False), ((3, 2, 2), 3, False), ((2, 2, 1), 3, False)],
)
def test_a_rollout_is_over_when_all_pods_are_new_and_available(
    counts: tuple[int, ...], generation: int, expected: bool
) -> None:
    names = ("replicas", "updatedReplicas", "availableReplicas")
    status = dict(zip(names, counts, strict=True))
    assert is_rolled_out(deployment(**status, observedGeneration=generation)) is expected


def test_a_pod_that_cannot_start_is_told_from_one_that_starts() -> None:
    def pod(reason: str) -> dict[str, Any]:
        waiting = {"state": {"waiting": {"reason": reason, "message": "why"}}}
        return {"metadata": {"labels": {"app": "v2"}}, "status": {"containerStatuses": [waiting]}}

    assert stuck(deployment(), [pod("ContainerCreating")]) == ""
    assert stuck(deployment(), [pod("ImagePullBackOff")]) == "ImagePullBackOff: why"
    failed = {"type": "ReplicaFailure", "status": "True", "message": 'pods "x" is forbidden'}
    assert stuck(deployment(conditions=[failed]), []) == 'pods "x" is forbidden'


# --- what is removed --------------------------------------------------------------------------------------


def applied_by_kubectl(path: str) -> dict[str, Any]:
    """Return what the API server has of a file that plain kubectl applied."""
    [document, *_] = yaml.safe_load_all((ROOT / path).read_text())
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(document)}
    return {**document, "metadata": {**document["metadata"], "annotations": annotations}}


def test_what_the_files_name_is_removed_whoever_applied_it_and_nothing_else() -> None:
    pods = applied_by_kubectl("customer/kubernetes.yaml")
    pods["metadata"]["labels"] = {"app.kubernetes.io/part-of": "dark-launch"}
    plain = [applied_by_kubectl(f"istio/{name}.yaml") for name in ("canary", "gateway", "gateway-api/mirror")]
    strange = {"kind": "VirtualService", "metadata": {"name": "reviews"}, "spec": {}}
    namesake = {"kind": "Deployment", "metadata": {"name": "customer"}, "spec": {"replicas": 3}}
    assert ours([pods, *plain, strange]) == [pods, *plain]
    assert ours([*plain, strange, namesake]) == plain, "it was removed before, but for these"
    assert ours([strange, namesake]) == []


def test_a_strange_cluster_is_not_touched_without_being_asked_for(checkout: Path, tmp_path: Path) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        '#!/bin/sh\ncase "$*" in\n"config current-context") echo prod;;\n*"config view"*) echo https://prod:6443;;\n'
        "*api-versions*) echo v1;;\n*) echo '{}';;\nesac\n"
    )
    kubectl.chmod(0o755)
    refused = run(checkout, sys.executable, "-m", "harness", "deploy", KUBECTL=str(kubectl))
    assert refused.returncode == 2
    assert refused.stdout == "a cluster, context prod, namespace tutorial\n"
    assert refused.stderr == "Error: this is not known to be a cluster on this machine: deploy with YES=1\n"
    allowed = run(checkout, sys.executable, "-m", "harness", "deploy", "--yes", KUBECTL=str(kubectl))
    assert allowed.returncode == 2
    assert allowed.stderr == "Error: Istio is not installed: istioctl install --set profile=demo\n"
