"""What every mesh can do, wherever it runs."""

import contextlib
import json
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from harness import HarnessError, Json
from harness.manifests.base import Object
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import of_kind
from harness.meshes.scene import Pod, Scene

ROOT = Path(__file__).resolve().parent.parent.parent
STATE = ROOT / ".mesh" if (ROOT / "Makefile").exists() else Path.home() / ".cache" / "dark-launch"
WORKLOADS = [ROOT / name / "kubernetes.yaml" for name in ("customer", "preference", "recommendation")]
WITH_STORE = [ROOT / "recommendation" / "store" / "kubernetes.yaml", *WORKLOADS]
"""What runs where PostgreSQL does; the local mesh keeps SQLite's files instead."""

ISTIO = [ROOT / "istio" / name for name in ("gateway.yaml", "destination-rule.yaml", "v1-only.yaml")]

TARGET = "recommendation"
"""The Service of the workshop whose versions are compared."""

SHADOW = "recommendation-v2"
"""The workload of its dark version."""

GATEWAY = "istio-ingressgateway"
LOOPBACK = "127.0.0.1"

ANSWER = "dark-launch answer "
"""What marks the lines of proxies' own logs that hold an answer; istio/compare.yaml writes them."""

Progress = Callable[[str], None]

Objects = dict[str, tuple[str, Object]]
"""Applied objects: key (``kind/name``) → (the file it came from, the object)."""


def quietly(line: str) -> None:
    """Report no progress."""


class MeshError(HarnessError):
    """A mesh that cannot do what was asked."""


def in_clone() -> bool:
    """Say whether the workshop's files are here, rather than the harness alone, installed somewhere."""
    return all(path.exists() for path in WORKLOADS)


def must_be_clone(what: str) -> None:
    """Raise a MeshError unless the workshop's files are here."""
    if not in_clone():
        raise MeshError(f"{what} needs the workshop's files: clone its repository, and run it there by make")


@dataclass(frozen=True)
class PodStatus:
    """How a pod is: ``state`` is Running, or says what is wrong."""

    name: str
    workload: str
    state: str
    address: str


class LogFollower(ABC):
    """Reads what proxies log from the moment it is made."""

    goes_back = False
    """Whether it begins with lines from before that moment."""

    @abstractmethod
    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield the (pod, line) pairs that have come since the last call; never waits."""

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Stop reading."""


class Mesh(ABC):
    """A place where the workshop runs."""

    name: str
    still: float
    """For how many seconds a request that every proxy has logged may be logged once more."""
    quiet: float
    """For how many seconds no proxy may log anything before its log is taken to be complete."""
    home: Path
    """The folder of what a command leaves for the next one."""

    @abstractmethod
    def up(self) -> None:
        """Start what does not run yet, and wait until it is ready."""

    @abstractmethod
    def down(self) -> None:
        """Stop everything and leave nothing behind."""

    @abstractmethod
    def apply(self, *paths: Path) -> list[str]:
        """Apply manifests as kubectl does; return one line for each object."""

    @abstractmethod
    def put(self, document: Json, hurry: Callable[[], bool] = bool) -> list[str]:
        """Apply one object as it is, and wait until the proxies route by it; return lines as ``apply`` does.

        :param hurry: says whether to wait no longer.
        :raises MeshError: the mesh does not take it.
        """

    @abstractmethod
    def delete(self, *paths: Path) -> list[str]:
        """Delete manifests' objects as kubectl does; return one line for each."""

    @abstractmethod
    def scale(self, workload: str, replicas: int) -> None:
        """Run ``replicas`` pods of a workload, and wait until they run."""

    @abstractmethod
    def pods(self) -> list[PodStatus]:
        """Return how each pod is."""

    @abstractmethod
    def objects(self) -> Objects:
        """Return the applied objects."""

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
    def scene(self, namespace: str, callers: Iterable[str] = ()) -> Scene:
        """Return what is applied and what runs, as the proof needs it.

        :param callers: workloads of other namespaces (``namespace/workload``) whose pods are wanted as well.
        :raises MeshError: the mesh does not run, or does not answer.
        """

    @abstractmethod
    def follow(self, namespace: str, callers: Iterable[str] = (), known: Iterable[Pod] = ()) -> LogFollower:
        """Follow the proxies of ``scene``'s pods, and of those that start meanwhile.

        There are the lines of their access logs, and those of their own logs, some of which hold an answer.

        :param known: the pods that a ``scene`` of a moment ago has: then nobody is asked for them again.
        """

    @abstractmethod
    def request_log(self, pod: Pod) -> Iterable[str]:
        """Return all that a pod's proxy has logged, line by line."""

    @abstractmethod
    def in_flight(self, pods: Iterable[Pod]) -> int | None:
        """Return how many requests the proxies of pods have begun and not ended; None if it is not known."""

    def logs_requests(self, pod: Pod) -> bool | None:
        """Say whether a pod's proxy logs the requests that it gets; None if it is not known."""
        return True

    @abstractmethod
    def ask_proxy(self, pod: Pod, query: str) -> str | None:
        """Return what the admin interface of a pod's proxy answers; None if it cannot be asked."""

    def listeners(self, pod: Pod) -> list[Json]:
        """Return the listeners that Istio gave a pod's proxy, draining ones too; none if it does not say."""
        with contextlib.suppress(ValueError):
            said = json.loads(self.ask_proxy(pod, "config_dump?resource=dynamic_listeners") or "{}")
            return list(said.get("configs", []))
        return []

    def refusal(self, namespace: str, workload: Json) -> str:
        """Return why no pod of a workload could be made; nothing if one could, or it cannot be told."""
        return ""

    @abstractmethod
    def secrets(self, names: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
        """Return what Secrets of the workshop's namespace hold, by name and key; those that are there.

        :raises MeshError: they may not be read.
        """

    @abstractmethod
    def query(self, host: str, database: str, sql: str) -> list[list[str]]:
        """Return the rows that a database of the workshop's store answers; it is only read.

        :param host: the store's Service.
        :raises MeshError: it does not answer, or not to this.
        """

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


def wait_until(condition: Callable[[], object], deadline: float, pause: float) -> bool:
    """Say whether a condition comes true within ``deadline`` seconds, asking again after each ``pause``.

    It is not true while it raises an OSError.
    """
    end = time.monotonic() + deadline
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return True
        if time.monotonic() > end:
            return False
        time.sleep(pause)


def replace_file(path: Path, text: str) -> None:
    """Replace a file in one step, which is also what Envoy watches for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    os.rename(temporary, path)


def check_port(host: str, port: int, remedy: str) -> None:
    """Raise a MeshError with its ``remedy`` unless a server can listen on ``port``."""
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
