"""Counts that do not grow with a run: stories of one shape, times, what callers saw; and chance."""

import itertools
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from harness.proof.story import Key

EXAMPLES = 3
"""How many stories are kept as examples: their keys of each shape, and whole of those that break a claim."""

FALSE_ALARM = 1e-6
"""How often a claim on chance may fail though all is as it should be."""

UNDER_WAY = 100_000
"""How many tickets wait at most for the other half of what is known of them."""


@dataclass(slots=True)
class Tally:
    """How many stories are alike, and some of them."""

    count: int = 0
    examples: list[Key] = field(default_factory=list)

    def add(self, key: Key) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(key)

    def remove(self, key: Key) -> None:
        self.count -= 1
        if key in self.examples:
            self.examples.remove(key)


class Times:
    """Durations in milliseconds, statuses and sizes of one side: exact below a second, to 1 % above."""

    def __init__(self) -> None:
        self.count = self.bytes = self.sized = 0
        self.status: Counter[int] = Counter()
        self._durations: Counter[int] = Counter()

    def add(self, status: int, milliseconds: float, size: int | None = None) -> None:
        """Count an answer of ``size`` bytes, if that is known."""
        value = round(milliseconds)
        if value >= 1000:
            step = 10 ** (len(str(value)) - 3)
            value = value // step * step
        self.count += 1
        if size is not None:
            self.bytes += size
            self.sized += 1
        self.status[status] += 1
        self._durations[value] += 1

    def merge(self, other: "Times") -> None:
        """Count what another counted as well."""
        self.count += other.count
        self.bytes += other.bytes
        self.sized += other.sized
        self.status.update(other.status)
        self._durations.update(other._durations)

    def quantile(self, q: float) -> float | None:
        """Return the ``q``-th quantile (0.99: the 99th percentile) in milliseconds; None without any."""
        rank, passed = math.ceil(q * self.count), 0
        for value, count in sorted(self._durations.items()):
            passed += count
            if passed >= max(rank, 1):
                return float(value)
        return None

    def histogram(self, bounds: Iterable[float]) -> list[int]:
        """Return how many took at most each bound (milliseconds, rising) and more than the one before."""
        passed = [self.count - self.slower_than(bound) for bound in bounds]
        return [more - less for less, more in itertools.pairwise([0, *passed])]

    def slower_than(self, milliseconds: float) -> int:
        """Return how many took longer."""
        return sum(count for value, count in self._durations.items() if value > milliseconds)


@dataclass
class Comparison:
    """How a dark version answers beside those that answer callers."""

    version: str = ""
    against: str = ""
    status: Mapping[str, int] = field(default_factory=dict)
    """Their status and its own, as in ``200 x 503``, and how many requests had that."""
    same_size: int = 0
    """How many of its answers had the size of the caller's."""
    other_size: int = 0
    smaller: int = 0
    """By how many bytes at most it was smaller; of larger ones likewise."""
    larger: int = 0
    times: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Quantile, such as ``p99``, to milliseconds: theirs and its own."""

    def add_sizes(self, ours: int, theirs: int) -> None:
        self.same_size += ours == theirs
        self.other_size += ours != theirs
        self.smaller = max(self.smaller, theirs - ours)
        self.larger = max(self.larger, ours - theirs)


class Sightings:
    """What the harness saw as a caller, joined with the stories of its tickets."""

    def __init__(self) -> None:
        self.sent = self.answered = 0
        self.times = Times()
        self.said: defaultdict[int, Counter[str]] = defaultdict(Counter)
        """Place of the rule that a request took → the versions that replies name."""
        self._waiting: OrderedDict[int, str] = OrderedDict()
        """Ticket → the version that its reply names, until its story is finished."""
        self._forgotten = 0
        """How many of those were too many to wait longer."""
        self._places: OrderedDict[int, int] = OrderedDict()
        """Ticket → the rule that its story took, until its caller knows the answer."""

    def saw(self, ticket: int, status: int, version: str | None, seconds: float) -> None:
        """Enter what the caller of a ticket saw; ``status`` 0 is no answer."""
        self.sent += 1
        self.answered += 200 <= status < 300
        self.times.add(status, 1000 * seconds)
        if version is None or not 200 <= status < 300:
            self._places.pop(ticket, None)
        elif ticket in self._places:
            self.said[self._places.pop(ticket)][version] += 1
        else:
            self._waiting[ticket] = version
            if len(self._waiting) > UNDER_WAY:
                self._waiting.popitem(last=False)
                self._forgotten += 1

    def finished(self, ticket: int, place: int) -> None:
        """Enter which rule the request of a ticket took."""
        if ticket in self._waiting:
            self.said[place][self._waiting.pop(ticket)] += 1
        else:
            self._places[ticket] = place
            if len(self._places) > UNDER_WAY:  # a request may lead to several stories, but has one reply
                self._places.popitem(last=False)

    @property
    def unlogged(self) -> int:
        """How many replies name a version though no proxy logged their request to the target."""
        return len(self._waiting) + self._forgotten


def most_by_chance(n: int, p: float, alpha: float) -> int:
    """Return what ``n`` draws of probability ``p`` exceed with a probability of at most ``alpha``."""
    return binomial_interval(n, p, 2 * alpha)[1]


def binomial_interval(n: int, p: float, alpha: float) -> tuple[int, int]:
    """Return the smallest and largest count that ``n`` draws of probability ``p`` may give.

    A count below or above has a probability of at most ``alpha`` / 2 each.
    """
    if p <= 0 or p >= 1 or n == 0:
        return round(n * p), round(n * p)

    def log_pmf(k: int) -> float:
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return ways + k * math.log(p) + (n - k) * math.log1p(-p)

    def first(k: int, step: int) -> int:
        tail = 0.0
        while 0 <= k <= n:
            tail += math.exp(log_pmf(k))
            if tail > alpha / 2:
                return k
            k += step
        return k - step

    # What lies 40 standard deviations away has no weight that a float could hold.
    far = math.ceil(40 * math.sqrt(n * p * (1 - p))) + 40
    return first(max(0, math.floor(n * p) - far), 1), first(min(n, math.ceil(n * p) + far), -1)
