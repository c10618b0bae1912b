"""What all browsers see: a watch that goes on, and twice a second a picture of how it stands."""

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from harness import HarnessError
from harness.live.chart import chart
from harness.live.hands import Hands, Sender, buttons, state_of
from harness.live.meter import Meter, MeteredWatch
from harness.meshes.mesh import Mesh
from harness.pages.picture import Drawing, leaked
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
        if watch := self._watch:
            for story in [story for story in watch.broken if story.key[0] == id]:
                return trace.tell(watch.evidence, story)
        return trace.find(self.mesh, self.target, id) or ["no proxy's log has it any more"]

    # --- following ------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        while not self.closed.is_set():
            problem = ""
            try:
                self._watch = self._watch or self._new_watch()
                with contextlib.closing(self._watch) as watch:
                    watch.follow()
                    self._begin(watch)
                    self._go_on(watch)
            except Exception as error:
                unexpected = "" if isinstance(error, HarnessError) else f"{type(error).__name__}: "
                problem = f"{unexpected}{error}"
            self._watch = None
            self._publish({"head": templates.get_template("away.html").render(problem=problem)}, problem)
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
                verdict = judge(watch.evidence, watch.run)
                if not self._may_be_a_change(verdict, now):
                    self._publish(*self._shown(watch, verdict))
            time.sleep(0.02)

    def _may_be_a_change(self, verdict: Verdict, now: float) -> bool:
        """Say whether what fails may be a route that proxies know a moment before anybody is told."""
        if not verdict.failed():
            self._failing = 0.0
            return False
        self._failing = self._failing or now
        return now < self._failing + (SETTLED if not self.hands.doing else 10 * SETTLED)

    def _publish(self, parts: Mapping[str, str], said: str) -> None:
        """Show the parts of the page, as HTML; what is said is read out when it changes."""
        snapshot = json.dumps({"run": self.run, "parts": parts, "say": said})
        with self.changed:
            self.snapshot = snapshot
            self.changed.notify_all()

    def _shown(self, watch: MeteredWatch, verdict: Verdict) -> tuple[Mapping[str, str], str]:
        leaks, routing, now = leaked(watch.evidence), watch.routing, time.time()
        known: dict[str, Any] = {
            "live": self, "verdict": verdict, "leaks": leaks, "since": f"{self._since:%H:%M:%S}",
            "picture": Drawing(verdict, self._meter.edges, self._meter.figures(routing)).picture(),
            "claims": sorted(verdict.claims, key=lambda claim: ORDER[claim.state]),
            "routes": [("the route", rules_in(routing))], "state": state_of(routing),
            "chart": chart(self._meter, routing.copied, [(now - at, words) for at, words in self._marks]),
        }  # fmt: skip
        names = ("head.html", "picture.svg", "claims.html", "routes.html", "chart.svg", "hands.html")
        parts = {n.partition(".")[0]: templates.get_template(n).render(known) for n in names}
        leak = "".join(f"Leak: callers saw {name}. " for name in leaks)
        return parts, f"{leak}{verdict.word}. {verdict.routes}"
