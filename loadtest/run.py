"""A load test as whoever judges it sees it, and the verdict on it."""

from dataclasses import replace
from pathlib import Path

import click

from harness.meshes.mesh import Mesh
from harness.pages import report as pages
from harness.proof.doctor import explained
from harness.proof.evidence import Claim, Sum
from harness.proof.figures import Sightings
from harness.proof.target import Target
from harness.proof.verdict import Verdict
from harness.proof.watch import Watch

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

    def told(self) -> dict[str, str]:
        """Return what callers must know: the run's name, and who may answer."""
        return {"run": self.watch.run, "allowed": self.allowed}

    def renew(self) -> None:
        """Begin anew: what callers have sent until now is not judged.

        :raises MeshError: the mesh does not answer.
        """
        self.sightings = Sightings()
        self.watch.renew(self.sightings)

    def end(self) -> Verdict:
        """Return the verdict, with a claim for each threshold.

        :raises HarnessError: there can be none.
        """
        self.watch.settle()
        verdict = self.watch.verdict()
        claims = [c for c in verdict.claims if c.id != "answered" or not self.max_failures]
        if self.max_failures:
            claims.insert(0, self._few_failures())
        verdict = replace(verdict, claims=(*claims, self._fast_enough()))
        return explained(self.mesh, self.watch.target, verdict)

    def close(self) -> None:
        """Let go of the mesh."""
        self.watch.close()
        self.mesh.close()

    def _few_failures(self) -> Claim:
        sent, failed = self.sightings.sent, self.sightings.sent - self.sightings.answered
        part = failed / max(sent, 1)
        statement = f"at most {self.max_failures:.2%} of requests failed"
        detail, fails = f"{failed:,} of {sent:,}: {part:.2%}", part > self.max_failures
        figures = Sum(requests=sent, failed=failed)
        return figures.claim("max-failures", statement, detail, fails=fails, unproven=not sent)

    def _fast_enough(self) -> Claim:
        statement = f"95 % of callers waited at most {self.max_p95:g} ms"
        p95 = self.sightings.times.quantile(0.95)
        if p95 is None:
            return Sum().claim("p95", statement, "nobody was answered", unproven=True)
        return Sum(p95=round(p95)).claim("p95", statement, f"{p95:.0f} ms", fails=p95 > self.max_p95)


def publish(report: Path, verdict: Verdict, mesh: str) -> None:
    """Write the proof beside Locust's report, let each lead to the other, and say where they are.

    :raises HarnessError: it cannot be written.
    """
    proof = report.with_name("proof.html")
    pages.write(proof, verdict, mesh, pages.as_typed("load"), report.name)
    page, end = report.read_text(encoding="utf-8"), "</body>"
    before, _, behind = page.rpartition(end)
    link = f'<p><a href="{proof.name}">The proof of this run</a></p>'
    report.write_text(f"{before}{link}{end}{behind}", encoding="utf-8")
    click.echo(f"report: {report}, proof: {proof}, figures: {report.parent}/*.csv")
