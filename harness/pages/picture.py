"""The picture: who calls the target, which version answers, and where copies end. Pure; SVG is made of it."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from harness.proof.evidence import Evidence
from harness.proof.rules import Destination
from harness.proof.story import UNKNOWN
from harness.proof.target import Routing
from harness.proof.verdict import Verdict

CALLER, JUNCTION, VERSION = (184, 64), (44, 44), (320, 124)
"""Widths and heights of the boxes, in the picture's own units."""

GAP, LAST, MARGIN = 112, 150, 14
"""Between columns; before the versions; and around it all."""

PITCH, ROW = 88, 156
"""From one caller to the next, and from one version to the next."""

MOST = 5
"""How many callers are drawn in one column."""

Edge = tuple[str, str]
"""A workload, and the host that it was seen to call."""

Way = tuple[str, str, str]
"""From a workload to a host; or, at the target (``""``), from there to a version, as ``call`` or ``copy``."""


class Figures(NamedTuple):
    """What is written at a way."""

    amount: str
    times: tuple[str, ...] = ()
    """Median and 99th percentile."""
    status: str = ""
    rate: float = 0.0
    """Requests a second, by which dots move there."""
    failed: bool = False


NOTHING = Figures("")


class Box(NamedTuple):
    """A caller, or a version."""

    x: float
    y: float
    width: float
    height: float
    title: str
    lines: tuple[str, ...] = ()
    kind: str = "caller"
    """``caller``, ``version`` or ``junction``; behind it ``dark``, ``silent``, ``down`` or ``leak``."""
    full: str = ""
    """Its whole name."""


class Line(NamedTuple):
    """A way from one box to another."""

    path: str
    kind: str
    """``call`` or ``copy``, and behind it ``failed``, ``missing`` or ``leak``."""
    rate: float
    x: float
    y: float
    above: str = ""
    below: str = ""


@dataclass(frozen=True)
class Picture:
    """Boxes, lines, and the same in words."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    text: str


def leaked(evidence: Evidence) -> Counter[str]:
    """Return how many callers got the answer of each version that may not answer them."""
    found, routing = Counter[str](), evidence.routing
    for shape, tally in evidence.shapes.items():
        for call in shape.calls:
            version = call.version or ""
            by_unknown_rule = call.rule == UNKNOWN and version and routing.is_dark(version)
            if routing.is_leak(call) or by_unknown_rule:
                found[version] += tally.count
    return found


class Drawing:
    """Columns from left to right: callers, those next to the target last; the target; its versions."""

    def __init__(self, verdict: Verdict, edges: Iterable[Edge], figures: Mapping[Way, Figures]) -> None:
        """Draw a target; ``edges`` say which workload was seen to call which host."""
        assert verdict.evidence
        self.routing, self.figures, self.leaks = verdict.evidence.routing, figures, leaked(verdict.evidence)
        self.missing = {claim.version for claim in verdict.claims if claim.figures.get("missing")}
        edges = list(edges)
        columns = [*_columns(self.routing, edges)][::-1]
        self.shared = {name: f"and {len(column) - MOST + 1} more" for column in columns
                       if len(column) > MOST for name in column[MOST - 1 :]}  # fmt: skip
        """The callers of a column that are too many, and what the box is called that they share."""
        self.edges = dict.fromkeys((self.shared.get(caller, caller), host) for caller, host in edges)
        self.columns = [dict.fromkeys(self.shared.get(name, name) for name in column) for column in columns]

    def picture(self) -> Picture:
        """Lay the columns out, and draw the ways between them."""
        versions, nobody = self.routing.versions, {"callers": None}
        height = max(len(versions) * ROW, *(len(column) * PITCH for column in self.columns), 0) + 2 * MARGIN
        x, callers = float(MARGIN), dict[str, Box]()
        for column in self.columns or [nobody]:
            for name, y in _spread(column, height, CALLER, PITCH):
                callers[name] = Box(x, y, *CALLER, self._short(name), full=name)
            x += CALLER[0] + GAP
        if not self.columns:
            callers["callers"] = callers["callers"]._replace(lines=("none seen yet",), kind="caller nobody")
        [(title, y)] = _spread([self.routing.target.service], height, JUNCTION, 0)
        target = Box(x, y, *JUNCTION, title, kind="junction")
        x += JUNCTION[0] + LAST
        boxes, lines = [*callers.values(), target], list(self._calls(callers, target))
        for name, y in _spread(versions, height, VERSION, ROW):
            boxes.append(self._version(x, y, name))
            lines += self._to_version(target, boxes[-1], name)
        return Picture(x + VERSION[0] + MARGIN, height, tuple(boxes), tuple(lines), " ".join(self._told()))

    def _calls(self, callers: Mapping[str, Box], target: Box) -> Iterator[Line]:
        for caller, host in self.edges:
            behind = [self.shared.get(name, name) for name in _behind(self.routing, host)]
            called = [callers[name] for name in behind if name in callers]
            called = [target] if host in self.routing.hosts else called
            if caller in callers and called:
                counted = self.figures.get((caller, host, ""), NOTHING)
                yield _line(callers[caller], called[0], "call", counted)
        if not self.edges:
            yield _line(callers["callers"], target, "call", NOTHING)

    def _short(self, name: str, most: int = 11) -> str:
        if any(pod.gateway and pod.workload == name for pod in self.routing.scene.pods):
            return "gateway"
        return name if len(name) <= most else f"{name[: most - 6]}…{name[-5:]}"

    def _ways(self, name: str) -> dict[str, Figures]:
        """Return what leads to a version by the routes: ``call``, ``copy``, or both."""
        leading = {"call": not self.routing.is_dark(name), "copy": name in self.routing.copied}
        return {kind: self.figures.get(("", name, kind), NOTHING) for kind, leads in leading.items() if leads}

    def _version(self, x: float, y: float, name: str) -> Box:
        ways = self._ways(name)
        role, state = "hears nothing", " silent"
        if self.leaks.get(name):
            role, state = "LEAK: a caller saw it", " leak"
        elif name in self.routing.gone:
            role, state = "DOWN: no pod is ready", " down"
        elif "call" in ways:
            role, state = "answers callers", ""
        elif "copy" in ways:
            role, state = "in the dark", " dark"
        counted = self.figures.get(("", name, "call" if "call" in ways else "copy"), NOTHING)
        lines = tuple(filter(None, (role, ", ".join(counted.times), counted.status)))
        full = self.routing.versions[name].workload or name
        return Box(x, y, *VERSION, self._short(name, 16), lines, f"version{state}", full)

    def _to_version(self, target: Box, box: Box, name: str) -> Iterator[Line]:
        ways, leaks = self._ways(name), self.leaks.get(name)
        if leaks and "call" not in ways:
            line = _line(target, box, "call", self.figures.get(("", name, "call"), NOTHING))
            yield line._replace(kind="call leak", above=f"LEAK x {leaks:,}")
            return
        for kind, counted in ways.items():
            drop = (len(ways) - 1) * (26 if kind == "copy" else -26)
            line = _line(target, box, kind, counted, drop)
            lacks = kind == "copy" and name in self.missing
            yield line._replace(kind="copy missing", above="✗ missing") if lacks else line

    def _told(self) -> Iterator[str]:
        """Yield the picture in words."""
        callers = sorted({caller for caller, host in self.edges if host in self.routing.hosts})
        yield f"{' and '.join(callers) or 'Nobody yet'} calls {self.routing.target.service}."
        for name in self.routing.versions:
            if self.leaks.get(name):
                yield f"Leak: callers saw {name} {self.leaks[name]:,} times."
            if name in self.routing.gone:
                yield f"{name} is down."
            for kind, counted in self._ways(name).items():
                does = "answers callers" if kind == "call" else "gets copies, and its replies end there"
                words = ", ".join(filter(None, (counted.amount, *counted.times, counted.status)))
                yield f"{name} {does}: {words or 'no request yet'}."
            if self.routing.must_be_silent(name):
                yield f"No route leads to {name}."


def _columns(routing: Routing, edges: Collection[Edge]) -> Iterator[list[str]]:
    """Yield who calls the target, then who calls these, and so on."""
    front = {caller for caller, host in edges if host in routing.hosts}
    seen: set[str] = set()
    while front:
        yield sorted(front)
        seen |= front
        behind = {host for _, host in edges if not front.isdisjoint(_behind(routing, host))}
        front = {caller for caller, host in edges if host in behind} - seen


def _behind(routing: Routing, host: str) -> list[str]:
    return routing.workloads_behind(Destination(host))


def _spread(
    names: Collection[str], height: float, size: tuple[float, float], pitch: float
) -> Iterator[tuple[str, float]]:
    """Yield each box of a column with its upper edge: all of them around the middle of the height."""
    for place, name in enumerate(names):
        yield name, (height - size[1]) / 2 + (place - (len(names) - 1) / 2) * pitch


def _line(start: Box, end: Box, kind: str, figures: Figures, drop: float = 0) -> Line:
    x1, y1 = start.x + start.width, start.y + start.height / 2
    x2, y2 = end.x, end.y + end.height / 2 + drop
    half = (x1 + x2) / 2
    path = f"M{x1:g} {y1:g}C{half:g} {y1:g} {half:g} {y2:g} {x2:g} {y2:g}"
    kind += " failed" if figures.failed else ""
    at = half if y1 == y2 else half - 12
    return Line(path, kind, figures.rate, at, y2 + (26 if y2 > y1 else 0), figures.amount,
                figures.times[0] if figures.times and end.kind in ("caller", "junction") else "")  # fmt: skip
