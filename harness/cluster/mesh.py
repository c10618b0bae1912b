"""A mesh whose control plane is Istio."""

import contextlib
import json
import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from harness import Json, settings
from harness.cluster import admission, applied, pods, readiness, scene
from harness.cluster.installation import Installation, read
from harness.cluster.kubectl import Kubectl, must_have_extensions
from harness.cluster.pods import SIDECAR
from harness.cluster.routes import must_rule
from harness.manifests.base import Object
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import of_kind, workloads_behind
from harness.meshes.mesh import STATE, TARGET, LogFollower, Mesh, MeshError, PodStatus, Progress, quietly
from harness.meshes.scene import Pod, Scene
from harness.meshes.stores import psql, rows_of
from harness.rendering.accesslog import is_written


class ClusterMesh(Mesh):
    """A mesh whose control plane is Istio."""

    name = "cluster"
    home = STATE
    still = 1.5
    quiet = 3.0  # Istio's proxies write their logs once a second

    def __init__(self, progress: Progress = quietly, namespace: str | None = None) -> None:
        """Use kubectl's current context, and the namespace NAMESPACE (``tutorial``) if none is named."""
        self.namespace = namespace or settings.namespace()
        self.kubectl = Kubectl.find(self.namespace)
        self.progress = progress
        self.installation = Installation(self.kubectl, progress)
        self.gateway = self.installation.gateway

    def close(self) -> None:
        self.gateway.close()

    def up(self) -> None:
        """Deploy everything; what is there already stays, the route of recommendation above all."""
        workloads = self.installation.install()
        readiness.wait_for_rollouts(self.kubectl, workloads, self.progress)
        self.installation.checked_facts()  # that sidecars are injected shows only now
        readiness.wait_for_routes(self.kubectl, self.progress)
        self._wait_for_endpoints(workloads)
        readiness.wait_for_gateway(self.url, self.progress)

    def down(self) -> None:
        self.installation.remove()

    def url(self) -> str:
        return self.gateway.url()

    def way_in(self) -> str:
        return self.gateway.way_in()

    # --- the workshop's steps -------------------------------------------------------------------------

    def apply(self, *paths: Path) -> list[str]:
        given = read(paths)
        kinds = {document["kind"] for document in given}
        self.routes()  # something must be deployed
        must_rule(self.kubectl, given)
        if "TrafficExtension" in kinds:
            must_have_extensions(self.kubectl)
        lines = self.installation.create(self.installation.render(given, keep_images=True))
        workloads = [d["metadata"]["name"] for d in given if d["kind"] == "Deployment"]
        readiness.wait_for_rollouts(self.kubectl, workloads, self.progress)
        self._wait_for_routing(kinds)
        self._wait_for_endpoints(workloads)
        return lines

    def put(self, document: Json, hurry: Callable[[], bool] = bool) -> list[str]:
        if document["kind"] == "Secret":
            return self.installation.create(self.installation.render([document]))
        lines = self.kubectl.run("apply", "--filename=-", given=json.dumps(document)).splitlines()
        if hurry():
            return lines
        readiness.wait_for_rules(self.kubectl, document, hurry, self.progress)
        return lines

    def delete(self, *paths: Path) -> list[str]:
        given = read(paths)
        self.routes()  # something must be deployed
        # By file: a kind alone may be another API's, as Gateway is where the Gateway API is installed.
        lines = self.kubectl.run("delete", "--filename=-", given=yaml.safe_dump_all(given))
        self._wait_for_routing({document["kind"] for document in given})
        return lines.splitlines()

    def scale(self, workload: str, replicas: int) -> None:
        labels = self.workload(workload).labels
        self.kubectl.run("scale", f"deployment/{workload}", f"--replicas={replicas}")
        if replicas:
            readiness.wait_for_rollouts(self.kubectl, [workload], self.progress)
            self._wait_for_endpoints([workload])
        else:
            self.progress(f"waiting for the pods of {workload} to end")
            chosen = ",".join(f"{name}={value}" for name, value in labels.items())
            self.kubectl.run(
                "wait", "--for=delete", "pod", f"--selector={chosen}", "--timeout=120s", timeout=130
            )

    def _wait_for_routing(self, kinds: set[str]) -> None:
        """Wait until callers' proxies have what was applied or deleted, if it tells them where to send."""
        if "DestinationRule" in kinds:
            readiness.wait_for_subsets(self.kubectl, self.progress)
        if not kinds.isdisjoint(["VirtualService", "HTTPRoute"]):
            readiness.wait_for_routes(self.kubectl, self.progress)

    def _wait_for_endpoints(self, workloads: list[str]) -> None:
        """Wait until callers' proxies know the pods of those workloads that the target selects."""
        behind = workloads_behind(self.routes(), TARGET) if workloads else []
        if known := [name for name in behind if name in workloads]:
            readiness.wait_for_endpoints(self.kubectl, known, self.progress)

    def pods(self) -> list[PodStatus]:
        workloads = [d.metadata.name for d in of_kind(self.routes(), Deployment)]
        found = [(self.gateway.name, pod) for pod in self.gateway.pods() or []]
        there = self.kubectl.items("pods")
        found += [(name, pod) for name in workloads for pod in pods.of_workload(there, name)]
        return [
            PodStatus(pod["metadata"]["name"], name, pods.state(pod), pod["status"].get("podIP", "-"))
            for name, pod in found
        ]

    def objects(self) -> dict[str, tuple[str, Object]]:
        return applied.objects(self.kubectl)

    def routes(self) -> list[Object]:
        """Return the applied objects without their sources.

        :raises MeshError: there are none.
        """
        if stored := self.objects():
            return [found for _, found in stored.values()]
        where = f"namespace {self.namespace} of context {self.kubectl.context}"
        raise MeshError(f"nothing is deployed in {where}: make deploy")

    def secrets(self, names: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
        return {
            secret["metadata"]["name"]: {k: b64decode(v).decode(errors="replace") for k, v in data.items()}
            for secret in self.kubectl.items("secrets", *names)
            if (data := secret.get("data"))
        }

    def query(self, host: str, database: str, sql: str) -> list[list[str]]:
        return rows_of(self.kubectl.run("exec", f"service/{host}", "--", *psql(database, sql)))

    def logs(self, workload: str) -> Iterator[tuple[str, str]]:
        self.workload(workload)
        yield from pods.logs(self.kubectl, workload)

    # --- what the proof needs -------------------------------------------------------------------------

    def scene(self, namespace: str, callers: Iterable[str] = ()) -> Scene:
        return scene.look(replace(self.kubectl, namespace=namespace), callers)

    def follow(self, namespace: str, callers: Iterable[str] = (), known: Iterable[Pod] = ()) -> LogFollower:
        return scene.follow(replace(self.kubectl, namespace=namespace), list(callers), list(known))

    def request_log(self, pod: Pod) -> Iterator[str]:
        with contextlib.suppress(MeshError):  # it has just gone
            yield from pods.log(*scene.reach(self.kubectl, pod), SIDECAR)

    def ask_proxy(self, pod: Pod, query: str) -> str | None:
        with contextlib.suppress(MeshError):
            return pods.ask_proxy(*scene.reach(self.kubectl, pod), query)
        return None

    def refusal(self, namespace: str, workload: Json) -> str:
        return admission.refused(replace(self.kubectl, namespace=namespace), workload)

    def in_flight(self, pods: Iterable[Pod]) -> int | None:
        total = 0
        for pod in pods:
            if (said := self.ask_proxy(pod, "clusters")) is None:
                return None
            total += sum(map(int, re.findall(r"^inbound\|.*::rq_active::(\d+)$", said, re.MULTILINE)))
        return total

    def logs_requests(self, pod: Pod) -> bool | None:
        return is_written(self.listeners(pod))
