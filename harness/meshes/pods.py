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


def is_whole(pod: str, containers: set[str]) -> bool:
    """Say whether ``containers`` are all that a pod has."""
    return containers == ({"istio-proxy"} if pod == GATEWAY else {"app", "istio-proxy"})
