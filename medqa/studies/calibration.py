"""From judged images to a limit: how well a measure separates, and where the line is drawn.

The guaranteed limit is an order statistic of what was measured on the unacceptable images, so it
needs no assumption about how the values are distributed, only that the images to come are like
those judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medqa.assessment import MEASURE_WORDS, Better
from medqa.errors import UsageError
from medqa.studies.agreement import Agreement, agreement
from medqa.studies.intervals import Estimate, resampled, share
from medqa.studies.readers import DISTANCE, JudgedImage, ReaderStudy

__all__ = [
    "Calibration",
    "Claim",
    "Group",
    "Point",
    "calibrate",
    "guaranteed_limit",
    "just_beyond",
    "most_passable",
    "needed",
    "rank",
    "youden_limit",
]

_DIGITS = 4  # of a limit; it is rounded to the strict side
_POOR_KAPPA = 0.4  # "fair" at best (Landis and Koch 1977)
_FEW_ACCEPTABLE = 30  # below, the share of them that passes is known to ± 0.18 at best


@dataclass(frozen=True)
class Claim:
    """What is to be guaranteed, and what a miss weighs.

    Parameters
    ----------
    miss_rate
        Largest share of unacceptable images that may pass, in (0, 1).
    confidence
        How surely, in (0, 1).
    miss_weight
        How many acceptable images refused weigh as much as one unacceptable image passed; for
        the weighted Youden index only.
    """

    miss_rate: float = 0.05
    confidence: float = 0.95
    miss_weight: float = 2.0

    def __post_init__(self) -> None:
        for name in ("miss_rate", "confidence"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise UsageError(name, "is not between 0 and 1", "such as 0.05 and 0.95")
        if not 0.0 < self.miss_weight < math.inf:
            raise UsageError("miss_weight", "is not above 0", "such as 2")


@dataclass(frozen=True)
class Point:
    """A limit, and what it does to the judged images; a value equal to it passes.

    Parameters
    ----------
    missed
        Share of the unacceptable images that pass it.
    passed
        Share of the acceptable images that pass it; None without such images.
    """

    limit: float
    missed: Estimate
    passed: Estimate


@dataclass(frozen=True)
class Group:
    """Some of the images: all, one modality, or one body part.

    `missed` and `passed` are counts below the guaranteed limit.
    """

    name: str
    images: int
    unacceptable: int
    missed: int
    passed: int
    auc: Estimate | None
    agreement: Agreement

    @property
    def acceptable(self) -> int:
        """How many are acceptable."""
        return self.images - self.unacceptable


@dataclass(frozen=True, eq=False)
class Calibration:
    """One measure calibrated.

    Parameters
    ----------
    rank, units
        The guaranteed limit lies just beyond the `rank`-th most passable of so many independent
        unacceptable images (of each patient the most passable one).
    guaranteed, youden
        The two limits.
    auc
        Probability that an unacceptable image is measured worse than an acceptable one.
    roc
        (points, 2) share of acceptable images refused, share of unacceptable ones refused.
    groups
        All images first.
    warnings
        What the data cannot support, in whole sentences.
    """

    measure: str
    better: Better
    claim: Claim
    rank: int
    units: int
    guaranteed: Point
    youden: Point
    auc: Estimate
    roc: NDArray[np.float64]
    groups: tuple[Group, ...]
    warnings: tuple[str, ...]

    def passes(self, value: float, limit: float) -> bool:
        """Whether a value passes a limit, itself included."""
        return value <= limit if self.better == "lower" else value >= limit


def needed(miss_rate: float, confidence: float) -> int:
    """Fewest independent unacceptable images that can support a claim (Wilks 1941).

    With n of them the least one bounds the miss rate with confidence ``1 - (1 - miss_rate)^n``.

    >>> needed(0.05, 0.95)
    59
    """
    return math.ceil(math.log1p(-confidence) / math.log1p(-miss_rate))


def rank(count: int, miss_rate: float, confidence: float) -> int:
    """Largest k so that the k-th order statistic of `count` values supports a claim; 0 for none.

    The share of a population below the k-th smallest of n values is at most Beta(k, n - k + 1)
    distributed, whatever the population (exactly so where it is continuous).
    """
    places = np.arange(1, count + 1)
    supported = stats.beta.cdf(miss_rate, places, count - places + 1) >= confidence
    return int(np.count_nonzero(supported))


def guaranteed_limit(
    unacceptable: ArrayLike, claim: Claim, better: Better = "lower"
) -> tuple[float, int]:
    """Limit that at most a stated share of unacceptable images pass, with a stated confidence.

    Parameters
    ----------
    unacceptable
        (images,) values of independent unacceptable images.

    Returns
    -------
    The limit, just beyond the k-th most passable value, which itself fails it; and k.

    Raises
    ------
    UsageError
        There are too few; says how many are needed.
    """
    values = np.sort(np.asarray(unacceptable, dtype=np.float64))
    place = rank(len(values), claim.miss_rate, claim.confidence)
    if place == 0:
        enough = needed(claim.miss_rate, claim.confidence)
        raise UsageError(
            "the judged images",
            f"{len(values)} independent unacceptable ones cannot support the claim of at most "
            f"{100 * claim.miss_rate:g} % missed with {100 * claim.confidence:g} % confidence",
            f"judge more until {enough} are unacceptable, or claim less",
        )
    value = values[place - 1] if better == "lower" else values[-place]
    return just_beyond(float(value), better), place


def most_passable(images: Sequence[JudgedImage], measure: str, better: Better) -> list[float]:
    """Of each patient the value that passes most easily: what holds for it holds for the rest."""
    easiest: Callable[[float, float], float] = min if better == "lower" else max
    found: dict[str, float] = {}
    for one in images:
        value = one.values[measure]
        found[one.patient] = easiest(value, found.get(one.patient, value))
    return list(found.values())


def youden_limit(study: ReaderStudy, measure: str, better: Better, miss_weight: float) -> float:
    """Limit with the largest weighted Youden index (Kowalik-Urbaniak 2014).

    ``weight x share of unacceptable images refused + share of acceptable images passed``. Of
    several limits with the same index the strictest. It lies just beyond the most passable value
    that it refuses.
    """
    refused, caught, values = _roc(study.images, measure, better)
    index = miss_weight * caught - refused
    best = np.flatnonzero(np.isclose(index, index.max(), rtol=0.0, atol=1e-12))[-1]
    if np.isinf(values[best]):  # refuses nothing: the least passable image just passes
        return _outermost(study, measure, better)
    return just_beyond(float(values[best]), better)


def calibrate(study: ReaderStudy, measure: str, claim: Claim) -> Calibration:
    """Calibrate one measure on a study.

    1. Of each patient the most passable unacceptable image: these are independent.
    2. The guaranteed limit from them.
    3. The weighted Youden limit and the ROC from all images.
    4. The same images by modality and body part, with the readers' agreement.
    5. What the data cannot support.

    Raises
    ------
    UsageError
        Too few images for the claim, none acceptable, or no limit is possible.
    """
    better: Better = "lower" if measure == DISTANCE else MEASURE_WORDS[measure][1]
    bad = [one for one in study.images if one.unacceptable]
    good = [one for one in study.images if not one.unacceptable]

    # 1. Independent images.
    units = most_passable(bad, measure, better)

    # 2. Guaranteed.
    limit, place = guaranteed_limit(units, claim, better)
    if not good:
        reason = "none of them is acceptable: nothing to tell apart"
        raise UsageError("the judged images", reason, "judge less damaged images too")
    if measure == DISTANCE and limit <= 0.0:
        raise UsageError(
            "the judged images",
            "unacceptable ones have the distance 0: no limit on it can refuse them",
            "check the table, or calibrate another measure",
        )

    # 3. ROC and Youden.
    auc = resampled(study.images, lambda some: _auc(some, measure, better))
    if auc is None:
        raise TypeError("both kinds of images are there, so the AUC is defined")
    youden = youden_limit(study, measure, better, claim.miss_weight)
    points = []
    for chosen in (limit, max(youden, 0.0) if measure == DISTANCE else youden):
        missed = share(bad, _passing(measure, chosen, better))
        passed = share(good, _passing(measure, chosen, better))
        if missed is None or passed is None:
            raise TypeError("both kinds of images are there")
        points.append(Point(chosen, missed, passed))
    refused, caught, _ = _roc(study.images, measure, better)

    # 4. Groups.
    groups = _groups(study, measure, better, limit)

    # 5. Warnings.
    return Calibration(
        measure=measure,
        better=better,
        claim=claim,
        rank=place,
        units=len(units),
        guaranteed=points[0],
        youden=points[1],
        auc=auc,
        roc=np.stack((refused, caught), axis=1),
        groups=groups,
        warnings=tuple(_warnings(study, measure, claim, place, points[0], auc, groups)),
    )


def _passing(measure: str, limit: float, better: Better) -> Callable[[JudgedImage], bool]:
    if better == "lower":
        return lambda one: one.values[measure] <= limit
    return lambda one: one.values[measure] >= limit


def just_beyond(value: float, better: Better) -> float:
    """Next number of four digits that `value` does not pass: below it where lower is better."""
    exact = Decimal(repr(value))
    # Of zero the leading digit has no place; any step will do.
    step = Decimal(1).scaleb((exact.adjusted() if exact else 0) - _DIGITS + 1)
    if better == "lower":
        rounded = exact.quantize(step, ROUND_FLOOR)
        return float(rounded if rounded < exact else rounded - step)
    rounded = exact.quantize(step, ROUND_CEILING)
    return float(rounded if rounded > exact else rounded + step)


def _outermost(study: ReaderStudy, measure: str, better: Better) -> float:
    values = [one.values[measure] for one in study.images]
    return max(values) if better == "lower" else min(values)


def _badness(
    images: Sequence[JudgedImage], measure: str, better: Better
) -> tuple[list[bool], NDArray[np.float64]]:
    """Labels, and values that are higher the worse an image is."""
    sign = 1.0 if better == "lower" else -1.0
    values = np.array([sign * one.values[measure] for one in images])
    return [one.unacceptable for one in images], values


def _auc(images: Sequence[JudgedImage], measure: str, better: Better) -> float:
    from sklearn.metrics import roc_auc_score

    labels, values = _badness(images, measure, better)
    return math.nan if len(set(labels)) < 2 else float(roc_auc_score(labels, values))


def _roc(
    images: Sequence[JudgedImage], measure: str, better: Better
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Share of the acceptable refused, of the unacceptable refused, and the most passable refused.

    From refusing nothing, whose value is infinite, to refusing everything.
    """
    from sklearn.metrics import roc_curve

    labels, values = _badness(images, measure, better)
    refused, caught, least = roc_curve(labels, values, drop_intermediate=False)
    return refused, caught, least if better == "lower" else -least


def _groups(study: ReaderStudy, measure: str, better: Better, limit: float) -> tuple[Group, ...]:
    passing = _passing(measure, limit, better)

    def group(name: str, images: Sequence[JudgedImage]) -> Group:
        return Group(
            name=name,
            images=len(images),
            unacceptable=sum(one.unacceptable for one in images),
            missed=sum(one.unacceptable and passing(one) for one in images),
            passed=sum(not one.unacceptable and passing(one) for one in images),
            auc=resampled(images, lambda some: _auc(some, measure, better)),
            agreement=agreement(study, images),
        )

    found = [group("all images", study.images)]
    for key in ("modality", "body_part"):
        kinds = dict.fromkeys(getattr(one, key) for one in study.images)
        if len(kinds) > 1:
            found += [
                group(
                    kind or f"{key.replace('_', ' ')} not stated",
                    [one for one in study.images if getattr(one, key) == kind],
                )
                for kind in sorted(kinds, key=str)
            ]
    return tuple(found)


def _warnings(
    study: ReaderStudy,
    measure: str,
    claim: Claim,
    place: int,
    point: Point,
    auc: Estimate,
    groups: Sequence[Group],
) -> list[str]:
    found = []
    what = measure.replace("_", " ")
    if not study.clustered:
        found.append(
            "The table names no patients: every image was counted as another patient's. If some "
            "share a patient, the guarantee does not hold; add the column patient."
        )
    if len(study.readers) == 1:
        found.append("There was a single reader: whether others agree is not known.")
    kappa = groups[0].agreement.fleiss
    if kappa is not None and kappa.value < _POOR_KAPPA:
        found.append(
            f"The readers agree poorly (Fleiss' kappa {kappa.value:.2f}): what is acceptable is "
            "itself uncertain."
        )
    if len(study.readers) > 1 and groups[0].agreement.images < len(study.images):
        found.append(
            f"Only {groups[0].agreement.images} of {len(study.images)} images were judged by all "
            "readers; agreement is of those."
        )
    if auc.low is not None and auc.low <= 0.5:
        found.append(
            f"The {what} hardly tells acceptable from unacceptable images here (AUC "
            f"{auc.value:.2f}, from {auc.low:.2f}); the guarantee holds, but it costs dearly."
        )
    if place == 1:
        found.append(
            "The limit rests on one image, the most passable of the unacceptable ones: a single "
            "wrong judgment moves it."
        )
    if point.passed.value == 0.0:
        found.append(f"No acceptable image passes the limit on the {what}.")
    if groups[0].acceptable < _FEW_ACCEPTABLE:
        found.append(
            f"Only {groups[0].acceptable} images are acceptable: how many of them will pass is "
            "hardly known."
        )
    enough = needed(claim.miss_rate, claim.confidence)
    few = [f"{one.name} ({one.unacceptable})" for one in groups[1:] if one.unacceptable < enough]
    if few:
        found.append(
            f"The guarantee is for the mixture of images judged. It is not supported for each "
            f"kind by itself, which takes {enough} unacceptable images: {', '.join(few)}."
        )
    for one in groups[1:]:
        more = (
            stats.binomtest(one.missed, one.unacceptable, claim.miss_rate, "greater")
            if one.unacceptable
            else None
        )
        if more is not None and more.pvalue < 1.0 - claim.confidence:
            found.append(
                f"Of {one.name}, {one.missed} of {one.unacceptable} unacceptable images pass: "
                "more than was claimed. Calibrate it by itself."
            )
    return found
