"""Signals end a load in order: what was sent until then is judged."""

import os
import signal
from collections.abc import Callable
from typing import Any, NoReturn

import click
import gevent
import psutil
from locust.env import Environment
from locust.runners import STATE_CLEANUP, STATE_INIT

from harness import HarnessError
from loadtest.judging import Judge, stop

GRACE = 1.0
"""Seconds that a worker that is told to end waits for its master's word: it may be told as well."""

STARTED = os.getpid()
"""The process that starts workers."""


def on_signals(handler: Callable[[int, Any], object]) -> None:
    """Call ``handler`` for each signal that is to end the load."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, handler)


def leave(error: HarnessError) -> NoReturn:
    """End before anything was sent, at once. Locust would leave workers behind."""
    on_signals(lambda *_: None)
    click.echo(f"Error: {error}", err=True)
    for worker in psutil.Process().children():
        worker.kill()
    os._exit(2)


def leave_early(*_: Any) -> NoReturn:
    """End before Locust is ready. A worker would look for its master for minutes."""
    if os.getpid() != STARTED:
        os._exit(2)
    leave(HarnessError("interrupted before anything was sent"))


on_signals(leave_early)


def heed_signals(environment: Environment, judge: Judge | None) -> None:
    """Have signals end the load in order. Left to Locust, they cut callers and the judge off.

    :param judge: None in a worker.
    """
    gevent.signal_handler = lambda *_: None  # Locust's own for SIGTERM, which fails if that comes twice
    if judge:
        on_signals(lambda *_: gevent.spawn(end_load, environment, judge))
    else:
        on_signals(lambda *_: gevent.spawn(end_worker, environment))


def end_worker(environment: Environment) -> None:
    """End, unless the master has ended this worker meanwhile; else it takes this one for lost."""
    assert environment.runner
    gevent.sleep(GRACE)
    if environment.runner.state != STATE_CLEANUP:
        environment.runner.quit()


def end_load(environment: Environment, judge: Judge) -> None:
    """End the load: what was sent until then is judged. Ctrl-C again ends it without a verdict."""
    assert environment.runner

    def again(number: int, _: Any) -> None:
        if number == signal.SIGINT:  # others come twice, since make passes them on
            gevent.spawn(judge.abandon)

    on_signals(again)
    if environment.runner.state == STATE_INIT and not environment.web_ui:
        leave_early()
    stop(environment)
    if environment.web_ui:
        environment.web_ui.stop()
