"""recommendation v2: the shadow. A rewrite that counts uploads as they stream by.

v1 holds a whole upload in memory; here it costs one chunk, whatever its size. The contract is v1's.
"""

import os
import socket

from flask import Response, request

from common.counter import Counter
from common.web import METHODS, body_chunks, create_app, reply

HOSTNAME = os.environ.get("HOSTNAME", socket.gethostname())

app = create_app("recommendation")
counter = Counter()


@app.route("/", methods=METHODS)
def recommend() -> Response:
    """Say who answers, for which time and, but for GET and HEAD, how large the upload was."""
    upload = {} if request.method in ("GET", "HEAD") else {"bytes": sum(map(len, body_chunks()))}
    answer = {"service": "recommendation", "version": "v2", "hostname": HOSTNAME, "count": counter.next()}
    line = "recommendation {version} from '{hostname}': {count}".format(**answer)
    if upload:
        line += f", {upload['bytes']} bytes received"
    return reply(line, **answer, **upload)
