"""DICOM files to an `Image`: what a file is, where its frames lie, and a series in order.

The stages of one file: `load`, `check`, the pixel pipeline of `dicom_pixels`, `plane` (PS3.3
C.7.6.2). Then `arrange` puts the slices of all files in order and `read_dicom` makes one
image of them.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RTDoseStorage,
    SegmentationStorage,
)

from medqa.dicom_pixels import (
    COLOURS,
    Range,
    frame_count,
    frames,
    functional_group,
    grayscale,
    number,
    numbers,
    unit,
    voi,
)
from medqa.errors import MedqaError, ReadError
from medqa.image import Identifiers, Image, VoiLut, Window

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

MAX_BYTES = 8 * 2**30
"""Largest decoded image, in bytes. A header can claim anything; memory is not asked for before."""

SEGMENTATIONS = (SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of segmentations: binary or fractional, and label map."""

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
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
    """What is needed to put a decoded frame in its place; `header` holds no pixels any more."""

    plane: Plane
    order: Order
    value_range: Range | None
    voi: Window | VoiLut | None
    unit: str
    header: Dataset
    sha256: str


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with these 132 bytes is DICOM, with or without its preamble.

    PS3.10 7.1 demands the preamble; a file without it starts with the first element of its group
    2 or 8, little or big endian.
    """
    little = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
    big = head[:3] == b"\x00\x08\x00"
    return head[128:132] == b"DICM" or little or big


def is_image(header: Dataset) -> bool:
    """Whether an object can be an image at all; its pixel data need not have been read."""
    return "Rows" in header and header.get("SOPClassUID") not in (*SEGMENTATIONS, RTDoseStorage)


@contextmanager
def reading(source: object, error: type[MedqaError] = ReadError) -> Iterator[None]:
    """Turn whatever a damaged or hostile file makes the libraries raise into an `error`."""
    with warnings.catch_warnings():
        # pydicom warns of sloppy headers that it reads correctly all the same ...
        warnings.filterwarnings("ignore", module=r"pydicom\.")
        # ... and of a file that ends inside an element, which it then leaves out.
        warnings.filterwarnings("error", message="End of file reached", module=r"pydicom\.")
        try:
            yield
        except MedqaError:
            raise
        except Exception as cause:  # pydicom and its codecs raise nearly every type there is
            mend = "if it is not damaged or truncated, convert it with another tool"
            detail = str(cause) or type(cause).__name__
            raise error(source, "cannot be read", mend, detail) from cause


def load(path: Path) -> tuple[Dataset, str]:
    """Parse a file; return it with the SHA-256 of exactly the bytes that were parsed."""
    data = path.read_bytes()
    ds = dcmread(io.BytesIO(data), force=True)
    ds.buffer = None  # or each header of a series would keep its whole file in memory
    if "TransferSyntaxUID" not in ds.file_meta:  # without it, pixel data is never compressed
        implicit, little = ds.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return ds, hashlib.sha256(data).hexdigest()


def check(ds: Dataset, source: object) -> None:
    """Refuse what is not an image, cannot be shown or is too large, before anything is decoded."""
    sop_class = ds.get("SOPClassUID")
    if sop_class in SEGMENTATIONS:
        raise ReadError(source, "is a segmentation, not an image", "pass it with --mask")
    if sop_class == RTDoseStorage:
        raise ReadError(source, "is a dose grid, not an image", "give the image it was planned on")
    if "TotalPixelMatrixColumns" in ds:
        raise ReadError(source, "is a tiled whole-slide image", "give a radiology image")
    if not any(keyword in ds for keyword in _PIXELS):
        kind = sop_class.name if sop_class else "object of unknown class"
        reason = f"holds no pixel data ({kind})"
        mend = "give an image object; if it should be one, it is truncated: fetch it again"
        raise ReadError(source, reason, mend)
    photometric = str(ds.get("PhotometricInterpretation", ""))
    colour = photometric in COLOURS
    if not colour and photometric not in ("MONOCHROME1", "MONOCHROME2"):
        reason = f"photometric interpretation {photometric or 'missing'} is not supported"
        raise ReadError(source, reason, "store it as MONOCHROME2 or RGB")
    expected = 3 if colour and photometric != "PALETTE COLOR" else 1
    if int(ds.get("SamplesPerPixel", 1)) != expected:
        reason = f"{photometric} with {ds.SamplesPerPixel} samples per pixel"
        raise ReadError(source, reason, "its header is wrong: convert it again")
    if photometric == "MONOCHROME1" and "PixelData" not in ds:
        # A floating point range has no ends to turn around.
        raise ReadError(source, "holds floating point MONOCHROME1", "store it as MONOCHROME2")
    check_size(ds, source)


def check_size(ds: Dataset, source: object) -> None:
    """Refuse an empty image, and one larger than `MAX_BYTES`, by its header."""
    samples = int(ds.get("SamplesPerPixel", 1))
    values = int(ds.Rows) * int(ds.Columns) * frame_count(ds) * samples
    size = values * max(1, int(ds.BitsAllocated) // 8)
    if size == 0:
        raise ReadError(source, f"has {ds.Rows} rows and {ds.Columns} columns", "give an image")
    if size > MAX_BYTES:
        reason = f"claims {size / 2**30:.0f} GiB of pixels, more than the {MAX_BYTES >> 30} allowed"
        raise ReadError(source, reason, "give fewer frames; if it has fewer, its header is wrong")


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


def _decode(path: Path) -> tuple[list[NDArray[Any]], list[_Slice]]:
    """Decode one file to its slices, in file order."""
    with reading(path):
        ds, sha256 = load(path)
        check(ds, path)
        pixels: list[NDArray[Any]] = []
        ranges: list[Range | None] = []
        for i, stored in enumerate(frames(ds, path)):
            one, ends = grayscale(stored, ds, i)
            pixels.append(one)
            ranges.append(ends)
        for keyword in _PIXELS:
            ds.pop(keyword, None)
        display = voi(ds, ranges[0] or (0.0, 0.0))
        slices = [
            _Slice(plane(ds, i), _order(ds, i), ends, display, unit(ds), ds, sha256)
            for i, ends in enumerate(ranges)
        ]
        return pixels, slices


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
    pixels: list[NDArray[Any]] = []
    slices: list[_Slice] = []
    for path in paths:
        decoded, placed = _decode(path)
        pixels += decoded
        slices += placed
        if sum(one.nbytes for one in pixels) > MAX_BYTES:
            raise ReadError(source, f"is larger than {MAX_BYTES >> 30} GiB", "give fewer slices")
    with reading(source):
        if len(paths) > 1:
            _check_series(pixels, slices, len(paths), source)
        chosen, volumes = arrange([s.plane for s in slices], [s.order for s in slices], source)
        pixels = [pixels[i] for i in chosen]
        return _image(pixels, [slices[i] for i in chosen], volumes, len(paths), source)


def _image(
    pixels: list[NDArray[Any]], slices: Sequence[_Slice], volumes: int, files: int, source: str
) -> Image:
    first = slices[0]
    header = first.header
    spacing, affine = _geometry([s.plane for s in slices[: len(slices) // volumes]])
    ranges = [s.value_range for s in slices if s.value_range is not None]
    digests = "\n".join(s.sha256 for s in slices).encode()
    headers = [s.header for s in slices] if files > 1 else [header]
    return Image(
        pixels=_stack(pixels),
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


def _check_series(
    pixels: Sequence[NDArray[Any]], slices: Sequence[_Slice], files: int, source: object
) -> None:
    if len(slices) > files:
        raise ReadError(source, "holds several multi-frame files", "give one of the files")
    uids = [str(s.header.SOPInstanceUID) for s in slices if s.header.get("SOPInstanceUID")]
    if len(set(uids)) < len(uids):
        raise ReadError(source, "holds the same instance twice", "remove the copies")
    shapes = {one.shape for one in pixels}
    if len(shapes) > 1:
        listed = ", ".join(f"{r} x {c}" for r, c in sorted(shapes))
        reason = f"slices have different sizes ({listed})"
        raise ReadError(source, reason, "give one stack of slices")
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


def _stack(slices: list[NDArray[Any]]) -> NDArray[Any]:
    """(slices, rows, columns) int16 where every slice is, else float32; empties the list."""
    integer = all(one.dtype == np.int16 for one in slices)
    shape = (len(slices), *slices[0].shape)
    stacked: NDArray[Any] = np.empty(shape, np.int16 if integer else np.float32)
    while slices:  # one by one from the end, so that memory holds the image only once
        last = slices.pop()
        stacked[len(slices)] = last
    return stacked


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
