"""Any service of the chain, the naive way: a new connection for each call, no time-out."""

import os

import requests
from flask import Flask

NAME = os.environ["NAME"]
UPSTREAM = os.environ["UPSTREAM"]

app = Flask(__name__)


@app.route("/", methods=["GET", "POST"])
def answer() -> str:
    """Say who answers, with what the next service says."""
    if not UPSTREAM:
        return f"{NAME}\n"
    return f"{NAME} => {requests.get(UPSTREAM).text}"  # noqa: S113
