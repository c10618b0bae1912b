"""What a load is told: mesh, target and thresholds; and what must be so before anything is sent."""

import contextlib
import logging
import socket
import sys
from typing import Any

from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner
from locust.stats import StatsCSVFileWriter

from harness import HarnessError, settings
from harness.choice import MESHES
from harness.meshes.mesh import LOOPBACK, TARGET, check_port
from harness.terminal import collect_rarely
from loadtest import callers
from loadtest.judging import Judge, open_run
from loadtest.proof_tab import add_tab
from loadtest.signals import heed_signals, leave

# "Sending spawn jobs of 50 users … to 1 ready workers" looks like an error, and says nothing that helps.
logging.getLogger("locust.runners").setLevel(logging.WARNING)

_write_figures = StatsCSVFileWriter.stats_writer


def write_figures(writer: StatsCSVFileWriter) -> None:
    """Write Locust's figures until the end. Locust closes the files a moment before it ends."""
    with contextlib.suppress(ValueError):
        _write_figures(writer)


StatsCSVFileWriter.stats_writer = write_figures  # type: ignore[assignment, method-assign]


def ratio(text: str) -> float:
    """Read a number from 0 to 1."""
    if not 0 <= (value := float(text)) <= 1:
        raise ValueError
    return value


OPTIONS: dict[str, dict[str, Any]] = {
    "--mesh": {"env_var": "MESH", "default": "local", "choices": MESHES, "help": "where to run"},
    "--service": {"env_var": "SERVICE", "default": TARGET, "help": "the Service to judge"},
    "--namespace": {"default": settings.namespace(), "help": "where the Service is"},
    "--url": {"env_var": "URL", "default": "", "help": "what callers ask, if not the workshop's gateway"},
    "--max-failures": {
        "env_var": "MAX_FAILURES", "type": ratio, "default": 0, "metavar": "RATIO",
        "help": "fail if more than this part of all requests fails",
    },
    "--max-p95": {
        "env_var": "MAX_P95", "type": float, "default": 1000, "metavar": "MS",
        "help": "fail if more than 5 %% of callers wait longer than this many milliseconds",
    },
    "--run": {
        "env_var": "DARK_LAUNCH_RUN", "default": "",
        "help": "the name of a run that is judged elsewhere",
    },
    "--allowed": {
        "env_var": "DARK_LAUNCH_ALLOWED", "default": "", "metavar": "VERSIONS",
        "help": "who may answer callers then, with commas between",
    },
}  # fmt: skip
"""Leaks and missing mirrors are never forgiven."""


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add the options."""
    if "--processes" in sys.argv:
        with socket.create_server((LOOPBACK, 0)) as probe:  # if its usual port is busy, Locust fails
            port = probe.getsockname()[1]
        parser.set_defaults(master_bind_port=port, master_port=port)
    for name, how in OPTIONS.items():
        parser.add_argument(name, include_in_web_ui=False, **how)


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Check that there is something to load, and have it judged."""
    assert environment.runner
    collect_rarely()
    environment.runner.register_message("renewed", callers.renew)
    if isinstance(environment.runner, WorkerRunner):
        environment.events.test_start.add_listener(callers.begin)
        heed_signals(environment, None)
        return
    judge = Judge(environment)
    heed_signals(environment, judge)
    try:
        check(environment)
        if not judge.is_inside:
            open_run(environment).close()
    except HarnessError as error:
        leave(error)
    if environment.web_ui:
        add_tab(environment.web_ui, judge.shown)


def check(environment: Environment) -> None:
    """Check that there are callers and time, and a port for the web page.

    :raises HarnessError: something is missing.
    """
    options = environment.parsed_options
    assert options
    if environment.web_ui:
        check_port(options.web_host or LOOPBACK, options.web_port, "set LOCUST_WEB_PORT")
    elif options.num_users is not None and options.num_users < 1:
        raise HarnessError("a load needs callers: USERS=1 or more")
    elif options.run_time == 0:
        raise HarnessError("a load needs time: TIME=30s, for example")
