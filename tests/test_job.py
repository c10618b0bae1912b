"""Locust as a Job inside a cluster. A double stands in for kubectl; Locust, proxies and logs are real."""

import base64
import contextlib
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from helpers import claims, run, wait_for

from harness.cluster.mesh import ClusterMesh
from harness.meshes.images import version
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT
from harness.terminal import seconds_of
from loadtest.job import REPORT, Job, follow
from loadtest.run import Run

Load = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def minikube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a minikube on the PATH that claims to build all it is asked to; return what it was asked."""
    asked = tmp_path / "bin" / "asked"
    asked.parent.mkdir()
    program = asked.parent / "minikube"
    program.write_text(f'#!/bin/sh\necho "$@" >>{asked}\necho docker.io/library/loadtest:{version()}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{asked.parent}:{os.environ['PATH']}")
    return asked


@pytest.fixture
def load(cluster: ClusterMesh, checkout: Path, minikube: Path) -> Load:
    """Return a function that runs a short ``make load`` inside the cluster, where v2 gets a copy of all."""
    cluster.apply(ROOT / "istio" / "mirror.yaml")

    def make(**settings: str) -> subprocess.CompletedProcess[str]:
        environment = {"VENV": sys.prefix, "USERS": "6", "RATE": "6", "TIME": "3s", **settings}
        return run(checkout, "make", "load", "MESH=cluster", **environment)

    return make


def test_a_load_inside_a_cluster_is_judged_request_by_request(
    load: Load, underneath: LocalMesh, checkout: Path, minikube: Path
) -> None:
    ran = load(WORKERS="2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(claims(ran)) == 11
    assert set(claims(ran).values()) == {"ok"}
    assert "2 workers connected" in ran.stderr
    assert "seen: " not in ran.stderr
    assert "<html" in (checkout / ".load" / "report.html").read_text()
    assert "Aggregated" in (checkout / ".load" / "requests_stats.csv").read_text()
    assert ran.stdout.endswith("\nreport: .load/report.html, proof: .load/proof.html, figures: .load/*.csv\n")
    assert f"image build --tag loadtest:{version()}" in minikube.read_text()
    assert not list(underneath.state.glob("job-*"))


@contextlib.contextmanager
def loading(checkout: Path, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """Yield a load inside the cluster whose callers have begun to ask."""
    with subprocess.Popen(
        [sys.executable, "-m", "loadtest.job", "--users", "4", "--run-time", "10m", *words],
        cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as job:  # fmt: skip
        assert job.stderr
        wait_for(lambda: "users spawned" in job.stderr.readline(), "the load", 90)
        yield job


def test_an_interrupted_load_leaves_nothing_in_the_cluster(
    load: Load, underneath: LocalMesh, checkout: Path
) -> None:
    with loading(checkout) as job:
        job.send_signal(signal.SIGINT)
        job.communicate()
    assert job.returncode == 130
    assert not list(underneath.state.glob("job-*"))


def test_a_master_that_dies_is_an_error_and_no_verdict(
    load: Load, underneath: LocalMesh, checkout: Path
) -> None:
    with loading(checkout) as job:
        os.killpg(int((underneath.state / "job-0" / "pid").read_text()), signal.SIGKILL)
        output, complaint = job.communicate(timeout=60)
    assert job.returncode == 2
    assert "Error: Locust did not end well in the cluster (OOMKilled)" in complaint
    assert "Traceback" not in complaint
    assert "claims hold" not in output
    assert not list(underneath.state.glob("job-*"))


def test_a_worker_that_is_told_to_end_is_an_error_and_no_verdict(
    load: Load, underneath: LocalMesh, checkout: Path
) -> None:
    with loading(checkout, "--workers", "2") as job:
        os.killpg(int((underneath.state / "job-1" / "pid").read_text()), signal.SIGTERM)
        output, complaint = job.communicate(timeout=60)
    assert job.returncode == 2
    assert "\nError: a worker was lost, so nothing can be said of this run\n" in complaint
    assert "Error: Locust did not end well in the cluster" in complaint
    assert "Traceback" not in complaint
    assert "claims hold" not in output


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1m30s", 90), ("2h", 7200)])
def test_a_time_is_read_as_locust_reads_it(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1.5m", "250ms", "30s1m", "-5s", "0", "0m0s"])
def test_what_locust_would_refuse_or_never_end_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        seconds_of(text)


@pytest.mark.parametrize("damage", ["lost", "cut", "a letter lost", "short"])
def test_a_damaged_report_does_not_change_the_verdict(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(__file__, "report.html")
    whole = archive.getvalue()
    encoded = base64.b64encode(whole).decode()
    short = gzip.compress(gzip.decompress(whole)[:2000])
    report = {
        "lost": "",
        "cut": encoded[: len(encoded) // 8 * 4],
        "a letter lost": encoded[1:],
        "short": base64.b64encode(short[:-8] + whole[-8:]).decode(),  # with the checksum of all
    }[damage]
    job = SimpleNamespace(lines=lambda: iter([REPORT, report]), must_have_ended_well=lambda: None)
    kept = SimpleNamespace(watch=SimpleNamespace(read=lambda: False))
    assert not follow(cast(Job, job), cast(Run, kept), tmp_path / "report")
    assert "report did not arrive whole, but the verdict stands: " in capsys.readouterr().err


def test_a_time_that_is_none_is_refused_before_anything_starts(load: Load, minikube: Path) -> None:
    ran = load(TIME="soon")
    assert ran.returncode != 0
    assert "'soon' is not a time such as 30s or 1h30m" in ran.stderr
    assert not minikube.exists()


def test_an_image_that_the_cluster_cannot_pull_is_an_error(
    load: Load, cluster: ClusterMesh, tmp_path: Path
) -> None:
    status = {"name": "locust", "state": {"waiting": {"reason": "ErrImagePull"}}}
    pods = {"items": [{"metadata": {"name": "loadtest-0"}, "status": {"containerStatuses": [status]}}]}
    events = {"items": [{"reason": "Failed", "message": "no such image"}]}
    failing = tmp_path / "failing"
    failing.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f"*'get events'*) echo '{json.dumps(events)}';;\n"
        f"*'get pods'*app=loadtest*) echo '{json.dumps(pods)}';;\n"
        f'*) exec {cluster.kubectl.program} "$@";;\nesac\n'
    )
    failing.chmod(0o755)
    ran = load(KUBECTL=str(failing))
    assert ran.returncode != 0
    assert "Error: Locust does not start in the cluster\n  loadtest-0: Failed: no such image" in ran.stderr


def test_the_web_page_does_not_load_a_cluster_through_a_port_forward(load: Load, checkout: Path) -> None:
    ran = run(checkout, "make", "load-ui", "MESH=cluster", VENV=sys.prefix)
    assert ran.returncode != 0
    assert "Error: a port-forward is too narrow for a load: make load MESH=cluster" in ran.stderr
