"""Hands on: the workshop's states as buttons, each the same command that people type, and traffic."""

import functools
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import requests
import yaml

from harness import HarnessError
from harness.meshes.mesh import ROOT, SHADOW, Mesh, in_clone
from harness.proof.target import Routing, Target
from harness.proof.traffic import Ticket, call, new_run
from harness.steps import make

STATES = {
    "v1 only": "v1-only", "mirror": "mirror", "10 %": "mirror-10-percent", "reads only": "mirror-reads",
    "testers": "testers", "canary": "canary", "promote": "promote",
}  # fmt: skip
"""What buttons are called, and the manifests that they apply."""

FASTEST = 200
"""How many requests a second the page sends at most."""

CALLERS = 32
"""How many of them are under way at most."""


class Button(NamedTuple):
    """A command, as it runs and as people type it."""

    id: str
    label: str
    words: tuple[str, ...]
    typed: str


def buttons(mesh: Mesh, target: Target) -> Iterator[Button]:
    """Yield what can be done here: all of the workshop's states, and with another Service bailing out."""
    if target == Target() and in_clone():
        for label, name in STATES.items():
            path = f"istio/{name}.yaml"
            yield Button(name, label, ("apply", path), make(f"apply F={path}", mesh.name))
        for verb in ("stop", "start"):
            yield Button(verb, f"{verb} v2", (verb, SHADOW), make(f"{verb} W={SHADOW}", mesh.name))
        yield Button("bail-out", "bail out", ("bail-out",), make("bail-out", mesh.name))
    elif target != Target():
        words = "bail-out", "--service", target.service, "--namespace", target.namespace
        yield Button("bail-out", "bail out", words, f"dark-launch {' '.join(words)}")


def state_of(routing: Routing) -> str:
    """Return the state of the workshop that is applied, by the name of its manifest; nothing if none is."""
    applied = [found["spec"] for found in routing.applied.ruling(routing.host, routing.target.namespace)[:1]]
    return _state_of(json.dumps(applied)) if in_clone() else ""


@functools.lru_cache(maxsize=1)
def _state_of(applied: str) -> str:
    for name in STATES.values():
        [document] = yaml.safe_load_all((ROOT / "istio" / f"{name}.yaml").read_text())
        if [document["spec"]] == json.loads(applied):
            return name
    return ""


class Hands:
    """Does one thing at a time."""

    def __init__(self, mesh: Mesh, offered: Iterable[Button]) -> None:
        self._mesh = mesh
        self.buttons = tuple(offered)
        self._one = threading.Lock()
        self.doing = ""
        """What is under way, as people type it."""
        self.said: tuple[str, str, bool] = ("", "", True)
        """What was done last, what it printed, and whether it went well."""

    def press(self, id: str, done: Callable[[], object]) -> bool:
        """Begin what a button does; return whether nothing else was under way.

        :raises KeyError: there is no such button.
        """
        button = {each.id: each for each in self.buttons}[id]
        if not self._one.acquire(blocking=False):
            return False
        self.doing = button.typed
        threading.Thread(target=self._do, args=(button, done)).start()  # no daemon: it must end well
        return True

    def _do(self, button: Button, done: Callable[[], object]) -> None:
        command = [sys.executable, "-m", "harness", *button.words, "--mesh", self._mesh.name]
        try:
            ran = subprocess.run(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace",
            )  # fmt: skip
            self.said = button.typed, ran.stdout.strip(), not ran.returncode
        except OSError as error:
            self.said = button.typed, str(error), False
        finally:
            self.doing = ""
            self._one.release()
            done()


class Sender:
    """Callers that send so many requests a second, evenly."""

    def __init__(self, url: Callable[[], str]) -> None:
        self._find, self._url, self._run = url, "", new_run()
        self.rate = 0
        self._changed, self._due, self._numbers = threading.Condition(), 0.0, itertools.count()
        self._callers: list[threading.Thread] = []

    def set(self, rate: int) -> None:
        """Send so many requests a second from now on.

        :raises HarnessError: nobody can be reached.
        """
        if not 0 <= rate <= FASTEST:
            raise HarnessError(f"a rate must be from 0 to {FASTEST} requests a second")
        if rate:
            self._url = self._find()
        with self._changed:
            self.rate, self._due = rate, time.monotonic()
            self._changed.notify_all()
        while rate and len(self._callers) < CALLERS:
            self._callers.append(threading.Thread(target=self._call, daemon=True))
            self._callers[-1].start()

    def _call(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while True:
                self._wait_until_due()
                call(session, self._url, Ticket(self._run, next(self._numbers)), {})

    def _wait_until_due(self) -> None:
        with self._changed:
            while not self.rate or (left := self._due - time.monotonic()) > 0:
                self._changed.wait(left if self.rate else None)
            # What could not be sent in time is not sent later: at most a tenth of a second is made up for.
            self._due = max(self._due, time.monotonic() - 0.1) + 1 / self.rate
