"""The stores of the workshop's versions, read by the harness itself: evidence of what they wrote."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from harness import Json, settings
from harness.meshes.mesh import TARGET, Mesh, MeshError
from harness.meshes.stores import Access, Database, access_of
from harness.proof.target import Routing

Answer = TypeVar("Answer")

MOST = 500_000
"""How many writes of one run are compared."""

_LAST = "SELECT coalesce(max(id), 0) FROM feedback"
_SINCE = "SELECT coalesce(request_id, ''), version, item, bytes FROM feedback WHERE id > {} ORDER BY id"
_NO_TABLE = ("no such table", 'relation "feedback" does not exist')


class Row(NamedTuple):
    """What one write left in a database."""

    version: str
    """Who wrote it."""
    item: str
    bytes: str


Rows = Mapping[str, list[Row]]
"""The rows of a database, by request id."""


@dataclass(frozen=True)
class Stored:
    """What a run left in the databases."""

    writers: Mapping[str, Database]
    """The database of each version."""
    rows: Mapping[Database, Rows] = field(default_factory=dict)
    problem: str = ""
    """Why nothing can be said of it."""


def writers(mesh: Mesh, routing: Routing) -> Iterator[tuple[str, Access]]:
    """Yield each version that has a database, and how it comes in; only the workshop's service has one.

    :raises MeshError: a Secret may not be read, or holds no URL.
    """
    found = {name: template["spec"]["containers"][0] for name, template in _templates(routing).items()}
    names = {name for container in found.values() for name in _secrets_of(container)}
    secrets = mesh.secrets(names) if names else {}
    for version, container in found.items():
        known: dict[str, str] = {}
        for name in _secrets_of(container):
            known |= secrets.get(name, {})
        known |= {each["name"]: each.get("value", "") for each in container.get("env") or ()}
        if access := access_of(known.get("DATABASE_URL", "")):
            yield version, access


def _templates(routing: Routing) -> dict[str, Json]:
    """Return the pod templates of the versions, if they are the workshop's."""
    if (routing.target.service, routing.target.namespace) != (TARGET, settings.namespace()):
        return {}
    known = {d["metadata"]["name"]: d["spec"]["template"] for d in routing.scene.of_kind("Deployment")}
    versions = routing.versions.items()
    return {name: known[version.workload] for name, version in versions if version.workload in known}


def _secrets_of(container: Json) -> list[str]:
    return [source.get("secretRef", {}).get("name", "") for source in container.get("envFrom") or ()]


class Stores:
    """What the versions of a target write from now on."""

    def __init__(self, mesh: Mesh, routing: Routing) -> None:
        self._mesh, self._pods = mesh, _pods(routing)
        try:
            found = {version: access.database for version, access in writers(mesh, routing)}
            self._begun = _of_each(set(found.values()), self._last)
            self._found = Stored(found)
        except MeshError as error:
            self._found = Stored({}, problem=str(error))

    def __bool__(self) -> bool:
        """Say whether there is anything to read, or should be."""
        return bool(self._found.writers or self._found.problem)

    def read(self, routing: Routing) -> Stored:
        """Return what was written since this was made.

        :param routing: what is applied now: a version that changed its database meanwhile proves nothing.
        """
        if self._found.problem:
            return self._found
        if _pods(routing) != self._pods:
            return replace(self._found, problem="a version got new pods, perhaps for another database")
        try:
            return replace(self._found, rows=_of_each(self._begun, self._rows))
        except MeshError as error:
            return replace(self._found, problem=str(error))

    def _last(self, database: Database) -> int:
        return int(next(iter(self._query(database, _LAST)), ["0"])[0])

    def _rows(self, database: Database) -> Rows:
        rows: defaultdict[str, list[Row]] = defaultdict(list)
        for request_id, *row in self._query(database, _SINCE.format(self._begun[database])):
            rows[request_id].append(Row(*row))
        return rows

    def _query(self, database: Database, sql: str) -> list[list[str]]:
        try:
            return self._mesh.query(*database, sql)
        except MeshError as error:
            if any(words in str(error) for words in _NO_TABLE):  # nobody has written anything yet
                return []
            raise


def _of_each(databases: Iterable[Database], ask: Callable[[Database], Answer]) -> dict[Database, Answer]:
    """Ask all databases at once: each takes a moment to come in."""
    known = list(databases)
    with ThreadPoolExecutor() as pool:
        return dict(zip(known, pool.map(ask, known), strict=True))


def _pods(routing: Routing) -> tuple[dict[str, Json], list[Json]]:
    """Return what changes whenever the versions' pods may get another database."""
    return _templates(routing), list(routing.scene.of_kind("Secret"))
