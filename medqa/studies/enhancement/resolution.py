"""Super-resolution against its own input, where no high-resolution reference exists.

Whatever a candidate adds, brought back to the input's grid it must be the input again: data
consistency, the condition of every inverse problem (Sønderby et al. 2017, arXiv:1610.04490; Menon
et al. 2020, arXiv:2003.03808). What differs by more than the input's noise is no reconstruction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medqa.errors import MismatchError

__all__ = ["lowered", "preserved", "raised"]


def lowered(high: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Bring an image to a coarser grid of the same field of view: mean over each coarse pixel.

    The aperture of a pixel is the box that it covers, as of a detector's element or a voxel; pixels
    that lie in two count by their share in each.

    Parameters
    ----------
    high
        (rows, columns).
    shape
        (fewer or as many rows, columns).

    Raises
    ------
    MismatchError
        The grid is finer, not coarser.
    """
    _check(high.shape, shape)
    rows, columns = (_shares(n, fewer) for n, fewer in zip(high.shape, shape, strict=True))
    found: NDArray[np.float64] = rows @ high @ columns.T
    return found


def _shares(many: int, few: int) -> NDArray[np.float64]:
    """(few, many): how much of each coarse pixel each fine one covers; rows add up to 1."""
    edges = np.arange(few + 1) / few * many
    fine = np.arange(many)
    upper = np.minimum(fine + 1, edges[1:, None])
    lower = np.maximum(fine, edges[:-1, None])
    covered: NDArray[np.float64] = np.maximum(upper - lower, 0) * few / many
    return covered


def raised(low: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Interpolate by cubic B-splines onto a finer grid of the same field of view.

    What the eye gets without super-resolution, and so what it must beat (Thévenaz et al. 2000,
    doi:10.1109/42.875199).

    Parameters
    ----------
    low
        (rows, columns).
    shape
        (as many or more rows, columns).

    Raises
    ------
    MismatchError
        The grid is coarser, not finer.
    """
    _check(shape, low.shape)
    factors = [many / few for many, few in zip(shape, low.shape, strict=True)]
    found: NDArray[np.float64] = ndimage.zoom(low, factors, order=3, mode="nearest", grid_mode=True)
    return found


def preserved(distance: float) -> float:
    """Detail preservation: 1 is all, 0 is none; higher is better.

    ``1 / (1 + distance)``, of a distance of 0 and more that is 0 for identical images, such as
    LPIPS to the noisy or interpolated input. It orders candidates as the distance does.
    """
    return 1 / (1 + distance)


def _check(high: tuple[int, ...], low: tuple[int, ...]) -> None:
    if any(many < few for many, few in zip(high, low, strict=True)):
        raise MismatchError(
            "super-resolution",
            "the candidate has fewer rows or columns than its input",
            "give the low-resolution image as the input and the other as the candidate",
        )
