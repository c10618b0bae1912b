"""The period: what is seen between two changes of what is applied, and which stories of it are judged."""

from collections.abc import Iterator

from harness.proof.counting import Counts
from harness.proof.ledger import CROWD, Ledger
from harness.proof.story import Story
from harness.rendering.accesslog import Hop


class Period:
    """The stories that began within a time, by the proxies' clocks."""

    def __init__(self, ledger: Ledger, counts: Counts, *, since: str, blurred: float) -> None:
        """Begin a period.

        :param since: what begins then or before is not judged.
        :param blurred: nor is what begins before this time, by the monotonic clock.
        """
        self._ledger, self._counts = ledger, counts
        self.since, self.blurred = since, blurred
        self.until = ""
        """What begins later is not judged; nothing: the period goes on."""
        self.latest = since
        """When the latest request began that was logged."""
        self.suspects: list[Story] = []
        """Finished stories that break a claim, until it is known that what is applied is unchanged."""

    def add(self, pod: str, hop: Hop, now: float) -> None:
        """Enter what a pod's proxy logged."""
        if hop.start > self.latest:
            self.latest = hop.start
            if now < self.blurred:
                self.since = hop.start
        self._ledger.add(pod, hop, now)

    def sweep(self, now: float) -> None:
        """Count what is finished, but for suspects."""
        self._count(self._ledger.sweep(now))
        late, self._ledger.late = self._ledger.late, {}
        self._counts.amend(late.values())

    def count_suspects(self) -> None:
        """Count suspects as well: what is applied is unchanged."""
        suspects, self.suspects = self.suspects, []
        for story in suspects:
            self._counts.add(self._ledger.resolved(story))

    def end(self) -> None:
        """Count all stories, whatever they lack; what begins later than the latest is not judged."""
        self.until = self.until or self.latest
        self._count(self._ledger.give_up())

    def _count(self, finished: Iterator[Story]) -> None:
        for story in finished:
            if self._has(story) and not self._counts.add(story, suspects=False):
                self.suspects.append(story)

    def _has(self, story: Story) -> bool:
        """Say whether a story began within the period, and is no crowd."""
        within = self.since < story.start and (not self.until or story.start <= self.until)
        return within and story.hops <= CROWD

    def stories(self) -> list[Story]:
        """Return the stories that are not counted yet."""
        return [*self._ledger.open.values(), *self.suspects]

    def lacking(self) -> int:
        """Return how many stories that are to be judged are not finished."""
        return sum(map(self._has, self._ledger.open.values()))

    def overdue(self, then: float) -> int:
        """Return how many of these lack a hop, and got none since a time, by the monotonic clock."""
        waiting = [story for story in self._ledger.open.values() if story.touched < then]
        return sum(self._has(story) and not self._ledger.has_all(story) for story in waiting)
