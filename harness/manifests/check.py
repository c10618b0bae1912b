"""Check what objects say about each other: what cannot run is refused, what leads nowhere is told."""

from collections.abc import Collection, Iterable, Iterator

from harness.manifests import lookup
from harness.manifests.base import Object
from harness.manifests.istio import DestinationRule, Gateway, TrafficExtension
from harness.manifests.kubernetes import Deployment, Secret, Service, ServiceAccount
from harness.manifests.lookup import NAMESPACE, full_host, host_of, of_kind
from harness.manifests.read import ManifestError
from harness.manifests.values import covers
from harness.manifests.virtualservice import VirtualService


def check(given: Iterable[tuple[str, Object]]) -> None:
    """Check that every workload can run; each object stands behind the name of its file.

    :raises ManifestError: a service account or a Secret that nothing defines, a probe of a port that is not
        there, or a second TrafficExtension for a workload.
    """
    given = list(given)
    objects = [found for _, found in given]
    problems = [
        f"{source}: Deployment {workload.metadata.name}: spec.template.spec.{problem}"
        for source, workload in given
        if isinstance(workload, Deployment)
        for problem in _problems(objects, workload)
    ]
    for workload in of_kind(objects, Deployment):
        for extra in lookup.extensions_of(objects, workload)[1:]:
            [source] = [source for source, found in given if found is extra]
            problem = f"{workload.metadata.name} has one already, and only a cluster runs several"
            problems.append(f"{source}: TrafficExtension {extra.metadata.name}: {problem}")
    if problems:
        raise ManifestError("\n".join(problems))


def _problems(objects: list[Object], workload: Deployment) -> Iterator[str]:
    container, account = workload.container, workload.spec.template.spec.service_account_name
    if account not in {"default", *(a.metadata.name for a in of_kind(objects, ServiceAccount))}:
        yield f"serviceAccountName: no ServiceAccount '{account}': apply it first, or in the same file"
    secrets = {secret.metadata.name for secret in of_kind(objects, Secret)}
    for i, wanted in enumerate(container.env_from):
        name = wanted.secret_ref.name
        if name not in secrets and not wanted.secret_ref.optional:
            problem = f"no Secret '{name}': apply it first, or in the same file"
            yield f"containers[0].envFrom[{i}].secretRef: {problem}"
    get = container.readiness_probe.http_get
    if get and container.ports and not container.serves(get.port):
        yield f"containers[0].readinessProbe.httpGet.port: no port '{get.port}' in the container"


def warnings(objects: Collection[Object]) -> Iterator[str]:
    """Yield a line for each thing that Istio accepts, and that does nothing.

    Where routes lead is not looked at: the proof's doctor does that.
    """
    # A cluster's objects may have fields that the harness does not know.
    services = [full_host(found.metadata.name) for found in objects if found.kind == "Service"]
    for rule in of_kind(objects, DestinationRule):
        if not any(covers(full_host(rule.spec.host), host) for host in services):
            yield f"{rule.key} spec.host: no Service '{rule.spec.host}', so this does nothing"
    for found in of_kind(objects, VirtualService):
        yield from _of_hosts(services, found)
        yield from _of_gateways(list(of_kind(objects, Gateway)), found)


def warnings_here(objects: Collection[Object]) -> Iterator[str]:
    """Yield a line for each thing that does nothing on the meshes that the harness configures itself."""
    workloads = list(of_kind(objects, Deployment))
    for service in of_kind(objects, Service):
        yield from _of_service(service, workloads)
    for rule in of_kind(objects, DestinationRule):
        policies = [rule.spec.traffic_policy, *(subset.traffic_policy for subset in rule.spec.subsets)]
        if any(policy and policy.tls for policy in policies):
            yield f"{rule.key} trafficPolicy.tls: nothing is encrypted on one machine, so this does nothing"
    for gateway in of_kind(objects, Gateway):
        if not lookup.selects(gateway):
            problem = "no gateway bears these labels, so nobody comes in by it: write istio: ingressgateway"
            yield f"{gateway.key} spec.selector: {problem}"
    for extension in of_kind(objects, TrafficExtension):
        if not any(extension.selects(workload.labels) for workload in workloads):
            yield f"{extension.key} spec.selector: no workload bears these labels, so this runs nowhere"


def _of_service(service: Service, workloads: list[Deployment]) -> Iterator[str]:
    for i, port in enumerate(service.spec.ports):
        for workload in workloads:
            if service.selects(workload.labels) and not workload.container.serves(port.target):
                field = f"{service.key} spec.ports[{i}].targetPort"
                problem = f"the application of {workload.metadata.name} listens at {workload.container.port}"
                yield f"{field}: is {port.target}, but {problem}"


def _of_hosts(services: list[str], found: VirtualService) -> Iterator[str]:
    for i, full in enumerate(lookup.wanted_hosts(found) if "mesh" in found.spec.gateways else ()):
        # With a dot in it, Istio takes a name for a whole one.
        ours = full.endswith((f".{lookup.DOMAIN}", f".{NAMESPACE}", f".{NAMESPACE}.svc"))
        if ours and not any(covers(full, known) for known in services):
            host = found.spec.hosts[i]
            yield f"{found.key} spec.hosts[{i}]: no Service '{host}', so no request takes this"


def _of_gateways(gateways: list[Gateway], found: VirtualService) -> Iterator[str]:
    wanted = [full_host(host) for host in found.spec.hosts]
    for i, name in enumerate(found.spec.gateways):
        where = f"{found.key} spec.gateways[{i}]"
        named = [gateway for gateway in gateways if name in lookup.gateway_names(gateway)]
        served = [h.rpartition("/")[2] for g in named for s in g.spec.servers for h in s.hosts]
        if name != "mesh" and not named:
            there_are = ", ".join(g.metadata.name for g in gateways) or "none"
            yield f"{where}: no Gateway '{name}' in namespace {NAMESPACE} (there are: {there_are})"
        elif named and not lookup.is_for_gateway(found):
            problem = f"spec.exportTo hides this from the gateway, which is in {lookup.GATEWAY_NAMESPACE}"
            yield f"{where}: {problem}, so no caller from outside takes this"
        elif named and not any(covers(w, s) or covers(s, w) for w in wanted for s in served):
            problem = (
                f"Gateway '{name}' serves only {', '.join(served)}, so no caller from outside takes this"
            )
            yield f"{where}: {problem}"


def services_named(objects: Collection[Object], changed: Collection[Object]) -> list[str]:
    """Return the Services that changed objects are, or route, or that have a route which leads to those."""
    hosts = {host for route in of_kind(changed, VirtualService) for host in lookup.wanted_hosts(route)}
    hosts |= {full_host(rule.spec.host) for rule in of_kind(changed, DestinationRule)}
    hosts |= {host_of(service) for service in of_kind(changed, Service)}
    for route in of_kind(objects, VirtualService):
        to = [full_host(d.host) for http in route.spec.http for d in http.destinations]
        if not hosts.isdisjoint(to):
            hosts.update(lookup.wanted_hosts(route))
    known = of_kind(objects, Service)
    return [s.metadata.name for s in known if any(covers(host, host_of(s)) for host in hosts)]
