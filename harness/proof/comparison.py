"""What is free to compare: the status, size and time of a dark version's answers beside the callers'."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.proof.evidence import Evidence
from harness.proof.figures import Times
from harness.proof.rule_claims import status_pairs

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Comparison:
    """How a dark version answers beside those that answer callers."""

    version: str
    against: str
    status: Mapping[str, int]
    """Their status and its own, as in ``200 x 503``, and how many requests had that."""
    same_size: int
    """How many of its answers had the size of the caller's."""
    other_size: int
    smaller: int
    """By how many bytes at most it was smaller; of larger ones likewise."""
    larger: int
    times: Mapping[str, tuple[float | None, float | None]]
    """Quantile, such as ``p99``, to milliseconds: theirs and its own."""


def comparisons(evidence: Evidence) -> Iterator[Comparison]:
    """Yield a comparison for each dark version that got copies."""
    routing = evidence.routing
    for version in filter(routing.is_dark, routing.copied):
        rules = [rule.expectation for rule in routing.rules if version in rule.expectation.copied]
        allowed = list(dict.fromkeys(name for expectation in rules for name in expectation.allowed))
        pairs: Counter[tuple[int, int]] = Counter()
        for shape, tally in evidence.shapes.items():
            for pair in status_pairs(shape, version):
                pairs[pair] += tally.count
        sizes = evidence.sizes[version]
        ours = evidence.times[version]
        theirs = evidence.times[allowed[0]] if len(allowed) == 1 else Times()
        if pairs:
            yield Comparison(
                version, " and ".join(allowed), {f"{a} x {b}": n for (a, b), n in pairs.most_common()},
                sizes.same, sizes.other, sizes.smaller, sizes.larger,
                {name: (theirs.quantile(q), ours.quantile(q)) for name, q in QUANTILES.items()},
            )  # fmt: skip
