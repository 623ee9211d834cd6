"""The store: opens the database, adds assessments, finds them again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC
from functools import cached_property
from types import TracebackType

from pydantic import ValidationError
from sqlalchemy import Engine, Table, false, func, insert, or_, select
from sqlalchemy.engine import Connection

from medqa.assessment import Assessment, Verdict
from medqa.audit.chain import SEARCH_COLUMNS, Entry, assessment_body, canonical_json
from medqa.audit.database import (
    check_schema,
    connect,
    lock,
    migrate,
    parse_url,
    transaction,
    url_for_people,
)
from medqa.audit.files import data_folder
from medqa.audit.journal import account_here, append
from medqa.audit.keys import pseudonym, pseudonym_key, pseudonym_keys
from medqa.audit.tables import assessments, entries
from medqa.errors import ConflictError, StoreError

__all__ = ["Store", "find", "find_approval", "find_signable"]

_PREFIX_LENGTH = 8  # of an assessment's id, like an abbreviated git commit


class Store:
    """An open audit database; a context manager."""

    def __init__(self, engine: Engine, *, readonly: bool) -> None:
        self._engine = engine
        self._readonly = readonly

    @classmethod
    def open(cls, url: str | None = None, *, readonly: bool = False) -> Store:
        """Open the database.

        Unless it is opened to read, its schema is brought up to date, and it is made sure that
        it can be written.

        Parameters
        ----------
        url
            What contains ``://`` is a URL, ``sqlite:///...`` or ``postgresql://...``; anything
            else is the path of an SQLite file, made where it is missing. None takes the
            environment's ``MEDQA_DB``, else ``audit.db`` in the user's data folder.
        readonly
            Change nothing, and need no right to.

        Raises
        ------
        StoreError
            Wrong URL, no driver, no server, no database, read-only, or a schema newer than
            this medqa; to read, a schema older than it too.
        """
        given = url or os.environ.get("MEDQA_DB") or str(data_folder() / "audit.db")
        store = cls(connect(parse_url(given), readonly=readonly), readonly=readonly)
        if readonly:
            with store.reading() as connection:
                check_schema(connection)
            return store
        with store.writing() as connection:
            migrate(connection, os.environ.get("MEDQA_USER") or account_here(), account_here())
            for table in (assessments, entries):
                _try_to_insert(connection, table)
        return store

    @property
    def url_for_people(self) -> str:
        """The path of an SQLite file; a server's URL without password and options."""
        return url_for_people(self._engine.url)

    @cached_property
    def key(self) -> bytes:
        """Key of the pseudonyms in this record (`medqa.audit.keys.pseudonym_key`)."""
        return pseudonym_key()

    def reading(self) -> AbstractContextManager[Connection]:
        """Transaction that reads the database as it is at one moment."""
        return transaction(self._engine, readonly=True)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Transaction that appends; it waits until it is alone."""
        if self._readonly:
            raise StoreError(self.url_for_people, "it was opened to read", "open it to write")
        with transaction(self._engine, readonly=False) as connection:
            lock(connection)
            yield connection

    def changing(self) -> AbstractContextManager[Connection]:
        """Transaction that changes the queue, beside which others may append."""
        return transaction(self._engine, readonly=False)

    def add(
        self,
        assessment: Assessment,
        *,
        supersedes: str | None = None,
        reason: str | None = None,
        actor: str | None = None,
        beside: Callable[[Connection], None] = lambda _connection: None,
    ) -> Entry:
        """Add an assessment, durably, in one transaction.

        Parameters
        ----------
        supersedes
            Id, or the beginning of it, of an earlier assessment that this one corrects.
        reason
            Why, in words that name no patient.
        actor
            Who; None takes the environment's ``MEDQA_USER``, else the operating system's account.
        beside
            What else is written in the same transaction: both stand, or neither does.

        Returns
        -------
        Its entry in the chain, a receipt that may be kept elsewhere.

        Raises
        ------
        StoreError
            It could not be written, its id is there already, or what it supersedes is not there
            or was superseded before.
        """
        record = canonical_json(assessment)
        reference, candidate = assessment.inputs.reference, assessment.inputs.candidate
        created_at = assessment.created_at.astimezone(UTC)
        with self.writing() as connection:
            if supersedes is not None:
                supersedes = find(connection, supersedes, self.url_for_people)[0]
                _check_not_superseded(connection, supersedes)
            last = connection.scalar(select(func.max(assessments.c.sequence)))
            row = {
                "sequence": (last or 0) + 1,
                "assessment_id": assessment.assessment_id,
                "created_at": created_at,
                "verdict": assessment.verdict,
                "modality": reference and reference.modality,
                "profile_name": assessment.profile and assessment.profile.name,
                "backbone": assessment.metric and assessment.metric.backbone,
                "base_lpips_score": assessment.base_lpips_score,
                "reference_sha256": reference and reference.pixels_sha256,
                "candidate_sha256": candidate and candidate.pixels_sha256,
                "study_hmac": reference and reference.study_hmac,
                "origin": assessment.origin,
                "supersedes": supersedes,
                "record": record,
            }
            connection.execute(insert(assessments).values(**row))
            beside(connection)
            columns = {name: row[name] for name in SEARCH_COLUMNS}
            columns["created_at"] = created_at.strftime("%Y-%m-%d %H:%M:%S.%f")
            return append(
                connection,
                "assessment",
                assessment.assessment_id,
                assessment_body(columns, record),
                actor=actor,
                reason=reason,
            )

    def get(self, assessment_id: str) -> Assessment:
        """Assessment of this id, or of the only id that begins so (8 characters at least).

        Raises
        ------
        StoreError
            There is none, or more than one.
        """
        with self.reading() as connection:
            return self._parse(find(connection, assessment_id, self.url_for_people)[1])

    def list(self, limit: int = 20, verdict: Verdict | None = None) -> tuple[Assessment, ...]:
        """Latest assessments, the newest first.

        Raises
        ------
        StoreError
            They could not be read.
        """
        query = select(assessments.c.record).order_by(assessments.c.sequence.desc()).limit(limit)
        if verdict is not None:
            query = query.where(assessments.c.verdict == verdict)
        with self.reading() as connection:
            return tuple(map(self._parse, connection.scalars(query)))

    def about(self, identifier: str) -> tuple[Assessment, ...]:
        """Assessments of a patient, study, series or instance, the newest first.

        Parameters
        ----------
        identifier
            Patient ID or UID, as in the DICOM header; looked for under every key that there is
            or was (`medqa.audit.keys.pseudonym_keys`).

        Raises
        ------
        StoreError
            They could not be read, or a key is wrong.
        """
        codes = [pseudonym(key, identifier) for key in pseudonym_keys()]
        query = (
            select(assessments.c.record)
            .where(or_(*(assessments.c.record.contains(code) for code in codes)))
            .order_by(assessments.c.sequence.desc())
        )
        with self.reading() as connection:
            return tuple(map(self._parse, connection.scalars(query)))

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

    def _parse(self, record: str) -> Assessment:
        try:
            return Assessment.model_validate_json(record)
        except ValidationError as error:
            raise StoreError(
                self.url_for_people,
                "it holds a record that this version of medqa does not understand",
                "update medqa",
            ) from error


def find(connection: Connection, assessment_id: str, subject: str) -> tuple[str, str]:
    """Id and record of the assessment of this id, or of the only id that begins so.

    Raises
    ------
    StoreError
        There is none, or more than one.
    """
    column = assessments.c.assessment_id
    query = select(column, assessments.c.record)
    whole = connection.execute(query.where(column == assessment_id)).first()
    if whole is not None:
        return whole[0], whole[1]
    if len(assessment_id) < _PREFIX_LENGTH:
        raise StoreError(
            assessment_id, "is no assessment", f"give {_PREFIX_LENGTH} characters or more"
        )
    # Not LIKE, which takes % and _ as wildcards and, in SQLite, ignores case.
    begins = func.substr(column, 1, len(assessment_id)) == assessment_id
    found = connection.execute(query.where(begins).limit(2)).all()
    if len(found) != 1:
        raise StoreError(
            assessment_id,
            "is the beginning of more than one assessment" if found else "is no assessment",
            "give the whole id" if found else f"see what {subject} holds",
        )
    return found[0][0], found[0][1]


def find_approval(connection: Connection, approval_id: str, subject: str) -> str:
    """Id of the approval of this id, or of the only id that begins so (8 characters at least).

    Raises
    ------
    StoreError
        There is none, or more than one.
    """
    ids = _approval_ids(connection, approval_id)
    if len(ids) != 1:
        raise StoreError(
            approval_id,
            "is the beginning of more than one approval" if ids else "is no approval",
            "give the whole id" if ids else f"see what {subject} holds with medqa approvals list",
        )
    return ids[0]


def find_signable(connection: Connection, record_id: str, subject: str) -> str:
    """Id of the assessment or approval of this id, or of the only id that begins so.

    Raises
    ------
    StoreError
        There is none, or more than one.
    """
    approvals = _approval_ids(connection, record_id)
    if not approvals:
        return find(connection, record_id, subject)[0]
    column = assessments.c.assessment_id
    begins = func.substr(column, 1, len(record_id)) == record_id
    if len(approvals) > 1 or connection.scalar(select(column).where(begins).limit(1)) is not None:
        raise StoreError(record_id, "is the beginning of more than one record", "give the whole id")
    return approvals[0]


def _approval_ids(connection: Connection, approval_id: str) -> list[str]:
    """Return ids of approvals: this one, or those that begin so, two at most."""
    column = entries.c.assessment_id
    query = select(column).where(entries.c.kind == "approval").distinct()
    whole = connection.scalars(query.where(column == approval_id)).all()
    if whole or len(approval_id) < _PREFIX_LENGTH:
        return list(whole)
    begins = func.substr(column, 1, len(approval_id)) == approval_id
    return list(connection.scalars(query.where(begins).limit(2)))


def _check_not_superseded(connection: Connection, assessment_id: str) -> None:
    by = connection.scalar(
        select(assessments.c.assessment_id).where(assessments.c.supersedes == assessment_id)
    )
    if by is not None:
        raise ConflictError(assessment_id, f"is superseded by {by} already", f"supersede {by}")


def _try_to_insert(connection: Connection, table: Table) -> None:
    """Insert no row, which still needs all the rights that inserting one needs."""
    columns = list(table.c)
    connection.execute(insert(table).from_select(columns, select(*columns).where(false())))
