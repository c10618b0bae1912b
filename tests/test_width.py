"""What is printed fits a terminal of 80 columns, as a projector shows it."""

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers import fits, run
from scenes import PODS, scene, story, verdict_on

from harness.cli import cli
from harness.judging import figures_in_words
from harness.meshes.mesh import ROOT
from harness.proof.evidence import Claim
from harness.proof.report import WIDTH, table, wrap
from harness.proof.status import status_of
from harness.proof.target import Target
from harness.proof.verdict import Side
from harness.terminal import progress

LONG = "recommendation-with-a-name-as-long-as-kubernetes-lets-it-be-4711"


def test_every_command_has_help_that_fits(checkout: Path) -> None:
    def help_of(*words: str) -> str:
        said = CliRunner().invoke(cli, [*words, "--help"], prog_name="python -m harness").output
        assert fits(said)
        return said

    assert fits(run(checkout, "make").stdout)
    commands = re.findall(r"^  ([\w-]+)  ", help_of().partition("Commands:")[2], re.MULTILINE)
    assert {"up", "apply", "bail-out", "rooms-down"} <= {*commands}
    for command in commands:
        assert help_of(command).startswith(f"Usage: python -m harness {command} ")


def test_errors_fit_a_terminal_and_are_one_line_elsewhere(checkout: Path) -> None:
    command = [sys.executable, "-m", "harness", "verify", "--mesh", "moon"]
    assert len(run(checkout, *command).stderr.splitlines()[-1]) > WIDTH
    ours, theirs = os.openpty()
    subprocess.run(command, cwd=checkout, stderr=theirs, check=False)
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    assert "\n       'cluster'." in shown.replace("\r", "")
    assert fits(shown)


def test_no_word_and_no_command_is_cut() -> None:
    text = "x" * 70 + " run 'make start W=recommendation-v2' on v2's pods, not on those of http://" + "y" * 90
    lines = wrap(text, 4).splitlines()
    assert lines == [
        "x" * 70 + " run",
        "    'make start W=recommendation-v2' on v2's pods, not on those of",
        "    http://" + "y" * 90,
    ]
    assert wrap("\n  as it is\n") == "\n  as it is\n"


def test_a_verdict_on_long_names_fits() -> None:
    verdict = verdict_on([each for number in range(9) for each in story(number)])
    statuses = {200: 9_999_999, 404: 1_000_000, 500: 1_000_000, 503: 1}
    sides = (Side("v1", 10**9, statuses, 1e5, 1e5, 1e6), Side(LONG, 9, {200: 9}, 1, 1, 1))
    long = Claim("x", f"[{LONG}] {LONG} received every request exactly once", "fails", "much; " * 40)
    verdict = replace(
        verdict,
        routes=f"90 % to {LONG}, 10 % to {LONG}; mirrored 100 % to {LONG}",
        claims=(*verdict.claims, long),
        sides=sides,
        findings=(f"{LONG} spec: it is 0: 'make up' " * 4,),
    )
    shown = table(verdict)
    assert fits(shown)
    once = "received every request exactly once\n          9 of 9: 0 missing, 0 duplicate, 0 phantom\n"
    assert "  ok    v2 " + once in shown
    assert re.search(rf"^  {LONG} proxy\n {{12}} +9 +1 ms +1 ms +1 B   200 x 9$", shown, re.MULTILINE)
    assert re.search(r"^ +503 x 1$", shown, re.MULTILINE)


def test_a_status_with_long_names_and_addresses_fits() -> None:
    addresses = ("10.244.120.133", "fd00:10:244:0:1234:5678:9abc:def0")
    pods = {name: replace(pod, name=f"{name}-{LONG}"[:63], addresses=addresses) for name, pod in PODS.items()}

    class Cluster:
        def scene(self, *_: Any) -> Any:
            return scene(pods=pods)

        def secrets(self, names: Any) -> dict[str, dict[str, str]]:
            return {}

    cluster: Any = Cluster()
    lines = list(status_of(cluster, Target("recommendation", "tutorial", ("preference",))))
    assert fits("\n".join(map(wrap, lines)))
    assert f"{pods['v2'].name}\n  Running  {', '.join(addresses)}" in lines


def test_progress_stays_in_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    progress()("x" * 200)
    assert 0 < shown.getvalue().count("x") < WIDTH


def test_a_line_of_a_watch_fits() -> None:
    figures = {
        "time": "12:00:00", "per_second": 25_000, "requests": 10**9, "open": 10_000,
        "received": {"v1": 10**9, "v2": 10**9}, "failed": ["exactly-once"], "unproven": ["logged"],
    }  # fmt: skip
    assert fits(wrap(figures_in_words(figures), 10))


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda p: p.name)
def test_what_the_pages_show_of_a_terminal_fits(page: Path) -> None:
    for block in re.findall(r"^```console\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        assert fits(block)
