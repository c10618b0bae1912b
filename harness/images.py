"""What all images have in common: what they are built on, and their one tag."""

import hashlib
import os
import re
import tomllib

from harness.mesh import ROOT


def base_image() -> str:
    """Return the image that all others are built on: BASE_IMAGE, or what the Dockerfile says."""
    default = re.search(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert default
    return os.environ.get("BASE_IMAGE") or default[1]


def digest(service: str) -> str:
    """Return what tells one state of a service's image from another: a hash of all that it is built from."""
    found = hashlib.sha256(base_image().encode())
    files = [ROOT / "Dockerfile", ROOT / "requirements" / "services.txt", *sorted(ROOT.glob("common/*.py"))]
    for path in [*files, ROOT / service / "app.py"]:
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def version() -> str:
    """Return the project's version, which is the images' tag."""
    project: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return project
