"""The analysis of a release: what is seen of the candidate at each step, and whether that is enough."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from harness.meshes.mesh import Mesh, Progress
from harness.proof.claims import outcomes
from harness.proof.evidence import Baseline, Claim, Sum
from harness.proof.figures import Sightings
from harness.proof.run import Prepared
from harness.proof.story import Call
from harness.proof.target import Target
from harness.proof.verdict import Verdict, judge
from harness.proof.watch import Watch
from harness.release.routes import Plan, Step, needed

GIVE_UP = 10
"""How many times its time a step may take to see enough; then it is given up."""

BLIND = 30.0
"""For how many seconds nothing may be seen of the requests that a step sends; then it is given up."""

FEW = 10
"""How many requests the candidate must answer at each step."""

WARM = 100
"""How many answers of the candidate must be seen before it is called slow in the middle of a step."""

BY_NUMBER = {"shares", "sampled", "exercised"}
"""The claims that more requests may prove."""

JUDGED = 0.1
"""Seconds from one look at the claims of a step to the next."""


class Broken(Exception):
    """A claim is broken in the middle of a step, and nothing may be waited for any more."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


class Callers:
    """The release's own callers: one in five is a tester."""

    def __init__(self, step: Step, plan: Plan) -> None:
        self._step, self._plan = step, plan
        self.sightings = Sightings()
        self._saw: Counter[tuple[bool, str]] = Counter()

    @staticmethod
    def _is_tester(ticket: int) -> bool:
        return ticket % 10 in (4, 5)  # a GET and a POST

    def headers(self, ticket: int) -> dict[str, str]:
        header, value = self._plan.testers
        return {header: value} if self._is_tester(ticket) else {}

    def saw(self, ticket: int, status: int, version: str | None, seconds: float) -> None:
        """Enter what the caller of a ticket saw."""
        self.sightings.saw(ticket, status, version, seconds)
        if version:
            self._saw[self._is_tester(ticket), version] += 1

    def claims(self) -> Iterator[Claim]:
        """Claim that testers, and where they alone may, nobody else, saw the candidate."""
        stable, candidate = self._plan.versions
        if self._step.dark or self._step.percent == 100 or not self._saw:
            return
        others, missed = self._saw[False, candidate], self._saw[True, stable]
        testers = self._saw[True, candidate]
        statement, detail = f"every tester saw {candidate}", f"{testers:,} of {testers + missed:,}"
        yield Sum("missed", testers=testers, missed=missed).claim("testers", statement, detail)
        if not self._step.percent:
            statement = f"nobody but testers saw {candidate}"
            detail = f"{others:,} of {others + self._saw[False, stable]:,} others did"
            yield Sum("leaks", leaks=others).claim("only-testers", statement, detail)


class Analysis:
    """What a release sees of its candidate, step by step, and whether that is enough."""

    def __init__(self, mesh: Mesh, target: Target, plan: Plan) -> None:
        """Look at a target.

        :raises HarnessError: the mesh does not run, or has no such Service.
        """
        self._plan, self._quiet = plan, mesh.quiet
        self._baseline = Baseline(plan.versions.stable)
        self._answered = 0
        """How many requests the candidate answered at the steps so far."""
        self.watch = Watch(mesh, target, alarming=self._is_alarming)
        self.is_over = False
        """Whether callers are led back: nothing alarms any more."""

    def begin(self, step: Step, prepared: Prepared | None = None) -> None:
        """Begin to judge a step.

        :param prepared: what ``watch.prepare`` returned; None: it is asked for now.
        """
        self.callers = Callers(step, self._plan)
        sightings = self.callers.sightings if self._plan.requests else None
        self.watch.renew(sightings, replace(self._plan.bounds, baseline=self._baseline), prepared)
        self._begun = self._judged = self._looked = self._grown = time.monotonic()
        self._seen, self._is_enough = 0, False

    def must_end(self, progress: Progress) -> bool:
        """Read what was logged, and say whether the step must end.

        :raises Broken: a claim fails.
        """
        watch = self.watch
        looped = watch.read()
        self.must_not_alarm()
        now = time.monotonic()
        if now > self._looked + 2 * self._quiet:
            self._looked = now
            watch.look()
        if looped or watch.changes:
            return True
        if watch.evidence.stories > self._seen:
            self._grown, self._seen = now, watch.evidence.stories
        if now > self._judged + JUDGED:
            self._judge_so_far()
            self._judged = time.monotonic()
            progress(f"{watch.evidence.stories:,} requests; {self._enough().detail}")
        if now > self._begun + GIVE_UP * self._plan.seconds:
            return True
        if not self._plan.requests:
            return self._is_enough and now > self._begun + self._plan.seconds
        is_sent = self.callers.sightings.sent >= self._plan.requests
        return is_sent and (self._is_enough or now > self._grown + BLIND)

    def _judge_so_far(self) -> None:
        verdict = judge(self.watch.evidence, self.watch.run)
        failed = set(verdict.failed())
        if self.watch.evidence.times[self._plan.versions.candidate].count < WARM:
            failed.discard("p99-ratio")
        wrong = tuple(claim for claim in self.callers.claims() if claim.state == "fails")
        if failed or wrong:
            raise Broken(replace(verdict, claims=(*verdict.claims, *wrong)))
        self._is_enough = self._enough().holds and BY_NUMBER.isdisjoint(verdict.unproven())

    def verdict(self, progress: Progress) -> Verdict:
        """Judge the step, which has ended."""
        self.watch.settle(progress)
        verdict = self.watch.verdict()
        verdict = replace(verdict, claims=(*verdict.claims, self._enough(), *self.callers.claims()))
        # How the stable version does is kept for the steps at which it answers few callers or nobody.
        before, evidence = self._baseline, self.watch.evidence
        self._answered += evidence.times[self._plan.versions.candidate].count
        now = outcomes(evidence, before.version)
        answers, failures = before.answers + now["answers"], before.failures + now["failures"]
        p99 = evidence.times[before.version].quantile(0.99) or before.p99
        self._baseline = Baseline(before.version, answers, failures, p99)
        return verdict

    def _enough(self) -> Claim:
        """Claim that the candidate answered enough: some now, and many since the release began.

        Of so many, a defect in a part of all answers would have shown.
        """
        part, candidate = self._plan.part, self._plan.versions.candidate
        now = self.watch.evidence.times[candidate].count
        answered, wanted = self._answered + now, needed(part)
        detail = f"{now:,} now, {answered:,} in all; of {wanted:,} a defect in {100 * part:g} % shows"
        few = answered < wanted or now < FEW
        return Sum().claim("enough", f"{candidate} answered enough requests", detail, unproven=few)

    def _is_alarming(self, call: Call) -> bool:
        """Say whether a caller got a failure from the candidate where the stable version has none."""
        spotless = not (self.is_over or self._baseline.failures or self._plan.bounds.max_failures)
        return spotless and call.version == self._plan.versions.candidate and call.failed

    def must_not_alarm(self) -> None:
        """Look whether a call was alarming.

        :raises Broken: one was.
        """
        if story := self.watch.ledger.alarm:
            self.watch.counts.add(story)
            verdict = judge(self.watch.evidence, self.watch.run)
            if not verdict.failed():  # it came before its route was known
                statement = f"callers get failures from {self._plan.versions.candidate}"
                alarm = Claim("failures", statement, "fails", "1 or more", examples=(story.key[0],))
                verdict = replace(verdict, claims=(*verdict.claims, alarm))
            raise Broken(verdict)
