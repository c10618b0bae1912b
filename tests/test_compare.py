"""Answers compared: field by field, noise left out, and what is free to compare."""

import base64
import json
import random
from typing import Any

import pytest
from scenes import arrived, called, scene, verdict_on, virtual_service, watch

from harness.proof.answers import AT_MOST, Answer, Answers, Compared, differences, parse_answer
from harness.proof.evidence import Bounds, Claim
from harness.proof.report import table

TO = {v: {"destination": {"host": "recommendation", "subset": v}} for v in ("v1", "v2")}
TWICE = virtual_service({"name": "mirror", "route": [TO["v1"]], "mirrors": [TO["v2"], TO["v1"]]})


def answer(body: Any, kind: str = "json", status: int = 200) -> Answer:
    return Answer(status, kind, (body if isinstance(body, str) else json.dumps(body)).encode())


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        ({"a": 1}, {"a": 1.0}, {}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": "1 became 2"}),
        ({"a": 1}, {"a": "1"}, {"a": '1 became "1"'}),
        ({"a": 1}, {"a": True}, {"a": "1 became true"}),
        ({"a": None}, {}, {"a": "null is missing"}),
        ({}, {"a": []}, {"a": "[] is extra"}),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 3}]}}, {"a.b[].c": "2 became 3"}),
        ([1, 2], [1], {"[]": "2 is missing"}),
        (1, 2, {"(all)": "1 became 2"}),
        ({"a": "x" * 99}, {"a": ""}, {"a": f'"{"x" * 38}… became ""'}),
        ("{no json", "{no JSON", {"line 1": '"{no json" became "{no JSON"'}),
        ("[" * 4000, "[" * 3999, {"line 1": f'"{"[" * 38}… became "{"[" * 38}…'}),
    ],
)
def test_json_differs_by_field(ours: Any, theirs: Any, found: dict[str, str]) -> None:
    assert differences(answer(ours), answer(theirs)) == found


def test_text_differs_by_line() -> None:
    seen = differences(answer("a\nb\nc", "text"), answer("a\nB", "text"))
    assert seen == {"line 2": '"b" became "B"', "line 3": '"c" is missing'}
    assert [*differences(answer({"a": 1}), answer('{"a": 1}\nx', "text"))] == ["line 2"]


def compared(requests: int, part: float, noise: float, pairs: bool = True) -> tuple[list[str], list[str]]:
    """Return what is known of a field after so many requests: it differs by chance, so often."""
    draw, found = random.Random(requests), Compared()
    other = differences(answer({"a": 1}), answer({"a": 2}))
    for number in range(requests):
        theirs = draw.random() < part
        own = {name: d for name, d in other.items() if draw.random() < noise}
        found.add(str(number), other if theirs else {}, own if pairs else None)
    return found.differing()


@pytest.mark.parametrize("noise", [0.02, 0.5, 1.0])
def test_what_v1_differs_in_as_often_is_noise(noise: float) -> None:
    assert compared(1000, noise, noise) == ([], [])


@pytest.mark.parametrize(("part", "noise"), [(1.0, 0.0), (0.05, 0.0), (0.6, 0.4)])
def test_a_field_differs_where_it_does_so_more_often_than_in_v1_itself(part: float, noise: float) -> None:
    assert compared(1000, part, noise) == (["a"], [])
    assert compared(1000, noise, part) == ([], [])


def test_a_field_that_differs_seldom_is_known_after_more_requests() -> None:
    assert compared(200, 0.05, 0.0) == ([], ["a"])


def test_without_a_second_answer_of_v1_nothing_is_known() -> None:
    assert compared(1000, 1.0, 0.0, pairs=False) == ([], ["a"])
    assert compared(1000, 0.0, 0.0, pairs=False) == ([], [])


def test_any_number_of_fields_takes_little_room() -> None:
    found = Compared()
    for number in range(2000):
        found.add("x", differences(answer({}), answer({f"field {number}": 1})), {})
    assert len(found.fields) == 501
    assert found.fields["(other fields)"].differs == 1500


def test_answers_without_a_story_are_forgotten() -> None:
    answers = Answers()
    for number in range(20):
        answers.add("v1", (str(number), "/"), Answer(200, "text", b"x" * (AT_MOST // 10)))
    answers.finished(("0", "/"), "v1", ["v2"])
    assert answers.of["v2"].compared == 0


# --- the claim --------------------------------------------------------------------------------------------


def line(number: int, body: Any, status: int = 200, path: str = "") -> str:
    """Return a line of Envoy's own log."""
    words = (f"id-{number}", path or f"/?item={number}", json.dumps(body))
    id, path, text = (base64.b64encode(word.encode()).decode() for word in words)
    said = f"dark-launch answer {id} {path} {status} json {text}"
    return f"[2026-11-26 07:49:13.814][3618][warning][lua] script log: {said}"


ASKED = {"kind": "TrafficExtension", "metadata": {"name": "compare"},
         "spec": {"lua": {"inlineCode": "handle:logWarn('dark-launch answer')"}}}  # fmt: skip
"""By what the proxies are told to log answers."""


def claim(v1: Any, v2: Any, again: Any = None, count: int = 50, **bounds: Any) -> Claim:
    """Return the claim after ``count`` requests that v1, v2 and, as a copy, v1 again answered so."""
    twice = again is not None
    route = TWICE if twice else scene().objects[-1]
    seen = watch(scene(route, ASKED), bounds=Bounds(**bounds))
    for number in range(count):
        for version, body in (("v1", v1), ("v2", v2), *([("v1", again)] if twice else [])):
            seen.enter(version, line(number, body(number) if callable(body) else body), 0)
        hops = [called(number), arrived("v1", number), arrived("v2", number)]
        for pod, hop in [*hops, *([arrived("v1", number)] if twice else [])]:
            seen.add(pod, hop, 0)
    seen.sweep(100)
    return seen.verdict().claim("same-content")


def test_answers_that_are_the_same_prove_it() -> None:
    found = claim({"a": 1}, {"a": 1})
    assert (found.state, found.detail) == ("holds", "50 of 50 GETs compared")


def test_a_difference_is_named_with_its_frequency_and_examples() -> None:
    found = claim({"a": [1, 2]}, lambda n: {"a": [1, 2 + n]}, {"a": [1, 2]})
    assert found.state == "fails"
    assert found.detail == (
        "50 of 50 GETs compared; a[] differs in 49, v1's own two in 0 (2 became 3, 2 became 4, 2 became 5)"
    )
    assert found.examples == ("id-1", "id-2", "id-3")


def test_noise_is_no_difference() -> None:
    numbers = iter(range(10**6))
    count = lambda _: {"count": next(numbers)}  # noqa: E731
    assert claim(count, count, count).state == "holds"


def test_a_difference_without_a_second_answer_of_v1_is_unproven() -> None:
    found = claim({"a": 1, "b": 2}, {"a": 2, "b": 2})
    assert found.state == "unproven"
    assert "--ignore a" in found.detail


def test_a_field_that_is_left_out_is_not_compared() -> None:
    assert claim({"a": {"b": 1}, "ab": 1}, {"a": {"b": 2}, "ab": 1}, ignored=("a",)).state == "holds"
    assert claim({"a": [1], "ab": 1}, {"a": [2], "ab": 2}, ignored=("a",)).state == "unproven"


def test_where_no_answer_was_logged_nothing_is_proven() -> None:
    seen = watch(scene(*scene().objects[-1:], ASKED))
    for pod, hop in [called(1), arrived("v1", 1), arrived("v2", 1)]:
        seen.add(pod, hop, 0)
    seen.sweep(100)
    assert seen.verdict().claim("same-content").state == "unproven"
    hops = [called(1), arrived("v1", 1), arrived("v2", 1)]
    assert "same-content" not in [each.id for each in verdict_on(hops).claims]


def test_an_answer_that_is_logged_though_nobody_asks_any_more_is_no_evidence() -> None:
    seen = watch(scene())  # connections that are open keep the old configuration for a while
    for version in ("v1", "v2"):
        seen.enter(version, line(1, {"a": version}), 0)
    for pod, hop in [called(1), arrived("v1", 1), arrived("v2", 1)]:
        seen.add(pod, hop, 0)
    seen.sweep(100)
    assert seen.verdict().passed
    assert "same-content" not in [each.id for each in seen.verdict().claims]


@pytest.mark.parametrize(
    "broken", ["x", line(1, 1).replace("json", "xml"), line(1, 1)[:-1] + "*", line(1, 1)[:-3]]
)
def test_a_line_that_is_no_answer_is_passed_over(broken: str) -> None:
    found = parse_answer(broken)
    assert found is None or found[1].body == b""


def test_istios_own_form_of_the_line_is_read() -> None:
    istio = (
        "2026-11-26T08:00:00.0Z\twarning\tenvoy lua lua.cc:31\tscript log: "
        + line(1, {"a": 1})[58:]
        + "\tthread=22"
    )
    found = parse_answer(istio)
    assert found == (("id-1", "/?item=1"), Answer(200, "json", b'{"a": 1}'))
    assert parse_answer(json.dumps({"msg": line(1, {"a": 1})})) == found


# --- what is free -----------------------------------------------------------------------------------------


def test_status_size_and_time_are_compared_without_any_answer() -> None:
    hops = []
    for number in range(1, 100):
        status = 503 if number > 97 else 200
        hops += [called(number), arrived("v1", number, duration=2)]
        hops.append(arrived("v2", number, status=status, sent=54 + number % 2, duration=4))
    verdict = verdict_on(hops)
    [found] = verdict.compared
    assert found.status == {"200 x 200": 97, "200 x 503": 2}
    assert (found.same_size, found.other_size, found.smaller, found.larger) == (49, 50, 0, 1)
    assert found.times["p99"] == (2.0, 4.0)
    shown = table(verdict)
    assert "  v1 x v2   status  200 x 200: 97, 200 x 503: 2\n" in shown
    assert "            size    the same: 49; another: 50 (-0 to +1 B)\n" in shown
    assert "            time    p50: 2 ms x 4 ms, p90: 2 ms x 4 ms" in shown
