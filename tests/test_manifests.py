"""Reading manifests: what is accepted, and the one line that every mistake becomes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import parse, route, to, virtual_service
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.manifests.base import Object
from harness.manifests.check import check, warnings, warnings_here
from harness.manifests.kubernetes import Deployment, Service
from harness.manifests.lookup import of_kind
from harness.manifests.read import ManifestError, read, to_document, to_object
from harness.manifests.values import seconds
from harness.manifests.virtualservice import VirtualService
from harness.meshes.mesh import ISTIO, ROOT, WORKLOADS

MIRROR = (ROOT / "istio" / "mirror.yaml").read_text()


def first_state() -> list[Object]:
    return read(*WORKLOADS, *ISTIO)


def applied(*new: Object) -> list[Object]:
    """Return the first state when objects were applied to it."""
    return list({o.key: o for o in (*first_state(), *new)}.values())


def told(*new: Object) -> str:
    """Return the warnings of the first state when objects were applied to it."""
    objects = applied(*new)
    return "\n".join([*warnings(objects), *warnings_here(objects)])


@pytest.mark.parametrize("path", sorted((ROOT / "istio").glob("*.yaml")), ids=lambda path: path.name)
def test_every_state_leads_somewhere(path: Path) -> None:
    assert told(*read(path)) == ""


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
            get = workload.container.readiness_probe.http_get
            assert get
            assert get.port in names


ONLY_A_CLUSTER = "only a cluster does this: take it out, or run the step with MESH=cluster"


def rule(yaml_text: str) -> tuple[str, str]:
    """Return what to replace in the mirror's rule, and by what: further fields."""
    return "mirror:", f"{yaml_text}\n      mirror:"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("mirror:", "mirorr:"), "spec.http[0].mirorr: unknown or unsupported field, did you mean 'mirror'?"),
        (rule("corsPolicy: {}"), f"spec.http[0].corsPolicy: {ONLY_A_CLUSTER}"),
        (rule("match: [{sourceLabels: {app: x}}]"), f"spec.http[0].match[0].sourceLabels: {ONLY_A_CLUSTER}"),
        (rule("timeout: soon"), "spec.http[0].timeout: 'soon' is not a duration"),
        (rule("timeout: 1us"), "spec.http[0].timeout: '1us' is not a duration"),
        (rule("timeout: 0s"), "spec.http[0].timeout: '0s' is shorter than 1ms"),
        (rule("timeout: 999999999999999h"), "longer than 292 years"),
        (rule("timeout: 5"), "spec.http[0].timeout: input should be a valid string"),
        (rule("retries: {attempts: 99999999999}"), "spec.http[0].retries.attempts: input "),
        (rule("retries: {attempts: -1}"), "spec.http[0].retries.attempts: input should be"),
        (rule("retries: {perTryTimeout: 1s}"), "spec.http[0].retries: needs attempts"),
        (rule("mirrorPercentage: {value: 101}"), "spec.http[0].mirrorPercentage.value: "),
        (rule("mirrorPercentage: {value: many}"), "mirrorPercentage.value: 'many' is not a number"),
        (rule("mirrorPercentage: {value: .nan}"), "spec.http[0].mirrorPercentage.value: "),
        (rule("mirrorPercentage: 10"), "spec.http[0].mirrorPercentage: input should be a"),
        (rule("match: [{headers: {a: {regex: '('}}}]"), "'(' is not a regular expression of RE2: missing )"),
        (rule("match: [{headers: {a: {regex: '*'}}}]"), "'*' is not a regular expression of RE2: no argum"),
        (rule("match: [{uri: {regex: 'a(?=b)'}}]"), "match[0].uri.regex: 'a(?=b)' is not a regular express"),
        (rule("match: [{headers: {a: {prefix: ''}}}]"), "headers.a.prefix: string should have at"),
        (rule("match: [{headers: {a: null}}]"), "match[0].headers.a: input should be a valid dictionary"),
        (rule("match: [{method: {exact: A, prefix: B}}]"), "exact, prefix and regex exclude each other"),
        (rule("fault: {abort: {httpStatus: 99}}"), "spec.http[0].fault.abort.httpStatus: "),
        (rule("headers: {request: {set: {'a b': c}}}"), "headers.request.set.a b"),
        (("name: recommendation", "name: ../evil"), "metadata.name: string should match pattern"),
        (
            ("name: recommendation", "name: a\n  namespace: b"),
            "metadata.namespace: is 'b', but the mesh is namespace 'tutorial': take it out, or run the step "
            "with NAMESPACE=b",
        ),
        (("hosts:", "hots:"), "spec.hots: unknown or unsupported field, did you mean 'hosts'?"),
        (
            ("host: recommendation\n            subset: v1", "subset: v1"),
            "route[0].destination.host: field required",
        ),
        (("istio.io/v1", "istio.io/v2"), "apiVersion: input should be 'networking.istio.io/v1', 'networking"),
        (("metadata:\n  name: recommendation\n", ""), "VirtualService ?: metadata: field required"),
        (("hosts:\n    - recommendation", "hosts: ['*']"), "spec: the host '*' is for gateways only"),
        (("hosts:\n    - recommendation", "hosts: ['a:80']"), "spec.hosts[0]: 'a:80' is not a host such as"),
        (("hosts:\n    - recommendation", "hosts: ['*.a.b', c.a.b]"), "the host '*.a.b' stands for 'c.a.b'"),
        (("hosts:", "exportTo: ['*', '.']\n  hosts:"), "spec.exportTo: is either '*', or '.' and names of"),
        (("hosts:", "gateways: [a/b/c]\n  hosts:"), "spec.gateways[0]: string should match pattern"),
        (("subset: v1", "subset: v_1"), "destination.subset: string should match pattern"),
        (rule("retries: {attempts: 1, retryOn: '5xx, reset'}"), "retryOn: ' reset' is no condition of"),
        (rule("timeout: 1.0005s"), "timeout: '1.0005s' has parts of a millisecond"),
        (rule("fault: {}"), "fault: needs delay or abort"),
        (rule("rewrite: {uri: ''}"), "rewrite: needs authority, or one of uri and uriRegexRewrite"),
        (rule("mirrorPercent: 0.5"), "mirrorPercent: input should be a valid integer"),
        (rule("mirror_percentage: {value: 5}"), "mirror_percentage: unknown or unsupported field"),
        (rule("headers: {request: {set: {a: 100%}}}"), "set.a: has a % that begins nothing"),
        (rule("headers: {response: {set: {host: a}}}"), "headers: the host of a request can be set, and"),
        (rule("headers: {request: {set: {host: a}}}\n      rewrite: {authority: b}"), "set to b and to a"),
        (rule("match: [{headers: {a: {exact: y}}}]"), "headers.a.exact: input should be a valid string"),
        (rule("match: [{headers: {a: {exact: 1e5}}}]"), "headers.a.exact: input should be a valid string"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_one_line_that_names_it(change: tuple[str, str], message: str) -> None:
    assert change[0] in MIRROR
    with pytest.raises(ManifestError) as caught:
        parse(MIRROR.replace(*change, 1), "my.yaml")
    line = str(caught.value)
    assert line.startswith("my.yaml: VirtualService ")
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("DestinationRule", "host: a\n  subsets: [{name: b}, {name: b}]", "the subset 'b' stands twice"),
        ("DestinationRule", "host: a\n  subsets: [{name: b, labels: {c: d e}}]", "labels.c: string should"),
        ("DestinationRule", "host: a\n  trafficPolicy: {}", "spec.trafficPolicy: says nothing: take it out"),
        ("DestinationRule", "host: a\n  trafficPolicy: {portLevelSettings: [{}]}", "port: field required"),
        ("Gateway", "servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: [a]}]", "'a' is not '*'"),
        ("Service", "selector: {a: b}\n  ports: [{port: 1, name: c}, {port: 2}]", "ports need a name"),
        ("Service", "selector: {a: b}\n  ports: [{port: 1, name: c}, {port: 1, name: d}]", "a port stands"),
        ("Service", "selector: {a: b}\n  ports: [{port: 1, targetPort: 0}]", "targetPort: '0' is neither"),
    ],
)  # fmt: skip
def test_what_a_cluster_refuses_of_other_kinds_is_refused(kind: str, spec: str, message: str) -> None:
    version = "v1" if kind == "Service" else "networking.istio.io/v1"
    with pytest.raises(ManifestError) as caught:
        parse(f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: my}}\nspec:\n  {spec}\n", "my.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


COMPARE = (ROOT / "istio" / "compare.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("mode: SERVER", "mode: CLIENT"), "spec.match[0].mode: only a cluster has 'CLIENT': write SERVER"),
        (("mode: SERVER", "ports: []"), "spec.match[0].mode: only a cluster has 'CLIENT_AND_SERVER': write"),
        (
            ("  match:\n    - mode: SERVER\n", ""),
            "spec.match[0].mode: only a cluster has 'CLIENT_AND_SERVER'",
        ),
        (("mode: SERVER", "mode: SERVER\n      ports: []"), f"spec.match[0].ports: {ONLY_A_CLUSTER}"),
        (("lua:", "wasm: {url: a}\n  lua:"), f"spec.wasm: {ONLY_A_CLUSTER}"),
        (("selector:", "targetRefs: []\n  selector:"), f"spec.targetRefs: {ONLY_A_CLUSTER}"),
        (("inlineCode:", "inlinecode:"), "lua.inlinecode: unknown or unsupported field, did you mean 'inl"),
        (("v1alpha1", "v1"), "apiVersion: input should be 'extensions.istio.io/v1alpha1'"),
    ],
)
def test_a_traffic_extension_is_as_the_sidecars_here_can_run_it(
    change: tuple[str, str], message: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(COMPARE.replace(*change, 1), "my.yaml")
    assert message in str(caught.value)


def test_a_traffic_extension_that_selects_nothing_is_told() -> None:
    line = "trafficextension/compare spec.selector: no workload bears these labels, so this runs nowhere"
    assert line in told(*parse(COMPARE.replace("app: ", "app: other-"), "other.yaml"))


def test_no_workload_has_two_traffic_extensions() -> None:
    [one] = parse(COMPARE, "one.yaml")
    [two] = parse(COMPARE.replace("name: compare", "name: two").replace("app:", "version:"), "two.yaml")
    check([("a.yaml", o) for o in applied(one, two)])
    [two] = parse(COMPARE.replace("name: compare", "name: two"), "two.yaml")
    with pytest.raises(ManifestError) as caught:
        check([*[("a.yaml", o) for o in applied(one)], ("two.yaml", two)])
    assert str(caught.value).splitlines() == [
        f"two.yaml: TrafficExtension two: recommendation-{version} has one already, and only a cluster runs "
        "several"
        for version in ("v1", "v2")
    ]


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MIRROR.replace("mirror:", "mirorr:").replace("hosts:", "hots:"))
    (tmp_path / "b.yaml").write_text(MIRROR.replace("- destination:", "- weight: -1\n          destination:"))
    with pytest.raises(ManifestError) as caught:
        read(tmp_path)
    told = str(caught.value).splitlines()
    assert sorted(line.split(": ")[2] for line in told) == [
        "spec.hots",
        "spec.http[0].mirorr",
        "spec.http[0].route[0].weight",
    ]
    assert [line.split(": ")[0] for line in told] == [f"{tmp_path}/a.yaml"] * 2 + [f"{tmp_path}/b.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "my.yaml:1: not valid YAML: "),
        ("a: 1\nb: 2\na: 3\n", "my.yaml:3: not valid YAML: 'a' stands twice"),
        ("\tmirror: x", "my.yaml:1: not valid YAML: "),
        ("a: \x00", "my.yaml: not valid YAML: "),
        ("[" * 3000, "my.yaml: not valid YAML: "),
        ("a: &a [*a]", "my.yaml: not valid YAML: it has more than 100,000 values"),
        ("a: !!python/object:os.system {}", "my.yaml:1: not valid YAML: "),
        ("? {a: 1}\n: 2", "my.yaml:1: not valid YAML: "),
        ("just words", "my.yaml: holds a str where an object should be"),
        ("- a", "my.yaml: holds a list where an object should be"),
        ("kind: List\nitems: [a]", "my.yaml: holds a str where an object should be"),
        ("kind: ConfigMap\nmetadata: {name: x}", "my.yaml: kind 'ConfigMap' is not supported here (only "),
        ("kind: [x]", "my.yaml: kind of another type than text is not supported here"),
        ("kind: Service\nspec: {}\nmetadata: 5", "my.yaml: Service ?: "),
    ],
)
def test_what_is_no_manifest_is_told(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(text, "my.yaml")
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 500


def test_aliases_that_stand_for_very_much_are_refused() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    with pytest.raises(ManifestError, match=r"^my\.yaml: not valid YAML: it has more than 100,000 values$"):
        parse(f"{bomb}kind: *a8\n", "my.yaml")


@pytest.mark.parametrize(
    "text",
    [
        MIRROR.replace("\n", "\r\n"),
        f"\ufeff{MIRROR}",
        f"---\n{MIRROR}...\n---\n",
        json.dumps(yaml.safe_load(MIRROR), indent="\t"),
        yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [yaml.safe_load(MIRROR)]}),
        MIRROR.replace("subset: v2", "subset: v2\n      <<: *to").replace(
            "      mirror:\n        host: recommendation\n", "      mirror:\n"
        ).replace("subset: v2\n      <<", "subset: v2\n        <<").replace(
            "destination:\n            host", "destination: &to\n            host"
        ),
        MIRROR.replace("istio.io/v1", "istio.io/v1beta1"),
    ],
    ids=["CRLF", "byte order mark", "empty documents", "JSON", "List", "merge key", "v1beta1"],
)  # fmt: skip
def test_yaml_is_read_as_kubectl_reads_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(text.encode())
    [found] = read(tmp_path / "mine.yaml")
    [mirror] = parse(MIRROR, "mirror.yaml")
    assert found.model_copy(update={"api_version": mirror.api_version}) == mirror


def test_objects_of_json_need_nothing_between_them() -> None:
    mirror = json.dumps(yaml.safe_load(MIRROR))
    for between in ("", "\n", "\n---\n"):
        assert len(parse(f"{mirror}{between}{mirror}", "my.json")) == 2


def test_an_object_as_a_server_gives_it_can_be_applied_again() -> None:
    [written] = parse(MIRROR, "mirror.yaml")
    document = yaml.safe_load(MIRROR)
    document["metadata"] |= {
        "uid": "1", "resourceVersion": "2", "generation": 3, "creationTimestamp": "2026-11-25T12:00:00Z",
        "managedFields": [{"manager": "kubectl"}], "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "kept",
        },
    }  # fmt: skip
    document["status"] = {"conditions": []}
    [found] = parse(yaml.safe_dump(document), "live.yaml")
    assert found.metadata.annotations == {"mine": "kept"}
    assert to_document(found) | {"metadata": {}} == to_document(written) | {"metadata": {}}


@pytest.mark.parametrize(
    ("share", "percent"),
    [("mirrorPercentage: {value: '12.5'}", 12.5), ("mirrorPercent: '25'", 25), ("mirror_percent: 5", 5)],
)
def test_a_share_may_be_a_text_and_in_its_deprecated_forms(share: str, percent: float) -> None:
    [found] = parse(MIRROR.replace(*rule(share), 1), "my.yaml")
    assert isinstance(found, VirtualService)
    assert [copied for _, copied in found.spec.http[0].copies()] == [percent]


def test_a_time_is_a_text() -> None:
    [found] = parse(
        MIRROR.replace("spec:", "  annotations: {since: 2026-11-25, at: 12:30:45}\nspec:", 1), "my.yaml"
    )
    assert found.metadata.annotations == {"since": "2026-11-25", "at": "12:30:45"}


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nowhere\.yaml: No such file or directory$"):
        read(tmp_path / "nowhere.yaml")
    with pytest.raises(ManifestError, match=r": holds no object$"):
        read(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match=r"binary\.yaml: "):
        read(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("http", "message"),
    [
        ({"route": []}, "route"),
        ({"route": [to("v1", 0), to("v2", 0)]}, "no destination of several has a weight"),
        ({"route": [to("v1", -1), to("v2", 2)]}, "route[0].weight"),
        (
            {"route": [to("v1")], "mirror": {"host": "recommendation"}, "mirrors": [to("v2")]},
            "mirror and mirrors exclude each other",
        ),
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
    ("old", "new", "message"),
    [
        (
            "  hosts:\n    - recommendation",
            "  hosts:\n    - reviews",
            "spec.hosts[0]: no Service 'reviews', so no request takes this",
        ),
        (
            "  hosts:\n    - recommendation",
            "  hosts:\n    - recommendation.tutorial.svc",
            "spec.hosts[0]: no Service 'recommendation.tutorial.svc'",
        ),
        ("  http:", "  gateways: [mesh, other]\n  http:", "spec.gateways[1]: no Gateway 'other'"),
    ],
)
def test_a_route_that_no_request_takes_is_told(old: str, new: str, message: str) -> None:
    assert message in told(*parse(MIRROR.replace(old, new, 1), "my.yaml"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("selector: {istio: mine}", "gateway/ingress spec.selector: no gateway bears these labels"),
        ("selector: {app: istio-ingressgateway}", ""),
    ],
)
def test_a_gateway_is_selected_by_its_labels(spec: str, message: str) -> None:
    text = (ROOT / "istio" / "gateway.yaml").read_text()
    said = told(*parse(text.replace("selector:\n    istio: ingressgateway", spec), "my.yaml"))
    assert said.startswith(message) if message else said == ""


def test_encryption_means_nothing_on_one_machine_and_it_is_told() -> None:
    text = (ROOT / "istio" / "destination-rule.yaml").read_text()
    text += "  trafficPolicy:\n    tls:\n      mode: ISTIO_MUTUAL\n"
    assert "trafficPolicy.tls: nothing is encrypted on one machine" in told(*parse(text, "my.yaml"))


def with_workload(old: str, new: str) -> list[tuple[str, Object]]:
    """Return the first state with a change in customer's manifest."""
    text = WORKLOADS[0].read_text()
    assert old in text
    return [("my.yaml", o) for o in applied(*parse(text.replace(old, new), "my.yaml"))]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("path: /health/ready\n              port: http", "path: /\n              port: 1", "readinessProbe"),
        ("serviceAccountName: customer", "serviceAccountName: x", "no ServiceAccount 'x': apply it first"),
        ("name: PREFERENCE_URL", "name: BIND", "env[0].name: 'BIND' is set by the mesh"),
        ("name: PREFERENCE_URL", "name: a b", "env[0].name: string should match pattern"),
        ("          env:", "          envFrom: [{secretRef: {name: x}}]\n          env:",
         "envFrom[0].secretRef: no Secret 'x': apply it first"),
        ("          env:", "          envFrom: [{configMapRef: {name: x}}]\n          env:",
         f"envFrom[0].configMapRef: {ONLY_A_CLUSTER}"),
        ("image: customer", "image: ../../etc", "image: string should match pattern"),
        ("cpu: 500m", "cpu: lots", "limits.cpu"),
        ("matchLabels:\n      app: customer", "matchLabels:\n      app: x", "does not select the labels"),
        ("  labels:\n        app: customer", "  labels:\n        app: customer\n        "
         "sidecar.istio.io/inject: 'false'", "every pod of this mesh has a sidecar"),
        ("containers:", "hostNetwork: true\n      containers:", f"hostNetwork: {ONLY_A_CLUSTER}"),
    ],
)  # fmt: skip
def test_a_deployment_that_cannot_run_here_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        check(with_workload(old, new))
    assert str(caught.value).startswith("my.yaml: Deployment customer: ")
    assert message in str(caught.value)


def test_a_service_port_that_no_application_listens_at_is_told() -> None:
    changed = [o for _, o in with_workload("targetPort: http", "targetPort: 9")]
    assert (
        "service/customer spec.ports[0].targetPort: is 9, but the application of customer listens at 8080"
        in list(warnings_here(changed))
    )


def test_a_deployment_needs_no_more_than_an_image_and_labels() -> None:
    [found] = parse(
        """
apiVersion: apps/v1
kind: Deployment
metadata: {name: mine, annotations: {deployment.kubernetes.io/revision: "2"}}
spec:
  strategy: {type: RollingUpdate}
  selector: {matchLabels: {app: mine}}
  template:
    metadata: {creationTimestamp: null, labels: {app: mine}}
    spec:
      restartPolicy: Always
      dnsPolicy: ClusterFirst
      securityContext: {}
      containers:
        - name: app
          image: registry.example.com:5000/team/recommendation-v1:1.2@sha256:0a
          ports: [{containerPort: 9090, name: metrics}, {containerPort: 8080}]
          readinessProbe: {httpGet: {path: /ready, port: 8080, scheme: HTTP}, failureThreshold: 3}
          volumeMounts: [{name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {}}]
""",
        "mine.yaml",
    )
    assert isinstance(found, Deployment)
    assert found.container.image_name == "recommendation-v1"
    assert found.container.port == 8080
    assert not found.container.serves("metrics")
    assert found.spec.template.spec.service_account_name == "default"


@pytest.mark.parametrize(("text", "value"), [("2s", 2), ("1m30s", 90), ("250ms", 0.25), ("1.5h", 5400)])
def test_durations_are_gos(text: str, value: float) -> None:
    assert seconds(text) == value


@settings(max_examples=60, deadline=None)
@given(
    value=st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    percent=st.floats(0, 100),
)
def test_what_is_stored_is_read_back_the_same(value: str, percent: float) -> None:
    text = WORKLOADS[0].read_text()
    document = next(d for d in yaml.safe_load_all(text) if d["kind"] == "Deployment")
    document["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "A", "value": value}]
    mirrored = route(mirror={"host": "recommendation", "subset": "v2"}, mirrorPercentage={"value": percent})
    for found in (to_object(document, "a"), to_object(mirrored[0], "b")):
        assert to_object(json.loads(json.dumps(to_document(found))), "again") == found


def test_the_route_of_the_helpers_is_the_projects() -> None:
    """The routes that tests build must be what the workshop applies, or they prove something else."""
    mirrored = route(name="mirror", mirror={"host": "recommendation", "subset": "v2"})
    built = VirtualService.model_validate(mirrored[0])
    [mirror] = parse(MIRROR, "mirror.yaml")
    assert built == mirror
