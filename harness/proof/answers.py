"""Answers compared: what the versions' proxies logged of them, joined by request, field by field.

JSON is compared by its fields, text by its lines. What v1's own two answers differ in is noise, where it gets
a copy as well.
"""

import base64
import binascii
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

from harness.meshes.mesh import ANSWER
from harness.proof.figures import EXAMPLES, FALSE_ALARM, most_by_chance

AT_MOST = 64 * 2**20
"""How many bytes of answers wait at most for the other version's, or for their story."""

FIELDS = 500
"""How many fields are told apart; what differs beside is one more."""

OTHERS = "(other fields)"

DOUBT = 1e-3
"""From which chance on a field that v1 differs in as well is no noise, but not yet a difference."""

_LINE = re.compile(re.escape(ANSWER) + r"(\S+) (\S+) (\d{3}) (json|text) ([A-Za-z0-9+/=-]+)")

Key = tuple[str, str]
"""An answer's request id and path."""


class Answer(NamedTuple):
    """An answer as a version's proxy logged it."""

    status: int
    kind: str
    """``json`` or ``text``."""
    body: bytes


def parse_answer(line: str) -> tuple[Key, Answer] | None:
    """Return the answer that a line of a proxy's own log holds; None if it holds none."""
    found = _LINE.search(line)
    if not found:
        return None
    try:
        id, path, body = (base64.b64decode(part) if part != "-" else b"-" for part in found.group(1, 2, 5))
    except binascii.Error:
        return None
    key = id.decode(errors="replace"), path.decode(errors="replace")
    return key, Answer(int(found[3]), found[4], body)


# --- one answer beside another ----------------------------------------------------------------------------

_ABSENT = object()


def differences(ours: Answer, theirs: Answer) -> dict[str, str]:
    """Return the fields in which two answers differ, and how, as in ``1 became 2``.

    Indices of lists are folded: ``items[].price``.
    """
    if ours.kind == theirs.kind and ours.body == theirs.body:
        return {}
    found: dict[str, str] = {}
    if ours.kind == theirs.kind == "json":
        try:
            for name, difference in _unlike("", json.loads(ours.body), json.loads(theirs.body)):
                found.setdefault(name, difference)
            return found
        except (ValueError, RecursionError):  # it is no JSON, whatever its type says
            found.clear()
    lines = [answer.body.decode(errors="replace").splitlines() for answer in (ours, theirs)]
    for number, (a, b) in enumerate(zip_longest(*lines, fillvalue=_ABSENT), 1):
        if a != b:
            found[f"line {number}"] = _in_words(a, b)
    return found


def _unlike(name: str, a: Any, b: Any) -> Iterator[tuple[str, str]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a | b:
            yield from _unlike(f"{name}.{key}" if name else key, a.get(key, _ABSENT), b.get(key, _ABSENT))
    elif isinstance(a, list) and isinstance(b, list):
        for one, other in zip_longest(a, b, fillvalue=_ABSENT):
            yield from _unlike(f"{name}[]", one, other)
    elif a is not b and (a != b or isinstance(a, bool) != isinstance(b, bool)):  # Python's 1 is its True
        yield name or "(all)", _in_words(a, b)


def _in_words(a: Any, b: Any) -> str:
    if b is _ABSENT:
        return f"{_short(a)} is missing"
    return f"{_short(b)} is extra" if a is _ABSENT else f"{_short(a)} became {_short(b)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:39]}…"


# --- all answers of a version -----------------------------------------------------------------------------


@dataclass
class Field:
    """How often a field differed, and examples: request ids with the difference."""

    differs: int = 0
    """At the version, of all that were compared."""
    alone: int = 0
    """At the version and not between v1's own two answers, of those that were compared with both."""
    noise: int = 0
    """Between v1's own two answers and not at the version."""
    own: int = 0
    """Between v1's own two answers."""
    examples: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Compared:
    """What became of comparing a version's answers."""

    requests: int = 0
    """How many GETs it could have been compared in."""
    compared: int = 0
    paired: int = 0
    """How many of these were compared with a second answer of v1 as well."""
    fields: defaultdict[str, Field] = field(default_factory=lambda: defaultdict(Field))

    def add(self, id: str, theirs: dict[str, str], own: dict[str, str] | None) -> None:
        """Count the differences in one request: those of a version, and those of v1's two answers."""
        self.compared += 1
        self.paired += own is not None
        told = {self._name(name): difference for name, difference in reversed(theirs.items())}
        noise = {self._name(name) for name in own or {}}
        for name in told.keys() | noise:
            found = self.fields[name]
            found.differs += name in told
            found.own += name in noise
            found.alone += own is not None and name in told and name not in noise
            found.noise += name in noise and name not in told
            if name in told and len(found.examples) < EXAMPLES:
                found.examples.append((id, told[name]))

    def _name(self, name: str) -> str:
        name = name[:80]
        return name if name in self.fields or len(self.fields) < FIELDS else OTHERS

    def differing(self) -> tuple[list[str], list[str]]:
        """Return the fields in which a version differs from v1, and those of which it is not known.

        A field differs where it does so significantly more often than v1 from itself: a paired test
        (McNemar's, exact) of all fields together gives a false alarm once in a million times. Without pairs
        nothing is known of any field.
        """
        surely, perhaps = [], []
        for name, found in self.fields.items():
            often = found.alone + found.noise
            if found.differs and not self.paired:
                perhaps.append(name)
            elif found.alone > most_by_chance(often, 0.5, FALSE_ALARM / len(self.fields)):
                surely.append(name)
            elif found.alone > (most_by_chance(often, 0.5, DOUBT) if found.own else 0):
                perhaps.append(name)
        return surely, perhaps


class Answers:
    """The answers that wait for their story."""

    def __init__(self, ignored: tuple[str, ...] = (), *, asked_for: bool = False) -> None:
        """Compare answers, but for the fields ``ignored`` and those below them.

        :param asked_for: whether the proxies were told to log them.
        """
        self._ignored = [re.compile(rf"{re.escape(name)}($|[.\[])") for name in ignored]
        self._waiting: dict[Key, list[tuple[str, Answer]]] = {}
        self._bytes = 0
        self.wanted = asked_for
        """Whether the proxies log them, or were told to."""
        self.of: defaultdict[str, Compared] = defaultdict(Compared)
        """Version → what became of its answers."""

    def add(self, version: str, key: Key, answer: Answer) -> None:
        """Enter what a version's proxy logged."""
        self.wanted = True
        self._waiting.setdefault(key, []).append((version, answer))
        self._bytes += len(answer.body)
        while self._bytes > AT_MOST:  # their story never came
            self._take(next(iter(self._waiting)))

    def _take(self, key: Key) -> list[tuple[str, Answer]]:
        found = self._waiting.pop(key, [])
        self._bytes -= sum(len(answer.body) for _, answer in found)
        return found

    def finished(self, key: Key, primary: str, others: list[str]) -> None:
        """Compare the answers to a request: of the version that answered the caller, and of others."""
        got: defaultdict[str, list[Answer]] = defaultdict(list)
        for version, answer in self._take(key):
            got[version].append(answer)
        mine = got[primary]
        for version in others:
            compared = self.of[version]
            compared.requests += 1
            alike = [theirs for theirs in got[version] if mine and theirs.status == mine[0].status]
            if alike:
                own = [self._unlike(mine[0], more) for more in mine[1:] if more.status == mine[0].status]
                compared.add(key[0], self._unlike(mine[0], alike[0]), own[0] if own else None)

    def _unlike(self, one: Answer, other: Answer) -> dict[str, str]:
        found = differences(one, other).items()
        return {name: words for name, words in found if not any(i.match(name) for i in self._ignored)}
