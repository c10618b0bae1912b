"""A scene made from the workshop's own files, and hops as its proxies log them."""

from typing import Any

import yaml

from harness.meshes.mesh import ROOT, WORKLOADS
from harness.meshes.scene import Pod, Scene
from harness.proof.target import Target
from harness.proof.verdict import Verdict
from harness.proof.watch import Watch
from harness.rendering.accesslog import Hop

PODS = {
    "gateway": Pod(
        "gateway", "istio-system", "gateway", {"istio": "ingressgateway"}, ("10.0.0.1",), gateway=True
    ),
    "customer": Pod("customer", "tutorial", "customer", {"app": "customer"}, ("10.0.0.2",)),
    "preference": Pod("preference", "tutorial", "preference", {"app": "preference"}, ("10.0.0.3",)),
    "v1": Pod(
        "v1", "tutorial", "recommendation-v1", {"app": "recommendation", "version": "v1"}, ("10.0.1.1",)
    ),
    "v2": Pod(
        "v2", "tutorial", "recommendation-v2", {"app": "recommendation", "version": "v2"}, ("10.0.2.1",)
    ),
}


def documents(*names: str) -> list[dict[str, Any]]:
    """Return the objects of files of the folder istio."""
    return [d for name in names for d in yaml.safe_load_all((ROOT / "istio" / f"{name}.yaml").read_text())]


def scene(*extra: dict[str, Any], state: str = "mirror", pods: dict[str, Pod] = PODS) -> Scene:
    """Return the workshop with a state of its route, or with ``extra`` objects in place of that."""
    workloads = [d for path in WORKLOADS for d in yaml.safe_load_all(path.read_text())]
    routes = [] if extra else documents(state)
    objects = [*workloads, *documents("gateway", "destination-rule"), *routes, *extra]
    return Scene("tutorial", tuple(objects), tuple(pods.values()))


def virtual_service(*http: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Return a VirtualService for recommendation with rules."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "recommendation"},
        "spec": {"hosts": ["recommendation"], "http": list(http), **spec},
    }


def hop(number: int = 0, **fields: Any) -> Hop:
    """Return a request at some proxy."""
    known = {
        "start": f"2026-11-25T12:00:{number // 1000 % 60:02}.{number % 1000:03}Z", "method": "GET",
        "path": f"/?item={number}", "status": 200, "flags": "-", "details": "via_upstream", "received": 0,
        "sent": 54, "duration": 3, "agent": "curl/8", "request_id": f"id-{number}",
        "authority": "recommendation:8080", "upstream": "10.0.1.1:8080",
        "cluster": "outbound|8080|v1|recommendation.tutorial.svc.cluster.local",
        "route": "mirror",
    }  # fmt: skip
    return Hop(**(known | fields))


def called(number: int = 0, **fields: Any) -> tuple[str, Hop]:
    """Return a call of preference's, answered by v1 unless ``fields`` say otherwise."""
    return "preference", hop(number, **fields)


def arrived(version: str, number: int = 0, **fields: Any) -> tuple[str, Hop]:
    """Return an arrival at a version's proxy."""
    inbound = {"cluster": "inbound|8080||", "upstream": "10.0.9.9:8080", "route": "default"}
    return version, hop(number, **(inbound | fields))


def story(number: int = 0, copies: int = 1) -> list[tuple[str, Hop]]:
    """Return the hops of a request that v1 answered, and of its copies at v2."""
    return [called(number), arrived("v1", number), *[arrived("v2", number)] * copies]


class StillMesh:
    """A mesh whose scene is given, and of which nothing else is asked."""

    still, quiet = 0.3, 0.5

    def __init__(self, found: Scene) -> None:
        self.found = found

    def scene(self, namespace: str, callers: Any = ()) -> Scene:
        return self.found

    def secrets(self, names: Any) -> dict[str, dict[str, str]]:
        return {}  # nobody writes anything

    def logs_requests(self, pod: Pod) -> bool:
        return True

    def in_flight(self, pods: Any) -> int:
        return 0


def watch(found: Scene, **options: Any) -> Watch:
    """Return a watch on a scene, to which hops are fed by hand."""
    return Watch(StillMesh(found), Target(), **options)  # type: ignore[arg-type]


def verdict_on(hops: list[tuple[str, Hop]], found: Scene | None = None, **options: Any) -> Verdict:
    """Return the verdict on hops, each of which comes a millisecond after the one before."""
    looking = watch(found or scene(), **options)
    for place, (pod, seen) in enumerate(hops):
        looking.add(pod, seen, place / 1000)
    looking.sweep(1000)
    return looking.verdict()
