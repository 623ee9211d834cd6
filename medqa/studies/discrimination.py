"""From forced choices to a limit: up to which distance an image is hardly told from its original.

A reader sees an original and a processed image side by side, unlabelled, and says which is the
original. Who sees no difference is right in half of the choices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medqa.errors import UsageError
from medqa.studies.calibration import just_beyond
from medqa.studies.intervals import Estimate, counted
from medqa.studies.psychometric import (
    LAPSES,
    TOLD_APART,
    Curve,
    Curves,
    Trials,
    fit,
    log_likelihood,
    resample,
)
from medqa.studies.readers import DISTANCE, JudgedImage, ReaderStudy

__all__ = ["Bin", "Discrimination", "Fitted", "ReaderShare", "discriminate", "fitted", "rise"]

# Fewest patients: with fewer a bootstrap knows too little of those to come.
_LEAST_UNITS = 30
_RESAMPLES = 2000
_BAND = 0.95  # confidence of the band about the curve
_SIGNIFICANCE = 0.05
_TIGHT = 0.8  # of the estimate: what more images should bring the limit to
_LOOSE = 0.5  # of the estimate: below, the study was small
_BIN_IMAGES = 10
_MOST_BINS = 8
_POINTS = 81  # of the drawn curve
_JUDGED = "the judged images"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Images of neighbouring distances (least, median, largest) and the choices on them."""

    low: float
    middle: float
    high: float
    choices: int
    right: Estimate


@dataclass(frozen=True)
class ReaderShare:
    """One reader's share of right choices."""

    name: str
    choices: int
    right: Estimate


@dataclass(frozen=True, eq=False)
class Discrimination:
    """The distance calibrated by forced choices.

    Parameters
    ----------
    confidence
        Of the limit.
    curve
        Of the largest likelihood; its threshold is the estimate that the limit lies below.
    limit
        Lower one-sided bound of the threshold, rounded to the strict side.
    choices, units
        How many choices, and of how many patients (images where no patients are named).
    within
        Share of right choices on images within the limit; None where none were judged.
    rise_p
        Of the likelihood-ratio test against a share that is the same at all distances.
    band
        (3, points) distance, lower and upper end of the share of right choices there, 95 %.
    bins, readers
        Shares that were counted, with intervals as if all choices were independent.
    warnings
        What the data cannot support, in whole sentences.
    """

    confidence: float
    curve: Curve
    limit: float
    choices: int
    units: int
    within: Estimate | None
    rise_p: float
    band: Floats
    bins: tuple[Bin, ...]
    readers: tuple[ReaderShare, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A curve that supports a limit: p of its rise, the curves of resamples, the lower bound."""

    curve: Curve
    rise_p: float
    curves: Curves
    bound: float


def discriminate(study: ReaderStudy, confidence: float = 0.95) -> Discrimination:
    """Find the distance that is told apart in 75 % of forced choices, and a limit below it.

    1. The curve and the lower bound of its threshold, as `fitted` has them.
    2. The choices within the limit must not contradict it.
    3. What was counted, and what the data cannot support.

    Raises
    ------
    UsageError
        The choices support no limit; says what is missing.
    """
    if not study.forced_choice or study.measures != (DISTANCE,):
        reason = "forced choices calibrate the distance, and nothing else does so by them"
        raise UsageError(_JUDGED, reason, "leave other measures out")

    # 1. The limit.
    trials = _trials(study)
    found = fitted(trials, confidence)
    limit = just_beyond(found.bound, "lower")

    # 2. The choices within it.
    within, bins = _within(study.images, limit), _bins(trials)
    if _contradicted(*within) or any(_above(one) for one in bins if one.high <= limit):
        raise UsageError(
            _JUDGED,
            f"more than 75 % of choices were right on some of the images within the limit of "
            f"{limit:g} ({within[0]} of {within[1]} on all): the distance does not follow what the "
            "readers see",
            "judge each kind of image and processing by itself",
        )

    # 3. What was counted.
    readers = _readers(study)
    points = np.linspace(0.0, math.sqrt(trials.distance.max()), _POINTS) ** 2
    return Discrimination(
        confidence=confidence,
        curve=found.curve,
        limit=limit,
        choices=int((trials.right + trials.wrong).sum()),
        units=trials.units,
        within=counted(*within) if within[1] else None,
        rise_p=found.rise_p,
        band=np.stack((points, *found.curves.band(points, _BAND))),
        bins=bins,
        readers=readers,
        warnings=tuple(_warnings(study, trials, found.curve, limit, readers)),
    )


def fitted(trials: Trials, confidence: float, resamples: int = _RESAMPLES) -> Fitted:
    """Fit the curve and bound its threshold from below, or refuse.

    1. There are enough patients for a bootstrap.
    2. Right choices become more with distance, and 75 % lie among the distances judged.
    3. The lower bound, percentile of a bootstrap over patients, lies among them too.

    Raises
    ------
    UsageError
        One of these fails; says what is missing.
    """
    # 1. Enough.
    if trials.units < _LEAST_UNITS:
        raise UsageError(
            _JUDGED,
            f"are of {trials.units} patients (or images, where no patients are named), and "
            f"{_LEAST_UNITS} are needed",
            f"judge images of {_LEAST_UNITS - trials.units} more",
        )
    if not trials.distance.any():
        raise UsageError(_JUDGED, "all have the distance 0", "judge processed images")

    # 2. The curve.
    curve = fit(trials)
    p = rise(trials, curve)
    _check_curve(trials, curve, p)

    # 3. The bound.
    curves = resample(trials, resamples)
    bound, least = curves.bound(confidence), _least(trials)
    if bound < least:
        more = _needed(trials.units, curve.threshold, bound, least) - trials.units
        raise UsageError(
            _JUDGED,
            f"75 % right are reached at a distance of about {curve.threshold:.3g}, but with "
            f"{100 * confidence:g} % confidence only above {bound:.3g}, where none was judged (the "
            f"least is {least:.3g})",
            f"judge images of about {max(more, 1)} more patients, or weaker processing too",
        )
    return Fitted(curve, p, curves, bound)


def rise(trials: Trials, curve: Curve) -> float:
    """Return p of the likelihood-ratio test of a curve against one share at all distances.

    Two degrees of freedom: the curve has three parameters, the constant has one. A share below
    one half is no constant that the curve could take, so guessing stands for it.
    """
    right, wrong = int(trials.right.sum()), int(trials.wrong.sum())
    share = max(right / (right + wrong), 0.5)
    constant = right * math.log(share) + (wrong * math.log1p(-share) if wrong else 0.0)
    return float(stats.chi2.sf(2.0 * max(log_likelihood(trials, curve) - constant, 0.0), 2))


def _trials(study: ReaderStudy) -> Trials:
    names = dict.fromkeys(one.patient for one in study.images)
    patients = {name: number for number, name in enumerate(names)}
    right = np.array([sum(one.judgments.values()) for one in study.images])
    return Trials(
        distance=np.array([one.values[DISTANCE] for one in study.images]),
        right=right,
        wrong=np.array([len(one.judgments) for one in study.images]) - right,
        unit=np.array([patients[one.patient] for one in study.images]),
    )


def _check_curve(trials: Trials, curve: Curve, p: float) -> None:
    least, most = _least(trials), float(trials.distance.max())
    right, choices = int(trials.right.sum()), int((trials.right + trials.wrong).sum())
    share = counted(right, choices)
    flat = p >= _SIGNIFICANCE
    if curve.threshold > most or (flat and share.high is not None and share.high < TOLD_APART):
        raise UsageError(
            _JUDGED,
            f"75 % right are not reached: {right} of {choices} choices are, and "
            f"{100 * float(curve.share(most)):.0f} % at the largest distance, {most:.3g}",
            f"judge stronger processing too, at distances beyond {most:.3g}",
        )
    if curve.threshold < least or (flat and share.low is not None and share.low > TOLD_APART):
        raise UsageError(
            _JUDGED,
            f"75 % right are passed at the least distance, {least:.3g}, already: {right} of "
            f"{choices} choices are right",
            f"judge weaker processing too, at distances below {least:.3g}",
        )
    if flat:
        raise UsageError(
            _JUDGED,
            f"right choices do not become more with distance (likelihood-ratio test, p {p:.2g}; "
            f"{right} of {choices} are right)",
            "judge more images, or check that their distances and answers belong together",
        )


def _least(trials: Trials) -> float:
    """Least distance of an image that was processed at all."""
    return float(trials.distance[trials.distance > 0.0].min())


def _needed(units: int, threshold: float, bound: float, aim: float) -> int:
    """How many patients bring the bound up to `aim`: its distance falls with their root."""
    return math.ceil(units * (math.log(threshold / bound) / math.log(threshold / aim)) ** 2)


def _within(images: Sequence[JudgedImage], limit: float) -> tuple[int, int]:
    """Right choices, and all, on images within the limit."""
    inside = [one for one in images if one.values[DISTANCE] <= limit]
    return (
        sum(sum(one.judgments.values()) for one in inside),
        sum(len(one.judgments) for one in inside),
    )


def _contradicted(right: int, choices: int) -> bool:
    """Whether more are right than a limit allows, beyond chance."""
    if not choices:
        return False
    test = stats.binomtest(right, choices, TOLD_APART, "greater")
    return bool(test.pvalue < _SIGNIFICANCE)


def _above(one: Bin) -> bool:
    return one.right.low is not None and one.right.low > TOLD_APART


def _bins(trials: Trials) -> tuple[Bin, ...]:
    count = min(max(len(trials.distance) // _BIN_IMAGES, 2), _MOST_BINS)
    found = []
    for some in np.array_split(np.argsort(trials.distance, kind="stable"), count):
        distance, right = trials.distance[some], int(trials.right[some].sum())
        choices = right + int(trials.wrong[some].sum())
        ends = (float(distance[0]), float(np.median(distance)), float(distance[-1]))
        found.append(Bin(*ends, choices, counted(right, choices)))
    return tuple(found)


def _readers(study: ReaderStudy) -> tuple[ReaderShare, ...]:
    found = []
    for name in study.readers:
        given = [one.judgments[name] for one in study.images if name in one.judgments]
        found.append(ReaderShare(name, len(given), counted(sum(given), len(given))))
    return tuple(found)


def _warnings(
    study: ReaderStudy,
    trials: Trials,
    curve: Curve,
    limit: float,
    readers: Sequence[ReaderShare],
) -> list[str]:
    found = []
    if not study.clustered:
        found.append(
            "The table names no patients: every image was counted as another patient's. If some "
            "share a patient, the confidence does not hold; add the column patient."
        )
    if len(readers) == 1:
        found.append("There was a single reader: what others see is not known.")
    if limit < _LOOSE * curve.threshold:
        more = _needed(trials.units, curve.threshold, limit, _TIGHT * curve.threshold)
        whose = "patients" if study.clustered else "images"
        found.append(
            f"There are few choices: the limit lies far below the estimate of "
            f"{curve.threshold:.3g}. About {more} {whose} in place of {trials.units} would bring "
            f"it to {100 * _TIGHT:g} % of that."
        )
    if curve.lapse >= LAPSES[1] - 1e-6:
        found.append(
            f"Clear differences were answered wrongly more often than {100 * LAPSES[1]:g} %: the "
            "answers may be mixed up, or the readers were not attentive. Look at the wrong "
            "answers at large distances."
        )
    if any(one.right.high is not None and one.right.high <= 0.5 for one in readers):
        found.append(
            "A reader is right less often than by guessing: right and wrong may be swapped."
        )
    for key in ("modality", "body_part"):
        kinds = {getattr(one, key) for one in study.images}
        for kind in sorted(kinds - {None}, key=str) if len(kinds) > 1 else ():
            within = _within([one for one in study.images if getattr(one, key) == kind], limit)
            if _contradicted(*within):
                found.append(
                    f"Of {kind}, {within[0]} of {within[1]} choices within the limit were right: "
                    "more than 75 %. Calibrate it by itself."
                )
    return found
