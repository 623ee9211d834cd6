"""The residual, input minus candidate: whether it is noise that was taken away, or anatomy.

A denoiser should take away what looks like noise and nothing else; the residual, the *method
noise* of Buades et al. 2005 (doi:10.1137/040616024), shows what it took. Compared with the input's
own noise, measured in flat parts of the body, it says how much of that was no noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medqa.quality.areas import Mask, UndefinedError
from medqa.studies.enhancement.spectra import Blocks, autocorrelation, noise_power

__all__ = ["Residual", "residual_of", "structure_map"]

_LOCAL = 2.0  # pixels; sigma of the neighbourhood that a local strength is taken over
_SLOPE = 2.0  # pixels; sigma at which the input's edges are found
_EDGE_SHARE, _FLAT_SHARE = 0.15, 0.5  # steepest and flattest parts of the body
_NEAR = 16.0  # pixels; how far the flat parts lie that an edge is compared with
_FEWEST_PIXELS = 400
_ROUNDING = 1e-9  # of the range of values


@dataclass(frozen=True)
class Residual:
    """What was taken away, over the body.

    Parameters
    ----------
    mean, sd
        Of the residual, in the image's unit; a mean apart from 0 is a shift of brightness.
    edge_correlation
        Pearson correlation of the local strength of the residual with the steepness of the input,
        in [-1, 1]: 0 where noise is the same at edges; above, more was taken from edges.
    edge_excess
        Variance of the residual at edges over that in flat parts nearby, minus 1: 0 where the
        noise alone was taken; above, edges were taken with it; below, noise was left at edges.
    autocorrelation, noise_autocorrelation
        Correlation of neighbouring pixels of the residual in all blocks, and of the input's
        noise in flat ones: the residual of a perfect denoiser has that of the noise.
    excess
        Share of the residual's power that lies above the noise power spectrum of the input,
        in [0, 1]; lower is better: noise cannot explain it.
    """

    mean: float
    sd: float
    edge_correlation: float
    edge_excess: float
    autocorrelation: float
    noise_autocorrelation: float
    excess: float


def residual_of(
    before: NDArray[np.float64], after: NDArray[np.float64], body: Mask, blocks: Blocks
) -> Residual:
    """Measure the residual of a slice.

    Parameters
    ----------
    before, after
        (rows, columns) input and candidate.
    body
        (rows, columns).
    blocks
        `blocks_of` the input.

    Raises
    ------
    UndefinedError
        Nothing was taken away, or the body is too small.
    """
    removed = before - after
    inside = removed[body]
    if inside.size < _FEWEST_PIXELS:
        raise UndefinedError("the body is too small to measure a residual")
    if np.ptp(inside) <= _ROUNDING * np.ptp(before):
        raise UndefinedError("nothing was taken away")
    removed = removed - inside.mean()
    correlation, ratio = _at_edges(removed, before, body)
    every, flat = noise_power(removed, blocks.all), noise_power(before, blocks.flat)
    # The rings' power weighted by their size: frequency, as the area of a ring grows with it.
    weight = every.frequency
    above = float((np.maximum(every.power - flat.power, 0) * weight).sum())
    return Residual(
        mean=float(inside.mean()),
        sd=float(inside.std()),
        edge_correlation=correlation,
        edge_excess=ratio - 1,
        autocorrelation=autocorrelation(removed, blocks.all),
        noise_autocorrelation=autocorrelation(before, blocks.flat),
        excess=above / float((every.power * weight).sum()),
    )


def structure_map(
    before: NDArray[np.float64], after: NDArray[np.float64], body: Mask
) -> NDArray[np.float32]:
    """Local strength of the residual over that of the flat parts nearby; for a picture.

    Returns
    -------
    (rows, columns): near 1 is noise, above 1 more was taken away than noise, 0 outside the body.
    """
    removed = before - after
    removed = removed - removed[body].mean()
    _, flat = _steepness(before, body)
    strength = _around(removed**2, body, _LOCAL)
    beside = _around(removed**2, flat, _NEAR)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(body & (beside > 0), np.sqrt(strength / beside), 0)
    return found.astype(np.float32)


def _at_edges(
    removed: NDArray[np.float64], before: NDArray[np.float64], body: Mask
) -> tuple[float, float]:
    """Correlation of strength and steepness, and variance at edges over that beside them."""
    steepness, flat = _steepness(before, body)
    strength = np.sqrt(_around(removed**2, body, _LOCAL))
    one, other = steepness[body], strength[body]
    if np.ptp(one) == 0:
        raise UndefinedError("the input has one value all over")
    correlation = float(np.corrcoef(one, other)[0, 1]) if np.ptp(other) > 0 else 0.0
    edges = body & (steepness >= np.quantile(one, 1 - _EDGE_SHARE))
    beside = _around(removed**2, flat, _NEAR)[edges]
    own = (removed[edges] ** 2)[beside > 0]
    if own.size == 0:
        raise UndefinedError("nothing was taken away beside edges")
    return correlation, float(own.mean() / beside[beside > 0].mean())


def _steepness(before: NDArray[np.float64], body: Mask) -> tuple[NDArray[np.float64], Mask]:
    """Gradient magnitude of the smoothed input, and the flattest half of the body."""
    steepness: NDArray[np.float64] = ndimage.gaussian_gradient_magnitude(before, _SLOPE)
    return steepness, body & (steepness <= np.quantile(steepness[body], _FLAT_SHARE))


def _around(values: NDArray[np.float64], mask: Mask, sigma: float) -> NDArray[np.float64]:
    """Mean over the pixels of a mask around each pixel; 0 where there is none."""
    weight = ndimage.gaussian_filter(mask.astype(np.float64), sigma)
    sums = ndimage.gaussian_filter(np.where(mask, values, 0.0), sigma)
    near = weight > 1e-6
    return np.where(near, sums / np.where(near, weight, 1), 0)
