"""Contrast, uniformity, clipping, entropy, ghosts and motion: one function for each measure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqa.quality.areas import Mask, UndefinedError, local_statistics, windows_inside

__all__ = [
    "clipping",
    "contrast",
    "entropy",
    "entropy_focus",
    "ghosting",
    "summary",
    "uniformity",
]

_GREYS = 256
_MARGIN = 5  # pixels between the body and where a ghost is looked for
_THINNEST = 5  # pixels of air on each side
_LEAST_AIR = 0.8  # share of each side
_ZEROED = 0.5
_UNIFORM_MM2 = 100.0  # the 1 cm2 of the ACR's small regions
_UNIFORM_PIXELS = 11
_SMOOTH = 0.1  # spread over mean
_LEAST_UNIFORM = 0.75  # share of the body, as of NEMA's region of measurement


def contrast(shown: NDArray[np.float64], body: Mask, noise: float = 0.0) -> float:
    """RMS contrast of the display, from 0 to 0.5; higher is better.

    ``sqrt(variance - noise^2)`` of the displayed values in [0, 1] over the body, without what the
    noise adds to it (Peli 1990, doi:10.1364/JOSAA.7.002032, compares it with others).

    Parameters
    ----------
    shown, body
        (rows, columns).
    noise
        Standard deviation of the noise of `shown`.
    """
    return math.sqrt(max(float(shown[body].var()) - noise**2, 0.0))


def entropy(shown: NDArray[np.float64], inside: Mask) -> float:
    """Shannon's entropy of the display in 256 greys, in bits, from 0 to 8.

    ``-sum p log2 p`` (Shannon 1948, doi:10.1002/j.1538-7305.1948.tb01338.x). Neither direction is
    better: detail raises it and so does noise.
    """
    greys = np.rint(np.clip(shown[inside], 0, 1) * (_GREYS - 1)).astype(np.intp)
    share = np.bincount(greys, minlength=_GREYS) / greys.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum()) + 0.0


def clipping(pixels: NDArray[Any], body: Mask, ends: tuple[float, float]) -> float:
    """Share of the body's pixels that are cut off, in per cent; lower is better.

    Those at the lowest or highest value of `ends`, and those at the slice's own highest value,
    where a detector is saturated below the end of what can be stored. One pixel always is the
    highest: it does not count.

    Parameters
    ----------
    pixels, body
        (rows, columns).
    ends
        Lowest and highest value that can be stored, or that occur in the image.
    """
    values = pixels[body]
    top = values.max()
    cut = np.count_nonzero((values <= ends[0]) | (values >= min(top, ends[1])))
    alone = np.count_nonzero(values == top) == 1
    return 100.0 * float(cut - alone) / values.size


def uniformity(
    pixels: NDArray[np.float64], body: Mask, spacing_mm: tuple[float, float] | None
) -> float:
    """Percent integral uniformity, up to 100 %; higher is better.

    ``100 (1 - (max - min) / (max + min))`` of the means of regions of 1 cm2 in the smooth part of
    the body (NEMA MS 3-2008; ACR large phantom guidance, 5.0). Smooth is where the spread in the
    region is at most a tenth of its mean.

    Parameters
    ----------
    pixels, body
        (rows, columns); values from 0 up.
    spacing_mm
        Between rows and columns; regions have 11 x 11 pixels where it is unknown.

    Raises
    ------
    UndefinedError
        Less than three quarters of the body are smooth: this is anatomy and no phantom, and its
        differences are not those of the coil.
    """
    side = _UNIFORM_PIXELS
    if spacing_mm is not None:
        side = max(3, 2 * round((math.sqrt(_UNIFORM_MM2) / max(spacing_mm) - 1) / 2) + 1)
    mean, spread = local_statistics(pixels, side)
    whole = windows_inside(body, side)
    smooth = whole & (spread <= _SMOOTH * mean)
    if not whole.any() or np.count_nonzero(smooth) < _LEAST_UNIFORM * np.count_nonzero(whole):
        raise UndefinedError("the body is not uniform: measure a phantom")
    low, high = float(mean[smooth].min()), float(mean[smooth].max())
    return 100.0 * (1 - (high - low) / (high + low))


def ghosting(pixels: NDArray[np.float64], body: Mask, air: Mask) -> float:
    """Ghost-to-signal ratio of an MR image; no unit, lower is better.

    ``|(top + bottom) - (left + right)| / (2 signal)`` of the mean values in the air on the four
    sides of the body (ACR large phantom guidance, 6.0, where 0.025 is the limit). A ghost lies
    along the phase encoding only, noise on all sides.

    Raises
    ------
    UndefinedError
        The body reaches the edge of the image, something else than air lies beside it, or the
        background was set to 0.
    """
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    top, bottom = int(rows[0]) - _MARGIN, int(rows[-1]) + 1 + _MARGIN
    left, right = int(columns[0]) - _MARGIN, int(columns[-1]) + 1 + _MARGIN
    height, width = body.shape
    if min(top, left, height - bottom, width - right) < _THINNEST:
        raise UndefinedError("there is not enough air on all four sides of the body")
    across, down = slice(max(left, 0), right), slice(max(top, 0), bottom)
    sides = ((slice(top), across), (slice(bottom, None), across), (down, slice(left)))
    means = []
    for box in (*sides, (down, slice(right, None))):
        values = pixels[box][air[box]]
        if values.size < _LEAST_AIR * air[box].size:
            raise UndefinedError("something else than air lies beside the body")
        if np.mean(values == 0) > _ZEROED:
            raise UndefinedError("the background was set to 0")
        means.append(float(values.mean()))
    signal = float(pixels[body].mean())
    if signal <= 0:
        raise UndefinedError("there is no signal")
    return abs(means[0] + means[1] - means[2] - means[3]) / (2 * signal)


def entropy_focus(pixels: NDArray[np.float64], inside: Mask) -> float:
    """Entropy focus criterion of an MR image, from 0 to 1; lower is better.

    ``-sum(b ln b) / (sqrt(n) ln sqrt(n))``, b the values over the square root of the sum of their
    squares, n their number (Atkinson et al. 1997, doi:10.1109/42.650886; scaled as MRIQC does).
    Motion and ghosts spread the energy over the image.

    Raises
    ------
    UndefinedError
        Negative values: this is no magnitude; or no signal.
    """
    values = pixels[inside]
    if values.min() < 0:
        raise UndefinedError("there are negative values: this is no magnitude image")
    norm = math.sqrt(float((values**2).sum()))
    if norm == 0 or values.size < 2:
        raise UndefinedError("there is no signal")
    shares = values[values > 0] / norm
    root = math.sqrt(values.size)
    return float(-(shares * np.log(shares)).sum()) / (root * math.log(root)) + 0.0


def summary(contrast: float, sharpness: float, noise: float) -> float:
    """One figure of three: ``(C + S) / (1 + N)``, from 0 to 2; higher is better.

    C = 2 contrast, in [0, 1]; S = sharpness / (1 + sharpness), in [0, 1); N = noise of the display
    over its contrast. It ranks images of one kind; a limit rests on its terms.

    Parameters
    ----------
    contrast
        Of `contrast`.
    sharpness
        Of `gradient_sharpness`.
    noise
        Standard deviation of the noise of the display in [0, 1].

    Raises
    ------
    UndefinedError
        There is no contrast.
    """
    if contrast <= 0:
        raise UndefinedError("there is no contrast")
    return (2 * contrast + sharpness / (1 + sharpness)) / (1 + noise / contrast)
