"""One command at a time changes a mesh."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


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
