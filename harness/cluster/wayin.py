"""How callers reach the ingress gateway, and people the dashboards."""

import atexit
import contextlib
import re
import socket
import subprocess
import threading
from functools import cached_property

from harness import Json, settings
from harness.cluster.deploy import own_identity
from harness.cluster.kubectl import Kubectl, groups
from harness.cluster.pods import GATEWAY_LABEL, OWN_GATEWAY_NAME
from harness.cluster.preflight import OURS, PROJECT, is_ours, room_of
from harness.meshes.mesh import GATEWAY, LOOPBACK, MeshError, get

DASHBOARDS = {"kiali": ("kiali", 20001), "grafana": ("grafana", 3000), "jaeger": ("tracing", 80),
              "prometheus": ("prometheus", 9090)}  # fmt: skip
"""Istio's addons: name → (its Service, the port)."""


class IngressGateway:
    """The ingress gateway of the workshop: the namespace's own, or the one that all namespaces share."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self._forward: PortForward | None = None

    def close(self) -> None:
        if self._forward:
            self._forward.close()

    @cached_property
    def is_own(self) -> bool:
        """Whether the workshop has one of its own, or is to have one; in a room it has."""
        return settings.own_gateway() or bool(room_of(self._kubectl)) or bool(own_gateway(self._kubectl))

    @property
    def name(self) -> str:
        """What its workload is called."""
        return OWN_GATEWAY_NAME if self.is_own else GATEWAY

    def service(self) -> Json:
        """Return its Service.

        :raises MeshError: there is none.
        """
        if own := own_gateway(self._kubectl):
            return own
        found = self._kubectl.items("services", "--all-namespaces", "--selector=istio=ingressgateway")
        if not found:
            raise MeshError("there is no ingress gateway (a Service with the label istio=ingressgateway)")
        return found[0]

    def pods(self) -> list[Json] | None:
        """Return its pods; None if this user may not know them."""
        if self.is_own:
            return self._kubectl.readable("pods", f"--selector={GATEWAY_LABEL}={self._kubectl.namespace}")
        return self._kubectl.readable("pods", "--all-namespaces", "--selector=istio=ingressgateway")

    def identity(self) -> str:
        """Return who it is to others (``*/ns/…/sa/…``); nothing if this user may not know."""
        if self.is_own:
            return own_identity(self._kubectl.namespace)
        found = self.pods()
        if found is None:
            return ""
        if not found:
            program = self._kubectl.program
            raise MeshError(f"the ingress gateway has no pod: {program} get pods -n istio-system")
        return f"*/ns/{found[0]['metadata']['namespace']}/sa/{found[0]['spec']['serviceAccountName']}"

    # --- how callers reach it ---------------------------------------------------------------------------

    def url(self) -> str:
        """Return the URL at which callers reach customer; a way is opened for them if there is none."""
        if not self._forward:
            service = self.service()
            if address := self.reachable_address(service):
                return f"http://{address}/customer"
            self._forward = self._open_forward(service)
        return f"http://{self._forward.address}/customer"

    def _open_forward(self, service: Json) -> "PortForward":
        forward = PortForward(self._kubectl, service, 80)
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
        metadata = self.service()["metadata"]
        return f"http://{metadata['name']}.{metadata['namespace']}.svc/customer"

    def way_in(self) -> str:
        """Say in one line how callers reach customer, without opening a way for them."""
        service = self.service()
        if address := self.reachable_address(service):
            return f"callers come in at http://{address}/customer"
        metadata = service["metadata"]
        where = f"--namespace={metadata['namespace']} service/{metadata['name']}"
        forward = f"{self._kubectl.program} port-forward {where} 8080:80"
        return f"no address of the gateway is reachable: {forward}, then http://127.0.0.1:8080/customer"

    def reachable_address(self, service: Json | None = None) -> str | None:
        """Return its host and port, if there is one that this machine reaches; ``service`` if it is known."""
        service = service or self.service()
        routes, nodes = openshift_routes(self._kubectl, service), []
        if any("nodePort" in port for port in service["spec"]["ports"]):
            nodes = self._kubectl.readable("nodes") or []
        for host, port in addresses(service, routes, nodes):
            with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2):
                return host if port == 80 else f"{host}:{port}"
        return None


def own_gateway(kubectl: Kubectl) -> Json:
    """Return the Service of the ingress gateway that the namespace has for itself; nothing if it has none."""
    found = kubectl.get("service", OWN_GATEWAY_NAME)
    return found if is_ours(found) else {}


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
