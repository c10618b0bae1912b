"""What of the workshop is applied on a cluster."""

import contextlib

from harness import Json
from harness.cluster.deploy import ISTIO_KINDS
from harness.cluster.kubectl import Kubectl
from harness.manifests.base import Object
from harness.manifests.read import ManifestError, read, to_object
from harness.meshes.mesh import ROOT, WITH_STORE


def objects(kubectl: Kubectl) -> dict[str, tuple[str, Object]]:
    """Return the applied objects: key (``kind/name``) → (the file it came from, the object).

    Of files are what belongs to the Deployments that are there; of the cluster are routes and Services.
    """
    deployed = {d["metadata"]["name"] for d in kubectl.items("deployments")}
    stored: dict[str, tuple[str, Object]] = {}
    for path in WITH_STORE:
        found = [o for o in read(path) if o.kind != "Deployment" or o.metadata.name in deployed]
        if any(o.kind == "Deployment" for o in found):
            stored |= {o.key: (str(path.relative_to(ROOT)), o) for o in found}
    if not stored:
        return {}
    files = [(path, o) for path in (ROOT / "istio").glob("*.yaml") for o in read(path)]
    items = kubectl.items(f"{ISTIO_KINDS},services")
    # The oldest first: of two routes for one host, sidecars take the older.
    for item in sorted(items, key=lambda item: item["metadata"].get("creationTimestamp", "")):
        where = f"{item['kind']} in namespace {kubectl.namespace}"
        live = _known(item, where)
        if live.kind == "Service" and live.key in stored:
            continue
        sources = (str(path.relative_to(ROOT)) for path, o in files if o == live)
        stored[live.key] = (next(sources, where), live)
    return stored


def _known(item: Json, where: str) -> Object:
    """Return an object; only its kind and name where it has fields that the harness does not know."""
    bare = {key: item[key] for key in ("apiVersion", "kind")} | {
        "metadata": {"name": item["metadata"]["name"]}
    }
    with contextlib.suppress(ManifestError):
        return to_object({**bare, "spec": item["spec"]}, where)
    return Object.model_validate(bare)
