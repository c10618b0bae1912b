"""The command line: what it prints, its exit codes, and that every failure is one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from helpers import free_port, run

COMMANDS = ["up", "down", "status", "apply", "delete", "curl", "verify", "logs", "stop", "start", "demo"]
COMMANDS += ["check", "step", "next", "exercise"]

Harness = Callable[..., CompletedProcess[str]]


@pytest.fixture
def harness(checkout: Path) -> Harness:
    """Return a function that runs a command of the harness in a checkout of its own."""
    return lambda *words: run(checkout, sys.executable, "-m", "harness", *words)


def test_commands_end_with_exit_codes_that_scripts_can_use(harness: Harness) -> None:
    port = free_port()
    assert harness("up", "--port", str(port)).stdout == (
        f"5 pods run; callers come in at http://127.0.0.1:{port}/customer\n"
    )
    assert harness("apply", "istio/mirror.yaml").stdout == "virtualservice/recommendation configured\n"
    proven = harness("verify", "-n", "50", "--json")
    assert proven.returncode == 0
    verdict = json.loads(proven.stdout)
    assert verdict["passed"] is True
    assert [side["requests"] for side in verdict["sides"]] == [50, 50]

    told = harness("watch", "--for", "1s", "--json", "--junit", "istio")
    assert (told.returncode, told.stderr) == (2, "Error: istio: Is a directory\n")
    assert "callers" in told.stdout, "the verdict is told though its file cannot be written"

    assert harness("stop", "recommendation-v2").stdout == "recommendation-v2 is stopped\n"
    disproven = harness("verify", "-n", "50")
    assert disproven.returncode == 1
    assert "\x1b" not in disproven.stdout, "colours belong on a terminal"

    assert harness("delete", "istio/mirror.yaml").returncode == 0
    assert "no route for recommendation: to v1 and v2 (no pod)\n" in harness("status").stdout
    harness("stop", "customer")
    dead = harness("curl")
    assert (dead.returncode, dead.stdout) == (1, "no healthy upstream\n")
    running = harness("demo")
    assert running.returncode == 2
    assert running.stderr.startswith("Error: the local mesh is running already")
    assert harness("down").stdout == "the local mesh is down\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify"], "Error: the local mesh is not running: start it with 'make up'"),
        (["status"], "Error: the local mesh is not running: start it with 'make up'"),
        (["curl"], "Error: the local mesh is not running: start it with 'make up'"),
        (["logs"], "Error: the local mesh is not running: start it with 'make up'"),
        (["stop", "customer"], "Error: the local mesh is not running: start it with 'make up'"),
        (["apply", "nowhere.yaml"], "Error: nowhere.yaml: No such file or directory"),
        (["verify", "--requests", "0"], "0 is not in the range"),
        (["verify", "--max-p99-ratio", "nan"], "'nan' is not a number"),
        (["watch", "--patience", "nan"], "'nan' is not a number"),
        (["verify", "--mesh", "moon"], "'moon' is not "),
        (["up", "--port", "99999"], "99999 is not in the range"),
        (["fly"], "No such command 'fly'"),
        (["apply"], "Missing argument 'FILE...'"),
    ],
)
def test_what_cannot_run_is_exit_2_and_one_line(harness: Harness, words: list[str], message: str) -> None:
    failed = harness(*words)
    assert failed.returncode == 2
    assert message in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr
    assert failed.stdout == ""


def test_a_bug_is_one_line_and_its_traceback_goes_to_a_log(harness: Harness, checkout: Path) -> None:
    main = checkout / "harness" / "meshes" / "local.py"
    main.write_text(main.read_text().replace("    def processes(self)", "    def processes(self, surprise)"))
    failed = harness("down")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.startswith("Error: TypeError: ")
    assert "Traceback" in (checkout / ".mesh" / "error.log").read_text()


def test_a_log_that_cannot_be_written_is_not_named(harness: Harness, checkout: Path) -> None:
    (checkout / ".mesh").write_text("no folder")
    failed = harness("up")
    assert failed.returncode == 2
    assert failed.stderr == f"Error: the folder {checkout}/.mesh cannot be written: file exists\n"
    (checkout / ".mesh").unlink()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_one_line(checkout: Path) -> None:
    failed = run(checkout, "sh", "-c", '"$0" -m harness --help > /dev/full', sys.executable)
    assert failed.returncode == 2
    assert failed.stderr == f"Error: no space left on device (details: {checkout}/.mesh/error.log)\n"


def test_make_lists_its_targets_by_section(checkout: Path) -> None:
    listed = run(checkout, "make").stdout
    for command in [*COMMANDS, "test", "lint", "clean"]:
        assert f"\n  make {command} " in listed
    assert listed.index("The workshop") < listed.index("make demo") < listed.index("What the steps")


def test_make_asks_for_a_manifest(checkout: Path) -> None:
    asked = run(checkout, "make", "apply", f"VENV={Path(sys.prefix)}")
    assert asked.returncode == 2
    assert asked.stdout == "Which manifest? For example: make apply F=istio/mirror.yaml\n"
