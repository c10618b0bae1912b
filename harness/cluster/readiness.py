"""Wait until a cluster does what was asked: pods, routes, endpoints, the gateway."""

import contextlib
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from harness import Json
from harness.cluster.admission import remedy
from harness.cluster.kubectl import Kubectl
from harness.cluster.pods import ask_proxy, of_workload, pods_of, statuses, why
from harness.cluster.routes import QUERY, Ruling, routes_of, without_rules
from harness.cluster.scene import everywhere, pods_in
from harness.meshes.mesh import TARGET, MeshError, Progress, get, wait_until
from harness.meshes.scene import named
from harness.proof.applied import ROOT
from harness.proof.rules import full_name

SEE = "see 'istioctl proxy-status'"

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
"""Seconds after which it is taken that some proxies never have certain rules, or subsets."""


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


def wait_for_routes(kubectl: Kubectl, progress: Progress) -> None:
    """Wait until preference's proxies route to the target as what is applied says: Istio takes a moment.

    Nothing is waited for where that is no VirtualService, or has fields that the harness does not know.

    :raises MeshError: they do not in time. It says what they do instead.
    """
    host = full_name(TARGET, kubectl.namespace)
    found, *_ = *routes_of(kubectl).ruling(host, kubectl.namespace), without_rules(host)
    if found["kind"] != "VirtualService":
        return
    ruling = Ruling(kubectl.namespace, found)

    def lacks(pod: str) -> str:
        instead = ruling.instead(ask_proxy(kubectl, pod, QUERY))
        said = f"it leads {instead}" if instead else f"it knows no {TARGET}"
        return "" if instead is None else f"does not have the route after {ROUTE_DEADLINE:g} s: {said}"

    if late := _late_proxy(kubectl, lacks, progress):
        raise MeshError(f"{late}; {_overruling(kubectl) or f'{SEE}, and Sidecars'}")


def wait_for_subsets(kubectl: Kubectl, progress: Progress) -> None:
    """Wait until preference's proxies have the target's subsets, and no others.

    A Sidecar may hide them: who does not have them in time is passed over.
    """
    progress("waiting for the proxies to take the subsets")
    host = full_name(TARGET, kubectl.namespace)
    wanted = routes_of(kubectl).subsets_of(host).keys()
    cluster = re.compile(rf"^outbound\|\d+\|([^|]+)\|{re.escape(host)}::", re.MULTILINE)

    def lacks(pod: str) -> str:
        has = set(cluster.findall(ask_proxy(kubectl, pod, "clusters")))
        return "" if has == wanted else "the subsets"

    _late(_callers(kubectl), lacks, RULES_DEADLINE)


def _overruling(kubectl: Kubectl) -> str:
    """Say which EnvoyFilters may overrule a route; nothing if there are none."""
    found: list[Json] = []
    with contextlib.suppress(MeshError):
        found = everywhere(kubectl, "envoyfilters.networking.istio.io", [])
    places = [(named(each), each["metadata"]["namespace"]) for each in found]
    near = [f"{name} of namespace {where}" for name, where in places if where in (kubectl.namespace, ROOT)]
    return f"{', '.join(near)} may overrule it" if near else ""


def wait_for_rules(kubectl: Kubectl, document: Json, hurry: Callable[[], bool], progress: Progress) -> None:
    """Wait until sidecars have the rules of a VirtualService, whoever's it is; of twenty pods at most.

    Whoever may not be asked, or does not come round in time, is passed over: the proof sees what happens.

    :param hurry: says whether to wait no longer.
    """
    progress("waiting for the proxies to take the route")
    pods = [pod.name for pod in pods_in(kubectl) if pod.proxy_id and not pod.gateway]
    ruling = Ruling(kubectl.namespace, document)

    def lacks(pod: str) -> str:
        try:
            return ruling.instead(ask_proxy(kubectl, pod, QUERY)) or ""  # a Sidecar may hide the hosts
        except MeshError:
            return ""
        except ValueError:
            return "an answer that is not cut off"

    _late(pods[:20], lacks, RULES_DEADLINE, hurry)


def wait_for_endpoints(kubectl: Kubectl, workloads: Iterable[str], progress: Progress) -> None:
    """Wait until preference's proxies know where workloads' pods are: ready is not yet reachable."""
    found = kubectl.items("pods")
    known = [(name, pod["status"].get("podIP", "")) for name in workloads for pod in of_workload(found, name)]

    def lacks(pod: str) -> str:
        said = ask_proxy(kubectl, pod, "clusters")
        unknown = [name for name, ip in known if f"::{ip}:" not in said]
        return f"does not know {unknown[0]} after {ROUTE_DEADLINE:g} s: {SEE}" if unknown else ""

    if late := _late_proxy(kubectl, lacks, progress):
        raise MeshError(late)


def _late_proxy(kubectl: Kubectl, lacks: Callable[[str], str], progress: Progress) -> str:
    """Wait until preference's proxies lack nothing; say what one does in the end, if there is one."""
    progress("waiting for the proxies to take the configuration")
    late = _late(_callers(kubectl), lacks, ROUTE_DEADLINE)
    return next((f"the proxy of {pod} {lack}" for pod, lack in late), "")


def _callers(kubectl: Kubectl) -> list[str]:
    """Return the names of preference's pods, whose proxies call the target."""
    return [pod["metadata"]["name"] for pod in pods_of(kubectl, "preference")]


def _late(
    pods: list[str], lacks: Callable[[str], str], deadline: float, hurry: Callable[[], bool] = bool
) -> list[tuple[str, str]]:
    """Wait until pods lack nothing, asking several at once; return those that do in the end, and what."""
    late = [(pod, "") for pod in pods]

    def none_is_late() -> bool:
        with ThreadPoolExecutor(8) as pool:
            names = [pod for pod, _ in late]
            late[:] = [(pod, lack) for pod, lack in zip(names, pool.map(lacks, names), strict=True) if lack]
        return not late or hurry()

    wait_until(none_is_late, deadline, pause=0.2)
    return late


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
