"""What the service answers, beside the record itself."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from medqa.assessment import ProfileRef, Task, Verdict
from medqa.compression.approval import Approval
from medqa.queue import State

__all__ = [
    "ApprovalView",
    "BatchView",
    "Health",
    "JobView",
    "Page",
    "ProfileView",
    "SignatureView",
    "Summary",
]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Summary(_View):
    """A recorded assessment in one line."""

    assessment_id: str
    created_at: datetime
    verdict: Verdict
    modality: str | None = Field(examples=["CT"])
    profile_name: str | None = Field(examples=["ct"])
    backbone: str | None = Field(examples=["gray"])
    base_lpips_score: float | None = Field(description="0 is identical, lower is better")
    origin: str | None = Field(examples=["web"])
    supersedes: str | None

    @classmethod
    def of(cls, row: Any) -> Self:
        """Make it of a row; SQLite keeps times in UTC without saying so."""
        created = row.created_at
        created = created if created.tzinfo else created.replace(tzinfo=UTC)
        return cls(
            assessment_id=row.assessment_id,
            created_at=created.astimezone(UTC),
            verdict=row.verdict,
            modality=row.modality,
            profile_name=row.profile_name,
            backbone=row.backbone,
            base_lpips_score=row.base_lpips_score,
            origin=row.origin,
            supersedes=row.supersedes,
        )


class Page(_View):
    """Some of the recorded assessments, the newest first."""

    assessments: list[Summary]
    before: int | None = Field(description="ask for the next page with it; none at the end")


class JobView(_View):
    """A job as it stands in the queue."""

    job_id: str
    state: State
    attempts: int
    reason: str | None = Field(description="why it failed last")
    enqueued_at: datetime
    finished_at: datetime | None
    assessment_id: str | None = Field(description="its record, once it is done")

    @classmethod
    def of(cls, row: Any) -> Self:
        """Make it of a row of the table, or of a `Queued`."""

        def moment(seconds: float | None) -> datetime | None:
            return None if seconds is None else datetime.fromtimestamp(seconds, UTC)

        return cls(
            job_id=row.job_id,
            state=row.state,
            attempts=row.attempts,
            reason=row.reason,
            enqueued_at=datetime.fromtimestamp(row.enqueued_at, UTC),
            finished_at=moment(row.finished_at),
            assessment_id=row.assessment_id,
        )

    @property
    def failed(self) -> bool:
        """Whether it was tried in vain, so that waiting for it is of no use."""
        return self.state == "dead" or (self.state == "waiting" and self.reason is not None)


class BatchView(_View):
    """The jobs of a batch, in the order of its pairs."""

    jobs: list[JobView]


class SignatureView(_View):
    """Who signed a record."""

    recorded_at: str
    actor: str
    meaning: str
    comment: str


class ApprovalView(_View):
    """An approval of lossy compression, and what became of it."""

    approval: Approval
    status: Literal["draft", "approved", "rejected", "expired"]
    signatures: list[SignatureView]


class ProfileView(_View):
    """Thresholds that may be asked for by name."""

    profile: ProfileRef
    title: str
    modalities: tuple[str, ...] = Field(description="none: of any other modality")
    body_parts: tuple[str, ...]
    task: Task
    set_on: date


class Health(_View):
    """Whether the service can do its work."""

    state: Literal["ok", "not ready"]
    wrong: list[str] = Field(description="in words for its administrator")
