"""The hash chain: every assessment gets an entry in it, those of before in their order.

The digests made here are for ever, so the columns are named here and not taken from the code.
"""

import uuid
from typing import Any

import sqlalchemy as sa
from alembic import context, op

from medqa.audit.chain import ZERO, Entry, assessment_body, canonical
from medqa.audit.database import database_time
from medqa.errors import StoreError

revision = "0002"
down_revision = "0001"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TAKEN_OVER = "taken over from a database without a chain"
_COLUMNS = (
    "sequence, assessment_id, {created_at} AS created_at, verdict, modality, profile_name, "
    "backbone, base_lpips_score, reference_sha256, candidate_sha256, study_hmac, origin, "
    "supersedes, record"
)
_UTC = {
    "sqlite": "CAST(created_at AS TEXT)",
    "postgresql": "to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')",
}
_REFUSE = "BEGIN SELECT RAISE(ABORT, 'the audit record cannot be changed'); END"


def upgrade() -> None:
    """Create the chain, take over the assessments, and guard it."""
    connection = op.get_bind()
    op.add_column("assessments", sa.Column("supersedes", sa.Text()))
    op.create_index("assessments_supersedes", "assessments", ["supersedes"], unique=True)
    op.create_table(
        "audit_entries",
        sa.Column("sequence", _NUMBER, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("assessment_id", sa.Text()),
        sa.Column("recorded_at", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("previous_sha256", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
    )
    op.create_index("audit_entries_assessment_id", "audit_entries", ["assessment_id"])
    one = sa.text("kind = 'assessment'")
    op.create_index(
        "audit_entries_one_assessment",
        "audit_entries",
        ["assessment_id"],
        unique=True,
        postgresql_where=one,
        sqlite_where=one,
    )
    _take_over(connection)
    guard = _guard_postgresql if connection.dialect.name == "postgresql" else _guard_sqlite
    guard()


def _take_over(connection: sa.Connection) -> None:
    attributes = context.config.attributes
    account = attributes["account"]
    if connection.dialect.name == "postgresql":
        account = connection.scalar(sa.text("SELECT session_user::text"))
    number, previous = 0, ZERO
    recorded_at = database_time(connection)

    def link(kind: str, assessment_id: str | None, body: str, reason: str | None) -> dict[str, Any]:
        nonlocal number, previous
        entry = Entry(
            sequence=number + 1,
            kind=kind,
            assessment_id=assessment_id,
            recorded_at=recorded_at,
            actor=attributes["actor"],
            account=account,
            reason=reason,
            body=body,
            previous_sha256=previous,
        ).sealed()
        number, previous = entry.sequence, entry.sha256
        return vars(entry)

    insert = sa.text(
        "INSERT INTO audit_entries VALUES (:sequence, :kind, :assessment_id, :recorded_at, "
        ":actor, :account, :reason, :body, :previous_sha256, :sha256)"
    )
    connection.execute(
        insert, link("genesis", None, canonical({"database": str(uuid.uuid4())}), None)
    )
    chosen = _COLUMNS.format(created_at=_UTC[connection.dialect.name])
    query = sa.text(
        f"SELECT {chosen} FROM assessments WHERE sequence > :last ORDER BY sequence LIMIT 500"  # noqa: S608
    )
    last = 0
    while batch := connection.execute(query, {"last": last}).mappings().all():
        links = []
        for row in batch:
            columns: dict[str, Any] = dict(row)
            record = columns.pop("record")
            body = assessment_body(columns, record)
            links.append(link("assessment", columns["assessment_id"], body, _TAKEN_OVER))
        connection.execute(insert, links)
        last = batch[-1]["sequence"]


def _guard_sqlite() -> None:
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_entries_refuse_{change.lower()} BEFORE {change} "
            f"ON audit_entries {_REFUSE}"
        )
    # See 0001: INSERT OR REPLACE deletes without a DELETE trigger.
    op.execute(
        "CREATE TRIGGER audit_entries_refuse_replace BEFORE INSERT ON audit_entries "  # noqa: S608
        "WHEN EXISTS (SELECT 1 FROM audit_entries WHERE sequence = NEW.sequence OR "
        "(kind = 'assessment' AND NEW.kind = 'assessment' "
        f"AND assessment_id = NEW.assessment_id)) {_REFUSE}"
    )
    _guard_against_replace("OR supersedes = NEW.supersedes")


def _guard_against_replace(more: str) -> None:
    op.execute("DROP TRIGGER assessments_refuse_replace")
    op.execute(
        "CREATE TRIGGER assessments_refuse_replace BEFORE INSERT ON assessments "  # noqa: S608
        "WHEN EXISTS (SELECT 1 FROM assessments WHERE sequence = NEW.sequence "
        f"OR assessment_id = NEW.assessment_id {more}) {_REFUSE}"
    )


def _guard_postgresql() -> None:
    # Numbers are counted under a lock: a sequence leaves a gap where a transaction fails.
    op.execute("ALTER TABLE assessments ALTER COLUMN sequence DROP DEFAULT")
    op.execute("DROP SEQUENCE IF EXISTS assessments_sequence_seq")
    op.execute(
        "CREATE TRIGGER audit_entries_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION medqa_refuse()"
    )
    op.execute(
        "CREATE FUNCTION medqa_check_account() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.account <> session_user THEN "
        "RAISE EXCEPTION 'the account of an entry must be the role that adds it'; END IF; "
        "RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_entries_account BEFORE INSERT ON audit_entries "
        "FOR EACH ROW EXECUTE FUNCTION medqa_check_account()"
    )


def downgrade() -> None:
    """Take the chain away again, but only while nothing stands in it that 0001 cannot hold."""
    connection = op.get_bind()
    since = connection.scalar(
        sa.text(
            "SELECT count(*) FROM audit_entries "
            "WHERE kind <> 'genesis' AND (reason IS NULL OR reason <> :taken_over)"
        ),
        {"taken_over": _TAKEN_OVER},
    )
    if since:
        raise StoreError(
            "the audit database",
            f"{since} entries were recorded since, and schema 0001 has no place for them",
            "keep schema 0002, or restore a backup",
        )
    op.drop_table("audit_entries")
    if connection.dialect.name == "postgresql":
        op.execute("DROP FUNCTION medqa_check_account()")
        op.execute("CREATE SEQUENCE assessments_sequence_seq OWNED BY assessments.sequence")
        op.execute(
            "SELECT setval('assessments_sequence_seq', "
            "coalesce((SELECT max(sequence) FROM assessments), 0) + 1, false)"
        )
        op.execute(
            "ALTER TABLE assessments ALTER COLUMN sequence "
            "SET DEFAULT nextval('assessments_sequence_seq')"
        )
    else:
        _guard_against_replace("")
    op.drop_index("assessments_supersedes", "assessments")
    op.drop_column("assessments", "supersedes")
