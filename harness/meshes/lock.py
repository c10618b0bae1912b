"""One command at a time changes a mesh, and cleans up whatever ends it."""

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

ENDING = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)
"""The signals that end a command, beside Ctrl-C."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and the signals that end a command: what is begun must be finished."""
    main = threading.current_thread() is threading.main_thread()  # only it can set how signals are handled
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, *ENDING) if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def lock(state: Path) -> Iterator[Path]:
    """Let one command at a time change the mesh; yield the lock's path."""
    path, current = state.with_suffix(".lock"), False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever had it may have deleted it: then somebody else may hold a new one.
            with contextlib.suppress(FileNotFoundError):
                current = os.path.samestat(os.fstat(file.fileno()), path.stat())
            if current:
                yield path
                return
