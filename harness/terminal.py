"""How commands run, and what they print: a failure is one line; progress and colours are for terminals."""

import contextlib
import gc
import os
import re
import signal
import sys
import traceback
from typing import NoReturn

import click
from click.core import ParameterSource

from harness import HarnessError
from harness.meshes.lock import ENDING
from harness.meshes.mesh import STATE, Progress, quietly
from harness.proof.evidence import State
from harness.proof.report import WIDTH, table, wrap
from harness.proof.verdict import Verdict
from harness.settings import TYPED


def progress() -> Progress:
    """Return what shows progress: on a terminal one line that the next output replaces, else nothing."""
    if not sys.stderr.isatty():
        return quietly

    def show(line: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may have gone
            print(f"\r\x1b[2K{line[: WIDTH - 1]}", end="\r", file=sys.stderr, flush=True)

    return show


def echo(text: str, err: bool = False) -> None:
    """Print ``text`` in place of the last line of progress."""
    if sys.stderr.isatty():
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
    click.echo(text, err=err)


def render(verdict: Verdict) -> str:
    """Return a verdict as a table, in colours; ``echo`` drops them where there is no terminal."""
    colours: dict[State, str] = {"holds": "green", "fails": "red", "unproven": "yellow"}
    return table(verdict, lambda word, state: click.style(word, fg=colours[state], bold=True))


def complain(problem: str) -> None:
    """Print an error: one line, which a terminal shows in several where it is too narrow."""
    line = f"Error: {problem}"
    click.echo(wrap(line, 7) if sys.stderr.isatty() else line, err=True)


def seconds_of(text: str) -> float:
    """Return the seconds of a time such as 90, 90s or 1h30m.

    :raises ValueError: it is none, or nothing.
    """
    found = re.fullmatch(r"(\d+)|(?=\d)(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    bare, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    if not (span := bare + 3600 * hours + 60 * minutes + seconds):
        raise ValueError(f"'{text}' is not a time such as 30s or 1h30m")
    return float(span)


def collect_rarely() -> None:
    """Have Python look for cycles among objects rarely: requests under way have none, and are many."""
    gc.set_threshold(100_000, 20, 100)


def _complain_of_words(error: click.ClickException) -> None:
    """Print what is wrong with a command line."""
    problem = error.format_message()
    if isinstance(error, click.BadParameter) and (variable := _variable(error)):
        problem = f"{variable}: {error.message.rstrip('.')}"
    elif isinstance(error, click.UsageError) and error.ctx:
        hint = f"Try '{error.ctx.command_path} --help' for help."
        click.echo(f"{error.ctx.get_usage()}\n{hint}\n", err=True)
    complain(problem)


def _complain_of_bug(error: Exception) -> None:
    """Print what nobody foresaw; the rest of what is known goes to a log."""
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, OSError) and error.strerror:
        line = f"{error.filename}: " * bool(error.filename) + error.strerror.lower()
    with contextlib.suppress(OSError):
        STATE.mkdir(exist_ok=True)
        log = STATE / "error.log"
        log.write_text(traceback.format_exc())
        line += f" (details: {log})"
    complain(line)


def _variable(error: click.BadParameter) -> str | None:
    """Return what make was given for a value that is wrong: ``N=abc``; None if make was not given it."""
    parameter, context = error.param, error.ctx
    source = context.get_parameter_source(parameter.name or "") if parameter and context else None
    if not parameter or source is not ParameterSource.ENVIRONMENT:
        return None
    name = str(parameter.envvar)
    return f"{name.removeprefix(TYPED)}={os.environ.get(name, '')}"


def _end(number: int, frame: object) -> NoReturn:
    """End by a signal; more of them would disturb the clean-up."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def run(command: click.Command, name: str) -> int:
    """Run a command line; every failure is one line, and the rest of what is known goes to a log."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores one of them
            signal.signal(number, _end)
    collect_rarely()
    output = sys.stdout
    try:
        code = command.main(prog_name=name, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit:
        if sys.stdout is not output:  # click replaces it at a broken pipe, and would end with 1
            return 141
        raise
    except HarnessError as error:
        complain(str(error))
        return 2
    except click.ClickException as error:
        _complain_of_words(error)
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nInterrupted.", err=True)
        return 130
    except Exception as error:
        _complain_of_bug(error)
        return 2
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # nobody reads it any more: Python must not try again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
