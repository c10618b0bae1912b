"""Whether the API server would let pods be made: Pod Security, quotas, limits, webhooks."""

import json
import re
from collections.abc import Iterable

from harness import Json
from harness.cluster.kubectl import Kubectl
from harness.meshes.mesh import MeshError

INJECT = "sidecar.istio.io/inject"


def must_be_allowed(kubectl: Kubectl, templates: Iterable[Json], label: str) -> None:
    """Check that pods with sidecars may be made; a quota is not looked at, since it is a matter of sums.

    :param label: by which Istio injects sidecars (``istio-injection=enabled``, ``istio.io/rev=1-31``).
    :raises MeshError: the API server would not let them be made.
    """
    refusal = refused(kubectl, (_injected(template, label) for template in templates))
    if refusal and "exceeded quota" not in refusal:
        raise MeshError(f"no pod can be made in namespace {kubectl.namespace}: {refusal}{remedy(refusal)}")


def refused(kubectl: Kubectl, templates: Iterable[Json]) -> str:
    """Return why the API server would not let pods of templates be made; nothing if it would, or cannot tell.

    A dry run passes all admission, with the webhooks that have no side effects, as Istio's has none:
    https://kubernetes.io/docs/reference/using-api/api-concepts/#dry-run
    """
    pods = [
        {
            "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
            "metadata": {**template["metadata"], "generateName": "would-be-"},
        }
        for template in templates
    ]  # fmt: skip
    try:
        asked = json.dumps({"apiVersion": "v1", "kind": "List", "items": pods})
        kubectl.run("create", "--dry-run=server", "--filename=-", "--output=name", given=asked)
    except MeshError as error:
        known = r"is forbidden: (?!User|error looking up)(.*)|(admission webhook .* denied .*)"
        found = re.search(known, str(error))
        return found[1] or found[2] if found else ""
    return ""


def _injected(template: Json, label: str) -> Json:
    """Return a template whose pod gets a sidecar, whatever the namespace's labels; it needs no account."""
    name, _, value = label.partition("=")
    labels = {**template["metadata"].get("labels", {}), INJECT: "true"}
    labels |= {name: value} if name == "istio.io/rev" else {}
    spec = {key: value for key, value in template["spec"].items() if key != "serviceAccountName"}
    return {"metadata": {**template["metadata"], "labels": labels}, "spec": spec}


def remedy(refusal: str) -> str:
    """Return what to do about a refusal, as the end of a sentence; nothing if it is not known."""
    if "violates PodSecurity" in refusal and "istio-init" in refusal:
        return (
            ": it is Istio's init container that may not run there. Install Istio's CNI plugin "
            "(istioctl install --set components.cni.enabled=true)"
        )
    return ""
