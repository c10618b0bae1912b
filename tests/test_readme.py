"""The README's commands do what the README says."""

import doctest
import re
import sys
from pathlib import Path

import pytest
from conftest import run
from test_local import free_port

from harness.mesh import ROOT

README = (ROOT / "README.md").read_text()


def commands() -> list[tuple[str, str]]:
    """Return the (command, expected output) pairs of the README's console blocks, in order."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        for line in block.splitlines(keepends=True):
            if line.startswith("$ "):
                found.append((line[2:].strip(), ""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + line)
    return found


@pytest.mark.timeout(300)
def test_every_command_prints_what_the_readme_says(checkout: Path, tmp_path: Path) -> None:
    port, checker = str(free_port()), doctest.OutputChecker()
    (tmp_path / ".curlrc").write_text("silent")  # as curl is when its output goes to a terminal
    environment = {
        "PORT": port,
        "VENV": sys.prefix,
        "LC_ALL": "C",
        "MAKEFLAGS": "",
        "CURL_HOME": str(tmp_path),
    }
    for command, expected in commands():
        ran = run(checkout, "bash", "-c", f"({command}) 2>&1".replace("8080", port), **environment)
        wanted = expected.replace("8080", port)
        same = checker.check_output(wanted, ran.stdout, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        assert same, f"$ {command}\nthe README says:\n{wanted}\nbut it prints:\n{ran.stdout}"


def test_the_readme_shows_every_state_and_every_local_step() -> None:
    shown = " ".join(command for command, _ in commands())
    for target in ("demo", "up", "down", "status", "apply", "curl", "verify", "logs", "stop", "start"):
        assert f"make {target}" in shown
    for path in (ROOT / "istio").glob("*.yaml"):
        assert f"istio/{path.name}" in README or path.name == "destination-rule.yaml"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
