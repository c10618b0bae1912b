"""Findings in where the workshop's versions write: copies must not reach what callers read."""

from collections.abc import Iterator

from harness.proof.doctor.facts import Facts, Finding

OWN = "make apply F=recommendation/kubernetes.yaml"
LIVE = "make apply F=recommendation/settings/wrong-while-mirrored.yaml"


def copies_reach_the_callers_store(facts: Facts) -> Iterator[Finding]:
    """Find a version that gets copies of writes, and has the database of a version that answers callers."""
    access = facts.access
    for rule in facts.routing.rules:
        for v1 in rule.expectation.allowed if not rule.written.only_reads else ():
            for v2 in set(rule.expectation.copied).difference(rule.expectation.allowed):
                if v1 not in access or v2 not in access or access[v1].database != access[v2].database:
                    continue
                (_, name), role = access[v2]
                problem = f"{v2} gets copies of writes, and writes them to {v1}'s database '{name}' as well"
                remedy = f"give {v2} its own ({OWN}), or mirror nothing that writes"
                if role != access[v1].role:
                    problem = f"it names {v1}'s database '{name}', where {v2}'s role '{role}' may not write"
                    remedy = f"give {v2} its own: {OWN}"
                yield Finding(_where(facts, v2), problem, remedy)


def callers_are_answered_from_the_shadow(facts: Facts) -> Iterator[Finding]:
    """Find a version that a route lets answer callers, and that writes to the database of the dark."""
    for version, access in facts.access.items() if facts.references else ():
        if not facts.routing.is_dark(version) and access.database.name == "shadow":
            problem = f"{version} answers callers, but writes to 'shadow', where nobody else reads"
            yield Finding(_where(facts, version), problem, f"give it the live database first: {LIVE}")


def _where(facts: Facts, version: str) -> str:
    return f"{facts.workload(facts.routing.versions[version].workload)} DATABASE_URL"
