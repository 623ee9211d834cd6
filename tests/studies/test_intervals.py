"""Intervals against exact tests, and against their own coverage."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from studying import judged

from medqa.studies import intervals
from medqa.studies.intervals import resampled, share


@pytest.mark.parametrize(("count", "of"), [(0, 12), (3, 40), (40, 40)])
def test_share_is_clopper_pearson(count: int, of: int) -> None:
    images = judged([1.0 if one < count else 0.0 for one in range(of)], [True] * of)
    found = share(images, lambda one: one.values["distance"] > 0.5)
    exact = stats.binomtest(count, of).proportion_ci(0.95, "exact")
    assert found is not None
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_share_counts_patients() -> None:
    images = judged([1.0, 1.0, 0.0, 0.0] * 5, [True] * 20)
    paired = [replace(one, patient=str(number // 4)) for number, one in enumerate(images)]
    found = share(paired, lambda one: one.values["distance"] > 0.5)
    assert found is not None
    assert found.value == 0.5
    assert found.high - found.low > 0.7  # type: ignore[operator]  # as of 5, not of 20


def test_no_images_have_no_share() -> None:
    assert share([], lambda _: True) is None


def test_bootstrap_of_a_mean_is_near_the_t_interval() -> None:
    values = np.random.default_rng(2).normal(10.0, 2.0, 80)
    images = judged(values.tolist(), [True] * 80)
    found = resampled(images, lambda some: float(np.mean([one.values["distance"] for one in some])))
    exact = stats.t.interval(0.95, 79, values.mean(), stats.sem(values))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(exact, abs=0.05)


def test_bootstrap_draws_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_RESAMPLES", 200)
    values = np.repeat(np.random.default_rng(3).normal(size=20), 10)
    images = judged(values.tolist(), [True] * 200)
    of_patients = [replace(one, patient=str(number // 10)) for number, one in enumerate(images)]

    def width(some: object) -> float:
        found = resampled(some, lambda s: float(np.mean([o.values["distance"] for o in s])))  # type: ignore[arg-type]
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    # Ten copies of an image tell nothing more: as wide as of 20, √10 times that of 200.
    assert width(of_patients) == pytest.approx(math.sqrt(10) * width(images), rel=0.25)


def test_what_is_undefined_has_no_estimate_or_no_interval() -> None:
    images = judged([1.0, 2.0, 3.0], [True] * 3)
    assert resampled(images, lambda _: math.nan) is None
    same = resampled(images, lambda _: 1.0)
    assert same == intervals.Estimate(1.0)
