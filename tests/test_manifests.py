"""Reading manifests: what is accepted, and the one line that every mistake becomes."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import route, to, virtual_service

from harness.manifests.base import Object, seconds
from harness.manifests.check import check
from harness.manifests.istio import HTTPRoute, VirtualService
from harness.manifests.kubernetes import Deployment, Service
from harness.manifests.lookup import of_kind
from harness.manifests.read import ManifestError, parse, read
from harness.meshes.mesh import ISTIO, ROOT, WORKLOADS

MIRROR = (ROOT / "istio" / "mirror.yaml").read_text()


def first_state() -> list[Object]:
    return read(*WORKLOADS, *ISTIO)


def with_route(http: dict[str, Any]) -> list[Object]:
    """Return the first state with this route for recommendation."""
    route = VirtualService.model_validate(virtual_service({"hosts": ["recommendation"], "http": [http]}))
    return [o for o in first_state() if o.key != route.key] + [route]


@pytest.mark.parametrize("path", sorted((ROOT / "istio").glob("*.yaml")), ids=lambda path: path.name)
def test_every_state_fits_the_workloads(path: Path) -> None:
    applied = read(path)
    keys = {o.key for o in applied}
    check([o for o in first_state() if o.key not in keys] + applied, path.name)


def test_all_routes_of_recommendation_share_one_name() -> None:
    routes = [o for path in (ROOT / "istio").glob("*.yaml") for o in of_kind(read(path), VirtualService)]
    named = {o.metadata.name for o in routes if "recommendation" in o.spec.hosts}
    assert named == {"recommendation"}


def test_service_and_containers_agree_on_the_port() -> None:
    objects = first_state()
    for service in of_kind(objects, Service):
        behind = [
            d for d in of_kind(objects, Deployment) if service.spec.selector.items() <= d.labels.items()
        ]
        assert behind, service.key
        for workload in behind:
            names = {port.name for port in workload.container.ports}
            assert service.spec.ports[0].target_port in names
            assert workload.container.readiness_probe.http_get.port in names


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mirror:", "mirorr:", "spec.http[0].mirorr: unknown or unsupported field, did you mean 'mirror'?"),
        ("mirror:", "mirrorPercent: 10\n      mirror:", "spec.http[0].mirrorPercent: unknown or unsupported"),
        ("mirror:", "corsPolicy: {}\n      mirror:", "spec.http[0].corsPolicy: unknown or unsupported field"),
        ("mirror:", "timeout: soon\n      mirror:", "spec.http[0].timeout: 'soon' is not a duration"),
        ("mirror:", "timeout: 1us\n      mirror:", "spec.http[0].timeout: '1us' is not a duration"),
        ("mirror:", "timeout: 0s\n      mirror:", "spec.http[0].timeout: '0s' is shorter than 1ms"),
        ("mirror:", "timeout: 999999999999999h\n      mirror:", "longer than 10,000 years"),
        (
            "mirror:",
            "retries: {attempts: 99999999999}\n      mirror:",
            "spec.http[0].retries.attempts: input ",
        ),
        ("name: recommendation", "name: ../evil", "metadata.name: string should match pattern"),
        (
            "name: recommendation",
            "name: a\n  namespace: b",
            "metadata.namespace: unknown or unsupported field",
        ),
        ("mirror:", "timeout: 5\n      mirror:", "spec.http[0].timeout: input should be a valid string"),
        (
            "mirror:",
            "retries: {attempts: -1}\n      mirror:",
            "spec.http[0].retries.attempts: input should be",
        ),
        ("mirror:", "mirrorPercentage: {value: 101}\n      mirror:", "spec.http[0].mirrorPercentage.value: "),
        (
            "mirror:",
            "mirrorPercentage: 10\n      mirror:",
            "spec.http[0].mirrorPercentage: input should be a",
        ),
        ("mirror:", "match: [{uri: {regex: x}}]\n      mirror:", "spec.http[0].match[0].uri.regex: unknown"),
        (
            "mirror:",
            "match: [{method: {}}]\n      mirror:",
            "spec.http[0].match[0].method: needs exactly one of",
        ),
        ("mirror:", "match: [{headers: {a: {regex: '('}}}]\n      mirror:", "is not a regular expression"),
        ("mirror:", "match: [{headers: {Cookie: {exact: a}}}]\n      mirror:", "should match pattern"),
        (
            "mirror:",
            "fault: {abort: {httpStatus: 99}}\n      mirror:",
            "spec.http[0].fault.abort.httpStatus: ",
        ),
        ("hosts:", "hots:", "spec.hots: unknown or unsupported field, did you mean 'hosts'?"),
        (
            "host: recommendation\n            subset: v1",
            "subset: v1",
            "route[0].destination.host: field required",
        ),
        ("spec:", "spec: 5\nother:", "other: unknown or unsupported field"),
        ("networking.istio.io/v1", "networking.istio.io/v1alpha3", "apiVersion: input should be 'networking"),
        ("metadata:\n  name: recommendation\n", "", "VirtualService ?: metadata: field required"),
    ],
)
def test_a_wrong_field_is_one_line_that_names_it(old: str, new: str, message: str) -> None:
    assert old in MIRROR
    with pytest.raises(ManifestError) as caught:
        parse(MIRROR.replace(old, new, 1), "my.yaml")
    line = str(caught.value)
    assert line.startswith("my.yaml: VirtualService ")
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "my.yaml: holds no object"),
        ("---\n---\n", "my.yaml: holds no object"),
        ("a: [", "my.yaml:1: not valid YAML: "),
        ("a: 1\nb: 2\na: 3\n", "my.yaml:3: not valid YAML: 'a' stands twice"),
        ("\tmirror: x", "my.yaml:1: not valid YAML: "),
        ("a: \x00", "my.yaml: not valid YAML: "),
        ("a: 2020-13-45", "my.yaml: not valid YAML: month must be in 1..12"),
        ("[" * 3000, "my.yaml: not valid YAML: "),
        ("a: !!python/object:os.system {}", "my.yaml:1: not valid YAML: "),
        ("? {a: 1}\n: 2", "my.yaml:1: not valid YAML: "),
        ("just words", "my.yaml: holds a str where an object should be"),
        ("- a", "my.yaml: holds a list where an object should be"),
        ("kind: ConfigMap\nmetadata: {name: x}", "my.yaml: kind 'ConfigMap' is not supported here (only "),
        ("kind: [x]", "my.yaml: kind '['x']' is not supported here"),
        ("kind: Service\nmetadata: 5", "my.yaml: Service ?: "),
    ],
)
def test_what_is_no_manifest_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(text, "my.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nowhere\.yaml: No such file or directory$"):
        read(tmp_path / "nowhere.yaml")
    with pytest.raises(ManifestError, match=r": is not a file$"):
        read(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match=r"binary\.yaml: "):
        read(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("http", "message"),
    [
        ({"route": []}, "route"),
        ({"route": [to("v1", 0), to("v2", 0)]}, "total destination weight = 0"),
        ({"route": [to("v1", -1), to("v2", 2)]}, "route[0].weight"),
        (
            {"route": [to("v1")], "mirror": {"host": "recommendation"}, "mirrors": [to("v2")]},
            "mirror and mirrors exclude each other",
        ),
        ({"route": [to("v1")], "mirrorPercentage": {"value": 5.0}}, "mirrorPercentage needs mirror"),
    ],
)
def test_what_istio_refuses_is_refused(http: dict[str, Any], message: str) -> None:
    text = yaml.safe_dump(virtual_service({"hosts": ["recommendation"], "http": [http]}))
    with pytest.raises(ManifestError) as caught:
        parse(text, "my.yaml")
    assert f"my.yaml: VirtualService recommendation: spec.http[0]{'.' if '.' in message else ''}" in str(
        caught.value
    )
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("http", "message"),
    [
        (
            {"route": [to("v3")]},
            "spec.http[0].route[0].destination.subset: no subset 'v3' of 'recommendation'",
        ),
        (
            {"route": [to("v1")], "mirror": {"host": "reviews"}},
            "spec.http[0].mirror.host: no Service 'reviews'",
        ),
        (
            {"route": [to("v1")], "mirrors": [{"destination": {"host": "recommendation", "subset": "v9"}}]},
            "spec.http[0].mirrors[0].destination.subset: no subset 'v9'",
        ),
        (
            {"route": [{"destination": {"host": "recommendation", "port": {"number": 9}}}]},
            "spec.http[0].route[0].destination.port.number: Service 'recommendation' has no port 9",
        ),
    ],
)
def test_a_name_that_nothing_defines_is_one_line(http: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        check(with_route(http), "my.yaml")
    assert str(caught.value).startswith(f"my.yaml: VirtualService recommendation: {message}")


def with_workload(old: str, new: str) -> list[Object]:
    """Return the first state with a change in customer's manifest."""
    text = WORKLOADS[0].read_text()
    assert old in text
    changed = parse(text.replace(old, new), "my.yaml")
    keys = {o.key for o in changed}
    return [o for o in first_state() if o.key not in keys] + changed


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("targetPort: http", "targetPort: web", "Service customer: spec.ports[0].targetPort: no port 'web'"),
        ("targetPort: http", "targetPort: 9", "Service customer: spec.ports[0].targetPort: no port '9'"),
        ("path: /health/ready\n              port: http", "path: /\n              port: 1", "readinessProbe"),
        ("name: PREFERENCE_URL", "name: BIND", "env[0].name: 'BIND' is set by the mesh"),
        ("name: PREFERENCE_URL", "name: a b", "env[0].name: string should match pattern"),
    ],
)
def test_a_port_or_variable_that_cannot_be_honoured_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        check(with_workload(old, new), "my.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize("host", ["recommendation.tutorial", "recommendation.tutorial.svc.cluster.local"])
def test_a_host_may_be_spelt_out(host: str) -> None:
    changed = parse(MIRROR.replace("  hosts:\n    - recommendation", f"  hosts:\n    - {host}"), "my.yaml")
    check([o for o in first_state() if o.key != changed[0].key] + changed, "my.yaml")


def test_a_host_of_another_namespace_is_another_service() -> None:
    changed = parse(
        MIRROR.replace("    - recommendation", "    - recommendation.prod.example.com"), "my.yaml"
    )
    with pytest.raises(ManifestError, match=r"no Service 'recommendation\.prod\.example\.com'"):
        check([o for o in first_state() if o.key != changed[0].key] + changed, "my.yaml")


def test_two_rules_for_one_host_are_refused_however_they_spell_it() -> None:
    text = (ROOT / "istio" / "destination-rule.yaml").read_text()
    second = text.replace("  name: recommendation", "  name: second")
    with pytest.raises(
        ManifestError, match=r"DestinationRule 'recommendation' is for 'recommendation' already"
    ):
        check([*first_state(), *parse(second, "my.yaml")], "my.yaml")
    spelt_out = MIRROR.replace("  name: recommendation", "  name: second").replace(
        "    - recommendation", "    - recommendation.tutorial"
    )
    with pytest.raises(ManifestError, match=r"'recommendation' routes 'recommendation\.tutorial' already"):
        check([*first_state(), *parse(spelt_out, "my.yaml")], "my.yaml")


def test_a_route_for_another_service_or_gateway_is_refused() -> None:
    [other] = parse(MIRROR.replace("  hosts:\n    - recommendation", "  hosts:\n    - reviews"), "my.yaml")
    with pytest.raises(ManifestError, match=r"spec\.hosts\[0\]: no Service 'reviews'"):
        check([o for o in first_state() if o.key != other.key] + [other], "my.yaml")
    [other] = parse(MIRROR.replace("  http:", "  gateways: [mesh, other]\n  http:"), "my.yaml")
    with pytest.raises(ManifestError, match=r"spec\.gateways\[1\]: no Gateway 'other'"):
        check([o for o in first_state() if o.key != other.key] + [other], "my.yaml")
    [other] = parse(MIRROR.replace("  name: recommendation", "  name: second"), "my.yaml")
    with pytest.raises(ManifestError, match=r"'recommendation' routes 'recommendation' already"):
        check([*first_state(), other], "my.yaml")


def test_a_deployment_needs_its_service_account_and_its_labels() -> None:
    without = [o for o in first_state() if o.key != "serviceaccount/customer"]
    with pytest.raises(ManifestError, match="serviceAccountName: no ServiceAccount 'customer'"):
        check(without, "my.yaml")
    text = (
        WORKLOADS[0]
        .read_text()
        .replace("matchLabels:\n      app: customer", "matchLabels:\n      app: other")
    )
    with pytest.raises(ManifestError, match=r"Deployment customer: .*does not select the labels"):
        parse(text, "my.yaml")


@pytest.mark.parametrize(("text", "value"), [("2s", 2), ("1m30s", 90), ("250ms", 0.25), ("1.5h", 5400)])
def test_durations_are_gos(text: str, value: float) -> None:
    assert seconds(text) == value


def test_shares_and_copies_follow_istio() -> None:
    def parsed(**http: Any) -> HTTPRoute:
        return HTTPRoute.model_validate({"route": [to("v1")], **http})

    v2 = {"host": "recommendation", "subset": "v2"}
    assert [share for _, share in parsed().shares()] == [1.0]
    assert [share for _, share in parsed(route=[to("v1", 3), to("v2", 1)]).shares()] == [0.75, 0.25]
    assert [d.subset for d, _ in parsed(route=[to("v1", 0), to("v2", 5)]).shares()] == ["v2"]
    assert parsed().copies() == []
    assert [percent for _, percent in parsed(mirror=v2).copies()] == [100]
    assert parsed(mirror=v2, mirrorPercentage={"value": 0}).copies() == []
    several = [{"destination": v2}, {"destination": v2, "percentage": {"value": 0.5}}]
    assert [percent for _, percent in parsed(mirrors=several).copies()] == [100, 0.5]


def test_the_route_of_the_helpers_is_the_projects() -> None:
    """The routes that tests build must be what the workshop applies, or they prove something else."""
    mirrored = route(name="mirror", mirror={"host": "recommendation", "subset": "v2"})
    built = VirtualService.model_validate(mirrored[0])
    [mirror] = parse(MIRROR, "mirror.yaml")
    assert built == mirror
