"""Whether a namespace would let in what `make deploy` creates: asked of the API server, and added up.

Each pod is tried (``--dry-run=server``), so that Istio, Pod Security, LimitRanges and whatever else a cluster
has say what they would make of it. Of a ResourceQuota that tells but one pod, so the sum is made here.
https://kubernetes.io/docs/concepts/policy/resource-quotas/
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import yaml

from harness import Json
from harness.cluster.kubectl import ForbiddenError, Kubectl
from harness.cluster.pods import has_sidecar
from harness.manifests.podspec import INJECT, quantity
from harness.meshes.mesh import MeshError


def problems(kubectl: Kubectl, documents: list[Json], label: str = "") -> Iterator[str]:
    """Yield a line for each thing that keeps documents from being created in a namespace, before they are.

    :param label: by which Istio is to inject sidecars (``istio-injection=enabled``, ``istio.io/rev=1-31``)
        where the namespace does not say so yet.
    """
    there = kubectl.items("--filename=-", given=yaml.safe_dump_all(documents))
    known = {(found["kind"], found["metadata"]["name"]) for found in there}
    new = [d for d in documents if (d["kind"], d["metadata"]["name"]) not in known]
    tried = [pod_of(document, label) for document in new if document["kind"] in ("Deployment", "Job")]
    if not tried:
        return
    pods, refusal = _tried(kubectl, tried)
    if refusal:
        yield f"namespace {kubectl.namespace} does not let the workshop in: {refusal}"
    if not pods:  # they cannot be tried, and creating them will tell
        return
    if bare := [pod["metadata"]["name"] for pod in pods if not has_sidecar(pod)]:
        yield f"Istio gives these no sidecar in namespace {kubectl.namespace}: {', '.join(bare)}"
    yield from unpullable(pods)
    yield from shortages(kubectl.items("resourcequotas"), needs(pods, new))


def refused(kubectl: Kubectl, workload: Json) -> str:
    """Return why no pod of a workload could be made; nothing if one could, or it cannot be told."""
    with contextlib.suppress(ForbiddenError):
        return _tried(kubectl, [pod_of(workload)])[1]
    return ""


def _tried(kubectl: Kubectl, pods: list[Json]) -> tuple[list[Json], str]:
    """Return pods as the API server would let them in, or why it would not."""
    words = ["create", "--dry-run=server", "--output=yaml", "--filename=-"]
    try:
        return list(yaml.safe_load_all(kubectl.run(*words, given=yaml.safe_dump_all(pods)))), ""
    except ForbiddenError:
        raise
    except MeshError as error:
        return [], _refusal(error)


def _refusal(error: MeshError) -> str:
    """Return why the API server refuses a pod, and what to do; nothing where the error is another one."""
    known = r"is forbidden: (?!error looking up)(.*)|(admission webhook .* denied .*)|is invalid: (.*)"
    found = re.search(known, str(error))
    reason = next(filter(None, found.groups()), "") if found else ""
    return reason + remedy(reason)


def remedy(refusal: str) -> str:
    """Return what to do about a refusal, as the end of a sentence; nothing if it is not known."""
    if "violates PodSecurity" in refusal and "istio-init" in refusal:
        return (
            ": it is Istio's init container that may not run there. Install Istio's CNI plugin "
            "(istioctl install --set components.cni.enabled=true), or give the namespace the level privileged"
        )
    return ""


def pod_of(workload: Json, label: str = "") -> Json:
    """Return a pod of a workload, of an account that every namespace has; it gets a sidecar by ``label``."""
    template = workload["spec"]["template"]
    metadata = {**template["metadata"], "name": workload["metadata"]["name"]}
    if label:
        name, _, value = label.partition("=")
        revision = {name: value} if name == "istio.io/rev" else {}
        metadata["labels"] = {**metadata.get("labels", {}), INJECT: "true", **revision}
    spec = {**template["spec"], "serviceAccountName": "default"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def unpullable(pods: Iterable[Json]) -> Iterator[str]:
    """Yield a line if nodes must pull what no registry has: AlwaysPullImages asks that of all images."""
    containers = [container for pod in pods for container in pod["spec"]["containers"]]
    for name in [c["image"] for c in containers if c.get("imagePullPolicy") == "Always"]:
        if "/" not in name:
            yield f"this cluster pulls every image anew, {name} too (AlwaysPullImages): name a REGISTRY="
            return


def needs(pods: Iterable[Json], objects: Iterable[Json]) -> dict[str, float]:
    """Return how much of what a quota counts is needed (of CPUs, of bytes, of objects), by a quota's names.

    :param pods: as they are let in, one for each workload.
    :param objects: what is created, the workloads too.
    """
    total: dict[str, float] = defaultdict(float)
    for pod in pods:
        total["pods"] += 1
        for kind in ("requests", "limits"):
            for resource in ("cpu", "memory"):
                total[f"{kind}.{resource}"] += _of_pod(pod["spec"], kind, resource)
    for found in objects:
        group, _, _ = found["apiVersion"].rpartition("/")
        name = found["kind"].lower()
        plural = f"{name[:-1]}ies" if name.endswith(("cy", "ry")) else f"{name}s"
        total[f"count/{plural}.{group}" if group else plural] += 1
    total["count/replicasets.apps"] = total["count/deployments.apps"]
    for plural in [name for name in total if "." not in name]:
        total[f"count/{plural}"] = total[plural]
    return {**total, "cpu": total["requests.cpu"], "memory": total["requests.memory"]}


def _of_pod(spec: Json, kind: str, resource: str) -> float:
    """Return what the scheduler counts for a pod: all that run side by side, or a larger one before them.

    https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers
    """

    def of(container: Json) -> float:
        return quantity(str(container.get("resources", {}).get(kind, {}).get(resource, 0)))

    beside = first = 0.0
    for container in spec.get("initContainers", []):
        if container.get("restartPolicy") == "Always":
            beside += of(container)
            first = max(first, beside)
        else:
            first = max(first, beside + of(container))
    return max(first, beside + sum(map(of, spec["containers"])))


def shortages(quotas: Iterable[Json], needed: Mapping[str, float]) -> Iterator[str]:
    """Yield a line for each thing of which a ResourceQuota leaves too little.

    One that counts some pods only (by scopes) is passed over.
    """
    for found in quotas:
        if found["spec"].get("scopes") or found["spec"].get("scopeSelector"):
            continue
        hard, used = (found.get("status", {}).get(name, {}) for name in ("hard", "used"))
        for name, most in hard.items():
            left = quantity(str(most)) - quantity(str(used.get(name, 0)))
            if (need := needed.get(name, 0)) > left + 1e-9:
                unit = 2**20 if "memory" in name else 1
                what = f"{name} (MiB)" if unit > 1 else name
                yield (
                    f"resourcequota/{found['metadata']['name']} leaves {left / unit:g} of {what}, and "
                    f"{need / unit:g} are needed: free some, or have it raised (it is {most})"
                )
