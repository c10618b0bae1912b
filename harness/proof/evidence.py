"""What claims are made from, and what a claim is."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from harness.proof.answers import Answers
from harness.proof.figures import Comparison, Sightings, Tally, Times
from harness.proof.stores import Stored
from harness.proof.story import Shape, Story
from harness.proof.target import Routing, Rule, ways_back

State = Literal["holds", "fails", "unproven"]


@dataclass(frozen=True)
class Claim:
    """One checked statement with its figures."""

    id: str
    statement: str
    state: State
    detail: str
    figures: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    """Request ids of up to three stories that break it."""
    version: str = ""
    """The version on whose own proxies' logs it rests, if it does."""

    @property
    def holds(self) -> bool:
        return self.state == "holds"


class Baseline(NamedTuple):
    """How the version to compare with answered callers before."""

    version: str
    answers: int = 0
    failures: int = 0
    p99: float | None = None
    """In milliseconds."""


@dataclass(frozen=True)
class Bounds:
    """What is asked of v2 beside what must always be."""

    max_differences: float = 0.0
    """Which part (0 to 1) of the copies may be answered with another status than v1's."""
    same_size: bool = False
    max_p99_ratio: float | None = None
    """How many times as long as v1's v2's 99th percentile may be."""
    ignored: tuple[str, ...] = ()
    """The fields of answers that are not compared."""
    max_failures: float = 0.0
    """Which part (0 to 1) of callers may get a failure more than from the version of ``baseline``."""
    baseline: Baseline | None = None
    """With what versions that answer callers are compared; None: with nothing."""


NO_BOUNDS = Bounds()


@dataclass
class Evidence:
    """All that was seen of a target."""

    routing: Routing
    shapes: dict[Shape, Tally] = field(default_factory=dict)
    sightings: Sightings | None = None
    """What callers saw, where the harness was the caller."""
    times: defaultdict[str, Times] = field(default_factory=lambda: defaultdict(Times))
    """What each version's proxies measured."""
    compared: defaultdict[str, Comparison] = field(default_factory=lambda: defaultdict(Comparison))
    """How large each dark version's answers are beside the callers'; all else is filled in at the end."""
    answers: Answers = field(default_factory=Answers)
    """What the versions answered, where their proxies log it."""
    callers: Times = field(default_factory=Times)
    """What the proxies of callers measured."""
    blind: Mapping[str, str] = field(default_factory=dict)
    """Versions whose proxies cannot be read, with the reason."""
    unreadable: int = 0
    """Lines on requests that are not in Istio's default format."""
    unjoined: int = 0
    """Hops without a request id."""
    under_way: Mapping[str, int] = field(default_factory=dict)
    """How many requests each version has got and not answered, once a run has ended; where it is known."""
    overdue: int = 0
    """Stories that still lacked a hop for long when the run was ended early."""
    bounds: Bounds = NO_BOUNDS
    broken: list[Story] = field(default_factory=list)
    """The first stories that break a claim, whole."""
    edges: dict[tuple[str, str], None] = field(default_factory=dict)
    """Which workload was seen to call which host."""
    writes: dict[str, Shape] = field(default_factory=dict)
    """The stories of what callers wrote, by request id, where the versions have a store."""
    stored: Stored | None = None
    """What the stores hold of it, once a run has ended."""

    @property
    def loops(self) -> tuple[str, ...]:
        """The ways on which copies were seen to lead back to the target."""
        return ways_back(self.routing, self.edges)

    @property
    def stories(self) -> int:
        return sum(tally.count for tally in self.shapes.values())


class Stream(NamedTuple):
    """The stories that took one rule."""

    evidence: Evidence
    place: int
    rule: Rule
    shapes: dict[Shape, Tally]


class Sum:
    """Figures summed over stories, some of which must be 0; and the stories that break a claim."""

    def __init__(self, *wrong: str, **figures: int) -> None:
        """Begin with ``figures``, and with those in ``wrong``, which must be 0."""
        self.figures = Counter(dict.fromkeys(wrong, 0) | figures)
        self._wrong = wrong
        self._broken: list[Tally] = []

    def __getitem__(self, name: str) -> int:
        return self.figures[name]

    @property
    def is_wrong(self) -> bool:
        return any(self.figures[name] for name in self._wrong)

    def add(self, tally: Tally, breaks: bool = False, /, **figures: int) -> None:
        """Add the figures of one story for each of a tally's; ``breaks``: it breaks the claim anyway."""
        for name, figure in figures.items():
            self.figures[name] += figure * tally.count
        if breaks or any(figures.get(name) for name in self._wrong):
            self._broken.append(tally)

    def claim(
        self, id: str, statement: str, detail: str, *, fails: bool | None = None, unproven: bool = False,
        version: str = "",
    ) -> Claim:  # fmt: skip
        """Return the claim that these figures make; unless ``fails`` says so, it fails where one is wrong."""
        fails = self.is_wrong if fails is None else fails
        state: State = "fails" if fails else "unproven" if unproven else "holds"
        examples = tuple([key[0] for tally in self._broken for key in tally.examples][:3])
        return Claim(id, statement, state, detail, dict(self.figures), examples, version)
