"""Counting: finished stories become counts by shape, and figures that do not grow with a run."""

from collections.abc import Iterable
from copy import copy
from typing import NamedTuple

from harness.proof.evidence import Bounds, Evidence
from harness.proof.figures import EXAMPLES, Sightings, Tally, Times
from harness.proof.ledger import CROWD
from harness.proof.story import BESIDE, Call, Shape, Story, shape_of, with_late_hop
from harness.proof.target import Routing
from harness.proof.traffic import parse_ticket
from harness.proof.verdict import judge
from harness.rendering.accesslog import Hop


class Kind(NamedTuple):
    """The stories of one shape."""

    shape: Shape
    tally: Tally
    suspect: bool
    """Whether a story of the shape breaks a claim, or names a pod that is not known."""


class Counts:
    """What was seen of a target since what is applied is the same."""

    def __init__(self, routing: Routing, bounds: Bounds, run: str, sightings: Sightings | None) -> None:
        self.evidence = Evidence(routing, sightings=sightings, bounds=bounds)
        self.broken: list[Story] = []
        """The first stories that break a claim."""
        self._run = run
        self._kinds: dict[Shape, Kind] = {}

    def kind_of(self, story: Story) -> Kind:
        """Return what a story is to be counted as."""
        return self._kind(shape_of(story))

    def _kind(self, shape: Shape) -> Kind:
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
        self._count(story, kind)
        for version, hop in story.arrivals:
            self._measure(version, hop)
        for call, hop in story.calls:
            self._heard(call, hop)
        self._keep_broken(story, kind)
        story.count_as(kind.shape)

    def amend(self, late: Iterable[tuple[Story, str | None, Call | None, Hop]]) -> None:
        """Count stories anew that got a hop after they had been counted."""
        for story, version, call, hop in late:
            assert story.shape
            tally = self.evidence.shapes.get(story.shape)
            if tally is None:
                continue  # it was counted no longer
            tally.remove(story.key)
            if not tally.count:
                del self.evidence.shapes[story.shape]
            place = next((i for i, b in enumerate(self.broken) if b.key == story.key), len(self.broken))
            told = self.broken.pop(place) if place < len(self.broken) else copy(story)
            if story.hops > CROWD:
                continue
            told.calls = [*told.calls, (call, hop)] if call else told.calls
            told.arrivals = [*told.arrivals, (version, hop)] if version else told.arrivals
            kind = self._kind(with_late_hop(story, version, call, hop))
            self._count(story, kind)
            story.shape = told.shape = kind.shape
            self._keep_broken(told, kind, place)
            if version:
                self._measure(version, hop)
            elif call:
                self._heard(call, hop)

    def _keep_broken(self, story: Story, kind: Kind, place: int = EXAMPLES) -> None:
        if len(self.broken) < EXAMPLES and kind.suspect and self._does_break(kind.shape):
            self.broken.insert(place, copy(story))

    def _heard(self, call: Call, hop: Hop) -> None:
        """Enter what a caller's proxy measured, and which rule the request of a ticket took."""
        if call.rule <= BESIDE:
            return
        self.evidence.callers.add(hop.status, hop.duration, hop.sent)
        ticket = parse_ticket(hop.agent) if self.evidence.sightings else None
        if self.evidence.sightings and ticket and ticket.run == self._run:
            self.evidence.sightings.finished(ticket.number, call.rule)

    def _count(self, story: Story, kind: Kind) -> None:
        if not kind.tally.count:
            self.evidence.shapes[kind.shape] = kind.tally
        kind.tally.add(story.key)

    def _measure(self, version: str, hop: Hop) -> None:
        times = self.evidence.times.get(version)
        if times is None:
            times = self.evidence.times[version] = Times()
        times.add(hop.status, hop.duration, hop.sent)
