"""Routes: which requests go where."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product

from harness import Json
from harness.manifests import lookup
from harness.manifests.base import Object
from harness.manifests.istio import Gateway
from harness.manifests.kubernetes import Service, ServicePort
from harness.manifests.lookup import NAMESPACE, full_host, host_of, of_kind
from harness.manifests.values import covers, is_authority
from harness.manifests.virtualservice import (
    Destination,
    Headers,
    HTTPFaultInjection,
    HTTPMatchRequest,
    HTTPRetry,
    HTTPRewrite,
    HTTPRoute,
    HTTPRouteDestination,
    StringMatch,
    UriMatch,
    VirtualService,
)
from harness.rendering.clusters import cluster_name, ports
from harness.rendering.values import duration, given, typed, typed_extension

FAULT = "extensions.filters.http.fault.v3.HTTPFault"
OTHER_HOST = "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"

# --- sidecars ---------------------------------------------------------------------------------------------


def sidecar_routes(objects: Iterable[Object]) -> Json:
    """Return the routes of every sidecar: virtual hosts for each Service, 502 for any other host."""
    objects = list(objects)
    hosts = [_service_host(objects, service, port) for service, port in ports(objects)]
    hosts += _hosts_without_service(objects, {domain for host in hosts for domain in host["domains"]})
    unknown = {"status": 502, "body": {"inline_string": "no such host in the mesh"}}
    block_all = {"name": "block_all", "match": {"prefix": "/"}, "direct_response": unknown}
    hosts.append(_virtual_host("block_all", ["*"], [block_all]))
    return {"name": "sidecar", "virtual_hosts": hosts}


def _virtual_host(name: str, domains: list[str], routes: list[Json]) -> Json:
    return {"name": name, "domains": domains, "routes": routes, "include_request_attempt_count": True}


def _service_host(objects: list[Object], service: Service, port: ServicePort) -> Json:
    host, number = host_of(service), port.port
    ruling = lookup.virtual_service_for(objects, host) if port.is_http else None
    routes = _routes(objects, ruling, number, {"mesh"}) if ruling else []
    action = {"cluster": cluster_name(host, number), "timeout": "0s"}
    default: Json = {"match": {"prefix": "/"}, "route": action}
    if port.is_http:  # what Istio does not take for HTTP goes to any pod, as it is
        default |= {"name": "default", "route": action | _timeout(None) | _retries(None)}
    name = service.metadata.name
    known = (host, f"{host}.", name, f"{name}.{NAMESPACE}.svc", f"{name}.{NAMESPACE}")
    domains = [domain for each in known for domain in _domains(each, number)]
    # A VirtualService without a rule for this port means nothing to it.
    return _virtual_host(f"{host}:{number}", domains, routes or [default])


def _domains(host: str, port: int) -> list[str]:
    """Return how callers name a host and its port: HTTP's own port is left out."""
    return [host, f"{host}:{port}"] if port == 80 else [f"{host}:{port}"]


def _hosts_without_service(objects: list[Object], taken: set[str]) -> Iterator[Json]:
    """Yield virtual hosts for the hosts of VirtualServices that no Service has.

    As in Istio: at port 80, and at the ports of the Services that the VirtualService names beside it.
    """
    services = list(of_kind(objects, Service))
    for virtual_service in lookup.routes_in_mesh(objects):
        hosts = lookup.wanted_hosts(virtual_service)
        behind = {host: [s for s in services if covers(host, host_of(s))] for host in hosts}
        known = {p.port for found in behind.values() for s in found for p in s.spec.ports if p.is_http}
        for host, port in product((h for h in hosts if not behind[h]), sorted(known | {80})):
            domains = [d for d in _domains(host, port) if d not in taken]
            routes = _routes(objects, virtual_service, port, {"mesh"})
            if domains and routes:
                taken.update(domains)
                yield _virtual_host(f"{host}:{port}", domains, routes)


# --- the gateway ------------------------------------------------------------------------------------------


def gateway_routes(objects: Iterable[Object]) -> Json:
    """Return the routes of the ingress gateway: those of VirtualServices that name a Gateway.

    Of several for one host Istio makes one list, in which routes that match every request stand last.
    https://istio.io/latest/docs/ops/best-practices/traffic-management/#split-virtual-services
    """
    objects = list(objects)
    found: dict[str, list[Json]] = {}
    told = list(filter(lookup.is_for_gateway, of_kind(objects, VirtualService)))
    for gateway in filter(lookup.selects, of_kind(objects, Gateway)):
        names = lookup.gateway_names(gateway)
        bound = [v for v in told if not names.isdisjoint(v.spec.gateways)]
        for server, virtual_service in product(gateway.spec.servers, bound):
            routes = _routes(objects, virtual_service, server.port.number, names)
            for domain in _shared_hosts(server.hosts, virtual_service.spec.hosts):
                known = found.setdefault(domain, [])
                known += [route for route in routes if route not in known]
    hosts = [
        _virtual_host(f"{domain}:80", [domain], sorted(routes, key=_is_catch_all))
        for domain, routes in found.items()
        if routes
    ]
    return {"name": "gateway", "virtual_hosts": hosts, "ignore_port_in_host_matching": True}


def _shared_hosts(served: Iterable[str], wanted: Iterable[str]) -> Iterator[str]:
    """Yield the hosts that a Gateway serves and a VirtualService names: of two that overlap the narrower.

    A Gateway's host may say whose VirtualServices it is for: ``namespace/host``. As in Istio, case counts.
    """
    for server in served:
        where, _, name = server.rpartition("/")
        for host in map(full_host, wanted):
            if where in ("", "*", ".", NAMESPACE) and (covers(name, host) or covers(host, name)):
                yield (host if covers(name, host) else name).lower()


def _is_catch_all(route: Json) -> bool:
    match = {k: v for k, v in route["match"].items() if k != "case_sensitive"}
    return match in ({"prefix": "/"}, {"safe_regex": {"regex": ".*"}})


# --- rules ------------------------------------------------------------------------------------------------


def _routes(objects: list[Object], found: VirtualService, port: int, gateways: set[str]) -> list[Json]:
    """Return a VirtualService's routes for callers of a port, up to the one that takes every request."""
    routes: list[Json] = []
    for http in found.spec.http:
        for match in http.match or (None,):
            if not match or (
                match.port in (None, port) and not gateways.isdisjoint(match.gateways or gateways)
            ):
                routes.append(_route(http, match, partial(_cluster, objects, port, "mesh" in gateways)))
                if _is_catch_all(routes[-1]):
                    return routes
    return routes


def _cluster(objects: list[Object], port: int, in_mesh: bool, to: Destination) -> str:
    """Return where a destination leads callers of a port: without a port of its own to the same one.

    Only the gateway looks up the port of a Service that has but one.
    """
    service = None if in_mesh else lookup.find_service(objects, to.host)
    if service and len(service.spec.ports) == 1:
        port = service.spec.ports[0].port
    return cluster_name(to.host, to.port.number if to.port else port, to.subset)


def _route(http: HTTPRoute, match: HTTPMatchRequest | None, cluster: Callable[[Destination], str]) -> Json:
    """Return Envoy's route for one of a rule's matches, or for every request."""
    action = _timeout(http.timeout) | _retries(http.retries)
    headers = _headers(http.headers)
    rewrite = http.rewrite or HTTPRewrite.model_construct()  # which says nothing
    authority = rewrite.authority or "".join(http.headers.authorities)
    if len(http.route) == 1:
        [only] = http.route
        action["cluster"] = cluster(only.destination)
        headers |= {k: headers.get(k, []) + v for k, v in _headers(only.headers).items()}
        authority = authority or "".join(only.headers.authorities)
    else:
        weighted = [_weighted(cluster(r.destination), r) for r in http.route if r.weight]
        action["weighted_clusters"] = {"clusters": weighted}
    if regex := rewrite.uri_regex_rewrite:
        action["regex_rewrite"] = {"pattern": {"regex": regex.match}, "substitution": regex.rewrite}
    mirrors = [_mirror(cluster(destination), percent) for destination, percent in http.copies()]
    action |= given(
        host_rewrite_literal=authority, prefix_rewrite=rewrite.uri, request_mirror_policies=mirrors
    )
    # What the proxies log as the route's name is nothing unless the rule has a name, as in Istio.
    name = f"{http.name or ''}.{match.name}" if match and match.name else http.name or ""
    filters = {"envoy.filters.http.fault": _fault(http.fault)} if http.fault else {}
    route = {"name": name, "match": _match(match), "route": action, **headers}
    return route | given(typed_per_filter_config=filters)


def _mirror(cluster: str, percent: float) -> Json:
    return {
        "cluster": cluster,
        "runtime_fraction": {"default_value": _fraction(percent)},
        "trace_sampled": False,
        "disable_shadow_host_suffix_append": True,
    }


def _weighted(cluster: str, route: HTTPRouteDestination) -> Json:
    rewrite = given(host_rewrite_literal="".join(route.headers.authorities))
    return {"name": cluster, "weight": route.weight, **_headers(route.headers), **rewrite}


def _headers(headers: Headers) -> Json:
    found: Json = {}
    for name, operations in (("request", headers.request), ("response", headers.response)):
        entries = [("OVERWRITE_IF_EXISTS_OR_ADD", *entry) for entry in sorted(operations.set.items())]
        entries += [("APPEND_IF_EXISTS_OR_ADD", *entry) for entry in sorted(operations.add.items())]
        found[f"{name}_headers_to_add"] = [
            {"header": {"key": key, "value": value}, "append_action": action}
            for action, key, value in entries
            if not is_authority(key)
        ]
        found[f"{name}_headers_to_remove"] = operations.remove
    return given(**found)


def _timeout(timeout: str | None) -> Json:
    """Return the time limit of a route: none unless set."""
    limit = duration(timeout) or "0s"
    return {"timeout": limit, "max_grpc_timeout": limit}


def _retries(retries: HTTPRetry | None) -> Json:
    """Return the retries of a route: two unless set."""
    retries = retries or HTTPRetry(attempts=2)
    if retries.attempts == 0:
        return {}
    retry_on = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
    codes: list[int] = []  # not even 503, since Istio 1.24
    if retries.retry_on:
        words = retries.retry_on.split(",")
        codes = [int(word) for word in words if word.isdigit()]
        names = [word for word in words if not word.isdigit()]
        retry_on = ",".join(dict.fromkeys([*names, "retriable-status-codes"]) if codes else names)
    other_host = typed_extension("envoy.retry_host_predicates.previous_hosts", OTHER_HOST)
    policy = given(
        retry_on=retry_on,
        num_retries=retries.attempts,
        retriable_status_codes=codes,
        host_selection_retry_max_attempts=5,
        retry_host_predicate=[other_host] if retries.retry_ignore_previous_hosts else [],
        per_try_timeout=duration(retries.per_try_timeout),
        retry_back_off=given(base_interval=duration(retries.backoff)),
    )
    return {"retry_policy": policy}


def _match(request: HTTPMatchRequest | None) -> Json:
    if not request:
        return {"prefix": "/"}
    uri = request.uri or UriMatch()
    match: Json = {"prefix": "/" if uri.prefix is None else uri.prefix}
    if uri.exact is not None:
        match = {"path": uri.exact}
    elif uri.regex:
        match = {"safe_regex": {"regex": uri.regex}}
    headers = [_header(name, wanted) for name, wanted in request.headers.items()]
    for name, unwanted in request.without_headers.items():
        header = _header(name, unwanted) | {"invert_match": True}
        if "present_match" not in header:
            header["treat_missing_header_as_empty"] = True
        headers.append(header)
    headers.sort(key=lambda header: str(header["name"]))
    pseudo = {":method": request.method, ":authority": request.authority, ":scheme": request.scheme}
    headers += [_header(name, wanted) for name, wanted in pseudo.items() if wanted]
    parameters = [_header(name, wanted) for name, wanted in request.query_params.items()]
    match["case_sensitive"] = not request.ignore_uri_case
    return match | given(headers=headers, query_parameters=parameters)


def _header(name: str, wanted: StringMatch) -> Json:
    """Return how Envoy compares a header or a parameter; Istio takes ``*`` for any value."""
    values: Json = wanted.model_dump(exclude_none=True)
    if not values or values == {"regex": "*"}:
        return {"name": name, "present_match": True}
    return {"name": name, "string_match": {"safe_regex": values} if "regex" in values else values}


def _fault(wanted: HTTPFaultInjection) -> Json:
    fault = typed(FAULT)
    if delay := wanted.delay:
        percent = delay.percentage.value if "percentage" in delay.model_fields_set else delay.percent
        fault["delay"] = {"fixed_delay": duration(delay.fixed_delay), "percentage": _fraction(percent)}
    if abort := wanted.abort:
        percentage = _fraction(abort.percentage.value)
        fault["abort"] = {"http_status": abort.http_status, "percentage": percentage}
    return fault


def _fraction(percent: float) -> Json:
    return {"numerator": int(percent * 10_000), "denominator": "MILLION"}  # cut, as Istio does
