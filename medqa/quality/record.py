"""What quality control records of one image: an entry of the audit chain."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import select

from medqa.assessment import ImageInput
from medqa.audit import Store
from medqa.audit.chain import Entry
from medqa.audit.journal import append
from medqa.audit.tables import entries
from medqa.errors import StoreError

__all__ = ["Measured", "QualityRecord", "add", "history"]

_KIND = "quality"


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Measured(_Record):
    """One measure of an image."""

    name: str
    """Its name, such as `noise`."""
    value: float | None
    """The measure; None where it is not defined for this image."""
    unit: str
    """Unit of the value, such as `HU`; `1` where it has none."""
    better: Literal["lower", "higher", "neither"]
    """Which direction is better; `neither` where both mean a change."""
    detail: str | None = None
    """Where or how it was measured, or why not."""


class QualityRecord(_Record):
    """Measures of one image."""

    quality_id: str
    """UUID of this record."""
    created_at: AwareDatetime
    """When it was measured."""
    medqa_version: str
    image: ImageInput
    """The image, its identifiers as keyed codes only."""
    acquired_on: datetime.date | None
    """Day of the acquisition, where the file says so: charts are drawn over it."""
    device: str | None
    """Manufacturer and model, as the file says."""
    device_hmac: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    """Keyed code of manufacturer, model, serial number and station: one for each device."""
    study_type: str
    """What it is compared with: modality, body part and protocol, such as `CT CHEST`."""
    measures: tuple[Measured, ...]


def add(store: Store, record: QualityRecord, *, actor: str | None = None) -> Entry:
    """Add a record to the audit chain, durably, in one transaction.

    Raises
    ------
    StoreError
        It could not be written.
    """
    body = record.model_dump_json()
    with store.writing() as connection:
        return append(connection, _KIND, None, body, actor=actor)


def history(store: Store) -> Iterator[QualityRecord]:
    """All records of quality control, in the order in which they were added.

    Raises
    ------
    StoreError
        They could not be read, or one is of a newer version.
    """
    query = select(entries.c.body).where(entries.c.kind == _KIND).order_by(entries.c.sequence)
    with store.reading() as connection:
        for body in connection.scalars(query):
            try:
                yield QualityRecord.model_validate_json(body)
            except ValidationError as error:
                raise StoreError(
                    store.url_for_people,
                    "it holds a record that this version of medqa does not understand",
                    "update medqa",
                ) from error
