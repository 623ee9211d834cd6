"""Slices of a volume in the three anatomical planes, whatever plane it was acquired in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from medqa.errors import MismatchError, UsageError
from medqa.image import Image
from medqa.transforms import pixels_of, same_grid

__all__ = ["PLANES", "Plane", "planes", "reslice"]

Plane = Literal["axial", "coronal", "sagittal"]

#: Which way slices, rows and columns run in each plane, as on a display: the patient's left on
#: the right and the head up; in a sagittal plane the face to the left.
PLANES: dict[Plane, str] = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}


def planes(reference: Image, candidate: Image, stride: int = 1) -> dict[Plane, tuple[Image, Image]]:
    """Return reference and candidate in each of the three planes, by the same operation.

    Parameters
    ----------
    reference, candidate
        One volume each, on the same grid; the reference's geometry holds for both.
    stride
        Every how many slices of a plane are taken, from the first.

    Returns
    -------
    Both images in each plane, as by `reslice`.

    Raises
    ------
    MismatchError
        They lie on different grids, or are no volumes of known spacing.
    UsageError
        The stride is below 1.
    """
    if not same_grid(reference, candidate):
        raise MismatchError(
            candidate.source,
            "lies on another grid than the reference",
            "bring it to the reference's grid first",
        )
    # Once for all planes, where the slices are decoded only when they are asked for.
    pixels, others = pixels_of(reference, candidate, slice(None))
    one = replace(reference, pixels=pixels, padding=None)
    other = replace(
        candidate,
        pixels=others,
        spacing_mm=reference.spacing_mm,
        affine=reference.affine,
    )
    return {plane: (reslice(one, plane, stride), reslice(other, plane, stride)) for plane in PLANES}


def reslice(image: Image, plane: Plane, stride: int = 1) -> Image:
    """Return a volume cut in another plane, with square pixels.

    The plane is that of the array's own axes nearest to the anatomical ones: an oblique volume is
    turned by right angles only. Slices lie where voxels lie. Within a slice, the axis of coarser
    spacing is interpolated linearly to the finer spacing, from the first voxel to the last;
    rounding to whole pixels leaves them square to half a pixel over the whole side. Nothing is
    copied before it is asked for.

    Parameters
    ----------
    image
        One volume with an affine. With a spacing alone, its slices are taken for axial.
    plane
        ``axial``: slices upwards, rows backwards, columns to the patient's left. ``coronal``:
        slices backwards, rows downwards, columns to the left. ``sagittal``: slices to the left,
        rows downwards, columns backwards.
    stride
        Every how many slices are taken, from the first.

    Returns
    -------
    The image with spacing and affine of its new pixels. The pixels are a view of the stored ones;
    or, where they are interpolated, float32 that is computed at every ``pixels[start:stop]``, for
    those slices only. ``numpy.asarray`` computes all.

    Raises
    ------
    MismatchError
        A time series, a single slice, or an unknown spacing.
    UsageError
        There is no such plane, or the stride is below 1.
    """
    if plane not in PLANES:
        raise UsageError(plane, "no such plane", f"choose one of {', '.join(PLANES)}")
    if stride < 1:
        raise UsageError("stride", f"is {stride}", "give at least 1")
    affine = _affine(image)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(PLANES[plane]))
    # A view: axes are swapped and flipped, and slices skipped.
    turned = apply_orientation(np.asarray(image.pixels), turn)[::stride]
    affine = affine @ inv_ornt_aff(turn, image.shape) @ np.diag([stride, 1, 1, 1])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    rows, columns = _square(turned.shape[1:], spacing[1:])
    stretch = (np.array(turned.shape[1:]) - 1) / (np.array([rows, columns]) - 1)
    affine = affine @ np.diag([1, *stretch, 1])
    spacing[1:] *= stretch
    return replace(
        image,
        # It answers what is asked of an image's pixels; it is no array.
        pixels=turned
        if turned.shape[1:] == (rows, columns)
        else cast("NDArray[Any]", _Squared(turned, rows, columns)),
        # 0.0 for a single slice, as everywhere
        spacing_mm=(float(spacing[0]) * (len(turned) > 1), float(spacing[1]), float(spacing[2])),
        affine=None if image.affine is None else affine,
        # Slices are no longer the instances that were stored.
        identifiers=replace(image.identifiers, sop_uids=(), frames=()),
    )


def _affine(image: Image) -> NDArray[np.float64]:
    """(4, 4) of array indices to RAS mm; refuse what is no single volume of known spacing."""
    if image.volumes > 1:
        raise MismatchError(
            image.source,
            f"is a time series of {image.volumes} volumes, and planes cut one volume",
            "give its volumes one by one",
        )
    if min(image.shape) < 2:
        raise MismatchError(
            image.source,
            "is a single slice, which has no other planes",
            "give a volume, or compare it in its own plane",
        )
    if image.affine is not None:
        affine = image.affine
    elif image.spacing_mm is not None:
        slices_mm, rows_mm, columns_mm = image.spacing_mm
        # Taken for axial: slices upwards, rows backwards, columns to the left.
        affine = np.eye(4)
        affine[:3, :3] = [[0, 0, -columns_mm], [0, -rows_mm, 0], [slices_mm, 0, 0]]
    else:
        affine = np.zeros((4, 4))
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise MismatchError(
            image.source,
            "the spacing of its voxels is unknown",
            "give a series with positions, or a NIfTI with an affine",
        )
    return affine


def _square(shape: tuple[int, ...], spacing: NDArray[np.float64]) -> tuple[int, int]:
    """Rows and columns of square pixels of the finer spacing, between the same outer pixels."""
    rows, columns = (
        round((count - 1) * length / spacing.min()) + 1
        for count, length in zip(shape, spacing, strict=True)
    )
    return rows, columns


class _Squared:
    """Slices that are interpolated to square pixels whenever they are asked for."""

    dtype = np.dtype(np.float32)

    def __init__(self, slices: NDArray[Any], rows: int, columns: int) -> None:
        self._slices = slices
        self.shape = (len(slices), rows, columns)

    def __len__(self) -> int:
        return len(self._slices)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int | slice) -> NDArray[np.float32]:
        chosen = np.array(self._slices[index], np.float32, order="C")
        # (rows, columns) or (n, rows, columns) to (n, 1, rows, columns) and back
        slab = torch.from_numpy(chosen).view(-1, 1, *chosen.shape[-2:])
        squared = F.interpolate(slab, self.shape[1:], mode="bilinear", align_corners=True)
        return squared.view(*chosen.shape[:-2], *self.shape[1:]).numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the pixels are computed, and cannot be had without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)
