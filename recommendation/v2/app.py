"""recommendation v2: the shadow. A rewrite that counts uploads as they stream by.

v1 holds a whole upload in memory; here it costs one chunk, whatever its size. The contract is v1's.
"""

import os
import socket

from flask import Response, abort, request

from common.counter import Counter
from common.store import Store
from common.web import METHODS, body_chunks, create_app, reply

HOSTNAME = os.environ.get("HOSTNAME", socket.gethostname())

PLANTED_DEFECTS = os.environ.get("PLANTED_DEFECT", "").split(",")
"""What v2 does wrong: ``status``, ``feedback``, ``bytes``; see below."""

app = create_app("recommendation")
counter = Counter()
store = Store(app, "v2")


@app.route("/", methods=METHODS)
def recommend() -> Response:
    """Say who answers and for which time; keep what is posted, else count the feedback on an item."""
    details: dict[str, int] = {}
    if request.method in ("GET", "HEAD"):
        if "status" in PLANTED_DEFECTS and request.args.get("item", "").endswith("44"):
            abort(500)
        details = _miscounted(store.count())
        said = "".join(f", {name}: {number}" for name, number in details.items())
    else:
        details["bytes"] = size = sum(map(len, body_chunks()))
        said = f", {size} bytes received"
        if request.method == "POST":
            store.add(_defective(size))
    count = counter.next()
    return reply(
        f"recommendation v2 from '{HOSTNAME}': {count}{said}",
        service="recommendation", version="v2", hostname=HOSTNAME, count=count, **details,
    )  # fmt: skip


def _miscounted(details: dict[str, int]) -> dict[str, int]:
    """Return what is told of an item: with the defect, those that end with a 4 have one feedback more."""
    if "feedback" in PLANTED_DEFECTS and request.args.get("item", "").endswith("4"):
        return {name: count + 1 for name, count in details.items()}
    return details


def _defective(size: int) -> int:
    """Return what is written as the size of an upload: with the defect, large ones are cut to 1,000s."""
    return size // 1000 * 1000 if "bytes" in PLANTED_DEFECTS and size >= 1000 else size
