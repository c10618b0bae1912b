"""The ledger: hops in any order, late, twice; the verdict is the same."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import arrived, called, hop, scene, story, verdict_on, watch

from harness.proof.figures import Sightings
from harness.proof.ledger import REMEMBERED
from harness.proof.report import table
from harness.proof.story import shape_of
from harness.proof.verdict import Verdict
from harness.rendering.accesslog import Hop

Line = tuple[str, Hop]


def outcome(verdict: Verdict) -> list[tuple[str, str, dict[str, int]]]:
    return [(claim.id, claim.state, dict(claim.figures)) for claim in verdict.claims]


STORIES = st.lists(
    st.builds(
        lambda call, v1, v2: (call, v1, v2),
        st.sampled_from(["v1", "v2", None]), st.integers(0, 2), st.integers(0, 3),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


def hops_of(stories: list[tuple[str | None, int, int]]) -> list[Line]:
    hops: list[Line] = []
    for number, (answered, at_v1, at_v2) in enumerate(stories):
        if answered:
            upstream = {"v1": "10.0.1.1:8080", "v2": "10.0.2.1:8080"}[answered]
            hops.append(called(number, upstream=upstream))
        hops += [arrived("v1", number)] * at_v1 + [arrived("v2", number)] * at_v2
    return hops


@settings(max_examples=60, deadline=None)
@given(STORIES, st.randoms(use_true_random=False))
def test_the_order_of_hops_does_not_change_the_verdict(stories: list, chance: object) -> None:  # type: ignore[type-arg]
    hops = hops_of(stories)
    shuffled = list(hops)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert outcome(verdict_on(shuffled)) == outcome(verdict_on(hops))


@settings(max_examples=60, deadline=None)
@given(STORIES, st.randoms(use_true_random=False))
def test_a_hop_that_comes_after_its_story_was_counted_changes_nothing_else(
    stories: list, chance: object
) -> None:  # type: ignore[type-arg]
    hops = hops_of(stories)
    shuffled = list(hops)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    looking = watch(scene(), patience=1.0)
    for place, (pod, seen) in enumerate(shuffled):
        looking.add(pod, seen, place * 10.0)  # patience is over long before the next
        looking.sweep(place * 10.0 + 5)
    looking.sweep(10_000)
    assert outcome(looking.verdict()) == outcome(verdict_on(hops))


def test_a_story_with_all_its_hops_is_finished_when_it_is_still() -> None:
    looking = watch(scene())
    for pod, seen in story():
        looking.add(pod, seen, 0.0)
    assert list(looking.ledger.sweep(0.2)) == []
    [finished] = looking.ledger.sweep(0.4)
    assert len(finished.calls) + len(finished.arrivals) == 3


def test_a_story_that_lacks_a_copy_is_finished_when_patience_is_over() -> None:
    looking = watch(scene(), patience=30)
    for pod, seen in story(copies=0):
        looking.add(pod, seen, 0.0)
    assert list(looking.ledger.sweep(29.0)) == []
    assert len(list(looking.ledger.sweep(30.0))) == 1


def test_a_story_that_waits_is_finished_when_its_copy_comes() -> None:
    looking = watch(scene(), patience=30)
    for pod, seen in story(copies=0):
        looking.add(pod, seen, 0.0)
    assert list(looking.ledger.sweep(1.0)) == []
    looking.add(*arrived("v2"), 20.0)
    assert len(list(looking.ledger.sweep(20.4))) == 1


def test_a_story_that_breaks_a_claim_is_told_with_the_hops_that_came_late() -> None:
    looking = watch(scene())
    looking.add(*called(0, upstream="10.0.2.1:8080"), 0.0)
    looking.sweep(100.0)
    looking.verdict()
    assert [story.arrivals for story in looking.broken] == [()]
    late = arrived("v2", 0)
    looking.add(*late, 100.0)
    looking.sweep(101.0)
    assert [story.arrivals for story in looking.broken] == [(late,)]


def test_one_request_id_on_two_paths_is_two_stories() -> None:
    hops = [
        each
        for path in ("/a", "/b")
        for each in (called(path=path), arrived("v1", path=path), arrived("v2", path=path))
    ]
    verdict = verdict_on(hops)
    assert verdict.passed
    assert verdict.requests == 2


def test_one_request_id_that_is_used_twice_on_one_path_is_counted_twice() -> None:
    assert verdict_on(story() + story()).passed
    assert verdict_on(story() + story(copies=0)).failed() == ["exactly-once"]


def test_what_is_remembered_does_not_grow_without_bound() -> None:
    looking = watch(scene())
    for number in range(REMEMBERED + 500):
        for pod, seen in story(number):
            looking.add(pod, seen, number / 1000)
        looking.sweep(number / 1000)
    looking.sweep(10_000)
    assert not looking.ledger.open
    assert len(looking.ledger._finished) == REMEMBERED
    assert len(looking.evidence.shapes) == 1


def test_requests_to_other_services_are_not_the_targets() -> None:
    looking = watch(scene())
    other = {
        "authority": "preference:8080",
        "cluster": "outbound|8080||preference.tutorial.svc.cluster.local",
    }
    looking.add("customer", hop(**other, upstream="10.0.0.3:8080"), 0)
    looking.add("preference", hop(cluster="inbound|8080||"), 0)
    assert not looking.ledger.open


def test_stories_of_one_shape_are_one() -> None:
    looking = watch(scene())
    for number in (1, 2):
        for pod, seen in story(number):
            looking.add(pod, seen, 0)
    first, second = looking.ledger.sweep(1)
    assert shape_of(first) == shape_of(second)


def test_what_waits_for_a_copy_when_a_watch_is_interrupted_is_unproven() -> None:
    looking = watch(scene(), patience=30)
    then = time.monotonic() - 10
    for pod, seen in story(1) + story(2, copies=0):
        looking.add(pod, seen, then)
    looking.sweep(then + 5)
    verdict = looking.verdict()
    assert (verdict.failed(), verdict.unproven()) == ([], ["logged", "exactly-once"])
    assert verdict.unjudged == 1


def test_what_has_just_begun_when_a_watch_is_interrupted_is_not_judged() -> None:
    looking = watch(scene(), patience=30)
    then = time.monotonic()
    for pod, seen in story(1):
        looking.add(pod, seen, then - 10)
    for pod, seen in story(2, copies=0):
        looking.add(pod, seen, then)
    looking.sweep(then + 0.4)
    assert looking.verdict().passed


def test_a_reply_is_joined_with_a_call_that_was_logged_after_patience() -> None:
    looking = watch(scene(), patience=1, sightings=Sightings())
    assert looking._sightings
    looking._sightings.saw(3, 200, "v1", 3.0)
    mine = {"agent": f"dark-launch/{looking.run}/3"}
    looking.add(*arrived("v2", 3, **mine), 0.0)
    looking.sweep(2.0)
    looking._judge_suspects()
    looking.add(*arrived("v1", 3, **mine), 3.0)
    looking.add(*called(3, **mine), 3.0)
    looking.sweep(3.1)
    verdict = looking.verdict()
    assert verdict.passed, table(verdict)
