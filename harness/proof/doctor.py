"""The doctor: why does nothing arrive at v2, or why is it not proven? From what is applied, and what runs."""

from dataclasses import dataclass, replace

from harness import HarnessError
from harness.meshes.mesh import Mesh
from harness.proof.target import Routing, Target
from harness.proof.verdict import Verdict


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where it stands, what it does, and what to do."""

    where: str
    """The object and the field, as in ``virtualservice/recommendation spec.http[0].mirror``."""
    problem: str
    remedy: str

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.where}: {self.problem}: {self.remedy}"


def examine(mesh: Mesh, target: Target) -> list[Finding]:
    """Return what is found.

    :raises HarnessError: the mesh does not run, or has no such Service.
    """
    Routing(mesh.scene(target.namespace, target.callers), target)
    return []


def explained(mesh: Mesh, target: Target, verdict: Verdict) -> Verdict:
    """Return a verdict with what is found, if it is no PASS."""
    if verdict.passed:
        return verdict
    try:
        return replace(verdict, findings=tuple(map(str, examine(mesh, target))))
    except HarnessError:
        return verdict
