"""Images: what each is called, and what it is built from."""

import hashlib
import json
import platform
import re
import shutil
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import settings
from harness.meshes.mesh import ROOT

BUNDLE = ROOT / ".bundle"
"""What `make install` unpacked of a bundle, if it did: wheels, lock files and images."""
MACHINE = "arm64" if platform.machine() in ("arm64", "aarch64") else "amd64"
"""The architecture of this machine, and so of its containers, as images call it."""


def version() -> str:
    """Return the project's version, which is the images' tag."""
    project: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return project


@dataclass(frozen=True)
class Image:
    """An image of the project's; the paths are those of files in the project."""

    name: str
    folder: str
    dockerfile: Path
    sources: tuple[Path, ...]

    @property
    def is_service(self) -> bool:
        """Whether it is one of the services, rather than the store or a tool."""
        return (ROOT / self.folder / "app.py").exists()

    @property
    def tag(self) -> str:
        """Name and tag, as in ``customer:0.1.0``."""
        return f"{self.name}:{version()}"

    def reference(self, registry: str) -> str:
        """Return what pods call it: its tag, or a name in a registry, of which nodes keep what they pulled.

        There the tag must change whenever the image does.
        """
        return f"{registry.rstrip('/')}/{self.tag}-{self.digest()}" if registry else self.tag

    def other_base(self) -> str:
        """Return what it is to be built on instead of what its Dockerfile says; nothing if nobody asks."""
        is_store = self.name == "recommendation-store"  # which is built on PostgreSQL instead of Python
        return settings.variable("STORE_BASE_IMAGE" if is_store else "BASE_IMAGE")

    def arguments(self) -> dict[str, str]:
        """Return the build's arguments.

        What it is built on by default its own Dockerfile says, or else the services'.
        """
        files = [path.read_text() for path in (self.dockerfile, ROOT / "Dockerfile")]
        base, *_ = re.findall(r"^ARG BASE=(\S+)$", "\n".join(files), re.MULTILINE)
        return {"BASE": self.other_base() or base, "SERVICE": self.folder, "VERSION": version()}

    def digest(self) -> str:
        """Return what tells one state of the image from another: a hash of all that it is built from."""
        return self._hash(" ".join(self.arguments().values()))

    def sources_key(self) -> str:
        """Return what tells one state of its files from another, on whatever base it is built."""
        return f"{self.name}-{self._hash(version())}"

    def _hash(self, more: str) -> str:
        found = hashlib.sha256(more.encode())
        for path in (self.dockerfile, *self.sources):
            found.update(path.read_bytes())
        return found.hexdigest()[:12]

    def archive(self) -> Path | None:
        """Return the archive of an installed bundle that has this image, built from the same files."""
        archive = BUNDLE / "images" / f"{MACHINE}.tar"
        index = archive.with_suffix(".json")
        return archive if index.exists() and self.sources_key() in json.loads(index.read_text()) else None

    def stage(self, target: Path) -> None:
        """Copy what it is built from into a folder, with the build's arguments filled in.

        Then every builder needs only a folder: their ways to pass build arguments differ.
        """
        dockerfile = self.dockerfile.read_text()
        for name, value in self.arguments().items():
            dockerfile = re.sub(rf"^ARG {name}(=.*)?$", f"ARG {name}={value}", dockerfile, flags=re.MULTILINE)
        for path in self.sources:
            copy = target / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        (target / "Dockerfile").write_text(dockerfile)


def image(name: str) -> Image:
    """Return the image of that name: ``envoy``, ``loadtest``, or a service's, which its folder names.

    ``recommendation-v2`` is built from recommendation/v2. A folder may have a Dockerfile of its own.
    """
    locks = ROOT / "requirements"
    if name == "envoy":
        return Image(name, "harness", ROOT / "harness" / "Dockerfile", (locks / "envoy.txt",))
    if name == "loadtest":
        files = _files([*(ROOT / "harness").rglob("*"), *(ROOT / name).glob("*.py")])
        code = [path for path in files if "__pycache__" not in path.parts]
        return Image(name, name, ROOT / name / "Dockerfile", (locks / "loadtest.txt", *code))
    folder = name.replace("-", "/")
    if (own := ROOT / folder / "Dockerfile").exists():
        # As .dockerignore has it, a manifest is no part of an image.
        files = [path for path in _files(own.parent.iterdir()) if path.suffix != ".yaml" and path != own]
        return Image(name, folder, own, tuple(files))
    code = [*_files((ROOT / "common").glob("*.py")), ROOT / folder / "app.py"]
    return Image(name, folder, ROOT / "Dockerfile", (locks / "services.txt", *code))


def _files(paths: Iterable[Path]) -> list[Path]:
    """Return those of paths that are files of the project's: macOS leaves .DS_Store and ._app.py there."""
    return sorted(path for path in paths if path.is_file() and not path.name.startswith("."))
