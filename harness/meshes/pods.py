"""The pods of the meshes whose Envoys the harness configures itself."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from harness.manifests.base import Object
from harness.manifests.kubernetes import Deployment, Service
from harness.manifests.lookup import environment, of_kind
from harness.meshes.images import image
from harness.meshes.mesh import GATEWAY


@dataclass(frozen=True)
class EnvoyPod:
    """One running copy of a workload: an application and its sidecar, or the ingress gateway alone."""

    name: str
    workload: str
    deployment: Deployment | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    """The application's, without what the mesh adds."""

    hosts: tuple[str, ...] = ()
    """The Services that lead to it."""

    @property
    def proxied(self) -> bool:
        """Whether it has a proxy: what speaks no HTTP is reached itself, as the store is."""
        return not self.deployment or image(self.deployment.container.image_name).is_service

    def is_whole(self, running: Mapping[str, set[str]]) -> bool:
        """Say whether all its containers are among those that run."""
        wanted = {"istio-proxy"} if self.proxied else set()
        wanted |= {"app"} if self.deployment else set()
        return wanted <= running.get(self.name, set())

    @property
    def grace(self) -> float:
        """For how many seconds it may answer what it has begun, once it is to end."""
        return self.deployment.spec.template.spec.termination_grace_period_seconds if self.deployment else 0

    @property
    def labels(self) -> dict[str, str]:
        """The labels by which Services and subsets find the pod."""
        return self.deployment.labels if self.deployment else {"istio": "ingressgateway"}


def pods_of(objects: Iterable[Object]) -> list[EnvoyPod]:
    """Return the pods that objects ask for: the gateway, and the replicas of each workload."""
    objects, pods = list(objects), [EnvoyPod(GATEWAY, GATEWAY)]
    for workload in of_kind(objects, Deployment):
        settings = environment(objects, workload)
        hosts = tuple(s.metadata.name for s in of_kind(objects, Service) if s.selects(workload.labels))
        template = workload.spec.template.model_dump_json() + json.dumps(settings)
        name = f"{workload.metadata.name}-{hashlib.sha256(template.encode()).hexdigest()[:5]}"
        for number in range(workload.spec.replicas):
            pods.append(EnvoyPod(f"{name}-{number}", workload.metadata.name, workload, settings, hosts))
    return pods


def workload_of(pod: str) -> str:
    """Return the workload that a pod's name tells."""
    return pod if pod == GATEWAY else pod.rsplit("-", 2)[0]
