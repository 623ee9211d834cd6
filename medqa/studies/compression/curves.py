"""Rate and distortion: the distance at each ratio, and where it crosses a limit.

Intervals are percentiles of a bootstrap that draws *sources* with replacement (Efron 1979; the
cluster bootstrap of Davison and Hinkley 1997, 3.8): the images of one series are alike, so they are
drawn together. The fit is the isotonic regression of the logarithm of the distance (Barlow 1972):
a higher ratio does not make an image better, and nothing else is assumed of the curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from medqa.studies.intervals import Estimate

__all__ = ["FLOOR", "Crossing", "Curve", "Point", "crossing_of", "curve"]

#: A distance that nobody could tell from none; what is smaller is taken for it in a logarithm.
FLOOR = 1e-6

_RESAMPLES = 1000
_SEED = 20261121  # any fixed one: the same table gives the same page
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Point:
    """The images at one ratio.

    Parameters
    ----------
    ratio
        As it was asked for.
    distance
        Median LPIPS of the images, with a 95 % interval; no interval of a single source.
    lowest, highest
        Of the images.
    """

    ratio: float
    distance: Estimate
    lowest: float
    highest: float


@dataclass(frozen=True)
class Crossing:
    """The ratio at which the median image reaches a limit.

    Parameters
    ----------
    ratio
        None where the limit is not reached within the ratios studied.
    beyond
        Where it is not reached: ``above`` the highest ratio, or already ``below`` the lowest.
    low, high
        Ends of the 95 % interval, where at least 95 % of the samples reach the limit in between;
        an end outside the ratios studied is None.
    """

    ratio: float | None
    beyond: str | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """Distance by ratio, and where it crosses the limit; `points` by ascending ratio."""

    points: tuple[Point, ...]
    limit: float
    crossing: Crossing


def curve(
    ratios: Sequence[float],
    distances: ArrayLike,
    sources: Sequence[object],
    limit: float,
    *,
    resamples: int = _RESAMPLES,
) -> Curve:
    """Make the curve of one kind of image and one codec.

    Parameters
    ----------
    ratios
        (r,) ascending, above 0.
    distances
        (n, r) LPIPS of every image at every ratio; NaN where an image has none there.
    sources
        (n,) where each image comes from: those of one source are drawn together.
    limit
        LPIPS, above 0.
    resamples
        Samples of the bootstrap.
    """
    # (n, r), in logarithms
    logs = np.log(np.maximum(np.asarray(distances, np.float64), FLOOR))
    medians = np.exp(_medians(logs[None])[0])
    drawn = _drawn(logs, sources, resamples)  # (resamples, r) medians of logarithms
    points = tuple(
        Point(
            ratio,
            Estimate(float(median), *_interval(np.exp(drawn[:, at]))),
            float(np.nanmin(column)) if np.isfinite(column).any() else math.nan,
            float(np.nanmax(column)) if np.isfinite(column).any() else math.nan,
        )
        for at, (ratio, median, column) in enumerate(
            zip(ratios, medians, np.asarray(distances, np.float64).T, strict=True)
        )
    )
    return Curve(points, limit, _crossing(ratios, medians, drawn, limit))


def crossing_of(ratios: Sequence[float], distances: Sequence[float], limit: float) -> float:
    """Ratio at which a monotone fit of distances reaches a limit.

    The fit is a step for each ratio, joined by straight lines in the logarithms of both.

    Returns
    -------
    0 where the limit is exceeded at the lowest ratio already, infinity where it is not exceeded at
    the highest, NaN where there are no distances.
    """
    logs = np.log(np.maximum(np.asarray(distances, np.float64), FLOOR))
    known = np.isfinite(logs)
    if not known.any():
        return math.nan
    x, y = np.log(np.asarray(ratios, np.float64)[known]), isotonic_regression(logs[known]).x
    wanted = math.log(limit)
    if y[0] > wanted:
        return 0.0
    if y[-1] <= wanted:
        return math.inf
    after = int(np.argmax(y > wanted))  # the first that exceeds it, so y[after - 1] does not
    share = (wanted - y[after - 1]) / (y[after] - y[after - 1])
    return float(np.exp(x[after - 1] + share * (x[after] - x[after - 1])))


def _crossing(
    ratios: Sequence[float], medians: NDArray[np.float64], drawn: NDArray[np.float64], limit: float
) -> Crossing:
    at = crossing_of(ratios, medians.tolist(), limit)
    if math.isnan(at):
        return Crossing(None)
    # 0 and infinity keep their order, so that quantiles by rank hold for them too.
    found = np.array([crossing_of(ratios, np.exp(one).tolist(), limit) for one in drawn])
    found = found[~np.isnan(found)]
    ends: list[float | None] = [None, None]
    if len(found):
        low, high = np.quantile(found, _TAILS, method="nearest")
        ends = [float(one) if 0 < one < math.inf else None for one in (low, high)]
    if at == 0:
        return Crossing(None, "below", ends[0], ends[1])
    if at == math.inf:
        return Crossing(None, "above", ends[0], ends[1])
    return Crossing(at, None, ends[0], ends[1])


def _drawn(
    logs: NDArray[np.float64], sources: Sequence[object], resamples: int
) -> NDArray[np.float64]:
    """Medians of images whose sources were drawn: (resamples, r); none of a single source."""
    groups: dict[object, list[int]] = {}
    for index, source in enumerate(sources):
        groups.setdefault(source, []).append(index)
    members = [np.array(one) for one in groups.values()]
    if len(members) < 2:
        return np.empty((0, logs.shape[1]))
    generator = np.random.default_rng(_SEED)
    choices = generator.integers(len(members), size=(resamples, len(members)))
    if len(members) == len(logs):  # one image each: all samples are of one size
        return _medians(logs[np.concatenate(members)[choices]])
    return np.concatenate(
        [_medians(logs[np.concatenate([members[i] for i in one])][None]) for one in choices]
    )


def _medians(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Medians over n of (samples, n, r) that leave NaN out: (samples, r); NaN where all are."""
    if not np.isnan(samples).any():
        return np.asarray(np.median(samples, axis=1))
    found = np.full((len(samples), samples.shape[2]), np.nan)
    some = ~np.isnan(samples).all(axis=1)
    for sample, at in zip(*np.nonzero(some), strict=True):
        found[sample, at] = np.nanmedian(samples[sample, :, at])
    return found


def _interval(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    values = values[~np.isnan(values)]
    if not len(values):
        return None, None
    low, high = np.quantile(values, _TAILS)
    return float(low), float(high)
