"""What the proof needs of a cluster: what is applied and runs, of anybody's, and the proxies' logs."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache, partial

from harness import Json
from harness.cluster.kubectl import ContainerLog, Kubectl, container_status
from harness.cluster.pods import SIDECAR
from harness.meshes.logs import Stream, StreamFollower
from harness.meshes.mesh import LogFollower, MeshError
from harness.meshes.scene import Pod, Scene

CORE = "services,deployments,statefulsets,daemonsets"
ROUTING = ("virtualservices.networking.istio.io", "destinationrules.networking.istio.io",
           "gateways.networking.istio.io", "httproutes.gateway.networking.k8s.io")  # fmt: skip
POLICIES = ("sidecars.networking.istio.io", "peerauthentications.security.istio.io",
            "authorizationpolicies.security.istio.io", "telemetries.telemetry.istio.io")  # fmt: skip
GATEWAYS = ("istio=ingressgateway", "gateway.networking.k8s.io/gateway-name")
"""How pods of ingress gateways are labelled: Istio's own, and those of the Gateway API."""


def look(kubectl: Kubectl, namespace: str, callers: Iterable[str] = ()) -> Scene:
    """Return what is applied for a namespace and runs there.

    What may not be read in other namespaces is done without.

    :raises MeshError: the cluster does not answer, or does not let this user read the namespace.
    """
    here = replace(kubectl, namespace=namespace)
    objects = here.items(CORE)
    unread: list[str] = []
    kinds = [kind for kind in (*ROUTING, *POLICIES) if kind.partition(".")[2] in _groups(kubectl)]
    if kinds:
        objects += _everywhere(here, ",".join(kinds), unread)
    return Scene(namespace, tuple(objects), tuple(_pods(here, callers, unread)), tuple(unread))


@cache
def _groups(kubectl: Kubectl) -> frozenset[str]:
    """Return the API groups that the server has."""
    return frozenset(version.partition("/")[0] for version in kubectl.run("api-versions").split())


def _pods(kubectl: Kubectl, callers: Iterable[str], unread: list[str]) -> Iterable[Pod]:
    """Return the pods of a namespace, those of callers elsewhere, and the ingress gateways."""
    pods = [_pod(pod) for pod in kubectl.items("pods") if _lives(pod)]
    for other in {caller.partition("/")[0] for caller in callers if "/" in caller} - {kubectl.namespace}:
        pods += [_pod(pod) for pod in replace(kubectl, namespace=other).items("pods") if _lives(pod)]
    for label in GATEWAYS[: 2 if "gateway.networking.k8s.io" in _groups(kubectl) else 1]:
        found = _everywhere(kubectl, "pods", unread, f"--selector={label}")
        pods += [replace(_pod(pod), gateway=True) for pod in found if _lives(pod)]
    distinct = {(pod.namespace, pod.name): pod for pod in pods}  # a gateway may be in the namespace itself
    return tell_apart(distinct.values(), kubectl.namespace)


def tell_apart(pods: Iterable[Pod], namespace: str) -> Iterator[Pod]:
    """Yield pods, each with a name of its own: StatefulSets' pods have the same ones in every namespace."""
    taken: set[str] = set()
    for pod in sorted(pods, key=lambda pod: pod.namespace != namespace):
        name = f"{pod.namespace}/{pod.name}" if pod.name in taken else pod.name
        taken.add(name)
        yield replace(pod, name=name)


def _bare(pod: Pod) -> str:
    return pod.name.rpartition("/")[2]


def _everywhere(kubectl: Kubectl, kinds: str, unread: list[str], *words: str) -> list[Json]:
    """Return objects of all namespaces; those of one's own where others may not be read."""
    try:
        return kubectl.items(kinds, "--all-namespaces", *words)
    except MeshError as error:
        if "forbidden" not in str(error).lower():
            raise
    unread.append(f"{kinds} of other namespaces may not be read")
    return kubectl.items(kinds, *words)


def _lives(pod: Json) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") not in (
        "Succeeded",
        "Failed",
    )


def _pod(pod: Json) -> Pod:
    metadata, status = pod["metadata"], pod["status"]
    containers = [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]
    ports: dict[str, str] = {}
    for container in containers:
        for port in container.get("ports", []):
            number = str(port["containerPort"])
            ports |= {number: number, **({port["name"]: number} if "name" in port else {})}
    proxy = container_status(pod, SIDECAR)
    addresses = [address["ip"] for address in status.get("podIPs", [])] or [status.get("podIP", "")]
    return Pod(
        name=metadata["name"],
        namespace=metadata["namespace"],
        workload=_workload(metadata),
        labels=metadata.get("labels", {}),
        addresses=tuple(address for address in addresses if address),
        ports=ports,
        ready=any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", [])),
        proxy=any(container["name"] == SIDECAR for container in containers),
        proxy_id=proxy.get("containerID", "") if "running" in proxy.get("state", {}) else "",
    )


def _workload(metadata: Json) -> str:
    """Return what made a pod: a Deployment, by its ReplicaSet's name; of a Rollout, the ReplicaSet itself."""
    owner = next(iter(metadata.get("ownerReferences", [])), None)
    if owner is None:
        return str(metadata["name"])
    label = metadata.get("labels", {}).get("pod-template-hash")
    if owner["kind"] == "ReplicaSet" and label:
        return str(owner["name"].removesuffix(f"-{label}"))
    return str(owner["name"])


def follow(kubectl: Kubectl, namespace: str, callers: Iterable[str]) -> LogFollower:
    """Follow the access logs of pods' proxies."""

    def streams(new: bool) -> Iterator[Stream]:
        # A stream needs a moment to open, so it goes back a little.
        since = [] if new else ["--since=10s"]
        for pod in _pods(replace(kubectl, namespace=namespace), callers, []):
            if pod.proxy_id:  # else there is no log to follow yet
                there = replace(kubectl, namespace=pod.namespace)
                opened = partial(ContainerLog, there, _bare(pod), SIDECAR, *since, id=pod.proxy_id)
                yield Stream(f"{pod.namespace}/{pod.name}/{pod.proxy_id}", pod.name, opened)

    return StreamFollower(streams, again=5)


def request_log(kubectl: Kubectl, pod: Pod) -> Iterator[str]:
    """Yield all that a pod's proxy has logged, as far as the node keeps it."""
    with contextlib.suppress(MeshError):  # it has just gone
        words = ["logs", _bare(pod), f"--container={SIDECAR}", "--tail=-1"]
        yield from replace(kubectl, namespace=pod.namespace).run(*words).splitlines()


def ask_proxy(kubectl: Kubectl, pod: Pod, query: str) -> str | None:
    """Return what the admin interface of a pod's proxy answers; None if it may not be asked."""
    words = ["exec", _bare(pod), f"--container={SIDECAR}", "--", "pilot-agent", "request", "GET", query]
    with contextlib.suppress(MeshError):
        return replace(kubectl, namespace=pod.namespace).run(*words)
    return None


def in_flight(kubectl: Kubectl, pods: Iterable[Pod]) -> int | None:
    """Return how many requests the proxies of pods have passed on and not yet seen answered."""
    total = 0
    for pod in pods:
        said = ask_proxy(kubectl, pod, "clusters")
        if said is None:
            return None
        total += sum(map(int, re.findall(r"^inbound\|.*::rq_active::(\d+)$", said, re.MULTILINE)))
    return total


def logs_requests(kubectl: Kubectl, pod: Pod) -> bool | None:
    """Say whether a pod's proxy logs the requests that it gets."""
    said = ask_proxy(kubectl, pod, "config_dump?resource=dynamic_listeners")
    if said is None:
        return None
    with contextlib.suppress(ValueError):
        return '"/dev/stdout"' in json.dumps(
            [c for c in json.loads(said).get("configs", []) if c.get("name") == "virtualInbound"]
        )
    return None
