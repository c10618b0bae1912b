"""What runs the pods of a mesh: processes on this machine, or containers in an engine."""

import contextlib
import shutil
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.manifests.lookup import NAMESPACE
from harness.meshes.lock import undisturbed
from harness.meshes.mesh import MeshError, Progress, replace_file, wait_until
from harness.meshes.pods import EnvoyPod
from harness.meshes.scene import Pod
from harness.rendering.values import Address

START_DEADLINE = 120.0
"""Seconds in which a container must be ready: PostgreSQL on a busy laptop needs most of a minute."""


class Runtime(ABC):
    """Runs the pods of one mesh, and gives their proxies the files that these watch."""

    def __init__(self, state: Path, progress: Progress) -> None:
        """Keep what it leaves on this machine in the folder ``state``."""
        self.state = state.resolve()
        self.xds = self.state / "xds"
        """The folder of the files that proxies watch."""
        self.progress = progress

    @property
    def port(self) -> int:
        """The gateway's, on 127.0.0.1, since the mesh was started."""
        return int((self.state / "port").read_text())

    @abstractmethod
    def container_statuses(self) -> Iterator[tuple[str, str, bool]]:
        """Yield (pod, container, whether it runs) for each container that is there."""

    @abstractmethod
    def start_pods(self, pods: list[EnvoyPod]) -> None:
        """Start pods and wait until they are ready."""

    @abstractmethod
    def stop_pods(self, names: Iterable[str]) -> None:
        """End all containers of pods, those of half-dead ones too, and wait until they are gone."""

    @abstractmethod
    def has_ended(self, pod: str, container: str) -> bool:
        """Say whether a container that was started runs no more."""

    @abstractmethod
    def address(self, pod: EnvoyPod) -> Address:
        """Return where other proxies reach a running pod, or this machine the gateway.

        :raises OSError: its proxy does not run.
        """

    @abstractmethod
    def admin(self, pod: str, path: str) -> str:
        """Return what the admin interface of a pod's proxy answers.

        :raises OSError: it does not answer.
        """

    @abstractmethod
    def log(self, pod: str, container: str) -> str:
        """Return what a container of a pod printed."""

    def running(self) -> dict[str, set[str]]:
        """Return the pods that are there: name → those of their containers that run."""
        running = defaultdict[str, set[str]](set)
        for pod, container, runs in self.container_statuses():
            running[pod].update([container] if runs else [])
        return dict(running)

    def pods(self, wanted: Iterable[EnvoyPod]) -> Iterator[Pod]:
        """Yield the pods that there should be, as the proof knows them."""
        running = self.running()
        for pod in wanted:
            addresses: tuple[str, ...] = ()
            with contextlib.suppress(OSError):
                addresses = (str(self.address(pod)),)
            yield Pod(
                pod.name, NAMESPACE, pod.workload, pod.labels, addresses, proxy=pod.proxied,
                ready=pod.is_whole(running) and bool(addresses), gateway=pod.deployment is None,
            )  # fmt: skip

    def statistics(self, pod: str, name: str) -> list[tuple[str, str]]:
        """Return (name, value) of those statistics of a pod's proxy that have ``name`` (a regex) in theirs.

        There are none where it does not answer.
        """
        try:
            lines = self.admin(pod, f"/stats?filter={name}").splitlines()
        except OSError:
            return []
        return [(line.partition(": ")[0], line.partition(": ")[2]) for line in lines]

    def active(self, pod: str) -> int:
        """Return how many requests a pod's sidecar has begun and not yet ended."""
        return sum(int(value) for _, value in self.statistics(pod, "http.inbound.downstream_rq_active"))

    def write(self, name: str, text: str) -> None:
        """Write a file that proxies watch."""
        replace_file(self.xds / name, text)

    def start_each(self, pods: Iterable[EnvoyPod], start: Callable[[EnvoyPod], None]) -> None:
        """Start several pods at once, each by ``start``."""
        with ThreadPoolExecutor(5) as pool:
            # The gateway first: by its container everybody's configuration is written.
            for group in ([p for p in pods if not p.deployment], [p for p in pods if p.deployment]):
                list(pool.map(start, group))

    def wait_for(self, pod: str, container: str, ask: Callable[[], object]) -> None:
        """Wait until a container is ready: until then ``ask`` raises an OSError, or a KeyError.

        :raises MeshError: it has ended, or takes too long.
        """

        def is_ready_or_has_ended() -> bool:
            with contextlib.suppress(OSError, KeyError):
                ask()
                return True
            return self.has_ended(pod, container)

        in_time = wait_until(is_ready_or_has_ended, START_DEADLINE, pause=0.02)
        if (ended := self.has_ended(pod, container)) or not in_time:
            lines = self.log(pod, container).splitlines()
            said = [line.strip() for line in lines if any(map(str.isalnum, line))] or ["(nothing)"]
            what = "ended" if ended else "is not ready"
            raise MeshError(f"{container} of {pod} {what}; its last words: {said[-1]}")

    def drain(self, pods: Iterable[EnvoyPod]) -> None:
        """Wait until pods that get no new requests have answered those they have, or their time is up."""
        start = time.monotonic()
        for pod in pods:
            while self.active(pod.name) and time.monotonic() < start + pod.grace:
                self.progress(f"{pod.name} answers what it has begun")
                time.sleep(0.05)

    @undisturbed()
    def remove_everything(self) -> None:
        """End and delete all that belongs to the mesh, whatever state it is in."""
        self.stop_pods(self.running())
        shutil.rmtree(self.state, ignore_errors=True)
