"""Softcopy presentation states (PS3.3 A.33) to `Mark`s: the graphics of their annotations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import (
    ColorSoftcopyPresentationStateStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    PseudoColorSoftcopyPresentationStateStorage,
)

from medqa.dicom.files import load
from medqa.dicom.pixels import numbers
from medqa.errors import RegionError
from medqa.image import Image
from medqa.regions.contours import (
    CORNER,
    Mask,
    Points,
    check_inside,
    drawn,
    frame_numbers,
    is_closed,
    points_of,
    slices_of_instances,
    stacked,
)
from medqa.regions.grid import Mark

__all__ = ["PRESENTATION_STATES", "read_presentation"]

PRESENTATION_STATES = (
    GrayscaleSoftcopyPresentationStateStorage,
    ColorSoftcopyPresentationStateStorage,
    PseudoColorSoftcopyPresentationStateStorage,
)
"""SOP classes of presentation states that annotate the images they show."""

Images = list[tuple[str, list[int]]]
"""SOP instance UIDs, each with its frame numbers, from 1; none means every frame."""


def read_presentation(path: Path, reference: Image) -> Iterator[Mark]:
    """Read the graphics of a softcopy presentation state (PS3.3 C.10.5): one mark for each.

    Circles, ellipses and closed polylines mark what they enclose, filled or not. Points and open
    lines (arrows, rulers) have no area and are passed over. A graphic is called after its
    tracking identifier, else the texts beside it, else ``graphic 1`` and so on.

    Raises
    ------
    RegionError
        No graphic has an area; one was not drawn on the reference, lies outside it, in units that
        cannot be placed, or as an interpolated curve, whose course is left to the viewer.
    """
    ds, _ = load(path)
    everything = [
        image
        for series in ds.get("ReferencedSeriesSequence") or []
        for image in _images(series, "ReferencedImageSequence")
    ]
    number = 0
    found = False
    for annotation in ds.get("GraphicAnnotationSequence") or []:
        images = _images(annotation, "ReferencedImageSequence") or everything
        texts = _texts(annotation)
        for graphic in annotation.get("GraphicObjectSequence") or []:
            number += 1
            what = f"graphic {number}"
            points = points_of(graphic.GraphicData, 2, path, what)
            if _has_area(graphic, points, path, what):
                found = True
                name = str(graphic.get("TrackingID") or "").strip() or texts or what
                slices = slices_of_instances(images, reference, path, what)
                mask = _area(graphic, points, ds, reference, path, what)
                yield stacked(name, dict.fromkeys(slices, mask), None, path, what)
    if not found:
        reason = "holds no graphic that has an area"
        raise RegionError(path, reason, "give one with closed outlines, circles or ellipses")


def _images(item: Dataset, keyword: str) -> Images:
    return [
        (str(image.ReferencedSOPInstanceUID), frame_numbers(image))
        for image in item.get(keyword) or []
    ]


def _texts(annotation: Dataset) -> str:
    """Texts of an annotation, in one line."""
    texts = (
        str(text.get("UnformattedTextValue") or "")
        for text in annotation.get("TextObjectSequence") or []
    )
    return " ".join(" ".join(texts).split())


def _has_area(graphic: Dataset, points: Points, path: Path, what: str) -> bool:
    kind = str(graphic.GraphicType)
    if kind == "POINT":
        return False
    if kind in ("POLYLINE", "INTERPOLATED") and not is_closed(points):
        if graphic.get("GraphicFilled") == "Y":
            reason = f"{what}: is filled, but its outline does not end where it began"
            raise RegionError(path, reason, "close the outline (PS3.3 C.10.5.2)")
        return False
    return True


def _area(
    graphic: Dataset, points: Points, ds: Dataset, reference: Image, path: Path, what: str
) -> Mask:
    units = graphic.get("GraphicAnnotationUnits")
    if units == "DISPLAY":
        points = _displayed(points, ds, path, what)
    elif units != "PIXEL":
        reason = f"{what}: its units are not PIXEL or DISPLAY"
        raise RegionError(path, reason, "draw it on the image")
    flat = points + CORNER
    check_inside(flat, reference, path, what)
    return drawn(str(graphic.GraphicType), flat, reference, path, what)


def _displayed(points: Points, ds: Dataset, path: Path, what: str) -> Points:
    """Fractions of the displayed area to columns and rows (PS3.3 C.10.4, C.10.5.1.2).

    The corners of the displayed area are the first and last pixel shown, counted from 1.
    """
    areas = ds.get("DisplayedAreaSelectionSequence") or []
    turned = int(ds.get("ImageRotation") or 0) or ds.get("ImageHorizontalFlip") == "Y"
    keywords = "DisplayedAreaTopLeftHandCorner", "DisplayedAreaBottomRightHandCorner"
    corners = [tuple(n for keyword in keywords for n in numbers(area, keyword)) for area in areas]
    if turned or len(set(corners)) != 1 or len(corners[0]) != 4:
        reason = f"{what}: is placed on a display whose area is turned or not the same for all"
        raise RegionError(path, reason, "draw it on the image, in units of PIXEL")
    first, last = np.array(corners[0][:2]) - 1, np.array(corners[0][2:])
    if not (first < last).all():
        raise RegionError(path, f"{what}: its displayed area is empty", "export it again")
    placed: Points = first + points * (last - first)
    return placed
