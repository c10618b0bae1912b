"""What the proof can do on one core: three proxies' logs of as many requests as wanted, fed to a watch.

``python -m loadtest.bench.replay 1000000`` feeds it a million requests, for whoever looks at its memory.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import cast

import yaml

from harness.meshes.mesh import ROOT, WORKLOADS, Mesh
from harness.meshes.scene import Pod, Scene
from harness.proof.target import Target
from harness.proof.watch import Watch
from harness.rendering.accesslog import parse_line
from harness.terminal import collect_rarely

RATE = 25_000
"""Requests in a second of the logs' own time."""

BATCH = 1000
"""How many requests one proxy logs before the next proxy's lines are read."""

Line = tuple[str, str]
"""A pod, and what its proxy logged."""

TEXT = (
    '[%(start)s] "%(method)s /?item=%(number)d HTTP/1.1" 200 - via_upstream - "-" %(received)d 66'
    ' %(duration)d %(duration)d "%(forwarded)s" "Mozilla/5.0 (X11; Linux x86_64)" "%(id)s"'
    ' "recommendation:8080" "%(upstream)s" %(cluster)s 10.244.0.11:38342 10.96.12.7:8080'
    " %(remote)s %(server)s %(route)s"
)
JSON = json.dumps(
    {
        "start_time": "%(start)s", "method": "%(method)s", "path": "/?item=%(number)d",
        "protocol": "HTTP/1.1", "response_code": "200", "response_flags": "-",
        "response_code_details": "via_upstream", "connection_termination_details": None,
        "upstream_transport_failure_reason": None,
        "bytes_received": "%(received)d", "bytes_sent": "66", "duration": "%(duration)d",
        "upstream_service_time": "%(duration)d", "x_forwarded_for": None,
        "user_agent": "Mozilla/5.0 (X11; Linux x86_64)", "request_id": "%(id)s",
        "authority": "recommendation:8080", "upstream_host": "%(upstream)s",
        "upstream_cluster": "%(cluster)s", "upstream_local_address": "10.244.0.11:38342",
        "downstream_local_address": "10.96.12.7:8080", "downstream_remote_address": "%(remote)s",
        "requested_server_name": "%(server)s", "route_name": "%(route)s",
    }
)  # fmt: skip
HOST = "recommendation.tutorial.svc.cluster.local"
PROXIES = {
    "preference": {
        "upstream": "10.244.0.12:8080", "cluster": f"outbound|8080|v1|{HOST}", "forwarded": "-",
        "remote": "10.244.0.11:51234", "server": "-", "route": "mirror",
    },
    "v1": {
        "upstream": "10.244.0.12:8080", "cluster": "inbound|8080||", "forwarded": "-",
        "remote": "10.244.0.11:38342", "server": f"outbound_.8080_.v1_.{HOST}", "route": "default",
    },
    "v2": {
        "upstream": "10.244.0.13:8080", "cluster": "inbound|8080||", "forwarded": "10.244.0.11",
        "remote": "10.244.0.11:0", "server": f"outbound_.8080_.v2_.{HOST}", "route": "default",
    },
}  # fmt: skip


class Stage:
    """As much of a mesh as a watch asks of it, with times as in a cluster."""

    still, quiet = 1.5, 3.0

    def scene(self, namespace: str, callers: Iterable[str] = ()) -> Scene:
        """Return the workshop with its mirror."""
        files = [*WORKLOADS, ROOT / "istio" / "destination-rule.yaml", ROOT / "istio" / "mirror.yaml"]
        objects = [found for path in files for found in yaml.safe_load_all(path.read_text())]
        pods = [
            Pod("preference", namespace, "preference", {"app": "preference"}, ("10.244.0.11",)),
            *(
                Pod(v, namespace, f"recommendation-{v}", {"app": "recommendation", "version": v}, (address,))
                for v, address in (("v1", "10.244.0.12"), ("v2", "10.244.0.13"))
            ),
        ]
        return Scene(namespace, tuple(objects), tuple(pods))

    def secrets(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return none: nobody writes anything."""
        return {}

    def logs_requests(self, pod: Pod) -> bool:
        """Say that a pod's proxy logs requests."""
        return True


def batches(count: int, form: str) -> Iterator[list[Line]]:
    """Yield what the proxies log of ``count`` requests, batch by batch; each copy comes a batch late."""
    copies: list[Line] = []
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        yield [*_lines("v1", numbers, form), *_lines("preference", numbers, form), *copies]
        copies = [*_lines("v2", numbers, form)]
    yield copies


def _lines(pod: str, numbers: Iterable[int], form: str) -> Iterator[Line]:
    fields: dict[str, str | int] = {**PROXIES[pod]}
    for number in numbers:
        seconds = number // RATE
        fields |= {
            "start": f"2026-11-{1 + seconds // 86400:02}T{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}"
            f":{seconds % 60:02}.{number % RATE * 1000 // RATE:03}Z",
            "method": "POST" if number % 2 else "GET",
            "number": number,
            "received": number % 2 * 31,
            "duration": 3 + number * 7 % 23,
            "id": f"{number:08x}-78ad-483f-9870-d15ae69b2dff",
        }
        yield pod, form % fields


def parse(count: int, form: str) -> float:
    """Return how many requests a second of one core's time can be parsed."""
    spent = 0.0
    for batch in batches(count, form):
        begin = time.process_time()
        for _, line in batch:
            parse_line(line)
        spent += time.process_time() - begin
    return count / spent


def judge(count: int, form: str = TEXT) -> float:
    """Return how many requests a second of one core's time can be judged.

    :raises AssertionError: the verdict is not that every request was copied once.
    """
    target = Target(namespace="tutorial")
    watch = Watch(cast(Mesh, Stage()), target)
    spent = now = 0.0
    for batch in batches(count, form):
        begin = time.process_time()
        for pod, line in batch:
            watch.enter(pod, line, now)
        watch.sweep(now)
        spent += time.process_time() - begin
        now += BATCH / RATE
    begin = time.process_time()
    watch.sweep(now + Stage.still)
    verdict = watch.verdict()
    spent += time.process_time() - begin
    assert verdict.passed, verdict
    assert verdict.requests == count, verdict
    return count / spent


def main() -> None:
    """Judge as many requests as the command line says."""
    collect_rarely()
    print(f"{judge(int(sys.argv[1])):,.0f} requests/s")


if __name__ == "__main__":
    main()
