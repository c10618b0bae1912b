"""The claims on what the versions wrote: each is one checked statement, and one function.

They rest on the rows of the databases, and on the proxies' logs: these say who answered which write.
"""

from collections import Counter
from collections.abc import Iterator

from harness.meshes.stores import Database
from harness.proof.evidence import Claim, Evidence, Sum
from harness.proof.figures import Tally
from harness.proof.stores import MOST, Row, Stored
from harness.proof.story import NOTHING, Shape

Live = dict[Database, list[str]]
"""The databases of the versions that answer callers, with those versions."""


def readable(evidence: Evidence) -> Iterator[Claim]:
    """Claim that the stores can be read; only made where they cannot."""
    if (found := evidence.stored) and found.problem:
        yield Sum().claim("store-read", "it is known what the stores hold", found.problem, unproven=True)
    if len(evidence.writes) >= MOST:
        detail = f"more than the {MOST:,} that are compared: end the run sooner"
        yield Sum().claim("store-read", "all writes were compared", detail, unproven=True)


def one_store(evidence: Evidence, found: Stored, live: Live) -> Iterator[Claim]:
    """Claim that all versions that answer callers write to one database; only made where they do not."""
    if len(live) > 1:
        detail = "; ".join(f"{' and '.join(versions)}: {db.name}" for db, versions in live.items())
        yield Sum().claim("one-store", "what callers write is in one store", detail, fails=True)


def stored(evidence: Evidence, found: Stored, live: Live) -> Iterator[Claim]:
    """Claim that the callers' store holds each write that was answered once, and none of a dark version.

    What was not answered with 2xx may be stored or not, but not twice.
    """
    dark = [version for version in evidence.routing.versions if evidence.routing.is_dark(version)]
    for database, versions in live.items():
        rows = found.rows[database]
        total = Sum("lost", "doubled", "foreign", writes=0, once=0)
        for request_id in dict.fromkeys([*evidence.writes, *rows]):
            shape, there = evidence.writes.get(request_id, NOTHING), rows.get(request_id, [])
            tried, told = sum(call.version in versions for call in shape.own), _told(shape, versions)
            foreign = sum(row.version not in versions for row in there)
            once = told if len(there) == tried and not foreign else 0
            lost, doubled = max(told - len(there), 0), max(len(there) - tried, 0) if tried else 0
            total.add(_tally(request_id), writes=told, once=once, lost=lost, doubled=doubled, foreign=foreign)
        wrong = {"lost": "lost", "doubled": "doubled"}
        wrong |= {"foreign": f"by {' or '.join(dark)}"} if dark or total["foreign"] else {}
        words = ", ".join(f"{total[name]:,} {word}" for name, word in wrong.items())
        store = f"{versions[0]}'s store" if len(versions) == 1 else f"the store of {' and '.join(versions)}"
        statement = f"{store} holds every write once" + f", and none by {' or '.join(dark)}" * bool(dark)
        if evidence.writes or total["foreign"]:
            detail = f"{total['once']:,} of {total['writes']:,}: {words}"
            yield total.claim("stored", statement, detail, unproven=not total["writes"])


def same_writes(evidence: Evidence, found: Stored, live: Live) -> Iterator[Claim]:
    """Claim, where a dark version has a store of its own, that it wrote there what callers' version wrote."""
    for version, own in found.writers.items():
        if own in live or version not in evidence.routing.copied:
            continue
        for database, versions in live.items():
            yield from _compared(evidence, found, version, database, versions)


def _compared(
    evidence: Evidence, found: Stored, version: str, database: Database, versions: list[str]
) -> Iterator[Claim]:
    ours, theirs = found.rows[found.writers[version]], found.rows[database]
    total, fields, example = Sum("missing", "different", rows=0, same=0), Counter[str](), ""
    for request_id, shape in evidence.writes.items():
        # What v2 did not answer, or not with 2xx, other claims tell.
        due = sum(not a.trouble and 200 <= a.status < 300 for a in shape.at(version))
        if not due or not _told(shape, versions):
            continue
        one, other = theirs.get(request_id, []), ours.get(request_id, [])
        differing = [f for f in ("item", "bytes") if other and _values(one, f) != _values(other, f)]
        differing += ["rows"] if len(other) > due else []
        missing = len(other) < due
        for name in differing:
            fields[name] += 1
            example = example or f"{name}: {_values(one, name)}, {version} {_values(other, name)}"
        total.add(_tally(request_id), rows=1, missing=missing, different=bool(differing),
                  same=not missing and not differing)  # fmt: skip
    if not total["rows"]:
        return
    detail = f"{total['same']:,} of {total['rows']:,} the same, {total['missing']:,} missing, "
    detail += f"{total['different']:,} different"
    if fields:
        detail += f" ({', '.join(f'{name} {count:,} x' for name, count in fields.items())}; {example})"
    statement = f"{version} wrote what {' and '.join(versions)} wrote"
    yield total.claim("same-writes", statement, detail, version=version)


def _values(rows: list[Row], name: str) -> str:
    """Return what rows hold in a field; ``rows`` is how many they are."""
    return str(len(rows)) if name == "rows" else ", ".join(sorted({getattr(row, name) for row in rows}))


def _told(shape: Shape, versions: list[str]) -> int:
    """Return how many writes of a story callers know to be stored: those that versions answered with 2xx."""
    return sum(c.version in versions and c.answered and 200 <= c.status < 300 for c in shape.own)


def _tally(request_id: str) -> Tally:
    return Tally(1, [(request_id, "POST", "")])


def of_stores(evidence: Evidence) -> Iterator[Claim]:
    """Make all claims on the stores; but for the first, where they could be read, and a write was seen."""
    yield from readable(evidence)
    found = evidence.stored
    if found and not found.problem and (evidence.writes or any(found.rows.values())):
        live: Live = {}
        for version, database in found.writers.items():
            if not evidence.routing.is_dark(version):
                live.setdefault(database, []).append(version)
        for make in (one_store, stored, same_writes):
            yield from make(evidence, found, live)
