"""Which of several methods is better, on the same cases: paired, and honest about few of them.

All methods are measured on each case, so cases are blocks. Each two methods are compared by
Wilcoxon's signed-rank test with Holm's correction over the pairs; all together by Friedman's test
with Nemenyi's critical difference of the average ranks (Demšar, JMLR 7:1-30, 2006).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = [
    "FEWEST",
    "Comparison",
    "Ranking",
    "cliques",
    "critical_difference",
    "critical_value",
    "rank_biserial",
    "ranked",
]

#: Cases below which Wilcoxon's two-sided p cannot reach 0.05: 2 / 2^5 is 0.0625.
FEWEST = 6

_ALPHA = 0.05
_RESAMPLES = 2000
_SEED = 20261121  # any fixed one: the same cases give the same page
_DIGITS = 12  # significant; values that differ by rounding alone are tied


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same cases.

    Parameters
    ----------
    one, other
        Names.
    cases
        How many have a difference: ties tell nothing.
    difference
        Median over all cases of one minus other, in the measure's unit.
    p, holm
        Of Wilcoxon's two-sided test, and corrected over all pairs of the measure; None where too
        few cases differ for any p below 0.05.
    effect
        Matched-pairs rank-biserial correlation in [-1, 1] (Kerby 2014): 1 where `one` is better on
        every case, -1 where `other` is; 0 where they are even.
    low, high
        Its 95 % bootstrap interval over cases; None where there are too few.
    """

    one: str
    other: str
    cases: int
    difference: float
    p: float | None
    holm: float | None
    effect: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Ranking:
    """All methods by one measure.

    Parameters
    ----------
    methods
        In the order given.
    cases
        On which every method was measured.
    means
        (k,) mean of the measure over the cases.
    ranks
        (k,) average rank; 1 is best.
    friedman_p
        Of the F statistic of Iman and Davenport 1980; None for two methods or too few cases.
    critical_difference
        Of the average ranks by Nemenyi at 0.05; None where `friedman_p` is.
    comparisons
        Of each two methods.
    enough
        Whether there are so many cases that a pair could be significant after Holm's correction.
    """

    methods: tuple[str, ...]
    cases: int
    means: tuple[float, ...]
    ranks: tuple[float, ...]
    friedman_p: float | None
    critical_difference: float | None
    comparisons: tuple[Comparison, ...]
    enough: bool


def ranked(
    methods: Sequence[str], values: NDArray[np.float64], better: Literal["higher", "lower"]
) -> Ranking:
    """Rank methods by one measure.

    Parameters
    ----------
    methods
        (k,) names, two or more.
    values
        (n, k) finite, a row for each case, one or more.
    better
        Direction of the measure.
    """
    rounded = np.array([[float(f"{one:.{_DIGITS}g}") for one in row] for row in values])
    badness = -rounded if better == "higher" else rounded
    cases, count = badness.shape
    ranks = stats.rankdata(badness, axis=1)
    several = count > 2 and cases >= FEWEST
    pairs = [_compared(methods, rounded, badness, i, j) for i, j in combinations(range(count), 2)]
    return Ranking(
        methods=tuple(methods),
        cases=cases,
        means=tuple(values.mean(axis=0).tolist()),
        ranks=tuple(ranks.mean(axis=0).tolist()),
        friedman_p=_friedman(ranks) if several else None,
        critical_difference=critical_difference(count, cases) if several else None,
        comparisons=_holm(pairs),
        enough=cases >= FEWEST and len(pairs) * 2.0 ** (1 - cases) <= _ALPHA,
    )


def critical_value(count: int, alpha: float = _ALPHA) -> float:
    """Nemenyi's q for `count` methods: Studentised range over sqrt(2) (Demšar, table 5)."""
    return float(stats.studentized_range.ppf(1 - alpha, count, np.inf)) / math.sqrt(2)


def critical_difference(count: int, cases: int, alpha: float = _ALPHA) -> float:
    """Difference of average ranks from which two methods differ (Demšar, section 3.2.2)."""
    return critical_value(count, alpha) * math.sqrt(count * (count + 1) / (6 * cases))


def cliques(ranks: Sequence[float], difference: float) -> list[tuple[float, float]]:
    """Return the bars of a critical-difference plot: what is under one bar does not differ.

    Parameters
    ----------
    ranks
        Average ranks, in any order.
    difference
        The critical difference.

    Returns
    -------
    Lowest and highest rank under each bar, no bar within another.
    """
    ordered = sorted(ranks)
    bars: list[tuple[float, float]] = []
    for low in ordered:
        high = max(one for one in ordered if one - low < difference)
        if high > low and not (bars and high <= bars[-1][1]):
            bars.append((low, high))
    return bars


def rank_biserial(differences: NDArray[np.float64]) -> float:
    """Matched-pairs rank-biserial correlation: (W+ - W-) / (W+ + W-); 0 where nothing differs.

    Parameters
    ----------
    differences
        (n,); zeros are left out, as Wilcoxon's test does.
    """
    found = differences[differences != 0]
    if found.size == 0:
        return 0.0
    ranks = stats.rankdata(np.abs(found))
    return float((ranks * np.sign(found)).sum() / ranks.sum())


def _friedman(ranks: NDArray[np.float64]) -> float:
    """Return p of Friedman's statistic in Iman's and Davenport's form (Demšar, section 3.2.2)."""
    cases, count = ranks.shape
    if np.ptp(ranks) == 0:
        return 1.0
    statistic = float(stats.friedmanchisquare(*ranks.T).statistic)
    below = cases * (count - 1) - statistic
    if below <= 1e-9 * statistic:  # the same order on every case
        return 0.0
    f = (cases - 1) * statistic / below
    return float(stats.f.sf(f, count - 1, (count - 1) * (cases - 1)))


def _compared(
    methods: Sequence[str],
    values: NDArray[np.float64],
    badness: NDArray[np.float64],
    i: int,
    j: int,
) -> Comparison:
    gains = badness[:, j] - badness[:, i]  # above 0 where i is better
    cases = int(np.count_nonzero(gains))
    p = low = high = None
    if cases >= FEWEST:
        p = float(stats.wilcoxon(gains[gains != 0]).pvalue)
        low, high = _interval(gains)
    return Comparison(
        one=methods[i],
        other=methods[j],
        cases=cases,
        difference=float(np.median(values[:, i] - values[:, j])),
        p=p,
        holm=None,
        effect=rank_biserial(gains),
        low=low,
        high=high,
    )


def _interval(gains: NDArray[np.float64]) -> tuple[float, float]:
    """Percentiles of the effect over samples of the cases."""
    rng = np.random.default_rng(_SEED)
    drawn = rng.integers(len(gains), size=(_RESAMPLES, len(gains)))
    effects = [rank_biserial(gains[one]) for one in drawn]
    low, high = np.quantile(effects, [0.025, 0.975])
    return float(low), float(high)


def _holm(pairs: Sequence[Comparison]) -> tuple[Comparison, ...]:
    from statsmodels.stats.multitest import multipletests

    tested = [one.p for one in pairs if one.p is not None]
    if not tested:
        return tuple(pairs)
    # What could not be tested counts in the family: leaving it out would favour the others.
    whole = [*tested, *[1.0] * (len(pairs) - len(tested))]
    corrected = iter(multipletests(whole, method="holm")[1][: len(tested)].tolist())
    return tuple(one if one.p is None else replace(one, holm=next(corrected)) for one in pairs)
