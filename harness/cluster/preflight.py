"""What a cluster must have before anything is deployed: facts in, problems with their remedies out."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from harness import Json
from harness.cluster.kubectl import Kubectl
from harness.cluster.platforms import KINDS, Platform
from harness.cluster.pods import has_sidecar
from harness.manifests.lookup import GATEWAY_LABELS
from harness.meshes.mesh import MeshError

OURS = "app.kubernetes.io/part-of"
"""The label that everything bears which `make deploy` makes; its value is PROJECT."""
PROJECT = "dark-launch"

ROOM = "room"
"""What the ConfigMap is called by which a namespace is known to be a room of `make rooms`."""
ROOM_LABEL = "dark-launch/room"
"""The label of all that `make rooms` makes; its value is the prefix of the rooms' names."""

SUPPORTED = range(28, 32)
"""The minor versions of Istio 1 that the workshop is written for."""

KUBERNETES = range(30, 38)
"""The minor versions of Kubernetes 1 that it is written for."""


@dataclass(frozen=True)
class Facts:
    """What the cluster says of itself, as ``kubectl get --output=json`` prints it."""

    api_versions: list[str]
    nodes: list[Json]
    control_planes: list[Json]
    injectors: list[Json]
    gateways: list[Json]
    istio_gateways: list[Json]
    namespace: Json
    """The workshop's Namespace, or nothing."""
    pods: list[Json]
    """The Pods in it."""
    unread: frozenset[str] = frozenset()
    """Which of the above this user may not read; they are empty then."""


QUESTIONS = {
    "nodes": ["nodes"],
    "control_planes": ["deployments", "--all-namespaces", "--selector=app=istiod"],
    "injectors": ["mutatingwebhookconfigurations", "--selector=app=sidecar-injector"],
    "gateways": ["services", "--all-namespaces", "--selector=istio=ingressgateway"],
    "istio_gateways": ["gateways.networking.istio.io", "--all-namespaces"],
}
"""What ``kubectl get`` is asked for, by the field of Facts."""


@cache
def room_of(kubectl: Kubectl) -> Json:
    """Return the ConfigMap that `make rooms` leaves in a namespace; nothing if this is none of its rooms."""
    found = kubectl.readable("configmap", ROOM) or []
    return next((each for each in found if ROOM_LABEL in each["metadata"].get("labels", {})), {})


def must_be_none(problems: Iterable[str]) -> None:
    """Raise a MeshError that has a line for each problem, if there is one."""
    if found := list(problems):
        raise MeshError("\n       ".join(found))


def istio_version(facts: Facts) -> tuple[int, int] | None:
    """Return the control plane's version, such as (1, 30); None if its image does not tell."""
    for deployment in facts.control_planes:
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            if found := re.search(r":v?(\d+)\.(\d+)[^:/]*$", container["image"]):
                return int(found[1]), int(found[2])
    return None


def revisions(facts: Facts) -> list[str]:
    """Return the revisions and tags that inject sidecars; istio-injection=enabled means ``default``.

    Who may not read that takes it to be as the namespace says.
    """
    if "injectors" in facts.unread:
        return [facts.namespace.get("metadata", {}).get("labels", {}).get("istio.io/rev", "default")]
    labels = [injector["metadata"].get("labels", {}) for injector in facts.injectors]
    found = {value for lb in labels for key in ("istio.io/rev", "istio.io/tag") if (value := lb.get(key))}
    return sorted(found, key=lambda name: (name != "default", name))


def injection_label(facts: Facts) -> str:
    """Return the label (``key=value``) that makes Istio inject sidecars into a namespace."""
    names = revisions(facts)
    return "istio-injection=enabled" if "default" in names else f"istio.io/rev={names[0]}"


def is_ours(resource: Json) -> bool:
    """Say whether `make deploy` made an object."""
    labels: Json = resource.get("metadata", {}).get("labels", {})
    return labels.get(OURS) == PROJECT


def problems(facts: Facts, namespace: str, kubectl: str, own_gateway: bool = False) -> Iterator[str]:
    """Yield a line for each thing that is missing, with the command that puts it right.

    :param own_gateway: whether the workshop has, or is to have, an ingress gateway of its own.
    """
    if "networking.istio.io/v1" not in facts.api_versions:
        old = any(version.startswith("networking.istio.io/") for version in facts.api_versions)
        what = "is too old (it does not serve networking.istio.io/v1)" if old else "is not installed"
        profile = "openshift" if "route.openshift.io/v1" in facts.api_versions else "demo"
        yield f"Istio {what}: istioctl install --set profile={profile}"
        return
    ready = [d for d in facts.control_planes if d.get("status", {}).get("readyReplicas")]
    if not ready and "control_planes" not in facts.unread:
        yield f"Istio's control plane is not ready: {kubectl} get pods -n istio-system"
        return
    version = istio_version(facts)
    if version and (version[0] != 1 or version[1] < SUPPORTED[0]):
        wanted = f"1.{SUPPORTED[0]} to 1.{SUPPORTED[-1]}"
        yield f"Istio {version[0]}.{version[1]} is not supported (only {wanted}): istioctl upgrade"
    if not revisions(facts):
        yield "Istio injects no sidecars (no webhook with the label app=sidecar-injector): istioctl install"
        return
    if not own_gateway:
        yield from _gateway_problems(facts, namespace, kubectl)
    yield from _namespace_problems(facts, namespace, kubectl)


def doubts(facts: Facts, platform: Platform) -> Iterator[str]:
    """Yield what was not checked, and what is newer than all that was tried: no reason to stop."""
    version, newest = istio_version(facts), SUPPORTED[-1]
    if version and version[1] > newest:
        yield f"Istio 1.{version[1]} is newer than what was tried (1.{SUPPORTED[0]} to 1.{newest})"
    if facts.control_planes and not version:
        yield "not checked: Istio's version, which its image does not tell"
    for node in facts.nodes[:1]:
        kubelet = node.get("status", {}).get("nodeInfo", {}).get("kubeletVersion", "")
        if (found := re.match(r"v1\.(\d+)", kubelet)) and int(found[1]) not in KUBERNETES:
            yield f"Kubernetes 1.{found[1]} was not tried (1.{KUBERNETES[0]} to 1.{KUBERNETES[-1]} were)"
    if facts.unread:
        what = ", ".join(sorted(facts.unread)).replace("_", " ")
        yield f"not checked, since this user may not read it: {what}"
    yield f"not checked: {KINDS[platform.kind].unchecked}"


def _gateway_problems(facts: Facts, namespace: str, kubectl: str) -> Iterator[str]:
    """Yield what is wrong with the ingress gateway that all namespaces share."""
    if "gateways" in facts.unread:
        yield "the cluster's ingress gateway may not be looked at: take one of your own (GATEWAY=own)"
    elif not facts.gateways:
        missing = "there is no ingress gateway (a Service with the label istio=ingressgateway)"
        yield f"{missing}: istioctl install, or take one of your own (GATEWAY=own)"
    for gateway in facts.istio_gateways:
        other, name = gateway["metadata"]["namespace"], gateway["metadata"]["name"]
        if other == namespace or not _takes_every_host(gateway):
            continue
        if is_ours(gateway):
            yield (
                f"the ingress gateway leads to the workshop in namespace {other}: use that one "
                f"(NAMESPACE={other}), take a gateway of your own (GATEWAY=own), "
                f"or remove that workshop (NAMESPACE={other} make undeploy)"
            )
        else:
            yield (
                f"the Gateway {name} of namespace {other} takes every host of the ingress gateway: take a "
                f"gateway of your own (GATEWAY=own), or remove that one ({kubectl} delete "
                f"gateways.networking.istio.io {name} -n {other})"
            )


def _takes_every_host(gateway: Json) -> bool:
    """Say whether a Gateway lets the shared ingress gateway take all hosts on port 80."""
    servers = gateway["spec"].get("servers", [])
    hosts = [host for server in servers if server["port"]["number"] == 80 for host in server["hosts"]]
    is_selected = gateway["spec"].get("selector", {}).items() <= GATEWAY_LABELS.items()
    return is_selected and any(host.rpartition("/")[2] == "*" for host in hosts)


def _namespace_problems(facts: Facts, namespace: str, kubectl: str) -> Iterator[str]:
    if not facts.namespace or "namespace" in facts.unread:
        return
    if "deletionTimestamp" in facts.namespace["metadata"]:
        yield f"namespace {namespace} is being deleted: {kubectl} wait --for=delete namespace/{namespace}"
        return
    labels = facts.namespace["metadata"].get("labels", {})
    label = injection_label(facts)
    command = f"{kubectl} label --overwrite namespace {namespace}"
    revision = labels.get("istio.io/rev")
    if labels.get("istio-injection") == "enabled":
        if "default" not in revisions(facts):
            command = f"{command} istio-injection- {label}"
            yield f"namespace {namespace} is labelled for a revision that is not there: {command}"
    elif is_ours(facts.namespace) and not revision and "istio-injection" not in labels:
        pass  # a deployment that was interrupted: it will be labelled
    elif labels.get("istio-injection") or not revision:
        remove = "istio.io/rev- " if revision else ""
        yield f"namespace {namespace} is not labelled for injection: {command} {remove}{label}"
    elif revision not in revisions(facts):
        problem = f"namespace {namespace} is labelled for revision {revision}, which is not there"
        yield f"{problem}: {command} {label}"
    ours = [pod for pod in facts.pods if is_ours(pod) and "deletionTimestamp" not in pod["metadata"]]
    bare = [pod["metadata"]["name"] for pod in ours if not has_sidecar(pod)]
    if bare:
        restart = f"{kubectl} rollout restart deployment -n {namespace}"
        yield f"pods without a sidecar, made before the label ({', '.join(bare)}): {restart}"
