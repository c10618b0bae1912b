"""The exercises: something is broken by chance, and the harness judges whether it is found, or mended."""

import json
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import yaml

from harness import HarnessError, Json
from harness.meshes.mesh import ROOT, SHADOW, Mesh, Progress
from harness.proof.attribution import Attribution
from harness.proof.evidence import Bounds
from harness.proof.story import hops_in
from harness.proof.target import Routing, Target
from harness.proof.watch import verify
from harness.rendering.accesslog import Hop
from harness.steps import STEPS
from harness.workshop import catch_up, examine, mark

DEFECTS = {"status": "same-status", "feedback": "same-content", "bytes": "same-writes"}
"""What a planted defect of v2 touches, and the claim that fails by it."""

BREAKS = {
    "label": "the subset v2 asked for a label that no pod bears",
    "percentage": "one request in ten was mirrored",
    "host": "the mirror led to a Service that is not there",
    "order": "a rule without a mirror stood before the one that mirrors",
    "fuse": "a fuse let one copy wait, and cut off the others",
    "scale": "v2 was scaled to 0",
}
"""Six ways in which a mirror breaks, and callers notice nothing."""


def _read(name: str) -> Json:
    found: Json = yaml.safe_load((ROOT / name).read_text())
    return found


def _changed(how: str) -> Json:
    """Return the object that plants a defect, or breaks the mirror, but for ``scale``."""
    if how in DEFECTS:
        secret = _read("recommendation/settings/planted-defect.yaml")
        secret["stringData"]["PLANTED_DEFECT"] = how
        return secret
    route, subsets = _read("istio/mirror.yaml"), _read("istio/destination-rule.yaml")
    rules, v2 = route["spec"]["http"], subsets["spec"]["subsets"][1]
    if how == "percentage":
        rules[0]["mirrorPercentage"] = {"value": 10}
    elif how == "host":
        rules[0]["mirror"] = {"host": "recommendation-dark"}
    elif how == "order":
        rules.insert(0, {"name": "answers", "route": deepcopy(rules[0]["route"])})
    elif how == "label":
        v2["labels"] = {"version": "2"}
    else:
        pool = {"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}
        v2["trafficPolicy"] = {"connectionPool": pool}
    return subsets if how in ("label", "fuse") else route


def begin(mesh: Mesh, number: int, planted: str) -> None:
    """Begin an exercise: 1 plants a defect in a v2 that hears nothing, 2 breaks a mirror.

    :param planted: one of DEFECTS, or of BREAKS.
    :raises HarnessError: the mesh cannot be started; on a cluster: nothing is deployed there.
    """
    catch_up(mesh, 1 if number == 1 else 3)
    if planted == "scale":
        mesh.scale(SHADOW, 0)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "somebody.yaml"
            path.write_text(yaml.safe_dump(_changed(planted)))
            mesh.apply(path)
    since = max((hop.start for hop, _ in _calls(mesh)), default="")
    mesh.home.mkdir(exist_ok=True)
    mark(mesh).write_text(json.dumps({"number": number, "planted": planted, "since": since}))


def _calls(mesh: Mesh) -> Iterator[tuple[Hop, bool]]:
    """Yield the calls of recommendation in callers' logs, each with whether it harmed its caller."""
    routing = Routing(mesh.scene(Target().namespace), Target())
    attribution = Attribution(routing)
    for pod in [pod for pod in routing.scene.pods if pod.proxy]:
        for hop in hops_in(mesh.request_log(pod)):
            call = attribution.call_of(pod.name, hop) if hop.cluster.startswith("outbound|") else None
            if call:
                yield hop, call.failed or call.version not in (None, "v1")


def judge(mesh: Mesh, answer: str | None, progress: Progress) -> tuple[int, list[str]]:
    """Judge the exercise that is under way: 0 it is solved, 1 it is not, 2 that cannot be told; and in words.

    :raises HarnessError: the mesh does not run, or does not answer.
    """
    told = json.loads(mark(mesh).read_text())
    number, planted = told["number"], told["planted"]
    harmed = [hop for hop, is_harmed in _calls(mesh) if is_harmed and hop.start > told["since"]]
    if harmed:
        first = f"the first one's request id is {harmed[0].request_id}"
        again = f"begin again: 'make exercise N={number}'"
        return 1, [f"{len(harmed):,} callers saw v2, or got a failure ({first}): {again}"]
    if number == 1:
        if answer not in DEFECTS:
            raise HarnessError(f"what does v2 do wrong? Say it by ANSWER={', '.join(DEFECTS)}")
        bounds = Bounds(ignored=("hostname", "version"))
        if DEFECTS[answer] not in verify(mesh, Target(), 600, progress=progress, bounds=bounds).failed():
            return 1, [f"the proof does not show that on what is applied: {DEFECTS[answer]} does not fail"]
        solved = f"found, and no caller noticed: {planted}"
    else:
        code, lines = examine(mesh, STEPS[2], progress)
        if code:
            return code, ["the mirror is not mended", *lines[1:]]
        solved = f"mended, and no caller noticed: {BREAKS[planted]}"
    mark(mesh).unlink()
    return 0, [solved]
