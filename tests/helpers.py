"""What several test files need: meshes, manifests, commands, and patience."""

import compileall
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import yaml

from harness.cluster.deploy import CLUSTER_ONLY, OWN_GATEWAY
from harness.cluster.mesh import ClusterMesh
from harness.cluster.preflight import OURS, PROJECT
from harness.manifests.base import Object
from harness.manifests.read import LAST_APPLIED, documents, documents_in, to_objects
from harness.meshes.containers import ContainerMesh
from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ISTIO, ROOT, WITH_STORE, MeshError
from harness.meshes.pods import workload_of
from harness.meshes.scene import Scene, key
from harness.proof.report import WIDTH

MESHES: dict[str, type[LocalMesh] | type[ContainerMesh]] = {"local": LocalMesh, "containers": ContainerMesh}


def start(name: str, state: Path, *, asked_for: bool) -> EnvoyMesh:
    """Return a mesh; where it cannot be had, fail if it was asked for by name or under CI, else skip."""
    try:
        return MESHES[name](state, port=0)
    except MeshError as error:
        if asked_for or os.environ.get("CI"):
            raise
        pytest.skip(f"MESH={name}: {error}")


def containers(request: pytest.FixtureRequest, state: Path) -> ContainerMesh:
    """Return a container mesh that is not running."""
    asked_for = request.config.getoption("mesh") == "containers"
    mesh = start("containers", state, asked_for=asked_for)
    assert isinstance(mesh, ContainerMesh)
    return mesh


def here_only(*sets: Any) -> list[Any]:
    """Return sets of parameters by which a cluster would show nothing new: it takes its time."""
    given = [each if isinstance(each, tuple) else (each,) for each in sets]
    return [pytest.param(*each, marks=pytest.mark.not_on_cluster) for each in given]


def reset(mesh: EnvoyMesh | ClusterMesh) -> None:
    """Return a running mesh to its first state: everything runs, and v1 answers."""
    if isinstance(mesh, EnvoyMesh):
        mesh.reset()
        return
    first = {}
    for path in (*WITH_STORE, *ISTIO, *CLUSTER_ONLY, OWN_GATEWAY):
        first |= {(d["kind"], d["metadata"]["name"]): d for _, d in documents(path)}
    there = {}
    for found in mesh.kubectl.items(mesh.installation.kinds(), f"--selector={OURS}={PROJECT}"):
        name = (found["kind"], found["metadata"]["name"])
        there[name] = found
        if name not in first:
            mesh.kubectl.run("delete", "--filename=-", given=json.dumps(found))
    sent = zip(first.items(), mesh.installation.render(first.values(), keep_images=True), strict=True)
    changed = [given for (name, given), document in sent if not _is_as_sent(document, there.get(name, {}))]
    if changed:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump_all(changed, file)
            mesh.apply(Path(file.name))


def _is_as_sent(document: dict[str, Any], found: dict[str, Any]) -> bool:
    """Say whether an object is as it was applied, and nobody changed it since."""
    sent = found.get("metadata", {}).get("annotations", {}).get(LAST_APPLIED, "{}")

    def holds(wanted: Any, given: Any) -> bool:
        if isinstance(wanted, dict):
            return isinstance(given, dict) and all(holds(v, given.get(k)) for k, v in wanted.items())
        if isinstance(wanted, list):
            return isinstance(given, list) and len(wanted) == len(given) and all(map(holds, wanted, given))
        return bool(wanted == given)

    same = json.loads(sent).get("spec") == document.get("spec")
    return same and document.get("data") == found.get("data") and holds(document, found)


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
    del container["envFrom"]  # it keeps nothing
    del container["lifecycle"]  # and has less time to end than v1 sleeps before
    container["env"] = [{"name": n, "value": v} for n, v in {"VERSION": version, **environment}.items()]
    return [deployment]


def without_store() -> list[dict[str, Any]]:
    """Return Secrets by which no version keeps anything."""
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"recommendation-{version}"},
         "stringData": {"DATABASE_URL": ""}}
        for version in ("v1", "v2")
    ]  # fmt: skip


def promising(mesh: EnvoyMesh, documents: list[dict[str, Any]]) -> EnvoyMesh:
    """Return a mesh that claims that other routes are applied than those that are."""

    class Promising:
        def __getattr__(self, name: str) -> Any:
            return getattr(mesh, name)

        def scene(self, *arguments: Any) -> Scene:
            found = mesh.scene(*arguments)
            kept = [
                o
                for o in found.objects
                if key(o)[::2] not in [(d["kind"], d["metadata"]["name"]) for d in documents]
            ]
            return replace(found, objects=(*kept, *documents))

    return cast(EnvoyMesh, Promising())


def wait_for(condition: Callable[[], Any], what: str, deadline: float = 20) -> Any:
    """Return the first true value of ``condition``; fail after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come in {deadline} s"
        time.sleep(0.02)
    return value


def copy_project(target: Path) -> Path:
    """Copy the project's files into a folder, as a clone has them, and return it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    compileall.compile_dir(ROOT / "harness", quiet=1)  # or else each copy's first command would
    for cache in (ROOT / "harness").rglob("__pycache__"):
        shutil.copytree(cache, target / cache.relative_to(ROOT), dirs_exist_ok=True)
    return target


def run(checkout: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a checkout as a user would: not as a part of the `make test` that runs us."""
    ours = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "DARK_LAUNCH_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL,
        env={**inherited, **environment},
    )  # fmt: skip


def parse(text: str, source: str) -> list[Object]:
    """Return the objects of a manifest's text; ``source`` names it in errors."""
    return [found for _, found in to_objects(documents_in(text, source))]


def fits(text: str) -> bool:
    """Say whether there is text, and no line of it is wider than a terminal."""
    too_long = [line for line in text.splitlines() if len(line) > WIDTH]
    assert not too_long, "\n".join(too_long)
    return text != ""


def claims(ran: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return the claims that were printed: statement → "ok" or "FAIL"."""
    lines = [line.split("  ") for line in ran.stdout.splitlines() if line.startswith(("  ok  ", "  FAIL  "))]
    return {line[3] if line[2] == "" else line[2]: line[1] for line in lines}


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


def kill(mesh: EnvoyMesh, workload: str, only: str | None = None) -> None:
    """Kill all processes of a workload at once, or ``only`` one container's, behind the harness's back."""

    def doomed(pod: str, container: str) -> bool:
        return workload in (workload_of(pod), "everything") and only in (None, container)

    if isinstance(mesh, ContainerMesh):
        for pod, name, container in mesh.runtime.containers():
            if doomed(pod, name):
                container.kill()
    elif isinstance(mesh, LocalMesh):
        processes = [process for pod, name, process in mesh.runtime.processes() if doomed(pod, name)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)
