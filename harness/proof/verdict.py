"""The verdict: evidence in, checked claims out. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from harness.proof import claims as run_claims
from harness.proof.evidence import Claim, Evidence, State, Stream
from harness.proof.figures import Comparison, Tally, Times
from harness.proof.rule_claims import OF_RULE, status_pairs
from harness.proof.store_claims import of_stores
from harness.proof.story import Shape

SCHEMA = 1
"""The version of the verdict's JSON: it changes when a field goes or means something else."""

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Side:
    """What one side measured; durations in milliseconds, sizes in bytes."""

    version: str
    requests: int
    status: Mapping[int, int]
    median: float | None
    p99: float | None
    size: float | None
    """The mean size of an answer."""


@dataclass(frozen=True)
class Verdict:
    """All claims of one run."""

    run: str
    target: str
    requests: int
    """How many requests to the target were judged."""
    routes: str
    claims: tuple[Claim, ...]
    sides: tuple[Side, ...]
    callers: Side
    unjudged: int = 0
    """Requests that were under way at the end, or when what is applied changed."""
    compared: tuple[Comparison, ...] = ()
    """How each dark version answered beside the callers' version."""
    findings: tuple[str, ...] = ()
    """What `doctor` finds, one line each, where a claim does not hold."""
    evidence: Evidence | None = field(default=None, compare=False, repr=False)
    """What it rests on; no part of the JSON."""

    @property
    def passed(self) -> bool:
        return all(claim.holds for claim in self.claims)

    @property
    def exit_code(self) -> int:
        """0: every claim holds. 1: one fails. 2: none fails, but one is unproven."""
        return {"holds": 0, "fails": 1, "unproven": 2}[self.state]

    @property
    def state(self) -> State:
        return "holds" if self.passed else "fails" if self.failed() else "unproven"

    @property
    def word(self) -> str:
        return {"holds": "PASS", "fails": "FAIL", "unproven": "UNPROVEN"}[self.state]

    def failed(self) -> list[str]:
        return self._ids("fails")

    def unproven(self) -> list[str]:
        return self._ids("unproven")

    def _ids(self, state: State) -> list[str]:
        """Return the ids of the claims in a state, each once."""
        return list(dict.fromkeys(claim.id for claim in self.claims if claim.state == state))

    def claim(self, id: str) -> Claim:
        """Return the first claim with an id.

        :raises KeyError: there is none.
        """
        return {claim.id: claim for claim in reversed(self.claims)}[id]

    def to_dict(self) -> dict[str, Any]:
        """Return it in the types of JSON."""
        said = asdict(replace(self, evidence=None))
        del said["evidence"]
        return {"schema": SCHEMA, "verdict": self.word, "passed": self.passed, **said}


def judge(evidence: Evidence, run: str = "", unjudged: int = 0) -> Verdict:
    """Return the verdict on what was seen."""
    routing, shapes = evidence.routing, evidence.shapes.items()
    streams = [
        Stream(evidence, place, rule, {s: t for s, t in shapes if {call.rule for call in s.own} == {place}})
        for place, rule in enumerate(routing.rules)
    ]
    taken = [stream for stream in streams if stream.shapes]
    claims = [claim for make in run_claims.FIRST for claim in make(evidence)]
    for stream in taken:
        prefix = f"[{stream.rule.written.title}] " if len(routing.rules) > 1 else ""
        for make in OF_RULE:
            if stream.rule.problems and make is not OF_RULE[0]:
                continue  # it is not known what to expect
            claims += [replace(claim, statement=prefix + claim.statement) for claim in make(stream)]
    claims += [claim for make in (*run_claims.LAST, of_stores) for claim in make(evidence)]
    for i, claim in enumerate(claims):
        if reason := evidence.blind.get(claim.version):  # nobody can read the logs on which it rests
            claims[i] = replace(claim, state="unproven", detail=f"{claim.detail}; {reason}")
    words = dict.fromkeys(stream.rule.expectation.describe(routing.gone) for stream in taken or streams)
    seen = evidence.sightings
    return Verdict(
        run=run,
        target=f"{routing.target.service}.{routing.target.namespace}",
        requests=sum(len(shape.own) * t.count for stream in streams for shape, t in stream.shapes.items()),
        routes=" | ".join(words),
        claims=tuple(claims),
        sides=tuple(_side(name, evidence.times.get(name, Times())) for name in routing.versions),
        callers=_side("callers", seen.times if seen else evidence.callers),
        unjudged=unjudged,
        compared=tuple(_comparisons(evidence)),
        evidence=evidence,
    )


def broken_by(evidence: Evidence, shape: Shape) -> list[Claim]:
    """Return the claims that a story of a shape breaks by itself."""
    alone = judge(Evidence(evidence.routing, {shape: Tally(1)}, bounds=evidence.bounds))
    return [claim for claim in alone.claims if claim.state == "fails"]


def _side(version: str, times: Times) -> Side:
    mean = times.bytes / times.sized if times.sized else None
    return Side(version, times.count, dict(times.status), times.quantile(0.5), times.quantile(0.99), mean)


def _comparisons(evidence: Evidence) -> Iterator[Comparison]:
    """Yield a comparison for each dark version that got copies."""
    routing = evidence.routing
    for version in filter(routing.is_dark, routing.copied):
        rules = [rule.expectation for rule in routing.rules if version in rule.expectation.copied]
        allowed = list(dict.fromkeys(name for expectation in rules for name in expectation.allowed))
        pairs: Counter[tuple[int, int]] = Counter()
        for shape, tally in evidence.shapes.items():
            for pair in status_pairs(shape, version):
                pairs[pair] += tally.count
        ours = evidence.times[version]
        theirs = evidence.times[allowed[0]] if len(allowed) == 1 else Times()
        if pairs:
            yield replace(
                evidence.compared[version], version=version, against=" and ".join(allowed),
                status={f"{a} x {b}": n for (a, b), n in pairs.most_common()},
                times={name: (theirs.quantile(q), ours.quantile(q)) for name, q in QUANTILES.items()},
            )  # fmt: skip
