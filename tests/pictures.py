"""Make the pictures of README.md and docs/live.md: ``python -m tests.pictures``."""

import contextlib
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from harness.live.server import Server
from harness.live.state import Live
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT
from harness.pages import report
from harness.proof.target import Target
from harness.proof.watch import verify

DOCS = ROOT / "docs"


def main() -> None:
    """Run a mirror, and take a picture of its report and of the live page."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        mesh = LocalMesh(Path(folder) / "mesh", port=0)
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        try:
            mesh.up()
            mesh.apply(ROOT / "istio" / "mirror.yaml")
            verify(mesh, Target(), 200)  # applications and databases are warm then
            page = browser.new_page(viewport={"width": 1090, "height": 830})
            made = Path(folder) / "report.html"
            report.write(
                made, verify(mesh, Target(), concurrency=2), mesh.name, "make verify HTML=report.html"
            )
            page.goto(made.as_uri())
            page.screenshot(path=DOCS / "report.png")
            with (
                contextlib.closing(Live(mesh, Target())) as live,
                contextlib.closing(Server(live, Path(folder) / "live.json")) as server,
            ):
                live.sender.set(25)
                page.set_viewport_size({"width": 1120, "height": 630})
                page.goto(server.url)
                time.sleep(60)  # the time line is to show a minute
                page.screenshot(path=DOCS / "live.png")
        finally:
            browser.close()
            mesh.down()


if __name__ == "__main__":
    main()
