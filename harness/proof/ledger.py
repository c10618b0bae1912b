"""The ledger: it joins hops to stories, and hands each story over once, when it is finished.

Original and copy bear the same ``x-request-id``, which the caller's proxy sets where the application did
not, the same method and the same path. So these three join the hops of one request, on any cluster.
"""

import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from harness.proof.attribution import Attribution
from harness.proof.evidence import Evidence
from harness.proof.story import Call, Key, Story
from harness.proof.target import Routing
from harness.rendering.accesslog import Hop

REMEMBERED = 100_000
"""How many finished stories are remembered, so that a hop that comes late is not taken for a phantom."""

CROWD = 300
"""How many hops may bear one request id, method and path: of more, nobody can tell which belong together."""


class Ledger:
    """The stories that are not finished yet."""

    def __init__(
        self, evidence: Evidence, quiet: float, patience: float,
        alarming: Callable[[Call], bool] | None = None,
    ) -> None:  # fmt: skip
        """Keep stories of a target.

        :param evidence: gets what cannot be joined, and which workload was seen to call which host.
        :param quiet: for how many seconds a story that has all its hops may get more.
        :param patience: for how many seconds a story waits for a hop that must come.
        :param alarming: says of a call whether nothing may be waited for any more.
        """
        self._evidence, self._alarming = evidence, alarming
        self.reroute(evidence.routing)
        self.alarm: Story | None = None
        """The first story with an alarming call."""
        self._quiet, self._patience = quiet, patience
        self.open: dict[Key, Story] = {}
        """The stories that are not finished, the oldest first."""
        self._due: deque[tuple[float, Story]] = deque()
        """When to look whether stories are finished: an entry for each hop."""
        self._finished: OrderedDict[Key, Story] = OrderedDict()
        """The latest of the finished stories: a hop that comes late still belongs to one."""
        self.late: dict[Key, Story] = {}
        """The stories that got hops after they had been counted."""
        self.moved = time.monotonic()
        """When the latest hop was entered, whatever it is about."""

    def reroute(self, routing: Routing) -> None:
        """Take over pods that are new; the rules are the same."""
        self._evidence.routing = self._routing = routing
        self.attribution = Attribution(routing, self._evidence.edges)

    def add(self, pod: str, hop: Hop, now: float) -> None:
        """Enter what a pod's proxy logged."""
        self.moved = now
        call = version = None
        if hop.cluster.startswith("inbound|"):
            version = self.attribution.version_that_got(pod, hop)
        else:
            call = self.attribution.call_of(pod, hop)
        if call is None and version is None:
            return
        if hop.request_id == "-":
            self._evidence.unjoined += 1
            return
        story = self._story(hop, now)
        story.hops += 1
        if story.shape and story.hops <= CROWD + 1 and story.key not in self.late:
            self.late[story.key] = story
        if story.hops > CROWD:
            self._evidence.unjoined += 1
            return
        if call:
            story.calls += ((call, hop),)
            story.urgent |= self._is_urgent(call)
            if self._alarming and not self.alarm and self._alarming(call):
                self.alarm = story
        elif version:
            story.arrivals += ((version, hop),)
        if story.urgent:
            self._due.appendleft((now, story))
        if not story.start or hop.start < story.start:
            story.start = hop.start

    def _story(self, hop: Hop, now: float) -> Story:
        key = hop.request_id, hop.method, hop.path
        if finished := self._finished.get(key):
            return finished
        story = self.open.get(key)
        if story is None:
            story = self.open[key] = Story(key, begun=now, touched=now)
        story.touched = now
        self._due.append((now + self._quiet, story))
        return story

    def resolved(self, story: Story) -> Story:
        """Return a story whose calls name the pods that are known now."""
        story.calls = tuple(
            (call._replace(version=call.version or self.attribution.version_of_call(hop)), hop)
            for call, hop in story.calls
        )
        return story

    def sweep(self, now: float) -> Iterator[Story]:
        """Yield the stories that are finished, and forget them."""
        while self._due and self._due[0][0] <= now:
            _, story = self._due.popleft()
            if self.open.get(story.key) is not story:
                continue
            if (story.touched + self._quiet <= now or story.urgent) and self.has_all(story):
                yield self._finish(story)
        # The oldest stand first: what waits at the front has waited the longest.
        late = itertools.takewhile(lambda story: story.begun + self._patience <= now, self.open.values())
        for story in [story for story in late if story.touched + self._quiet <= now]:
            yield self._finish(story)

    def _is_urgent(self, call: Call) -> bool:
        if call.status >= 500 and call.rule >= 0 and not self._routing.rules[call.rule].expectation.copies:
            return True
        return self._routing.is_leak(call)

    def _finish(self, story: Story) -> Story:
        self._finished[story.key] = self.open.pop(story.key)
        if len(self._finished) > REMEMBERED:
            self._finished.popitem(last=False)
        return story

    def give_up(self) -> Iterator[Story]:
        """Yield all stories that are not finished: their patience is over."""
        for story in list(self.open.values()):
            yield self._finish(story)

    def has_all(self, story: Story) -> bool:
        """Say whether a story has every hop that must come; one that has a leak needs no more."""
        got = [version for version, _ in story.arrivals]
        if not story.calls:
            return any(map(self._routing.must_be_silent, got))
        if any(self._routing.is_leak(call) for call, _ in story.calls):
            return True
        wanted: list[str] = []
        for call, _ in story.calls:
            if call.rule >= 0 and call.routed:
                wanted += self._routing.rules[call.rule].expectation.always
            if call.version and call.answered:
                wanted.append(call.version)
        return all(got.count(version) >= wanted.count(version) for version in wanted)
