"""Marks that were drawn on another grid, brought to the reference's: nearest neighbour, by MONAI.

A voxel of the reference is marked where its centre lies in a marked voxel of the other grid.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["onto"]

# MONAI computes the place of each voxel in float64, several times over: this many at a time.
_VOXELS_AT_ONCE = 2**21


def onto(
    labels: NDArray[Any],
    affine: NDArray[np.float64],
    reference: NDArray[np.float64],
    shape: tuple[int, int, int],
) -> tuple[NDArray[Any], tuple[int, int, int]]:
    """Read labels where the voxels of another grid lie.

    Parameters
    ----------
    labels
        (slices, rows, columns), bool or unsigned up to 16 bits.
    affine, reference
        (4, 4) of the labels and of the reference: (slice, row, column, 1) to RAS mm.
    shape
        (slices, rows, columns) of one volume of the reference.

    Returns
    -------
    The labels on the part of the reference's grid where there can be any, and the (slice, row,
    column) at which that part begins. It is empty where the two do not meet.
    """
    from monai.data import MetaTensor  # seconds, which marks on the image's own grid do not need
    from monai.transforms import SpatialResample

    low, high = _box(labels.shape, affine, reference, shape)
    size = [int(n) for n in high - low]
    found = np.zeros(size, labels.dtype)
    step = max(1, _VOXELS_AT_ONCE // max(1, math.prod(size[1:])))
    # Half a voxel beyond the centres of the outermost voxels is still inside, and a grid of a
    # single slice has a thickness, only where corners are not aligned.
    resampler = SpatialResample(mode="nearest", padding_mode="zeros", align_corners=False)
    moving = MetaTensor(torch.from_numpy(labels.astype(np.float32))[None], affine=affine)
    for first in range(0, size[0] if math.prod(size) else 0, step):
        part = found[first : first + step]
        begin = reference.copy()
        begin[:, 3] = reference @ [low[0] + first, low[1], low[2], 1]
        moved = resampler(moving, dst_affine=begin, spatial_size=part.shape)
        part[...] = moved.as_tensor()[0].numpy()
    return found, (int(low[0]), int(low[1]), int(low[2]))


def _box(
    size: tuple[int, ...],
    affine: NDArray[np.float64],
    reference: NDArray[np.float64],
    shape: tuple[int, int, int],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and end index along each axis of the reference that a grid of this size can reach."""
    corners = np.array(np.meshgrid(*((-0.5, n - 0.5) for n in size), [1])).reshape(4, -1)
    places = np.linalg.solve(reference, affine @ corners)[:3]
    low = np.clip(np.floor(places.min(axis=1)), 0, shape).astype(np.int64)
    high = np.clip(np.ceil(places.max(axis=1)) + 1, low, shape).astype(np.int64)
    return low, high
