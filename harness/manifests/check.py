"""Check what objects say about each other."""

from collections.abc import Iterable

from harness.manifests.base import Object
from harness.manifests.istio import Destination, DestinationRule, Gateway, VirtualService
from harness.manifests.kubernetes import Deployment, Service, ServiceAccount
from harness.manifests.lookup import find_service, has_port, of_kind, short_host, subsets
from harness.manifests.read import ManifestError


def check(objects: Iterable[Object], source: str) -> None:
    """Check that what routes and rules name exists among ``objects``; ``source`` names them in errors.

    :raises ManifestError: a host, subset, port, gateway or service account that nothing defines.
    """
    objects = list(objects)

    def need(found: object, owner: Object, field: str, problem: str) -> None:
        if not found:
            raise ManifestError(f"{source}: {owner.kind} {owner.metadata.name}: {field}: {problem}")

    def check_destination(owner: Object, field: str, destination: Destination) -> None:
        service = find_service(objects, destination.host)
        need(service, owner, f"{field}.host", f"no Service '{destination.host}'")
        if destination.subset is not None:
            known = subsets(objects, destination.host)
            problem = f"no subset '{destination.subset}' of '{destination.host}' in a DestinationRule"
            need(destination.subset in known, owner, f"{field}.subset", problem)
        if service and destination.port:
            number = destination.port.number
            problem = f"Service '{destination.host}' has no port {number}"
            need(number == service.port, owner, f"{field}.port.number", problem)

    gateways = {g.metadata.name for g in of_kind(objects, Gateway)}
    accounts = {a.metadata.name for a in of_kind(objects, ServiceAccount)}
    ruled: dict[str, str] = {}
    for rule in of_kind(objects, DestinationRule):
        need(find_service(objects, rule.spec.host), rule, "spec.host", f"no Service '{rule.spec.host}'")
        other = ruled.setdefault(short_host(rule.spec.host), rule.metadata.name)
        problem = f"DestinationRule '{other}' is for '{rule.spec.host}' already"
        need(other == rule.metadata.name, rule, "spec.host", problem)
    for exposed in of_kind(objects, Service):
        target = exposed.spec.ports[0].target_port
        for workload in of_kind(objects, Deployment):
            if exposed.spec.selector.items() <= workload.labels.items():
                problem = f"no port '{target}' in Deployment '{workload.metadata.name}'"
                need(has_port(workload, target), exposed, "spec.ports[0].targetPort", problem)
    routed: dict[str, str] = {}
    for workload in of_kind(objects, Deployment):
        account = workload.spec.template.spec.service_account_name
        field = "spec.template.spec.serviceAccountName"
        need(account in accounts, workload, field, f"no ServiceAccount '{account}'")
        port = workload.container.readiness_probe.http_get.port
        field = "spec.template.spec.containers[0].readinessProbe.httpGet.port"
        need(has_port(workload, port), workload, field, f"no port '{port}' in the container")
    for virtual_service in of_kind(objects, VirtualService):
        spec = virtual_service.spec
        for i, gateway in enumerate(spec.gateways):
            known = gateway == "mesh" or gateway in gateways
            need(known, virtual_service, f"spec.gateways[{i}]", f"no Gateway '{gateway}'")
            for j, host in enumerate(spec.hosts):
                service = find_service(objects, host)
                field = f"spec.hosts[{j}]"
                if gateway != "mesh":
                    continue  # a gateway takes the routes of several
                need(service, virtual_service, field, f"no Service '{host}'")
                other = routed.setdefault(short_host(host), virtual_service.metadata.name)
                problem = f"VirtualService '{other}' routes '{host}' already"
                need(other == virtual_service.metadata.name, virtual_service, field, problem)
        for i, route in enumerate(spec.http):
            field = f"spec.http[{i}]"
            for j, destination in enumerate(route.route):
                check_destination(virtual_service, f"{field}.route[{j}].destination", destination.destination)
            if route.mirror:
                check_destination(virtual_service, f"{field}.mirror", route.mirror)
            for j, mirror in enumerate(route.mirrors):
                check_destination(virtual_service, f"{field}.mirrors[{j}].destination", mirror.destination)
