"""Findings in Istio's security policies: a copy bears its caller's identity, and v2 may refuse it."""

import itertools
from collections.abc import Iterator
from fnmatch import fnmatchcase

from harness import Json
from harness.meshes.scene import Pod, named
from harness.proof.doctor.facts import Facts, Finding, at, items, text


def _pairs(facts: Facts) -> Iterator[tuple[str, Pod, str, Pod]]:
    """Yield (version that answers, a pod of it, version that gets its copies, a pod of it)."""
    for rule in facts.routing.rules:
        for v1, v2 in itertools.product(rule.expectation.allowed, rule.expectation.copied):
            mine, other = facts.routing.pods_of(v1), facts.routing.pods_of(v2)
            if v1 != v2 and mine and other:
                yield v1, mine[0], v2, other[0]


def _policies(facts: Facts, pod: Pod, action: str) -> list[Json]:
    found = facts.selecting("AuthorizationPolicy", pod)
    return [policy for policy in found if (text(policy, "spec", "action") or "ALLOW") == action]


def refuses_the_caller(facts: Facts) -> Iterator[Finding]:
    """Find that the ALLOW rules at v2 leave out principals which those at v1 admit."""
    for v1, mine, v2, other in _pairs(facts):
        policies = _policies(facts, other, "ALLOW")
        admitted = _admitted(policies)
        if admitted is None or "" in admitted:
            continue
        wanted = _admitted(_policies(facts, mine, "ALLOW"))
        if wanted is None:
            wanted = _callers(facts, admitted)
        left_out = [w for w in wanted if w and not any(fnmatchcase(w, pattern) for pattern in admitted)]
        if left_out or (wanted and not admitted):
            who = ", ".join(sorted(left_out)[:3]) or "anybody"
            where = ", ".join(f"{named(policy)} spec.rules" for policy in policies)
            refused = "a copy bears its caller's identity, and is refused"
            problem = f"{v2} does not admit {who}, as {v1} does: {refused}"
            yield Finding(where, problem, f"let the rules for {v2} admit the principals that {v1} admits")


def _callers(facts: Facts, admitted: set[str]) -> set[str]:
    """Return the callers' principals, where v1 admits everybody; none where it is not sure that they call."""
    principals = set()
    for pod in facts.callers:
        if found := facts.workload_object(pod.workload):
            account = text(found, "spec", "template", "spec", "serviceAccountName") or "default"
            principals.add(f"*/ns/{pod.namespace}/sa/{account}")
    some = any(fnmatchcase(principal, pattern) for principal in principals for pattern in admitted)
    sure = facts.target.callers or facts.seen or not some
    return principals if sure else set()


def _admitted(policies: list[Json]) -> set[str] | None:
    """Return the principals whom policies admit, "" if conditions cannot be judged here; None: everybody."""
    entries: set[str] = set()
    for rule in [rule for policy in policies for _, rule in items(policy, "spec", "rules")]:
        conditions = rule.get("to") or rule.get("when")
        for source in [at(each, "source") for _, each in items(rule, "from")] or [None]:
            if not source and not conditions:
                return None
            judged = not conditions and set(source) == {"principals"}
            principals = source["principals"] if judged else [""]
            entries.update(principal.replace("cluster.local/", "*/") for principal in principals)
    return entries if policies else None


def denies_at_the_copy_only(facts: Facts) -> Iterator[Finding]:
    """Find a DENY policy that holds for v2 and not for v1."""
    for v1, mine, v2, other in _pairs(facts):
        known = _policies(facts, mine, "DENY")
        for policy in _policies(facts, other, "DENY"):
            if policy not in known and items(policy, "spec", "rules"):
                problem = f"they hold for {v2}, not for {v1}: a copy that they match is refused"
                remedy = f"delete it, or let its selector leave {v2} out"
                yield Finding(f"{named(policy)} spec.rules", problem, remedy)


def plain_text_meets_mutual_tls(facts: Facts) -> Iterator[Finding]:
    """Find that versions ask for mutual TLS, and callers send plain text."""
    bare = ", ".join(sorted({pod.workload for pod in facts.others if not pod.proxy}))
    asking: dict[str, list[str]] = {}
    for to in dict.fromkeys(reference.destination for reference in facts.references):
        for workload in facts.routing.workloads_behind(to):
            pods = [pod for pod in facts.scene.pods if pod.workload == workload and pod.proxy]
            if not pods or not (strict := _strict(facts, pods[0])):
                continue
            asking.setdefault(strict, []).append(workload)
            where, tls = facts.traffic_policy(to, "tls") or ("", {})
            if text(tls, "mode") == "DISABLE":
                asked = f"{workload} asks for mutual TLS ({strict} is STRICT)"
                problem = f"callers send plain text, and {asked}: what they send is refused"
                yield Finding(f"{where}.mode", problem, "write ISTIO_MUTUAL, or take it out")
    for policy, workloads in asking.items() if bare else ():
        who = ", ".join(dict.fromkeys(workloads))
        problem = f"it is STRICT for {who}, and {bare} has no sidecar: what it sends in plain text is refused"
        yield Finding(f"{policy} spec.mtls.mode", problem, f"give {bare} a sidecar, or write PERMISSIVE")


def _strict(facts: Facts, pod: Pod) -> str:
    """Return the PeerAuthentication that makes mutual TLS a must at a pod; nothing if none does."""
    for found in facts.selecting("PeerAuthentication", pod):
        mode = text(found, "spec", "mtls", "mode")
        if mode not in ("", "UNSET"):
            return named(found) if mode == "STRICT" else ""
    return ""
