"""RT structure sets (PS3.3 A.19, C.8.8.5 and C.8.8.6) to `Mark`s."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from medqa.dicom.files import load
from medqa.errors import RegionError
from medqa.image import TOLERANCE_VOXELS, Code, Image
from medqa.regions.codes import code_in
from medqa.regions.contours import (
    Mask,
    drawn,
    even_odd,
    onto_slice,
    points_of,
    stacked,
)
from medqa.regions.grid import (
    Mark,
    check_frame_of_reference,
    in_every_volume,
    slices_named,
    volume_shape,
)

__all__ = ["read_rtstruct"]

_CLOSED, _XOR = "CLOSED_PLANAR", "CLOSEDPLANAR_XOR"
# PS3.3 C.8.8.6.2: without an area; isocentres, markers and catheters.
_WITHOUT_AREA = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")


def read_rtstruct(path: Path, reference: Image) -> Iterator[Mark]:
    """Read the closed contours of an RT structure set: one mark for each ROI.

    Each contour lies on one slice; between slices nothing is interpolated. Of the contours on a
    slice, one inside another is a hole (PS3.3 C.8.8.6.3). ROIs without a contour are passed over,
    and so are those of points and open lines, which have no area.

    Raises
    ------
    RegionError
        No ROI has an area; one is drawn in another frame of reference, off the slices of the
        reference or outside it, on another slice than the instance that it names, or so that its
        inside is not defined.
    """
    ds, _ = load(path)
    rois = {int(roi.ROINumber): roi for roi in ds.StructureSetROISequence}
    if len(rois) < len(ds.StructureSetROISequence):
        raise RegionError(path, "gives two ROIs one number", "export it again")
    codes = _codes(ds)
    found = False
    for item in ds.get("ROIContourSequence") or []:
        number = int(item.ReferencedROINumber)
        what = f"ROI {number}"
        contours = _closed(item, path, what)
        if not contours:
            continue
        if number not in rois:
            raise RegionError(path, f"{what}: is drawn but not described", "export it again")
        found = True
        roi = rois[number]
        check_frame_of_reference(roi.get("ReferencedFrameOfReferenceUID"), reference, path)
        name = str(roi.get("ROIName") or "").strip() or what
        yield _mark(name, codes.get(number), contours, reference, path, what)
    if not found:
        raise RegionError(path, "holds no closed contour", "give one with outlines")


def _codes(ds: Dataset) -> dict[int, Code]:
    """Code of each ROI that is identified by one (PS3.3 C.8.8.8)."""
    codes: dict[int, Code] = {}
    for observation in ds.get("RTROIObservationsSequence") or []:
        code = code_in(observation, "RTROIIdentificationCodeSequence")
        if code is not None:
            codes.setdefault(int(observation.ReferencedROINumber), code)
    return codes


def _closed(item: Dataset, path: Path, what: str) -> Sequence[Dataset]:
    """Contours of an ROI that enclose an area; an ROI must be all area or none."""
    contours = item.get("ContourSequence") or []
    kinds = {str(contour.ContourGeometricType) for contour in contours}
    if kinds <= {*_WITHOUT_AREA}:
        return ()
    if not (kinds <= {_CLOSED} or kinds <= {_XOR}):
        reason = f"{what}: has contours of several types, or of an unknown one"
        raise RegionError(path, reason, "give each ROI closed planar contours")
    return tuple(contours)


def _mark(
    name: str,
    code: Code | None,
    contours: Sequence[Dataset],
    reference: Image,
    path: Path,
    what: str,
) -> Mark:
    on_slice: dict[int, list[Mask]] = {}
    depths: dict[int, float] = {}
    volumes: set[int | None] = set()
    for contour in contours:
        index, volume, off, mask = _placed(contour, reference, path, what)
        volumes.add(volume)
        if not abs(depths.setdefault(index, off) - off) < TOLERANCE_VOXELS:
            reason = f"{what}: contours of two planes fall on one slice"
            raise RegionError(path, reason, "give what was drawn on the slices of this very image")
        on_slice.setdefault(index, []).append(mask)
    planes = {
        index: _combined(masks, str(contours[0].ContourGeometricType), path, what)
        for index, masks in on_slice.items()
    }
    if len(volumes) > 1:
        reason = f"{what}: names slices of several volumes of the time series"
        raise RegionError(path, reason, "give the contours of one volume")
    volume = volumes.pop()
    if volume is None:
        return in_every_volume(stacked(name, planes, code, path, what), reference)
    first = volume * volume_shape(reference)[0]
    moved = {first + index: plane for index, plane in planes.items()}
    return stacked(name, moved, code, path, what)


def _numbers(contour: Dataset) -> NDArray[np.float64]:
    """Contour Data, without an object for each number: there are millions (PS3.5 6.2, DS)."""
    element = contour.get_item("ContourData")
    stored = element.value if isinstance(element, RawDataElement) else None
    texts = stored.split(b"\\") if stored else contour.ContourData
    return np.array(texts).astype(np.float64)


def _placed(
    contour: Dataset, reference: Image, path: Path, what: str
) -> tuple[int, int | None, float, Mask]:
    """Slice in its volume, volume where it names one of a series, depth in the slice, and area."""
    points = points_of(_numbers(contour), 3, path, what)
    if len(points) != int(contour.get("NumberOfContourPoints", len(points))) or len(points) < 3:
        reason = f"{what}: a contour has {len(points)} points, and not those it says or needs"
        raise RegionError(path, reason, "the file is damaged: export it again")
    index, off, flat = onto_slice(points, reference, path, what)
    uids = [str(i.ReferencedSOPInstanceUID) for i in contour.get("ContourImageSequence") or []]
    volume = None
    for named in slices_named(uids, reference):
        named_volume, of_volume = divmod(named, volume_shape(reference)[0])
        volume = named_volume if reference.volumes > 1 else None
        if of_volume != index:
            reason = f"{what}: a contour names one slice of the image and lies on another"
            raise RegionError(path, reason, "give the structure set of this very series")
    mask = drawn("POLYGON", flat, reference, path, what)
    return index, volume, off, mask


def _combined(masks: Sequence[Mask], kind: str, path: Path, what: str) -> Mask:
    """Area of the contours on one slice (PS3.3 C.8.8.6.3)."""
    if kind == _XOR:
        inside = masks[0].copy()
        for mask in masks[1:]:
            inside ^= mask
        return inside
    combined = even_odd(masks)
    if combined is None:
        reason = f"{what}: two contours on one slice cross or are the same"
        raise RegionError(path, reason, "draw a hole inside its outline, or parts side by side")
    return combined
