"""Find objects by what others say of them."""

from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

from harness.manifests.base import Object
from harness.manifests.istio import DestinationRule, Gateway, Subset, TrafficExtension, TrafficPolicy
from harness.manifests.kubernetes import Deployment, Secret, Service
from harness.manifests.values import most_specific
from harness.manifests.virtualservice import VirtualService
from harness.settings import namespace

NAMESPACE = namespace()
DOMAIN = f"{NAMESPACE}.svc.cluster.local"

GATEWAY_LABELS = {"istio": "ingressgateway", "app": "istio-ingressgateway"}
"""The labels of the ingress gateway, by which Gateways select it."""

GATEWAY_NAMESPACE = "istio-system"

AnyObject = TypeVar("AnyObject", bound=Object)


def of_kind(objects: Iterable[Object], kind: type[AnyObject]) -> Iterator[AnyObject]:
    """Yield the objects of one kind, the oldest first."""
    return (o for o in objects if isinstance(o, kind))


def full_host(host: str) -> str:
    """Return a host as Istio's registry has it: a name without a dot belongs to the namespace."""
    return host if "." in host or host == "*" else f"{host}.{DOMAIN}"


def wanted_hosts(found: VirtualService) -> list[str]:
    """Return the hosts of a VirtualService: it alone may write them in upper case."""
    return [full_host(host.lower()) for host in found.spec.hosts]


def host_of(service: Service) -> str:
    """Return the host of a Service, as Istio's registry has it."""
    return f"{service.metadata.name}.{DOMAIN}"


def find_service(objects: Iterable[Object], host: str) -> Service | None:
    """Return the Service that ``host`` names, if there is one."""
    return next((s for s in of_kind(objects, Service) if host_of(s) == full_host(host)), None)


def environment(objects: Iterable[Object], workload: Deployment) -> dict[str, str]:
    """Return the environment of a workload's container; what ``env`` says comes before what Secrets say."""
    known = {secret.metadata.name: secret.values for secret in of_kind(objects, Secret)}
    container = workload.container
    found: dict[str, str] = {}
    for source in container.env_from:
        found |= known.get(source.secret_ref.name, {})
    return found | {variable.name: variable.value for variable in container.env}


def routes_in_mesh(objects: Iterable[Object]) -> Iterator[VirtualService]:
    """Yield the VirtualServices that sidecars take."""
    return (v for v in of_kind(objects, VirtualService) if "mesh" in v.spec.gateways and _is_visible(v))


def virtual_service_for(objects: Iterable[Object], host: str) -> VirtualService | None:
    """Return the VirtualService that sidecars take for a host: of several, the oldest.

    https://istio.io/latest/docs/ops/best-practices/traffic-management/#split-virtual-services
    """
    found = ((name, route) for route in routes_in_mesh(objects) for name in wanted_hosts(route))
    return next(iter(most_specific(found, host)), None)


def _is_visible(found: VirtualService | DestinationRule) -> bool:
    return not found.spec.export_to or not {"*", ".", NAMESPACE}.isdisjoint(found.spec.export_to)


def is_for_gateway(found: VirtualService) -> bool:
    """Say whether the ingress gateway, in its own namespace, is told of a VirtualService."""
    return not found.spec.export_to or not {"*", GATEWAY_NAMESPACE}.isdisjoint(found.spec.export_to)


def destination_rules(objects: Iterable[Object], host: str) -> list[DestinationRule]:
    """Return the DestinationRules for a host."""
    found = ((full_host(r.spec.host), r) for r in of_kind(objects, DestinationRule) if _is_visible(r))
    return most_specific(found, full_host(host))


def subsets(objects: Iterable[Object], host: str) -> dict[str, Subset]:
    """Return the subsets of a host, by name; of two DestinationRules with one name, the older one's."""
    found: dict[str, Subset] = {}
    for rule in destination_rules(objects, host):
        for subset in rule.spec.subsets:
            found.setdefault(subset.name, subset)
    return found


def traffic_policy(objects: Iterable[Object], host: str) -> TrafficPolicy | None:
    """Return how a host is treated: as the oldest DestinationRule says that says anything."""
    policies = (rule.spec.traffic_policy for rule in destination_rules(objects, host))
    return next((policy for policy in policies if policy), None)


def extensions_of(objects: Iterable[Object], workload: Deployment) -> list[TrafficExtension]:
    """Return the TrafficExtensions that select a workload."""
    return [found for found in of_kind(objects, TrafficExtension) if found.selects(workload.labels)]


def gateway_names(gateway: Gateway) -> set[str]:
    """Return how VirtualServices name a Gateway."""
    name = gateway.metadata.name
    return {name, f"{NAMESPACE}/{name}", f"{name}.{NAMESPACE}", f"{name}.{NAMESPACE}.svc", f"{name}.{DOMAIN}"}


def selects(gateway: Gateway) -> bool:
    """Say whether a Gateway is for the one gateway that there is."""
    return gateway.spec.selector.items() <= GATEWAY_LABELS.items()


def workloads_behind(objects: Collection[Object], host: str) -> list[str]:
    """Return the workloads whose pods a Service selects."""
    service = find_service(objects, host)
    found = of_kind(objects, Deployment)
    return [w.metadata.name for w in found if service and service.selects(w.labels)]
