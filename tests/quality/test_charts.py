"""Control charts against NIST's published examples, closed forms and simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from medqa.quality.charts import (
    Baseline,
    Rule,
    baseline,
    chart,
    ewma,
    ewma_limit,
    signals,
    trend,
    worse,
)

# NIST/SEMATECH e-Handbook 6.3.2.2: flowrate of ten batches.
FLOW = (49.6, 47.6, 49.9, 51.3, 47.8, 51.2, 52.6, 52.4, 53.6, 52.1)
# 6.3.2.4: twenty measurements, and the EWMA after each as it is printed there.
MEASURED = (
    *(52.0, 47.0, 53.0, 49.3, 50.1, 47.0, 51.0, 50.1, 51.2, 50.5),
    *(49.6, 47.6, 49.9, 51.3, 47.8, 51.2, 52.6, 52.4, 53.6, 52.1),
)
PRINTED = (
    *(50.60, 49.52, 50.56, 50.18, 50.16, 49.21, 49.75, 49.85, 50.26, 50.33),
    *(50.11, 49.36, 49.52, 50.05, 49.38, 49.92, 50.73, 51.23, 51.94, 51.99),
)
KNOWN = Baseline(centre=0.0, sigma=1.0, count=0)


def test_individuals_as_nist_prints_them() -> None:
    found = baseline(FLOW)
    assert found.centre == pytest.approx(50.81)
    assert found.sigma * 1.128 == pytest.approx(1.8778, abs=5e-5)  # mean moving range
    assert found.limits == pytest.approx((45.8159, 55.8041), abs=1e-4)
    assert found.outside == 0


def test_ewma_as_nist_prints_it() -> None:
    assert ewma(MEASURED, 50.0, 0.3) == pytest.approx(PRINTED, abs=0.006)
    # Printed with the square root of .3 / 1.7 rounded to .4201.
    limit = ewma_limit(2.0539, 0.3)
    assert (50 + limit, 50 - limit) == pytest.approx((52.5884, 47.4115), abs=6e-4)
    assert ewma(MEASURED, 50.0, 0.3).max() < 50 + limit  # "the process is in control"


def test_ewma_of_a_step_is_a_geometric_series() -> None:
    after = ewma([1.0] * 30, 0.0)
    assert after == pytest.approx([1 - 0.8**n for n in range(1, 31)])


@pytest.mark.parametrize(
    ("rule", "points", "where"),
    [
        ("beyond 3 sigma", [0, 3.0, 3.1, 0], [2]),
        ("2 of 3", [2.1, 0, 2.1, 0, 0, 2.1, 0, 0, 2.1], [2]),
        ("2 of 3", [2.1, -2.1, 0, 0], []),
        ("4 of 5", [1.1, 1.1, 0, 1.1, 1.1, 0, 1.1], [4]),
        ("4 of 5", [1.1, 1.1, 0, 0, 1.1, 1.1], []),
        ("8 in a row", [0.1] * 7 + [0, 0.1], []),
        ("8 in a row", [0.1] * 9, [7, 8]),
        ("EWMA", [2.0, 2.0, 2.0], [2]),  # limit 1: averages .4, .72, .976 … with 2.1 above it
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_each_rule_alone(rule: Rule, points: list[float], where: list[int], sign: int) -> None:
    if rule == "EWMA":
        points = [2.1 * one / 2 for one in points]
    called = signals([sign * one for one in points], KNOWN)
    assert [one.index for one in called if one.rule == rule] == where
    assert {one.side for one in called} <= {"above" if sign > 0 else "below"}


def test_signals_count_from_the_first_point_of_the_baseline() -> None:
    assert signals([9.0], Baseline(0.0, 1.0, 20))[0].index == 20


def _run_length(
    rng: np.random.Generator, shift: float, rules: set[str], runs: int, longest: int
) -> float:
    """Mean number of points until one of the rules calls, sigma known."""
    lengths = []
    for _ in range(runs):
        called = signals(rng.standard_normal(longest) + shift, KNOWN)
        lengths.append(next((one.index + 1 for one in called if one.rule in rules), longest))
    return float(np.mean(lengths))


def _ewma_run_length(shift: float, weight: float = 0.2, width: float = 3.0) -> float:
    """Mean run length by a Markov chain (Lucas and Saccucci 1990), no code of medqa's."""
    half, cells = width * math.sqrt(weight / (2 - weight)), 401
    edges = np.linspace(-half, half, cells + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    reach = (edges[None] - (1 - weight) * middles[:, None]) / weight - shift
    transition = np.diff(norm.cdf(reach), axis=1)
    lengths = np.linalg.solve(np.eye(cells) - transition, np.ones(cells))
    return float(lengths[cells // 2])


def test_run_lengths_by_simulation() -> None:
    rng = np.random.default_rng(0)
    # In control, the individuals chart calls once in 1 / (2 Phi(-3)) = 370.4 points.
    long = signals(rng.standard_normal(1_000_000), KNOWN)
    rate = sum(one.rule == "beyond 3 sigma" for one in long) / 1e6
    assert 1 / rate == pytest.approx(1 / (2 * norm.cdf(-3)), rel=0.06)
    assert 1 / (2 * norm.cdf(-3)) == pytest.approx(370.4, abs=0.05)
    # All four rules together, published: 91.75 (Champ and Woodall 1987).
    four = {"beyond 3 sigma", "2 of 3", "4 of 5", "8 in a row"}
    assert _run_length(rng, 0.0, four, 2000, 900) == pytest.approx(91.75, rel=0.07)
    # EWMA of weight 0.2 and width 3: 560 in control.
    assert _ewma_run_length(0.0) == pytest.approx(559.9, rel=0.01)
    assert _run_length(rng, 0.0, {"EWMA"}, 600, 4500) == pytest.approx(559.9, rel=0.12)
    # A shift by one sigma: 43.9 points by the one, about 10 by the other.
    one_sigma = 1 / (norm.cdf(-2) + norm.cdf(-4))
    assert _run_length(rng, 1.0, {"beyond 3 sigma"}, 2000, 500) == pytest.approx(one_sigma, rel=0.1)
    expected = _ewma_run_length(1.0)
    assert expected < 12
    assert _run_length(rng, 1.0, {"EWMA"}, 2000, 200) == pytest.approx(expected, rel=0.06)


def test_too_few_points_are_not_charted() -> None:
    days = list(range(19))
    short = chart([1.0, 2.0] * 9 + [99.0], days, "lower")
    assert (short.baseline, short.signals, short.ewma_limits) == (None, (), None)
    assert chart([1.0] * 9, days[:9], "lower", first=5).baseline is None


def test_the_baseline_is_fixed() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal(60)
    days = list(range(60))
    early = chart(values[:20], days[:20], "lower").baseline
    assert early is not None
    assert chart(values + np.repeat([0, 9], [20, 40]), days, "lower").baseline == early


def test_a_baseline_that_never_varied_calls_any_change() -> None:
    values = [0.1] * 20 + [0.1, 0.1000001, 0.1]
    found = chart(values, list(range(23)), "lower")
    assert [(one.index, one.rule) for one in found.signals] == [(21, "beyond 3 sigma")]
    assert found.ewma_limits is None
    assert baseline([0.1] * 20).outside == 0


def test_a_baseline_out_of_order_says_so() -> None:
    values = [1.0, 1.1] * 9 + [1.0, 9.0]
    assert baseline(values).outside == 1


@pytest.mark.parametrize(
    ("make", "better", "word"),
    [
        (lambda x: x, "lower", "degrading"),
        (lambda x: x, "higher", "improving"),
        (lambda x: -x, "higher", "degrading"),
        (lambda x: -x, "lower", "improving"),
        (lambda x: -x, "neither", "changing"),
        (lambda x: np.random.default_rng(4).standard_normal(len(x)), "lower", "stable"),
        (lambda x: 0 * x, "lower", "stable"),
    ],
)
def test_trend_words(
    make: Callable[[NDArray[np.float64]], NDArray[np.float64]], better: str, word: str
) -> None:
    days = np.arange(30.0)
    found = trend(list(make(days)), list(days), better)  # type: ignore[arg-type]
    assert found is not None
    assert found.word == word


def test_trend_slope_by_hand_and_what_has_none() -> None:
    days = np.arange(12.0)
    found = trend(list(5 + 0.25 * days), list(days), "lower")
    assert found is not None
    assert found.per_month == pytest.approx(7.5)
    # All 66 pairs rise: by counting permutations, p = 2 / 12!
    assert found.p == pytest.approx(2 / math.factorial(12))
    assert trend([1.0, 2.0] * 10, [3.0] * 20, "lower") is None
    assert trend([1.0] * 9, list(range(9)), "lower") is None


def test_trend_calls_once_in_a_hundred() -> None:
    rng = np.random.default_rng(5)
    days = list(map(float, range(30)))
    found = [trend(list(rng.standard_normal(30)), days, "lower") for _ in range(1000)]
    assert sum(one is not None and one.word != "stable" for one in found) in range(2, 22)


def test_which_side_is_worse() -> None:
    assert worse("above", "lower")
    assert not worse("below", "lower")
    assert worse("below", "higher")
    assert not worse("above", "higher")
    assert worse("above", "neither")
    assert worse("below", "neither")
