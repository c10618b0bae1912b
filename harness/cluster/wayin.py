"""How callers reach the ingress gateway, and people the dashboards."""

import atexit
import contextlib
import re
import socket
import subprocess
import threading

from harness import Json
from harness.cluster.kubectl import Kubectl, ProcessStream
from harness.cluster.preflight import OURS, PROJECT
from harness.meshes.mesh import LOOPBACK, MeshError, Progress, get

DASHBOARDS = {"kiali": ("kiali", 20001), "grafana": ("grafana", 3000), "jaeger": ("tracing", 80),
              "prometheus": ("prometheus", 9090)}  # fmt: skip
"""Istio's addons: name → (its Service, the port)."""


def open_forward(kubectl: Kubectl) -> "PortForward":
    """Return a way in by port-forward.

    :raises MeshError: the gateway takes no calls.
    """
    forward = PortForward(kubectl, gateway_of(kubectl))
    try:
        # One at a time: of several calls that the gateway refuses at once, kubectl lets some hang.
        get(f"http://{forward.address}", timeout=5)
    except OSError:
        forward.close()
        raise MeshError(
            "the ingress gateway takes no calls: make apply F=istio/gateway.yaml MESH=cluster"
        ) from None
    return forward


def inner_url(kubectl: Kubectl) -> str:
    """Return the URL at which callers inside the cluster reach customer, by the gateway too."""
    metadata = gateway_of(kubectl)["metadata"]
    return f"http://{metadata['name']}.{metadata['namespace']}.svc/customer"


def reachable_address(kubectl: Kubectl) -> str | None:
    """Return the gateway's host and port, if there is one that this machine reaches."""
    gateway = gateway_of(kubectl)
    for host, port in addresses(gateway, _openshift_routes(kubectl, gateway), kubectl.items("nodes")):
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2):
            return host if port == 80 else f"{host}:{port}"
    return None


def forward_command(kubectl: Kubectl) -> str:
    """Return the command that makes the gateway reachable where it has no address."""
    metadata = gateway_of(kubectl)["metadata"]
    where = f"--namespace={metadata['namespace']} service/{metadata['name']}"
    return f"{kubectl.program} port-forward {where} 8080:80"


def gateway_of(kubectl: Kubectl) -> Json:
    """Return the ingress gateway's Service.

    :raises MeshError: there is none.
    """
    found = kubectl.items("services", "--all-namespaces", "--selector=istio=ingressgateway")
    if not found:
        raise MeshError("there is no ingress gateway (a Service with the label istio=ingressgateway)")
    return found[0]


def _openshift_routes(kubectl: Kubectl, gateway: Json) -> list[Json]:
    if not any(v.startswith("route.openshift.io/") for v in kubectl.run("api-versions").split()):
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


def dashboard(kubectl: Kubectl, name: str, progress: Progress) -> None:
    """Open an addon's page and stay until interrupted.

    :raises MeshError: the addon is not installed.
    """
    service, port = DASHBOARDS[name]
    found = kubectl.items("services", "--all-namespaces", f"--field-selector=metadata.name={service}")
    if not found:
        raise MeshError(
            f"{name} is not installed: in the folder of the Istio release, "
            f"{kubectl.program} apply --filename samples/addons/{name}.yaml"
        )
    forward = PortForward(kubectl, found[0], port)
    progress("")
    print(f"http://{forward.address}  (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    finally:
        forward.close()


class PortForward:
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
