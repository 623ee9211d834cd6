"""Where DICOM frames lie in the patient, and in which order: by the headers alone.

`plane` says where a frame lies (PS3.3 C.7.6.2), `arrange` puts the slices of all files in order,
`check_distances` makes sure that none is missing, and `grid` says where the voxels of the volume
lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medqa.dicom.pixels import frame_count, functional_group, number, numbers
from medqa.errors import ReadError
from medqa.image import TOLERANCE_VOXELS

__all__ = [
    "Order",
    "Plane",
    "are",
    "arrange",
    "check_distances",
    "grid",
    "order_of",
    "plane",
    "plane_affine",
]

# Positions along the normal that differ by less are one position: files round to 0.001 mm or so.
_SAME_POSITION_MM = 0.01
# Direction cosines that differ by less are one orientation: headers hold 3 to 16 digits.
_SAME_DIRECTION = 1e-3
# Where a file says how large its pixels are, in this order: in the patient, on the detector (larger
# by the magnification), on the scanned film (PS3.3 10.7.1, C.8.4.2.1.1, C.8.6.2).
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_SLICE_VECTOR = 0x00540080


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
        Distance to the next slice in mm as the header states it, or how thick one is; 0.0 where it
        says neither.
    apart
        Distance to the next slice in mm where frames without a position follow each other in
        space; 0.0 where they follow each other in time, or the header does not say how far.
    """

    position: NDArray[np.float64] | None
    axes: NDArray[np.float64] | None
    spacing: tuple[float, float] | None
    step: float = 0.0
    apart: float = 0.0

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector along which slices are ordered; for an axial image, superior."""
        if self.axes is None:
            raise ValueError("no orientation, no normal")
        return np.cross(self.axes[:, 1], self.axes[:, 0])


Order = tuple[float, float, str, int]
"""Temporal position, instance number, acquisition time and frame: smaller comes first."""


def plane(ds: Dataset, frame: int) -> Plane:
    """Where a frame lies (PS3.3 C.7.6.2, C.7.6.16.2.1, .3 and .4)."""
    measures = functional_group(ds, frame, "PixelMeasuresSequence")
    found = (numbers(measures, keyword) for keyword in _SPACINGS)
    spacing = next((v for v in found if len(v) == 2 and min(v) > 0), None) or _ultrasound(ds)
    between = abs(number(measures, "SpacingBetweenSlices", 0))
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
        (spacing[0], spacing[1]) if spacing else None,
        between or abs(number(measures, "SliceThickness", 0)),
        between if _in_space(ds) else 0.0,
    )


def _in_space(ds: Dataset) -> bool:
    """Whether frames follow each other in space, not in time, energy or phase (PS3.3 C.7.6.6.1)."""
    pointer = ds.get("FrameIncrementPointer")
    if pointer is None:
        return True
    pointers = pointer if hasattr(pointer, "__iter__") else [pointer]
    return _SLICE_VECTOR in [int(one) for one in pointers]


def _ultrasound(ds: Dataset) -> tuple[float, float] | None:
    """Rows and columns in mm of an ultrasound whose two-dimensional regions agree (C.8.5.5.1)."""
    regions = [
        region
        for region in ds.get("SequenceOfUltrasoundRegions") or []
        if number(region, "RegionSpatialFormat", 0) == 1  # 2D
    ]
    centimetres = all(
        number(region, f"PhysicalUnits{axis}Direction", 0) == 3
        for region in regions
        for axis in "XY"
    )
    sizes = {
        (abs(number(r, "PhysicalDeltaY", 0)) * 10, abs(number(r, "PhysicalDeltaX", 0)) * 10)
        for r in regions
    }
    if not centimetres or len(sizes) != 1:
        return None
    size = sizes.pop()
    return size if min(size) > 0 else None


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
    if any(one.position is None or one.axes is None for one in planes):
        return by_order, 1
    _check_orientations(planes, source)
    along = _along(planes)
    places: list[list[int]] = []
    for i in sorted(by_order, key=along.__getitem__):
        if places and along[i] - along[places[-1][0]] < _SAME_POSITION_MM:
            places[-1].append(i)
        else:
            places.append([i])
    counts = [len(place) for place in places]
    volumes = max(set(counts), key=counts.count)
    odd = next((place for place in places if len(place) != volumes), None)
    if odd is not None:
        reason = (
            f"{len(planes)} slices at {len(places)} positions make no whole volumes: "
            f"{len(odd)} at {along[odd[0]]:.2f} mm, {volumes} at most others"
        )
        mend = "give every slice once, or complete volumes of a time series"
        raise ReadError(source, reason, mend)
    ranked = [sorted(place, key=order.__getitem__) for place in places]
    return [place[volume] for volume in range(volumes) for place in ranked], volumes


def _along(planes: Sequence[Plane]) -> list[float]:
    """Where slices lie along the normal of the first, in mm; all have position and orientation."""
    normal = planes[0].normal
    return [float(one.position @ normal) for one in planes if one.position is not None]


def _check_orientations(planes: Sequence[Plane], source: object) -> None:
    """Refuse slices that are not parallel, such as localisers in a series."""
    kinds: list[list[NDArray[np.float64]]] = []
    for one in planes:
        if one.axes is None:
            continue
        for kind in kinds:
            if np.abs(one.axes - kind[0]).max() <= _SAME_DIRECTION:
                kind.append(one.axes)
                break
        else:
            kinds.append([one.axes])
    if len(kinds) > 1:
        counts = " and ".join(str(len(kind)) for kind in kinds[:4])
        reason = f"slices have {len(kinds)} different orientations ({counts} slices)"
        raise ReadError(source, reason, "give one stack of slices, without localisers")


def check_distances(planes: Sequence[Plane], source: object) -> None:
    """Refuse slices of one volume, in order, that do not follow each other evenly.

    One step then says where all of them lie, and no slice is missing. Without positions there is
    nothing to check.

    Raises
    ------
    ReadError
        Slices are missing, unevenly spaced or shifted sideways by more than `TOLERANCE_VOXELS`.
    """
    positions = np.array([one.position for one in planes if one.position is not None])
    if len(positions) < max(3, len(planes)) or any(one.axes is None for one in planes):
        return
    even = np.linspace(positions[0], positions[-1], len(positions))
    normal = planes[0].normal
    along, off = positions @ normal, positions - even
    steps = np.diff(along)
    usual = float(np.median(steps))
    if np.abs(off @ normal).max() > TOLERANCE_VOXELS * usual:
        multiples = np.round(steps / usual)
        wide = int(np.argmax(steps))
        if multiples.max() > 1 and np.abs(steps / usual - multiples).max() < TOLERANCE_VOXELS:
            missing = int(multiples.sum()) - len(steps)
            reason = f"{missing} of {len(planes) + missing} slices {are(missing)} missing"
            mend = "give the complete series"
        else:
            reason = f"slices lie {steps.min():.2f} to {steps.max():.2f} mm apart"
            mend = "give a stack of evenly spaced slices"
        ends = f"{along[wide]:.2f} and {along[wide + 1]:.2f} mm"
        raise ReadError(source, f"{reason}; the widest gap is between {ends}", mend)
    aside = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
    pixel = min(planes[0].spacing or (1.0, 1.0))
    if aside.max() > TOLERANCE_VOXELS * pixel:
        worst = int(np.argmax(aside))
        reason = f"slice at {along[worst]:.2f} mm is shifted sideways by {aside[worst]:.2f} mm"
        raise ReadError(source, reason, "give one stack of slices")


def are(count: int) -> str:
    """Say is or are."""
    return "is" if count == 1 else "are"


def order_of(ds: Dataset, frame: int) -> Order:
    """Return what orders a frame that has no position (PS3.3 C.7.6.16.2.2)."""
    content = functional_group(ds, frame, "FrameContentSequence")
    index = number(content, "TemporalPositionIndex", 0)
    temporal = number(ds, "TemporalPositionIdentifier", index)
    time = str(ds.get("AcquisitionTime") or "")
    return temporal, number(ds, "InstanceNumber", 0), time, frame


def grid(
    planes: Sequence[Plane],
) -> tuple[tuple[float, float, float] | None, NDArray[np.float64] | None]:
    """Spacing and affine of the slices of one volume, in order."""
    first, count = planes[0], len(planes)
    if first.spacing is None:
        return None, None
    positions = [p.position for p in planes if p.position is not None and p.axes is not None]
    if len(positions) < count:
        return (first.apart if count > 1 else 0.0, *first.spacing), None
    if count == 1:  # the third direction, so that the affine can be inverted
        return (0.0, *first.spacing), plane_affine(first, first.normal * (first.step or 1.0))
    step = (positions[-1] - positions[0]) / (count - 1)
    return (float(np.linalg.norm(step)), *first.spacing), plane_affine(first, step)
