"""What the service looks up in the audit database."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import and_, or_, select

from medqa.audit import Store
from medqa.audit.tables import assessments, jobs

from .models import JobView, Page, Summary

__all__ = ["assessment", "ended", "job", "page", "results"]

_AT_ONCE = 500  # ids in one statement


def assessment(store: Store, assessment_id: str) -> str | None:
    """Record of this id, as it was recorded; None where there is none. Raises StoreError."""
    query = select(assessments.c.record).where(assessments.c.assessment_id == assessment_id)
    with store.reading() as connection:
        found: str | None = connection.scalar(query)
    return found


def page(store: Store, limit: int, before: int | None, **wanted: str | None) -> Page:
    """Assessments, the newest first.

    Parameters
    ----------
    before
        Sequence number that all are below.
    wanted
        Values of columns; None for any.

    Raises
    ------
    StoreError
        They could not be read.
    """
    columns = assessments.c
    query = (
        select(
            columns.sequence,
            columns.assessment_id,
            columns.created_at,
            columns.verdict,
            columns.modality,
            columns.profile_name,
            columns.backbone,
            columns.base_lpips_score,
            columns.origin,
            columns.supersedes,
        )
        .order_by(columns.sequence.desc())
        .limit(limit + 1)
    )
    for name, value in wanted.items():
        if value is not None:
            query = query.where(columns[name] == value)
    if before is not None:
        query = query.where(columns.sequence < before)
    with store.reading() as connection:
        rows = connection.execute(query).all()
    shown = rows[:limit]
    return Page(
        assessments=[Summary.of(row) for row in shown],
        before=shown[-1].sequence if len(rows) > limit else None,
    )


def job(store: Store, job_id: str) -> JobView | None:
    """Return a job as it stands; None where there is none. Raises StoreError."""
    return ended(store, [job_id], always=True).get(job_id)


def ended(store: Store, job_ids: Iterable[str], *, always: bool = False) -> dict[str, JobView]:
    """Return those of these jobs that are done, or were tried in vain, by id.

    Parameters
    ----------
    always
        All of them, whatever their state.

    Raises
    ------
    StoreError
        They could not be read.
    """
    columns = jobs.c
    over = or_(
        columns.state.in_(("done", "dead")),
        and_(columns.state == "waiting", columns.reason.is_not(None)),
    )
    query = select(
        columns.job_id,
        columns.state,
        columns.attempts,
        columns.reason,
        columns.enqueued_at,
        columns.finished_at,
        columns.assessment_id,
    )
    query = query if always else query.where(over)
    ids = list(job_ids)
    found: dict[str, JobView] = {}
    with store.reading() as connection:
        for first in range(0, len(ids), _AT_ONCE):
            some = query.where(columns.job_id.in_(ids[first : first + _AT_ONCE]))
            found |= {row.job_id: JobView.of(row) for row in connection.execute(some)}
    return found


def results(store: Store, assessment_id: str) -> Path | None:
    """Folder of the job that made an assessment; None where no job did. Raises StoreError."""
    query = select(jobs.c.results).where(jobs.c.assessment_id == assessment_id)
    with store.reading() as connection:
        found = connection.scalar(query)
    return None if found is None else Path(found)
