"""What must happen to a request: who may answer its caller, and who gets copies."""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Expectation:
    """What must happen to a request.

    :param answers: (version, share) of those that answer callers; the share (0 to 1) is None where no
        route sets it.
    :param copies: (version, percentages of its mirrors) of those that get copies.
    """

    answers: tuple[tuple[str, float | None], ...]
    copies: tuple[tuple[str, tuple[float, ...]], ...] = ()

    @cached_property
    def allowed(self) -> list[str]:
        """The versions that may answer callers."""
        return [version for version, _ in self.answers]

    @cached_property
    def copied(self) -> list[str]:
        """The versions that get copies."""
        return [version for version, _ in self.copies]

    @cached_property
    def dark(self) -> list[str]:
        """The versions that get copies, and do not answer callers."""
        return [version for version in self.copied if version not in self.allowed]

    @cached_property
    def always(self) -> list[str]:
        """The versions that get a copy of every request, each as often as it does."""
        return [version for version, percentages in self.copies for p in percentages if p == 100]

    def describe(self, gone: frozenset[str] = frozenset()) -> str:
        """Return it in words; ``gone`` are the versions without a pod."""
        names = {v: f"{v} (no pod)" if v in gone else v for v in (*self.allowed, *self.copied)}
        answering = [(names[version], share) for version, share in self.answers]
        if len(answering) == 1:
            words = f"all to {answering[0][0]}"
        elif any(share is None for _, share in answering):
            words = f"to {' and '.join(name for name, _ in answering)}"
        else:
            words = ", ".join(f"{100 * (share or 0):g} % to {name}" for name, share in answering)
        mirrors = [f"mirrored {percent:g} % to {names[v]}" for v, many in self.copies for percent in many]
        return "; ".join([words or "to nobody", *mirrors])
