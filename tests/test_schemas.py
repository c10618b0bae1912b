"""Every manifest against the schemas that Kubernetes, Istio and others publish, strictly.

recorded/README.md says where they are from. An unknown field fails: an API server would drop it in silence.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.cluster.deploy import CLUSTER_ONLY, OWN_GATEWAY, namespace, render
from harness.manifests import read
from harness.meshes.mesh import ISTIO, ROOT, WITH_STORE

RECORDED = ROOT / "tests" / "recorded"
KUBERNETES = sorted(RECORDED.glob("kubernetes-*.json"))
ISTIO_VERSIONS = sorted(RECORDED.glob("istio-*.json"))
GATEWAY_API = sorted(RECORDED.glob("gateway-api-*.json"))
NOT_IN = {"TrafficExtension": {"istio-1.28.0"}}
"""Kinds that an older version does not have."""
ARGO_ROLLOUTS = sorted(RECORDED.glob("argo-rollouts-*.json"))
FLAGGER = sorted(RECORDED.glob("flagger-*.json"))
FAMILIES = (KUBERNETES, ISTIO_VERSIONS, GATEWAY_API, ARGO_ROLLOUTS, FLAGGER)
PATHS = [path for family in FAMILIES for path in family]
KUBERNETES_GROUPS = ("networking.k8s.io/v1", "rbac.authorization.k8s.io/v1")


def schema_for(document: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """Return the schema of a document's kind, if the file has it."""
    schemas = json.loads(path.read_text())
    if "kinds" not in schemas:
        found: dict[str, Any] | None = schemas.get(document["kind"])
        return (
            found if found and found["properties"]["apiVersion"]["const"] == document["apiVersion"] else None
        )
    name = schemas["kinds"].get(document["kind"])
    if not name or ("." in document["apiVersion"] and document["apiVersion"] not in KUBERNETES_GROUPS):
        return None
    return {"$ref": f"#/definitions/{name}", "definitions": schemas["definitions"]}


def applied() -> list[dict[str, Any]]:
    states = [path for path in (ROOT / "istio").glob("*.yaml") if path not in ISTIO]
    settings = (ROOT / "recommendation" / "settings").glob("*.yaml")
    paths = [*WITH_STORE, *ISTIO, *CLUSTER_ONLY, *sorted(states), *sorted(settings)]
    paths += [OWN_GATEWAY, ROOT / "loadtest" / "kubernetes.yaml"]
    everything = (d for p in paths for _, d in read.documents(p))
    documents = render(everything, "tutorial", "", "*/ns/gw/sa/door", {}, {})
    others = (ROOT / "istio" / "gateway-api", ROOT / "tests" / "istiod" / "shapes")
    more = [d for folder in others for _, d in read.documents(folder)]
    documents += [d for d in more if not re.search("v1(alpha|beta)", d["apiVersion"])]
    return [*documents, *for_controllers(), namespace("tutorial")]


def for_controllers() -> Iterator[dict[str, Any]]:
    """Yield the manifests of docs/controllers, and what Argo Rollouts makes of the pod templates in them.

    The recorded schemas of its own kinds leave those open.
    """
    for _, document in read.documents(ROOT / "docs" / "controllers"):
        yield document
        spec = document.get("spec", {})
        if document["kind"] == "Rollout":
            made = {"selector": spec["selector"], "template": spec["template"]}
            yield {"apiVersion": "apps/v1", "kind": "Deployment", "spec": made}
        elif document["kind"] == "AnalysisTemplate":
            for metric in spec["metrics"]:
                yield {"apiVersion": "batch/v1", "kind": "Job", "spec": metric["provider"]["job"]["spec"]}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_manifests_are_as_published(path: Path) -> None:
    checked = 0
    for document in applied():
        if schema := schema_for(document, path):
            # Not jsonschema.validate, which would examine the schema itself each time: a minute in all.
            jsonschema.Draft202012Validator(schema).validate(document)
            checked += 1
    schemas = json.loads(path.read_text())
    assert checked >= min(3, len(schemas.get("kinds", schemas)))


def test_every_manifest_has_a_schema_in_each_family() -> None:
    for document in applied():
        missing = NOT_IN.get(document["kind"], set())
        families = [
            all(schema_for(document, path) for path in family if path.stem not in missing)
            for family in FAMILIES
        ]
        assert any(families), document["kind"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_misspelt_field_is_not(path: Path) -> None:
    [document, *_] = [d for d in applied() if schema_for(d, path) and d.get("spec")]
    schema = schema_for(document, path)
    assert schema
    document["spec"]["mirorr"] = {}
    with pytest.raises(jsonschema.ValidationError, match="'mirorr' was unexpected"):
        jsonschema.validate(document, schema)


def test_the_dev_container_is_as_published() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    schema = json.loads((RECORDED / "devcontainer.json").read_text())
    jsonschema.validate(container, schema)
    with pytest.raises(jsonschema.ValidationError, match="'imgae' was unexpected"):
        jsonschema.validate({**container, "imgae": ""}, schema)
