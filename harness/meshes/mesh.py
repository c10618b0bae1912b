"""What every mesh can do, wherever it runs."""

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from harness import HarnessError
from harness.manifests.base import Object
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import of_kind

ROOT = Path(__file__).resolve().parent.parent.parent
STATE = ROOT / ".mesh"
WORKLOADS = [ROOT / name / "kubernetes.yaml" for name in ("customer", "preference", "recommendation")]
ISTIO = [ROOT / "istio" / name for name in ("gateway.yaml", "destination-rule.yaml", "v1-only.yaml")]

GATEWAY = "istio-ingressgateway"
LOOPBACK = "127.0.0.1"

Progress = Callable[[str], None]


def quietly(line: str) -> None:
    """Report no progress."""


class MeshError(HarnessError):
    """A mesh that cannot do what was asked."""


@dataclass(frozen=True)
class PodStatus:
    """How a pod is: ``state`` is Running, or says what is wrong."""

    name: str
    workload: str
    state: str
    address: str


class LogFollower(ABC):
    """Reads what proxies log from the moment it is made."""

    @abstractmethod
    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield the (workload, line) pairs that have come since the last call; never waits."""

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Stop reading."""


class Mesh(ABC):
    """A place where the workshop runs."""

    name: str
    quiet: float
    """For how many seconds no proxy may log anything before its log is taken to be complete."""

    @abstractmethod
    def up(self) -> None:
        """Start what does not run yet, and wait until it is ready."""

    @abstractmethod
    def down(self) -> None:
        """Stop everything and leave nothing behind."""

    @abstractmethod
    def apply(self, path: Path) -> list[str]:
        """Apply a manifest as kubectl does; return one line for each object."""

    @abstractmethod
    def delete(self, path: Path) -> list[str]:
        """Delete a manifest's objects as kubectl does; return one line for each."""

    @abstractmethod
    def scale(self, workload: str, replicas: int) -> None:
        """Run ``replicas`` pods of a workload, and wait until they run."""

    @abstractmethod
    def pods(self) -> list[PodStatus]:
        """Return how each pod is."""

    @abstractmethod
    def objects(self) -> dict[str, tuple[str, Object]]:
        """Return the applied objects: key (``kind/name``) → (the file it came from, the object)."""

    @abstractmethod
    def url(self) -> str:
        """Return the URL at which callers reach customer."""

    def way_in(self) -> str:
        """Say in one line how callers reach customer, without opening a way for them."""
        try:
            return f"callers come in at {self.url()}"
        except MeshError as error:
            return str(error)

    @abstractmethod
    def logs(self, workload: str) -> Iterator[tuple[str, str]]:
        """Yield (container, line) for everything that a workload and its sidecars logged."""

    @abstractmethod
    def follow(self, workloads: Iterable[str]) -> LogFollower:
        """Follow the access logs of the workloads' proxies."""

    def in_flight(self, workloads: Iterable[str]) -> int:
        """Return how many requests the sidecars of workloads have begun and not ended, if it is known."""
        return 0

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Let go of connections; the mesh runs on."""

    def routes(self) -> list[Object]:
        """Return the applied objects without their sources."""
        return [found for _, found in self.objects().values()]

    def workload(self, name: str) -> Deployment:
        """Return the applied workload called ``name``.

        :raises MeshError: there is none, or the mesh is not running.
        """
        known = {d.metadata.name: d for d in of_kind(self.routes(), Deployment)}
        if name not in known:
            raise MeshError(f"no workload '{name}' (there are {', '.join(known) or 'none'})")
        return known[name]


def check_port(host: str, port: int, remedy: str) -> None:
    """Check that a server can listen on ``port``.

    :raises MeshError: it cannot; ``remedy`` says what to do.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise MeshError(f"port {port} on {host} cannot be used ({error.strerror}): {remedy}") from None


def get(url: str, timeout: float = 30) -> requests.Response:
    """Ask for ``url`` as it is, whatever proxy the environment names.

    :raises OSError: no answer in ``timeout`` seconds.
    """
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, timeout=timeout, headers={"accept": "text/plain"})
