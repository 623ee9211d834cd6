"""Layer weights refitted to what a site's readers prefer, if that holds for images not fitted on.

Readers choose `a` over `b` with probability ``1 / (1 + exp(-z))``, ``z = slope x (distance of b -
distance of a)`` (Bradley and Terry 1952). A distance is a sum over taps and channels, so with one
multiplier on each original weight, z is linear: ``z = sum of strength x term``, strength = slope x
multiplier. Strengths are at least 0 and drawn to one another, not to 0: with strong penalty all
multipliers are 1, which is the original at whatever slope fits best. The whole is convex.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from medqa.errors import UsageError
from medqa.studies.intervals import Estimate
from medqa.studies.observations import Observations

__all__ = ["FEWEST_CLUSTERS", "Adaptation", "Model", "adapt", "fitted_multipliers"]

_Floats = NDArray[np.float64]

#: Fewest independent patients, or references, that anything is fitted to: five in each fold.
FEWEST_CLUSTERS = 25
_FEW_CLUSTERS = 50  # below, an interval of resampled patients is narrower than it should be
_FOLDS = 5
_RESAMPLES = 2000
_SEED = 20261121  # any fixed one: the same table gives the same weights
_TAIL = 0.025
# Draws the mean strength to 0, so little that it only matters where a slope would be infinite.
_SLOPE_PENALTY = 0.01
# Share of choices that slip whatever is seen (Wichmann and Hill 2001, Percept Psychophys 63:1293):
# one slip between two very different candidates must not outweigh all other choices.
_LAPSE = 0.02


@dataclass(frozen=True)
class Model:
    """What may vary, and how little.

    Parameters
    ----------
    by_channel
        One multiplier for each channel; else one for each tap.
    penalty
        Times the sum of squares of the strengths' distances from their mean.
    """

    by_channel: bool
    penalty: float


# Simplest first: of two that predict equally well the first is taken.
_MODELS = (
    *(Model(False, penalty) for penalty in (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)),
    *(Model(True, penalty) for penalty in (100.0, 10.0, 1.0, 0.1, 0.01, 0.001, 0.0001)),
)


@dataclass(frozen=True, eq=False)
class Adaptation:
    """New multipliers of the weights, and what they are worth on pairs they were not fitted on.

    Parameters
    ----------
    model
        Chosen by cross-validation.
    multipliers
        (channels,) at least 0, the taps one after another. They leave the mean distance of the
        judged candidates as it was.
    score, original_score
        2AFC score out of sample: share of choices that the distance agrees with; 0.5 is chance,
        higher is better.
    score_gain
        How much higher the new score is.
    log_loss, original_log_loss
        Of each choice, in nats, out of sample, where 2 % of choices slip; 0.69 is chance, lower
        is better.
    log_loss_gain
        How much lower the new one is.
    pairs, clusters
        How many pairs were judged, of how many patients or references.
    warnings
        What the data cannot support, in whole sentences.
    """

    model: Model
    multipliers: _Floats
    score: float
    original_score: float
    score_gain: Estimate
    log_loss: float
    original_log_loss: float
    log_loss_gain: Estimate
    pairs: int
    clusters: int
    warnings: tuple[str, ...]

    @property
    def better(self) -> bool:
        """Whether both gains are above 0 with 97.5 % confidence: else the original stays."""
        return all(
            gain.low is not None and gain.low > 0.0
            for gain in (self.score_gain, self.log_loss_gain)
        )


def adapt(observed: Observations) -> Adaptation:
    """Fit multipliers, and find out what they are worth.

    1. Patients are put into five folds, all pairs of a patient into one.
    2. Of each fold, the pairs are predicted by a model that was chosen and fitted on the others
       (the choice by five folds within these), and by the original with a slope from the others.
    3. The gains, with intervals from patients drawn with replacement.
    4. The model is chosen and fitted again on all pairs.

    Raises
    ------
    UsageError
        Too few patients or references.
    """
    clusters = len(np.unique(observed.cluster))
    if clusters < FEWEST_CLUSTERS:
        kind = "patients" if observed.clustered else "references"
        raise UsageError(
            "the judged images",
            f"they are of {clusters} {kind}: too few to tell whether new weights are better",
            f"judge images of {FEWEST_CLUSTERS} at least, better 100",
        )
    terms = {by_channel: _terms(observed, by_channel=by_channel) for by_channel in (False, True)}

    # 1. and 2. Predictions out of sample.
    new, old = np.empty(len(observed)), np.empty(len(observed))
    total = terms[False].sum(axis=1, keepdims=True)
    for rest, held in _folds(observed):
        model = _chosen(observed, terms, rest)
        some = terms[model.by_channel]
        new[held] = some[held] @ _strengths(some[rest], observed, rest, model.penalty)
        old[held] = total[held] @ _strengths(total[rest], observed, rest, 0.0)

    # 3. Gains.
    agreed, agreed_before = (_agreement(z, observed.share) for z in (new, old))
    loss, loss_before = (_log_losses(z, observed.share) for z in (new, old))
    score_gain = _gain(agreed - agreed_before, observed)
    log_loss_gain = _gain(loss_before - loss, observed)

    # 4. All pairs.
    model = _chosen(observed, terms, np.arange(len(observed)))
    weights = observed.weight
    return Adaptation(
        model=model,
        multipliers=fitted_multipliers(observed, model),
        score=float(np.average(agreed, weights=weights)),
        original_score=float(np.average(agreed_before, weights=weights)),
        score_gain=score_gain,
        log_loss=float(np.average(loss, weights=weights)),
        original_log_loss=float(np.average(loss_before, weights=weights)),
        log_loss_gain=log_loss_gain,
        pairs=len(observed),
        clusters=clusters,
        warnings=tuple(_warnings(observed, clusters)),
    )


def fitted_multipliers(observed: Observations, model: Model) -> _Floats:
    """Fit one model to all pairs.

    Returns
    -------
    (channels,) at least 0. All 1 where the choices follow no distance at all.
    """
    terms = _terms(observed, by_channel=model.by_channel)
    everything = np.arange(len(observed))
    strengths = _strengths(terms, observed, everything, model.penalty)
    if not model.by_channel:
        strengths = np.repeat(strengths, observed.channels)
    # Choices say nothing about the size of distances; they stay comparable with the original's.
    size = np.concatenate((observed.a, observed.b)).mean(axis=0, dtype=np.float64)
    after = float(size @ strengths)
    if not after > 0.0:
        return np.ones(len(strengths))
    found: _Floats = strengths * (size.sum() / after)
    return found


def _terms(observed: Observations, *, by_channel: bool) -> _Floats:
    """(pairs, taps or channels): what speaks for `a`, in units of a usual difference."""
    difference = observed.b.astype(np.float64) - observed.a
    unit = math.sqrt(np.mean(difference.sum(axis=1) ** 2)) or 1.0
    if not by_channel:
        starts = np.cumsum((0, *observed.channels[:-1]))
        difference = np.add.reduceat(difference, starts, axis=1)
    return difference / unit


def _strengths(
    terms: _Floats, observed: Observations, rows: NDArray[np.intp], penalty: float
) -> _Floats:
    """Minimise the penalised logistic loss of some pairs, whose terms are given, over >= 0."""
    share, weight = observed.share[rows], observed.weight[rows]

    def loss(strengths: _Floats) -> tuple[float, _Floats]:
        z = terms @ strengths
        mean = strengths.mean()
        apart = strengths - mean
        value = weight @ (np.logaddexp(0.0, z) - share * z)
        value += penalty * (apart @ apart) + _SLOPE_PENALTY * mean**2
        slope = terms.T @ (weight * (special.expit(z) - share))
        slope += 2.0 * penalty * apart + 2.0 * _SLOPE_PENALTY * mean / len(strengths)
        return float(value), slope

    width = terms.shape[1]
    # From the original at its best slope, so that a strong penalty stays there.
    start = np.ones(width)
    if width > 1:
        start *= _strengths(terms.sum(axis=1, keepdims=True), observed, rows, 0.0)
    bounds = optimize.Bounds(np.zeros(width), np.full(width, np.inf))
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(found.x, np.float64)


def _chosen(observed: Observations, terms: dict[bool, _Floats], rows: NDArray[np.intp]) -> Model:
    """Model with the least log loss, cross-validated within these pairs."""
    inside = observed.taken(rows)
    folds = list(_folds(inside))

    def lost(model: Model) -> float:
        some = terms[model.by_channel][rows]
        z = np.empty(len(rows))
        for rest, held in folds:
            z[held] = some[held] @ _strengths(some[rest], inside, rest, model.penalty)
        return float(inside.weight @ _log_losses(z, inside.share))

    return min(_MODELS, key=lost)


def _folds(observed: Observations) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    from sklearn.model_selection import GroupKFold

    rows = np.arange(len(observed))
    yield from GroupKFold(_FOLDS).split(rows, groups=observed.cluster)


def _agreement(z: _Floats, share: _Floats) -> _Floats:
    """Share of each pair's choices that fell on the candidate with the smaller distance."""
    return np.where(z > 0.0, share, np.where(z < 0.0, 1.0 - share, 0.5))


def _log_losses(z: _Floats, share: _Floats) -> _Floats:
    """Negative log likelihood of each pair's choices, with lapses."""
    chance = _LAPSE + (1.0 - 2.0 * _LAPSE) * special.expit(z)
    losses: _Floats = -share * np.log(chance) - (1.0 - share) * np.log1p(-chance)
    return losses


def _gain(gains: _Floats, observed: Observations) -> Estimate:
    """Weighted mean of gains, with an interval from patients drawn with replacement."""
    _, cluster = np.unique(observed.cluster, return_inverse=True)
    gained: _Floats = np.bincount(cluster, observed.weight * gains).astype(np.float64)
    weight: _Floats = np.bincount(cluster, observed.weight).astype(np.float64)

    def mean(gained: _Floats, weight: _Floats, axis: int = -1) -> _Floats:
        ratio: _Floats = gained.sum(axis=axis) / weight.sum(axis=axis)
        return ratio

    drawn = stats.bootstrap(
        (gained, weight),
        mean,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).bootstrap_distribution
    low, high = np.quantile(drawn, [_TAIL, 1.0 - _TAIL])
    return Estimate(float(mean(gained, weight)), float(low), float(high))


def _warnings(observed: Observations, clusters: int) -> Sequence[str]:
    found = []
    if not observed.clustered:
        found.append(
            "The table does not tell patients apart, so each reference counts as another "
            "patient's. Images of one patient are alike: the intervals may be too narrow."
        )
    if clusters < _FEW_CLUSTERS:
        kind = "patients" if observed.clustered else "references"
        found.append(
            f"Only {clusters} {kind}: the intervals may be too narrow. Judge images of "
            f"{_FEW_CLUSTERS} or more."
        )
    return found
