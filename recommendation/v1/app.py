"""recommendation v1: the primary. It answers callers."""

import os
import socket

from flask import Response, request

from common.counter import Counter
from common.store import Store
from common.web import METHODS, body_chunks, create_app, reply

HOSTNAME = os.environ.get("HOSTNAME", socket.gethostname())

app = create_app("recommendation")
counter = Counter()
store = Store(app, "v1")


@app.get("/")
def recommend() -> Response:
    """Say of an item how often there was feedback on it."""
    feedback = store.count()
    return answer("".join(f", {name}: {number}" for name, number in feedback.items()), **feedback)


@app.route("/", methods=METHODS)  # recommend() takes GET and HEAD
def receive() -> Response:
    """Keep what is posted, and say how large it was. Holds all of it in memory: v2 knows better."""
    size = len(b"".join(body_chunks()))
    if request.method == "POST":
        store.add(size)
    return answer(f", {size} bytes received", bytes=size)


def answer(said: str, **details: int) -> Response:
    """Say who answers and for which time, and what is ``said`` beside that."""
    count = counter.next()
    return reply(
        f"recommendation v1 from '{HOSTNAME}': {count}{said}",
        service="recommendation", version="v1", hostname=HOSTNAME, count=count, **details,
    )  # fmt: skip
