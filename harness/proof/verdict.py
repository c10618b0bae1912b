"""The verdict: a ledger and what the routes promise in, checked claims out. Pure."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.proof.expectation import Expectation
from harness.proof.ledger import Arrivals, Ledger

FALSE_ALARM = 1e-6
"""How often a claim on a percentage may fail though the proxies draw as they should."""

ANSWERED = "every caller was answered"
"""The first claim of every verdict."""


@dataclass(frozen=True)
class Claim:
    """One checked statement with its figures."""

    statement: str
    holds: bool
    detail: str
    figures: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """What the proxies of one version measured; durations in milliseconds."""

    version: str
    requests: int
    status: dict[int, int]
    median: float | None
    p99: float | None


@dataclass(frozen=True)
class Verdict:
    """All claims of one run."""

    run: str
    requests: int
    routes: str
    claims: tuple[Claim, ...]
    sides: tuple[Side, ...]
    median: float | None
    """What callers waited, in milliseconds."""
    p99: float | None

    @property
    def passed(self) -> bool:
        """Whether every claim holds."""
        return all(claim.holds for claim in self.claims)

    def failed(self) -> list[str]:
        """Return the statements that do not hold."""
        return [claim.statement for claim in self.claims if not claim.holds]

    def to_dict(self) -> dict[str, Any]:
        """Return it in the types of JSON."""
        return {"passed": self.passed, **asdict(self)}

    def render(self, style: Callable[[str, bool], str] = lambda word, good: word) -> str:
        """Return it as a table; ``style`` may colour a word that is good news or bad."""
        width = max(len(claim.statement) for claim in self.claims)
        lines = [f"routes    {self.routes}", ""]
        for claim in self.claims:
            mark = style("ok  ", True) if claim.holds else style("FAIL", False)
            lines.append(f"  {mark}  {claim.statement:<{width}}  {claim.detail}")
        lines += ["", "  seen by     requests   median      p99   status"]
        callers = Side("callers", self.requests, {}, self.median, self.p99)
        for side in (callers, *self.sides):
            status = ", ".join(f"{code} x {count:,}" for code, count in sorted(side.status.items()))
            name = side.version if side is callers else f"{side.version} proxy"
            row = f"  {name:<10} {side.requests:>9,} {_ms(side.median):>8} {_ms(side.p99):>8}   {status}"
            lines.append(row.rstrip())
        held = sum(claim.holds for claim in self.claims)
        word = style("PASS", True) if self.passed else style("FAIL", False)
        lines += ["", f"{word}  {held} of {len(self.claims)} claims hold"]
        return "\n".join(lines)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def enough(numbers: Collection[int], expect: Callable[[int], Expectation]) -> tuple[str, int] | None:
    """Return what the requests are too few to judge, and how many it takes; None if they are enough.

    A share is judged only if a version that gets nothing, or everything, would fail the claim.
    """
    for promise, count in Counter(map(expect, numbers)).items():
        sampled = [
            percent / 100 for _, percentages in promise.copies for percent in percentages if percent < 100
        ]
        for share in [*sampled, *(share for _, share in promise.answers if share not in (None, 1.0))]:
            rare = min(share or 0, 1 - (share or 0))
            # Nothing at all must be less likely than a false alarm on one side.
            needed = math.ceil(math.log(FALSE_ALARM / 4) / math.log1p(-rare))
            if count < needed:
                return f"{100 * (share or 0):g} %", math.ceil(needed * len(numbers) / count)
    return None


def judge(ledger: Ledger, expect: Callable[[int], Expectation]) -> Verdict:
    """Return the verdict on a complete ledger; ``expect`` tells what must happen to each ticket."""
    streams: dict[Expectation, list[int]] = {}
    sent = ledger.numbers()
    for number in sent:
        streams.setdefault(expect(number), []).append(number)
    claims = [_answered(ledger, sent), _logged(ledger, sent)]
    for promise, numbers in streams.items():
        prefix = f"[{promise.describe()}] " if len(streams) > 1 else ""
        for claim in _claims(ledger, promise, numbers):
            claims.append(Claim(prefix + claim.statement, claim.holds, claim.detail, claim.figures))
    latencies = [1000 * ledger.latency[n] for n in sent if ledger.status[n]]
    return Verdict(
        run=ledger.run,
        requests=len(sent),
        routes=" | ".join(promise.describe() for promise in streams),
        claims=tuple(claims),
        sides=tuple(_side(version, found) for version, found in ledger.arrivals.items()),
        median=quantile(latencies, 0.5),
        p99=quantile(latencies, 0.99),
    )


def complete(ledger: Ledger, expect: Callable[[int], Expectation]) -> bool:
    """Say whether no line of a proxy's log that must still come is missing."""
    for number in ledger.numbers():
        if ledger.answered(number):
            found = ledger.arrivals.get(ledger.version(number))
            if found is None or not found.counts[number]:
                return False
            for version, percentages in expect(number).copies:
                copies = ledger.arrivals[version].counts[number] - (version == ledger.version(number))
                if copies < sum(percent == 100 for percent in percentages):
                    return False
    return True


def _answered(ledger: Ledger, numbers: list[int]) -> Claim:
    answered = sum(map(ledger.answered, numbers))
    detail = f"{answered:,} of {len(numbers):,}"
    others = Counter(ledger.status[n] for n in numbers if not ledger.answered(n))
    if others:
        detail += ": " + ", ".join(f"{s or 'no answer'} x {n:,}" for s, n in sorted(others.items()))
    figures = {"requests": len(numbers), "answered": answered}
    return Claim(ANSWERED, answered == len(numbers) > 0, detail, figures)


def _logged(ledger: Ledger, numbers: list[int]) -> Claim:
    """Return the claim without which the logs prove nothing: they hold what callers saw, and no more."""
    answered = [n for n in numbers if ledger.answered(n) and ledger.version(n) in ledger.arrivals]
    found = sum(bool(ledger.arrivals[ledger.version(n)].counts[n]) for n in answered)
    strangers = ledger.strangers()
    detail = f"{found:,} of {len(answered):,}" + (f"; {strangers:,} never sent" if strangers else "")
    holds = found == len(answered) and not strangers
    figures = {"answered": len(answered), "logged": found, "strangers": strangers}
    return Claim("the proxies logged every answer", holds, detail, figures)


def _claims(ledger: Ledger, promise: Expectation, numbers: list[int]) -> list[Claim]:
    """Return the claims on the tickets ``numbers``, to all of which the same must happen."""
    claims = [_versions_seen(ledger, promise, numbers)]
    claims += _shares(ledger, promise, numbers)
    answering = [version for version, _ in promise.answers]
    copies = dict(promise.copies)
    for version in ledger.arrivals:
        if version in copies:
            claims.append(_mirrored(ledger, promise, numbers, version, copies[version]))
            claims += _faithful(ledger, promise, numbers, version)
        elif version not in answering:
            claims.append(_silent(ledger, numbers, version))
    if len(answering) > 1 and not copies:
        claims.append(_unshared(ledger, answering, numbers))
    return claims


def _versions_seen(ledger: Ledger, promise: Expectation, numbers: list[int]) -> Claim:
    allowed = [version for version, _ in promise.answers]
    seen = Counter(ledger.version(n) for n in numbers if ledger.answered(n))
    leaks = sum(count for version, count in seen.items() if version not in allowed)
    detail = (
        ", ".join(f"{version} x {count:,}" for version, count in sorted(seen.items())) or "no answer seen"
    )
    names = " and ".join(allowed) or "nobody"
    return Claim(
        f"callers saw only {names}", not leaks, f"{detail}; {leaks:,} leaked", {"leaks": leaks, **seen}
    )


def _shares(ledger: Ledger, promise: Expectation, numbers: list[int]) -> list[Claim]:
    """Return the claim that callers saw the versions as weighted, where weights are set."""
    weighted = [(version, share) for version, share in promise.answers if share is not None]
    if len(weighted) < 2:
        return []
    answered = [n for n in numbers if ledger.answered(n)]
    seen = Counter(map(ledger.version, answered))
    details, holds = [], True
    for version, share in weighted:
        low, high = binomial_interval(len(answered), share, FALSE_ALARM / len(weighted))
        holds &= low <= seen[version] <= high
        details.append(f"{version} {seen[version]:,} (between {low:,} and {high:,})")
    statement = "callers saw " + ", ".join(f"{v} {100 * s:g} %" for v, s in weighted)
    return [Claim(statement, holds, "; ".join(details), {v: seen[v] for v, _ in weighted})]


def _routed(ledger: Ledger, promise: Expectation, numbers: list[int]) -> list[int]:
    """Return the tickets that a version which may answer got: those of which a copy can exist."""
    columns = [ledger.arrivals[v].counts for v, _ in promise.answers if v in ledger.arrivals]
    return [n for n in numbers if ledger.answered(n) or any(column[n] for column in columns)]


def _copies(ledger: Ledger, version: str, number: int) -> int:
    """Return how often a ticket arrived at ``version`` beside being answered by it."""
    own = ledger.answered(number) and ledger.version(number) == version
    return max(ledger.arrivals[version].counts[number] - own, 0)


def _mirrored(
    ledger: Ledger, promise: Expectation, numbers: list[int], version: str, percentages: tuple[float, ...]
) -> Claim:
    """Return the claim that a version received its copies, each as often as the mirrors say."""
    always = sum(percent == 100 for percent in percentages)
    sampled = [percent / 100 for percent in percentages if percent < 100]
    routed = _routed(ledger, promise, numbers)
    copies = {n: _copies(ledger, version, n) for n in routed}
    missing = sum(max(always - count, 0) for count in copies.values())
    duplicates = sum(max(count - len(percentages), 0) for count in copies.values())
    phantoms = sum(bool(ledger.arrivals[version].counts[n]) for n in set(numbers).difference(routed))
    received = sum(map(bool, copies.values()))
    figures = {
        "received": received, "missing": missing, "duplicates": duplicates, "phantoms": phantoms,
        "undelivered": sum(ledger.arrivals[version].undelivered[n] for n in numbers),
    }  # fmt: skip
    times = {1: "once", 2: "twice"}.get(always, f"{always} times")
    counted = f"{missing:,} missing, {duplicates:,} duplicate, {phantoms:,} phantom"
    if not sampled:
        detail = f"{received:,} of {len(routed):,}: {counted}"
        holds = not (missing or duplicates or phantoms) and received == len(routed) > 0
        return Claim(f"{version} received every request exactly {times}", holds, detail, figures)
    drawn = sum(count - always for count in copies.values())
    intervals = [binomial_interval(len(routed), p, FALSE_ALARM / len(sampled)) for p in sampled]
    low, high = sum(i[0] for i in intervals), sum(i[1] for i in intervals)
    holds = not (missing or duplicates or phantoms) and low <= drawn <= high and len(routed) > 0
    shares = " and ".join(f"{100 * p:g} %" for p in sampled)
    beside = f"every request {times} and " if always else ""
    statement = f"{version} received {beside}{shares} of requests"
    detail = f"{drawn:,} of {len(routed):,} (between {low:,} and {high:,}): {counted}"
    return Claim(statement, holds, detail, figures | {"drawn": drawn, "low": low, "high": high})


def _silent(ledger: Ledger, numbers: list[int], version: str) -> Claim:
    found = ledger.arrivals[version]
    heard = sum(found.counts[n] + found.undelivered[n] for n in numbers)
    return Claim(
        f"{version} received nothing", not heard, f"{heard:,} of {len(numbers):,}", {"received": heard}
    )


def _unshared(ledger: Ledger, answering: list[str], numbers: list[int]) -> Claim:
    """Return the claim, without a mirror, that one version alone received each answered request."""
    shared = 0
    for n in numbers:
        if ledger.answered(n):
            others = (v for v in answering if v != ledger.version(n) and v in ledger.arrivals)
            shared += any(ledger.arrivals[v].counts[n] for v in others)
    statement = "each request reached only the version that answered it"
    return Claim(statement, not shared, f"{shared:,} reached another", {"shared": shared})


def _faithful(ledger: Ledger, promise: Expectation, numbers: list[int], version: str) -> list[Claim]:
    """Return the claim that copies equal their originals, if there are any to compare."""
    copy = ledger.arrivals[version]
    originals = [ledger.arrivals[v] for v, _ in promise.answers if v != version and v in ledger.arrivals]
    compared = faithful = 0
    for n in numbers:
        if copy.counts[n]:
            shapes = [original.shapes[n] for original in originals if original.counts[n]]
            compared += bool(shapes)
            faithful += copy.shapes[n] in shapes
    if not compared:
        return []
    statement = f"each copy at {version} is faithful (method, path, size)"
    figures = {"compared": compared, "faithful": faithful}
    return [Claim(statement, faithful == compared, f"{faithful:,} of {compared:,}", figures)]


def _side(version: str, found: Arrivals) -> Side:
    durations = list(found.durations)
    return Side(
        version, len(durations), dict(found.status), quantile(durations, 0.5), quantile(durations, 0.99)
    )


def quantile(values: list[float] | list[int], q: float) -> float | None:
    """Return the ``q``-th quantile (0.99: the 99th percentile) of values; None if there are none."""
    if len(values) < 2:
        return float(values[0]) if values else None
    return statistics.quantiles(values, n=100, method="inclusive")[round(q * 100) - 1]


def binomial_interval(n: int, p: float, alpha: float) -> tuple[int, int]:
    """Return the smallest and largest count that ``n`` draws of probability ``p`` may give.

    A count below or above has a probability of at most ``alpha`` / 2 each.
    """
    if p <= 0 or p >= 1 or n == 0:
        return round(n * p), round(n * p)
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        + k * math.log(p) + (n - k) * math.log1p(-p)
        for k in range(n + 1)
    ]  # fmt: skip

    def first(ks: range) -> int:
        tail = 0.0
        for k in ks:
            tail += math.exp(logs[k])
            if tail > alpha / 2:
                return k
        return ks[-1]

    return first(range(n + 1)), first(range(n, -1, -1))
