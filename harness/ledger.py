"""The ledger: for each ticket, what its caller saw and what the proxies of each version logged."""

from array import array
from collections import Counter
from collections.abc import Iterable

from harness.accesslog import LogEntry

NO_VERSION = "?"
"""The version of an answer that names none."""


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
        """Arrivals with a number of this run that was never sent."""
        self.undelivered = bytearray(size)
        """Whether each ticket arrived at a proxy that could not hand it to its application."""

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
    """One run's tickets, numbered from 0 to ``size`` - 1."""

    def __init__(self, run: str, size: int, versions: Iterable[str]) -> None:
        """Open a ledger for the ``versions`` of the Service."""
        self.run = run
        self.size = size
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
        if version is not None and version not in self.names:
            self.names.append(version)
        self._version[number] = self.names.index(version or NO_VERSION)
        self.status[number] = status
        self.latency[number] = latency

    def logged(self, version: str, entry: LogEntry) -> None:
        """Enter what a proxy of ``version`` logged; other runs' tickets are passed over."""
        if entry.ticket.run == self.run:
            self.arrivals[version].add(entry)
            self.entries += 1

    def answered(self, number: int) -> bool:
        """Say whether the caller of ticket ``number`` got what it asked for."""
        return 200 <= self.status[number] < 300

    def version(self, number: int) -> str:
        """Return the version that answered the caller of ticket ``number``."""
        return self.names[self._version[number]]
