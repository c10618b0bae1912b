"""The time line: what passed in the last minutes, as points in percent of a chart's sides. Pure."""

import itertools
from collections.abc import Iterable, Iterator

from harness import Json
from harness.live.meter import SECONDS, Meter, Row


def chart(meter: Meter, copied: Iterable[str], marks: Iterable[tuple[float, str]]) -> Json:
    """Return the time line of callers, and of each version that gets copies.

    :param marks: how many seconds ago routes were applied, and what they are in words.
    """
    sides = {"callers": ("", "", "callers"), **{name: ("", name, "in") for name in copied}}
    series = {name: list(meter.series(way)) for name, way in sides.items()}
    charts = []
    for title, unit, columns in (("requests a second", "/s", (1,)), ("p50 and p99", " ms", (2, 3))):
        values = [row[c] or 0 for rows in series.values() for row in rows for c in columns]
        top = _round_up(max(values))
        lines = [
            (name, "p99" if column == 3 else "", list(_points(rows, column, top)))
            for name, rows in series.items()
            for column in columns
        ]
        charts.append({"title": title, "top": f"{top:,}{unit}", "lines": lines})
    return {"charts": charts, "marks": [(_across(ago), words) for ago, words in marks if ago <= SECONDS]}


def _across(ago: float) -> float:
    return 100 - 100 * ago / SECONDS


def _points(rows: list[Row], column: int, top: float) -> Iterator[str]:
    """Yield the lines of one figure; where there was none, a line is interrupted."""
    for is_there, part in itertools.groupby(rows, key=lambda row: row[column] is not None):
        if is_there:
            yield " ".join(
                f"{_across(row[0]):.1f},{100 - 100 * (row[column] or 0) / top:.1f}" for row in part
            )


def _round_up(value: float) -> int:
    """Return a round number that is not below a value."""
    top = 10
    while top < value:
        top *= 10
    return next(part for part in (top // 5, top // 2, top) if part >= max(value, 10))
