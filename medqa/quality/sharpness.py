"""Sharpness: the modulation transfer of an edge, the skin of a CT for one, and of gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medqa.quality.areas import Mask, UndefinedError

__all__ = ["edge_mtf50", "gradient_sharpness", "skin_mtf50"]

_OVERSAMPLED = 4  # bins of the edge spread function in a pixel (ISO 12233)
_REACH = 10  # pixels of the edge spread function on either side of the edge
_FLAT_BEYOND = 3  # pixels from the edge from which on a side must be flat
_SEGMENT = 17  # pixels along the skin
_LEAST_STEP_HU = 500.0
_AIR_HU = -900.0
_FEWEST_SEGMENTS = 5
# White noise in the squared gradient by Sobel's kernels over 8: 2 (2 + 8 + 2) / 64.
_SOBEL_GAIN = 0.375
_LEAST_STRUCTURE = 1.0  # variance of the structure over that of the noise


def gradient_sharpness(shown: NDArray[np.float64], body: Mask, noise: float) -> float:
    """Strength of the gradient over that of the structure, in 1/pixel; higher is better.

    ``sqrt((mean |grad|^2 - 0.375 noise^2) / (variance - noise^2))`` over the body: Tenengrad, the
    energy of Sobel's gradient (Tenenbaum 1970; Krotkov 1988, doi:10.1007/BF00127822), over the
    energy of what has a gradient, so that brightness and contrast do not count. White noise of the
    given strength is taken out of both. It depends on what is shown: compare like with like.

    Parameters
    ----------
    shown
        (rows, columns) of any unit.
    body
        (rows, columns).
    noise
        Standard deviation of the noise, in the unit of `shown`.

    Raises
    ------
    UndefinedError
        There is no more structure than noise.
    """
    rows, columns = ndimage.sobel(shown, 0) / 8, ndimage.sobel(shown, 1) / 8
    energy = float((rows[body] ** 2 + columns[body] ** 2).mean()) - _SOBEL_GAIN * noise**2
    structure = float(shown[body].var()) - noise**2
    if structure <= max(_LEAST_STRUCTURE * noise**2, 1e-12) or energy <= 0:
        raise UndefinedError("there is no more structure than noise")
    return float(np.sqrt(energy / structure))


def edge_mtf50(patch: NDArray[np.float64], spacing_mm: float = 1.0) -> float:
    """Spatial frequency at which an edge's modulation has fallen to half; higher is better.

    The edge spread function of ISO 12233:2017 (annex D): the place of the edge in each row, a
    parabola through these, values by their distance to it in bins of a quarter pixel, derivative,
    window, Fourier transform, corrected for bins and derivative (Samei et al. 1998,
    doi:10.1118/1.598165).

    Parameters
    ----------
    patch
        (rows, columns) that one edge crosses from the first row to the last, less than 45 degrees
        from upright, near the middle of the columns.
    spacing_mm
        Size of the square pixels.

    Returns
    -------
    In line pairs per mm.

    Raises
    ------
    UndefinedError
        There is no single clean edge, or it is too blurred for the patch.
    """
    centres, spread = _edge_spread(patch)
    line = np.diff(spread)
    middle = np.abs(line).argmax()
    places = np.arange(line.size)
    # The width at half height of the peak decides what belongs to the edge: what lies under the
    # skin does not.
    half = int(np.count_nonzero(np.abs(line) >= np.abs(line[middle]) / 2))
    if min(middle, line.size - 1 - middle) < 1.5 * half:
        raise UndefinedError("the edge is not in the middle, or too blurred")
    away = np.abs(places - middle) / half
    # Flat up to 2 widths, Hann's taper up to 3.
    line = line * np.where(
        away <= 2, 1.0, np.where(away < 3, 0.5 + 0.5 * np.cos(np.pi * (away - 2)), 0.0)
    )
    length = 16 * line.size
    transfer = np.abs(np.fft.rfft(line, length))
    if transfer[0] == 0:
        raise UndefinedError("there is no edge")
    step = centres[1] - centres[0]
    cycles = np.fft.rfftfreq(length, step)  # per pixel
    # A bin's mean and a difference of neighbours each take away sinc.
    transfer = transfer / transfer[0] / np.maximum(np.sinc(cycles * step), 0.1) ** 2
    below = np.flatnonzero(transfer < 0.5)
    if below.size == 0 or cycles[below[0]] > 1:
        raise UndefinedError("the edge is sharper than the pixels can show")
    after = int(below[0])
    between = np.interp(0.5, transfer[[after, after - 1]], cycles[[after, after - 1]])
    return float(between) / spacing_mm


def _edge_spread(patch: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances in pixels, a quarter apart, and the mean value at each."""
    rows, columns = patch.shape
    ends = patch[:, :2].mean(), patch[:, -2:].mean()
    above = patch > (ends[0] + ends[1]) / 2
    if ends[0] > ends[1]:
        above = ~above
    # One crossing in each row, or it is no edge but a line or a corner.
    if not (np.diff(above.astype(np.int8), axis=1) != 0).sum(axis=1).tolist() == [1] * rows:
        raise UndefinedError("there is no single edge")
    after = above.argmax(axis=1)
    every = np.arange(rows)
    one, other = patch[every, after - 1], patch[every, after]
    places = after - 1 + ((ends[0] + ends[1]) / 2 - one) / (other - one)
    curve = np.polynomial.Polynomial.fit(every, places, 2)
    if np.abs(curve(every) - places).max() > 0.5:
        raise UndefinedError("the edge is not smooth")
    slope = curve.deriv()(every)
    away = (np.arange(columns) - curve(every)[:, None]) / np.sqrt(1 + slope[:, None] ** 2)
    reach = min(-away[:, 0].max(), away[:, -1].min(), float(_REACH))
    bins = int(np.floor(reach * _OVERSAMPLED))
    if bins < 2 * _OVERSAMPLED:
        raise UndefinedError("the edge is not in the middle")
    edges = np.arange(-bins, bins + 1) / _OVERSAMPLED
    counts, _ = np.histogram(away, edges)
    if (counts == 0).any():
        raise UndefinedError("the edge runs along the pixels")
    sums, _ = np.histogram(away, edges, weights=patch)
    return (edges[:-1] + edges[1:]) / 2, sums / counts


def skin_mtf50(pixels: NDArray[np.float64], spacing_mm: float) -> float:
    """In-plane sharpness of a CT at the patient's skin; higher is better.

    The median of `edge_mtf50` over pieces of skin of 17 pixels between air and tissue, after the
    idea of Sanders et al. 2016 (doi:10.1118/1.4961984). A piece counts where the air is empty (no
    clothes, no table) and the step at least 500 HU.

    Parameters
    ----------
    pixels
        (rows, columns) in HU.
    spacing_mm
        Size of the square pixels.

    Returns
    -------
    In line pairs per mm.

    Raises
    ------
    UndefinedError
        Fewer than 5 pieces of skin are clean.
    """
    found = []
    for patch in _skin(pixels):
        try:
            found.append(edge_mtf50(patch, spacing_mm))
        except UndefinedError:
            continue
    if len(found) < _FEWEST_SEGMENTS:
        raise UndefinedError("too little clean skin against air")
    return float(np.median(found))


def _skin(pixels: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Pieces of skin, turned so that air is on the left."""
    for turned in (pixels, pixels[:, ::-1], pixels.T, pixels.T[:, ::-1]):
        solid = turned > -500
        first = solid.argmax(axis=1)
        rows, columns = turned.shape
        for top in range(0, rows - _SEGMENT + 1, _SEGMENT):
            piece = first[top : top + _SEGMENT]
            rise = np.abs(np.diff(piece))
            left, right = int(piece.min()) - _REACH - 1, int(piece.max()) + _REACH + 2
            if rise.max() > 1 or left < 0 or right > columns or np.ptp(piece) > _SEGMENT * 0.6:
                continue
            patch = turned[top : top + _SEGMENT, left:right]
            if _is_clean(patch, piece - left):
                yield patch


def _is_clean(patch: NDArray[np.float64], edge: NDArray[np.intp]) -> bool:
    """Whether there is air up to the edge and a step of at least 500 HU behind it."""
    away = np.arange(patch.shape[1]) - edge[:, None]
    air, tissue = patch[away < -_FLAT_BEYOND], patch[away >= _FLAT_BEYOND]
    air_level, tissue_level = np.median(air), np.median(tissue)
    # Nothing in the air: not more than its own noise, or a tenth of the step.
    tidy = np.abs(air - air_level).max() < 0.15 * (tissue_level - air_level)
    step = tissue_level - air_level > _LEAST_STEP_HU
    return bool(air_level < _AIR_HU and step and tidy)
