"""Control charts of one measure of one device: what it was, what it is, and where it is going.

Two charts beside each other. The *individuals* chart (Shewhart) has limits at three sigma and finds
a jump at once; the *EWMA* chart averages with weights that fade and finds a slow drift sooner.
Sources: NIST/SEMATECH e-Handbook of Statistical Methods, 6.3.2 (Western Electric rules), 6.3.2.2
(individuals) and 6.3.2.4 (EWMA).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, theilslopes

__all__ = [
    "BASELINE",
    "RULES",
    "SMALLEST_BASELINE",
    "Baseline",
    "Better",
    "Chart",
    "Rule",
    "Side",
    "Signal",
    "Trend",
    "baseline",
    "chart",
    "ewma",
    "ewma_limit",
    "signals",
    "trend",
    "worse",
]

Better = Literal["lower", "higher", "neither"]
Rule = Literal["beyond 3 sigma", "2 of 3", "4 of 5", "8 in a row", "EWMA"]
Side = Literal["above", "below"]

#: What each rule calls. The first four are the Western Electric rules 1 to 4 (Statistical Quality
#: Control Handbook, 1956), each counted on one side of the centre line.
RULES: dict[Rule, str] = {
    "beyond 3 sigma": "a point beyond the limits, three sigma from the centre (rule 1)",
    "2 of 3": "two of three points in a row beyond two sigma, on one side (rule 2)",
    "4 of 5": "four of five points in a row beyond one sigma, on one side (rule 3)",
    "8 in a row": "eight points in a row on one side of the centre (rule 4)",
    "EWMA": "the weighted average of the points so far beyond its limits",
}

#: Points that make the baseline, unless the caller says otherwise; and the fewest that may.
BASELINE = 20
SMALLEST_BASELINE = 10

# Mean range of two independent normal values, in sigma: d2 of NIST 6.3.2.2.
_D2 = 1.128
# NIST 6.3.2.4 advises a weight between 0.2 and 0.3 and limits at three sigma of the average.
_WEIGHT = 0.2
_WIDTH = 3.0
# A trend is looked for in the newest points, and called where chance makes it once in a hundred.
_TREND_POINTS = 30
_SMALLEST_TREND = 10
_TREND_P = 0.01


@dataclass(frozen=True)
class Baseline:
    """What a measure was while the device was taken to be in order.

    Parameters
    ----------
    centre
        Mean, in the measure's unit.
    sigma
        Standard deviation, from the mean moving range; 0 where the measure never varied.
    count
        How many points it is of.
    outside
        How many of these lie beyond three sigma themselves. Any is a reason to look at them: a
        baseline of a device out of order hides what comes after.
    """

    centre: float
    sigma: float
    count: int
    outside: int = 0

    @property
    def limits(self) -> tuple[float, float]:
        """Lower and upper limit of the individuals chart."""
        return self.centre - 3 * self.sigma, self.centre + 3 * self.sigma


@dataclass(frozen=True)
class Signal:
    """A rule that a point completes; `index` counts all points, those of the baseline too."""

    index: int
    rule: Rule
    side: Side


@dataclass(frozen=True)
class Trend:
    """Where the newest points are going.

    Parameters
    ----------
    word
        ``improving``, ``stable`` or ``degrading``; ``changing`` where neither direction is better.
    per_month
        Median slope (Theil and Sen), in the measure's unit for 30 days.
    p
        Two-sided, of the Mann-Kendall test.
    points
        How many points it is of.
    """

    word: Literal["improving", "stable", "degrading", "changing"]
    per_month: float
    p: float
    points: int


@dataclass(frozen=True)
class Chart:
    """Both charts of a series.

    Parameters
    ----------
    baseline
        None where there is not enough history; then nothing is called.
    ewma
        The weighted average at each point after the baseline.
    ewma_limits
        Lower and upper; None where nothing is charted, or the baseline never varied.
    signals
        In the order of the points, on both sides.
    trend
        None where there are too few points, or all are of one day.
    """

    baseline: Baseline | None
    ewma: tuple[float, ...]
    ewma_limits: tuple[float, float] | None
    signals: tuple[Signal, ...]
    trend: Trend | None


def chart(
    values: Sequence[float], days: Sequence[float], better: Better, first: int = BASELINE
) -> Chart:
    """Chart a series: the first points are the baseline, and the later ones are held against it.

    Parameters
    ----------
    values
        (n,) finite, in order of time.
    days
        (n,) when, in days from any day.
    better
        Which direction is better; for the trend's word.
    first
        Points of the baseline, at least `SMALLEST_BASELINE`. It is fixed: later points never
        move it.
    """
    slope = trend(values, days, better)
    if len(values) < max(first, SMALLEST_BASELINE):
        return Chart(None, (), None, (), slope)
    found, later = baseline(values[:first]), values[first:]
    limit = ewma_limit(found.sigma)
    return Chart(
        baseline=found,
        ewma=tuple(ewma(later, found.centre).tolist()),
        ewma_limits=(found.centre - limit, found.centre + limit) if limit else None,
        signals=signals(later, found),
        trend=slope,
    )


def baseline(values: Sequence[float]) -> Baseline:
    """Centre and sigma of points that are taken to be in order (NIST 6.3.2.2).

    The mean moving range is of neighbours, so that a slow drift within the baseline does not
    widen the limits as the plain standard deviation would.
    """
    given = np.asarray(values, np.float64)
    centre, sigma = float(given.mean()), float(np.abs(np.diff(given)).mean()) / _D2
    outside = np.abs(_deviations(given, centre, sigma)) > 3
    return Baseline(centre, sigma, len(given), int(outside.sum()))


def ewma(values: Sequence[float], start: float, weight: float = _WEIGHT) -> NDArray[np.float64]:
    """(n,) exponentially weighted moving average, begun at `start` (NIST 6.3.2.4)."""
    averages = accumulate(values, lambda z, x: weight * x + (1 - weight) * z, initial=start)
    return np.fromiter(averages, np.float64)[1:]


def ewma_limit(sigma: float, weight: float = _WEIGHT, width: float = _WIDTH) -> float:
    """Distance of the EWMA's limits from its centre, once it has run for a while (6.3.2.4)."""
    return width * sigma * math.sqrt(weight / (2 - weight))


def signals(values: Sequence[float], found: Baseline) -> tuple[Signal, ...]:
    """Rules that points after a baseline break, on both sides, in order.

    A run is counted from the first point after the baseline. A point that lies within the zone of
    a rule does not complete it: the rule was complete before it. Where the baseline never varied,
    the EWMA has no limits, and any point that differs is beyond the others'.
    """
    given = np.asarray(values, np.float64)
    z = _deviations(given, found.centre, found.sigma)
    average = ewma(values, found.centre) - found.centre
    limit = ewma_limit(found.sigma)
    called = []
    sides: tuple[tuple[Side, int], ...] = (("above", 1), ("below", -1))
    for side, sign in sides:
        high = sign * z
        broken: dict[Rule, NDArray[np.bool_]] = {
            "beyond 3 sigma": high > 3,
            "2 of 3": _runs(high > 2, 2, 3),
            "4 of 5": _runs(high > 1, 4, 5),
            "8 in a row": _runs(high > 0, 8, 8),
            "EWMA": (sign * average > limit) & (limit > 0),
        }
        for rule, where in broken.items():
            called += [Signal(found.count + int(i), rule, side) for i in np.flatnonzero(where)]
    return tuple(sorted(called, key=lambda one: one.index))


def trend(values: Sequence[float], days: Sequence[float], better: Better) -> Trend | None:
    """Trend of the newest 30 points; None of fewer than 10, or of a single day.

    Kendall's tau of value against day (the test of Mann 1945 and Kendall), ties allowed for, and
    the median slope of Theil 1950 and Sen 1968.
    """
    y, x = np.asarray(values[-_TREND_POINTS:], np.float64), np.asarray(days[-_TREND_POINTS:])
    if len(y) < _SMALLEST_TREND or x[0] == x[-1]:
        return None
    if (y == y[0]).all():
        return Trend("stable", 0.0, 1.0, len(y))
    p = float(kendalltau(x, y).pvalue)
    slope = float(theilslopes(y, x).slope)
    word: Literal["improving", "stable", "degrading", "changing"] = "stable"
    if p < _TREND_P and slope != 0:
        if better == "neither":
            word = "changing"
        else:
            word = "degrading" if worse("above" if slope > 0 else "below", better) else "improving"
    return Trend(word, 30 * slope, p, len(y))


def worse(side: Side, better: Better) -> bool:
    """Whether a value on this side of the centre is a turn for the worse.

    Noise that rises is one, and a signal-to-noise ratio that falls. Where neither direction is
    better, any change is.
    """
    return better == "neither" or side == ("above" if better == "lower" else "below")


def _deviations(values: NDArray[np.float64], centre: float, sigma: float) -> NDArray[np.float64]:
    """Distance from the centre in sigma; infinite where sigma is 0 and the value differs."""
    away = values - centre
    # The mean of equal values may differ from them in the last digit.
    away[np.isclose(values, centre, rtol=1e-9, atol=0.0)] = 0.0
    if sigma > 1e-9 * abs(centre):
        return away / sigma
    return np.where(away == 0, 0.0, np.copysign(np.inf, away))


def _runs(beyond: NDArray[np.bool_], needed: int, of: int) -> NDArray[np.bool_]:
    """Where a point is beyond, and `needed` of the last `of` points are."""
    total = np.cumsum(np.concatenate([np.zeros(of, np.int64), beyond]))
    found: NDArray[np.bool_] = beyond & (total[of:] - total[:-of] >= needed)
    return found
