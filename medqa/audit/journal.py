"""Writing to the chain, and reading it back in order, straight from the tables."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, func, insert, select, text, type_coerce
from sqlalchemy.engine import Connection

from medqa.audit.chain import SEARCH_COLUMNS, SIGNABLE, ZERO, Entry
from medqa.audit.database import database_time
from medqa.audit.tables import assessments, entries

__all__ = ["Stored", "account_here", "append", "chain", "search_columns"]

_ENTRY = len(entries.c)
_ASSESSMENT = _ENTRY + len(SEARCH_COLUMNS)
_BATCH = 500  # rows read at once: long series have records of 100 kB


@dataclass(frozen=True)
class Stored:
    """An entry as it stands in the database, whoever put it there: nothing of it is certain.

    Parameters
    ----------
    entry
        The entry.
    columns, record
        Of an assessment: its row in the table of assessments, the search columns by name; None
        where it is missing.
    signed_sha256
        Of a signature: the digest of the entry of what it signs; None where that is missing.
    """

    entry: Entry
    columns: dict[str, Any]
    record: Any
    signed_sha256: Any


def account_here() -> str:
    """Account of the operating system that this process runs under, not what LOGNAME says."""
    if sys.platform == "win32":
        return getpass.getuser()
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # containers run under numbers that have no name
        return str(os.geteuid())


def append(
    connection: Connection,
    kind: str,
    assessment_id: str | None,
    body: str,
    *,
    actor: str | None = None,
    reason: str | None = None,
) -> Entry:
    """Add an entry at the end of the chain; the caller holds the lock (`database.lock`)."""
    last = connection.execute(
        select(entries.c.sequence, entries.c.sha256).order_by(entries.c.sequence.desc()).limit(1)
    ).first()
    sequence, previous = (0, ZERO) if last is None else (last.sequence, last.sha256)
    here = account_here()
    account = here
    if connection.dialect.name == "postgresql":
        account = str(connection.scalar(text("SELECT session_user::text")))
    entry = Entry(
        # Counted here: a sequence of PostgreSQL's leaves a gap where a transaction fails, which
        # could not be told from an entry taken away.
        sequence=sequence + 1,
        kind=kind,
        assessment_id=assessment_id,
        recorded_at=database_time(connection),
        actor=actor or os.environ.get("MEDQA_USER") or here,
        account=account,
        reason=reason,
        body=body,
        previous_sha256=previous,
    ).sealed()
    connection.execute(insert(entries).values(**vars(entry)))
    return entry


def search_columns(connection: Connection) -> list[ColumnElement[Any]]:
    """Search columns of an assessment, as its entry repeats them: the time as text, in UTC."""
    chosen: list[ColumnElement[Any]] = []
    for name in SEARCH_COLUMNS:
        column = assessments.c[name]
        if name != "created_at":
            chosen.append(column)
        elif connection.dialect.name == "postgresql":
            utc = func.timezone("UTC", column)
            chosen.append(func.to_char(utc, "YYYY-MM-DD HH24:MI:SS.US").label(name))
        else:
            chosen.append(type_coerce(column, Text).label(name))
    return chosen


def chain(connection: Connection, since: str | None = None) -> Iterator[Stored]:
    """Read the chain in order, a batch at a time.

    Parameters
    ----------
    since
        Only entries recorded at this time or later, written as `Entry.recorded_at` is.
    """
    signed = entries.alias("signed")
    # The first that has the id: one that was added later under the same id is not what was signed.
    signed_sha256 = (
        select(signed.c.sha256)
        .where(
            entries.c.kind == "signature",
            signed.c.kind.in_(SIGNABLE),
            signed.c.assessment_id == entries.c.assessment_id,
        )
        .order_by(signed.c.sequence)
        .limit(1)
        .correlate(entries)
        .scalar_subquery()
    )
    query = (
        select(
            *entries.c,
            *(column.label(f"assessment_{column.name}") for column in search_columns(connection)),
            assessments.c.record,
            signed_sha256.label("signed_sha256"),
        )
        .outerjoin(
            assessments,
            and_(
                entries.c.kind == "assessment",
                assessments.c.assessment_id == entries.c.assessment_id,
            ),
        )
        .order_by(entries.c.sequence)
        .limit(_BATCH)
    )
    if since is not None:
        query = query.where(entries.c.recorded_at >= since)
    last = None
    while True:
        later = query if last is None else query.where(entries.c.sequence > last)
        batch = connection.execute(later).all()
        for row in batch:
            columns = dict(zip(SEARCH_COLUMNS, row[_ENTRY:_ASSESSMENT], strict=True))
            yield Stored(Entry(*row[:_ENTRY]), columns, row[-2], row[-1])
        if len(batch) < _BATCH:
            return
        last = batch[-1].sequence
