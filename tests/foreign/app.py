"""A shop that knows nothing of this project: a storefront asks pricing what a thing costs.

No framework, no version in a reply, and no header passed on: neither User-Agent nor x-request-id.
"""

import contextlib
import itertools
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

STATUS = int(os.environ.get("STATUS", "200"))
CURRENCY = os.environ.get("CURRENCY", "EUR")
PRICING_URL = os.environ.get("PRICING_URL", "http://pricing")
STOREFRONT_URL = os.environ.get("STOREFRONT_URL", "http://storefront/quote/book")


class Handler(BaseHTTPRequestHandler):
    """Reads a request whole, and answers it in JSON."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer a probe, or a caller; who asks for a WebSocket gets an echo of a few bytes."""
        if self.headers.get("upgrade") == "websocket":
            self.wfile.write(
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
            )
            self.wfile.write(self.rfile.read(5))
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        status, answer = (200, b"{}") if self.path == "/healthz" else self.answer(body)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def answer(self, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the reply."""
        raise NotImplementedError

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: who wants to know what came asks the proxies."""


class Pricing(Handler):
    """Names the price of a sku."""

    def answer(self, body: bytes) -> tuple[int, bytes]:
        """Return a price."""
        return STATUS, json.dumps({"price": 100 + len(body), "currency": CURRENCY}).encode()


class Storefront(Handler):
    """Asks for the price of ``/quote/SKU``."""

    def answer(self, body: bytes) -> tuple[int, bytes]:
        """Return what pricing says."""
        asked = urlsplit(self.path)
        url = f"{PRICING_URL}/v2/quote?sku={asked.path.rpartition('/')[2]}&{asked.query}"
        request = urllib.request.Request(url, body or None, method=self.command)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError as error:
            return 502, json.dumps({"error": str(error)}).encode()


def serve(handler: type[Handler]) -> None:
    """Serve on the socket that BIND names (``fd://3``), else on port 9090."""
    bind = os.environ.get("BIND", "")
    inherited = bind.startswith("fd://")
    server = ThreadingHTTPServer(("0.0.0.0", 9090), handler, bind_and_activate=not inherited)
    if inherited:
        server.socket.close()
        server.socket = socket.socket(fileno=int(bind.removeprefix("fd://")))
    server.serve_forever()


def shop() -> None:
    """Ask the storefront for quotes, on and on."""
    for number in itertools.count():
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{STOREFRONT_URL}?n={number}") as reply:  # noqa: S310
            reply.read()
        time.sleep(0.1)


if __name__ == "__main__":
    if sys.argv[1] == "shopper":
        shop()
    serve({"pricing": Pricing, "storefront": Storefront}[sys.argv[1]])
