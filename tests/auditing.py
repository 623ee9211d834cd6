"""What the tests of the audit record share: records to add, and the databases' own clients."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta, timezone

from databases import plain

from medqa.assessment import (
    Assessment,
    ClinicalSuitability,
    ImageInput,
    Inputs,
    MetricRef,
    ProfileRef,
    Reason,
    Verdict,
)

__all__ = ["REFUSED", "assessment", "image", "plain"]

REFUSED = "the audit record cannot be changed"


def image(pixels: str) -> ImageInput:
    return ImageInput(
        kind="dicom",
        shape=(1, 64, 64),
        modality="CT",
        unit="HU",
        spacing_mm=(0.0, 0.7, 0.7),
        body_part=None,
        transfer_syntax="1.2.840.10008.1.2.1",
        file_sha256=None,
        pixels_sha256=pixels * 64,
        study_hmac="e" * 64,
    )


def assessment(identity: str | None = None, verdict: Verdict = "diagnostic") -> Assessment:
    return Assessment(
        assessment_id=identity or secrets.token_hex(16),
        created_at=datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2))),
        medqa_version="0.1.0",
        inputs=Inputs(reference=image("a"), candidate=image("b")),
        profile=ProfileRef(name="ct", version="1.0", sha256="c" * 64, status="provisional"),
        metric=MetricRef(backbone="gray", version="1", weights_sha256="d" * 64),
        base_lpips_score=0.1 + 0.2,  # 0.30000000000000004: no digit may be lost
        clinical_suitability=ClinicalSuitability(
            suitable_for_diagnosis=True, suitable_for_screening=True, requires_expert_review=False
        ),
        metrics={"ssim": 1 / 3, "psnr_db": None},
        verdict=verdict,
        reasons=(Reason(text="Ganzes Bild: 0,03 ≤ 0,10 – “gut”"),),
        origin="tests",
    )


def not_assessable() -> Assessment:
    return Assessment(
        assessment_id=secrets.token_hex(16),
        created_at=datetime.now(UTC),
        medqa_version="0.1.0",
        inputs=Inputs(reference=None, candidate=None),
        profile=None,
        metric=None,
        clinical_suitability=ClinicalSuitability(
            suitable_for_diagnosis=False,
            suitable_for_screening=False,
            requires_expert_review=False,
        ),
        verdict="not_assessable",
        reasons=(Reason(text="unreadable"),),
    )


def drop_triggers(url: str) -> None:
    """What the owner of a database can do."""
    if "://" not in url:
        for (name,) in plain(url, "SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            plain(url, f"DROP TRIGGER {name}")
    else:
        plain(url, "DROP FUNCTION medqa_refuse() CASCADE")
        plain(url, "DROP FUNCTION medqa_check_account() CASCADE")
