"""The server of the live page: for browsers on this machine that have the page's address, and nobody else."""

import hmac
import json
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from flask import Flask, Response, abort, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from harness import HarnessError
from harness.live.hands import FASTEST
from harness.live.state import Live
from harness.meshes.mesh import LOOPBACK, check_port
from harness.pages.report import templates

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

FILES = {"live.js": "text/javascript", "live.css": "text/css", "common.css": "text/css"}


class _Silent(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:
        """Log nothing: addresses hold the token."""


class Server:
    """Serves a live page on loopback."""

    def __init__(self, live: Live, remembered: Path) -> None:
        """Listen; ``remembered`` keeps port and token, so that a page finds the next process again.

        :raises HarnessError: no port can be used.
        """
        self._live = live
        port, self.token = _remembered(remembered)
        self._server: BaseWSGIServer = make_server(
            LOOPBACK, port, self._app(), threaded=True, request_handler=_Silent
        )
        self._server.daemon_threads = True  # type: ignore[attr-defined]
        self.port = self._server.port
        if not port:
            descriptor = os.open(remembered, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump({"port": self.port, "token": self.token}, file)
        self.url = f"http://{LOOPBACK}:{self.port}/{self.token}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of the port."""
        self._server.shutdown()
        self._server.server_close()

    def _app(self) -> Flask:
        app, live = Flask(__name__, static_folder=None), self._live
        app.config["MAX_CONTENT_LENGTH"] = 1024

        @app.before_request
        def check() -> None:
            hosts = {f"{name}:{self.port}" for name in (LOOPBACK, "localhost")}
            if request.headers.get("Host") not in hosts:  # a name that was made to lead here
                abort(403)
            token = request.path.split("/")[1]
            if not hmac.compare_digest(token.encode(), self.token.encode()):
                abort(404)
            if request.method != "POST":
                return
            same = request.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
            if not same or request.headers.get("Origin") != f"http://{request.headers['Host']}":
                abort(403)
            if live.read_only:
                abort(403)

        @app.after_request
        def protect(response: Response) -> Response:
            response.headers.update(HEADERS)
            return response

        @app.get("/<token>/")
        def page(token: str) -> str:
            return templates.get_template("live.html").render(live=live, fastest=FASTEST)

        @app.get("/<token>/<name>")
        def file(token: str, name: str) -> Response:
            if name not in FILES:
                abort(404)
            assert templates.loader
            return Response(templates.loader.get_source(templates, name)[0], mimetype=FILES[name])

        @app.get("/<token>/events")
        def events(token: str) -> Response:
            return Response(live.events(), mimetype="text/event-stream")

        @app.get("/<token>/story/<id>")
        def story(token: str, id: str) -> Response:
            return _answer(lambda: live.story(id))

        @app.post("/<token>/press/<id>")
        def press(token: str, id: str) -> Response:
            try:
                begun = live.press(id)
            except KeyError:
                abort(404)
            return Response("begun" if begun else "something else is under way", 202 if begun else 409)

        @app.post("/<token>/rate/<int:rate>")
        def rate(token: str, rate: int) -> Response:
            def change() -> list[str]:
                live.sender.set(rate)
                return [f"{rate} requests a second"]

            return _answer(change)

        return app


def _answer(ask: Callable[[], list[str]]) -> Response:
    try:
        return Response("\n".join(ask()), mimetype="text/plain")
    except HarnessError as error:
        return Response(str(error), 503, mimetype="text/plain")


def _remembered(path: Path) -> tuple[int, str]:
    """Return port and token of the process before; port 0 and a new token where they cannot be had again."""
    try:
        kept = json.loads(path.read_text())
        port, token = int(kept["port"]), str(kept["token"])
        check_port(LOOPBACK, port, "")
        if len(token) >= 32:
            return port, token
    except (OSError, ValueError, KeyError, TypeError, HarnessError):
        pass
    return 0, secrets.token_hex(16)
