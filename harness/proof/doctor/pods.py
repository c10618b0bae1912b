"""Findings in what runs: pods that are missing, not ready, or without a proxy that logs."""

from collections.abc import Iterator

from harness.meshes.scene import Pod, named
from harness.proof.doctor.facts import READ, Facts, Finding, at, items, text

INJECT = "sidecar.istio.io/inject"


def is_not_ready(facts: Facts) -> Iterator[Finding]:
    """Find a version that a rule leads to, and of which no pod is ready, or there is none."""
    on_cluster = facts.mesh.name == "cluster"
    for name, version in facts.routing.versions.items():
        pods, where = facts.routing.pods_of(name), facts.workload(version.workload)
        if not version.workload or facts.routing.must_be_silent(name) or any(pod.ready for pod in pods):
            continue
        if pods:
            see = f"see why: {facts.kubectl(f'describe pod {pods[0].name}', pods[0].namespace)}"
            local = f"see 'make logs W={version.workload}', then run 'make up'"
            problem = f"none of the pods of {name} is ready ({len(pods)} there), so nothing is sent to it"
            yield Finding(f"{where} ({pods[0].name})", problem, see if on_cluster else local)
        elif at(facts.workload_object(version.workload), "spec", "replicas") == 0:
            scale, start = f"scale {where} --replicas=1", f"'make start W={version.workload}'"
            remedy = f"run {facts.kubectl(scale) if on_cluster else start}"
            yield Finding(f"{where} spec.replicas", f"it is 0, so {name} has no pod", remedy)
        else:
            yield Finding(where, f"{name} has no pod", f"see why: {facts.kubectl(f'describe {where}')}")


def version_without_sidecar(facts: Facts) -> Iterator[Finding]:
    """Find a version whose pods have no sidecar: nobody sees what arrives there."""
    for name in facts.routing.versions:
        for pod in [pod for pod in facts.routing.pods_of(name) if not pod.proxy][:1]:
            problem = f"pod {pod.name} of {name} has no sidecar, so nobody sees what arrives there"
            yield _inject(facts, pod, problem)


def caller_without_sidecar(facts: Facts) -> Iterator[Finding]:
    """Find pods that may call the target, and have no sidecar that could mirror."""
    for pod in {pod.workload: pod for pod in facts.others if not pod.proxy}.values():
        problem = f"it has no sidecar, so if it calls {facts.service}, nothing of that is mirrored"
        yield _inject(facts, pod, problem)


def _inject(facts: Facts, pod: Pod, problem: str) -> Finding:
    where = facts.workload(pod.workload)
    found = facts.workload_object(pod.workload) if pod.namespace == facts.namespace else None
    for place in ("spec.template.metadata.labels", "spec.template.metadata.annotations"):
        if at(found, *place.split("."), INJECT) == "false":
            remedy = "take it out, and apply the workload"
            return Finding(f'{where} {place}["{INJECT}"]', f"it is false: {problem}", remedy)
    if pod.labels.get(INJECT) == "false":
        remedy = "take it out, and start the pod anew"
        return Finding(f'{where} labels["{INJECT}"]', f"it is false: {problem}", remedy)
    label = facts.kubectl(f"label namespace {pod.namespace} istio-injection=enabled", pod.namespace)
    restart = facts.kubectl(f"rollout restart {where}", pod.namespace)
    return Finding(where, problem, f"run {label}, then {restart}")


def logs_nothing(facts: Facts) -> Iterator[Finding]:
    """Find versions and callers whose proxies write no access log, or not all of it."""
    versions = [pod for name in facts.routing.versions for pod in facts.routing.pods_of(name)]
    pods = {pod.workload: pod for pod in [*versions, *facts.callers] if pod.proxy}
    silent: dict[tuple[str, str, str], list[str]] = {}
    for workload, pod in list(pods.items())[:READ]:
        if found := _silence(facts, pod):
            silent.setdefault(found, []).append(workload)
    for (where, problem, remedy), workloads in silent.items():
        yield Finding(where, problem.format(", ".join(workloads)), remedy)


def _silence(facts: Facts, pod: Pod) -> tuple[str, str, str] | None:
    """Return where it stands that a pod's proxy logs nothing, the problem and the remedy; None: it logs."""
    nothing = "the sidecars of {} log no requests, so nothing is proven there"
    where = f"service/{facts.service}"
    telemetries = [t for t in facts.selecting("Telemetry", pod) if items(t, "spec", "accessLogging")]
    for telemetry in telemetries[:1]:
        where = f"{named(telemetry)} spec.accessLogging"
        for i, each in items(telemetry, "spec", "accessLogging"):
            if each.get("disabled") is True:
                return f"{where}[{i}].disabled", f"it is true: {nothing}", "write false, or take it out"
            if text(each, "filter", "expression"):
                problem = "the sidecars of {} log only what the filter lets through"
                return f"{where}[{i}].filter", problem, "take the filter out while a run is judged"
    remedy = "apply a Telemetry whose spec.accessLogging has providers: [{name: envoy}]"
    return (where, nothing, remedy) if facts.mesh.logs_requests(pod) is False else None
