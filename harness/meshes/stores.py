"""The store: which database a DATABASE_URL names, and how the harness reads it.

What PostgreSQL keeps elsewhere, the local mesh keeps in files of SQLite's.
"""

import contextlib
import csv
import sqlite3
import threading
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from harness.meshes.mesh import MeshError

# Pods start at once, and several may keep what they know in one database.
_ONE_AT_A_TIME = threading.Lock()


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


def sqlite_url(folder: Path, url: str) -> str:
    """Return the URL of the file in a folder that stands in for a database of PostgreSQL.

    A database belongs to the role of its name. SQLite knows no roles: others can only read.
    """
    if not (access := access_of(url)):
        return url
    path = _file(folder, access.database.name)
    path.parent.mkdir(exist_ok=True)
    with _ONE_AT_A_TIME, contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # who reads must not wait for who writes
    mode = "rw" if access.role == access.database.name else "ro"
    return f"sqlite:///{path.as_uri()}?mode={mode}&uri=true"


def sqlite_rows(folder: Path, database: str, sql: str) -> list[list[str]]:
    """Return the rows that a database answers; one that nobody has opened yet has none.

    :raises MeshError: it cannot be read.
    """
    if not (path := _file(folder, database)).exists():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return [list(map(str, row)) for row in connection.execute(sql)]
    except sqlite3.Error as error:
        raise MeshError(f"{path.name}: {error}") from None


def _file(folder: Path, name: str) -> Path:
    return folder / f"{Path(name).name}.db"
