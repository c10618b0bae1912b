"""gunicorn's settings for every service. GUNICORN_CMD_ARGS overrides any of them."""

import gc
import os
from typing import Any

from gevent import monkey, spawn

monkey.patch_all()  # before app.py is imported: sockets must not block the one thread

bind = os.environ.get("BIND", "127.0.0.1:8080")
# One process that scales by pods, as Kubernetes does; requests mostly wait for an upstream.
workers = int(os.environ.get("WEB_CONCURRENCY", "1"))
worker_class = "common.worker.Worker"
preload_app = True  # before the fork: workers share what app.py creates, the counter above all

# Envoy keeps idle connections for an hour. The server must not be the first to close one: a request
# that is already on its way would be lost, and Envoy would answer 503.
keepalive = int(os.environ.get("KEEP_ALIVE", "3700"))
# Nor may idle ones use up what it accepts, once a sidecar opened many: others would wait that hour.
# An idle one takes some 12 KiB.
worker_connections = 5000
# Every header reaches the application. common.worker bounds their size.
limit_request_fields = 200  # Envoy lets in 100, and adds some
header_map = "dangerous"  # keeps names with _; common.worker keeps them apart from those with -
forwarded_allow_ips = ""  # gunicorn itself believes none of them
graceful_timeout = int(os.environ.get("GRACEFUL_TIMEOUT", "20"))

# The heartbeat file must not wait for a disk; the root file system may be read-only.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108
control_socket_disable = True

accesslog = "-"
access_log_format = '"%(r)s" %(s)s %(b)s bytes %(M)s ms "%(a)s"'
loglevel = os.environ.get("LOG_LEVEL", "info")
_console = {"handlers": ["stdout"], "level": loglevel.upper(), "propagate": False}
logconfig_dict = {
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {
        "stdout": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"}
    },
    "root": {"handlers": ["stdout"], "level": loglevel.upper()},
    "loggers": {"gunicorn.error": _console, "gunicorn.access": _console},
}


def pre_fork(server: Any, worker: Any) -> None:
    """Keep the garbage collector from what is loaded already: by looking at it, a worker would copy it."""
    gc.freeze()


def post_worker_init(worker: Any) -> None:
    """Connect to the store, if the service has one, while the first request is still on its way."""
    if store := worker.wsgi.extensions.get("store"):
        spawn(store.prepare)
