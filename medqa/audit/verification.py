"""Verification: reads the whole record and names the first entry that is not what was recorded.

1. The chain begins with its genesis, and numbers run 1, 2, 3 … (removed entries, cut beginnings).
2. Each entry's digest is that of its content (changed, renumbered and swapped entries).
3. Each entry names the digest of the one before it (inserted and replaced entries).
4. Each assessment in the table is what its entry says, column by column and the record's text.
5. Each approval is about itself, and no other has its id.
6. Each signature is about the entry of an assessment or an approval as it stands.
7. The tables hold no row beside those.
8. A checkpoint's entry is in the chain, with that digest (a chain cut at its end or made anew).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import and_, exists, func, select
from sqlalchemy.engine import Connection

from medqa.audit.chain import (
    KINDS,
    ZERO,
    Entry,
    assessment_body,
    changed_columns,
)
from medqa.audit.checkpoints import Checkpoint
from medqa.audit.database import database_time
from medqa.audit.journal import Stored, chain
from medqa.audit.store import Store
from medqa.audit.tables import assessments, entries
from medqa.errors import StoreError

__all__ = ["Fault", "Verification", "make_checkpoint", "verify"]


@dataclass(frozen=True)
class Fault:
    """The first thing that is not as it was recorded.

    Parameters
    ----------
    sequence
        Number in the chain; None for a row that the chain does not know.
    assessment_id
        What it is about, as far as that can be told.
    what
        In words.
    """

    sequence: int | None
    assessment_id: str | None
    what: str


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Parameters
    ----------
    database
        Random id of the database, of its genesis; None where that is missing.
    entries, assessments, signatures
        How many were found good, up to the fault.
    sequence, sha256
        The last good entry: number and digest.
    fault
        None where the record is whole.
    """

    database: str | None
    entries: int
    assessments: int
    signatures: int
    sequence: int
    sha256: str
    fault: Fault | None


@dataclass
class _Walk:
    """Where the walk along the chain stands."""

    database: str | None = None
    assessments: int = 0
    signatures: int = 0
    sequence: int = 0
    sha256: str = ZERO
    approvals: set[str] = field(default_factory=set)


def verify(
    store: Store,
    checkpoint: Checkpoint | None = None,
    public_key: Ed25519PublicKey | None = None,
) -> Verification:
    """Read the whole record, as it is at one moment, and look for the first fault.

    Parameters
    ----------
    checkpoint
        Kept elsewhere since it was made. Without one, a chain that lacks its last entries, or
        was made anew as a whole, cannot be told from the right one.
    public_key
        The key that the checkpoint must be signed with. None takes the key that it names itself,
        which proves little: whoever forges a checkpoint names a key of their own.

    Raises
    ------
    StoreError
        The database cannot be read.
    """
    walk = _Walk()
    reached: str | None = None  # digest where the checkpoint is said to be
    with store.reading() as connection:
        fault = None
        for stored in chain(connection):
            fault = _fault(walk, stored)
            if fault is not None:
                break
            if checkpoint is not None and walk.sequence == checkpoint.sequence:
                reached = walk.sha256
        fault = fault or _fault_beside(connection, walk)
    if fault is None and checkpoint is not None:
        fault = _fault_of_checkpoint(checkpoint, public_key, walk, reached)
    return Verification(
        database=walk.database,
        entries=walk.sequence,
        assessments=walk.assessments,
        signatures=walk.signatures,
        sequence=walk.sequence,
        sha256=walk.sha256,
        fault=fault,
    )


def make_checkpoint(store: Store, key: Ed25519PrivateKey) -> Checkpoint:
    """Verify the record, and sign where its chain stands.

    Raises
    ------
    StoreError
        The record is not whole: a checkpoint of it would vouch for what was changed.
    """
    found = verify(store)
    if found.fault is not None or found.database is None:
        raise StoreError(
            store.url_for_people, "the record is not whole", "run medqa audit verify to see why"
        )
    with store.reading() as connection:
        made_at = database_time(connection)
    unsigned = Checkpoint(found.database, found.sequence, found.sha256, made_at, public_key="")
    return unsigned.signed(key)


def _fault(walk: _Walk, stored: Stored) -> Fault | None:
    """Check the next entry; go on to it where it is good."""
    entry = stored.entry

    def fault(what: str) -> Fault:
        about = entry.assessment_id
        return Fault(entry.sequence, about if isinstance(about, str) else None, what)

    if entry.sequence != walk.sequence + 1:
        return Fault(
            walk.sequence + 1,
            None,
            f"it is missing: after entry {walk.sequence} comes entry {entry.sequence}",
        )
    try:
        if entry.digest() != entry.sha256:
            return fault("its content does not belong to its digest: it was changed or moved")
    except StoreError:
        return fault("it holds what medqa cannot have written: it was changed")
    if entry.previous_sha256 != walk.sha256:
        return fault(
            f"it does not follow entry {walk.sequence}: one of them was inserted or replaced"
        )
    if entry.kind not in KINDS or (entry.kind == "genesis") != (entry.sequence == 1):
        return fault(f"it is of the kind {entry.kind}, which has no place here")
    if entry.kind == "assessment":
        if what := _fault_of_assessment(stored):
            return fault(what)
        walk.assessments += 1
    elif entry.kind == "signature":
        if stored.signed_sha256 is None or _said(entry, "signed_sha256") != stored.signed_sha256:
            return fault("it signs another record than the one that stands here")
        walk.signatures += 1
    elif entry.kind == "approval":
        approval_id = entry.assessment_id
        if approval_id is None or _said(entry, "approval_id") != approval_id:
            return fault("it is an approval of another id than its own")
        if approval_id in walk.approvals:
            return fault("an approval of this id was recorded before")
        walk.approvals.add(approval_id)
    elif entry.kind == "genesis":
        walk.database = _said(entry, "database")
    walk.sequence, walk.sha256 = entry.sequence, entry.sha256
    return None


def _said(entry: Entry, name: str) -> str | None:
    """Text of this name in an entry's body; None where the body is not medqa's."""
    try:
        said = json.loads(entry.body)[name]
    except (ValueError, TypeError, KeyError):
        return None
    return said if isinstance(said, str) else None


def _fault_of_assessment(stored: Stored) -> str | None:
    body, columns, record = stored.entry.body, stored.columns, stored.record
    if columns["assessment_id"] is None:
        return "its row in the table of assessments was removed"
    try:
        if body == assessment_body(columns, record):
            return None
        names = ", ".join(changed_columns(body, columns, record))
    except (StoreError, ValueError, TypeError, KeyError, AttributeError):
        return "its row in the table of assessments holds what medqa cannot have written"
    return f"its row in the table of assessments was changed: {names}"


def _fault_beside(connection: Connection, walk: _Walk) -> Fault | None:
    """Look for rows that the walk along the chain did not meet."""
    if walk.sequence == 0:
        return Fault(1, None, "the chain is empty: all of it was removed")
    if connection.scalar(select(func.count()).select_from(assessments)) != walk.assessments:
        chained = exists().where(
            and_(
                entries.c.kind == "assessment",
                entries.c.assessment_id == assessments.c.assessment_id,
            )
        )
        stray = connection.scalar(
            select(assessments.c.assessment_id)
            .where(~chained)
            .order_by(assessments.c.sequence)
            .limit(1)
        )
        return Fault(None, stray, "the table of assessments holds it, the chain does not")
    if connection.scalar(select(func.count()).select_from(entries)) != walk.sequence:
        return Fault(None, None, "the chain holds a number twice")
    return None


def _fault_of_checkpoint(
    checkpoint: Checkpoint, public_key: Ed25519PublicKey | None, walk: _Walk, reached: str | None
) -> Fault | None:
    number = checkpoint.sequence
    if not checkpoint.is_signed_by(public_key):
        whose = "the key that was named" if public_key else "the key that it names itself"
        return Fault(number, None, f"the checkpoint is not signed with {whose}")
    if checkpoint.database != walk.database:
        return Fault(number, None, "the checkpoint is of another database, or all was made anew")
    if reached is None:
        return Fault(
            walk.sequence + 1,
            None,
            f"it is missing: the chain ends at {walk.sequence}, the checkpoint is at {number}",
        )
    if reached != checkpoint.sha256:
        return Fault(
            number, None, "the checkpoint has another digest here: the chain was made anew"
        )
    return None
