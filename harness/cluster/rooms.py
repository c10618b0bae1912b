"""Rooms: what a trainer makes for each seat: a namespace with rights and bounds, and a kubeconfig."""

import json
import os
from dataclasses import replace
from pathlib import Path

import yaml

from harness import Json, settings
from harness.cluster import admission, deploy
from harness.cluster.installation import Installation, read
from harness.cluster.preflight import ROOM_LABEL, injection_label, must_be_none
from harness.manifests.read import documents
from harness.meshes.images import image
from harness.meshes.mesh import ISTIO, ROOT, WITH_STORE, MeshError

MANIFEST = ROOT / "room" / "kubernetes.yaml"
FOLDER = ROOT / ".rooms"
"""Where the seats' kubeconfigs are."""
POD_SECURITY = "pod-security.kubernetes.io/enforce"


def seats(prefix: str, size: int) -> list[str]:
    """Return the names of rooms: ``seat-01`` and so on."""
    return [f"{prefix}-{number:02d}" for number in range(1, size + 1)]


def room(seat: str, prefix: str, level: str, injection: str, images: dict[str, str]) -> list[Json]:
    """Return what is made for a seat.

    :param level: the level of Pod Security.
    :param injection: the label (``key=value``) by which Istio injects sidecars.
    :param images: for each image what it is built from, as ``Image.sources_key`` says, and what pods call it.
    """
    found = [json.loads(json.dumps(document)) for _, document in documents(MANIFEST)]
    for document in found:
        metadata = document["metadata"]
        metadata.setdefault("labels", {})[ROOM_LABEL] = prefix
        if document["kind"] == "Namespace":
            key, _, value = injection.partition("=")
            del metadata["labels"]["istio-injection"]
            metadata["name"] = seat
            metadata["labels"] |= {key: value, POD_SECURITY: level}
            continue
        metadata["namespace"] = seat
        for subject in document.get("subjects", []):
            subject["namespace"] = seat
        if document["kind"] == "ConfigMap":
            document["data"] = images
    return found


def kubeconfig(cluster: Json, seat: str, token: str) -> Json:
    """Return a kubeconfig that has one context, of a seat's namespace and user.

    :param cluster: as the trainer's own kubeconfig has it, with certificates in it.
    """
    context = {"cluster": "room", "user": seat, "namespace": seat}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "room", "cluster": cluster}],
        "users": [{"name": seat, "user": {"token": token}}],
        "contexts": [{"name": seat, "context": context}],
        "current-context": seat,
    }


def make(first: Installation, prefix: str, size: int, seconds: int) -> list[Path]:
    """Make rooms, or mend those that are there; return their kubeconfigs' paths.

    :param first: the first room's.
    :param seconds: how long the kubeconfigs' tokens are good; an API server may make it less.
    :raises MeshError: a namespace is somebody else's, an image does not get to the cluster, or a room does
        not let the workshop in.
    """
    facts = first.checked_facts()
    kubectl, names = first.kubectl, seats(prefix, size)
    there = {n["metadata"]["name"]: n["metadata"].get("labels", {}) for n in kubectl.items("namespaces")}
    if taken := [seat for seat in names if seat in there and there[seat].get(ROOM_LABEL) != prefix]:
        raise MeshError(f"{', '.join(taken)} is there, and no room: choose another PREFIX")
    if first.images.platform.kind == "openshift" and not settings.variable("REGISTRY"):
        raise MeshError("OpenShift keeps what it builds in one namespace: make rooms REGISTRY=...")
    first.images.built = {}  # what the seats get is built here
    built = {image(name).sources_key(): first.images.bring(name) for name in deploy.images()}
    plugins = kubectl.items("daemonsets", "--all-namespaces", "--selector=k8s-app=istio-cni-node")
    level = "restricted" if plugins else "privileged"
    first.progress(f"making {size} namespaces")
    rooms = [d for seat in names for d in room(seat, prefix, level, injection_label(facts), built)]
    everywhere = replace(kubectl, namespace="")  # which each object names itself
    everywhere.run("apply", "--filename=-", given=yaml.safe_dump_all(rooms), timeout=60 + 10 * size)
    paths = [*WITH_STORE, *ISTIO, *deploy.CLUSTER_ONLY, deploy.OWN_GATEWAY]
    workshop = first.render(read(paths))
    must_be_none(admission.problems(kubectl, workshop))
    view = json.loads(kubectl.run("config", "view", "--minify", "--flatten", "--raw", "--output=json"))
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    written = []
    for seat in names:
        first.progress(f"writing the kubeconfig of {seat}")
        token = replace(kubectl, namespace=seat).run("create", "token", "seat", f"--duration={seconds}s")
        written.append(_write(kubeconfig(view["clusters"][0]["cluster"], seat, token.strip()), seat))
    return written


def _write(content: Json, seat: str) -> Path:
    """Write a kubeconfig that nobody else may read."""
    path = FOLDER / f"{seat}.kubeconfig"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        yaml.safe_dump(content, file)
    return path


def remove(first: Installation, prefix: str) -> list[str]:
    """Remove the rooms of a prefix with all that is in them; return their names."""
    chosen = f"--selector={ROOM_LABEL}={prefix}"
    names = [found["metadata"]["name"] for found in first.kubectl.items("namespaces", chosen)]
    first.progress(f"removing {len(names)} namespaces")
    if names:
        first.kubectl.run("delete", "namespaces", chosen, timeout=120 + 30 * len(names))
    for name in names:
        (FOLDER / f"{name}.kubeconfig").unlink(missing_ok=True)
    return names
