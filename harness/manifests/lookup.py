"""Find objects by what others say of them."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from harness.manifests.base import Object
from harness.manifests.istio import DestinationRule, Subset
from harness.manifests.kubernetes import Deployment, Service
from harness.settings import namespace

NAMESPACE = namespace()
DOMAIN = f"{NAMESPACE}.svc.cluster.local"

AnyObject = TypeVar("AnyObject", bound=Object)


def of_kind(objects: Iterable[Object], kind: type[AnyObject]) -> Iterator[AnyObject]:
    """Yield the objects of one kind."""
    return (o for o in objects if isinstance(o, kind))


def host_names(service: str) -> list[str]:
    """Return the names by which a Service is known in the mesh."""
    return [service, *(f"{service}.{domain}" for domain in (NAMESPACE, f"{NAMESPACE}.svc", DOMAIN))]


def short_host(host: str) -> str:
    """Return the Service's name of a host such as ``recommendation.tutorial.svc.cluster.local``."""
    name = host.split(".")[0]
    return name if host in host_names(name) else host


def find_service(objects: Iterable[Object], host: str) -> Service | None:
    """Return the Service that ``host`` names, if there is one."""
    return next((s for s in of_kind(objects, Service) if s.metadata.name == short_host(host)), None)


def subsets(objects: Iterable[Object], host: str) -> dict[str, Subset]:
    """Return the subsets that DestinationRules define for ``host``, by name."""
    rules = (r for r in of_kind(objects, DestinationRule) if short_host(r.spec.host) == short_host(host))
    return {s.name: s for r in rules for s in r.spec.subsets}


def workloads_behind(objects: Iterable[Object], host: str) -> list[str]:
    """Return the workloads whose pods a Service selects."""
    objects = list(objects)
    service = find_service(objects, host)
    found = of_kind(objects, Deployment)
    return [w.metadata.name for w in found if service and service.spec.selector.items() <= w.labels.items()]


def has_port(workload: Deployment, port: int | str) -> bool:
    """Say whether a workload's container has a port of this name or number."""
    return any(port in (p.name, p.container_port) for p in workload.container.ports)
