"""A bundle: one archive from which a room without network installs. `make install BUNDLE=` unpacks it."""

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from harness.cluster import deploy
from harness.cluster.platforms import tool
from harness.meshes import engine
from harness.meshes.images import MACHINE, image
from harness.meshes.mesh import ROOT, STATE, MeshError, Progress, quietly

GROUPS = ("harness", "loadtest")
"""The lock files of what the steps need; those for tests are no part of a bundle."""
IMAGES = (*deploy.images(), "envoy")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


class Machine(NamedTuple):
    """A kind of machine, as markers of requirements (PEP 508) and tags of wheels (PEP 600) name it."""

    title: str
    sys_platform: str
    platform_system: str
    platform_machine: str
    tags: tuple[str, ...]
    pythons: tuple[str, ...] = PYTHONS


def _linux(machine: str) -> Machine:
    # pip takes each tag as it stands. Envoy's wheel needs the newest, the C library of 2020.
    tags = ("manylinux2014", *(f"manylinux_2_{minor}" for minor in range(5, 32)))
    return Machine(f"Linux {machine}", "linux", "Linux", machine, tuple(f"{tag}_{machine}" for tag in tags))


MACHINES = (
    _linux("x86_64"),
    _linux("aarch64"),
    Machine(
        "macOS arm64", "darwin", "Darwin", "arm64", ("macosx_15_0_arm64",), PYTHONS[1:]
    ),  # 3.11: no gevent
)


def requirements(lock: str, machine: Machine, python: str) -> Iterator[str]:
    """Yield what of a lock file such a machine needs, without markers, which pip reads for its own machine.

    :param lock: its text, as uv writes it, with hashes.
    :param python: as in ``3.12``.
    """
    where = {  # the rest is as on this machine: CPython, on a POSIX system
        "platform_machine": machine.platform_machine,
        "platform_system": machine.platform_system,
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": machine.sys_platform,
    }
    for line in re.sub(r"\\\n\s*", "", lock).splitlines():
        if line and not line.lstrip().startswith("#"):
            written, *hashes = line.split(" --hash=")
            needed = Requirement(written)
            if needed.marker is None or needed.marker.evaluate(where):
                yield " --hash=".join([f"{needed.name}{needed.specifier}", *hashes])


def make(
    path: Path,
    machines: Iterable[Machine] = MACHINES,
    images: Iterable[str] = IMAGES,
    tell: Progress = quietly,
) -> list[str]:
    """Write a bundle; return a line for each thing that it lacks.

    :raises MeshError: there are no wheels at all.
    """
    if not find_spec("pip"):
        raise MeshError("this .venv has no pip: rm -r .venv .bundle, and again")
    if not path.parent.is_dir():
        raise MeshError(f"there is no folder {path.parent} to write {path.name} to")
    STATE.mkdir(exist_ok=True)
    # Not in /tmp: it may be memory, and a Docker from a snap does not see it.
    with tempfile.TemporaryDirectory(prefix="bundle-", dir=STATE) as name:
        folder = Path(name)
        for part in ("requirements", "wheels", "images"):
            (folder / part).mkdir()
        for group in GROUPS:
            shutil.copy(ROOT / "requirements" / f"{group}.txt", folder / "requirements")
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        (folder / "COMMIT").write_text(commit.stdout)
        lacks = _wheels(machines, folder, tell)
        if images:
            try:
                save(images, folder / "images", tell)
            except MeshError as error:
                lacks.append(f"no images: {error}")
        tell(f"packing {path.name}: a minute")
        _pack(folder, path)
    return lacks


def _wheels(machines: Iterable[Machine], folder: Path, tell: Progress) -> list[str]:
    """Download the wheels of a bundle's lock files; return a line for each set that cannot be had."""
    lacks, locks = [], [path.read_text() for path in (folder / "requirements").iterdir()]
    for machine in machines:
        for python in machine.pythons:
            tell(f"wheels for Python {python} on {machine.title}")
            lines = dict.fromkeys(line for lock in locks for line in requirements(lock, machine, python))
            try:
                _download(lines, machine, python, folder / "wheels")
            except MeshError as error:
                lacks.append(str(error))
    if not list((folder / "wheels").iterdir()):
        raise MeshError(lacks[-1])
    return lacks


def _download(lines: Iterable[str], machine: Machine, python: str, wheels: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
         "--require-hashes", "--no-deps", "--only-binary=:all:", "--implementation=cp",
         f"--python-version={python}", *(f"--platform={tag}" for tag in machine.tags),
         f"--dest={wheels}", "--requirement=/dev/stdin"],
        input="\n".join(lines), capture_output=True, text=True,
    )  # fmt: skip
    if ran.returncode:
        why = ran.stderr.strip().splitlines() or ["it says nothing"]
        raise MeshError(f"no wheels for Python {python} on {machine.title}: pip: {why[-1]}")


def save(images: Iterable[str], folder: Path, tell: Progress) -> None:
    """Save images in one archive, of this machine's architecture, and beside it what they were built from.

    :raises MeshError: no engine answers, or it cannot build them.
    """
    program = tool("docker", "podman")
    told = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    several = ["--multi-image-archive"] if "podman" in told.lower() else []  # it may be called docker
    saved = [image(name) for name in images]
    with contextlib.closing(engine.connect()) as client:
        for wanted in saved:
            found = client.images.get(engine.Images(client, tell).id(wanted.name))
            found.tag(*wanted.tag.split(":"))
    archive = folder / f"{MACHINE}.tar"
    tell("saving the images")
    words = [program, "save", *several, f"--output={archive}", *(wanted.tag for wanted in saved)]
    ran = subprocess.run(words, capture_output=True, text=True)
    if ran.returncode:
        raise MeshError(f"{program} save: {ran.stderr.strip()}")
    archive.with_suffix(".json").write_text(json.dumps([wanted.sources_key() for wanted in saved]))


def _pack(folder: Path, archive: Path) -> None:
    """Write a folder's checksums into it, and all of it into an archive."""
    lines = []
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder)}\n")
    (folder / "SHA256SUMS").write_text("".join(lines))
    unfinished = archive.with_name(f".{archive.name}.part")
    try:
        with tarfile.open(unfinished, "w:gz", compresslevel=1) as tar:
            tar.add(folder, arcname=".")
        unfinished.rename(archive)
    finally:
        unfinished.unlink(missing_ok=True)
