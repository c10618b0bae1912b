"""What all images have in common: what they are built on, and their one tag."""

import os
import re
import tomllib

from harness.mesh import ROOT


def base_image() -> str:
    """Return the image that all others are built on: BASE_IMAGE, or what the Dockerfile says."""
    default = re.search(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert default
    return os.environ.get("BASE_IMAGE") or default[1]


def version() -> str:
    """Return the project's version, which is the images' tag."""
    project: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return project
