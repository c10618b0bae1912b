"""What the harness renders is what istiod sends: recorded from a real one by tests/istiod/record.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from istiod.shape import MANIFESTS, STATE, plain

from harness.cluster.routes import Ruling, without_rules
from harness.manifests.kubernetes import Service
from harness.manifests.lookup import host_of, of_kind
from harness.manifests.read import documents, read
from harness.meshes.mesh import ROOT, WORKLOADS
from harness.meshes.scene import Scene, key
from harness.proof.applied import Applied
from harness.rendering.clusters import clusters
from harness.rendering.routes import gateway_routes, sidecar_routes

RECORDED = json.loads((Path(__file__).parent / "istiod" / "recorded.json").read_text())


def rendered(*paths: Path) -> dict[str, Any]:
    """Return what the harness renders when manifests are applied after those of the start."""
    objects = {o.key: o for o in read(*WORKLOADS, *STATE, *paths)}.values()
    found = plain([sidecar_routes(objects)], [gateway_routes(objects)], clusters(objects, []))
    for service in of_kind(objects, Service):
        for port in service.spec.ports:
            if not port.is_http:  # istiod has no route there; the harness's, a forward proxy, needs one
                found["sidecar"].pop(f"{host_of(service)}:{port.port}", None)
    return found


def sent(name: str) -> dict[str, Any]:
    """Return what istiod sends when a manifest is applied after those of the start."""
    changed = RECORDED["manifests"].get(name, {})
    found = {part: known | changed.get(part, {}) for part, known in RECORDED["start"].items()}
    # A VirtualService for a Service has a virtual host at port 80 too, where nobody listens.
    hosts = found["sidecar"]
    found["sidecar"] = {k: v for k, v in hosts.items() if not is_empty_port(k, found["clusters"])}
    return {part: {k: v for k, v in names.items() if v is not None} for part, names in found.items()}


def is_empty_port(host: str, clusters: dict[str, Any]) -> bool:
    name, _, port = host.rpartition(":")
    return name.endswith(".tutorial.svc.cluster.local") and f"outbound|{port}||{name}" not in clusters


def test_the_start_is_rendered_as_istiod_sends_it() -> None:
    assert rendered() == sent("")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_each_manifest_is_rendered_as_istiod_sends_it(path: Path) -> None:
    assert path.stem in RECORDED["manifests"], "renew it: tests/istiod/record.py"
    assert rendered(path) == sent(path.stem)


def dump(name: str) -> str:
    """Return what a proxy says of its routes when a manifest is applied."""

    def unfold(value: Any) -> Any:
        if isinstance(value, list):
            return [unfold(each) for each in value]
        if not isinstance(value, dict):
            return value
        part = {"default_value": {"numerator": value.get("default_value"), "denominator": "MILLION"}}
        return part if "default_value" in value else {k: unfold(v) for k, v in value.items()}

    changed = RECORDED["manifests"].get(name, {"sidecar": {}})["sidecar"]
    hosts = [host for host in (RECORDED["start"]["sidecar"] | changed).values() if host]
    return json.dumps({"configs": [{"route_config": {"virtual_hosts": unfold(hosts)}}]})


def rulings(*paths: Path) -> dict[str, Ruling]:
    """Return what rules each host when manifests are applied after those of the start."""
    applied = {key(d): d for path in (*WORKLOADS, *STATE, *paths) for _, d in documents(path)}
    for number, document in enumerate(applied.values()):
        document["metadata"]["creationTimestamp"] = f"{number:04}"  # as it is now, the oldest first
    scene = Applied(Scene("tutorial", tuple(applied.values()), ()))
    hosts = {host_of(service) for service in of_kind(read(*WORKLOADS, *paths), Service)}
    hosts.update(host for found in scene.virtual_services() for host in scene.hosts_of(found))
    ruling = {host: scene.ruling(host, "tutorial") for host in hosts}
    return {host: Ruling("tutorial", [*found, without_rules(host)][0]) for host, found in ruling.items()}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_each_route_is_recognised_in_what_istiod_sends(path: Path) -> None:
    said = dump(path.stem)
    for host, ruling in rulings(path).items():
        assert not ruling.instead(said), host


WORDS = {
    "v1-only": "all to v1",
    "mirror": "all to v1; mirrored 100 % to v2",
    "mirror-10-percent": "all to v1; mirrored 10 % to v2",
    "mirror-reads": "all to v1; mirrored 100 % to v2 | all to v1",
    "canary": "90 % to v1, 10 % to v2",
    "testers": "all to v2 | all to v1",
    "promote": "all to v2",
}


@pytest.mark.parametrize("name", WORDS)
def test_no_other_route_is_taken_for_it(name: str) -> None:
    host = "recommendation.tutorial.svc.cluster.local"
    ruling = rulings(ROOT / "istio" / f"{name}.yaml")[host]
    expected = {other: None if other == name else words for other, words in WORDS.items()}
    assert {other: ruling.instead(dump(other)) for other in WORDS} == expected
    assert ruling.instead('{"configs": []}') == "", "it knows no such host"
    assert Ruling("tutorial", without_rules(host)).instead(dump(name)) == WORDS[name]


def test_rules_that_lead_elsewhere_are_recognised_whoever_wrote_them() -> None:
    host = "pricing.shop.svc.cluster.local"
    v1 = {"route": [{"destination": {"host": "pricing", "subset": "v1", "port": {"number": 80}}}]}
    rules = [
        {**v1, "name": "some", "match": [{"sourceLabels": {"app": "cart"}}]},
        {"name": "old", "match": [{"uri": {"prefix": "/old"}}], "redirect": {"uri": "/"}},
        {**v1, "match": [{"name": "all"}], "corsPolicy": {}, "mirror": None},
        {**v1, "name": "never"},
    ]
    document = {"kind": "VirtualService", "metadata": {"name": "any"}}
    ruling = Ruling("shop", {**document, "spec": {"hosts": ["Pricing"], "http": rules}})

    def instead(*names: str, path: str = "/old") -> str | None:
        to_v1 = {"match": {"prefix": "/"}, "route": {"cluster": f"outbound|80|v1|{host}"}}
        old = {"match": {"prefix": path}, "redirect": {}}
        routes = [{"name": name, **(old if name == "old" else to_v1)} for name in names]
        found = {"name": f"{host}:80", "routes": routes}
        return ruling.instead(json.dumps({"configs": [{"route_config": {"virtual_hosts": [found]}}]}))

    assert instead("old", ".all") is None
    assert instead("some", "old", ".all") is None, "of that caller alone"
    assert instead(".all") == "all to v1", "a rule is not there yet"
    assert instead("before", "old", ".all"), "a rule is there still"
    assert instead("old", ".all", path="/older"), "a match is as it was"
    delegate = {"name": "other", "delegate": {"name": "other"}}
    not_understood = Ruling("shop", {**document, "spec": {"hosts": ["pricing"], "http": [delegate]}})
    assert not_understood.instead('{"configs": []}') is None
