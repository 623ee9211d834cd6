"""Masks and annotations of every format to `Region`s on the image's grid.

A decoder for each format yields `Mark`s; the option that the user gave decides what they become:
`read_mask` makes pathology of them, in connected parts, `read_annotations` one annotation of each.
Both take every format, which the content decides, not the name.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID, RTStructureSetStorage

from medqa.dicom.files import SEGMENTATIONS, header, is_dicom, reading
from medqa.errors import ReadError, RegionError
from medqa.image import Image, Region
from medqa.nifti import is_nifti
from medqa.regions.boxes import box_marks, is_csv, read_boxes, read_csv
from medqa.regions.coco import read_coco
from medqa.regions.entries import content
from medqa.regions.grid import Mark, bounded
from medqa.regions.labelme import read_labelme
from medqa.regions.masks import label_marks, parts, read_nifti_mask, read_png
from medqa.regions.presentation import PRESENTATION_STATES, read_presentation
from medqa.regions.reports import REPORTS, read_report
from medqa.regions.rtstruct import read_rtstruct
from medqa.regions.segmentation import read_segmentation

__all__ = ["annotation_regions", "mask_regions", "read_annotations", "read_mask"]

_PNG = b"\x89PNG\r\n\x1a\n"
_Decode = Callable[[Path, Image], Iterable[Mark]]
_DICOM: dict[str, _Decode] = {
    **dict.fromkeys(SEGMENTATIONS, read_segmentation),
    RTStructureSetStorage: read_rtstruct,
    **dict.fromkeys(REPORTS, read_report),
    **dict.fromkeys(PRESENTATION_STATES, read_presentation),
}


def read_mask(path: str | os.PathLike[str], reference: Image) -> tuple[Region, ...]:
    """Read the pathology: every region of a file, in connected parts.

    Parameters
    ----------
    path
        NIfTI or PNG label image (a PNG has the size of a single slice, as displayed, row 0 on
        top); DICOM SEG, binary, fractional (inside from one half on) or label map; RTSTRUCT;
        a measurement report (TID 1500) or softcopy presentation state with graphics; or an
        annotation file: boxes in our own JSON or in CSV, COCO, LabelMe.
    reference
        The image that it marks. A mask of one volume applies to every volume of a time series. A
        NIfTI or SEG on another grid is resampled, nearest neighbour, by patient coordinates.

    Returns
    -------
    One region for each connected part (pixels that touch at a corner are connected) of each
    label, named after the segment or label: ``liver``, ``liver 2``; ``mask`` for the only
    label of a file that names none.

    Raises
    ------
    RegionError
        Missing, damaged, empty, of another shape or frame of reference, or outside the image.
    """
    with _marks(Path(path), reference) as marks:
        return _pathology(marks, reference, path)


def read_annotations(path: str | os.PathLike[str], reference: Image) -> tuple[Region, ...]:
    """Read annotations: one region for each label, segment, box or shape of a file.

    Parameters
    ----------
    path, reference
        As of `read_mask`: every format may hold either.

    Raises
    ------
    RegionError
        As `read_mask`, or an entry that cannot be used.
    """
    with _marks(Path(path), reference) as marks:
        return _annotations(marks, path)


def mask_regions(
    mask: NDArray[Any], reference: Image, name: str = "mask", source: str = "mask"
) -> tuple[Region, ...]:
    """Split a mask of the pathology into its connected parts.

    Parameters
    ----------
    mask
        (rows, columns), (slices of one volume, rows, columns) or (slices, rows, columns); bool or
        whole numbers, 0 is outside, each other value is a label of its own.
    reference
        The image that it marks.
    name
        What to call the regions where there is only one label.
    source
        What to call the mask in messages.

    Raises
    ------
    RegionError
        Empty, of another shape than the image, or not of whole numbers.
    """
    return _pathology(label_marks(np.asarray(mask), reference, source, {}, name), reference, source)


def annotation_regions(
    annotations: Iterable[Mapping[str, Any]], reference: Image, source: str = "annotations"
) -> tuple[Region, ...]:
    """Turn annotated boxes into regions.

    Parameters
    ----------
    annotations
        Each with ``type``, in words; ``bbox``, [x1, y1, x2, y2] in pixels, x is the column and
        y the row, from 0, end excluded; and ``slice``, from 0 along the image's first axis,
        which may be left out where the image has one slice.
    reference
        The image that they mark.
    source
        What to call them in messages.

    Raises
    ------
    RegionError
        No annotation, or an entry that is incomplete, empty or outside the image.
    """
    return _annotations(box_marks(annotations, reference, source), source)


def _pathology(marks: Iterable[Mark], reference: Image, source: object) -> tuple[Region, ...]:
    regions = tuple(parts(bounded(marks, source), reference, source))
    if not regions:
        raise RegionError(source, "marks nothing", "leave it out, or mark the pathology")
    return regions


def _annotations(marks: Iterable[Mark], source: object) -> tuple[Region, ...]:
    regions = tuple(
        Region("annotation", mark.name, mark.mask, mark.origin, mark.code)
        for mark in bounded(marks, source)
    )
    if not regions:
        raise RegionError(source, "holds no annotation", "leave it out, or annotate the image")
    return regions


@contextmanager
def _marks(path: Path, reference: Image) -> Iterator[Iterable[Mark]]:
    """Within it, the marks of a file can be decoded; whatever goes wrong is a RegionError."""
    head = _head(path)
    with reading(path, RegionError):
        try:
            yield _decoder(path, head)(path, reference)
        except ReadError as error:
            raise RegionError(error.subject, error.reason, error.mend, error.detail) from error


def _head(path: Path) -> bytes:
    if not path.is_file():
        raise RegionError(path, "does not exist or is not a file", "check the path")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as cause:
        mend = "check its permissions"
        raise RegionError(path, "cannot be read", mend, cause.strerror or "") from cause
    if not head:
        raise RegionError(path, "is empty", "give a file that holds regions")
    return head


def _decoder(path: Path, head: bytes) -> _Decode:
    if is_dicom(head[:132]):
        return _dicom(path)
    if head.startswith(_PNG):
        return read_png
    if is_nifti(path):
        return read_nifti_mask
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        return _read_json
    if is_csv(head):
        return read_csv
    if head.startswith(b"NRRD"):
        mend = "save it as NIfTI or DICOM SEG, which 3D Slicer writes too"
        raise RegionError(path, "is NRRD, which is not read", mend)
    mend = "save it as NIfTI, PNG, DICOM, JSON or CSV"
    raise RegionError(path, "is no mask or annotation file that is known", mend)


def _dicom(path: Path) -> _Decode:
    sop_class = UID(header(path).get("SOPClassUID") or "")
    if sop_class not in _DICOM:
        kind = sop_class.name or "object of unknown class"
        reason = f"is DICOM, but of a class that marks no regions ({kind})"
        mend = "give a DICOM SEG, RTSTRUCT, measurement report or presentation state"
        raise RegionError(path, reason, mend)
    return _DICOM[sop_class]


def _read_json(path: Path, reference: Image) -> Iterator[Mark]:
    """COCO, LabelMe or our own, by the lists that the document holds."""
    document = json.loads(content(path))
    if not isinstance(document, dict):
        document = {}
    if "shapes" in document:
        return read_labelme(document, reference, path)
    if "images" in document:
        return read_coco(document, reference, path)
    return read_boxes(document, reference, path)
