from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from medqa.studies.enhancement.ranking import (
    FEWEST,
    cliques,
    critical_difference,
    critical_value,
    rank_biserial,
    ranked,
)

# Demšar 2006, table 6: AUC of four classifiers on fourteen data sets.
_DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],  # ranks 2 and 3 there: the table shows three digits
        [0.957, 0.978, 0.946, 0.970],
    ]
)
_NAMES = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")


def test_critical_values_are_those_of_the_published_table() -> None:
    published = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)
    found = [critical_value(k) for k in range(2, 11)]
    assert found == pytest.approx(published, abs=1e-3)  # of a table of the range with three digits
    at_ten = (1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920)
    assert [critical_value(k, 0.10) for k in range(2, 11)] == pytest.approx(at_ten, abs=1e-3)


def test_demsars_worked_example() -> None:
    found = ranked(_NAMES, _DEMSAR, "higher")
    assert found.ranks == pytest.approx((3.143, 2.000, 2.893, 1.964), abs=5e-4)
    assert found.critical_difference == pytest.approx(1.25, abs=5e-3)
    # He does not correct for ties (9.28, F 3.69, p near 0.02); scipy's statistic does.
    tied = stats.friedmanchisquare(*_DEMSAR.T).statistic
    f = 13 * tied / (14 * 3 - tied)
    assert found.friedman_p == pytest.approx(stats.f.sf(f, 3, 39))
    assert found.friedman_p is not None
    assert found.friedman_p < 0.05
    # "the performance of C4.5 and C4.5+m+cf is just not significantly different: 1.18 < 1.25"
    difference = found.ranks[0] - found.ranks[3]
    assert difference == pytest.approx(1.18, abs=5e-3)
    assert cliques(found.ranks, critical_difference(4, 14)) == [
        (min(found.ranks), max(found.ranks))
    ]


def test_pairs_are_those_of_scipy_and_statsmodels() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(15, 3)) + np.array([0, 0.5, 1.5])
    found = ranked(("a", "b", "c"), values, "lower")
    expected = [
        stats.wilcoxon(values[:, i], values[:, j]).pvalue for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert [one.p for one in found.comparisons] == pytest.approx(expected)
    holm = multipletests(expected, method="holm")[1]
    assert [one.holm for one in found.comparisons] == pytest.approx(holm)
    assert found.comparisons[1].effect > 0.7  # a is lower, so better
    low, high = found.comparisons[1].low, found.comparisons[1].high
    assert low is not None
    assert high is not None
    assert low <= found.comparisons[1].effect <= high
    assert found.enough


def test_rank_biserial_by_hand() -> None:
    # Ranks of |d| 1, 2, 3 and 4: (1 + 3 + 4 - 2) / 10.
    assert rank_biserial(np.array([0.1, -0.2, 0.3, 0.4, 0.0])) == pytest.approx(0.6)
    assert rank_biserial(np.array([1.0, 2.0])) == 1.0
    assert rank_biserial(np.zeros(4)) == 0.0


def test_few_cases_have_no_p_value() -> None:
    values = np.array([[1.0, 2.0, 3.0]] * (FEWEST - 1)) + np.arange(FEWEST - 1)[:, None]
    found = ranked(("a", "b", "c"), values, "lower")
    assert found.ranks == (1.0, 2.0, 3.0)
    assert found.friedman_p is None
    assert found.critical_difference is None
    assert [one.p for one in found.comparisons] == [None] * 3
    assert [one.effect for one in found.comparisons] == [1.0] * 3
    assert not found.enough
    # What the limit rests on: the smallest p of the exact test.
    assert stats.wilcoxon(np.arange(1, FEWEST)).pvalue > 0.05
    assert stats.wilcoxon(np.arange(1, FEWEST + 1)).pvalue < 0.05


def test_six_cases_are_not_enough_for_three_pairs() -> None:
    values = np.arange(18.0).reshape(6, 3) ** 1.5
    found = ranked(("a", "b", "c"), values, "lower")
    assert not found.enough
    assert all(one.holm is not None and one.holm > 0.05 for one in found.comparisons)
    assert found.friedman_p is not None
    assert found.friedman_p < 1e-6  # the same order on every case


def test_equal_methods_are_even() -> None:
    values = np.full((8, 3), 0.1) * np.array([1.0, 1.0 + 1e-15, 1.0])
    found = ranked(("a", "b", "c"), values, "higher")
    assert found.ranks == (2.0, 2.0, 2.0)
    assert found.friedman_p == 1.0
    assert all(one.p is None and one.effect == 0 for one in found.comparisons)


def test_bars_join_what_does_not_differ() -> None:
    assert cliques([1.0, 1.5, 3.0, 3.4, 6.0], 1.0) == [(1.0, 1.5), (3.0, 3.4)]
    assert cliques([1.0, 1.8, 2.6], 1.0) == [(1.0, 1.8), (1.8, 2.6)]
    assert cliques([1.0, 4.0], 1.0) == []
