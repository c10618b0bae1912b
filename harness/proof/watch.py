"""The watch: a run that follows the proxies' logs until all is known; verify, load and watch are this."""

import itertools
import time
import zlib
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

from harness.meshes.mesh import ANSWER, LogFollower, Mesh, Progress, quietly
from harness.proof.answers import parse_answer
from harness.proof.evidence import NO_BOUNDS, Bounds
from harness.proof.figures import Sightings
from harness.proof.run import PATIENCE, Run
from harness.proof.target import Target
from harness.proof.traffic import Traffic
from harness.proof.verdict import Verdict, judge
from harness.rendering.accesslog import Unreadable, parse_line

AT_ONCE = 20_000
"""How many lines are read before finished stories are looked for."""

_NEVER = "9"
"""A time after all others: what begins before it is not judged."""


class Watch(Run):
    """A run that follows what the proxies log, and ends when all is known of it."""

    _follower: LogFollower | None = None
    _sample = 1
    _told = 0.0, 0
    """When figures were told, and of how many stories."""

    def follow(self, sample: int = 1) -> None:
        """Follow the logs from now on: requests that began before are not judged.

        :param sample: judge one request in so many, chosen by a hash of the request id: every proxy's log
            gives the same ones, on however many machines they are read.
        """
        self._sample, self._told = sample, (time.monotonic(), 0)
        known = self.routing.scene.pods
        self._follower = self._mesh.follow(self.target.namespace, self.target.callers, known)
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        self.period.since = before.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._follower.goes_back:
            # Streams begin with old lines, by another machine's clock: the latest of them says what is old.
            self.period.since = _NEVER
            begun = time.monotonic()
            while time.monotonic() < min(max(begun, self.ledger.moved) + self._mesh.still + 1, begun + 5):
                self.read_lines()
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

    def settle(self, progress: Progress = quietly) -> None:
        """Read on until every story is finished: copies come late, and are logged when they end.

        Patience bounds it, whatever keeps logging. Where the proxies say that nothing is under way any more,
        nothing is waited for.
        """
        begun, told = time.monotonic(), False
        while (now := time.monotonic()) < begun + self._patience + 2 * self._mesh.quiet:
            looped = self.read()
            unlogged = self._sightings.unlogged if self._sightings else 0
            if not self.period.until and not unlogged and now > begun + self._mesh.quiet:
                self.period.until = self.period.latest
            if looped and self.period.until:
                break
            lacking = self.period.lacking() or unlogged
            if now - max(begun, self.ledger.moved) > self._mesh.quiet * (4 if lacking else 1):
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
