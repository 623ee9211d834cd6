"""The guaranteed limit against closed forms and simulated studies; ROC and Youden by counting."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from studying import judged

from medqa.errors import UsageError
from medqa.studies import intervals
from medqa.studies.calibration import (
    Claim,
    calibrate,
    guaranteed_limit,
    most_passable,
    needed,
    rank,
    youden_limit,
)
from medqa.studies.readers import JudgedImage, ReaderStudy

CLAIM = Claim()


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_RESAMPLES", 60)


def study(images: tuple[JudgedImage, ...], measure: str = "distance") -> ReaderStudy:
    network = ("alex", "0.1")
    return ReaderStudy(images, ("r",), (measure,), network, True, None, "majority", False, "a" * 64)


@pytest.mark.parametrize(
    ("miss_rate", "confidence", "count"),
    # Wilks' sample sizes for one-sided limits, as tabulated (NUREG/CR-6823; Wilks 1941).
    [(0.05, 0.95, 59), (0.10, 0.90, 22), (0.10, 0.95, 29), (0.05, 0.99, 90), (0.01, 0.95, 299)],
)
def test_needed_is_wilks_table(miss_rate: float, confidence: float, count: int) -> None:
    assert needed(miss_rate, confidence) == count
    assert rank(count, miss_rate, confidence) == 1
    assert rank(count - 1, miss_rate, confidence) == 0


# Wilks' 95 %/95 % sizes for the first orders: 59, 93, 124, 153, 181, 208.
@pytest.mark.parametrize(("order", "count"), list(enumerate((59, 93, 124, 153, 181, 208), 1)))
def test_rank_steps_where_wilks_table_does(order: int, count: int) -> None:
    assert rank(count, 0.05, 0.95) == order
    assert rank(count - 1, 0.05, 0.95) == order - 1


@given(st.integers(1, 800), st.floats(0.005, 0.5), st.floats(0.5, 0.999))
def test_rank_is_the_largest_that_a_binomial_supports(
    count: int, miss_rate: float, confidence: float
) -> None:
    # k is supported where fewer than k of n below the quantile have probability 1 - confidence.
    place = rank(count, miss_rate, confidence)
    if place:
        assert stats.binom.cdf(place - 1, count, miss_rate) <= 1 - confidence + 1e-9
    assert stats.binom.cdf(place, count, miss_rate) >= 1 - confidence - 1e-9


def test_too_few_are_refused_with_the_number_needed() -> None:
    with pytest.raises(UsageError, match=r"58 independent .* until 59 are unacceptable"):
        guaranteed_limit(np.linspace(0.1, 0.9, 58), CLAIM)
    limit, place = guaranteed_limit(np.linspace(0.1, 0.9, 59), CLAIM)
    assert (limit, place) == (0.0999, 1)


@given(
    st.lists(st.floats(1e-6, 10.0), min_size=59, max_size=130),
    st.sampled_from(["lower", "higher"]),
)
def test_the_limit_is_strictly_beyond_the_order_statistic(values: list[float], better: str) -> None:
    limit, place = guaranteed_limit(values, CLAIM, better)  # type: ignore[arg-type]
    ordered = sorted(values, reverse=better == "higher")
    passing = [v for v in values if (v <= limit if better == "lower" else v >= limit)]
    assert len(passing) < place
    assert ordered[place - 1] not in passing
    assert limit == pytest.approx(ordered[place - 1], rel=2e-3)


def test_ties_at_the_limit_all_fail() -> None:
    values = [0.02] * 40 + [0.05] * 60
    limit, place = guaranteed_limit(values, CLAIM)
    assert place == 2
    assert limit < 0.02


def test_of_each_patient_the_most_passable_image_counts() -> None:
    images = judged([0.3, 0.1, 0.2, 0.4], [True] * 4)
    paired = [replace(one, patient=who) for one, who in zip(images, "aabb", strict=True)]
    assert most_passable(paired, "distance", "lower") == [0.1, 0.2]
    assert most_passable(paired, "distance", "higher") == [0.3, 0.4]


def _random_study(seed: int) -> ReaderStudy:
    rng = np.random.default_rng(seed)
    severity = rng.normal(size=240)
    values = np.round(np.exp(severity + 0.7 * rng.normal(size=240)), 2)
    return study(judged(values.tolist(), (severity > 0).tolist()))


def test_auc_is_the_share_of_pairs_in_order() -> None:
    one = _random_study(1)
    found = calibrate(one, "distance", CLAIM).auc
    bad = np.array([o.values["distance"] for o in one.images if o.unacceptable])
    good = np.array([o.values["distance"] for o in one.images if not o.unacceptable])
    higher = (bad[:, np.newaxis] > good).mean() + 0.5 * (bad[:, np.newaxis] == good).mean()
    assert found.value == pytest.approx(higher)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_auc_interval_is_near_that_of_hanley_and_mcneil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_RESAMPLES", 600)
    one = _random_study(2)
    auc = calibrate(one, "distance", CLAIM).auc
    a, bad = auc.value, sum(image.unacceptable for image in one.images)
    good = len(one.images) - bad
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)  # Radiology 143:29, 1982
    variance = (a * (1 - a) + (bad - 1) * (q1 - a * a) + (good - 1) * (q2 - a * a)) / (bad * good)
    assert auc.high is not None
    assert auc.low is not None
    assert (auc.high - auc.low) / 3.92 == pytest.approx(variance**0.5, rel=0.2)


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0, 10.0])
def test_youden_limit_beats_every_other(weight: float) -> None:
    one = _random_study(3)
    values = np.array([image.values["distance"] for image in one.images])
    bad = np.array([image.unacceptable for image in one.images])

    def index(limit: float) -> float:
        return weight * float((values[bad] > limit).mean()) + float((values[~bad] <= limit).mean())

    limit = youden_limit(one, "distance", "lower", weight)
    every = [-1.0, *np.unique(values)]
    assert index(limit) == pytest.approx(max(map(index, every)))


def test_a_measure_where_higher_is_better_gives_the_mirrored_limits() -> None:
    one = _random_study(4)
    mirrored = study(
        judged(
            [-image.values["distance"] for image in one.images],
            [image.unacceptable for image in one.images],
            "ssim",
        ),
        "ssim",
    )
    straight, turned = calibrate(one, "distance", CLAIM), calibrate(mirrored, "ssim", CLAIM)
    assert turned.guaranteed.limit == -straight.guaranteed.limit
    assert turned.youden.limit == -straight.youden.limit
    assert turned.auc == straight.auc
    np.testing.assert_array_equal(turned.roc, straight.roc)


def test_groups_add_up_and_few_of_a_kind_are_said() -> None:
    one = _random_study(5)
    parts = [
        replace(image, body_part="HEAD" if number % 8 == 0 else "CHEST")
        for number, image in enumerate(one.images)
    ]
    found = calibrate(replace(one, images=tuple(parts)), "distance", CLAIM)
    everything, *kinds = found.groups
    assert [kind.name for kind in kinds] == ["CHEST", "HEAD"]
    for count in ("images", "unacceptable", "missed", "passed"):
        assert getattr(everything, count) == sum(getattr(kind, count) for kind in kinds)
    assert any("HEAD" in warning and "59" in warning for warning in found.warnings)


def test_a_kind_that_misses_more_than_claimed_is_said() -> None:
    values = [0.01] * 4 + [0.5] * 201 + [0.005] * 50
    images = judged(values, [True] * 205 + [False] * 50)
    parts = [
        replace(image, modality="MR" if number < 10 else "CT")
        for number, image in enumerate(images)
    ]
    found = calibrate(study(tuple(parts)), "distance", CLAIM)
    assert found.guaranteed.limit > 0.01
    assert any("Of MR, 4 of 10 unacceptable" in warning for warning in found.warnings)


def test_all_unacceptable_and_a_distance_of_zero_are_refused() -> None:
    with pytest.raises(UsageError, match="none of them is acceptable"):
        calibrate(study(judged([0.1] * 70, [True] * 70)), "distance", CLAIM)
    zeros = judged([0.0] * 70 + [0.1] * 10, [True] * 70 + [False] * 10)
    with pytest.raises(UsageError, match="distance 0"):
        calibrate(study(zeros), "distance", CLAIM)


@pytest.mark.parametrize("wrong", [{"miss_rate": 0.0}, {"confidence": 1.0}, {"miss_weight": 0.0}])
def test_a_claim_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Claim(**wrong)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("calibration")
    finally:
        sys.path.remove(folder)


@pytest.mark.parametrize("model", ["perfect", "15 % slips", "blurred, 0.5"])
def test_simulated_studies_keep_the_claim(benchmark: ModuleType, model: str) -> None:
    # 200 studies: fewer than 183 happen once in a hundred at a true 95 %.
    found = benchmark.simulate(benchmark.MODELS[model], 400, studies=200, seed=11)
    assert found.refused == 0
    assert found.covered >= stats.binom.ppf(0.01, 200, 0.95)
    assert found.covered_truth >= stats.binom.ppf(0.01, 200, 0.95)
    assert found.covered_naive < 120  # the plain quantile keeps it every other time
