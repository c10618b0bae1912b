"""Pods in a cluster: how they are, and what they say."""

import contextlib
from collections.abc import Iterable, Iterator

from harness import Json
from harness.cluster.kubectl import Kubectl
from harness.meshes.mesh import MeshError

SIDECAR = "istio-proxy"
"""The sidecar's container, native or classic."""

GATEWAY_LABEL = "dark-launch/gateway"
"""What the pods of a namespace's own ingress gateway bear; its value is the namespace."""

OWN_GATEWAY_NAME = "workshop-gateway"
"""What the Deployment, the Service and the ServiceAccount of that gateway are called."""


def containers(pod: Json) -> list[Json]:
    """Return the containers of a pod, a native sidecar included."""
    return [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]


def has_sidecar(pod: Json) -> bool:
    """Say whether a pod has a sidecar: a native one (since Kubernetes 1.33) or a classic one."""
    return any(container["name"] == SIDECAR for container in containers(pod))


def workload_of(metadata: Json) -> str:
    """Return what made a pod: a Deployment, by its ReplicaSet's name; of a Rollout, the ReplicaSet itself."""
    owners = metadata.get("ownerReferences") or [{"kind": "Pod", "name": metadata["name"]}]
    name, label = str(owners[0]["name"]), metadata.get("labels", {}).get("pod-template-hash", "")
    return name.removesuffix(f"-{label}") if owners[0]["kind"] == "ReplicaSet" else name


def of_workload(pods: Iterable[Json], workload: str) -> list[Json]:
    """Return those of a namespace's pods that are a workload's, and not about to end."""
    found = [pod for pod in pods if workload_of(pod["metadata"]) == workload]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def pods_of(kubectl: Kubectl, workload: str) -> list[Json]:
    """Return the pods of a workload that are not about to end."""
    return of_workload(kubectl.items("pods"), workload)


def statuses(pod: Json) -> list[Json]:
    """Return the status of each of a pod's containers, and of a native sidecar."""
    native = [s for s in pod["status"].get("initContainerStatuses", []) if s["name"] == SIDECAR]
    return [*pod["status"].get("containerStatuses", []), *native]


def state(pod: Json) -> str:
    """Return Running, or what is wrong with a pod."""
    found = statuses(pod)
    for status in found:
        if reason := status.get("state", {}).get("waiting", {}).get("reason"):
            return str(reason)
    ready = sum(status["ready"] for status in found)
    phase = str(pod["status"].get("phase", "Unknown"))
    return phase if ready == len(found) else f"{phase}, {ready}/{len(found)} ready"


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


def log(kubectl: Kubectl, pod: str, container: str) -> list[str]:
    """Return all that a container has logged, as far as the node keeps it, line by line."""
    return kubectl.run("logs", pod, f"--container={container}", "--tail=-1").splitlines()


def logs(kubectl: Kubectl, workload: str) -> Iterator[tuple[str, str]]:
    """Yield (container, line) for all that a workload's pods have logged; the application is ``app``."""
    for pod in pods_of(kubectl, workload):
        application = next(c["name"] for c in pod["spec"]["containers"] if c["name"] != SIDECAR)
        for shown, container in (("app", application), (SIDECAR, SIDECAR)):
            yield from ((shown, line) for line in log(kubectl, pod["metadata"]["name"], container))


def ask_proxy(kubectl: Kubectl, pod: str, query: str) -> str:
    """Return what the admin interface of a pod's proxy answers.

    :raises MeshError: it cannot be asked.
    """
    request = ["pilot-agent", "request", "GET", query]
    return kubectl.run("exec", pod, f"--container={SIDECAR}", "--", *request)
