"""Counts that do not grow with a run."""

from harness.proof.figures import UNDER_WAY, Sightings


def test_a_reply_is_counted_for_the_rule_of_its_story_whichever_comes_first() -> None:
    seen = Sightings()
    seen.saw(0, 200, "v1", 0.01)
    assert seen.unlogged == 1
    seen.finished(0, 1)
    seen.finished(1, 0)
    seen.saw(1, 200, "v2", 0.01)
    assert seen.said == {1: {"v1": 1}, 0: {"v2": 1}}
    assert seen.unlogged == 0


def test_the_second_stories_of_tickets_take_no_memory_for_ever() -> None:
    seen = Sightings()
    for ticket in range(2 * UNDER_WAY):
        seen.finished(ticket, 0)
        seen.saw(ticket, 200, "v1", 0.01)
        seen.finished(ticket, 0)
    assert len(seen._places) <= UNDER_WAY
    assert seen.said[0]["v1"] == 2 * UNDER_WAY
    assert seen.unlogged == 0


def test_replies_whose_stories_never_come_are_all_counted() -> None:
    seen = Sightings()
    for ticket in range(2 * UNDER_WAY):
        seen.saw(ticket, 200, "v1", 0.01)
    assert len(seen._waiting) <= UNDER_WAY
    assert seen.unlogged == 2 * UNDER_WAY
