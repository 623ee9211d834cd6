"""What the tests of control over time share: records of a made-up device."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from typing import Literal

from medqa.assessment import ImageInput
from medqa.quality.record import Measured, QualityRecord

DAY = datetime.date(2026, 1, 1)


def code(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def noise(value: float | None, better: Literal["lower", "higher", "neither"] = "lower") -> Measured:
    return Measured(name="noise", value=value, unit="HU", better=better)


def record(
    number: int,
    *measures: Measured,
    day: int | None = None,
    device: str | None = "scanner",
    patient: str | None = None,
    study: str | None = None,
    pixels: str | None = None,
    study_type: str = "CT CHEST",
) -> QualityRecord:
    """One image of a study of its own; `day` counts from `DAY`, and by default is its number."""
    return QualityRecord(
        quality_id=f"{number:08d}-0000-4000-8000-000000000000",
        created_at=datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC),
        medqa_version="0",
        image=ImageInput(
            kind="dicom",
            shape=(1, 64, 64),
            modality="CT",
            unit="HU",
            spacing_mm=(0.0, 0.7, 0.7),
            body_part="CHEST",
            transfer_syntax=None,
            file_sha256=None,
            pixels_sha256=code(pixels or f"pixels {number}"),
            patient_hmac=code(patient) if patient else None,
            study_hmac=code(study or f"study {number}"),
        ),
        acquired_on=DAY + datetime.timedelta(days=number if day is None else day),
        device=device and f"ACME {device}",
        device_hmac=device and code(device),
        study_type=study_type,
        measures=measures,
    )


def daily(
    values: Sequence[float], better: Literal["lower", "higher", "neither"] = "lower"
) -> list[QualityRecord]:
    """One record a day."""
    return [record(number, noise(value, better)) for number, value in enumerate(values)]
