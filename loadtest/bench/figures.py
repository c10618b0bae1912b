"""Figures: what is compared is measured by turns, and of all rounds the median is given.

Only ratios mean something on a machine that does other things too.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name")
Value = TypeVar("Value")

MIB = 2**20


@dataclass(frozen=True)
class Effort:
    """How long to measure, and how many requests to send, to verify and to replay."""

    rounds: int
    seconds: float
    sent: int
    verified: int
    replayed: int


@dataclass(frozen=True)
class Figure:
    """One result: the values of all rounds, and what is aimed at."""

    name: str
    unit: str
    values: list[float]
    aim: str = ""
    note: str = ""

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        if not self.values:
            return self.name, "-", "", self.aim, self.note
        median = f"{statistics.median(self.values):.4g} {self.unit}".strip()
        spread = f"{min(self.values):.4g} to {max(self.values):.4g}" if len(self.values) > 1 else ""
        return self.name, median, spread, self.aim, self.note


def by_turns(rounds: int, measures: Mapping[Name, Callable[[], Value]]) -> dict[Name, list[Value]]:
    """Measure each thing once a round; nothing is always the first."""
    values: dict[Name, list[Value]] = {name: [] for name in measures}
    turns = deque(measures.items())
    for _ in range(rounds):
        for name, measure in turns:
            values[name].append(measure())
        turns.rotate()
    return values


def ratios(dividends: list[float], divisors: list[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(dividends, divisors, strict=True)]


def quantile(values: list[float], q: float) -> float:
    """Return the ``q``-th quantile (0.99: the 99th percentile)."""
    return sorted(values)[max(math.ceil(q * len(values)), 1) - 1]


def table(figures: Iterable[Figure]) -> str:
    """Return a table of the figures."""
    rows = [("what", "median", "of rounds", "aim", ""), *(figure.row() for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
