"""Agreement of readers against the tables in which the measures were published."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from medqa.studies.agreement import fleiss_kappa, icc, weighted_kappa

# Fleiss 1971, Psychol Bull 76:378: the worked example as it is usually printed, 10 subjects, 14
# raters, 5 categories; how many raters chose each.
FLEISS_TABLE = (
    (0, 0, 0, 0, 14),
    (0, 2, 6, 4, 2),
    (0, 0, 3, 5, 6),
    (0, 3, 9, 2, 0),
    (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0),
    (3, 2, 6, 3, 0),
    (2, 5, 3, 2, 2),
    (6, 5, 2, 1, 0),
    (0, 2, 2, 3, 7),
)
# Shrout and Fleiss 1979, Psychol Bull 86:420, table 2: 6 targets, 4 judges.
SHROUT_FLEISS = np.array(
    [(9, 2, 5, 8), (6, 1, 3, 2), (8, 4, 6, 8), (7, 1, 2, 6), (10, 5, 6, 9), (6, 2, 4, 7)]
)


def test_fleiss_kappa_is_the_published_one() -> None:
    ratings = np.array(
        [[one for one, count in enumerate(row) for _ in range(count)] for row in FLEISS_TABLE]
    )
    assert fleiss_kappa(ratings) == pytest.approx(0.210, abs=0.0005)


def test_fleiss_kappa_of_readers_who_all_say_the_same_is_undefined() -> None:
    assert math.isnan(fleiss_kappa(np.ones((5, 3), dtype=bool)))


def test_icc_is_the_published_one() -> None:
    assert icc(SHROUT_FLEISS) == pytest.approx(0.29, abs=0.005)  # ICC(2,1), their table 4


@pytest.mark.parametrize("shape", [(5, 2), (40, 3), (7, 6)])
def test_icc_is_what_an_analysis_of_variance_gives(shape: tuple[int, int]) -> None:
    images, readers = shape
    scores = np.random.default_rng(images).integers(1, 6, shape)
    place, who = np.indices(shape)
    table = pd.DataFrame({"score": scores.ravel(), "image": place.ravel(), "reader": who.ravel()})
    square = anova_lm(ols("score ~ C(image) + C(reader)", table).fit())["mean_sq"]
    of_images, of_readers, error = square.to_list()
    expected = (of_images - error) / (
        of_images + (readers - 1) * error + readers * (of_readers - error) / images
    )
    assert icc(scores) == pytest.approx(expected, rel=1e-9)


def test_weighted_kappa_is_the_mean_over_the_pairs() -> None:
    scores = np.random.default_rng(1).integers(1, 6, (30, 3))
    first, second, third = scores.T
    pairs = ((first, second), (first, third), (second, third))
    expected = [cohen_kappa_score(*pair, weights="quadratic") for pair in pairs]
    assert weighted_kappa(scores) == pytest.approx(np.mean(expected))
    # One minus the ratio of the mean squared differences, observed and by chance (Cohen 1968).
    chance = (first[:, np.newaxis] - second) ** 2
    by_hand = 1 - np.mean((first - second) ** 2) / chance.mean()
    assert expected[0] == pytest.approx(by_hand)


def test_weighted_kappa_of_constant_scores_is_undefined() -> None:
    assert math.isnan(weighted_kappa(np.full((4, 2), 3)))
