"""Sign-off: a person's statement about one record, bound to the digest of its entry.

A record is an assessment, or the approval of a codec.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from sqlalchemy import or_, select
from sqlalchemy.engine import Connection

from medqa.audit.chain import SEARCH_COLUMNS, SIGNABLE, Entry, assessment_body, canonical
from medqa.audit.journal import append, search_columns
from medqa.audit.store import Store, find_signable
from medqa.audit.tables import assessments, entries
from medqa.errors import StoreError

__all__ = [
    "MEANINGS",
    "History",
    "Meaning",
    "Signature",
    "histories",
    "is_own_approval",
    "sign",
]

Meaning = Literal["reviewed", "approved", "rejected"]
MEANINGS: tuple[Meaning, ...] = get_args(Meaning)


@dataclass(frozen=True)
class Signature:
    """What somebody said of a record.

    Parameters
    ----------
    meaning
        What the signature stands for.
    actor, account, recorded_at
        Who and when, as in `Entry`.
    comment
        Why, in that person's words.
    signed_sha256
        Digest of the record's entry, as it was when it was signed.
    """

    meaning: Meaning
    actor: str
    account: str
    recorded_at: str
    comment: str
    signed_sha256: str


@dataclass(frozen=True)
class History:
    """What was recorded about an assessment or an approval beside it.

    Parameters
    ----------
    entry
        Its own entry in the chain.
    supersedes, superseded_by
        Ids of the assessment that it corrects, and of the one that corrects it; approvals have
        none.
    signatures
        The oldest first.
    """

    entry: Entry
    supersedes: str | None = None
    superseded_by: str | None = None
    signatures: tuple[Signature, ...] = ()


def sign(
    store: Store, record_id: str, meaning: Meaning, comment: str, *, actor: str | None = None
) -> Entry:
    """Sign an assessment or an approval; a later signature replaces no earlier one.

    Parameters
    ----------
    record_id
        Its id, or the beginning of it.
    comment
        Why, in words that name no patient.
    actor
        Who; None takes the environment's ``MEDQA_USER``, else the operating system's account.

    Raises
    ------
    StoreError
        There is no such record, it is not what was recorded, it is superseded, or there is
        no comment.
    """
    if meaning not in MEANINGS:
        raise StoreError(meaning, "is not what a signature can mean", f"use {', '.join(MEANINGS)}")
    if not comment.strip():
        raise StoreError(record_id, "the comment is empty", "say why")
    with store.writing() as connection:
        whole_id = find_signable(connection, record_id, store.url_for_people)
        history = _histories(connection, [whole_id]).get(whole_id)
        if history is None or not _is_as_recorded(connection, history.entry):
            raise StoreError(
                whole_id,
                "is not what was recorded, and must not be signed",
                "run medqa audit verify",
            )
        if history.superseded_by is not None:
            raise StoreError(
                whole_id,
                f"is superseded by {history.superseded_by}",
                f"sign {history.superseded_by}",
            )
        body = canonical({"meaning": meaning, "signed_sha256": history.entry.sha256})
        return append(connection, "signature", whole_id, body, actor=actor, reason=comment)


def histories(store: Store, record_ids: Sequence[str]) -> dict[str, History]:
    """Return what was recorded about assessments and approvals (whole ids), by id.

    What is not there is left out.
    """
    with store.reading() as connection:
        return _histories(connection, record_ids)


def _histories(connection: Connection, ids: Sequence[str]) -> dict[str, History]:
    about: dict[str, list[Entry]] = {}
    query = select(entries).where(entries.c.assessment_id.in_(ids)).order_by(entries.c.sequence)
    for row in connection.execute(query):
        about.setdefault(row.assessment_id, []).append(Entry(*row))
    supersedes: dict[str, str] = {}
    superseded_by: dict[str, str] = {}
    either = or_(assessments.c.assessment_id.in_(ids), assessments.c.supersedes.in_(ids))
    for newer, older in connection.execute(
        select(assessments.c.assessment_id, assessments.c.supersedes).where(
            either, assessments.c.supersedes.is_not(None)
        )
    ):
        supersedes[newer] = older
        superseded_by[older] = newer
    found: dict[str, History] = {}
    for one, recorded in about.items():
        own = [entry for entry in recorded if entry.kind in SIGNABLE]
        if own:
            found[one] = History(
                own[0],
                supersedes.get(one),
                superseded_by.get(one),
                tuple(_signature(entry) for entry in recorded if entry.kind == "signature"),
            )
    return found


def is_own_approval(entry: Entry) -> bool:
    """Whether the entry of an approval has its own digest and holds an approval of its id."""
    try:
        said = json.loads(entry.body)
        return entry.digest() == entry.sha256 and said["approval_id"] == entry.assessment_id
    except (StoreError, ValueError, TypeError, KeyError):
        return False


def _signature(entry: Entry) -> Signature:
    said: dict[str, Any] = json.loads(entry.body)
    return Signature(
        meaning=cast(Meaning, said["meaning"]),
        actor=entry.actor,
        account=entry.account,
        recorded_at=entry.recorded_at,
        comment=entry.reason or "",
        signed_sha256=said["signed_sha256"],
    )


def _is_as_recorded(connection: Connection, entry: Entry) -> bool:
    if entry.kind == "approval":
        return is_own_approval(entry)
    row = connection.execute(
        select(*search_columns(connection), assessments.c.record).where(
            assessments.c.assessment_id == entry.assessment_id
        )
    ).one()
    columns = {name: row[number] for number, name in enumerate(SEARCH_COLUMNS)}
    try:
        return entry.digest() == entry.sha256 and entry.body == assessment_body(columns, row.record)
    except (StoreError, ValueError, AttributeError):  # not a text, not a number
        return False
