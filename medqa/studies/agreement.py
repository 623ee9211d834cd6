"""How far readers agree with one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from medqa.studies.intervals import Estimate, resampled
from medqa.studies.readers import JudgedImage, ReaderStudy

__all__ = ["Agreement", "agreement", "fleiss_kappa", "icc", "weighted_kappa"]


@dataclass(frozen=True)
class Agreement:
    """Agreement on the images that all readers judged; None where it is undefined.

    Parameters
    ----------
    images
        How many all readers judged.
    fleiss
        Fleiss' kappa of acceptable or not: 1 is perfect, 0 what chance gives.
    weighted
        Of scores: Cohen's kappa with quadratic weights, mean over the pairs of readers.
    icc
        Of scores: intraclass correlation ICC(2,1), absolute agreement of a single reader.
    """

    images: int
    fleiss: Estimate | None
    weighted: float | None = None
    icc: Estimate | None = None


def agreement(study: ReaderStudy, images: Sequence[JudgedImage]) -> Agreement:
    """Agreement of a study's readers on some of its images."""
    complete = [one for one in images if len(one.judgments) == len(study.readers)]
    if len(study.readers) < 2 or len(complete) < 2:
        return Agreement(len(complete), None)

    def ratings(some: Sequence[JudgedImage]) -> NDArray[np.int_]:
        return np.array([[one.judgments[who] for who in study.readers] for one in some])

    lowest = 1 if study.acceptable_from is None else study.acceptable_from
    fleiss = resampled(complete, lambda some: fleiss_kappa(ratings(some) >= lowest))
    if study.acceptable_from is None:
        return Agreement(len(complete), fleiss)
    weighted = weighted_kappa(ratings(complete))
    return Agreement(
        len(complete),
        fleiss,
        weighted=None if math.isnan(weighted) else weighted,
        icc=resampled(complete, lambda some: icc(ratings(some))),
    )


def fleiss_kappa(ratings: NDArray[np.generic]) -> float:
    """Fleiss' kappa (Fleiss 1971, Psychol Bull 76:378); NaN where all judgments are the same.

    Parameters
    ----------
    ratings
        (images, readers) categories.
    """
    from statsmodels.stats import inter_rater

    counts, categories = inter_rater.aggregate_raters(ratings)
    return math.nan if len(categories) < 2 else float(inter_rater.fleiss_kappa(counts))


def weighted_kappa(scores: NDArray[np.int_]) -> float:
    """Cohen's kappa with quadratic weights (Cohen 1968), mean over the pairs of readers.

    Parameters
    ----------
    scores
        (images, readers). NaN where two readers gave nothing but one same score.
    """
    from sklearn.metrics import cohen_kappa_score

    pairs = combinations(scores.T, 2)
    if any(np.ptp(np.concatenate(pair)) == 0 for pair in combinations(scores.T, 2)):
        return math.nan
    return float(np.mean([cohen_kappa_score(*pair, weights="quadratic") for pair in pairs]))


def icc(scores: NDArray[np.int_]) -> float:
    """Intraclass correlation ICC(2,1): images and readers random, absolute agreement, one reader.

    Shrout and Fleiss 1979, Psychol Bull 86:420, from the mean squares of the two-way analysis of
    variance. Own arithmetic, because the packages that have it are under the GPL.

    Parameters
    ----------
    scores
        (images, readers). NaN where all scores are the same.
    """
    images, readers = scores.shape
    mean, of_images, of_readers = scores.mean(), scores.mean(axis=1), scores.mean(axis=0)
    between_images = readers * np.sum((of_images - mean) ** 2) / (images - 1)
    between_readers = images * np.sum((of_readers - mean) ** 2) / (readers - 1)
    rest = scores - of_images[:, np.newaxis] - of_readers + mean
    error = np.sum(rest**2) / ((images - 1) * (readers - 1))
    total = between_images + (readers - 1) * error + readers * (between_readers - error) / images
    return math.nan if total == 0.0 else float((between_images - error) / total)
