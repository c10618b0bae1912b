"""How callers reach the ingress gateway, and people the dashboards."""

import atexit
import re
import subprocess
import threading

from harness import Json
from harness.cluster.kubectl import Kubectl, groups
from harness.cluster.pods import OWN_GATEWAY_NAME
from harness.cluster.preflight import OURS, PROJECT, is_ours
from harness.meshes.mesh import LOOPBACK, MeshError

DASHBOARDS = {"kiali": ("kiali", 20001), "grafana": ("grafana", 3000), "jaeger": ("tracing", 80),
              "prometheus": ("prometheus", 9090)}  # fmt: skip
"""Istio's addons: name → (its Service, the port)."""


def own_gateway(kubectl: Kubectl) -> Json:
    """Return the Service of the ingress gateway that the namespace has for itself; nothing if it has none."""
    found = kubectl.get("service", OWN_GATEWAY_NAME)
    return found if is_ours(found) else {}


def gateway_of(kubectl: Kubectl) -> Json:
    """Return the ingress gateway's Service: the namespace's own, or the one that all namespaces share.

    :raises MeshError: there is none.
    """
    if own := own_gateway(kubectl):
        return own
    found = kubectl.items("services", "--all-namespaces", "--selector=istio=ingressgateway")
    if not found:
        raise MeshError("there is no ingress gateway (a Service with the label istio=ingressgateway)")
    return found[0]


def openshift_routes(kubectl: Kubectl, gateway: Json) -> list[Json]:
    """Return the Routes of OpenShift's that lead to the ingress gateway."""
    if "route.openshift.io" not in groups(kubectl):
        return []
    where = f"--namespace={gateway['metadata']['namespace']}"
    return kubectl.items("routes.route.openshift.io", where, f"--selector={OURS}={PROJECT}")


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


def open_dashboard(kubectl: Kubectl, name: str) -> "PortForward":
    """Return a way to an addon's page.

    :raises MeshError: the addon is not installed.
    """
    service, port = DASHBOARDS[name]
    found = kubectl.items("services", "--all-namespaces", f"--field-selector=metadata.name={service}")
    if not found:
        raise MeshError(
            f"{name} is not installed: in the folder of the Istio release, "
            f"{kubectl.program} apply --filename samples/addons/{name}.yaml"
        )
    return PortForward(kubectl, found[0], port)


class PortForward:
    """A way into the cluster for callers who have no other, opened again whenever it drops."""

    def __init__(self, kubectl: Kubectl, service: Json, port: int) -> None:
        self._kubectl = kubectl
        metadata = service["metadata"]
        self._target = [f"--namespace={metadata['namespace']}", f"service/{metadata['name']}"]
        self._port = port
        self._local = ""
        self._open = threading.Event()
        self._closed = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._said = "it says nothing"
        atexit.register(self.close)
        self._thread = threading.Thread(target=self._keep_open, daemon=True)
        self._thread.start()
        if not self._open.wait(20):
            self.close()
            raise MeshError(f"no way into the cluster by port-forward: {self._said}")

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
            with self._process as process:
                assert process.stdout
                for line in process.stdout:
                    self._said = line.decode().strip()
                    if found := re.match(r"Forwarding from 127\.0\.0\.1:(\d+) ", self._said):
                        self._local = found[1]
                        self._open.set()
            self._closed.wait(0.2)

    def close(self) -> None:
        self._closed.set()
        if self._process:
            self._process.terminate()
        self._thread.join(timeout=5)
