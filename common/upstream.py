"""The call from one service to the next."""

import os
from typing import Any

import requests
from flask import Response, request
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import get_environ_proxies
from urllib3.connection import HTTPConnection
from urllib3.util import SKIP_HEADER

from common.web import body_chunks, reply

# Every other header is passed on: it may steer a route, or join the hops of one request.
NOT_FORWARDED = {
    # These concern one connection (RFC 9110, 7.6.1). So do those that Connection names.
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    # These concern one call. Its body has arrived, so what Expect asked for is done.
    "content-length",
    "expect",
    "host",
    # The path before the gateway rewrote it. Every later Envoy would log it as its own.
    "x-envoy-original-path",
}

# On a failure: the service that noticed it, so that those before it only prepend their names.
FAILED_HOP = "x-failed-hop"


class _Adapter(HTTPAdapter):
    """Sends at once. urllib3 lets the kernel wait (Nagle) before a proxy: 40 ms for every POST."""

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        options = HTTPConnection.default_socket_options
        return super().proxy_manager_for(proxy, socket_options=options, **proxy_kwargs)


class Upstream:
    """A service that is called over pooled keep-alive connections."""

    def __init__(self, url: str, read_timeout: str) -> None:
        """Call ``url``; give up after CONNECT_TIMEOUT or ``read_timeout`` seconds."""
        self.url = url.rstrip("/") + "/"
        self.timeout = (float(os.environ.get("CONNECT_TIMEOUT", "1")), float(read_timeout))
        # An adapter without a Session: that would keep one caller's cookies for the next, follow redirects,
        # and read the environment and ~/.netrc for every call.
        self.adapter = _Adapter(pool_maxsize=5000)  # as many as gunicorn lets in at once
        self.proxies = get_environ_proxies(self.url)

    def ask(self, name: str) -> Response:
        """Pass the current request on and return the answer in the name of service ``name``."""
        response = self._answer(name)
        if request.method == "HEAD":  # nobody knows how long the answer to a GET would be
            response.automatically_set_content_length = False
            del response.headers["content-length"]
        return response

    def _answer(self, name: str) -> Response:
        body = b"".join(body_chunks())
        query = request.query_string.decode("latin-1")
        headers = forwarded_headers()
        if body:
            headers["content-length"] = str(len(body))
        url = f"{self.url}?{query}" if query else self.url
        call = requests.PreparedRequest()  # by hand: Request.prepare() would be an eighth of all the work
        call.method, call.url, call.headers, call.body = request.method, url, headers, body or None
        try:
            answer = self.adapter.send(call, timeout=self.timeout, proxies=self.proxies)
            text = answer.text
        except requests.Timeout:
            return failure(name, 504, f"no answer from {self.url} in time")
        except requests.RequestException:
            return failure(name, 503, f"cannot reach {self.url}")

        status = answer.status_code
        if status >= 400 and FAILED_HOP not in answer.headers:
            reason = (text.strip() or answer.reason).splitlines()[0][:200]
            # A caller's own mistake stays what it is, a time-out is a 504, and all else a 503.
            return failure(name, status if status < 500 or status == 504 else 503, reason)
        said, upstream = f"{name} => {text.strip()}", text
        if text and answer.headers.get("content-type", "").startswith("application/json"):
            try:
                said, upstream = "", answer.json()
            except requests.JSONDecodeError:
                return failure(name, 503, f"{self.url} answered what is not JSON")
        response = reply(said, status, service=name, upstream=upstream)
        if FAILED_HOP in answer.headers:
            response.headers[FAILED_HOP] = answer.headers[FAILED_HOP]
        return response


def forwarded_headers() -> CaseInsensitiveDict[str]:
    """Return the current request's headers, as the next service gets them."""
    named = request.headers.get("connection", "").lower().split(",")
    not_forwarded = NOT_FORWARDED.union(map(str.strip, named))
    # urllib3 must not add what the caller did not send.
    headers = CaseInsensitiveDict({"user-agent": SKIP_HEADER, "accept-encoding": SKIP_HEADER})
    for name, value in request.headers:
        name = name.lower().replace(":", "_")  # see common.worker
        if name not in not_forwarded:
            headers[name] = value
    return headers


def failure(name: str, status: int, reason: str) -> Response:
    """Return the one line that says which hop failed, and how."""
    line = f"{status} {reason}"
    response = reply(f"{name} => {line}", status, service=name, error=line)
    response.headers[FAILED_HOP] = name
    return response
