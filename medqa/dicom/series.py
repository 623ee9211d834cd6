"""DICOM files to an `Image`: one file, or a series in order.

`geometry` says where the frames of all files lie, and `read_dicom` makes one image of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medqa.dicom.files import (
    opened,
    reading,
)
from medqa.dicom.geometry import (
    Order,
    Plane,
    are,
    arrange,
    check_distances,
    grid,
    order_of,
    plane,
)
from medqa.dicom.pixels import (
    Range,
    check_polarity,
    frame_count,
    padding_range,
    unit,
    value_range,
    voi,
    voi_windows,
)
from medqa.dicom.suv import suv_factor
from medqa.errors import ReadError
from medqa.image import Identifiers, Image, VoiLut, Window, gather
from medqa.limits import limits

__all__ = ["read_dicom", "windows_of"]


@dataclass(frozen=True, eq=False)
class _Slice:
    """What is needed to put a frame in its place and to decode it.

    `header` holds no pixels; `decode` returns (rows, columns) of modality values.
    """

    decode: Callable[[], NDArray[Any]]
    plane: Plane
    order: Order
    value_range: Range | None
    padding: Range | None
    voi: Window | VoiLut | None
    unit: str
    header: Dataset
    sha256: str


def _slices(path: Path, alone: bool) -> list[_Slice]:
    """Return the slices of one file in file order, none of them decoded."""
    ds, sha256, decode = opened(path, alone=alone)
    with reading(path):
        check_polarity(ds, path)
        display, called = voi(ds), unit(ds)
        return [
            _Slice(
                partial(decode, i),
                plane(ds, i),
                order_of(ds, i),
                value_range(ds, i),
                padding_range(ds, i),
                display,
                called,
                ds,
                sha256,
            )
            for i in range(frame_count(ds))
        ]


def read_dicom(paths: Sequence[Path], source: str) -> Image:
    """Read one file, or the files of one series, as an image.

    Raises
    ------
    ReadError
        A file is damaged, holds no image or cannot be decoded, or the files make no one image.
    """
    slices, volumes = _arranged(paths, source)
    with reading(source):
        return _image(slices, volumes, len(paths), source)


def windows_of(path: Path, index: int) -> tuple[Window | VoiLut, ...]:
    """Return the displays that a file offers for one slice of its image.

    Parameters
    ----------
    path
        A DICOM file that `read_dicom` reads.
    index
        Of the slice in the image that is read; a frame of another number where frames were sorted.
    """
    slices, _ = _arranged([path], str(path))
    with reading(path):
        return voi_windows(slices[index].header, slices[index].order[3])


def _arranged(paths: Sequence[Path], source: str) -> tuple[list[_Slice], int]:
    """Slices of all files in order, and the number of volumes that they make."""
    slices = [one for path in paths for one in _slices(path, len(paths) == 1)]
    with reading(source):
        if len(paths) > 1:
            _check_series(slices, len(paths), source)
        planes = [s.plane for s in slices]
        chosen, volumes = arrange(planes, [s.order for s in slices], source)
        check_distances([planes[i] for i in chosen[: len(chosen) // volumes]], source)
        return [slices[i] for i in chosen], volumes


def _image(slices: Sequence[_Slice], volumes: int, files: int, source: str) -> Image:
    first = slices[0]
    header = first.header
    spacing, affine = grid([s.plane for s in slices[: len(slices) // volumes]])
    ranges = [s.value_range for s in slices if s.value_range is not None]
    digests = "\n".join(s.sha256 for s in slices).encode()
    headers = [s.header for s in slices] if files > 1 else [header]
    return Image(
        pixels=gather(lambda index: slices[index].decode(), len(slices), source),
        source=source,
        kind="dicom",
        modality=_text(header, "Modality"),
        unit=first.unit,
        value_range=(min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None,
        spacing_mm=spacing,
        affine=affine,
        voi=first.voi,
        padding=_padding(slices),
        suv_factor=suv_factor(headers),
        volumes=volumes,
        body_part=_text(header, "BodyPartExamined"),
        device=" ".join(filter(None, _device(header)[:2])) or None,
        transfer_syntax=str(header.file_meta.TransferSyntaxUID),
        identifiers=replace(
            _identifiers(headers),
            frames=tuple(s.order[3] + 1 for s in slices) if len(slices) > files else (),
        ),
        file_sha256=hashlib.sha256(digests).hexdigest() if files > 1 else first.sha256,
    )


def _padding(slices: Sequence[_Slice]) -> NDArray[np.float64] | None:
    """(slices, 2) ends of each slice's padding, NaN where it has none; None where none has any."""
    if all(one.padding is None for one in slices):
        return None
    return np.array([one.padding or (math.nan, math.nan) for one in slices])


def _check_series(slices: Sequence[_Slice], files: int, source: object) -> None:
    if len(slices) > files:
        raise ReadError(source, "holds several multi-frame files", "give one of the files")
    uids = [str(s.header.SOPInstanceUID) for s in slices if s.header.get("SOPInstanceUID")]
    if len(set(uids)) < len(uids):
        raise ReadError(source, "holds the same instance twice", "remove the copies")
    scouts = sum("LOCALIZER" in _kind(s.header) for s in slices)
    if 0 < scouts < len(slices):
        reason = f"{scouts} of {len(slices)} slices {are(scouts)} not of the stack but localisers"
        raise ReadError(source, reason, "give the folder without them")
    shapes = {(int(s.header.Rows), int(s.header.Columns)) for s in slices}
    if len(shapes) > 1:
        listed = ", ".join(f"{r} x {c}" for r, c in sorted(shapes))
        reason = f"slices have different sizes ({listed})"
        raise ReadError(source, reason, "give one stack of slices")
    most = limits().image_bytes
    if 4 * len(slices) * math.prod(*shapes) > most:  # as float32, whatever it will be
        raise ReadError(source, f"is larger than {most / 2**30:.3g} GiB", "give fewer slices")
    units = sorted({s.unit for s in slices})
    if len(units) > 1:
        raise ReadError(source, f"slices in {' and '.join(units)}", "give slices of one unit")


def _kind(ds: Dataset) -> tuple[str, ...]:
    """Image Type (PS3.3 C.7.6.1.1.2)."""
    value = ds.get("ImageType") or ()
    return (value,) if isinstance(value, str) else tuple(value)


def _text(ds: Dataset, keyword: str) -> str | None:
    value = ds.get(keyword)
    return str(value) if value not in (None, "") else None


def _identifiers(headers: Sequence[Dataset]) -> Identifiers:
    first = headers[0]
    uids = (_text(header, "SOPInstanceUID") for header in headers)
    frames_of_reference = {_text(header, "FrameOfReferenceUID") for header in headers}
    device = _device(first)
    return Identifiers(
        patient_id=_text(first, "PatientID"),
        study_uid=_text(first, "StudyInstanceUID"),
        series_uid=_text(first, "SeriesInstanceUID"),
        sop_uids=tuple(uid for uid in uids if uid is not None),
        frame_of_reference_uid=frames_of_reference.pop() if len(frames_of_reference) == 1 else None,
        device="|".join(device) if any(device) else None,
    )


def _device(header: Dataset) -> list[str]:
    """Manufacturer, model, serial number and station; empty where not given."""
    keywords = ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "StationName")
    return [(_text(header, keyword) or "").strip() for keyword in keywords]
