"""Check what objects say about each other: what cannot run is refused, what leads nowhere is told."""

from collections.abc import Iterable, Iterator

from harness.manifests.base import Object
from harness.manifests.istio import Destination, DestinationRule, Gateway, PortTrafficPolicy, VirtualService
from harness.manifests.kubernetes import Deployment, Service, ServiceAccount
from harness.manifests.lookup import (
    DOMAIN,
    NAMESPACE,
    covers,
    find_service,
    full_host,
    gateway_names,
    host_of,
    of_kind,
    routes_in_mesh,
    selects,
    subsets,
    virtual_service_for,
    workloads_behind,
)
from harness.manifests.read import ManifestError


def check(given: Iterable[tuple[str, Object]]) -> None:
    """Check that every workload can run; each object stands behind the name of its file.

    :raises ManifestError: a service account that nothing defines, or a probe of a port that is not there.
    """
    given = list(given)
    accounts = {a.metadata.name for _, a in given if isinstance(a, ServiceAccount)} | {"default"}
    problems = []
    for source, workload in given:
        if not isinstance(workload, Deployment):
            continue
        container, account = workload.container, workload.spec.template.spec.service_account_name
        where = f"{source}: Deployment {workload.metadata.name}: spec.template.spec"
        if account not in accounts:
            problem = f"no ServiceAccount '{account}': apply it first, or in the same file"
            problems.append(f"{where}.serviceAccountName: {problem}")
        get = container.readiness_probe.http_get
        if get and container.ports and not container.serves(get.port):
            field = f"{where}.containers[0].readinessProbe.httpGet.port"
            problems.append(f"{field}: no port '{get.port}' in the container")
    if problems:
        raise ManifestError("\n".join(problems))


def warnings(objects: Iterable[Object]) -> Iterator[str]:
    """Yield a line for each thing that Istio accepts, and that does nothing, or not what it seems to.

    Nothing is told where a cluster has an object with fields that the harness does not know.
    """
    objects = list(objects)
    if any(type(found) is Object for found in objects):
        return
    for found in of_kind(objects, Service):
        yield from _of_service(objects, found)
    for rule in of_kind(objects, DestinationRule):
        yield from _of_rule(objects, rule)
    for gateway in of_kind(objects, Gateway):
        if not selects(gateway):
            problem = "no gateway bears these labels, so nobody comes in by it: write istio: ingressgateway"
            yield f"{gateway.key} spec.selector: {problem}"
    for virtual_service in of_kind(objects, VirtualService):
        yield from _of_hosts(objects, virtual_service)
        asked = list(_ports_asked(objects, virtual_service))
        for field, destination in _destinations(virtual_service):
            if problem := _leads_nowhere(objects, destination, asked):
                yield f"{virtual_service.key} {field}: {problem}, so this leads nowhere"


def _of_service(objects: list[Object], service: Service) -> Iterator[str]:
    name, behind = service.metadata.name, workloads_behind(objects, service.metadata.name)
    ruling = virtual_service_for(objects, host_of(service))
    if len(behind) > 1 and not ruling:
        yield f"service/{name}: no route leads to a part of it, so {' and '.join(behind)} answer callers"
    for i, port in enumerate(service.spec.ports):
        where = f"service/{name} spec.ports[{i}]"
        if ruling and not port.is_http:
            problem = f"Istio does not take it for HTTP, so {ruling.key} does not count there"
            yield f"{where}: {problem}: nothing is mirrored"
        for workload in of_kind(objects, Deployment):
            if workload.metadata.name in behind and not workload.container.serves(port.target):
                problem = f"the application of {workload.metadata.name} listens at"
                yield f"{where}.targetPort: is {port.target}, but {problem} {workload.container.port}"


def _of_rule(objects: list[Object], rule: DestinationRule) -> Iterator[str]:
    spec, hosts = rule.spec, [host_of(service) for service in of_kind(objects, Service)]
    if not any(covers(full_host(spec.host), host) for host in hosts):
        yield f"{rule.key} spec.host: no Service '{spec.host}', so this does nothing"
    policies: list[PortTrafficPolicy | None] = [
        spec.traffic_policy,
        *(s.traffic_policy for s in spec.subsets),
    ]
    if any(policy and policy.tls for policy in policies):
        yield f"{rule.key} trafficPolicy.tls: nothing is encrypted on one machine, so this does nothing"


def _of_hosts(objects: list[Object], found: VirtualService) -> Iterator[str]:
    """Yield what is wrong with a VirtualService's hosts and gateways."""
    services = [host_of(service) for service in of_kind(objects, Service)]
    gateways = list(of_kind(objects, Gateway))
    for i, host in enumerate(found.spec.hosts):
        if found not in routes_in_mesh(objects):
            break
        where, full = f"{found.key} spec.hosts[{i}]", full_host(host)
        there = [known for known in services if covers(full, known)]
        # With a dot in it, Istio takes a name for a whole one.
        if not there and (
            full.endswith(f".{DOMAIN}") or full.endswith((f".{NAMESPACE}", f".{NAMESPACE}.svc"))
        ):
            yield f"{where}: no Service '{host}', so no request takes this"
        ruling = [virtual_service_for(objects, known) for known in there]
        if ruling and found not in ruling and ruling[0]:
            yield f"{where}: {ruling[0].key} comes first for '{host}', so no request takes this"
    for i, name in enumerate(found.spec.gateways):
        where = f"{found.key} spec.gateways[{i}]"
        named = [gateway for gateway in gateways if name in gateway_names(gateway)]
        served = [h.rpartition("/")[2] for g in named for s in g.spec.servers for h in s.hosts]
        wanted = [full_host(host) for host in found.spec.hosts]
        if name != "mesh" and not named:
            there_are = ", ".join(g.metadata.name for g in gateways) or "none"
            yield f"{where}: no Gateway '{name}' in namespace {NAMESPACE} (there are: {there_are})"
        elif named and not any(
            covers(w, full_host(s)) or covers(full_host(s), w) for w in wanted for s in served
        ):
            problem = (
                f"Gateway '{name}' serves only {', '.join(served)}, so no caller from outside takes this"
            )
            yield f"{where}: {problem}"


def _destinations(found: VirtualService) -> Iterator[tuple[str, Destination]]:
    for i, http in enumerate(found.spec.http):
        for j, route in enumerate(http.route):
            yield f"spec.http[{i}].route[{j}].destination", route.destination
        if http.mirror:
            yield f"spec.http[{i}].mirror", http.mirror
        for j, mirror in enumerate(http.mirrors):
            yield f"spec.http[{i}].mirrors[{j}].destination", mirror.destination


def _ports_asked(objects: list[Object], found: VirtualService) -> Iterator[int]:
    """Yield the ports by which callers in the mesh ask for a VirtualService's hosts."""
    for service in of_kind(objects, Service):
        if virtual_service_for(objects, host_of(service)) is found:
            yield from (port.port for port in service.spec.ports if port.is_http)


def _leads_nowhere(objects: list[Object], to: Destination, asked: list[int]) -> str:
    """Return why no pod stands behind a destination; nothing if there may be one.

    :param asked: the ports by which callers ask, which is where it leads if it has no port of its own.
    """
    service = find_service(objects, to.host)
    if not service:
        return f"no Service '{to.host}'"
    known = [port.port for port in service.spec.ports]
    if to.port and to.port.number not in known:
        return f"Service '{to.host}' has no port {to.port.number}"
    for port in () if to.port else asked:
        if port not in known:
            remedy = f"write port: {{number: {known[0]}}}"
            return f"Service '{to.host}' has no port {port}, by which callers ask: {remedy}"
    labels = service.spec.selector
    if to.subset:
        named = subsets(objects, to.host)
        if to.subset not in named:
            return f"no DestinationRule has a subset '{to.subset}' of '{to.host}'"
        labels = labels | named[to.subset].labels
    if not any(labels.items() <= workload.labels.items() for workload in of_kind(objects, Deployment)):
        return f"no workload's pods bear {', '.join(f'{k}={v}' for k, v in labels.items())}"
    return ""
