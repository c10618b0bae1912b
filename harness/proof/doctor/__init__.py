"""The doctor: why does nothing arrive at v2, or why is it not proven? From what is applied, and what runs."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from harness import HarnessError, Json
from harness.meshes.mesh import Mesh
from harness.meshes.scene import Scene, named
from harness.proof.doctor import live, pods, policies, precedence, routes
from harness.proof.doctor.facts import Facts, Finding
from harness.proof.doctor.reading import STUMBLES
from harness.proof.target import Routing, Target
from harness.proof.verdict import Verdict

__all__ = ["Finding", "examine", "explained"]

SHOWN = 8
"""How many findings stand below a verdict, at most."""

CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    routes.leads_nowhere,
    pods.has_no_pod,
    pods.is_not_ready,
    pods.version_without_sidecar,
    routes.port_is_not_http,
    precedence.is_overruled,
    precedence.is_not_exported,
    precedence.sidecar_hides_it,
    precedence.only_gateways_mirror,
    precedence.gateway_does_not_mirror,
    routes.mirrors_nothing,
    routes.no_rule_leads_there,
    policies.refuses_the_caller,
    policies.denies_at_the_copy_only,
    policies.plain_text_meets_mutual_tls,
    live.was_refused,
    live.fuse_is_blown,
    live.is_ejected,
    live.leads_back,
    routes.mirrors_to_chance,
    routes.is_not_understood,
    routes.cannot_be_told_apart,
    pods.logs_nothing,
    pods.caller_without_sidecar,
)
"""What is looked for, in the order in which it is told: what keeps copies away stands first."""


def examine(mesh: Mesh, target: Target, loops: tuple[str, ...] = ()) -> list[Finding]:
    """Return what is found; ``loops`` are the ways on which a run saw copies lead back to the target.

    :raises HarnessError: the mesh does not run, or has no such Service.
    """
    scene = mesh.scene(target.namespace, target.callers)
    routing, found = _routing(_whole(scene), target)
    facts = Facts(mesh, routing, loops)
    for check in CHECKS:
        findings = check(facts)
        while True:
            try:
                found.append(next(findings))
            except StopIteration:
                break
            except (HarnessError, *STUMBLES):
                break  # an object of an unknown shape, or a proxy that does not answer: nothing can be told
    return list(dict.fromkeys(found))


def explained(mesh: Mesh, target: Target, verdict: Verdict) -> Verdict:
    """Return a verdict with what is found, if it is no PASS."""
    if verdict.passed:
        return verdict
    loops = [c.detail for c in verdict.claims if c.id == "no-loop" and c.state == "fails"]
    try:
        found = examine(mesh, target, tuple(way for detail in loops for way in detail.split("; ")))
    except HarnessError:
        return verdict
    return replace(verdict, findings=tuple(map(str, found[:SHOWN])))


def _whole(scene: Scene) -> Scene:
    """Return a scene whose objects all have a kind, a name and a spec."""

    def is_whole(found: Json) -> bool:
        metadata = found.get("metadata")
        return (
            isinstance(found.get("kind"), str)
            and isinstance(metadata, dict)
            and isinstance(metadata.get("name"), str)
            and isinstance(metadata.get("namespace") or "", str)
        )

    def whole(found: Json) -> Json:
        return found if isinstance(found.get("spec"), dict) else {**found, "spec": {}}

    objects = [whole(found) for found in scene.objects if isinstance(found, dict) and is_whole(found)]
    return replace(scene, objects=tuple(objects))


def _routing(scene: Scene, target: Target) -> tuple[Routing, list[Finding]]:
    """Resolve what is applied; an object that cannot be read is passed over, and is a finding.

    :raises HarnessError: there is no such Service, or it cannot be read.
    """
    try:
        return Routing(scene, target), []
    except STUMBLES:
        kept = [found for found in scene.objects if not _breaks(found, scene, target)]
    findings = [
        Finding(named(found), "its shape is not understood, so it is passed over", "see 'istioctl analyze'")
        for found in scene.objects
        if found not in kept
    ]
    try:
        return Routing(replace(scene, objects=tuple(kept)), target), findings
    except STUMBLES:
        raise HarnessError(
            "the applied objects have shapes that are not understood: see 'istioctl analyze'"
        ) from None


def _breaks(found: Json, scene: Scene, target: Target) -> bool:
    """Say whether an object by itself cannot be read."""
    service = {
        "kind": "Service",
        "metadata": {"name": target.service, "namespace": target.namespace},
        "spec": {"selector": {"a": "b"}},
    }
    rule = {"route": [{"destination": {"host": target.service, "subset": "any"}}]}
    probe = {  # makes that DestinationRules are read; it is the youngest, so that it hides no other
        "kind": "VirtualService",
        "metadata": {"name": "any", "namespace": target.namespace, "creationTimestamp": "9"},
        "spec": {"hosts": [target.service], "gateways": ["mesh", "any"], "http": [rule]},
    }
    try:
        Routing(replace(scene, objects=(service, probe, found), pods=()), target)
    except HarnessError:
        return False
    except STUMBLES:
        return True
    return False
