"""The trace: one request's story in time order, from the proxies' logs."""

from collections.abc import Iterable

from harness.meshes.mesh import Mesh
from harness.proof.evidence import Evidence
from harness.proof.ledger import Ledger
from harness.proof.report import harmless, wrap
from harness.proof.story import Story, hops_in, shape_of
from harness.proof.target import Routing, Target
from harness.proof.verdict import broken_by
from harness.rendering.accesslog import Hop

INDENT = 14
"""How far a hop's lines are indented behind its time."""


def find(mesh: Mesh, target: Target, wanted: str) -> list[str]:
    """Return the story of a ticket or a request id, line by line; nothing if nobody logged it.

    :raises HarnessError: the mesh does not run, or does not answer.
    """
    scene = mesh.scene(target.namespace, target.callers)
    hops = [(pod.name, hop) for pod in scene.pods if pod.proxy for hop in hops_in(mesh.request_log(pod))]
    ids = {
        hop.request_id
        for _, hop in hops
        if wanted in (hop.request_id, hop.agent, hop.agent.rpartition("dark-launch/")[2])
    }
    found = [(pod, hop) for pod, hop in hops if hop.request_id in ids - {"-"}]
    evidence = Evidence(Routing(scene, target))
    ledger = Ledger(evidence, 0, 0)
    for pod, hop in found:
        ledger.add(pod, hop, 0)
    return _told(evidence, found, ledger.give_up())


def tell(evidence: Evidence, story: Story) -> list[str]:
    """Return the hops of a story that is at hand, and what is missing of it."""
    return _told(evidence, [*(("caller", hop) for _, hop in story.calls), *story.arrivals], [story])


def _told(evidence: Evidence, hops: list[tuple[str, Hop]], stories: Iterable[Story]) -> list[str]:
    """Return hops in time order, and for each story what is wrong with it, or that it is as it must be."""
    # Within a millisecond, a request was sent before it arrived.
    hops = sorted(hops, key=lambda each: (each[1].start, each[1].cluster.startswith("inbound|")))
    lines = [_line(who, hop) for who, hop in hops]
    for story in stories:
        wrong = broken_by(evidence, story.shape or shape_of(story))
        told = [wrap(f"FAIL {claim.id}: {claim.statement}: {claim.detail}") for claim in wrong]
        lines += told or ["as it must be"]
    return [harmless(line) for line in lines]


def _line(who: str, hop: Hop) -> str:
    """Return what is known of a hop, in lines that fit a terminal."""
    inbound, way = hop.cluster.startswith("inbound|"), ""
    lines = [f"{hop.start[11:23]}  {who} {'got' if inbound else 'sent'} {hop.method} {hop.path}"]
    if not inbound:
        lines.append(f"-> {hop.cluster}")
        way = f"{hop.upstream} by rule '{hop.route}': " if hop.route != "-" else f"{hop.upstream}: "
    reason = "" if hop.answered else f" ({hop.details} {hop.flags})"
    lines.append(f"{way}{hop.status}{reason}, {hop.received} B in, {hop.sent} B out, {hop.duration} ms")
    return wrap(f"\n{' ' * INDENT}".join(lines), INDENT)
