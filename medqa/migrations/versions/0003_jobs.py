"""The queue of jobs: a table whose rows change, beside the record, whose rows do not."""

import sqlalchemy as sa
from alembic import op

from medqa.errors import StoreError

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.Text(), primary_key=True),
        sa.Column("key", sa.Text(), nullable=False, unique=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("job", sa.Text()),
        sa.Column("origin", sa.Text()),
        sa.Column("correlation_id", sa.Text()),
        sa.Column("results", sa.Text()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("enqueued_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("leased_until", sa.Double()),
        sa.Column("worker", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("finished_at", sa.Double()),
        sa.Column("assessment_id", sa.Text()),
        sa.Column("delivered_at", sa.Double()),
    )
    op.create_index("jobs_state_due", "jobs", ["state", "due_at"])
    op.create_index("jobs_origin_state", "jobs", ["origin", "state"])


def downgrade() -> None:
    """Take the table away, but only while no job waits in it."""
    waiting = op.get_bind().scalar(
        sa.text("SELECT count(*) FROM jobs WHERE state IN ('waiting', 'leased')")
    )
    if waiting:
        raise StoreError(
            "the audit database", f"{waiting} jobs wait in it", "let workers do them first"
        )
    op.drop_table("jobs")
