"""The story: all hops of one request to the target, and what it amounts to when it is finished."""

from functools import lru_cache
from typing import Any, NamedTuple

from harness.rendering.accesslog import VIA_UPSTREAM, Hop

Key = tuple[str, str, str]
"""A story's request id, method and path."""

UNKNOWN, DIRECT, BESIDE, UNCOUNTED = -1, -2, -3, -4
"""The rule of a call of which no rule can be told; of one that asked a dark version itself; of one that asked
a version that answers callers anyway, but not for the target; of a caller that does not count."""

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
        "hops",
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
        self.hops = 0
        """How many hops it has got."""
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
    # DC with a status: who sent it went away when it had the answer, before its own body was read.
    if status > 0 and (details == VIA_UPSTREAM or details == "downstream_remote_disconnect"):
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
        if received and all(hop.status < 400 for _, hop in story.arrivals):  # else a body may be left unread
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
        if hop.received != received and hop.status < 400:
            late = late._replace(resized=tuple(sorted({*shape.resized, version})))
        if hop.sent != sent:
            late = late._replace(reply_resized=tuple(sorted({*shape.reply_resized, version})))
    return late
