"""Noise power spectra, and how much of structure and of noise a processing lets through.

The noise power spectrum is that of ICRU Report 54 (1996) and IEC 62220-1, as AAPM TG-233 (2019,
doi:10.1002/mp.13763) takes it for CT::

    NPS(u, v) = dx dy / (Nx Ny) <|FFT(block - mean)|^2>        in unit^2 mm^2

over blocks of 32 pixels that overlap, under Hann's window (Welch 1967,
doi:10.1109/TAU.1967.1161901) so that slow shading does not leak into the noise. Its integral over
frequency is the variance. Where the size of a pixel is unknown, dx = dy = 1 and frequencies are in
cycles per pixel.

A patient is not a phantom: noise is measured in the *flat* blocks of the body and structure in its
*steep* ones, both chosen by the input alone, so that every method is measured at the same places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medqa.quality.areas import Mask, UndefinedError

__all__ = [
    "SIDE",
    "Blocks",
    "Spectrum",
    "Transfer",
    "autocorrelation",
    "blocks_of",
    "noise_power",
    "transfer",
]

#: Of a block, in pixels.
SIDE = 32

_STEP = SIDE // 4
_SMOOTH = 2.0  # pixels; what is left of a block after it is structure more than noise
_FLATTEST, _NEARLY = 0.02, 1.5  # flat: up to 1.5 times the structure of the flattest 2 %
_STEEPEST = 0.15
_FEWEST_BLOCKS, _MOST_BLOCKS = 4, 1000
# Structure is measured where it is at least as strong as the noise beside it.
_LEAST_STRUCTURE = 1.0

_LOWEST = 2  # cycles in a block

_HANN = np.hanning(SIDE + 1)[:-1]
_WINDOW = np.outer(_HANN, _HANN)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Where in a slice noise and structure are measured.

    Parameters
    ----------
    all, flat, steep
        (n, 2), row and column of the first pixel of each block: of the body, of its flat and of
        its steep parts.
    """

    all: NDArray[np.intp]
    flat: NDArray[np.intp]
    steep: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A noise power spectrum, averaged around frequency 0.

    Parameters
    ----------
    frequency
        (n,) mean frequency of each ring, from 2 cycles in a block up to Nyquist's: cycles per mm,
        or per pixel where `spacing_mm` is None.
    power
        (n,) in unit^2 mm^2, or unit^2 pixel^2.
    sd
        Square root of the integral over the whole plane: standard deviation of the noise, in the
        image's unit.
    mean_frequency
        Mean frequency of the plane in these rings, weighted by power (TG-233, f_av): lower is
        coarser.
    spacing_mm
        Between rows and columns.
    """

    frequency: NDArray[np.float64]
    power: NDArray[np.float64]
    sd: float
    mean_frequency: float
    spacing_mm: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Transfer:
    """What a processing lets through, by frequency: 1 is kept, 0 is taken away.

    Parameters
    ----------
    frequency
        (n,) as of `Spectrum`.
    structure
        (n,) of the structure in steep blocks; NaN where the input has less structure than noise.
    noise
        (n,) of the noise in flat blocks.
    weight
        (n,) power of the structure before, 0 where `structure` is NaN; to average by.
    """

    frequency: NDArray[np.float64]
    structure: NDArray[np.float64]
    noise: NDArray[np.float64]
    weight: NDArray[np.float64]


def blocks_of(image: NDArray[np.float64], body: Mask) -> Blocks:
    """Choose the blocks, by the standard deviation of the smoothed input in each.

    Parameters
    ----------
    image
        (rows, columns) input; never the candidate, or smoothing would choose its own places.
    body
        (rows, columns). Blocks lie in it as a whole.

    Raises
    ------
    UndefinedError
        The body holds fewer than 4 blocks.
    """
    if min(image.shape) < SIDE:
        raise UndefinedError("the slice is smaller than a block of 32 pixels")
    within = np.lib.stride_tricks.sliding_window_view(body, (SIDE, SIDE))[::_STEP, ::_STEP]
    places = np.argwhere(within.all(axis=(2, 3))) * _STEP
    if len(places) < _FEWEST_BLOCKS:
        raise UndefinedError("the body holds too few blocks of 32 pixels")
    found = _structure(image)[places[:, 0] + SIDE // 2, places[:, 1] + SIDE // 2]
    flat = found <= _NEARLY * np.quantile(found, _FLATTEST)
    steep = found >= np.quantile(found, 1 - _STEEPEST)
    return Blocks(_thinned(places), _thinned(places[flat]), _thinned(places[steep]))


def _structure(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """SD of the smoothed image under the window of the block around each pixel."""
    smooth = ndimage.gaussian_filter(image, _SMOOTH)
    smooth -= np.median(smooth)  # so that squares of large numbers do not cancel
    side = _HANN / _HANN.sum()
    mean, square = (
        ndimage.correlate1d(ndimage.correlate1d(one, side, 0), side, 1)
        for one in (smooth, smooth**2)
    )
    spread: NDArray[np.float64] = np.sqrt(np.maximum(square - mean**2, 0))
    return spread


def _thinned(places: NDArray[np.intp]) -> NDArray[np.intp]:
    """At most 1000 of the places, evenly: more tell nothing more."""
    return places[:: -(-len(places) // _MOST_BLOCKS)]


def _cut(image: NDArray[np.float64], places: NDArray[np.intp]) -> NDArray[np.float64]:
    """(n, 32, 32) blocks."""
    views = np.lib.stride_tricks.sliding_window_view(image, (SIDE, SIDE))
    return views[places[:, 0], places[:, 1]]


def _transformed(image: NDArray[np.float64], places: NDArray[np.intp]) -> NDArray[np.complex128]:
    """(n, 32, 32) Fourier transforms of blocks, scaled so that white noise keeps its variance."""
    blocks = _cut(image, places)
    # The mean under the window, so that nothing is left at frequency 0.
    means = (blocks * _WINDOW).sum(axis=(1, 2), keepdims=True) / _WINDOW.sum()
    found: NDArray[np.complex128] = np.fft.fft2((blocks - means) * _WINDOW)
    found /= np.sqrt(np.square(_WINDOW).sum())
    return found


def noise_power(
    image: NDArray[np.float64],
    places: NDArray[np.intp],
    spacing_mm: tuple[float, float] | None = None,
) -> Spectrum:
    """Noise power spectrum over some blocks.

    Parameters
    ----------
    image
        (rows, columns).
    places
        (n, 2), such as ``blocks_of(...).flat``.
    spacing_mm
        Between rows and columns; None gives frequencies per pixel.
    """
    density = np.square(np.abs(_transformed(image, places))).mean(axis=0)
    radius, ring, count = _rings(spacing_mm)
    spacing = spacing_mm or (1.0, 1.0)
    within = ring < count
    total = density[within].sum()
    return Spectrum(
        frequency=_ring_means(radius, ring, count),
        power=_ring_means(density, ring, count) * spacing[0] * spacing[1],
        sd=float(np.sqrt(density.mean())),
        mean_frequency=float((density * radius)[within].sum() / total) if total > 0 else 0.0,
        spacing_mm=spacing_mm,
    )


def autocorrelation(image: NDArray[np.float64], places: NDArray[np.intp]) -> float:
    """Correlation of pixels one apart in some blocks, in [-1, 1]: 0 is white.

    From the blocks' power, by Wiener and Khinchin; the mean of both directions.

    Raises
    ------
    UndefinedError
        The blocks have one value all over.
    """
    density = np.square(np.abs(_transformed(image, places))).mean(axis=0)
    total = float(density.sum())
    if total == 0:
        raise UndefinedError("the blocks have one value all over")
    turn = np.cos(2 * np.pi * np.fft.fftfreq(SIDE))
    return float((density * (turn[:, None] + turn[None, :])).sum()) / (2 * total)


def transfer(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    blocks: Blocks,
    spacing_mm: tuple[float, float] | None = None,
) -> Transfer:
    """Transfer of structure and of noise, from the cross spectra of an image before and after.

    In a flat block ``S_ba / S_bb`` is what became of noise. A steep block holds the same noise and
    structure, so that ``(S_ba,steep - S_ba,flat) / (S_bb,steep - S_bb,flat)`` is what became of the
    structure: a modulation transfer at the contrasts of the image itself, as the task transfer
    function of TG-233 (Richard et al. 2012, doi:10.1118/1.4725171) is at that of a rod. For a
    linear filter both are its modulation transfer function.

    Parameters
    ----------
    before, after
        (rows, columns).
    blocks
        Of the image before.
    spacing_mm
        As of `noise_power`.
    """
    radius, ring, count = _rings(spacing_mm)
    found = []
    for places in (blocks.steep, blocks.flat):
        one, other = _transformed(before, places), _transformed(after, places)
        own = np.square(np.abs(one)).mean(axis=0)
        cross = (one.conj() * other).real.mean(axis=0)
        found.append((_ring_means(own, ring, count), _ring_means(cross, ring, count)))
    (own, cross), (noise, noise_cross) = found
    clear = own - noise > _LEAST_STRUCTURE * noise
    weight = np.where(clear, own - noise, 0)
    structure, kept = np.full(count, np.nan), np.full(count, np.nan)
    np.divide(cross - noise_cross, own - noise, out=structure, where=clear)
    np.divide(noise_cross, noise, out=kept, where=noise > 0)
    return Transfer(_ring_means(radius, ring, count), structure, kept, weight)


def _rings(
    spacing_mm: tuple[float, float] | None,
) -> tuple[NDArray[np.float64], NDArray[np.intp], int]:
    """Frequency of each sample, its ring (the last, `count`, is none), and how many there are."""
    rows, columns = (np.fft.fftfreq(SIDE, side) for side in spacing_mm or (1.0, 1.0))
    radius = np.hypot(rows[:, None], columns[None, :])
    width = max(rows[1], columns[1])
    nyquist = min(np.abs(rows).max(), np.abs(columns).max())
    count = int(nyquist / width + 1e-9) - _LOWEST + 1
    # The mean under Hann's window takes power from frequencies up to 1 / side with it.
    ring = np.rint(radius / width).astype(np.intp) - _LOWEST
    ring[(ring < 0) | (ring >= count) | (radius > nyquist * (1 + 1e-9))] = count
    return radius, ring, count


def _ring_means(
    values: NDArray[np.float64], ring: NDArray[np.intp], count: int
) -> NDArray[np.float64]:
    sums = np.bincount(ring.ravel(), values.ravel(), count + 1)[:count]
    return sums / np.bincount(ring.ravel(), minlength=count + 1)[:count]
