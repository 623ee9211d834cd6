"""Measurement reports (PS3.16 TID 1500) to `Mark`s: the image regions of their measurement groups.

A region is an outline on an image (SCOORD, PS3.3 C.18.6) or in the patient (SCOORD3D, C.18.9).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExtensibleSRStorage,
)

from medqa.dicom.files import load
from medqa.errors import RegionError
from medqa.image import Code, Image
from medqa.regions.codes import code_in
from medqa.regions.contours import (
    CORNER,
    Mask,
    Points,
    check_inside,
    drawn,
    frame_numbers,
    is_closed,
    onto_slice,
    points_of,
    slices_of_instances,
    stacked,
)
from medqa.regions.grid import Mark, check_frame_of_reference, volume_shape

__all__ = ["REPORTS", "read_report"]

REPORTS = (
    EnhancedSRStorage,
    ComprehensiveSRStorage,
    Comprehensive3DSRStorage,
    ExtensibleSRStorage,
)
"""SOP classes of structured reports that may hold coordinates."""

# PS3.16 CID 6147 and TID 1410, 1411: all DCM.
_GROUP = "125007"
_TRACKING_IDENTIFIER, _FINDING = "112039", "121071"
# Referenced Segment, Referenced Segmentation Frame, Region in Space.
_ELSEWHERE = ("121191", "121214", "130488")
_OUTLINES = ("SCOORD", "SCOORD3D")


def read_report(path: Path, reference: Image) -> Iterator[Mark]:
    """Read the image regions of a measurement report: one mark for each measurement group.

    A group's region is its own coordinates (TID 1410, 1411), else those that its measurements
    were made on (TID 300). Points, and the lines that lengths are measured on, have no area:
    groups of these only are passed over. The mark is called after the tracking identifier,
    else the finding.

    Raises
    ------
    RegionError
        No group has an area; one is not drawn on the reference, or in another frame of reference,
        outside it, as an open outline, or as a segment of another object.
    """
    ds, _ = load(path)
    found = False
    for number, group in enumerate(_groups(ds), start=1):
        what = f"measurement group {number}"
        planes: dict[int, Mask] = {}
        for outline in _outlines(group, path, what):
            for index, mask in _placed(outline, reference, path, what):
                if index in planes and (planes[index] & mask).any():
                    reason = f"{what}: two outlines on one slice overlap"
                    raise RegionError(path, reason, "give each region a group of its own")
                planes[index] = planes[index] | mask if index in planes else mask
        if planes:
            found = True
            name, code = _name(group)
            yield stacked(name or what, planes, code, path, what)
    if not found:
        reason = "holds no measurement group (TID 1500) with an image region that has an area"
        raise RegionError(path, reason, "give a report with outlines, or the DICOM SEG")


def _groups(ds: Dataset) -> Iterator[Dataset]:
    """Measurement groups in the order of the report."""
    waiting = [ds]
    while waiting:
        item = waiting.pop()
        if item.get("ValueType") == "CONTAINER" and _is(item, _GROUP):
            yield item
        else:
            waiting += reversed(item.get("ContentSequence") or [])


def _is(item: Dataset, *values: str) -> bool:
    """Whether an item's concept name is one of these DCM codes."""
    name = code_in(item, "ConceptNameCodeSequence")
    return name is not None and name.scheme == "DCM" and name.value in values


def _content(item: Dataset) -> Sequence[Dataset]:
    return tuple(item.get("ContentSequence") or ())


def _outlines(group: Dataset, path: Path, what: str) -> Sequence[Dataset]:
    """Coordinates of a group, else those, each once, that its measurements are inferred from."""
    own = [item for item in _content(group) if item.get("ValueType") in _OUTLINES]
    if own:
        return own
    if any(_is(item, *_ELSEWHERE) for item in _content(group)):
        reason = f"{what}: its region is a segment or region of another object"
        raise RegionError(path, reason, "give that object itself, such as the DICOM SEG")
    measured: dict[tuple[object, ...], Dataset] = {}
    for measurement in _content(group):
        if measurement.get("ValueType") == "NUM":
            for item in _content(measurement):
                if item.get("ValueType") in _OUTLINES:
                    drawing = tuple(item.GraphicData), *map(str, _images(item))
                    frame = item.get("ReferencedFrameOfReferenceUID")
                    measured.setdefault((item.get("GraphicType"), frame, *drawing), item)
    return tuple(measured.values())


def _name(group: Dataset) -> tuple[str, Code | None]:
    """Tracking identifier, else meaning of the finding; and the code of the finding."""
    texts = [i for i in _content(group) if _is(i, _TRACKING_IDENTIFIER)]
    findings = [code_in(i, "ConceptCodeSequence") for i in _content(group) if _is(i, _FINDING)]
    finding = findings[0] if findings else None
    text = str(texts[0].get("TextValue") or "").strip() if texts else ""
    return text or (finding.meaning if finding else ""), finding


def _placed(item: Dataset, reference: Image, path: Path, what: str) -> Iterator[tuple[int, Mask]]:
    """Each slice that an outline lies on, with its area; none where it has no area."""
    kind = str(item.get("GraphicType"))
    in_patient = item.get("ValueType") == "SCOORD3D"
    points = points_of(item.GraphicData, 3 if in_patient else 2, path, what)
    if kind in ("POINT", "MULTIPOINT") or _is_line(item, kind, points, path, what):
        return
    if in_patient:
        check_frame_of_reference(item.get("ReferencedFrameOfReferenceUID"), reference, path)
        index, _, flat = onto_slice(points, reference, path, what)
        slices = list(range(index, reference.shape[0], volume_shape(reference)[0]))
    else:
        slices = slices_of_instances(_images(item), reference, path, what)
        flat = points + CORNER
        check_inside(flat, reference, path, what)
    mask = drawn(kind, flat, reference, path, what)
    yield from ((index, mask) for index in slices)


def _is_line(item: Dataset, kind: str, points: Points, path: Path, what: str) -> bool:
    """Whether it is what a length was measured on; an outline that was not closed is an error."""
    if kind not in ("POLYLINE", "POLYGON") or is_closed(points):
        return False
    measured = item.get("RelationshipType") == "INFERRED FROM"
    if kind == "POLYGON" or (not measured and len(np.unique(points, axis=0)) > 2):
        reason = f"{what}: its outline does not end where it began"
        raise RegionError(path, reason, "close the outline (PS3.3 C.18.6.1.2)")
    return True


def _images(item: Dataset) -> Iterator[tuple[str, list[int]]]:
    """SOP instance and frame numbers of the image that coordinates were selected from."""
    for source in _content(item):
        for image in source.get("ReferencedSOPSequence") or ():
            yield str(image.ReferencedSOPInstanceUID), frame_numbers(image)
