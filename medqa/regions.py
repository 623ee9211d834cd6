"""Masks and annotations of every format to `Region`s on the image's grid.

A mask never gets resampled: it is flipped and transposed onto the image's grid where the two grids
coincide, and refused where they do not.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL.Image
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, StrictInt, StringConstraints, ValidationError
from pydicom import Dataset
from scipy import ndimage

from medqa.dicom import (
    SEGMENTATIONS,
    Plane,
    check_size,
    is_dicom,
    load,
    plane,
    plane_affine,
    reading,
)
from medqa.dicom_pixels import frame_count, frames, functional_group
from medqa.errors import ReadError, RegionError
from medqa.image import TOLERANCE_VOXELS, Image, Region, voxels_apart
from medqa.nifti import is_nifti, read_nifti

__all__ = ["annotation_regions", "mask_regions", "read_annotations", "read_mask"]

Labels = NDArray[np.uint16]
Box = tuple[slice, slice, slice]

# DICOM PS3.3 C.8.20.2.3.1: a fraction of the maximum; from one half on, a pixel is inside.
_FRACTIONAL_THRESHOLD = 0.5
_PNG = b"\x89PNG\r\n\x1a\n"


def read_mask(path: str | os.PathLike[str], reference: Image) -> tuple[Region, ...]:
    """Read a mask of the pathology: a NIfTI label image, a PNG or a DICOM segmentation.

    Parameters
    ----------
    path
        NIfTI on the reference's grid; PNG of the size of a single slice, as displayed (row 0
        on top); or DICOM SEG, binary, fractional (inside from one half on) or label map.
    reference
        The image that it marks. A mask of one volume applies to every volume of a time series.

    Returns
    -------
    One region for each connected part (pixels that touch at a corner are connected) of each
    label, named after the segment or label: ``liver``, ``liver 2``; ``mask`` for the only
    label of a file.

    Raises
    ------
    RegionError
        Missing, damaged, empty, of another shape, grid or frame of reference.
    """
    path = Path(path)
    head = _head(path)
    with reading(path, RegionError):
        try:
            if is_dicom(head):
                return _read_seg(path, reference)
            if head.startswith(_PNG):
                return mask_regions(_read_png(path), reference, source=str(path))
            if is_nifti(path):
                return mask_regions(_read_labels(path, reference), reference, source=str(path))
        except ReadError as error:
            raise RegionError(error.subject, error.reason, error.mend) from error
    raise RegionError(path, "is not NIfTI, PNG or DICOM SEG", "save the mask as one of these")


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
    parts = _on_volumes(_labels(np.asarray(mask), source), reference, source)
    boxes = [ndimage.find_objects(part) for part in parts]
    values = [v for v in range(1, 1 + max(map(len, boxes))) if any(_box(b, v) for b in boxes)]
    if not values:
        raise RegionError(source, "marks nothing", "leave it out, or mark the pathology")
    regions: list[Region] = []
    for value in values:
        marked = [
            (volume, box, part[box] == value)
            for volume, part in enumerate(parts)
            if (box := _box(boxes[volume], value)) is not None
        ]
        every = len(parts) < reference.volumes  # one mask for every volume
        label = name if len(values) == 1 else f"label {value}"
        regions += _components(marked, reference, label, every=every)
    return tuple(regions)


def _head(path: Path) -> bytes:
    if not path.is_file():
        raise RegionError(path, "does not exist or is not a file", "check the path")
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as cause:
        mend = "check its permissions"
        raise RegionError(path, "cannot be read", mend, cause.strerror or "") from cause
    if not head:
        raise RegionError(path, "is empty", "give a file that holds regions")
    return head


def _labels(mask: NDArray[Any], source: str) -> Labels:
    """Labels as uint16; a probability map is not guessed a threshold for."""
    if mask.dtype.kind in "biuf" and mask.size and mask.min() >= 0 and mask.max() <= 65535:
        labels = mask.astype(np.uint16)
        if np.array_equal(labels, mask):
            return labels
    reason = "holds values that are no labels (whole numbers from 0 to 65535)"
    raise RegionError(source, reason, "threshold it")


def _box(boxes: list[Box | None], value: int) -> Box | None:
    return boxes[value - 1] if value <= len(boxes) else None


def _on_volumes(mask: Labels, reference: Image, source: str) -> list[Labels]:
    """(slices of a volume, rows, columns) labels of each volume; of one, where it is for all."""
    slices, rows, columns = reference.shape
    single = (slices // reference.volumes, rows, columns)
    stack = mask[None] if mask.ndim == 2 else mask
    if stack.shape == single:
        return [stack]
    if stack.shape == reference.shape:
        parts = list(stack.reshape(reference.volumes, *single))
        same = all(np.array_equal(part, parts[0]) for part in parts[1:])
        return parts[:1] if same else parts
    reason = f"has shape {mask.shape}, the image {reference.shape} (slices, rows, columns)"
    raise RegionError(source, reason, "draw the mask on this very image")


def _components(
    marked: list[tuple[int, Box, NDArray[np.bool_]]], reference: Image, name: str, *, every: bool
) -> Iterator[Region]:
    """Split a label, given by its box and mask in each volume, into connected parts."""
    length = reference.shape[0] // reference.volumes
    count = 0
    for volume, box, inside in marked:
        connected, _ = ndimage.label(inside, structure=np.ones((3, 3, 3)))
        for number, part in enumerate(ndimage.find_objects(connected), start=1):
            mask = connected[part] == number
            origin = [outer.start + inner.start for outer, inner in zip(box, part, strict=True)]
            if every:
                mask = _repeat(mask, reference.volumes, length)
            count += 1
            title = name if count == 1 else f"{name} {count}"
            yield Region("pathology", title, mask, (volume * length + origin[0], *origin[1:]))


def _repeat(mask: NDArray[np.bool_], volumes: int, length: int) -> NDArray[np.bool_]:
    """Put the same mask into each of the volumes, `length` slices apart."""
    repeated = np.zeros(((volumes - 1) * length + mask.shape[0], *mask.shape[1:]), bool)
    for volume in range(volumes):
        repeated[volume * length : volume * length + mask.shape[0]] = mask
    return repeated


def _read_png(path: Path) -> NDArray[Any]:
    """(rows, columns) labels; of a colour image, 1 where any channel is not 0."""
    with warnings.catch_warnings():
        # Pillow only warns of a picture that unpacks to more than 89 million pixels.
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        with PIL.Image.open(path, formats=["PNG"]) as picture:
            channels = {"LA": "L", "RGBA": "RGB"}.get(picture.mode)  # opacity marks nothing
            values = np.asarray(picture.convert(channels) if channels else picture)
    return values if values.ndim == 2 else np.any(values, axis=-1)


def _read_labels(path: Path, reference: Image) -> NDArray[Any]:
    """(slices, rows, columns) labels of a NIfTI file, turned onto the reference's grid."""
    image = read_nifti(path)
    labels = np.asarray(image.pixels).reshape(image.volumes, -1, *image.shape[1:])
    if image.affine is None and reference.affine is None and reference.kind == "nifti":
        return labels.reshape(image.shape)  # both were turned by the same rule
    if image.affine is None or reference.affine is None:
        which = "the mask" if image.affine is None else "the image"
        reason = f"the position of {which} is unknown, so a NIfTI mask may lie on it any way round"
        raise RegionError(path, reason, "save the mask with the image's affine, or as PNG")
    # (slice, row, column) of the mask to those of the reference.
    between = np.linalg.inv(reference.affine) @ image.affine
    turn = io_orientation(between)
    if np.isnan(turn).any():
        raise RegionError(path, "lies on another grid than the image", "draw it on this very image")
    turned = [apply_orientation(volume, turn) for volume in labels]
    shape = (reference.shape[0] // reference.volumes, *reference.shape[1:])
    if turned[0].shape != shape:
        reason = f"has shape {turned[0].shape} on the image's axes, the image {shape}"
        raise RegionError(path, reason, "draw the mask on this very image")
    affine = image.affine @ inv_ornt_aff(turn, labels.shape[1:])
    _check_grid(affine, reference.affine, shape, path)
    return np.concatenate(turned)


def _check_grid(
    mask: NDArray[np.float64],
    image: NDArray[np.float64],
    shape: tuple[int, int, int],
    source: object,
) -> None:
    """Refuse a mask whose affine is not the image's."""
    off = voxels_apart(image, mask, shape)
    if not off < TOLERANCE_VOXELS:
        reason = f"lies up to {off:.2f} voxels off the image's grid"
        raise RegionError(source, reason, "draw the mask on this very image, or resample it to it")


def _read_seg(path: Path, reference: Image) -> tuple[Region, ...]:
    """Regions of a DICOM segmentation (PS3.3 C.8.20), segment by segment."""
    ds, _ = load(path)
    if ds.get("SOPClassUID") not in SEGMENTATIONS:
        raise RegionError(path, "is DICOM but no segmentation", "give a DICOM SEG")
    ours, theirs = reference.identifiers.frame_of_reference_uid, ds.get("FrameOfReferenceUID")
    if ours and theirs and ours != theirs:
        reason = "has another frame of reference than the image"
        raise RegionError(path, reason, "give the segmentation of this very series")
    if (ds.Rows, ds.Columns) != reference.shape[1:]:
        reason = f"has {ds.Rows} x {ds.Columns} pixels a frame, the image "
        reason += f"{reference.shape[1]} x {reference.shape[2]}"
        raise RegionError(path, reason, "give a segmentation drawn on this very image")
    check_size(ds, path)
    names = {int(s.SegmentNumber): str(s.SegmentLabel) for s in ds.SegmentSequence}
    if ds.SegmentationType == "LABELMAP":
        segments = _label_map(ds, reference, path)
    else:
        segments = _segments(ds, reference, path)
    regions = [
        region
        for number, mask in segments
        if mask.any()
        for region in mask_regions(mask, reference, names.get(number, "mask"), str(path))
    ]
    if not regions:
        raise RegionError(path, "marks nothing", "leave it out, or mark the pathology")
    return tuple(regions)


def _segments(ds: Dataset, reference: Image, path: Path) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Each segment's number and whole-grid mask, one at a time: there may be a hundred."""
    of_segment: dict[int, list[int]] = {}
    for index in range(frame_count(ds)):
        group = functional_group(ds, index, "SegmentIdentificationSequence")
        of_segment.setdefault(int(group.ReferencedSegmentNumber), []).append(index)
    fractional = ds.SegmentationType == "FRACTIONAL"
    least = _FRACTIONAL_THRESHOLD * int(ds.MaximumFractionalValue) if fractional else 1
    for number, indices in sorted(of_segment.items()):
        mask = np.zeros(reference.shape, bool)
        for index, frame in zip(indices, frames(ds, path, indices), strict=True):
            mask[_slices_of_frame(ds, index, reference, path)] |= frame >= least
        yield number, mask


def _label_map(
    ds: Dataset, reference: Image, path: Path
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Each label's number and whole-grid mask (PS3.3 C.8.20.2.3.3)."""
    background = int(ds.get("PixelPaddingValue", 0))
    labels = np.full(reference.shape, background, np.uint16)
    for index, frame in enumerate(frames(ds, path)):
        labels[_slices_of_frame(ds, index, reference, path)] = frame
    for value in np.unique(labels):
        if value != background:
            yield int(value), labels == value


def _slices_of_frame(ds: Dataset, index: int, reference: Image, path: Path) -> list[int]:
    """Slices of the reference that a frame of a segmentation lies on.

    The one whose instance the frame names as its source, else those at its position, one in each
    volume. Where both are known they must agree.
    """
    uids = reference.identifiers.sop_uids
    named = [uids.index(uid) for uid in _source_uids(ds, index) if uid in uids]
    # The instance of a multi-frame reference says nothing about the slice.
    by_name = named if len(named) == 1 and len(uids) == reference.shape[0] else []
    placed = _slices_at(plane(ds, index), reference, path)
    if placed is None and not by_name:
        reason = f"frame {index + 1} names no slice of the image, and has no position"
        raise RegionError(path, reason, "give the segmentation of this very series")
    if placed is not None and by_name and by_name[0] not in placed:
        reason = f"frame {index + 1} names one slice of the image and lies on another"
        raise RegionError(path, reason, "give the segmentation of this very series")
    return by_name or placed or []


def _source_uids(ds: Dataset, index: int) -> Iterator[str]:
    derivation = functional_group(ds, index, "DerivationImageSequence")
    if derivation is not ds:
        for source in derivation.get("SourceImageSequence") or []:
            if source.get("SpatialLocationsPreserved") != "NO":
                yield str(source.ReferencedSOPInstanceUID)


def _slices_at(where: Plane, reference: Image, path: Path) -> list[int] | None:
    """Slices at a position, one in each volume; None where it or the image's is unknown."""
    affine = None if where.axes is None else plane_affine(where, where.normal)
    if affine is None or reference.affine is None:
        return None
    length = reference.shape[0] // reference.volumes
    nearest = float(np.linalg.solve(reference.affine, affine[:, 3])[0])
    first = min(max(round(nearest), 0), length - 1)
    of_slice = reference.affine.copy()  # the grid of that slice alone
    of_slice[:, 3] += first * reference.affine[:, 0]
    _check_grid(affine, of_slice, (1, *reference.shape[1:]), path)
    return list(range(first, reference.shape[0], length))


class _Annotation(BaseModel):
    """One entry of an annotation file; what else it holds is for others."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    bbox: tuple[StrictInt, StrictInt, StrictInt, StrictInt]
    slice: StrictInt | None = None


def read_annotations(path: str | os.PathLike[str], reference: Image) -> tuple[Region, ...]:
    """Read annotated boxes from a JSON file.

    The file holds ``{"annotations": [{"type": "nodule", "bbox": [x1, y1, x2, y2], "slice": 12}]}``,
    as `annotation_regions` takes them.

    Raises
    ------
    RegionError
        Missing, not such a file, or an entry that cannot be used.
    """
    path = Path(path)
    _head(path)
    with reading(path, RegionError):
        document = json.loads(path.read_bytes())
        entries = document.get("annotations") if isinstance(document, dict) else None
        if not isinstance(entries, list):
            mend = 'write {"annotations": [{"type": ..., "bbox": [x1, y1, x2, y2]}]}'
            raise RegionError(path, 'holds no list "annotations"', mend)
        return annotation_regions(entries, reference, str(path))


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
    regions = []
    for number, entry in enumerate(annotations, start=1):
        try:
            annotation = _Annotation.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "it"
            reason = f"annotation {number}: {place}: {first['msg']}"
            raise RegionError(source, reason, "give type, bbox and slice") from error
        regions.append(_annotated(annotation, number, reference, source))
    if not regions:
        raise RegionError(source, "holds no annotation", "leave it out, or annotate the image")
    return tuple(regions)


def _annotated(annotation: _Annotation, number: int, reference: Image, source: str) -> Region:
    slices, rows, columns = reference.shape
    x1, y1, x2, y2 = annotation.bbox
    if annotation.slice is None and slices > 1:
        reason = f"annotation {number}: no slice given, and the image has {slices}"
        raise RegionError(source, reason, 'add "slice", counted from 0')
    index = annotation.slice or 0
    if not 0 <= index < slices:
        reason = f"annotation {number}: slice {index} is not among the image's {slices}"
        raise RegionError(source, reason, "count slices from 0")
    if not (0 <= x1 < x2 <= columns and 0 <= y1 < y2 <= rows):
        reason = f"annotation {number}: bbox {list(annotation.bbox)} is empty or outside the image"
        mend = f"give x1 < x2 <= {columns} and y1 < y2 <= {rows}, in pixels from 0"
        raise RegionError(source, reason, mend)
    mask = np.ones((1, y2 - y1, x2 - x1), bool)
    return Region("annotation", annotation.type, mask, (index, y1, x1))
