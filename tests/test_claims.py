"""Claims: for each, stories in which it holds, in which it fails, and in which nobody can tell."""

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest
from scenes import PODS, arrived, called, scene, story, verdict_on, virtual_service, watch

from harness.proof.evidence import Baseline, Bounds
from harness.proof.figures import Sightings, Times, binomial_interval
from harness.proof.report import harmless, table, to_junit
from harness.proof.verdict import Verdict

V1, V2 = "10.0.1.1:8080", "10.0.2.1:8080"
TO_V1 = {"route": [{"destination": {"host": "recommendation", "subset": "v1"}}]}
TO_V2 = {"route": [{"destination": {"host": "recommendation", "subset": "v2"}}]}
MIRROR = {**TO_V1, "mirror": {"host": "recommendation", "subset": "v2"}}


def broken(verdict: Verdict) -> list[str]:
    return [*verdict.failed(), *verdict.unproven()]


def many(count: int = 100, **more: Any) -> list[Any]:
    return [each for number in range(count) for each in story(number, **more)]


def test_a_mirror_as_promised_passes() -> None:
    verdict = verdict_on(many())
    assert verdict.passed, table(verdict)
    assert [claim.id for claim in verdict.claims] == [
        "logged", "answered-by", "exactly-once", "delivered", "same-status", "faithful", "no-loop",
    ]  # fmt: skip
    assert verdict.requests == 100


def test_a_silent_v2_as_promised_passes() -> None:
    verdict = verdict_on(
        [(p, h._replace(route="v1-only")) for p, h in many(copies=0)], scene(state="v1-only")
    )
    assert verdict.passed
    assert [claim.id for claim in verdict.claims] == ["logged", "answered-by", "silent"]


NO_SUBSET = "outbound|8080||recommendation.tutorial.svc.cluster.local"
UNKNOWN_POD = called(7, upstream="10.9.9.9:8080", cluster=NO_SUBSET)
PHANTOM = ["passed-on", "exactly-once"]
REFUSED = {"status": 403, "details": "rbac_access_denied_matched_policy[none]"}
CUT = {
    "status": 503,
    "flags": "UC",
    "details": "upstream_reset_before_response_started{connection_termination}",
}
LEFT = {"status": 0, "flags": "DC", "details": "downstream_remote_disconnect"}


@pytest.mark.parametrize(
    ("one", "claims"),
    [
        ([called(7, upstream=V2), arrived("v2", 7), arrived("v2", 7)], ["answered-by"]),
        (story(7, copies=0), ["exactly-once"]),
        (story(7, copies=2), ["exactly-once"]),
        ([arrived("v2", 7)], ["exactly-once"]),  # a phantom: v1 never got it, and nobody sent it
        ([called(7, upstream="-", status=503, flags="UH", details="x"), arrived("v2", 7)], PHANTOM),
        ([called(7), arrived("v1", 7), arrived("v2", 7, **REFUSED)], ["delivered"]),
        ([called(7), arrived("v1", 7), arrived("v2", 7, **CUT)], ["delivered"]),
        ([called(7), arrived("v1", 7), arrived("v2", 7, **LEFT)], ["delivered"]),
        ([called(7), arrived("v1", 7), arrived("v2", 7, status=500)], ["same-status"]),
        ([called(7), arrived("v1", 7), arrived("v2", 7, received=9)], ["faithful"]),
        ([called(7), arrived("v2", 7)], ["logged"]),  # v1's log lacks it
        ([arrived("v1", 7), arrived("v2", 7)], ["logged"]),  # the caller's log lacks it
        ([UNKNOWN_POD, arrived("v1", 7), arrived("v2", 7)], ["logged"]),
        ([called(7, request_id="-"), arrived("v1", 7, request_id="-")], ["logged"]),
        ([called(7, route="v1-only"), arrived("v1", 7), arrived("v2", 7)], ["attributed"]),
        ([called(7, authority="recommendation-v2:8080", route="default", upstream=V2), arrived("v2", 7)],
         ["answered-by"]),  # somebody asked v2 itself
    ],
)  # fmt: skip
def test_one_story_breaks_one_claim(one: list[Any], claims: list[str]) -> None:
    verdict = verdict_on([*[each for number in range(1, 7) for each in story(number)], *one])
    assert broken(verdict) == claims, table(verdict)


def test_a_failing_claim_names_up_to_three_of_its_stories() -> None:
    verdict = verdict_on(many(copies=0))
    assert verdict.claim("exactly-once").examples == ("id-0", "id-1", "id-2")
    assert "make trace T=id-0" in table(verdict)


def test_what_the_callers_proxy_answers_itself_is_no_pass() -> None:
    fault = called(7, upstream="-", status=503, flags="FI", details="fault_filter_abort")
    assert broken(verdict_on([*many(5), fault])) == ["passed-on"]


def test_an_early_refusal_by_both_versions_is_no_difference() -> None:
    early = {"status": 413, "details": "downstream_remote_disconnect", "flags": "DC"}
    hops = [
        called(1, status=413),
        arrived("v1", 1, **early, received=10),
        arrived("v2", 1, **early, received=9),
    ]
    assert verdict_on([*hops, *story(2)]).passed


def test_requests_that_share_one_id_prove_nothing_and_break_nothing() -> None:
    verdict = verdict_on([*many(3), *[hop for _ in range(200) for hop in story(9)]])
    assert broken(verdict) == ["logged"], table(verdict)
    assert "without a request id of their own" in verdict.claim("logged").detail


def test_retries_of_v1_are_no_duplicates_of_v2() -> None:
    again = [arrived("v1", n, status=503) for n in range(10)]
    assert verdict_on(many(10) + again).passed


def test_a_retry_within_a_version_that_also_gets_copies_is_no_copy() -> None:
    canary = virtual_service({"route": [
        {**TO_V1["route"][0], "weight": 50}, {**TO_V2["route"][0], "weight": 50},
    ]})  # fmt: skip
    hops = [called(1, upstream=V2, route="-"), arrived("v2", 1, status=503), arrived("v2", 1)]
    assert "unshared" not in verdict_on(hops, scene(canary)).failed()
    stray = [called(1, upstream=V2, route="-"), arrived("v2", 1), arrived("v2", 1)]
    assert "unshared" in verdict_on(stray, scene(canary)).failed()


def test_some_differences_may_be_allowed() -> None:
    hops = [*many(99), called(99), arrived("v1", 99), arrived("v2", 99, status=500)]
    assert broken(verdict_on(hops)) == ["same-status"]
    assert verdict_on(hops, bounds=Bounds(max_differences=0.01)).passed
    assert broken(verdict_on(hops, bounds=Bounds(max_differences=0.009))) == ["same-status"]


def test_sizes_and_times_are_judged_where_asked() -> None:
    hops = []
    for number in range(1, 6):
        hops += [called(number), arrived("v1", number, duration=10)]
        hops.append(arrived("v2", number, sent=9, duration=30))
    assert verdict_on(hops).passed
    assert broken(verdict_on(hops, bounds=Bounds(same_size=True))) == ["same-size"]
    assert broken(verdict_on(hops, bounds=Bounds(max_p99_ratio=2))) == ["p99-ratio"]
    assert verdict_on(hops, bounds=Bounds(max_p99_ratio=3)).passed
    assert verdict_on(hops[:6], bounds=Bounds(max_p99_ratio=2)).passed  # two may be bad luck


def test_callers_may_not_get_failures_from_the_candidate_more_often_than_from_v1() -> None:
    halves = scene(virtual_service({"route": [
        {**TO_V1["route"][0], "weight": 50}, {**TO_V2["route"][0], "weight": 50},
    ]}))  # fmt: skip

    def failed(v1: int, v2: int, **bounds: Any) -> list[str]:
        """Return what is broken where each version answers 100 times, and fails so often."""
        hops = []
        for number in range(200):
            version, upstream, failures = ("v1", V1, v1) if number < 100 else ("v2", V2, v2)
            status = 500 if number % 100 < failures else 200
            hops.append(called(number, upstream=upstream, status=status, route="-"))
            hops.append(arrived(version, number, status=status))
        return broken(verdict_on(hops, halves, bounds=Bounds(**bounds)))

    v1 = Baseline("v1")
    assert failed(0, 1) == []
    assert failed(0, 1, baseline=v1) == ["failures"]
    assert failed(10, 12, baseline=v1) == []
    assert failed(10, 60, baseline=v1) == ["failures"]
    assert failed(0, 1, baseline=v1, max_failures=0.05) == []
    assert failed(0, 1, baseline=Baseline("v1", 100, 5)) == []


def test_nothing_seen_proves_nothing() -> None:
    verdict = verdict_on([])
    assert verdict.exit_code == 2
    assert "exercised" in verdict.unproven()


def test_a_rule_that_mirrors_and_that_no_request_took_is_unproven() -> None:
    post = {"name": "post", "match": [{"method": {"exact": "POST"}}], **MIRROR}
    rules = scene(virtual_service(post, {"name": "rest", **TO_V1}))
    hops = [called(1, route="rest"), arrived("v1", 1)]
    verdict = verdict_on(hops, rules)
    assert broken(verdict) == ["exercised"]
    assert verdict.claim("exercised").detail == "no request took rule 'post'"
    both = [*hops, *[(p, h._replace(route="post", method="POST")) for p, h in story(2)]]
    assert verdict_on(both, rules).passed


def test_rules_without_a_name_that_differ_cannot_be_told_apart() -> None:
    rules = scene(virtual_service({"match": [{"method": {"exact": "POST"}}], **MIRROR}, TO_V1))
    verdict = verdict_on([called(1, route="-"), arrived("v1", 1)], rules)
    assert "attributed" in verdict.unproven()
    same = scene(virtual_service({"match": [{"method": {"exact": "POST"}}], **MIRROR}, MIRROR))
    assert verdict_on([(p, h._replace(route="-")) for p, h in story(1)], same).claim("exactly-once").holds


def test_what_goes_to_v2_by_the_wrong_rule_is_not_silence() -> None:
    rules = scene(virtual_service({"name": "post", **MIRROR}, {"name": "rest", **TO_V1}))
    wrong = [called(1, route="rest"), arrived("v1", 1), arrived("v2", 1)]
    right = [(p, h._replace(route="post")) for p, h in story(2)]
    assert verdict_on([*wrong, *right], rules).failed() == ["silent"]


def test_requests_of_anybody_break_a_silence() -> None:
    one = [arrived("v2", 1, agent="curl/8")]
    hops = [called(2, route="v1-only"), arrived("v1", 2)]
    assert verdict_on([*hops, *one], scene(state="v1-only")).failed() == ["silent"]


def test_the_silence_of_a_v2_that_does_not_run_proves_little() -> None:
    pods = {name: pod for name, pod in PODS.items() if name != "v2"}
    verdict = verdict_on([called(2, route="v1-only"), arrived("v1", 2)], scene(state="v1-only", pods=pods))
    assert verdict.passed
    assert "v2 does not run: its silence proves little" in verdict.claim("silent").detail


def test_what_a_version_without_a_sidecar_got_is_unproven() -> None:
    pods = PODS | {"v2": replace(PODS["v2"], proxy=False)}
    verdict = verdict_on([called(2, route="v1-only"), arrived("v1", 2)], scene(state="v1-only", pods=pods))
    assert broken(verdict) == ["silent"]
    assert verdict.exit_code == 2
    assert "has no sidecar" in verdict.claim("silent").detail


def test_lines_that_cannot_be_read_prove_nothing() -> None:
    looking = watch(scene())
    for pod, seen in story():
        looking.add(pod, seen, 0)
    looking.enter("v2", '[2026-11-25T12:00:00.000Z] "GET / HTTP/1.1" something else', 0)
    looking.sweep(10)
    assert looking.verdict().unproven() == ["logged"]


def test_a_copy_that_leads_back_is_a_loop() -> None:
    back = scene(virtual_service({"name": "mirror", **TO_V1, "mirror": {"host": "customer"}}))
    hops = [
        called(1), arrived("v1", 1), arrived("customer", 1),
        called(1, request_id="other", authority="preference:8080", upstream="10.0.0.3:8080",
               cluster="outbound|8080||preference.tutorial.svc.cluster.local"),
    ]  # fmt: skip
    assert verdict_on(hops, back).claim("no-loop").holds
    hops[-1] = ("customer", hops[-1][1])
    verdict = verdict_on(hops, back)
    assert verdict.failed() == ["no-loop"]
    assert verdict.claim("no-loop").detail == "customer -> preference -> recommendation"


@pytest.mark.parametrize(
    ("every", "passes"),
    [(10, True), (12, True), (2, False), (1, False), (1000, False)],
)
def test_a_sampled_mirror_must_lie_in_its_interval(every: int, passes: bool) -> None:
    hops = [e for n in range(200) for e in story(n, copies=n % every == every - 1)]
    ten = scene(state="mirror-10-percent")
    verdict = verdict_on([(p, h._replace(route="mirror-10-percent")) for p, h in hops], ten)
    assert verdict.passed is passes
    assert passes or verdict.failed() == ["sampled"]


def test_too_few_requests_for_a_share_prove_nothing() -> None:
    hops = [(p, h._replace(route="mirror-10-percent")) for p, h in many(20, copies=0)]
    verdict = verdict_on(hops, scene(state="mirror-10-percent"))
    assert broken(verdict) == ["sampled"]
    assert verdict.exit_code == 2


def test_two_mirrors_to_one_version_are_two_copies() -> None:
    v2 = {"destination": {"host": "recommendation", "subset": "v2"}}
    twice = scene(virtual_service({**TO_V1, "mirrors": [v2, v2]}))
    hops = [(p, h._replace(route="-")) for p, h in many(10, copies=2)]
    assert verdict_on(hops, twice).passed
    once = [(p, h._replace(route="-")) for p, h in many(10)]
    assert verdict_on(once, twice).failed() == ["exactly-once"]


def test_weights_are_judged_by_who_answered() -> None:
    def canary(of: int) -> Verdict:
        hops = []
        for n in range(300):
            version, upstream = ("v2", V2) if n < of else ("v1", "10.0.1.1:8080")
            hops += [called(n, upstream=upstream, route="canary"), arrived(version, n)]
        return verdict_on(hops, scene(state="canary"))

    assert canary(30).passed
    assert canary(150).failed() == ["shares"]


# --- what the harness saw as a caller -----------------------------------------------------------------


def seen(*sights: tuple[int, int, str | None]) -> Verdict:
    sightings = Sightings()
    looking = watch(scene(), sightings=sightings)
    for number in range(5):
        for pod, found in story(number):
            looking.add(pod, found._replace(agent=f"dark-launch/{looking.run}/{number}"), 0)
    for number, status, version in sights[::2]:
        sightings.saw(number, status, version, 0.01)
    looking.sweep(10)
    for number, status, version in sights[1::2]:
        sightings.saw(number, status, version, 0.01)  # some callers learn the answer later than the logs
    return looking.verdict()


def test_replies_are_evidence_beside_the_logs() -> None:
    right: list[tuple[int, int, str | None]] = [(n, 200, "v1") for n in range(5)]
    assert seen(*right).passed
    assert broken(seen(*right[:4], (4, 503, None))) == ["answered"]
    assert broken(seen(*right[:4], (4, 0, None))) == ["answered"]
    for place in (3, 4):
        assert broken(seen(*[(n, 200, "v9" if n == place else "v1") for n in range(5)])) == ["answered-by"]
    assert broken(seen(*right, (99, 200, "v1"))) == ["logged"]  # a reply of which no proxy knows
    assert seen(*[(n, 200, None) for n in range(5)]).passed  # replies that name no version say nothing


def test_any_number_of_versions_in_replies_is_judged() -> None:
    verdict = seen(*[(n % 5, 200, f"v{n}\x1b[31m") for n in range(300)])
    assert "answered-by" in verdict.failed()
    assert "\x1b" not in table(verdict)


# --- reports -------------------------------------------------------------------------------------------


def test_the_reports_say_the_same() -> None:
    verdict = verdict_on([*many(5), *story(7, copies=0), arrived("v1", 9)])
    data = json.loads(json.dumps(verdict.to_dict()))
    assert (data["schema"], data["verdict"], data["passed"]) == (1, "FAIL", False)
    assert {c["id"]: c["state"] for c in data["claims"]}["exactly-once"] == "fails"
    shown = table(verdict)
    assert "FAIL  v2 received every request exactly once" in shown
    assert "5 of 6: 1 missing, 0 duplicate, 0 phantom" in shown
    suite = ET.fromstring(to_junit(verdict)).find("testsuite")  # noqa: S314 (our own)
    assert suite is not None
    assert (suite.get("failures"), suite.get("errors")) == ("1", "1")
    assert len(suite) == len(verdict.claims)


def test_no_reply_can_steer_a_terminal() -> None:
    assert harmless("a\x1b[2Jb\x07\r\u202ec\n") == "a\ufffd[2Jb\ufffd\ufffd\ufffdc\n"


@pytest.mark.parametrize(("n", "percent"), [(500, 10), (1000, 50), (300, 1)])
def test_the_interval_leaves_out_one_draw_in_two_million_on_each_side(n: int, percent: int) -> None:
    low, high = binomial_interval(n, percent / 100, 1e-6)
    whole = 100**n
    pmf = [math.comb(n, k) * percent**k * (100 - percent) ** (n - k) for k in range(n + 1)]
    assert sum(pmf[:low]) * 2_000_000 <= whole < sum(pmf[: low + 1]) * 2_000_000
    assert sum(pmf[high + 1 :]) * 2_000_000 <= whole < sum(pmf[high:]) * 2_000_000


def test_the_interval_of_a_certainty_is_one_number() -> None:
    assert binomial_interval(100, 1.0, 1e-6) == (100, 100)
    assert binomial_interval(100, 0.0, 1e-6) == (0, 0)
    assert binomial_interval(0, 0.5, 1e-6) == (0, 0)


def test_quantiles_are_exact_below_a_second() -> None:
    times = Times()
    for milliseconds in range(1, 101):
        times.add(200, milliseconds)
    times.add(200, 123_456)
    assert times.quantile(0.5) == 51
    assert times.quantile(1) == 123_000
    assert Times().quantile(0.5) is None


def test_an_example_that_a_caller_chose_steers_neither_terminal_nor_shell() -> None:
    fields = {"request_id": "\x9b31m;x $(y)"}
    verdict = verdict_on([called(**fields), arrived("v1", **fields)], patience=0)
    assert "trace T='\ufffd31m;x $(y)'" in table(verdict)
    assert "\x9b" not in to_junit(verdict)
