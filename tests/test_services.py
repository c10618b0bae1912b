"""The services: in process where that is enough, under a real gunicorn where it is not."""

import contextlib
import gzip
import http.server
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from helpers import wait_for

import customer.app
import preference.app
import recommendation.v1.app
import recommendation.v2.app
from common.web import METHODS
from harness.meshes.mesh import ROOT

VERSIONS = {"v1": recommendation.v1.app, "v2": recommendation.v2.app}


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def recommendation_client(version: str) -> FlaskClient:
    return VERSIONS[version].app.test_client()


def test_recommendation_says_who_answers_and_counts(recommendation_client: FlaskClient, version: str) -> None:
    first = recommendation_client.get("/")
    second = recommendation_client.get("/")
    assert first.status_code == 200
    assert first.content_type == "text/plain; charset=utf-8"
    prefix, _, count = first.text.strip().rpartition(": ")
    assert prefix == f"recommendation {version} from '{VERSIONS[version].HOSTNAME}'"
    assert second.text.strip() == f"{prefix}: {int(count) + 1}"


def test_recommendation_says_the_same_in_json(recommendation_client: FlaskClient, version: str) -> None:
    answer = recommendation_client.post("/", data=b"12345", headers={"accept": "application/json"}).get_json()
    assert answer.pop("count") > 0
    assert answer == {
        "service": "recommendation",
        "version": version,
        "hostname": VERSIONS[version].HOSTNAME,
        "bytes": 5,
    }


@pytest.mark.parametrize("size", [0, 1024, 3 * 1024 * 1024, 10 * 1024 * 1024])
def test_recommendation_says_how_many_bytes_it_got(recommendation_client: FlaskClient, size: int) -> None:
    answer = recommendation_client.post("/", data=b"x" * size)
    assert answer.text.strip().endswith(f", {size} bytes received")


@pytest.mark.parametrize("method", sorted({*METHODS} - {"GET", "HEAD"}))
def test_recommendation_takes_every_method_for_an_upload(
    recommendation_client: FlaskClient, method: str
) -> None:
    answer = recommendation_client.open("/", method=method, data=b"12345")
    assert answer.text.strip().endswith(", 5 bytes received")


@pytest.mark.parametrize(
    ("method", "path", "size", "status"),
    [("GET", "/nowhere", 0, 404), ("CONNECT", "/", 0, 405), ("POST", "/", 10 * 1024 * 1024 + 1, 413)],
)
def test_every_service_refuses_in_one_line(method: str, path: str, size: int, status: int) -> None:
    for module in (customer.app, preference.app, *VERSIONS.values()):
        answer = module.app.test_client().open(path, method=method, data=b"x" * size)
        assert answer.status_code == status
        name = "recommendation" if "recommendation" in module.__name__ else module.__name__.split(".")[0]
        assert answer.text.startswith(f"{name}: {status} ")
        assert answer.text.count("\n") == 1


def test_a_wrong_method_is_told_the_right_ones() -> None:
    answer = customer.app.app.test_client().open("/", method="PROPFIND")
    assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, TRACE"


def test_every_service_says_that_it_is_well() -> None:
    for module in (customer.app, preference.app, *VERSIONS.values()):
        for probe in ("/health/live", "/health/ready"):
            assert module.app.test_client().get(probe).text == "ok\n"


class Upstream(http.server.ThreadingHTTPServer):
    """A server that does what a test tells it to, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.status, self.body, self.content_type = 200, b"recommendation v1 from 'x': 1\n", "text/plain"
        self.go_on = threading.Event()
        self.go_on.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers for Upstream."""

    server: Upstream
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        asked = {"method": self.command, "path": self.path, "body": body, "peer": self.client_address}
        self.server.asked.append(asked | {"headers": dict(self.headers.items())})
        self.server.go_on.wait(20)
        with contextlib.suppress(OSError):
            self.send_response(self.server.status)
            self.send_header("content-type", self.server.content_type)
            self.send_header("content-length", str(len(self.server.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(self.server.body)

    do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_POST = do_PUT = do_TRACE = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(preference.app.recommendation, "url", server.url)
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


def test_preference_keeps_its_connection(upstream: Upstream) -> None:
    client = preference.app.app.test_client()
    for _ in range(3):
        client.get("/")
    assert len({asked["peer"] for asked in upstream.asked}) == 1


def test_a_cookie_of_one_caller_is_not_sent_for_the_next(upstream: Upstream) -> None:
    upstream.content_type = "text/plain\r\nset-cookie: session=secret"
    client = preference.app.app.test_client()
    client.get("/")
    client.get("/")
    assert "secret" not in str([asked["headers"] for asked in upstream.asked])


def test_preference_wraps_json(upstream: Upstream) -> None:
    upstream.body, upstream.content_type = b'{"version": "v1"}', "application/json"
    answer = preference.app.app.test_client().get("/", headers={"accept": "application/json"})
    assert answer.get_json() == {"service": "preference", "upstream": {"version": "v1"}}


def test_what_claims_to_be_json_and_is_not_is_a_503(upstream: Upstream) -> None:
    upstream.body, upstream.content_type = b"{", "application/json"
    answer = preference.app.app.test_client().get("/")
    assert answer.status_code == 503
    assert answer.text == f"preference => 503 {upstream.url} answered what is not JSON\n"


@pytest.mark.parametrize("accept", ["text/plain", "application/json"])
def test_head_is_get_without_its_body(upstream: Upstream, accept: str) -> None:
    upstream.body, upstream.content_type = b'{"version": "v1"}', accept
    client, headers = preference.app.app.test_client(), {"accept": accept}
    head, get = client.head("/", headers=headers), client.get("/", headers=headers)
    assert (head.status_code, head.text, head.content_type) == (200, "", get.content_type)
    assert "content-length" not in head.headers  # nobody knows it


def test_an_answer_may_be_compressed(upstream: Upstream) -> None:
    upstream.body, upstream.content_type = gzip.compress(b"v1"), "text/plain\r\ncontent-encoding: gzip"
    answer = preference.app.app.test_client().get("/", headers={"accept-encoding": "gzip"})
    assert answer.text == "preference => v1\n"


@pytest.mark.parametrize(
    ("status", "body", "expected", "line"),
    [
        (500, b"Internal Server Error\nTraceback", 503, "preference => 503 Internal Server Error\n"),
        (503, b"no healthy upstream", 503, "preference => 503 no healthy upstream\n"),
        (504, b"upstream request timeout", 504, "preference => 504 upstream request timeout\n"),
        (502, b"", 503, "preference => 503 Bad Gateway\n"),
        (418, b"short and stout", 418, "preference => 418 short and stout\n"),
    ],
)
def test_a_failing_upstream_becomes_one_line(
    upstream: Upstream, status: int, body: bytes, expected: int, line: str
) -> None:
    upstream.status, upstream.body = status, body
    answer = preference.app.app.test_client().get("/")
    assert (answer.status_code, answer.text) == (expected, line)


def test_a_slow_upstream_is_a_504(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream.go_on.clear()
    monkeypatch.setattr(preference.app.recommendation, "timeout", (1, 0.1))
    answer = preference.app.app.test_client().get("/")
    assert answer.status_code == 504
    assert answer.text == f"preference => 504 no answer from {upstream.url} in time\n"


def test_a_dead_upstream_is_a_503_that_names_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        monkeypatch.setattr(preference.app.recommendation, "url", url)
        with gunicorn("preference", RECOMMENDATION_URL=url) as middle:
            monkeypatch.setattr(customer.app.preference, "url", middle.url)
            answer = customer.app.app.test_client().get("/")
            wrapped = customer.app.app.test_client().get("/", headers={"accept": "application/json"})
    assert answer.status_code == wrapped.status_code == 503
    assert answer.text == f"customer => preference => 503 cannot reach {url}\n"
    assert wrapped.get_json() == {
        "service": "customer",
        "upstream": {"service": "preference", "error": f"503 cannot reach {url}"},
    }


def test_a_bug_is_one_line_too_and_its_traceback_goes_to_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recommendation.v1.app.counter, "next", lambda: 1 / 0)
    answer = recommendation.v1.app.app.test_client().get("/")
    assert (answer.status_code, answer.text) == (500, "recommendation: 500 Internal Server Error\n")
    assert "ZeroDivisionError" in caplog.text


class Server:
    """A gunicorn that serves one of the services."""

    def __init__(self, service: str, environment: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
            self.port = listener.getsockname()[1]
            self.url = f"http://127.0.0.1:{self.port}/"
            module = service.replace("/", ".")
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "common/gunicorn.conf.py", f"{module}.app:app"],
                cwd=ROOT, pass_fds=[listener.fileno()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env={**os.environ, "BIND": f"fd://{listener.fileno()}", **environment},
            )  # fmt: skip
        wait_for(self.ready, f"{service} at {self.url}")

    def ready(self) -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(self.url + "health/ready", timeout=5).ok
        return False

    def connect(self) -> socket.socket:
        """Open a connection to it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def stop(self) -> str:
        """Stop it gracefully, and return all that it logged."""
        self.process.terminate()
        return self.process.communicate(timeout=30)[0].decode()


@contextlib.contextmanager
def gunicorn(service: str, **environment: str) -> Iterator[Server]:
    server = Server(service, environment)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.communicate()


def say(server: Server, request: bytes) -> bytes:
    """Send ``request`` as it stands, and return all that is answered."""
    with server.connect() as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_preference_passes_on_every_header_but_those_of_one_connection(upstream: Upstream) -> None:
    passed_on = {
        "authorization": "Bearer secret",
        "content-type": "image/png",
        "script_name": "/nowhere",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "x-forwarded-proto": "https",
        "x-forwarded-ssl": "off",
        "x-latin": "\xe9\x85",
        "x-user": "hyphen",
        "x_user": "underscore",
    }
    dropped = ["connection: close, X-Mine", "x-mine: 1", "te: trailers", "keep-alive: 5", "upgrade: h2c"]
    dropped += ["proxy-authorization: Basic secret", "expect: 100-continue", "x-envoy-original-path: /a"]
    repeated = ["cookie: a=1", "cookie: b=2, 3", "x-list: 1", "x-list: 2"]
    lines = ["POST /?a=1&b=%20c HTTP/1.1", "host: x", "transfer-encoding: chunked", *dropped, *repeated]
    lines += [f"{name}: {value}" for name, value in passed_on.items()]
    with gunicorn("preference", RECOMMENDATION_URL=upstream.url) as server:
        body = b"3\r\n\x00ab\r\n0\r\n\r\n"
        answer = say(server, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        assert answer.endswith(b"\r\n\r\npreference => recommendation v1 from 'x': 1\n")
    [asked] = upstream.asked
    assert (asked["method"], asked["path"], asked["body"]) == ("POST", "/?a=1&b=%20c", b"\x00ab")
    assert {name.lower(): value for name, value in asked["headers"].items()} == {
        **passed_on,
        "host": upstream.url[len("http://") : -1],
        "content-length": "3",
        "cookie": "a=1; b=2, 3",
        "x-list": "1,2",
    }


def test_preference_passes_on_every_method_with_its_body(upstream: Upstream) -> None:
    with gunicorn("preference", RECOMMENDATION_URL=upstream.url) as server, requests.Session() as session:
        for method in METHODS:
            answer = session.request(method, server.url, data=b"12345", timeout=5)
            assert answer.text == (
                "" if method == "HEAD" else "preference => recommendation v1 from 'x': 1\n"
            )
            assert session.request(method, server.url, timeout=5).ok
    bodies = [(asked["method"], asked["body"]) for asked in upstream.asked]
    assert bodies == [(method, body) for method in METHODS for body in (b"12345", b"")]


def test_preference_passes_on_32_kib_of_url_and_headers(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("http.client._MAXHEADERS", 200)  # of the upstream here
    query, cookie = "a" * 30 * 1024, "b" * 30 * 1024
    many = {f"x-{i}": str(i) for i in range(110)}
    with gunicorn("preference", RECOMMENDATION_URL=upstream.url) as server:
        assert requests.get(f"{server.url}?{query}", timeout=5).ok
        assert requests.get(server.url, headers={"cookie": cookie}, timeout=5).ok
        assert requests.get(server.url, headers=many, timeout=5).ok
    long, wide, crowded = upstream.asked
    assert long["path"] == f"/?{query}"
    assert wide["headers"]["cookie"] == cookie
    assert crowded["headers"].items() >= many.items()


REFUSED = {
    b"GET": 400,
    b"get / HTTP/1.1": 400,
    b"GET / HTTP/3.0": 400,
    b"GET / HTTP/1.1\r\na b: 1": 400,
    b"GET / HTTP/1.1\r\na: 1\r\n b": 400,
    b"GET / HTTP/1.1\r\nexpect: much": 417,
    b"GET /%s HTTP/1.1" % (b"a" * 2**18): 414,
    b"GET / HTTP/1.1\r\na: %s" % (b"a" * 2**18): 431,
    b"GET / HTTP/1.1" + b"\r\na: 1" * 300: 431,
    b"POST / HTTP/1.1\r\ntransfer-encoding: gzip, foo": 501,
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nfive": 400,
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfiv": 400,
}


def test_what_is_no_proper_request_is_refused_in_one_line() -> None:
    with gunicorn("recommendation/v1") as server:
        for request, status in REFUSED.items():
            head, _, line = say(server, request + b"\r\n\r\n").decode().partition("\r\n\r\n")
            assert head.startswith(f"HTTP/1.1 {status} "), request[:40]
            assert "content-type: text/plain" in head.lower()
            assert line.count("\n") == 1
            assert f": {status} " in line[:30]
            assert line.endswith("\n")


def test_a_request_gets_one_answer_even_if_its_body_is_malformed() -> None:
    with gunicorn("recommendation/v1") as server:
        answer = say(server, b"GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nfive\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("workers", ["1", "3"])
def test_the_count_is_one_number_a_pod_under_concurrency(version: str, workers: str) -> None:
    with gunicorn(f"recommendation/{version}", WEB_CONCURRENCY=workers) as server:

        def count(_: int) -> int:
            answer = requests.get(server.url, headers={"accept": "application/json"}, timeout=10)
            return int(answer.json()["count"])

        with ThreadPoolExecutor(16) as pool:
            counts = sorted(pool.map(count, range(300)))
    assert counts == list(range(1, 301))


def until_it_says_goodbye(server: Server, session: requests.Session) -> None:
    """Make calls on a kept-alive connection until the server closes it; every one must be answered."""
    while True:
        answer = session.get(server.url + "health/ready", timeout=5)
        assert answer.ok
        if answer.headers["connection"] == "close":
            return


def test_a_request_in_flight_at_sigterm_is_answered(upstream: Upstream) -> None:
    with (
        gunicorn("preference", RECOMMENDATION_URL=upstream.url) as server,
        ThreadPoolExecutor(1) as pool,
        requests.Session() as session,
    ):
        assert session.get(server.url + "health/ready", timeout=5).ok
        upstream.go_on.clear()
        answer = pool.submit(requests.get, server.url, timeout=20)
        wait_for(lambda: upstream.asked, "the request")
        server.process.send_signal(signal.SIGTERM)
        until_it_says_goodbye(server, session)
        upstream.go_on.set()
        assert answer.result().text == "preference => recommendation v1 from 'x': 1\n"
        assert server.process.wait(20) == 0


def test_a_kept_alive_connection_is_not_cut_at_sigterm() -> None:
    """A pooling proxy may send a request at the very moment at which a pod is told to stop."""
    with gunicorn("recommendation/v1") as server, requests.Session() as session:
        assert session.get(server.url, timeout=5).ok
        server.process.send_signal(signal.SIGTERM)
        until_it_says_goodbye(server, session)
        assert server.process.wait(20) == 0


def test_a_connection_that_nobody_uses_does_not_keep_a_server_from_ending() -> None:
    with gunicorn("recommendation/v1", GRACEFUL_TIMEOUT="60") as server, requests.Session() as session:
        assert session.get(server.url, timeout=5).ok
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0


def test_nor_does_one_whose_last_answer_comes_late(upstream: Upstream) -> None:
    with (
        gunicorn("preference", RECOMMENDATION_URL=upstream.url, GRACEFUL_TIMEOUT="60") as server,
        server.connect() as idle,
        requests.Session() as session,
        ThreadPoolExecutor(1) as pool,
    ):
        upstream.go_on.clear()
        answer = pool.submit(session.get, server.url, timeout=20)
        wait_for(lambda: upstream.asked, "the request")
        server.process.send_signal(signal.SIGTERM)
        assert idle.recv(1) == b""  # the end of what is idle
        upstream.go_on.set()
        assert answer.result().ok
        assert server.process.wait(20) == 0


def test_an_upload_without_end_is_refused_and_keeps_nobody_waiting() -> None:
    with gunicorn("recommendation/v1") as server, ThreadPoolExecutor(1) as pool:
        refused = pool.submit(upload_without_end, server)
        while not refused.done():
            assert requests.get(server.url, timeout=20).ok
        assert refused.result().startswith(b"HTTP/1.1 413 ")


def upload_without_end(server: Server) -> bytes:
    """Send until the server closes the connection; return what it said."""
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            while True:
                connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        return connection.recv(4096)


def test_a_thousand_connections_that_nobody_uses_keep_nobody_out() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    with gunicorn("recommendation/v1") as server, contextlib.ExitStack() as idle:
        for _ in range(1200):
            idle.enter_context(server.connect())
        assert requests.get(server.url, timeout=20).ok


def test_gunicorn_logs_one_line_a_request_on_stdout() -> None:
    with gunicorn("recommendation/v1") as server:
        requests.get(server.url + "?a=1", timeout=5, headers={"user-agent": "dark-launch/run/1"})
        requests.get(server.url + "nowhere", timeout=5)
        log = server.stop()
    assert log.count('"GET /?a=1 HTTP/1.1" 200 ') == 1
    assert '"dark-launch/run/1"\n' in log
    assert log.count('"GET /nowhere HTTP/1.1" 404 ') == 1


def test_the_store_is_ready_before_the_first_request_needs_it(version: str, tmp_path: Path) -> None:
    with (
        gunicorn(f"recommendation/{version}", DATABASE_URL=f"sqlite:///{tmp_path}/store"),
        contextlib.closing(sqlite3.connect(tmp_path / "store")) as store,
    ):
        wait_for(lambda: store.execute("SELECT name FROM sqlite_master").fetchall(), "the store's table")


def test_settings_come_from_the_environment() -> None:
    with gunicorn("recommendation/v2", MAX_BODY_BYTES="10", HOSTNAME="a-pod", LOG_LEVEL="warning") as server:
        assert requests.post(server.url, data=b"x" * 11, timeout=5).status_code == 413
        assert " from 'a-pod': " in requests.post(server.url, data=b"x" * 10, timeout=5).text
        assert server.stop() == ""


@pytest.mark.parametrize(("size", "status"), [(10, 200), (11, 413)])
@pytest.mark.parametrize("service", ["recommendation/v1", "recommendation/v2"])
def test_a_chunked_upload_is_whole_or_refused(service: str, size: int, status: int) -> None:
    with gunicorn(service) as server:
        chunks = (b"x" * 1024 * 1024 for _ in range(size))
        answer = requests.post(server.url, data=chunks, timeout=20)
    assert answer.status_code == status
    assert (
        f"{size * 1024 * 1024} bytes received" in answer.text or "413 Request Entity Too Large" in answer.text
    )


def test_an_upload_that_is_cut_short_is_not_passed_on(upstream: Upstream) -> None:
    with gunicorn("preference", RECOMMENDATION_URL=upstream.url) as server:
        answer = say(server, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf")
        assert answer.startswith(b"HTTP/1.1 400 ")
    assert not upstream.asked
