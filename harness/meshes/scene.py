"""What a mesh has at one moment: objects as they are applied, and the pods that run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from harness import Json

Key = tuple[str, str, str]
"""An object's kind, namespace and name."""


@dataclass(frozen=True)
class Pod:
    """A pod, as whoever reads its proxy's log must know it."""

    name: str
    """Its name; behind ``NAMESPACE/`` where one of the target's namespace has the same."""
    namespace: str
    workload: str
    """The name of what made it: a Deployment, a StatefulSet, a Rollout's ReplicaSet; else its own."""
    labels: Mapping[str, str]
    addresses: tuple[str, ...]
    """How callers' proxies name it in their logs: its IP addresses, or addresses with ports."""
    ports: Mapping[str, str] = field(default_factory=dict)
    """The numbers of its containers' ports, by name and by number; nothing where it has but one."""
    ready: bool = True
    proxy: bool = True
    """Whether it has a sidecar, or is a gateway."""
    proxy_id: str = ""
    """What tells its proxy's container from the one before; empty where it does not run."""
    gateway: bool = False


@dataclass(frozen=True)
class Scene:
    """What is applied and what runs."""

    namespace: str
    objects: tuple[Json, ...]
    """Kubernetes' and Istio's objects, as the API server gives them."""
    pods: tuple[Pod, ...]
    unread: tuple[str, ...] = ()
    """What could not be asked for, each with the reason."""

    def of_kind(self, kind: str) -> Iterator[Json]:
        """Yield the objects of one kind."""
        return (found for found in self.objects if found.get("kind") == kind)


def key(found: Json) -> Key:
    """Return what names an object."""
    metadata = found["metadata"]
    return found["kind"], metadata.get("namespace", ""), metadata["name"]


def named(found: Json) -> str:
    """Return an object's kind and name as kubectl prints them: ``virtualservice/recommendation``."""
    return f"{found['kind'].lower()}/{found['metadata']['name']}"
