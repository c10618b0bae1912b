"""The release's own callers, and what they say of who saw the candidate."""

from collections import Counter
from collections.abc import Iterator

from harness.proof.evidence import Claim, Sum
from harness.proof.figures import Sightings
from harness.release.routes import Plan, Step


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
        yield Sum(testers=testers, missed=missed).claim("testers", statement, detail, fails=missed > 0)
        if not self._step.percent:
            statement = f"nobody but testers saw {candidate}"
            detail = f"{others:,} of {others + self._saw[False, stable]:,} others did"
            yield Sum(leaks=others).claim("only-testers", statement, detail, fails=others > 0)
