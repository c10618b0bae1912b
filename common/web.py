"""What every service shares: health, one-line errors, JSON for those who ask for it."""

import os

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

MAX_BODY_BYTES = int(os.environ.get("MAX_BODY_BYTES", 10 * 1024 * 1024))


def create_app(name: str) -> Flask:
    """Return the Flask application of service ``name``, with probes and one-line errors."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES

    @app.get("/health/live")
    @app.get("/health/ready")
    def health() -> Response:
        return reply("ok", status="ok")

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Response:
        line = f"{error.code} {error.name}"
        response = reply(f"{name}: {line}", service=name, error=line)
        response.status_code = error.code or 500
        if error.code == 405:
            response.headers["Allow"] = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return response

    return app


def wants_json() -> bool:
    """Say whether the caller prefers JSON to text; text wins a tie, as for ``*/*``."""
    return request.accept_mimetypes.best_match(["text/plain", "application/json"]) == "application/json"


def reply(text: str, **fields: object) -> Response:
    """Return ``fields`` as JSON to a caller who asked for it, else ``text`` as one line."""
    if wants_json():
        return jsonify(fields)
    return Response(text + "\n", content_type="text/plain; charset=utf-8")
