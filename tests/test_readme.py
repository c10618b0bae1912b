"""The commands of the README and of the pages do what these say."""

import doctest
import re
import sys
from pathlib import Path

import pytest
from helpers import run, start
from test_local import free_port

from harness.meshes.mesh import ROOT

README = (ROOT / "README.md").read_text()


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

NEEDS_ENGINE = "<!-- needs an engine -->\n"


def commands(page: str, *, engine: bool) -> list[tuple[str, str]]:
    """Return the (command, expected output) pairs of the console blocks that need an engine, or do not."""
    found: list[tuple[str, str]] = []
    for mark, block in re.findall(
        rf"^({NEEDS_ENGINE})?```console\n(.*?)^```$", page, re.DOTALL | re.MULTILINE
    ):
        if bool(mark) is not engine:
            continue
        for line in block.splitlines(keepends=True):
            if line.startswith("$ "):
                found.append((line[2:].strip(), ""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + line)
    return found


def type_along(checkout: Path, home: Path, typed: list[tuple[str, str]]) -> None:
    """Run commands as a reader would, and compare what they print."""
    port, checker = str(free_port()), doctest.OutputChecker()
    (home / ".curlrc").write_text("silent")  # as curl is when its output goes to a terminal
    environment = {"PORT": port, "VENV": sys.prefix, "LC_ALL": "C", "CURL_HOME": str(home)}
    for command, expected in typed:
        ran = run(checkout, "bash", "-c", f"({command}) 2>&1".replace("8080", port), **environment)
        wanted = expected.replace("8080", port)
        same = checker.check_output(wanted, ran.stdout, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        assert same, f"$ {command}\nthe page says:\n{wanted}\nbut it prints:\n{ran.stdout}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_command_prints_what_the_page_says(checkout: Path, tmp_path: Path, page: Path) -> None:
    type_along(checkout, tmp_path, commands(page.read_text(), engine=False))


def test_every_command_for_containers_prints_what_the_readme_says(checkout: Path, tmp_path: Path) -> None:
    mesh = start("containers", checkout / ".mesh" / "containers", asked_for=False)
    try:
        type_along(checkout, tmp_path, commands(README, engine=True))
    finally:
        mesh.down()
        mesh.close()


def test_the_readme_shows_every_state_and_every_local_step() -> None:
    shown = " ".join(command for command, _ in commands(README, engine=False))
    for target in ("demo", "up", "down", "status", "apply", "curl", "verify", "logs", "stop", "start"):
        assert f"make {target}" in shown
    for path in (ROOT / "istio").glob("*.yaml"):
        assert f"istio/{path.name}" in README or path.name == "destination-rule.yaml"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"
