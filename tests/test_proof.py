"""The proof on real proxies: what breaks a dark launch is told, and what was not seen is no PASS."""

import contextlib
import http.server
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from helpers import route, shadow, to, virtual_service, wait_for, without_store

from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT
from harness.proof import traffic
from harness.proof.evidence import Bounds
from harness.proof.report import table
from harness.proof.status import status_of
from harness.proof.target import Target
from harness.proof.trace import find
from harness.proof.verdict import Verdict
from harness.proof.watch import Watch, verify

pytestmark = pytest.mark.of_any_mesh

Write = Callable[[str | list[dict[str, Any]]], Path]

MIRROR_V2 = {"host": "recommendation", "subset": "v2"}
MIRROR = ROOT / "istio" / "mirror.yaml"
V1_ONLY = ROOT / "istio" / "v1-only.yaml"


def broken(verdict: Verdict) -> list[str]:
    """Return the ids of the claims that do not hold."""
    return [*verdict.failed(), *verdict.unproven()]


@contextlib.contextmanager
def following(mesh: EnvoyMesh, sample: int = 1, **options: Any) -> Iterator[Watch]:
    """Follow what flows."""
    watch = Watch(mesh, Target(), **options)
    watch.follow(sample)
    try:
        yield watch
    finally:
        watch.close()


def judged(watch: Watch) -> Verdict:
    watch.settle()
    return watch.verdict()


def inbound(mesh: EnvoyMesh, workload: str) -> str:
    """Return the address at which a workload's sidecar takes requests, as seen from this machine."""
    [pod] = [pod for pod in mesh.scene(Target().namespace).pods if pod.workload == workload]
    return f"http://{pod.addresses[0]}/"


# --- where routes lead ----------------------------------------------------------------------------------


@pytest.mark.not_on_cluster
def test_a_subset_that_no_pod_is_in_gets_nothing(mesh: EnvoyMesh, manifest: Write) -> None:
    rule = yaml.safe_load((ROOT / "istio" / "destination-rule.yaml").read_text())
    rule["spec"]["subsets"].append({"name": "canary", "labels": {"version": "v2-typo"}})
    mesh.apply(manifest([rule]))
    mesh.apply(manifest(route(mirror={"host": "recommendation", "subset": "canary"})))
    assert "virtualservice/recommendation: all to v1; mirrored 100 % to canary (no pod)" in " ".join(
        status_of(mesh, Target())
    )
    verdict = verify(mesh, Target(), 100)
    assert broken(verdict) == ["exactly-once"], table(verdict)
    assert verdict.claim("exactly-once").statement == "canary received every request exactly once"


def test_of_several_mirrors_one_that_leads_nowhere_is_told(mesh: EnvoyMesh, manifest: Write) -> None:
    rule = yaml.safe_load((ROOT / "istio" / "destination-rule.yaml").read_text())
    rule["spec"]["subsets"].append({"name": "v3", "labels": {"version": "v3"}})
    mesh.apply(manifest([rule]))
    nowhere = {"destination": {"host": "recommendation", "subset": "v3"}}
    mesh.apply(manifest(route(mirrors=[{"destination": MIRROR_V2}, nowhere])))
    verdict = verify(mesh, Target(), 100)
    states = {c.statement: c.state for c in verdict.claims if c.id == "exactly-once"}
    assert states == {
        "v2 received every request exactly once": "holds",
        "v3 received every request exactly once": "fails",
    }
    assert broken(verdict) == ["exactly-once"], table(verdict)


@pytest.mark.not_on_cluster
def test_a_service_for_each_version_is_judged_like_subsets(mesh: EnvoyMesh, manifest: Write) -> None:
    mesh.apply(ROOT / "istio" / "gateway-api" / "versions.yaml")
    http = {
        "route": [{"destination": {"host": "recommendation-v1"}}],
        "mirror": {"host": "recommendation-v2"},
    }
    mesh.apply(manifest([virtual_service({"hosts": ["recommendation"], "http": [http]})]))
    verdict = verify(mesh, Target(), 100)
    assert verdict.passed, table(verdict)
    assert verdict.routes == "all to v1; mirrored 100 % to v2"
    mesh.scale("recommendation-v2", 0)
    assert broken(verify(mesh, Target(), 100)) == ["exactly-once"]


@pytest.mark.not_on_cluster  # its policy lets only preference in
def test_a_mirror_at_the_gateway_is_in_the_status_and_judged_where_it_is_the_target(
    mesh: EnvoyMesh, manifest: Write
) -> None:
    documents = list(yaml.safe_load_all((ROOT / "istio" / "gateway.yaml").read_text()))
    documents[1]["spec"]["http"][0]["mirror"] = MIRROR_V2
    mesh.apply(manifest(documents))
    lines = list(status_of(mesh, Target()))
    [line] = [line for line in lines if line.startswith("virtualservice/customer")]
    assert line.startswith("virtualservice/customer: all to customer; mirrored 100 % to recommendation v2")
    assert verify(mesh, Target("customer"), 50).passed
    # v2 got what nobody sent to recommendation.
    assert verify(mesh, Target(), 50).failed() == ["silent"]


@pytest.mark.not_on_cluster
def test_a_mirror_to_any_version_by_chance_is_not_judged(mesh: EnvoyMesh, manifest: Write) -> None:
    mesh.apply(manifest(without_store()))  # copies that v1 gets are stored twice
    mesh.apply(manifest(route(mirror={"host": "recommendation"})))
    verdict = verify(mesh, Target(), 50)
    assert (verdict.failed(), verdict.unproven()) == ([], ["understood"]), table(verdict)
    assert verdict.exit_code == 2


@pytest.mark.not_on_cluster
def test_a_rule_that_no_request_took_is_unproven(mesh: EnvoyMesh, manifest: Write) -> None:
    tester = {"headers": {"baggage": {"exact": "user=tester"}}}
    http = [
        {"name": "testers", "match": [tester], "route": [to("v1")], "mirror": MIRROR_V2},
        {"name": "others", "route": [to("v1")]},
    ]
    mesh.apply(manifest([virtual_service({"hosts": ["recommendation"], "http": http})]))
    verdict = verify(mesh, Target(), 50)
    assert broken(verdict) == ["exercised"]
    assert verdict.claim("exercised").detail == "no request took rule 'testers'"


@pytest.mark.not_on_cluster
def test_rules_without_names_cannot_be_told_apart(mesh: EnvoyMesh, manifest: Write) -> None:
    http = [
        {"match": [{"method": {"exact": "POST"}}], "route": [to("v1")], "mirror": MIRROR_V2},
        {"route": [to("v1")]},
    ]
    mesh.apply(manifest([virtual_service({"hosts": ["recommendation"], "http": http})]))
    assert "attributed" in verify(mesh, Target(), 50).unproven()


# --- who sends ------------------------------------------------------------------------------------------


@pytest.mark.not_on_cluster
def test_requests_that_no_ticket_bears_are_counted(mesh: EnvoyMesh) -> None:
    if mesh.name != "local":
        pytest.skip("a container's sidecar is not reached from this machine")
    with following(mesh, patience=2) as watch:
        for _ in range(50):
            assert requests.get(inbound(mesh, "recommendation-v2"), timeout=10).ok
        verdict = judged(watch)
    assert verdict.failed() == ["silent"]
    assert verdict.claim("silent").figures == {"received": 50}


@pytest.mark.not_on_cluster
def test_what_callers_without_a_proxy_send_to_v1_is_unproven(mesh: EnvoyMesh) -> None:
    if mesh.name != "local":
        pytest.skip("a container's sidecar is not reached from this machine")
    with following(mesh, patience=2) as watch:
        assert requests.get(inbound(mesh, "recommendation-v1"), timeout=10).ok
        assert requests.get(mesh.url(), timeout=10).ok
        verdict = judged(watch)
    assert broken(verdict) == ["logged"]
    assert "1 arrived from callers whose proxies are not read" in verdict.claim("logged").detail


def test_a_watch_judges_what_flows_and_tells_a_request_by_its_ticket(mesh: EnvoyMesh) -> None:
    mesh.apply(MIRROR)
    with following(mesh) as watch:
        for number in range(20):
            requests.get(mesh.url(), headers={"user-agent": f"dark-launch/mine/{number}"}, timeout=10)
        verdict = judged(watch)
    assert verdict.passed, table(verdict)
    assert verdict.requests == 20
    lines = find(mesh, Target(), "dark-launch/mine/7")
    told = "\n".join(lines)
    assert len(lines) == 8  # the gateway, customer and preference send, four get it, and the verdict
    assert f"outbound|8080|v1|recommendation.{Target().namespace}.svc.cluster.local" in told
    assert "by rule 'mirror'" in told
    assert lines[-1] == "as it must be"
    assert find(mesh, Target(), "dark-launch/mine/99") == []


@pytest.mark.not_on_cluster
def test_a_sample_judges_a_part_of_all_requests(mesh: EnvoyMesh) -> None:
    mesh.apply(MIRROR)
    with following(mesh, sample=4) as watch:
        for _ in range(100):
            requests.get(mesh.url(), timeout=10)
        verdict = judged(watch)
    assert verdict.passed, table(verdict)
    assert 0 < verdict.requests < 60


@pytest.mark.not_on_cluster
def test_a_trace_says_what_is_missing(mesh: EnvoyMesh) -> None:
    mesh.apply(MIRROR)
    mesh.scale("recommendation-v2", 0)
    verdict = verify(mesh, Target(), 20)
    example = verdict.claim("exactly-once").examples[0]
    assert find(mesh, Target(), example)[-1].startswith("FAIL exactly-once: v2 received every request")


def test_what_is_applied_during_a_watch_is_judged_from_then_on(mesh: EnvoyMesh) -> None:
    with following(mesh) as watch:
        requests.get(mesh.url(), timeout=10)
        wait_for(lambda: watch.read() or watch.evidence.stories, "the first request")
        mesh.apply(MIRROR)
        wait_for(lambda: watch.read() or watch.look(), "the change")
        blurred = time.monotonic() + mesh.quiet
        wait_for(lambda: watch.read() or time.monotonic() > blurred, "an end of the blur")
        requests.get(mesh.url(), timeout=10)
        verdict = judged(watch)
    assert verdict.passed, table(verdict)
    assert verdict.routes == "all to v1; mirrored 100 % to v2"
    assert (verdict.requests, verdict.unjudged) == (1, 1)
    assert watch.changes == ["what is applied changed: virtualservice/recommendation"]


# --- a v2 that answers otherwise ------------------------------------------------------------------------


@pytest.mark.not_on_cluster
def test_a_v2_that_cuts_bodies_off_is_not_faithful(mesh: EnvoyMesh, manifest: Write) -> None:
    mesh.apply(manifest(shadow("v2", EARLY="yes")))
    mesh.apply(MIRROR)
    with following(mesh, patience=5) as watch:
        body = b"x" * (8 * 1024 * 1024)
        assert requests.post(mesh.url(), data=body, timeout=30).ok
        verdict = judged(watch)
    assert broken(verdict) == ["faithful"], table(verdict)


@pytest.mark.not_on_cluster
def test_size_and_time_of_answers_are_judged_where_asked(mesh: EnvoyMesh, manifest: Write) -> None:
    mesh.apply(manifest(shadow("v2", DELAY="0.4")))
    mesh.apply(MIRROR)
    assert verify(mesh, Target(), 30).passed
    both = verify(mesh, Target(), 30, bounds=Bounds(same_size=True, max_p99_ratio=2))
    assert broken(both) == ["same-size", "p99-ratio"]


# --- logs that somebody tampers with --------------------------------------------------------------------


def _log(mesh: EnvoyMesh, workload: str) -> Path:
    if not isinstance(mesh, LocalMesh):
        pytest.skip("a container's log is no file of this machine's user")
    [pod] = [pod for pod in mesh.scene(Target().namespace).pods if pod.workload == workload]
    return mesh.state / "pods" / pod.name / "access.log"


@pytest.mark.not_on_cluster
def test_a_log_that_is_truncated_is_read_from_its_new_beginning(mesh: EnvoyMesh) -> None:
    mesh.apply(MIRROR)
    log = _log(mesh, "recommendation-v2")
    for _ in range(20):
        requests.get(mesh.url(), timeout=10)
    with following(mesh, patience=2) as watch:
        requests.get(mesh.url(), timeout=10)
        wait_for(lambda: watch.read() or watch.evidence.stories, "the first request")
        log.write_text("")
        requests.get(mesh.url(), timeout=10)
        verdict = judged(watch)
    assert verdict.passed, table(verdict)
    assert verdict.requests == 2


@pytest.mark.not_on_cluster
def test_a_log_that_is_gone_proves_nothing(mesh: EnvoyMesh) -> None:
    mesh.apply(MIRROR)
    log = _log(mesh, "recommendation-v2")
    kept = log.rename(log.with_suffix(".kept"))
    try:
        verdict = verify(mesh, Target(), 20, patience=2)
    finally:
        kept.rename(log)
    assert (verdict.failed(), verdict.unproven()) == ([], ["exactly-once"]), table(verdict)


# --- what never ends ------------------------------------------------------------------------------------


def test_a_mirror_that_leads_back_is_a_loop(mesh: EnvoyMesh, manifest: Write) -> None:
    mesh.apply(manifest(route(mirror={"host": "customer"})))
    try:
        verdict = verify(mesh, Target(), 50)
    finally:
        mesh.apply(V1_ONLY)
    assert "no-loop" in verdict.failed()
    assert "customer -> preference -> recommendation" in verdict.claim("no-loop").detail


@pytest.mark.not_on_cluster
def test_a_v2_that_calls_the_chain_again_is_a_loop(mesh: EnvoyMesh, manifest: Write) -> None:
    mesh.apply(manifest(shadow("v2", CALL="http://customer:8080/")))
    mesh.apply(MIRROR)
    try:
        verdict = verify(mesh, Target(), 50)
    finally:
        mesh.apply(V1_ONLY)
    assert "no-loop" in verdict.failed()
    detail = verdict.claim("no-loop").detail
    assert "recommendation-v2 -> customer -> preference -> recommendation" in detail


@pytest.fixture
def dripping() -> Iterator[str]:
    """Yield the address of a server that answers a byte at a time, and never ends."""

    class Drip(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not ended.wait(0.05):
                    self.wfile.write(b"x")
                    self.wfile.flush()

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    ended = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    ended.set()
    server.shutdown()
    server.server_close()


@pytest.mark.not_on_cluster
def test_an_answer_that_drips_ends_by_its_deadline(
    mesh: EnvoyMesh, dripping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "TIMEOUT", 1.0)
    verdict = verify(mesh, Target(), 10_000, url=dripping, patience=2)
    assert verdict.failed() == ["answered"]
    assert 0 < verdict.claim("answered").figures["requests"] < 100
    assert verdict.claim("answered").figures["answered"] == 0


@pytest.mark.not_on_cluster
def test_traffic_that_never_stops_does_not_keep_a_run_from_ending(mesh: EnvoyMesh) -> None:
    mesh.apply(MIRROR)
    done = threading.Event()

    def call_on() -> None:
        with requests.Session() as session:
            for _ in itertools.takewhile(lambda _: not done.is_set(), itertools.count()):
                session.get(mesh.url(), timeout=10)

    caller = threading.Thread(target=call_on)
    caller.start()
    try:
        verdict = verify(mesh, Target(), 100, patience=3)
    finally:
        done.set()
        caller.join()
    assert verdict.failed() == [], table(verdict)
    assert verdict.requests > 100
