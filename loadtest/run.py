"""A load test as whoever judges it sees it, and the verdict on it."""

from dataclasses import replace
from pathlib import Path

import click

from harness.meshes.mesh import Mesh
from harness.proof.doctor import explained
from harness.proof.evidence import Claim, State
from harness.proof.figures import Sightings
from harness.proof.target import Target
from harness.proof.verdict import Verdict
from harness.proof.watch import Watch
from harness.terminal import seconds_of

LIMIT = 10_000_000
"""No ticket has this number."""

PROOF = "proof.html"
"""What the verdict's page is called."""

SEEN = "seen: "
"""How a line begins by which a master inside a cluster tells what callers saw."""


class Run:
    """One load test, from start to stop."""

    def __init__(self, mesh: Mesh, target: Target, max_failures: float, max_p95: float) -> None:
        """Look at what is applied.

        :param max_failures: the part of all requests (0 to 1) that may fail.
        :param max_p95: for how many milliseconds 95 % of callers may wait at most.
        :raises HarnessError: the mesh does not run, or has no such Service.
        """
        self.mesh, self.max_failures, self.max_p95 = mesh, max_failures, max_p95
        self.sightings = Sightings()
        self.watch = Watch(mesh, target, sightings=self.sightings)

    @property
    def allowed(self) -> str:
        """The versions that some rule lets answer callers, with commas between."""
        rules = self.watch.routing.rules
        return ",".join(dict.fromkeys(v for rule in rules for v, _ in rule.expectation.answers))

    def renew(self) -> None:
        """Begin anew: what callers have sent until now is not judged.

        :raises HarnessError: the mesh does not answer.
        """
        self.sightings = Sightings()
        self.watch.renew(self.sightings)

    def end(self) -> Verdict:
        """Return the verdict, with a claim for each threshold; then let go of the mesh.

        :raises HarnessError: there can be none.
        """
        try:
            self.watch.settle()
            verdict = self.watch.verdict()
            claims = [c for c in verdict.claims if c.id != "answered" or not self.max_failures]
            if self.max_failures:
                claims.insert(0, self._few_failures())
            verdict = replace(verdict, claims=(*claims, self._fast_enough()))
            return explained(self.mesh, self.watch.target, verdict)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the mesh."""
        self.watch.close()
        self.mesh.close()

    def _few_failures(self) -> Claim:
        seen = self.sightings
        failed = seen.sent - seen.answered
        part = failed / max(seen.sent, 1)
        statement = f"at most {self.max_failures:.2%} of requests failed"
        figures = {"requests": seen.sent, "failed": failed}
        state: State = "fails" if part > self.max_failures else "holds" if seen.sent else "unproven"
        return Claim("max-failures", statement, state, f"{failed:,} of {seen.sent:,}: {part:.2%}", figures)

    def _fast_enough(self) -> Claim:
        p95 = self.sightings.times.quantile(0.95)
        statement = f"95 % of callers waited at most {self.max_p95:g} ms"
        if p95 is None:
            return Claim("p95", statement, "unproven", "nobody was answered")
        state: State = "holds" if p95 <= self.max_p95 else "fails"
        return Claim("p95", statement, state, f"{p95:.0f} ms", {"p95": round(p95)})


def where(report: Path) -> str:
    """Say where Locust's report is, with proof and figures beside it."""
    return f"report: {report}, proof: {report.parent / PROOF}, figures: {report.parent}/*.csv"


def link(report: Path) -> None:
    """Let Locust's report lead to the proof; this leads back."""
    page, end = report.read_text(encoding="utf-8"), "</body>"
    before, _, behind = page.rpartition(end)
    report.write_text(
        f'{before}<p><a href="{PROOF}">The proof of this run</a></p>{end}{behind}', encoding="utf-8"
    )


def check_time(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Check an option that Locust is to read.

    :raises click.BadParameter: it is not a time.
    """
    try:
        seconds_of(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value
