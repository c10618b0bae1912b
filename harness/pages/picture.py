"""The picture: who calls the target, which version answers, and where copies end. Pure; SVG is made of it."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from harness.proof.evidence import Evidence
from harness.proof.expectation import Destination
from harness.proof.story import UNKNOWN
from harness.proof.target import Routing
from harness.proof.verdict import Verdict

CALLER, JUNCTION, VERSION = (184, 64), (44, 44), (320, 124)
"""Widths and heights of the boxes, in the picture's own units."""

GAP, LAST, ROW, MARGIN = 112, 150, 156, 14
"""Between columns; before the versions; from one version to the next; and around it all."""

MOST = 5
"""How many callers are drawn in one column."""

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


def draw(verdict: Verdict, edges: Collection[tuple[str, str]], figures: Mapping[Way, Figures]) -> Picture:
    """Return the picture of a target; ``edges`` say which workload was seen to call which host."""
    assert verdict.evidence
    routing, leaks = verdict.evidence.routing, leaked(verdict.evidence)
    missing = {claim.version for claim in verdict.claims if claim.figures.get("missing")}
    columns = list(reversed(list(_columns(routing, edges)))) or [[]]
    others: dict[str, str] = {}
    """The callers that share a box, and what that is called."""
    for column in columns:
        if len(column) > MOST:
            more = f"and {len(column) - MOST + 1} more"
            edges = [*edges, (more, next(host for caller, host in edges if caller == column[-1]))]
            others |= dict.fromkeys(column[MOST - 1 :], more)
            column[MOST - 1 :] = [more]
    versions = list(routing.versions)
    height = max(len(versions) * ROW, *(len(c) * (CALLER[1] + 24) for c in columns)) + 2 * MARGIN
    middle, x = height / 2, float(MARGIN)
    boxes: list[Box] = []
    lines: list[Line] = []
    places: dict[str, Box] = {}
    for column in columns:
        for i, name in enumerate(column or ["callers"]):
            y = middle + (i - (max(len(column), 1) - 1) / 2) * (CALLER[1] + 24) - CALLER[1] / 2
            box = Box(x, y, *CALLER, _short(name, routing), full=name)
            if not column:
                box = box._replace(lines=("none seen yet",), kind="caller nobody")
            boxes.append(box)
            places[name] = box
        x += CALLER[0] + GAP
    places |= {caller: places[more] for caller, more in others.items()}
    junction = Box(x, middle - JUNCTION[1] / 2, *JUNCTION, routing.target.service, kind="junction")
    for caller, host in edges:
        callee = junction if host in routing.hosts else _place_of(routing, host, places)
        if caller in places and caller not in others and callee:
            lines.append(_line(places[caller], callee, "call", figures.get((caller, host, ""), NOTHING)))
    if not edges:
        lines.append(_line(places["callers"], junction, "call", NOTHING))
    boxes.append(junction)
    x += JUNCTION[0] + LAST
    for i, name in enumerate(versions):
        y = middle + (i - (len(versions) - 1) / 2) * ROW - VERSION[1] / 2
        boxes.append(_version(x, y, name, routing, figures, name in leaks))
        lines += _to_version(junction, boxes[-1], name, routing, figures, leaks, name in missing)
    width = x + VERSION[0] + MARGIN
    return Picture(width, height, tuple(boxes), tuple(lines), " ".join(_told(routing, edges, figures, leaks)))


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


def _columns(routing: Routing, edges: Collection[tuple[str, str]]) -> Iterator[list[str]]:
    """Yield who calls the target, then who calls these, and so on."""
    front = {caller for caller, host in edges if host in routing.hosts}
    seen: set[str] = set()
    while front:
        yield sorted(front)
        seen |= front
        front = {
            caller
            for caller, host in edges
            if caller not in seen and not front.isdisjoint(routing.workloads_behind(Destination(host)))
        }


def _place_of(routing: Routing, host: str, places: Mapping[str, Box]) -> Box | None:
    return next((places[w] for w in routing.workloads_behind(Destination(host)) if w in places), None)


def _short(name: str, routing: Routing, most: int = 11) -> str:
    if any(pod.gateway and pod.workload == name for pod in routing.scene.pods):
        return "gateway"
    return name if len(name) <= most else f"{name[: most - 6]}…{name[-5:]}"


def _version(
    x: float, y: float, name: str, routing: Routing, figures: Mapping[Way, Figures], leaks: bool
) -> Box:
    """Return the box of a version: its part in the launch, and its figures."""
    answers = not routing.is_dark(name)
    role, state = "hears nothing", " silent"
    if leaks:
        role, state = "LEAK: a caller saw it", " leak"
    elif name in routing.gone:
        role, state = "DOWN: no pod is ready", " down"
    elif answers:
        role, state = "answers callers", ""
    elif name in routing.copied:
        role, state = "in the dark", " dark"
    counted = figures.get(("", name, "call" if answers else "copy"), NOTHING)
    lines = tuple(filter(None, (role, ", ".join(counted.times), counted.status)))
    full = routing.versions[name].workload or name
    return Box(x, y, *VERSION, _short(name, routing, 16), lines, f"version{state}", full)


def _to_version(
    junction: Box, box: Box, name: str, routing: Routing, figures: Mapping[Way, Figures],
    leaks: Mapping[str, int], missing: bool,
) -> Iterator[Line]:  # fmt: skip
    """Yield what leads to a version: calls, copies, and what leaks."""
    answers, copied = not routing.is_dark(name), name in routing.copied
    drop = 26 if answers and copied else 0
    if answers or leaks.get(name):
        counted = figures.get(("", name, "call"), NOTHING)
        line = _line(junction, box, "call", counted, -drop)
        if leaks.get(name) and not answers:
            line = line._replace(kind="call leak", above=f"LEAK x {leaks[name]:,}")
        yield line
    if copied and not (leaks.get(name) and not answers):
        line = _line(junction, box, "copy", figures.get(("", name, "copy"), NOTHING), drop)
        yield line._replace(kind="copy missing", above="✗ missing") if missing else line


def _line(start: Box, end: Box, kind: str, figures: Figures, drop: float = 0) -> Line:
    x1, y1 = start.x + start.width, start.y + start.height / 2
    x2, y2 = end.x, end.y + end.height / 2 + drop
    half = (x1 + x2) / 2
    path = f"M{x1:g} {y1:g}C{half:g} {y1:g} {half:g} {y2:g} {x2:g} {y2:g}"
    kind += " failed" if figures.failed else ""
    at = half if y1 == y2 else half - 12
    return Line(path, kind, figures.rate, at, y2 + (26 if y2 > y1 else 0), figures.amount,
                figures.times[0] if figures.times and end.kind in ("caller", "junction") else "")  # fmt: skip


def _told(
    routing: Routing, edges: Collection[tuple[str, str]], figures: Mapping[Way, Figures],
    leaks: Mapping[str, int],
) -> Iterator[str]:  # fmt: skip
    """Yield the picture in words."""
    callers = sorted({caller for caller, host in edges if host in routing.hosts})
    yield f"{' and '.join(callers[:MOST]) or 'Nobody yet'} calls {routing.target.service}."
    for name in routing.versions:
        if leaks.get(name):
            yield f"Leak: callers saw {name} {leaks[name]:,} times."
        if name in routing.gone:
            yield f"{name} is down."
        for kind, does in (("call", "answers callers"), ("copy", "gets copies, and its replies end there")):
            there = name in routing.copied if kind == "copy" else not routing.is_dark(name)
            counted = figures.get(("", name, kind), NOTHING)
            words = ", ".join(filter(None, (counted.amount, *counted.times, counted.status)))
            if there:
                yield f"{name} {does}: {words or 'no request yet'}."
        if routing.must_be_silent(name):
            yield f"No route leads to {name}."
