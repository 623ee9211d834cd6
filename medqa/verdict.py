"""Scores against the limits of a profile: what the verdict is, and why.

Distances are LPIPS (0 is identical, lower is better). A distance equal to its limit passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum

from medqa.assessment import (
    AnnotationScore,
    ClinicalSuitability,
    ComponentScore,
    PathologyScore,
    Reason,
    RegionScore,
    Scores,
    Verdict,
)
from medqa.errors import PixelError, WeightsError
from medqa.thresholds import Limits, Profile

__all__ = ["Judgement", "judge"]


@dataclass(frozen=True)
class Judgement:
    """What the scores mean; its fields go into the record as they are.

    Parameters
    ----------
    diagnostic_quality, screening_quality
        Whether the whole image surely is within the limit.
    pathology, annotations
        The regions, judged; pathology is None without a mask.
    suitability
        What follows for the reader.
    verdict
        ``diagnostic``, ``expert_review`` or ``unsuitable``.
    reasons
        One for each limit that was applied, the most damning first.
    """

    diagnostic_quality: bool
    screening_quality: bool
    pathology: PathologyScore | None
    annotations: tuple[AnnotationScore, ...]
    suitability: ClinicalSuitability
    verdict: Verdict
    reasons: tuple[Reason, ...]


class _Outcome(IntEnum):
    """In the order in which reasons are listed."""

    ABOVE = 0
    UNDECIDED = 1
    WITHIN = 2


@dataclass(frozen=True)
class _Check:
    """One distance held against one limit."""

    place: str
    limit_name: str
    value: float
    limit: float
    low: float
    high: float

    @property
    def outcome(self) -> _Outcome:
        if self.high <= self.limit:
            return _Outcome.WITHIN
        return _Outcome.ABOVE if self.low > self.limit else _Outcome.UNDECIDED

    @property
    def passed(self) -> bool:
        return self.outcome is _Outcome.WITHIN


def judge(
    scores: Scores,
    profile: Profile,
    relative_error: float | None = None,
    region_relative_error: float | None = None,
) -> Judgement:
    """Judge measured scores.

    1. Refuse scores that are incomplete or no numbers: nothing measured is never a pass.
    2. Hold the whole image against the diagnostic and the screening limit, and the worst slice of
       a volume against the screening limit: no aggregate may hide a ruined slice.
    3. Hold each component of the pathology against the pathology limit: the worst decides.
    4. Hold each annotation against the annotation limit.
    5. Derive the suitability. Diagnosis needs the diagnostic limit, no ruined slice, the pathology
       and all annotations; screening needs the screening limit; an expert must review what is not
       for diagnosis but for screening, and what the network cannot decide.
    6. Derive the verdict from the suitability.
    7. Give a reason for each limit applied, the most damning first.

    *Guard band.* The limits hold for the profile's network. Another network, of relative error
    ``e``, states that its distance v and the profile's network's distance d obey
    ``|v - d| <= e·d``, that is ``d·(1 - e) <= v <= d·(1 + e)``. So d lies between ``v / (1 + e)``
    and ``v / (1 - e)``: the limit L is surely met if ``v / (1 - e) <= L``, surely exceeded if
    ``v / (1 + e) > L``, and undecided in between. (``v·(1 + e) <= L`` would let too much pass:
    ``1 / (1 - e)`` is the larger.) What is undecided counts as not met. As e < 1, v = 0 means
    d = 0: identical images pass any limit.

    Parameters
    ----------
    scores
        From the compare step.
    profile
        Limits, in LPIPS.
    relative_error, region_relative_error
        ``e`` of an image's and of a region's distance, in [0, 1); None where the distances come
        from the profile's own network.

    Raises
    ------
    PixelError
        Scores are missing, NaN, infinite or negative.
    WeightsError
        The relative error is outside [0, 1): no limit could be decided.
    """
    error, region_error = relative_error or 0.0, region_relative_error or 0.0
    for stated in (error, region_error):
        if not 0.0 <= stated < 1.0:
            raise WeightsError(
                "network",
                f"its stated relative error is {stated}, not at least 0 and below 1",
                "use the network that the profile's limits hold for",
            )

    # 1. Complete, and numbers.
    _require_complete(scores)

    # 2. Whole image.
    limits = profile.limits
    diagnostic, screening = (
        _check("whole image", name, scores.base_lpips, limits, error)
        for name in ("diagnostic", "screening")
    )

    single = len(scores.slices) == 1
    worst = max(scores.slices, key=lambda one: one.lpips)
    ruined = [_check(f"slice {worst.index}", "screening", worst.lpips, limits, error)]
    if single or ruined[0].passed:
        ruined = []

    # 3. Pathology.
    components = [
        _check_region("pathology", one, single, limits, region_error) for one in scores.components
    ]
    pathology = _pathology(scores, all(check.passed for check in components))

    # 4. Annotations.
    annotations = [
        _check_region("annotation", one, single, limits, region_error) for one in scores.annotations
    ]
    annotation_scores = tuple(
        AnnotationScore(
            annotation_type=one.name,
            lpips_score=one.lpips,
            preserved=check.passed,
            slice=one.slice,
            window=one.window,
            pixels=one.pixels,
            bbox=one.bbox,
        )
        for one, check in zip(scores.annotations, annotations, strict=True)
    )

    # 5. Suitability.
    regions = components + annotations
    for_diagnosis = diagnostic.passed and not ruined and all(check.passed for check in regions)
    for_screening = screening.passed
    undecided = screening.outcome is _Outcome.UNDECIDED
    suitability = ClinicalSuitability(
        suitable_for_diagnosis=for_diagnosis,
        suitable_for_screening=for_screening,
        requires_expert_review=not for_diagnosis and (for_screening or undecided),
    )

    # 6. Verdict.
    verdict: Verdict = "unsuitable"
    if for_diagnosis:
        verdict = "diagnostic"
    elif suitability.requires_expert_review:
        verdict = "expert_review"

    # 7. Reasons. Within diagnostic implies within screening, above screening above diagnostic:
    # then one of the two says all.
    image = [screening, diagnostic]
    if diagnostic.passed:
        image = [diagnostic]
    elif screening.outcome is _Outcome.ABOVE:
        image = [screening]
    checks = sorted(
        [*image, *ruined, *regions], key=lambda one: (one.outcome, -one.value / one.limit)
    )
    return Judgement(
        diagnostic_quality=diagnostic.passed,
        screening_quality=screening.passed,
        pathology=pathology,
        annotations=annotation_scores,
        suitability=suitability,
        verdict=verdict,
        reasons=tuple(map(_reason, checks)),
    )


def _require_complete(scores: Scores) -> None:
    if not scores.slices or not scores.windows:
        raise PixelError("scores", "no slice was scored", "compare the images again")
    masked = (bool(scores.components), scores.coverage is not None, scores.masked_lpips is not None)
    if len(set(masked)) > 1:
        raise PixelError("scores", "the pathology was scored in part", "compare the images again")
    for name, value in _distances(scores):
        if not (math.isfinite(value) and value >= 0.0):
            raise PixelError(name, f"the distance is {value}", "check the pixels of both images")
    if scores.coverage is not None and not 0.0 < scores.coverage <= 1.0:
        raise PixelError(
            "pathology mask", f"it covers {scores.coverage} of its slices", "check the mask"
        )
    for name, measure in scores.metrics.items():
        if measure is not None and not math.isfinite(measure):
            raise PixelError(name, f"the score is {measure}", "check the pixels of both images")


def _distances(scores: Scores) -> Iterator[tuple[str, float]]:
    yield "whole image", scores.base_lpips
    for window in scores.windows:
        yield f"window '{window.name}'", window.lpips
    for one in scores.slices:
        yield f"slice {one.index}", one.lpips
    for region in (*scores.components, *scores.annotations):
        yield f"region '{region.name}'", region.lpips
    if scores.masked_lpips is not None:
        yield "masked image", scores.masked_lpips


def _check(place: str, limit_name: str, value: float, limits: Limits, error: float) -> _Check:
    limit: float = getattr(limits, limit_name).value
    return _Check(place, limit_name, value, limit, value / (1.0 + error), value / (1.0 - error))


def _check_region(
    kind: str, region: RegionScore, single: bool, limits: Limits, error: float
) -> _Check:
    """`single` leaves the slice out of the words for an image that has but one."""
    where = "" if single else f" on slice {region.slice}"
    return _check(f"{kind} '{region.name}'{where}", kind, region.lpips, limits, error)


def _pathology(scores: Scores, preserved: bool) -> PathologyScore | None:
    if scores.coverage is None or scores.masked_lpips is None:
        return None
    worst = max(one.lpips for one in scores.components)
    return PathologyScore(
        pathology_lpips=worst,
        pathology_coverage=scores.coverage,
        weighted_pathology_score=worst * (1.0 + scores.coverage),
        pathology_preserved=preserved,
        masked_lpips=scores.masked_lpips,
        components=tuple(ComponentScore(**asdict(one)) for one in scores.components),
    )


def _reason(check: _Check) -> Reason:
    value, limit, low, high = _figures(check.value, check.limit, check.low, check.high)
    region = check.limit_name in ("pathology", "annotation")
    limit_words = f"the limit {limit}" if region else f"the {check.limit_name} limit {limit}"
    match check.outcome:
        case _Outcome.WITHIN:
            text = f"distance {value} is within {limit_words}" + ": it is preserved" * region
        case _Outcome.ABOVE:
            text = f"distance {value} is above {limit_words}" + ": it is not preserved" * region
        case _Outcome.UNDECIDED:
            text = (
                f"distance {value} is too close to {limit_words} to decide with this network "
                f"(guard band {low} to {high}): an expert must look"
            )
    subject = check.place[0].upper() + check.place[1:]
    return Reason(
        text=f"{subject}: {text}", value=check.value, limit=check.limit, place=check.place
    )


def _figures(value: float, limit: float, low: float, high: float) -> list[str]:
    """Three decimals; more where value and limit would read alike, or a distance as zero."""
    for decimals in range(3, 18):
        figures = [f"{number:.{decimals}f}" for number in (value, limit, low, high)]
        alike = figures[0] == figures[1] and value != limit
        if not alike and (value == 0.0 or float(figures[0]) > 0.0):
            break
    return figures
