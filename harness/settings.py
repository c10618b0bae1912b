"""What the environment says: it is read here, and nowhere else."""

import contextlib
import os
import sys
from functools import cache
from pathlib import Path

import yaml

from harness import HarnessError

TYPED = "DARK_LAUNCH_"
"""How the variables begin by which make passes on what was typed: ``N=500`` is ``DARK_LAUNCH_N``."""


def typed() -> dict[str, str]:
    """Return what was typed for make, by the names of its variables."""
    return {k.removeprefix(TYPED): v for k, v in os.environ.items() if k.startswith(TYPED) and v}


def namespace() -> str:
    """Return the namespace of the workshop: NAMESPACE, or that of KUBECONFIG's context, or ``tutorial``."""
    return os.environ.get("NAMESPACE") or _of_context(os.environ.get("KUBECONFIG", "")) or "tutorial"


@cache
def _of_context(kubeconfig: str) -> str:
    """Return the namespace of a kubeconfig's current context.

    None is as good as ``default``, which is what Minikube writes and nobody chose.
    """
    with contextlib.suppress(OSError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        config = yaml.safe_load(Path(kubeconfig).read_text())
        [context] = [c["context"] for c in config["contexts"] if c["name"] == config["current-context"]]
        return "" if (found := context.get("namespace", "")) == "default" else str(found)
    return ""


def variable(name: str) -> str:
    """Return what REGISTRY, BASE_IMAGE, STORE_BASE_IMAGE or KUBECTL says, or nothing."""
    return os.environ.get(name, "")


def own_gateway() -> bool:
    """Say whether the workshop is to have an ingress gateway of its own: GATEWAY is ``own``.

    :raises HarnessError: it is something else.
    """
    if (wanted := variable("GATEWAY")) not in ("", "own"):
        raise HarnessError(
            f"GATEWAY={wanted}: only 'own' is known; without it, the cluster's gateway is used"
        )
    return bool(wanted)


def has_screen() -> bool:
    """Say whether somebody sits before a terminal, and a browser can show them something."""
    screen = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(screen) and sys.stdout.isatty()


def in_pod() -> bool:
    """Say whether this runs in a pod of a cluster, which gives its containers the API server's address."""
    return "KUBERNETES_SERVICE_HOST" in os.environ
