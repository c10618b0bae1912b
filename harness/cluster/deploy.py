"""What `make deploy` brings to a cluster, and `make undeploy` takes away."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml

from harness import Json, settings
from harness.cluster.kubectl import Kubectl
from harness.cluster.objects import ISTIO_KINDS
from harness.cluster.platforms import Platform, forget_command, image_commands
from harness.cluster.preflight import OURS, PROJECT, Facts, is_ours
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import of_kind
from harness.manifests.read import read
from harness.meshes.images import image
from harness.meshes.mesh import ROOT, STATE, WORKLOADS, MeshError, Progress

FIRST_STATE = ROOT / "istio" / "v1-only.yaml"
CLUSTER_ONLY = sorted((ROOT / "istio" / "cluster").glob("*.yaml"))

ALL_KINDS = (
    f"jobs.batch,deployments,services,serviceaccounts,{ISTIO_KINDS},telemetries.telemetry.istio.io,"
    "authorizationpolicies.security.istio.io,peerauthentications.security.istio.io"
)

BUILD_DEADLINE = 1800.0
"""Seconds in which an image must be built and in the cluster."""


def ask(kubectl: Kubectl, progress: Progress) -> Facts:
    """Ask the cluster what it is and has.

    :raises MeshError: it does not answer.
    """
    progress(f"asking the cluster of context {kubectl.context}")
    try:
        api_versions = kubectl.run("api-versions", "--request-timeout=10s").split()
    except MeshError as error:
        raise MeshError(
            f"the cluster of context {kubectl.context} does not answer: is it running? "
            f"(minikube start, crc start) {error}"
        ) from None
    items = kubectl.items
    return Facts(
        api_versions=api_versions,
        nodes=items("nodes"),
        control_planes=items("deployments", "--all-namespaces", "--selector=app=istiod"),
        injectors=items("mutatingwebhookconfigurations", "--selector=app=sidecar-injector"),
        gateways=items("services", "--all-namespaces", "--selector=istio=ingressgateway"),
        workshops=(
            items("gateways.networking.istio.io", "--all-namespaces", f"--selector={OURS}={PROJECT}")
            if any(version.startswith("networking.istio.io/") for version in api_versions)
            else []
        ),
        namespace=kubectl.get("namespace", kubectl.namespace),
        pods=items("pods"),
    )


def bring(kubectl: Kubectl, name: str, platform: Platform, progress: Progress) -> None:
    """Build an image and bring it to the cluster.

    :raises MeshError: it does not build, or does not get there.
    """
    registry = settings.registry()
    tag = image(name).reference(registry)
    STATE.mkdir(exist_ok=True)
    # Not in /tmp: a Docker from a snap does not see it.
    with tempfile.TemporaryDirectory(prefix="image-", dir=STATE) as folder:
        image(name).stage(Path(folder))
        for command in image_commands(platform, tag, folder, kubectl.command(), bool(registry)):
            progress(f"bringing {tag} to the cluster: minutes, the first time")
            try:
                ran = subprocess.run(
                    ["bash", "-o", "pipefail", "-c", command], stdin=subprocess.DEVNULL, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=BUILD_DEADLINE,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise MeshError(f"{tag} is not in the cluster in time: {command}") from None
            if ran.returncode:
                last = "\n".join(f"  {line}" for line in ran.stdout.splitlines()[-10:])
                raise MeshError(f"{tag} does not get to the cluster: {command}\n{last}")


def gateway_principal(kubectl: Kubectl) -> str:
    """Return the identity of the ingress gateway, whichever way it was installed."""
    pods = kubectl.items("pods", "--all-namespaces", "--selector=istio=ingressgateway")
    if not pods:
        raise MeshError(f"the ingress gateway has no pod: {kubectl.program} get pods -n istio-system")
    namespace, account = pods[0]["metadata"]["namespace"], pods[0]["spec"]["serviceAccountName"]
    return f"*/ns/{namespace}/sa/{account}"


def create(kubectl: Kubectl, documents: list[Json]) -> list[str]:
    """Apply documents; return what kubectl says of each."""
    return kubectl.run("apply", "--filename=-", given=yaml.safe_dump_all(documents)).splitlines()


def make_openshift_route(kubectl: Kubectl, gateway: Json) -> None:
    """Lead callers in: OpenShift Local forwards nothing but Routes."""
    metadata = gateway["metadata"]
    spec = {"to": {"kind": "Service", "name": metadata["name"]}, "port": {"targetPort": "http2"}}
    route = {
        "apiVersion": "route.openshift.io/v1",
        "kind": "Route",
        "metadata": {"name": PROJECT, "namespace": metadata["namespace"], "labels": {OURS: PROJECT}},
        "spec": spec,
    }
    kubectl.run("apply", f"--namespace={metadata['namespace']}", "--filename=-", given=yaml.safe_dump(route))


def remove(kubectl: Kubectl, facts: Facts, progress: Progress) -> None:
    """Remove exactly what was deployed: the namespace too, if `make deploy` made it."""
    progress(f"removing everything from namespace {kubectl.namespace}")
    ours, kinds = f"--selector={OURS}={PROJECT}", ALL_KINDS
    if "build.openshift.io/v1" in facts.api_versions:
        kinds += ",buildconfigs.build.openshift.io,imagestreams.image.openshift.io"
    if "route.openshift.io/v1" in facts.api_versions:
        for route in kubectl.items("routes.route.openshift.io", "--all-namespaces", ours):
            where = f"--namespace={route['metadata']['namespace']}"
            kubectl.run("delete", where, "route.route.openshift.io", route["metadata"]["name"])
    if is_ours(facts.namespace):
        kubectl.run("delete", "namespace", kubectl.namespace, "--wait=true", timeout=300)
    elif facts.namespace:
        words = ["delete", kinds, ours, "--ignore-not-found", "--cascade=foreground", "--wait=true"]
        kubectl.run(*words, timeout=300)


def forget(platform: Platform) -> None:
    """Remove the images from the nodes."""
    images = [image(name).tag for name in (*services(), "loadtest")]
    if command := forget_command(platform, images):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["bash", "-c", command], capture_output=True, stdin=subprocess.DEVNULL, timeout=120
            )


def namespace(name: str) -> Json:
    """Return the Namespace that `make deploy` makes."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {OURS: PROJECT}}}


def services() -> list[str]:
    """Return the images that the workshop's pods run."""
    return sorted({d.container.image_name for d in of_kind(read(*WORKLOADS), Deployment)})


def render(documents: Iterable[Json], namespace: str, registry: str, gateway: str) -> list[Json]:
    """Return the documents of manifests as they are applied to a cluster.

    Images get their tag (and registry), objects the label by which `make undeploy` finds them, and
    identities the namespace and gateway (``*/ns/…/sa/…``) that are really there.
    """
    rendered = list(documents)
    for document in rendered:
        document["metadata"].setdefault("labels", {})[OURS] = PROJECT
        if document["kind"] in ("Deployment", "Job"):
            template = document["spec"]["template"]
            template["metadata"]["labels"][OURS] = PROJECT
            for container in template["spec"]["containers"]:
                if container["image"] in (*services(), "loadtest"):
                    # The tag stays when the code changes; this makes new pods of the new image all the same.
                    source = image(container["image"])
                    template["metadata"].setdefault("annotations", {})[f"{PROJECT}/source"] = source.digest()
                    container["image"] = source.reference(registry)
        if document["kind"] == "AuthorizationPolicy":
            for rule in document["spec"].get("rules", []):
                for origin in rule.get("from", []):
                    known = origin["source"].get("principals", [])
                    origin["source"]["principals"] = [_identity(p, namespace, gateway) for p in known]
    return rendered


def _identity(principal: str, namespace: str, gateway: str) -> str:
    if "/ns/istio-system/" in principal:
        return gateway
    return principal.replace("/ns/tutorial/", f"/ns/{namespace}/")
