"""The story: all hops of one request to the target, and what it amounts to when it is finished."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from harness.rendering.accesslog import VIA_UPSTREAM, Hop, Unreadable, parse_line

Key = tuple[str, str, str]
"""A story's request id, method and path."""

UNKNOWN, DIRECT, BESIDE, UNCOUNTED = -1, -2, -3, -4
"""The rule of a call of which no rule can be told; of one that asked a dark version itself; of one that asked
a version that answers callers anyway, but not for the target; of a caller that does not count."""


def hops_in(lines: Iterable[str]) -> Iterator[Hop]:
    """Yield the requests in a proxy's log; lines that cannot be read are passed over."""
    for line in lines:
        with suppress(Unreadable):
            if hop := parse_line(line):
                yield hop


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

    @property
    def failed(self) -> bool:
        """Whether the caller got a failure, or no answer."""
        return self.status >= 500 or self.status == 0


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

    def at(self, version: str) -> list[Arrival]:
        """Return what arrived at a version."""
        return [arrival for arrival in self.arrivals if arrival.version == version]

    @property
    def own(self) -> tuple[Call, ...]:
        """The calls that are judged: neither those beside the target nor those that do not count."""
        return tuple([call for call in self.calls if call.rule > BESIDE])


NOTHING = Shape((), ())


@dataclass(eq=False, slots=True)
class Story:
    """All hops of one request to the target; of one that is counted, those that came later."""

    key: Key
    begun: float
    touched: float
    """When the latest of its hops was read."""
    start: str = ""
    """When the first of its hops began."""
    hops: int = 0
    """How many hops it has got."""
    calls: tuple[tuple[Call, Hop], ...] = ()
    arrivals: tuple[tuple[str, Hop], ...] = ()
    urgent: bool = False
    """Whether a caller got what nothing can mend: a leak, or a failure of which no copy is made."""
    shape: Shape | None = None
    """As what it was counted; then its hops are gone."""
    sizes: tuple[int, int] | None = None
    """The sizes of the body and of the answer at the version that answered the caller, once counted."""

    def count_as(self, shape: Shape) -> None:
        """Let go of the hops: the story is counted."""
        self.shape = shape
        mine = {call.version for call in shape.calls}
        sizes = ((hop.received, hop.sent) for v, hop in self.arrivals if v in mine and hop.answered)
        self.sizes = self.sizes or next(sizes, None)
        self.calls = self.arrivals = ()
        self.start = ""


def _arrival(version: str, hop: Hop) -> Arrival:
    """Return what became of a request at a version's proxy."""
    # DC with a status: who sent it went away when it had the answer, before its own body was read.
    if hop.status > 0 and hop.details in (VIA_UPSTREAM, "downstream_remote_disconnect"):
        return Arrival(version, hop.status, "")
    reason = f"{hop.status} {hop.details if hop.details != '-' else hop.flags}"
    # UF: the proxy could not reach the application; UC, UR: it was cut off; DC: who sent it went away.
    silent = {"UC", "UR", "UT", "DC", "SI", "DPE"} & set(hop.flags.split(",")) or hop.status == 0
    return Arrival(version, hop.status, f"{'unanswered' if silent else 'refused'}: {reason}"[:120])


def shape_of(story: Story) -> Shape:
    """Return what a story amounts to: as what it was counted, and the hops that it has got since."""
    before = story.shape or NOTHING
    calls = [call for call, _ in story.calls] + [*before.calls]
    arrivals = [_arrival(version, hop) for version, hop in story.arrivals] + [*before.arrivals]
    resized, reply_resized = set(before.resized), set(before.reply_resized)
    sizes = {(hop.received, hop.sent) for _, hop in story.arrivals}
    if calls and (len(sizes) > 1 or story.sizes):
        mine = {call.version for call in calls}
        answers = [(v, hop.received, hop.sent) for v, hop in story.arrivals if hop.answered]
        whole = [(r, s) for v, r, s in answers if v in mine] + ([story.sizes] if story.sizes else [])
        if whole and all(hop.status < 400 for _, hop in story.arrivals):  # else a body may be left unread
            others = [each for each in answers if each[0] not in mine]
            resized.update(v for v, r, _ in others if r not in {received for received, _ in whole})
            reply_resized.update(v for v, _, s in others if s not in {sent for _, sent in whole})
    if len(calls) > 1:
        calls.sort(key=repr)
    arrivals.sort()
    return Shape(tuple(calls), tuple(arrivals), tuple(sorted(resized)), tuple(sorted(reply_resized)))
