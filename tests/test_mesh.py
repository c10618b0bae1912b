"""End to end: real proxies, real processes, the same tests on every mesh."""

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from helpers import (
    here_only,
    kill,
    promising,
    reset,
    route,
    shadow,
    to,
    virtual_service,
    wait_for,
    without_store,
)

from harness import HarnessError
from harness.manifests.base import Object
from harness.manifests.read import ManifestError, read
from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT, MeshError, get
from harness.proof.evidence import Bounds
from harness.proof.report import table
from harness.proof.target import Target
from harness.proof.verdict import Verdict
from harness.proof.watch import verify

Write = Callable[[str | list[dict[str, Any]]], Path]

MIRROR_V2 = {"host": "recommendation", "subset": "v2"}


def state(name: str) -> Path:
    return ROOT / "istio" / f"{name}.yaml"


def passed(verdict: Verdict) -> Verdict:
    assert verdict.passed, "\n" + table(verdict)
    return verdict


def broken(verdict: Verdict) -> list[str]:
    """Return the ids of the claims that do not hold."""
    return [*verdict.failed(), *verdict.unproven()]


def figures(verdict: Verdict, id: str) -> Mapping[str, int]:
    return verdict.claim(id).figures


# --- the six states -----------------------------------------------------------------------------------


def test_v2_is_silent_before_mirroring_hears_all_while_mirrored_and_is_silent_after_bailing_out(
    mesh: EnvoyMesh,
) -> None:
    assert figures(passed(verify(mesh, Target(), 80)), "silent") == {"received": 0}
    mesh.apply(state("mirror"))
    assert figures(passed(verify(mesh, Target(), 80)), "exactly-once")["received"] == 80
    mesh.apply(state("v1-only"))
    assert figures(passed(verify(mesh, Target(), 80)), "silent") == {"received": 0}


@pytest.mark.of_any_mesh
@pytest.mark.parametrize("name", ["mirror-10-percent", "mirror-reads"])  # test_store.py has the others
def test_the_other_states_are_as_their_routes_say(mesh: EnvoyMesh, name: str) -> None:
    mesh.apply(state(name))
    passed(verify(mesh, Target(), 150))


@pytest.mark.of_any_mesh
def test_without_a_route_both_versions_answer(mesh: EnvoyMesh) -> None:
    mesh.apply(ROOT / "recommendation" / "settings" / "wrong-while-mirrored.yaml")
    mesh.delete(state("v1-only"))
    verdict = passed(verify(mesh, Target(), 80))
    assert {"v1", "v2"} <= figures(verdict, "answered-by").keys()


# --- Istio's own table of percentages, counted on both sides ------------------------------------------


@pytest.mark.parametrize("percent", [50, *here_only(None, 10, 0)])
@pytest.mark.of_any_mesh
def test_the_share_that_is_mirrored_is_the_share_that_arrives(
    mesh: EnvoyMesh, manifest: Write, percent: float | None
) -> None:
    share = {} if percent is None else {"mirrorPercentage": {"value": percent}}
    mesh.apply(manifest(route(mirror=MIRROR_V2, **share)))
    verdict = passed(verify(mesh, Target(), 150))
    v1, v2 = verdict.sides
    assert v1.requests == 150
    if percent is None:
        assert v2.requests == 150
    elif percent == 0:
        assert v2.requests == 0
    else:
        assert 0 < v2.requests < 150


@pytest.fixture
def v3(mesh: EnvoyMesh, manifest: Write) -> Any:
    """Run a third version, with a subset of its own."""
    rule = yaml.safe_load((ROOT / "istio" / "destination-rule.yaml").read_text())
    rule["spec"]["subsets"].append({"name": "v3", "labels": {"version": "v3"}})
    mesh.apply(manifest([*shadow("v3"), rule]))
    yield
    reset(mesh)


@pytest.mark.not_on_cluster
def test_a_deployment_as_people_write_it_runs(mesh: EnvoyMesh, manifest: Write) -> None:
    labels = {"app": "recommendation", "version": "v3"}
    container = {
        "name": "app", "image": "registry.example.com/team/recommendation-v2:1.4.2",
        "ports": [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9102}],
        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
    }  # fmt: skip
    template = {
        "metadata": {"labels": labels, "annotations": {"team": "blue"}},
        "spec": {"containers": [container], "volumes": [{"name": "scratch", "emptyDir": {}}]},
    }
    spec = {"selector": {"matchLabels": labels}, "template": template}
    plain = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "mine"}, "spec": spec}
    rule = yaml.safe_load((ROOT / "istio" / "destination-rule.yaml").read_text())
    rule["spec"]["subsets"].append({"name": "v3", "labels": {"version": "v3"}})
    mesh.apply(manifest([{"apiVersion": "v1", "kind": "List", "items": [plain, rule, *route(to="v3")]}]))
    assert "from 'mine-" in wait_for(lambda: get(mesh.url()).ok and get(mesh.url()).text, "an answer")


@pytest.mark.usefixtures("v3")
@pytest.mark.of_any_mesh
def test_two_mirrors_each_get_their_share(mesh: EnvoyMesh, manifest: Write) -> None:
    v3 = {"destination": {"host": "recommendation", "subset": "v3"}, "percentage": {"value": 50}}
    mesh.apply(manifest(route(mirrors=[{"destination": MIRROR_V2}, v3])))
    statements = [claim.statement for claim in passed(verify(mesh, Target(), 100)).claims]
    assert "v2 received every request exactly once" in statements
    assert "v3 received 50 % of requests" in statements


# --- negative controls: reality differs from what is promised, and one claim says so ------------------

V1_ONLY: dict[str, Any] = {}
MIRROR: dict[str, Any] = {"mirror": MIRROR_V2}


@pytest.mark.of_any_mesh
@pytest.mark.parametrize(
    ("promised", "applied", "claim"),
    [
        (MIRROR, {**MIRROR, "route": [to("v1", 90), to("v2", 10)]}, "answered-by"),
        (MIRROR, V1_ONLY, "exactly-once"),
        *here_only(
            (V1_ONLY, MIRROR, "silent"),
            (
                {**MIRROR, "mirrorPercentage": {"value": 10}},
                {**MIRROR, "mirrorPercentage": {"value": 50}},
                "sampled",
            ),
            (V1_ONLY, {"fault": {"abort": {"httpStatus": 418, "percentage": {"value": 10}}}}, "answered"),
            (MIRROR, {"mirrors": [{"destination": MIRROR_V2}] * 2}, "exactly-once"),
            (MIRROR, {**MIRROR, "mirrorPercentage": {"value": 90}}, "exactly-once"),
            (V1_ONLY, {**MIRROR, "mirrorPercentage": {"value": 10}}, "silent"),
            (
                {"route": [to("v1", 90), to("v2", 10)]},
                {"route": [to("v1", 50), to("v2", 50)]},
                "shares",
            ),
            (
                {"route": [to("v1", 90), to("v2", 10)]},
                {"route": [to("v1", 90), to("v2", 10)], **MIRROR},
                "unshared",
            ),
        ),
    ],
)
def test_a_route_that_is_not_as_promised_fails_the_claim_that_it_breaks_and_no_other(
    mesh: EnvoyMesh, manifest: Write, promised: dict[str, Any], applied: dict[str, Any], claim: str
) -> None:
    if claim in ("shares", "unshared"):  # both versions answer callers
        mesh.apply(manifest(without_store()))
    mesh.apply(manifest(route(**applied)))
    # What happens to one request in ten shows in 150, but for one run in seven millions.
    verdict = verify(promising(mesh, route(**promised)), Target(), 150)
    assert broken(verdict) == [claim], "\n" + table(verdict)


# --- a v2 that fails ----------------------------------------------------------------------------------


@pytest.mark.of_any_mesh
def test_a_stopped_v2_misses_everything_and_callers_notice_nothing(mesh: EnvoyMesh) -> None:
    mesh.apply(state("mirror"))
    mesh.scale("recommendation-v2", 0)
    verdict = verify(mesh, Target(), 80)
    assert broken(verdict) == ["exactly-once"]
    assert figures(verdict, "exactly-once")["missing"] == 80
    assert verdict.routes == "all to v1; mirrored 100 % to v2 (no pod)"
    mesh.scale("recommendation-v2", 1)
    passed(verify(mesh, Target(), 80))


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_a_killed_v2_misses_the_rest_and_callers_notice_nothing(mesh: EnvoyMesh) -> None:
    mesh.apply(state("mirror"))
    [v2] = [pod for pod in mesh.scene(Target().namespace).pods if pod.workload == "recommendation-v2"]
    before = len(list(mesh.request_log(v2)))

    def kill_it_half_way() -> None:
        wait_for(lambda: len(list(mesh.request_log(v2))) > before + 50, "the fiftieth mirrored request")
        kill(mesh, "recommendation-v2")

    killer = threading.Thread(target=kill_it_half_way)
    killer.start()
    verdict = verify(mesh, Target(), 500)
    killer.join()
    assert verdict.failed()[0] == "exactly-once"  # what it was working on when it died is not answered
    missing = figures(verdict, "exactly-once")["missing"]
    assert 0 < missing < 500
    assert figures(verdict, "exactly-once")["received"] == 500 - missing
    assert any(pod.state.startswith("Dead") for pod in mesh.pods())


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_a_v2_that_answers_500_is_seen_by_the_verdict_alone(mesh: EnvoyMesh, manifest: Write) -> None:
    mesh.apply(manifest(shadow("v2", STATUS="500")))
    mesh.apply(state("mirror"))
    verdict = verify(mesh, Target(), 80)
    assert broken(verdict) == ["same-status"]
    assert figures(verdict, "same-status") == {"compared": 80, "different": 80}
    assert "200 became 500 x 80" in verdict.claim("same-status").detail
    assert [side.status for side in verdict.sides] == [{200: 80}, {500: 80}]
    allowed = verify(mesh, Target(), 80, bounds=Bounds(max_differences=1))
    assert allowed.passed


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_a_v2_whose_worker_dies_at_every_copy_did_not_answer(mesh: EnvoyMesh, manifest: Write) -> None:
    mesh.apply(manifest(shadow("v2", DIE="yes")))
    mesh.apply(state("mirror"))
    verdict = verify(mesh, Target(), 50)
    assert verdict.failed() == ["delivered"], table(verdict)
    assert figures(verdict, "delivered")["answered"] == 0


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_a_v2_that_takes_longer_than_the_route_allows_did_not_answer(
    mesh: EnvoyMesh, manifest: Write
) -> None:
    mesh.apply(manifest(shadow("v2", DELAY="3600")))
    mesh.apply(manifest(route(mirror=MIRROR_V2, timeout="500ms")))
    verdict = verify(mesh, Target(), 100)
    assert broken(verdict) == ["delivered"], table(verdict)
    assert figures(verdict, "delivered")["unanswered"] == 100


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_what_v2s_own_proxy_refuses_was_not_received(mesh: EnvoyMesh, manifest: Write) -> None:
    """An application that is dead beside its sidecar: the proxy answers in its place."""
    mesh.apply(state("mirror"))
    kill(mesh, "recommendation-v2", "app")
    verdict = verify(mesh, Target(), 100)
    assert broken(verdict) == ["delivered"], table(verdict)
    assert figures(verdict, "delivered")["refused"] == 100
    assert "refused: 503 upstream_reset_before_response_started" in verdict.claim("delivered").detail


@pytest.mark.of_any_mesh
def test_a_v2_that_hangs_harms_nobody(mesh: EnvoyMesh, manifest: Write) -> None:
    mesh.apply(manifest(shadow("v2", DELAY="3600")))
    mesh.apply(state("mirror"))
    verdict = verify(mesh, Target(), 80, patience=3)
    assert broken(verdict) == ["exactly-once"]
    assert figures(verdict, "exactly-once")["missing"] == 80
    assert re.search(r"v2 has \d+ under way, and does not answer", verdict.claim("exactly-once").detail)


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_a_fuse_bounds_what_a_hanging_v2_costs(mesh: EnvoyMesh, manifest: Write) -> None:
    rule = yaml.safe_load((ROOT / "istio" / "destination-rule.yaml").read_text())
    rule["spec"]["subsets"][1]["trafficPolicy"] = {
        "connectionPool": {"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}
    }
    mesh.apply(manifest([*shadow("v2", DELAY="3600"), rule]))
    mesh.apply(state("mirror"))
    verdict = verify(mesh, Target(), 100, patience=3)
    assert broken(verdict) == ["exactly-once"]
    received = [line for _, line in mesh.logs("recommendation-v2") if line.startswith("received dark-launch")]
    assert len([line for line in received if verdict.run in line]) == 1


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_a_fuse_costs_a_v2_that_is_well_nothing(mesh: EnvoyMesh) -> None:
    mesh.apply(state("fuse"))
    mesh.apply(state("mirror"))
    passed(verify(mesh, Target(), 80))


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_a_slow_v2_is_waited_for(mesh: EnvoyMesh, manifest: Write) -> None:
    """Its copies are logged when they end: long after the last caller was answered."""
    mesh.apply(manifest(shadow("v2", DELAY="1.5")))
    mesh.apply(state("mirror"))
    assert figures(passed(verify(mesh, Target(), 100)), "exactly-once")["received"] == 100
    mesh.apply(manifest(route(mirror=MIRROR_V2, mirrorPercentage={"value": 30})))
    passed(verify(mesh, Target(), 100))
    hidden = verify(promising(mesh, route()), Target(), 100)
    assert broken(hidden) == ["silent"]


@pytest.mark.of_any_mesh
def test_routes_that_change_during_a_run_cannot_be_judged(mesh: EnvoyMesh) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(verify, mesh, Target(), 500)
        mesh.apply(state("mirror"))
        mesh.apply(state("v1-only"))  # and put back
        with pytest.raises(HarnessError, match="what is applied changed: virtualservice/recommendation"):
            running.result()


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_too_few_requests_for_a_percentage_prove_nothing(mesh: EnvoyMesh) -> None:
    mesh.apply(state("mirror-10-percent"))
    verdict = verify(mesh, Target(), 20)
    assert broken(verdict) == ["sampled"]
    assert verdict.exit_code == 2
    assert verdict.claim("sampled").detail == "20 requests are too few to judge: 145 or more are needed"


# --- exactly once, and whole --------------------------------------------------------------------------


@pytest.mark.of_any_mesh
def test_v2_hears_a_request_once_while_v1_is_being_retried(mesh: EnvoyMesh, manifest: Write) -> None:
    mesh.apply(manifest(shadow("v1", FAIL_FIRST="yes")))
    mesh.apply(manifest(route(mirror=MIRROR_V2, retries={"attempts": 2, "retryOn": "503"})))
    v1, v2 = passed(verify(mesh, Target(), 80)).sides
    assert v1.status == {503: 80, 200: 80}
    assert v2.status == {200: 80}


@pytest.mark.of_any_mesh
@pytest.mark.parametrize("size", [*here_only(0, 1024), 3 * 1024 * 1024])
def test_a_body_arrives_whole_at_v2(mesh: EnvoyMesh, manifest: Write, size: int) -> None:
    mesh.apply(manifest(shadow("v2")))
    mesh.apply(state("mirror"))
    body = hashlib.shake_256(b"seed").digest(size)
    agent = f"whole/{size}"
    answer = requests.post(mesh.url(), data=body, headers={"user-agent": agent}, timeout=30)
    assert answer.text.endswith(f", {size} bytes received\n")

    def received() -> list[str]:
        lines = (line.split() for _, line in mesh.logs("recommendation-v2"))
        return [line for line in lines if line[:2] == ["received", agent]][0:1]

    [[_, _, host, digest]] = wait_for(received, "the copy")
    assert digest == hashlib.sha256(body).hexdigest()
    assert host == "recommendation:8080"


@pytest.mark.of_any_mesh
def test_a_body_that_is_too_large_is_refused_through_the_whole_mesh(mesh: EnvoyMesh) -> None:
    answer = requests.post(mesh.url(), data=b"x" * (10 * 1024 * 1024 + 1), timeout=30)
    assert (answer.status_code, answer.text) == (413, "customer: 413 Request Entity Too Large\n")


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_callers_get_json_when_they_ask_for_it(mesh: EnvoyMesh) -> None:
    answer = requests.get(mesh.url(), headers={"accept": "application/json"}, timeout=30).json()
    assert answer["service"] == "customer"
    assert answer["upstream"]["upstream"]["version"] == "v1"


# --- routes that match, and what they cost ------------------------------------------------------------


@pytest.mark.of_any_mesh
def test_promises_that_differ_by_method_are_kept_and_judged_apart(mesh: EnvoyMesh, manifest: Write) -> None:
    http = [
        {"name": "post", "match": [{"method": {"exact": "POST"}}], "route": [to("v1")], "mirror": MIRROR_V2},
        {"name": "rest", "route": [to("v1")]},
    ]
    mesh.apply(manifest([virtual_service({"hosts": ["recommendation"], "http": http})]))
    verdict = passed(verify(mesh, Target(), 80))
    assert verdict.sides[1].requests == 40


@pytest.mark.of_any_mesh
def test_a_header_can_steer_a_caller_to_v2(mesh: EnvoyMesh, manifest: Write) -> None:
    tester = {"match": [{"headers": {"baggage": {"regex": ".*user=tester.*"}}}], "route": [to("v2")]}
    spec = {"hosts": ["recommendation"], "http": [tester, {"route": [to("v1")]}]}
    mesh.apply(manifest([virtual_service(spec)]))
    seen = {
        user: re.findall(
            r"recommendation (v\d)",
            requests.get(mesh.url(), headers={"baggage": f"user={user}"}, timeout=30).text,
        )
        for user in ("tester", "customer")
    }
    assert seen == {"tester": ["v2"], "customer": ["v1"]}


@pytest.mark.of_any_mesh
def test_a_route_timeout_is_kept(mesh: EnvoyMesh, manifest: Write) -> None:
    mesh.apply(manifest(shadow("v1", DELAY="3600")))
    mesh.apply(manifest(route(timeout="100ms")))
    answer = requests.get(mesh.url(), timeout=30)
    line = "customer => preference => 504 upstream request timeout\n"
    assert (answer.status_code, answer.text) == (504, line)


@pytest.mark.of_any_mesh
def test_a_dead_v1_is_a_503_that_names_the_chain(mesh: EnvoyMesh) -> None:
    mesh.scale("recommendation-v1", 0)
    answer = requests.get(mesh.url(), timeout=30)
    assert (answer.status_code, answer.text) == (503, "customer => preference => 503 no healthy upstream\n")


@pytest.mark.of_any_mesh
def test_switching_routes_and_pods_under_load_loses_no_request(mesh: EnvoyMesh) -> None:
    url, done = mesh.url(), threading.Event()

    def call_on() -> Counter[tuple[int, str]]:
        seen: Counter[tuple[int, str]] = Counter()
        with requests.Session() as session:
            while not done.is_set():
                answer = session.get(url, timeout=30)
                seen[answer.status_code, answer.text.partition(" from ")[0]] += 1
                done.wait(0.1)  # a machine that is busy with calls alone would be slow to switch
        return seen

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call_on) for _ in range(4)]
        try:
            for turn in range(2 if mesh.name == "cluster" else 6):
                mesh.apply(state("mirror" if turn % 2 == 0 else "v1-only"))
            mesh.scale("recommendation-v2", 0)
            mesh.scale("recommendation-v1", 2)
            mesh.scale("recommendation-v1", 1)
        finally:
            done.set()
        seen = sum((caller.result() for caller in callers), Counter())
    assert set(seen) == {(200, "customer => preference => recommendation v1")}
    assert seen.total() > 30


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_thousands_of_requests_over_kept_connections_give_no_503(mesh: EnvoyMesh) -> None:
    """With pauses: the connections between the proxies and gunicorn idle between the bursts."""
    with requests.Session() as session, ThreadPoolExecutor(8) as pool:
        sidecar = sidecar_of(mesh, "recommendation-v1")
        for burst in range(4):
            codes = list(pool.map(lambda _: session.get(sidecar, timeout=30).status_code, range(500)))
            assert set(codes) == {200}, f"burst {burst}"
            threading.Event().wait(0.3)


def sidecar_of(mesh: EnvoyMesh, workload: str) -> str:
    """Return the URL of a workload's sidecar, as other proxies reach it."""
    [pod] = [pod for pod in mesh.pods() if pod.workload == workload]
    return f"http://{pod.address}/"


# --- commands that are refused ------------------------------------------------------------------------


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_a_manifest_that_is_refused_changes_nothing(mesh: EnvoyMesh, manifest: Write) -> None:
    before = mesh.objects()
    mirror = state("mirror").read_text()
    for text in (
        "mirror: [",
        mirror.replace("mirror:", "mirorr:"),
        mirror.replace("mirror:", "redirect: {}\n      mirror:"),
        (ROOT / "customer" / "kubernetes.yaml").read_text().replace("image: customer", "image: custard"),
    ):
        path = manifest(text)
        with pytest.raises(ManifestError, match=f"^{re.escape(str(path))}:"):
            mesh.apply(path)
        assert mesh.objects() == before
    passed(verify(mesh, Target(), 50))


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_what_envoy_rejects_is_rolled_back(mesh: EnvoyMesh, manifest: Write) -> None:
    before = mesh.objects()
    command = {"request": {"set": {"x-a": "%NO_SUCH_COMMAND%"}}}
    with pytest.raises(MeshError, match=r"Envoy rejected the configuration \(.*NO_SUCH_COMMAND"):
        mesh.apply(manifest(route(headers=command)))
    assert mesh.objects() == before
    passed(verify(mesh, Target(), 50))
    mesh.apply(state("mirror"))
    passed(verify(mesh, Target(), 50))


@pytest.mark.not_on_cluster
def test_a_workload_that_does_not_come_up_is_rolled_back(mesh: EnvoyMesh, manifest: Write) -> None:
    before = mesh.objects()
    with pytest.raises(MeshError, match=r"recommendation-v2-\w+-0 ended; its last words: (?!\(nothing\))"):
        mesh.apply(manifest(shadow("v2", STATUS="not a number")))
    assert mesh.objects() == before
    passed(verify(mesh, Target(), 50))


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_apply_and_delete_say_what_kubectl_says(mesh: EnvoyMesh) -> None:
    assert mesh.apply(state("mirror")) == ["virtualservice/recommendation configured"]
    assert mesh.apply(state("mirror")) == ["virtualservice/recommendation unchanged"]
    assert mesh.delete(state("mirror")) == ["virtualservice/recommendation deleted"]
    assert mesh.apply(state("mirror")) == ["virtualservice/recommendation created"]
    mesh.delete(state("mirror"))
    with pytest.raises(MeshError, match="virtualservice/recommendation is not applied"):
        mesh.delete(state("mirror"))


@pytest.mark.of_any_mesh
def test_a_rule_that_routes_need_can_go_and_come_back_as_on_istio(mesh: EnvoyMesh) -> None:
    mesh.delete(state("destination-rule"))
    assert get(mesh.url()).status_code == 503
    mesh.apply(state("destination-rule"))
    passed(verify(mesh, Target(), 50))


@pytest.mark.of_any_mesh
@pytest.mark.not_on_cluster
def test_bailing_out_is_not_refused_while_v2_is_dead_and_cannot_start(
    mesh: EnvoyMesh, manifest: Write
) -> None:
    mesh.apply(state("mirror"))
    mesh.apply(manifest(shadow("v2", DIE="1")))
    get(mesh.url())
    kill(mesh, "recommendation-v2")
    assert mesh.apply(state("v1-only")) == ["virtualservice/recommendation configured"]
    passed(verify(mesh, Target(), 50))
    assert [pod.state for pod in mesh.pods() if pod.workload == "recommendation-v2"] != ["Running"]


@pytest.mark.of_any_mesh
@pytest.mark.not_on_cluster
def test_a_proxy_that_hangs_does_not_keep_a_route_from_the_others(mesh: EnvoyMesh) -> None:
    if not isinstance(mesh, LocalMesh):
        pytest.skip("only the processes of the local mesh can be stopped from here")
    [hung] = [
        p for pod, c, p in mesh.runtime.processes() if "recommendation-v2" in pod and c == "istio-proxy"
    ]
    hung.suspend()
    try:
        with pytest.raises(
            MeshError, match=r"^it is applied, but the proxy of recommendation-v2-\w+-0 does not"
        ):
            mesh.apply(state("mirror-10-percent"))
        assert mesh.objects()["virtualservice/recommendation"][0] == "istio/mirror-10-percent.yaml"
        assert get(mesh.url()).status_code == 200
    finally:
        hung.resume()


@pytest.mark.of_any_mesh
def test_an_unknown_workload_is_named_with_those_that_exist(mesh: EnvoyMesh) -> None:
    with pytest.raises(MeshError, match=r"no workload 'reviews' .*recommendation-v2"):
        mesh.scale("reviews", 0)


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_the_objects_of_a_mesh_are_those_of_its_files(mesh: EnvoyMesh) -> None:
    applied: list[Object] = read(state("v1-only"))
    assert mesh.objects()[applied[0].key] == ("istio/v1-only.yaml", applied[0])
