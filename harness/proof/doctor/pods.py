"""Findings in what runs: pods that are missing, not ready, or without a proxy that logs."""

from collections.abc import Iterator

from harness import Json
from harness.meshes.scene import Pod, Scene, named
from harness.proof.doctor.facts import Facts, Finding
from harness.proof.doctor.reading import at, items, labels, text
from harness.proof.expectation import namespace_of

ROOT = "istio-system"
"""Istio's root namespace: what stands there without a selector holds everywhere."""

INJECT = "sidecar.istio.io/inject"

ASKED = 12
"""How many proxies are asked, at most, whether they log requests."""


def has_no_pod(facts: Facts) -> Iterator[Finding]:
    """Find a version that a rule leads to, and that has no pod."""
    for name, version in facts.routing.versions.items():
        if not version.workload or facts.routing.pods_of(name) or facts.routing.must_be_silent(name):
            continue
        found = facts.workload_object(version.workload)
        where = facts.workload(version.workload)
        if at(found, "spec", "replicas") == 0:
            start = f"run 'make start W={version.workload}'"
            if facts.mesh.name == "cluster":
                start = f"run {facts.kubectl(f'scale {where} --replicas=1')}"
            yield Finding(f"{where} spec.replicas", f"it is 0, so {name} has no pod", start)
        else:
            see = facts.kubectl(f"describe {where}")
            yield Finding(where, f"{name} has no pod", f"see why: {see}")


def is_not_ready(facts: Facts) -> Iterator[Finding]:
    """Find a version that a rule leads to, and of which no pod is ready."""
    for name, version in facts.routing.versions.items():
        pods = facts.routing.pods_of(name)
        if not pods or any(pod.ready for pod in pods) or facts.routing.must_be_silent(name):
            continue
        see = f"see 'make logs W={version.workload}', then run 'make up'"
        if facts.mesh.name == "cluster":
            see = f"see why: {facts.kubectl(f'describe pod {pods[0].name}', pods[0].namespace)}"
        problem = f"none of the pods of {name} is ready ({len(pods)} there), so nothing is sent to it"
        yield Finding(f"{facts.workload(version.workload)} ({pods[0].name})", problem, see)


# --- sidecars ---------------------------------------------------------------------------------------------


def version_without_sidecar(facts: Facts) -> Iterator[Finding]:
    """Find a version whose pods have no sidecar: nobody sees what arrives there."""
    for name, version in facts.routing.versions.items():
        bare = [pod for pod in facts.routing.pods_of(name) if not pod.proxy]
        if bare:
            problem = f"pod {bare[0].name} of {name} has no sidecar, so nobody sees what arrives there"
            yield _inject(facts, version.workload, bare[0], problem)


def caller_without_sidecar(facts: Facts) -> Iterator[Finding]:
    """Find pods that may call the target, and have no sidecar that could mirror."""
    bare = {pod.workload: pod for pod in facts.others if not pod.proxy}
    for workload, pod in bare.items():
        problem = f"it has no sidecar, so if it calls {facts.service}, nothing of that is mirrored"
        yield _inject(facts, workload, pod, problem)


def _inject(facts: Facts, workload: str, pod: Pod, problem: str) -> Finding:
    where, template = facts.workload(workload), ("spec", "template", "metadata")
    found = facts.workload_object(workload) if pod.namespace == facts.namespace else None
    for kind in ("labels", "annotations"):
        if labels(found, *template, kind).get(INJECT) == "false":
            field = f'{".".join(template)}.{kind}["{INJECT}"]'
            return Finding(
                f"{where} {field}", f"it is false: {problem}", "take it out, and apply the workload"
            )
    if pod.labels.get(INJECT) == "false":
        return Finding(
            f'{where} labels["{INJECT}"]', f"it is false: {problem}", "take it out, and start the pod anew"
        )
    label = facts.kubectl(f"label namespace {pod.namespace} istio-injection=enabled", pod.namespace)
    restart = facts.kubectl(f"rollout restart {where}", pod.namespace)
    return Finding(where, problem, f"run {label}, then {restart}")


# --- access logs ------------------------------------------------------------------------------------------


def logs_nothing(facts: Facts) -> Iterator[Finding]:
    """Find versions and callers whose proxies write no access log, or not all of it."""
    versions = [pod for name in facts.routing.versions for pod in facts.routing.pods_of(name)]
    pods = {pod.workload: pod for pod in reversed([*versions, *facts.callers]) if pod.proxy}
    silent: dict[tuple[str, str, str], list[str]] = {}
    for workload, pod in [*reversed(pods.items())][:ASKED]:
        if found := _silence(facts, pod):
            silent.setdefault(found, []).append(workload)
    for (where, problem, remedy), workloads in silent.items():
        yield Finding(where, problem.format(", ".join(workloads)), remedy)


def _silence(facts: Facts, pod: Pod) -> tuple[str, str, str] | None:
    """Return where it stands that a pod's proxy logs nothing, the problem and the remedy; None: it logs."""
    nothing = "the sidecars of {} log no requests, so nothing is proven there"
    telemetry = next(
        (t for t in selecting(facts.scene, "Telemetry", pod) if items(t, "spec", "accessLogging")), None
    )
    for i, each in items(telemetry, "spec", "accessLogging"):
        where = f"{named(telemetry or {})} spec.accessLogging[{i}]"
        if each.get("disabled") is True:
            return f"{where}.disabled", f"it is true: {nothing}", "write false, or take it out"
        if text(each, "filter", "expression"):
            problem = "the sidecars of {} log only what the filter lets through"
            return f"{where}.filter", problem, "take the filter out while a run is judged"
    if facts.mesh.logs_requests(pod) is False:
        remedy = "apply a Telemetry whose spec.accessLogging has providers: [{name: envoy}]"
        where = f"{named(telemetry)} spec.accessLogging" if telemetry else f"service/{facts.service}"
        return where, nothing, remedy
    return None


def selecting(scene: Scene, kind: str, pod: Pod) -> list[Json]:
    """Return the policies that hold for a pod: its own first, then its namespace's, then the mesh's."""
    ranked: list[tuple[int, str, Json]] = []
    for found in scene.of_kind(kind):
        home, chosen = namespace_of(found, scene), labels(found, "spec", "selector", "matchLabels")
        if (
            home not in (pod.namespace, ROOT)
            or at(found, "spec", "targetRefs")
            or at(found, "spec", "targetRef")
        ):
            continue
        if chosen.items() <= dict(pod.labels).items():
            rank = 0 if chosen else 1 if home == pod.namespace else 2
            ranked.append((rank, text(found, "metadata", "creationTimestamp"), found))
    return [found for _, _, found in sorted(ranked, key=lambda each: each[:2])]
