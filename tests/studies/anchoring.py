"""What the tests of anchors share: synthetic CT of several devices, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SIDE = 96


def phantom(seed: int, noise: float = 15.0) -> NDArray[np.int16]:
    """Stored values of a body with an organ and an insert in noise, offset by 1024: (96, 96)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    hu = np.full((SIDE, SIDE), -1000.0)
    hu[np.hypot(rows / 1.2, columns) < 35] = 40
    hu[np.hypot(rows - 8, columns + 6) < 12] = 110
    hu[np.hypot(rows + 12, columns - 8) < 5] = 600
    hu += noise * rng.standard_normal(hu.shape)
    return np.clip(np.round(hu) + 1024, 0, 4095).astype(np.int16)


def save(path: Path, stored: NDArray[Any], model: str = "One", **changes: Any) -> Path:
    """Write a CT slice of 12 bits stored in 16; a change of None leaves the element out."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.Modality = CTImageStorage, "CT"
    ds.SOPInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.Manufacturer, ds.ManufacturerModelName = "Maker", model
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.PixelData = stored.tobytes()
    for key, value in changes.items():
        if value is None:
            delattr(ds, key)
        else:
            setattr(ds, key, value)
    ds.save_as(path, enforce_file_format=True)
    return path
