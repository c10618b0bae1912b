"""Counting: finished stories become counts by shape, and figures that do not grow with a run."""

from collections.abc import Iterable
from copy import copy
from typing import NamedTuple

from harness.proof.evidence import Evidence
from harness.proof.figures import EXAMPLES, Tally
from harness.proof.ledger import CROWD
from harness.proof.stores import MOST
from harness.proof.story import BESIDE, Shape, Story, shape_of
from harness.proof.traffic import parse_ticket
from harness.proof.verdict import judge


class Kind(NamedTuple):
    """The stories of one shape."""

    shape: Shape
    tally: Tally
    suspect: bool
    """Whether a story of the shape breaks a claim, or names a pod that is not known."""


class Counts:
    """Enters stories in the evidence."""

    def __init__(self, evidence: Evidence, run: str, *, writes: bool = False) -> None:
        """Enter stories in ``evidence``; with ``writes``, remember those of what callers wrote."""
        self.evidence, self._run, self._writes = evidence, run, writes
        self.broken = evidence.broken
        self._kinds: dict[Shape, Kind] = {}

    def kind_of(self, story: Story) -> Kind:
        shape = shape_of(story)
        kind = self._kinds.get(shape)
        if kind is None:
            suspect = self._does_break(shape) or any(c.routed and c.version is None for c in shape.calls)
            kind = self._kinds[shape] = Kind(shape, Tally(), suspect)
        return kind

    def _does_break(self, shape: Shape) -> bool:
        """Say whether a story of a shape breaks a claim by itself."""
        alone = Evidence(self.evidence.routing, {shape: Tally(1, [])}, bounds=self.evidence.bounds)
        return bool(judge(alone).failed())

    def add(self, story: Story, kind: Kind) -> None:
        """Count a story; its hops are gone then."""
        if not kind.tally.count:
            self.evidence.shapes[kind.shape] = kind.tally
        kind.tally.add(story.key)
        if self._writes and story.key[1] == "POST" and len(self.evidence.writes) < MOST:
            self.evidence.writes[story.key[0]] = kind.shape
        if not story.shape:
            self._compare(story)
        for version, hop in story.arrivals:
            self.evidence.times[version].add(hop.status, hop.duration, hop.sent)
        for call, hop in story.calls:
            if call.rule > BESIDE:
                self.evidence.callers.add(hop.status, hop.duration, hop.sent)
                ticket = parse_ticket(hop.agent) if self.evidence.sightings else None
                if self.evidence.sightings and ticket and ticket.run == self._run:
                    self.evidence.sightings.finished(ticket.number, call.rule)
        if kind.suspect or self.broken:
            self._keep_broken(story, kind)
        story.count_as(kind.shape)

    def _compare(self, story: Story) -> None:
        """Compare what the dark versions answered with what the caller got, where one version answered."""
        answered = [call for call, _ in story.calls if call.rule >= 0 and call.answered and call.version]
        if len(answered) != 1:
            return
        [call] = answered
        expected = self.evidence.routing.rules[call.rule].expectation
        sizes = {version: hop.sent for version, hop in story.arrivals if hop.answered}
        dark = [version for version in expected.copied if version not in expected.allowed]
        for version in dark:
            if version in sizes and call.version in sizes:
                self.evidence.sizes[version].add(sizes[version], sizes[call.version])
        id, method, path = story.key
        if dark and method == "GET" and call.version:
            self.evidence.answers.finished((id, path), call.version, dark)

    def amend(self, late: Iterable[Story]) -> None:
        """Count stories anew that got hops after they had been counted."""
        for story in late:
            assert story.shape
            tally = self.evidence.shapes.get(story.shape)
            if tally is None:
                continue  # it was counted no longer
            tally.remove(story.key)
            if not tally.count:
                del self.evidence.shapes[story.shape]
            if story.hops > CROWD:
                self.broken[:] = [broken for broken in self.broken if broken.key != story.key]
            else:
                self.add(story, self.kind_of(story))

    def _keep_broken(self, story: Story, kind: Kind) -> None:
        """Keep a story whole if it is among the first that break a claim; or no longer, if it breaks none."""
        keys = [broken.key for broken in self.broken]
        place = keys.index(story.key) if story.key in keys else len(keys)
        kept = []
        if place < EXAMPLES and kind.suspect and self._does_break(kind.shape):
            kept = [copy(story)]
            kept[0].shape = kind.shape
            for before in self.broken[place : place + 1]:
                kept[0].calls = [*before.calls, *story.calls]
                kept[0].arrivals = [*before.arrivals, *story.arrivals]
        self.broken[place : place + 1] = kept
