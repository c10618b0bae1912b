"""The one run: follow the proxies' logs, join hops to stories, and judge; verify, load and watch are this."""

import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

from harness import HarnessError
from harness.meshes.mesh import ANSWER, LogFollower, Mesh, Progress, quietly
from harness.meshes.scene import Key as ObjectKey
from harness.meshes.scene import key
from harness.proof.answers import Answers, parse_answer
from harness.proof.counting import Counts
from harness.proof.evidence import NO_BOUNDS, Bounds, Evidence
from harness.proof.figures import Sightings
from harness.proof.ledger import Ledger
from harness.proof.period import Period
from harness.proof.stores import Stores
from harness.proof.story import Call
from harness.proof.target import Routing, Target
from harness.proof.traffic import Traffic, new_run
from harness.proof.verdict import Verdict, judge
from harness.rendering.accesslog import Hop, Unreadable, parse_line

PATIENCE = 30.0
"""Seconds that a story waits for a hop that must come, before it counts as missing."""

AT_ONCE = 20_000
"""How many lines are read before finished stories are looked for."""

Prepared = tuple[Routing, Stores | None]
"""What is applied and runs at one moment, and what the stores hold."""

_NEVER = "9"
"""A time after all others: what begins before it is not judged."""


class Watch:
    """A run that is to be judged: what is applied, and what was seen so far."""

    judges_stores = True
    """Whether what the versions write is judged, at the end."""

    def __init__(
        self, mesh: Mesh, target: Target, *, bounds: Bounds = NO_BOUNDS, patience: float = PATIENCE,
        sample: int = 1, sightings: Sightings | None = None, alarming: Callable[[Call], bool] | None = None,
    ) -> None:  # fmt: skip
        """Prepare a run.

        :param patience: seconds that a story waits for a hop that must come.
        :param sample: judge one request in so many, chosen by a hash of the request id: every proxy's log
            gives the same ones, on however many machines they are read.
        :param sightings: what callers saw, where the harness is the caller.
        :param alarming: says of a call whether ``read`` is to stop there: see ``ledger.alarm``.
        :raises HarnessError: the mesh does not run, or has no such Service.
        """
        self._alarming = alarming
        self._mesh, self.target, self._sample, self._sightings = mesh, target, sample, sightings
        self._bounds, self._patience, self.run = bounds, patience, new_run()
        self.changes: list[str] = []
        """What changed among the applied objects, each time in one line."""
        self.unjudged = 0
        self._follower: LogFollower | None = None
        self._logged: set[str] = set()
        self._told = time.monotonic(), 0
        """When figures were told, and of how many stories."""
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
        self.routing, self._stores, self._applied = routing, stores, _fingerprint(routing)
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

    # --- following ------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Follow the logs from now on: requests that began before are not judged."""
        known = self.routing.scene.pods
        self._follower = self._mesh.follow(self.target.namespace, self.target.callers, known)
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        self.period.since = before.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._follower.goes_back:
            # Streams begin with old lines, by another machine's clock: the latest of them says what is old.
            self.period.since = _NEVER
            begun = last = time.monotonic()
            while (now := time.monotonic()) < min(last + self._mesh.still + 1, begun + 5):
                hops = self.ledger.hops
                self.read_lines()
                last = now if self.ledger.hops > hops else last
                time.sleep(0.05)
            self.period.since = self.period.latest
            self.evidence.unjoined = self.evidence.unreadable = 0

    def read(self) -> bool:
        """Enter what was logged meanwhile; return whether it makes no sense to go on: a loop, or an alarm."""
        self.read_lines()
        if self.ledger.alarm:
            return True
        self.sweep(time.monotonic())
        return bool(self.evidence.loops)

    def read_first_broken(self) -> None:
        """Read on until the first story that breaks a claim has the line of each version that answered."""
        end = time.monotonic() + 2 * self._mesh.quiet
        while self.broken and time.monotonic() < end:
            got = {version for version, _ in self.broken[0].arrivals}
            if all(call.version in got for call, _ in self.broken[0].calls if call.answered):
                break
            self.read()
            time.sleep(0.02)

    def read_lines(self) -> None:
        """Enter what was logged meanwhile, and judge nothing yet."""
        assert self._follower
        for pod, line in itertools.islice(self._follower.lines(), AT_ONCE):
            self.enter(pod, line, time.monotonic())

    def enter(self, pod: str, line: str, now: float) -> None:
        if ANSWER in line:
            self._enter_answer(pod, line)
            return
        try:
            hop = parse_line(line)
        except Unreadable:
            self.evidence.unreadable += 1
            return
        if hop and self._is_sampled(hop.request_id):
            self.add(pod, hop, now)

    def _enter_answer(self, pod: str, line: str) -> None:
        found, version = parse_answer(line), self.routing.version_of_pod.get(pod)
        # Where a TrafficExtension was deleted, connections that are open log on for a while.
        asked_for = self.routing.logs_answers or self.routing.scene.unread
        if asked_for and found and version and self._is_sampled(found[0][0]):
            self.evidence.answers.add(version, *found)

    def _is_sampled(self, request_id: str) -> bool:
        return self._sample == 1 or not zlib.crc32(request_id.encode()) % self._sample

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
        before, after = self._applied, _fingerprint(routing)
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
        """Begin anew, under another name; what begins before ``blurred`` is not judged.

        :param sightings: what callers see from now on, where the harness is the caller.
        :param prepared: what ``prepare`` returned; None: it is asked for now.
        :raises MeshError: the mesh does not answer.
        """
        prepared = prepared or self.prepare()
        self.run, self._sightings, self._bounds = new_run(), sightings, bounds or self._bounds
        self.changes.clear()
        self.unjudged = 0
        self._start_anew(*prepared)

    def figures(self) -> dict[str, Any]:
        """Return how the run stands now, in the types of JSON; rates are since the last call."""
        evidence, now = self.evidence, time.monotonic()
        verdict = judge(evidence, self.run)
        (then, before), self._told = self._told, (now, evidence.stories)
        return {
            "time": datetime.now().strftime("%H:%M:%S"),
            "per_second": max(evidence.stories - before, 0) / max(now - then, 0.001),
            "requests": verdict.requests,
            "received": {side.version: side.requests for side in verdict.sides},
            "open": len(self.ledger.open),
            "failed": verdict.failed(),
            "unproven": verdict.unproven(),
            "changes": len(self.changes),
        }

    # --- the end --------------------------------------------------------------------------------------------

    def settle(self, progress: Progress = quietly) -> None:
        """Read on until every story is finished: copies come late, and are logged when they end.

        Patience bounds it, whatever keeps logging. Where the proxies say that nothing is under way any more,
        nothing is waited for.
        """
        begun = time.monotonic()
        hops, still_since, told = self.ledger.hops, begun, False
        while (now := time.monotonic()) < begun + self._patience + 2 * self._mesh.quiet:
            looped = self.read()
            if self.ledger.hops != hops:
                hops, still_since = self.ledger.hops, now
            unlogged = self._sightings.unlogged if self._sightings else 0
            if not self.period.until and not unlogged and now > begun + self._mesh.quiet:
                self.period.until = self.period.latest
            if looped and self.period.until:
                break
            lacking = self.period.lacking() or unlogged
            if now - still_since > self._mesh.quiet * (4 if lacking else 1):
                under_way = self._in_flight(self.routing.versions)
                if under_way == 0 or (under_way is None and not lacking):
                    break
            elif not lacking and "" < self.period.until < self.period.latest:
                break  # others send on, and their requests are not judged
            if now > begun + 1 and not told:
                progress("waiting for the proxies' logs")
                told = True
            time.sleep(0.02)
        self.period.end()

    def close(self) -> None:
        if self._follower:
            self._follower.close()

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
        """Enter beside the stories what the proxies cannot show."""
        self.evidence.blind = dict(self._blind())

    def _in_flight(self, versions: Iterable[str]) -> int | None:
        pods = [pod for version in versions for pod in self.routing.pods_of(version)]
        return self._mesh.in_flight([pod for pod in pods if pod.proxy])

    def _blind(self) -> Iterator[tuple[str, str]]:
        """Yield (version, reason) for each version of which a proxy cannot be read."""
        for version in self.routing.versions:
            for pod in self.routing.pods_of(version):
                if not pod.proxy:
                    yield version, f"pod {pod.name} has no sidecar, so nobody sees what arrives there"
                elif pod.name not in self._logged and not (logs := self._mesh.logs_requests(pod)):
                    what = "logs no requests" if logs is False else "does not say whether it logs requests"
                    yield version, f"the sidecar of pod {pod.name} {what}"


def _fingerprint(routing: Routing) -> dict[ObjectKey, Any]:
    """Return what changes whenever an object that routes depend on is applied, put back included."""
    return {
        key(found): [found["metadata"].get("uid"), found["metadata"].get("generation"), found.get("spec")]
        for found in routing.objects()
    }


def verify(
    mesh: Mesh, target: Target, size: int = 500, concurrency: int = 8, progress: Progress = quietly, *,
    url: str | None = None, bounds: Bounds = NO_BOUNDS, patience: float = PATIENCE,
) -> Verdict:  # fmt: skip
    """Send ``size`` requests, ``concurrency`` at a time, and return the verdict on all that passed meanwhile.

    :param url: where to send them, if not to the workshop's gateway.
    :raises HarnessError: the mesh does not run, or what is applied changed meanwhile.
    """
    sightings = Sightings()
    with closing(Watch(mesh, target, bounds=bounds, patience=patience, sightings=sightings)) as watch:
        traffic = Traffic(url or mesh.url(), watch.run, size, concurrency, target.service)
        watch.follow()
        traffic.send(sightings.saw, watch.read, progress)
        watch.settle(progress)
        return watch.verdict()
