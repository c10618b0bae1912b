"""What a watch makes of a scene: of objects, pods and lines of logs, as a cluster gives them."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import yaml

from harness import Json
from harness.cluster.scene import tell_apart
from harness.meshes.mesh import ROOT, LogFollower
from harness.meshes.scene import Pod, Scene
from harness.proof.attribution import Attribution
from harness.proof.status import status_of
from harness.proof.target import Routing, Target
from harness.proof.watch import Watch
from harness.rendering.accesslog import parse_line

FOREIGN = ROOT / "tests" / "foreign"
TARGET = Target("pricing", "shop")
PRIMARY, CANARY = "10.0.0.2", "10.0.0.3"


def objects(namespace: str, *names: str) -> list[Json]:
    """Return the objects of manifests, as a cluster has them."""
    found = [d for name in names for d in yaml.safe_load_all((FOREIGN / f"{name}.yaml").read_text())]
    return [{**d, "metadata": {**d["metadata"], "namespace": namespace, "generation": 1}} for d in found]


def pod(workload: str, address: str, namespace: str = "shop", **labels: str) -> Pod:
    """Return a pod."""
    return Pod(f"{workload}-0", namespace, workload, labels, (address,), {"9090": "9090"})


PODS = (
    pod("storefront", "10.0.0.1", component="storefront"),
    pod("pricing-primary", PRIMARY, component="pricing", track="stable"),
    pod("pricing-canary", CANARY, component="pricing", track="canary"),
)


def scene(*others: Any, pods: tuple[Pod, ...] = PODS) -> Scene:
    """Return the shop, and other objects beside it."""
    return Scene("shop", (*objects("shop", "kubernetes", "mirror"), *others), pods)


def call(at: str, id: str, authority: str = "pricing", to: str = "pricing-primary") -> tuple[str, str]:
    """Return the line that storefront's proxy logs."""
    return "storefront-0", (
        f'[2026-11-25T12:00:{at}Z] "GET /v2/quote HTTP/1.1" 200 - via_upstream - "-" 0 33 1 1 "-" "python" '
        f'"{id}" "{authority}" "{PRIMARY}:9090" outbound|80||{to}.shop.svc.cluster.local '
        "10.0.0.1:3 10.9.0.1:80 10.0.0.1:2 - -"
    )


def arrival(at: str, id: str, workload: str) -> tuple[str, str]:
    """Return the line that a version's proxy logs."""
    return f"{workload}-0", (
        f'[2026-11-25T12:00:{at}Z] "GET /v2/quote HTTP/1.1" 200 - via_upstream - "-" 0 33 1 1 "-" "python" '
        f'"{id}" "pricing" "{PRIMARY}:9090" inbound|9090|| 127.0.0.6:3 {PRIMARY}:9090 10.0.0.1:2 - default'
    )


class Script(LogFollower):
    """Hands out lines, those from before first."""

    goes_back = True

    def __init__(self, lines: list[tuple[str, str]]) -> None:
        self.waiting = lines

    def lines(self) -> Iterator[tuple[str, str]]:
        while self.waiting:
            yield self.waiting.pop(0)


class Cluster:
    """As much of a mesh as a watch needs."""

    still = quiet = 0.05

    def __init__(self, before: Iterable[tuple[str, str]] = ()) -> None:
        self.now = scene()
        self.log = Script(list(before))

    def scene(self, namespace: str, callers: Iterable[str] = ()) -> Scene:
        return self.now

    def follow(self, namespace: str, callers: Iterable[str] = (), known: Iterable[Pod] = ()) -> LogFollower:
        return self.log

    def in_flight(self, pods: Iterable[Pod]) -> int | None:
        return None

    def logs_requests(self, pod: Pod) -> bool | None:
        return True


def watched(cluster: Any, *lines: tuple[str, str], patience: float = 0.5) -> Watch:
    """Return a watch that has seen lines."""
    watch = Watch(cluster, TARGET, patience=patience)
    watch.follow()
    cluster.log.waiting += lines
    watch.read()
    watch.settle()
    return watch


WHOLE = [call("30.000", "new"), arrival("30.001", "new", "pricing-primary"),
         arrival("30.001", "new", "pricing-canary")]  # fmt: skip


def test_a_request_that_began_before_the_watch_is_not_judged() -> None:
    before = [call("10.000", "old"), arrival("10.001", "old", "pricing-primary"), call("10.000", "-")]
    verdict = watched(Cluster(before), *WHOLE).verdict()
    assert verdict.passed
    assert verdict.requests == 1


def test_a_change_in_another_namespace_does_not_disturb() -> None:
    cluster = Cluster()
    watch = watched(cluster, *WHOLE)
    cluster.now = scene(*objects("staging", "kubernetes", "mirror"))
    assert watch.verdict().requests == 1
    assert watch.changes == []


def test_a_change_of_the_pods_behind_a_route_is_judged_anew() -> None:
    cluster = Cluster()
    watch = watched(cluster, *WHOLE)
    both = pod("surprise", "10.0.0.9", component="pricing", track="stable")
    cluster.now = scene(pods=(*PODS, both))
    assert watch.verdict().requests == 0
    assert watch.changes == ["what stands behind pricing's routes changed"]


def test_a_workload_of_the_same_name_elsewhere_is_another() -> None:
    elsewhere = pod("pricing-canary", "10.1.0.3", "staging", component="other")
    pods = tuple(tell_apart([elsewhere, *PODS], "shop"))
    assert [p.name for p in pods][-1] == "staging/pricing-canary-0"
    routing = Routing(scene(pods=pods), TARGET)
    assert list(routing.versions) == ["pricing-primary", "pricing-canary"]
    hop = parse_line(call("00.000", "id")[1])
    assert hop
    for address, version in ((CANARY, "pricing-canary"), ("10.1.0.3", None)):
        to_pod = hop._replace(upstream=f"{address}:9090", cluster="PassthroughCluster")
        assert Attribution(routing).version_of_call(to_pod) == version


@pytest.mark.parametrize(
    "authority",
    [
        "pricing",
        "pricing:80",
        "PRICING",
        "pricing.shop",
        "pricing.shop.svc",
        "pricing.shop.svc.cluster.local.",
    ],
)
def test_every_name_of_the_service_asks_for_the_target(authority: str) -> None:
    hop = parse_line(call("00.000", "id", authority)[1])
    assert hop
    assert Attribution(Routing(scene(), TARGET)).is_for_target(PODS[0], hop)


def test_a_call_to_another_service_of_a_version_is_beside_the_target() -> None:
    lines = [call("31.000", "beside", "pricing-primary"), arrival("31.001", "beside", "pricing-primary")]
    verdict = watched(Cluster(), *WHOLE, *lines).verdict()
    assert verdict.passed
    assert verdict.requests == 1
    copied = [*lines, arrival("31.001", "beside", "pricing-canary")]
    assert watched(Cluster(), *WHOLE, *copied).verdict().failed() == ["exactly-once"]


def test_a_version_that_is_mirrored_to_may_answer_only_where_a_route_says_so() -> None:
    both = pod("pricing-canary", CANARY, component="pricing", track="stable", copy="yes")
    copies = {"kind": "Service", "metadata": {"name": "copies"}, "spec": {"selector": {"copy": "yes"}}}
    mirror: Json = yaml.safe_load((FOREIGN / "mirror.yaml").read_text())
    [http] = mirror["spec"]["http"]
    http["mirror"]["host"] = "copies"

    def words() -> str:
        services = [o for o in objects("shop", "kubernetes") if o["kind"] == "Service"]
        found = Scene("shop", (*services, copies, mirror), (PODS[1], both))
        return Routing(found, TARGET).rules[0].expectation.describe()

    assert words() == "all to pricing-primary; mirrored 100 % to pricing-canary"
    http["route"] = [{**http["route"][0], "weight": 90}, {"destination": {"host": "copies"}, "weight": 10}]
    assert words() == "to pricing-primary and pricing-canary; mirrored 100 % to pricing-canary"


def test_a_status_shows_no_routes_of_other_namespaces() -> None:
    cluster: Any = Cluster()
    cluster.now = scene(*objects("staging", "mirror"))
    said = [line for line in status_of(cluster, TARGET) if line.startswith("virtualservice")]
    assert said == ["virtualservice/pricing: all to pricing-primary; mirrored 100 % to pricing-canary"]
