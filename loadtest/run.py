"""A load test as whoever keeps its ledger sees it, and the verdict on it."""

from dataclasses import replace

import click

from harness.mesh import Mesh
from harness.models import seconds
from harness.verdict import ANSWERED, Claim, Verdict, quantile
from harness.verify import Proof

LIMIT = 10_000_000
"""What a ledger can hold: no ticket has this number."""

SEEN = "seen: "
"""How a line begins by which a master inside a cluster tells what callers saw."""


COLUMNS = ("Requests", "Mirrored", "Missing", "Leaks")
"""What a tally counts."""


class Tally:
    """Counts tickets as their callers are answered, and looks again only at those without a copy."""

    def __init__(self, proof: Proof) -> None:
        self._proof = proof
        self._requests = self._mirrored = self._leaks = 0
        self._without_copy: dict[int, bool] = {}
        """Number → whether there must be one."""

    def add(self, number: int) -> None:
        """Count a ticket whose caller knows the outcome."""
        ledger, promise = self._proof.ledger, self._proof.promise(number)
        answered = ledger.answered(number)
        self._requests += 1
        self._leaks += answered and ledger.version(number) not in dict(promise.answers)
        self._without_copy[number] = answered and any(100 in percents for _, percents in promise.copies)

    def figures(self) -> dict[str, int]:
        """Return the figures of now; copies that are on their way are missing."""
        ledger = self._proof.ledger
        for number in list(self._without_copy):
            version = ledger.version(number)
            if any(found.counts[number] for name, found in ledger.arrivals.items() if name != version):
                del self._without_copy[number]
                self._mirrored += 1
        missing = sum(self._without_copy.values())
        return dict(zip(COLUMNS, (self._requests, self._mirrored, missing, self._leaks), strict=True))


class Run:
    """One load test, from start to stop."""

    def __init__(self, mesh: Mesh, max_failures: float, max_p95: float) -> None:
        """Open the ledger.

        :param max_failures: the part of all requests (0 to 1) that may fail.
        :param max_p95: for how many milliseconds 95 % of callers may wait at most.
        :raises HarnessError: the mesh does not run, or of its routes nothing can be told.
        """
        self.mesh, self.max_failures, self.max_p95 = mesh, max_failures, max_p95
        self.proof = Proof(mesh, 0, limit=LIMIT)
        self.tally = Tally(self.proof)
        for number in range(2):
            self.proof.promise(number)  # what cannot be told is better said now than after the run

    def saw(self, number: int, status: int, version: str | None, seconds: float) -> None:
        """Enter what the caller of a ticket saw."""
        self.proof.ledger.saw(number, status, version, seconds)
        self.tally.add(number)

    def end(self) -> Verdict:
        """Return the verdict, with a claim for each threshold; then let go of the mesh.

        :raises HarnessError: there can be none.
        """
        try:
            self.proof.settle()
        finally:
            self.proof.close()
            self.mesh.close()
        ledger = self.proof.ledger
        sent = ledger.numbers()
        self.proof.must_be_enough(sent)
        verdict = self.proof.verdict()
        claims = list(verdict.claims)
        if self.max_failures:
            failed = sum(not self._well_answered(number) for number in sent) / max(len(sent), 1)
            statement = f"at most {self.max_failures:.2%} of requests failed"
            claims = [claim for claim in claims if claim.statement != ANSWERED]
            claims.insert(0, Claim(statement, failed <= self.max_failures, f"{failed:.2%}"))
        p95 = 1000 * (quantile([ledger.latency[number] for number in sent], 0.95) or 0)
        statement = f"95 % of callers waited at most {self.max_p95:g} ms"
        claims.append(Claim(statement, p95 <= self.max_p95, f"{p95:.0f} ms"))
        return replace(verdict, claims=tuple(claims))

    def _well_answered(self, number: int) -> bool:
        ledger = self.proof.ledger
        return ledger.answered(number) and ledger.version(number) in dict(self.proof.promise(number).answers)


def time_span(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Check that an option is a time that Locust takes."""
    try:
        seconds(value)
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a time such as 30s or 1h30m") from None
    return value
