"""What `make deploy` applies to a cluster, and `make undeploy` deletes. Pure."""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from harness import Json
from harness.cluster.pods import GATEWAY_LABEL, OWN_GATEWAY_NAME
from harness.cluster.preflight import OURS, PROJECT, is_ours
from harness.cluster.scene import POLICIES, ROUTING
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import of_kind
from harness.manifests.read import LAST_APPLIED, documents, read
from harness.meshes.images import image
from harness.meshes.mesh import ROOT, WITH_STORE

SOURCE = f"{PROJECT}/source"
"""The annotation that says what a pod's image was built from."""

FIRST_STATE = ROOT / "istio" / "v1-only.yaml"
CLUSTER_ONLY = sorted((ROOT / "istio" / "cluster").glob("*.yaml"))
OWN_GATEWAY = ROOT / "istio" / "own-gateway" / "kubernetes.yaml"

ISTIO_KINDS = ",".join(kind for kind in ROUTING if kind.endswith(".istio.io"))
KINDS = ("jobs.batch", "deployments", "services", "secrets", "serviceaccounts",
         "networkpolicies.networking.k8s.io", *ROUTING, *POLICIES,
         "buildconfigs.build.openshift.io", "imagestreams.image.openshift.io")  # fmt: skip
"""Of what the workshop may have objects, where the server has it."""


def ours(found: list[Json]) -> list[Json]:
    """Return the workshop's own among the objects of a namespace.

    Whatever bears the label is its own. Plain kubectl takes the label away from what it applies anew.
    So where the workshop is, all that its files name is its own; where it is not, what a file applied.
    """
    files = [*WITH_STORE, *(ROOT / "istio").rglob("*.yaml"), *(ROOT / "recommendation").rglob("*.yaml")]
    written: dict[tuple[str, str], list[Json | None]] = {}
    for path in (*files, ROOT / "loadtest" / "kubernetes.yaml"):
        for _, document in documents(path):
            named = (document["kind"], document["metadata"]["name"])
            written.setdefault(named, []).append(document.get("spec"))
    is_here = any(map(is_ours, found))

    def is_left_behind(each: Json) -> bool:
        specs = written.get((each["kind"], each["metadata"]["name"]), [])
        annotation = each["metadata"].get("annotations", {}).get(LAST_APPLIED, "{}")
        applied = json.loads(annotation).get("spec")
        return bool(specs) and (is_here or (applied is not None and applied in specs))

    return [each for each in found if is_ours(each) or is_left_behind(each)]


def openshift_route(gateway: Json) -> Json:
    """Return the Route that leads callers to the ingress gateway's Service."""
    metadata = gateway["metadata"]
    return {
        "apiVersion": "route.openshift.io/v1",
        "kind": "Route",
        "metadata": {"name": PROJECT, "namespace": metadata["namespace"], "labels": {OURS: PROJECT}},
        "spec": {"to": {"kind": "Service", "name": metadata["name"]}, "port": {"targetPort": "http2"}},
    }


def namespace(name: str) -> Json:
    """Return the Namespace that `make deploy` makes."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {OURS: PROJECT}}}


def services() -> list[str]:
    """Return the images that the workshop's pods run."""
    return sorted({d.container.image_name for d in of_kind(read(*WITH_STORE), Deployment)})


def images() -> list[str]:
    """Return the images that a cluster gets: what the workshop's pods run, and its load test."""
    return [*services(), "loadtest"]


def own_identity(namespace: str) -> str:
    """Return who an ingress gateway of the namespace's own is to others."""
    return f"*/ns/{namespace}/sa/{OWN_GATEWAY_NAME}"


class Build(NamedTuple):
    """A build of an image of the project's: what pods call it, and what it was built from."""

    reference: str
    source: str


def images_of(deployments: Iterable[Json]) -> dict[str, Build]:
    """Return the builds that Deployments name, by the image's name: ``customer``."""
    found = {}
    for template in (deployment["spec"]["template"] for deployment in deployments):
        for container in template["spec"]["containers"]:
            if source := template["metadata"].get("annotations", {}).get(SOURCE):
                name = container["image"].rpartition("/")[2].partition(":")[0]
                found[name] = Build(container["image"], source)
    return found


def registry_of(deployments: Iterable[Json]) -> str:
    """Return the registry that the images of Deployments come from; nothing where they name none."""
    registries = [build.reference.rpartition("/")[0] for build in images_of(deployments).values()]
    return next((registry for registry in registries if registry), "")


def render(
    given: Iterable[Json],
    namespace: str,
    registry: str,
    gateway: str,
    images: Mapping[str, Build],
    built: Mapping[str, str],
) -> list[Json]:
    """Return the documents of manifests as they are applied to a cluster.

    Images get their tag (and registry), objects the label by which `make undeploy` finds them, and
    identities the namespace and gateway (``*/ns/…/sa/…``) that are really there. Istio's Gateways select
    an ingress gateway of the namespace's own, if it is that.

    :param images: those that stay as they are deployed, whatever the code or REGISTRY says today.
    :param built: images that are there already, as ``rooms.room`` says.
    """
    # By way of text: what YAML's aliases share is changed in one place only.
    rendered: list[Json] = [json.loads(json.dumps(document)) for document in given]
    for document in rendered:
        document["metadata"].setdefault("labels", {})[OURS] = PROJECT
        if document["kind"] == "Secret":
            # Of stringData an API server keeps what is there no more.
            written = document.pop("stringData", {}).items()
            encoded = {key: base64.b64encode(value.encode()).decode() for key, value in written}
            document["data"] = document.get("data", {}) | encoded
        elif document["kind"] in ("Deployment", "Job"):
            template = document["spec"]["template"]
            labels = template["metadata"]["labels"]
            labels |= {OURS: PROJECT, **({GATEWAY_LABEL: namespace} if GATEWAY_LABEL in labels else {})}
            for container in template["spec"]["containers"]:
                _name_image(template, container, registry, images, built)
        elif document["kind"] == "Gateway" and gateway == own_identity(namespace):
            document["spec"]["selector"] = {GATEWAY_LABEL: namespace}
        elif document["kind"] in ("AuthorizationPolicy", "Sidecar"):
            document["spec"] = _here(document["spec"], namespace, gateway)
    return rendered


def _name_image(
    template: Json, container: Json, registry: str, images: Mapping[str, Build], built: Mapping[str, str]
) -> None:
    """Give a container the name of its image, if that is one of the project's."""
    source = image(container["image"])
    if all(path.exists() for path in source.sources):
        # The tag stays when the code changes; this makes new pods of the new image all the same.
        reference = built.get(source.sources_key()) or source.reference(registry)
        build = images.get(source.name) or Build(reference, source.digest())
        container["image"] = build.reference
        template["metadata"].setdefault("annotations", {})[SOURCE] = build.source


def _here(spec: Json, namespace: str, gateway: str) -> Json:
    """Return a spec that names the identities and hosts of a namespace, and the gateway's identity."""
    text = json.dumps(spec).replace("/ns/tutorial/", f"/ns/{namespace}/")
    text = text.replace(".tutorial.", f".{namespace}.")
    if gateway:  # where nobody can tell, Istio's profiles name it so
        text = re.sub(r'"[^"]*/ns/istio-system/[^"]*"', json.dumps(gateway), text)
    found: Json = json.loads(text)
    return found
