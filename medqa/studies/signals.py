"""Lesions that are known exactly, and the places of an image where they are put."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from medqa.errors import UsageError
from medqa.quality.areas import UndefinedError, body_of

__all__ = ["Signal", "calm", "distances", "inserted", "places"]

# Standard deviations of a Gaussian in its full width at half maximum.
_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
# Half the side of a patch, in widths (sigma) of the lesion. There the outermost Laguerre-Gauss
# channel (x = 2 pi r^2 / a^2 = 4 j + 2) has passed its last swing.
_REACH = 5.0
# An edge is strong where the mean square of the gradient is so many times that of calm places,
# which are those of this share. Noise alone stays below, or its draw would choose the places, and
# the observer would look easy work.
_STRONG = 4.0
_CALM = 0.1


@dataclass(frozen=True)
class Signal:
    """A round lesion.

    Parameters
    ----------
    diameter
        Full width at half maximum, in mm, or in pixels where the spacing is 1.
    contrast
        Of its middle, in the unit of the image (CT: HU); negative is darker.
    shape
        ``gaussian``, or ``disc`` with an edge blurred as by the scanner.
    blur
        Of a disc's edge: standard deviation, in the unit of the diameter.

    Raises
    ------
    UsageError
        It has no size or no contrast.
    """

    diameter: float
    contrast: float
    shape: Literal["gaussian", "disc"] = "gaussian"
    blur: float = 0.5

    def __post_init__(self) -> None:
        sizes = (self.diameter, self.blur)
        if not all(0.0 < one < math.inf for one in sizes):
            raise UsageError("lesion", "its size is no positive number", "give a size in mm")
        if self.contrast == 0.0 or not math.isfinite(self.contrast):
            raise UsageError("lesion", "it has no contrast", "give a contrast other than 0")

    @property
    def sigma(self) -> float:
        """Standard deviation of the Gaussian of that full width, in the unit of the diameter."""
        return self.diameter / _FWHM

    def draw(self, spacing: tuple[float, float]) -> NDArray[np.float64]:
        """Draw the lesion in the middle of a patch.

        Parameters
        ----------
        spacing
            Of pixel centres along (row, column), in the unit of the diameter.

        Returns
        -------
        (height, width), both odd: 1 in the middle, about 0 at the border.
        """
        radius = distances(spacing, self.half(spacing))
        if self.shape == "gaussian":
            drawn = np.exp(-0.5 * (radius / self.sigma) ** 2)
        else:
            drawn = special.ndtr((self.diameter / 2.0 - radius) / self.blur)
        profile: NDArray[np.float64] = drawn / drawn.max()
        return profile

    def half(self, spacing: tuple[float, float]) -> tuple[int, int]:
        """Rows and columns of a patch on each side of its middle."""
        rows, columns = (math.ceil(_REACH * self.sigma / one) for one in spacing)
        return rows, columns


def distances(spacing: tuple[float, float], half: tuple[int, int]) -> NDArray[np.float64]:
    """(2 rows + 1, 2 columns + 1) distance of each pixel from the middle one."""
    axes = [one * np.arange(-n, n + 1) for one, n in zip(spacing, half, strict=True)]
    radius: NDArray[np.float64] = np.hypot(axes[0][:, None], axes[1][None, :])
    return radius


def calm(
    stack: NDArray[Any],
    signal: Signal,
    spacing: tuple[float, float] = (1.0, 1.0),
    modality: str | None = None,
) -> NDArray[np.bool_]:
    """Where the middle of a lesion may be: in the body, away from strong edges.

    Around each place, to the distance of the lesion's diameter, is nothing but body, and the
    gradient of the image smoothed to the lesion's width (root mean square over the patch) is no
    more than twice that of the calmest tenth of such places. The contrast of the lesion does not
    matter, so that a fainter one gets the same places.

    Parameters
    ----------
    stack
        (slices, rows, columns) modality values.
    modality
        DICOM Modality, which says what the body is (`quality.areas.body_of`).

    Returns
    -------
    (slices, rows, columns); nowhere on a slice without a body.
    """
    free = np.stack([_deep(one, signal.diameter, spacing, modality) for one in stack])
    if not free.any():
        return free
    steep = np.stack([_steepness(one.astype(np.float64), signal, spacing) for one in stack])
    inside: NDArray[np.bool_] = free & (steep <= _STRONG * np.quantile(steep[free], _CALM))
    return inside


def _deep(
    frame: NDArray[Any], depth: float, spacing: tuple[float, float], modality: str | None
) -> NDArray[np.bool_]:
    """Where the edge of the body is at least so far away; the border of the image is none."""
    everywhere = np.ones(frame.shape, np.bool_)
    try:
        body = body_of(frame.astype(np.float64), modality, everywhere)
    except UndefinedError:
        return ~everywhere
    if body.all():
        return body
    deep: NDArray[np.bool_] = ndimage.distance_transform_edt(body, spacing) >= depth
    return deep


def _steepness(
    values: NDArray[np.float64], signal: Signal, spacing: tuple[float, float]
) -> NDArray[np.float32]:
    """(rows, columns) mean square of the gradient over the patch around each place."""
    sigmas = [signal.sigma / one for one in spacing]
    squares = [
        (sigma * ndimage.gaussian_filter(values, sigmas, order=order)) ** 2
        for sigma, order in zip(sigmas, ((1, 0), (0, 1)), strict=True)
    ]
    sides = [2 * one + 1 for one in signal.half(spacing)]
    mean: NDArray[np.float32] = ndimage.uniform_filter(squares[0] + squares[1], sides)
    steep: NDArray[np.float32] = np.maximum(mean, 0.0).astype(np.float32)
    return steep


def places(inside: NDArray[np.bool_], patch: tuple[int, ...], seed: int) -> NDArray[np.int64]:
    """Choose the places of lesions: as many as fit without two patches that overlap.

    Parameters
    ----------
    inside
        (slices, rows, columns) where the middle of a lesion may be.
    patch
        (height, width), which lies in the image as a whole.
    seed
        Of their order.

    Returns
    -------
    (places, 3): slice, row and column of their middle; slice by slice.
    """
    rng = np.random.default_rng(seed)
    half = patch[0] // 2, patch[1] // 2
    found = []
    for index, one in enumerate(inside):
        free = one.copy()
        free[: half[0]] = free[free.shape[0] - half[0] :] = False
        free[:, : half[1]] = free[:, free.shape[1] - half[1] :] = False
        for row, column in rng.permutation(np.argwhere(free)):
            if free[row, column]:
                found.append((index, int(row), int(column)))
                rows = slice(max(0, row - patch[0] + 1), row + patch[0])
                free[rows, max(0, column - patch[1] + 1) : column + patch[1]] = False
    return np.array(found, np.int64).reshape(-1, 3)


def inserted(
    stack: NDArray[Any], profile: NDArray[np.float64], where: NDArray[np.int64]
) -> NDArray[Any]:
    """Add a lesion at every place.

    Parameters
    ----------
    stack
        (slices, rows, columns).
    profile
        (height, width), in the unit of the stack.
    where
        (places, 3): slice, row and column of their middle.

    Returns
    -------
    A new stack of the same type; integers are rounded and kept within their type.
    """
    added = stack.astype(np.float64)
    half = profile.shape[0] // 2, profile.shape[1] // 2
    for index, row, column in where:
        added[
            index, row - half[0] : row + half[0] + 1, column - half[1] : column + half[1] + 1
        ] += profile
    if stack.dtype.kind in "iu":
        ends = np.iinfo(stack.dtype)
        added = np.clip(np.rint(added), ends.min, ends.max)
    return added.astype(stack.dtype)
