"""Scores against the limits of a profile: what the verdict is, and why.

Distances are LPIPS (0 is identical, lower is better). Beside them stand the companion measures
that the profile names as gates, because LPIPS alone does not follow what readers see. A value
equal to its limit passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum

from medqa.assessment import (
    MEASURE_WORDS,
    AnnotationScore,
    ClinicalSuitability,
    ComponentScore,
    GateScore,
    Level,
    MeasureScore,
    PathologyScore,
    Reason,
    RegionScore,
    Scores,
    Verdict,
)
from medqa.errors import PixelError, WeightsError
from medqa.thresholds import Gate, Limits, Profile

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
    gates
        The companion measures that decide, judged.
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
    gates: tuple[GateScore, ...]
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

    @property
    def excess(self) -> float:
        """How many times the limit: the most damning is the largest."""
        return self.value / self.limit


@dataclass(frozen=True)
class _GateCheck:
    """One companion measure held against one limit."""

    gate: Gate
    limit_name: Level
    score: MeasureScore

    @property
    def limit(self) -> float:
        return self.gate.diagnostic if self.limit_name == "diagnostic" else self.gate.screening

    @property
    def outcome(self) -> _Outcome:
        value = self.score.value
        if value is None:
            return _Outcome.UNDECIDED
        met = value >= self.limit if self.gate.better == "higher" else value <= self.limit
        return _Outcome.WITHIN if met else _Outcome.ABOVE

    @property
    def passed(self) -> bool:
        return self.outcome is _Outcome.WITHIN

    @property
    def excess(self) -> float:
        """As if at the limit where it fails, and last where it passes: it has no zero to count."""
        return -1.0 if self.passed else 1.0


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
    5. Hold each gate's measure against its diagnostic and its screening limit. What is undefined
       meets neither, and an expert must look.
    6. Derive the suitability. Diagnosis needs the diagnostic limits of image and gates, no ruined
       slice, the pathology and all annotations; screening needs the screening limits; an expert
       must review what is not for diagnosis but for screening, and what cannot be decided.
    7. Derive the verdict from the suitability.
    8. Give a reason for each limit applied, the most damning first.

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
    _require_complete(scores, profile)

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
            code=one.code,
        )
        for one, check in zip(scores.annotations, annotations, strict=True)
    )

    # 5. Gates.
    gates = [
        (
            _GateCheck(gate, "diagnostic", scores.measures[gate.measure]),
            _GateCheck(gate, "screening", scores.measures[gate.measure]),
        )
        for gate in profile.measures.gates
    ]

    # 6. Suitability.
    regions = components + annotations
    whole: list[tuple[_Check | _GateCheck, _Check | _GateCheck]] = [
        (diagnostic, screening),
        *gates,
    ]
    for_diagnosis = (
        all(strict.passed for strict, _ in whole)
        and not ruined
        and all(check.passed for check in regions)
    )
    for_screening = all(loose.passed for _, loose in whole)
    possible = all(loose.outcome is not _Outcome.ABOVE for _, loose in whole)
    suitability = ClinicalSuitability(
        suitable_for_diagnosis=for_diagnosis,
        suitable_for_screening=for_screening,
        requires_expert_review=not for_diagnosis and possible,
    )

    # 7. Verdict.
    verdict: Verdict = "unsuitable"
    if for_diagnosis:
        verdict = "diagnostic"
    elif suitability.requires_expert_review:
        verdict = "expert_review"

    # 8. Reasons. Within diagnostic implies within screening, above screening above diagnostic:
    # then one of the two says all.
    told: list[_Check | _GateCheck] = [*ruined, *regions]
    for strict, loose in whole:
        if strict.passed or (isinstance(strict, _GateCheck) and strict.score.value is None):
            told.append(strict)
        elif loose.outcome is _Outcome.ABOVE:
            told.append(loose)
        else:
            told += [loose, strict]
    # What fails the screening limit makes an image unsuitable: it comes before the rest.
    told.sort(key=lambda one: (one.outcome, one.limit_name != "screening", -one.excess))
    return Judgement(
        diagnostic_quality=diagnostic.passed,
        screening_quality=screening.passed,
        pathology=pathology,
        annotations=annotation_scores,
        gates=tuple(
            GateScore(
                measure=strict.gate.measure,
                value=strict.score.recorded,
                slice=strict.score.slice,
                window=strict.score.window,
                diagnostic=strict.passed,
                screening=loose.passed,
            )
            for strict, loose in gates
        ),
        suitability=suitability,
        verdict=verdict,
        reasons=tuple(
            _reason(one) if isinstance(one, _Check) else _gate_reason(one) for one in told
        ),
    )


def _require_complete(scores: Scores, profile: Profile) -> None:
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
    if missing := sorted({gate.measure for gate in profile.measures.gates} - set(scores.measures)):
        raise PixelError(", ".join(missing), "was not measured", "compare the images again")


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


def _gate_reason(check: _GateCheck) -> Reason:
    words = MEASURE_WORDS[check.gate.measure][0]
    place = words[0].upper() + words[1:]
    value, limit = check.score.value, check.limit
    if value is None:
        text = "cannot be measured here, as the reference shows too little: an expert must look"
        return Reason(text=f"{place}: {text}", limit=limit, place=words)
    shown, shown_limit, *_ = _figures(value, limit, 0.0, 0.0)
    side = "below" if check.gate.better == "higher" else "above"
    text = f"{shown} is {side} the {check.limit_name} limit {shown_limit}"
    if check.passed:
        text = f"{shown} meets the {check.limit_name} limit {shown_limit}"
    return Reason(text=f"{place}: {text}", value=check.score.recorded, limit=limit, place=words)


def _figures(value: float, limit: float, low: float, high: float) -> list[str]:
    """Three decimals; more where they would call different values alike, or round a limit away."""
    for decimals in range(3, 18):
        figures = [f"{number:.{decimals}f}" for number in (value, limit, low, high)]
        alike = figures[0] == figures[1] and value != limit
        exact = abs(float(figures[1]) - limit) <= 0.01 * abs(limit)
        if exact and not alike and (value == 0.0 or float(figures[0]) != 0.0):
            break
    return figures
