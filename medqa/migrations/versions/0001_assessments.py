"""The table of assessments: rows may be added and read, never changed or taken away."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the table and its guards."""
    op.create_table(
        "assessments",
        sa.Column(
            "sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True
        ),
        sa.Column("assessment_id", sa.Text(), nullable=False, unique=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("modality", sa.Text()),
        sa.Column("profile_name", sa.Text()),
        sa.Column("backbone", sa.Text()),
        sa.Column("base_lpips_score", sa.Double()),
        sa.Column("reference_sha256", sa.Text()),
        sa.Column("candidate_sha256", sa.Text()),
        sa.Column("study_hmac", sa.Text()),
        sa.Column("origin", sa.Text()),
        sa.Column("record", sa.Text(), nullable=False),
    )
    guard = _guard_postgresql if op.get_bind().dialect.name == "postgresql" else _guard_sqlite
    guard()


def _guard_sqlite() -> None:
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER assessments_refuse_{change.lower()} BEFORE {change} ON assessments "
            "BEGIN SELECT RAISE(ABORT, 'the audit record cannot be changed'); END"
        )
    # INSERT OR REPLACE deletes the old row without firing its DELETE trigger, unless the
    # connection itself asks for recursive triggers (sqlite.org/lang_conflict.html).
    op.execute(
        "CREATE TRIGGER assessments_refuse_replace BEFORE INSERT ON assessments "
        "WHEN EXISTS (SELECT 1 FROM assessments WHERE sequence = NEW.sequence "
        "OR assessment_id = NEW.assessment_id) "
        "BEGIN SELECT RAISE(ABORT, 'the audit record cannot be changed'); END"
    )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION medqa_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit record cannot be changed'; END $$"
    )
    op.execute(
        "CREATE TRIGGER assessments_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON assessments "
        "FOR EACH STATEMENT EXECUTE FUNCTION medqa_refuse()"
    )
