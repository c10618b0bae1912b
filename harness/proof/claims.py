"""The claims on a whole run: each is one checked statement, and one function.

A claim holds, fails, or is unproven: where nobody could see, nothing is proven.
"""

from collections.abc import Iterator, Mapping

from harness.proof.answers import Compared
from harness.proof.evidence import Claim, Evidence, State, Sum
from harness.proof.figures import FALSE_ALARM, Tally, most_by_chance
from harness.proof.story import DIRECT, UNKNOWN, Shape


def answered(evidence: Evidence) -> Iterator[Claim]:
    """Claim that every caller was answered, where the harness was the caller."""
    seen = evidence.sightings
    if seen is None:
        return
    found = Sum(requests=seen.sent, answered=seen.answered)
    others = [(s, n) for s, n in sorted(seen.times.status.items()) if not 200 <= s < 300]
    words = ", ".join(f"{status or 'no answer'} x {count:,}" for status, count in others)
    detail = f"{seen.answered:,} of {seen.sent:,}" + (f": {words}" if words else "")
    missed = seen.answered < seen.sent
    yield found.claim("answered", "every caller was answered", detail, fails=missed, unproven=not seen.sent)


def passed_on(evidence: Evidence) -> Iterator[Claim]:
    """Claim, where others call, that their proxies passed every request on; only made where it fails."""
    found = Sum("refused", requests=0)
    for shape, tally in evidence.shapes.items():
        refused = sum(not call.routed and call.status > 0 for call in shape.own)
        found.add(tally, requests=len(shape.own), refused=refused)
    if found["refused"] and evidence.sightings is None:
        detail = f"{found['refused']:,} of {found['requests']:,} were answered by the caller's own proxy"
        yield found.claim("passed-on", "the callers' proxies passed every request on", detail)


def logged(evidence: Evidence) -> Iterator[Claim]:
    """Claim that the proxies on both sides logged every request, without which nothing else is proven."""
    unlogged = evidence.sightings.unlogged if evidence.sightings else 0
    found = Sum(
        calls=0, logged=0, unknown=0, orphans=0, unlogged=unlogged, unreadable=evidence.unreadable,
        unjoined=evidence.unjoined, overdue=evidence.overdue,
    )  # fmt: skip
    for shape, tally in evidence.shapes.items():
        got = {a.version for a in shape.arrivals}
        calls = [call.version for call in shape.own if call.answered]
        there = sum(version in got for version in calls)
        orphan = not shape.calls and not is_phantom(evidence, shape)
        lost = there < len(calls) or orphan
        found.add(tally, lost, calls=len(calls), logged=there, unknown=calls.count(None), orphans=orphan)
    problems = {
        "orphans": "arrived from callers whose proxies are not read",
        "unknown": "answered by a pod that is not known",
        "unreadable": "lines not in Istio's default format",
        "unjoined": "without a request id of their own",
        "overdue": "still lack a hop that must come",
    }
    words = [f"{found['logged']:,} of {found['calls'] + unlogged:,}"]
    words += [f"{found[name]:,} {problem}" for name, problem in problems.items() if found[name]]
    nothing = not found["calls"] and evidence.sightings is None
    if nothing:
        words[0] = f"no proxy logged an answered request to {evidence.routing.target.service}"
    incomplete = found["logged"] < found["calls"] + unlogged or len(words) > 1
    statement = "the proxies logged every answer"
    yield found.claim("logged", statement, "; ".join(words), unproven=incomplete or nothing)


def is_phantom(evidence: Evidence, shape: Shape) -> bool:
    """Say whether a story without a call is of what only a dark version got."""
    return all(evidence.routing.is_dark(a.version) for a in shape.arrivals)


def silent(evidence: Evidence) -> Iterator[Claim]:
    """Claim of each version to which no rule leads that nothing arrived there, whoever sent it."""
    for version in evidence.routing.versions:
        if evidence.routing.must_be_silent(version):
            yield silence_of(evidence, version, evidence.shapes)


def silence_of(evidence: Evidence, version: str, shapes: Mapping[Shape, Tally]) -> Claim:
    """Return the claim that a version received nothing in stories."""
    found, stories = Sum("received"), 0
    for shape, tally in shapes.items():
        found.add(tally, received=len(shape.at(version)))
        stories += tally.count * bool(shape.calls)
    detail = f"{found['received']:,} of {stories:,}"
    if version in evidence.routing.gone:
        detail += f"; {version} does not run: its silence proves little"
    return found.claim("silent", f"{version} received nothing", detail, version=version)


def direct(evidence: Evidence) -> Iterator[Claim]:
    """Claim that nobody asked a dark version itself for an answer; only made where somebody did."""
    found, versions = Sum("leaks"), set()
    for shape, tally in evidence.shapes.items():
        asked = {call.version or "?" for call in shape.calls if call.rule == DIRECT}
        if asked:
            versions |= asked
            found.add(tally, leaks=1)
    if versions:
        detail = f"{found['leaks']:,} leaked: callers asked {' and '.join(sorted(versions))} itself"
        yield found.claim("answered-by", "callers saw no dark version", detail)


def exercised(evidence: Evidence) -> Iterator[Claim]:
    """Claim that each rule that mirrors took a request; only made where a rule took none."""
    taken = {call.rule for shape in evidence.shapes for call in shape.calls}
    rules = evidence.routing.rules
    idle = [rule for place, rule in enumerate(rules) if place not in taken]
    if not idle:
        return
    mirrors = [rule.written.title for rule in idle if rule.expectation.copies]
    none = len(idle) == len(rules)
    named = ", ".join(f"'{title}'" for title in mirrors or [rule.written.title for rule in idle])
    seen = f"no request to {evidence.routing.target.service} was seen"
    found = Sum(rules=len(rules), taken=len(rules) - len(idle))
    statement = "every rule that mirrors took requests"
    detail = seen if none else f"no request took rule {named}"
    yield found.claim("exercised", statement, detail, unproven=bool(mirrors) or none)


def attributed(evidence: Evidence) -> Iterator[Claim]:
    """Claim that the rule of every request is known; only made where it is not."""
    unnamed, several = Sum("unknown"), Sum("unknown")
    for shape, tally in evidence.shapes.items():
        places = {call.rule for call in shape.calls}
        unnamed.add(tally, unknown=UNKNOWN in places)
        several.add(tally, unknown=len([place for place in places if place >= 0]) > 1)
    for found, problem in (
        (unnamed, "took a rule that its proxy's log does not name: give every http route a name"),
        (several, "took several rules with one request id: they cannot be told apart"),
    ):
        if found["unknown"]:
            statement = "it is known which rule each request took"
            detail = f"{found['unknown']:,} {problem}"
            yield found.claim("attributed", statement, detail, fails=False, unproven=True)


def understood(evidence: Evidence) -> Iterator[Claim]:
    """Claim that all of the target's rules are understood; only made where one is not."""
    problems = dict.fromkeys(problem for rule in evidence.routing.rules for problem in rule.problems)
    if problems:
        statement = "it is known where every rule leads"
        yield Sum().claim("understood", statement, "; ".join(problems), unproven=True)


def no_loop(evidence: Evidence) -> Iterator[Claim]:
    """Claim that no copy leads back to the target; only made where there are copies."""
    loops = evidence.loops
    if loops or any(rule.expectation.copied for rule in evidence.routing.rules):
        statement = f"no copy leads back to {evidence.routing.target.service}"
        detail = "; ".join(loops) or "none seen"
        yield Sum().claim("no-loop", statement, detail, fails=bool(loops))


def failures(evidence: Evidence) -> Iterator[Claim]:
    """Claim, in a release, that callers get failures from no version more often than from the stable one.

    A failure is a status from 500 on, or no answer. It fails where chance does not explain the difference.
    """
    baseline = evidence.bounds.baseline
    if baseline is None:
        return
    for version in evidence.routing.versions:
        if version == baseline.version or evidence.routing.is_dark(version):
            continue
        found, others = outcomes(evidence, version), outcomes(evidence, baseline.version)
        stable, bad = others["answers"] + baseline.answers, others["failures"] + baseline.failures
        found.figures.update(stable=stable, stable_failures=bad)
        part = min((bad / stable if stable else 0.0) + evidence.bounds.max_failures, 1.0)
        detail = f"{found['failures']:,} of {found['answers']:,}; {baseline.version} {bad:,} of {stable:,}"
        statement = f"callers get failures from {version} no more often than from {baseline.version}"
        fails = found["failures"] > most_by_chance(found["answers"], part, FALSE_ALARM)
        yield found.claim("failures", statement, detail, fails=fails, version=version)


def outcomes(evidence: Evidence, version: str) -> Sum:
    """Return how many callers a version answered, and how many of these got a failure."""
    found = Sum("failures", answers=0)
    for shape, tally in evidence.shapes.items():
        calls = [call for call in shape.own if call.version == version]
        found.add(tally, answers=len(calls), failures=sum(call.failed for call in calls))
    return found


def same_content(evidence: Evidence) -> Iterator[Claim]:
    """Claim, where the proxies log answers, that each dark version answers as the callers' version does."""
    for version in (
        filter(evidence.routing.is_dark, evidence.routing.copied) if evidence.answers.wanted else ()
    ):
        found = evidence.answers.of[version]
        surely, perhaps = found.differing()
        words = [f"{found.compared:,} of {found.requests:,} GETs compared"]
        words += [_in_words(name, found) for name in [*surely, *perhaps][:5]]
        if perhaps and not found.paired:
            remedy = f"v1 gets no copy (istio/mirror-twice.yaml): or --ignore {','.join(perhaps)}"
            words.append(f"whether that is noise is not known, since {remedy}")
        elif perhaps and not surely:
            words.append("more requests would tell")
        examples = [id for name in [*surely, *perhaps] for id, _ in found.fields[name].examples][:3]
        state: State = "fails" if surely else "unproven" if perhaps or not found.compared else "holds"
        figures = {"requests": found.requests, "compared": found.compared, "paired": found.paired}
        figures |= {f"differs in {name}": found.fields[name].differs for name in surely}
        yield Claim(
            "same-content", f"{version} answers what the callers' version does", state, "; ".join(words),
            figures, tuple(examples), version,
        )  # fmt: skip


def _in_words(name: str, found: Compared) -> str:
    """Say how a field differs: how often, how often by itself, and up to three examples."""
    told = found.fields[name]
    examples = dict.fromkeys(words for _, words in told.examples)
    own = f", v1's own two in {told.own:,}" if found.paired else ""
    return f"{name} differs in {told.differs:,}{own} ({', '.join(examples)})"


FIRST = (answered, passed_on, logged)
LAST = (same_content, silent, direct, failures, exercised, attributed, understood, no_loop)
"""What stands before and behind the claims on the stories of each rule."""
