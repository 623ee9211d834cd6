"""COCO annotations to `Mark`s: boxes, polygons and run lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, StrictInt, StrictStr

from medqa.errors import RegionError
from medqa.image import Image
from medqa.regions.entries import (
    Name,
    Number,
    area_mark,
    box_mark,
    check_size,
    of_reference,
    one_slice,
    polygon_mark,
    validated,
)
from medqa.regions.grid import Mark

__all__ = ["read_coco"]

Id = StrictInt | StrictStr


class _Part(BaseModel):
    """A part of the file; what else it holds is for others."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Picture(_Part):
    id: Id
    file_name: Name
    width: StrictInt | None = None
    height: StrictInt | None = None


class _Category(_Part):
    id: Id
    name: Name


class _Runs(_Part):
    """Run lengths, column by column, first of pixels outside; plain or compressed."""

    size: tuple[StrictInt, StrictInt]
    counts: list[NonNegativeInt] | StrictStr


class _Entry(_Part):
    category_id: Id
    bbox: tuple[Number, Number, Number, Number] | None = None
    segmentation: _Runs | list[list[Number]] | None = None


def read_coco(document: Mapping[str, Any], reference: Image, path: Path) -> Iterator[Mark]:
    """Read the annotations of one image from a COCO file (https://cocodataset.org/#format-data).

    The image is the only one in the file, or the one with the reference's file name. The
    segmentation of an annotation holds, polygons or run lengths; where it has none, its box.

    Raises
    ------
    RegionError
        An image of several slices or of another size, or an entry that cannot be used.
    """
    one_slice(reference, "COCO", path)
    mend = "write it as https://cocodataset.org/#format-data says"
    parts = {key: document.get(key) for key in ("images", "annotations", "categories")}
    for key, part in parts.items():
        if not isinstance(part, list) or not part:
            raise RegionError(path, f'holds no list "{key}"', mend)
    pictures = [
        validated(_Picture, one, f"image {number}", path, mend)
        for number, one in enumerate(document["images"], start=1)
    ]
    picture = pictures[of_reference([one.file_name for one in pictures], reference, path)]
    check_size(picture.width, picture.height, reference, path)
    categories = [
        validated(_Category, one, f"category {number}", path, mend)
        for number, one in enumerate(document["categories"], start=1)
    ]
    names = {one.id: one.name for one in categories}
    for number, one in enumerate(document["annotations"], start=1):
        what = f"annotation {number}"
        if not isinstance(one, dict) or "image_id" not in one:
            raise RegionError(path, f"{what}: names no image", mend)
        if one["image_id"] != picture.id:
            continue
        entry = validated(_Entry, one, what, path, mend)
        if entry.category_id not in names:
            raise RegionError(path, f"{what}: its category is not in the file", mend)
        yield _mark(names[entry.category_id], entry, reference, what, path)


def _mark(name: str, entry: _Entry, reference: Image, what: str, path: Path) -> Mark:
    if isinstance(entry.segmentation, _Runs):
        return _runs_mark(name, entry.segmentation, reference, what, path)
    if entry.segmentation:
        if any(len(flat) % 2 for flat in entry.segmentation):
            raise RegionError(path, f"{what}: a polygon ends after an x", "give pairs of x, y")
        polygons = [np.reshape(flat, (-1, 2)).astype(float) for flat in entry.segmentation]
        return polygon_mark(name, polygons, reference, what, path)
    if entry.bbox is None:
        raise RegionError(path, f"{what}: neither bbox nor segmentation", "give one of them")
    x, y, width, height = entry.bbox
    return box_mark(name, (x, y, x + width, y + height), 0, reference, what, path)


def _runs_mark(name: str, runs: _Runs, reference: Image, what: str, path: Path) -> Mark:
    rows, columns = runs.size
    check_size(columns, rows, reference, path)
    counts = _counts(runs.counts) if isinstance(runs.counts, str) else runs.counts
    if counts is None or min(counts, default=0) < 0 or sum(counts) != rows * columns:
        reason = f"{what}: its runs do not make {rows} x {columns} pixels"
        raise RegionError(path, reason, "save it again")
    inside: NDArray[np.bool_] = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return area_mark(name, inside.reshape(columns, rows).T, what, path)


def _counts(packed: str) -> Sequence[int] | None:
    """Run lengths from their compressed string; None where it is damaged.

    Five bits a character, from 48, lowest first; 32 says that more follow, 16 of the last is the
    sign; from the third on, the difference to the last but one (pycocotools, ``rleFrString``).
    """
    counts: list[int] = []
    value = shift = 0
    for character in packed:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts
