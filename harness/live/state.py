"""What all browsers see: a watch that goes on, and twice a second a picture of how it stands."""

import contextlib
import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from harness import HarnessError
from harness.live.hands import Hands, Sender, buttons, state_of
from harness.live.meter import SECONDS, Meter, MeteredWatch, Row
from harness.meshes.mesh import Mesh
from harness.pages.picture import draw, leaked
from harness.pages.report import rules_in, templates
from harness.proof import trace
from harness.proof.target import Target
from harness.proof.traffic import new_run
from harness.proof.verdict import Verdict, judge

EVERY = 0.5
"""Seconds from one picture to the next."""

SETTLED = 1.2
"""Seconds after which a failure is no route that is being applied: what is applied is asked more often."""

ORDER = {"fails": 0, "unproven": 1, "holds": 2}
"""What is shown first."""


class Live:
    """The state behind the page."""

    def __init__(self, mesh: Mesh, target: Target, *, read_only: bool = False) -> None:
        """Look at a target.

        :raises HarnessError: the mesh does not run, or has no such Service.
        """
        self.run = new_run()
        """The name of this process: after a restart it is another."""
        self.mesh, self.target, self.read_only = mesh, target, read_only
        self.hands = Hands(mesh, () if read_only else buttons(mesh, target))
        self.sender = Sender(mesh.url)
        self.changed = threading.Condition()
        self.snapshot = ""
        self.closed = threading.Event()
        # On a cluster lines come late, and many at once.
        self._meter = Meter(max(3, round(3 * mesh.quiet)))
        self._marks = deque[tuple[float, str]](maxlen=20)
        self._look, self._anew = threading.Event(), threading.Event()
        self._since = datetime.now()
        self._problem = ""
        self._failing = 0.0
        """Since when a claim fails, by the monotonic clock; 0: none does."""
        self._watch: MeteredWatch | None = self._new_watch()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _new_watch(self) -> MeteredWatch:
        # A copy that takes longer is missing until it comes; people do not look at a page for half a minute.
        return MeteredWatch(self.mesh, self.target, self._meter, patience=max(2.0, 2 * self.mesh.quiet))

    def close(self) -> None:
        """End."""
        self.closed.set()
        with self.changed:
            self.changed.notify_all()
        self._thread.join(timeout=10)

    # --- what the page asks for -----------------------------------------------------------------------------

    def events(self) -> Iterator[str]:
        """Yield each snapshot as it comes, from the newest on: server-sent events."""
        while not self.closed.is_set():
            snapshot = self.snapshot
            yield f"retry: 1000\ndata: {snapshot}\n\n"  # which takes as long as a browser sleeps
            with self.changed:
                if self.snapshot is snapshot:
                    self.changed.wait(timeout=5)

    def press(self, id: str) -> bool:
        """Do what a button says; return whether nothing else was under way.

        :raises KeyError: there is no such button.
        """
        if id == "anew":
            self._anew.set()
            return True
        return self.hands.press(id, self._look.set)

    def story(self, id: str) -> list[str]:
        """Return the story of a request, line by line.

        :raises HarnessError: the mesh does not answer.
        """
        watch = self._watch
        for story in list(watch.broken) if watch else ():
            if story.key[0] == id:
                assert watch
                return trace.tell(watch.evidence, story)
        return trace.find(self.mesh, self.target, id) or ["no proxy's log has it any more"]

    # --- following ------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        while not self.closed.is_set():
            try:
                self._watch = self._watch or self._new_watch()
                with contextlib.closing(self._watch) as watch:
                    watch.follow()
                    self._problem = ""
                    self._begin(watch)
                    self._go_on(watch)
            except HarnessError as error:
                self._problem = str(error)
            except Exception as error:
                self._problem = f"{type(error).__name__}: {error}"
            self._publish(None)
            self._watch = None
            self.closed.wait(1)

    def _begin(self, watch: MeteredWatch) -> None:
        self._since = datetime.now()
        self._marks.append((time.time(), judge(watch.evidence).routes))

    def _go_on(self, watch: MeteredWatch) -> None:
        look = shown = 0.0
        while not self.closed.is_set():
            watch.read()
            now = time.monotonic()
            if self._anew.is_set():
                self._anew.clear()
                watch.renew()
                self._begin(watch)
            if now >= look or self._look.is_set():
                self._look.clear()
                watch.look()
                watch.survey()
                spent = time.monotonic() - now
                look = now + max(1.0, 5 * spent)  # on a cluster it takes a while, and lines wait meanwhile
            if watch.changes:
                watch.changes.clear()
                self._begin(watch)
            if now >= shown + EVERY:
                shown = now
                if not self._may_be_a_change(watch, now):
                    self._publish(watch)
            time.sleep(0.02)

    def _may_be_a_change(self, watch: MeteredWatch, now: float) -> bool:
        """Say whether what fails may be a route that proxies know a moment before anybody is told."""
        if not judge(watch.evidence).failed():
            self._failing = 0.0
            return False
        self._failing = self._failing or now
        return now < self._failing + (SETTLED if not self.hands.doing else 10 * SETTLED)

    def _publish(self, watch: MeteredWatch | None) -> None:
        snapshot = json.dumps({"run": self.run, **self._shown(watch)})
        with self.changed:
            self.snapshot = snapshot
            self.changed.notify_all()

    def _shown(self, watch: MeteredWatch | None) -> dict[str, Any]:
        """Return what the page shows: its parts as HTML, and what is read out when it changes."""
        if not watch:
            parts = {"head": templates.get_template("away.html").render(problem=self._problem)}
            return {"parts": parts, "say": self._problem}
        verdict = judge(watch.evidence, watch.run)
        leaks = leaked(watch.evidence)
        routing = watch.routing
        picture = draw(verdict, self._meter.edges, self._meter.figures(routing))
        known: dict[str, Any] = {
            "verdict": verdict, "leaks": leaks, "since": f"{self._since:%H:%M:%S}", "picture": picture,
            "claims": sorted(verdict.claims, key=lambda claim: ORDER[claim.state]), "live": self,
            "routes": [("the route", rules_in(routing))], "chart": self._chart(verdict),
            "state": state_of(routing), "hands": self.hands, "sender": self.sender,
            "read_only": self.read_only,
        }  # fmt: skip
        names = ("head.html", "picture.svg", "claims.html", "routes.html", "chart.svg", "hands.html")
        parts = {n.partition(".")[0]: templates.get_template(n).render(known) for n in names}
        leak = "".join(f"Leak: callers saw {name}. " for name in leaks)
        return {"parts": parts, "say": f"{leak}{verdict.word}. {verdict.routes}"}

    def _chart(self, verdict: Verdict) -> dict[str, Any]:
        """Return the time line: of callers and of each version that gets copies, its points in percent."""
        assert verdict.evidence
        routing = verdict.evidence.routing
        sides = {"callers": ("", "", "callers"), **{name: ("", name, "in") for name in routing.copied}}
        series = {name: list(self._meter.series(way)) for name, way in sides.items()}
        marks = [(100 - 100 * (time.time() - at) / SECONDS, words) for at, words in self._marks]
        charts = []
        for title, unit, columns in (("requests a second", "/s", (1,)), ("p50 and p99", " ms", (2, 3))):
            values = [row[c] or 0 for rows in series.values() for row in rows for c in columns]
            top = _round_up(max(values, default=0))
            lines = [
                (name, "p99" if column == 3 else "", list(_points(rows, column, top)))
                for name, rows in series.items()
                for column in columns
            ]
            charts.append({"title": title, "top": f"{top:,}{unit}", "lines": lines})
        return {"charts": charts, "marks": [mark for mark in marks if mark[0] >= 0]}


def _points(rows: list[Row], column: int, top: float) -> Iterator[str]:
    """Yield the lines of one figure, in percent; where there was none, a line is interrupted."""
    for is_there, part in itertools.groupby(rows, key=lambda row: row[column] is not None):
        if is_there:
            yield " ".join(
                f"{100 - 100 * row[0] / SECONDS:.1f},{100 - 100 * (row[column] or 0) / top:.1f}"
                for row in part
            )


def _round_up(value: float) -> int:
    """Return a round number that is not below a value."""
    step = next(s for p in range(1, 9) for s in (10**p, 2 * 10**p, 5 * 10**p) if s >= min(value, 10**8))
    return int(step)
