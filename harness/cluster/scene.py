"""What the proof needs of a cluster: what is applied and runs, of anybody's."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

from harness import Json
from harness.cluster.kubectl import EXTENSIONS, ContainerLog, Kubectl, container_status, groups, served
from harness.cluster.pods import SIDECAR, containers, has_sidecar, workload_of
from harness.meshes.logs import Stream, StreamFollower
from harness.meshes.mesh import LogFollower
from harness.meshes.scene import Pod, Scene

CORE = "services,deployments,statefulsets,daemonsets"
ROUTES = ("virtualservices.networking.istio.io", "httproutes.gateway.networking.k8s.io")
SUBSETS = "destinationrules.networking.istio.io"
ROUTING = (*ROUTES, SUBSETS, "gateways.networking.istio.io")
POLICIES = ("sidecars.networking.istio.io", "peerauthentications.security.istio.io",
            "authorizationpolicies.security.istio.io", "telemetries.telemetry.istio.io",
            EXTENSIONS)  # fmt: skip
GATEWAYS = ("istio=ingressgateway", "gateway.networking.k8s.io/gateway-name")
"""How pods of ingress gateways elsewhere are labelled: Istio's own, and those of the Gateway API."""


def look(kubectl: Kubectl, callers: Iterable[str] = ()) -> Scene:
    """Return what is applied for a namespace and runs there.

    What may not be read in other namespaces is done without.

    :raises MeshError: the cluster does not answer, or does not let this user read the namespace.
    """
    found = kubectl.items(f"{CORE},pods")  # in one go: each start of kubectl costs a tenth of a second
    objects = [each for each in found if each["kind"] != "Pod"]
    unread: list[str] = []
    if kinds := served(kubectl, (*ROUTING, *POLICIES)):
        objects += everywhere(kubectl, ",".join(kinds), unread)
    seen = pods(kubectl, callers, unread, [each for each in found if each["kind"] == "Pod"])
    return Scene(kubectl.namespace, tuple(objects), tuple(seen), tuple(unread))


def pods(
    kubectl: Kubectl, callers: Iterable[str], unread: list[str], there: list[Json] | None = None
) -> Iterator[Pod]:
    """Return the pods of a namespace, those of callers elsewhere, and the ingress gateways.

    :param unread: what may not be read is added to it.
    :param there: the pods of the namespace, where they are known.
    """
    found = pods_in(kubectl, there)
    for namespace in dict.fromkeys(c.partition("/")[0] for c in callers if "/" in c):
        if namespace != kubectl.namespace:
            found += pods_in(replace(kubectl, namespace=namespace))
    for label in GATEWAYS[: 2 if "gateway.networking.k8s.io" in groups(kubectl) else 1]:
        gateways = pods_in(kubectl, everywhere(kubectl, "pods", unread, f"--selector={label}"))
        found += [replace(pod, gateway=True) for pod in gateways]
    distinct = {(pod.namespace, pod.name): pod for pod in found}  # a gateway may be in the namespace itself
    return tell_apart(distinct.values(), kubectl.namespace)


def pods_in(kubectl: Kubectl, there: list[Json] | None = None) -> list[Pod]:
    """Return the pods of a namespace; ``there`` are all of it, where they are known."""
    return [_pod(pod) for pod in (kubectl.items("pods") if there is None else there) if _lives(pod)]


def tell_apart(pods: Iterable[Pod], namespace: str) -> Iterator[Pod]:
    """Yield pods, each with a name of its own: StatefulSets' pods have the same ones in every namespace."""
    taken: set[str] = set()
    for pod in sorted(pods, key=lambda pod: pod.namespace != namespace):
        name = f"{pod.namespace}/{pod.name}" if pod.name in taken else pod.name
        taken.add(name)
        yield replace(pod, name=name)


def follow(kubectl: Kubectl, callers: list[str], known: list[Pod]) -> LogFollower:
    """Follow the proxies of pods, and of those that start meanwhile; ``known`` are those of a moment ago."""

    def streams(new: bool) -> Iterator[Stream]:
        # A stream needs a moment to open, so it goes back a little.
        since = [] if new else ["--since=10s"]
        for pod in known if known and not new else pods(kubectl, callers, []):
            if pod.proxy_id:  # else there is no log to follow yet
                opened = partial(ContainerLog, *reach(kubectl, pod), SIDECAR, *since, id=pod.proxy_id)
                yield Stream(f"{pod.namespace}/{pod.name}/{pod.proxy_id}", pod.name, opened)

    return StreamFollower(streams, again=10)  # which costs the cluster's and this machine's time


def reach(kubectl: Kubectl, pod: Pod) -> tuple[Kubectl, str]:
    """Return what to run and how to name a pod, in order to ask it something."""
    return replace(kubectl, namespace=pod.namespace), pod.name.rpartition("/")[2]


def everywhere(kubectl: Kubectl, kinds: str, unread: list[str], *words: str) -> list[Json]:
    """Return objects of all namespaces; those of one's own where others may not be read."""
    found = kubectl.readable(kinds, "--all-namespaces", *words)
    if found is not None:
        return found
    unread.append(f"{kinds} of other namespaces may not be read")
    return kubectl.items(kinds, *words)


def _lives(pod: Json) -> bool:
    ended = pod["status"].get("phase") in ("Succeeded", "Failed")
    return not ended and "deletionTimestamp" not in pod["metadata"]


def _pod(pod: Json) -> Pod:
    metadata, status = pod["metadata"], pod["status"]
    ports: dict[str, str] = {}
    for container in containers(pod):
        for port in container.get("ports", []):
            number = str(port["containerPort"])
            ports |= {number: number, **({port["name"]: number} if "name" in port else {})}
    proxy = container_status(pod, SIDECAR)
    addresses = [address["ip"] for address in status.get("podIPs", [])] or [status.get("podIP", "")]
    return Pod(
        name=metadata["name"],
        namespace=metadata["namespace"],
        workload=workload_of(metadata),
        labels=metadata.get("labels", {}),
        addresses=tuple(address for address in addresses if address),
        ports=ports,
        ready=any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", [])),
        proxy=has_sidecar(pod),
        proxy_id=proxy.get("containerID", "") if "running" in proxy.get("state", {}) else "",
        gateway=any(c["name"] == SIDECAR and "router" in c.get("args", []) for c in containers(pod)),
    )
