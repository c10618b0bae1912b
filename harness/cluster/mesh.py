"""A mesh whose control plane is Istio."""

import base64
import contextlib
import json
import re
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import yaml

from harness import Json, settings
from harness.cluster import admission, deploy, pods, preflight, readiness, scene
from harness.cluster.kubectl import ContainerLog, ForbiddenError, Kubectl, has_extensions, served
from harness.cluster.platforms import Platform, detect, forget_command, image_commands
from harness.cluster.pods import OWN_GATEWAY_NAME, SIDECAR
from harness.cluster.preflight import OURS, PROJECT, Facts, injection_label, is_ours
from harness.cluster.routes import must_rule, routes_of
from harness.cluster.wayin import PortForward, addresses, gateway_of, openshift_routes, own_gateway
from harness.manifests.base import Object
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import of_kind, workloads_behind
from harness.manifests.read import ManifestError, documents, named, read, to_object
from harness.meshes.images import image
from harness.meshes.logs import Stream, StreamFollower
from harness.meshes.mesh import (
    GATEWAY,
    ISTIO,
    ROOT,
    STATE,
    TARGET,
    WITH_STORE,
    LogFollower,
    Mesh,
    MeshError,
    PodStatus,
    Progress,
    get,
    quietly,
    wait_until,
)
from harness.meshes.scene import Pod, Scene
from harness.meshes.stores import psql, rows_of


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
        self._forward: PortForward | None = None
        self._loaded: set[str] = set()
        """Commands that ran: an archive has many images, and is loaded once."""

    def close(self) -> None:
        if self._forward:
            self._forward.close()

    # --- deploying ------------------------------------------------------------------------------------

    def facts(self) -> Facts:
        """Ask the cluster what it is and has.

        :raises MeshError: it does not answer.
        """
        self.progress(f"asking the cluster of context {self.kubectl.context}")
        try:
            api_versions = self.kubectl.run("api-versions", "--request-timeout=10s").split()
        except MeshError as error:
            raise MeshError(
                f"the cluster of context {self.kubectl.context} does not answer: is it running? "
                f"(minikube start, crc start) {error}"
            ) from None
        found: dict[str, list[Json]] = {"pods": self.kubectl.items("pods")}  # without these nobody goes on
        unread = set()
        has_istio = any(version.startswith("networking.istio.io/") for version in api_versions)
        for name, words in preflight.QUESTIONS.items():
            try:
                found[name] = self.kubectl.items(*words) if has_istio or name != "istio_gateways" else []
            except ForbiddenError:
                found[name] = []
                unread.add(name)
        try:
            namespace = self.kubectl.get("namespace", self.namespace)
        except ForbiddenError:
            namespace = {"metadata": {"name": self.namespace}}
            unread.add("namespace")
        return Facts(api_versions=api_versions, namespace=namespace, unread=frozenset(unread), **found)

    @cached_property
    def has_own_gateway(self) -> bool:
        """Whether the workshop has an ingress gateway of its own, or is to have one; in a room it has."""
        return settings.own_gateway() or bool(self.room) or bool(own_gateway(self.kubectl))

    @cached_property
    def room(self) -> Json:
        """The ConfigMap that `make rooms` leaves in a namespace; nothing if this is none of its rooms."""
        with contextlib.suppress(ForbiddenError):
            found = self.kubectl.get("configmap", preflight.ROOM)
            return found if preflight.ROOM_LABEL in found.get("metadata", {}).get("labels", {}) else {}
        return {}

    def platform(self, facts: Facts) -> Platform:
        """Return where the cluster runs."""
        server = self.kubectl.run(
            "config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}"
        )
        return detect(self.kubectl.context, server, facts.api_versions, facts.nodes)

    def up(self) -> None:
        """Deploy everything; what is there already stays, the route of recommendation above all."""
        facts = self.checked_facts()
        platform = self.platform(facts)
        paths = [*WITH_STORE, *ISTIO, *deploy.CLUSTER_ONLY]
        if self.kubectl.get("virtualservices.networking.istio.io", TARGET):
            paths.remove(deploy.FIRST_STATE)
        if self.has_own_gateway:
            paths.append(deploy.OWN_GATEWAY)
        manifests = self.render(_read(paths))
        label = ""
        if not facts.namespace:
            self.create([deploy.namespace(self.namespace)])
            # The account that pods are tried with comes a moment later.
            wait_until(lambda: self.kubectl.get("serviceaccount", "default"), deadline=30, pause=0.2)
        if not facts.namespace or is_ours(facts.namespace):
            label = injection_label(facts)
        self.progress("asking the cluster whether it would let the pods in")
        self.must_be_none(admission.problems(self.kubectl, manifests, label))
        for name in deploy.services():
            self.bring(name, platform)
        if label:
            # Not before: with a sidecar in it, a pod in which OpenShift builds an image would never end.
            self.kubectl.run("label", "--overwrite", "namespace", self.namespace, label)
        self.progress("applying the manifests")
        self.create(manifests)
        if "route.openshift.io/v1" in facts.api_versions:
            # Lead callers in: OpenShift Local forwards nothing but Routes.
            route = deploy.openshift_route(gateway_of(self.kubectl))
            where = f"--namespace={route['metadata']['namespace']}"
            self.kubectl.run("apply", where, "--filename=-", given=yaml.safe_dump(route))
        self._wait_for_rollouts(d["metadata"]["name"] for d in manifests if d["kind"] == "Deployment")
        self.checked_facts()  # that sidecars are injected shows only now
        readiness.wait_for_routes(self.kubectl, self.progress)
        behind = workloads_behind(self.routes(), TARGET)
        readiness.wait_for_endpoints(self.kubectl, behind, self.progress)
        readiness.wait_for_gateway(self.url, self.progress)

    def checked_facts(self) -> Facts:
        """Ask the cluster what it is and has.

        :raises MeshError: the workshop cannot run there.
        """
        facts = self.facts()
        kubectl = self.kubectl.program
        self.must_be_none(preflight.problems(facts, self.namespace, kubectl, self.has_own_gateway))
        return facts

    def must_be_none(self, problems: Iterable[str]) -> None:
        """Raise a MeshError that has a line for each problem, if there is one."""
        if found := list(problems):
            raise MeshError("\n       ".join(found))

    def bring(self, name: str, platform: Platform) -> str:
        """Build an image and bring it to the cluster, unless the room has it; return what pods call it.

        :raises MeshError: it does not build, or does not get there.
        """
        source = image(name)
        if built := self.room.get("data", {}).get(source.sources_key()):
            return str(built)
        registry = settings.variable("REGISTRY") or deploy.registry_of(self.kubectl.items("deployments"))
        tag = source.reference(registry)
        STATE.mkdir(exist_ok=True)
        # Not in /tmp: a Docker from a snap does not see it.
        with tempfile.TemporaryDirectory(prefix="image-", dir=STATE) as folder:
            source.stage(Path(folder))
            try:
                archive = None if source.other_base() else source.archive()
                kubectl = self.kubectl.command()
                commands = image_commands(platform, tag, folder, kubectl, archive)
            except MeshError as error:
                if not self.room:
                    raise
                problem = f"the files of {source.name} are not those that the room's image has"
                raise MeshError(f"{problem}: {error}") from None
            for command in commands:
                if command in self._loaded:
                    continue
                self.progress(f"bringing {tag} to the cluster: minutes, the first time")
                try:
                    ran = subprocess.run(
                        ["bash", "-o", "pipefail", "-c", command], stdin=subprocess.DEVNULL, text=True,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1800,
                    )  # fmt: skip
                except subprocess.TimeoutExpired:
                    raise MeshError(f"{tag} is not in the cluster in time: {command}") from None
                if ran.returncode:
                    last = "\n".join(f"  {line}" for line in ran.stdout.splitlines()[-10:])
                    raise MeshError(f"{tag} does not get to the cluster: {command}\n{last}")
                self._loaded.add(command)
        return tag

    def render(self, given: Iterable[Json], keep_images: bool = False) -> list[Json]:
        """Return the documents of manifests as this cluster needs them.

        :param keep_images: whether those that are deployed stay as they are.
        """
        given = list(given)
        has_pods = any(document["kind"] in ("Deployment", "Job") for document in given)
        deployed = self.kubectl.items("deployments") if has_pods else []
        registry = settings.variable("REGISTRY") or deploy.registry_of(deployed)
        images = deploy.images_of(deployed) if keep_images else {}
        built, gateway = self.room.get("data", {}), self._gateway_identity()
        return deploy.render(given, self.namespace, registry, gateway, images, built)

    def _gateway_identity(self) -> str:
        """Return who the ingress gateway is (``*/ns/…/sa/…``); nothing if this user may not know."""
        if self.has_own_gateway:
            return deploy.own_identity(self.namespace)
        try:
            found = pods.of_gateway(self.kubectl, own=False)
        except ForbiddenError:
            return ""
        if not found:
            raise MeshError(
                f"the ingress gateway has no pod: {self.kubectl.program} get pods -n istio-system"
            )
        return f"*/ns/{found[0]['metadata']['namespace']}/sa/{found[0]['spec']['serviceAccountName']}"

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
            self._wait_for_rollouts(readers)
        return lines.splitlines()

    def _differs(self, secret: Json) -> bool:
        there = self.kubectl.get("secret", secret["metadata"]["name"])
        return bool(there) and there.get("data", {}) != secret["data"]

    def _wait_for_rollouts(self, workloads: Iterable[str]) -> None:
        readiness.wait_for_rollouts(self.kubectl, workloads, self.progress)

    def down(self) -> None:
        """Remove exactly what was deployed: the namespace too, if `make deploy` made it."""
        facts = self.facts()
        self.progress(f"removing everything from namespace {self.namespace}")
        ours = f"--selector={OURS}={PROJECT}"
        if "route.openshift.io/v1" in facts.api_versions:
            for gateway in [g for g in (own_gateway(self.kubectl), *facts.gateways) if g]:
                where = f"--namespace={gateway['metadata']['namespace']}"
                self.kubectl.run("delete", "routes.route.openshift.io", where, ours)
        if is_ours(facts.namespace):
            self.kubectl.run("delete", "namespace", self.namespace, timeout=300)
        elif doomed := deploy.ours(self.kubectl.items(self.kinds())):
            words = ["delete", "--filename=-", "--ignore-not-found", "--cascade=foreground"]
            self.kubectl.run(*words, given=yaml.safe_dump_all(doomed), timeout=300)
        images = [image(name).tag for name in deploy.images()]
        if command := forget_command(self.platform(facts), images):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    ["bash", "-c", command], capture_output=True, stdin=subprocess.DEVNULL, timeout=120
                )

    def kinds(self) -> str:
        """Return the kinds that the API server has and the workshop may have objects of, for kubectl."""
        return ",".join(served(self.kubectl, deploy.KINDS))

    # --- the workshop's steps -------------------------------------------------------------------------

    def apply(self, *paths: Path) -> list[str]:
        given = _read(paths)
        self.must_run()
        kinds = {document["kind"] for document in given}
        must_rule(self.kubectl, given)
        if "TrafficExtension" in kinds and not has_extensions(self.kubectl):
            raise MeshError(
                "this Istio has no TrafficExtension, which came with 1.30: status, size and time of answers "
                "are compared without it"
            )
        lines = self.create(self.render(given, keep_images=True))
        workloads = [d["metadata"]["name"] for d in given if d["kind"] == "Deployment"]
        self._wait_for_rollouts(workloads)
        if "VirtualService" in kinds:
            readiness.wait_for_routes(self.kubectl, self.progress)
        behind = [name for name in workloads_behind(self.routes(), TARGET) if name in workloads]
        if behind:
            readiness.wait_for_endpoints(self.kubectl, behind, self.progress)
        return lines

    def put(self, document: Json, hurry: Callable[[], bool] = bool) -> list[str]:
        if document["kind"] == "Secret":
            return self.create(self.render([document]))
        lines = self.kubectl.run("apply", "--filename=-", given=json.dumps(document)).splitlines()
        if hurry():
            return lines
        names = [pod.name for pod in scene.pods_in(self.kubectl) if pod.proxy_id and not pod.gateway]
        self.progress("waiting for the proxies to take the route")
        readiness.wait_for_rules(self.kubectl, document, names, hurry)
        return lines

    def delete(self, *paths: Path) -> list[str]:
        given = _read(paths)
        self.must_run()
        # By file: a kind alone may be another API's, as Gateway is where the Gateway API is installed.
        lines = self.kubectl.run("delete", "--filename=-", given=yaml.safe_dump_all(given))
        host = f"{TARGET}.{self.namespace}.svc.cluster.local"
        if not routes_of(self.kubectl).ruling(host, self.namespace):
            readiness.wait_for_routes(self.kubectl, self.progress)
        return lines.splitlines()

    def scale(self, workload: str, replicas: int) -> None:
        labels = self.workload(workload).labels
        self.kubectl.run("scale", f"deployment/{workload}", f"--replicas={replicas}")
        if replicas:
            self._wait_for_rollouts([workload])
            if workload in workloads_behind(self.routes(), TARGET):
                readiness.wait_for_endpoints(self.kubectl, [workload], self.progress)
        else:
            self.progress(f"waiting for the pods of {workload} to end")
            chosen = ",".join(f"{name}={value}" for name, value in labels.items())
            self.kubectl.run(
                "wait", "--for=delete", "pod", f"--selector={chosen}", "--timeout=120s", timeout=130
            )

    def pods(self) -> list[PodStatus]:
        workloads = [d.metadata.name for d in of_kind(self.routes(), Deployment)]
        found: list[tuple[str, Json]] = []
        with contextlib.suppress(ForbiddenError):
            name = OWN_GATEWAY_NAME if self.has_own_gateway else GATEWAY
            found = [(name, pod) for pod in pods.of_gateway(self.kubectl, self.has_own_gateway)]
        there = self.kubectl.items("pods")
        found += [(name, pod) for name in workloads for pod in pods.of_workload(there, name)]
        return [
            PodStatus(pod["metadata"]["name"], name, pods.state(pod), pod["status"].get("podIP", "-"))
            for name, pod in found
        ]

    def objects(self) -> dict[str, tuple[str, Object]]:
        deployed = {d["metadata"]["name"] for d in self.kubectl.items("deployments")}
        stored: dict[str, tuple[str, Object]] = {}
        for path in WITH_STORE:
            found = [o for o in read(path) if not isinstance(o, Deployment) or o.metadata.name in deployed]
            if any(isinstance(o, Deployment) for o in found):
                stored |= {o.key: (str(path.relative_to(ROOT)), o) for o in found}
        if not stored:
            return {}
        files = [
            (str(path.relative_to(ROOT)), o) for path in (ROOT / "istio").glob("*.yaml") for o in read(path)
        ]
        items = self.kubectl.items(f"{deploy.ISTIO_KINDS},services")
        # The oldest first: of two routes for one host, sidecars take the older.
        for item in sorted(items, key=lambda item: item["metadata"].get("creationTimestamp", "")):
            where = f"{item['kind']} in namespace {self.namespace}"
            live = _known(item, where)
            if live.kind == "Service" and live.key in stored:
                continue
            stored[live.key] = (next((source for source, o in files if o == live), where), live)
        return stored

    def routes(self) -> list[Object]:
        return [found for _, found in self.must_run().values()]

    def must_run(self) -> dict[str, tuple[str, Object]]:
        """Return the applied objects, as ``objects`` does.

        :raises MeshError: there are none.
        """
        if stored := self.objects():
            return stored
        where = f"namespace {self.namespace} of context {self.kubectl.context}"
        raise MeshError(f"nothing is deployed in {where}: make deploy")

    def secrets(self, names: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
        found = self.kubectl.get("secrets", *names)
        return {
            secret["metadata"]["name"]: {
                key: base64.b64decode(value).decode(errors="replace") for key, value in secret["data"].items()
            }
            for secret in found.get("items", [found] if found else [])
            if secret.get("data")
        }

    def query(self, host: str, database: str, sql: str) -> list[list[str]]:
        return rows_of(self.kubectl.run("exec", f"service/{host}", "--", *psql(database, sql)))

    def logs(self, workload: str) -> Iterator[tuple[str, str]]:
        self.workload(workload)
        for pod in pods.pods_of(self.kubectl, workload):
            name = pod["metadata"]["name"]
            application = next(c["name"] for c in pod["spec"]["containers"] if c["name"] != SIDECAR)
            for shown, container in (("app", application), (SIDECAR, SIDECAR)):
                yield from ((shown, line) for line in pods.log(self.kubectl, name, container))

    # --- how callers reach it -------------------------------------------------------------------------

    def url(self) -> str:
        if not self._forward:
            gateway = gateway_of(self.kubectl)
            if address := self._reachable(gateway):
                return f"http://{address}/customer"
            self._forward = self._open_forward(gateway)
        return f"http://{self._forward.address}/customer"

    def _open_forward(self, gateway: Json) -> PortForward:
        forward = PortForward(self.kubectl, gateway, 80)
        try:
            # One at a time: of several calls that the gateway refuses at once, kubectl lets some hang.
            get(f"http://{forward.address}", timeout=5)
        except OSError:
            forward.close()
            raise MeshError(
                "the ingress gateway takes no calls: make apply F=istio/gateway.yaml MESH=cluster"
            ) from None
        return forward

    def inner_url(self) -> str:
        """Return the URL at which callers inside the cluster reach customer, by the gateway too."""
        metadata = gateway_of(self.kubectl)["metadata"]
        return f"http://{metadata['name']}.{metadata['namespace']}.svc/customer"

    def way_in(self) -> str:
        gateway = gateway_of(self.kubectl)
        if address := self._reachable(gateway):
            return f"callers come in at http://{address}/customer"
        metadata = gateway["metadata"]
        where = f"--namespace={metadata['namespace']} service/{metadata['name']}"
        forward = f"{self.kubectl.program} port-forward {where} 8080:80"
        return f"no address of the gateway is reachable: {forward}, then http://127.0.0.1:8080/customer"

    def reachable_address(self) -> str | None:
        """Return the gateway's host and port, if there is one that this machine reaches."""
        return self._reachable(gateway_of(self.kubectl))

    def _reachable(self, gateway: Json) -> str | None:
        routes, nodes = openshift_routes(self.kubectl, gateway), []
        if any("nodePort" in port for port in gateway["spec"]["ports"]):
            with contextlib.suppress(ForbiddenError):
                nodes = self.kubectl.items("nodes")
        for host, port in addresses(gateway, routes, nodes):
            with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2):
                return host if port == 80 else f"{host}:{port}"
        return None

    # --- what the proof needs -------------------------------------------------------------------------

    def scene(self, namespace: str, callers: Iterable[str] = ()) -> Scene:
        return scene.look(self.kubectl, namespace, callers)

    def follow(self, namespace: str, callers: Iterable[str] = (), known: Iterable[Pod] = ()) -> LogFollower:
        callers, known = list(callers), list(known)

        def streams(new: bool) -> Iterator[Stream]:
            # A stream needs a moment to open, so it goes back a little.
            since = [] if new else ["--since=10s"]
            found = known if known and not new else scene.pods(self.kubectl, namespace, callers, [])
            for pod in found:
                if pod.proxy_id:  # else there is no log to follow yet
                    there, name = scene.reach(self.kubectl, pod)
                    opened = partial(ContainerLog, there, name, SIDECAR, *since, id=pod.proxy_id)
                    yield Stream(f"{pod.namespace}/{pod.name}/{pod.proxy_id}", pod.name, opened)

        return StreamFollower(streams, again=10)  # which costs the cluster's and this machine's time

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
            said = self.ask_proxy(pod, "clusters")
            if said is None:
                return None
            total += sum(map(int, re.findall(r"^inbound\|.*::rq_active::(\d+)$", said, re.MULTILINE)))
        return total

    def logs_requests(self, pod: Pod) -> bool | None:
        said = self.ask_proxy(pod, "config_dump?resource=dynamic_listeners")
        if said is None:
            return None
        with contextlib.suppress(ValueError):
            listeners = [c for c in json.loads(said).get("configs", []) if c.get("name") == "virtualInbound"]
            return '"/dev/stdout"' in json.dumps(listeners)
        return None


def _read(paths: Iterable[Path]) -> list[Json]:
    """Return the documents of manifests; each must have a kind and a name."""
    return [named(document, source) for path in paths for source, document in documents(path)]


def _known(item: Json, where: str) -> Object:
    """Return an object; only its kind and name where it has fields that the harness does not know."""
    document = {
        "apiVersion": item["apiVersion"],
        "kind": item["kind"],
        "metadata": {"name": item["metadata"]["name"]},
    }
    with contextlib.suppress(ManifestError):
        return to_object({**document, "spec": item["spec"]}, where)
    return Object.model_validate(document)
