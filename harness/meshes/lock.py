"""One command at a time changes a mesh, and cleans up whatever ends it."""

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from harness.meshes.mesh import MeshError

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


def must_be_ours(state: Path) -> None:
    """Raise a MeshError if somebody else started a mesh: its processes can be neither seen nor ended."""
    if state.exists() and os.geteuid() not in (0, state.stat().st_uid):
        try:
            owner = state.owner()
        except KeyError:  # no user of this machine
            owner = f"user {state.stat().st_uid}"
        raise MeshError(f"{owner} started a mesh here: let {owner} stop it, or use a clone of your own")


@contextlib.contextmanager
def lock(state: Path, busy: str = "") -> Iterator[Path]:
    """Let one command at a time change the mesh; yield the lock's path.

    :param busy: what to say if another command is at it; nothing: wait for that.
    :raises MeshError: somebody else started it, its folder cannot be written, or another is at it.
    """
    must_be_ours(state)
    path, current = state.with_suffix(".lock"), False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except FileNotFoundError:
            continue  # who held it last removed the folder just now
        except OSError as error:
            why = (error.strerror or "").lower()
            raise MeshError(f"the folder {path.parent} cannot be written: {why}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            except BlockingIOError:
                raise MeshError(busy) from None
            # Whoever had it may have deleted it: then somebody else may hold a new one.
            with contextlib.suppress(FileNotFoundError):
                current = os.path.samestat(os.fstat(file.fileno()), path.stat())
            if current:
                yield path
                return
