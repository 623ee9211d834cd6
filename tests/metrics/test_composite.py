"""The composite by hand arithmetic from the textbook's weights."""

from __future__ import annotations

import math

import pytest

from medqa.metrics import composite, quality_word


def test_all_parts_weigh_as_the_textbook_says() -> None:
    found = composite(
        0.1, {"ssim": 0.9, "dists": 0.2, "psnr_db": 40.0, "fid": 30.0, "gmsd": 0.5, "vif": None}
    )
    assert found is not None
    assert dict(found.parts) == pytest.approx(
        {"lpips": 0.3, "ssim": 0.3, "dists": 0.2, "psnr_db": 0.1, "fid": 0.1}
    )
    assert found.value == pytest.approx(
        0.3 * 0.9 + 0.3 * 0.9 + 0.2 * 0.8 + 0.1 * 40 / 50 + 0.1 * (1 - 30 / 100)
    )
    assert (found.words, found.alert) == ("very good", "none")


@pytest.mark.parametrize("absent", [None, math.nan])
def test_weights_are_shared_among_the_parts_that_are_there(absent: float | None) -> None:
    found = composite(0.2, {"ssim": 0.7, "psnr_db": 25.0, "dists": absent})
    assert found is not None
    assert dict(found.parts) == pytest.approx({"lpips": 3 / 7, "ssim": 3 / 7, "psnr_db": 1 / 7})
    assert found.value == pytest.approx((3 * 0.8 + 3 * 0.7 + 0.5) / 7)
    assert found.words == "good"


def test_identical_images_are_excellent() -> None:
    found = composite(0.0, {"ssim": 1.0, "dists": 0.0, "psnr_db": math.inf})
    assert found is not None
    assert (found.value, found.words, found.alert) == (1.0, "excellent", "none")


def test_parts_are_clipped() -> None:
    worst = composite(1.7, {"ssim": -0.2, "dists": 1.1, "psnr_db": -3.0, "fid": 400.0})
    best = composite(0.0, {"psnr_db": 80.0})
    assert worst is not None
    assert best is not None
    assert (worst.value, worst.words, worst.alert) == (0.0, "very poor", "critical")
    assert best.value == 1.0


@pytest.mark.parametrize("lpips", [None, math.nan])
def test_no_composite_without_lpips(lpips: float | None) -> None:
    assert composite(lpips, {"ssim": 1.0, "lpips": 0.0}) is None


@pytest.mark.parametrize(
    ("ssim", "word", "alert"),
    [
        # LPIPS 0 and an SSIM: the value is the mean of 1 and the SSIM.
        (0.81, "excellent", "none"),
        (0.79, "very good", "none"),
        (0.59, "good", "none"),
        (0.39, "acceptable", "none"),
        (0.19, "poor", "warning"),
        (0.0, "poor", "warning"),
    ],
)
def test_word_and_alert_of_a_value(ssim: float, word: str, alert: str) -> None:
    found = composite(0.0, {"ssim": ssim})
    assert found is not None
    assert (found.words, found.alert) == (word, alert)


@pytest.mark.parametrize(
    ("lpips", "alert"),
    [(0.0, "none"), (0.3, "none"), (0.31, "warning"), (0.5, "warning"), (0.51, "critical")],
)
def test_a_large_distance_alerts_and_a_small_one_does_not(lpips: float, alert: str) -> None:
    found = composite(lpips, {"ssim": 1.0, "dists": 0.0, "psnr_db": 60.0})
    assert found is not None
    assert found.value > 0.6
    assert found.alert == alert


def test_a_low_value_is_critical() -> None:
    # An LPIPS that alone would only warn.
    found = composite(0.45, {"ssim": 0.1, "dists": 0.8, "psnr_db": 5.0})
    assert found is not None
    assert found.value < 0.4
    assert found.alert == "critical"


@pytest.mark.parametrize(
    ("distance", "word"),
    [
        (0.0, "excellent"),
        (0.0999, "excellent"),
        (0.1, "good"),
        (0.2, "acceptable"),
        (0.399, "acceptable"),
        (0.4, "poor"),
        (1.2, "poor"),
    ],
)
def test_quality_word_of_a_distance(distance: float, word: str) -> None:
    assert quality_word(distance) == word
