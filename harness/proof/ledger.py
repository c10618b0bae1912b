"""The ledger: for each ticket, what its caller saw and what the proxies of each version logged."""

from array import array
from collections import Counter
from collections.abc import Iterable

from harness.rendering.accesslog import LogEntry

NO_VERSION = "?"
"""The version of an answer that names none."""

NOT_SENT = 0xFFFF
"""The status of a number that no request has borne yet."""


class Arrivals:
    """What the proxies of one version logged, column by column: 100,000 tickets cost about 1.5 MB."""

    def __init__(self, size: int) -> None:
        self.counts = bytearray(size)
        """How often each ticket arrived (255: that often or more)."""
        self.shapes = array("q", bytes(8 * size))
        """A hash of method, path and size of each ticket's latest arrival."""
        self.durations = array("I")
        self.status: Counter[int] = Counter()
        self.strangers = 0
        """Arrivals with a number of this run that has no place."""
        self.undelivered = bytearray(size)
        """Whether each ticket arrived at a proxy that could not hand it to its application."""

    def grow(self, more: int) -> None:
        """Make room for ``more`` tickets."""
        self.counts.extend(bytes(more))
        self.shapes.frombytes(bytes(8 * more))
        self.undelivered.extend(bytes(more))

    def add(self, entry: LogEntry) -> None:
        """Enter one line of a proxy's log."""
        self.status[entry.status] += 1
        self.durations.append(entry.duration)
        number = entry.ticket.number
        if number >= len(self.counts):
            self.strangers += 1
        elif not entry.delivered:
            self.undelivered[number] = 1
        else:
            self.counts[number] = min(self.counts[number] + 1, 255)
            self.shapes[number] = hash((entry.method, entry.path, entry.bytes))


class Ledger:
    """One run's tickets: at first those numbered from 0 to ``size`` - 1."""

    def __init__(self, run: str, size: int, versions: Iterable[str], limit: int | None = None) -> None:
        """Open a ledger for the ``versions`` of the Service.

        :param limit: it grows with the numbers that are used, which need not be all, but never beyond.
        """
        self.run = run
        self.size = size
        self.limit = limit or size
        self.names = [NO_VERSION, *dict.fromkeys(versions)]
        self.status = array("H", bytes(2 * size))
        """The status that each caller saw; 0: no answer at all."""
        self.latency = array("f", bytes(4 * size))
        """Seconds that each caller waited."""
        self._version = bytearray(size)
        self.arrivals = {name: Arrivals(size) for name in self.names[1:]}
        self.entries = 0
        """How many lines have been entered."""

    def saw(self, number: int, status: int, version: str | None, latency: float) -> None:
        """Enter what the caller of ticket ``number`` saw."""
        self._reach(number)
        if version is not None and version not in self.names:
            self.names.append(version)
        self._version[number] = self.names.index(version or NO_VERSION)
        self.status[number] = status
        self.latency[number] = latency

    def logged(self, version: str, entry: LogEntry) -> None:
        """Enter what a proxy of ``version`` logged; other runs' tickets are passed over."""
        if entry.ticket.run == self.run:
            self._reach(entry.ticket.number)
            self.arrivals[version].add(entry)
            self.entries += 1

    def _reach(self, number: int) -> None:
        """Grow, by half at least, until there is a place for ticket ``number``."""
        if self.size <= number < self.limit:
            more = min(max(number + 1, self.size * 3 // 2), self.limit) - self.size
            self.status.extend([NOT_SENT] * more)
            self.latency.frombytes(bytes(4 * more))
            self._version.extend(bytes(more))
            for arrivals in self.arrivals.values():
                arrivals.grow(more)
            self.size += more

    def numbers(self) -> list[int]:
        """Return the numbers of the tickets that were sent."""
        return [number for number, status in enumerate(self.status) if status != NOT_SENT]

    def strangers(self) -> int:
        """Return how many arrivals bear a number of this run that was never sent."""
        unsent = [number for number, status in enumerate(self.status) if status == NOT_SENT]
        return sum(
            found.strangers + sum(found.counts[n] + found.undelivered[n] for n in unsent)
            for found in self.arrivals.values()
        )

    def answered(self, number: int) -> bool:
        """Say whether the caller of ticket ``number`` got what it asked for."""
        return 200 <= self.status[number] < 300

    def version(self, number: int) -> str:
        """Return the version that answered the caller of ticket ``number``."""
        return self.names[self._version[number]]
