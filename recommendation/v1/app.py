"""recommendation v1: the primary. It answers callers."""

import os
import socket

from flask import Response

from common.counter import Counter
from common.web import METHODS, body_chunks, create_app, reply

HOSTNAME = os.environ.get("HOSTNAME", socket.gethostname())

app = create_app("recommendation")
counter = Counter()


@app.get("/")
def recommend() -> Response:
    """Say who answers, and for which time."""
    count = counter.next()
    return reply(
        f"recommendation v1 from '{HOSTNAME}': {count}",
        service="recommendation", version="v1", hostname=HOSTNAME, count=count,
    )  # fmt: skip


@app.route("/", methods=METHODS)  # recommend() takes GET and HEAD
def receive() -> Response:
    """Say how large an upload was. Holds all of it in memory to find out: v2 knows better."""
    size = len(b"".join(body_chunks()))
    count = counter.next()
    return reply(
        f"recommendation v1 from '{HOSTNAME}': {count}, {size} bytes received",
        service="recommendation", version="v1", hostname=HOSTNAME, count=count, bytes=size,
    )  # fmt: skip
