"""Where a release stands: what rules the target, one release at a time, and the way back."""

import contextlib
from collections.abc import Iterator

from harness import HarnessError, Json
from harness.meshes.lock import lock, undisturbed
from harness.meshes.mesh import ROOT, Mesh
from harness.proof.mark import in_words, mark_of
from harness.proof.target import Routing, Target
from harness.release.routes import Group, Versions, routes_at


def ruling(routing: Routing) -> Json | None:
    """Return the VirtualService that rules the target for sidecars."""
    target = routing.target
    found = routing.applied.ruling(routing.host, target.namespace)
    if found and found[0]["kind"] == "VirtualService":
        return found[0]
    return None


def must_not_stand(routing: Routing) -> Json:
    """Return the VirtualService that a release of a target may begin with.

    :raises HarnessError: there is none, or a release stands at a step already.
    """
    found = ruling(routing)
    if not found:
        raise HarnessError(f"no VirtualService routes {routing.target.service}: a release changes one")
    if mark := mark_of(found):
        raise HarnessError(f"{in_words(mark)}: end it with 'make bail-out' first")
    return found


@contextlib.contextmanager
def alone(mesh: Mesh) -> Iterator[None]:
    """Let no second release begin on this machine."""
    busy = "a release is under way: wait for it, or end it with 'make bail-out'"
    with lock(mesh.home / "release", busy) as held:
        try:
            yield
        finally:
            held.unlink(missing_ok=True)


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
