"""What the harness renders is what istiod sends: recorded from a real one by tests/istiod/record.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from istiod.shape import MANIFESTS, STATE, plain

from harness.manifests.kubernetes import Service
from harness.manifests.lookup import host_of, of_kind
from harness.manifests.read import read
from harness.meshes.mesh import WORKLOADS
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
