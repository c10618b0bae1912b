"""The release: from dark to everybody, and back at the first violation, on real proxies."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from helpers import free_port, here_only, run, shadow, wait_for

from harness import HarnessError
from harness.cluster.mesh import ClusterMesh
from harness.manifests.read import to_object
from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.mesh import ROOT
from harness.proof.evidence import Bounds
from harness.proof.mark import mark_of, marked
from harness.proof.report import table
from harness.proof.target import Routing, Target
from harness.proof.verdict import Verdict
from harness.proof.watch import Watch
from harness.release.router import CalledOff, bail_out, ruling
from harness.release.routes import (
    DARK,
    LADDER,
    Group,
    Plan,
    Step,
    Versions,
    needed,
    parse_steps,
    routes_at,
)
from harness.release.run import Release

HOST = "recommendation.tutorial.svc.cluster.local"


# --- routes: pure -----------------------------------------------------------------------------------------


def routed(found: dict[str, Any], step: Step | None) -> dict[str, Any]:
    document = routes_at(found, HOST, Versions(), step, Group())
    to_object(json.loads(json.dumps(document)), "release.json")  # the meshes take it
    return document


def words(document: dict[str, Any]) -> list[str]:
    """Return each rule in words."""
    return [
        f"{rule['name']}: "
        + ", ".join(f"{r['destination']['subset']} {r.get('weight', 100)}" for r in rule["route"])
        + "".join(f" + {m['subset']}" for m in [rule.get("mirror")] if m)
        for rule in document["spec"]["http"]
    ]


def state(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "istio" / f"{name}.yaml").read_text())
    return found


def test_each_step_is_the_same_route_with_other_destinations() -> None:
    assert [words(routed(state("v1-only"), step)) for step in LADDER] == [
        ["v1-only: v1 100 + v2"],
        ["v1-only-testers: v2 100", "v1-only: v1 100"],
        ["v1-only-testers: v2 100", "v1-only: v1 99, v2 1"],
        ["v1-only-testers: v2 100", "v1-only: v1 90, v2 10"],
        ["v1-only-testers: v2 100", "v1-only: v1 50, v2 50"],
        ["v1-only: v2 100"],
    ]


@pytest.mark.parametrize("name", ["mirror", "mirror-reads", "canary", "promote", "v1-only"])
@pytest.mark.parametrize("step", LADDER, ids=str)
def test_every_step_leads_back_to_v1_alone(name: str, step: Step) -> None:
    back = routed(routed(state(name), step), None)
    assert {word.partition(": ")[2] for word in words(back)} == {"v1 100"}
    assert words(back) == words(routed(state(name), None))


def test_a_release_keeps_all_else_of_a_route() -> None:
    found = state("mirror-reads")
    reads, writes = found["spec"]["http"]
    reads |= {"timeout": "3s", "retries": {"attempts": 0}}
    reads["route"][0]["headers"] = {"response": {"set": {"x": "y"}}}
    writes["match"] = [{"uri": {"prefix": "/a"}}, {"headers": {"b": {"exact": "c"}}}]
    document = routed(found, Step(10))
    testers, rest, *_ = document["spec"]["http"]
    for rule in (testers, rest):
        assert (rule["timeout"], rule["retries"]) == ("3s", {"attempts": 0})
        assert all(route["headers"] == {"response": {"set": {"x": "y"}}} for route in rule["route"])
    assert rest["match"] == reads["match"]
    matches = document["spec"]["http"][2]["match"]
    assert [sorted(match.get("headers", {})) for match in matches] == [["baggage"], ["b", "baggage"]]


def test_the_dark_step_keeps_a_mirror_as_it_is() -> None:
    assert words(routed(state("mirror-reads"), DARK)) == ["reads: v1 100 + v2", "writes: v1 100 + v2"]
    ten = routed(state("mirror-10-percent"), DARK)
    assert ten["spec"]["http"][0]["mirrorPercentage"] == {"value": 10}


def test_a_route_that_leads_elsewhere_is_not_touched() -> None:
    found = state("mirror")
    found["spec"]["http"].insert(0, {"name": "x", "route": [{"destination": {"host": "other"}}]})
    assert routed(found, Step(100))["spec"]["http"][0] == found["spec"]["http"][0]
    found["spec"]["http"] = found["spec"]["http"][:1]
    with pytest.raises(HarnessError, match="has no rule that leads to recommendation alone"):
        routed(found, DARK)


def test_a_mark_is_read_as_it_was_written() -> None:
    document = marked(routed(state("mirror"), DARK), {"step": "dark"})
    assert mark_of(document) == {"step": "dark"}
    assert mark_of(routed(document, DARK)) == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dark 100% 50%", "each step must reach more callers"),
        ("dark 10%", "the last step must be 100%"),
        ("", "the last step must be 100%"),
        ("dark 0% 100%", "'0%' is not a step"),
        ("dark light 100%", "'light' is not a step"),
        ("10% 10% 100%", "each step must reach more callers"),
    ],
)
def test_steps_that_make_no_ladder_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_steps(text)


def test_steps_are_read_as_people_write_them() -> None:
    assert parse_steps("dark, testers 1 % 10% 50, 100%") == LADDER


def test_so_many_answers_show_a_defect() -> None:
    assert [needed(part) for part in (0.5, 0.02, 0.001)] == [5, 149, 2995]


# --- releases ---------------------------------------------------------------------------------------------

QUICK = Plan(steps=parse_steps("dark testers 50% 100%"), requests=60, part=0.1, concurrency=4)


@pytest.fixture
def release(mesh: EnvoyMesh | ClusterMesh) -> Callable[..., tuple[Verdict, list[str]]]:
    """Return a function that releases v2 with a plan, and returns the verdict and what was told."""

    def release(**settings: Any) -> tuple[Verdict, list[str]]:
        told: list[str] = []
        verdict = Release(mesh, Target(), replace(QUICK, **settings), told.append).climb()
        return verdict, told

    return release


def ruled(mesh: EnvoyMesh) -> list[str]:
    """Return what rules now, in words; no release may stand there."""
    found = applied(mesh)
    assert mark_of(found) == {}
    return words(found)


def applied(mesh: EnvoyMesh) -> dict[str, Any]:
    found = ruling(Routing(mesh.scene(Target().namespace), Target()))
    assert found
    return found


class Load:
    """Ten callers a second that never pause, every second one of them a tester."""

    def __init__(self, url: str) -> None:
        self.url, self.stop = url, threading.Event()
        self.seen: dict[bool, list[tuple[int, str]]] = {True: [], False: []}
        self.threads = [threading.Thread(target=self.call, args=(tester,)) for tester in (True, False)]

    def call(self, tester: bool) -> None:
        headers = {"accept": "text/plain", **({"baggage": "a=b, group=testers"} if tester else {})}
        with requests.Session() as session:
            session.trust_env = False
            while not self.stop.is_set():
                answer = session.get(self.url, headers=headers, timeout=30)
                version = answer.text.partition("recommendation ")[2][:2]
                self.seen[tester].append((answer.status_code, version))
                self.stop.wait(0.2)

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.of_any_mesh
@pytest.mark.timeout(400)
def test_a_healthy_v2_reaches_everybody_without_a_failed_request(
    mesh: EnvoyMesh, release: Callable[..., tuple[Verdict, list[str]]]
) -> None:
    with Load(mesh.url()) as load:
        verdict, told = release()
    assert verdict.passed, "\n".join([*told, table(verdict)])
    at_v2 = [int(re.findall(r"(\d+) at v2", line)[0]) for line in told]
    assert f"{at_v2[-1]} now, {sum(at_v2)} in all" in verdict.claim("enough").detail
    assert [line.split()[:2] for line in told] == [["ok", word] for word in ("dark", "testers", "50", "100")]
    assert set(dict(load.seen[True]) | dict(load.seen[False])) == {200}
    testers = [version for _, version in load.seen[True]]
    assert testers == sorted(testers), "a tester who saw v2 saw v1 again"
    assert {version for _, version in load.seen[False]} == {"v1", "v2"}
    assert ruled(mesh) == ["v1-only: v2 100"]


def everybody_is_a_tester() -> list[dict[str, Any]]:
    """Return customer's route with a header that makes every caller a tester."""
    documents = [*yaml.safe_load_all((ROOT / "istio" / "gateway.yaml").read_text())]
    [route] = [document for document in documents if document["kind"] == "VirtualService"]
    route["spec"]["http"][0]["headers"] = {"request": {"set": {"baggage": "group=testers"}}}
    return documents


def shared_store() -> list[dict[str, Any]]:
    path = ROOT / "recommendation" / "settings" / "wrong-while-mirrored.yaml"
    return [*yaml.safe_load_all(path.read_text())]


@pytest.mark.of_any_mesh
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("defect", "settings", "step", "claim"),
    [
        *here_only((lambda: shadow("v2", FAIL_EVERY="50"), {}, "dark", "same-status")),
        (
            lambda: shadow("v2", FAIL_EVERY="10"),
            {"steps": parse_steps("50% 100%")},
            "50 %",
            "failures",
        ),
        *here_only(
            (lambda: shadow("v2", DELAY="2"), {"bounds": Bounds(max_p99_ratio=3)}, "dark", "p99-ratio")
        ),
        *here_only(
            (everybody_is_a_tester, {}, "testers", "only-testers"),
            (shared_store, {}, "dark", "stored"),
        ),
    ],
    ids=["2% of 500s", "500s to callers", "slow", "leak", "written twice"],
)
def test_a_defect_stops_the_release_at_the_step_where_it_shows(
    mesh: EnvoyMesh, manifest: Callable[..., Path], release: Callable[..., tuple[Verdict, list[str]]],
    defect: Callable[[], list[dict[str, Any]]], settings: dict[str, Any], step: str, claim: str,
) -> None:  # fmt: skip
    mesh.apply(manifest(defect()))
    verdict, told = release(**settings)
    # Whether first a caller knows of a failure or its proxy has told of it is chance.
    first = [{claim}, {claim, "answered"}, *([{"answered"}] if claim == "failures" else [])]
    assert {*verdict.failed()} in first, "\n".join([*told, table(verdict)])
    failed, back, silence = told[-3:]
    assert re.match(f"FAIL  {step} ", failed)
    assert back == "bailed out: v1 answers every caller"
    assert silence.strip() == "v2 received 0 of 50 requests since"
    assert {word.partition(": ")[2] for word in ruled(mesh)} == {"v1 100"}


@pytest.mark.of_any_mesh
def test_a_release_is_called_off_by_somebody_elses_bail_out(
    mesh: EnvoyMesh, release: Callable[..., tuple[Verdict, list[str]]]
) -> None:
    def call_off() -> None:
        wait_for(lambda: mark_of(applied(mesh)).get("step") == "dark", "the dark step")
        with pytest.raises(HarnessError, match="a release is under way"):
            release()
        [line] = bail_out(mesh, Target(), Versions())
        assert line.endswith("/recommendation configured")

    somebody = threading.Thread(target=call_off)
    somebody.start()
    with pytest.raises(CalledOff, match="somebody else ended the release"):
        release(requests=100_000)
    somebody.join()
    assert ruled(mesh) == ["v1-only: v1 100"]


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_a_step_without_enough_requests_is_unproven_and_bails_out(
    mesh: EnvoyMesh, release: Callable[..., tuple[Verdict, list[str]]]
) -> None:
    verdict, told = release(requests=0, seconds=0.1)
    assert "enough" in verdict.unproven()
    assert not verdict.failed()
    assert told[0].startswith("?     dark")
    assert told[1] == "bailed out: v1 answers every caller"


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_a_release_whose_logs_do_not_come_gives_up_and_says_what_is_not_known(
    mesh: EnvoyMesh, release: Callable[..., tuple[Verdict, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = mesh.follow

    def silent(*arguments: Any) -> Any:
        follower = follow(*arguments)
        follower.lines = lambda: iter(())  # as where a node takes a log away from those who read it
        return follower

    monkeypatch.setattr(mesh, "follow", silent)
    monkeypatch.setattr("harness.release.analysis.BLIND", 1.0)
    monkeypatch.setitem(Watch.__init__.__kwdefaults__, "patience", 1.0)
    verdict, told = release()
    assert {"logged", "enough"} <= {*verdict.unproven()}, table(verdict)
    assert told[0].startswith("?     dark")
    assert told[-1].strip() == "whether v2 still receives requests is not known: none was seen"
    assert ruled(mesh) == ["v1-only: v1 100"]


def test_a_release_that_is_interrupted_bails_out_and_one_that_is_killed_is_seen(checkout: Path) -> None:
    def harness(*words: str) -> "subprocess.CompletedProcess[str]":
        return run(checkout, sys.executable, "-m", "harness", *words)

    def begin() -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "harness", "release", "-n", "1000000"]
        running = subprocess.Popen(
            command, cwd=checkout, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        wait_for(lambda: "a release stands at dark" in harness("status").stdout, "the dark step", 60)
        return running

    assert harness("up", "--port", str(free_port())).returncode == 0
    with begin() as running:
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=60)
        assert running.returncode == 130, said
    assert "bailed out: v1 answers every caller\n            v2 received 0 of 50 requests since" in said
    assert "all to v1 (" in harness("status").stdout
    assert "a release" not in harness("status").stdout
    with begin() as running:
        running.kill()
        running.communicate()
    assert "a release stands at dark since" in harness("status").stdout
    refused = harness("release", "-n", "10")
    assert refused.returncode == 2
    assert "end it with 'make bail-out' first" in refused.stderr
    ended = harness("bail-out")
    assert ended.stdout.splitlines()[-1] == "v1 answers every caller, and nothing goes to v2"
    assert "a release" not in harness("status").stdout
    assert (
        "no DestinationRule gives recommendation a subset 'v3'"
        in harness("release", "--candidate", "v3").stderr
    )
