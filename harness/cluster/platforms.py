"""Where a cluster runs: how to tell, and how images get there. Pure."""

import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness import Json
from harness.meshes.images import version
from harness.meshes.mesh import MeshError


class Kind(NamedTuple):
    """What is particular to a kind of cluster: shell commands that build an image, and bring it there.

    In these ``{podman}`` is a program that must be installed, and ``{docker|podman}`` the first that is.
    """

    title: str
    unchecked: str
    """What cannot be known before images are brought there, in words."""
    bring: Sequence[str]
    build: Sequence[str] = ("ENGINE build --tag {image} {folder}",)
    load: Sequence[str] = ("ENGINE load --input {bundle}", "ENGINE tag {saved} {image}")
    """Instead of ``build``, if a bundle has the image."""
    engine: str = "{docker|podman}"


ENGINE = "whether the engine here is the one that runs the nodes"
KINDS = {
    "minikube": Kind(
        "Minikube", "whether Minikube can reach the registry of the base image",
        # A build that failed exits with 0 (minikube's issue 16576), so look whether the image is there.
        ["{minikube} --profile {cluster} image ls | grep -q -E '(^|/){pattern}$'"],
        build=["{minikube} --profile {cluster} image build --tag {image} {folder}"],
        load=["{minikube} --profile {cluster} image load {bundle}"],
    ),
    "openshift": Kind(
        "OpenShift", "whether this user may build images, and builds can reach the base image's registry",
        ["{oc} {where} set image-lookup {name}"],
        build=[
            "{oc} {where} get buildconfig/{name} >/dev/null 2>&1 || {oc} {where} new-build --binary "
            "--strategy=docker --name={name} --to={image} --labels=app.kubernetes.io/part-of=dark-launch",
            "{oc} {where} start-build {name} --from-dir={folder} --follow --wait",
        ],
        load=[  # a push makes the image stream; the registry's certificate is the cluster's own
            "{podman} load --input {bundle}", "{oc} {where} registry login --insecure=true",
            'to="$({oc} {where} registry info --public)/{namespace}/{image}"; '
            '{podman} tag {saved} "$to" && {podman} push --tls-verify=false "$to"',
        ],
    ),
    "microshift": Kind(
        "MicroShift", "whether Istio's CNI plugin works with Multus there, and ssh reaches the machine",
        # The virtual machine is new after `crc delete`. Its key was of the other kind in older releases;
        # ssh passes over a file that is not there.
        ['ip=$({crc} ip); port=22; [ "$ip" != 127.0.0.1 ] || port=2222; {podman} save {image} | '
         "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i ~/.crc/machines/crc/id_ed25519 "
         '-i ~/.crc/machines/crc/id_ecdsa -p "$port" "core@$ip" sudo podman load'],
        engine="{podman}",
    ),
    "kind": Kind("kind", ENGINE, ["{kind} load docker-image {image} --name {cluster}"], engine="{docker}"),
    "kind on podman": Kind(
        "kind", ENGINE,  # which cannot load from podman's store
        ["{podman} save --output {folder}/image.tar {image}",
         "KIND_EXPERIMENTAL_PROVIDER=podman {kind} load image-archive {folder}/image.tar --name {cluster}"],
        engine="{podman}",
    ),
    "k3d": Kind(
        "k3d", f"{ENGINE}, and Traefik leaves port 80 free",
        # The other mode starts a container whose image a room without network cannot pull.
        ["{k3d} image import {image} --cluster {cluster} --mode direct"],
    ),
    "other": Kind("a cluster", "whether the nodes may pull from the registry", ["ENGINE push {image}"]),
}  # fmt: skip


@dataclass(frozen=True)
class Platform:
    """Where a cluster runs; ``name`` is the profile's or cluster's own where commands need it."""

    kind: str
    """One of KINDS."""
    name: str
    local: bool
    """Whether it is known to run on this machine, so that nobody else's work is in it."""


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
            return Platform("kind on podman" if found[1] == "podman" else "kind", found[2], local=True)
        if found := re.match(r"k3s://k3d-(.+)-(?:server|agent)-\d+$", provider):
            return Platform("k3d", found[1], local=True)
    return Platform("other", context, local=False)


def image_commands(
    platform: Platform, image: str, folder: str, kubectl: list[str], archive: Path | None = None
) -> list[str]:
    """Return the shell commands that build an image from ``folder`` and bring it to the cluster.

    :param image: its name and tag, with its registry's if it is to be pushed.
    :param kubectl: the words that start kubectl or oc, with context and namespace.
    :param archive: what has the image already, as `make bundle` saves it; then nothing is built.
    :raises MeshError: this platform needs a registry, or a tool that is not installed.
    """
    registry, _, tag = image.rpartition("/")
    kind = KINDS["other" if registry else platform.kind]
    is_elsewhere = platform.kind == "microshift" and not platform.local
    if not registry and (platform.kind == "other" or is_elsewhere):
        raise MeshError(
            "images reach this cluster by a registry: make deploy REGISTRY=registry.example.com/me "
            "(one that you may push to and the cluster may pull from)"
        )
    if kind.engine == "{podman}":  # to which, and to CRI-O, a bare name is another registry's
        image = f"docker.io/library/{image}"
    name = tag.partition(":")[0]
    words = _Words(
        image=shlex.quote(image), name=name, pattern=re.escape(image), saved=f"{name}:{version()}",
        folder=shlex.quote(folder), bundle=shlex.quote(str(archive)), cluster=shlex.quote(platform.name),
        where=shlex.join(kubectl[1:]), namespace=kubectl[-1].partition("=")[2],
    )  # fmt: skip
    commands = [*(kind.load if archive else kind.build), *kind.bring]
    return [command.replace("ENGINE", kind.engine).format_map(words) for command in commands]


class _Words(dict[str, str]):
    """What names in commands stand for; a program stands for itself, if it is installed."""

    def __missing__(self, name: str) -> str:
        return tool(*name.split("|"))


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
