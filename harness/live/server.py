"""The server of the live page: for browsers on this machine that have the page's address, and nobody else."""

import json
import secrets
import threading
from pathlib import Path

from flask import Flask, Response, abort, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from harness import HarnessError
from harness.live.state import Live
from harness.meshes.mesh import LOOPBACK, check_port
from harness.pages.report import STATIC, templates

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


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
            remembered.touch(0o600)
            remembered.write_text(json.dumps({"port": self.port, "token": self.token}))
        self.url = f"http://{LOOPBACK}:{self.port}/{self.token}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of the port."""
        self._server.shutdown()
        self._server.server_close()

    def _app(self) -> Flask:
        """Return what answers at the page's address; everywhere else there is nothing."""
        home = f"/{self.token}"
        app = Flask(__name__, static_folder=STATIC, static_url_path=home)
        app.before_request(self._check)
        app.after_request(_protect)
        app.register_error_handler(HarnessError, _refuse)
        app.get(f"{home}/")(self._page)
        app.get(f"{home}/events")(self._events)
        app.get(f"{home}/story/<id>")(self._story)
        app.post(f"{home}/press/<id>")(self._press)
        app.post(f"{home}/rate/<int:rate>")(self._rate)
        return app

    def _check(self) -> None:
        hosts = {f"{name}:{self.port}" for name in (LOOPBACK, "localhost")}
        if request.headers.get("Host") not in hosts:  # a name that was made to lead here
            abort(403)
        if request.method == "POST":
            same = request.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
            ours = request.headers.get("Origin") == f"http://{request.headers['Host']}"
            if not same or not ours or self._live.read_only:
                abort(403)

    def _page(self) -> str:
        return templates.get_template("live.html").render(live=self._live)

    def _events(self) -> Response:
        return Response(self._live.events(), mimetype="text/event-stream")

    def _story(self, id: str) -> Response:
        return Response("\n".join(self._live.story(id)), mimetype="text/plain")

    def _press(self, id: str) -> Response:
        try:
            begun = self._live.press(id)
        except KeyError:
            abort(404)
        return Response("begun" if begun else "something else is under way", 202 if begun else 409)

    def _rate(self, rate: int) -> Response:
        self._live.sender.set(rate)
        return Response(f"{rate} requests a second", mimetype="text/plain")


def _protect(response: Response) -> Response:
    response.headers.update(HEADERS)
    return response


def _refuse(error: HarnessError) -> Response:
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
