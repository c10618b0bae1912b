"""The time line: what passed in the last minutes, as points in percent of a chart's sides. Pure."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from harness import Json
from harness.live.meter import SECONDS, Meter
from harness.proof.figures import Times

Figure = Callable[[Times], float | None]

CHARTS: tuple[tuple[str, str, dict[str, Figure]], ...] = (
    ("requests a second", "/s", {"": lambda times: times.count}),
    (
        "p50 and p99",
        " ms",
        {"": lambda times: times.quantile(0.5), "p99": lambda times: times.quantile(0.99)},
    ),
)
"""Titles, units, and the figures that are drawn."""


def chart(meter: Meter, copied: Iterable[str], marks: Iterable[tuple[float, str]]) -> Json:
    """Return the time line of callers, and of each version that gets copies.

    :param marks: how many seconds ago routes were applied, and what they are in words.
    """
    sides = {"callers": ("", "", "callers"), **{name: ("", name, "in") for name in copied}}
    series = {name: meter.series(way) for name, way in sides.items()}
    charts = []
    for title, unit, figures in CHARTS:
        drawn = [(name, what, [figure(times) for times in passed])
                 for name, passed in series.items() for what, figure in figures.items()]  # fmt: skip
        top = _round_up(max(value or 0 for *_, values in drawn for value in values))
        lines = [(name, what, list(_points(values, top))) for name, what, values in drawn]
        charts.append({"title": title, "top": f"{top:,}{unit}", "lines": lines})
    return {"charts": charts, "marks": [(_across(ago), words) for ago, words in marks if ago <= SECONDS]}


def _across(ago: float) -> float:
    return 100 - 100 * ago / SECONDS


def _points(values: Sequence[float | None], top: float) -> Iterator[str]:
    """Yield the lines of one figure; where there was none, a line is interrupted."""
    points = [(_across(SECONDS - place), value) for place, value in enumerate(values)]
    for is_there, part in itertools.groupby(points, key=lambda point: point[1] is not None):
        if is_there:
            yield " ".join(f"{x:.1f},{100 - 100 * (value or 0) / top:.1f}" for x, value in part)


def _round_up(value: float) -> int:
    """Return a round number that is not below a value."""
    top = 10
    while top < value:
        top *= 10
    return next(part for part in (top // 5, top // 2, top) if part >= max(value, 10))
