"""One release: each step is applied, judged, and left only when the proof lets go of it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import yaml

from harness import HarnessError, Json
from harness.meshes.lock import undisturbed
from harness.meshes.mesh import ROOT, Mesh, MeshError, Progress, quietly
from harness.proof.claims import outcomes
from harness.proof.evidence import Baseline, Claim, Evidence, Sum
from harness.proof.mark import mark_of, marked
from harness.proof.report import WORDS
from harness.proof.run import Prepared
from harness.proof.stores import writers
from harness.proof.story import Call, Story
from harness.proof.target import Target
from harness.proof.traffic import Traffic, new_run
from harness.proof.verdict import Verdict, judge
from harness.proof.watch import Watch
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

MOST = 10_000_000
"""How many requests a step sends at most."""

INSIST = 120.0
"""For how many seconds a mesh that does not answer is asked again to bail out."""

SILENCE = 50
"""How many requests must not reach the candidate before it is said that it hears nothing."""


class CalledOff(HarnessError):
    """Somebody else changed the route: the release is theirs now."""


class Release:
    """A release of a target's candidate."""

    def __init__(self, mesh: Mesh, target: Target, plan: Plan, show: Callable[[str], None],
                 progress: Progress = quietly) -> None:  # fmt: skip
        self._mesh, self._target, self._plan = mesh, target, plan
        self._show, self._progress = show, progress
        self._id = new_run()
        self._baseline = Baseline(plan.versions.stable)
        self._secret: Json | None = None
        self._back = False
        """Whether every caller is led back."""
        self._answered = 0
        """How many requests the candidate answered at the steps so far."""
        self._broken: Verdict | None = None
        """The verdict at the moment when a claim was broken."""
        self.story: tuple[Evidence, Story] | None = None
        """The first request that broke a claim, with what was seen."""

    def climb(self) -> Verdict:
        """Take every step; return the last verdict: of the last step, or of the one that broke off.

        After any other end than the last step's, the stable version answers every caller.

        :raises HarnessError: another release is under way, a subset or a route is missing, the mesh does
            not answer, or somebody else changed the route meanwhile.
        """
        with (
            alone(self._mesh),
            closing(Watch(self._mesh, self._target, alarming=self._is_alarming)) as self._watch,
        ):
            self._original, self._host = must_not_stand(self._watch.routing), self._watch.routing.host
            self._must_have_subsets()
            self._watch.follow()
            try:
                for step in self._plan.steps:
                    verdict = self._take(step)
                    if not verdict.passed:
                        self._bail_out()
                        return verdict
                self._mesh.put(self._at(self._plan.steps[-1]))  # without the mark
                return verdict
            except CalledOff:
                if self._secret and self._watch.routing.is_dark(self._plan.versions.candidate):
                    self._mesh.put(self._secret)
                raise
            except BaseException:
                self._bail_out()
                raise

    # --- a step -----------------------------------------------------------------------------------------

    def _take(self, step: Step) -> Verdict:
        versions = self._plan.versions
        if not step.dark:
            self._give_the_live_store()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        mark = {"id": self._id, "step": str(step), "since": since, **versions._asdict()}
        begun = time.monotonic()
        prepared = self._put(marked(self._at(step), mark))
        verdict = self._broken or self._judge(step, prepared)
        seen = {side.version: side.requests for side in verdict.sides}
        words = f"{verdict.requests:,} requests, {seen.get(versions.candidate, 0):,} at {versions.candidate}"
        held = f"{sum(claim.holds for claim in verdict.claims)} of {len(verdict.claims)} claims hold"
        spent = time.monotonic() - begun
        self._show(f"{WORDS[verdict.state]:<4}  {step!s:<7}  {words}; {held} ({spent:.0f} s)")
        return verdict

    def _at(self, step: Step | None) -> Json:
        return routes_at(self._original, self._host, self._plan.versions, step, self._plan.testers)

    def _put(self, document: Json) -> Prepared:
        """Apply a route, and ask what runs then; the logs are read meanwhile, so that no alarm waits."""

        def put() -> Prepared:
            self._mesh.put(document, hurry=lambda: bool(self._watch.ledger.alarm))
            return self._watch.prepare()

        with ThreadPoolExecutor(1) as pool:
            doing = pool.submit(put)
            while not doing.done() and not self._watch.ledger.alarm:
                self._watch.read_lines()
                time.sleep(0.02)
            self._heed_alarm()
            return doing.result()

    def _judge(self, step: Step, prepared: Prepared) -> Verdict:
        plan, watch = self._plan, self._watch
        callers = Callers(step, plan) if plan.requests else None
        bounds = replace(plan.bounds, baseline=self._baseline)
        watch.renew(callers.sightings if callers else None, bounds, prepared)
        self._follow(callers, MOST, self._ending(step, callers))
        if self._broken:
            return self._broken
        self._must_be_ours()
        watch.settle(self._progress)
        verdict = watch.verdict()
        more = (self._enough(), *(callers.claims() if callers else ()))
        self._remember()
        return replace(verdict, claims=(*verdict.claims, *more))

    def _follow(self, callers: Callers | None, size: int, must_end: Callable[[], bool]) -> None:
        """Send ``size`` requests where there are callers, until ``must_end``, which reads what was logged."""
        plan, watch = self._plan, self._watch
        if not callers:
            while not must_end():
                time.sleep(0.02)
            return
        while time.monotonic() < watch.period.blurred:
            watch.read()
            time.sleep(0.02)
        traffic = Traffic(
            plan.url or self._mesh.url(), watch.run, size, plan.concurrency, self._target.service,
            callers.headers,
        )  # fmt: skip
        traffic.send(callers.saw, must_end, quietly)

    def _ending(self, step: Step, callers: Callers | None) -> Callable[[], bool]:
        """Return a function that reads what was logged, and says whether the step must end.

        It leads callers back itself where a claim is broken: nothing is waited for before.
        """
        plan, watch = self._plan, self._watch
        begun = asked = grown = time.monotonic()
        judged, known, seen = 0.0, 0, 0

        def must_end() -> bool:
            nonlocal asked, grown, judged, known, seen
            looped = watch.read()
            if self._heed_alarm() or looped:
                return True
            now, broken = time.monotonic(), len(watch.broken)
            if now > asked + 2 * self._mesh.quiet:
                asked = now
                watch.look()
            if watch.changes:
                return True
            wrong = tuple(c for c in (callers.claims() if callers else ()) if c.state == "fails")
            if wrong or broken != known or now > judged + 1:
                judged, known = now, broken
                self._judge_so_far(wrong)
                self._progress(f"{step}: {watch.evidence.stories:,} requests; {self._enough().detail}")
            if watch.evidence.stories > seen:
                grown, seen = now, watch.evidence.stories
            is_time = callers.sightings.sent >= plan.requests if callers else now > begun + plan.seconds
            if now > begun + GIVE_UP * plan.seconds or (callers and is_time and now > grown + BLIND):
                return True
            return bool(self._broken) or (is_time and not self._lacks())

        return must_end

    def _judge_so_far(self, wrong: tuple[Claim, ...]) -> None:
        """Break the step off if a claim fails; ``wrong`` are those of callers that do."""
        verdict = judge(self._watch.evidence, self._watch.run)
        failed = set(verdict.failed())
        if self._watch.evidence.times[self._plan.versions.candidate].count < WARM:
            failed.discard("p99-ratio")
        if failed or wrong:
            self._break_off(replace(verdict, claims=(*verdict.claims, *wrong)))

    # --- an alarm ---------------------------------------------------------------------------------------

    def _is_alarming(self, call: Call) -> bool:
        """Say whether a caller got a failure from the candidate where the stable version has none."""
        spotless = not (self._back or self._baseline.failures or self._plan.bounds.max_failures)
        return spotless and call.version == self._plan.versions.candidate and call.failed

    def _heed_alarm(self) -> bool:
        """Lead every caller back if there is an alarm, and judge it; return whether a claim is broken."""
        story = self._watch.ledger.alarm
        if story and not self._broken:
            self._lead_back()
            self._watch.counts.add(story)
            verdict = judge(self._watch.evidence, self._watch.run)
            if not verdict.failed():  # it came before its route was known
                statement = f"callers get failures from {self._plan.versions.candidate}"
                alarm = Claim("failures", statement, "fails", "1 or more", examples=(story.key[0],))
                verdict = replace(verdict, claims=(*verdict.claims, alarm))
            self._break_off(verdict)
        return bool(self._broken)

    def _break_off(self, verdict: Verdict) -> None:
        self._lead_back()
        self.story = (self._watch.evidence, self._watch.broken[0]) if self._watch.broken else None
        self._broken = verdict

    def _lacks(self) -> bool:
        """Say whether too few requests were seen to know."""
        verdict = judge(self._watch.evidence, self._watch.run)
        return not self._enough().holds or not BY_NUMBER.isdisjoint(verdict.unproven())

    def _enough(self) -> Claim:
        """Claim that the candidate answered enough: some now, and many since the release began.

        Of so many, a defect in a part of all answers would have shown.
        """
        part, candidate = self._plan.part, self._plan.versions.candidate
        now = self._watch.evidence.times[candidate].count
        answered, wanted = self._answered + now, needed(part)
        detail = f"{now:,} now, {answered:,} in all; of {wanted:,} a defect in {100 * part:g} % shows"
        few = answered < wanted or now < FEW
        return Sum().claim("enough", f"{candidate} answered enough requests", detail, unproven=few)

    def _remember(self) -> None:
        """Keep how the stable version does, for the steps at which it answers few callers or nobody."""
        before, evidence = self._baseline, self._watch.evidence
        self._answered += evidence.times[self._plan.versions.candidate].count
        now = outcomes(evidence, before.version)
        answers, failures = before.answers + now["answers"], before.failures + now["failures"]
        p99 = evidence.times[before.version].quantile(0.99) or before.p99
        self._baseline = Baseline(before.version, answers, failures, p99)

    def _must_be_ours(self) -> None:
        if not self._watch.changes:
            return
        found, change = ruling(self._watch.routing), self._watch.changes[-1]
        if not found or mark_of(found).get("id") != self._id:
            raise CalledOff(f"somebody else ended the release ({change}): what they applied stays")
        raise HarnessError(f"{change} during a step, so nothing can be said of it")

    # --- what is applied --------------------------------------------------------------------------------

    def _must_have_subsets(self) -> None:
        known = self._watch.routing.applied.subsets_of(self._host)
        for name in [name for name in self._plan.versions if name not in known]:
            problem = f"no DestinationRule gives {self._target.service} a subset '{name}'"
            raise HarnessError(f"{problem} (there are: {', '.join(known) or 'none'})")

    def _give_the_live_store(self) -> None:
        """Let the workshop's candidate write where callers read, before it answers any.

        No copy may reach it any more then, so the stable version is alone for that moment.
        """
        access = dict(writers(self._mesh, self._watch.routing))
        stable, candidate = (access.get(name) for name in self._plan.versions)
        if not stable or not candidate or candidate.database == stable.database:
            return
        self._mesh.put(self._at(None))
        [secret] = yaml.safe_load_all(LIVE.read_text())
        name = secret["metadata"]["name"]
        self._secret = {**secret, "stringData": dict(self._mesh.secrets([name])[name])}
        self._progress(f"{self._plan.versions.candidate} gets the live store")
        self._mesh.apply(LIVE)

    def _lead_back(self) -> None:
        """Lead every caller back to the stable version, without waiting for the proxies.

        A mesh that does not answer is asked again.

        :raises MeshError: it does not answer for long.
        """
        end = time.monotonic() + INSIST
        while not self._back:
            try:
                with undisturbed():
                    self._mesh.put(self._at(None), hurry=lambda: True)
                    self._back = True
            except MeshError as error:
                if time.monotonic() > end:
                    raise
                self._progress(f"cannot bail out yet, and try again: {error}")
                time.sleep(0.2)

    def _bail_out(self) -> None:
        """Lead every caller back, prove that the candidate hears nothing, and give it its store back."""
        with undisturbed():
            self._lead_back()
            stable, candidate = self._plan.versions
            self._show(f"bailed out: {stable} answers every caller")
            self._mesh.put(self._at(None))
            self._prove_silence(candidate)
            if self._secret:
                self._mesh.put(self._secret)

    def _prove_silence(self, candidate: str) -> None:
        watch, end = self._watch, time.monotonic() + 10
        callers = Callers(DARK, self._plan) if self._plan.requests else None
        watch.renew(callers.sightings if callers else None)

        def must_end() -> bool:
            enough = watch.evidence.stories >= SILENCE or time.monotonic() > end
            return watch.read() or (enough and not callers)

        self._follow(callers, SILENCE, must_end)
        watch.settle(self._progress)
        got = sum(len(s.at(candidate)) * t.count for s, t in watch.evidence.shapes.items())
        seen = watch.evidence.stories
        said = f"{candidate} received {got:,} of {seen:,} requests since"
        unknown = f"whether {candidate} still receives requests is not known: none was seen"
        self._show(f"            {said if seen else unknown}")
