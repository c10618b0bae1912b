"""The workshop on a mesh: where one stands, whether a step is done, and how to catch up."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from harness import HarnessError, Json
from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.mesh import ISTIO, ROOT, SHADOW, Mesh, Progress, get, quietly
from harness.meshes.scene import named
from harness.proof import doctor
from harness.proof.evidence import Bounds
from harness.proof.report import WORDS
from harness.proof.target import Routing, Target
from harness.proof.verdict import Verdict
from harness.proof.watch import verify
from harness.steps import COMPARE, HINTS, PROVEN, ROUTE, SECRETS, State, Step, make, state_after

SIZE = 100
"""How many requests prove a step that does not say how many."""


def mark(mesh: Mesh) -> Path:
    """Return where it is written which exercise is under way."""
    return mesh.home / "exercise.json"


def _words(routing: Routing) -> str:
    return " | ".join(dict.fromkeys(rule.expectation.describe() for rule in routing.rules))


class Place:
    """What is applied and runs on a mesh, as far as the steps change it."""

    def __init__(self, mesh: Mesh) -> None:
        """Look.

        :raises HarnessError: the mesh does not run, or does not answer.
        """
        self.scene = mesh.scene(Target().namespace)
        self.routing = Routing(self.scene, Target())
        self.secrets = mesh.secrets([key.partition("/")[2] for key in SECRETS])
        v2 = [d for d in self.scene.of_kind("Deployment") if d["metadata"]["name"] == SHADOW]
        self.stopped = all(found["spec"].get("replicas") == 0 for found in v2)
        mine = [o for o in self.scene.objects if self.routing.applied.namespace_of(o) == self.scene.namespace]
        self.compares = any(named(found) == COMPARE for found in mine)

    def differs(self, secret: Json) -> bool:
        """Say whether a Secret holds something else here."""
        return bool(self.secrets.get(secret["metadata"]["name"]) != secret["stringData"])

    def problems(self, state: State) -> Iterator[tuple[str, str]]:
        """Yield (what is not as in a state, the command that mends it)."""
        if self.stopped != state.stopped:
            yield f"{SHADOW} {'is stopped' if self.stopped else 'runs'}", state.scaled
        route = state.applied[ROUTE]
        others = [found for found in self.scene.objects if named(found) != ROUTE]
        wanted = Routing(replace(self.scene, objects=(*others, route.document)), Target())
        if (said := _words(self.routing)) != _words(wanted):
            yield f"the routes say: {said}; and not: {_words(wanted)}", route.command
        for key in SECRETS:
            document, file, command = state.applied[key]
            if self.differs(document):
                yield f"{key} is not as in {file}", command
        if self.compares != (COMPARE in state.applied):
            verb = "delete" if self.compares else "apply"
            yield f"{COMPARE} is {'' if self.compares else 'not '}applied", f"{verb} F=istio/compare.yaml"


def standing(mesh: Mesh) -> int:
    """Return the number of the step after which a mesh is as it is; 0 if it does not run.

    :raises HarnessError: it is as after no step, or does not answer.
    """
    if not mesh.objects():
        return 0
    place = Place(mesh)
    alike = [step.number for step in PROVEN if not any(place.problems(state_after(step.number)))]
    if not alike:
        which, there = make("check STEP=3", mesh.name), make("step N=3", mesh.name)
        problem = f"what is applied is as after no step ({_words(place.routing)})"
        raise HarnessError(f"{problem}: '{which}' says what differs from one, '{there}' brings you there")
    if [rule.written.title for rule in place.routing.rules] != ["v1-only"]:
        return max(alike)
    # Silence and bail-out route alike, but by rules of other names. Nothing may be proven yet.
    proven = any("dark-launch/" in line for _, line in mesh.logs("recommendation-v1"))
    return 2 if proven else 1


def prove(mesh: Mesh, step: Step, progress: Progress = quietly, size: int | None = None) -> Verdict:
    """Send what proves a step, and return the verdict."""
    bounds = Bounds(ignored=tuple(filter(None, step.proof.get("IGNORE", "").split(","))))
    size = size or int(step.proof.get("N", SIZE))
    return verify(mesh, Target(), size, progress=progress, bounds=bounds)


def as_told(step: Step, verdict: Verdict) -> bool:
    """Say whether a verdict is the one that a step ends with."""
    made = {claim.id for claim in verdict.claims}
    return set(verdict.failed()) == set(step.fails) and not verdict.unproven() and made.issuperset(step.holds)


def _unlike(mesh: Mesh, step: Step, verdict: Verdict) -> Iterator[str]:
    """Yield what of a verdict is not as a step wants it, with what to do."""
    for claim in verdict.claims:
        if claim.holds == (claim.id in step.fails) or claim.state == "unproven":
            should = " (and should fail)" if claim.holds else ""
            yield f"  {WORDS[claim.state]:<4}  {claim.statement}{should}: {claim.detail}"
            if not claim.holds and claim.id in HINTS:
                yield f"        {HINTS[claim.id]}"
    for id in (*step.holds, *step.fails):
        if not any(claim.id == id for claim in verdict.claims):
            yield f"  FAIL  the claim '{id}' is not made: the routes do not ask for it"
    for finding in doctor.explained(mesh, Target(), verdict).findings if not step.fails else ():
        yield f"  {finding}"


def examine(mesh: Mesh, step: Step, progress: Progress = quietly) -> tuple[int, list[str]]:
    """Say whether a step is done: 0 it is, 1 it is not, 2 that cannot be told; and in words, line by line.

    :raises HarnessError: the mesh does not answer.
    """
    undone = f"step {step.number} is not done: {step.title}"
    if step not in PROVEN:
        return 2, [f"step {step.number} leaves nothing to check: its page says what you must see"]
    if not mesh.objects():
        return 1, [undone, f"  nothing runs: {make('up', mesh.name)}"]
    found = [
        f"  {problem}: {make(command, mesh.name)}"
        for problem, command in Place(mesh).problems(state_after(step.number))
    ]
    if found:
        return 1, [undone, *found]
    done = f"step {step.number} is done: {step.title}"
    if not step.holds:
        answer = get(mesh.url())
        return (0, [done]) if answer.ok else (1, [undone, f"  callers get {answer.status_code}: make doctor"])
    verdict = prove(mesh, step, progress)
    if as_told(step, verdict):
        return 0, [f"{done} ({verdict.requests:,} requests)"]
    return 2 if verdict.exit_code == 2 else 1, [undone, *_unlike(mesh, step, verdict)]


def catch_up(mesh: Mesh, number: int) -> None:
    """Bring a mesh to the state after a step, whatever state it is in; 0 is before the first.

    :raises HarnessError: it cannot be started; on a cluster: nothing is deployed there.
    """
    mark(mesh).unlink(missing_ok=True)
    state, files = state_after(number), [file for file in ISTIO if file.name != "v1-only.yaml"]
    if isinstance(mesh, EnvoyMesh):
        if number == 0:
            mesh.down()
            return
        mesh.up()
        mesh.reset()
    mesh.workload(SHADOW)  # on a cluster nothing may be deployed
    place = Place(mesh)
    # No Deployment is applied: a terminal may lack what names the images that were deployed.
    for secret in filter(place.differs, (state.applied[key].document for key in SECRETS)):
        mesh.put(secret)
    files += [ROOT / a.file for key, a in state.applied.items() if key in (ROUTE, COMPARE) and a.file]
    mesh.apply(*files)
    if place.compares and COMPARE not in state.applied:
        mesh.delete(ROOT / "istio" / "compare.yaml")
    if not state.applied[ROUTE].file:
        mesh.put(state.applied[ROUTE].document)
    for found in place.scene.of_kind("Deployment"):
        name, stopped = found["metadata"]["name"], found["spec"].get("replicas") == 0
        if stopped != (name == SHADOW and state.stopped):
            mesh.scale(name, int(stopped))
    for replicas in (0, 1) if number == 0 else ():
        mesh.scale("recommendation-v1", replicas)  # its log says that something was proven
