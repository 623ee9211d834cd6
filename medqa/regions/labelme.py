"""LabelMe annotations to `Mark`s: rectangles, polygons and circles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from medqa.errors import RegionError
from medqa.image import Image
from medqa.regions.contours import check_inside, circle
from medqa.regions.entries import (
    CORNER,
    Name,
    Number,
    area_mark,
    box_mark,
    check_size,
    one_slice,
    polygon_mark,
    validated,
)
from medqa.regions.grid import Mark

__all__ = ["read_labelme"]


class _Part(BaseModel):
    """A part of the file; what else it holds is for others."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Picture(_Part):
    imageWidth: Number | None = None  # noqa: N815 (LabelMe's own names)
    imageHeight: Number | None = None  # noqa: N815
    shapes: list[Any]


class _Shape(_Part):
    label: Name
    points: list[tuple[Number, Number]]
    shape_type: str = "polygon"


def read_labelme(document: Mapping[str, Any], reference: Image, path: Path) -> Iterator[Mark]:
    """Read the shapes of a LabelMe file: ``rectangle``, ``polygon`` and ``circle``.

    Raises
    ------
    RegionError
        An image of several slices or of another size, or a shape of another type: a line or a
        point marks no area.
    """
    one_slice(reference, "LabelMe", path)
    mend = "save it with LabelMe"
    picture = validated(_Picture, document, "the file", path, mend)
    check_size(picture.imageWidth, picture.imageHeight, reference, path)
    for number, one in enumerate(picture.shapes, start=1):
        what = f"shape {number}"
        yield _mark(validated(_Shape, one, what, path, mend), reference, what, path)


def _mark(shape: _Shape, reference: Image, what: str, path: Path) -> Mark:
    points = np.array(shape.points, float).reshape(-1, 2)
    if shape.shape_type == "polygon":
        return polygon_mark(shape.label, [points], reference, what, path)
    if shape.shape_type not in ("rectangle", "circle"):
        reason = f"{what}: is of a type that marks no area, or that is not read"
        mend = "draw a rectangle, a polygon or a circle"
        raise RegionError(path, reason, mend, shape.shape_type)
    if len(points) != 2:
        reason = f"{what}: a {shape.shape_type} of {len(points)} points"
        raise RegionError(path, reason, "give two points")
    if shape.shape_type == "circle":
        centre, edge = points - CORNER
        radius = np.hypot(*(edge - centre))
        check_inside(np.stack([centre - radius, centre + radius]), reference, path, what)
        return area_mark(shape.label, circle(centre, edge, reference.shape[1:]), what, path)
    corners = [float(v) for v in (*points.min(axis=0), *points.max(axis=0))]
    return box_mark(shape.label, corners, 0, reference, what, path)
