"""The cluster mesh: real Istio on Minikube, OpenShift Local or any other cluster, by kubectl."""

import atexit
import contextlib
import json
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import yaml

from harness import Json
from harness.expectation import HOST, versions
from harness.kubectl import ContainerLog, Kubectl, ProcessStream, container_status
from harness.manifests.base import Object
from harness.manifests.check import check
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import DOMAIN, of_kind
from harness.manifests.read import parse, read
from harness.meshes.images import image
from harness.meshes.logs import Stream, StreamFollower
from harness.meshes.mesh import (
    GATEWAY,
    ISTIO,
    LOOPBACK,
    ROOT,
    STATE,
    WORKLOADS,
    LogFollower,
    Mesh,
    MeshError,
    PodStatus,
    Progress,
    get,
    quietly,
)
from harness.platforms import Platform, detect, forget_command, image_commands
from harness.preflight import OURS, PROJECT, Facts, injection_label, is_ours, problems
from harness.rendering.routes import sidecar_routes

FIRST_STATE = ROOT / "istio" / "v1-only.yaml"
CLUSTER_ONLY = sorted((ROOT / "istio" / "cluster").glob("*.yaml"))

ISTIO_KINDS = (
    "virtualservices.networking.istio.io,destinationrules.networking.istio.io,gateways.networking.istio.io"
)
ALL_KINDS = (
    f"jobs.batch,deployments,services,serviceaccounts,{ISTIO_KINDS},telemetries.telemetry.istio.io,"
    "authorizationpolicies.security.istio.io,peerauthentications.security.istio.io"
)

SIDECAR = "istio-proxy"
"""The sidecar's container, native or classic."""

ROUTE_DEADLINE = 60.0
"""Seconds in which Istio must bring a route to the proxies."""

BUILD_DEADLINE = 1800.0
"""Seconds in which an image must be built and in the cluster."""

DASHBOARDS = {"kiali": ("kiali", 20001), "grafana": ("grafana", 3000), "jaeger": ("tracing", 80),
              "prometheus": ("prometheus", 9090)}  # fmt: skip
"""Istio's addons: name → (its Service, the port)."""


class ClusterMesh(Mesh):
    """A mesh whose control plane is Istio."""

    name = "cluster"
    quiet = 3.0  # Istio's proxies write their logs once a second

    def __init__(self, progress: Progress = quietly) -> None:
        """Use kubectl's current context and the namespace NAMESPACE (``tutorial``)."""
        self.namespace = os.environ.get("NAMESPACE") or "tutorial"
        self.kubectl = Kubectl.find(self.namespace)
        self.progress = progress
        self._forward: _PortForward | None = None

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
        items = self.kubectl.items
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
            namespace=self.kubectl.get("namespace", self.namespace),
            pods=items("pods"),
        )

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
            self.create([_namespace(self.namespace)])
        for name in services():
            self.bring(name, platform)
        if not facts.namespace or is_ours(facts.namespace):
            # Not before: with a sidecar in it, a pod in which OpenShift builds an image would never end.
            label = injection_label(facts)
            self.kubectl.run("label", "--overwrite", "namespace", self.namespace, label)
        route = self.kubectl.get("virtualservices.networking.istio.io", HOST)
        paths = [path for path in (*WORKLOADS, *ISTIO, *CLUSTER_ONLY) if not (route and path == FIRST_STATE)]
        self.progress("applying the manifests")
        self.create(self.render(paths))
        if "route.openshift.io/v1" in facts.api_versions:
            self._make_openshift_route(facts.gateways[0])
        for workload in of_kind(read(*WORKLOADS), Deployment):
            self._wait_for_rollout(workload.metadata.name)
        self._checked_facts()  # that sidecars are injected shows only now
        self._wait_for_routes()
        for name in versions(self.routes()):
            self._wait_for_endpoints(name)
        self._wait_for_gateway()

    def _checked_facts(self) -> Facts:
        facts = self.facts()
        if found := list(problems(facts, self.namespace, self.kubectl.program)):
            raise MeshError("\n       ".join(found))
        return facts

    def bring(self, name: str, platform: Platform) -> None:
        """Build an image and bring it to the cluster.

        :raises MeshError: it does not build, or does not get there.
        """
        registry = os.environ.get("REGISTRY", "")
        tag = image(name).reference(registry)
        STATE.mkdir(exist_ok=True)
        # Not in /tmp: a Docker from a snap does not see it.
        with tempfile.TemporaryDirectory(prefix="image-", dir=STATE) as folder:
            image(name).stage(Path(folder))
            for command in image_commands(platform, tag, folder, self.kubectl.command(), bool(registry)):
                self.progress(f"bringing {tag} to the cluster: minutes, the first time")
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

    def _gateway_principal(self) -> str:
        """Return the identity of the ingress gateway, whichever way it was installed."""
        pods = self.kubectl.items("pods", "--all-namespaces", "--selector=istio=ingressgateway")
        if not pods:
            raise MeshError(
                f"the ingress gateway has no pod: {self.kubectl.program} get pods -n istio-system"
            )
        namespace, account = pods[0]["metadata"]["namespace"], pods[0]["spec"]["serviceAccountName"]
        return f"*/ns/{namespace}/sa/{account}"

    def render(self, paths: Iterable[Path]) -> list[Json]:
        """Return the documents of manifests as this cluster needs them."""
        return render(paths, self.namespace, os.environ.get("REGISTRY", ""), self._gateway_principal())

    def create(self, documents: list[Json]) -> list[str]:
        """Apply documents; return what kubectl says of each."""
        return self.kubectl.run("apply", "--filename=-", given=yaml.safe_dump_all(documents)).splitlines()

    def _make_openshift_route(self, gateway: Json) -> None:
        """Lead callers in: OpenShift Local forwards nothing but Routes."""
        metadata = gateway["metadata"]
        spec = {"to": {"kind": "Service", "name": metadata["name"]}, "port": {"targetPort": "http2"}}
        route = {
            "apiVersion": "route.openshift.io/v1",
            "kind": "Route",
            "metadata": {"name": PROJECT, "namespace": metadata["namespace"], "labels": {OURS: PROJECT}},
            "spec": spec,
        }
        self.kubectl.run(
            "apply", f"--namespace={metadata['namespace']}", "--filename=-", given=yaml.safe_dump(route)
        )

    def _wait_for_rollout(self, workload: str) -> None:
        """Wait until a workload's pods are ready; if they do not become so, say why."""
        process = self.kubectl.start("rollout", "status", f"deployment/{workload}", "--timeout=180s")
        assert process.stdout
        with process:
            for line in process.stdout:
                self.progress(line.decode().strip())
        if process.returncode:
            raise MeshError(f"{workload} does not become ready\n{self.why(self._pods_of(workload))}")

    def why(self, pods: list[Json]) -> str:
        """Return what the cluster knows of pods that do not become ready: events, and their last words."""
        lines = []
        for pod in pods:
            name = pod["metadata"]["name"]
            chosen = f"--field-selector=involvedObject.name={name}"
            events = self.kubectl.items("events", chosen, "--sort-by=.lastTimestamp")
            lines += [f"  {name}: {e.get('reason')}: {e.get('message')}" for e in events[-5:]]
            with contextlib.suppress(MeshError):
                said = self.kubectl.run("logs", name, "--all-containers", "--tail=3")
                lines += [f"  {name} | {line}" for line in said.splitlines()]
        if not lines:  # Pod Security, a quota or a webhook did not let any pod be made
            failed = self.kubectl.items("events", "--field-selector=reason=FailedCreate")
            lines = [f"  {e['involvedObject']['name']}: {e.get('message')}" for e in failed[-3:]]
        return "\n".join(lines) or "  (there is no pod)"

    def _wait_for_gateway(self, deadline: float = 90) -> None:
        end, answer = time.monotonic() + deadline, "no answer"
        while True:
            self.progress("waiting for the gateway to answer")
            with contextlib.suppress(OSError, MeshError):
                found = get(self.url(), timeout=5)
                if found.ok:
                    return
                answer = f"{found.status_code} {found.text.strip()[:100]}"
            if time.monotonic() > end:
                raise MeshError(
                    f"the gateway does not lead to customer ({answer}): see 'make status MESH=cluster'"
                )
            time.sleep(0.5)

    def down(self) -> None:
        """Remove exactly what was deployed: the namespace too, if `make deploy` made it."""
        facts = self.facts()
        self.progress(f"removing everything from namespace {self.namespace}")
        ours, kinds = f"--selector={OURS}={PROJECT}", ALL_KINDS
        if "build.openshift.io/v1" in facts.api_versions:
            kinds += ",buildconfigs.build.openshift.io,imagestreams.image.openshift.io"
        if "route.openshift.io/v1" in facts.api_versions:
            for route in self.kubectl.items("routes.route.openshift.io", "--all-namespaces", ours):
                where = f"--namespace={route['metadata']['namespace']}"
                self.kubectl.run("delete", where, "route.route.openshift.io", route["metadata"]["name"])
        if is_ours(facts.namespace):
            self.kubectl.run("delete", "namespace", self.namespace, "--wait=true", timeout=300)
        elif facts.namespace:
            words = ["delete", kinds, ours, "--ignore-not-found", "--cascade=foreground", "--wait=true"]
            self.kubectl.run(*words, timeout=300)
        images = [image(name).tag for name in (*services(), "loadtest")]
        if command := forget_command(self.platform(facts), images):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    ["bash", "-c", command], capture_output=True, stdin=subprocess.DEVNULL, timeout=120
                )

    # --- the workshop's steps -------------------------------------------------------------------------

    def apply(self, path: Path) -> list[str]:
        applied = read(path)
        live = {key: found for key, (_, found) in self.must_run().items()}
        check(list((live | {o.key: o for o in applied}).values()), str(path))
        lines = self.create(self.render([path]))
        for workload in of_kind(applied, Deployment):
            self._wait_for_rollout(workload.metadata.name)
        self._wait_for_routes()
        return lines

    def delete(self, path: Path) -> list[str]:
        doomed = read(path)
        live = self.must_run()
        for found in doomed:
            if found.key not in live:
                raise MeshError(f"{path}: {found.key} is not applied")
        keys = {found.key for found in doomed}
        check([found for key, (_, found) in live.items() if key not in keys], str(path))
        # By file: a kind alone may be another API's, as Gateway is where the Gateway API is installed.
        lines = self.kubectl.run("delete", "--filename=-", given=path.read_text())
        self._wait_for_routes()
        return lines.splitlines()

    def scale(self, workload: str, replicas: int) -> None:
        labels = self.workload(workload).labels
        self.kubectl.run("scale", f"deployment/{workload}", f"--replicas={replicas}")
        if replicas:
            self._wait_for_rollout(workload)
            if workload in versions(self.routes()):
                self._wait_for_endpoints(workload)
        else:
            self.progress(f"waiting for the pods of {workload} to end")
            chosen = ",".join(f"{name}={value}" for name, value in labels.items())
            self.kubectl.run(
                "wait", "--for=delete", "pod", f"--selector={chosen}", "--timeout=120s", timeout=130
            )

    def pods(self) -> list[PodStatus]:
        self.must_run()
        everywhere = self.kubectl.items("pods", "--all-namespaces", "--selector=istio=ingressgateway")
        found = [(GATEWAY, pod) for pod in everywhere]
        found += [(w, pod) for w in self._workloads() for pod in self._pods_of(w)]
        return [
            PodStatus(pod["metadata"]["name"], workload, _state(pod), pod["status"].get("podIP", "-"))
            for workload, pod in found
        ]

    def objects(self) -> dict[str, tuple[str, Object]]:
        deployed = {d["metadata"]["name"]: d for d in self.kubectl.items("deployments")}
        stored: dict[str, tuple[str, Object]] = {}
        for path in WORKLOADS:
            found = [o for o in read(path) if not isinstance(o, Deployment) or o.metadata.name in deployed]
            if any(isinstance(o, Deployment) for o in found):
                source = str(path.relative_to(ROOT))
                stored |= {o.key: (source, o) for o in found}
        if not stored:
            return {}
        files = [
            (str(path.relative_to(ROOT)), o) for path in (ROOT / "istio").glob("*.yaml") for o in read(path)
        ]
        for item in self.kubectl.items(ISTIO_KINDS):
            document = {
                "apiVersion": "networking.istio.io/v1",
                "kind": item["kind"],
                "metadata": {"name": item["metadata"]["name"]},
                "spec": item["spec"],
            }
            where = f"{item['kind']} in namespace {self.namespace}"
            live = parse(json.dumps(document), where)[0]
            source = next((s for s, o in files if o == live), where)
            stored[live.key] = (source, live)
        return stored

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

    def _pods_of(self, workload: str) -> list[Json]:
        [deployment] = [d for d in of_kind(read(*WORKLOADS), Deployment) if d.metadata.name == workload]
        chosen = ",".join(f"{name}={value}" for name, value in deployment.labels.items())
        pods = self.kubectl.items("pods", f"--selector={chosen}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def _must_rule(self) -> None:
        """Check that VirtualServices alone lead to the Services.

        :raises MeshError: an HTTPRoute does, which Istio prefers to them.
        """
        if not any(
            v.startswith("gateway.networking.k8s.io/") for v in self.kubectl.run("api-versions").split()
        ):
            return
        for route in self.kubectl.items("httproutes.gateway.networking.k8s.io"):
            if any(parent.get("kind") == "Service" for parent in route["spec"].get("parentRefs", [])):
                name = f"httproute/{route['metadata']['name']}"
                raise MeshError(
                    f"{name} overrules the VirtualServices, and only these are judged: "
                    f"{self.kubectl.program} delete {name} -n {self.namespace}"
                )

    def _wait_for_routes(self) -> None:
        """Wait until preference's proxies route as the applied objects say: Istio takes a moment."""
        self._must_rule()
        wanted = summary(sidecar_routes(self.routes()), self.namespace)

        def there(said: str) -> bool:
            configs = [c.get("route_config", {}) for c in json.loads(said).get("configs", [])]
            return wanted in [summary(config, self.namespace) for config in configs]

        problem = f"does not have the route after {ROUTE_DEADLINE:g} s"
        self._wait_for_proxies("config_dump?resource=dynamic_route_configs", there, problem)

    def _wait_for_endpoints(self, workload: str) -> None:
        """Wait until preference's proxies know where a workload's pods are: ready is not yet reachable."""
        known = [f"::{pod['status'].get('podIP', '')}:" for pod in self._pods_of(workload)]
        self._wait_for_proxies(
            "clusters", lambda said: all(ip in said for ip in known), f"does not know {workload}"
        )

    def _wait_for_proxies(self, query: str, there: Callable[[str], bool], problem: str) -> None:
        """Ask the admin interface of preference's proxies until what it says is as it must be."""
        end = time.monotonic() + ROUTE_DEADLINE
        request = ["--container=istio-proxy", "--", "pilot-agent", "request", "GET", query]
        for pod in self._pods_of("preference"):
            name = pod["metadata"]["name"]
            while not there(self.kubectl.run("exec", name, *request)):
                if time.monotonic() > end:
                    raise MeshError(f"the proxy of {name} {problem}: istioctl proxy-status")
                self.progress("waiting for the proxies to take the configuration")
                time.sleep(0.2)

    # --- how callers reach it -------------------------------------------------------------------------

    def url(self) -> str:
        if self._forward:
            return f"http://{self._forward.address}/customer"
        if address := self.reachable_address():
            return f"http://{address}/customer"
        forward = _PortForward(self.kubectl, self._gateway())
        try:
            # One at a time: of several calls that the gateway refuses at once, kubectl lets some hang.
            get(f"http://{forward.address}", timeout=5)
        except OSError:
            forward.close()
            raise MeshError(
                "the ingress gateway takes no calls: make apply F=istio/gateway.yaml MESH=cluster"
            ) from None
        self._forward = forward
        return f"http://{forward.address}/customer"

    def inner_url(self) -> str:
        """Return the URL at which callers inside the cluster reach customer, by the gateway too."""
        metadata = self._gateway()["metadata"]
        return f"http://{metadata['name']}.{metadata['namespace']}.svc/customer"

    def way_in(self) -> str:
        if address := self.reachable_address():
            return f"callers come in at http://{address}/customer"
        then = f"{self.forward_command()}, then http://127.0.0.1:8080/customer"
        return f"no address of the gateway is reachable: {then}"

    def reachable_address(self) -> str | None:
        """Return the gateway's host and port, if there is one that this machine reaches."""
        gateway = self._gateway()
        for host, port in addresses(gateway, self._openshift_routes(gateway), self.kubectl.items("nodes")):
            with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2):
                return host if port == 80 else f"{host}:{port}"
        return None

    def forward_command(self) -> str:
        """Return the command that makes the gateway reachable where it has no address."""
        metadata = self._gateway()["metadata"]
        where = f"--namespace={metadata['namespace']} service/{metadata['name']}"
        return f"{self.kubectl.program} port-forward {where} 8080:80"

    def _gateway(self) -> Json:
        found = self.kubectl.items("services", "--all-namespaces", "--selector=istio=ingressgateway")
        if not found:
            raise MeshError("there is no ingress gateway (a Service with the label istio=ingressgateway)")
        return found[0]

    def _openshift_routes(self, gateway: Json) -> list[Json]:
        if not any(v.startswith("route.openshift.io/") for v in self.kubectl.run("api-versions").split()):
            return []
        where = f"--namespace={gateway['metadata']['namespace']}"
        return self.kubectl.items("routes.route.openshift.io", where, f"--selector={OURS}={PROJECT}")

    def dashboard(self, name: str) -> None:
        """Open an addon's page and stay until interrupted.

        :raises MeshError: the addon is not installed.
        """
        service, port = DASHBOARDS[name]
        found = self.kubectl.items(
            "services", "--all-namespaces", f"--field-selector=metadata.name={service}"
        )
        if not found:
            raise MeshError(
                f"{name} is not installed: in the folder of the Istio release, "
                f"{self.kubectl.program} apply --filename samples/addons/{name}.yaml"
            )
        forward = _PortForward(self.kubectl, found[0], port)
        self.progress("")
        print(f"http://{forward.address}  (Ctrl-C ends it)", flush=True)
        try:
            threading.Event().wait()
        finally:
            forward.close()

    # --- logs -----------------------------------------------------------------------------------------

    def logs(self, workload: str) -> Iterator[tuple[str, str]]:
        self.must_run()
        self.workload(workload)
        for pod in self._pods_of(workload):
            names = [container["name"] for container in pod["spec"]["containers"]]
            application = next(name for name in names if name != SIDECAR)
            for container in (application, SIDECAR):
                said = self.kubectl.run(
                    "logs", pod["metadata"]["name"], f"--container={container}", "--tail=-1"
                )
                yield from (
                    ("app" if container == application else container, line) for line in said.splitlines()
                )

    def follow(self, workloads: Iterable[str]) -> LogFollower:
        self._must_rule()
        wanted = list(workloads)

        def streams(new: bool) -> Iterator[Stream]:
            # A stream needs a moment to open, so it goes back a little; other runs' tickets do not count.
            since = [] if new else ["--since=30s"]
            for workload in wanted:
                for pod in self._pods_of(workload):
                    name, proxy = pod["metadata"]["name"], container_status(pod, SIDECAR)
                    if "running" in proxy.get("state", {}):  # else there is no log to follow yet
                        key = f"{name}/{proxy.get('restartCount', 0)}"
                        opened = partial(ContainerLog, self.kubectl, name, SIDECAR, *since)
                        yield Stream(key, workload, opened)

        return StreamFollower(streams, again=5)


class _PortForward:
    """A way into the cluster for callers who have no other, opened again whenever it drops."""

    def __init__(self, kubectl: Kubectl, service: Json, port: int = 80, deadline: float = 20) -> None:
        self._kubectl = kubectl
        metadata = service["metadata"]
        self._target = [f"--namespace={metadata['namespace']}", f"service/{metadata['name']}"]
        self._port = port
        self._local = ""
        self._open = threading.Event()
        self._closed = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._said = ""
        atexit.register(self.close)
        self._thread = threading.Thread(target=self._keep_open, daemon=True)
        self._thread.start()
        if not self._open.wait(deadline):
            self.close()
            raise MeshError(f"no way into the cluster by port-forward: {self._said or 'it says nothing'}")

    @property
    def address(self) -> str:
        """The host and port at which callers reach the service."""
        return f"{LOOPBACK}:{self._local}"

    def _keep_open(self) -> None:
        while not self._closed.is_set():
            ports = f"{self._local}:{self._port}"
            words = ["port-forward", *self._target, ports, f"--address={LOOPBACK}"]
            self._process = self._kubectl.start(*words, complaints=subprocess.STDOUT)
            if self._closed.is_set():
                self._process.terminate()
            for line in ProcessStream(self._process):
                self._said = line.decode().strip()
                if found := re.match(rb"Forwarding from 127\.0\.0\.1:(\d+) ", line):
                    self._local = found[1].decode()
                    self._open.set()
            self._process.wait()
            self._closed.wait(0.2)

    def close(self) -> None:
        """Close it for good."""
        self._closed.set()
        if self._process:
            self._process.terminate()
        self._thread.join(timeout=5)


def services() -> list[str]:
    """Return the images that the workshop's pods run."""
    return sorted({d.container.image for d in of_kind(read(*WORKLOADS), Deployment)})


def render(paths: Iterable[Path], namespace: str, registry: str, gateway: str) -> list[Json]:
    """Return the documents of manifests as they are applied to a cluster.

    Images get their tag (and registry), objects the label by which `make undeploy` finds them, and
    identities the namespace and gateway (``*/ns/…/sa/…``) that are really there.
    """
    documents = [d for path in paths for d in yaml.safe_load_all(path.read_text()) if d]
    for document in documents:
        document["metadata"].setdefault("labels", {})[OURS] = PROJECT
        if document["kind"] in ("Deployment", "Job"):
            template = document["spec"]["template"]
            template["metadata"]["labels"][OURS] = PROJECT
            for container in template["spec"]["containers"]:
                # The tag stays when the code changes; this makes new pods of the new image all the same.
                source = image(container["image"])
                template["metadata"].setdefault("annotations", {})[f"{PROJECT}/source"] = source.digest()
                container["image"] = source.reference(registry)
        if document["kind"] == "AuthorizationPolicy":
            for rule in document["spec"].get("rules", []):
                for origin in rule["from"]:
                    source = origin["source"]
                    source["principals"] = [_identity(p, namespace, gateway) for p in source["principals"]]
    return documents


def _identity(principal: str, namespace: str, gateway: str) -> str:
    if "/ns/istio-system/" in principal:
        return gateway
    return principal.replace("/ns/tutorial/", f"/ns/{namespace}/")


def _namespace(name: str) -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {OURS: PROJECT}}}


def _state(pod: Json) -> str:
    statuses = pod["status"].get("containerStatuses", []) + [
        s for s in pod["status"].get("initContainerStatuses", []) if s["name"] == SIDECAR
    ]
    for status in statuses:
        if reason := status.get("state", {}).get("waiting", {}).get("reason"):
            return str(reason)
    ready = sum(status["ready"] for status in statuses)
    phase = str(pod["status"].get("phase", "Unknown"))
    return phase if ready == len(statuses) else f"{phase}, {ready}/{len(statuses)} ready"


def addresses(gateway: Json, routes: list[Json], nodes: list[Json]) -> list[tuple[str, int]]:
    """Return the (host, port) pairs at which the ingress gateway may be reached, the best first."""
    found = [(str(route["spec"]["host"]), 80) for route in routes]
    port = next((p for p in gateway["spec"]["ports"] if p["port"] == 80), None)
    if port is None:
        raise MeshError(f"the ingress gateway {gateway['metadata']['name']} has no port 80")
    for ingress in gateway.get("status", {}).get("loadBalancer", {}).get("ingress", []):
        found.append((ingress.get("ip") or ingress["hostname"], 80))
    if node_port := port.get("nodePort"):
        for node in nodes:
            for address in node["status"].get("addresses", []):
                if address["type"] == "InternalIP" and ":" not in address["address"]:
                    found.append((address["address"], node_port))
    return found


def summary(routes: Json, namespace: str) -> list[Json] | None:
    """Return where Envoy's route configuration sends requests for recommendation; None if it lacks the host.

    Istio's rendering and the harness's differ in form; what must be the same are matches, clusters, weights
    and mirrors.
    """
    hosts = (f"{HOST}.{namespace}.svc.cluster.local", f"{HOST}.{DOMAIN}")
    for host in routes.get("virtual_hosts", []):
        if host["name"].partition(":")[0] in hosts:
            return [_route_summary(route) for route in host.get("routes", [])]
    return None


def _route_summary(route: Json) -> Json:
    action = route.get("route", {})
    weighted = action.get("weighted_clusters", {}).get("clusters", [])
    match = {k: v for k, v in route.get("match", {}).items() if k in ("path", "prefix")}
    headers = [h["name"] for h in route.get("match", {}).get("headers", [])]
    return {
        "match": match or {"prefix": "/"},
        "headers": sorted(headers),
        "clusters": sorted(
            (_subset(c["name"]), c.get("weight", 0)) for c in weighted if c.get("weight")
        ) or [(_subset(action.get("cluster", "")), 0)],
        "mirrors": [
            (_subset(m["cluster"]), _share(m.get("runtime_fraction", {}).get("default_value", {})))
            for m in action.get("request_mirror_policies", [])
        ],
    }  # fmt: skip


def _subset(cluster: str) -> str:
    """Return a cluster's subset and Service, without the namespace: ``outbound|8080|v2|recommendation``."""
    return cluster.partition(".")[0]


def _share(fraction: Json) -> float:
    denominators = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}
    return float(fraction.get("numerator", 0) / denominators[fraction.get("denominator", "HUNDRED")])
