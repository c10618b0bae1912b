"""The Makefile passes on what is typed, whatever it is, and names what was typed when it is wrong."""

import sys
from pathlib import Path

import pytest
from helpers import copy_project, free_port, run

from harness.meshes.local import LocalMesh

AWKWARD = """it's "a" $(b) $c ${d} `e` #f;g*"""

TARGETS = {
    "up": ("PORT", "MESH"), "demo": ("PORT", "N", "MESH"), "apply": ("F",), "delete": ("F",),
    "verify": ("N", "C", "URL", "SERVICE", "CALLERS"), "watch": ("FOR", "HTML"), "trace": ("T",),
    "logs": ("W",), "stop": ("W",), "start": ("W",), "deploy": ("YES",), "dashboard": ("D",),
    "bundle": ("BUNDLE",), "check": ("STEP", "ANSWER"), "step": ("N",), "exercise": ("N",),
}  # fmt: skip


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """Return a virtual environment whose Python prints its words and the variables that it gets."""
    python = tmp_path / "fake" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nprintf '<%s>\\n' \"$@\"\nenv | grep ^DARK_LAUNCH_\n")
    python.chmod(0o755)
    (tmp_path / "fake" / "harness").touch()
    return tmp_path / "fake"


@pytest.mark.parametrize(("target", "variable"), [(t, v) for t, names in TARGETS.items() for v in names])
def test_what_is_typed_reaches_the_command_as_it_is(
    checkout: Path, fake: Path, target: str, variable: str
) -> None:
    typed = run(checkout, "make", target, f"{variable}={AWKWARD}", f"VENV={fake}")
    exported = run(checkout, "make", target, f"VENV={fake}", **{variable: AWKWARD})
    for ran in (typed, exported):
        lines = ran.stdout.splitlines()
        assert f"DARK_LAUNCH_{variable}={AWKWARD}" in lines, ran.stdout + ran.stderr
        if variable in "FTW":
            assert f"<{AWKWARD}>" in lines


@pytest.mark.parametrize(("target", "variable"), [(t, v) for t, names in TARGETS.items() for v in names])
def test_what_is_empty_is_as_not_set(checkout: Path, fake: Path, target: str, variable: str) -> None:
    said = [run(checkout, "make", target, f"VENV={fake}", *words).stdout for words in ([f"{variable}="], [])]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("verify N=abc", "N=abc: 'abc' is not a valid integer range"),
        ("verify C=0", "C=0: 0 is not in the range 1<=x<=1000"),
        ("verify URL=x", "URL=x: 'x' is not an address such as http://127.0.0.1:8080/"),
        ("up PORT=x", "PORT=x: 'x' is not a valid integer range"),
        ("check STEP=13", "STEP=13: 13 is not in the range 1<=x<=12"),
        ("step N=x", "N=x: 'x' is not a valid integer range"),
        ("status MESH=x", "MESH=x: 'x' is not one of 'local', 'containers', 'cluster'"),
        ("watch FOR=x", "FOR=x: 'x' is not a time such as 30s or 1h30m"),
        ("dashboard D=x", "D=x: 'x' is not one of 'kiali', 'grafana', 'jaeger', 'prometheus'"),
        ("load USERS=x", "USERS=x: 'x' is not a number"),
        ("soak TIME=x", "TIME=x: 'x' is not a time such as 30s or 1h30m"),
        ("load-ui RATE=x", "RATE=x: 'x' is not a number"),
        ("verify N=", "the local mesh is not running: start it with 'make up'"),
        ("load USERS= TIME=", "the local mesh is not running: start it with 'make up'"),
    ],
)
def test_an_error_names_what_was_typed(checkout: Path, words: str, problem: str) -> None:
    failed = run(checkout, "make", *words.split(), f"VENV={sys.prefix}")
    assert failed.returncode == 2
    assert f"Error: {problem}\n" in failed.stderr
    assert "--" not in failed.stderr
    assert "Usage" not in failed.stderr


def test_awkward_names_of_folder_and_file_are_no_hindrance(tmp_path: Path) -> None:
    checkout = copy_project(tmp_path / "it's a $x")
    manifest = checkout / f"{AWKWARD}.yaml"
    manifest.write_text((checkout / "istio" / "mirror.yaml").read_text())
    try:
        port = free_port()
        for words, output in (
            (["up", f"PORT={port}"], f"5 pods run; callers come in at http://127.0.0.1:{port}/customer\n"),
            (["apply", f"F={manifest.name}"], "virtualservice/recommendation configured\n"),
            (["delete", f"F={manifest.name}"], "virtualservice/recommendation deleted\n"),
            (["curl"], "customer => preference => "),
            (["logs"], "app         | "),
        ):
            ran = run(checkout, "make", *words, f"VENV={sys.prefix}")
            assert ran.stdout.startswith(output), ran.stdout + ran.stderr
    finally:
        LocalMesh(checkout / ".mesh" / "local").down()


def test_another_port_for_a_mesh_that_runs_is_refused(checkout: Path) -> None:
    port = free_port()
    for words, error in (
        ([f"PORT={port}"], ""),
        (["PORT=9"], f"Error: the local mesh runs on port {port}: leave out PORT=9, or 'make down' first\n"),
        ([f"PORT={port}"], ""),
        ([], ""),
    ):
        ran = run(checkout, "make", "up", *words, f"VENV={sys.prefix}")
        assert ran.stderr.partition("make: ")[0] == error
        assert (ran.returncode == 2) is bool(error)
        assert error or f"http://127.0.0.1:{port}/customer" in ran.stdout
