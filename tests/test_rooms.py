"""A room of many seats on one cluster: gateways of their own, rights, bounds, and images built once.

With `--mesh cluster`, two rooms are made on the cluster of kubectl's context, and removed.
"""

import copy
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import copy_project
from test_cluster import facts

from harness.cluster import rooms
from harness.cluster.admission import needs, shortages, unpullable
from harness.cluster.deploy import CLUSTER_ONLY, OWN_GATEWAY, own_identity, render
from harness.cluster.kubectl import ForbiddenError, Kubectl
from harness.cluster.preflight import problems
from harness.manifests.read import documents
from harness.meshes.images import image
from harness.meshes.mesh import ISTIO, WITH_STORE
from harness.settings import namespace

# --- rights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ('in the namespace "b"', "list gateways.networking.istio.io in namespace b: whoever"),
        ("at the cluster scope", "list gateways.networking.istio.io in the whole cluster: whoever"),
    ],
)
def test_a_right_that_is_lacking_is_one_line_that_names_it(tmp_path: Path, where: str, named: str) -> None:
    kubectl = tmp_path / "kubectl"
    said = (
        'gateways is forbidden: User "s" cannot list resource "gateways" in API group "networking.istio.io"'
    )
    kubectl.write_text(f"#!/bin/sh\necho 'Error from server (Forbidden): {said} {where}' >&2; exit 1\n")
    kubectl.chmod(0o755)
    with pytest.raises(ForbiddenError, match=f"^s may not {named}") as caught:
        Kubectl(str(kubectl), "", "a").run("get", "gateways")
    assert "\n" not in str(caught.value)


UNREAD = ("nodes", "control_planes", "injectors", "gateways", "istio_gateways")


def test_what_may_not_be_read_is_no_problem_with_a_gateway_of_ones_own() -> None:
    seat = facts(lambda f: f.update({**{name: [] for name in UNREAD}, "unread": frozenset(UNREAD)}))
    assert list(problems(seat, "tutorial", "kubectl", own_gateway=True)) == []
    [line] = problems(seat, "tutorial", "kubectl")
    assert line.endswith("take one of your own (GATEWAY=own)")


def test_workshops_with_gateways_of_their_own_do_not_meet() -> None:
    def another(selector: dict[str, str]) -> Callable[[dict[str, Any]], None]:
        def change(recorded: dict[str, Any]) -> None:
            recorded["istio_gateways"][0]["metadata"]["namespace"] = "seat-02"
            recorded["istio_gateways"][0]["spec"]["selector"] = selector

        return change

    shared, own = another({"istio": "ingressgateway"}), another({"dark-launch/gateway": "seat-02"})
    [line] = problems(facts(shared), "tutorial", "kubectl")
    assert "take a gateway of your own (GATEWAY=own)" in line
    assert list(problems(facts(shared), "tutorial", "kubectl", own_gateway=True)) == []
    assert list(problems(facts(own), "tutorial", "kubectl")) == []


def test_the_namespace_is_that_of_the_kubeconfig_that_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NAMESPACE", raising=False)

    def export(name: str, content: str) -> None:
        (tmp_path / name).write_text(content)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / name))

    export("seat", yaml.safe_dump(rooms.kubeconfig({"server": "https://x"}, "seat-01", "token")))
    assert namespace() == "seat-01"
    monkeypatch.setenv("NAMESPACE", "mine")
    assert namespace() == "mine"
    monkeypatch.delenv("NAMESPACE")
    for name, content in (("minikube", "default"), ("none", "")):
        export(name, yaml.safe_dump(rooms.kubeconfig({}, content, "")))
        assert namespace() == "tutorial"
    for name, content in (("broken", "a: ["), ("text", "hello"), ("empty", "")):
        export(name, content)
        assert namespace() == "tutorial"


# --- a gateway of one's own -----------------------------------------------------------------------------


def workshop(seat: str, built: dict[str, str] | None = None) -> list[dict[str, Any]]:
    paths = [*WITH_STORE, *ISTIO, *CLUSTER_ONLY, OWN_GATEWAY]
    found = [document for path in paths for _, document in documents(path)]
    return render(found, seat, "", own_identity(seat), {}, built or {})


def test_a_gateway_of_ones_own_is_selected_by_ones_own_routes_alone() -> None:
    found = {(d["kind"], d["metadata"]["name"]): d for d in workshop("seat-01")}
    template = found["Deployment", "workshop-gateway"]["spec"]["template"]
    selector = found["Gateway", "ingress"]["spec"]["selector"]
    assert selector == {"dark-launch/gateway": "seat-01"}
    assert selector.items() <= template["metadata"]["labels"].items()
    assert "istio" not in template["metadata"]["labels"]
    policy = json.dumps(found["AuthorizationPolicy", "customer"])
    assert '["*/ns/seat-01/sa/workshop-gateway"]' in policy
    assert template["spec"]["serviceAccountName"] == "workshop-gateway"


def test_images_that_a_room_has_are_not_named_anew() -> None:
    key = image("customer").sources_key()
    names = {
        d["metadata"]["name"]: d["spec"]["template"]["spec"]["containers"][0]["image"]
        for d in workshop("seat-01", {key: "r.test/customer:1", "preference-other-sources": "r.test/p:1"})
        if d["kind"] == "Deployment"
    }
    assert names["customer"] == "r.test/customer:1"
    assert names["preference"].startswith("preference:")
    assert names["workshop-gateway"] == "auto"


# --- quotas ---------------------------------------------------------------------------------------------


def container(cpu: str, memory: str, **more: str) -> dict[str, Any]:
    return {"resources": {"requests": {"cpu": cpu}, "limits": {"memory": memory}}, **more}


def test_a_pod_needs_what_runs_side_by_side_or_a_larger_one_before() -> None:
    spec = {
        "initContainers": [container("1", "1Gi"), container("100m", "1Gi", restartPolicy="Always")],
        "containers": [container("50m", "192Mi")],
    }
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment"}
    policy = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy"}
    found = needs([{"spec": spec}], [deployment, policy, {"apiVersion": "v1", "kind": "Secret"}])
    assert found["requests.cpu"] == found["cpu"] == 1  # istio-init, before the others
    assert found["limits.memory"] == (1024 + 192) * 2**20
    for name in ("pods", "secrets", "count/secrets", "count/deployments.apps", "count/replicasets.apps"):
        assert found[name] == 1
    assert found["count/authorizationpolicies.security.istio.io"] == 1


def test_a_cluster_that_pulls_all_images_needs_them_in_a_registry() -> None:
    def pods(image: str, policy: str) -> list[dict[str, Any]]:
        return [{"spec": {"containers": [{"image": image, "imagePullPolicy": policy}]}}]

    [line] = unpullable(pods("customer:0.1.0", "Always"))
    assert "every image anew, customer:0.1.0 too (AlwaysPullImages): name a REGISTRY=" in line
    assert list(unpullable(pods("customer:0.1.0", "IfNotPresent"))) == []
    assert list(unpullable(pods("r.test/me/customer:0.1.0", "Always"))) == []


def test_what_a_quota_leaves_too_little_of_is_named() -> None:
    status = {
        "hard": {"pods": "10", "limits.memory": "2Gi", "requests.cpu": "1", "persistentvolumeclaims": "0"},
        "used": {"pods": "5", "limits.memory": "1536Mi", "requests.cpu": "500m"},
    }
    quota: dict[str, Any] = {"metadata": {"name": "room"}, "spec": {}, "status": status}
    needed = {"pods": 6.0, "limits.memory": 2.0**30, "requests.cpu": 0.5}
    assert list(shortages([quota], needed)) == [
        "resourcequota/room leaves 5 of pods, and 6 are needed: free some, or have it raised (it is 10)",
        "resourcequota/room leaves 512 of limits.memory (MiB), and 1024 are needed: free some, "
        "or have it raised (it is 2Gi)",
    ]
    quota["spec"]["scopes"] = ["BestEffort"]
    assert list(shortages([quota], needed)) == []


def test_a_room_is_all_in_its_namespace_and_gives_no_right_elsewhere() -> None:
    found = rooms.room("seat-07", "seat", "privileged", "istio.io/rev=1-30", {"customer-1": "customer:1"})
    first, *others = copy.deepcopy(found)
    assert first["metadata"]["labels"] == {
        "istio.io/rev": "1-30", "dark-launch/room": "seat", rooms.POD_SECURITY: "privileged",
    }  # fmt: skip
    assert {d["metadata"]["namespace"] for d in others} == {"seat-07"} == {first["metadata"]["name"]}
    assert {d["metadata"]["labels"]["dark-launch/room"] for d in found} == {"seat"}
    assert not any(d["kind"].startswith("Cluster") for d in found)
    subjects = [subject for d in found for subject in d.get("subjects", [])]
    assert subjects == [{"kind": "ServiceAccount", "name": "seat", "namespace": "seat-07"}] * 2
    # `make undeploy` must leave the room.
    assert not any("app.kubernetes.io/part-of" in d["metadata"]["labels"] for d in found)


# --- on a cluster ---------------------------------------------------------------------------------------

PREFIX = f"room-{uuid.uuid4().hex[:5]}"


class Clone:
    """A clone in which a trainer and seats type."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *words: str, seat: str = "", code: int = 0) -> str:
        """Run a command as the trainer, or as a seat, who has no engine for containers."""
        own = {"PATH": str(self.folder / "bin")} if seat else {}
        own |= {"KUBECONFIG": f".rooms/{seat}.kubeconfig"} if seat else {}
        hidden = ("NAMESPACE", "GATEWAY", *(("REGISTRY", "BASE_IMAGE", "STORE_BASE_IMAGE") if seat else ()))
        environment = {k: v for k, v in os.environ.items() if k not in hidden} | own
        command = [sys.executable, "-m", "harness", *words] if words[0] != "kubectl" else list(words)
        ran = subprocess.run(
            command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=600,
        )  # fmt: skip
        assert ran.returncode == code, f"{words}: {ran.stdout}{ran.stderr}"
        return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """Yield a clone, with two rooms on the cluster."""
    found = Clone(copy_project(tmp_path_factory.mktemp("rooms") / "clone"))
    (found.folder / "bin").mkdir()
    where = subprocess.run(["which", "kubectl"], capture_output=True, text=True, check=True)
    (found.folder / "bin" / "kubectl").symlink_to(where.stdout.strip())
    try:
        found.run("rooms", "--seats=2", f"--prefix={PREFIX}", "--for=1h", "--yes")
        yield found
    finally:
        found.run("rooms-down", f"--prefix={PREFIX}", "--yes")


@pytest.mark.only_on_cluster
@pytest.mark.timeout(900)
def test_two_seats_do_the_workshop_at_once_with_rights_in_their_rooms_only(clone: Clone) -> None:
    first, second = rooms.seats(PREFIX, 2)

    def work(seat: str) -> str:
        assert "6 pods run" in clone.run("deploy", seat=seat)
        clone.run(
            "apply", "--mesh=cluster", f"istio/{'mirror' if seat == first else 'v1-only'}.yaml", seat=seat
        )
        clone.run("stop", "--mesh=cluster", "recommendation-v2", seat=seat)
        clone.run("start", "--mesh=cluster", "recommendation-v2", seat=seat)
        for step in ("status", "curl", "logs"):
            clone.run(step, "--mesh=cluster", seat=seat)
        clone.run("doctor", "--mesh=cluster", seat=seat, code=0 if seat == first else 1)
        return clone.run("verify", "--mesh=cluster", "-n40", "-c2", seat=seat)

    with ThreadPoolExecutor(2) as pool:
        mirrored, dark = pool.map(work, (first, second))
    assert "v2 received every request exactly once\n          40 of 40" in mirrored, mirrored
    assert "v2 received nothing" in dark, dark
    refused = clone.run("status", "--mesh=cluster", f"--namespace={second}", seat=first, code=2)
    assert refused.startswith(f"Error: system:serviceaccount:{first}:seat may not list "), refused
    assert f" in namespace {second}: whoever administers the cluster" in refused
    clone.run("rooms", "--seats=1", f"--prefix={PREFIX}", "--for=1h", "--yes")  # harmless, removes nothing
    for seat in (first, second):
        assert "PASS" in clone.run("verify", "--mesh=cluster", "-n10", seat=seat)
        clone.run("undeploy", seat=seat)
    kinds = "deployments,services,secrets,networkpolicies,serviceaccounts,gateways.networking.istio.io"
    left = clone.run("kubectl", "get", kinds, f"--namespace={first}", "--output=name")
    assert set(left.split()) == {
        "networkpolicy.networking.k8s.io/room", "serviceaccount/default", "serviceaccount/seat",
    }  # fmt: skip


@pytest.mark.only_on_cluster
@pytest.mark.timeout(300)
def test_a_room_that_is_too_small_is_named_before_anything_is_deployed(clone: Clone) -> None:
    [seat] = rooms.seats(PREFIX, 1)
    clone.run("undeploy", seat=seat)

    def patch(what: str, **spec: Any) -> None:
        clone.run(
            "kubectl",
            "patch",
            f"--namespace={seat}",
            what,
            "--type=merge",
            f"-p={json.dumps({'spec': spec})}",
        )

    limits = clone.run("kubectl", "get", "limitrange/room", f"--namespace={seat}", "--output=json")
    before = json.loads(limits)["spec"]["limits"]
    patch("resourcequota/room", hard={"pods": "5", "requests.memory": "300Mi"})
    said = clone.run("deploy", seat=seat, code=2)
    assert "Error: resourcequota/room leaves 5 of pods, and 6 are needed" in said, said
    assert "resourcequota/room leaves 300 of requests.memory (MiB), and " in said, said
    patch("resourcequota/room", hard={"pods": "20", "requests.memory": "4Gi"})
    patch("limitrange/room", limits=[{"type": "Container", "max": {"memory": "128Mi"}}])
    assert "maximum memory usage per Container is 128Mi, but limit is" in clone.run(
        "deploy", seat=seat, code=2
    )
    patch("limitrange/room", limits=before)
    clone.run("kubectl", "label", "namespace", seat, "istio-injection-", "--overwrite")
    assert "is not labelled for injection" in clone.run("deploy", seat=seat, code=2)
    clone.run("kubectl", "label", "namespace", seat, "istio-injection=enabled")
    assert clone.run("kubectl", "get", "deployments,services", f"--namespace={seat}", "--output=name") == ""
