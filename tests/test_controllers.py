"""The manifests for Argo Rollouts and Flagger name what there is; test_schemas.py has their fields."""

import shlex
from typing import Any

from harness.cli import cli
from harness.cluster.scene import CORE, POLICIES, ROUTING
from harness.manifests import read
from harness.meshes.mesh import ROOT
from harness.meshes.scene import Pod, Scene
from harness.proof.target import Routing, Target

FOLDER = ROOT / "docs" / "controllers"
Json = dict[str, Any]


def objects(file: str) -> list[Json]:
    return [document for _, document in read.documents(FOLDER / f"{file}.yaml")]


def only(file: str, kind: str) -> Json:
    [found] = [document for document in objects(file) if document["kind"] == kind]
    return found


def job() -> Json:
    [metric] = only("argo-rollouts", "AnalysisTemplate")["spec"]["metrics"]
    spec: Json = metric["provider"]["job"]["spec"]
    return spec


def test_every_command_is_one_of_dark_launch() -> None:
    [container] = job()["template"]["spec"]["containers"]
    webhooks = only("flagger", "Canary")["spec"]["analysis"]["webhooks"]
    lines = [container["command"], *(shlex.split(hook["metadata"]["cmd"]) for hook in webhooks)]
    assert len(lines) == 3
    for program, name, *options in lines:
        assert program == "dark-launch"
        given = cli.commands[name].make_context(name, options).params
        assert (given["service"], given["namespace"], given["duration"]) == ("pricing", "shop", 60)


def test_the_rights_are_what_is_read_and_no_more() -> None:
    wanted = {("", "pods", "get"), ("", "pods", "list"), ("", "pods/log", "get")}
    for kind in (*CORE.split(","), *ROUTING, *POLICIES):
        resource, _, group = kind.partition(".")
        wanted.add((group or ("" if resource == "services" else "apps"), resource, "list"))
    given = [
        (group, resource, verb)
        for rule in only("rights", "Role")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]
    assert sorted(given) == sorted(wanted)


def test_pods_run_by_the_account_that_has_the_rights_and_without_a_sidecar() -> None:
    account = only("rights", "ServiceAccount")["metadata"]
    [subject] = only("rights", "RoleBinding")["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    for template in (job()["template"], only("flagger", "Deployment")["spec"]["template"]):
        assert template["spec"]["serviceAccountName"] == account["name"]
        assert template["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"


def test_flagger_calls_the_service_that_is_there() -> None:
    service = only("flagger", "Service")["metadata"]
    for hook in only("flagger", "Canary")["spec"]["analysis"]["webhooks"]:
        assert hook["url"] == f"http://{service['name']}.{service['namespace']}/"


def test_the_mirror_that_argo_rollouts_makes_is_understood() -> None:
    """It puts a rule before the VirtualService's own, and gives each subset its ReplicaSet's label."""
    canary = only("argo-rollouts", "Rollout")["spec"]["strategy"]["canary"]
    to = canary["trafficRouting"]["istio"]["destinationRule"]
    step = next(step["setMirrorRoute"] for step in canary["steps"] if "setMirrorRoute" in step)
    route, rule = only("argo-rollouts", "VirtualService"), only("argo-rollouts", "DestinationRule")
    [primary] = route["spec"]["http"]
    mirror = {
        "name": step["name"],
        "match": [{"uri": match["path"]} for match in step["match"]],
        "route": primary["route"],
        "mirror": {"host": rule["spec"]["host"], "subset": to["canarySubsetName"]},
        "mirrorPercentage": {"value": step["percentage"]},
    }
    route["spec"]["http"] = [mirror, primary]
    pods = []
    for number, subset in enumerate(rule["spec"]["subsets"]):
        subset["labels"]["rollouts-pod-template-hash"] = str(number)
        name = f"pricing-{subset['name']}"
        pods.append(Pod(f"{name}-1", "shop", name, dict(subset["labels"]), (f"10.0.0.{number}",)))
    found = Scene("shop", (only("argo-rollouts", "Service"), rule, route), tuple(pods))
    rules = Routing(found, Target("pricing", "shop")).rules
    assert [(each.written.title, each.expectation.describe(), each.problems) for each in rules] == [
        ("dark", "all to pricing-stable; mirrored 100 % to pricing-canary", ()),
        ("primary", "all to pricing-stable", ()),
    ]
