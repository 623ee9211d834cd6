"""SQLite or PostgreSQL: what a URL means, how a connection is set up, and its schema."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, NullPool, create_engine, event, inspect, make_url, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from medqa.errors import StoreError

__all__ = [
    "SCHEMA_REVISION",
    "VERSION_TABLE",
    "alembic_config",
    "check_schema",
    "connect",
    "database_time",
    "lock",
    "migrate",
    "parse_url",
    "transaction",
    "url_for_people",
]

SCHEMA_REVISION = "0003"  # the newest of medqa.migrations; they are numbered in order
# Own names, so that a database shared with another Alembic project keeps both apart.
VERSION_TABLE = "medqa_schema_version"

_DRIVERS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_BUSY_SECONDS = 30  # how long a writer waits for another one
_CONNECT_SECONDS = 10  # libpq alone would wait for ever
_LOCK = int.from_bytes(b"medqa")


def parse_url(given: str) -> URL:
    """Return the URL of a database, with its driver.

    Raises
    ------
    StoreError
        It is neither a file nor the URL of SQLite or PostgreSQL.
    """
    try:
        url = make_url(given) if "://" in given else URL.create("sqlite", database=given)
        driver = _DRIVERS[url.drivername]
    except (ArgumentError, ValueError, KeyError):
        # Neither shown nor chained: what cannot be parsed cannot be stripped of its password.
        raise StoreError(
            "database",
            "its URL is not one of SQLite or PostgreSQL",
            "write postgresql://user@host/name, or the path of an SQLite file",
        ) from None
    if driver == "sqlite" and (url.database in (None, "", ":memory:") or url.query):
        raise StoreError(
            "database", "its URL does not name just a file", "write the path of a file"
        )
    return url.set(drivername=driver)


def url_for_people(url: URL) -> str:
    """Return the path of an SQLite file; a server's URL without password and options."""
    if url.drivername == "sqlite":
        return str(url.database)
    return url.set(query={}).render_as_string(hide_password=True)


def connect(url: URL, *, readonly: bool) -> Engine:
    """Return an engine whose transactions are safe beside other processes'.

    Raises
    ------
    StoreError
        No driver, or an SQLite file that is missing (to read) or cannot be made (to write).
    """
    # One connection per transaction: none goes stale when a server restarts, none is inherited
    # by a forked worker, and the last one to close folds SQLite's WAL into the file.
    options: dict[str, Any] = {"poolclass": NullPool, "hide_parameters": True}
    if url.drivername == "sqlite":
        file = Path(str(url.database))
        if readonly and not file.exists():
            raise StoreError(file, "there is no such database", "name another")
        if not readonly:
            _make_private_file(file)
        options["connect_args"] = {"timeout": _BUSY_SECONDS, "isolation_level": None}
    else:
        options["connect_args"] = {"connect_timeout": _CONNECT_SECONDS}
    try:
        engine = create_engine(url, **options)
    except ImportError as error:
        raise StoreError(
            "PostgreSQL", "its driver is not installed", "pip install 'medqa[postgresql]'"
        ) from error
    if url.drivername == "sqlite":
        event.listen(engine, "connect", _set_read_pragmas if readonly else _set_write_pragmas)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def transaction(engine: Engine, *, readonly: bool) -> Iterator[Connection]:
    """Commit at the end, or leave no trace; database errors become StoreError.

    What is read in one transaction is of one moment.
    """
    options: dict[str, Any] = {"medqa_readonly": readonly}
    if engine.dialect.name == "postgresql":
        # A writer reads the end of the chain after it has waited for its turn, so not as of the
        # beginning of its transaction, whatever the server's default is.
        options["isolation_level"] = "REPEATABLE READ" if readonly else "READ COMMITTED"
        options["postgresql_readonly"] = readonly
    try:
        with engine.execution_options(**options).begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        # Only the driver's own words: SQLAlchemy's add the statement and its values.
        words = str(error.orig) if isinstance(error, DBAPIError) else type(error).__name__
        raise StoreError(
            url_for_people(engine.url),
            words.strip().partition("\n")[0],
            "check that the database is there and may be used so, or name another",
        ) from error


def lock(connection: Connection) -> None:
    """Wait until no other transaction appends or migrates; SQLite has done so at its beginning."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


def database_time(connection: Connection) -> str:
    """Time of the database's own clock, in UTC: ``2026-03-01T12:00:00.000000Z``."""
    if connection.dialect.name == "postgresql":
        clock = (  # now() would be when the transaction began to wait for its turn
            "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        )
    else:
        clock = "strftime('%Y-%m-%dT%H:%M:%f', 'now') || '000Z'"
    return str(connection.exec_driver_sql(f"SELECT {clock}").scalar_one())


def migrate(connection: Connection, actor: str, account: str) -> None:
    """Bring the schema up to date inside the connection's transaction; one process at a time.

    Raises
    ------
    StoreError
        It is newer than this medqa.
    """
    lock(connection)
    current = _revision(connection)
    if current == SCHEMA_REVISION:
        return
    # Imported here: the schema is up to date nearly always, and Alembic takes half a second.
    from alembic import command

    command.upgrade(alembic_config(connection, actor, account), "head")


def alembic_config(connection: Connection, actor: str, account: str) -> Any:
    """Return Alembic's configuration of our migrations, to run on an open connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "medqa:migrations")
    config.attributes.update(
        connection=connection, version_table=VERSION_TABLE, actor=actor, account=account
    )
    return config


def check_schema(connection: Connection) -> None:
    """Check, without changing anything, that this medqa can read the schema.

    Raises
    ------
    StoreError
        It is another one.
    """
    current = _revision(connection)
    if current != SCHEMA_REVISION:
        raise StoreError(
            url_for_people(connection.engine.url),
            f"its schema {current} is older than this version of medqa"
            if current
            else "it holds no audit record",
            "run medqa doctor as its owner, which brings it up to date",
        )


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    current = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
    if current is not None and current > SCHEMA_REVISION:
        raise StoreError(
            url_for_people(connection.engine.url),
            f"its schema {current} is newer than this version of medqa",
            "update medqa",
        )
    return None if current is None else str(current)


def _begin_sqlite(connection: Connection) -> None:
    # Python's sqlite3 would begin late, and a transaction that reads before it writes fails under
    # a concurrent writer without waiting for it. One that only reads keeps no writer waiting.
    readonly = connection.get_execution_options().get("medqa_readonly")
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")


def _set_write_pragmas(connection: Any, _: object) -> None:
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # Of several that turn a new file over to WAL at once, SQLite lets none wait.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    # WAL with NORMAL can lose committed rows when the power fails (sqlite.org/pragma.html).
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _set_read_pragmas(connection: Any, _: object) -> None:
    connection.execute("PRAGMA query_only = ON")
    # Text that is not UTF-8 can only have been put there by force: it must reach the check of the
    # chain, not stop it.
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")


def _make_private_file(file: Path) -> None:
    """Make an empty file that only its owner may read; SQLite's own would follow the umask."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise StoreError(
            file, f"cannot be made ({error.strerror})", "name a file in a folder you may write"
        ) from error
