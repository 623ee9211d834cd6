"""The channelised Hotelling observer, and the area under its ROC curve.

The observer sees a patch through a few channels, v = U^T g, and weighs them by the template
w = K^-1 (mean with the lesion - mean without): the best linear one where K is the covariance of v.
Sources: Barrett, Yao, Rolland and Myers, PNAS 90 (1993) 9758; Gallas and Barrett, J. Opt. Soc. Am.
A 20 (2003) 1725, doi:10.1364/JOSAA.20.001725 (Laguerre-Gauss); Abbey and Barrett, J. Opt. Soc. Am.
A 18 (2001) 473; Zhang, Pham and Eckstein, IEEE Trans. Med. Imaging 23 (2004) 459 (Gabor).

Every background is seen twice, without and with the lesion. That is no case counted twice: an AUC
compares patches of different places only, and the clusters of its variance hold both. The
difference of the means is then free of the backgrounds, and so nearly known, which costs the least
training (Wunderlich and Noo, IEEE Trans. Med. Imaging 28 (2009) 1198).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import special, stats

from medqa.errors import UsageError
from medqa.studies.intervals import Estimate
from medqa.studies.signals import distances

__all__ = ["Auc", "Channels", "Comparison", "auc", "channels_of", "compare", "patches", "scores"]

Channels = Literal["laguerre-gauss", "gabor"]

_CONFIDENCE = 0.95
_LAGUERRE = 6
_BANDS = (0.5, 1.0, 2.0)
_ANGLES = 4
# Below this share of the largest eigenvalue a channel is a combination of the others.
_SINGULAR = 1e-12


def channels_of(
    name: Channels, sigma: float, spacing: tuple[float, float], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Draw the channels.

    Laguerre-Gauss: ``sqrt(2)/a exp(-pi r^2/a^2) L_j(2 pi r^2/a^2)``, j = 0 to 5, with
    ``a = sqrt(2 pi) sigma``, so that the first is the Gaussian lesion itself. Gabor: three octaves
    about the lesion's own frequency ``1/(2 pi sigma)`` in four directions, even phase:
    ``exp(-4 ln2 r^2/w^2) cos(2 pi f x)`` with ``w = 4 ln2/(pi b)`` for a band of width b.

    Parameters
    ----------
    sigma
        Standard deviation of the Gaussian lesion, in the unit of the spacing.
    spacing
        Of pixel centres along (row, column).
    shape
        (height, width) of the patch, both odd.

    Returns
    -------
    (height x width, channels) float64, each of unit length.
    """
    if name not in get_args(Channels):
        raise UsageError(name, "is no set of channels", f"take {' or '.join(get_args(Channels))}")
    half = shape[0] // 2, shape[1] // 2
    square = distances(spacing, half) ** 2
    drawn = []
    if name == "laguerre-gauss":
        x = square / sigma**2  # 2 pi r^2 / a^2
        drawn = [np.exp(-x / 2) * special.eval_laguerre(j, x) for j in range(_LAGUERRE)]
    else:
        rows = spacing[0] * np.arange(-half[0], half[0] + 1)[:, None]
        columns = spacing[1] * np.arange(-half[1], half[1] + 1)[None, :]
        for frequency in (band / (2 * math.pi * sigma) for band in _BANDS):
            width = 4 * math.log(2) / (math.pi * frequency * 2 / 3)  # an octave: f x 2/3 to 4/3
            envelope = np.exp(-4 * math.log(2) * square / width**2)
            for angle in np.arange(_ANGLES) * math.pi / _ANGLES:
                along = columns * math.cos(angle) + rows * math.sin(angle)
                drawn.append(envelope * np.cos(2 * math.pi * frequency * along))
    bank = np.stack([one.ravel() for one in drawn], axis=1)
    unit: NDArray[np.float64] = bank / np.linalg.norm(bank, axis=0)
    return unit


def patches(
    stack: NDArray[Any], where: NDArray[np.int64], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Cut the patch around every place.

    Parameters
    ----------
    stack
        (slices, rows, columns).
    where
        (places, 3): slice, row and column of the middle.
    shape
        (height, width), both odd.

    Returns
    -------
    (places, height x width) float64.
    """
    windows = sliding_window_view(stack, shape, axis=(1, 2))
    cut = windows[where[:, 0], where[:, 1] - shape[0] // 2, where[:, 2] - shape[1] // 2]
    flat: NDArray[np.float64] = cut.reshape(len(where), math.prod(shape)).astype(np.float64)
    return flat


def scores(seen: NDArray[np.float64], fold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Score every patch by a template that was trained on the other folds.

    Parameters
    ----------
    seen
        (2, places, channels): without and with the lesion.
    fold
        (places,) 0, 1, ...; both patches of a place are in one.

    Returns
    -------
    (2, places), larger where a lesion seems to be. Templates are scaled to unit variance, and the
    mean background is taken off all patches alike, so that scores of different folds compare.
    """
    centred = seen - seen[0].mean(axis=0)
    found = np.empty(seen.shape[:2])
    for one in np.unique(fold):
        template = _template(centred[:, fold != one])
        found[:, fold == one] = centred[:, fold == one] @ template
    return found


def _template(seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Template for unit variance; all zero where the lesion left no trace."""
    covariance = (np.cov(seen[0].T) + np.cov(seen[1].T)) / 2
    difference = (seen[1] - seen[0]).mean(axis=0)
    inverse = np.linalg.pinv(np.atleast_2d(covariance), rcond=_SINGULAR, hermitian=True)
    template: NDArray[np.float64] = inverse @ difference
    spread = math.sqrt(max(float(difference @ template), 0.0))
    return template / spread if spread > 0 else template


@dataclass(frozen=True, eq=False)
class Auc:
    """Area under the ROC curve of places that are seen twice.

    Parameters
    ----------
    value
        How often a patch with the lesion scores above one without, of another place; ties count
        half.
    influence
        (places,) what each place adds to the error of the value (DeLong's structural components).
    """

    value: float
    influence: NDArray[np.float64]


def auc(found: NDArray[np.float64]) -> Auc:
    """Mann and Whitney's AUC over all pairs of different places.

    Parameters
    ----------
    found
        (2, places) scores without and with the lesion.
    """
    absent, present = found
    own = (1.0 + np.sign(present - absent)) / 2.0  # of the same place: does not count
    others = len(absent) - 1
    above = (_beaten(present, absent) - own) / others
    below = (_beaten(-absent, -present) - own) / others
    value = float(above.mean())
    return Auc(value, above + below - 2.0 * value)


def _beaten(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many of the others are smaller than each value; equal ones count half."""
    ordered = np.sort(others)
    ends = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    beaten: NDArray[np.float64] = sum(ends, np.zeros(len(values))) / 2.0
    return beaten


@dataclass(frozen=True)
class Comparison:
    """AUC before and after, and what is lost, each with a 95 % interval."""

    before: Estimate
    after: Estimate
    loss: Estimate


def compare(
    before: NDArray[np.float64], after: NDArray[np.float64], groups: NDArray[np.int64]
) -> Comparison:
    """Compare two AUCs of the same places.

    Intervals are DeLong's (Biometrics 44 (1988) 837), by clusters as Obuchowski's (Biometrics 53
    (1997) 567), with Student's t for the number of clusters; of an AUC on the scale of its logit.

    Parameters
    ----------
    before, after
        (2, places) scores without and with the lesion.
    groups
        (places,) 0, 1, ...: the cluster that each place belongs to.
    """
    one, other = auc(before), auc(after)
    lost = one.value - other.value
    error = _error(one.influence - other.influence, groups)
    return Comparison(
        _auc_estimate(one, groups),
        _auc_estimate(other, groups),
        Estimate(lost, lost - error, lost + error),
    )


def _error(influence: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """Half of the 95 % interval of a mean over places."""
    sums = np.bincount(groups, influence)
    clusters = len(sums)
    variance = clusters / (clusters - 1) * float(sums @ sums) / len(influence) ** 2
    return float(stats.t.ppf((1 + _CONFIDENCE) / 2, clusters - 1)) * math.sqrt(variance)


def _auc_estimate(found: Auc, groups: NDArray[np.int64]) -> Estimate:
    value = found.value
    if value in (0.0, 1.0):
        return Estimate(value)
    error = _error(found.influence, groups) / (value * (1.0 - value))
    low, high = special.expit(special.logit(value) + np.array([-error, error]))
    return Estimate(value, float(low), float(high))
