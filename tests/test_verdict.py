"""The verdict, as a table: a ledger that is right, and one for each way to be wrong."""

import json
import math
from collections.abc import Callable

import pytest

from harness.proof.expectation import Expectation
from harness.proof.ledger import Ledger
from harness.proof.tickets import Ticket
from harness.proof.verdict import Verdict, binomial_interval, complete, enough, judge
from harness.rendering.accesslog import LogEntry

SIZE = 100
V1_ONLY = Expectation(answers=(("v1", 1.0),))
MIRROR = Expectation(answers=(("v1", 1.0),), copies=(("v2", (100.0,)),))
CANARY = Expectation(answers=(("v1", 0.9), ("v2", 0.1)))

ANSWERED = "every caller was answered"
LOGGED = "the proxies logged every answer"
ONLY_V1 = "callers saw only v1"
ONCE = "v2 received every request exactly once"
FAITHFUL = "each copy at v2 is faithful (method, path, size)"
NOTHING = "v2 received nothing"


def entry(
    number: int, *, status: int = 200, path: str = "/", size: int = 0, delivered: bool = True
) -> LogEntry:
    return LogEntry(Ticket("run", number), "GET", path, size, status, delivered, duration=number)


def ledger_of(*, mirrored: Callable[[int], int] = lambda n: 1) -> Ledger:
    """Return a ledger in which v1 answered every ticket and v2 got each ``mirrored(number)`` times."""
    ledger = Ledger("run", SIZE, ["v1", "v2"])
    for number in range(SIZE):
        ledger.saw(number, 200, "v1", 0.001)
        ledger.logged("v1", entry(number))
        for _ in range(mirrored(number)):
            ledger.logged("v2", entry(number))
    return ledger


def verdict_on(ledger: Ledger, promise: Expectation) -> Verdict:
    return judge(ledger, lambda number: promise)


def test_a_mirror_as_promised_passes() -> None:
    verdict = verdict_on(ledger_of(), MIRROR)
    assert verdict.passed
    assert [claim.statement for claim in verdict.claims] == [ANSWERED, LOGGED, ONLY_V1, ONCE, FAITHFUL]


def test_a_silent_v2_as_promised_passes() -> None:
    verdict = verdict_on(ledger_of(mirrored=lambda n: 0), V1_ONLY)
    assert verdict.passed
    assert [claim.statement for claim in verdict.claims] == [ANSWERED, LOGGED, ONLY_V1, NOTHING]


def unanswered(ledger: Ledger) -> None:
    ledger.saw(7, 503, None, 0.001)


def gave_up(ledger: Ledger) -> None:
    ledger.saw(7, 0, None, 30.0)


def leaked(ledger: Ledger) -> None:
    ledger.saw(7, 200, "v2", 0.001)
    ledger.logged("v2", entry(7))


def anonymous(ledger: Ledger) -> None:
    ledger.saw(7, 200, None, 0.001)


def unknown_version(ledger: Ledger) -> None:
    ledger.saw(7, 200, "v9", 0.001)


def missing(ledger: Ledger) -> None:
    ledger.arrivals["v2"].counts[7] = 0


def duplicated(ledger: Ledger) -> None:
    ledger.logged("v2", entry(7))


def phantom(ledger: Ledger) -> None:
    ledger.saw(7, 503, None, 0.001)
    ledger.arrivals["v1"].counts[7] = 0


def stranger(ledger: Ledger) -> None:
    ledger.logged("v2", entry(SIZE + 1))


def unlogged(ledger: Ledger) -> None:
    ledger.arrivals["v1"].counts[7] = 0


def other_path(ledger: Ledger) -> None:
    ledger.arrivals["v2"].counts[7] = 0
    ledger.logged("v2", entry(7, path="/other"))


def truncated(ledger: Ledger) -> None:
    ledger.arrivals["v1"].counts[7] = 0
    ledger.logged("v1", entry(7, size=1000))


@pytest.mark.parametrize(
    ("wrong", "broken"),
    [
        (unanswered, [ANSWERED]),
        (gave_up, [ANSWERED]),
        (leaked, [ONLY_V1]),
        (anonymous, [ONLY_V1]),
        (unknown_version, [ONLY_V1]),
        (missing, [ONCE]),
        (duplicated, [ONCE]),
        (phantom, [ANSWERED, ONCE]),
        (stranger, [LOGGED]),
        (unlogged, [LOGGED]),
        (other_path, [FAITHFUL]),
        (truncated, [FAITHFUL]),
    ],
)
def test_one_wrong_ticket_of_a_mirror_fails_its_claim(
    wrong: Callable[[Ledger], None], broken: list[str]
) -> None:
    ledger = ledger_of()
    wrong(ledger)
    assert verdict_on(ledger, MIRROR).failed() == broken


def test_one_copy_too_many_for_a_silent_v2_fails() -> None:
    assert verdict_on(ledger_of(mirrored=lambda n: n == 7), V1_ONLY).failed() == [NOTHING]


def test_a_request_that_only_v2s_proxy_got_is_not_silence() -> None:
    ledger = ledger_of(mirrored=lambda n: 0)
    ledger.logged("v2", entry(7, status=503, delivered=False))
    assert verdict_on(ledger, V1_ONLY).failed() == [NOTHING]


def test_a_copy_that_v2s_proxy_could_not_deliver_is_missing() -> None:
    ledger = ledger_of(mirrored=lambda n: n != 7)
    ledger.logged("v2", entry(7, status=503, delivered=False))
    verdict = verdict_on(ledger, MIRROR)
    assert verdict.failed() == [ONCE]
    assert verdict.claims[3].figures == {
        "received": 99, "missing": 1, "duplicates": 0, "phantoms": 0, "undelivered": 1,
    }  # fmt: skip


def test_retries_of_v1_are_no_duplicates_of_v2() -> None:
    ledger = ledger_of()
    for number in range(SIZE):
        ledger.logged("v1", entry(number, status=503))
    assert verdict_on(ledger, MIRROR).passed


def test_two_mirrors_to_one_version_are_two_copies() -> None:
    twice = Expectation(answers=(("v1", 1.0),), copies=(("v2", (100.0, 100.0)),))
    assert verdict_on(ledger_of(mirrored=lambda n: 2), twice).passed
    assert verdict_on(ledger_of(), twice).failed() == ["v2 received every request exactly twice"]


@pytest.mark.parametrize(
    ("every", "passes"),
    # None of 100 is luck (1 in 38,000); every other one, or all, is not.
    [(10, True), (SIZE + 1, True), (2, False), (1, False)],
)
def test_a_sampled_mirror_must_lie_in_its_interval(every: int, passes: bool) -> None:
    ten_percent = Expectation(answers=(("v1", 1.0),), copies=(("v2", (10.0,)),))
    verdict = verdict_on(ledger_of(mirrored=lambda n: n % every == every - 1), ten_percent)
    assert verdict.passed is passes
    if not passes:
        assert verdict.failed() == ["v2 received 10 % of requests"]


def test_a_sampled_mirror_may_draw_a_ticket_only_once() -> None:
    ten_percent = Expectation(answers=(("v1", 1.0),), copies=(("v2", (10.0,)),))
    verdict = verdict_on(ledger_of(mirrored=lambda n: 2 * (n == 7)), ten_percent)
    assert verdict.failed() == ["v2 received 10 % of requests"]


def canary(weight: int, *, stray: bool = False) -> Verdict:
    ledger = Ledger("run", SIZE, ["v1", "v2"])
    for number in range(SIZE):
        version = "v2" if number < weight else "v1"
        ledger.saw(number, 200, version, 0.001)
        ledger.logged(version, entry(number))
    if stray:
        ledger.logged("v2", entry(SIZE - 1))
    return verdict_on(ledger, CANARY)


def test_a_canary_passes_fails_by_share_and_fails_by_stray_copies() -> None:
    assert canary(10).passed
    assert canary(60).failed() == ["callers saw v1 90 %, v2 10 %"]
    assert canary(10, stray=True).failed() == ["each request reached only the version that answered it"]


def test_nothing_sent_proves_nothing() -> None:
    assert not verdict_on(Ledger("run", 0, ["v1", "v2"]), MIRROR).passed


def test_nothing_answered_proves_no_mirror() -> None:
    assert verdict_on(Ledger("run", SIZE, ["v1", "v2"]), MIRROR).failed() == [ANSWERED, ONCE]


def test_promises_that_differ_by_request_are_judged_apart() -> None:
    ledger = ledger_of(mirrored=lambda n: n % 2)
    verdict = judge(ledger, lambda number: MIRROR if number % 2 else V1_ONLY)
    assert verdict.passed
    assert "[all to v1; mirrored 100 % to v2] " + ONCE in [claim.statement for claim in verdict.claims]
    assert not judge(ledger, lambda number: V1_ONLY if number % 2 else MIRROR).passed


def test_a_ledger_is_complete_once_v1_and_every_copy_have_arrived() -> None:
    assert complete(ledger_of(), lambda number: MIRROR)
    late = ledger_of(mirrored=lambda n: n != 7)
    assert not complete(late, lambda number: MIRROR)
    assert complete(late, lambda number: V1_ONLY)
    late.arrivals["v1"].counts[7] = 0
    assert not complete(late, lambda number: V1_ONLY)


def test_other_runs_do_not_count() -> None:
    ledger = ledger_of()
    ledger.logged("v2", LogEntry(Ticket("other", 7), "GET", "/", 0, 200, True, 1))
    assert verdict_on(ledger, MIRROR).passed


def test_the_table_says_what_the_json_says() -> None:
    ledger = ledger_of()
    missing(ledger)
    verdict = verdict_on(ledger, MIRROR)
    data = json.loads(json.dumps(verdict.to_dict()))
    assert data["passed"] is False
    assert data["claims"][3]["figures"]["missing"] == 1
    table = verdict.render()
    assert "FAIL  v2 received every request exactly once" in table
    assert "99 of 100: 1 missing, 0 duplicate, 0 phantom" in table
    assert table.endswith("FAIL  4 of 5 claims hold")


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


def test_what_one_stream_could_not_deliver_is_not_charged_to_another() -> None:
    ledger = ledger_of(mirrored=lambda n: 0)
    for number in range(1, SIZE, 2):
        ledger.logged("v2", entry(number, status=503, delivered=False))
    verdict = judge(ledger, lambda number: MIRROR if number % 2 else V1_ONLY)
    assert verdict.failed() == [f"[all to v1; mirrored 100 % to v2] {ONCE}"]


@pytest.mark.parametrize("percent", [0.5, 1, 10, 50, 99])
def test_too_few_requests_for_a_share_are_told_and_enough_are_enough(percent: float) -> None:
    sampled = Expectation(answers=(("v1", 1.0),), copies=(("v2", (percent,)),))
    too_few = enough(range(10), lambda number: sampled)
    assert too_few is not None
    share, needed = too_few
    assert share == f"{percent:g} %"
    assert enough(range(needed), lambda number: sampled) is None
    assert enough(range(needed - 1), lambda number: sampled) is not None
    low, high = binomial_interval(needed, percent / 100, 1e-6)
    assert low > 0 or percent > 50
    assert high < needed or percent < 50


def test_certainties_need_no_number_of_requests() -> None:
    assert enough(range(1), lambda number: MIRROR) is None
    assert enough(range(1), lambda number: V1_ONLY) is None
    assert enough(range(1), lambda number: Expectation(answers=(("v1", None), ("v2", None)))) is None
    assert enough(range(10), lambda number: CANARY) is not None


def test_a_ledger_grows_with_the_numbers_that_are_used_and_counts_no_others() -> None:
    ledger = Ledger("run", 0, ["v1", "v2"], limit=1000)
    for number in (0, 4, 5, 400):
        ledger.logged("v1", entry(number))  # a log may be read before the caller has said what it saw
        ledger.logged("v2", entry(number))
        ledger.saw(number, 200, "v1", 0.001)
    assert ledger.numbers() == [0, 4, 5, 400]
    verdict = verdict_on(ledger, MIRROR)
    assert verdict.passed
    assert verdict.requests == 4
    assert complete(ledger, lambda number: MIRROR)


@pytest.mark.parametrize("number", [3, 999, 1000, 10**9])
def test_an_arrival_that_no_caller_sent_fails_the_claim_on_logs(number: int) -> None:
    ledger = Ledger("run", 0, ["v1", "v2"], limit=1000)
    ledger.saw(4, 200, "v1", 0.001)
    ledger.logged("v1", entry(4))
    assert verdict_on(ledger, V1_ONLY).passed
    ledger.logged("v1", entry(number))
    assert verdict_on(ledger, V1_ONLY).failed() == [LOGGED]
