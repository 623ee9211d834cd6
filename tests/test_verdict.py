"""Oracles: truth tables and sums worked out by hand, and the definition of the guard band.

CT limits throughout: diagnostic 0.10, screening 0.18, pathology 0.08, annotation 0.10.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from medqa.assessment import MeasureScore, RegionScore, Scores, SliceScore, WindowScore
from medqa.errors import PixelError, WeightsError
from medqa.thresholds import Gate, Measures, Profile, load
from medqa.verdict import Judgement, judge

# The distance alone; gates are added where they are tested.
CT = load("ct").model_copy(update={"measures": Measures(run=())})


def region(lpips: float, name: str = "nodule", on: int = 12) -> RegionScore:
    return RegionScore(name, lpips, on, "lung", 40, (3, 4, 11, 9))


def scores(
    base: float,
    pathology: tuple[float, ...] = (),
    annotations: tuple[float, ...] = (),
    slices: int = 20,
) -> Scores:
    return Scores(
        windows=(WindowScore(name="lung", low=-1350.0, high=150.0, lpips=0.0),),
        slices=tuple(SliceScore(index=i, lpips=0.0, window="lung") for i in range(slices)),
        base_lpips=base,
        aggregate="p95",
        components=tuple(region(one, f"nodule {i}") for i, one in enumerate(pathology, 1)),
        annotations=tuple(region(one, "arrow") for one in annotations),
        coverage=0.25 if pathology else None,
        masked_lpips=0.001 if pathology else None,
    )


def use(judgement: Judgement) -> tuple[bool, bool, bool]:
    suitability = judgement.suitability
    return (
        suitability.suitable_for_diagnosis,
        suitability.suitable_for_screening,
        suitability.requires_expert_review,
    )


@pytest.mark.parametrize(
    ("base", "pathology", "annotations", "verdict", "expected"),
    [
        (0.0, (), (), "diagnostic", (True, True, False)),
        (0.10, (), (), "diagnostic", (True, True, False)),
        (math.nextafter(0.10, 1), (), (), "expert_review", (False, True, True)),
        (0.18, (), (), "expert_review", (False, True, True)),
        (math.nextafter(0.18, 1), (), (), "unsuitable", (False, False, False)),
        (0.05, (0.08,), (0.10,), "diagnostic", (True, True, False)),
        (0.05, (0.081,), (), "expert_review", (False, True, True)),
        (0.05, (0.01, 0.09, 0.02), (), "expert_review", (False, True, True)),
        (0.05, (), (0.02, 0.101), "expert_review", (False, True, True)),
        (0.15, (0.01,), (0.01,), "expert_review", (False, True, True)),
        (0.20, (0.01,), (0.01,), "unsuitable", (False, False, False)),
        (0.20, (0.90,), (0.90,), "unsuitable", (False, False, False)),
    ],
)
def test_verdict(
    base: float,
    pathology: tuple[float, ...],
    annotations: tuple[float, ...],
    verdict: str,
    expected: tuple[bool, bool, bool],
) -> None:
    judgement = judge(scores(base, pathology, annotations), CT, None)
    assert judgement.verdict == verdict
    assert use(judgement) == expected


def test_pathology_is_its_worst_component_weighted_by_coverage() -> None:
    pathology = judge(scores(0.01, (0.02, 0.06, 0.04)), CT, None).pathology
    assert pathology is not None
    assert pathology.pathology_lpips == 0.06
    assert pathology.weighted_pathology_score == pytest.approx(0.075)  # 0.06 x (1 + 0.25)
    assert pathology.pathology_preserved
    assert [one.name for one in pathology.components] == ["nodule 1", "nodule 2", "nodule 3"]
    assert pathology.components[1].bbox == (3, 4, 11, 9)


def test_each_annotation_is_judged_by_itself() -> None:
    judgement = judge(scores(0.01, (), (0.1, 0.11)), CT, None)
    assert [one.preserved for one in judgement.annotations] == [True, False]
    assert judgement.pathology is None


# Reasons.


def test_reasons_are_plain_and_the_most_damning_first() -> None:
    reasons = judge(scores(0.034, (0.01, 0.21), (0.02,)), CT, None).reasons
    assert [one.text for one in reasons] == [
        "Pathology 'nodule 2' on slice 12: distance 0.210 is above the limit 0.080: "
        "it is not preserved",
        "Whole image: distance 0.034 is within the diagnostic limit 0.100",
        "Annotation 'arrow' on slice 12: distance 0.020 is within the limit 0.100: it is preserved",
        "Pathology 'nodule 1' on slice 12: distance 0.010 is within the limit 0.080: "
        "it is preserved",
    ]
    assert (reasons[0].value, reasons[0].limit) == (0.21, 0.08)
    assert reasons[0].place == "pathology 'nodule 2' on slice 12"
    assert reasons[1].place == "whole image"


def test_image_between_the_limits_says_both() -> None:
    assert [one.text for one in judge(scores(0.15), CT, None).reasons] == [
        "Whole image: distance 0.150 is above the diagnostic limit 0.100",
        "Whole image: distance 0.150 is within the screening limit 0.180",
    ]


def test_single_image_has_no_slice_to_name() -> None:
    reasons = judge(scores(0.5, (0.5,), slices=1), CT, None).reasons
    assert not any("slice" in one.text for one in reasons)


def test_figures_that_differ_do_not_read_alike() -> None:
    assert judge(scores(0.10004), CT, None).reasons[0].text == (
        "Whole image: distance 0.10004 is above the diagnostic limit 0.10000"
    )
    assert "distance 0.00003 is" in judge(scores(0.00003), CT, None).reasons[0].text
    assert "distance 0.000 is" in judge(scores(0.0), CT, None).reasons[0].text


# Guard band. With e = 0.08 the diagnostic limit 0.10 is surely met up to 0.10 x 0.92 = 0.092
# and surely exceeded above 0.10 x 1.08 = 0.108; screening: 0.1656 and 0.1944.


@pytest.mark.parametrize(
    ("base", "verdict", "expected"),
    [
        (0.0, "diagnostic", (True, True, False)),
        (0.0919, "diagnostic", (True, True, False)),
        (0.0921, "expert_review", (False, True, True)),
        (0.0925, "expert_review", (False, True, True)),  # v·(1 + e) = 0.0999 would have passed
        (0.1081, "expert_review", (False, True, True)),
        (0.1655, "expert_review", (False, True, True)),
        (0.1657, "expert_review", (False, False, True)),
        (0.1943, "expert_review", (False, False, True)),
        (0.1945, "unsuitable", (False, False, False)),
    ],
)
def test_guard_band(base: float, verdict: str, expected: tuple[bool, bool, bool]) -> None:
    judgement = judge(scores(base), CT, 0.08)
    assert judgement.verdict == verdict
    assert use(judgement) == expected


def test_undecided_reason_names_value_limit_and_band() -> None:
    reason = judge(scores(0.097), CT, 0.08).reasons[0]
    assert reason.text == (
        "Whole image: distance 0.097 is too close to the diagnostic limit 0.100 to decide with "
        "this network (guard band 0.090 to 0.105): an expert must look"
    )


def test_undecided_region_is_not_preserved() -> None:
    judgement = judge(scores(0.01, (0.08,), (0.10,)), CT, 0.0, 0.01)
    assert judgement.pathology is not None
    assert not judgement.pathology.pathology_preserved
    assert [one.preserved for one in judgement.annotations] == [False]
    assert judgement.verdict == "expert_review"


@given(
    truth=st.floats(0.0, 1.0),
    error=st.floats(0.0, 0.9),
    position=st.floats(-1.0, 1.0),
)
def test_no_measurement_within_the_stated_error_turns_the_truth_around(
    truth: float, error: float, position: float
) -> None:
    """Whatever the network says within its error, a pass is a true pass and a fail a true fail."""
    measured = truth * (1.0 + position * error)
    # Off the limits by more than rounding.
    assume(all(abs(truth - limit) > 1e-12 for limit in (0.10, 0.18)))
    judgement = judge(scores(measured), CT, error)
    if judgement.diagnostic_quality:
        assert truth <= 0.10
    if judgement.screening_quality:
        assert truth <= 0.18
    if judgement.verdict == "unsuitable":
        assert truth > 0.18


@pytest.mark.parametrize("error", [-0.01, 1.0, math.nan, math.inf])
def test_a_useless_stated_error_is_refused(error: float) -> None:
    with pytest.raises(WeightsError, match="relative error"):
        judge(scores(0.01), CT, error)
    with pytest.raises(WeightsError, match="relative error"):
        judge(scores(0.01), CT, 0.1, error)


# Fail closed.


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.001])
def test_no_number_no_verdict(bad: float) -> None:
    good = scores(0.01, (0.01,), (0.01,))
    for broken in (
        replace(good, base_lpips=bad),
        replace(good, components=(region(0.01), region(bad))),
        replace(good, annotations=(region(bad),)),
        replace(good, coverage=bad),
        replace(good, masked_lpips=bad),
    ):
        with pytest.raises(PixelError):
            judge(broken, CT, None)


def gated(diagnostic: float, screening: float, measure: str = "edge_fidelity") -> Profile:
    gate = Gate(
        measure=measure,
        diagnostic=diagnostic,
        screening=screening,
        source="test",
        date=datetime.date(2026, 1, 1),
        status="provisional",
    )
    return CT.model_copy(update={"measures": Measures(run=(measure,), gates=(gate,))})


@pytest.mark.parametrize(
    ("base", "edges", "verdict", "expected"),
    [
        # Both limits hold to their very end, the measure's as the distance's.
        (0.10, 0.8, "diagnostic", (True, True, False)),
        (0.05, math.nextafter(0.8, 0), "expert_review", (False, True, True)),
        (0.05, 0.5, "expert_review", (False, True, True)),
        (0.0, math.nextafter(0.5, 0), "unsuitable", (False, False, False)),
        (0.15, 0.9, "expert_review", (False, True, True)),
        (0.15, 0.6, "expert_review", (False, True, True)),
        (0.19, 0.9, "unsuitable", (False, False, False)),
        # What is undefined is no pass, and no fail.
        (0.01, None, "expert_review", (False, False, True)),
        (0.19, None, "unsuitable", (False, False, False)),
    ],
)
def test_a_gate_decides_beside_the_distance(
    base: float, edges: float | None, verdict: str, expected: tuple[bool, bool, bool]
) -> None:
    measured = replace(scores(base), measures={"edge_fidelity": MeasureScore(edges, 4, "lung")})
    found = judge(measured, gated(0.8, 0.5))
    assert found.verdict == verdict
    assert use(found) == expected
    (gate,) = found.gates
    assert (gate.value, gate.slice, gate.window) == (edges, 4, "lung")
    assert gate.diagnostic == (edges is not None and edges >= 0.8)
    assert gate.screening == (edges is not None and edges >= 0.5)


@pytest.mark.parametrize(
    ("edges", "first"),
    [
        (0.45, "Edges kept: 0.450 is below the screening limit 0.500"),
        (0.7, "Edges kept: 0.700 is below the diagnostic limit 0.800"),
        (
            None,
            "Edges kept: cannot be measured here, as the reference shows too little: "
            "an expert must look",
        ),
    ],
)
def test_the_reason_says_which_of_the_two_spoke(edges: float | None, first: str) -> None:
    measured = replace(scores(0.01), measures={"edge_fidelity": MeasureScore(edges)})
    reasons = judge(measured, gated(0.8, 0.5)).reasons
    assert reasons[0].text == first
    assert reasons[0].place == "edges kept"
    assert any("distance 0.010 is within the diagnostic limit" in one.text for one in reasons)


def test_a_gate_of_a_measure_where_lower_is_better() -> None:
    profile = gated(0.1, 0.2, "gmsd")
    for value, verdict in ((0.1, "diagnostic"), (0.15, "expert_review"), (0.21, "unsuitable")):
        measured = replace(scores(0.01), measures={"gmsd": MeasureScore(value)})
        assert judge(measured, profile).verdict == verdict
    (first, *_) = judge(measured, profile).reasons
    assert "0.210 is above the screening limit 0.200" in first.text


def test_infinite_signal_to_noise_meets_any_limit() -> None:
    measured = replace(scores(0.0), measures={"psnr_db": MeasureScore(math.inf)})
    found = judge(measured, gated(40, 30, "psnr_db"))
    assert found.verdict == "diagnostic"
    assert found.gates[0].value is None


def test_a_gate_that_was_not_measured_is_never_a_pass() -> None:
    with pytest.raises(PixelError, match="edge_fidelity: was not measured"):
        judge(scores(0.0), gated(0.8, 0.5))


def test_nothing_measured_is_never_a_pass() -> None:
    good = scores(0.0, (0.0,))
    for broken in (
        replace(good, slices=()),
        replace(good, windows=()),
        replace(good, components=()),
        replace(good, coverage=None),
        replace(good, masked_lpips=None),
        replace(good, coverage=0.0),
        replace(good, coverage=1.01),
    ):
        with pytest.raises(PixelError):
            judge(broken, CT, None)


@pytest.mark.parametrize(
    ("worst", "error", "verdict"),
    [
        (0.18, None, "diagnostic"),
        (math.nextafter(0.18, 1), None, "expert_review"),
        (0.17, 0.1, "expert_review"),  # 0.17 / 0.9 could be 0.189
        (0.16, 0.1, "diagnostic"),
    ],
)
def test_no_aggregate_hides_a_ruined_slice(worst: float, error: float | None, verdict: str) -> None:
    good = scores(0.02)
    ruined = SliceScore(index=7, lpips=worst, window="lung")
    volume = replace(good, slices=(*good.slices[:7], ruined, *good.slices[8:]))
    found = judge(volume, CT, error)
    assert found.verdict == verdict
    assert found.diagnostic_quality
    named = [reason for reason in found.reasons if reason.place == "slice 7"]
    assert [(one.value, one.limit) for one in named] == (
        [] if verdict == "diagnostic" else [(worst, 0.18)]
    )
    # A single image has no other slice to hide behind: it is judged once, as a whole.
    alone = replace(good, slices=(ruined,))
    assert judge(alone, CT, None).verdict == "diagnostic"


def test_small_limits_are_not_rounded_away() -> None:
    strict = load("ct-head-compression").model_copy(update={"measures": Measures(run=())})
    reason = judge(scores(0.0031), strict).reasons[0]
    assert "distance 0.00310 is above the diagnostic limit 0.00054" in reason.text
