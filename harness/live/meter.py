"""The meter: what passed each way, second by second, for the last minutes. It does not grow."""

import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from harness.meshes.mesh import Mesh
from harness.pages.picture import Figures, Way
from harness.pages.report import figures_of
from harness.proof.figures import Times
from harness.proof.story import BESIDE
from harness.proof.target import Routing, Target
from harness.proof.watch import Watch
from harness.rendering.accesslog import Hop

SECONDS = 180
"""How much is shown."""

EDGES = 100
"""How many pairs of a workload and a host are drawn at most."""


class Meter:
    """Counts hops as they are read, whatever becomes of them."""

    def __init__(self, recent: int = 3, clock: Callable[[], float] = time.time) -> None:
        """Count nothing yet; ``recent`` says of how many seconds the figures in the picture are."""
        self._recent, self._clock = recent, clock
        self.seconds: deque[tuple[int, defaultdict[Way, Times]]] = deque(maxlen=SECONDS)
        """Each second in which anything was read, and what passed each way."""
        self.edges: dict[tuple[str, str], None] = {}
        """Which workload was seen to call which host."""

    def add(self, way: Way, hop: Hop) -> None:
        """Count a hop."""
        now = int(self._clock())
        if not self.seconds or self.seconds[-1][0] != now:
            self.seconds.append((now, defaultdict(Times)))
        self.seconds[-1][1][way].add(hop.status, hop.duration, hop.sent)

    def figures(self, routing: Routing) -> dict[Way, Figures]:
        """Return the figures of the last seconds."""
        ways: defaultdict[Way, Times] = defaultdict(Times)
        now = int(self._clock())
        for second, counted in self.seconds:
            if now - self._recent <= second < now:
                for way, times in counted.items():
                    ways[way].merge(times)
        found = {way: self._figures(times, times.count) for way, times in ways.items()}
        for name in routing.versions:
            arrived, asked = ways[("", name, "in")], ways[("", name, "call")]
            copies = arrived.count - asked.count if name in routing.copied else 0
            if copies > 0 or routing.is_dark(name):
                found["", name, "copy"] = self._figures(arrived, copies or arrived.count)
        return found

    def _figures(self, times: Times, count: int) -> Figures:
        if not times.count:
            return Figures("0/s")
        status = ", ".join(f"{code or 'no answer'}" for code, _ in times.status.most_common(3))
        rate = count / self._recent
        return figures_of(times)._replace(amount=f"{rate:,.0f}/s", status=f"status {status}", rate=rate)

    def series(self, way: Way) -> list[Times]:
        """Return what passed in each second of the last minutes, the latest last."""
        now, known = int(self._clock()), dict(self.seconds)
        passed = map(known.get, range(now - SECONDS, now))
        return [ways[way] if ways and way in ways else Times() for ways in passed]


class MeteredWatch(Watch):
    """A watch that goes on, and counts each hop besides."""

    judges_stores = False

    def __init__(self, mesh: Mesh, target: Target, meter: Meter, **settings: Any) -> None:
        super().__init__(mesh, target, **settings)
        self.meter = meter

    def add(self, pod: str, hop: Hop, now: float) -> None:
        super().add(pod, hop, now)
        if hop.start <= self.period.since:
            return
        if hop.cluster.startswith("inbound|"):
            if version := self.ledger.attribution.version_that_got(pod, hop):
                self.meter.add(("", version, "in"), hop)
            return
        caller, host = self.routing.pods.get(pod), hop.cluster.rpartition("|")[2]
        if caller and "|" in hop.cluster and self.target.counts(caller):
            if len(self.meter.edges) < EDGES:
                self.meter.edges[caller.workload, host] = None
            self.meter.add((caller.workload, host, ""), hop)
        call = self.ledger.attribution.call_of(pod, hop)
        if call and call.rule > BESIDE:
            self.meter.add(("", "", "callers"), hop)
            if call.version:
                self.meter.add(("", call.version, "call"), hop)
