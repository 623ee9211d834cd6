"""Structure that the input does not support, and structure that was taken away with the noise.

Where a perfect denoiser leaves the truth, the residual (input minus candidate) is the input's
noise. So what stands out of the noise of the residual is either structure that the candidate has
and the input has not, *added*, or structure of the input that the candidate has lost, *removed*::

    band_s = G_s - G_2s                    at s = 1, 2, 4, 8 pixels: blobs 3 to 25 pixels wide
    z_s    = band_s(candidate - input) / noise_s

``noise_s`` at a pixel is the robust SD of that band of the residual over the body, times how
strong the residual's finest band is around the pixel (a CT is noisier in its middle), and at least
what white noise of the input's strength has in that band. The first makes no assumption on the
noise's spectrum; the second keeps a candidate that changes next to nothing from being found guilty
of it.

The limit of |z| holds the chance of any false finding on the slice: the expected Euler
characteristic of a Gaussian field (Worsley et al. 1996, Human Brain Mapping 4, 58),
with the field's own roughness, or Bonferroni's over the pixels, whichever is lower; shared between
scales and signs; widened by Student's distribution because the noise is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize, stats

from medqa.quality.areas import Mask, UndefinedError
from medqa.quality.noise import wavelet_noise

__all__ = ["SCALES", "Finding", "Support", "support"]

#: Gaussian sigmas of the bands, in pixels.
SCALES = (1.0, 2.0, 4.0, 8.0)

_NORMAL = 0.6744897501960817  # third quartile of the standard normal distribution
_NEAR = 16.0  # pixels; sigma of the neighbourhood whose noise counts
_FEWEST_CELLS = 50  # independent samples that a band's noise is estimated from
_EFFICIENCY = 0.37  # of the median absolute deviation beside the standard deviation
# ||G_s - G_2s|| = gain / s: sqrt((1/4 + 1/16 - 1/5) / pi).
_GAIN = math.sqrt(0.1125 / math.pi)
_JOIN = 2  # pixels; the ring around a blob is no finding of its own
_CORE = 0.5  # of the largest change: what of a finding its contrast is measured over
_RING = 4  # pixels wide, beside the core
_MARGIN = _JOIN + _RING
# A band has a ring of the other sign around a blob, of 0.10 to 0.12 of its peak, deepest at 2.7 to
# 3.5 sigmas (in closed form, of Gaussian blobs from 0 to the band's own sigma); noise adds to it.
_LOBE, _LOBE_REACH = 0.2, 4.0
_SQUARE = np.ones((3, 3), np.bool_)
_FLAT = 1e-9  # of the range of values: what rounding leaves


@dataclass(frozen=True)
class Finding:
    """A place where the candidate and its input differ by more than noise.

    Parameters
    ----------
    kind
        ``added``: the candidate has more contrast to its surroundings than the input there;
        ``removed``: less.
    row, column
        Where |z| is largest.
    z
        There; positive where the candidate is brighter than the input. Beyond the limit.
    scale
        Sigma of the band there, in pixels.
    pixels
        How many pixels are beyond the limit.
    difference
        Contrast of the candidate minus that of the input, in the image's unit: means of the part
        that changed by at least half of the most, each minus the mean of a ring around it.
    """

    kind: Literal["added", "removed"]
    row: int
    column: int
    z: float
    scale: float
    pixels: int
    difference: float


@dataclass(frozen=True, eq=False)
class Support:
    """What is not explained by noise.

    Parameters
    ----------
    findings
        Strongest first.
    z
        (rows, columns) float32, the largest of the scales by size, positive where the candidate is
        brighter; 0 outside the body.
    limit
        Of |z|, by scale.
    level
        Chance, at most, of one false finding or more.
    """

    findings: tuple[Finding, ...]
    z: NDArray[np.float32]
    limit: dict[float, float]
    level: float

    def of(self, kind: Literal["added", "removed"]) -> tuple[Finding, ...]:
        """Return the findings of one kind, strongest first."""
        return tuple(one for one in self.findings if one.kind == kind)


def support(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    body: Mask,
    level: float = 0.01,
) -> Support:
    """Find structure that was added or removed beyond the noise of the input.

    Parameters
    ----------
    before, after
        (rows, columns) input and candidate; of super-resolution, the input and the candidate
        brought back to its grid by `lowered`.
    body
        (rows, columns).
    level
        Chance, at most, of one false finding or more on this slice.

    Raises
    ------
    UndefinedError
        The body is too small, or the input has no noise.
    """
    white = wavelet_noise(before, body)
    if white <= _FLAT * float(np.ptp(before)):
        raise UndefinedError("the input has no noise to compare with")
    shift = float(np.median((after - before)[body]))
    change = np.where(body, after - before - shift, 0.0).astype(np.float32)
    near = _neighbourhood(change, body)
    strongest = np.zeros(before.shape, np.float32)  # over its limit
    z = np.zeros(before.shape, np.float32)
    scale_at = np.zeros(before.shape, np.float32)
    limits = {}
    for scale, band in _bands(change, body):
        noise = np.maximum(near * _spread(band / near, body), white * _GAIN / scale)
        found = np.where(body, band / noise, 0).astype(np.float32)
        limits[scale] = _limit(found, body, scale, level)
        over = np.abs(found) / np.float32(limits[scale])
        more = over > strongest
        strongest[more], z[more], scale_at[more] = over[more], found[more], scale
    if not limits:
        raise UndefinedError("the body is too small to look for structure in noise")
    findings = _findings(before, after, strongest, z, scale_at)
    return Support(findings, z, limits, level)


def _bands(change: NDArray[np.float32], body: Mask) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Each scale, and the band of the change; as long as the body holds enough cells of it."""
    fine = ndimage.gaussian_filter(change, SCALES[0])
    for scale in SCALES:
        if _cells(body, scale) < _FEWEST_CELLS:
            return
        coarse = ndimage.gaussian_filter(change, 2 * scale)
        yield scale, fine - coarse
        fine = coarse


def _cells(body: Mask, scale: float) -> float:
    """How many independent values a band of white noise has in the body."""
    return float(np.count_nonzero(body) / (4 * math.pi * scale**2))


def _neighbourhood(change: NDArray[np.float32], body: Mask) -> NDArray[np.float32]:
    """Mean size of the finest band around each pixel, over its mean in the body; 1 outside."""
    finest = np.abs(change - ndimage.gaussian_filter(change, SCALES[0])) * body
    overall = float(finest[body].mean())
    if overall == 0:
        return np.ones_like(change)
    weight = ndimage.gaussian_filter(body.astype(np.float32), _NEAR)
    around = ndimage.gaussian_filter(finest, _NEAR) / np.maximum(weight, np.float32(1e-6))
    # Where the candidate leaves the input as it is, the white noise takes over.
    return np.where(body, np.maximum(around / overall, 1e-3), 1).astype(np.float32)


def _spread(values: NDArray[np.float32], body: Mask) -> float:
    """Robust standard deviation about 0."""
    return float(np.median(np.abs(values[body]))) / _NORMAL


def _limit(z: NDArray[np.float32], body: Mask, scale: float, level: float) -> float:
    """Return the |z| that pure noise exceeds anywhere in the body with a chance of `level`."""
    share = level / (2 * len(SCALES))
    area = float(np.count_nonzero(body))
    border = area - float(np.count_nonzero(ndimage.binary_erosion(body)))
    # Roughness: SD of the gradient, robust because structure is no part of it.
    rough = [_spread(np.diff(z, axis=axis), np.delete(body, -1, axis)) for axis in (0, 1)]
    plane, line = rough[0] * rough[1] * area, (rough[0] + rough[1]) / 2 * border / 2

    def chance(limit: float) -> float:
        tail = float(stats.norm.sf(limit))
        decay = math.exp(-(limit**2) / 2)
        field = plane * limit * decay / (2 * math.pi) ** 1.5 + line * decay / (2 * math.pi) + tail
        return float(min(field, area * tail))

    limit: float = optimize.brentq(lambda x: math.log(chance(x) / share), 1.0, 20.0)
    freedom = _EFFICIENCY * _cells(body, scale)
    return float(stats.t.isf(stats.norm.sf(limit), freedom))


def _findings(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    strongest: NDArray[np.float32],
    z: NDArray[np.float32],
    scale_at: NDArray[np.float32],
) -> tuple[Finding, ...]:
    """Join what is beyond the limit; the ring of a blob belongs to it."""
    beyond = strongest > 1
    if not beyond.any():
        return ()
    joined = ndimage.binary_dilation(beyond, _SQUARE, _JOIN)
    labels, count = ndimage.label(joined, _SQUARE)
    peaks = ndimage.maximum_position(strongest, labels, range(1, count + 1))
    # At half the band's sigma: the band itself is wider than the lesion.
    smooth = {
        scale: ndimage.gaussian_filter(after - before, scale / 2)
        for scale in {float(scale_at[peak]) for peak in peaks}
    }
    found = []
    for label, (box, peak) in enumerate(zip(ndimage.find_objects(labels), peaks, strict=True), 1):
        own = (labels[box] == label) & beyond[box]
        change = smooth[float(scale_at[peak])][box] * np.sign(z[peak])
        most = change[own].max()
        core = own & (change >= _CORE * most) if most > 0 else own
        contrasts = _contrasts(before, after, core, box)
        finding = Finding(
            kind="added" if abs(contrasts[1]) > abs(contrasts[0]) else "removed",
            row=int(peak[0]),
            column=int(peak[1]),
            z=float(z[peak]),
            scale=float(scale_at[peak]),
            pixels=int(np.count_nonzero(own)),
            difference=contrasts[1] - contrasts[0],
        )
        found.append((float(strongest[peak]), finding))
    return _without_lobes([one for _, one in sorted(found, key=lambda pair: -pair[0])])


def _without_lobes(found: list[Finding]) -> tuple[Finding, ...]:
    """Leave out what is the ring of a stronger finding; strongest first."""
    kept: list[Finding] = []
    for one in found:
        for other in kept:
            away = math.hypot(one.row - other.row, one.column - other.column)
            faint = -_LOBE <= one.z / other.z < 0
            if faint and away <= _LOBE_REACH * other.scale:
                break
        else:
            kept.append(one)
    return tuple(kept)


def _contrasts(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    core: Mask,
    box: tuple[slice, slice],
) -> tuple[float, float]:
    """Mean of the core minus mean of a ring around it, before and after."""
    rows, columns = (slice(max(side.start - _MARGIN, 0), side.stop + _MARGIN) for side in box)
    one, other = before[rows, columns], after[rows, columns]
    inside = np.zeros(one.shape, np.bool_)
    inside[box[0].start - rows.start :, box[1].start - columns.start :][
        : core.shape[0], : core.shape[1]
    ] = core
    near = ndimage.binary_dilation(inside, _SQUARE, _JOIN)
    ring = ndimage.binary_dilation(near, _SQUARE, _RING) & ~near
    first, second = (float(image[inside].mean() - image[ring].mean()) for image in (one, other))
    return first, second
