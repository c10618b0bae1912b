"""istio/compare.yaml on real proxies: they log answers that can be compared, and harm none."""

import base64
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import requests
import yaml
from helpers import reset, shadow, wait_for

from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.mesh import ANSWER, ROOT, MeshError
from harness.proof.evidence import Bounds, Claim
from harness.proof.target import Target
from harness.proof.watch import verify
from harness.rendering.accesslog import Hop, parse_line

Write = Callable[[str | list[dict[str, Any]]], Path]

COMPARE = ROOT / "istio" / "compare.yaml"


class Answer(NamedTuple):
    """An answer that a version's proxy logged."""

    version: str
    id: str
    path: str
    status: str
    kind: str
    body: str


class Seen(NamedTuple):
    """A reply as its caller got it, and what the versions' proxies logged of it."""

    reply: requests.Response
    hops: dict[str, Hop]
    answers: list[Answer]


@pytest.fixture(scope="module")
def deployed(running_mesh: EnvoyMesh, tmp_path_factory: pytest.TempPathFactory) -> EnvoyMesh:
    """Return a mesh whose versions answer what a caller asks for; v2 gets copies."""
    v1, v2 = ({"host": "recommendation", "subset": v, "port": {"number": 8080}} for v in ("v1", "v2"))
    rule = {
        "match": [{"uri": {"prefix": "/outside/"}}], "rewrite": {"uri": "/"},
        "route": [{"destination": v1}], "mirror": v2,
    }  # fmt: skip
    way_in = {
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "way-in"},
        "spec": {"hosts": ["*"], "gateways": ["ingress"], "http": [rule]},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("answers") / "versions.yaml"
    path.write_text(yaml.safe_dump_all([*shadow("v1"), *shadow("v2"), way_in]))
    reset(running_mesh)
    running_mesh.apply(path)
    return running_mesh


@pytest.fixture
def versions(deployed: EnvoyMesh) -> EnvoyMesh:
    """Return that mesh while the proxies log its answers."""
    deployed.apply(COMPARE)
    return deployed


def ask(mesh: EnvoyMesh, method: str = "GET", **query: Any) -> Seen:
    """Send a request, and wait until both versions' proxies have logged all of it."""
    at = str(time.time_ns())
    hops: dict[str, Hop] = {}
    answers: list[Answer] = []

    def both_logged() -> bool:
        for pod, line in follower.lines():
            version = pod.removeprefix("recommendation-")[:2]
            if ANSWER in line:
                id, path, status, kind, body = line.partition(ANSWER)[2].split(" ")
                id, path, body = (base64.b64decode(text).decode() for text in (id, path, body))
                answers.append(Answer(version, id, path, status, kind, body))
            elif pod.startswith("recommendation-") and (hop := parse_line(line)) and at in hop.path:
                assert version not in hops
                hops[version] = hop
        return len(hops) == 2

    with contextlib.closing(mesh.follow(Target().namespace)) as follower:
        url = mesh.url().replace("/customer", f"/outside/answer?{urlencode({**query, 'at': at})}")
        reply = requests.request(method, url, timeout=30)
        wait_for(both_logged, "the request in both logs")
        time.sleep(mesh.quiet)
        both_logged()
    return Seen(reply, hops, sorted(answer for answer in answers if at in answer.path))


JSON = {"body": '{"by": "VERSION", "a: \\"b": "c, \\"d\\": 7", "n": [12, -1.5e3, true, null]}'}


@pytest.mark.not_on_cluster  # its policy lets only preference in
def test_an_answer_and_its_copys_are_each_logged_once_as_they_were_sent(versions: EnvoyMesh) -> None:
    for kind, type in (("text", "text/plain; charset=utf-8"), ("json", "application/problem+json")):
        reply, hops, answers = ask(versions, **JSON, type=type)
        assert hops["v1"].path.startswith("/outside/answer?")
        assert hops["v1"].request_id == hops["v2"].request_id
        assert answers == [
            Answer(v, hop.request_id, hop.path, "200", kind, JSON["body"].replace("VERSION", v))
            for v, hop in sorted(hops.items())
        ]
        assert reply.text == answers[0].body
    longest = ask(versions, body="x", times=8192, type="text/plain")
    assert [answer.body for answer in longest.answers] == ["x" * 8192] * 2


@pytest.mark.of_any_mesh
@pytest.mark.not_on_cluster  # its policy lets only preference in
def test_any_other_answer_passes_untouched_and_is_not_logged(versions: EnvoyMesh) -> None:
    text = {"body": "VERSION", "type": "text/plain"}
    for method, query in (
        ("POST", text),
        ("HEAD", text),
        ("GET", text | {"times": 4097}),
        ("GET", text | {"times": 2**20}),
        ("GET", text | {"times": 0}),
        ("GET", text | {"stream": "yes"}),
        ("GET", text | {"gzip": "yes"}),
        ("GET", text | {"type": "application/octet-stream"}),
    ):
        reply, _, answers = ask(versions, method, **query)
        assert reply.status_code == 200
        assert reply.text == ("" if method == "HEAD" else "v1" * int(query.get("times", 1))), query
        assert answers == [], query


@pytest.mark.not_on_cluster  # its policy lets only preference in
@pytest.mark.of_any_mesh
def test_digests_hide_values_and_can_be_compared_field_by_field(versions: EnvoyMesh, manifest: Write) -> None:
    versions.apply(manifest(COMPARE.read_text().replace("digests = false", "digests = true")))
    v1, v2 = (json.loads(a.body) for a in ask(versions, **JSON, type="application/json").answers)
    [by, key, n] = v1
    assert [by, key, n] == list(v2) == ["by", 'a: "b', "n"]
    assert v1[by] != v2[by]
    assert (v1[key], v1[n]) == (v2[key], v2[n])
    assert v1[n][2:] == [True, None]
    hidden = [v1[by], v1[key], *v1[n][:2]]
    assert [len(digest) for digest in hidden] == [8] * len(set(hidden))
    v1, v2 = (a.body.splitlines() for a in ask(versions, body="a\nVERSION\n", type="text/css").answers)
    assert v1[0] == v2[0]
    assert v1[1] != v2[1]
    assert [len(line) for line in (*v1, *v2)] == [8] * 4
    many = ask(versions, body="7,", times=4096, type="application/json").answers
    assert [answer.body.count(",") for answer in many] == [4096, 4096]
    broken = ask(versions, body='secret "secret', type="application/json").answers
    assert not any("secret" in answer.body for answer in broken)


@pytest.mark.not_on_cluster  # its policy lets only preference in
@pytest.mark.of_any_mesh
def test_a_script_that_fails_lets_traffic_pass(versions: EnvoyMesh, manifest: Write) -> None:
    code = COMPARE.read_text().replace("(handle)\n", "(handle)\n        error('no')\n")
    assert code.count("error") == 2
    versions.apply(manifest(code))
    reply, _, answers = ask(versions, body="VERSION", type="text/plain")
    assert (reply.status_code, reply.text, answers) == (200, "v1", [])


@pytest.mark.of_any_mesh
@pytest.mark.not_on_cluster  # its policy lets only preference in
def test_nothing_is_logged_once_it_is_deleted(versions: EnvoyMesh) -> None:
    versions.delete(COMPARE)
    assert ask(versions, body="VERSION", type="text/plain").answers == []


@pytest.mark.of_any_mesh
@pytest.mark.not_on_cluster
def test_code_that_does_not_compile_is_refused_and_the_old_runs_on(
    versions: EnvoyMesh, manifest: Write
) -> None:
    with pytest.raises(MeshError, match=r"Envoy rejected the configuration .*'<name>' expected"):
        versions.apply(manifest(COMPARE.read_text().replace("local digests", "local")))
    assert len(ask(versions, body="VERSION", type="text/plain").answers) == 2


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_the_verdict_names_a_field_that_v2_answers_wrongly(mesh: EnvoyMesh) -> None:
    def compared(file: str, size: int, **bounds: Any) -> Claim:
        mesh.apply(ROOT / file)
        return verify(mesh, Target(), size, bounds=Bounds(**bounds)).claim("same-content")

    mesh.apply(ROOT / "istio" / "mirror.yaml", COMPARE)
    alone = compared("recommendation/kubernetes.yaml", 50)
    assert alone.state == "unproven", alone.detail
    assert "--ignore" in alone.detail
    healthy = compared("istio/mirror-twice.yaml", 200, ignored=("hostname", "version"))
    assert healthy.state == "holds", healthy.detail
    assert healthy.figures == {"requests": 100, "compared": 100, "paired": 100}
    different = compared("istio/mirror-twice.yaml", 200)
    assert sorted(different.figures) == [
        "compared", "differs in hostname", "differs in version", "paired", "requests"
    ], different.detail  # fmt: skip
    planted = "recommendation/settings/planted-defect.yaml"
    wrong = compared(planted, 600, ignored=("hostname", "version"))
    assert wrong.state == "fails", wrong.detail
    assert "feedback differs in 30, v1's own two in 0 (0 became 1" in wrong.detail
    assert len(wrong.examples) == 3
