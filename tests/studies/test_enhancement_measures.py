"""All measures of a slice, on made-up and on real images, with scikit-image's denoisers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from phantoms import anatomy, disc, lesion
from scipy import ndimage
from skimage import restoration

from medqa.errors import MismatchError
from medqa.quality.areas import body_of
from medqa.quality.noise import global_noise_level, wavelet_noise, window_side
from medqa.reader import read
from medqa.studies.enhancement.measures import (
    DENOISING,
    SUPER_RESOLUTION,
    denoising,
    super_resolution,
)
from medqa.studies.enhancement.resolution import lowered, raised

CLEAN = anatomy(256)
NOISE = 10 * np.random.default_rng(6).normal(size=CLEAN.shape)
BODY = disc(256)
KEYS = {one.key for one in DENOISING}


def test_every_measure_has_a_value_or_a_reason():
    for result, definitions in (
        (denoising(CLEAN + NOISE, CLEAN, BODY), DENOISING),
        (denoising(CLEAN + NOISE, CLEAN + NOISE, BODY), DENOISING),
        (denoising(CLEAN + NOISE, CLEAN, BODY & (np.arange(256) < 20)), DENOISING),
        (denoising(0 * CLEAN, CLEAN, BODY), DENOISING),
        (super_resolution(lowered(CLEAN + NOISE, (128, 128)), CLEAN, disc(128)), SUPER_RESOLUTION),
        (super_resolution(np.zeros((64, 64)), CLEAN, disc(64)), SUPER_RESOLUTION),
    ):
        keys = [one.key for one in definitions]
        assert len(set(keys)) == len(keys)
        assert set(result.values) | set(result.reasons) == set(keys)
        assert not set(result.values) & set(result.reasons)
        assert all(math.isfinite(value) for value in result.values.values())


def test_a_perfect_denoiser_is_told_from_one_that_smooths():
    noisy = CLEAN + NOISE
    perfect = denoising(noisy, CLEAN, BODY, (0.5, 0.5)).values
    smoothed = denoising(noisy, ndimage.gaussian_filter(noisy, 1.5), BODY, (0.5, 0.5)).values
    assert perfect["noise_before"] == pytest.approx(10, rel=0.05)
    assert perfect["noise_reduction"] > 0.95
    assert perfect["added"] == perfect["removed"] == 0
    for key in ("structure_kept_low", "structure_kept_middle"):
        assert perfect[key] == pytest.approx(1, abs=0.1)
        assert smoothed[key] < 0.9
    for key in ("edge_correlation", "edge_excess", "excess", "removed"):
        assert smoothed[key] > perfect[key] + 0.2


def test_white_noise_halved_keeps_a_quarter_of_its_power_everywhere():
    found = denoising(CLEAN + NOISE, CLEAN + NOISE / 2, BODY).values
    for third in ("low", "middle", "high"):
        assert found[f"noise_kept_{third}"] == pytest.approx(0.25, abs=0.03)
    assert found["noise_reduction"] == pytest.approx(0.5, abs=0.02)
    assert found["texture_shift"] == pytest.approx(1, abs=0.02)


REAL = {
    "abdomen": ("ct/totalsegmentator_dicom", 10),
    "liver": ("ct/liver_3slice_with_SEG/02.dcm", 0),
    "knee": ("mr/uih_t1/00000004.dcm", 0),
}


@pytest.fixture(scope="module", params=REAL)
def real(request, shared_data):
    path, index = REAL[request.param]
    image = read(shared_data / path)
    pixels = np.asarray(image.pixels[index], np.float64)
    body = body_of(pixels, image.modality, np.ones(pixels.shape, bool))
    return pixels, body, image.spacing_mm[1:], image.modality


def test_noise_in_flat_parts_is_the_global_noise_level_of_a_ct(real):
    pixels, body, spacing, modality = real
    found = denoising(pixels, pixels, body, spacing, modality).values["noise_before"]
    assert found >= wavelet_noise(pixels, body)
    if modality == "CT":
        level = global_noise_level(pixels, body, window_side(spacing))
        assert found == pytest.approx(level, rel=0.1)


def test_noise_that_was_added_to_a_real_image_and_taken_away_is_noise(real):
    pixels, body, spacing, modality = real
    noise = 20 * np.random.default_rng(3).normal(size=pixels.shape)
    found = denoising(pixels + noise, pixels, body, spacing, modality).values
    assert found["removed_sd"] == pytest.approx(20, rel=0.01)
    assert found["added"] == found["removed"] == 0
    assert found["edge_excess"] == pytest.approx(0, abs=0.1)
    assert found["excess"] < 0.05
    assert found["structure_kept_low"] == pytest.approx(1, abs=0.05)


def test_smoothing_a_real_image_is_found_by_every_measure(real):
    pixels, body, spacing, modality = real
    sigma = wavelet_noise(pixels, body)
    mild = restoration.denoise_nl_means(
        pixels, patch_size=5, patch_distance=5, h=0.8 * sigma, sigma=sigma
    )
    one = denoising(pixels, mild, body, spacing, modality).values
    two = denoising(pixels, ndimage.gaussian_filter(pixels, 2), body, spacing, modality).values
    for key in ("edge_correlation", "edge_excess", "excess", "removed", "removed_share"):
        assert two[key] > one[key]
    assert two["structure_kept_low"] < 0.8 < one["structure_kept_low"]
    if modality == "CT":
        assert two["mtf50_ratio"] < 0.6 < one["mtf50_ratio"]


def test_a_lesion_in_a_real_image_is_found_where_it_was_put(real):
    pixels, body, spacing, modality = real
    noise = 20 * np.random.default_rng(3).normal(size=pixels.shape)
    row, column = (int(x) for x in np.argwhere(ndimage.binary_erosion(body, iterations=30))[777])
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    spot = 60 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 3.0**2))
    added = denoising(pixels + noise, pixels + spot, body, spacing, modality).support
    (one,) = added.of("added") or added.findings
    assert math.hypot(one.row - row, one.column - column) < 4
    erased = denoising(pixels + noise + spot, pixels, body, spacing, modality).support
    (one,) = erased.findings
    assert math.hypot(one.row - row, one.column - column) < 4
    assert one.z < 0


def test_super_resolution_is_consistent_when_it_is_the_truth_and_not_with_a_lesion_more():
    low = lowered(CLEAN, (128, 128)) + np.random.default_rng(2).normal(size=(128, 128))
    truth = super_resolution(low, CLEAN, disc(128))
    assert truth.values["inconsistency"] == pytest.approx(1, rel=0.05)
    assert truth.values["inconsistency_in_noise"] < 1.2
    assert truth.values["added"] == truth.values["removed"] == 0
    assert truth.values["sharpness_gain"] > 1
    lied = super_resolution(low, CLEAN + lesion(256, 150, 90, 5, 40), disc(128))
    (one,) = lied.support.of("added")
    assert math.hypot(one.row - 75, one.column - 45) < 2
    assert one.difference == pytest.approx(40, rel=0.4)


def test_cubic_interpolation_is_the_measure_of_sharpness():
    low = lowered(CLEAN, (128, 128)) + np.random.default_rng(2).normal(size=(128, 128))
    found = super_resolution(low, raised(low, (256, 256)), disc(128)).values
    assert found["sharpness_gain"] == pytest.approx(1)
    assert found["inconsistency"] == pytest.approx(found["interpolation_inconsistency"])
    truth = super_resolution(low, CLEAN, disc(128)).values
    assert truth["new_detail"] > 1.5 * found["new_detail"]
    with pytest.raises(MismatchError):
        super_resolution(low, low[::2], disc(128))
