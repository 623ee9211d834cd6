"""Approvals in the audit record: proposed as drafts, signed or rejected there, ended by their day.

An approval is an entry of the chain, and its state is what the signatures bound to that entry say.
Nothing is changed in it, ever: a later approval of the same scope and codec stands beside it.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from pydantic import ValidationError
from sqlalchemy import select

from medqa.audit import Signature, Store, histories
from medqa.audit.chain import Entry, canonical
from medqa.audit.journal import append
from medqa.audit.signatures import is_own_approval
from medqa.audit.store import find_approval
from medqa.audit.tables import entries
from medqa.compression.approval import Approval, Scope, Status
from medqa.errors import StoreError

__all__ = ["Approved", "get", "listed", "outside", "propose"]

_KIND = "approval"


@dataclass(frozen=True)
class Approved:
    """An approval and what became of it.

    Parameters
    ----------
    status
        ``draft`` until somebody has signed it as approved; ``rejected`` where the latest of these
        two signatures rejects it; ``expired`` after its last day.
    signatures
        The oldest first; those that are bound to another record than this one are left out.
    """

    approval: Approval
    status: Status
    signatures: tuple[Signature, ...]


def propose(store: Store, approval: Approval, *, actor: str | None = None) -> Entry:
    """Add an approval to the audit record, as a draft, in one transaction.

    Raises
    ------
    StoreError
        It could not be written, or its id is there already.
    """
    body = canonical(approval.model_dump(mode="json"))
    with store.writing() as connection:
        same = entries.c.assessment_id == approval.approval_id
        if connection.scalar(select(entries.c.sequence).where(same).limit(1)) is not None:
            raise StoreError(approval.approval_id, "is in the record already", "propose it once")
        return append(connection, _KIND, approval.approval_id, body, actor=actor)


def get(store: Store, approval_id: str, *, today: datetime.date | None = None) -> Approved:
    """Approval of this id, or of the only id that begins so (8 characters at least).

    Parameters
    ----------
    today
        The day that it is to hold on; None takes today's, in UTC.

    Raises
    ------
    StoreError
        There is none, more than one, or it is not what was recorded.
    """
    with store.reading() as connection:
        whole = find_approval(connection, approval_id, store.url_for_people)
    return _approved(store, [whole], today)[0]


def listed(store: Store, *, today: datetime.date | None = None) -> tuple[Approved, ...]:
    """All approvals, the newest first.

    Raises
    ------
    StoreError
        They could not be read, or one is not what was recorded.
    """
    query = (
        select(entries.c.assessment_id)
        .where(entries.c.kind == _KIND)
        .order_by(entries.c.sequence.desc())
    )
    with store.reading() as connection:
        ids = list(dict.fromkeys(connection.scalars(query)))
    return tuple(_approved(store, ids, today))


def _approved(store: Store, ids: list[str], today: datetime.date | None) -> list[Approved]:
    today = today or datetime.datetime.now(datetime.UTC).date()
    beside = histories(store, ids)
    with store.reading() as connection:
        query = select(entries).where(entries.c.assessment_id.in_(ids))
        changed = {
            row.assessment_id for row in connection.execute(query) if not _is_sealed(Entry(*row))
        }
    found = []
    for one in ids:
        history = beside[one]
        if one in changed or history.entry.kind != _KIND or not is_own_approval(history.entry):
            raise StoreError(one, "is not what was recorded", "run medqa audit verify")
        try:
            approval = Approval.model_validate_json(history.entry.body)
        except ValidationError as error:
            raise StoreError(
                store.url_for_people,
                "it holds an approval that this version of medqa does not understand",
                "update medqa",
            ) from error
        signatures = tuple(
            given for given in history.signatures if given.signed_sha256 == history.entry.sha256
        )
        found.append(Approved(approval, _status(approval, signatures, today), signatures))
    return found


def _is_sealed(entry: Entry) -> bool:
    """Whether an entry, of an approval or of a signature, has the digest of its content."""
    try:
        return entry.digest() == entry.sha256
    except StoreError:
        return False


def _status(approval: Approval, signatures: tuple[Signature, ...], today: datetime.date) -> Status:
    decisions = [one.meaning for one in signatures if one.meaning != "reviewed"]
    if decisions and decisions[-1] == "rejected":
        return "rejected"
    if today > approval.expires_on:
        return "expired"
    return "approved" if decisions else "draft"


def outside(
    scope: Scope, modality: str | None, body_part: str | None, device: str | None
) -> str | None:
    """Say why an image is outside a scope; None where it is inside.

    Parameters
    ----------
    modality, body_part, device
        As its header says: DICOM Modality, Body Part Examined, and Manufacturer and model with a
        space between them; None where it does not say, which no scope that asks for it covers.
    """
    if modality != scope.modality:
        return f"its modality is {modality or 'not given'}, not {scope.modality}"
    if scope.body_part is not None and _plain(body_part) != _plain(scope.body_part):
        return f"its body part is {body_part or 'not given'}, not {scope.body_part}"
    if scope.devices and _plain(device) not in map(_plain, scope.devices):
        return "its device is none of those that were studied"
    return None


def _plain(text: str | None) -> str:
    return " ".join((text or "").casefold().split())
