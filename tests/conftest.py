"""Meshes for tests, each in a folder and on a port of its own."""

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from harness.cluster import ClusterMesh
from harness.containers import ContainerMesh
from harness.controlplane import EnvoyMesh, workload_of
from harness.local import LocalMesh
from harness.mesh import ROOT, MeshError

MESHES: dict[str, type[EnvoyMesh]] = {"local": LocalMesh, "containers": ContainerMesh}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mesh", choices=list(MESHES), help="run the end-to-end tests on this mesh alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "running_mesh" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("mesh")
        metafunc.parametrize(
            "running_mesh", [chosen] if chosen else list(MESHES), indirect=True, scope="session"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Print the proxies' logs with a failure."""
    report = yield
    mesh = getattr(item, "funcargs", {}).get("mesh")
    if report.when == "call" and report.failed and isinstance(mesh, EnvoyMesh):
        for workload in ("istio-ingressgateway", "preference", "recommendation-v1", "recommendation-v2"):
            lines = [f"{container} | {line}" for container, line in mesh.logs(workload)]
            report.sections.append((f"last words of {workload}", "\n".join(lines[-15:])))
    return report


def start(name: str, state: Path, *, asked_for: bool) -> EnvoyMesh:
    """Return a mesh; where it cannot be had, fail if it was asked for by name or under CI, else skip."""
    try:
        return MESHES[name](state, port=0)
    except MeshError as error:
        if asked_for or os.environ.get("CI"):
            raise
        pytest.skip(f"MESH={name}: {error}")


@pytest.fixture(scope="session")
def running_mesh(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EnvoyMesh]:
    """Yield a mesh that runs for the whole session."""
    name: str = request.param
    state = tmp_path_factory.mktemp(name) / "mesh"
    if name == "containers":
        # The same at every run, so that a run cleans up after one that was killed.
        state = ROOT / ".mesh" / "tests"
    mesh = start(name, state, asked_for=request.config.getoption("mesh") == name)
    try:
        mesh.up()
        yield mesh
    finally:
        mesh.down()
        mesh.close()


@pytest.fixture
def mesh(running_mesh: EnvoyMesh) -> EnvoyMesh:
    """Return the running mesh in its first state: everything runs, and v1 answers."""
    running_mesh.reset()
    return running_mesh


@pytest.fixture(scope="module")
def underneath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMesh]:
    """Yield the local mesh that stands in for the cluster."""
    mesh = LocalMesh(tmp_path_factory.mktemp("cluster") / "mesh", port=0)
    try:
        mesh.up()
        yield mesh
    finally:
        mesh.down()


@pytest.fixture
def cluster(underneath: LocalMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterMesh]:
    """Yield a cluster to which everything was deployed."""
    underneath.reset()
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/kubectl_double.py "$@"\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("KUBECTL", str(kubectl))
    monkeypatch.setenv("MESH_STATE", str(underneath.state))
    monkeypatch.setattr(ClusterMesh, "quiet", 0.5)
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


def route(*, to: str = "v1", **fields: Any) -> list[dict[str, Any]]:
    """Return a VirtualService for recommendation with one route."""
    http = {"route": [{"destination": {"host": "recommendation", "subset": to}}], **fields}
    spec = {"hosts": ["recommendation"], "http": [http]}
    return [virtual_service(spec)]


def virtual_service(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a VirtualService called recommendation."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "recommendation"},
        "spec": spec,
    }


def to(subset: str, weight: int | None = None) -> dict[str, Any]:
    """Return a route's destination."""
    share = {} if weight is None else {"weight": weight}
    return {"destination": {"host": "recommendation", "subset": subset}, **share}


def shadow(version: str, **environment: str) -> list[dict[str, Any]]:
    """Return the Deployment of ``version`` that runs tests/shadow/app.py."""
    documents = yaml.safe_load_all((ROOT / "recommendation" / "kubernetes.yaml").read_text())
    deployment: dict[str, Any] = next(d for d in documents if d["kind"] == "Deployment")
    labels = {"app": "recommendation", "version": version}
    deployment["metadata"] = {"name": f"recommendation-{version}", "labels": labels}
    deployment["spec"]["selector"]["matchLabels"] = labels
    template = deployment["spec"]["template"]
    template["metadata"]["labels"] = labels
    template["spec"]["terminationGracePeriodSeconds"] = 1
    container = template["spec"]["containers"][0]
    container["image"] = "tests-shadow"
    container["env"] = [{"name": n, "value": v} for n, v in {"VERSION": version, **environment}.items()]
    return [deployment]


def wait_for(condition: Callable[[], Any], what: str, deadline: float = 20) -> Any:
    """Return the first true value of ``condition``; fail after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come in {deadline} s"
        time.sleep(0.02)
    return value


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """Yield a copy of the project's files, as a clone has them, in which commands can be run."""
    copy = tmp_path / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    yield copy
    LocalMesh(copy / ".mesh" / "local").down()


def run(checkout: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a checkout as a user would: not as a part of the `make test` that runs us."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL,
        env={**inherited, **environment},
    )  # fmt: skip


def claims(ran: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return the claims that were printed: statement → "ok" or "FAIL"."""
    lines = [line.split("  ") for line in ran.stdout.splitlines() if line.startswith(("  ok  ", "  FAIL  "))]
    return {line[3] if line[2] == "" else line[2]: line[1] for line in lines}


def kill(mesh: EnvoyMesh, workload: str) -> None:
    """Kill all processes of a workload at once, behind the harness's back."""

    def doomed(pod: str) -> bool:
        return workload in (workload_of(pod), "everything")

    if isinstance(mesh, ContainerMesh):
        for pod, _, container in mesh.containers():
            if doomed(pod):
                container.kill()
    elif isinstance(mesh, LocalMesh):
        processes = [process for pod, _, process in mesh.processes() if doomed(pod)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)
