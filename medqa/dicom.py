"""DICOM files to an `Image`: where their frames lie, and a series in order.

`plane` says where a frame lies (PS3.3 C.7.6.2), `arrange` puts the slices of all files in order,
both by the headers alone; `read_dicom` makes one image of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medqa.dicom_files import (
    MAX_BYTES,
    SEGMENTATIONS,
    check,
    check_size,
    is_dicom,
    is_image,
    load,
    opened,
    reading,
)
from medqa.dicom_pixels import (
    Range,
    frame_count,
    functional_group,
    number,
    numbers,
    unit,
    value_range,
    voi,
)
from medqa.errors import ReadError
from medqa.image import Identifiers, Image, VoiLut, Window, gather

__all__ = [
    "MAX_BYTES",
    "SEGMENTATIONS",
    "Order",
    "Plane",
    "arrange",
    "check",
    "check_size",
    "is_dicom",
    "is_image",
    "load",
    "plane",
    "plane_affine",
    "read_dicom",
    "reading",
]

# Positions along the normal that differ by less are one position: files round to 0.001 mm or so.
_SAME_POSITION_MM = 0.01
# Direction cosines that differ by less are one orientation: headers hold 3 to 16 digits.
_SAME_DIRECTION = 1e-3


@dataclass(frozen=True, eq=False)
class Plane:
    """Where a frame lies in the patient (PS3.3 C.7.6.2).

    Parameters
    ----------
    position
        (3,) mm, centre of the first pixel, axes left-posterior-superior; None where unknown.
    axes
        (3, 2) unit vectors along which the row and the column index grow; None where unknown.
    spacing
        Distance between rows and between columns in mm; None where unknown.
    step
        Distance to the next slice in mm as the header states it; 0.0 where it does not.
    """

    position: NDArray[np.float64] | None
    axes: NDArray[np.float64] | None
    spacing: tuple[float, float] | None
    step: float = 0.0

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector along which slices are ordered; for an axial image, superior."""
        if self.axes is None:
            raise ValueError("no orientation, no normal")
        return np.cross(self.axes[:, 1], self.axes[:, 0])


Order = tuple[float, float, str, int]
"""Temporal position, instance number, acquisition time and frame: smaller comes first."""


@dataclass(frozen=True, eq=False)
class _Slice:
    """What is needed to put a frame in its place and to decode it.

    `header` holds no pixels; `decode` returns (rows, columns) of modality values.
    """

    decode: Callable[[], NDArray[Any]]
    plane: Plane
    order: Order
    value_range: Range | None
    voi: Window | VoiLut | None
    unit: str
    header: Dataset
    sha256: str


def plane(ds: Dataset, frame: int) -> Plane:
    """Where a frame lies (PS3.3 C.7.6.2, C.7.6.16.2.1, .3 and .4)."""
    measures = functional_group(ds, frame, "PixelMeasuresSequence")
    spacing = numbers(measures, "PixelSpacing") or numbers(measures, "ImagerPixelSpacing")
    known = len(spacing) == 2 and min(spacing) > 0
    step = number(measures, "SpacingBetweenSlices", 0) or number(measures, "SliceThickness", 0)
    positions = functional_group(ds, frame, "PlanePositionSequence")
    position = numbers(positions, "ImagePositionPatient")
    cosines = numbers(
        functional_group(ds, frame, "PlaneOrientationSequence"), "ImageOrientationPatient"
    )
    # One position for many frames is that of the first only: it orders nothing.
    placed = len(position) == 3 and (positions is not ds or frame_count(ds) == 1)
    axes = np.array([cosines[3:], cosines[:3]]).T if len(cosines) == 6 else np.zeros((3, 2))
    upright = np.allclose(axes.T @ axes, np.eye(2), atol=0.01)
    return Plane(
        np.array(position) if placed else None,
        axes if upright else None,
        (spacing[0], spacing[1]) if known else None,
        abs(step),
    )


def plane_affine(first: Plane, step: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """(4, 4) of (slice, row, column, 1) to RAS mm (PS3.3 C.7.6.2.1.1); None where unknown.

    Parameters
    ----------
    first
        Plane of the first slice.
    step
        (3,) mm from one slice to the next, axes left-posterior-superior.
    """
    if first.position is None or first.axes is None or first.spacing is None:
        return None
    matrix = np.eye(4)
    matrix[:3, 0] = step
    matrix[:3, 1:3] = first.axes * first.spacing
    matrix[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix


def arrange(
    planes: Sequence[Plane], order: Sequence[Order], source: object
) -> tuple[list[int], int]:
    """Put slices in order along their normal, and count the volumes of a time series.

    Without positions, `order` decides; it also orders the slices that lie at one position,
    of which each volume gets one.

    Returns
    -------
    Indices of the slices in order, volume by volume, and the number of volumes.
    """
    by_order = sorted(range(len(planes)), key=order.__getitem__)
    first = planes[0]
    along: list[float] = []
    for one in planes:
        if one.position is None or one.axes is None or first.axes is None:
            return by_order, 1
        if np.abs(one.axes - first.axes).max() > _SAME_DIRECTION:
            reason = "slices have different orientations"
            raise ReadError(source, reason, "give one stack of slices")
        along.append(float(one.position @ first.normal))
    places: list[list[int]] = []
    for i in sorted(by_order, key=along.__getitem__):
        if places and along[i] - along[places[-1][0]] < _SAME_POSITION_MM:
            places[-1].append(i)
        else:
            places.append([i])
    volumes = len(places[0])
    if any(len(place) != volumes for place in places):
        reason = f"{len(planes)} slices at {len(places)} positions make no whole volumes"
        mend = "give every slice once, or complete volumes of a time series"
        raise ReadError(source, reason, mend)
    ranked = [sorted(place, key=order.__getitem__) for place in places]
    return [place[volume] for volume in range(volumes) for place in ranked], volumes


def _slices(path: Path, alone: bool) -> list[_Slice]:
    """Return the slices of one file in file order, none of them decoded."""
    ds, sha256, decode = opened(path, alone=alone)
    with reading(path):
        ranges = [value_range(ds, i) for i in range(frame_count(ds))]
        display, called = voi(ds, ranges[0] or (0.0, 0.0)), unit(ds)
        return [
            _Slice(
                partial(decode, i), plane(ds, i), _order(ds, i), ends, display, called, ds, sha256
            )
            for i, ends in enumerate(ranges)
        ]


def _order(ds: Dataset, frame: int) -> Order:
    content = functional_group(ds, frame, "FrameContentSequence")
    index = number(content, "TemporalPositionIndex", 0)
    temporal = number(ds, "TemporalPositionIdentifier", index)
    time = str(ds.get("AcquisitionTime") or "")
    return temporal, number(ds, "InstanceNumber", 0), time, frame


def read_dicom(paths: Sequence[Path], source: str) -> Image:
    """Read one file, or the files of one series, as an image.

    Raises
    ------
    ReadError
        A file is damaged, holds no image or cannot be decoded, or the files make no one image.
    """
    slices = [one for path in paths for one in _slices(path, len(paths) == 1)]
    with reading(source):
        if len(paths) > 1:
            _check_series(slices, len(paths), source)
        chosen, volumes = arrange([s.plane for s in slices], [s.order for s in slices], source)
        return _image([slices[i] for i in chosen], volumes, len(paths), source)


def _image(slices: Sequence[_Slice], volumes: int, files: int, source: str) -> Image:
    first = slices[0]
    header = first.header
    spacing, affine = _geometry([s.plane for s in slices[: len(slices) // volumes]])
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
        volumes=volumes,
        body_part=_text(header, "BodyPartExamined"),
        transfer_syntax=str(header.file_meta.TransferSyntaxUID),
        identifiers=_identifiers(headers),
        file_sha256=hashlib.sha256(digests).hexdigest() if files > 1 else first.sha256,
    )


def _check_series(slices: Sequence[_Slice], files: int, source: object) -> None:
    if len(slices) > files:
        raise ReadError(source, "holds several multi-frame files", "give one of the files")
    uids = [str(s.header.SOPInstanceUID) for s in slices if s.header.get("SOPInstanceUID")]
    if len(set(uids)) < len(uids):
        raise ReadError(source, "holds the same instance twice", "remove the copies")
    shapes = {(int(s.header.Rows), int(s.header.Columns)) for s in slices}
    if len(shapes) > 1:
        listed = ", ".join(f"{r} x {c}" for r, c in sorted(shapes))
        reason = f"slices have different sizes ({listed})"
        raise ReadError(source, reason, "give one stack of slices")
    if 4 * len(slices) * math.prod(*shapes) > MAX_BYTES:  # as float32, whatever it will be
        raise ReadError(source, f"is larger than {MAX_BYTES >> 30} GiB", "give fewer slices")
    units = sorted({s.unit for s in slices})
    if len(units) > 1:
        raise ReadError(source, f"slices in {' and '.join(units)}", "give slices of one unit")


def _geometry(
    planes: Sequence[Plane],
) -> tuple[tuple[float, float, float] | None, NDArray[np.float64] | None]:
    """Spacing and affine of the slices of one volume, in order."""
    first, count = planes[0], len(planes)
    if first.spacing is None:
        return None, None
    positions = [p.position for p in planes if p.position is not None and p.axes is not None]
    if len(positions) < count:
        return (first.step if count > 1 else 0.0, *first.spacing), None
    if count == 1:  # the third direction, so that the affine can be inverted
        return (0.0, *first.spacing), plane_affine(first, first.normal * (first.step or 1.0))
    step = (positions[-1] - positions[0]) / (count - 1)
    return (float(np.linalg.norm(step)), *first.spacing), plane_affine(first, step)


def _text(ds: Dataset, keyword: str) -> str | None:
    value = ds.get(keyword)
    return str(value) if value not in (None, "") else None


def _identifiers(headers: Sequence[Dataset]) -> Identifiers:
    first = headers[0]
    uids = (_text(header, "SOPInstanceUID") for header in headers)
    frames_of_reference = {_text(header, "FrameOfReferenceUID") for header in headers}
    return Identifiers(
        patient_id=_text(first, "PatientID"),
        study_uid=_text(first, "StudyInstanceUID"),
        series_uid=_text(first, "SeriesInstanceUID"),
        sop_uids=tuple(uid for uid in uids if uid is not None),
        frame_of_reference_uid=frames_of_reference.pop() if len(frames_of_reference) == 1 else None,
    )
