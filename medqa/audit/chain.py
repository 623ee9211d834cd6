"""The hash chain: each entry's digest covers the entry and the digest before it.

The digest is SHA-256 of the canonical JSON (RFC 8785) of the entry without its digest; `body` and
`reason` are in it as text, just as they are stored. So a chain can be checked in any language
without this package; docs/audit.md has 20 lines of Python that do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import rfc8785

from medqa.assessment import Assessment
from medqa.errors import StoreError

__all__ = [
    "KINDS",
    "SEARCH_COLUMNS",
    "SIGNABLE",
    "ZERO",
    "Entry",
    "assessment_body",
    "canonical",
    "canonical_json",
    "changed_columns",
    "sha256",
]

#: What stands where the first entry has no predecessor.
ZERO = "0" * 64
#: `genesis` is the first entry and names the database.
KINDS = ("genesis", "assessment", "signature", "quality", "approval")
#: What may be signed: an assessment, whose record has a table of its own, and an approval of a
#: codec, whose body is its record.
SIGNABLE = ("assessment", "approval")
#: Columns of the table of assessments that its entry in the chain repeats: all but `record`.
SEARCH_COLUMNS = (
    "sequence",
    "assessment_id",
    "created_at",
    "verdict",
    "modality",
    "profile_name",
    "backbone",
    "base_lpips_score",
    "reference_sha256",
    "candidate_sha256",
    "study_hmac",
    "origin",
    "supersedes",
)


@dataclass(frozen=True)
class Entry:
    """One link of the chain.

    Parameters
    ----------
    sequence
        1, 2, 3 … without a gap.
    kind
        One of `KINDS`.
    assessment_id
        What it is about; None for ``genesis``.
    recorded_at
        By the database's clock, in UTC: ``2026-03-01T12:00:00.000000Z``.
    actor, account
        Who, as medqa was told (``MEDQA_USER``, else the account of the operating system), and the
        account that the database saw: its role in PostgreSQL, else that of the operating system.
    reason
        Why, in that person's words; None where nothing was said.
    body
        What, in canonical JSON.
    previous_sha256
        Digest of the entry before it; `ZERO` for the first.
    sha256
        Its own digest.
    """

    sequence: int
    kind: str
    assessment_id: str | None
    recorded_at: str
    actor: str
    account: str
    reason: str | None
    body: str
    previous_sha256: str
    sha256: str = ""

    def digest(self) -> str:
        """SHA-256, in hex, of everything in it but its own digest.

        Raises
        ------
        StoreError
            A field is not what can have been written.
        """
        return sha256(canonical({name: getattr(self, name) for name in _COVERED}))

    def sealed(self) -> Entry:
        """Return it with its digest."""
        return replace(self, sha256=self.digest())


_COVERED = tuple(field.name for field in fields(Entry) if field.name != "sha256")


def sha256(stored: str) -> str:
    """SHA-256, in hex, of a text in UTF-8."""
    return hashlib.sha256(stored.encode()).hexdigest()


def canonical(value: Any) -> str:
    """Return the canonical JSON (RFC 8785) of plain values.

    Raises
    ------
    StoreError
        It holds a number that JSON cannot carry exactly, or text that is not Unicode.
    """
    try:
        return rfc8785.dumps(value).decode()
    except rfc8785.CanonicalizationError as error:
        raise StoreError(
            "the record", f"it has no canonical JSON ({error})", "check the text that was given"
        ) from error


def canonical_json(assessment: Assessment) -> str:
    """Return the stored form: canonical JSON (RFC 8785); one text for one assessment."""
    return canonical(assessment.model_dump(mode="json"))


def assessment_body(columns: Mapping[str, Any], record: str) -> str:
    """Body of an assessment's entry: its search columns, and the digest of its record's text."""
    return canonical({"columns": dict(columns), "record_sha256": sha256(record)})


def changed_columns(body: str, columns: Mapping[str, Any], record: object) -> list[str]:
    """Names of the columns that are not what the entry's body says of them."""
    said = json.loads(body)
    changed = [name for name, value in columns.items() if said["columns"].get(name) != value]
    if not isinstance(record, str) or said["record_sha256"] != sha256(record):
        changed.append("record")
    return changed
