"""The command dark-launch, installed without the workshop's files beside it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import copy_project

from harness.cluster.mesh import ClusterMesh
from harness.meshes.mesh import ROOT

DarkLaunch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which pip has installed the package, as it builds it from a clone."""
    folder = tmp_path_factory.mktemp("package")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site")]
    subprocess.run([*words, str(copy_project(folder / "clone"))], check=True, timeout=100)
    return folder / "site"


@pytest.fixture
def dark_launch(site: Path, tmp_path: Path) -> DarkLaunch:
    """Return a function that runs the installed command, far from any clone."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(site), "HOME": str(tmp_path), **environment}
        command = [sys.executable, str(site / "bin" / "dark-launch"), *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
        )

    return run


@pytest.mark.timeout(240)
def test_the_command_judges_a_cluster_without_a_clone(
    dark_launch: DarkLaunch, cluster: ClusterMesh, tmp_path: Path
) -> None:
    cluster.apply(ROOT / "istio" / "mirror.yaml")
    report, page = tmp_path / "report.xml", tmp_path / "report.html"
    url = cluster.url()
    judged = dark_launch(
        "verify", "--url", url, "-n", "50", "--json", "--junit", str(report), "--html", str(page)
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert json.loads(judged.stdout)["verdict"] == "PASS"
    assert 'failures="0" errors="0"' in report.read_text()
    assert "✓ PASS" in page.read_text()
    healthy = dark_launch("doctor")
    assert (healthy.returncode, healthy.stderr) == (0, ""), healthy.stdout


def test_what_needs_the_workshops_files_says_so(dark_launch: DarkLaunch) -> None:
    for words in (["up"], ["deploy"], ["demo"], ["apply", "x.yaml"], ["verify", "--mesh", "local"]):
        refused = dark_launch(*words)
        assert refused.returncode == 2, words
        assert re.search(r"^Error: .* needs the workshop's files: clone its repo", refused.stderr), words
        assert refused.stderr.count("\n") == 1


def test_the_page_shows_commands_that_there_are(dark_launch: DarkLaunch) -> None:
    page = (ROOT / "docs" / "12-your-own.md").read_text().replace("\\\n", " ")
    shown = re.findall(r"^ *dark-launch (\w+) ([^\n|]*)", page, re.MULTILINE)
    assert {name for name, _ in shown} >= {"doctor", "watch", "verify"}
    for name, words in shown:
        known = dark_launch(name, "--help").stdout
        for option in re.findall(r"--[a-z0-9-]+", words):
            assert option in known, f"dark-launch {name} {option}"
