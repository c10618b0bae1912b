"""The objects that are applied in a cluster."""

import contextlib

from harness import Json
from harness.cluster.kubectl import Kubectl
from harness.manifests.base import Object
from harness.manifests.kubernetes import Deployment
from harness.manifests.read import ManifestError, read, to_object
from harness.meshes.mesh import ROOT, WORKLOADS

ISTIO_KINDS = (
    "virtualservices.networking.istio.io,destinationrules.networking.istio.io,gateways.networking.istio.io"
)


def objects(kubectl: Kubectl) -> dict[str, tuple[str, Object]]:
    """Return the applied objects: key (``kind/name``) → (the file it came from, the object)."""
    deployed = {d["metadata"]["name"]: d for d in kubectl.items("deployments")}
    stored: dict[str, tuple[str, Object]] = {}
    for path in WORKLOADS:
        found = [o for o in read(path) if not isinstance(o, Deployment) or o.metadata.name in deployed]
        if any(isinstance(o, Deployment) for o in found):
            source = str(path.relative_to(ROOT))
            stored |= {o.key: (source, o) for o in found}
    if not stored:
        return {}
    files = [(str(path.relative_to(ROOT)), o) for path in (ROOT / "istio").glob("*.yaml") for o in read(path)]
    for item in kubectl.items(ISTIO_KINDS):
        document = {
            "apiVersion": "networking.istio.io/v1",
            "kind": item["kind"],
            "metadata": {"name": item["metadata"]["name"]},
            "spec": item["spec"],
        }
        where = f"{item['kind']} in namespace {kubectl.namespace}"
        live = _known(document, where)
        source = next((s for s, o in files if o == live), where)
        stored[live.key] = (source, live)
    return stored


def _known(document: Json, where: str) -> Object:
    """Return an object; only its name and kind where it has fields that the harness does not know."""
    with contextlib.suppress(ManifestError):
        return to_object(document, where)
    return Object.model_validate({k: v for k, v in document.items() if k != "spec"})
