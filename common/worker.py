"""How gunicorn serves: many requests wait for an upstream at once, in one thread."""

import contextlib
from collections.abc import Iterator
from typing import Any

import gevent
from gunicorn.workers.ggevent import GeventWorker

LINGER = 2.0
"""Seconds that idle connections stay open at SIGTERM: a request may be on its way already."""


class Worker(GeventWorker):  # type: ignore[misc]  # it has no types
    """gunicorn's gevent worker, which at SIGTERM also lets go of connections that nobody uses.

    Of itself it waits graceful_timeout for them, and a proxy keeps them open for an hour.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: dict[gevent.Greenlet, gevent.Timeout] = {}

    @contextlib.contextmanager
    def timeout_ctx(self) -> Iterator[None]:
        """Wait for the next request on a connection: as long as ``keepalive`` says."""
        greenlet = gevent.getcurrent()
        with gevent.Timeout(self.cfg.keepalive, False) as self._idle[greenlet]:
            try:
                yield
            finally:
                del self._idle[greenlet]

    def handle_exit(self, *signal: Any) -> None:
        """Begin to stop."""
        super().handle_exit(*signal)
        self._linger = gevent.get_hub().loop.timer(LINGER)
        self._linger.start(self._let_go)

    def _let_go(self) -> None:
        """Close what is idle. The hub runs this, so that nothing comes to life meanwhile."""
        for greenlet, timeout in list(self._idle.items()):
            greenlet.throw(timeout)  # as if its time were over
