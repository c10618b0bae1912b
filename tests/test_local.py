"""What the local mesh does with processes, ports and files."""

import contextlib
import itertools
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from helpers import free_port, kill, wait_for

from harness.demo import demo
from harness.meshes import local
from harness.meshes.local import LocalMesh
from harness.meshes.lock import ENDING
from harness.meshes.mesh import GATEWAY, ROOT, MeshError
from harness.proof.report import table
from harness.proof.status import status_of
from harness.proof.target import Target
from harness.proof.watch import verify


@pytest.fixture
def fresh(shared: LocalMesh) -> LocalMesh:
    """Return a mesh that is not running."""
    shared.down()
    return shared


def test_down_leaves_no_process_port_or_file(own: LocalMesh) -> None:
    url = own.url()
    own.down()
    assert list(own.runtime.processes()) == []
    assert not own.state.parent.exists()
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)
    own.down()  # twice is harmless


def test_up_twice_is_harmless_and_keeps_the_routes(own: LocalMesh) -> None:
    own.apply(ROOT / "istio" / "mirror.yaml")
    before = {(pod, container, process.pid) for pod, container, process in own.runtime.processes()}
    own.up()
    assert {(pod, container, process.pid) for pod, container, process in own.runtime.processes()} == before
    assert own.objects()["virtualservice/recommendation"][0].endswith("istio/mirror.yaml")


def test_up_after_a_kill_of_everything_starts_afresh(own: LocalMesh) -> None:
    own.apply(ROOT / "istio" / "mirror.yaml")
    kill(own, "everything")
    own.up()
    assert verify(own, Target(), 50).passed
    assert own.objects()["virtualservice/recommendation"][0] == "istio/v1-only.yaml"


def test_up_starts_what_died_and_keeps_the_routes(own: LocalMesh) -> None:
    own.apply(ROOT / "istio" / "mirror.yaml")
    kill(own, "recommendation-v2")
    assert {pod.state for pod in own.pods()} == {"Running", "Dead: run 'make up'"}
    own.up()
    assert {pod.state for pod in own.pods()} == {"Running"}
    assert verify(own, Target(), 50).passed


def test_a_pod_with_a_dead_application_is_dead(own: LocalMesh) -> None:
    for pod, container, process in own.runtime.processes():
        if pod.startswith("recommendation-v1") and container == "app":
            process.kill()
    answer = requests.get(own.url(), timeout=30)
    assert answer.status_code == 503
    assert answer.text.startswith("customer => preference => 503 upstream connect error")
    own.up()
    assert requests.get(own.url(), timeout=30).ok


def test_up_cleans_up_after_a_harness_that_was_killed_while_starting(fresh: LocalMesh) -> None:
    code = (
        "import sys; from pathlib import Path; from harness.meshes.local import LocalMesh;"
        "LocalMesh(Path(sys.argv[1]), 0).up()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(fresh.state)], cwd=ROOT) as harness:
        wait_for(lambda: list(fresh.runtime.processes()), "the first process")
        harness.kill()
    fresh.up()
    assert verify(fresh, Target(), 50).passed


def test_two_meshes_do_not_collide(own: LocalMesh, tmp_path: Path) -> None:
    other = LocalMesh(tmp_path / "other" / "local", port=0)
    other.up()
    try:
        other.apply(ROOT / "istio" / "mirror.yaml")
        assert verify(own, Target(), 50).passed
        assert verify(other, Target(), 50).passed
    finally:
        other.down()
    assert verify(own, Target(), 50).passed


def test_a_busy_port_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mesh = LocalMesh(tmp_path / "state" / "local", port=port)
        with pytest.raises(
            MeshError, match=f"^port {port} on 127.0.0.1 cannot be used .*'make up PORT={port + 1}'$"
        ):
            mesh.up()
    assert list(mesh.runtime.processes()) == []
    assert mesh.objects() == {}


def test_up_on_a_running_mesh_that_cannot_be_healed_leaves_it_as_it_is(own: LocalMesh) -> None:
    own.apply(ROOT / "istio" / "mirror.yaml")
    port = int(own.url().split(":")[2].split("/")[0])
    kill(own, GATEWAY)
    (own.state / "port").write_text(str(port))
    before = own.objects()
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(MeshError, match=f"port {port} on 127.0.0.1 cannot be used"),
    ):
        own.up()
    assert own.objects() == before
    own.up()
    assert verify(own, Target(), 50).passed


def test_damaged_state_is_named_and_up_starts_afresh(own: LocalMesh) -> None:
    for damage in ("", "{", "[{}]", '[{"source": "x", "object": {"kind": "Fish"}}]'):
        (own.state / "objects.json").write_text(damage)
        with pytest.raises(MeshError, match=r"is damaged: start afresh with 'make down; make up'$"):
            own.pods()
    own.up()
    assert verify(own, Target(), 50).passed


def test_lost_logs_prove_nothing(own: LocalMesh) -> None:
    for log in own.state.glob("pods/*/access.log"):
        log.unlink()
    assert verify(own, Target(), 50).unproven() == ["logged", "silent", "exercised"]
    own.down()  # its proxies write on into files that nobody finds


def test_a_proxy_that_does_not_respond_is_not_running(own: LocalMesh) -> None:
    [gateway] = [process for pod, _, process in own.runtime.processes() if pod == GATEWAY]
    (own.state / "pods" / GATEWAY / "admin").unlink()
    assert [pod.state for pod in own.pods() if pod.workload == GATEWAY] == ["Dead: run 'make up'"]
    assert gateway.is_running()


def test_down_and_up_at_once_take_turns(fresh: LocalMesh) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda turn: fresh.up() if turn % 2 else fresh.down(), range(8)))
    fresh.up()
    assert verify(fresh, Target(), 50).passed


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def roots() -> Iterator[Path]:
    """Yield a folder that every user may read and root alone may write."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_mesh_that_somebody_else_started_is_said_to_be_theirs(roots: Path) -> None:
    mesh = LocalMesh(roots / "state" / "local", port=0)
    mesh.up()
    try:
        for command in (mesh.pods, mesh.url, mesh.up, mesh.down, mesh.objects):
            with as_nobody(), pytest.raises(MeshError, match=r"^root started a mesh here: let root stop it"):
                command()
        assert {pod.state for pod in mesh.pods()} == {"Running"}
    finally:
        mesh.down()


def test_a_folder_that_cannot_be_written_is_named(roots: Path) -> None:
    mesh = LocalMesh(roots / "state" / "local", port=0)
    with (
        as_nobody(),
        pytest.raises(MeshError, match=rf"^the folder {roots}/state cannot be written: permission denied$"),
    ):
        mesh.up()


def test_commands_say_when_nothing_runs(fresh: LocalMesh) -> None:
    for command in (fresh.pods, fresh.url, lambda: fresh.apply(ROOT / "istio" / "mirror.yaml")):
        with pytest.raises(MeshError, match=r"^the local mesh is not running: start it with 'make up'$"):
            command()


def test_a_dead_gateway_is_named(own: LocalMesh) -> None:
    kill(own, GATEWAY)
    with pytest.raises(MeshError, match="gateway is dead: start it again with 'make up'"):
        own.url()
    assert own.way_in() == "the ingress gateway is dead: start it again with 'make up'"


def test_an_unknown_host_stays_on_this_machine(own: LocalMesh) -> None:
    """A service that calls somebody outside the mesh is refused by its sidecar."""
    [preference] = [pod for pod in own.pods() if pod.workload == "preference"]
    outbound = own.runtime.listener(preference.name, "outbound")
    proxy = f"http://{outbound.ip}:{outbound.port}"
    answer = requests.get("http://elsewhere.test/", proxies={"http": proxy}, timeout=5)
    assert (answer.status_code, answer.text) == (502, "no such host in the mesh")


def listening(mesh: LocalMesh) -> set[tuple[str, int]]:
    """Return the addresses at which processes of a mesh listen."""
    return {
        tuple(connection.laddr)
        for _, _, process in mesh.runtime.processes()
        for connection in process.net_connections()
        if connection.status == "LISTEN"
    }


def test_processes_listen_on_loopback_alone(own: LocalMesh) -> None:
    assert {ip for ip, _ in listening(own)} == {"127.0.0.1"}


def test_no_web_page_can_drive_a_proxy(own: LocalMesh) -> None:
    """A page in a browser can send to any TCP port of its machine."""
    for ip, port in listening(own):
        for method, path in (
            ("POST", "/quitquitquit"),
            ("POST", "/logging?level=trace"),
            ("GET", "/config_dump"),
        ):
            answer = requests.request(method, f"http://{ip}:{port}{path}", timeout=30)
            assert answer.status_code in (404, 502), (port, path, answer.text)
    assert {pod.state for pod in own.pods()} == {"Running"}
    assert "config" in own.runtime.admin(GATEWAY, "/config_dump")
    assert {stat.S_IMODE(path.stat().st_mode) for path in own.state.glob("pods/*/admin")} == {0o600}


def test_a_long_path_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket's address has room for some 100 bytes; where Linux's way round is lacking, it is said."""
    mesh = LocalMesh(tmp_path / ("x" * 120) / "local", port=0)
    try:
        mesh.up()
        assert requests.get(mesh.url(), timeout=30).ok
        monkeypatch.setattr(local, "FOLDERS", Path("/nowhere"))
        with pytest.raises(MeshError, match=r"^a socket.s path may have 103 bytes: move the project"):
            mesh.url()
    finally:
        mesh.down()


def test_the_shell_that_starts_a_mesh_does_not_disturb_it(
    fresh: LocalMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("http_proxy", "http://127.0.0.1:9"), ("GUNICORN_CMD_ARGS", "--workers 7"),
        ("PREFERENCE_URL", "http://elsewhere.test"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        fresh.up()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    applications = [process for _, container, process in fresh.runtime.processes() if container == "app"]
    assert not any("GUNICORN_CMD_ARGS" in process.environ() for process in applications)
    assert verify(fresh, Target(), 50).passed
    if hasattr(psutil.Process, "rlimit"):  # only Linux tells a process's limits
        limits = {process.rlimit(psutil.RLIMIT_NOFILE)[0] for _, _, process in fresh.runtime.processes()}
        assert limits == {min(hard, 20_000)}


def test_the_gateway_replaces_a_callers_request_id(own: LocalMesh) -> None:
    requests.get(own.url(), headers={"x-request-id": "my-own"}, timeout=30)

    def logged() -> list[str]:
        return [
            line
            for name, line in own.logs("recommendation-v1")
            if '"GET / ' in line and name == "istio-proxy"
        ]

    [line] = wait_for(logged, "the access log")
    assert "my-own" not in line


def test_the_demo_prints_each_command_above_its_output(fresh: LocalMesh) -> None:
    printed: list[str] = []
    stopped: list[str] = []

    def show(line: str) -> None:
        printed.extend(line.splitlines())
        if line == "recommendation-v2 is stopped":
            stopped.extend(status_of(fresh, Target()))

    assert demo(fresh, 150, show, table)  # a tenth of fewer proves nothing
    outputs = {
        "up": "5 pods run; ", "curl": "customer => ", "verify": "routes ", "apply": "virtualservice/",
        "stop": "recommendation-v2 is stopped", "start": "recommendation-v2 runs",
        "bail-out": "virtualservice/",
    }  # fmt: skip
    for command, output in itertools.pairwise(printed):
        if command.startswith("$ make ") and command != "$ make down":
            assert output.startswith(outputs[command.split()[2]]), command
    # What it applied by an absolute path is told by a short one, and what is stopped is told.
    assert (
        "virtualservice/recommendation: all to v1; mirrored 100 % to v2 (no pod) (istio/mirror.yaml)"
        in stopped
    )
    told = [" ".join(line.split()) for line in stopped if line.startswith("recommendation-v2")]
    remedy = "start it with 'make start W=recommendation-v2'"
    assert told == ["recommendation-v2 Stopped -", f"recommendation-v2 is stopped: {remedy}"]


@contextlib.contextmanager
def harness(checkout: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a command of the harness that runs; afterwards it must have left nothing behind."""
    command = [sys.executable, "-m", "harness", *words, "--port", str(free_port())]
    with subprocess.Popen(
        command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        yield started
        assert started.stderr
        assert "Traceback" not in started.stderr.read()
    mesh = LocalMesh(checkout / ".mesh" / "local")
    assert list(mesh.runtime.processes()) == []
    assert not mesh.state.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])  # SIGHUP comes with the terminal's end
def test_a_demo_that_is_interrupted_cleans_up(checkout: Path, number: signal.Signals) -> None:
    with harness(checkout, "demo") as told:
        assert told.stdout
        assert any("== 2." in line for line in told.stdout)
        told.send_signal(number)
        assert "make down" in told.stdout.read()
        assert told.wait() == 128 + number


def test_a_demo_that_nobody_reads_any_more_cleans_up(checkout: Path) -> None:
    with harness(checkout, "demo") as told:
        assert told.stdout
        assert any("== 2." in line for line in told.stdout)
        told.stdout.close()
        assert told.wait() == 141


def test_a_demo_whose_terminal_goes_cleans_up(checkout: Path) -> None:
    """The terminal's programs get a SIGHUP, several at times, and can print nothing more."""
    ours, theirs = os.openpty()
    mesh = LocalMesh(checkout / ".mesh" / "local")
    command = [sys.executable, "-m", "harness", "demo", "--port", str(free_port())]
    with subprocess.Popen(command, cwd=checkout, stdout=theirs, stderr=theirs) as told:
        os.close(theirs)
        shown = b""
        while b"== 2." not in shown:
            shown += os.read(ours, 1024)
        os.close(ours)
        for _ in range(3):
            told.send_signal(signal.SIGHUP)
        assert told.wait() == 128 + signal.SIGHUP
    assert list(mesh.runtime.processes()) == []
    assert not mesh.state.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, *ENDING])
def test_an_up_that_is_interrupted_cleans_up(checkout: Path, number: signal.Signals) -> None:
    mesh = LocalMesh(checkout / ".mesh" / "local")
    with harness(checkout, "up") as up:
        wait_for(lambda: list(mesh.runtime.processes()), "the first process")
        up.send_signal(number)
        assert up.wait() == 128 + number


def test_a_signal_that_the_shell_ignores_ends_nothing(checkout: Path) -> None:
    """As with nohup."""
    mesh = LocalMesh(checkout / ".mesh" / "local")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "harness", "up", "--port", str(free_port())], cwd=checkout
        ) as up:
            wait_for(lambda: list(mesh.runtime.processes()), "the first process")
            up.send_signal(signal.SIGHUP)
            assert up.wait() == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert {pod.state for pod in mesh.pods()} == {"Running"}
