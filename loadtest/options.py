"""What a load is told: mesh, target and thresholds; and what must be so before anything is sent."""

import contextlib
import socket
import sys
from functools import partial
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


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add mesh, target and thresholds; leaks and missing mirrors are never forgiven."""
    if "--processes" in sys.argv:
        with socket.create_server((LOOPBACK, 0)) as probe:  # if its usual port is busy, Locust fails
            port = probe.getsockname()[1]
        parser.set_defaults(master_bind_port=port, master_port=port)
    add = partial(parser.add_argument, include_in_web_ui=False)
    add("--mesh", choices=MESHES, default="local", env_var="MESH", help="where to run")
    add("--service", default=TARGET, env_var="SERVICE", help="the Service to judge")
    add("--namespace", default=settings.namespace(), help="where the Service is")
    add("--url", default="", env_var="URL", help="what callers ask, if not the workshop's gateway")
    add("--max-failures", type=ratio, default=0, env_var="MAX_FAILURES", metavar="RATIO",
        help="fail if more than this part of all requests fails")  # fmt: skip
    add("--max-p95", type=float, default=1000, env_var="MAX_P95", metavar="MS",
        help="fail if more than 5 %% of callers wait longer than this many milliseconds")  # fmt: skip
    add("--run", default="", env_var="DARK_LAUNCH_RUN", help="the name of a run that is judged elsewhere")
    add("--allowed", default="", env_var="DARK_LAUNCH_ALLOWED", metavar="VERSIONS",
        help="who may answer callers then, with commas between")  # fmt: skip


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Check that there is something to load, and have it judged."""
    assert environment.runner
    collect_rarely()
    environment.runner.register_message("renewed", callers.renew)
    if isinstance(environment.runner, WorkerRunner):
        heed_signals(environment, None)
        return
    judge = Judge(environment)
    heed_signals(environment, judge)
    options = environment.parsed_options
    assert options
    try:
        if environment.web_ui:
            check_port(options.web_host or LOOPBACK, options.web_port, "set LOCUST_WEB_PORT")
            add_tab(environment.web_ui, judge.shown)
        elif options.num_users is not None and options.num_users < 1:
            raise HarnessError("a load needs callers: USERS=1 or more")
        elif options.run_time == 0:
            raise HarnessError("a load needs time: TIME=30s, for example")
        if not judge.is_inside:
            open_run(environment).close()
    except HarnessError as error:
        leave(error)
