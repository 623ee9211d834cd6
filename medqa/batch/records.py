"""The records of a batch in the audit database, which alone says what is done."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import or_, select

from medqa.assessment import Assessment, ClinicalSuitability, Inputs, Job, MetricRef, Reason
from medqa.audit import Store
from medqa.audit.tables import assessments
from medqa.errors import StoreError
from medqa.identity import Engine, lost_id
from medqa.thresholds import load

__all__ = ["lost", "record", "recorded"]


def recorded(store: Store, record_id: str) -> Assessment | None:
    """Return the assessment of this id, or the newest correction of it; None where there is none.

    Raises
    ------
    StoreError
        It could not be read.
    """
    found = None
    with store.reading() as connection:
        wanted: str | None = record_id
        while wanted is not None:
            columns = assessments.c
            matches = columns.assessment_id == wanted
            if found is not None:
                matches = columns.supersedes == wanted
            row = connection.execute(
                select(columns.assessment_id, columns.record).where(matches)
            ).first()
            wanted = None if row is None else row.assessment_id
            found = found if row is None else row.record
    return None if found is None else Assessment.model_validate_json(found)


def record(store: Store, assessment: Assessment, actor: str | None) -> Assessment:
    """Add an assessment, once: what another run recorded meanwhile is returned in its place.

    A request that could not be carried out in an earlier run has a record of that, which this one
    supersedes.

    Raises
    ------
    StoreError
        It could not be written.
    """
    failed = lost_id(assessment.assessment_id)
    reason = "carried out in a later run"
    try:
        if _open(store, failed):
            store.add(assessment, actor=actor, supersedes=failed, reason=reason)
        else:
            store.add(assessment, actor=actor)
    except StoreError:
        if (there := recorded(store, assessment.assessment_id)) is None:
            raise
        return there
    return assessment


def _open(store: Store, record_id: str) -> bool:
    """Whether this record is there and nothing supersedes it."""
    columns = assessments.c
    query = select(columns.assessment_id).where(
        or_(columns.assessment_id == record_id, columns.supersedes == record_id)
    )
    with store.reading() as connection:
        return connection.scalars(query).all() == [record_id]


def lost(job: Job, record_id: str, engine: Engine, reason: str) -> Assessment:
    """Return the record that nothing can be said about a pair, because no process lived to do it.

    Parameters
    ----------
    record_id
        Id that the assessment would have had; this record has `lost_id` of it.
    reason
        Why, and what to do, without any path.
    """
    profile = None if job.profile is None else load(job.profile)
    return Assessment(
        assessment_id=lost_id(record_id),
        created_at=datetime.now(UTC),
        medqa_version=engine.medqa,
        inputs=Inputs(reference=None, candidate=None),
        profile=profile and profile.ref,
        metric=MetricRef(
            backbone=engine.backbone,
            version=engine.version,
            weights_sha256=engine.weights_sha256,
            precision=engine.precision,
        ),
        limits=profile.limit_records if profile else (),
        clinical_suitability=ClinicalSuitability(
            suitable_for_diagnosis=False, suitable_for_screening=False, requires_expert_review=False
        ),
        verdict="not_assessable",
        reasons=(Reason(text=reason, place="both images"),),
        origin=job.origin,
        correlation_id=job.correlation_id,
    )
