"""Whether a candidate treats the slices of a volume alike, or flickers from one to the next.

A denoiser that works slice by slice may shift the brightness of single slices, or take more from
one than from its neighbours; a reader who scrolls sees that as flicker. The residual shows it free
of anatomy: its mean and its standard deviation on each slice, and how they change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medqa.quality.areas import Mask

__all__ = ["OUTLIER", "SliceChange", "VolumeConsistency", "consistency", "through_plane"]

#: A slice whose robust z is beyond this stands out (Iglewicz and Hoaglin 1993, 3.5).
OUTLIER = 3.5

_NORMAL = 0.6744897501960817  # third quartile of the standard normal distribution
_FEWEST_SLICES = 5
_AROUND = 2  # slices on either side
_FEWEST_PIXELS = 100
_ROUNDING = 1e-9  # of the median SD of the residuals: below, slices are the same


@dataclass(frozen=True)
class SliceChange:
    """What was taken away from one slice.

    Parameters
    ----------
    index
        Of the slice in the volume.
    mean, sd
        Of the residual in the body, in the image's unit.
    correlation
        Pearson correlation of the residual with that of the slice before, over both bodies; None
        for the first, or where either is constant or the bodies hardly meet.
    """

    index: int
    mean: float
    sd: float
    correlation: float | None


@dataclass(frozen=True)
class VolumeConsistency:
    """How alike the slices of a volume were treated.

    Parameters
    ----------
    flicker
        Median size of the change of the residual's mean from slice to slice, over the median
        standard deviation of the residual; 0 is steady, lower is better.
    worst_mean, worst_sd
        Largest robust z of a slice's mean and logarithm of SD, beside its neighbours.
    outliers
        Slices and their robust z, of which either is beyond 3.5; worst first.
    correlation
        Median through-plane correlation of the residual: 0 where noise was taken that is
        independent between slices; above, anatomy, which goes on from slice to slice, was taken
        with it, or slices that overlap share their noise. None where there is none.
    """

    flicker: float
    worst_mean: float
    worst_sd: float
    outliers: tuple[tuple[int, float], ...]
    correlation: float | None


def through_plane(
    slices: Iterable[tuple[NDArray[np.float64], NDArray[np.float64], Mask]],
) -> list[SliceChange]:
    """Measure slices in order; two are held in memory.

    Parameters
    ----------
    slices
        Input, candidate and body of each slice, (rows, columns). A slice with a body of fewer
        than 100 pixels is left out.
    """
    found = []
    previous: tuple[NDArray[np.float64], Mask] | None = None
    for index, (before, after, body) in enumerate(slices):
        removed = before - after
        inside = removed[body]
        if inside.size < _FEWEST_PIXELS:
            previous = None
            continue
        correlation = None if previous is None else _correlation(removed, body, *previous)
        found.append(SliceChange(index, float(inside.mean()), float(inside.std()), correlation))
        previous = removed, body
    return found


def _correlation(
    one: NDArray[np.float64], body: Mask, other: NDArray[np.float64], other_body: Mask
) -> float | None:
    both = body & other_body
    if np.count_nonzero(both) < _FEWEST_PIXELS:
        return None
    first, second = one[both], other[both]
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def consistency(slices: list[SliceChange]) -> VolumeConsistency | None:
    """Sum up a volume; None of fewer than 5 slices.

    A slice is compared with the median of the two slices on either side, so that what changes
    slowly through the body is no outlier.
    """
    if len(slices) < _FEWEST_SLICES:
        return None
    means = np.array([one.mean for one in slices])
    sds = np.array([one.sd for one in slices])
    typical = float(np.median(sds))
    if typical == 0:
        return VolumeConsistency(0.0, 0.0, 0.0, (), None)
    of_mean = _robust_z(means, _ROUNDING * typical)
    of_sd = _robust_z(np.log(np.maximum(sds, _ROUNDING * typical)), _ROUNDING)
    worst = np.where(np.abs(of_mean) >= np.abs(of_sd), of_mean, of_sd)
    order = np.argsort(-np.abs(worst), kind="stable")
    found = [one.correlation for one in slices if one.correlation is not None]
    return VolumeConsistency(
        flicker=float(np.median(np.abs(np.diff(means)))) / typical,
        worst_mean=float(np.abs(of_mean).max()),
        worst_sd=float(np.abs(of_sd).max()),
        outliers=tuple(
            (slices[at].index, float(worst[at])) for at in order if abs(worst[at]) > OUTLIER
        ),
        correlation=float(np.median(found)) if found else None,
    )


def _robust_z(values: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Difference of each value from the median of those around it, over the typical one."""
    around = [
        np.median(np.concatenate([values[max(at - _AROUND, 0) : at], values[at + 1 :][:_AROUND]]))
        for at in range(len(values))
    ]
    away: NDArray[np.float64] = values - np.array(around)
    spread = float(np.median(np.abs(away - np.median(away)))) / _NORMAL
    return away / max(spread, least)
