"""The claims on the stories that took one rule: each is one checked statement, and one function."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from harness.proof.claims import is_phantom, silence_of
from harness.proof.evidence import Claim, Stream, Sum
from harness.proof.figures import FALSE_ALARM, Tally, binomial_interval, most_by_chance
from harness.proof.story import BESIDE, Shape


def answered_by(stream: Stream) -> Iterator[Claim]:
    """Claim that only the versions that may answer callers did."""
    allowed = stream.rule.expectation.allowed
    found, seen = Sum("leaks"), Counter[str]()
    for shape, tally in stream.shapes.items():
        found.add(tally, leaks=sum(map(stream.evidence.routing.is_leak, shape.own)))
        seen.update({c.version: tally.count for c in shape.own if c.version and c.answered})
    words = [", ".join(f"{v} x {n:,}" for v, n in sorted(seen.items())) or "no answer seen"]
    words.append(f"{found['leaks']:,} leaked")
    sightings = stream.evidence.sightings
    said = sightings.said.get(stream.place, Counter()) if sightings else Counter[str]()
    wrong = {version: count for version, count in said.items() if version not in allowed}
    if wrong:
        words.append(f"{sum(wrong.values()):,} replies name {', '.join(sorted(wrong)[:3])}")
    found.figures.update(seen, leaks=sum(wrong.values()))
    statement = f"callers saw only {' and '.join(allowed) or 'nobody'}"
    yield found.claim("answered-by", statement, "; ".join(words))


def shares(stream: Stream) -> Iterator[Claim]:
    """Claim that callers saw the versions as weighted, where weights are set."""
    weighted = [(v, share) for v, share in stream.rule.expectation.answers if share is not None]
    if len(weighted) < 2:
        return
    found = Sum(**{version: 0 for version, _ in weighted})
    for shape, tally in stream.shapes.items():
        for version in [call.version for call in shape.own if call.version]:
            found.figures[version] += tally.count
    total = sum(found.figures.values())
    details, outside = [], False
    for version, share in weighted:
        low, high = binomial_interval(total, share, FALSE_ALARM / len(weighted))
        outside |= not low <= found[version] <= high
        details.append(f"{version} {found[version]:,} (between {low:,} and {high:,})")
    few = _too_few(total, [share for _, share in weighted])
    statement = "callers saw " + ", ".join(f"{v} {100 * s:g} %" for v, s in weighted)
    detail = "; ".join(details) if outside else few or "; ".join(details)
    yield found.claim("shares", statement, detail, fails=outside, unproven=bool(few))


def _too_few(total: int, shares: list[float]) -> str:
    """Return that so many requests are too few to judge shares (0 to 1): none at all must be no luck."""
    rare = [min(share, 1 - share) for share in shares]
    needed = max(math.ceil(math.log(FALSE_ALARM / 4) / math.log1p(-r)) if r > 0 else 0 for r in rare)
    if total >= needed:
        return ""
    return f"{total:,} requests are too few to judge: {needed:,} or more are needed"


# --- copies -----------------------------------------------------------------------------------------------


def _copies(stream: Stream, version: str, shape: Shape, percentages: tuple[float, ...]) -> dict[str, int]:
    """Return how the copies of a shape's stories at a version stand, in figures."""
    always = sum(percent == 100 for percent in percentages)
    got = shape.at(version)
    extra = max(len(got) - sum(call.version == version for call in shape.calls), 0)
    requests = sum(call.routed for call in shape.own)
    most = len(percentages) * sum(call.copied for call in shape.own)
    surplus = max(extra - most, 0)
    if version in stream.rule.expectation.allowed:
        tried_again = sum(bool(arrival.trouble) or arrival.status >= 400 for arrival in got)
        surplus = max(surplus - tried_again, 0)
    return {
        "received": min(extra, most), "requests": requests, "missing": max(always * requests - extra, 0),
        "duplicates": surplus if most else 0, "phantoms": 0 if most else surplus,
        "drawn": max(min(extra, most) - always * requests, 0),
    }  # fmt: skip


def received(stream: Stream) -> Iterator[Claim]:
    """Claim that each version got its copies, each as often as the mirrors say: no more, no less."""
    for version, percentages in stream.rule.expectation.copies:
        found = Sum(*_WRONG)
        for shape, tally in stream.shapes.items():
            found.add(tally, **_copies(stream, version, shape, percentages))
        for shape, tally in _without_call(stream, version):
            found.add(tally, phantoms=len(shape.at(version)))
        wrong = ", ".join(f"{found[name]:,} {word}" for name, word in _WRONG.items())
        if found["missing"] and (count := stream.evidence.under_way.get(version)):
            wrong += f"; {version} has {count:,} under way, and does not answer"
        claim = _of_copies(found, version, percentages, wrong)
        # Of what a run that ended early still waits for, nobody knows whether it comes.
        yield replace(claim, state="unproven") if claim.holds and stream.evidence.overdue else claim


_WRONG = {"missing": "missing", "duplicates": "duplicate", "phantoms": "phantom"}
"""Figures that must be 0, and what they are called."""


def _of_copies(found: Sum, version: str, percentages: tuple[float, ...], wrong: str) -> Claim:
    """Return the claim that a version got every copy, or, of sampled mirrors, as many as chance allows."""
    requests = found["requests"]
    sampled = [percent / 100 for percent in percentages if percent < 100]
    always = len(percentages) - len(sampled)
    if not sampled:
        del found.figures["drawn"]
        times = {1: "once", 2: "twice"}.get(always, f"{always} times")
        statement = f"{version} received every request exactly {times}"
        detail = f"{found['received'] // always:,} of {requests:,}: {wrong}"
        return found.claim("exactly-once", statement, detail, unproven=not requests, version=version)
    intervals = [binomial_interval(requests, p, FALSE_ALARM / len(sampled)) for p in sampled]
    low, high = sum(i[0] for i in intervals), sum(i[1] for i in intervals)
    found.figures.update(low=low, high=high)
    beside = f"every request {always} times and " if always else ""
    statement = f"{version} received {beside}{' and '.join(f'{100 * p:g} %' for p in sampled)} of requests"
    detail = f"{found['drawn']:,} of {requests:,} (between {low:,} and {high:,}): {wrong}"
    few, fails = _too_few(requests, sampled), found.is_wrong or not low <= found["drawn"] <= high
    return found.claim("sampled", statement, detail if fails else few or detail, fails=fails,
                       unproven=bool(few), version=version)  # fmt: skip


def _without_call(stream: Stream, version: str) -> Iterator[tuple[Shape, Tally]]:
    """Yield what a version got for no request to the target; the first rule that mirrors there is charged."""
    rules = stream.evidence.routing.rules
    if stream.place != next(i for i, r in enumerate(rules) if version in r.expectation.copied):
        return
    for shape, tally in stream.evidence.shapes.items():
        beside = shape.calls and all(call.rule == BESIDE for call in shape.calls)
        alone = not shape.calls and is_phantom(stream.evidence, shape)
        if (beside or alone) and shape.at(version):
            yield shape, tally


def unheard(stream: Stream) -> Iterator[Claim]:
    """Claim of each version that gets copies by another rule that it got none by this one."""
    mine = [*stream.rule.expectation.allowed, *stream.rule.expectation.copied]
    for version in stream.evidence.routing.versions:
        if version not in mine and not stream.evidence.routing.must_be_silent(version):
            yield silence_of(stream.evidence, version, stream.shapes)


def unshared(stream: Stream) -> Iterator[Claim]:
    """Claim that one version alone got each request, once; of a single version, only made where it fails."""
    allowed = stream.rule.expectation.allowed
    if stream.rule.expectation.copied:
        return
    found = Sum("shared")
    for shape, tally in stream.shapes.items():
        shared = sum(_copies(stream, version, shape, ())["phantoms"] for version in allowed)
        found.add(tally, shared=shared)
    if found["shared"] or len(allowed) > 1:
        statement = "each request reached only the version that answered it"
        detail = f"{found['shared']:,} reached another, or the same once more"
        yield found.claim("unshared", statement, detail)


# --- how v2 answered --------------------------------------------------------------------------------------


def delivered(stream: Stream) -> Iterator[Claim]:
    """Claim that the application of each dark version answered every copy that arrived at its proxy."""
    for version in stream.rule.expectation.dark:
        found, troubles = Sum("refused", "unanswered", arrived=0, answered=0), Counter[str]()
        for shape, tally in stream.shapes.items():
            got = [arrival.trouble for arrival in shape.at(version)]
            kinds = Counter(trouble.partition(":")[0] or "answered" for trouble in got)
            found.add(tally, arrived=len(got), **kinds)
            for trouble in filter(None, got):
                troubles[trouble] += tally.count
        words = [f"{found['answered']:,} of {found['arrived']:,}"]
        words += [f"{trouble} x {count:,}" for trouble, count in troubles.most_common(3)]
        if found["arrived"]:
            statement = f"{version} answered every copy"
            yield found.claim("delivered", statement, "; ".join(words), version=version)


def status_pairs(shape: Shape, version: str) -> list[tuple[int, int]]:
    """Return what a version answered to the copies of a request, each behind what the caller got."""
    theirs = sorted(call.status for call in shape.own if call.routed)
    ours = sorted(arrival.status for arrival in shape.at(version) if not arrival.trouble)
    return list(zip(theirs, ours, strict=False))


def same_status(stream: Stream) -> Iterator[Claim]:
    """Claim that each dark version answered with the status that the caller got."""
    for version in stream.rule.expectation.dark:
        found, different = Sum("different", compared=0), Counter[tuple[int, int]]()
        for shape, tally in stream.shapes.items():
            pairs = status_pairs(shape, version)
            unlike = [(a, b) for a, b in pairs if a != b]
            found.add(tally, compared=len(pairs), different=len(unlike))
            for pair in unlike:
                different[pair] += tally.count
        words = [f"{found['compared'] - found['different']:,} of {found['compared']:,}"]
        words += [f"{a} became {b} x {count:,}" for (a, b), count in different.most_common(3)]
        fails = found["different"] > stream.evidence.bounds.max_differences * found["compared"]
        if found["compared"]:
            yield found.claim("same-status", f"{version} answered with the caller's status",
                              "; ".join(words), fails=fails, version=version)  # fmt: skip


def sizes(stream: Stream) -> Iterator[Claim]:
    """Claim that copies equal their originals, and, where it is asked for, that answers equal the caller's.

    Method and path of a copy do, or it would not have been joined.
    """
    faithful = "faithful", "each copy at {} is faithful (method, path, size)", lambda shape: shape.resized
    size = "same-size", "each answer of {} has the size of the caller's", lambda shape: shape.reply_resized
    asked = [faithful, size] if stream.evidence.bounds.same_size else [faithful]
    for (id, statement, unlike), version in itertools.product(asked, stream.rule.expectation.dark):
        found = Sum(compared=0, equal=0)
        for shape, tally in stream.shapes.items():
            there = {a.version for a in shape.arrivals if not a.trouble}
            if version in there and there & {call.version for call in shape.calls}:
                differs = version in unlike(shape)
                found.add(tally, differs, compared=1, equal=not differs)
        if found["compared"]:
            detail = f"{found['equal']:,} of {found['compared']:,}"
            fails = found["equal"] < found["compared"]
            yield found.claim(id, statement.format(version), detail, fails=fails, version=version)


def p99_ratio(stream: Stream) -> Iterator[Claim]:
    """Claim, where it is asked for, that a version's slowest answers take not much longer than v1's.

    One answer in a hundred may; it fails where so many more do that chance does not explain it.
    """
    bound, times, baseline = (
        stream.evidence.bounds.max_p99_ratio, stream.evidence.times, stream.evidence.bounds.baseline
    )  # fmt: skip
    if bound is None:
        return
    allowed = stream.rule.expectation.allowed
    primary = [baseline.version] if baseline else allowed
    theirs = max((times[v].quantile(0.99) or 0 for v in primary), default=0) or (baseline and baseline.p99)
    if not theirs:
        return
    others = [version for version in allowed if version not in primary]
    for version in [*stream.rule.expectation.dark, *others]:
        count, limit = times[version].count, bound * max(theirs, 1)
        slower = times[version].slower_than(limit)
        most = most_by_chance(count, 0.01, FALSE_ALARM)
        statement = f"{version}'s 99th percentile is at most {bound:g} times the callers' version's"
        ours = times[version].quantile(0.99)
        detail = f"{ours or 0:g} ms / {theirs:g} ms; {slower:,} of {count:,} took more than {limit:g} ms"
        if count:
            yield Sum().claim("p99-ratio", statement, detail, fails=slower > most, version=version)


OF_RULE = (answered_by, shares, received, delivered, same_status, sizes, p99_ratio, unheard, unshared)
