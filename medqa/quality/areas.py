"""Where on a slice something is measured: the body, and the air around it.

An estimator that is not defined on a slice raises `UndefinedError` with the reason: no number is
ever made up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = [
    "Mask",
    "UndefinedError",
    "air_of",
    "body_of",
    "local_statistics",
    "otsu",
    "windows_inside",
]

Mask = NDArray[np.bool_]
"""(rows, columns), True inside."""

# X-ray projections that fill the image: what is no padding is body.
_FILLED = ("CR", "DX", "IO", "PX", "RF", "RG", "XA")
# CT numbers: between fat and air, and above what noise makes of air over a few pixels.
_BODY_HU = -300.0
_AIR_HU = -900.0
# Below air: what lies outside the circle that was reconstructed.
_VOID_HU = -1100.0
_BLACK = 0.02  # share of the range that is black in an ultrasound
_DIM = 0.4  # of the way from the background to Otsu's threshold
_AWAY = 5  # pixels between the body and what counts as air
_FEWEST = 100  # pixels that make a body


class UndefinedError(Exception):
    """A measure is not defined on a slice; the message says why, without a final full stop."""


def otsu(values: NDArray[Any], bins: int = 256) -> float:
    """Threshold that parts values into two classes (Otsu 1979, doi:10.1109/TSMC.1979.4310076).

    Parameters
    ----------
    values
        (n,) real numbers.
    bins
        Of the histogram, between the smallest and the largest value.

    Returns
    -------
    Centre of the bin up to which the variance between the classes is largest; in the unit of the
    values.
    """
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * centres)[::-1]) / np.maximum(above[::-1], 1))[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[np.argmax(between)])


def body_of(pixels: NDArray[np.float64], modality: str | None, inside: Mask) -> Mask:
    """Where the patient or phantom is.

    CT: above -300 HU. X-ray projections, which fill the image: all of it. Ultrasound: all that is
    not black. MR: above 0.4 of the way from the background (median of what is below the threshold
    of Otsu) to that threshold. Others: above that threshold. Of these, the largest connected
    part, with its holes.

    Parameters
    ----------
    pixels
        (rows, columns) modality values.
    modality
        DICOM Modality.
    inside
        (rows, columns), where the image is no padding.

    Raises
    ------
    UndefinedError
        There is no body, or no image at all.
    """
    if not inside.any() or np.ptp(pixels[inside]) == 0:
        raise UndefinedError("the slice has one value all over")
    if modality in _FILLED:
        found = inside
    else:
        found = ndimage.binary_fill_holes(_largest(_solid(pixels, modality, inside))) & inside
    if np.count_nonzero(found) < _FEWEST:
        raise UndefinedError("no body stands out from the background")
    return found


def _solid(pixels: NDArray[np.float64], modality: str | None, inside: Mask) -> Mask:
    """Everything that is no background, but single pixels."""
    smooth = ndimage.uniform_filter(pixels, 3)
    found = inside & (smooth > _threshold(smooth, pixels, modality, inside))
    solid: Mask = ndimage.binary_opening(found)
    return solid


def _threshold(
    smooth: NDArray[np.float64], pixels: NDArray[np.float64], modality: str | None, inside: Mask
) -> float:
    if modality == "CT":
        return _BODY_HU
    if modality in ("US", "IVUS"):
        return float(pixels[inside].min() + _BLACK * np.ptp(pixels[inside]))
    threshold = otsu(smooth[inside])
    if modality != "MR":
        return threshold
    # Of an MR, Otsu parts bright from dim: skin is dim, and must be no part of the air.
    background = float(np.median(smooth[inside & (smooth <= threshold)]))
    return background + _DIM * (threshold - background)


def _largest(mask: Mask) -> Mask:
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    largest: Mask = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return largest


def air_of(pixels: NDArray[np.float64], modality: str | None, inside: Mask, body: Mask) -> Mask:
    """Where there is nothing but air, 5 pixels and more from the body and all else, as a table.

    Parameters
    ----------
    pixels, modality, inside
        As of `body_of`.
    body
        What `body_of` found.
    """
    if modality == "CT":  # with the table and all that lies on it; outside the circle is no air
        smooth = ndimage.uniform_filter(pixels, 5)
        solid = body | ndimage.binary_fill_holes(smooth > _AIR_HU) | (smooth < _VOID_HU)
    else:  # a mosaic holds many bodies
        solid = body | _solid(pixels, modality, inside)
    near: Mask = ndimage.binary_dilation(solid, iterations=_AWAY)
    return inside & ~near


def local_statistics(
    pixels: NDArray[np.float64], side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the sample in the square window around each pixel.

    Parameters
    ----------
    pixels
        (rows, columns).
    side
        Of the window, in pixels; odd.
    """
    # About a middle value, so that squares of large numbers do not cancel.
    middle = float(np.median(pixels))
    shifted = pixels - middle
    mean = ndimage.uniform_filter(shifted, side)
    square = ndimage.uniform_filter(shifted**2, side)
    count = side * side
    variance = np.maximum(square - mean**2, 0.0) * count / (count - 1)
    return mean + middle, np.sqrt(variance)


def windows_inside(mask: Mask, side: int) -> Mask:
    """Where a square window of `side` pixels, which is odd, lies in the mask as a whole."""
    within: Mask = ndimage.minimum_filter(mask, side, mode="constant", cval=False)
    return within
