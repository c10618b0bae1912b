"""One release: each step is applied, judged, and left only when the proof lets go of it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass

from harness.meshes.lock import lock, undisturbed
from harness.meshes.mesh import Mesh, Progress, quietly
from harness.proof.report import WORDS
from harness.proof.run import Prepared
from harness.proof.target import Target
from harness.proof.traffic import Traffic
from harness.proof.verdict import Verdict
from harness.release.analysis import Analysis, Broken
from harness.release.router import CalledOff, Router
from harness.release.routes import DARK, Plan, Step

MOST = 10_000_000
"""How many requests a step sends at most."""

SILENCE = 50
"""How many requests must not reach the candidate before it is said that it hears nothing."""


@dataclass
class Release:
    """A release of a target's candidate."""

    mesh: Mesh
    target: Target
    plan: Plan
    show: Callable[[str], None]
    progress: Progress = quietly

    def climb(self) -> Verdict:
        """Take every step; return the last verdict: of the last step, or of the one that broke off.

        After any other end than the last step's, the stable version answers every caller.

        :raises HarnessError: another release is under way, a subset or a route is missing, the mesh does
            not answer, or somebody else changed the route meanwhile.
        """
        busy = "a release is under way: wait for it, or end it with 'make bail-out'"
        with lock(self.mesh.home / "release", busy) as held, ExitStack() as at_end:
            at_end.callback(held.unlink, missing_ok=True)
            self._analysis = Analysis(self.mesh, self.target, self.plan)
            self._watch = at_end.enter_context(closing(self._analysis.watch))
            self._router = Router(self.mesh, self._watch.routing, self.plan, self.progress)
            self._watch.follow()
            return self._climb()

    def _climb(self) -> Verdict:
        try:
            for step in self.plan.steps:
                verdict = self._take(step)
                if not verdict.passed:
                    self._bail_out()
                    return verdict
            self._router.stay_at(self.plan.steps[-1])
            return verdict
        except CalledOff:
            if self._watch.routing.is_dark(self.plan.versions.candidate):
                self._router.give_its_own_store()
            raise
        except BaseException:
            self._bail_out()
            raise

    def _take(self, step: Step) -> Verdict:
        if not step.dark:
            self._router.give_the_live_store(self._watch.routing)
        candidate, begun = self.plan.versions.candidate, time.monotonic()
        try:
            self._analysis.begin(step, self._lead_to(step))
            self._follow(MOST, lambda: self._analysis.must_end(lambda line: self.progress(f"{step}: {line}")))
            self._router.must_be_ours(self._watch.routing, self._watch.changes)
            verdict = self._analysis.verdict(self.progress)
        except Broken as broken:
            self._router.lead_back()
            verdict = broken.verdict
        seen = {side.version: side.requests for side in verdict.sides}
        words = f"{verdict.requests:,} requests, {seen.get(candidate, 0):,} at {candidate}"
        held = f"{sum(claim.holds for claim in verdict.claims)} of {len(verdict.claims)} claims hold"
        spent = time.monotonic() - begun
        self.show(f"{WORDS[verdict.state]:<4}  {step!s:<7}  {words}; {held} ({spent:.0f} s)")
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
        plan, watch, callers = self.plan, self._watch, self._analysis.callers
        if not plan.requests:
            while not must_end():
                time.sleep(0.02)
            return
        while time.monotonic() < watch.period.blurred:
            watch.read()
            time.sleep(0.02)
        url = plan.url or self.mesh.url()
        traffic = Traffic(url, watch.run, size, plan.concurrency, self.target.service, callers.headers)
        traffic.send(callers.saw, must_end, quietly)

    def _bail_out(self) -> None:
        """Lead every caller back, prove that the candidate hears nothing, and give it its store back."""
        with undisturbed():
            self._router.lead_back()
            self.show(f"bailed out: {self.plan.versions.stable} answers every caller")
            self._prove_silence(self.plan.versions.candidate)
            self._router.give_its_own_store()

    def _prove_silence(self, candidate: str) -> None:
        watch, end = self._watch, time.monotonic() + 10
        self._analysis.is_over = True
        self._analysis.begin(DARK)

        def must_end() -> bool:
            enough = watch.evidence.stories >= SILENCE or time.monotonic() > end
            return watch.read() or (enough and not self.plan.requests)

        self._follow(SILENCE, must_end)
        watch.settle(self.progress)
        got, seen = watch.evidence.times[candidate].count, watch.evidence.stories
        said = f"{candidate} received {got:,} of {seen:,} requests since"
        unknown = f"whether {candidate} still receives requests is not known: none was seen"
        self.show(f"            {said if seen else unknown}")
