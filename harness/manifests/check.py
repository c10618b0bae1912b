"""Check what objects say about each other: what cannot run is refused, what leads nowhere is told."""

from collections.abc import Iterable, Iterator

from harness.manifests.base import Object, covers
from harness.manifests.destinationrule import DestinationRule, PolicySettings
from harness.manifests.gateway import Gateway
from harness.manifests.kubernetes import Deployment, Secret, Service, ServiceAccount
from harness.manifests.lookup import (
    DOMAIN,
    GATEWAY_NAMESPACE,
    NAMESPACE,
    extensions_of,
    full_host,
    gateway_names,
    host_of,
    is_for_gateway,
    of_kind,
    selects,
    wanted_hosts,
)
from harness.manifests.read import ManifestError
from harness.manifests.trafficextension import TrafficExtension
from harness.manifests.virtualservice import VirtualService


def check(given: Iterable[tuple[str, Object]]) -> None:
    """Check that every workload can run; each object stands behind the name of its file.

    :raises ManifestError: a service account or a Secret that nothing defines, a probe of a port that is not
        there, or a second TrafficExtension for a workload.
    """
    given = list(given)
    accounts = {a.metadata.name for _, a in given if isinstance(a, ServiceAccount)} | {"default"}
    secrets = {s.metadata.name for _, s in given if isinstance(s, Secret)}
    problems = []
    sources = {found.key: source for source, found in given}
    for source, workload in given:
        if not isinstance(workload, Deployment):
            continue
        container, account = workload.container, workload.spec.template.spec.service_account_name
        where = f"{source}: Deployment {workload.metadata.name}: spec.template.spec"
        if account not in accounts:
            problem = f"no ServiceAccount '{account}': apply it first, or in the same file"
            problems.append(f"{where}.serviceAccountName: {problem}")
        for i, wanted in enumerate(container.env_from):
            name = wanted.secret_ref.name
            if name not in secrets and not wanted.secret_ref.optional:
                field = f"{where}.containers[0].envFrom[{i}].secretRef"
                problems.append(f"{field}: no Secret '{name}': apply it first, or in the same file")
        get = container.readiness_probe.http_get
        if get and container.ports and not container.serves(get.port):
            field = f"{where}.containers[0].readinessProbe.httpGet.port"
            problems.append(f"{field}: no port '{get.port}' in the container")
        for extra in extensions_of((found for _, found in given), workload)[1:]:
            problem = f"{workload.metadata.name} has one already, and only a cluster runs several"
            problems.append(f"{sources[extra.key]}: TrafficExtension {extra.metadata.name}: {problem}")
    if problems:
        raise ManifestError("\n".join(problems))


def warnings(objects: Iterable[Object]) -> Iterator[str]:
    """Yield a line for each thing that Istio accepts, and that does nothing.

    Where routes lead is not looked at: the proof's doctor does that.
    """
    objects = list(objects)
    services = [full_host(found.metadata.name) for found in objects if found.kind == "Service"]
    for found in objects:
        if isinstance(found, DestinationRule):
            if not any(covers(full_host(found.spec.host), host) for host in services):
                yield f"{found.key} spec.host: no Service '{found.spec.host}', so this does nothing"
        elif isinstance(found, VirtualService):
            yield from _of_hosts(services, found)
            yield from _of_gateways(list(of_kind(objects, Gateway)), found)


def warnings_here(objects: Iterable[Object]) -> Iterator[str]:
    """Yield a line for each thing that does nothing on the meshes that the harness configures itself."""
    objects = list(objects)
    workloads = [workload.labels for workload in of_kind(objects, Deployment)]
    for found in objects:
        if isinstance(found, Service):
            yield from _of_service(objects, found)
        elif isinstance(found, DestinationRule):
            policies: list[PolicySettings | None] = [found.spec.traffic_policy]
            policies += [subset.traffic_policy for subset in found.spec.subsets]
            if any(policy and policy.tls for policy in policies):
                problem = "nothing is encrypted on one machine, so this does nothing"
                yield f"{found.key} trafficPolicy.tls: {problem}"
        elif isinstance(found, Gateway) and not selects(found):
            problem = "no gateway bears these labels, so nobody comes in by it: write istio: ingressgateway"
            yield f"{found.key} spec.selector: {problem}"
        elif isinstance(found, TrafficExtension) and not any(map(found.selects, workloads)):
            yield f"{found.key} spec.selector: no workload bears these labels, so this runs nowhere"


def _of_service(objects: list[Object], service: Service) -> Iterator[str]:
    for i, port in enumerate(service.spec.ports):
        for workload in of_kind(objects, Deployment):
            if service.selects(workload.labels) and not workload.container.serves(port.target):
                field = f"{service.key} spec.ports[{i}].targetPort"
                problem = f"the application of {workload.metadata.name} listens at {workload.container.port}"
                yield f"{field}: is {port.target}, but {problem}"


def _of_hosts(services: list[str], found: VirtualService) -> Iterator[str]:
    for i, full in enumerate(wanted_hosts(found) if "mesh" in found.spec.gateways else ()):
        # With a dot in it, Istio takes a name for a whole one.
        ours = full.endswith((f".{DOMAIN}", f".{NAMESPACE}", f".{NAMESPACE}.svc"))
        if ours and not any(covers(full, known) for known in services):
            host = found.spec.hosts[i]
            yield f"{found.key} spec.hosts[{i}]: no Service '{host}', so no request takes this"


def _of_gateways(gateways: list[Gateway], found: VirtualService) -> Iterator[str]:
    wanted = [full_host(host) for host in found.spec.hosts]
    for i, name in enumerate(found.spec.gateways):
        where = f"{found.key} spec.gateways[{i}]"
        named = [gateway for gateway in gateways if name in gateway_names(gateway)]
        served = [h.rpartition("/")[2] for g in named for s in g.spec.servers for h in s.hosts]
        if name != "mesh" and not named:
            there_are = ", ".join(g.metadata.name for g in gateways) or "none"
            yield f"{where}: no Gateway '{name}' in namespace {NAMESPACE} (there are: {there_are})"
        elif named and not is_for_gateway(found):
            problem = f"spec.exportTo hides this from the gateway, which is in {GATEWAY_NAMESPACE}"
            yield f"{where}: {problem}, so no caller from outside takes this"
        elif named and not any(covers(w, s) or covers(s, w) for w in wanted for s in served):
            problem = (
                f"Gateway '{name}' serves only {', '.join(served)}, so no caller from outside takes this"
            )
            yield f"{where}: {problem}"


def services_named(objects: Iterable[Object], changed: Iterable[Object]) -> list[str]:
    """Return the Services that changed objects are, or route, or that have a route which leads to those."""
    objects = list(objects)
    hosts: set[str] = set()
    for found in changed:
        if isinstance(found, VirtualService):
            hosts.update(wanted_hosts(found))
        elif isinstance(found, DestinationRule):
            hosts.add(full_host(found.spec.host))
        elif isinstance(found, Service):
            hosts.add(host_of(found))
    for route in of_kind(objects, VirtualService):
        to = [full_host(d.host) for http in route.spec.http for d in http.destinations]
        if not hosts.isdisjoint(to):
            hosts.update(wanted_hosts(route))
    known = of_kind(objects, Service)
    return [s.metadata.name for s in known if any(covers(host, host_of(s)) for host in hosts)]
