"""What browsers show: the live page and the report, in a real Chromium."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from helpers import run, wait_for
from playwright.sync_api import Browser, Page, expect, sync_playwright
from scenes import PODS, hop, scene, story, verdict_on

from harness.live.meter import Meter
from harness.live.server import Server
from harness.live.state import Live
from harness.manifests.read import read
from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT
from harness.pages.picture import Figures
from harness.pages.report import picture_of
from harness.proof.status import status_of
from harness.proof.target import Routing, Target

SOON = 60_000
"""Milliseconds after which a page that does not show what it should has failed, on a machine that is busy."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Yield a browser."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        assert not os.environ.get("CI"), "no Chromium"
        pytest.skip("no Chromium")
    expect.set_options(timeout=SOON)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a page; at the end no page may have complained or asked another host."""
    with contextlib.ExitStack() as stack:
        problems: list[str] = []

        def show(url: str, **settings: Any) -> Page:
            viewport = {"width": 1280, "height": 720}
            settings = {"reduced_motion": "reduce", **settings}  # to draw motion takes a third of a core
            context = stack.enter_context(
                contextlib.closing(chromium.new_context(viewport=viewport, **settings))
            )
            page = context.new_page()
            page.set_default_timeout(SOON)
            page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
            page.on("pageerror", lambda error: problems.append(str(error)))
            home = urlsplit(url).netloc
            page.on("request", lambda r: problems.append(r.url) if urlsplit(r.url).netloc != home else None)
            page.goto(url)
            return page

        yield show
    assert [p for p in problems if not p.startswith("data:") and "net::ERR_" not in p] == []


@contextlib.contextmanager
def served(mesh: EnvoyMesh, folder: Path, **settings: Any) -> Iterator[Server]:
    """Serve the live page of a mesh."""
    with (
        contextlib.closing(Live(mesh, Target(), **settings)) as live,
        contextlib.closing(Server(live, folder / "live.json")) as server,
    ):
        yield server
        live.sender.set(0)


@contextlib.contextmanager
def making_live(checkout: Path, *words: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run the command ``live`` in a checkout; yield its process and the page's address."""
    command = [sys.executable, "-m", "harness", "live", *words]
    with subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process, process.stdout.readline().split()[0]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)


@pytest.fixture
def checkout(shared: LocalMesh) -> Path:
    """Return the folder of the mesh, in which commands can be run."""
    return shared.state.parents[1]


def send(page: Page, *, rate: int) -> None:
    """Move the slider by the keyboard."""
    page.locator("#rate").focus()
    page.keyboard.press("Home")
    for _ in range(rate // 5):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#rate-now")).to_have_text(f"{rate}/s")


def must_be_accessible(page: Page) -> None:
    """Fail where axe-core finds what people with disabilities cannot read or use, in light or in dark."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        found = Axe().run(page)
        assert found.violations_count == 0, f"{scheme}: {found.generate_report()}"


@pytest.mark.not_on_cluster  # it writes routes behind the back of the mesh
@pytest.mark.of_any_mesh
def test_the_page_shows_what_happens(mesh: EnvoyMesh, visit: Callable[..., Page], tmp_path: Path) -> None:
    with served(mesh, tmp_path) as server:
        page = visit(server.url, reduced_motion="no-preference")
        head, version = page.locator("#head"), page.locator("#picture .box.version")
        expect(head).to_contain_text("UNPROVEN")  # nobody has sent anything
        expect(page.locator("#picture")).to_contain_text("none seen yet")
        send(page, rate=15)
        expect(head).to_contain_text("PASS")
        expect(head).to_contain_text("all to v1")
        for name in ("gateway", "customer", "preference"):
            expect(page.locator("#picture .box.caller", has_text=name)).to_be_visible()
        mesh.apply(ROOT / "istio" / "mirror.yaml")
        expect(head).to_contain_text("all to v1; mirrored 100 % to v2")
        expect(head).to_contain_text("PASS")
        expect(page.locator("#picture .label.copy")).to_have_text(re.compile(r"^[1-9]\d*/s$"))
        expect(page.locator("#routes .mirror").first).to_contain_text("mirror:")
        expect(page.locator("#dots circle.copy").first).to_be_attached()
        page.emulate_media(reduced_motion="reduce")
        expect(page.locator("#dots circle")).to_have_count(0)  # motion is reduced now
        mesh.scale("recommendation-v2", 0)
        expect(version.nth(1)).to_contain_text("DOWN")
        failed = page.locator("#claims .failed", has_text="v2 received every request exactly once")
        expect(failed).to_contain_text("missing")
        expect(page.locator("#picture .label.missing")).to_be_visible()
        must_be_accessible(page)
        failed.locator("[data-story]").first.press("Enter")
        expect(page.locator("#story pre")).to_contain_text("FAIL exactly-once")
        expect(page.locator("#story pre")).to_contain_text(re.compile(r"v1\S* got (GET|POST)"))
        page.keyboard.press("Escape")
        expect(page.locator("#story")).to_be_hidden()
        mesh.scale("recommendation-v2", 1)
        mesh.apply(ROOT / "istio" / "v1-only.yaml")
        expect(head).to_contain_text("PASS")
        expect(page.locator(".banner")).to_have_count(0)
        # Behind everybody's back the proxies are told to let v2 answer.
        [promoted] = read(ROOT / "istio" / "promote.yaml")
        mesh.control_plane.write_routes(
            [promoted if found.key == promoted.key else found for found in mesh.routes()]
        )
        expect(page.get_by_role("alert").filter(has_text="LEAK")).to_contain_text("callers saw v2")
        expect(version.nth(1)).to_contain_text("LEAK")
        expect(page.locator("#say")).to_contain_text("Leak: callers saw v2")
        must_be_accessible(page)


def status(mesh: LocalMesh) -> str:
    """Return what ``make status`` says."""
    return "\n".join(status_of(mesh, Target()))


def test_each_button_does_what_its_command_does(
    own: LocalMesh, checkout: Path, visit: Callable[..., Page]
) -> None:
    with making_live(checkout) as (_, url):
        page = visit(url)
        expect(page.locator("#head")).to_contain_text("all to v1")
        send(page, rate=10)
        page.evaluate(
            """() => new MutationObserver(() => {
                 window.alarmed ||= document.querySelector(".banner")?.textContent;
               }).observe(document.body, { childList: true, subtree: true })"""
        )

        def press(label: str, typed: str, printed: str, seen: str) -> None:
            button = page.get_by_role("button", name=label, exact=True)
            button.focus()
            expect(page.locator("#typed")).to_have_text(f"$ {typed}")
            page.keyboard.press("Enter")
            wait_for(lambda: seen in status(own), f"what {label} does", 60)
            expect(page.locator("[aria-disabled]")).to_have_count(0)
            expect(page.locator(".printed")).to_contain_text(printed)
            expect(page.locator("#typed")).to_have_text(f"$ {typed}")

        names = {
            "mirror": "mirror", "10 %": "mirror-10-percent", "reads only": "mirror-reads",
            "testers": "testers", "canary": "canary", "promote": "promote",
        }  # fmt: skip
        for label, name in names.items():
            path = f"istio/{name}.yaml"
            press(label, f"make apply F={path}", "virtualservice/recommendation configured", f"({path})")
            expect(page.locator("[aria-pressed=true]")).to_have_text(label)
        press(
            "stop v2",
            "make stop W=recommendation-v2",
            "recommendation-v2 is stopped",
            "recommendation-v2 is stopped",
        )
        press("start v2", "make start W=recommendation-v2", "recommendation-v2 runs", "\nrecommendation-v2-")
        press("bail out", "make bail-out", "nothing goes to v2", "virtualservice/recommendation: all to v1 (")
        press("v1 only", "make apply F=istio/v1-only.yaml", "configured", "(istio/v1-only.yaml)")
        expect(page.locator("#head")).to_contain_text("all to v1")
        expect(page.locator("#head")).to_contain_text("PASS")
        # Proxies route anew a moment before anybody is told: that is no leak.
        assert page.evaluate("window.alarmed") is None


def test_a_page_finds_its_harness_again(own: LocalMesh, checkout: Path, visit: Callable[..., Page]) -> None:
    with making_live(checkout) as (process, url):
        page, other = visit(url), visit(url)
        for each in (page, other):
            expect(each.locator("#head")).to_contain_text("all to v1")
        own.down()
        expect(page.locator("#head")).to_contain_text(
            "the local mesh is not running: start it with 'make up'"
        )
        own.up()
        expect(page.locator("#head")).to_contain_text("all to v1")
        process.kill()
        process.wait()
        expect(page.locator("#away")).to_be_visible()
    with making_live(checkout) as (_, again):
        assert again != url  # what it remembered was the mesh's, and went with it
    with making_live(checkout) as (process, kept):
        assert kept == again
        page = visit(kept)
        expect(page.locator("#head")).to_contain_text("all to v1")
        process.kill()
        process.wait()
        expect(page.locator("#away")).to_be_visible()
    with making_live(checkout):
        expect(page.locator("#away")).to_contain_text("The harness was started again")
        expect(page.locator("#away")).to_be_hidden()


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_nobody_else_reads_or_presses(
    mesh: EnvoyMesh, visit: Callable[..., Page], chromium: Browser, tmp_path: Path
) -> None:
    with served(mesh, tmp_path) as server:
        host = f"127.0.0.1:{server.port}"

        def ask(method: str, path: str, **headers: str) -> int:
            return requests.request(method, f"http://{host}{path}", headers=headers, timeout=10).status_code

        home, own = f"/{server.token}/", f"http://{host}"
        press = f"{home}press/promote"
        assert ask("GET", home) == 200
        for path in (
            "/",
            "/wrong/",
            f"/{'0' * 32}/events",
            "/live.js",
            f"{home}../live.json",
            f"{home}base.css",
        ):
            assert ask("GET", path) == 404, path
        assert ask("GET", home, host="evil.example") == 403
        assert ask("GET", home, host=f"evil.example:{server.port}") == 403
        assert ask("POST", press) == 403
        assert ask("POST", press, origin="http://evil.example") == 403
        assert ask("POST", press, origin="null") == 403
        assert ask("POST", press, origin=own, **{"sec-fetch-site": "cross-site"}) == 403
        assert ask("POST", press, origin=own, host="localhost") == 403
        assert ask("POST", f"{home}press/rm", origin=own) == 404
        assert ask("POST", f"{home}rate/201", origin=own) == 503
        assert oct((tmp_path / "live.json").stat().st_mode)[-3:] == "600"
        # Even a page that knows the address, on this machine, gets nothing.
        foreign = chromium.new_page()
        foreign.route(
            "http://localhost:9/", lambda route: route.fulfill(body="<p>hello", content_type="text/html")
        )
        foreign.goto("http://localhost:9/")
        got = foreign.evaluate(
            """async (home) => {
                const ask = (path, more) => fetch(home + path, more).then((r) => r.status, () => "refused");
                const heard = new Promise((done) => {
                    const events = new EventSource(home + "events");
                    events.onmessage = () => done("heard");
                    events.onerror = () => done("refused");
                });
                const framed = document.createElement("iframe");
                framed.src = home;
                document.body.append(framed);
                return [await ask(""), await ask("press/promote", { method: "POST" }), await heard];
            }""",
            f"http://{host}{home}",
        )
        assert got == ["refused", "refused", "refused"]
        foreign.evaluate("(to) => fetch(to, { method: 'POST', mode: 'no-cors' }).catch(() => 0)", own + press)
        foreign.close()
        [wanted] = read(ROOT / "istio" / "v1-only.yaml")
        assert mesh.objects()[wanted.key][1] == wanted
    with served(mesh, tmp_path / "..", read_only=True) as server:
        page = visit(server.url)
        expect(page.locator("#hands")).to_contain_text("Read only")
        expect(page.get_by_role("button")).to_have_count(0)
        headers = {"origin": f"http://127.0.0.1:{server.port}"}
        for path in ("press/mirror", "press/anew", "rate/5"):
            assert requests.post(server.url + path, headers=headers, timeout=10).status_code == 403


def test_a_meter_keeps_three_minutes() -> None:
    now = 0.0
    meter, routing = Meter(clock=lambda: now), Routing(scene(), Target("recommendation", "tutorial"))
    for second in range(1000):
        now = float(second)
        for way in (("", "v1", "call"), ("", "v1", "in"), ("", "v2", "in")):
            meter.add(way, hop(duration=second))
    assert len(meter.seconds) == 180
    series = meter.series(("", "v2", "in"))
    assert (len(series), series[-1].count, series[-1].quantile(0.5)) == (180, 1, 998.0)
    figures = meter.figures(routing)
    assert figures["", "v2", "copy"] == Figures("1/s", ("997 ms", "p99 998 ms"), "status 200", 1.0)
    assert ("", "v1", "copy") not in figures


def test_callers_that_are_too_many_share_a_box() -> None:
    names = [f"caller-{i}" for i in range(7)]
    pods = {**PODS, **{name: replace(PODS["customer"], name=name, workload=name) for name in names}}
    hops = [(name, hop(i)) for i, name in enumerate(names)] + [
        each for i in range(7) for each in story(i)[1:]
    ]
    picture = picture_of(verdict_on(hops, scene(pods=pods)))
    titles = [box.title for box in picture.boxes if box.kind == "caller"]
    assert titles == ["caller-0", "caller-1", "caller-2", "caller-3", "and 3 more"]
    assert len([line for line in picture.lines if line.kind == "call"]) == 5 + 1
    assert "v2 gets copies, and its replies end there: 7, 3 ms, p99 3 ms, 200 x 7." in picture.text


def test_a_report_needs_no_script(own: LocalMesh, checkout: Path, visit: Callable[..., Page]) -> None:
    own.apply(checkout / "istio" / "mirror.yaml")
    held = run(checkout, "make", "verify", "N=60", "HTML=report.html", VENV=sys.prefix)
    assert held.returncode == 0, held.stdout + held.stderr
    url = (checkout / "report.html").as_uri()
    page = visit(url, java_script_enabled=False)
    for text in (
        "✓ PASS", "all to v1; mirrored 100 % to v2", "60 of 60: 0 missing", "10 of 10 claims hold",
        "make verify HTML=report.html N=60", "recommendation-v2", "VirtualService",
    ):  # fmt: skip
        expect(page.locator("main")).to_contain_text(text)
    expect(page.locator(".yaml .mirror")).to_have_count(3)
    picture = page.locator("section.picture svg")
    for name in ("gateway", "customer", "preference", "v1", "v2"):
        expect(picture.locator(".title", has_text=name)).to_be_visible()
    must_be_accessible(visit(url))
    own.scale("recommendation-v2", 0)
    broken = run(checkout, "make", "watch", "FOR=5s", "HTML=nowhere/report.html", VENV=sys.prefix)
    assert "Error: nowhere/report.html: no such file or directory\n" in broken.stderr
    failed = run(checkout, "make", "verify", "N=20", "HTML=report.html", VENV=sys.prefix)
    assert failed.returncode == 2  # make's own
    page = visit(url, java_script_enabled=False)
    for text in (
        "✗ FAIL",
        "0 of 20: 20 missing",
        "FAIL exactly-once",
        "DOWN: no pod is ready",
        "it is 0, so v2 has no pod",
    ):
        expect(page.locator("main")).to_contain_text(text)
    must_be_accessible(visit(url))
