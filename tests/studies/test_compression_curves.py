"""Curves against a power law, whose crossing is known, and the coverage of their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medqa.studies.compression.curves import FLOOR, crossing_of, curve

RATIOS = (4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0)


def _law(ratio: float, scale: float = 1e-5, power: float = 3.0) -> float:
    return scale * ratio**power


@pytest.mark.parametrize("limit", [0.001, 0.007, 0.05])
def test_a_power_law_is_straight_in_logarithms(limit: float) -> None:
    found = crossing_of(RATIOS, [_law(ratio) for ratio in RATIOS], limit)
    assert found == pytest.approx((limit / 1e-5) ** (1 / 3), rel=1e-9)


def test_limits_outside_the_ratios_and_distances_of_zero() -> None:
    distances = [_law(ratio) for ratio in RATIOS]
    assert crossing_of(RATIOS, distances, 1e-5) == 0.0
    assert crossing_of(RATIOS, distances, 1.0) == math.inf
    assert math.isnan(crossing_of(RATIOS, [math.nan] * 7, 0.01))
    # Identical up to 8:1: the line starts at the floor.
    found = crossing_of((4.0, 8.0, 16.0), (0.0, 0.0, 0.01), 1e-4)
    assert found == pytest.approx(8 * 2 ** (math.log(1e-4 / FLOOR) / math.log(0.01 / FLOOR)))


def test_a_curve_that_dips_is_levelled() -> None:
    # Pool adjacent violators by hand: the two middle ones become their mean in logarithms, 0.002.
    found = crossing_of((1.0, 2.0, 4.0, 8.0), (0.001, 0.004, 0.001, 0.016), 0.008)
    share = math.log(0.008 / 0.002) / math.log(0.016 / 0.002)
    assert found == pytest.approx(4 * 2**share)


def test_medians_leave_missing_images_out() -> None:
    distances = np.array([[1e-3, 2e-3], [3e-3, np.nan], [2e-3, np.nan]])
    found = curve((4.0, 8.0), distances, [1, 2, 3], 0.01, resamples=50)
    assert [one.distance.value for one in found.points] == pytest.approx([2e-3, 2e-3])
    assert (found.points[0].lowest, found.points[0].highest) == (1e-3, 3e-3)
    assert found.crossing.beyond == "above"


def test_one_source_has_no_interval() -> None:
    found = curve((4.0, 8.0), [[1e-3, 2e-2], [2e-3, 1e-2]], [7, 7], 0.007)
    assert found.points[0].distance.low is None
    assert found.crossing.ratio is not None
    assert found.crossing.low is found.crossing.high is None


def test_images_of_one_source_count_once() -> None:
    generator = np.random.default_rng(0)
    single = np.exp(generator.normal(math.log(1e-3), 0.5, (12, 1))) * [1.0, 10.0]
    once = curve((4.0, 8.0), single, range(12), 0.004)
    copies = curve((4.0, 8.0), np.repeat(single, 5, axis=0), np.repeat(range(12), 5), 0.004)
    # Five copies of every image: the same interval, where images would make it half as wide.
    for one, other in zip(once.points, copies.points, strict=True):
        assert other.distance.low == pytest.approx(one.distance.low, rel=0.1)
        assert other.distance.high == pytest.approx(one.distance.high, rel=0.1)


def test_the_interval_covers_the_true_crossing() -> None:
    limit, truth, covered, studies = 0.007, (0.007 / 1e-5) ** (1 / 3), 0, 120
    for seed in range(studies):
        generator = np.random.default_rng(seed)
        # Each source is better or worse than the law at all ratios, and each image a little.
        source = generator.normal(0.0, 0.4, (30, 1)) + generator.normal(0.0, 0.1, (30, 7))
        distances = np.array([_law(ratio) for ratio in RATIOS]) * np.exp(source)
        found = curve(RATIOS, distances, range(30), limit, resamples=200).crossing
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    # 95 % of 120 is 114; the percentile bootstrap of a median is a little narrow or wide.
    assert 107 <= covered <= 120
