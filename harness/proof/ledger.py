"""The ledger: it joins hops to stories, and hands each story over once, when it is finished.

Original and copy bear the same ``x-request-id``, which the caller's proxy sets where the application did
not, the same method and the same path. So these three join the hops of one request, on any cluster.
"""

from collections import Counter, deque
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from harness.proof.expectation import GATEWAY, MESH
from harness.proof.target import Routing
from harness.rendering.accesslog import VIA_UPSTREAM, Hop

Key = tuple[str, str, str]
"""A story's request id, method and path."""

UNKNOWN, DIRECT, BESIDE, UNCOUNTED = -1, -2, -3, -4
"""The rule of a call of which no rule can be told; of one that asked a dark version itself; of one that asked
a version that answers callers anyway, but not for the target; of a caller that does not count."""

# A caller's proxy that answers so has handed the request to nobody, and sent no copy of it.
_NOBODY = {"UH", "NR", "NC", "FI", "RL", "UAEX", "DC"}

REMEMBERED = 100_000
"""How many finished stories are remembered, so that a hop that comes late is not taken for a phantom."""

KINDS = 10_000
"""How many kinds of calls are remembered; callers choose the hosts in them, so there may be any number."""

_NONE: list[Any] = []
"""The hops of all stories that are counted: nothing is added to it."""


class Call(NamedTuple):
    """A request to the target, as its caller's proxy saw it."""

    rule: int
    """The place of the rule that it took, or UNKNOWN, DIRECT, BESIDE or UNCOUNTED."""
    version: str | None
    """Whose pod got it (the last one, if it was tried again); None: nobody, or an unknown one."""
    status: int
    answered: bool
    """Whether the version answered, rather than the caller's proxy."""
    routed: bool
    """Whether it was handed to anybody."""
    copied: bool
    """Whether there may be copies."""


class Arrival(NamedTuple):
    """A request at the proxy of one of the target's versions."""

    version: str
    status: int
    trouble: str
    """Empty where the application answered; else ``refused: …`` by its proxy, or ``unanswered: …``."""


class Shape(NamedTuple):
    """What a finished story amounts to. Stories of one shape are judged alike."""

    calls: tuple[Call, ...]
    arrivals: tuple[Arrival, ...]
    resized: tuple[str, ...] = ()
    """The versions that got a body of another size than the one that answered."""
    reply_resized: tuple[str, ...] = ()
    """The versions whose answer had another size than the one that the caller got."""

    @property
    def own(self) -> tuple[Call, ...]:
        """The calls that are judged: neither those beside the target nor those that do not count."""
        return tuple([call for call in self.calls if call.rule > BESIDE])


class Story:
    """All hops of one request to the target."""

    __slots__ = (
        "agent",
        "arrivals",
        "begun",
        "calls",
        "key",
        "shape",
        "sizes",
        "start",
        "touched",
        "waiting",
    )

    def __init__(self, key: Key, now: float) -> None:
        self.key, self.begun, self.touched = key, now, now
        self.start = ""
        """When the first of its hops began."""
        self.agent = ""
        self.calls: list[tuple[Call, Hop]] = []
        self.arrivals: list[tuple[str, Hop]] = []
        self.waiting = False
        """Whether it waits for hops that must still come."""
        self.shape: Shape | None = None
        """As what it was counted; then its hops are gone."""
        self.sizes = -1, -1
        """The sizes of the body and of the answer at the version that answered the caller."""

    def count_as(self, shape: Shape) -> None:
        """Let go of the hops: the story is counted."""
        self.shape = shape
        mine = {call.version for call in shape.calls}
        self.sizes = next(
            ((h.received, h.sent) for v, h in self.arrivals if v in mine and h.answered), (-1, -1)
        )
        self.calls = self.arrivals = _NONE
        self.start = self.agent = ""


def arrival(version: str, hop: Hop) -> Arrival:
    """Return what became of a request at a version's proxy."""
    return _arrival(version, hop.status, hop.flags, hop.details)


@lru_cache(maxsize=1000)
def _arrival(version: str, status: int, flags: str, details: str) -> Arrival:
    if details == VIA_UPSTREAM and status > 0:
        return Arrival(version, status, "")
    reason = f"{status} {details}" if details != "-" else f"{status} {flags}"
    # UF: the proxy could not reach the application; UC, UR: it was cut off; DC: who sent it went away.
    silent = {"UC", "UR", "UT", "DC", "SI", "DPE"} & set(flags.split(",")) or status == 0
    return Arrival(version, status, f"{'unanswered' if silent else 'refused'}: {reason}"[:120])


def shape_of(story: Story) -> Shape:
    """Return what a story amounts to."""
    calls = [call for call, _ in story.calls]
    arrivals = [_arrival(version, hop.status, hop.flags, hop.details) for version, hop in story.arrivals]
    resized: tuple[str, ...] = ()
    reply_resized: tuple[str, ...] = ()
    if calls and len({(hop.received, hop.sent) for _, hop in story.arrivals}) > 1:
        mine = {call.version for call in calls}
        answers = [(v, hop.received, hop.sent) for v, hop in story.arrivals if hop.answered]
        received = {r for v, r, _ in answers if v in mine}
        sent = {s for v, _, s in answers if v in mine}
        others = [a for a in answers if a[0] not in mine]
        if received:
            resized = tuple(sorted({v for v, r, _ in others if r not in received}))
            reply_resized = tuple(sorted({v for v, _, s in others if s not in sent}))
    if len(calls) > 1:
        calls.sort(key=repr)
    if len(arrivals) > 1:
        arrivals.sort()
    return Shape(tuple(calls), tuple(arrivals), resized, reply_resized)


def with_late_hop(story: Story, version: str | None, call: Call | None, hop: Hop) -> Shape:
    """Return what a counted story amounts to with one hop more: a call, or an arrival at a version."""
    shape = story.shape
    assert shape
    if call:
        return shape._replace(calls=tuple(sorted((*shape.calls, call), key=repr)))
    assert version
    late = shape._replace(arrivals=tuple(sorted((*shape.arrivals, arrival(version, hop)))))
    if hop.answered and story.sizes != (-1, -1) and version not in {call.version for call in shape.calls}:
        received, sent = story.sizes
        if hop.received != received:
            late = late._replace(resized=tuple(sorted({*shape.resized, version})))
        if hop.sent != sent:
            late = late._replace(reply_resized=tuple(sorted({*shape.reply_resized, version})))
    return late


class Ledger:
    """The stories that are not finished yet."""

    def __init__(self, routing: Routing, quiet: float, patience: float) -> None:
        """Keep stories of a target.

        :param quiet: for how many seconds a story that has all its hops may get more.
        :param patience: for how many seconds a story waits for a hop that must come.
        """
        self.routing = routing
        self._quiet, self._patience = quiet, patience
        self._open: dict[Key, Story] = {}
        self._due: deque[tuple[float, Story]] = deque()
        self._finished: dict[Key, Story] = {}
        self._finished_before: dict[Key, Story] = {}
        """The latest of the finished stories, in two lots: a hop that comes late still belongs to one."""
        self.late: list[tuple[Story, str | None, Call | None, Hop]] = []
        """What came after its story was counted: (story, version that it arrived at, or call, hop)."""
        self.hops = 0
        """How many hops have been entered."""
        self.unjoined: Counter[str] = Counter()
        """Arrivals that bear no request id, by version."""
        self.edges: dict[tuple[str, str], str] = {}
        """Which workload was seen to call which host: an example of each, as a request id."""
        self._calls: dict[tuple[str | int, ...], Call | None] = {}
        """What calls of one kind say; None: they are to others."""

    def __len__(self) -> int:
        return len(self._open)

    def stories(self) -> Iterator[Story]:
        """Yield the stories that are not finished."""
        yield from self._open.values()

    def reroute(self, routing: Routing) -> None:
        """Take over pods that are new; the rules are the same."""
        self.routing = routing
        self._calls.clear()

    def add(self, pod: str, hop: Hop, now: float) -> Story | None:
        """Enter what a pod's proxy logged; return the story that it belongs to, if it is the target's."""
        self.hops += 1
        call = version = None
        if hop.cluster.startswith("inbound|"):
            version = self.routing.version_of_pod(pod)
            if version is None or not self.routing.serves(pod, hop.cluster):
                return None
        else:
            call = self._call(pod, hop)
            if call is None:
                return None
        if hop.request_id == "-":
            self.unjoined[version or (call and call.version) or "?"] += 1
            return None
        story = self._story(hop, now)
        if story.shape:
            self.late.append((story, version, call, hop))
            return story
        if call:
            story.calls.append((call, hop))
        elif version:
            story.arrivals.append((version, hop))
        if not story.start or hop.start < story.start:
            story.start = hop.start
        if not story.agent:
            story.agent = hop.agent
        return story

    def _story(self, hop: Hop, now: float) -> Story:
        key = hop.request_id, hop.method, hop.path
        story = self._open.get(key)
        if story is None:
            finished = self._finished.get(key) or self._finished_before.get(key)
            if finished:
                return finished
            story = self._open[key] = Story(key, now)
            self._due.append((now + self._quiet, story))
        elif story.waiting:
            story.waiting = False
            self._due.append((now + self._quiet, story))
        story.touched = now
        return story

    def _call(self, pod: str, hop: Hop) -> Call | None:
        """Return what a hop at a caller's proxy says of a request to the target; None if it is to others."""
        kind = pod, hop.authority, hop.cluster, hop.upstream, hop.route, hop.status, hop.flags, hop.details
        try:
            return self._calls[kind]
        except KeyError:
            if len(self._calls) >= KINDS:
                self._calls.clear()
            call = self._calls[kind] = self._new_call(pod, hop)
            return call

    def _new_call(self, pod: str, hop: Hop) -> Call | None:
        who = self.routing.pod(pod)
        if who is None:
            return None
        if "|" in hop.cluster:
            self.edges.setdefault((who.workload, hop.cluster.rpartition("|")[2]), hop.request_id)
        version = self.routing.version_of_call(hop)
        if self.routing.is_for_target(who, hop):
            place = self.routing.rule_of(hop, GATEWAY if who.gateway else MESH)
            rule = UNKNOWN if place is None else place
        elif version is None:
            return None
        elif not self.routing.counts(who):
            rule = UNCOUNTED
        else:
            rule = DIRECT if self.routing.is_dark(version) else BESIDE
        routed = hop.upstream != "-"
        copied = routed or _NOBODY.isdisjoint(hop.flags.split(","))
        return Call(rule, version if routed else None, hop.status, hop.answered, routed, copied)

    def resolved(self, story: Story) -> Story:
        """Return a story whose calls name the pods that are known now."""
        for i, (call, hop) in enumerate(story.calls):
            if call.routed and call.version is None:
                story.calls[i] = call._replace(version=self.routing.version_of_call(hop)), hop
        return story

    def sweep(self, now: float) -> Iterator[Story]:
        """Yield the stories that are finished, and forget them."""
        while self._due and self._due[0][0] <= now:
            _, story = self._due.popleft()
            if self._open.get(story.key) is not story:
                continue
            if story.touched + self._quiet > now:
                self._due.append((now + self._quiet, story))
            elif self._has_all(story):
                yield self._finish(story)
            else:
                story.waiting = True
        # The oldest stand first: what waits at the front has waited the longest.
        late = []
        for story in self._open.values():
            if story.begun + self._patience > now:
                break
            late.append(story)
        for story in late:
            yield self._finish(story)

    def is_leak(self, call: Call) -> bool:
        """Say whether a caller got the answer of a version that may not answer."""
        if call.version is None or call.rule < 0:
            return call.rule == DIRECT
        return call.version not in self.routing.rules[call.rule].expectation.allowed

    def _finish(self, story: Story) -> Story:
        del self._open[story.key]
        if 2 * len(self._finished) >= REMEMBERED:
            self._finished_before, self._finished = self._finished, {}
        self._finished[story.key] = story
        return story

    def give_up(self) -> Iterator[Story]:
        """Yield all stories that are not finished: their patience is over."""
        for story in list(self._open.values()):
            yield self._finish(story)

    def _has_all(self, story: Story) -> bool:
        """Say whether a story has every hop that must come; one that has a leak needs no more."""
        got = [version for version, _ in story.arrivals]
        for call, _ in story.calls:
            if call.answered and call.version and call.version not in got:
                return False
        if not story.calls:
            return any(map(self.routing.must_be_silent, got))
        wanted: dict[str, int] = {}
        for call, _ in story.calls:
            if call.rule >= 0:
                if self.is_leak(call):
                    return True
                if call.routed:
                    for version, count in self.routing.rules[call.rule].expectation.always:
                        wanted[version] = wanted.get(version, 0) + count
            if call.version and call.answered:
                wanted[call.version] = wanted.get(call.version, 0) + 1
        return all(got.count(version) >= count for version, count in wanted.items())
