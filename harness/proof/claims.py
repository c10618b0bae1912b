"""The claims: each is one checked statement on the stories of a run, and one function.

A claim holds, fails, or is unproven: where nobody could see, nothing is proven.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from harness.proof.figures import Sightings, Tally, Times, binomial_interval
from harness.proof.ledger import BESIDE, DIRECT, UNKNOWN, Arrival, Shape
from harness.proof.target import Routing, Rule

State = Literal["holds", "fails", "unproven"]

FALSE_ALARM = 1e-6
"""How often a claim on a percentage may fail though the proxies draw as they should."""


@dataclass(frozen=True)
class Claim:
    """One checked statement with its figures."""

    id: str
    statement: str
    state: State
    detail: str
    figures: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    """Request ids of up to three stories that break it."""
    version: str = ""
    """The version on whose own proxies' logs it rests, if it does."""

    @property
    def holds(self) -> bool:
        """Whether it holds."""
        return self.state == "holds"


@dataclass(frozen=True)
class Bounds:
    """What is asked of v2 beside what must always be."""

    max_differences: float = 0.0
    """Which part (0 to 1) of the copies may be answered with another status than v1's."""
    same_size: bool = False
    """Whether answers must be of the same size."""
    max_p99_ratio: float | None = None
    """How many times as long as v1's v2's 99th percentile may be."""


@dataclass
class Evidence:
    """All that was seen of a target: what claims are made from."""

    routing: Routing
    shapes: dict[Shape, Tally] = field(default_factory=dict)
    sightings: Sightings | None = None
    """What callers saw, where the harness was the caller."""
    times: dict[str, Times] = field(default_factory=dict)
    """What each version's proxies measured."""
    callers: Times = field(default_factory=Times)
    """What the proxies of callers measured."""
    blind: Mapping[str, str] = field(default_factory=dict)
    """Versions whose proxies cannot be read, with the reason."""
    loops: tuple[str, ...] = ()
    """Ways on which a copy leads back to the target."""
    unreadable: int = 0
    """Lines on requests that are not in Istio's default format."""
    unjoined: int = 0
    """Hops without a request id."""
    bounds: Bounds = Bounds()

    @property
    def stories(self) -> int:
        """How many stories were judged."""
        return sum(tally.count for tally in self.shapes.values())


class Stream(NamedTuple):
    """The stories that took one rule."""

    evidence: Evidence
    place: int
    rule: Rule
    shapes: dict[Shape, Tally]

    @property
    def calls(self) -> int:
        """How many requests took the rule."""
        return sum(len(shape.own) * tally.count for shape, tally in self.shapes.items())


def _state(*, fails: bool, unproven: bool = False) -> State:
    return "fails" if fails else "unproven" if unproven else "holds"


def _examples(found: list[Tally]) -> tuple[str, ...]:
    return tuple([key[0] for tally in found for key in tally.examples][:3])


# --- on the whole run -------------------------------------------------------------------------------------


def answered(evidence: Evidence) -> Iterator[Claim]:
    """Claim that every caller was answered, where the harness was the caller."""
    seen = evidence.sightings
    if seen is None:
        return
    detail = f"{seen.answered:,} of {seen.sent:,}"
    others = {status: count for status, count in seen.status.items() if not 200 <= status < 300}
    if others:
        detail += ": " + ", ".join(f"{s or 'no answer'} x {n:,}" for s, n in sorted(others.items()))
    figures = {"requests": seen.sent, "answered": seen.answered}
    fails = seen.answered < seen.sent
    yield Claim(
        "answered", "every caller was answered", _state(fails=fails, unproven=not seen.sent), detail, figures
    )


def logged(evidence: Evidence) -> Iterator[Claim]:
    """Claim that the proxies on both sides logged every request, without which nothing else is proven."""
    calls = found = orphans = unknown = 0
    broken: list[Tally] = []
    for shape, tally in evidence.shapes.items():
        got = [a.version for a in shape.arrivals]
        lost = 0
        for call in shape.own:
            if call.answered:
                calls += tally.count
                if call.version is None:
                    unknown += tally.count
                    lost += 1
                elif call.version in got:
                    found += tally.count
                else:
                    lost += 1
        alone = not shape.calls and not _is_phantom(evidence, shape)
        orphans += tally.count * alone
        if lost or alone:
            broken.append(tally)
    unlogged = evidence.sightings.unlogged if evidence.sightings else 0
    words = [f"{found:,} of {calls + unlogged:,}"]
    for count, problem in (
        (orphans, "arrived from callers whose proxies are not read"),
        (unknown, "answered by a pod that is not known"),
        (evidence.unreadable, "lines not in Istio's default format"),
        (evidence.unjoined, "without a request id"),
    ):
        words += [f"{count:,} {problem}"] if count else []
    lost_any = found < calls + unlogged or orphans or evidence.unreadable or evidence.unjoined
    if not calls and not evidence.sightings:
        words = [f"no proxy logged an answered request to {evidence.routing.target.service}"]
    figures = {
        "calls": calls,
        "logged": found,
        "orphans": orphans,
        "unlogged": unlogged,
        "unknown": unknown,
        "unreadable": evidence.unreadable,
        "unjoined": evidence.unjoined,
    }
    unproven = bool(lost_any) or (not calls and evidence.sightings is None)
    state = _state(fails=False, unproven=unproven)
    yield Claim(
        "logged", "the proxies logged every answer", state, "; ".join(words), figures, _examples(broken)
    )


def _is_phantom(evidence: Evidence, shape: Shape) -> bool:
    """Say whether a story without a call is of what only a dark version got."""
    return all(evidence.routing.is_dark(a.version) for a in shape.arrivals)


def exercised(evidence: Evidence) -> Iterator[Claim]:
    """Claim that each rule that mirrors took a request: of others, nothing was seen."""
    taken = {call.rule for shape in evidence.shapes for call in shape.calls}
    rules = evidence.routing.rules
    idle = [rule for place, rule in enumerate(rules) if place not in taken]
    if not idle:
        return
    mirrors = [rule.title for rule in idle if rule.expectation.copies]
    named = ", ".join(f"'{title}'" for title in (mirrors or [rule.title for rule in idle]))
    none = len(idle) == len(rules)
    detail = f"no request took rule {named}"
    if none:
        detail = f"no request to {evidence.routing.target.service} was seen"
    state = _state(fails=False, unproven=bool(mirrors) or none)
    figures = {"rules": len(rules), "taken": len(rules) - len(idle)}
    yield Claim("exercised", "every rule that mirrors took requests", state, detail, figures)


def attributed(evidence: Evidence) -> Iterator[Claim]:
    """Claim that the rule of every request is known; only made where it is not."""
    unknown = [t for s, t in evidence.shapes.items() if any(call.rule == UNKNOWN for call in s.calls)]
    mixed = [t for s, t in evidence.shapes.items() if len({c.rule for c in s.calls if c.rule >= 0}) > 1]
    statement = "it is known which rule each request took"
    for found, problem in (
        (unknown, "took a rule that its proxy's log does not name: give every http route a name"),
        (mixed, "took several rules with one request id: they cannot be told apart"),
    ):
        if found:
            count = sum(tally.count for tally in found)
            figures = {"unknown": count}
            yield Claim(
                "attributed", statement, "unproven", f"{count:,} {problem}", figures, _examples(found)
            )


def understood(evidence: Evidence) -> Iterator[Claim]:
    """Claim that all of the target's rules are understood; only made where one is not."""
    problems = dict.fromkeys(problem for rule in evidence.routing.rules for problem in rule.problems)
    if problems:
        statement = "it is known where every rule leads"
        yield Claim("understood", statement, "unproven", "; ".join(problems), {"problems": len(problems)})


def no_loop(evidence: Evidence) -> Iterator[Claim]:
    """Claim that no copy leads back to the target."""
    if any(rule.expectation.copies for rule in evidence.routing.rules) or evidence.loops:
        detail = "; ".join(evidence.loops) or "none seen"
        statement = f"no copy leads back to {evidence.routing.target.service}"
        yield Claim(
            "no-loop", statement, _state(fails=bool(evidence.loops)), detail, {"loops": len(evidence.loops)}
        )


def silent(evidence: Evidence) -> Iterator[Claim]:
    """Claim of each version to which no rule leads that nothing arrived there, whoever sent it."""
    for version in evidence.routing.versions:
        if evidence.routing.must_be_silent(version):
            yield _silent(evidence, version, evidence.shapes)


def _silent(evidence: Evidence, version: str, shapes: Mapping[Shape, Tally]) -> Claim:
    heard = 0
    broken = []
    for shape, tally in shapes.items():
        arrived = sum(a.version == version for a in shape.arrivals)
        heard += arrived * tally.count
        broken += [tally] if arrived else []
    stories = sum(tally.count for shape, tally in shapes.items() if shape.calls)
    detail = f"{heard:,} of {stories:,}"
    if version in evidence.routing.gone:
        detail += f"; {version} does not run: its silence proves little"
    statement = f"{version} received nothing"
    return Claim(
        "silent", statement, _state(fails=heard > 0), detail, {"received": heard}, _examples(broken), version
    )


def direct(evidence: Evidence) -> Iterator[Claim]:
    """Claim that nobody asked a dark version itself for an answer; only made where somebody did."""
    found = [(s, t) for s, t in evidence.shapes.items() if any(call.rule == DIRECT for call in s.calls)]
    if found:
        count = sum(t.count for _, t in found)
        versions = sorted({call.version or "?" for s, _ in found for call in s.calls if call.rule == DIRECT})
        detail = f"{count:,} leaked: callers asked {' and '.join(versions)} itself"
        yield Claim(
            "answered-by",
            "callers saw no dark version",
            "fails",
            detail,
            {"leaks": count},
            _examples([t for _, t in found]),
        )


# --- on the stories of one rule ---------------------------------------------------------------------------


def answered_by(stream: Stream) -> Iterator[Claim]:
    """Claim that only the versions that may answer callers did."""
    allowed = [version for version, _ in stream.rule.expectation.answers]
    seen: Counter[str] = Counter()
    leaks = 0
    broken = []
    for shape, tally in stream.shapes.items():
        for call in shape.own:
            if call.version and call.answered:
                seen[call.version] += tally.count
            if call.version and call.version not in allowed:
                leaks += tally.count
                broken.append(tally)
    said = (
        stream.evidence.sightings.said.get(stream.place, Counter())
        if stream.evidence.sightings
        else Counter()
    )
    wrong = {version: count for version, count in said.items() if version not in allowed}
    detail = (
        ", ".join(f"{version} x {count:,}" for version, count in sorted(seen.items())) or "no answer seen"
    )
    detail += f"; {leaks:,} leaked"
    if extra := sum(wrong.values()):
        detail += f"; {extra:,} replies name {', '.join(sorted(wrong)[:3])}"
    names = " and ".join(allowed) or "nobody"
    figures = {"leaks": leaks + extra, **seen}
    yield Claim(
        "answered-by",
        f"callers saw only {names}",
        _state(fails=leaks + extra > 0),
        detail,
        figures,
        _examples(broken),
    )


def shares(stream: Stream) -> Iterator[Claim]:
    """Claim that callers saw the versions as weighted, where weights are set."""
    weighted = [(v, share) for v, share in stream.rule.expectation.answers if share is not None]
    if len(weighted) < 2:
        return
    seen: Counter[str] = Counter()
    for shape, tally in stream.shapes.items():
        seen.update({call.version: tally.count for call in shape.own if call.version})
    total = sum(seen.values())
    needed = max(_needed(share) for _, share in weighted)
    details, outside = [], False
    for version, share in weighted:
        low, high = binomial_interval(total, share, FALSE_ALARM / len(weighted))
        outside |= not low <= seen[version] <= high
        details.append(f"{version} {seen[version]:,} (between {low:,} and {high:,})")
    statement = "callers saw " + ", ".join(f"{v} {100 * s:g} %" for v, s in weighted)
    detail = _too_few(total, needed) if total < needed and not outside else "; ".join(details)
    yield Claim(
        "shares",
        statement,
        _state(fails=outside, unproven=total < needed),
        detail,
        {v: seen[v] for v, _ in weighted},
    )


def _needed(share: float) -> int:
    """Return how many requests it takes to judge a share (0 to 1): none at all must be no luck."""
    rare = min(share, 1 - share)
    return math.ceil(math.log(FALSE_ALARM / 4) / math.log1p(-rare)) if rare > 0 else 0


def _too_few(total: int, needed: int) -> str:
    return f"{total:,} requests are too few to judge: {needed:,} or more are needed"


class _Copies(NamedTuple):
    """How the copies of one shape's stories at one version stand."""

    received: int
    missing: int
    surplus: int
    phantoms: int
    drawn: int


def _copies(stream: Stream, version: str, shape: Shape, percentages: tuple[float, ...]) -> _Copies:
    always = sum(percent == 100 for percent in percentages)
    got = [a for a in shape.arrivals if a.version == version]
    extra = max(len(got) - sum(call.version == version for call in shape.calls), 0)
    routed = sum(call.routed for call in shape.own)
    most = len(percentages) * sum(call.copied for call in shape.own)
    surplus = max(extra - most, 0)
    if version in dict(stream.rule.expectation.answers):
        surplus = max(surplus - sum(_failed(a) for a in got), 0)  # attempts that were made again
    phantoms = surplus if not most else 0
    missing = max(always * routed - extra, 0)
    drawn = max(min(extra, most) - always * routed, 0)
    return _Copies(min(extra, most), missing, surplus - phantoms, phantoms, drawn)


def _failed(found: Arrival) -> bool:
    return bool(found.trouble) or found.status >= 500


def received(stream: Stream) -> Iterator[Claim]:
    """Claim that each version got its copies, each as often as the mirrors say: no more, no less."""
    for version, percentages in stream.rule.expectation.copies:
        yield _received(stream, version, percentages)


def _received(stream: Stream, version: str, percentages: tuple[float, ...]) -> Claim:
    sums: Counter[str] = Counter()
    broken = []
    for shape, tally in stream.shapes.items():
        counted = _copies(stream, version, shape, percentages)._asdict()
        sums.update({name: count * tally.count for name, count in counted.items()})
        sums["routed"] += sum(call.routed for call in shape.own) * tally.count
        broken += [tally] if counted["missing"] or counted["surplus"] or counted["phantoms"] else []
    for shape, tally in _without_call(stream, version):
        arrived = sum(a.version == version for a in shape.arrivals) * tally.count
        sums["phantoms"] += arrived
        broken.append(tally)
    always = sum(percent == 100 for percent in percentages)
    sampled = [percent / 100 for percent in percentages if percent < 100]
    wrong = sums["missing"] or sums["surplus"] or sums["phantoms"]
    counted_words = (
        f"{sums['missing']:,} missing, {sums['surplus']:,} duplicate, {sums['phantoms']:,} phantom"
    )
    figures = {
        "received": sums["received"],
        "requests": sums["routed"],
        "missing": sums["missing"],
        "duplicates": sums["surplus"],
        "phantoms": sums["phantoms"],
    }
    if not sampled:
        times = {1: "once", 2: "twice"}.get(always, f"{always} times")
        detail = f"{sums['received'] // max(always, 1):,} of {sums['routed']:,}: {counted_words}"
        state = _state(fails=wrong > 0, unproven=not sums["routed"])
        return Claim(
            "exactly-once",
            f"{version} received every request exactly {times}",
            state,
            detail,
            figures,
            _examples(broken),
            version,
        )
    intervals = [binomial_interval(sums["routed"], p, FALSE_ALARM / len(sampled)) for p in sampled]
    low, high = sum(i[0] for i in intervals), sum(i[1] for i in intervals)
    needed = max(map(_needed, sampled))
    outside = not low <= sums["drawn"] <= high
    detail = f"{sums['drawn']:,} of {sums['routed']:,} (between {low:,} and {high:,}): {counted_words}"
    few = sums["routed"] < needed
    if few and not (wrong or outside):
        detail = _too_few(sums["routed"], needed)
    beside = f"every request {always} times and " if always else ""
    statement = f"{version} received {beside}{' and '.join(f'{100 * p:g} %' for p in sampled)} of requests"
    figures |= {"drawn": sums["drawn"], "low": low, "high": high}
    state = _state(fails=bool(wrong) or outside, unproven=few)
    return Claim("sampled", statement, state, detail, figures, _examples(broken), version)


def _without_call(stream: Stream, version: str) -> Iterator[tuple[Shape, Tally]]:
    """Yield what a version got for no request to the target; the first rule that mirrors there is charged."""
    first = next(
        (
            i
            for i, rule in enumerate(stream.evidence.routing.rules)
            if version in dict(rule.expectation.copies)
        ),
        None,
    )
    if first == stream.place:
        for shape, tally in stream.evidence.shapes.items():
            got = any(a.version == version for a in shape.arrivals)
            beside = shape.calls and all(call.rule == BESIDE for call in shape.calls)
            if got and (beside or (not shape.calls and _is_phantom(stream.evidence, shape))):
                yield shape, tally


def _dark_copies(stream: Stream) -> list[str]:
    answers = dict(stream.rule.expectation.answers)
    return [version for version, _ in stream.rule.expectation.copies if version not in answers]


def delivered(stream: Stream) -> Iterator[Claim]:
    """Claim that the application of each dark version answered every copy that arrived at its proxy."""
    for version in _dark_copies(stream):
        arrived = 0
        troubles: Counter[str] = Counter()
        broken = []
        for shape, tally in stream.shapes.items():
            got = [a for a in shape.arrivals if a.version == version]
            arrived += len(got) * tally.count
            troubles.update({a.trouble: tally.count for a in got if a.trouble})
            broken += [tally] if any(a.trouble for a in got) else []
        if not arrived:
            continue
        bad = sum(troubles.values())
        detail = "; ".join(
            [f"{arrived - bad:,} of {arrived:,}", *(f"{t} x {n:,}" for t, n in troubles.most_common(3))]
        )
        figures = {"arrived": arrived, "answered": arrived - bad}
        for kind in ("refused", "unanswered"):
            figures[kind] = sum(n for trouble, n in troubles.items() if trouble.startswith(kind))
        yield Claim(
            "delivered",
            f"{version} answered every copy",
            _state(fails=bad > 0),
            detail,
            figures,
            _examples(broken),
            version,
        )


def same_status(stream: Stream) -> Iterator[Claim]:
    """Claim that each dark version answered with the status that the caller got."""
    for version in _dark_copies(stream):
        pairs: Counter[tuple[int, int]] = Counter()
        broken = []
        for shape, tally in stream.shapes.items():
            theirs = sorted(call.status for call in shape.own if call.routed)
            ours = sorted(a.status for a in shape.arrivals if a.version == version and not a.trouble)
            found = list(zip(theirs, ours, strict=False))
            pairs.update({pair: found.count(pair) * tally.count for pair in found})
            broken += [tally] if any(a != b for a, b in found) else []
        compared = sum(pairs.values())
        if not compared:
            continue
        different = {pair: count for pair, count in pairs.items() if pair[0] != pair[1]}
        bad = sum(different.values())
        words = [f"{compared - bad:,} of {compared:,}"]
        words += [
            f"{a} became {b} x {n:,}" for (a, b), n in sorted(different.items(), key=lambda i: -i[1])[:3]
        ]
        fails = bad > stream.evidence.bounds.max_differences * compared
        yield Claim(
            "same-status",
            f"{version} answered with the caller's status",
            _state(fails=fails),
            "; ".join(words),
            {"compared": compared, "different": bad},
            _examples(broken),
            version,
        )


def faithful(stream: Stream) -> Iterator[Claim]:
    """Claim that copies equal their originals; method and path do, or they would not have been joined."""
    for version in _dark_copies(stream):
        claim = _sizes(
            stream,
            version,
            "faithful",
            f"each copy at {version} is faithful (method, path, size)",
            lambda shape: shape.resized,
        )
        if claim:
            yield claim


def same_size(stream: Stream) -> Iterator[Claim]:
    """Claim, where it is asked for, that answers were of the size that the caller got."""
    for version in _dark_copies(stream) if stream.evidence.bounds.same_size else []:
        claim = _sizes(
            stream,
            version,
            "same-size",
            f"each answer of {version} has the size of the caller's",
            lambda shape: shape.reply_resized,
        )
        if claim:
            yield claim


def _sizes(
    stream: Stream, version: str, id: str, statement: str, differing: Callable[[Shape], tuple[str, ...]]
) -> Claim | None:
    compared = equal = 0
    broken = []
    for shape, tally in stream.shapes.items():
        mine = {call.version for call in shape.calls}
        versions = {a.version for a in shape.arrivals if not a.trouble}
        if version in versions and versions & mine:
            compared += tally.count
            equal += tally.count * (version not in differing(shape))
            broken += [tally] if version in differing(shape) else []
    if not compared:
        return None
    return Claim(
        id,
        statement,
        _state(fails=equal < compared),
        f"{equal:,} of {compared:,}",
        {"compared": compared, "equal": equal},
        _examples(broken),
        version,
    )


def p99_ratio(stream: Stream) -> Iterator[Claim]:
    """Claim, where it is asked for, that a dark version's slowest answers took not much longer than v1's."""
    bound = stream.evidence.bounds.max_p99_ratio
    times = stream.evidence.times
    if bound is None:
        return
    for version in _dark_copies(stream):
        theirs = max(
            (times[v].quantile(0.99) or 0 for v, _ in stream.rule.expectation.answers if v in times),
            default=0,
        )
        ours = times[version].quantile(0.99) if version in times else None
        if ours is None:
            continue
        ratio = ours / max(theirs, 1)
        statement = f"{version}'s 99th percentile is at most {bound:g} times the callers' version's"
        yield Claim("p99-ratio", statement, _state(fails=ratio > bound), f"{ours:g} ms / {theirs:g} ms")


def unheard(stream: Stream) -> Iterator[Claim]:
    """Claim of each version that gets copies by another rule that it got none by this one."""
    mine = {v for v, _ in (*stream.rule.expectation.answers, *stream.rule.expectation.copies)}
    for version in stream.evidence.routing.versions:
        if version not in mine and not stream.evidence.routing.must_be_silent(version):
            yield _silent(stream.evidence, version, stream.shapes)


def unshared(stream: Stream) -> Iterator[Claim]:
    """Claim, of a rule by which several versions answer, that one alone received each request."""
    if len(stream.rule.expectation.answers) < 2 or stream.rule.expectation.copies:
        return
    shared = 0
    broken = []
    for shape, tally in stream.shapes.items():
        for version, _ in stream.rule.expectation.answers:
            found = _copies(stream, version, shape, ())
            shared += (found.surplus + found.phantoms) * tally.count
            broken += [tally] if found.surplus + found.phantoms else []
    statement = "each request reached only the version that answered it"
    yield Claim(
        "unshared",
        statement,
        _state(fails=shared > 0),
        f"{shared:,} reached another",
        {"shared": shared},
        _examples(broken),
    )


OF_RUN = (answered, logged)
OF_RULE = (
    answered_by,
    shares,
    received,
    delivered,
    same_status,
    faithful,
    same_size,
    p99_ratio,
    unheard,
    unshared,
)
OF_TARGET = (silent, direct, exercised, attributed, understood, no_loop)
