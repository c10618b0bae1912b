"""What the container mesh does with images, containers and the engine."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from helpers import containers, run, start, wait_for

from harness.cluster.mesh import ClusterMesh
from harness.manifests.podspec import quantity
from harness.meshes.containers import ContainerMesh
from harness.meshes.engine import LABEL
from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.images import image, version
from harness.meshes.mesh import ROOT
from harness.proof.target import Target
from harness.proof.watch import verify
from harness.rendering.bootstrap import READINESS


@pytest.fixture
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ContainerMesh]:
    """Yield a mesh that is not running."""
    mesh = containers(request, tmp_path / "state" / "containers")
    yield mesh
    mesh.down()
    mesh.close()


@pytest.fixture(scope="module")
def running(meshes: Callable[[str], EnvoyMesh | ClusterMesh]) -> ContainerMesh:
    """Return a mesh that runs, for tests that only look at it."""
    mesh = meshes("containers")
    assert isinstance(mesh, ContainerMesh)
    mesh.reset()
    return mesh


def left(mesh: ContainerMesh) -> list[str]:
    """Return the names of all that the engine holds of a mesh."""
    filters = {"label": f"{LABEL}.mesh={mesh.runtime.id}"}
    return [
        *(
            container.name
            for container in mesh.runtime.engine.containers.list(
                all=True, filters=filters, ignore_removed=True
            )
        ),
        *(network.name for network in mesh.runtime.engine.networks.list(filters=filters)),
        *(volume.name for volume in mesh.runtime.engine.volumes.list(filters=filters)),
    ]


def test_containers_run_locked_in_as_a_cluster_would_run_them(running: ContainerMesh) -> None:
    for pod, name, container in running.runtime.containers():
        settings = container.attrs["HostConfig"]
        assert settings["ReadonlyRootfs"], (pod, name)
        assert settings["CapDrop"] == ["ALL"]
        assert settings["Memory"] > 0
        assert settings["NanoCpus"] > 0
        # The store's volumes are the only places where anybody may write.
        paths = "/srv/x /opt/x /etc/x" + ("" if pod.startswith("store-") else " /tmp/x")
        code = (
            "id -u; id -g; grep -E 'CapEff|NoNewPrivs' /proc/self/status;"
            f"for path in {paths}; do touch $path 2>/dev/null && echo $path is writable; done"
        )
        _, output = container.exec_run(["sh", "-c", code])
        found = output.decode().split()
        assert found == ["54321", "0", "CapEff:", "0" * 16, "NoNewPrivs:", "1"], (pod, name)


def test_an_application_has_the_limits_of_its_manifest(running: ContainerMesh) -> None:
    [app] = [c for pod, name, c in running.runtime.containers() if (name, pod[:8]) == ("app", "customer")]
    limits = running.workload("customer").container.resources.limits
    assert app.attrs["HostConfig"]["Memory"] == quantity(str(limits["memory"])) == 192 * 1024 * 1024
    assert app.attrs["HostConfig"]["NanoCpus"] == quantity(str(limits["cpu"])) * 1e9 == 500_000_000


def test_images_name_what_they_are_and_whom_they_run_as(running: ContainerMesh) -> None:
    for pod, name, container in running.runtime.containers():
        config = container.image.attrs["Config"]
        assert config["User"] == "10001:0"
        assert config["Labels"]["org.opencontainers.image.version"] == version()
        assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
        title = config["Labels"]["org.opencontainers.image.title"]
        assert title == ("envoy" if name == "istio-proxy" else title)
        if pod.startswith("recommendation-v2") and name == "app":
            assert title == "recommendation/v2"


def test_locusts_image_runs_locked_in_as_a_cluster_would_run_it(own: ContainerMesh, tmp_path: Path) -> None:
    image("loadtest").stage(tmp_path)
    built, _ = own.runtime.engine.images.build(path=str(tmp_path), tag=image("loadtest").tag, forcerm=True)
    output = own.runtime.engine.containers.run(
        built.id, ["python", "-m", "locust", "--locustfile", "loadtest/locustfile.py", "--list"], remove=True,
        read_only=True, cap_drop=["ALL"], network_mode="none", user="54321:0", tmpfs={"/tmp": ""},  # noqa: S108
    )  # fmt: skip
    assert {"Browser", "Sender"} <= set(output.decode().split())


def test_ports_are_published_on_loopback_alone(running: ContainerMesh) -> None:
    bindings = [
        b for _, _, c in running.runtime.containers() for bound in c.ports.values() for b in bound or ()
    ]
    assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}


def test_no_web_page_can_drive_a_proxy(running: ContainerMesh) -> None:
    """A page in a browser can send to any port that is published on its machine."""
    bindings = [
        b for _, _, c in running.runtime.containers() for bound in c.ports.values() for b in bound or ()
    ]
    posts = (
        "/quitquitquit",
        "/stats",
        "/stats/recentlookups/enable",
        "/clusters",
        READINESS,
        "/reset_counters",
    )
    for port in [binding["HostPort"] for binding in bindings]:
        for method, path in (("GET", "/config_dump"), *(("POST", path) for path in posts)):
            answer = requests.request(method, f"http://127.0.0.1:{port}{path}", timeout=30)
            assert answer.status_code == 404, (port, method, path, answer.text)
    assert {pod.state for pod in running.pods()} == {"Running"}


def test_meshes_do_not_collide_and_down_leaves_nothing_even_of_a_killed_harness(
    running: ContainerMesh, own: ContainerMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; from pathlib import Path; from harness.meshes.containers import ContainerMesh;"
        "ContainerMesh(Path(sys.argv[1]), 0).up()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(own.state)], cwd=ROOT) as harness:
        wait_for(lambda: list(own.runtime.containers()), "the first container")
        harness.kill()
    monkeypatch.setattr(own.runtime.engine.api, "build", lambda **_: pytest.fail("an image was built again"))
    own.up()
    own.apply(ROOT / "istio" / "mirror.yaml")
    assert verify(own, Target(), 50).passed
    assert verify(running, Target(), 50).passed
    assert left(own)
    own.down()
    assert left(own) == []
    assert not own.state.parent.exists()
    assert verify(running, Target(), 50).passed


@pytest.mark.usefixtures("own")
def test_a_build_failure_shows_the_builders_last_lines(checkout: Path) -> None:
    dockerfile = checkout / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text().replace("WORKDIR /srv", "RUN echo the last straw && false"))
    failed = run(checkout, sys.executable, "-m", "harness", "up", "--mesh", "containers")
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"Error: the image customer:{version()} does not build: ")
    assert "\n  the last straw\n" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (checkout / ".mesh" / "containers").exists()


@pytest.mark.parametrize("command", ["up", "status", "verify", "demo", "down"])
def test_without_an_engine_every_command_says_what_to_do(checkout: Path, command: str) -> None:
    failed = run(
        checkout, sys.executable, "-m", "harness", command, "--mesh", "containers", DOCKER_HOST="tcp://127.0.0.1:1"
    )  # fmt: skip
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.startswith("Error: no container engine answers: install and start Docker")


def test_the_image_builds_from_what_the_ignore_file_lets_through(running: ContainerMesh) -> None:
    [app] = [
        c
        for pod, name, c in running.runtime.containers()
        if name == "app" and pod.startswith("recommendation-v1")
    ]
    code = "import json, os; print(json.dumps([f for _, _, names in os.walk('/srv') for f in names]))"
    files = json.loads(app.exec_run(["python3", "-c", code]).output)
    expected = {"app.py", *(path.name for path in (ROOT / "common").glob("*.py"))}
    assert set(files) == expected


def test_quantities_are_kubernetes() -> None:
    assert quantity("2") == 2
    assert quantity("250m") == 0.25
    assert quantity("1Gi") == 1024**3


def test_a_fixture_that_is_asked_for_by_name_does_not_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    monkeypatch.delenv("CI", raising=False)

    def started(asked_for: bool) -> EnvoyMesh:
        return start("containers", tmp_path, asked_for=asked_for)

    with pytest.raises(pytest.skip.Exception, match="MESH=containers: no container engine answers"):
        started(asked_for=False)
    with pytest.raises(Exception, match=r"^no container engine answers"):
        started(asked_for=True)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(Exception, match=r"^no container engine answers"):
        started(asked_for=False)
