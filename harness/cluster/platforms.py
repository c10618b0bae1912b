"""Where a cluster runs: how to tell, and how images get there. Pure."""

import re
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import Json
from harness.meshes.images import version
from harness.meshes.mesh import MeshError


@dataclass(frozen=True)
class Platform:
    """A kind of cluster; ``name`` is the profile's or cluster's own where commands need it."""

    kind: str
    name: str
    local: bool
    """Whether it is known to run on this machine, so that nobody else's work is in it."""
    engine: str = ""
    """What runs the nodes of kind: docker or podman."""

    @property
    def unchecked(self) -> str:
        """What cannot be known before images are brought there, in words."""
        return {
            "minikube": "whether Minikube can reach the registry of the base image",
            "openshift": "whether this user may build images, and builds can reach the base image's registry",
            "microshift": "whether Istio's CNI plugin works with Multus there, and ssh reaches the machine",
            "kind": "whether the engine here is the one that runs the nodes",
            "k3d": "whether the engine here is the one that runs the nodes, and Traefik leaves port 80 free",
        }.get(self.kind, "whether the nodes may pull from the registry")

    @property
    def title(self) -> str:
        """The kind as people write it."""
        brands = {"openshift": "OpenShift", "microshift": "MicroShift", "minikube": "Minikube"}
        return "a cluster" if self.kind == "other" else brands.get(self.kind, self.kind)


def detect(context: str, server: str, api_versions: Iterable[str], nodes: list[Json]) -> Platform:
    """Return the platform, from what the cluster says of itself.

    :param server: the URL of its API server.
    :param api_versions: as ``kubectl api-versions`` lists them.
    :param nodes: its Nodes.
    """
    groups = {version.partition("/")[0] for version in api_versions}
    crc = "crc.testing" in server
    if "build.openshift.io" in groups:
        return Platform("openshift", context, local=crc)
    if "route.openshift.io" in groups:
        return Platform("microshift", context, local=crc)
    for node in nodes:
        labels = node["metadata"].get("labels", {})
        provider = node.get("spec", {}).get("providerID", "")
        if "minikube.k8s.io/name" in labels:
            return Platform("minikube", labels["minikube.k8s.io/name"], local=True)
        if found := re.match(r"kind://([^/]+)/([^/]+)/", provider):
            return Platform("kind", found[2], local=True, engine=found[1])
        if found := re.match(r"k3s://k3d-(.+)-(?:server|agent)-\d+$", provider):
            return Platform("k3d", found[1], local=True)
    return Platform("other", context, local=False)


def image_commands(
    platform: Platform,
    image: str,
    folder: str,
    kubectl: list[str],
    registry: bool,
    archive: Path | None = None,
) -> list[str]:
    """Return the shell commands that build an image from ``folder`` and bring it to the cluster.

    :param image: its name and tag, with that of the ``registry`` if it is to be pushed.
    :param kubectl: the words that start kubectl or oc, with context and namespace.
    :param archive: what has the image already, as `make bundle` saves it; then nothing is built.
    :raises MeshError: this platform needs a registry, or a tool that is not installed.
    """
    folder, bundle, cluster = shlex.quote(folder), shlex.quote(str(archive)), shlex.quote(platform.name)
    name, _, _ = image.rpartition("/")[2].partition(":")
    saved, kind = f"{name}:{version()}", "registry" if registry else platform.kind
    if kind == "minikube":
        minikube = f"{tool('minikube')} --profile {cluster} image"
        made = f"load {bundle}" if archive else f"build --tag {image} {folder}"
        # A build that failed exits with 0 (minikube's issue 16576), so look whether the image is there.
        return [f"{minikube} {made}", f"{minikube} ls | grep -q -E '(^|/){re.escape(image)}$'"]
    if kind == "openshift":
        oc = shlex.join([tool("oc"), *kubectl[1:]])
        look_up = f"{oc} set image-lookup {name}"
        if archive:
            # A push makes the image stream. The registry's certificate is the cluster's own.
            [project] = [w.partition("=")[2] for w in kubectl if w.startswith("--namespace=")]
            to = f"$({oc} registry info --public)/{project}/{image}"
            push = f'to="{to}"; podman tag {saved} "$to" && podman push --tls-verify=false "$to"'
            load = f"{tool('podman')} load --input {bundle}"
            return [load, f"{oc} registry login --insecure=true", push, look_up]
        return [
            f"{oc} get buildconfig/{name} >/dev/null 2>&1 || {oc} new-build --binary --strategy=docker"
            f" --name={name} --to={image} --labels=app.kubernetes.io/part-of=dark-launch",
            f"{oc} start-build {name} --from-dir={folder} --follow --wait",
            look_up,
        ]
    # Elsewhere an engine of this machine makes the image, and brings it there. A bare name is another
    # registry's to podman and CRI-O.
    engines, full = ["podman"], f"docker.io/library/{image}"
    if kind == "kind" and platform.engine == "podman":  # from whose store kind cannot load
        image, file = full, f"{folder}/image.tar"
        load = f"KIND_EXPERIMENTAL_PROVIDER=podman {tool('kind')} load image-archive {file} --name {cluster}"
        brings = [f"podman save --output {file} {image}", load]
    elif kind == "microshift" and platform.local:
        # The virtual machine is new after `crc delete`. Its key was of the other kind in older releases;
        # ssh passes over a file that is not there.
        image, address = full, f'ip=$({tool("crc")} ip); port=22; [ "$ip" != 127.0.0.1 ] || port=2222'
        ssh = (
            "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
            ' -i ~/.crc/machines/crc/id_ed25519 -i ~/.crc/machines/crc/id_ecdsa -p "$port" "core@$ip"'
        )
        brings = [f"{address}; podman save {image} | {ssh} sudo podman load"]
    elif kind == "kind":
        engines, brings = ["docker"], [f"{tool('kind')} load docker-image {image} --name {cluster}"]
    elif kind == "k3d":
        # The other mode starts a container whose image a room without network cannot pull.
        load = f"{tool('k3d')} image import {image} --cluster {cluster} --mode direct"
        engines, brings = ["docker", "podman"], [load]
    elif kind == "registry":
        engines, image = ["docker", "podman"], shlex.quote(image)
        brings = [f"{tool(*engines)} push {image}"]
    else:
        raise MeshError(
            "images reach this cluster by a registry: make deploy REGISTRY=registry.example.com/me "
            "(one that you may push to and the cluster may pull from)"
        )
    engine = tool(*engines)
    if archive:
        return [f"{engine} load --input {bundle}", f"{engine} tag {saved} {image}", *brings]
    return [f"{engine} build --tag {image} {folder}", *brings]


def forget_command(platform: Platform, images: list[str]) -> str | None:
    """Return the shell command that removes images from nodes, where they were built or loaded there.

    OpenShift's go with the namespace; kind's and k3d's nodes drop unused ones by themselves.
    """
    if platform.kind == "minikube":
        return f"minikube --profile {shlex.quote(platform.name)} image rm {' '.join(images)}"
    return None


def tool(*names: str) -> str:
    """Return the first of some programs that is installed.

    :raises MeshError: none is.
    """
    for name in names:
        if shutil.which(name):
            return name
    raise MeshError(f"{' or '.join(names)} is not installed, and builds or loads the images here")
