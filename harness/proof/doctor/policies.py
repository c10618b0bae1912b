"""Findings in Istio's security policies: a copy bears its caller's identity, and v2 may refuse it."""

import json
from collections.abc import Iterable, Iterator

from harness import Json
from harness.meshes.scene import Pod, named
from harness.proof.doctor.facts import Facts, Finding
from harness.proof.doctor.pods import selecting
from harness.proof.doctor.reading import at, items, text, words


def _pairs(facts: Facts) -> Iterator[tuple[str, Pod, str, Pod]]:
    """Yield (version that answers, a pod of it, version that gets its copies, a pod of it)."""
    for rule in facts.routing.rules:
        for answering, _ in rule.expectation.answers:
            for copied, _ in rule.expectation.copies:
                mine, other = facts.routing.pods_of(answering), facts.routing.pods_of(copied)
                if answering != copied and mine and other:
                    yield answering, mine[0], copied, other[0]


def _policies(facts: Facts, pod: Pod, action: str) -> list[Json]:
    found = selecting(facts.scene, "AuthorizationPolicy", pod)
    return [policy for policy in found if (text(policy, "spec", "action") or "ALLOW") == action]


# --- who is let in ----------------------------------------------------------------------------------------


def refuses_the_caller(facts: Facts) -> Iterator[Finding]:
    """Find that the ALLOW rules at v2 leave out principals which those at v1 admit."""
    for answering, mine, copied, other in _pairs(facts):
        policies = _policies(facts, other, "ALLOW")
        admitted = _admitted(policies)
        if admitted is None or any(entry.startswith("{") for entry in admitted):
            continue  # everybody, or by conditions that cannot be judged here
        wanted = _admitted(_policies(facts, mine, "ALLOW"))
        if wanted is None:
            wanted = _callers(facts, admitted)
        left_out = [w for w in wanted if not w.startswith("{") and not any(_covers(a, w) for a in admitted)]
        if not left_out and (admitted or not wanted):
            continue
        who = ", ".join(sorted(left_out)[:3]) or "anybody"
        where = ", ".join(dict.fromkeys(f"{named(policy)} spec.rules" for policy in policies))
        problem = (
            f"{copied} does not admit {who}, as {answering} does: a copy bears its caller's identity, "
            "and is refused"
        )
        yield Finding(
            where, problem, f"let the rules for {copied} admit the principals that {answering} admits"
        )


def _callers(facts: Facts, admitted: set[str]) -> set[str]:
    """Return the callers' principals, where v1 admits everybody; none where it is not sure that they call."""
    principals = set()
    for pod in facts.callers:
        found = facts.workload_object(pod.workload)
        account = text(found, "spec", "template", "spec", "serviceAccountName") or "default"
        if found:
            principals.add(f"*/ns/{pod.namespace}/sa/{account}")
    sure = facts.target.callers or facts.seen
    some = any(_covers(a, principal) for a in admitted for principal in principals)
    return set() if some and not sure else principals


def _admitted(policies: Iterable[Json]) -> set[str] | None:
    """Return whom ALLOW policies admit: principals, and other conditions as JSON; None: everybody."""
    policies = list(policies)
    if not policies:
        return None
    entries: set[str] = set()
    for policy in policies:
        for _, rule in items(policy, "spec", "rules"):
            rest = {key: rule[key] for key in ("to", "when") if rule.get(key)}
            for source in [at(f, "source") or {} for _, f in items(rule, "from")] or [{}]:
                if not source and not rest:
                    return None
                if set(source) == {"principals"} and not rest:
                    entries.update(p.replace("cluster.local/", "*/") for p in words(source, "principals"))
                else:
                    entries.add(json.dumps({"source": source, **rest}, sort_keys=True, default=str))
    return entries


def _covers(pattern: str, principal: str) -> bool:
    """Say whether a pattern admits a principal, or all that another pattern admits."""
    if pattern in (principal, "*"):
        return True
    if pattern.startswith("*"):
        return principal.endswith(pattern[1:])
    return pattern.endswith("*") and principal.startswith(pattern[:-1])


def denies_at_the_copy_only(facts: Facts) -> Iterator[Finding]:
    """Find a DENY policy that holds for v2 and not for v1."""
    for answering, mine, copied, other in _pairs(facts):
        known = [named(policy) for policy in _policies(facts, mine, "DENY")]
        for policy in _policies(facts, other, "DENY"):
            if named(policy) not in known and items(policy, "spec", "rules"):
                problem = f"they hold for {copied}, not for {answering}: a copy that they match is refused"
                remedy = f"delete it, or let its selector leave {copied} out"
                yield Finding(f"{named(policy)} spec.rules", problem, remedy)


# --- mutual TLS -------------------------------------------------------------------------------------------


def plain_text_meets_mutual_tls(facts: Facts) -> Iterator[Finding]:
    """Find that versions ask for mutual TLS, and callers send plain text."""
    bare = ", ".join(sorted({pod.workload for pod in facts.others if not pod.proxy}))
    asking: dict[str, list[str]] = {}
    for reference in facts.references:
        for workload in facts.routing.workloads_behind(reference.destination):
            pods = [pod for pod in facts.scene.pods if pod.workload == workload and pod.proxy]
            strict = _strict(facts, pods[0]) if pods else None
            if strict is None:
                continue
            asking.setdefault(named(strict), []).append(workload)
            for rule in facts.destination_rules(reference.destination.host):
                if (field := _tls_off(rule, reference.destination.subset)) is not None:
                    problem = (
                        f"callers send plain text, and {workload} asks for mutual TLS ({named(strict)} is "
                        "STRICT): what they send is refused"
                    )
                    yield Finding(f"{named(rule)} {field}", problem, "write ISTIO_MUTUAL, or take it out")
    for policy, workloads in asking.items() if bare else ():
        who = ", ".join(dict.fromkeys(workloads))
        problem = f"it is STRICT for {who}, and {bare} has no sidecar: what it sends in plain text is refused"
        yield Finding(f"{policy} spec.mtls.mode", problem, f"give {bare} a sidecar, or write PERMISSIVE")


def _strict(facts: Facts, pod: Pod) -> Json | None:
    """Return the PeerAuthentication that makes mutual TLS a must at a pod."""
    for found in selecting(facts.scene, "PeerAuthentication", pod):
        mode = text(found, "spec", "mtls", "mode")
        if mode not in ("", "UNSET"):
            return found if mode == "STRICT" else None
    return None


def _tls_off(rule: Json, subset: str) -> str | None:
    """Return the field that makes callers send plain text to a subset."""
    for i, each in items(rule, "spec", "subsets"):
        if each.get("name") == subset and (mode := text(each, "trafficPolicy", "tls", "mode")):
            return f"spec.subsets[{i}].trafficPolicy.tls.mode" if mode == "DISABLE" else None
    return (
        "spec.trafficPolicy.tls.mode"
        if text(rule, "spec", "trafficPolicy", "tls", "mode") == "DISABLE"
        else None
    )
