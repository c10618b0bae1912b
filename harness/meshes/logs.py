"""Follow logs that come as streams."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from harness.meshes.mesh import LogFollower


class LogStream(Protocol):
    """Pieces of a log as they come, until the log ends or ``close`` is called."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Stream:
    """A proxy's log, not yet opened; ``key`` names the container."""

    key: str
    pod: str
    open: Callable[[], LogStream]


class StreamFollower(LogFollower):
    """Reads several streams, those of proxies that start meanwhile included."""

    goes_back = True

    def __init__(self, streams: Callable[[bool], Iterable[Stream]], again: float = 1) -> None:
        """Follow ``streams(False)`` from now on, and what ``streams(True)`` finds later from the start.

        :param again: after how many seconds to look for new ones.
        """
        self._find = streams
        self._again = again
        self._lines: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._open: dict[str, LogStream] = {}
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()
        self._attach(new=False)
        threading.Thread(target=self._look_again, daemon=True).start()

    def _attach(self, *, new: bool) -> None:
        for stream in self._find(new):
            if stream.key not in self._open:
                opened = self._open[stream.key] = stream.open()
                thread = threading.Thread(target=self._read, args=(stream, opened), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _look_again(self) -> None:
        while not self._closed.wait(self._again):
            with contextlib.suppress(Exception):  # a mesh that does not answer may at the next look
                self._attach(new=True)

    def _read(self, stream: Stream, opened: LogStream) -> None:
        rest = b""
        # The stream breaks off when the container goes, or when this follower is closed.
        with contextlib.suppress(Exception):
            for piece in opened:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    self._lines.put((stream.pod, line.decode(errors="replace")))

    def lines(self) -> Iterator[tuple[str, str]]:
        while not self._lines.empty():
            yield self._lines.get()

    def close(self) -> None:
        self._closed.set()
        for stream in list(self._open.values()):
            stream.close()
        for thread in self._threads:
            thread.join(timeout=5)
