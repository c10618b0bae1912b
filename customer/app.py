"""customer: where callers enter the chain. It asks preference."""

import os

from flask import Response

from common.upstream import Upstream
from common.web import METHODS, create_app

app = create_app("customer")
# Longer than preference waits for recommendation, so that the hop that failed is the one named.
preference = Upstream(
    os.environ.get("PREFERENCE_URL", "http://preference:8080"),
    read_timeout=os.environ.get("READ_TIMEOUT", "10"),
)


@app.route("/", methods=METHODS)
def customer() -> Response:
    """Answer with what preference says."""
    return preference.ask("customer")
