"""A mesh whose control plane is Istio."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from harness import Json, settings
from harness.cluster import deploy, pods, readiness, scene, wayin
from harness.cluster.kubectl import Kubectl
from harness.cluster.objects import objects
from harness.cluster.platforms import Platform, detect
from harness.cluster.preflight import Facts, injection_label, is_ours, problems
from harness.manifests.base import Object
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import of_kind, workloads_behind
from harness.manifests.read import documents, named, read
from harness.meshes.mesh import (
    ISTIO,
    TARGET,
    WORKLOADS,
    LogFollower,
    Mesh,
    MeshError,
    PodStatus,
    Progress,
    quietly,
)
from harness.meshes.scene import Pod, Scene


class ClusterMesh(Mesh):
    """A mesh whose control plane is Istio."""

    name = "cluster"
    still = 1.5
    quiet = 3.0  # Istio's proxies write their logs once a second

    def __init__(self, progress: Progress = quietly, namespace: str | None = None) -> None:
        """Use kubectl's current context, and the namespace NAMESPACE (``tutorial``) if none is named."""
        self.namespace = namespace or settings.namespace()
        self.kubectl = Kubectl.find(self.namespace)
        self.progress = progress
        self._forward: wayin.PortForward | None = None

    def close(self) -> None:
        if self._forward:
            self._forward.close()

    # --- deploying ------------------------------------------------------------------------------------

    def facts(self) -> Facts:
        """Ask the cluster what it is and has.

        :raises MeshError: it does not answer.
        """
        return deploy.ask(self.kubectl, self.progress)

    def platform(self, facts: Facts) -> Platform:
        """Return where the cluster runs."""
        server = self.kubectl.run(
            "config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}"
        )
        return detect(self.kubectl.context, server, facts.api_versions, facts.nodes)

    def up(self) -> None:
        """Deploy everything; what is there already stays, the route of recommendation above all."""
        facts = self._checked_facts()
        platform = self.platform(facts)
        if not facts.namespace:
            self.create([deploy.namespace(self.namespace)])
        for name in deploy.services():
            self.bring(name, platform)
        if not facts.namespace or is_ours(facts.namespace):
            # Not before: with a sidecar in it, a pod in which OpenShift builds an image would never end.
            label = injection_label(facts)
            self.kubectl.run("label", "--overwrite", "namespace", self.namespace, label)
        route = self.kubectl.get("virtualservices.networking.istio.io", TARGET)
        paths = [
            path
            for path in (*WORKLOADS, *ISTIO, *deploy.CLUSTER_ONLY)
            if not (route and path == deploy.FIRST_STATE)
        ]
        self.progress("applying the manifests")
        self.create(self.render([d for path in paths for _, d in documents(path)]))
        if "route.openshift.io/v1" in facts.api_versions:
            deploy.make_openshift_route(self.kubectl, facts.gateways[0])
        for workload in of_kind(read(*WORKLOADS), Deployment):
            readiness.wait_for_rollout(self.kubectl, workload.metadata.name, self.progress)
        self._checked_facts()  # that sidecars are injected shows only now
        self._wait_for_routes()
        for name in workloads_behind(self.routes(), TARGET):
            readiness.wait_for_endpoints(self.kubectl, name, self.progress)
        readiness.wait_for_gateway(self.url, self.progress)

    def _checked_facts(self) -> Facts:
        facts = self.facts()
        if found := list(problems(facts, self.namespace, self.kubectl.program)):
            raise MeshError("\n       ".join(found))
        return facts

    def bring(self, name: str, platform: Platform) -> None:
        """Build an image and bring it to the cluster.

        :raises MeshError: it does not build, or does not get there.
        """
        deploy.bring(self.kubectl, name, platform, self.progress)

    def render(self, given: Iterable[Json]) -> list[Json]:
        """Return the documents of manifests as this cluster needs them."""
        principal = deploy.gateway_principal(self.kubectl)
        return deploy.render(given, self.namespace, settings.registry(), principal)

    def create(self, documents: list[Json]) -> list[str]:
        """Apply documents; return what kubectl says of each."""
        return deploy.create(self.kubectl, documents)

    def why(self, found: list[Json]) -> str:
        """Return what the cluster knows of pods that do not become ready: events, and their last words."""
        return pods.why(self.kubectl, found)

    def down(self) -> None:
        """Remove exactly what was deployed: the namespace too, if `make deploy` made it."""
        facts = self.facts()
        deploy.remove(self.kubectl, facts, self.progress)
        deploy.forget(self.platform(facts))

    # --- the workshop's steps -------------------------------------------------------------------------

    def apply(self, *paths: Path) -> list[str]:
        given = [named(document, source) for path in paths for source, document in documents(path)]
        self.must_run()
        readiness.must_rule(self.kubectl)
        lines = self.create(self.render(given))
        for document in given:
            if document.get("kind") == "Deployment":
                readiness.wait_for_rollout(self.kubectl, document["metadata"]["name"], self.progress)
        self._wait_for_routes()
        return lines

    def delete(self, *paths: Path) -> list[str]:
        given = [named(document, source) for path in paths for source, document in documents(path)]
        self.must_run()
        # By file: a kind alone may be another API's, as Gateway is where the Gateway API is installed.
        lines = self.kubectl.run("delete", "--filename=-", given=yaml.safe_dump_all(given))
        self._wait_for_routes()
        return lines.splitlines()

    def scale(self, workload: str, replicas: int) -> None:
        labels = self.workload(workload).labels
        self.kubectl.run("scale", f"deployment/{workload}", f"--replicas={replicas}")
        if replicas:
            readiness.wait_for_rollout(self.kubectl, workload, self.progress)
            if workload in workloads_behind(self.routes(), TARGET):
                readiness.wait_for_endpoints(self.kubectl, workload, self.progress)
        else:
            self.progress(f"waiting for the pods of {workload} to end")
            chosen = ",".join(f"{name}={value}" for name, value in labels.items())
            self.kubectl.run(
                "wait", "--for=delete", "pod", f"--selector={chosen}", "--timeout=120s", timeout=130
            )

    def pods(self) -> list[PodStatus]:
        self.must_run()
        return pods.statuses(self.kubectl, self._workloads())

    def objects(self) -> dict[str, tuple[str, Object]]:
        return objects(self.kubectl)

    def routes(self) -> list[Object]:
        return [found for _, found in self.must_run().values()]

    def must_run(self) -> dict[str, tuple[str, Object]]:
        """Return the applied objects, as ``objects`` does.

        :raises MeshError: there are none.
        """
        stored = self.objects()
        if not stored:
            raise MeshError(
                f"nothing is deployed in namespace {self.namespace} of context {self.kubectl.context}: "
                "make deploy"
            )
        return stored

    def _workloads(self) -> list[str]:
        return [d.metadata.name for d in of_kind(self.routes(), Deployment)]

    def _wait_for_routes(self) -> None:
        """Wait until preference's proxies route as the applied objects say: Istio takes a moment."""
        readiness.wait_for_routes(self.kubectl, self.routes(), self.progress)

    # --- how callers reach it -------------------------------------------------------------------------

    def url(self) -> str:
        if self._forward:
            return f"http://{self._forward.address}/customer"
        if address := self.reachable_address():
            return f"http://{address}/customer"
        self._forward = wayin.open_forward(self.kubectl)
        return f"http://{self._forward.address}/customer"

    def inner_url(self) -> str:
        """Return the URL at which callers inside the cluster reach customer, by the gateway too."""
        return wayin.inner_url(self.kubectl)

    def way_in(self) -> str:
        if address := self.reachable_address():
            return f"callers come in at http://{address}/customer"
        then = f"{self.forward_command()}, then http://127.0.0.1:8080/customer"
        return f"no address of the gateway is reachable: {then}"

    def reachable_address(self) -> str | None:
        """Return the gateway's host and port, if there is one that this machine reaches."""
        return wayin.reachable_address(self.kubectl)

    def forward_command(self) -> str:
        """Return the command that makes the gateway reachable where it has no address."""
        return wayin.forward_command(self.kubectl)

    def dashboard(self, name: str) -> None:
        """Open an addon's page and stay until interrupted.

        :raises MeshError: the addon is not installed.
        """
        wayin.dashboard(self.kubectl, name, self.progress)

    # --- logs -----------------------------------------------------------------------------------------

    def logs(self, workload: str) -> Iterator[tuple[str, str]]:
        self.must_run()
        self.workload(workload)
        yield from pods.logs(self.kubectl, workload)

    # --- what the proof needs -------------------------------------------------------------------------

    def scene(self, namespace: str, callers: Iterable[str] = ()) -> Scene:
        return scene.look(self.kubectl, namespace, callers)

    def follow(self, namespace: str, callers: Iterable[str] = ()) -> LogFollower:
        return scene.follow(self.kubectl, namespace, list(callers))

    def request_log(self, pod: Pod) -> Iterator[str]:
        return scene.request_log(self.kubectl, pod)

    def in_flight(self, pods: Iterable[Pod]) -> int | None:
        return scene.in_flight(self.kubectl, pods)

    def logs_requests(self, pod: Pod) -> bool | None:
        return scene.logs_requests(self.kubectl, pod)

    def ask_proxy(self, pod: Pod, query: str) -> str | None:
        return scene.ask_proxy(self.kubectl, pod, query)
