"""Estimates with 95 % intervals that count patients, not images.

Images of one patient are alike, so several of them tell less than as many of different patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medqa.studies.readers import JudgedImage

__all__ = ["Estimate", "counted", "resampled", "share"]

_CONFIDENCE = 0.95
_RESAMPLES = 1000
_SEED = 20261120  # any fixed one: the same table gives the same page
_UNDEFINED = 0.05  # more undefined samples than this share, and there is no interval


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; `low` and `high` are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


def resampled(
    images: Sequence[JudgedImage], statistic: Callable[[Sequence[JudgedImage]], float]
) -> Estimate | None:
    """Estimate with a bootstrap interval: patients drawn with replacement, percentiles.

    Parameters
    ----------
    statistic
        Of some of the images; NaN where it is undefined for them.

    Returns
    -------
    None where the statistic is undefined for the images themselves. No interval where it is
    undefined for many samples, or the same for all: that says nothing about other images.
    """
    value = statistic(images)
    if math.isnan(value):
        return None
    patients: dict[str, list[JudgedImage]] = {}
    for image in images:
        patients.setdefault(image.patient, []).append(image)
    groups = list(patients.values())
    if len(groups) < 2:
        return Estimate(value)

    def drawn(indices: np.ndarray) -> float:
        return statistic([image for index in indices for image in groups[index]])

    found = stats.bootstrap(
        (np.arange(len(groups)),),
        drawn,
        vectorized=False,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).bootstrap_distribution
    if np.isnan(found).mean() > _UNDEFINED or np.nanmin(found) == np.nanmax(found):
        return Estimate(value)
    tail = (1.0 - _CONFIDENCE) / 2.0
    low, high = np.nanquantile(found, [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high))


def share(images: Sequence[JudgedImage], holds: Callable[[JudgedImage], bool]) -> Estimate | None:
    """Share of the images that something holds for, with a Clopper–Pearson interval.

    The interval is as wide as if each patient had a single image with that share (Korn and
    Graubard 1998 with the smallest effective number): never too narrow.

    Returns
    -------
    None without images.
    """
    from statsmodels.stats.proportion import proportion_confint

    if not images:
        return None
    value = sum(map(holds, images)) / len(images)
    patients = len({image.patient for image in images})
    low, high = proportion_confint(
        value * patients, patients, alpha=1.0 - _CONFIDENCE, method="beta"
    )
    return Estimate(value, float(low), float(high))


def counted(count: int, of: int) -> Estimate:
    """Share with a Clopper–Pearson interval, as if all that were counted were independent."""
    found = stats.binomtest(count, of).proportion_ci(_CONFIDENCE, method="exact")
    return Estimate(count / of, float(found.low), float(found.high))
