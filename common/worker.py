"""How gunicorn serves: many requests wait for an upstream at once, in one thread."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import gevent
from gunicorn import util
from gunicorn.http.errors import ParseException
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.workers.ggevent import GeventWorker

LINGER = 2.0
"""Seconds that idle connections stay open at SIGTERM: a request may be on its way already."""

LEFTOVER = 2**20
"""Bytes of a refused request that are read, so that who sent it hears why."""

MAX_HEAD_BYTES = 128 * 1024
"""The longest URL, and the most that all headers may take. Envoy's bound for both is 60 KiB."""


class _Request(Request):  # type: ignore[misc]
    """A request within this bound. gunicorn's own settings allow a URL of 8 KiB at most."""

    limit_request_line = property(lambda self: MAX_HEAD_BYTES, lambda self, setting: None)
    limit_request_field_size = max_buffer_headers = limit_request_line


def _write_error(sock: Any, status: int, reason: str, message: str) -> None:
    """Refuse a request in one line, as the services do. gunicorn's own page is HTML."""
    line = f"gunicorn: {status} {message or reason}"[:200] + "\n"
    answer = (
        f"HTTP/1.1 {status} {reason}\r\n"
        "Connection: close\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(line.encode())}\r\n\r\n{line}"
    )
    util.write_nonblock(sock, answer.encode())
    sock.shutdown(socket.SHUT_WR)
    left = LEFTOVER
    with gevent.Timeout(LINGER, False):
        while left and (data := sock.recv(left)):
            left -= len(data)


RequestParser.mesg_class = _Request
util.write_error = _write_error


def _for_wsgi(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return headers that survive WSGI. It turns - into _, and joins repeated headers by commas.

    No name has a colon, so a colon stands for _. Several Cookie lines become one.
    """
    cookies = [value for name, value in headers if name == "COOKIE"]
    others = [(name.replace("_", ":"), value) for name, value in headers if name != "COOKIE"]
    return [*others, ("COOKIE", "; ".join(cookies))] if cookies else others


class Worker(GeventWorker):  # type: ignore[misc]  # it has no types
    """gunicorn's gevent worker, mindful of its connections.

    At SIGTERM it lets go of those that nobody uses. Of itself it waits graceful_timeout for them, and a
    proxy keeps them open for an hour. And it closes one that sends a refused body on and on. Of itself it
    reads all of that, and nobody else is heard meanwhile.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: dict[gevent.Greenlet, gevent.Timeout] = {}

    @contextlib.contextmanager
    def timeout_ctx(self) -> Iterator[None]:
        """Wait for the next request on a connection: as long as ``keepalive`` says, but not at the end."""
        greenlet = gevent.getcurrent()
        seconds = self.cfg.keepalive if self.alive else min(LINGER, self.cfg.keepalive)
        with gevent.Timeout(seconds, False) as self._idle[greenlet]:
            try:
                yield
            finally:
                del self._idle[greenlet]

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Answer a request.

        :raises StopIteration: the connection must be closed.
        """
        req.headers = _for_wsgi(req.headers)
        super().handle_request(listener_name, req, sock, addr)
        try:
            leftover = req.body.read(LEFTOVER)
        except (OSError, ParseException):  # the answer is sent; the rest of the body is malformed or missing
            raise StopIteration from None
        if len(leftover) == LEFTOVER:
            raise StopIteration

    def handle_exit(self, *signal: Any) -> None:
        """Begin to stop."""
        super().handle_exit(*signal)
        # Below the priority of input: what has arrived by then is answered.
        self._linger = gevent.get_hub().loop.timer(LINGER, priority=-1)
        self._linger.start(self._let_go)

    def _let_go(self) -> None:
        """Close what is idle. The hub runs this, so that nothing comes to life meanwhile."""
        for greenlet, timeout in list(self._idle.items()):
            greenlet.throw(timeout)  # as if its time were over
