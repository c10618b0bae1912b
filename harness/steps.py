"""The workshop's steps, one table: the demo, the pages, `check`, `step` and `next` come from it."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from harness import Json, settings
from harness.manifests.read import read, to_document
from harness.meshes.mesh import ROOT, SHADOW, TARGET
from harness.proof.rules import full_name
from harness.release import routes

ROUTE, COMPARE = "virtualservice/recommendation", "trafficextension/compare"
SECRETS = ("secret/recommendation-v1", "secret/recommendation-v2")

BASE = ("istio/v1-only.yaml", "recommendation/kubernetes.yaml")
"""What of the first state the steps change."""

LIVE = "recommendation/settings/wrong-while-mirrored.yaml"
"""What a release gives v2: the database of those who answer callers."""


@dataclass(frozen=True)
class Step:
    """One step of the workshop."""

    number: int
    title: str
    page: str
    """The page that tells it: ``03-go-dark`` is docs/03-go-dark.md."""
    minutes: int
    commands: tuple[str, ...]
    """What to type behind ``make``, in this order: what is applied and runs afterwards follows from it."""
    holds: tuple[str, ...] = ()
    """The ids of the claims that must be made then, and hold."""
    fails: tuple[str, ...] = ()
    """The ids of those that must fail; no other may, and none may be unproven."""

    @property
    def path(self) -> Path:
        return ROOT / "docs" / f"{self.page}.md"

    @property
    def goal(self) -> str:
        """The first paragraph of its page."""
        return self.path.read_text().split("\n\n")[1]

    @property
    def proof(self) -> Mapping[str, str]:
        """The variables of its last ``verify``."""
        return next((words for verb, words in map(parse, reversed(self.commands)) if verb == "verify"), {})


STEPS = (
    Step(1, "Start: three services, an Envoy beside each", "01-start", 4, ("up", "curl", "status")),
    Step(
        2, "Silence: version 2 runs, and hears nothing", "02-silence", 4, ("verify",),
        holds=("answered", "answered-by", "silent"),
    ),
    Step(
        3, "Go dark: v2 gets a copy of every request", "03-go-dark", 6,
        ("apply F=istio/mirror.yaml", "curl", "verify"),
        holds=("answered", "answered-by", "exactly-once", "same-status", "faithful", "same-writes"),
    ),
    Step(
        4, "Break v2: callers must not notice", "04-break-v2", 5,
        (f"stop W={SHADOW}", "curl", "verify N=100"),
        holds=("answered", "answered-by"), fails=("exactly-once",),
    ),
    Step(
        5, "Mirror a part: a tenth, then only what reads", "05-a-part", 6,
        (f"start W={SHADOW}", "apply F=istio/mirror-10-percent.yaml", "verify N=1000",
         "apply F=istio/mirror-reads.yaml", "verify N=200"),
        holds=("answered", "answered-by", "exactly-once", "silent"),
    ),
    Step(
        6, "Bail out: v1 alone again, at once", "06-bail-out", 3, ("bail-out", "verify N=100"),
        holds=("answered", "answered-by", "silent"),
    ),
    Step(
        7, "What v2 writes: a store of its own", "07-what-v2-writes", 12,
        ("apply F=istio/mirror.yaml", f"apply F={LIVE}", "verify N=100",
         "apply F=recommendation/kubernetes.yaml",
         "apply F=recommendation/settings/planted-defect.yaml", "verify N=100"),
        holds=("answered", "answered-by", "exactly-once", "same-status", "stored"), fails=("same-writes",),
    ),
    Step(
        8, "What v2 answers: a defect, or noise?", "08-what-v2-answers", 12,
        ("apply F=istio/compare.yaml", "apply F=istio/mirror-twice.yaml",
         "verify N=600 IGNORE=hostname,version"),
        holds=("answered", "answered-by", "exactly-once"), fails=("same-content", "same-writes"),
    ),
    Step(
        9, "Release: from dark to everybody, step by step", "09-release", 14,
        ("release N=600 IGNORE=hostname,version", "apply F=recommendation/kubernetes.yaml",
         "apply F=istio/mirror-twice.yaml",
         "release N=150 IGNORE=hostname,version STEPS='dark testers 10% 100%'", "verify N=100"),
        holds=("answered", "answered-by", "silent", "stored"),
    ),
    Step(
        10, "Under load: many callers, and the same proof", "10-under-load", 10,
        ("step N=3", "load USERS=20 TIME=5s"),
    ),
    Step(11, "On a cluster: the same steps on real Istio", "11-on-a-cluster", 25, ()),
    Step(12, "Your own dark launch", "12-your-own", 15, ()),
)  # fmt: skip

PROVEN = tuple(step for step in STEPS if step.number == 1 or step.holds)
"""The steps that leave a state by which they can be told."""

TOLD = STEPS[:6]
"""The steps that the demo tells: one dark launch, from the start to the end."""

HINTS = {
    "answered": "callers get errors: see 'make status', then 'make doctor'",
    "answered-by": "a caller saw v2: run 'make bail-out', then read the route again",
    "silent": "somebody still sends to v2: see 'make status', then 'make doctor'",
    "exactly-once": "copies are missing: 'make doctor' says why",
    "sampled": "copies are missing: 'make doctor' says why",
    "faithful": "a copy is not what v1 got: follow one by 'make trace T=' and its request id",
    "delivered": f"v2 gets copies, and does not answer: see 'make logs W={SHADOW}'",
    "same-status": f"v2 answers with errors: see 'make status', then 'make logs W={SHADOW}'",
    "same-content": "v2 answers something else: follow one by 'make trace T=' and its request id",
    "stored": "v2 writes to v1's database: run 'make apply F=recommendation/kubernetes.yaml'",
    "same-writes": "v2 writes something else: run 'make apply F=recommendation/kubernetes.yaml'",
}
"""What to do where a claim is not as a step wants it, by its id."""


def parse(command: str) -> tuple[str, dict[str, str]]:
    """Return what a command does, and its variables: ``verify N=600`` is ``("verify", {"N": "600"})``."""
    verb, *words = shlex.split(command)
    return verb, dict(word.split("=", 1) for word in words)


def make(command: str, mesh: str) -> str:
    """Return a command as it is typed for a mesh."""
    verb = "deploy" if (command, mesh) == ("up", "cluster") else command
    return f"make {verb}" + ("" if mesh == "local" else f" MESH={mesh}")


class Applied(NamedTuple):
    """An object as a step leaves it."""

    document: Json
    file: str
    """The manifest that has it; nothing where a bail-out or a release changed it."""
    command: str
    """What made it so."""


@dataclass
class State:
    """What is applied and runs after a step, as far as the steps change it."""

    applied: dict[str, Applied] = field(default_factory=dict)
    """Objects by key."""
    scaled: str = f"start W={SHADOW}"
    """The command by which v2 runs, or does not."""

    @property
    def stopped(self) -> bool:
        return self.scaled.startswith("stop")

    def enter(self, command: str) -> None:
        """Change it as a command of a step does."""
        verb, variables = parse(command)
        if verb in ("stop", "start"):
            self.scaled = command
        elif verb in ("bail-out", "release"):
            host = full_name(TARGET, settings.namespace())
            rung = routes.Step(100) if verb == "release" else None
            led = routes.routes_at(
                self.applied[ROUTE].document, host, routes.Versions(), rung, routes.Group()
            )
            self.applied[ROUTE] = Applied(led, "", command)
        file = variables.get("F", LIVE if verb == "release" else "")
        for found in read(ROOT / file) if file else ():
            if found.key in (ROUTE, COMPARE, *SECRETS):
                self.applied[found.key] = Applied(to_document(found), file, command)


def state_after(number: int) -> State:
    """Return what is applied and runs after the steps up to a number."""
    state = State()
    for command in (*(f"apply F={file}" for file in BASE), *(c for s in STEPS[:number] for c in s.commands)):
        state.enter(command)
    return state


def announce(step: Step, mesh: str) -> list[str]:
    """Return what to do in a step, line by line, with the goal as its page says it."""
    goal = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", step.goal).replace("`", "").replace("\n", " ")
    title = f"Step {step.number} of {len(STEPS)}: {step.title} ({step.minutes} minutes)"
    typed = [f"  {make(command, mesh)}" for command in step.commands]
    end = f" At its end: {make('check', mesh)}" if step in PROVEN else ""
    return [title, "", goal, "", *typed, *[""] * bool(typed), f"The page: docs/{step.page}.md.{end}"]
