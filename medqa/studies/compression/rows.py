"""The rows of a study's table: one for each image, codec and ratio; and the table as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from medqa.assessment import Verdict
from medqa.files import write_file

__all__ = ["Row", "csv_of", "write_parquet"]


@dataclass(frozen=True)
class Row:
    """One image, compressed with one codec to one ratio, and judged.

    Parameters
    ----------
    image, source
        Numbers from 1: of the image in the study, and of the series that it is from. Neither
        names a patient.
    modality, body_part, device
        DICOM Modality and Body Part Examined; manufacturer and model.
    profile
        Name of the thresholds.
    bits_stored, bits_allocated
        Of the image's pixels.
    codec
        Its name; None where the image itself could not be used.
    ratio
        As asked for, by the bits stored; None: lossless.
    measured, measured_allocated
        As reached, over all slices, by the bits stored and by those allocated.
    distance
        LPIPS of the whole image.
    slice, window
        Where it is worst.
    region_distance
        Largest LPIPS of a pathology or annotation; None where there is none.
    regions_preserved
        Whether all of them are; None where there is none.
    verdict
        By the profile.
    good
        Whether it is still fit for diagnosis with every region preserved.
    reason
        What weighed most, or why it could not be judged.
    measures
        Companion measures: PSNR and SSIM, and those that decide.
    """

    image: int
    source: int
    verdict: Verdict
    good: bool
    reason: str
    modality: str | None = None
    body_part: str | None = None
    device: str | None = None
    profile: str | None = None
    bits_stored: int | None = None
    bits_allocated: int | None = None
    codec: str | None = None
    ratio: float | None = None
    measured: float | None = None
    measured_allocated: float | None = None
    distance: float | None = None
    slice: int | None = None
    window: str | None = None
    region_distance: float | None = None
    regions_preserved: bool | None = None
    measures: Mapping[str, float | None] = field(default_factory=dict)


def _flat(rows: Sequence[Row]) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of all columns, a measure each after the others, and the rows."""
    names = sorted({name for row in rows for name in row.measures})
    plain = [one.name for one in fields(Row) if one.name != "measures"]
    flat = []
    for row in rows:
        values = asdict(row)
        measured = values.pop("measures")
        flat.append(values | {name: measured.get(name) for name in names})
    return plain + names, flat


def csv_of(rows: Sequence[Row]) -> bytes:
    """CSV of the rows, every number with all its digits."""
    columns, flat = _flat(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue().encode()


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    """Write the rows as Parquet; raises UsageError as `write_file`."""
    import pyarrow as pa
    from pyarrow import parquet

    whole, text = pa.int64(), pa.string()
    known = {
        "image": whole, "source": whole, "verdict": text, "good": pa.bool_(), "reason": text,
        "modality": text, "body_part": text, "device": text, "profile": text,
        "bits_stored": whole, "bits_allocated": whole, "codec": text, "slice": whole,
        "window": text, "regions_preserved": pa.bool_(),
    }  # fmt: skip
    columns, flat = _flat(rows)
    schema = pa.schema([(name, known.get(name, pa.float64())) for name in columns])
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(flat, schema=schema), sink)
    return write_file(path, sink.getvalue().to_pybytes())
