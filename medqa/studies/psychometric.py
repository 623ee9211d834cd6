"""The psychometric function: how often an image is told from its original, by its distance.

``P(right | d) = 1/2 + (1/2 - lapse) (1 - exp(-(d / alpha)^beta))``: a Weibull function with a
guess rate of one half, which a choice between two has (Wichmann and Hill 2001, Percept Psychophys
63:1293 and 1314).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

__all__ = ["LAPSES", "TOLD_APART", "Curve", "Curves", "Trials", "fit", "log_likelihood", "resample"]

#: Share of right answers at which a difference counts as told apart: half of the way from
#: guessing to certainty.
TOLD_APART = 0.75
#: Range of the lapse, as Wichmann and Hill advise: were it free, it would take the slope's place.
LAPSES = (0.0, 0.06)

_SLOPES = (0.4, 12.0)
_BEYOND = 4.0  # thresholds are looked for from a quarter of the least distance to 4 x the largest
_NODES = (64, 16, 4)  # of the grid: thresholds, slopes, lapses
_LEAST = 1e-12  # probability of a wrong answer, so that its logarithm is finite
_SEED = 20261121  # any fixed one: the same table gives the same limit

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trials:
    """Choices by image.

    Parameters
    ----------
    distance
        (images,) at least 0, and above for one at least.
    right, wrong
        (images,) how many of the choices were right, and how many were not.
    unit
        (images,) whose image it is, counted from 0; choices on images of one patient are not
        independent.
    """

    distance: Floats
    right: NDArray[np.int_]
    wrong: NDArray[np.int_]
    unit: NDArray[np.int_]

    @property
    def units(self) -> int:
        """How many patients."""
        return int(self.unit.max()) + 1


@dataclass(frozen=True)
class Curve:
    """A psychometric function.

    Parameters
    ----------
    threshold
        Distance that is told apart in `TOLD_APART` of the choices.
    slope
        The exponent beta.
    lapse
        Share of wrong answers however large the distance.
    """

    threshold: float
    slope: float
    lapse: float

    @property
    def alpha(self) -> float:
        """Scale of the Weibull function, a distance."""
        return float(self.threshold / _rise(self.lapse) ** (1.0 / self.slope))

    def share(self, distance: Floats | float) -> Floats:
        """Probability of a right answer, from 0.5 to 1 - lapse."""
        return 1.0 - _wrong(distance, math.log(self.threshold), self.slope, self.lapse)


@dataclass(frozen=True, eq=False)
class Curves:
    """Curves of many resamples of the patients: (resamples,) each, as in `Curve`."""

    threshold: Floats
    slope: Floats
    lapse: Floats

    def bound(self, confidence: float) -> float:
        """Lower one-sided bound of the threshold: percentile."""
        return float(np.quantile(self.threshold, 1.0 - confidence))

    def band(self, distance: Floats, confidence: float) -> tuple[Floats, Floats]:
        """Lower and upper end of the share of right answers, for each distance by itself."""
        thresholds = np.log(self.threshold)[:, np.newaxis]
        wrong = _wrong(distance, thresholds, self.slope[:, np.newaxis], self.lapse[:, np.newaxis])
        tail = (1.0 - confidence) / 2.0
        low, high = np.quantile(1.0 - wrong, [tail, 1.0 - tail], axis=0)
        return low, high


def log_likelihood(trials: Trials, curve: Curve) -> float:
    """Logarithm of the likelihood of the choices, without the binomial coefficients."""
    return float(_each(trials, math.log(curve.threshold), curve.slope, curve.lapse).sum())


def fit(trials: Trials) -> Curve:
    """Curve with the largest likelihood: of a grid the best node, and on by L-BFGS-B.

    Its threshold may lie outside the distances that were judged, at the end of the search.
    """
    surface = _surface(trials)
    start = _best(surface, np.ones((1, trials.units)))
    first = np.array([np.log(start.threshold[0]), np.log(start.slope[0]), start.lapse[0]])

    def loss(given: Floats) -> float:
        return -float(_each(trials, given[0], math.exp(given[1]), given[2]).sum())

    ends = (surface.thresholds[0], surface.thresholds[-1])
    slopes = (math.log(_SLOPES[0]), math.log(_SLOPES[1]))
    first[0] = np.clip(first[0], *ends)
    found = optimize.minimize(loss, first, method="L-BFGS-B", bounds=[ends, slopes, LAPSES])
    threshold, slope, lapse = found.x if found.fun <= loss(first) else first
    return Curve(math.exp(threshold), math.exp(slope), float(lapse))


def resample(trials: Trials, count: int) -> Curves:
    """Curves of resamples: patients drawn with replacement, always the same draws.

    Each is fitted on the grid, and its threshold is where a parabola through the three highest
    nodes of the profile likelihood has its top.
    """
    rng = np.random.default_rng(_SEED)
    units = trials.units
    weights = rng.multinomial(units, np.full(units, 1.0 / units), size=count)
    return _best(_surface(trials), weights.astype(np.float64))


@dataclass(frozen=True, eq=False)
class _Surface:
    """Log-likelihood of each patient's choices on a grid of curves.

    (thresholds x slopes x lapses, units) values; thresholds as logarithms.
    """

    values: Floats
    thresholds: Floats
    slopes: Floats
    lapses: Floats


def _surface(trials: Trials) -> _Surface:
    present = trials.distance[trials.distance > 0.0]
    ends = math.log(present.min() / _BEYOND), math.log(present.max() * _BEYOND)
    thresholds = np.linspace(*ends, _NODES[0])
    slopes, lapses = np.geomspace(*_SLOPES, _NODES[1]), np.linspace(*LAPSES, _NODES[2])
    grid = np.meshgrid(thresholds, slopes, lapses, indexing="ij")
    # Of each unit the images stand together, so that they can be added up.
    order = np.argsort(trials.unit, kind="stable")
    sorted_trials = Trials(
        trials.distance[order], trials.right[order], trials.wrong[order], trials.unit[order]
    )
    each = _each(sorted_trials, *(one.reshape(-1, 1) for one in grid))
    starts = np.flatnonzero(np.diff(sorted_trials.unit, prepend=-1))
    return _Surface(np.add.reduceat(each, starts, axis=1), thresholds, slopes, lapses)


def _best(surface: _Surface, weights: Floats) -> Curves:
    """Best curve of each resample, given how often it holds each unit, (resamples, units)."""
    # (resamples, thresholds, slopes x lapses)
    shape = (len(weights), len(surface.thresholds), -1)
    values = (weights @ surface.values.T).reshape(shape)
    others = values.argmax(axis=2)
    profile = np.take_along_axis(values, others[..., np.newaxis], axis=2)[..., 0]
    top = profile.argmax(axis=1)
    rows = np.arange(len(weights))
    slopes, lapses = np.divmod(others[rows, top], len(surface.lapses))
    inner = np.clip(top, 1, profile.shape[1] - 2)
    left, middle, right = (profile[rows, inner + step] for step in (-1, 0, 1))
    bend = left - 2.0 * middle + right
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where((inner == top) & (bend < 0.0), 0.5 * (left - right) / bend, 0.0)
    step = surface.thresholds[1] - surface.thresholds[0]
    thresholds = np.exp(surface.thresholds[top] + shift * step)
    return Curves(thresholds, surface.slopes[slopes], surface.lapses[lapses])


def _each(
    trials: Trials, threshold: Floats | float, slope: Floats | float, lapse: Floats | float
) -> Floats:
    """Log-likelihood of each image's choices; `threshold` as a logarithm."""
    wrong = np.maximum(_wrong(trials.distance, threshold, slope, lapse), _LEAST)
    right_log: Floats = np.log1p(-wrong)
    wrong_log: Floats = np.log(wrong)
    return trials.right * right_log + trials.wrong * wrong_log


def _wrong(
    distance: Floats | float,
    threshold: Floats | float,
    slope: Floats | float,
    lapse: Floats | float,
) -> Floats:
    """Probability of a wrong answer: what is near 0, so that no digits are lost."""
    with np.errstate(divide="ignore", over="ignore"):  # the distance 0 is a pure guess
        power = np.exp(slope * (np.log(distance) - threshold))
    found: Floats = lapse + (0.5 - lapse) * np.exp(-_rise(lapse) * power)
    return found


def _rise(lapse: Floats | float) -> Floats:
    """``(threshold / alpha)^beta``."""
    found: Floats = -np.log1p(-(TOLD_APART - 0.5) / (0.5 - lapse))
    return found
