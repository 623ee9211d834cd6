"""Noise, and signals in units of it. Each function says formula, unit, direction and source."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pywt
from numpy.typing import NDArray

from medqa.quality.areas import Mask, UndefinedError, local_statistics, windows_inside

__all__ = [
    "RAYLEIGH",
    "air_noise",
    "cnr",
    "global_noise_level",
    "snr_dual_region",
    "soft_tissue",
    "wavelet_noise",
    "window_side",
]

#: Standard deviation of the magnitude of noise alone, over that of each channel: sqrt(2 - pi / 2).
RAYLEIGH = math.sqrt(2 - math.pi / 2)

_NORMAL = 0.6744897501960817  # third quartile of the standard normal distribution
_ROUNDING = 1e-14  # of the largest value, in a difference
_FLAT = 1e-6  # of the range of values, in a spread
_WINDOW_MM = 6.0
_WINDOW_PIXELS = 7  # where the size of a pixel is unknown
_FEWEST_WINDOWS = 100
_SOFT_TISSUE_HU = (0.0, 100.0)
_BIN_HU = 0.2
_CLIPPED = 0.01  # share of pixels at the lowest value from which a spread is cut off
_ZEROED = 0.1

# Of the same length as db2, all ones: a coefficient is 0 where nothing in its reach is set.
_REACH = pywt.Wavelet("reach", filter_bank=[[1.0] * 4] * 4)


def wavelet_noise(pixels: NDArray[Any], inside: Mask | None = None) -> float:
    """Return the SD of white noise, by wavelets; in the unit of the pixels, lower is better.

    ``median(|d|) / 0.6745``, d the finest diagonal coefficients of Daubechies' wavelet db2 that
    are not 0 (Donoho and Johnstone 1994, doi:10.1093/biomet/81.3.425); 0 where fewer than 100 are
    not. Correlated noise, such as that of a smooth CT kernel, has less of it in the finest band:
    it is underestimated. Detail of a pixel's size is taken for noise.

    Parameters
    ----------
    pixels
        (rows, columns).
    inside
        (rows, columns); only coefficients that reach no pixel outside count.

    Raises
    ------
    UndefinedError
        The area holds fewer than 100 coefficients.
    """
    _, (_, _, diagonal) = pywt.dwt2(np.asarray(pixels, np.float64), "db2")
    if inside is not None:
        _, (_, _, outside) = pywt.dwt2((~inside).astype(np.float64), _REACH)
        diagonal = diagonal[np.abs(outside) < 0.5]
    if diagonal.size < _FEWEST_WINDOWS:
        raise UndefinedError("the body is too small to measure its noise")
    # Where the image has one value, rounding leaves something that is not quite 0.
    found = np.abs(diagonal)
    found = found[found > _ROUNDING * np.abs(pixels).max()]
    return float(np.median(found)) / _NORMAL if found.size >= _FEWEST_WINDOWS else 0.0


def window_side(spacing_mm: tuple[float, float] | None) -> int:
    """Side, in pixels and odd, of a window of 6 mm; of 7 pixels where the size is unknown."""
    if spacing_mm is None:
        return _WINDOW_PIXELS
    return max(3, 2 * round((_WINDOW_MM / max(spacing_mm) - 1) / 2) + 1)


def soft_tissue(
    pixels: NDArray[np.float64], body: Mask, side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation in HU of each window in the body of 0 to 100 HU on average.

    Raises
    ------
    UndefinedError
        Fewer than 100 such windows.
    """
    mean, spread = local_statistics(pixels, side)
    low, high = _SOFT_TISSUE_HU
    # By the window's mean, not the pixel's own value: noise would choose the pixels.
    tissue = windows_inside(body, side) & (mean >= low) & (mean <= high)
    if np.count_nonzero(tissue) < _FEWEST_WINDOWS:
        raise UndefinedError("too little soft tissue of 0 to 100 HU")
    return mean[tissue], spread[tissue]


def global_noise_level(pixels: NDArray[np.float64], body: Mask, side: int) -> float:
    """CT noise in uniform soft tissue, in HU; lower is better.

    The mode of the histogram of the local standard deviation, over windows of 6 mm around pixels
    of 0 to 100 HU (Christianson et al. 2015, doi:10.2214/AJR.14.13613): most windows lie in one
    tissue, and those that hold an edge are no part of the peak.

    Parameters
    ----------
    pixels
        (rows, columns) in HU.
    body
        (rows, columns).
    side
        Of the window: `window_side`.

    Raises
    ------
    UndefinedError
        Fewer than 100 such windows, or they hold no noise at all.
    """
    _, found = soft_tissue(pixels, body, side)
    # The upper half is edges; a bin holds enough windows whatever the noise is.
    top = float(np.median(found)) * 2
    if top == 0:
        raise UndefinedError("the soft tissue has one value")
    width = max(_BIN_HU, top / 100)
    counts, edges = np.histogram(found, np.arange(0, top + 2 * width, width))
    smooth = np.convolve(counts, [1, 2, 3, 2, 1], "same")  # the mode of few windows jumps else
    peak = int(np.argmax(smooth))
    near = found[(found >= edges[max(peak - 2, 0)]) & (found <= edges[min(peak + 3, counts.size)])]
    return float(near.mean())


def air_noise(pixels: NDArray[np.float64], air: Mask, side: int) -> float:
    """Spread in air outside the patient, in the unit of the pixels; lower is better.

    The median of the local standard deviation over windows that hold nothing but air. Of a CT
    this is noise in HU. Of the magnitude of an MR it is 0.655 times the noise (NEMA MS 1-2008,
    2.3.4), as `snr_dual_region` knows.

    Parameters
    ----------
    pixels, air
        (rows, columns).
    side
        Of the window, in pixels and odd.

    Raises
    ------
    UndefinedError
        There are fewer than 100 such windows, or the air is cut off at one value, so that its
        spread is not that of the noise.
    """
    _, spread = local_statistics(pixels, side)
    # Windows of one value were filled by the scanner and not measured.
    measured = windows_inside(air, side) & (spread > _FLAT * np.ptp(pixels))
    if np.count_nonzero(measured) < _FEWEST_WINDOWS:
        if windows_inside(air, side).any():
            raise UndefinedError("the air is stored as one value")
        raise UndefinedError("too little air around the body")
    values = pixels[measured]
    low = values.min()
    share, most = np.mean(values == low), _ZEROED if low == 0 else _CLIPPED
    if share > most:
        raise UndefinedError(f"{share:.0%} of the air has the lowest value: it is cut off")
    return float(np.median(spread[measured]))


def snr_dual_region(signal: float, air_spread: float) -> float:
    """Signal-to-noise ratio of a magnitude MR image by two regions; no unit, higher is better.

    ``0.655 signal / SD of the air`` (NEMA MS 1-2008, 2.3.4): the magnitude of noise alone follows
    Rayleigh's distribution, narrower than the noise of each channel by ``sqrt(2 - pi / 2)``. Right
    for one coil; of several, combined or in parallel, only its changes mean something
    (Constantinides et al. 1997, doi:10.1002/mrm.1910380524).
    """
    return RAYLEIGH * signal / air_spread


def cnr(one: float, other: float, noise: float) -> float:
    """Contrast-to-noise ratio of two means; no unit, higher is better.

    ``|one - other| / noise`` (Magnotta and Friedman 2006, doi:10.1007/s10278-006-0264-x; ACR CT
    accreditation, module 2).
    """
    return abs(one - other) / noise
