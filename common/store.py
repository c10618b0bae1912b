"""Where feedback is kept: the database that DATABASE_URL names, PostgreSQL or SQLite."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flask import Flask, abort, current_app, request
from gevent import Timeout
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Engine,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert  # SQLite has the same ON CONFLICT
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

TIMEOUT = float(os.environ.get("STORE_TIMEOUT", "4"))  # seconds: less than preference waits
ITEM_LENGTH = 200

feedback = Table(
    "feedback",
    MetaData(),
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("request_id", Text),
    Column("item", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("version", Text, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    # Without IDEMPOTENT it is NULL, which any number of rows may have.
    Column("idempotency_key", Text, unique=True),
)  # fmt: skip
by_item = Index("feedback_by_item", feedback.c.item)


class Store:
    """All feedback; without DATABASE_URL nothing is kept, and nothing is counted."""

    def __init__(self, app: Flask, version: str) -> None:
        """Write in the name of ``version``; ``app`` is where gunicorn finds what to prepare."""
        app.extensions["store"] = self
        self._version = version
        self._idempotent = bool(os.environ.get("IDEMPOTENT"))
        self._has_table, self._making = False, threading.Lock()
        url = os.environ.get("DATABASE_URL")
        self._engine = _engine(url) if url else None
        # Each statement is a transaction of its own.
        self._statements = self._engine and self._engine.execution_options(isolation_level="AUTOCOMMIT")

    def prepare(self) -> None:
        """Connect and make the table, so that the first requests need not; give up after half a minute."""
        for pause in (1, 2, 4, 8, 16):
            with suppress(SQLAlchemyError, Timeout), Timeout(TIMEOUT):
                self._make_table()
                return
            time.sleep(pause)

    def add(self, size: int) -> None:
        """Keep the current request's feedback, ``size`` bytes on an item; on return it is stored.

        Refuses the request with 503 if the database does not take it in time.
        """
        request_id = request.headers.get("x-request-id", "")[:ITEM_LENGTH] or None
        row = {
            "request_id": request_id, "item": _item(), "bytes": size, "version": self._version,
            "idempotency_key": request_id if self._idempotent else None,
        }  # fmt: skip
        with self._connection() as database:
            if database:
                database.execute(insert(feedback).values(row).on_conflict_do_nothing())

    def count(self) -> dict[str, int]:
        """Return ``feedback``, how often there was some on the item that the current request names, if any.

        Refuses the request with 503 if the database does not answer in time.
        """
        if not (item := _item()):
            return {}
        with self._connection() as database:
            counted = select(func.count()).select_from(feedback).where(feedback.c.item == item)
            return {"feedback": database.scalar(counted) or 0} if database else {}

    @contextmanager
    def _connection(self) -> Iterator[Connection | None]:
        if not (self._engine and self._statements):
            yield None
            return
        try:
            with Timeout(TIMEOUT):
                self._make_table()
                with self._statements.connect() as database:
                    yield database
        except (SQLAlchemyError, Timeout) as error:
            if isinstance(error, DBAPIError):
                self._has_table = False  # it may come back empty; who waited too long knows nothing of that
            current_app.logger.warning("store: %s", str(getattr(error, "orig", error)).strip())
            abort(503, "the store does not answer")

    def _make_table(self) -> None:
        """Make the table if it is not there; several pods may do so at once."""
        with self._making:
            if self._has_table or not self._engine:
                return
            with self._engine.begin() as database:
                if self._engine.dialect.name == "postgresql":
                    database.execute(text("SELECT pg_advisory_xact_lock(1)"))
                database.execute(CreateTable(feedback, if_not_exists=True))
                database.execute(CreateIndex(by_item, if_not_exists=True))
            self._has_table = True


def _item() -> str:
    """Return the item that the current request names; refuse what no database keeps (400)."""
    item = request.args.get("item", "")
    if len(item) > ITEM_LENGTH or "\0" in item:
        abort(400)
    return item


def _engine(url: str) -> Engine:
    where = make_url(url)
    if where.drivername == "postgresql":
        where = where.set(drivername="postgresql+psycopg")
    is_sqlite = where.drivername == "sqlite"
    engine = create_engine(
        where, pool_size=5, max_overflow=0, pool_timeout=TIMEOUT,  # to connect is slow, so a few are kept
        pool_pre_ping=True,  # a connection is tried before it is used, so the store comes back by itself
        connect_args={"timeout": TIMEOUT / 2} if is_sqlite else {},
    )  # fmt: skip
    if is_sqlite:
        # A commit survives the process, whenever it is killed; it need not wait for the disk.
        event.listen(engine, "connect", lambda found, _: found.execute("PRAGMA synchronous=NORMAL"))
    return engine
