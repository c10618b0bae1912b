"""Counting: finished stories become counts by shape, and figures that do not grow with a run."""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from harness.proof.evidence import Evidence
from harness.proof.figures import EXAMPLES, Tally
from harness.proof.ledger import CROWD
from harness.proof.stores import MOST
from harness.proof.story import BESIDE, Shape, Story, shape_of
from harness.proof.traffic import parse_ticket
from harness.proof.verdict import broken_by


class Kind(NamedTuple):
    """The stories of one shape."""

    shape: Shape
    tally: Tally
    breaks: bool
    """Whether a story of the shape breaks a claim by itself."""
    suspect: bool
    """Whether it does, or names a pod that is not known."""


class Counts:
    """Enters stories in the evidence."""

    def __init__(self, evidence: Evidence, run: str, *, writes: bool = False) -> None:
        """Enter stories in ``evidence``; with ``writes``, remember those of what callers wrote."""
        self.evidence, self._run, self._writes = evidence, run, writes
        self._kinds: dict[Shape, Kind] = {}

    def _new_kind(self, shape: Shape) -> Kind:
        breaks = bool(broken_by(self.evidence, shape))
        suspect = breaks or any(call.routed and call.version is None for call in shape.calls)
        kind = self._kinds[shape] = Kind(shape, Tally(), breaks, suspect)
        return kind

    def add(self, story: Story, *, suspects: bool = True) -> bool:
        """Count a story, whose hops are gone then; return whether it was.

        :param suspects: whether to count one that breaks a claim, or names a pod that is not known.
        """
        shape = shape_of(story)
        kind = self._kinds.get(shape) or self._new_kind(shape)
        if kind.suspect and not suspects:
            return False
        evidence = self.evidence
        if not kind.tally.count:
            evidence.shapes[kind.shape] = kind.tally
        kind.tally.add(story.key)
        if self._writes and story.key[1] == "POST" and len(evidence.writes) < MOST:
            evidence.writes[story.key[0]] = kind.shape
        if not story.shape:
            self._compare(story)
        for version, hop in story.arrivals:
            evidence.times[version].add(hop.status, hop.duration, hop.sent)
        for call, hop in story.calls:
            if call.rule > BESIDE:
                evidence.callers.add(hop.status, hop.duration, hop.sent)
                ticket = parse_ticket(hop.agent) if evidence.sightings else None
                if evidence.sightings and ticket and ticket.run == self._run:
                    evidence.sightings.finished(ticket.number, call.rule)
        if kind.breaks or evidence.broken:
            self._keep_broken(story, kind)
        story.count_as(kind.shape)
        return True

    def _compare(self, story: Story) -> None:
        """Compare what the dark versions answered with what the caller got, where one version answered."""
        answered = [call for call, _ in story.calls if call.rule >= 0 and call.answered and call.version]
        if len(answered) != 1:
            return
        [call] = answered
        dark = self.evidence.routing.rules[call.rule].expectation.dark
        sizes = {version: hop.sent for version, hop in story.arrivals if hop.answered}
        for version in dark:
            if version in sizes and call.version in sizes:
                self.evidence.compared[version].add_sizes(sizes[version], sizes[call.version])
        id, method, path = story.key
        if dark and method == "GET" and call.version:
            self.evidence.answers.finished((id, path), call.version, dark)

    def amend(self, late: Iterable[Story]) -> None:
        """Count stories anew that got hops after they had been counted."""
        for story in late:
            assert story.shape
            tally = self._kinds[story.shape].tally
            tally.remove(story.key)
            if not tally.count:
                del self.evidence.shapes[story.shape]
            if story.hops > CROWD:
                broken = self.evidence.broken
                broken[:] = [other for other in broken if other.key != story.key]
            else:
                self.add(story)

    def _keep_broken(self, story: Story, kind: Kind) -> None:
        """Keep a story whole if it is among the first that break a claim; or no longer, if it breaks none."""
        broken = self.evidence.broken
        kept = next((other for other in broken if other.key == story.key), None)
        if kept and kind.breaks:
            kept.shape = kind.shape
            kept.calls += story.calls
            kept.arrivals += story.arrivals
        elif kept:
            broken.remove(kept)
        elif kind.breaks and len(broken) < EXAMPLES:
            broken.append(replace(story, shape=kind.shape))
