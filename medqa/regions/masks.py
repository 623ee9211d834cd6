"""Label arrays to `Mark`s, `Mark`s to connected `Region`s; masks in PNG and NIfTI."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from medqa.errors import RegionError
from medqa.image import TOLERANCE_VOXELS, Image, Region, voxels_apart
from medqa.nifti import read_nifti
from medqa.regions.grid import MAX_MARKS, Mark, in_every_volume, volume_shape
from medqa.regions.labels import label_names
from medqa.regions.resample import onto

__all__ = ["label_marks", "nothing_left", "parts", "read_nifti_mask", "read_png"]

Labels = NDArray[np.uint16]
Box = tuple[slice, slice, slice]


def label_marks(
    mask: NDArray[Any],
    reference: Image,
    source: object,
    names: Mapping[int, str],
    only: str = "mask",
) -> Iterator[Mark]:
    """Mark of each label of an array that lies on the reference's grid.

    Parameters
    ----------
    mask
        (rows, columns), (slices of one volume, rows, columns) or (slices, rows, columns); bool or
        whole numbers from 0 to 65535, 0 is outside. That of one volume holds for every volume.
    source
        What to call the mask in messages.
    names
        Names of labels; the others are called ``label 1`` and so on.
    only
        What to call the only label of a mask that `names` does not name.

    Raises
    ------
    RegionError
        Of another shape than the image, or values that are no labels.
    """
    stack = _on_grid(_labels(np.asarray(mask), source), reference, source)
    length = volume_shape(reference)[0]
    volumes = [stack[first : first + length] for first in range(0, len(stack), length)]
    boxes = [ndimage.find_objects(volume) for volume in volumes]
    values = sorted({n for found in boxes for n, box in enumerate(found, 1) if box is not None})
    for value in values:
        name = names.get(value, only if len(values) == 1 else f"label {value}")
        low, high = _span([_box(found, value) for found in boxes], length)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        mark = Mark(name, stack[box] == value, low)
        yield in_every_volume(mark, reference) if len(volumes) == 1 else mark


def nothing_left(what: str, source: object, detail: str = "") -> RegionError:
    """Return the error for a mark of which nothing is left on the reference's grid."""
    reason = f"{what} marks no pixel of the image: it lies outside, or between the pixels"
    return RegionError(source, reason, "draw the mask on this very image", detail)


def _labels(mask: NDArray[Any], source: object) -> Labels:
    """Labels as uint16; a probability map is not guessed a threshold for."""
    if mask.dtype.kind in "biuf" and mask.size and mask.min() >= 0 and mask.max() <= 65535:
        labels = mask.astype(np.uint16)
        if np.array_equal(labels, mask):
            return labels
    reason = "holds values that are no labels (whole numbers from 0 to 65535)"
    raise RegionError(source, reason, "threshold it")


def _box(boxes: list[Box | None], value: int) -> Box | None:
    return boxes[value - 1] if value <= len(boxes) else None


def _on_grid(mask: Labels, reference: Image, source: object) -> Labels:
    """(slices, rows, columns) labels, of one volume or of the whole image."""
    stack = mask[None] if mask.ndim == 2 else mask
    if stack.shape in (volume_shape(reference), reference.shape):
        return stack
    reason = f"has shape {mask.shape}, the image {reference.shape} (slices, rows, columns)"
    raise RegionError(source, reason, "draw the mask on this very image")


def _span(
    boxes: list[Box | None], length: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """First and end index of the boxes of one label in volumes of this length."""
    ends = [
        [
            (one.start + skip, one.stop + skip)
            for one, skip in zip(box, (v * length, 0, 0), strict=True)
        ]
        for v, box in enumerate(boxes)
        if box is not None
    ]
    low, high = np.min(ends, axis=(0, 2)), np.max(ends, axis=(0, 2))
    return (int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2]))


def parts(marks: Iterable[Mark], reference: Image, source: object) -> Iterator[Region]:
    """Split marks into their connected parts; pixels that touch at a corner are connected.

    The volumes of a time series are not connected to each other. Where a mark is the same in every
    volume, so is each part.

    Raises
    ------
    RegionError
        More than `MAX_MARKS` parts: such a mask is noise.
    """
    total = 0
    for mark in marks:
        for number, (mask, origin) in enumerate(_components(mark, reference), start=1):
            total += 1
            if total > MAX_MARKS:
                reason = f"falls into more than {MAX_MARKS} parts"
                raise RegionError(source, reason, "remove its single pixels")
            name = mark.name if number == 1 else f"{mark.name} {number}"
            yield Region("pathology", name, mask, origin, mark.code)


def _components(
    mark: Mark, reference: Image
) -> Iterator[tuple[NDArray[np.bool_], tuple[int, int, int]]]:
    """Mask and origin of each connected part."""
    length = volume_shape(reference)[0]
    pieces = [_in_volume(mark, volume, length) for volume in range(reference.volumes)]
    same = all(_same(pieces[0], piece) for piece in pieces[1:])
    for volume, piece in enumerate(pieces[:1] if same else pieces):
        if piece is None:
            continue
        first, inside = piece
        labelled, _ = ndimage.label(inside, structure=np.ones((3, 3, 3)))
        for number, box in enumerate(ndimage.find_objects(labelled), start=1):
            places = (volume * length + first, *mark.origin[1:])
            low = [place + one.start for place, one in zip(places, box, strict=True)]
            part = Mark(mark.name, labelled[box] == number, (low[0], low[1], low[2]))
            part = in_every_volume(part, reference) if same else part
            yield part.mask, part.origin


def _in_volume(mark: Mark, volume: int, length: int) -> tuple[int, NDArray[np.bool_]] | None:
    """First slice that a mark fills in a volume, from 0, and the mask from there to the last."""
    start, stop = (max(0, n * length - mark.origin[0]) for n in (volume, volume + 1))
    filled = start + np.flatnonzero(mark.mask[start:stop].any(axis=(1, 2)))
    if not filled.size:
        return None
    first = int(filled[0])
    return mark.origin[0] + first - volume * length, mark.mask[first : int(filled[-1]) + 1]


def _same(
    one: tuple[int, NDArray[np.bool_]] | None, other: tuple[int, NDArray[np.bool_]] | None
) -> bool:
    if one is None or other is None:
        return one is other
    return one[0] == other[0] and np.array_equal(one[1], other[1])


def read_png(path: Path, reference: Image) -> Iterator[Mark]:
    """Read a PNG of the size of a single slice, as displayed (row 0 on top).

    Each gray value or palette index but 0 is a label; of a colour image, every pixel where any
    channel is not 0 is marked.
    """
    with warnings.catch_warnings():
        # Pillow only warns of a picture that unpacks to more than 89 million pixels.
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        with PIL.Image.open(path, formats=["PNG"]) as picture:
            channels = {"LA": "L", "RGBA": "RGB"}.get(picture.mode)  # opacity marks nothing
            values = np.asarray(picture.convert(channels) if channels else picture)
    labels = values if values.ndim == 2 else np.any(values, axis=-1)
    yield from label_marks(labels, reference, path, label_names(path))


def read_nifti_mask(path: Path, reference: Image) -> Iterator[Mark]:
    """Read a NIfTI label image: turned, or else resampled, onto the reference's grid."""
    image = read_nifti(path)
    labels = _labels(np.asarray(image.pixels), path).reshape(image.volumes, -1, *image.shape[1:])
    if image.affine is not None and reference.affine is not None:
        labels = _moved(labels, image.affine, reference, reference.affine, path)
    elif image.affine is not None or reference.affine is not None or reference.kind != "nifti":
        # Two NIfTI files without a position were turned by the same rule.
        which = "the mask" if image.affine is None else "the image"
        reason = f"the position of {which} is unknown, so a NIfTI mask may lie on it any way round"
        raise RegionError(path, reason, "save the mask with the image's affine, or as PNG")
    yield from label_marks(np.concatenate(list(labels)), reference, path, label_names(path))


def _moved(
    labels: Labels,
    affine: NDArray[np.float64],
    reference: Image,
    target: NDArray[np.float64],
    path: Path,
) -> Labels:
    """(volumes, slices, rows, columns) labels on the reference's grid."""
    shape = volume_shape(reference)
    # (slice, row, column) of the mask to those of the reference.
    turn = io_orientation(np.linalg.inv(target) @ affine)
    if not np.isnan(turn).any():
        turned = [apply_orientation(volume, turn) for volume in labels]
        moved = affine @ inv_ornt_aff(turn, labels.shape[1:])
        if turned[0].shape == shape and voxels_apart(target, moved, shape) < TOLERANCE_VOXELS:
            return np.stack(turned)
    resampled = np.zeros((len(labels), *shape), np.uint16)
    for whole, volume in zip(resampled, labels, strict=True):
        found, low = onto(volume, affine, target, shape)
        box = tuple(slice(a, a + n) for a, n in zip(low, found.shape, strict=True))
        whole[box] = found
    lost = set(np.unique(labels).tolist()) - set(np.unique(resampled).tolist())
    if lost:
        raise nothing_left(f"label {min(lost)}", path)
    return resampled
