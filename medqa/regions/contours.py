"""Outlines to pixels: which pixels a drawn shape encloses, and which slice it was drawn on.

A pixel is inside a shape where its centre is. Points are (column, row) with pixel centres at whole
numbers, as the array is indexed. Points and open lines enclose nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom import Dataset

from medqa.dicom.pixels import numbers
from medqa.errors import RegionError
from medqa.image import TOLERANCE_VOXELS, Code, Image
from medqa.regions.grid import Mark, volume_shape

__all__ = [
    "CORNER",
    "MAX_CROSSINGS",
    "Mask",
    "Points",
    "check_inside",
    "circle",
    "drawn",
    "ellipse",
    "even_odd",
    "fill",
    "frame_numbers",
    "is_closed",
    "onto_slice",
    "points_of",
    "slices_of_instances",
    "stacked",
]

Points = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Most rows that the edges of one outline may cross in all: a thousand edges across the largest
#: mammogram. A small file can ask for more than any machine will do.
MAX_CROSSINGS = 2**22

#: Where DICOM has (0, 0) of an image: on the corner of its first pixel, not on the pixel's centre
#: (PS3.3 C.10.5.1.2, C.18.6.1.1).
CORNER = -0.5

# No pixel and no millimetre of any patient is as far; arithmetic with it stays finite.
_FARTHEST = 1e6
# A centre that lies on an ellipse is inside, whatever the rounding.
_ON_EDGE = 1e-9


def fill(polygons: Iterable[Points], shape: tuple[int, int]) -> Mask:
    """Pixels inside polygons, by the even-odd rule.

    A pixel is inside where a ray from its centre crosses an odd number of edges. So an inner
    polygon is a hole, and a channel that is drawn there and back (a keyhole) vanishes. A centre
    on an edge is inside at the left and on top, outside at the right and at the bottom: polygons
    that share an edge share no pixel.

    Parameters
    ----------
    polygons
        Each (n, 2) finite (column, row), closed from the last point to the first.
    shape
        (rows, columns).

    Returns
    -------
    (rows, columns) bool.

    Raises
    ------
    ValueError
        The edges of a polygon cross more than `MAX_CROSSINGS` rows.
    """
    rows, columns = shape
    # One column more, for what is crossed at the right of the image.
    crossed = np.zeros(rows * (columns + 1), np.uint8)
    for polygon in polygons:
        np.add.at(crossed, _crossings(polygon, rows, columns), 1)  # 255 + 1 is even too
    parity = crossed.reshape(rows, columns + 1)[:, :columns] & 1
    return np.bitwise_xor.accumulate(parity, axis=1).astype(bool)


def _crossings(polygon: Points, rows: int, columns: int) -> NDArray[np.int64]:
    """First pixel at the right of each place where an edge crosses a row of centres, as index."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    # From top to bottom, so that an edge crosses in the same place whichever way it is drawn.
    downwards = (start[:, 1] <= end[:, 1])[:, None]
    top, bottom = np.where(downwards, start, end), np.where(downwards, end, start)
    first, last = (np.clip(np.ceil(p[:, 1]), 0, rows).astype(np.int64) for p in (top, bottom))
    counts = last - first
    total = int(counts.sum())
    if total > MAX_CROSSINGS:
        raise ValueError(f"its edges cross {total} rows, more than the {MAX_CROSSINGS} allowed")
    edge = np.repeat(np.arange(len(polygon)), counts)
    row = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    x1, y1, x2, y2 = (p[edge, axis] for p in (top, bottom) for axis in (0, 1))
    column = x1 + (row - y1) * ((x2 - x1) / (y2 - y1))
    index: NDArray[np.int64] = row * (columns + 1) + np.clip(np.ceil(column), 0, columns).astype(
        int
    )
    return index


def ellipse(ends: Points, shape: tuple[int, int]) -> Mask:
    """Pixels whose centre lies in or on an ellipse.

    Parameters
    ----------
    ends
        (4, 2) finite (column, row): the ends of one axis, then of the other. On pixels that are
        not square they may be any two conjugate diameters.
    shape
        (rows, columns).
    """
    rows, columns = shape
    mask = np.zeros(shape, bool)
    centre = (ends[0] + ends[1]) / 2
    axes = np.column_stack([ends[1] - ends[0], ends[3] - ends[2]]) / 2
    if np.linalg.matrix_rank(axes) < 2:  # a line or a point
        return mask
    reach = np.hypot(axes[:, 0], axes[:, 1]) + 1
    low = np.clip(np.floor(centre - reach), 0, (columns, rows)).astype(int)
    high = np.clip(np.ceil(centre + reach) + 1, 0, (columns, rows)).astype(int)
    row, column = np.ogrid[low[1] : high[1], low[0] : high[0]]
    (a, b), (c, d) = np.linalg.inv(axes)
    x, y = column - centre[0], row - centre[1]
    mask[low[1] : high[1], low[0] : high[0]] = (a * x + b * y) ** 2 + (
        c * x + d * y
    ) ** 2 <= 1 + _ON_EDGE
    return mask


def circle(centre: Points, edge: Points, shape: tuple[int, int]) -> Mask:
    """Pixels whose centre lies in or on a circle, given by its centre and a point on it."""
    radius = float(np.hypot(*(edge - centre)))
    ends = centre + radius * np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
    return ellipse(ends, shape)


def drawn(kind: str, points: Points, reference: Image, source: object, what: str) -> Mask:
    """Area of a shape that DICOM describes by a graphic type (PS3.3 C.10.5.2, C.18.6.1.2, C.18.9).

    Parameters
    ----------
    kind
        POLYLINE or POLYGON, closed; CIRCLE, its centre and a point on it; ELLIPSE, the ends of
        its axes.
    points
        (n, 2) column and row.
    source, what
        What to call the file, and the shape in it, in messages.

    Returns
    -------
    (rows, columns) bool.

    Raises
    ------
    RegionError
        Another graphic type, a wrong number of points, or too complicated.
    """
    shape = (reference.shape[1], reference.shape[2])
    needed = {"CIRCLE": 2, "ELLIPSE": 4}.get(kind)
    if needed is not None and len(points) != needed:
        reason = f"{what}: has {len(points)} points, a {kind} has {needed}"
        raise RegionError(source, reason, "the file is damaged: export it again")
    if kind == "CIRCLE":
        return circle(points[0], points[1], shape)
    if kind == "ELLIPSE":
        return ellipse(points, shape)
    if kind not in ("POLYLINE", "POLYGON"):
        named = kind if kind in ("INTERPOLATED", "ELLIPSOID") else "it says"
        reason = f"{what}: the graphic type {named} defines no area to the pixel"
        raise RegionError(source, reason, "draw it as a closed polyline, circle or ellipse")
    try:
        return fill([points], shape)
    except ValueError as cause:
        raise RegionError(source, f"{what}: {cause}", "draw it with fewer points") from cause


def is_closed(points: NDArray[np.float64]) -> bool:
    """Whether a line of (n, 2) or (n, 3) points ends where it began and so encloses an area."""
    return len(points) >= 4 and bool(np.array_equal(points[0], points[-1]))


def even_odd(masks: Sequence[Mask]) -> Mask | None:
    """Combine the areas of one slice: what lies inside another is a hole, an island in it is not.

    Returns
    -------
    None where two of them cross or are the same: then it is not said what is meant.
    """
    deepest = np.zeros(masks[0].shape, np.intp)
    inside = np.zeros(masks[0].shape, bool)
    sizes = [int(np.count_nonzero(mask)) for mask in masks]
    order = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: -sizes[i])
    # From the largest: each must lie as a whole in the innermost of those before it.
    for number, index in enumerate(order, start=1):
        below = deepest[masks[index]]
        around = int(below[0])
        if (below != around).any() or (around and sizes[order[around - 1]] == sizes[index]):
            return None
        deepest[masks[index]] = number
        inside ^= masks[index]
    return inside


def points_of(values: ArrayLike, dimensions: int, source: object, what: str) -> Points:
    """Coordinates as they lie in a file, one after another, as (n, dimensions).

    Parameters
    ----------
    values
        The coordinates; a number that is a text is read.
    source, what
        What to call the file, and the shape in it, in messages.

    Raises
    ------
    RegionError
        None at all, half a point, NaN, infinite or farther than anything is.
    """
    flat = np.atleast_1d(np.asarray(values, np.float64))
    if flat.size == 0 or flat.size % dimensions or not np.abs(flat).max() < _FARTHEST:
        reason = f"{what}: its coordinates are missing, incomplete, not finite or absurd"
        raise RegionError(source, reason, "the file is damaged: export it again")
    return flat.reshape(-1, dimensions)


def check_inside(points: Points, reference: Image, source: object, what: str) -> None:
    """Refuse (column, row) outside the image, whose pixels reach half a pixel past their centres.

    Raises
    ------
    RegionError
        A point lies outside by `TOLERANCE_VOXELS` or more.
    """
    rows, columns = reference.shape[1:]
    beyond = np.maximum(CORNER - points, points - (columns + CORNER, rows + CORNER)).max()
    if not beyond < TOLERANCE_VOXELS:
        reason = f"{what}: lies up to {beyond:.1f} pixels outside the image"
        raise RegionError(source, reason, "give what was drawn on this very image")


def onto_slice(
    points_mm: Points, reference: Image, source: object, what: str
) -> tuple[int, float, Points]:
    """Slice of the first volume that a shape lies on, and where.

    Parameters
    ----------
    points_mm
        (n, 3) in the patient, mm, axes left-posterior-superior.
    source, what
        What to call the file, and the shape in it, in messages.

    Returns
    -------
    Index of the slice; how far the shape lies from its middle, in slices, at most one half; and
    (n, 2) column and row.

    Raises
    ------
    RegionError
        The image's position is unknown, or a point lies half a slice or more from the slice that
        the others lie on, or outside the image.
    """
    if reference.affine is None:
        reason = f"{what}: is drawn in the patient, and the position of the image is unknown"
        raise RegionError(source, reason, "give an image that has a position")
    homogeneous = np.column_stack([points_mm * (-1.0, -1.0, 1.0), np.ones(len(points_mm))])
    solved = np.linalg.solve(reference.affine, homogeneous.T).astype(np.float64, copy=False)
    indices = solved[:3].T
    along = indices[:, 0]
    index = int(np.rint(np.median(along)))
    mend = "give what was drawn on the slices of this very image"
    if not 0 <= index < volume_shape(reference)[0]:
        past = max(-along.min(), along.max() - volume_shape(reference)[0] + 1)
        reason = f"{what}: lies {past:.1f} slices outside the image"
        raise RegionError(source, reason, mend)
    if not np.abs(along - index).max() < 0.5:
        reason = f"{what}: does not lie in the plane of a slice"
        raise RegionError(source, reason, mend)
    points = indices[:, [2, 1]]
    check_inside(points, reference, source, what)
    return index, float(np.mean(along) - index), points


def frame_numbers(image: Dataset) -> list[int]:
    """Frame numbers, from 1, of a referenced image; none means every frame (PS3.3 10.3)."""
    return [int(number) for number in numbers(image, "ReferencedFrameNumber")]


def slices_of_instances(
    named: Iterable[tuple[str, Sequence[int]]], reference: Image, source: object, what: str
) -> list[int]:
    """Slices of the reference that a shape says it was drawn on.

    Parameters
    ----------
    named
        SOP instance UID and frame numbers, from 1, of each image; no frame number means every
        frame (PS3.3 10.3). Those that are not the reference's are left out.
    source, what
        What to call the file, and the shape in it, in messages.

    Raises
    ------
    RegionError
        None of them is the reference's, or it is not known which slice a frame is.
    """
    ours = reference.identifiers.sop_uids
    count = reference.shape[0]
    slices: set[int] = set()
    for uid, frames in named:
        if uid not in ours:
            continue
        if len(ours) == count and set(frames) <= {1}:
            slices.add(ours.index(uid))
        elif len(ours) == 1 and not frames:
            slices.update(range(count))
        elif len(ours) == 1 and set(frames) <= set(reference.identifiers.frames):
            slices.update(map(reference.identifiers.frames.index, frames))
        else:
            reason = f"{what}: it is not known which slice of the image its frame is"
            raise RegionError(source, reason, "give the regions as a DICOM SEG or RTSTRUCT")
    if not slices:
        reason = f"{what}: was not drawn on this image: it names none of its instances"
        raise RegionError(source, reason, "give what was drawn on this very image")
    return sorted(slices)


def stacked(
    name: str, planes: Mapping[int, Mask], code: Code | None, source: object, what: str
) -> Mark:
    """Mark of the areas on slices.

    Parameters
    ----------
    planes
        (rows, columns) bool for each slice of the reference that has any.
    source, what
        What to call the file, and the shape in it, in messages.

    Raises
    ------
    RegionError
        No centre of a pixel lies inside.
    """
    filled = {index: plane for index, plane in planes.items() if plane.any()}
    if not filled:
        reason = f"{what}: encloses the centre of no pixel"
        raise RegionError(source, reason, "leave it out, or draw it larger")
    first, last = min(filled), max(filled)
    rows = np.flatnonzero(np.any([plane.any(axis=1) for plane in filled.values()], axis=0))
    columns = np.flatnonzero(np.any([plane.any(axis=0) for plane in filled.values()], axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    mask = np.zeros((last - first + 1, rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]), bool)
    for index, plane in filled.items():
        mask[index - first] = plane[box]
    return Mark(name, mask, (first, int(rows[0]), int(columns[0])), code)
