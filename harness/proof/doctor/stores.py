"""Findings in where the workshop's versions write: copies must not reach what callers read."""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from harness.meshes.scene import named
from harness.proof.doctor.facts import Facts, Finding, at, items
from harness.proof.expectation import RouteRule
from harness.proof.stores import database_of, writers

OWN = "make apply F=recommendation/kubernetes.yaml"
LIVE = "make apply F=recommendation/settings/wrong-while-mirrored.yaml"


def copies_reach_the_callers_store(facts: Facts) -> Iterator[Finding]:
    """Find a version that gets copies of writes, and has the database of a version that answers callers."""
    urls = dict(writers(facts.mesh, facts.routing))
    for rule in facts.routing.rules:
        for v1 in rule.expectation.allowed if not _only_reads(facts, rule.written) else ():
            for v2 in set(rule.expectation.copied).difference(rule.expectation.allowed):
                if v1 in urls and v2 in urls and database_of(urls[v1]) == database_of(urls[v2]):
                    yield _shared(facts, v1, v2, urls)


def _shared(facts: Facts, v1: str, v2: str, urls: dict[str, str]) -> Finding:
    where = f"{facts.workload(facts.routing.versions[v2].workload)} DATABASE_URL"
    name, role = database_of(urls[v2]).name, urlsplit(urls[v2]).username
    if role != urlsplit(urls[v1]).username:
        problem = f"it names {v1}'s database '{name}', where {v2}'s role '{role}' may not write"
        return Finding(where, problem, f"give {v2} its own: {OWN}")
    problem = f"{v2} gets copies of writes, and writes them to {v1}'s database '{name}' as well"
    return Finding(where, problem, f"give {v2} its own ({OWN}), or mirror nothing that writes")


def callers_are_answered_from_the_shadow(facts: Facts) -> Iterator[Finding]:
    """Find a version that answers callers, and writes to the database of the dark."""
    for version, url in writers(facts.mesh, facts.routing):
        if not facts.routing.is_dark(version) and database_of(url).name == "shadow":
            where = f"{facts.workload(facts.routing.versions[version].workload)} DATABASE_URL"
            problem = f"{version} answers callers, but writes to 'shadow', where nobody else reads"
            yield Finding(where, problem, f"give it the live database first: {LIVE}")


def _only_reads(facts: Facts, rule: RouteRule) -> bool:
    """Say whether a rule takes GET and HEAD alone."""
    number = re.search(r"\d+", rule.place)
    for found in facts.scene.objects:
        if named(found) == rule.source and number:
            rules = dict(items(found, "spec", "http") or items(found, "spec", "rules"))
            written = rules.get(int(number[0]), {})
            asked = [match.get("method") for match in written.get("match") or written.get("matches") or []]
            methods = {at(method, "exact") or method for method in asked if method}
            return len(asked) > 0 and None not in asked and methods <= {"GET", "HEAD"}
    return False
