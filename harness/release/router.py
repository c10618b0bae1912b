"""The router of a release: it changes what is applied, step by step, and leads back."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

import yaml

from harness import HarnessError, Json
from harness.meshes.lock import undisturbed
from harness.meshes.mesh import ROOT, Mesh, MeshError, Progress
from harness.proof.mark import in_words, mark_of, marked
from harness.proof.stores import writers
from harness.proof.target import Routing, Target
from harness.proof.traffic import new_run
from harness.release.routes import Group, Plan, Step, Versions, routes_at
from harness.steps import LIVE

INSIST = 120.0
"""For how many seconds a mesh that does not answer is asked again to bail out."""


class CalledOff(HarnessError):
    """Somebody else changed the route: the release is theirs now."""


def ruling(routing: Routing) -> Json | None:
    """Return the VirtualService that rules the target for sidecars."""
    target = routing.target
    found = routing.applied.ruling(routing.host, target.namespace)
    if found and found[0]["kind"] == "VirtualService":
        return found[0]
    return None


class Router:
    """The VirtualService that leads callers to the target: as it is at each step, and the way back."""

    def __init__(self, mesh: Mesh, routing: Routing, plan: Plan, progress: Progress) -> None:
        """Look at what is applied.

        :raises HarnessError: a subset or a route is missing, or a release stands at a step.
        """
        self._mesh, self._plan, self._progress = mesh, plan, progress
        found = ruling(routing)
        if not found:
            raise HarnessError(f"no VirtualService routes {routing.target.service}: a release changes one")
        if mark := mark_of(found):
            raise HarnessError(f"{in_words(mark)}: end it with 'make bail-out' first")
        self._original, self._host = found, routing.host
        self._id, self._is_back = new_run(), False
        self._secret: Json | None = None
        """What gives the candidate its own store, while it has the live one."""
        known = routing.applied.subsets_of(self._host)
        for name in [name for name in plan.versions if name not in known]:
            problem = f"no DestinationRule gives {routing.target.service} a subset '{name}'"
            raise HarnessError(f"{problem} (there are: {', '.join(known) or 'none'})")

    def _at(self, step: Step | None) -> Json:
        return routes_at(self._original, self._host, self._plan.versions, step, self._plan.testers)

    def lead_to(self, step: Step, hurry: Callable[[], bool]) -> None:
        """Apply the route of a step, with the mark of the release."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._mesh.put(marked(self._at(step), {"id": self._id, "step": str(step), "since": since}), hurry)

    def stay_at(self, step: Step) -> None:
        """Apply the route of a step for good: without the mark."""
        self._mesh.put(self._at(step))

    def lead_back(self) -> None:
        """Lead every caller back to the stable version. A mesh that does not answer is asked again.

        :raises MeshError: it does not answer for long.
        """
        end = time.monotonic() + INSIST
        while not self._is_back:
            try:
                with undisturbed():
                    self._mesh.put(self._at(None))
                    self._is_back = True
            except MeshError as error:
                if time.monotonic() > end:
                    raise
                self._progress(f"cannot bail out yet, and try again: {error}")
                time.sleep(0.2)

    def must_be_ours(self, routing: Routing, changes: list[str]) -> None:
        """Look whether the route of a step is still what is applied.

        :raises CalledOff: somebody else put another one there.
        :raises HarnessError: something else changed.
        """
        if not changes:
            return
        found = ruling(routing)
        if not found or mark_of(found).get("id") != self._id:
            raise CalledOff(f"somebody else ended the release ({changes[-1]}): what they applied stays")
        raise HarnessError(f"{changes[-1]} during a step, so nothing can be said of it")

    def give_the_live_store(self, routing: Routing) -> None:
        """Let the workshop's candidate write where callers read, before it answers any.

        No copy may reach it any more then, so the stable version is alone for that moment.
        """
        access = dict(writers(self._mesh, routing))
        stable, candidate = (access.get(name) for name in self._plan.versions)
        if not stable or not candidate or candidate.database == stable.database:
            return
        self._mesh.put(self._at(None))
        [secret] = yaml.safe_load_all((ROOT / LIVE).read_text())
        name = secret["metadata"]["name"]
        self._secret = {**secret, "stringData": dict(self._mesh.secrets([name])[name])}
        self._progress(f"{self._plan.versions.candidate} gets the live store")
        self._mesh.apply(ROOT / LIVE)

    def give_its_own_store(self) -> None:
        """Let the candidate write where it wrote before the release."""
        if self._secret:
            self._mesh.put(self._secret)


def bail_out(mesh: Mesh, target: Target, versions: Versions) -> list[str]:
    """Lead every caller to the stable version, whatever is applied; return what was done, line by line.

    :raises HarnessError: the mesh does not run, or does not answer.
    """
    with undisturbed():
        routing = Routing(mesh.scene(target.namespace), target)
        if found := ruling(routing):
            try:
                return mesh.put(routes_at(found, routing.host, versions, None, Group()))
            except HarnessError:  # it leads elsewhere
                if target != Target():
                    raise
        if target != Target():
            raise HarnessError(
                f"no VirtualService routes {target.service}, so there is nothing to change back"
            )
        ruled = routing.applied.ruling(routing.host, target.namespace)
        folder = ROOT / "istio" / ("gateway-api" if ruled and ruled[0]["kind"] == "HTTPRoute" else "")
        return mesh.apply(folder / "v1-only.yaml")
