"""Annotated boxes to `Mark`s: our own JSON, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictInt

from medqa.errors import RegionError
from medqa.image import Image
from medqa.regions.entries import Name, box_mark, content, of_reference, on_slice, validated
from medqa.regions.grid import Mark

__all__ = ["box_marks", "is_csv", "read_boxes", "read_csv"]


class _Annotation(BaseModel):
    """One entry of our own annotation file; what else it holds is for others."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Name
    bbox: tuple[StrictInt, StrictInt, StrictInt, StrictInt]
    slice: StrictInt | None = None


def read_boxes(document: Mapping[str, Any], reference: Image, path: Path) -> Iterator[Mark]:
    """Read ``{"annotations": [{"type": "nodule", "bbox": [x1, y1, x2, y2], "slice": 12}]}``."""
    entries = document.get("annotations")
    if not isinstance(entries, list):
        mend = 'write {"annotations": [{"type": ..., "bbox": [x1, y1, x2, y2]}]}'
        raise RegionError(path, 'holds no list "annotations"', mend)
    return box_marks(entries, reference, path)


def box_marks(
    annotations: Iterable[Mapping[str, Any]], reference: Image, source: object
) -> Iterator[Mark]:
    """Turn annotated boxes into marks, as `medqa.regions.annotation_regions` takes them."""
    for number, entry in enumerate(annotations, start=1):
        what = f"annotation {number}"
        one = validated(_Annotation, entry, what, source, "give type, bbox and slice")
        index = on_slice(one.slice, reference, what, source)
        yield box_mark(one.type, one.bbox, index, reference, what, source)


# The names of each column of a CSV, whatever their case and underscores.
_NAMES = ("name", "label", "type", "class")
_CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"))
_SIZED = ("x", "y", "width", "height")


def is_csv(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a CSV of boxes, by its header row."""
    return _layout(head) is not None


def _layout(data: bytes) -> tuple[str, list[str]] | None:
    """Delimiter and columns of a CSV of boxes; None where it is none."""
    header = data[:4096].decode("utf-8-sig", "replace").splitlines()[:1]
    for delimiter in (",", ";", "\t"):
        for cells in csv.reader(header, delimiter=delimiter):
            columns = [cell.strip().lower().replace("_", "") for cell in cells]
            boxed = any(set(four) <= set(columns) for four in (*_CORNERS, _SIZED))
            once = len(set(columns)) == len(columns)
            if boxed and once and sum(name in columns for name in _NAMES) == 1:
                return delimiter, columns
    return None


def read_csv(path: Path, reference: Image) -> Iterator[Mark]:
    """Read a CSV of boxes.

    Its header row names the columns, with any case and underscores: ``name`` (or ``label``,
    ``type``, ``class``); ``x1, y1, x2, y2`` (or ``xmin, ymin, xmax, ymax``, or ``x, y, width,
    height``); ``slice``, where the image has several; ``image``, where the file is about several.

    Raises
    ------
    RegionError
        A row that is incomplete, or whose box cannot be used.
    """
    data = content(path)
    layout = _layout(data)
    if layout is None:
        raise RegionError(path, "is no CSV of boxes", "name the columns in the first row")
    delimiter, columns = layout
    lines = csv.reader(
        io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True
    )
    rows = []
    for line in lines:
        if lines.line_num > 1 and any(cell.strip() for cell in line):
            if len(line) != len(columns):
                reason = f"line {lines.line_num} has {len(line)} cells, the header {len(columns)}"
                raise RegionError(path, reason, "give each row every column")
            cells = (cell.strip() for cell in line)
            rows.append((f"line {lines.line_num}", dict(zip(columns, cells, strict=True))))
    if "image" in columns and rows:
        images = list(dict.fromkeys(row["image"] for _, row in rows))
        ours = images[of_reference(images, reference, path)]
        rows = [(what, row) for what, row in rows if row["image"] == ours]
    for what, row in rows:
        yield _row_mark(row, reference, what, path)


def _row_mark(row: Mapping[str, str], reference: Image, what: str, path: Path) -> Mark:
    name = next(row[column] for column in _NAMES if column in row)
    if not name:
        raise RegionError(path, f"{what}: no name", "name what is marked")
    corners = next((four for four in _CORNERS if set(four) <= set(row)), None)
    try:
        numbers = [float(row[column]) for column in corners or _SIZED]
        index = int(row["slice"]) if row.get("slice") else None
    except ValueError as error:
        reason = f"{what}: a coordinate or slice is no number"
        raise RegionError(path, reason, "give numbers", str(error)) from error
    if corners is None:
        x, y, width, height = numbers
        numbers = [x, y, x + width, y + height]
    index = on_slice(index, reference, what, path)
    return box_mark(name, numbers, index, reference, what, path)
