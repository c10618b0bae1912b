"""The workshop's installation on a cluster: how it gets there, and how it goes."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import yaml

from harness import Json, settings
from harness.cluster import admission, deploy, preflight, readiness
from harness.cluster.kubectl import Kubectl, api_versions, groups, served
from harness.cluster.platforms import Platform, detect, forget_command, image_commands
from harness.cluster.preflight import OURS, PROJECT, Facts, injection_label, is_ours, must_be_none, room_of
from harness.cluster.wayin import IngressGateway, own_gateway
from harness.manifests.read import documents, named
from harness.meshes.images import Image, image
from harness.meshes.mesh import ISTIO, STATE, TARGET, WITH_STORE, MeshError, Progress, wait_until

OPENSHIFT_ROUTES = "route.openshift.io/v1"


class Images:
    """The project's images, as a namespace of a cluster has them."""

    def __init__(self, kubectl: Kubectl, progress: Progress) -> None:
        self._kubectl, self._progress = kubectl, progress
        self._ran: set[str] = set()
        """Commands that ran: an archive has many images, and is loaded once."""

    @cached_property
    def platform(self) -> Platform:
        """Where the cluster runs."""
        template = "{.clusters[0].cluster.server}"
        server = self._kubectl.run("config", "view", "--minify", f"--output=jsonpath={template}")
        nodes = self._kubectl.readable("nodes") or []
        return detect(self._kubectl.context, server, api_versions(self._kubectl), nodes)

    @cached_property
    def built(self) -> dict[str, str]:
        """What pods call the images that are there before anything is deployed: those of a room."""
        return dict(room_of(self._kubectl).get("data", {}))

    def registry(self, deployed: Iterable[Json] | None = None) -> str:
        """Return where images are pushed: to REGISTRY, or else where those of Deployments are.

        :param deployed: the Deployments, where they are known.
        """
        if wanted := settings.variable("REGISTRY"):
            return wanted
        return deploy.registry_of(self._kubectl.items("deployments") if deployed is None else deployed)

    def bring(self, name: str) -> str:
        """Build an image and bring it to the cluster, unless the room has it; return what pods call it.

        :raises MeshError: it does not build, or does not get there.
        """
        source = image(name)
        if built := self.built.get(source.sources_key()):
            return built
        tag = source.reference(self.registry())
        STATE.mkdir(exist_ok=True)
        # Not in /tmp: a Docker from a snap does not see it.
        with tempfile.TemporaryDirectory(prefix="image-", dir=STATE) as folder:
            source.stage(Path(folder))
            for command in self._commands(source, tag, folder):
                if command not in self._ran:
                    self._progress(f"bringing {tag} to the cluster: minutes, the first time")
                    _run(tag, command)
                    self._ran.add(command)
        return tag

    def _commands(self, source: Image, tag: str, folder: str) -> list[str]:
        platform = self.platform
        try:
            archive = None if source.other_base() else source.archive()
            return image_commands(platform, tag, folder, self._kubectl.command(), archive)
        except MeshError as error:
            if not self.built:
                raise
            problem = f"the files of {source.name} are not those that the room's image has"
            raise MeshError(f"{problem}: {error}") from None

    def forget(self) -> None:
        """Remove the images from nodes, where they were built or loaded there, as far as that is possible."""
        if command := forget_command(self.platform, [image(name).tag for name in deploy.images()]):
            with contextlib.suppress(MeshError):
                _run("", command, 120)


class Installation:
    """The workshop in a namespace of a cluster."""

    def __init__(self, kubectl: Kubectl, progress: Progress) -> None:
        self.kubectl, self.progress = kubectl, progress
        self.images = Images(kubectl, progress)
        self.gateway = IngressGateway(kubectl)

    def facts(self) -> Facts:
        """Ask the cluster what it is and has.

        :raises MeshError: it does not answer.
        """
        kubectl = self.kubectl
        self.progress(f"asking the cluster of context {kubectl.context}")
        try:
            versions = api_versions(kubectl)
        except MeshError as error:
            raise MeshError(
                f"the cluster of context {kubectl.context} does not answer: is it running? "
                f"(minikube start, crc start) {error}"
            ) from None
        pods = kubectl.items("pods")  # without these nobody goes on
        questions = {**preflight.QUESTIONS, "namespace": ["namespace", kubectl.namespace]}
        if "networking.istio.io" not in groups(kubectl):
            del questions["istio_gateways"]
        found = {name: kubectl.readable(*words) for name, words in questions.items()}
        unread = frozenset(name for name, objects in found.items() if objects is None)
        nameless: Json = {"metadata": {"name": kubectl.namespace}} if "namespace" in unread else {}
        [namespace] = found["namespace"] or [nameless]
        lists = {name: found.get(name) or [] for name in preflight.QUESTIONS}
        return Facts(versions, **lists, namespace=namespace, pods=pods, unread=unread)

    def checked_facts(self) -> Facts:
        """Ask the cluster what it is and has.

        :raises MeshError: the workshop cannot run there.
        """
        facts, kubectl = self.facts(), self.kubectl
        must_be_none(preflight.problems(facts, kubectl.namespace, kubectl.program, self.gateway.is_own))
        return facts

    def install(self) -> list[str]:
        """Deploy everything; what is there already stays, the route of recommendation above all.

        Return the names of the Deployments, which may not run yet.
        """
        facts, namespace = self.checked_facts(), self.kubectl.namespace
        manifests = self.render(read(self._files()))
        if not facts.namespace:
            self.create([deploy.namespace(namespace)])
            # The account that pods are tried with comes a moment later.
            wait_until(lambda: self.kubectl.get("serviceaccount", "default"), deadline=30, pause=0.2)
        is_own = not facts.namespace or is_ours(facts.namespace)
        label = injection_label(facts) if is_own else ""
        self.progress("asking the cluster whether it would let the pods in")
        must_be_none(admission.problems(self.kubectl, manifests, label))
        for name in deploy.services():
            self.images.bring(name)
        if label:
            # Not before: with a sidecar in it, a pod in which OpenShift builds an image would never end.
            self.kubectl.run("label", "--overwrite", "namespace", namespace, label)
        self.progress("applying the manifests")
        self.create(manifests)
        if OPENSHIFT_ROUTES in facts.api_versions:
            # Lead callers in: OpenShift Local forwards nothing but Routes.
            route = deploy.openshift_route(self.gateway.service())
            where = f"--namespace={route['metadata']['namespace']}"
            self.kubectl.run("apply", where, "--filename=-", given=yaml.safe_dump(route))
        return [d["metadata"]["name"] for d in manifests if d["kind"] == "Deployment"]

    def _files(self) -> list[Path]:
        paths = [*WITH_STORE, *ISTIO, *deploy.CLUSTER_ONLY]
        if self.kubectl.get("virtualservices.networking.istio.io", TARGET):
            paths.remove(deploy.FIRST_STATE)
        return [*paths, *([deploy.OWN_GATEWAY] if self.gateway.is_own else [])]

    def remove(self) -> None:
        """Remove exactly what was deployed: the namespace too, if `make deploy` made it."""
        facts, namespace = self.facts(), self.kubectl.namespace
        self.progress(f"removing everything from namespace {namespace}")
        if OPENSHIFT_ROUTES in facts.api_versions:
            ours = f"--selector={OURS}={PROJECT}"
            for gateway in [g for g in (own_gateway(self.kubectl), *facts.gateways) if g]:
                where = f"--namespace={gateway['metadata']['namespace']}"
                self.kubectl.run("delete", "routes.route.openshift.io", where, ours)
        if is_ours(facts.namespace):
            self.kubectl.run("delete", "namespace", namespace, timeout=300)
        elif doomed := deploy.ours(self.kubectl.items(self.kinds())):
            words = ["delete", "--filename=-", "--ignore-not-found", "--cascade=foreground"]
            self.kubectl.run(*words, given=yaml.safe_dump_all(doomed), timeout=300)
        self.images.forget()

    def kinds(self) -> str:
        """Return the kinds that the API server has and the workshop may have objects of, for kubectl."""
        return ",".join(served(self.kubectl, deploy.KINDS))

    def render(self, given: Iterable[Json], keep_images: bool = False) -> list[Json]:
        """Return the documents of manifests as this cluster needs them.

        :param keep_images: whether those that are deployed stay as they are.
        """
        given = list(given)
        has_pods = any(document["kind"] in ("Deployment", "Job") for document in given)
        deployed = self.kubectl.items("deployments") if has_pods else []
        images = deploy.images_of(deployed) if keep_images else {}
        registry, gateway = self.images.registry(deployed), self.gateway.identity()
        return deploy.render(given, self.kubectl.namespace, registry, gateway, images, self.images.built)

    def create(self, documents: list[Json]) -> list[str]:
        """Apply documents; return what kubectl says of each. What reads a Secret that changes starts anew."""
        changed = [d for d in documents if d["kind"] == "Secret" and self._differs(d)]
        others = [document for document in documents if document not in changed]
        lines = self.kubectl.run("apply", "--filename=-", given=yaml.safe_dump_all(others)) if others else ""
        if changed:  # replaced, not applied: no key may stay that nobody wrote
            done = self.kubectl.run("replace", "--filename=-", given=yaml.safe_dump_all(changed))
            lines += done.replace(" replaced\n", " configured\n")
        secrets = {document["metadata"]["name"] for document in changed}
        readers = []
        for found in self.kubectl.items("deployments") if secrets else ():
            sources = found["spec"]["template"]["spec"]["containers"][0].get("envFrom", [])
            if not secrets.isdisjoint(source.get("secretRef", {}).get("name") for source in sources):
                readers.append(found["metadata"]["name"])
        if readers:
            lines += self.kubectl.run("rollout", "restart", *(f"deployment/{name}" for name in readers))
            readiness.wait_for_rollouts(self.kubectl, readers, self.progress)
        return lines.splitlines()

    def _differs(self, secret: Json) -> bool:
        there = self.kubectl.get("secret", secret["metadata"]["name"])
        return bool(there) and there.get("data", {}) != secret["data"]


def _run(tag: str, command: str, timeout: float = 1800) -> None:
    try:
        ran = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MeshError(f"{tag} is not in the cluster in time: {command}") from None
    if ran.returncode:
        last = "\n".join(f"  {line}" for line in ran.stdout.splitlines()[-10:])
        raise MeshError(f"{tag} does not get to the cluster: {command}\n{last}")


def read(paths: Iterable[Path]) -> list[Json]:
    """Return the documents of manifests; each must have a kind and a name."""
    return [named(document, source) for path in paths for source, document in documents(path)]
