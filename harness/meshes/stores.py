"""How the harness reads the store of a mesh with pods: by psql in its own pod, as a role that only reads."""

import csv


def psql(database: str, sql: str) -> list[str]:
    """Return the command that prints the rows that a database answers."""
    words = ["psql", "--no-psqlrc", "--quiet", "--csv", "--tuples-only", "--set=VERBOSITY=terse"]
    return [*words, "--username=reader", f"--dbname={database}", f"--command={sql}"]


def rows_of(printed: str) -> list[list[str]]:
    """Return the rows that psql printed."""
    return list(csv.reader(printed.splitlines(keepends=True)))
