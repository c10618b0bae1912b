"""A version of recommendation for tests: it says what it received, and misbehaves when told to."""

import gzip
import hashlib
import itertools
import os
import time
import urllib.request

from flask import Flask, Response, request

VERSION = os.environ.get("VERSION", "v2")
STATUS = int(os.environ.get("STATUS", "200"))
DELAY = float(os.environ.get("DELAY", "0"))
CALL = os.environ.get("CALL")
EARLY = os.environ.get("EARLY") == "yes"
DIE = os.environ.get("DIE") == "yes"
FAIL_EVERY = int(os.environ.get("FAIL_EVERY", "0"))
FAIL_FIRST = os.environ.get("FAIL_FIRST") == "yes"

app = Flask(__name__)
seen: set[str] = set()
numbers = itertools.count(1)


@app.get("/health/ready")
@app.get("/health/live")
def health() -> str:
    """Be healthy."""
    return "ok"


@app.route("/answer", methods=["GET", "POST"])
def answer() -> Response:
    """Answer what the query says: ``body`` so many ``times``, of a ``type``, as a ``stream`` or ``gzip``."""
    asked = request.args
    body = (asked["body"].replace("VERSION", VERSION) * int(asked.get("times", 1))).encode()
    body = gzip.compress(body) if "gzip" in asked else body
    reply = Response(iter([body]) if "stream" in asked else body, content_type=asked.get("type"))
    reply.headers.update({"Content-Encoding": "gzip"} if "gzip" in asked else {})
    return reply


@app.route("/", methods=["GET", "POST"])
def shadow() -> Response:
    """Answer as told, once the digest of what came is on stdout."""
    agent = request.user_agent.string
    if EARLY:
        return Response("recommendation {VERSION} does not read\n", STATUS)
    digest = hashlib.sha256(request.get_data()).hexdigest()
    print(f"received {agent} {request.host} {digest}", flush=True)
    time.sleep(DELAY)
    if CALL:
        urllib.request.urlopen(CALL, timeout=10).read()  # noqa: S310 (its test says which)
    if DIE:
        os._exit(1)
    if FAIL_FIRST and agent not in seen:
        seen.add(agent)
        return Response("the first attempt fails\n", 503)
    if FAIL_EVERY and not next(numbers) % FAIL_EVERY:
        return Response(f"{VERSION} fails\n", 500)
    return Response(f"recommendation {VERSION} from 'shadow': 1\n", STATUS)
