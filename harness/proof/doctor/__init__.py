"""The doctor: why does nothing arrive at v2, or why is it not proven? From what is applied, and what runs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from harness import HarnessError, Json
from harness.meshes.mesh import Mesh
from harness.meshes.scene import Scene, named
from harness.proof.doctor import pods, policies, routes, stores
from harness.proof.doctor.facts import Facts, Finding, text
from harness.proof.target import Routing, Target
from harness.proof.verdict import Verdict

Checks = tuple[Callable[[Facts], Iterator[Finding]], ...]

CHECKS: Checks = (
    routes.leads_nowhere, pods.is_not_ready, pods.cannot_be_made, pods.version_without_sidecar,
    routes.port_is_not_http,
    routes.is_overruled, routes.is_not_exported, routes.sidecar_hides_it, routes.gateways_and_sidecars_differ,
    routes.mirrors_nothing, routes.no_route_counts, routes.no_rule_leads_there,
    policies.refuses_the_caller, policies.denies_at_the_copy_only, policies.plain_text_meets_mutual_tls,
    pods.was_refused, pods.fuse_is_blown, pods.is_ejected, pods.leads_back,
    routes.mirrors_to_chance, routes.is_not_understood, routes.cannot_be_told_apart,
    stores.copies_reach_the_callers_store, stores.callers_are_answered_from_the_shadow,
    pods.logs_nothing, pods.is_draining, pods.caller_without_sidecar,
)  # fmt: skip
"""What is looked for, in the order in which it is told: what keeps copies away stands first."""

AT_ONCE: Checks = (
    routes.leads_nowhere, routes.port_is_not_http, routes.is_overruled, routes.mirrors_to_chance,
    routes.mirrors_nothing, routes.no_route_counts,
    stores.copies_reach_the_callers_store, stores.callers_are_answered_from_the_shadow,
)  # fmt: skip
"""What is told as soon as it is applied: it stands in the objects alone, and is hardly ever meant."""


def warnings(mesh: Mesh, namespace: str, services: Iterable[str]) -> Iterator[Finding]:
    """Yield what is wrong with what is applied for Services.

    :raises HarnessError: the mesh does not run.
    """
    scene = mesh.scene(namespace)
    for service in services:
        with suppress(HarnessError):  # it is gone
            yield from examine(mesh, Target(service, namespace), checks=AT_ONCE, scene=scene)


def examine(
    mesh: Mesh, target: Target, loops: tuple[str, ...] = (), checks: Checks = CHECKS,
    scene: Scene | None = None,
) -> list[Finding]:  # fmt: skip
    """Return what is found; ``loops`` are the ways on which a run saw copies lead back to the target.

    :raises HarnessError: the mesh does not run, or has no such Service.
    """
    routing, found = _routing(scene or mesh.scene(target.namespace, target.callers), target)
    facts = Facts(mesh, routing, loops)
    for check in checks:
        # A check ends at an object of an unknown shape, and where a proxy does not answer.
        with suppress(Exception):
            for finding in check(facts):
                found.append(finding)
    return list(dict.fromkeys(found))


def explained(mesh: Mesh, target: Target, verdict: Verdict) -> Verdict:
    """Return a verdict with what is found, eight findings at most, if it is no PASS."""
    if verdict.passed:
        return verdict
    loops = [c.detail for c in verdict.claims if c.id == "no-loop" and c.state == "fails"]
    with suppress(HarnessError):
        found = examine(mesh, target, tuple(way for detail in loops for way in detail.split("; ")))
        return replace(verdict, findings=tuple(map(str, found[:8])))
    return verdict


def _routing(scene: Scene, target: Target) -> tuple[Routing, list[Finding]]:
    """Resolve what is applied; an object that cannot be read is passed over, and is a finding."""
    objects = [found for found in scene.objects if text(found, "kind") and text(found, "metadata", "name")]
    with suppress(Exception):
        return Routing(replace(scene, objects=tuple(objects)), target), []
    kept: list[Json] = []
    findings: list[Finding] = []
    # Services come first, since nothing is read without the target's; what routes refer to comes last.
    for found in sorted(objects, key=lambda o: (o["kind"] != "Service", o["kind"] == "DestinationRule")):
        try:
            with suppress(HarnessError):  # there is no Service of the target's yet
                Routing(replace(scene, objects=(*kept, found)), target)
            kept.append(found)
        except Exception:
            problem = "its shape is not understood, so it is passed over"
            findings.append(Finding(named(found), problem, "see 'istioctl analyze'"))
    return Routing(replace(scene, objects=tuple(kept)), target), findings
