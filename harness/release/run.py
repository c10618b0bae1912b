"""One release: each step is applied, judged, and left only when the proof lets go of it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import yaml

from harness import HarnessError, Json
from harness.meshes.lock import undisturbed
from harness.meshes.mesh import ROOT, Mesh, MeshError, Progress, quietly
from harness.proof.claims import outcomes
from harness.proof.evidence import Baseline, Claim, Sum
from harness.proof.mark import mark_of, marked
from harness.proof.report import WORDS
from harness.proof.stores import writers
from harness.proof.story import Call
from harness.proof.target import Routing, Target
from harness.proof.traffic import Traffic, new_run
from harness.proof.verdict import Verdict, judge
from harness.proof.watch import Prepared, Watch
from harness.release.callers import Callers
from harness.release.routes import DARK, Plan, Step, needed, routes_at
from harness.release.standing import alone, must_not_stand, ruling

LIVE = ROOT / "recommendation" / "settings" / "wrong-while-mirrored.yaml"
"""What gives the workshop's v2 the database of those who answer callers."""

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

MOST = 10_000_000
"""How many requests a step sends at most."""

INSIST = 120.0
"""For how many seconds a mesh that does not answer is asked again to bail out."""

SILENCE = 50
"""How many requests must not reach the candidate before it is said that it hears nothing."""


class CalledOff(HarnessError):
    """Somebody else changed the route: the release is theirs now."""


class Broken(Exception):
    """A claim is broken in the middle of a step, and nothing may be waited for any more."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


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
            self._judged = now
            self._judge_so_far()
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
        answers, failures = outcomes(evidence, before.version)
        p99 = evidence.times[before.version].quantile(0.99) or before.p99
        self._baseline = Baseline(before.version, before.answers + answers, before.failures + failures, p99)
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


class Router:
    """The VirtualService that leads callers to the target: as it is at each step, and the way back."""

    def __init__(self, mesh: Mesh, routing: Routing, plan: Plan, progress: Progress) -> None:
        """Look at what is applied.

        :raises HarnessError: a subset or a route is missing, or a release stands at a step.
        """
        self._mesh, self._plan, self._progress = mesh, plan, progress
        self._original, self._host = must_not_stand(routing), routing.host
        self._id, self._is_back = new_run(), False
        self._secret: Json | None = None
        """What gives the candidate its own store, while it has the live one."""
        known = routing.applied.subsets_of(self._host)
        for name in [name for name in plan.versions if name not in known]:
            problem = f"no DestinationRule gives {routing.target.service} a subset '{name}'"
            raise HarnessError(f"{problem} (there are: {', '.join(known) or 'none'})")

    def _at(self, step: Step | None) -> Json:
        return routes_at(self._original, self._host, self._plan.versions, step, self._plan.testers)

    def lead_to(self, step: Step, hurry: Callable[[], bool]) -> None:
        """Apply the route of a step, with the mark of the release."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._mesh.put(marked(self._at(step), {"id": self._id, "step": str(step), "since": since}), hurry)

    def stay_at(self, step: Step) -> None:
        """Apply the route of a step for good: without the mark."""
        self._mesh.put(self._at(step))

    def lead_back(self) -> None:
        """Lead every caller back to the stable version. A mesh that does not answer is asked again.

        :raises MeshError: it does not answer for long.
        """
        end = time.monotonic() + INSIST
        while not self._is_back:
            try:
                with undisturbed():
                    self._mesh.put(self._at(None))
                    self._is_back = True
            except MeshError as error:
                if time.monotonic() > end:
                    raise
                self._progress(f"cannot bail out yet, and try again: {error}")
                time.sleep(0.2)

    def must_be_ours(self, routing: Routing, changes: list[str]) -> None:
        """Look whether the route of a step is still what is applied.

        :raises CalledOff: somebody else put another one there.
        :raises HarnessError: something else changed.
        """
        if not changes:
            return
        found = ruling(routing)
        if not found or mark_of(found).get("id") != self._id:
            raise CalledOff(f"somebody else ended the release ({changes[-1]}): what they applied stays")
        raise HarnessError(f"{changes[-1]} during a step, so nothing can be said of it")

    def give_the_live_store(self, routing: Routing) -> None:
        """Let the workshop's candidate write where callers read, before it answers any.

        No copy may reach it any more then, so the stable version is alone for that moment.
        """
        access = dict(writers(self._mesh, routing))
        stable, candidate = (access.get(name) for name in self._plan.versions)
        if not stable or not candidate or candidate.database == stable.database:
            return
        self._mesh.put(self._at(None))
        [secret] = yaml.safe_load_all(LIVE.read_text())
        name = secret["metadata"]["name"]
        self._secret = {**secret, "stringData": dict(self._mesh.secrets([name])[name])}
        self._progress(f"{self._plan.versions.candidate} gets the live store")
        self._mesh.apply(LIVE)

    def give_its_own_store(self) -> None:
        """Let the candidate write where it wrote before the release."""
        if self._secret:
            self._mesh.put(self._secret)


class Release:
    """A release of a target's candidate."""

    def __init__(self, mesh: Mesh, target: Target, plan: Plan, show: Callable[[str], None],
                 progress: Progress = quietly) -> None:  # fmt: skip
        self._mesh, self._target, self._plan = mesh, target, plan
        self._show, self._progress = show, progress

    def climb(self) -> Verdict:
        """Take every step; return the last verdict: of the last step, or of the one that broke off.

        After any other end than the last step's, the stable version answers every caller.

        :raises HarnessError: another release is under way, a subset or a route is missing, the mesh does
            not answer, or somebody else changed the route meanwhile.
        """
        with alone(self._mesh):
            self._analysis = Analysis(self._mesh, self._target, self._plan)
            with closing(self._analysis.watch) as self._watch:
                self._router = Router(self._mesh, self._watch.routing, self._plan, self._progress)
                self._watch.follow()
                return self._climb()

    def _climb(self) -> Verdict:
        try:
            for step in self._plan.steps:
                verdict = self._take(step)
                if not verdict.passed:
                    self._bail_out()
                    return verdict
            self._router.stay_at(self._plan.steps[-1])
            return verdict
        except CalledOff:
            if self._watch.routing.is_dark(self._plan.versions.candidate):
                self._router.give_its_own_store()
            raise
        except BaseException:
            self._bail_out()
            raise

    def _take(self, step: Step) -> Verdict:
        if not step.dark:
            self._router.give_the_live_store(self._watch.routing)
        candidate, begun = self._plan.versions.candidate, time.monotonic()
        try:
            self._analysis.begin(step, self._lead_to(step))
            self._follow(
                MOST, lambda: self._analysis.must_end(lambda line: self._progress(f"{step}: {line}"))
            )
            self._router.must_be_ours(self._watch.routing, self._watch.changes)
            verdict = self._analysis.verdict(self._progress)
        except Broken as broken:
            self._router.lead_back()
            verdict = broken.verdict
        seen = {side.version: side.requests for side in verdict.sides}
        words = f"{verdict.requests:,} requests, {seen.get(candidate, 0):,} at {candidate}"
        held = f"{sum(claim.holds for claim in verdict.claims)} of {len(verdict.claims)} claims hold"
        spent = time.monotonic() - begun
        self._show(f"{WORDS[verdict.state]:<4}  {step!s:<7}  {words}; {held} ({spent:.0f} s)")
        return verdict

    def _lead_to(self, step: Step) -> Prepared:
        """Apply a step's route, and ask what runs then. The logs are read meanwhile: no alarm waits."""
        watch, pool = self._watch, ThreadPoolExecutor(1)
        applying = pool.submit(self._router.lead_to, step, lambda: bool(watch.ledger.alarm))
        preparing = pool.submit(watch.prepare)
        try:
            while not preparing.done() and not watch.ledger.alarm:
                watch.read_lines()
                time.sleep(0.02)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            wait([applying])  # what is applied later would overrule the way back
        applying.result()
        self._analysis.must_not_alarm()
        return preparing.result()

    def _follow(self, size: int, must_end: Callable[[], bool]) -> None:
        """Send ``size`` requests, if the plan says so, until ``must_end``, which reads what was logged."""
        plan, watch, callers = self._plan, self._watch, self._analysis.callers
        if not plan.requests:
            while not must_end():
                time.sleep(0.02)
            return
        while time.monotonic() < watch.blurred:
            watch.read()
            time.sleep(0.02)
        url = plan.url or self._mesh.url()
        traffic = Traffic(url, watch.run, size, plan.concurrency, self._target.service, callers.headers)
        traffic.send(callers.saw, must_end, quietly)

    def _bail_out(self) -> None:
        """Lead every caller back, prove that the candidate hears nothing, and give it its store back."""
        with undisturbed():
            self._router.lead_back()
            self._show(f"bailed out: {self._plan.versions.stable} answers every caller")
            self._prove_silence(self._plan.versions.candidate)
            self._router.give_its_own_store()

    def _prove_silence(self, candidate: str) -> None:
        watch, end = self._watch, time.monotonic() + 10
        self._analysis.is_over = True
        self._analysis.begin(DARK)

        def must_end() -> bool:
            enough = watch.evidence.stories >= SILENCE or time.monotonic() > end
            return watch.read() or (enough and not self._plan.requests)

        self._follow(SILENCE, must_end)
        watch.settle(self._progress)
        got, seen = watch.evidence.times[candidate].count, watch.evidence.stories
        said = f"{candidate} received {got:,} of {seen:,} requests since"
        unknown = f"whether {candidate} still receives requests is not known: none was seen"
        self._show(f"            {said if seen else unknown}")
