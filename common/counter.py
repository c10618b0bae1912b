"""A count that all worker processes of a pod share."""

from multiprocessing import get_context


class Counter:
    """Count from 1; made before gunicorn forks (``preload_app``), so that every worker counts on."""

    def __init__(self) -> None:
        self._value = get_context("fork").Value("Q", 0)  # as gunicorn forks

    def next(self) -> int:
        """Return the next number; no two calls in any worker or greenlet get the same."""
        with self._value.get_lock():
            self._value.value += 1
            return int(self._value.value)
