"""DICOM segmentations (PS3.3 C.8.20) to `Mark`s.

Each segment's frames are decoded when it is its turn: there may be a hundred segments.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import RLELossless

from medqa.dicom.files import check_size, load
from medqa.dicom.geometry import Plane, plane, plane_affine
from medqa.dicom.pixels import frame_count, frames, functional_group
from medqa.errors import RegionError
from medqa.image import TOLERANCE_VOXELS, Image
from medqa.limits import limits
from medqa.regions.codes import code_in
from medqa.regions.grid import (
    Mark,
    check_frame_of_reference,
    crop,
    in_every_volume,
    nearest_slice,
    slices_named,
    volume_shape,
)
from medqa.regions.masks import nothing_left
from medqa.regions.resample import onto

__all__ = ["read_segmentation"]

# PS3.3 C.8.20.2.3.1: a fraction of the maximum, whether probability or occupancy; from one half
# on, a pixel is inside.
_FRACTIONAL_THRESHOLD = 0.5
_BACKGROUND = ("125040", "DCM")  # PS3.16 D: what a label map may describe as segment 0
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"  # PS3.5 A.4.13: pydicom 3.0 does not know it
# Direction cosines that differ by less are one orientation: headers hold 3 to 16 digits.
_SAME_DIRECTION = 1e-3
# Positions along the normal that differ by less are one position: files round to 0.001 mm or so.
_SAME_POSITION_MM = 0.01


def read_segmentation(path: Path, reference: Image) -> Iterator[Mark]:
    """Read a DICOM segmentation: binary, fractional or label map.

    A frame lies on the slice whose instance it names as its source, and at its position in the
    patient; where both are known they must agree. Where not all frames lie on slices of the
    reference, the segmentation is resampled onto its grid, nearest neighbour.

    Raises
    ------
    RegionError
        Another frame of reference, a whole-slide segmentation, frames that cannot be placed, a
        segment that the file does not describe, or one of which nothing lies on the image.
    """
    ds, _ = load(path)
    if "TotalPixelMatrixColumns" in ds:
        reason = "is a segmentation of a tiled whole-slide image"
        raise RegionError(path, reason, "give the segmentation of a radiology image")
    check_frame_of_reference(ds.get("FrameOfReferenceUID"), reference, path)
    check_size(ds, path)
    described = {int(item.SegmentNumber): item for item in ds.SegmentSequence}
    place = _placement(ds, reference, path)
    for segment in _segments(ds, _decoder(ds, path)):
        if segment.number not in described:
            reason = f"marks segment {segment.number}, which it does not describe"
            raise RegionError(path, reason, "save the segmentation again")
        item = described[segment.number]
        code = code_in(item, "SegmentedPropertyTypeCodeSequence")
        if code is not None and (code.value, code.scheme) == _BACKGROUND:
            continue
        mask, origin = place(segment)
        if mask.any():  # a file may describe what it does not mark
            name = str(item.get("SegmentLabel") or "").strip() or f"segment {segment.number}"
            yield crop(name, mask, origin, code)


@dataclass(frozen=True, eq=False)
class _Segment:
    """Segment Number, the indices of its frames, and what each of these marks, one by one."""

    number: int
    indices: list[int]
    masks: Iterable[NDArray[np.bool_]]


_Placed = tuple[NDArray[np.bool_], tuple[int, int, int]]
"""A mask, perhaps empty, and the (slice, row, column) of the reference at which it begins."""


_Decode = Callable[[Sequence[int]], Iterator[NDArray[Any]]]
"""Takes the indices of frames; yields the (rows, columns) stored values of each."""


def _segments(ds: Dataset, decode: _Decode) -> Iterator[_Segment]:
    """Segments by number; the frames of each are decoded as they are asked for."""
    if ds.SegmentationType == "LABELMAP":
        yield from _labels(ds, decode)
        return
    of_segment: dict[int, list[int]] = {}
    for index in range(frame_count(ds)):
        group = functional_group(ds, index, "SegmentIdentificationSequence")
        of_segment.setdefault(int(group.ReferencedSegmentNumber), []).append(index)
    fractional = ds.SegmentationType == "FRACTIONAL"
    least = _FRACTIONAL_THRESHOLD * int(ds.MaximumFractionalValue) if fractional else 1
    for number, indices in sorted(of_segment.items()):
        yield _Segment(number, indices, (one >= least for one in decode(indices)))


def _labels(ds: Dataset, decode: _Decode) -> Iterator[_Segment]:
    """Segments of a label map: the values of its pixels (PS3.3 C.8.20.2.3.3)."""
    ds.PhotometricInterpretation = "MONOCHROME2"  # colours of a palette are only for show
    stored = list(decode(range(frame_count(ds))))
    frames_of: dict[int, list[int]] = {}
    for index, one in enumerate(stored):
        for value in np.unique(one):
            frames_of.setdefault(int(value), []).append(index)
    frames_of.pop(int(ds.get("PixelPaddingValue", 0)), None)
    for value, indices in sorted(frames_of.items()):
        yield _Segment(value, indices, (stored[index] == value for index in indices))


def _decoder(ds: Dataset, path: Path) -> _Decode:
    """Return what decodes frames, in every encoding that segmentations come in."""
    syntax, bits = ds.file_meta.TransferSyntaxUID, int(ds.BitsAllocated)
    # pydicom 3.0 knows neither deflated frames nor RLE of single bits.
    if syntax != _DEFLATED_FRAMES and (syntax != RLELossless or bits > 1):
        return partial(frames, ds, path)
    encoded = list(generate_frames(ds.PixelData, number_of_frames=frame_count(ds)))
    values = int(ds.Rows) * int(ds.Columns)
    length = -(-values * bits // 8)

    def decode(index: int) -> NDArray[Any]:
        if syntax == RLELossless:
            data = imagecodecs.dicomrle_decode(encoded[index], np.uint8, out=bytearray(length))
        else:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(encoded[index], length)
        if len(data) < length:
            mend = "the file is damaged or truncated: fetch it again"
            raise RegionError(path, f"frame {index + 1} ends before its last pixel", mend)
        stored = np.frombuffer(data, np.uint8 if bits == 1 else f"<u{bits // 8}")
        if bits == 1:  # PS3.5 8.1.1: the first pixel is the lowest bit
            stored = np.unpackbits(stored, count=values, bitorder="little")
        return stored.reshape(ds.Rows, ds.Columns)

    return lambda indices: map(decode, indices)


def _placement(ds: Dataset, reference: Image, path: Path) -> Callable[[_Segment], _Placed]:
    """Return what puts a segment onto the reference's grid."""
    planes = [plane(ds, index) for index in range(frame_count(ds))]
    slices = [_slices_of_frame(ds, i, where, reference, path) for i, where in enumerate(planes)]
    exact = [on for on in slices if on is not None]
    if len(exact) == len(slices):
        return partial(_on_slices, exact, reference)
    affine, index = _stack(planes, path)
    if (max(index) + 1) * int(ds.Rows) * int(ds.Columns) > limits().image_bytes:
        raise RegionError(path, "its frames lie too far apart", "give one stack of frames")
    return partial(_resampled, affine, index, reference, path)


def _slices_of_frame(
    ds: Dataset, index: int, where: Plane, reference: Image, path: Path
) -> list[int] | None:
    """Slices of the reference that a frame lies on; None where it lies on another grid.

    The slice whose instance the frame names as its source, else those at its position, one in each
    volume. Where both are known they must agree.
    """
    mend = "give the segmentation of this very series"
    sizes = f"{ds.Rows} x {ds.Columns} pixels", f"{reference.shape[1]} x {reference.shape[2]}"
    fits = (ds.Rows, ds.Columns) == reference.shape[1:]
    # Of other sizes, the pixels are not those of the source, whatever the file says.
    named = slices_named(_source_uids(ds, index), reference) if fits else []
    by_name = named if len(named) == 1 else None
    nearest = nearest_slice(where, reference)
    if nearest is None:
        if by_name is None and not fits:
            reason = f"has {sizes[0]} a frame, the image {sizes[1]}, and no position is known"
            raise RegionError(path, reason, mend)
        if by_name is None:
            reason = f"frame {index + 1} names no slice of the image, and has no position"
            raise RegionError(path, reason, mend)
        return by_name
    first, off = nearest
    on_grid = fits and off < TOLERANCE_VOXELS
    length = volume_shape(reference)[0]
    by_place = list(range(first, reference.shape[0], length)) if on_grid else None
    if by_name is not None and (by_place is None or by_name[0] not in by_place):
        reason = f"frame {index + 1} names one slice of the image and lies elsewhere"
        raise RegionError(path, reason, mend)
    return by_name or by_place


def _source_uids(ds: Dataset, index: int) -> Iterator[str]:
    derivation = functional_group(ds, index, "DerivationImageSequence")
    if derivation is not ds:
        for source in derivation.get("SourceImageSequence") or []:
            if source.get("SpatialLocationsPreserved") != "NO":
                yield str(source.ReferencedSOPInstanceUID)


def _on_slices(slices: Sequence[list[int]], reference: Image, segment: _Segment) -> _Placed:
    """Put the frames of a segment on the slices of each."""
    used = [slices[index] for index in segment.indices]
    low, high = min(map(min, used)), max(map(max, used))
    mask = np.zeros((high - low + 1, *reference.shape[1:]), bool)
    for on, one in zip(used, segment.masks, strict=True):
        mask[[index - low for index in on]] |= one
    return mask, (low, 0, 0)


def _stack(planes: Sequence[Plane], path: Path) -> tuple[NDArray[np.float64], list[int]]:
    """Affine of the stack that frames make, and the index of each along it; there may be gaps."""
    mend = "save the segmentation on the grid of the image"
    first = planes[0]
    positions = [one.position for one in planes if one.position is not None]
    if first.axes is None or first.spacing is None or len(positions) < len(planes):
        raise RegionError(path, "lies on another grid, and not all frames have a position", mend)
    for one in planes:
        if one.axes is None or np.abs(one.axes - first.axes).max() > _SAME_DIRECTION:
            raise RegionError(path, "lies on another grid, and its frames are turned", mend)
        if one.spacing != first.spacing:
            raise RegionError(path, "lies on another grid, and its pixel spacing varies", mend)
    if not first.step:
        raise RegionError(path, "lies on another grid, and states no distance of its slices", mend)
    gaps = np.diff(np.sort(positions @ first.normal))
    gaps = gaps[gaps > _SAME_POSITION_MM]
    # Where slices are left out, even the smallest gap may span several: no frame is that thick.
    dense = gaps.size > 0 and gaps.min() < 1.01 * first.step
    # Imported here: it takes a sixth of a second, and most assessments have no such mask.
    from highdicom.spatial import get_volume_positions

    step, index = get_volume_positions(
        np.array(positions),
        [*first.axes[:, 1], *first.axes[:, 0]],
        allow_missing_positions=True,
        allow_duplicate_positions=True,
        spacing_hint=None if dense else first.step,
    )
    if step is None or index is None:
        raise RegionError(path, "lies on another grid, and its frames make no stack", mend)
    bottom, top = positions[index.index(0)], positions[index.index(max(index))]
    along = (top - bottom) / max(index) if max(index) else first.normal * step
    affine = plane_affine(replace(first, position=bottom), along)
    if affine is None:
        raise RegionError(path, "lies on another grid, and has no position", mend)
    return affine, index


def _resampled(
    affine: NDArray[np.float64],
    index: Sequence[int],
    reference: Image,
    path: Path,
    segment: _Segment,
) -> _Placed:
    """Stack the frames of a segment, and read the stack where the reference's voxels lie."""
    if reference.affine is None:
        raise RegionError(path, "the position of the image is unknown", "give it with its position")
    places = [index[i] for i in segment.indices]
    low = min(places)
    stack: NDArray[np.bool_] | None = None
    for place, one in zip(places, segment.masks, strict=True):
        if stack is None:
            stack = np.zeros((max(places) - low + 1, *one.shape), bool)
        stack[place - low] |= one
    if stack is None or not stack.any():
        return np.zeros((1, 1, 1), bool), (0, 0, 0)
    marked = crop("", stack, (low, 0, 0))
    begin = affine.copy()
    begin[:, 3] = affine @ [*marked.origin, 1]
    mask, origin = onto(marked.mask, begin, reference.affine, volume_shape(reference))
    if not mask.any():
        raise nothing_left(f"segment {segment.number}", path)
    every = in_every_volume(crop("", mask, origin), reference)
    return every.mask, every.origin
