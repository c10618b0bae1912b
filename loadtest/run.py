"""A load test as whoever keeps its ledger sees it, and the verdict on it."""

import re
from dataclasses import replace

import click

from harness.meshes.mesh import Mesh
from harness.proof.verdict import ANSWERED, Claim, Verdict, quantile
from harness.proof.verify import Proof

LIMIT = 10_000_000
"""What a ledger can hold: no ticket has this number."""

SEEN = "seen: "
"""How a line begins by which a master inside a cluster tells what callers saw."""


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
        for number in range(2):
            self.proof.promise(number)  # what cannot be told is better said now than after the run

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


def time_span(text: str) -> int:
    """Return the seconds of a time as Locust takes it: 90, 90s, 1m30s. With 0 it would never end.

    :raises ValueError: it is none.
    """
    found = re.fullmatch(r"(\d+)|(?=\d)(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    bare, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    if not (span := bare + 3600 * hours + 60 * minutes + seconds):
        raise ValueError(f"'{text}' is not a time such as 30s or 1h30m")
    return span


def check_time(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Check an option.

    :raises click.BadParameter: it is not a time.
    """
    try:
        time_span(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value
