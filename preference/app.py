"""preference: the middle of the chain. It asks recommendation, and never knows which version answers."""

import os

from flask import Response

from common.upstream import Upstream
from common.web import METHODS, create_app

app = create_app("preference")
recommendation = Upstream(
    os.environ.get("RECOMMENDATION_URL", "http://recommendation:8080"),
    read_timeout=os.environ.get("READ_TIMEOUT", "5"),
)


@app.route("/", methods=METHODS)
def preference() -> Response:
    """Answer with what recommendation says."""
    return recommendation.ask("preference")
