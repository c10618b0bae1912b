"""Meshes for tests, each in a folder and on a port of its own."""

import contextlib
import functools
import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import MESHES, copy_project, reset, start

from harness.cluster.mesh import ClusterMesh
from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT

# Tests start hundreds of commands; to compile each time would take half a second of each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mesh", choices=[*MESHES, "cluster"], help="run the end-to-end tests on this mesh alone"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "running_mesh" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("mesh")
        names = [m for m in MESHES if chosen in (None, m)]
        if not chosen and metafunc.definition.get_closest_marker("of_any_mesh"):
            names = ["local"]
        if chosen == "cluster":
            names = [chosen]
        metafunc.parametrize("running_mesh", names, indirect=True, scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what says something of the chosen mesh; begin with the longest files, lest one process be idle."""
    items.sort(key=lambda item: item.path.name not in ("test_readme.py", "test_rooms.py"))
    if config.getoption("mesh") == "cluster":
        there = [item for item in items if _runs_on_a_cluster(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in there])
        items[:] = there
        return
    for item in items:
        if item.get_closest_marker("only_on_cluster"):
            item.add_marker(pytest.mark.skip(reason="needs a cluster with Istio: --mesh cluster"))


def _runs_on_a_cluster(item: Any) -> bool:
    if item.get_closest_marker("only_on_cluster"):
        return True
    return "running_mesh" in item.fixturenames and not item.get_closest_marker("not_on_cluster")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Print the proxies' logs with a failure."""
    report = yield
    mesh = getattr(item, "funcargs", {}).get("mesh")
    if report.when == "call" and report.failed and isinstance(mesh, EnvoyMesh):
        for workload in ("istio-ingressgateway", "preference", "recommendation-v1", "recommendation-v2"):
            with contextlib.suppress(Exception):  # it may be gone, and that is not what failed
                lines = [f"{container} | {line}" for container, line in mesh.logs(workload)]
                report.sections.append((f"last words of {workload}", "\n".join(lines[-15:])))
    return report


@pytest.fixture(scope="session")
def meshes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], EnvoyMesh | ClusterMesh]]:
    """Yield a function that returns a mesh by its name: it starts once, and runs for the whole session."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    with contextlib.ExitStack() as stack:

        @functools.cache
        def running(name: str) -> EnvoyMesh | ClusterMesh:
            mesh: EnvoyMesh | ClusterMesh
            if name == "cluster":
                patch = stack.enter_context(pytest.MonkeyPatch.context())
                patch.setenv("NAMESPACE", f"dark-launch-tests-{worker}")
                patch.setenv("GATEWAY", "own")
                mesh = ClusterMesh()
            else:
                # Containers always have the same folder, so that a run cleans up after one that was killed.
                folder = tmp_path_factory.mktemp(name) if name == "local" else ROOT / ".mesh"
                asked_for = request.config.getoption("mesh") == name
                mesh = start(name, folder / f"tests-{worker}", asked_for=asked_for)
            stack.callback(mesh.close)
            stack.callback(mesh.down)
            mesh.up()
            if isinstance(mesh, ClusterMesh):
                mesh.installation.images.bring("tests-shadow")
            return mesh

        yield running


@pytest.fixture(scope="session")
def running_mesh(
    request: pytest.FixtureRequest, meshes: Callable[[str], EnvoyMesh | ClusterMesh]
) -> EnvoyMesh | ClusterMesh:
    """Return a mesh that runs, in whatever state the last test left it."""
    name: str = request.param
    return meshes(name)


@pytest.fixture
def mesh(running_mesh: EnvoyMesh | ClusterMesh) -> EnvoyMesh | ClusterMesh:
    """Return the running mesh in its first state: everything runs, and v1 answers."""
    reset(running_mesh)
    return running_mesh


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMesh]:
    """Yield the local mesh of a checkout, in whatever state the last test of the same file left it."""
    folder = copy_project(tmp_path_factory.mktemp("shared") / "checkout")
    mesh = LocalMesh(folder / ".mesh" / "local", port=0)
    yield mesh
    mesh.down()


@pytest.fixture
def own(shared: LocalMesh) -> LocalMesh:
    """Return a local mesh that a test may break: it runs, in its first state."""
    shared.up()
    shared.reset()
    return shared


@pytest.fixture(scope="session")
def underneath(meshes: Callable[[str], EnvoyMesh | ClusterMesh]) -> LocalMesh:
    """Return the local mesh that stands in for the cluster."""
    mesh = meshes("local")
    assert isinstance(mesh, LocalMesh)
    return mesh


@pytest.fixture(scope="session")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a command that stands in for kubectl."""
    tests, folder = ROOT / "tests", tmp_path_factory.mktemp("kubectl")
    command, where = folder / "kubectl", str(folder / "socket")
    client = shlex.join([sys.executable, "-I", "-S", str(tests / "kubectl_client.py"), where])
    command.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
    command.chmod(0o755)
    serving = [sys.executable, str(tests / "kubectl_double.py"), where]
    with subprocess.Popen(serving, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as double:
        assert double.stdout
        assert double.stdout.readline() == b"ready\n"
        yield command
        double.terminate()


@pytest.fixture
def cluster(
    underneath: LocalMesh, kubectl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ClusterMesh]:
    """Yield a cluster to which everything was deployed."""
    underneath.reset()
    own = tmp_path / "kubectl"  # what is remembered of a server goes by the command
    own.symlink_to(kubectl)
    monkeypatch.setenv("KUBECTL", str(own))
    monkeypatch.setenv("MESH_STATE", str(underneath.state))
    monkeypatch.setattr(ClusterMesh, "quiet", 2.0)
    mesh = ClusterMesh()
    yield mesh
    mesh.close()


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[[str | list[dict[str, Any]]], Path]:
    """Return a function that writes a manifest and returns its path."""
    numbers = itertools.count()

    def write(content: str | list[dict[str, Any]]) -> Path:
        path = tmp_path / f"manifest-{next(numbers)}.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump_all(content))
        return path

    return write


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """Yield a copy of the project's files, as a clone has them, in which commands can be run."""
    copy = copy_project(tmp_path / "checkout")
    yield copy
    LocalMesh(copy / ".mesh" / "local").down()
