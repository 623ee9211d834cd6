"""What all annotation files share: their limits, their entries, boxes and polygons to `Mark`s.

Coordinates of a box are those of COCO and LabelMe: x is the column and y the row, the pixel with
index k reaches from k to k + 1, and a pixel is marked where its centre lies inside.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StringConstraints, ValidationError

from medqa.errors import RegionError
from medqa.image import TOLERANCE_VOXELS, Image
from medqa.regions.contours import check_inside, fill
from medqa.regions.grid import Mark, crop

__all__ = [
    "CORNER",
    "Name",
    "Number",
    "area_mark",
    "box_mark",
    "check_size",
    "content",
    "of_reference",
    "on_slice",
    "one_slice",
    "polygon_mark",
    "validated",
]

#: What a pixel's centre has for coordinates that count from its corner.
CORNER = 0.5

# More points than a careful reader draws, and few enough to be filled at once.
_MAX_POINTS = 10_000

#: Largest annotation file that is read, in bytes; LabelMe may keep the whole picture inside.
MAX_TEXT = 32 * 2**20

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Model = TypeVar("Model", bound=BaseModel)


def content(path: Path) -> bytes:
    """Content of an annotation file of at most `MAX_TEXT` bytes."""
    with path.open("rb") as file:
        data = file.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        reason = f"is larger than the {MAX_TEXT >> 20} MiB that an annotation file may have"
        raise RegionError(path, reason, "give the annotations of this image alone")
    return data


def validated(model: type[Model], value: object, what: str, source: object, mend: str) -> Model:
    """Check an entry of a file against its model; an error names the entry and the field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # Of a value that fits none of several models, the one that it came closest to.
        first = max(error.errors(), key=lambda one: len(one["loc"]))
        fields = [str(part) for part in first["loc"]]
        place = ".".join(part for part in fields if re.fullmatch(r"[a-zA-Z0-9]\w*", part)) or "it"
        reason = f"{what}: {place}: {first['msg']}"
        raise RegionError(source, reason, mend) from error


def on_slice(index: int | None, reference: Image, what: str, source: object) -> int:
    """Check the slice that an entry names; only an image of one slice needs no name."""
    slices = reference.shape[0]
    if index is None and slices > 1:
        reason = f"{what}: no slice given, and the image has {slices}"
        raise RegionError(source, reason, "name the slice, counted from 0")
    if not 0 <= (index or 0) < slices:
        reason = f"{what}: slice {index} is not among the image's {slices}"
        raise RegionError(source, reason, "count slices from 0")
    return index or 0


def one_slice(reference: Image, kind: str, source: object) -> None:
    """Refuse an image of several slices for a kind of file that marks pictures."""
    if reference.shape[0] > 1:
        reason = f"{kind} marks single pictures, and the image has {reference.shape[0]} slices"
        raise RegionError(source, reason, "give a segmentation, or boxes with their slices")


def check_size(columns: float | None, rows: float | None, reference: Image, source: object) -> None:
    """Refuse what was drawn on an image of another size; None is not stated."""
    ours = (reference.shape[2], reference.shape[1])
    theirs = (ours[0] if columns is None else columns, ours[1] if rows is None else rows)
    if theirs != ours:
        reason = f"was drawn on {theirs[1]:g} x {theirs[0]:g} pixels, the image has "
        reason += f"{ours[1]} x {ours[0]}"
        raise RegionError(source, reason, "annotate this very image, not a scaled copy")


def of_reference(names: Sequence[str], reference: Image, source: object) -> int:
    """Which of the image files that an annotation file names is the reference.

    The only one; or the one with the reference's file name, with or without its extension.

    Raises
    ------
    RegionError
        Several, and none or more than one has that name.
    """
    if len(names) == 1:
        return 0
    ours = Path(reference.source)
    # The file may come from another system, so that either kind of slash separates its folders.
    bare = [PureWindowsPath(PurePosixPath(name).name).name for name in names]
    found = [i for i, name in enumerate(bare) if name == ours.name]
    found = found or [i for i, name in enumerate(bare) if PurePosixPath(name).stem == ours.stem]
    if len(found) != 1:
        count = f"{len(found)} of them have" if found else "none of them has"
        reason = f"is about {len(names)} images, and {count} the name of this one"
        raise RegionError(source, reason, "give the annotations of this image alone")
    return found[0]


def box_mark(
    name: str, corners: Sequence[float], index: int, reference: Image, what: str, source: object
) -> Mark:
    """Mark of a box.

    Parameters
    ----------
    corners
        x1, y1, x2, y2.
    index
        Slice.
    what
        What to call the entry in messages.

    Raises
    ------
    RegionError
        Corners in another order, outside the image by `TOLERANCE_VOXELS` or more, or no pixel.
    """
    (x1, y1, x2, y2), (rows, columns) = corners, reference.shape[1:]
    near = TOLERANCE_VOXELS
    if -near < x1 < x2 < columns + near and -near < y1 < y2 < rows + near:
        # From the first to the last centre inside: x1 <= column + 0.5 < x2.
        left, top = max(0, math.ceil(x1 - 0.5)), max(0, math.ceil(y1 - 0.5))
        right, bottom = min(columns, math.ceil(x2 - 0.5)), min(rows, math.ceil(y2 - 0.5))
        if left < right and top < bottom:
            return Mark(name, np.ones((1, bottom - top, right - left), bool), (index, top, left))
    reason = f"{what}: bbox {list(corners)} is empty or outside the image"
    mend = f"give x1 < x2 <= {columns} and y1 < y2 <= {rows}, in pixels from 0"
    raise RegionError(source, reason, mend)


def polygon_mark(
    name: str,
    polygons: Sequence[NDArray[np.float64]],
    reference: Image,
    what: str,
    source: object,
) -> Mark:
    """Mark of everything that lies in one or more polygons, on an image of one slice.

    Parameters
    ----------
    polygons
        Each (points, 2), x and y.
    what
        What to call the entry in messages.

    Raises
    ------
    RegionError
        Fewer than 3 or too many points, outside the image, or no pixel.
    """
    for points in polygons:
        if not 3 <= len(points) <= _MAX_POINTS:
            reason = f"{what}: a polygon of {len(points)} points"
            raise RegionError(source, reason, f"give 3 to {_MAX_POINTS} points")
        check_inside(points - CORNER, reference, source, what)
    # Only the pixels around them: a file may hold thousands of small ones.
    every = np.concatenate(polygons)
    low = np.clip(np.floor(every.min(axis=0)), 0, None)  # (column, row)
    high = np.minimum(np.ceil(every.max(axis=0)), [reference.shape[2], reference.shape[1]])
    columns, rows = (int(n) for n in np.maximum(high - low, 0))
    mask = np.zeros((rows, columns), bool)
    try:
        for points in polygons:
            mask |= fill([points - low - CORNER], (rows, columns))
    except ValueError as error:
        reason = f"{what}: a polygon is too long to be filled"
        raise RegionError(source, reason, "give fewer points", str(error)) from error
    return area_mark(name, mask, what, source, (0, int(low[1]), int(low[0])))


def area_mark(
    name: str,
    mask: NDArray[np.bool_],
    what: str,
    source: object,
    origin: tuple[int, int, int] = (0, 0, 0),
) -> Mark:
    """Mark of a (rows, columns) mask on an image of one slice; RegionError where it is empty."""
    if not mask.any():
        reason = f"{what}: marks no pixel"
        raise RegionError(source, reason, "draw it around a pixel's centre, or leave it out")
    return crop(name, mask[None], origin)
