"""The tables: assessments to search, the chain of every kind of entry, and the jobs that wait."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

__all__ = ["METADATA", "assessments", "entries", "jobs"]

METADATA = MetaData()
_NUMBER = BigInteger().with_variant(Integer, "sqlite")

#: One row for each assessment; the columns beside `record` are there to search by.
assessments = Table(
    "assessments",
    METADATA,
    Column("sequence", _NUMBER, primary_key=True, autoincrement=False),
    Column("assessment_id", Text, nullable=False, unique=True),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("verdict", Text, nullable=False),
    Column("modality", Text),
    Column("profile_name", Text),
    Column("backbone", Text),
    Column("base_lpips_score", Double),
    Column("reference_sha256", Text),
    Column("candidate_sha256", Text),
    Column("study_hmac", Text),
    Column("origin", Text),
    Column("record", Text, nullable=False),
    Column("supersedes", Text),
    # One correction for each assessment: two would leave open which of them holds.
    Index("assessments_supersedes", "supersedes", unique=True),
)

#: The chain: one row for each thing that was recorded (`medqa.audit.chain.Entry`).
entries = Table(
    "audit_entries",
    METADATA,
    Column("sequence", _NUMBER, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("assessment_id", Text),
    Column("recorded_at", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("reason", Text),
    Column("body", Text, nullable=False),
    Column("previous_sha256", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Index("audit_entries_assessment_id", "assessment_id"),
)
Index(
    "audit_entries_one_assessment",
    entries.c.assessment_id,
    unique=True,
    postgresql_where=entries.c.kind == "assessment",
    sqlite_where=entries.c.kind == "assessment",
)

#: The queue (`medqa.queue`): work, not record, so its rows change.
jobs = Table(
    "jobs",
    METADATA,
    Column("job_id", Text, primary_key=True),
    Column("key", Text, nullable=False, unique=True),
    Column("state", Text, nullable=False),
    Column("job", Text),
    Column("origin", Text),
    Column("correlation_id", Text),
    Column("results", Text),
    Column("attempts", Integer, nullable=False),
    Column("enqueued_at", Double, nullable=False),
    Column("due_at", Double, nullable=False),
    Column("leased_until", Double),
    Column("worker", Text),
    Column("reason", Text),
    Column("finished_at", Double),
    Column("assessment_id", Text),
    Column("delivered_at", Double),
    Index("jobs_state_due", "state", "due_at"),
    Index("jobs_origin_state", "origin", "state"),
)
