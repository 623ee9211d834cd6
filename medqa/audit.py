"""The audit record: every assessment, added once, never changed.

SQLite by default, PostgreSQL by URL. The database itself refuses to change or delete a row
(triggers, see the migration); the owner of the database can still rewrite everything.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from platformdirs import user_data_path
from pydantic import ValidationError
from sqlalchemy import (
    URL,
    BigInteger,
    DateTime,
    Double,
    Engine,
    Integer,
    NullPool,
    Text,
    create_engine,
    event,
    false,
    func,
    insert,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from medqa.assessment import Assessment, Verdict
from medqa.errors import StoreError

__all__ = ["Store", "canonical_json", "pseudonym"]

_DRIVERS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_BUSY_SECONDS = 30  # how long a writer waits for another one
_CONNECT_SECONDS = 10  # libpq alone would wait for ever
_PREFIX_LENGTH = 8  # of an assessment's id, like an abbreviated git commit
_KEY_BYTES = 32  # as long as the SHA-256 that it keys (RFC 2104, section 3)
_SCHEMA_REVISION = "0001"  # the newest of medqa.migrations
# Own names, so that a database shared with another Alembic project keeps both apart.
_VERSION_TABLE = "medqa_schema_version"
_MIGRATION_LOCK = int.from_bytes(b"medqa")


class _Base(DeclarativeBase):
    pass


class AssessmentRow(_Base):
    """One assessment; the columns beside `record` are there to search by."""

    __tablename__ = "assessments"

    sequence: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True
    )
    assessment_id: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    verdict: Mapped[str] = mapped_column(Text)
    modality: Mapped[str | None] = mapped_column(Text)
    profile_name: Mapped[str | None] = mapped_column(Text)
    backbone: Mapped[str | None] = mapped_column(Text)
    base_lpips_score: Mapped[float | None] = mapped_column(Double)
    reference_sha256: Mapped[str | None] = mapped_column(Text)
    candidate_sha256: Mapped[str | None] = mapped_column(Text)
    study_hmac: Mapped[str | None] = mapped_column(Text)
    origin: Mapped[str | None] = mapped_column(Text)
    record: Mapped[str] = mapped_column(Text)


class Store:
    """An open audit database; a context manager."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str | None = None) -> Store:
        """Open the database, bring its schema up to date, and make sure that it can be written.

        Parameters
        ----------
        url
            What contains ``://`` is a URL, ``sqlite:///...`` or ``postgresql://...``; anything
            else is the path of an SQLite file, made where it is missing. None takes the
            environment's ``MEDQA_DB``, else ``audit.db`` in the user's data folder.

        Raises
        ------
        StoreError
            Wrong URL, no driver, no server, no database, read-only, or a schema newer than
            this medqa.
        """
        given = url or os.environ.get("MEDQA_DB") or str(_data_folder() / "audit.db")
        store = cls(_engine(_parse_url(given)))
        with store._transaction() as session:
            _migrate(session.connection(), store.url_for_people)
            # Adds no row, and still needs all that adding one needs. (A row rolled back would
            # leave a gap in PostgreSQL's sequence, as if a record had been removed.)
            columns = list(AssessmentRow.__table__.columns)
            nothing = select(*columns).where(false())
            session.execute(insert(AssessmentRow).from_select(columns, nothing))
        return store

    @property
    def url_for_people(self) -> str:
        """The path of an SQLite file; a server's URL without password and options."""
        url = self._engine.url
        if url.drivername == "sqlite":
            return str(url.database)
        return url.set(query={}).render_as_string(hide_password=True)

    @cached_property
    def key(self) -> bytes:
        """Key of the pseudonyms in this record; at least 32 bytes.

        From the environment's ``MEDQA_KEY`` (hex), else from ``hmac.key`` in the user's data
        folder, which is made once. Hosts that share a database must share the key.

        Raises
        ------
        StoreError
            It is not hex or too short, or the file cannot be read or made.
        """
        given = os.environ.get("MEDQA_KEY")
        if given is not None:
            return _parse_key(given, "MEDQA_KEY")
        file = _data_folder() / "hmac.key"
        try:
            if not file.exists():
                _make_key_file(file)
            return _parse_key(file.read_text("ascii"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(
                file, f"cannot be read or made ({error})", "check its folder, or set MEDQA_KEY"
            ) from error

    def add(self, assessment: Assessment) -> None:
        """Add an assessment, durably, in one transaction.

        Raises
        ------
        StoreError
            It could not be written, or its id is there already.
        """
        reference, candidate = assessment.inputs.reference, assessment.inputs.candidate
        row = AssessmentRow(
            assessment_id=assessment.assessment_id,
            created_at=assessment.created_at.astimezone(UTC),
            verdict=assessment.verdict,
            modality=reference and reference.modality,
            profile_name=assessment.profile and assessment.profile.name,
            backbone=assessment.metric and assessment.metric.backbone,
            base_lpips_score=assessment.base_lpips_score,
            reference_sha256=reference and reference.pixels_sha256,
            candidate_sha256=candidate and candidate.pixels_sha256,
            study_hmac=reference and reference.study_hmac,
            origin=assessment.origin,
            record=canonical_json(assessment),
        )
        with self._transaction() as session:
            session.add(row)

    def get(self, assessment_id: str) -> Assessment:
        """Assessment of this id, or of the only id that begins so (8 characters at least).

        Raises
        ------
        StoreError
            There is none, or more than one.
        """
        with self._transaction() as session:
            column = AssessmentRow.assessment_id
            record = session.scalar(select(AssessmentRow.record).where(column == assessment_id))
            if record is not None:
                return self._parse(record)
            if len(assessment_id) < _PREFIX_LENGTH:
                raise StoreError(
                    assessment_id, "is no assessment", f"give {_PREFIX_LENGTH} characters or more"
                )
            # Not LIKE, which takes % and _ as wildcards and, in SQLite, ignores case.
            begins = func.substr(column, 1, len(assessment_id)) == assessment_id
            found = session.scalars(select(AssessmentRow.record).where(begins).limit(2)).all()
        if len(found) != 1:
            raise StoreError(
                assessment_id,
                "is the beginning of more than one assessment" if found else "is no assessment",
                "give the whole id" if found else f"see what {self.url_for_people} holds",
            )
        return self._parse(found[0])

    def list(self, limit: int = 20, verdict: Verdict | None = None) -> tuple[Assessment, ...]:
        """Latest assessments, the newest first.

        Raises
        ------
        StoreError
            They could not be read.
        """
        query = select(AssessmentRow.record).order_by(AssessmentRow.sequence.desc()).limit(limit)
        if verdict is not None:
            query = query.where(AssessmentRow.verdict == verdict)
        with self._transaction() as session:
            return tuple(map(self._parse, session.scalars(query)))

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        """Commit at the end, or leave no trace; database errors become StoreError."""
        try:
            with Session(self._engine) as session, session.begin():
                yield session
        except SQLAlchemyError as error:
            # Only the driver's own words: SQLAlchemy's add the statement and its values.
            words = str(error.orig) if isinstance(error, DBAPIError) else type(error).__name__
            raise StoreError(
                self.url_for_people,
                words.strip().partition("\n")[0],
                "check that the database is there and may be written, or name another",
            ) from error

    def _parse(self, record: str) -> Assessment:
        try:
            return Assessment.model_validate_json(record)
        except ValidationError as error:
            raise StoreError(
                self.url_for_people,
                "it holds a record that this version of medqa does not understand",
                "update medqa",
            ) from error


def canonical_json(assessment: Assessment) -> str:
    """Return the stored form: JSON, keys sorted, no white space; one text for one assessment."""
    return json.dumps(
        assessment.model_dump(mode="json"),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )


def pseudonym(key: bytes, value: str) -> str:
    """HMAC-SHA-256 of an identifier in UTF-8, in hex (64 characters)."""
    return hmac.new(key, value.encode(), hashlib.sha256).hexdigest()


def _data_folder() -> Path:
    return user_data_path("medqa", appauthor=False)


def _parse_url(given: str) -> URL:
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


def _engine(url: URL) -> Engine:
    # One connection per transaction: none goes stale when a server restarts, none is inherited
    # by a forked worker, and the last one to close folds SQLite's WAL into the file.
    options: dict[str, Any] = {"poolclass": NullPool, "hide_parameters": True}
    if url.drivername == "sqlite":
        _make_private_file(Path(str(url.database)))
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
        event.listen(engine, "connect", _set_pragmas)
        # Python's sqlite3 would begin late, and a transaction that reads before it writes fails
        # under a concurrent writer without waiting for it.
        event.listen(
            engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE")
        )
    return engine


def _set_pragmas(connection: Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    # WAL with NORMAL can lose committed rows when the power fails (sqlite.org/pragma.html).
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


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


def _migrate(connection: Connection, subject: str) -> None:
    """Bring the schema up to date inside the connection's transaction; one process at a time."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
    current = None
    if inspect(connection).has_table(_VERSION_TABLE):
        current = connection.scalar(text(f"SELECT version_num FROM {_VERSION_TABLE}"))  # noqa: S608
    if current == _SCHEMA_REVISION:
        return
    # Imported here: the schema is up to date nearly always, and Alembic takes half a second.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "medqa:migrations")
    config.attributes.update(connection=connection, version_table=_VERSION_TABLE)
    script = ScriptDirectory.from_config(config)
    if current is not None and current not in {one.revision for one in script.walk_revisions()}:
        raise StoreError(
            subject, f"its schema {current} is newer than this version of medqa", "update medqa"
        )
    command.upgrade(config, "head")


def _parse_key(given: str, subject: str) -> bytes:
    try:
        key = bytes.fromhex(given)
    except ValueError:
        key = b""
    if len(key) < _KEY_BYTES:
        # The value is a secret: not shown, not chained.
        raise StoreError(
            subject,
            f"is not {_KEY_BYTES} bytes in hex or more",
            "make one with openssl rand -hex 32",
        )
    return key


def _make_key_file(file: Path) -> None:
    """Make a key file for its owner only: whole or not at all, and never over another one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp opens with O_EXCL and mode 0600; link, unlike rename, fails where the file exists.
    handle, temporary = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(os.urandom(_KEY_BYTES).hex())
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):
            os.link(temporary, file)
    finally:
        os.unlink(temporary)
