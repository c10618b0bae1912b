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


ENVOY = "envoy"
"""The sidecar's image, which no service's folder holds."""


def dockerfile(service: str) -> str:
    """Return what an image is built by."""
    return "harness/Dockerfile" if service == ENVOY else "Dockerfile"


def digest(service: str) -> str:
    """Return what tells one state of an image from another: a hash of all that it is built from."""
    lock = "envoy" if service == ENVOY else "services"
    files = [ROOT / dockerfile(service), ROOT / "requirements" / f"{lock}.txt"]
    if service != ENVOY:
        files += [*sorted(ROOT.glob("common/*.py")), ROOT / service / "app.py"]
    found = hashlib.sha256(f"{base_image()} {service} {version()}".encode())
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def version() -> str:
    """Return the project's version, which is the images' tag."""
    project: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return project
