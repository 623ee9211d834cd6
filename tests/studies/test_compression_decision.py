"""Decisions against statsmodels' Clopper-Pearson bounds and plain counting."""

from __future__ import annotations

import math

import pytest
from statsmodels.stats.proportion import proportion_confint

from medqa.errors import UsageError
from medqa.studies.compression.decision import (
    Claim,
    Group,
    check_claim,
    decide,
    groups_of,
    lower_bound,
    needed,
)
from medqa.studies.compression.lesions import Detected
from medqa.studies.compression.rows import Row
from medqa.studies.detectability import Detectability
from medqa.studies.guidelines import named
from medqa.studies.intervals import Estimate

CT = Group("CT", "CHEST", "ct-compression")


def _rows(
    good: dict[float, int], images: int, group: Group = CT, sources: int | None = None
) -> list[Row]:
    """Rows of a codec: at each ratio so many of the images stay good."""
    return [
        Row(
            image=number,
            source=number if sources is None else number % sources,
            verdict="diagnostic" if number <= count else "expert_review",
            good=number <= count,
            reason="",
            modality=group.modality,
            body_part=group.body_part,
            profile=group.profile,
            codec="j2k",
            ratio=ratio,
            measured=ratio * 1.01,
            distance=1e-4 * ratio,
        )
        for ratio, count in good.items()
        for number in range(1, images + 1)
    ]


@pytest.mark.parametrize(("good", "images"), [(59, 59), (58, 59), (90, 100), (1, 20), (0, 5)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_bound_is_that_of_clopper_and_pearson(
    good: int, images: int, confidence: float
) -> None:
    # One-sided at this confidence is one end of the two-sided interval of twice the error.
    low, _ = proportion_confint(good, images, alpha=2 * (1 - confidence), method="beta")
    assert lower_bound(good, images, images, confidence) == pytest.approx(low, abs=1e-12)


def test_how_many_are_needed() -> None:
    assert needed(0.95, 0.95) == 59 == math.ceil(math.log(0.05) / math.log(0.95))
    assert needed(0.9, 0.95) == 29
    for bad in (0, 1, 3):
        count = needed(0.95, 0.95, bad)
        assert count is not None
        assert lower_bound(count - bad, count, count, 0.95) >= 0.95
        assert lower_bound(count - 1 - bad, count - 1, count - 1, 0.95) < 0.95


def test_the_highest_ratio_below_which_all_qualify() -> None:
    found = decide(CT, "j2k", _rows({4: 60, 6: 60, 8: 58, 10: 60}, 60), Claim(), 0.007)
    assert found.highest == found.supported == 6  # 10:1 does not count after 8:1 has failed
    assert "58 of 60" in found.why
    assert [one.share.good for one in found.evidence] == [60, 60, 58, 60]


def test_too_few_images_support_nothing_and_say_how_many_would() -> None:
    found = decide(CT, "j2k", _rows({4: 20, 8: 20}, 20), Claim(), 0.007)
    assert found.highest is None
    assert "59 series are needed where none fails, and 20 were given" in found.why
    assert decide(CT, "j2k", _rows({4: 59, 8: 59}, 59), Claim(), 0.007).highest == 8
    assert decide(CT, "j2k", _rows({4: 58, 8: 58}, 58), Claim(), 0.007).highest is None


def test_images_of_one_series_count_once() -> None:
    found = decide(CT, "j2k", _rows({4: 200}, 200, sources=10), Claim(), 0.007)
    assert found.highest is None
    assert (found.images, found.sources) == (200, 10)
    assert found.evidence[0].share.lower == pytest.approx(0.05 ** (1 / 10))


def test_never_above_the_guideline() -> None:
    rows = _rows({4: 60, 8: 60, 15: 60}, 60)
    capped = decide(CT, "j2k", rows, Claim(guideline=named("DRG")), 0.007)
    assert (capped.highest, capped.supported) == (8, 15)
    assert "DRG 2008 accepts 8:1" in capped.why
    assert capped.guideline is not None
    assert capped.guideline.highest_ratio == 8
    assert decide(CT, "j2k", rows, Claim(guideline=named("CAR")), 0.007).highest == 15
    head = Group("CT", "HEAD", "ct-head-compression")
    rows = _rows({4: 60, 8: 60}, 60, head)
    assert decide(head, "j2k", rows, Claim(guideline=named("DRG")), 0.007).highest == 4
    rows = _rows({8: 60}, 60, head)
    assert decide(head, "j2k", rows, Claim(guideline=named("DRG")), 0.007).highest is None


@pytest.mark.parametrize("codec", ["htj2k", "jpegls", "jpegxl"])
def test_a_codec_that_the_guideline_does_not_name_gets_the_figure_of_others(codec: str) -> None:
    rows = _rows({4: 60, 8: 60, 15: 60}, 60)
    found = decide(CT, codec, rows, Claim(guideline=named("DRG")), 0.007)
    assert (found.highest, found.supported) == (8, 15)
    assert found.guideline is not None
    assert found.guideline.highest_ratio == 8
    words = "it names JPEG and JPEG 2000 only, and the same figure is applied"
    assert found.guideline.source.endswith(words)
    # CAR's source gives no codec, so that there is nothing to say.
    car = decide(CT, codec, rows, Claim(guideline=named("CAR")), 0.007).guideline
    assert car is not None
    assert car.source == named("CAR").source


def test_a_guideline_without_any_figure_caps_nothing() -> None:
    us = Group("US", "ABDOMEN", "ultrasound")
    found = decide(us, "j2k", _rows({8: 60, 15: 60}, 60, us), Claim(guideline=named("DRG")), 0.1)
    assert (found.highest, found.guideline) == (15, None)


def test_nothing_is_approved_of_images_that_may_show_any_part_of_the_body() -> None:
    group = Group("CT", None, "ct-compression")
    found = decide(group, "j2k", _rows({4: 60}, 60, group), Claim(), 0.007)
    assert (found.highest, found.supported) == (None, 4)
    assert "--body-part NAME" in found.why


def test_mammograms_stay_lossless_unless_overridden_by_name() -> None:
    group = Group("MG", "BREAST", "mammography")
    rows = _rows({4: 60}, 60, group)
    plain = decide(group, "j2k", rows, Claim(), 0.007)
    assert plain.highest is None
    assert plain.supported == 4
    assert decide(group, "j2k", rows, Claim(mammography="A. Physicist: a trial"), 0.007).highest
    assert decide(group, "j2k", rows, Claim(guideline=named("FDA")), 0.007).highest is None
    for wrong in ("A. Physicist", ": a trial", "A. Physicist: "):
        with pytest.raises(UsageError, match="NAME: reason"):
            check_claim(Claim(mammography=wrong))


def test_detectability_gates_where_it_is_asked_for() -> None:
    def lost(*upper: float) -> Detected:
        seen = Estimate(0.85, 0.8, 0.9)
        found = {
            ratio: Detectability(seen, seen, Estimate(0.0, -high, high), 700, 60, "images")
            for ratio, high in zip((4, 8), upper, strict=False)
        }
        return Detected(found, {8: "the lesion is too faint"} if len(upper) < 2 else {})

    rows, claim = _rows({4: 60, 8: 60}, 60), Claim(auc_loss=0.02)
    assert decide(CT, "j2k", rows, claim, 0.007, lost(0.01, 0.02)).highest == 8
    found = decide(CT, "j2k", rows, claim, 0.007, lost(0.01, 0.021))
    assert (found.highest, found.evidence[1].auc_loss) == (4, 0.021)
    assert "0.021 of the AUC" in found.why
    unknown = decide(CT, "j2k", rows, claim, 0.007, lost(0.01))
    assert unknown.highest == 4
    assert "not known whether lesions are detected: the lesion is too faint" in unknown.why
    assert decide(CT, "j2k", rows, claim, 0.007).highest is None
    # Measured, and shown, but nobody asked that it decide.
    assert decide(CT, "j2k", rows, Claim(), 0.007, lost(0.01, 0.3)).highest == 8


def test_what_could_not_be_compressed_is_no_success() -> None:
    rows = _rows({4: 60}, 60)
    lost = Row(61, 61, "not_assessable", False, "no", "CT", "CHEST", codec="j2k", ratio=4.0)
    found = decide(CT, "j2k", [*rows, lost], Claim(), 0.007)
    assert (found.evidence[0].share.good, found.evidence[0].share.images) == (60, 61)
    assert found.highest is None


def test_groups_are_kinds_of_images() -> None:
    head = Group("CT", None, "ct-compression")
    rows = _rows({4: 1}, 1) + _rows({4: 1}, 1, head)
    rows.append(Row(9, 9, "not_assessable", good=False, reason="unreadable"))
    assert list(groups_of(rows)) == [head, CT]


@pytest.mark.parametrize("wrong", [{"share": 1.0}, {"confidence": 0.0}, {"auc_loss": 0.6}])
def test_claims_that_mean_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        check_claim(Claim(**wrong))
