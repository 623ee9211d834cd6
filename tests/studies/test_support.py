"""Inserted and erased lesions are found where they are; noise alone is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from phantoms import anatomy, ct_noise, disc, lesion
from scipy import ndimage, stats

from medqa.quality.areas import UndefinedError
from medqa.studies.enhancement.support import SCALES, support

SIDE = 256
BODY = disc(SIDE)
CLEAN = anatomy(SIDE)
WHITE = np.random.default_rng(3).normal(size=(SIDE, SIDE))
NOISES = {
    "white": lambda white: white,
    "smooth": lambda white: ndimage.gaussian_filter(white, 1, mode="wrap") * 2 * math.sqrt(math.pi),
    "ct": ct_noise,
}


@pytest.mark.parametrize("kind", NOISES)
def test_noise_alone_is_found_no_more_often_than_stated(kind):
    rng = np.random.default_rng(11)
    clean, body = anatomy(128), disc(128)
    fields, level = 60, 0.05
    found = 0
    for _ in range(fields):
        noise = 10 * NOISES[kind](rng.normal(size=clean.shape))
        found += bool(support(clean + noise, clean, body, level).findings)
    # More has a chance below 2 % at 5 %.
    assert found <= stats.binom.isf(0.02, fields, level)


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize(("radius", "contrast"), [(3, 60.0), (6, -40.0), (12, 30.0)])
def test_a_lesion_that_the_input_has_not_is_added_where_it_is(kind, radius, contrast):
    noisy = CLEAN + 10 * NOISES[kind](WHITE)
    found = support(noisy, CLEAN + lesion(SIDE, 150, 90, radius, contrast), BODY)
    (one,) = found.of("added")
    assert math.hypot(one.row - 150, one.column - 90) <= max(2, radius)
    assert np.sign(one.z) == np.sign(contrast)
    assert one.difference == pytest.approx(contrast, rel=0.5)
    assert not found.of("removed")
    assert abs(one.z) == pytest.approx(np.abs(found.z).max())


@pytest.mark.parametrize("kind", NOISES)
def test_a_lesion_that_was_erased_is_removed(kind):
    noisy = CLEAN + lesion(SIDE, 150, 90, 5, 50.0) + 10 * NOISES[kind](WHITE)
    found = support(noisy, CLEAN, BODY)
    (one,) = found.of("removed")
    assert math.hypot(one.row - 150, one.column - 90) <= 5
    assert one.z < 0
    assert one.difference == pytest.approx(-50, rel=0.4)
    assert not found.of("added")


def test_the_z_of_a_blob_in_white_noise_is_the_known_one():
    # The band of a Gaussian blob of sigma t, at its peak: amplitude t^2 / (t^2 + s^2) for each.
    blob, s = 4.0, 4.0
    rows, columns = np.mgrid[:SIDE, :SIDE]
    away = (rows - 128) ** 2 + (columns - 128) ** 2
    added = 40 * np.exp(-away / (2 * blob**2))
    found = support(10 * WHITE, added, BODY)
    band = 40 * (blob**2 / (blob**2 + s**2) - blob**2 / (blob**2 + 4 * s**2))
    noise = 10 * math.sqrt(0.1125 / math.pi) / s
    assert found.findings[0].scale == s
    # The noise at the place itself is one part of it, the estimate of its strength another.
    assert found.findings[0].z == pytest.approx(band / noise, abs=2.5 + 0.15 * band / noise)


@pytest.mark.parametrize("contrast", [200.0, -200.0])
def test_a_plain_lesion_is_one_finding_and_its_ring_is_none(contrast):
    noisy = CLEAN + 10 * WHITE
    rows, columns = np.mgrid[:SIDE, :SIDE]
    added = contrast * np.exp(-((rows - 128) ** 2 + (columns - 60) ** 2) / (2 * 7.0**2))
    (one,) = support(noisy, CLEAN + added, BODY).findings
    assert (one.row, one.column) == pytest.approx((128, 60), abs=3)
    assert one.kind == "added"
    assert one.z * np.sign(contrast) > 60
    # The mean of the half of the Gaussian that is highest, less the ring around that.
    assert one.difference == pytest.approx(contrast / 2, rel=0.5)


def test_an_unchanged_image_and_a_shifted_one_have_no_findings():
    noisy = CLEAN + 10 * WHITE
    for same in (noisy, noisy + 40):
        found = support(noisy, same, BODY)
        assert not found.findings
        assert np.abs(found.z).max() < 1e-6


def test_less_than_the_noise_is_not_found():
    noisy = CLEAN + 10 * WHITE
    assert not support(noisy, noisy + lesion(SIDE, 150, 90, 3, 4.0), BODY).findings


def test_a_stricter_level_has_a_higher_limit():
    noisy = CLEAN + 10 * WHITE
    found, strict = (support(noisy, CLEAN, BODY, level) for level in (0.01, 0.0001))
    assert all(strict.limit[scale] > found.limit[scale] > 4 for scale in found.limit)
    # Never above Bonferroni over the pixels for the finest scale, but for Student's widening.
    pixels = np.count_nonzero(BODY)
    assert found.limit[1.0] < 1.05 * stats.norm.isf(0.01 / (2 * len(SCALES)) / pixels)


def test_outside_the_body_nothing_is_looked_for():
    noisy = CLEAN + 10 * WHITE
    found = support(noisy, CLEAN + lesion(SIDE, 6, 6, 4, 200.0), BODY)
    assert not found.findings
    assert not found.z[~BODY].any()


def test_without_noise_or_body_it_is_undefined():
    with pytest.raises(UndefinedError, match="no noise"):
        support(0 * CLEAN, CLEAN, BODY)
    small = np.zeros(BODY.shape, bool)
    small[:22, :22] = True
    with pytest.raises(UndefinedError, match="too small"):
        support(10 * WHITE, 0 * WHITE, small)
