"""What is expected is read from the routes that are applied."""

from pathlib import Path
from typing import Any

import pytest
from helpers import route, to, virtual_service

from harness import HarnessError
from harness.manifests.base import Object
from harness.manifests.istio import VirtualService
from harness.manifests.read import read
from harness.meshes.mesh import ISTIO, ROOT, WORKLOADS
from harness.proof.expectation import Expectation, promise_for, promises, versions

MIRROR_V2 = {"host": "recommendation", "subset": "v2"}


def objects(path: Path | None = None, *others: Object) -> list[Object]:
    found = {o.key: o for o in [*read(*WORKLOADS, *ISTIO), *(read(path) if path else []), *others]}
    return list(found.values())


def promise(http: list[dict[str, Any]], method: str = "GET", **headers: str) -> Expectation:
    spec = {"hosts": ["recommendation"], "http": http}
    rules = promises(objects(None, VirtualService.model_validate(virtual_service(spec))))
    return promise_for(rules, method, "/?item=1", {"user-agent": "dark-launch/run/1", **headers})


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("v1-only", "all to v1"),
        ("mirror", "all to v1; mirrored 100 % to v2"),
        ("mirror-10-percent", "all to v1; mirrored 10 % to v2"),
        ("canary", "90 % to v1, 10 % to v2"),
        ("promote", "all to v2"),
    ],
)
def test_each_state_promises_what_its_name_says(state: str, words: str) -> None:
    rules = promises(objects(ROOT / "istio" / f"{state}.yaml"))
    assert promise_for(rules, "GET", "/", {}).describe() == words


def test_without_a_route_both_versions_answer() -> None:
    rules = promises([o for o in objects() if o.key != "virtualservice/recommendation"])
    assert promise_for(rules, "GET", "/", {}) == Expectation((("v1", None), ("v2", None)))
    assert promise_for(rules, "GET", "/", {}).describe() == "to v1 and v2"


def test_versions_are_the_workloads_of_the_service() -> None:
    assert versions(objects()) == {"recommendation-v1": "v1", "recommendation-v2": "v2"}


def test_the_first_rule_that_matches_counts() -> None:
    rules = [
        {"match": [{"method": {"exact": "POST"}}], "route": [to("v1")], "mirror": MIRROR_V2},
        {"match": [{"headers": {"user-agent": {"regex": "dark-.*/[0-9]+"}}}], "route": [to("v2")]},
        {"route": [to("v1")]},
    ]
    assert promise(rules, "POST").describe() == "all to v1; mirrored 100 % to v2"
    assert promise(rules).describe() == "all to v2"
    assert promise(rules, **{"user-agent": "curl"}).describe() == "all to v1"


@pytest.mark.parametrize(
    "match",
    [
        {"uri": {"exact": "/elsewhere"}},
        {"uri": {"prefix": "/?item"}},
        {"method": {"prefix": "P"}},
        {"headers": {"baggage": {"exact": "a"}}},
        {"headers": {"user-agent": {"regex": "dark"}}},
        {"uri": {"exact": "/"}, "method": {"exact": "POST"}},
    ],
)
def test_what_no_rule_matches_is_answered_by_nobody(match: dict[str, Any]) -> None:
    assert promise([{"match": [match], "route": [to("v1")]}]) == Expectation(answers=())


def test_a_destination_without_subset_stands_for_all_versions() -> None:
    anyone = {"destination": {"host": "recommendation"}}
    assert promise([{"route": [anyone]}]) == Expectation((("v1", None), ("v2", None)))


@pytest.mark.parametrize("header", ["x-request-id", "x-forwarded-for", "host", "accept-encoding"])
def test_a_match_on_what_proxies_set_cannot_be_judged(header: str) -> None:
    match = {"headers": {header: {"regex": ".+"}}}
    with pytest.raises(HarnessError, match=f"a route matches header '{header}', which proxies set"):
        promise([{"match": [match], "route": [to("v2")]}, {"route": [to("v1")]}])


def test_a_mirror_to_either_version_cannot_be_judged() -> None:
    with pytest.raises(HarnessError, match="a mirror without a subset reaches v1 and v2 by chance"):
        promise([{"route": [to("v1")], "mirror": {"host": "recommendation"}}])


def test_several_mirrors_add_up() -> None:
    mirrors = [{"destination": MIRROR_V2}, {"destination": MIRROR_V2, "percentage": {"value": 50}}]
    found = promise([{"route": [to("v1")], "mirrors": mirrors}])
    assert found.copies == (("v2", (100.0, 50.0)),)


def test_a_mirror_of_another_service_is_not_this_ones_affair() -> None:
    assert promise([{"route": [to("v1")], "mirror": {"host": "customer"}}]).copies == ()


def test_an_explicit_zero_is_no_mirror() -> None:
    assert promise(route(mirror=MIRROR_V2, mirrorPercentage={"value": 0})[0]["spec"]["http"]).copies == ()
