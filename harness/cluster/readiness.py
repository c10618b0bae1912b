"""Wait until a cluster does what was asked: pods, routes, endpoints, the gateway."""

import contextlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from harness import Json
from harness.cluster.kubectl import Kubectl, groups
from harness.cluster.pods import ask_proxy, pods_of, why
from harness.manifests.base import Object
from harness.manifests.lookup import DOMAIN
from harness.meshes.mesh import TARGET, MeshError, Progress, get, wait_until
from harness.rendering.routes import sidecar_routes

ROUTE_DEADLINE = 60.0
"""Seconds in which Istio must bring a route to the proxies."""

RULES_DEADLINE = 20.0
"""Seconds after which it is taken that some proxies never have a release's rules."""


def wait_for_rollout(kubectl: Kubectl, workload: str, progress: Progress) -> None:
    """Wait until a workload's pods are ready; if they do not become so, say why."""
    process = kubectl.start("rollout", "status", f"deployment/{workload}", "--timeout=180s")
    assert process.stdout
    with process:
        for line in process.stdout:
            progress(line.decode().strip())
    if process.returncode:
        raise MeshError(f"{workload} does not become ready\n{why(kubectl, pods_of(kubectl, workload))}")


def must_rule(kubectl: Kubectl) -> None:
    """Raise a MeshError if an HTTPRoute leads to a Service: Istio prefers it to VirtualServices."""
    if "gateway.networking.k8s.io" not in groups(kubectl):
        return
    for route in kubectl.items("httproutes.gateway.networking.k8s.io"):
        if any(parent.get("kind") == "Service" for parent in route["spec"].get("parentRefs", [])):
            name = f"httproute/{route['metadata']['name']}"
            raise MeshError(
                f"{name} overrules the VirtualServices, so that nothing would come of them: "
                f"{kubectl.program} delete {name} -n {kubectl.namespace}"
            )


def wait_for_routes(kubectl: Kubectl, objects: list[Object], progress: Progress) -> None:
    """Wait until preference's proxies route as the applied objects say: Istio takes a moment.

    Nothing is waited for where a route has fields that the harness does not know.
    """
    if any(type(found) is Object and found.kind == "VirtualService" for found in objects):
        return
    wanted = summary(sidecar_routes(objects), kubectl.namespace)

    def there(said: str) -> bool:
        configs = [c.get("route_config", {}) for c in json.loads(said).get("configs", [])]
        return wanted in [summary(config, kubectl.namespace) for config in configs]

    problem = f"does not have the route after {ROUTE_DEADLINE:g} s"
    _wait_for_proxies(kubectl, progress, "config_dump?resource=dynamic_route_configs", there, problem)


def wait_for_rules(
    kubectl: Kubectl, document: Json, pods: list[str], hurry: Callable[[], bool], progress: Progress
) -> None:
    """Wait until sidecars have the rules of a VirtualService, by their names; of twenty pods at most.

    Whoever may not be asked, or does not come round in time, is passed over: the proof sees what happens.

    :param hurry: says whether to wait no longer.
    """
    progress("waiting for the proxies to take the route")
    wanted = {rule["name"]: _promised(rule) for rule in document["spec"]["http"] if "name" in rule}
    domain = f".{kubectl.namespace}.svc.cluster.local"
    hosts = {host if "." in host else host + domain for host in document["spec"]["hosts"]}
    late = set(pods[:20])

    def ask(pod: str) -> None:
        with contextlib.suppress(ValueError):
            try:
                said = ask_proxy(kubectl, pod, "config_dump?resource=dynamic_route_configs")
                there = _has_rules(json.loads(said), hosts, wanted)
            except MeshError:
                there = True
            if there:
                late.discard(pod)

    def all_have_them() -> bool:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, sorted(late)))
        return not late or hurry()

    wait_until(all_have_them, RULES_DEADLINE, pause=0.1)


def _has_rules(said: Json, hosts: set[str], wanted: dict[str, Json]) -> bool:
    """Say whether a proxy has rules as they are promised, or does not know their hosts: a Sidecar's doing."""
    known = [
        host
        for config in said.get("configs", [])
        for host in config.get("route_config", {}).get("virtual_hosts", [])
        if host["name"].partition(":")[0] in hosts
    ]
    routes = [route for host in known for route in host.get("routes", []) if route.get("name") in wanted]
    found = [(route["name"], _subsets(_route_summary(route))) for route in routes]
    has_all = {name for name, _ in found} == set(wanted)
    return not known or (has_all and all(wanted[name] == promised for name, promised in found))


def _promised(rule: Json) -> Json:
    """Return what a rule of a VirtualService promises: subsets with weights, and mirrors with shares."""
    routes = [(r["destination"].get("subset", ""), r.get("weight", 0)) for r in rule.get("route", [])]
    single = len(routes) == 1
    mirrors = [(m["destination"], m.get("percentage", {})) for m in rule.get("mirrors") or []]
    mirrors += [(rule["mirror"], rule.get("mirrorPercentage", {}))] if rule.get("mirror") else []
    return {
        "clusters": sorted(
            (subset, 0 if single else weight) for subset, weight in routes if single or weight
        ),
        "mirrors": sorted((to.get("subset", ""), part.get("value", 100) / 100) for to, part in mirrors),
    }


def _subsets(summarised: Json) -> Json:
    return {
        name: sorted((cluster.split("|")[2], number) for cluster, number in summarised[name])
        for name in ("clusters", "mirrors")
    }


def wait_for_endpoints(kubectl: Kubectl, workload: str, progress: Progress) -> None:
    """Wait until preference's proxies know where a workload's pods are: ready is not yet reachable."""
    known = [f"::{pod['status'].get('podIP', '')}:" for pod in pods_of(kubectl, workload)]

    def there(said: str) -> bool:
        return all(ip in said for ip in known)

    _wait_for_proxies(kubectl, progress, "clusters", there, f"does not know {workload}")


def _wait_for_proxies(
    kubectl: Kubectl, progress: Progress, query: str, there: Callable[[str], bool], problem: str
) -> None:
    """Ask the admin interface of preference's proxies until what it says is as it must be."""
    progress("waiting for the proxies to take the configuration")
    late = [pod["metadata"]["name"] for pod in pods_of(kubectl, "preference")]

    def all_say_so() -> bool:
        late[:] = [name for name in late if not there(ask_proxy(kubectl, name, query))]
        return not late

    if not wait_until(all_say_so, ROUTE_DEADLINE, pause=0.2):
        raise MeshError(f"the proxy of {late[0]} {problem}: istioctl proxy-status")


def wait_for_gateway(url: Callable[[], str], progress: Progress) -> None:
    """Wait until the gateway leads callers to customer."""
    answer = "no answer"

    def leads() -> bool:
        nonlocal answer
        with contextlib.suppress(MeshError):
            found = get(url(), timeout=5)
            answer = f"{found.status_code} {found.text.strip()[:100]}"
            return found.ok
        return False

    progress("waiting for the gateway to answer")
    if not wait_until(leads, deadline=90, pause=0.5):
        raise MeshError(f"the gateway does not lead to customer ({answer}): see 'make status MESH=cluster'")


def summary(routes: Json, namespace: str) -> list[Json] | None:
    """Return where Envoy's route configuration sends requests for recommendation; None if it lacks the host.

    Istio's rendering and the harness's differ in form; what must be the same are matches, clusters, weights
    and mirrors.
    """
    hosts = (f"{TARGET}.{namespace}.svc.cluster.local", f"{TARGET}.{DOMAIN}")
    for host in routes.get("virtual_hosts", []):
        if host["name"].partition(":")[0] in hosts:
            return [_route_summary(route) for route in host.get("routes", [])]
    return None


def _route_summary(route: Json) -> Json:
    action = route.get("route", {})
    weighted = action.get("weighted_clusters", {}).get("clusters", [])
    match = {k: v for k, v in route.get("match", {}).items() if k in ("path", "prefix")}
    headers = [h["name"] for h in route.get("match", {}).get("headers", [])]
    return {
        "match": match or {"prefix": "/"},
        "headers": sorted(headers),
        "clusters": sorted(
            (_subset(c["name"]), c.get("weight", 0)) for c in weighted if c.get("weight")
        ) or [(_subset(action.get("cluster", "")), 0)],
        "mirrors": [
            (_subset(m["cluster"]), _share(m.get("runtime_fraction", {}).get("default_value", {})))
            for m in action.get("request_mirror_policies", [])
        ],
    }  # fmt: skip


def _subset(cluster: str) -> str:
    """Return a cluster's subset and Service, without the namespace: ``outbound|8080|v2|recommendation``."""
    return cluster.partition(".")[0]


def _share(fraction: Json) -> float:
    denominators = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}
    return float(fraction.get("numerator", 0) / denominators[fraction.get("denominator", "HUNDRED")])
