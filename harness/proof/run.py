"""The run: the stories of a target, judged by what is applied; it begins anew whenever that changes."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from harness import HarnessError
from harness.meshes.mesh import Mesh
from harness.meshes.scene import Key, key
from harness.proof.answers import Answers
from harness.proof.counting import Counts
from harness.proof.evidence import NO_BOUNDS, Bounds, Evidence
from harness.proof.figures import Sightings
from harness.proof.ledger import Ledger
from harness.proof.period import Period
from harness.proof.stores import Stores
from harness.proof.story import Call
from harness.proof.target import Routing, Target
from harness.proof.traffic import new_run
from harness.proof.verdict import Verdict, judge
from harness.rendering.accesslog import Hop

PATIENCE = 30.0
"""Seconds that a story waits for a hop that must come, before it counts as missing."""

Prepared = tuple[Routing, Stores | None]
"""What is applied and runs at one moment, and what the stores hold."""


class Run:
    """A run that is to be judged: what is applied, and what was seen so far."""

    judges_stores = True
    """Whether what the versions write is judged, at the end."""

    def __init__(
        self, mesh: Mesh, target: Target, *, bounds: Bounds = NO_BOUNDS, patience: float = PATIENCE,
        sightings: Sightings | None = None, alarming: Callable[[Call], bool] | None = None,
    ) -> None:  # fmt: skip
        """Prepare a run.

        :param patience: seconds that a story waits for a hop that must come.
        :param sightings: what callers saw, where the harness is the caller.
        :param alarming: says of a call whether nothing may be waited for any more: see ``ledger.alarm``.
        :raises HarnessError: the mesh does not run, or has no such Service.
        """
        self._mesh, self.target, self._sightings, self._alarming = mesh, target, sightings, alarming
        self._bounds, self._patience, self.run = bounds, patience, new_run()
        self.changes: list[str] = []
        """What changed among the applied objects, each time in one line."""
        self.unjudged = 0
        self._logged: set[str] = set()
        """The pods whose proxies have logged anything."""
        self._start(*self.prepare(), "", 0.0)

    def prepare(self) -> Prepared:
        """Ask what is applied and runs now, and what the stores hold, for ``renew``; any thread may do so.

        :raises HarnessError: the mesh does not run, or has no such Service.
        """
        routing = self._resolve()
        return routing, self._stores_for(routing)

    def _resolve(self) -> Routing:
        self._asked = time.monotonic()
        return Routing(self._mesh.scene(self.target.namespace, self.target.callers), self.target)

    def _stores_for(self, routing: Routing) -> Stores | None:
        return Stores(self._mesh, routing) if self.judges_stores else None

    def _start(self, routing: Routing, stores: Stores | None, since: str, blurred: float) -> None:
        self.routing, self._stores = routing, stores
        answers = Answers(self._bounds.ignored, asked_for=routing.logs_answers)
        self.evidence = Evidence(routing, sightings=self._sightings, bounds=self._bounds, answers=answers)
        self.ledger = Ledger(self.evidence, self._mesh.still, self._patience, self._alarming)
        self.counts = Counts(self.evidence, self.run, writes=bool(stores))
        self.period = Period(self.ledger, self.counts, since=since, blurred=blurred)
        self.broken = self.evidence.broken
        """The first stories that break a claim."""

    def _start_anew(self, routing: Routing, stores: Stores | None) -> None:
        """Judge by what is applied now, and nothing that began before."""
        # Proxies take what is new a moment later; what begins before is judged by neither.
        self._start(routing, stores, self.period.latest, time.monotonic() + self._mesh.quiet)

    def add(self, pod: str, hop: Hop, now: float) -> None:
        if pod not in self._logged:
            if pod not in self.routing.pods:
                self.look()
            self._logged.add(pod)
        self.period.add(pod, hop, now)

    def sweep(self, now: float) -> None:
        """Judge what is finished; what breaks a claim, once it is known that what is applied is unchanged."""
        self.period.sweep(now)
        if self.period.suspects and now > self._asked + self._mesh.still / 2:
            self._judge_suspects()

    def _judge_suspects(self) -> None:
        """Look again at what is applied; judge what breaks a claim if it is the same."""
        if not self.look():
            self.period.count_suspects()

    def look(self) -> bool:
        """Look again at what is applied and what runs; return whether what is applied changed."""
        routing = self._resolve()
        before, after = _fingerprint(self.routing), _fingerprint(routing)
        changed = [k for k in before | after if before.get(k) != after.get(k)]
        if not changed and routing.rules == self.routing.rules:
            self.routing = routing
            self.ledger.reroute(routing)
            return False
        objects = ", ".join(f"{kind.lower()}/{name}" for kind, _, name in changed)
        behind = f"what stands behind {self.target.service}'s routes changed"
        self.changes.append(f"what is applied changed: {objects}" if changed else behind)
        self.unjudged += self.evidence.stories + self.period.lacking() + len(self.period.suspects)
        self._start_anew(routing, self._stores_for(routing))
        return True

    def renew(
        self, sightings: Sightings | None = None, bounds: Bounds | None = None,
        prepared: Prepared | None = None,
    ) -> None:  # fmt: skip
        """Begin anew, under another name; what begins before ``period.blurred`` is not judged.

        :param sightings: what callers see from now on, where the harness is the caller.
        :param prepared: what ``prepare`` returned; None: it is asked for now.
        :raises MeshError: the mesh does not answer.
        """
        prepared = prepared or self.prepare()
        self.run, self._sightings, self._bounds = new_run(), sightings, bounds or self._bounds
        self.changes.clear()
        self.unjudged = 0
        self._start_anew(*prepared)

    def verdict(self) -> Verdict:
        """Judge what was seen.

        :raises HarnessError: what is applied changed meanwhile, in a run of the harness's own traffic.
        """
        self._judge_suspects()
        if self.changes and self._sightings:
            nothing = "during the run, so nothing can be said of it: run it again"
            raise HarnessError(f"{self.changes[-1]}, {nothing}")
        self.survey()
        under_way = {version: self._in_flight([version]) for version in self.routing.versions if self.broken}
        self.evidence.under_way = {version: count for version, count in under_way.items() if count}
        # A log is late by that much at most: what has waited longer lacks a hop.
        self.evidence.overdue = self.period.overdue(time.monotonic() - 2 * self._mesh.quiet)
        self.evidence.stored = self._stores.read(self.routing) if self._stores else None
        return judge(self.evidence, self.run, self.unjudged + self.period.lacking())

    def survey(self) -> None:
        """Enter beside the stories which versions have a proxy that cannot be read."""
        blind: dict[str, str] = {}
        for version in self.routing.versions:
            for pod in self.routing.pods_of(version):
                if not pod.proxy:
                    blind[version] = f"pod {pod.name} has no sidecar, so nobody sees what arrives there"
                elif pod.name not in self._logged and not (logs := self._mesh.logs_requests(pod)):
                    what = "logs no requests" if logs is False else "does not say whether it logs requests"
                    blind[version] = f"the sidecar of pod {pod.name} {what}"
        self.evidence.blind = blind

    def _in_flight(self, versions: Iterable[str]) -> int | None:
        pods = [pod for version in versions for pod in self.routing.pods_of(version)]
        return self._mesh.in_flight([pod for pod in pods if pod.proxy])


def _fingerprint(routing: Routing) -> dict[Key, Any]:
    """Return what changes whenever an object that routes depend on is applied, put back included."""
    return {
        key(found): [found["metadata"].get("uid"), found["metadata"].get("generation"), found.get("spec")]
        for found in routing.objects()
    }
