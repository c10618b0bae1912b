"""What every service shares: health, one-line errors, JSON for those who ask for it."""

import os
from collections.abc import Iterator
from http import HTTPMethod

from flask import Flask, Response, abort, jsonify, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException

# What a service answers to: all methods but CONNECT, which asks for a tunnel.
METHODS = [method.value for method in HTTPMethod if method != HTTPMethod.CONNECT]

MAX_BODY_BYTES = int(os.environ.get("MAX_BODY_BYTES", 10 * 1024 * 1024))
CHUNK_BYTES = 64 * 1024


def create_app(name: str) -> Flask:
    """Return the Flask application of service ``name``, with probes and one-line errors."""
    app = Flask(__name__, static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # Flask would answer OPTIONS itself

    @app.get("/health/live")
    @app.get("/health/ready")
    def health() -> Response:
        return reply("ok", status="ok")

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Response:
        line = f"{error.code} {error.description if error.code == 503 else error.name}"
        response = reply(f"{name}: {line}", error.code or 500, service=name, error=line)
        if error.code == 405:
            response.headers["Allow"] = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return response

    return app


def reply(text: str, code: int = 200, **fields: object) -> Response:
    """Return ``fields`` as JSON to a caller who prefers that, else ``text`` as one line, as for ``*/*``."""
    if request.accept_mimetypes.best_match(["text/plain", "application/json"]) == "application/json":
        response = jsonify(fields)
        response.status_code = code
        return response
    return Response(text + "\n", code, content_type="text/plain; charset=utf-8")


def body_chunks() -> Iterator[bytes]:
    """Yield the request's body in pieces; refuse one that is too large (413), malformed or cut short (400).

    Flask's MAX_CONTENT_LENGTH would not do: it cuts a chunked upload there, silently.
    """
    announced, size = request.content_length, 0
    if announced and announced > MAX_BODY_BYTES:
        abort(413)
    try:
        while chunk := request.stream.read(CHUNK_BYTES):
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                abort(413)
            yield chunk
    except (OSError, ParseException):  # a chunked body is malformed or cut short
        abort(400)
    if announced is not None and size < announced:
        abort(400)
