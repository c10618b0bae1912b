"""The pods of the meshes whose Envoys the harness configures itself."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from harness.manifests.base import Object
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import of_kind
from harness.meshes.mesh import GATEWAY


@dataclass(frozen=True)
class EnvoyPod:
    """One running copy of a workload: an application and its sidecar, or the ingress gateway alone."""

    name: str
    workload: str
    deployment: Deployment | None = None

    @property
    def labels(self) -> dict[str, str]:
        """The labels by which Services and subsets find the pod."""
        return self.deployment.labels if self.deployment else {"istio": "ingressgateway"}


def pods_of(objects: Iterable[Object]) -> list[EnvoyPod]:
    """Return the pods that objects ask for: the gateway, and the replicas of each workload."""
    pods = [EnvoyPod(GATEWAY, GATEWAY)]
    for workload in of_kind(objects, Deployment):
        template = workload.spec.template.model_dump_json()
        name = f"{workload.metadata.name}-{hashlib.sha256(template.encode()).hexdigest()[:5]}"
        for number in range(workload.spec.replicas):
            pods.append(EnvoyPod(f"{name}-{number}", workload.metadata.name, workload))
    return pods


def workload_of(pod: str) -> str:
    """Return the workload that a pod's name tells."""
    return pod if pod == GATEWAY else pod.rsplit("-", 2)[0]


def whole(containers: Iterable[tuple[str, str, bool]]) -> dict[str, bool]:
    """Return for each pod whether all of it runs; ``containers`` are (pod, container, whether it runs)."""
    running: dict[str, set[str]] = {}
    for pod, container, runs in containers:
        running.setdefault(pod, set()).update([container] if runs else [])
    return {p: len(found) == (1 if p == GATEWAY else 2) for p, found in running.items()}
