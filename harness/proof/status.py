"""The status: pods, ways in, and what each applied route says, in words."""

import contextlib
from collections.abc import Iterator

from harness.meshes.mesh import Mesh, MeshError
from harness.meshes.scene import key, named
from harness.proof.applied import Applied
from harness.proof.expectation import Expectation
from harness.proof.mark import in_words, mark_of
from harness.proof.report import WIDTH
from harness.proof.rules import Destination, RouteRule, short_name
from harness.proof.stores import writers
from harness.proof.target import Routing, Target


def status_of(mesh: Mesh, target: Target) -> Iterator[str]:
    """Yield the status, line by line.

    :raises HarnessError: the mesh does not run, or does not answer.
    """
    workshop = target == Target()
    scene = mesh.scene(target.namespace, target.callers)
    here = [d for d in scene.of_kind("Deployment") if Applied(scene).namespace_of(d) == scene.namespace]
    stopped = [found["metadata"]["name"] for found in here if found["spec"].get("replicas") == 0]
    if workshop:
        rows = [(pod.name, pod.state, pod.address) for pod in mesh.pods()]
    else:
        states = [(pod, "Running" if pod.ready else "not ready") for pod in scene.pods]
        rows = [(pod.name, state, ", ".join(pod.addresses) or "-") for pod, state in states]
    yield from _table([("POD", "STATE", "ADDRESS"), *rows, *((name, "Stopped", "-") for name in stopped)])
    yield ""
    if workshop:
        where = "" if mesh.name == "local" else f" MESH={mesh.name}"
        yield from (f"{name} is stopped: start it with 'make start W={name}{where}'" for name in stopped)
        yield mesh.way_in()
    sources = {name: f" ({source})" for name, (source, _) in mesh.objects().items()} if workshop else {}
    routing = Routing(scene, target)
    yield from _routes(routing, sources)
    for found in routing.objects():
        if mark := mark_of(found):
            yield f"{in_words(mark)}: {named(found)}"
    with contextlib.suppress(MeshError):  # this user may not read Secrets
        said = [f"{version} writes to {at.database.name}" for version, at in writers(mesh, routing)]
        yield from [", ".join(said)] if said else ()


def _table(rows: list[tuple[str, str, str]]) -> Iterator[str]:
    """Yield rows in columns; where a terminal is too narrow, each name has a line of its own."""
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    between = "  "
    if sum(widths) + 4 > WIDTH:
        widths[0], between = 0, "\n  "
    for name, state, address in rows:
        yield f"{name:<{widths[0]}}{between}{state:<{widths[1]}}  {address}"


def _routes(routing: Routing, sources: dict[str, str]) -> Iterator[str]:
    """Yield a line for each object that routes here or to the target, this in the names of its versions."""
    namespace, applied = routing.scene.namespace, routing.applied
    judged: dict[str, list[str]] = {}
    for rule in routing.rules:
        judged.setdefault(rule.written.source, []).append(rule.expectation.describe(routing.gone))
    judging = {key(found) for found in routing.objects()}
    for found in (*applied.of_kind("VirtualService"), *applied.of_kind("HTTPRoute")):
        if key(found) in judging or applied.namespace_of(found) == namespace:
            name = named(found)
            words = judged.get(name, []) if key(found) in judging else []
            words = words or [_words(rule, namespace) for rule in applied.rules_of(found)]
            yield f"{name}: {' | '.join(words)}{sources.get(name, '')}"
    if routing.not_http:
        yield routing.not_http
    elif "no route" in judged:
        yield f"no route for {routing.target.service}: {judged['no route'][0]}"


def _words(rule: RouteRule, namespace: str) -> str:
    def call(destination: Destination) -> str:
        return f"{short_name(destination.host, namespace)} {destination.subset}".rstrip()

    answers = tuple((call(destination), share) for destination, share in rule.answers)
    mirrors = tuple((call(destination), (percent,)) for destination, percent in rule.mirrors)
    return Expectation(answers, mirrors).describe()
