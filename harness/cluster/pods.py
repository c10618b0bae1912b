"""The workshop's pods in a cluster: how they are, and what they log."""

import contextlib
from collections.abc import Iterator

from harness import Json
from harness.cluster.kubectl import Kubectl
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import of_kind
from harness.manifests.read import read
from harness.meshes.mesh import GATEWAY, WORKLOADS, MeshError, PodStatus

SIDECAR = "istio-proxy"
"""The sidecar's container, native or classic."""


def pods_of(kubectl: Kubectl, workload: str) -> list[Json]:
    """Return the pods of a workload that are not about to end."""
    [deployment] = [d for d in of_kind(read(*WORKLOADS), Deployment) if d.metadata.name == workload]
    chosen = ",".join(f"{name}={value}" for name, value in deployment.labels.items())
    pods = kubectl.items("pods", f"--selector={chosen}")
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def _state(pod: Json) -> str:
    statuses = pod["status"].get("containerStatuses", []) + [
        s for s in pod["status"].get("initContainerStatuses", []) if s["name"] == SIDECAR
    ]
    for status in statuses:
        if reason := status.get("state", {}).get("waiting", {}).get("reason"):
            return str(reason)
    ready = sum(status["ready"] for status in statuses)
    phase = str(pod["status"].get("phase", "Unknown"))
    return phase if ready == len(statuses) else f"{phase}, {ready}/{len(statuses)} ready"


def why(kubectl: Kubectl, pods: list[Json]) -> str:
    """Return what the cluster knows of pods that do not become ready: events, and their last words."""
    lines = []
    for pod in pods:
        name = pod["metadata"]["name"]
        chosen = f"--field-selector=involvedObject.name={name}"
        events = kubectl.items("events", chosen, "--sort-by=.lastTimestamp")
        lines += [f"  {name}: {e.get('reason')}: {e.get('message')}" for e in events[-5:]]
        with contextlib.suppress(MeshError):
            said = kubectl.run("logs", name, "--all-containers", "--tail=3")
            lines += [f"  {name} | {line}" for line in said.splitlines()]
    if not lines:  # Pod Security, a quota or a webhook did not let any pod be made
        failed = kubectl.items("events", "--field-selector=reason=FailedCreate")
        lines = [f"  {e['involvedObject']['name']}: {e.get('message')}" for e in failed[-3:]]
    return "\n".join(lines) or "  (there is no pod)"


def statuses(kubectl: Kubectl, workloads: list[str]) -> list[PodStatus]:
    """Return how each pod of the gateway and of workloads is."""
    everywhere = kubectl.items("pods", "--all-namespaces", "--selector=istio=ingressgateway")
    found = [(GATEWAY, pod) for pod in everywhere]
    found += [(w, pod) for w in workloads for pod in pods_of(kubectl, w)]
    return [
        PodStatus(pod["metadata"]["name"], workload, _state(pod), pod["status"].get("podIP", "-"))
        for workload, pod in found
    ]


def logs(kubectl: Kubectl, workload: str) -> Iterator[tuple[str, str]]:
    """Yield (container, line) for everything that a workload and its sidecars logged."""
    for pod in pods_of(kubectl, workload):
        names = [container["name"] for container in pod["spec"]["containers"]]
        application = next(name for name in names if name != SIDECAR)
        for container in (application, SIDECAR):
            said = kubectl.run("logs", pod["metadata"]["name"], f"--container={container}", "--tail=-1")
            yield from (
                ("app" if container == application else container, line) for line in said.splitlines()
            )
