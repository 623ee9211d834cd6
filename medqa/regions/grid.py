"""Where the marks of a file lie on the reference's grid.

Every format ends in `Mark`s, which know nothing of what they are used for. What places them is
here: the frame of reference (PS3.3 C.7.4.1), the instances that a file names, and positions in the
patient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medqa.dicom.geometry import Plane, plane_affine
from medqa.errors import RegionError
from medqa.image import TOLERANCE_VOXELS, Code, Image, voxels_apart
from medqa.limits import limits

__all__ = [
    "MAX_MARKS",
    "Mark",
    "bounded",
    "check_frame_of_reference",
    "crop",
    "in_every_volume",
    "nearest_slice",
    "slices_at",
    "slices_named",
    "volume_shape",
]


#: Most marks of a file, and most parts that they may fall into: of more, nobody reads the record.
MAX_MARKS = 10_000


@dataclass(frozen=True, eq=False)
class Mark:
    """What a file marks under one name, on the reference's grid.

    Parameters
    ----------
    name
        The segment, label or finding in words, such as ``liver``.
    mask
        (slices, rows, columns) bool, cropped to the bounding box; at least one pixel is inside.
    origin
        (slice, row, column) of the bounding box's first voxel in the reference.
    code
        What it is, coded, where the file says so.
    """

    name: str
    mask: NDArray[np.bool_]
    origin: tuple[int, int, int] = (0, 0, 0)
    code: Code | None = None


def crop(
    name: str,
    mask: NDArray[np.bool_],
    origin: tuple[int, int, int] = (0, 0, 0),
    code: Code | None = None,
) -> Mark:
    """Mark of a (slices, rows, columns) bool mask that is not empty, cropped; a copy.

    Parameters
    ----------
    origin
        (slice, row, column) of the mask's first voxel in the reference.
    """
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    first = (origin[0] + box[0].start, origin[1] + box[1].start, origin[2] + box[2].start)
    return Mark(name, mask[box[0], box[1], box[2]].copy(), first, code)


def volume_shape(reference: Image) -> tuple[int, int, int]:
    """(slices, rows, columns) of one volume of a time series; of any other image, its shape."""
    slices, rows, columns = reference.shape
    return slices // reference.volumes, rows, columns


def check_frame_of_reference(uid: str | None, reference: Image, source: object) -> None:
    """Refuse what was drawn in another frame of reference (PS3.3 C.7.4.1); unknown is no other.

    Parameters
    ----------
    uid
        Frame of Reference UID of the file, or of the part of it that is about to be placed.
    source
        What to call the file in messages.

    Raises
    ------
    RegionError
        Both are known, and they differ.
    """
    ours = reference.identifiers.frame_of_reference_uid
    if ours and uid and ours != uid:
        reason = "has another frame of reference than the image"
        raise RegionError(source, reason, "give the one that was drawn on this very series")


def slices_named(uids: Iterable[str], reference: Image) -> list[int]:
    """Slices of the reference whose SOP instances these are, in the order of `uids`.

    Instances that are not the reference's are left out. The instance of a multi-frame reference
    says nothing about the slice: then, and where the reference's instances are not known slice by
    slice, the list is empty.
    """
    ours = reference.identifiers.sop_uids
    if len(ours) != reference.shape[0]:
        return []
    index = {uid: i for i, uid in enumerate(ours)}
    return [index[uid] for uid in uids if uid in index]


def nearest_slice(where: Plane, reference: Image) -> tuple[int, float] | None:
    """Slice of a volume that lies nearest to a plane, and how far its grid is off, in voxels.

    None where the position of either is unknown.
    """
    affine = None if where.axes is None else plane_affine(where, where.normal)
    if affine is None or reference.affine is None:
        return None
    nearest = float(np.linalg.solve(reference.affine, affine[:, 3])[0])
    index = min(max(round(nearest), 0), volume_shape(reference)[0] - 1)
    of_slice = reference.affine.copy()  # the grid of that slice alone
    of_slice[:, 3] += index * reference.affine[:, 0]
    return index, voxels_apart(of_slice, affine, (1, *reference.shape[1:]))


def slices_at(where: Plane, reference: Image, source: object) -> list[int] | None:
    """Slices whose plane and grid this is, one in each volume; None where either is unknown.

    Raises
    ------
    RegionError
        It lies off the reference's grid by `TOLERANCE_VOXELS` or more: between slices, turned,
        shifted, of another pixel spacing or outside.
    """
    nearest = nearest_slice(where, reference)
    if nearest is None:
        return None
    index, off = nearest
    if not off < TOLERANCE_VOXELS:
        reason = f"lies up to {off:.2f} voxels off the image's grid"
        raise RegionError(source, reason, "give one that was drawn on this very image")
    return list(range(index, reference.shape[0], volume_shape(reference)[0]))


def in_every_volume(mark: Mark, reference: Image) -> Mark:
    """Put a mark of the first volume into each volume of a time series."""
    if reference.volumes == 1:
        return mark
    length, depth = volume_shape(reference)[0], mark.mask.shape[0]
    mask = np.zeros(((reference.volumes - 1) * length + depth, *mark.mask.shape[1:]), bool)
    for volume in range(reference.volumes):
        mask[volume * length : volume * length + depth] = mark.mask
    return replace(mark, mask=mask)


def bounded(marks: Iterable[Mark], source: object) -> Iterator[Mark]:
    """Hand marks on until they are too many or take too much memory.

    Raises
    ------
    RegionError
        More than `MAX_MARKS`, or masks of more bytes than an image may have together.
    """
    count = size = 0
    for mark in marks:
        count, size = count + 1, size + mark.mask.size
        if count > MAX_MARKS:
            reason = f"holds more than {MAX_MARKS} marks"
            raise RegionError(source, reason, "give those of this image")
        if size > limits().image_bytes:
            reason = f"its marks take more than {limits().image_bytes / 2**30:.3g} GiB"
            raise RegionError(source, reason, "give fewer marks")
        yield mark
