"""Wait until a cluster does what was asked: pods, routes, endpoints, the gateway."""

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from harness import Json
from harness.cluster.admission import remedy
from harness.cluster.kubectl import Kubectl, served
from harness.cluster.pods import ask_proxy, pods_of, statuses, why
from harness.cluster.scene import ROUTES, everywhere
from harness.manifests.base import Object
from harness.manifests.lookup import DOMAIN, find_service
from harness.meshes.mesh import TARGET, MeshError, Progress, get, wait_until
from harness.meshes.scene import Scene, key, named
from harness.proof.expectation import ROOT, Applied, serves_mesh
from harness.rendering.routes import sidecar_routes

ROUTE_DEADLINE = 60.0
"""Seconds in which Istio must bring a route to the proxies."""

ROLLOUT_DEADLINE = 180.0
"""Seconds in which pods must be ready, their images pulled."""

STUCK = 5.0
"""Seconds after which a pod is given up that is in a state from which few come back."""

HOPELESS = {
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError",
    "CreateContainerError", "RunContainerError", "CrashLoopBackOff",
}  # fmt: skip
"""Why a container waits, where it seldom helps to wait with it."""

RULES_DEADLINE = 20.0
"""Seconds after which it is taken that some proxies never have a release's rules."""


def wait_for_rollouts(kubectl: Kubectl, workloads: Iterable[str], progress: Progress) -> None:
    """Wait until the pods of Deployments are ready.

    :raises MeshError: they are not in time, or are in a state from which few come back. It says why.
    """
    late, stuck_since = list(workloads), dict[str, float]()

    def all_are_ready() -> bool:
        found = kubectl.items("deployments,pods") if late else []
        deployments = {each["metadata"]["name"]: each for each in found if each["kind"] == "Deployment"}
        pods = [each for each in found if each["kind"] == "Pod"]
        late[:] = [name for name in late if not is_rolled_out(deployments.get(name, {}))]
        for name in late:
            reason = stuck(deployments.get(name, {}), pods)
            since = stuck_since.setdefault(name, time.monotonic())
            if not reason:
                del stuck_since[name]
            elif time.monotonic() > since + STUCK:
                raise MeshError(_does_not_become_ready(kubectl, name, reason))
            progress(f"waiting for the pods of {name}{reason and ': '}{reason}")
        return not late

    if not wait_until(all_are_ready, ROLLOUT_DEADLINE, pause=0.8):
        raise MeshError(_does_not_become_ready(kubectl, late[0], f"not in {ROLLOUT_DEADLINE:g} s"))


def is_rolled_out(deployment: Json) -> bool:
    """Say whether all pods of a Deployment are new and available, as ``kubectl rollout status`` does."""
    if not deployment:
        return False
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    counts = [status.get(count, 0) for count in ("replicas", "updatedReplicas", "availableReplicas")]
    is_seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return is_seen and counts == [wanted] * 3


def stuck(deployment: Json, pods: list[Json]) -> str:
    """Return why a Deployment's pods cannot start as they are; nothing if they may."""
    for condition in deployment.get("status", {}).get("conditions", []):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return str(condition.get("message", ""))
    chosen = deployment.get("spec", {}).get("selector", {}).get("matchLabels", {})
    for pod in pods:
        if chosen and chosen.items() <= pod["metadata"].get("labels", {}).items():
            for status in statuses(pod):
                waiting = status.get("state", {}).get("waiting", {})
                if waiting.get("reason") in HOPELESS:
                    return f"{waiting['reason']}: {waiting.get('message', '')}"
    return ""


def _does_not_become_ready(kubectl: Kubectl, name: str, reason: str) -> str:
    found = pods_of(kubectl, name)
    details = f"\n{why(kubectl, found)}" if found else ""
    return f"{name} does not become ready: {reason}{remedy(reason)}{details}"


def must_rule(kubectl: Kubectl, given: Iterable[Json]) -> None:
    """Raise a MeshError if sidecars would not take a VirtualService: another route overrules it."""
    written = [
        document for document in given if document["kind"] == "VirtualService" and serves_mesh(document)
    ]
    if not written:
        return
    applied = routes_of(kubectl)
    for document in written:
        for host in applied.hosts_of(document):
            for found in applied.ruling(host, kubectl.namespace)[:1]:
                where = applied.namespace_of(found)
                is_itself = key(found) == (document["kind"], kubectl.namespace, document["metadata"]["name"])
                is_route = found["kind"] == "HTTPRoute"
                if is_route or (host in applied.hosts_of(found) and not is_itself):
                    why = "comes before VirtualServices" if is_route else "is for the same host, and is older"
                    raise MeshError(
                        f"{named(found)} of namespace {where} {why}: proxies would take nothing of "
                        f"{named(document)}. {kubectl.program} delete {named(found)} -n {where}"
                    )


def routes_of(kubectl: Kubectl) -> Applied:
    """Return the VirtualServices and HTTPRoutes that are applied."""
    found = everywhere(kubectl, ",".join(served(kubectl, ROUTES)), [])
    return Applied(Scene(kubectl.namespace, tuple(found), ()))


def wait_for_routes(kubectl: Kubectl, objects: list[Object], progress: Progress) -> None:
    """Wait until preference's proxies route as the applied objects say: Istio takes a moment.

    Nothing is waited for where a route has fields that the harness does not know.
    """
    if any(type(found) is Object and found.kind == "VirtualService" for found in objects):
        return
    wanted = summary(sidecar_routes(objects), kubectl.namespace)
    service = find_service(objects, TARGET)
    # A host that a VirtualService names is known at port 80 as well, which nobody here calls.
    port = str(service.spec.ports[0].port) if service else ""

    has: list[Json] | None = None

    def there(said: str) -> bool:
        nonlocal has
        configs = [c.get("route_config", {}) for c in json.loads(said).get("configs", [])]
        known = [summary(config, kubectl.namespace, port) for config in configs]
        found = [routes for routes in known if routes is not None]
        has = found[0] if found else None
        return wanted in found or (wanted is None and not found)

    def problem() -> str:
        return f"does not have the route after {ROUTE_DEADLINE:g} s: {_instead(kubectl, has)}"

    _wait_for_proxies(kubectl, progress, "config_dump?resource=dynamic_route_configs", there, problem)


def _instead(kubectl: Kubectl, has: list[Json] | None) -> str:
    """Say what a proxy does with the target's requests instead, and what may be why."""
    rules = []
    for route in has or []:
        ways = [(subset.split("|")[2] or "any version", weight) for subset, weight in route["clusters"]]
        words = " and ".join(f"{weight} % to {to}" if weight else f"all to {to}" for to, weight in ways)
        words += "".join(f", mirrored to {cluster.split('|')[2]}" for cluster, _ in route["mirrors"])
        rules.append(words)
    said = f"it leads {'; '.join(rules)}" if rules else f"it knows no {TARGET}"
    filters: list[str] = []
    with contextlib.suppress(MeshError):
        found = everywhere(kubectl, "envoyfilters.networking.istio.io", [])
        spaces = (kubectl.namespace, ROOT)
        filters = [f"{named(f)} of namespace {f['metadata']['namespace']}" for f in found
                   if f["metadata"]["namespace"] in spaces]  # fmt: skip
    if filters:
        return f"{said}; {', '.join(filters)} may overrule it"
    return f"{said}; see 'istioctl proxy-status', and Sidecars"


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

    def problem() -> str:
        return f"does not know {workload} after {ROUTE_DEADLINE:g} s: see 'istioctl proxy-status'"

    _wait_for_proxies(kubectl, progress, "clusters", there, problem)


def _wait_for_proxies(
    kubectl: Kubectl, progress: Progress, query: str, there: Callable[[str], bool], problem: Callable[[], str]
) -> None:
    """Ask the admin interface of preference's proxies until what it says is as it must be."""
    progress("waiting for the proxies to take the configuration")
    late = [pod["metadata"]["name"] for pod in pods_of(kubectl, "preference")]

    def all_say_so() -> bool:
        late[:] = [name for name in late if not there(ask_proxy(kubectl, name, query))]
        return not late

    if not wait_until(all_say_so, ROUTE_DEADLINE, pause=0.2):
        raise MeshError(f"the proxy of {late[0]} {problem()}")


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


def summary(routes: Json, namespace: str, port: str = "") -> list[Json] | None:
    """Return where Envoy's route configuration sends requests for recommendation; None if it lacks the host.

    Istio's rendering and the harness's differ in form; what must be the same are matches, clusters, weights
    and mirrors.

    :param port: at which port of the host; nothing is the first that there is.
    """
    hosts = (f"{TARGET}.{namespace}.svc.cluster.local", f"{TARGET}.{DOMAIN}")
    for host in routes.get("virtual_hosts", []):
        name, _, at = host["name"].partition(":")
        if name in hosts and port in ("", at):
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
