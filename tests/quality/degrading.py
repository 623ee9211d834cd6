"""A made-up device: real slices of a chest CT, one a day, with noise that grows from a day on."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from watching import DAY

from medqa.quality.examine import examine, header_of, record_of
from medqa.quality.record import QualityRecord
from medqa.reader import read

DAYS, DEGRADES = 60, 30


def daily_records(
    shared: Path,
    folder: Path,
    growth: float,
    key: bytes = b"k" * 32,
    days: int = DAYS,
    seed: int = 0,
) -> list[QualityRecord]:
    """Records of each day's image, by medqa's own measures.

    Each day one of 20 neighbouring slices is taken, by chance, with Gaussian noise of 5 HU, as
    another exposure would have it. From day 30 (counted from 0) the noise grows by `growth` HU
    each day.
    """
    rng = np.random.default_rng(seed)
    sources = sorted((shared / "ct/totalsegmentator_dicom").glob("CT.*"))
    records = []
    for day in range(days):
        data = pydicom.dcmread(sources[int(rng.integers(len(sources)))])
        stored = data.pixel_array.astype(np.float64)
        sigma = 5.0 + growth * max(0, day - DEGRADES + 1)
        stored += sigma / float(data.RescaleSlope) * rng.standard_normal(stored.shape)
        top = 2**data.BitsStored - 1
        data.PixelData = stored.round().clip(0, top).astype(np.uint16).tobytes()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data["PixelData"].VR = "OW"
        data.StudyInstanceUID, data.SOPInstanceUID = generate_uid(), generate_uid()
        data.PatientID = f"patient {day}"
        for name in ("AcquisitionDate", "StudyDate", "SeriesDate", "ContentDate"):
            setattr(data, name, (DAY + datetime.timedelta(days=day)).strftime("%Y%m%d"))
        file = folder / f"day{day:02d}.dcm"
        data.save_as(file, enforce_file_format=True)
        header = header_of(file)
        records.append(record_of(examine(read(file), header), header, key))
        file.unlink()
    return records
