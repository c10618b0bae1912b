"""Every manifest against the schemas that Kubernetes, Istio and the Gateway API publish, strictly.

recorded/README.md says where they are from. An unknown field fails: an API server would drop it in silence.
"""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.cluster.deploy import CLUSTER_ONLY, namespace, render
from harness.manifests import read
from harness.meshes.mesh import ISTIO, ROOT, WITH_STORE

RECORDED = ROOT / "tests" / "recorded"
KUBERNETES = sorted(RECORDED.glob("kubernetes-*.json"))
ISTIO_VERSIONS = sorted(RECORDED.glob("istio-*.json"))
GATEWAY_API = sorted(RECORDED.glob("gateway-api-*.json"))
NOT_IN = {"TrafficExtension": {"istio-1.28.0"}}
"""Kinds that an older version does not have."""


def schema_for(document: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """Return the schema of a document's kind, if the file has it."""
    schemas = json.loads(path.read_text())
    if "kinds" not in schemas:
        found: dict[str, Any] | None = schemas.get(document["kind"])
        return (
            found if found and found["properties"]["apiVersion"]["const"] == document["apiVersion"] else None
        )
    name = schemas["kinds"].get(document["kind"])
    if not name or ("." in document["apiVersion"] and document["apiVersion"] != "networking.k8s.io/v1"):
        return None
    return {"$ref": f"#/definitions/{name}", "definitions": schemas["definitions"]}


def applied() -> list[dict[str, Any]]:
    states = [path for path in (ROOT / "istio").glob("*.yaml") if path not in ISTIO]
    settings = (ROOT / "recommendation" / "settings").glob("*.yaml")
    paths = [*WITH_STORE, *ISTIO, *CLUSTER_ONLY, *sorted(states), *sorted(settings)]
    paths.append(ROOT / "loadtest" / "kubernetes.yaml")
    documents = render((d for p in paths for _, d in read.documents(p)), "tutorial", "", "*/ns/gw/sa/door")
    others = (ROOT / "istio" / "gateway-api", ROOT / "tests" / "istiod" / "shapes")
    more = [d for folder in others for _, d in read.documents(folder)]
    documents += [d for d in more if not re.search("v1(alpha|beta)", d["apiVersion"])]
    return [*documents, namespace("tutorial")]


@pytest.mark.parametrize("path", [*KUBERNETES, *ISTIO_VERSIONS, *GATEWAY_API], ids=lambda path: path.stem)
def test_manifests_are_as_published(path: Path) -> None:
    checked = 0
    for document in applied():
        if schema := schema_for(document, path):
            jsonschema.validate(document, schema)
            checked += 1
    assert checked >= 3


def test_every_manifest_has_a_schema_in_each_family() -> None:
    for document in applied():
        istio = [p for p in ISTIO_VERSIONS if p.stem not in NOT_IN.get(document["kind"], ())]
        families = [
            all(schema_for(document, p) for p in family) for family in (KUBERNETES, istio, GATEWAY_API)
        ]
        assert any(families), document["kind"]


@pytest.mark.parametrize("path", [*KUBERNETES, *ISTIO_VERSIONS, *GATEWAY_API], ids=lambda path: path.stem)
def test_a_misspelt_field_is_not(path: Path) -> None:
    [document, *_] = [d for d in applied() if schema_for(d, path) and d.get("spec")]
    schema = schema_for(document, path)
    assert schema
    document["spec"]["mirorr"] = {}
    with pytest.raises(jsonschema.ValidationError, match="'mirorr' was unexpected"):
        jsonschema.validate(document, schema)
