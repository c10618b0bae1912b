"""The commands of the README and of the pages do what these say."""

import doctest
import re
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers import fits, free_port, run, start

from harness.meshes.mesh import ROOT

DOCS = ROOT / "docs"
NUMBERED = sorted(DOCS.glob("[0-9]*.md"))
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
MARKS = {"<!-- needs an engine -->\n": "containers", "<!-- needs a cluster -->\n": "cluster"}
"""What stands before a block that is not for the local mesh."""


def commands(page: Path, mesh: str = "local") -> list[tuple[str, str]]:
    """Return the (command, expected output) pairs of the console blocks for a mesh."""
    found: list[tuple[str, str]] = []
    blocks = re.findall(
        r"^(<!-- .* -->\n)?```console\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
    )
    for line in (line for mark, block in blocks if MARKS.get(mark, "local") == mesh
                 for line in block.splitlines(keepends=True)):  # fmt: skip
        if line.startswith("$ "):
            found.append((line[2:].strip(), ""))
        else:
            found[-1] = (found[-1][0], found[-1][1] + line)
    return found


def type_along(checkout: Path, page: Path, mesh: str = "local", **more: str) -> None:
    """Run a page's commands for a mesh as a reader would, and compare what they print."""
    checker, home = doctest.OutputChecker(), checkout.parent
    (home / ".curlrc").write_text("silent")  # as curl is when its output goes to a terminal
    environment = {"VENV": sys.prefix, "LC_ALL": "C", "CURL_HOME": str(home), **more}
    port = more.get("PORT", "8080")
    for command, expected in commands(page, mesh):
        ran = run(checkout, "bash", "-c", f"({command}) 2>&1".replace("8080", port), **environment)
        wanted = expected.replace("8080", port)
        same = checker.check_output(wanted, ran.stdout, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        if re.fullmatch(r"make (?!logs|curl)[^|$]*", command):
            # An error is one line where no terminal is.
            assert fits(re.sub("^Error: .*", "-", ran.stdout or "-", flags=re.MULTILINE)), command
        assert same, f"{page.name}: $ {command}\nthe page says:\n{wanted}\nbut it prints:\n{ran.stdout}"


@pytest.mark.timeout(600)
def test_the_numbered_pages_from_the_first_to_the_last_on_one_mesh(checkout: Path) -> None:
    port = str(free_port())
    for page in NUMBERED:
        type_along(checkout, page, PORT=port)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in NUMBERED], ids=lambda page: page.name)
def test_every_local_command_prints_what_the_page_says(checkout: Path, page: Path) -> None:
    type_along(checkout, page, PORT=str(free_port()))


def test_every_command_for_containers_prints_what_the_page_says(checkout: Path) -> None:
    mesh = start("containers", checkout / ".mesh" / "containers", asked_for=False)
    try:
        for page in PAGES:
            type_along(checkout, page, "containers", PORT=str(free_port()))
    finally:
        mesh.down()
        mesh.close()


@pytest.mark.of_any_mesh
@pytest.mark.only_on_cluster
@pytest.mark.usefixtures("mesh")
def test_every_command_for_a_cluster_prints_what_the_page_says(checkout: Path) -> None:
    for page in PAGES:
        type_along(checkout, page, "cluster", MESH="cluster")


def test_links_and_anchors_lead_somewhere() -> None:
    def anchors(page: Path) -> set[str]:
        headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
            if not target.startswith("https://"):
                there = page.parent / unquote(target) if target else page
                assert there.exists(), f"{page.name}: {target}"
                assert not anchor or anchor in anchors(there), f"{page.name}: {target}#{anchor}"
