"""What a release does, and what it asks of the candidate."""

from dataclasses import dataclass, field

from harness.proof.evidence import Bounds
from harness.release.routes import LADDER, Group, Step, Versions


@dataclass(frozen=True)
class Plan:
    """The settings of a release."""

    versions: Versions = field(default_factory=Versions)
    steps: tuple[Step, ...] = LADDER
    testers: Group = field(default_factory=Group)
    seconds: float = 60.0
    """How long a step lasts at least where others send the requests."""
    requests: int = 0
    """How many requests of its own each step sends at least; 0: it sends none."""
    concurrency: int = 8
    url: str | None = None
    """Where to send them, if not to the workshop's gateway."""
    part: float = 0.02
    """A defect in this part of all answers must have shown, with a probability of 95 %."""
    bounds: Bounds = field(default_factory=Bounds)
