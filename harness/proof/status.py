"""The status: pods, ways in, and what each applied route says, in words."""

from collections.abc import Iterator

from harness.meshes.mesh import Mesh
from harness.meshes.scene import Scene, key, named
from harness.proof.expectation import (
    GATEWAY,
    MESH,
    Destination,
    Expectation,
    RouteRule,
    namespace_of,
    rules_of,
    serves_mesh,
    short_name,
)
from harness.proof.report import WIDTH
from harness.proof.target import Routing, Target


def status_of(mesh: Mesh, target: Target) -> Iterator[str]:
    """Yield the status, line by line.

    :raises HarnessError: the mesh does not run, or does not answer.
    """
    workshop = target == Target()
    scene = mesh.scene(target.namespace, target.callers)
    rows = [("POD", "STATE", "ADDRESS")]
    if workshop:
        rows += [(pod.name, pod.state, pod.address) for pod in mesh.pods()]
    else:
        states = [(pod, "Running" if pod.ready else "not ready") for pod in scene.pods]
        rows += [(pod.name, state, ", ".join(pod.addresses) or "-") for pod, state in states]
    for found in scene.of_kind("Deployment"):
        if found["spec"].get("replicas") == 0 and namespace_of(found, scene) == scene.namespace:
            name, where = found["metadata"]["name"], "" if mesh.name == "local" else f" MESH={mesh.name}"
            rows.append((name, f"Stopped: run 'make start W={name}{where}'" if workshop else "Stopped", "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    between = "  "
    if sum(widths) + 4 > WIDTH:
        widths[0], between = 0, "\n  "
    for name, state, address in rows:
        yield f"{name:<{widths[0]}}{between}{state:<{widths[1]}}  {address}"
    yield ""
    if workshop:
        yield mesh.way_in()
    sources = {name: f" ({source})" for name, (source, _) in mesh.objects().items()} if workshop else {}
    yield from _routes(scene, Routing(scene, target), sources)


def _routes(scene: Scene, routing: Routing, sources: dict[str, str]) -> Iterator[str]:
    """Yield a line for each object that routes here or to the target, this in the names of its versions."""
    judged: dict[str, list[str]] = {}
    for rule in routing.rules:
        judged.setdefault(rule.written.source, []).append(rule.expectation.describe(routing.gone))
    judging = {key(found) for found in routing.objects()}
    for found in (*scene.of_kind("VirtualService"), *scene.of_kind("HTTPRoute")):
        if key(found) in judging or namespace_of(found, scene) == scene.namespace:
            name, scope = named(found), MESH if serves_mesh(found) else GATEWAY
            words = judged.get(name, []) if key(found) in judging else []
            words = words or [_words(rule, scene.namespace) for rule in rules_of(scene, found, scope)]
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
