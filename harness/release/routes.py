"""A release's plan, and its routes: a VirtualService as it is at each step. Pure."""

import math
import re
from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple

from harness import HarnessError, Json
from harness.manifests.read import LAST_APPLIED
from harness.meshes.scene import named
from harness.proof.evidence import NO_BOUNDS, Bounds
from harness.proof.mark import ANNOTATION
from harness.proof.rules import full_name

TESTERS = "-testers"
"""How the names of the rules end that a release adds for testers."""

_ANSWERS = ("route", "mirror", "mirrors", "mirrorPercentage", "mirrorPercent", "mirror_percent")
"""The fields of a rule that say who answers, and who gets copies."""


@dataclass(frozen=True)
class Step:
    """One step of a release: how many callers the candidate answers, beside testers."""

    percent: int = 0
    """Of the callers who are no testers."""
    testers: bool = True
    """Whether the candidate answers all testers; where it answers everybody, it does."""

    def __str__(self) -> str:
        return f"{self.percent} %" if self.percent else "testers" if self.testers else "dark"

    @property
    def dark(self) -> bool:
        return not (self.percent or self.testers)


DARK = Step(testers=False)
LADDER = (DARK, Step(), Step(1), Step(10), Step(50), Step(100))


def parse_steps(text: str) -> tuple[Step, ...]:
    """Return the steps that are written as ``dark testers 1% 10% 100%``, with spaces or commas between.

    :raises ValueError: one is none, they do not rise, or the last is not 100 %.
    """
    known, steps = {"dark": DARK, "testers": Step()}, []
    for word in re.sub(r"\s+%", "%", text).replace(",", " ").split():
        number = word.removesuffix("%")
        if word not in known and not (number.isdecimal() and 1 <= int(number) <= 100):
            raise ValueError(f"'{word}' is not a step: dark, testers, or a percentage from 1 to 100")
        steps.append(known.get(word) or Step(int(number)))
    ranks = [(step.percent, step.testers) for step in steps]
    if ranks != sorted(set(ranks)):
        raise ValueError(f"'{text}': each step must reach more callers than the one before")
    if not steps or steps[-1].percent != 100:
        raise ValueError(f"'{text}': the last step must be 100%")
    return tuple(steps)


class Group(NamedTuple):
    """Who is a tester: a caller whose request bears a header of this value."""

    header: str = "baggage"
    value: str = "group=testers"

    def match(self) -> Json:
        """Return how Istio matches it; of ``baggage``, which is a list, one member is enough.

        https://www.w3.org/TR/baggage/#baggage-http-header-format
        """
        if self.header == "baggage":
            return {"regex": rf"(.*,)?\s*{re.escape(self.value)}\s*([,;].*)?"}
        return {"exact": self.value}


class Versions(NamedTuple):
    """The subsets of a Service between which a release leads."""

    stable: str = "v1"
    candidate: str = "v2"


@dataclass(frozen=True)
class Plan:
    """The settings of a release: what it does, and what it asks of the candidate."""

    versions: Versions = field(default_factory=Versions)
    steps: tuple[Step, ...] = LADDER
    testers: Group = field(default_factory=Group)
    seconds: float = 60.0
    """How long a step lasts at least where others send the requests."""
    requests: int = 0
    """How many requests of its own each step sends at least; 0: it sends none."""
    concurrency: int = 8
    url: str | None = None
    """Where to send them, if not to the workshop's gateway."""
    part: float = 0.02
    """A defect in this part of all answers must have shown, with a probability of 95 %."""
    bounds: Bounds = NO_BOUNDS


def routes_at(found: Json, host: str, versions: Versions, step: Step | None, testers: Group) -> Json:
    """Return a VirtualService as it is at a step, or, without a step, with all callers at the stable version.

    Matches, timeouts and all else of its rules stay. A rule that mirrors to the candidate does so in the
    dark as it did; else the candidate gets a copy of every request.

    :param host: the Service's name in the registry: ``recommendation.tutorial.svc.cluster.local``.
    :raises HarnessError: no rule of it leads to the Service alone.
    """
    rules: list[Json] = []
    changed = False
    namespace = host.split(".")[1]
    for place, rule in enumerate(deepcopy(found["spec"].get("http") or [])):
        if str(rule.get("name", "")).endswith(TESTERS):
            continue
        hosts = {full_name(to["destination"].get("host", ""), namespace) for to in rule.get("route") or []}
        changed |= hosts == {host}
        rules += _at(rule, place, versions, step, testers) if hosts == {host} else [rule]
    if not changed:
        raise HarnessError(f"{named(found)} has no rule that leads to {host.partition('.')[0]} alone")
    metadata = {k: v for k, v in found["metadata"].items() if k in ("name", "namespace", "labels")}
    notes = found["metadata"].get("annotations") or {}
    if others := {k: v for k, v in notes.items() if k not in (ANNOTATION, LAST_APPLIED)}:
        metadata["annotations"] = others
    spec = {**found["spec"], "http": rules}
    return {"apiVersion": found["apiVersion"], "kind": found["kind"], "metadata": metadata, "spec": spec}


def _at(rule: Json, place: int, versions: Versions, step: Step | None, testers: Group) -> list[Json]:
    first = rule["route"][0]
    rest = {k: v for k, v in first.items() if k not in ("destination", "weight")}
    bare = {k: v for k, v in rule.items() if k not in _ANSWERS}
    bare["name"] = rule.get("name") or f"release-{place}"

    def to(version: str, **weight: int) -> Json:
        return {"destination": {**first["destination"], "subset": version}, **rest, **weight}

    if step is None:
        return [{**bare, "route": [to(versions.stable)]}]
    if step.dark:
        mirrors = {k: v for k, v in rule.items() if k in _ANSWERS and k != "route"}
        many = [mirrors.get("mirror") or {}, *(each["destination"] for each in mirrors.get("mirrors") or [])]
        if all(mirror.get("subset") != versions.candidate for mirror in many):
            mirrors = {"mirror": to(versions.candidate)["destination"]}
        return [{**bare, "route": [to(versions.stable)], **mirrors}]
    if step.percent == 100:
        return [{**bare, "route": [to(versions.candidate)]}]
    matches = [deepcopy(match) for match in rule.get("match") or [{}]]
    for match in matches:
        match["headers"] = {**(match.get("headers") or {}), testers.header: testers.match()}
    split = [to(versions.stable, weight=100 - step.percent), to(versions.candidate, weight=step.percent)]
    return [
        {**bare, "name": f"{bare['name']}{TESTERS}", "match": matches, "route": [to(versions.candidate)]},
        {**bare, "route": split if step.percent else [to(versions.stable)]},
    ]


def needed(part: float) -> int:
    """Return how many answers must be seen so that a defect in a part (0 to 1) of all shows with 95 %."""
    return math.ceil(math.log(0.05) / math.log1p(-part))
