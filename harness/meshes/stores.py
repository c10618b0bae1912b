"""The store: which database a DATABASE_URL names, and how the harness reads it."""

import csv
from typing import NamedTuple
from urllib.parse import urlsplit

from harness.meshes.mesh import MeshError


class Database(NamedTuple):
    """A database of PostgreSQL: the Service by which it is reached, and its name."""

    host: str
    name: str


class Access(NamedTuple):
    """What a DATABASE_URL says."""

    database: Database
    role: str


def access_of(url: str) -> Access | None:
    """Return what a DATABASE_URL says; None if it names no PostgreSQL.

    :raises MeshError: it is no URL.
    """
    try:
        where = urlsplit(url)
    except ValueError:
        example = "postgresql://role:password@store/database"
        raise MeshError(f"a DATABASE_URL is no URL: write one such as {example}") from None
    if where.scheme.partition("+")[0] != "postgresql":
        return None
    host, role = (where.hostname or "").partition(".")[0], where.username or ""
    return Access(Database(host, where.path.strip("/") or role), role)


def psql(database: str, sql: str) -> list[str]:
    """Return the command that prints the rows that a database answers, run in the store's own pod.

    It comes in as the role ``reader``, which only reads.
    """
    words = ["psql", "--no-psqlrc", "--quiet", "--csv", "--tuples-only", "--set=VERBOSITY=terse"]
    return [*words, "--username=reader", f"--dbname={database}", f"--command={sql}"]


def rows_of(printed: str) -> list[list[str]]:
    """Return the rows that psql printed."""
    return list(csv.reader(printed.splitlines(keepends=True)))
