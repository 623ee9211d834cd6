"""Estimators against closed forms, scikit-image, MRIQC's formula, phantoms and real images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import erf
from skimage.filters import threshold_otsu
from skimage.measure import shannon_entropy
from skimage.restoration import estimate_sigma

from medqa.quality.areas import UndefinedError, air_of, body_of, local_statistics, otsu
from medqa.quality.artefacts import (
    clipping,
    contrast,
    entropy,
    entropy_focus,
    ghosting,
    summary,
    uniformity,
)
from medqa.quality.noise import (
    RAYLEIGH,
    air_noise,
    cnr,
    global_noise_level,
    snr_dual_region,
    wavelet_noise,
    window_side,
)
from medqa.quality.sharpness import edge_mtf50, gradient_sharpness, skin_mtf50
from medqa.reader import read

Array = NDArray[np.float64]
_WHOLE = np.ones((128, 128), bool)


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _disc(shape: tuple[int, int] = (256, 256), radius: float = 80.0) -> NDArray[np.bool_]:
    row, column = np.indices(shape)
    middle = shape[0] / 2 - 0.3, shape[1] / 2 + 0.2
    return np.hypot(row - middle[0], column - middle[1]) < radius


def _ct(sigma: float = 0.0, blur: float = 0.8, seed: int = 0) -> Array:
    """A body of soft tissue in air, with an edge of known blur, and white noise."""
    row, column = np.indices((256, 256))
    away = 80.0 - np.hypot(row - 127.7, column - 128.2)
    clean = -1000 + 1050 * (0.5 + 0.5 * erf(away / (blur * math.sqrt(2))))
    return clean + _random(seed).normal(0, sigma, clean.shape) if sigma else clean


# Noise --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (65, 97), (128, 200)])
def test_wavelet_noise_is_scikit_images(shape: tuple[int, int]) -> None:
    pixels = _random().normal(100, 7, shape).cumsum(axis=0)
    assert wavelet_noise(pixels) == pytest.approx(estimate_sigma(pixels), rel=1e-12)


def test_wavelet_noise_counts_the_inside_alone() -> None:
    pixels = np.where(_disc(radius=90), _random().normal(0, 4, (256, 256)), 1e6)
    assert wavelet_noise(pixels, _disc(radius=90)) == pytest.approx(4, rel=0.03)


def test_wavelet_noise_of_none_is_zero_and_of_few_pixels_undefined() -> None:
    assert wavelet_noise(np.full((64, 64), 3.0)) == 0
    with pytest.raises(UndefinedError, match="too small"):
        wavelet_noise(np.zeros((8, 8)))


@pytest.mark.parametrize("sigma", [3.0, 10.0, 40.0])
def test_ct_noise_is_recovered_within_4_per_cent(sigma: float) -> None:
    pixels = _ct(sigma)
    body = body_of(pixels, "CT", np.ones(pixels.shape, bool))
    air = air_of(pixels, "CT", np.ones(pixels.shape, bool), body)
    assert global_noise_level(pixels, body, 9) == pytest.approx(sigma, rel=0.04)
    assert air_noise(pixels, air, 9) == pytest.approx(sigma, rel=0.04)
    assert wavelet_noise(pixels, body) == pytest.approx(sigma, rel=0.04)


def test_global_noise_level_does_not_see_structure() -> None:
    pixels = _ct(8.0)
    pixels[100:104] += 400  # four rows of bone: every window that holds them is no tissue
    pixels[:, 100:102] -= 60
    body = body_of(pixels, "CT", np.ones(pixels.shape, bool))
    assert global_noise_level(pixels, body, 9) == pytest.approx(8, rel=0.05)


def test_noise_in_air_that_was_cut_off_is_undefined() -> None:
    pixels = np.maximum(_ct(20.0), -1000)
    inside = np.ones(pixels.shape, bool)
    air = air_of(pixels, "CT", inside, body_of(pixels, "CT", inside))
    with pytest.raises(UndefinedError, match="cut off"):
        air_noise(pixels, air, 9)
    flat = np.where(air, -1000.0, pixels)
    with pytest.raises(UndefinedError, match="one value"):
        air_noise(flat, air, 9)
    with pytest.raises(UndefinedError, match="too little air"):
        air_noise(pixels, np.zeros_like(air), 9)


def test_rayleigh_factor_is_nemas() -> None:
    assert pytest.approx(0.655, abs=3e-4) == RAYLEIGH


@pytest.mark.parametrize("snr", [20.0, 50.0, 200.0])
def test_snr_of_a_magnitude_phantom(snr: float) -> None:
    random, body = _random(), _disc()
    channels = random.normal(0, 1, (2, 256, 256))
    pixels = 100 * np.hypot(snr * body + channels[0], channels[1])
    inside = np.ones(pixels.shape, bool)
    found = body_of(pixels, "MR", inside)
    spread = air_noise(pixels, air_of(pixels, "MR", inside, found), 7)
    assert snr_dual_region(float(pixels[found].mean()), spread) == pytest.approx(snr, rel=0.05)


def test_cnr_is_arithmetic() -> None:
    assert cnr(50.0, -1000.0, 10.0) == 105.0


@pytest.mark.parametrize(("size", "side"), [(0.5, 13), (0.7, 9), (1.0, 5), (6.0, 3)])
def test_window_of_6_mm(size: float, side: int) -> None:
    assert window_side((size, size)) == side
    assert window_side(None) == 7


# Sharpness ----------------------------------------------------------------------------------------


def _edge(sigma: float, degrees: float, rows: int = 17) -> Array:
    row, column = np.mgrid[:rows, :40]
    angle = math.radians(degrees)
    away = (column - 20 + math.tan(angle) * (row - rows // 2)) * math.cos(angle)
    return np.asarray(-1000 + 1000 * (0.5 + 0.5 * erf(away / sigma / math.sqrt(2))))


@pytest.mark.parametrize("degrees", [3, 7, 15, 30])
@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.2, 2.0])
def test_mtf50_of_a_gaussian_edge(sigma: float, degrees: float) -> None:
    # exp(-2 (pi sigma f)^2) = 1/2
    expected = math.sqrt(math.log(2) / 2) / (math.pi * sigma)
    assert edge_mtf50(_edge(sigma, degrees)) == pytest.approx(expected, rel=0.03)
    assert edge_mtf50(_edge(sigma, degrees), 0.5) == pytest.approx(2 * expected, rel=0.03)


def test_mtf50_does_not_depend_on_polarity_or_contrast() -> None:
    edge = _edge(0.8, 7)
    assert edge_mtf50(-3 * edge + 17) == pytest.approx(edge_mtf50(edge), rel=1e-9)


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        (np.zeros((17, 40)), "no single edge"),
        (_edge(0.8, 7) + 2000 * (np.indices((17, 40))[1] > 34), "."),
        (_edge(0.8, 7)[:, 10:24], "middle"),
        (_edge(0.8, 0), "along"),
        (_random().normal(0, 1, (17, 40)), "single"),
        (_edge(5.0, 7), "blurred"),
    ],
)
def test_what_is_no_clean_edge_has_no_mtf50(patch: Array, reason: str) -> None:
    with pytest.raises(UndefinedError, match=reason):
        edge_mtf50(patch)


@pytest.mark.parametrize("blur", [0.6, 0.9, 1.4])
def test_skin_mtf50_of_a_round_body(blur: float) -> None:
    expected = math.sqrt(math.log(2) / 2) / (math.pi * blur * 0.7)
    assert skin_mtf50(_ct(8.0, blur), 0.7) == pytest.approx(expected, rel=0.05)


def test_skin_under_clothes_does_not_count() -> None:
    pixels = _ct(8.0)
    pixels[_disc(radius=90) & ~_disc(radius=84)] += 300  # a blanket all around
    with pytest.raises(UndefinedError, match="clean skin"):
        skin_mtf50(pixels, 0.7)


def test_gradient_sharpness_of_a_sine_is_its_frequency() -> None:
    # A sine of f cycles per pixel: Sobel over 8 is a central difference, sin(2 pi f) of its SD.
    wave = np.tile(np.sin(2 * np.pi * np.arange(128) / 16), (128, 1))
    inner = np.zeros_like(_WHOLE)
    inner[16:-16, 16:-16] = True
    found = gradient_sharpness(wave, inner, 0.0)
    assert found == pytest.approx(math.sin(2 * math.pi / 16), rel=1e-6)


def test_white_noise_does_not_pass_for_sharpness() -> None:
    wave = np.tile(np.sin(2 * np.pi * np.arange(256) / 16), (256, 1))
    noisy = wave + _random().normal(0, 0.3, wave.shape)
    whole = np.ones(wave.shape, bool)
    clean = gradient_sharpness(wave, whole, 0.0)
    assert gradient_sharpness(noisy, whole, 0.3) == pytest.approx(clean, rel=0.03)
    with pytest.raises(UndefinedError, match="than noise"):
        gradient_sharpness(_random().normal(0, 1, wave.shape), whole, 1.0)


# Contrast, entropy, clipping, uniformity, ghosts, motion ------------------------------------------


def test_contrast_is_the_spread_without_the_noise() -> None:
    half = np.zeros((128, 128))
    half[:64] = 1.0
    assert contrast(half, _WHOLE) == 0.5
    assert contrast(half, _WHOLE, 0.3) == pytest.approx(0.4)
    assert contrast(half, _WHOLE, 0.6) == 0.0


@pytest.mark.parametrize("greys", [1, 2, 16, 256])
def test_entropy_of_equally_frequent_greys(greys: int) -> None:
    shown = (np.arange(128 * 128) % greys * (256 // greys) / 255).reshape(128, 128)
    assert entropy(shown, _WHOLE) == pytest.approx(math.log2(greys), abs=1e-12)


def test_entropy_is_scikit_images() -> None:
    grey = _random().binomial(255, 0.4, (128, 128))
    assert entropy(grey / 255, _WHOLE) == pytest.approx(shannon_entropy(grey), rel=1e-12)


def test_clipping_counts_both_ends_and_a_plateau() -> None:
    pixels = _random().permutation(np.arange(128 * 128.0)).reshape(128, 128)
    ends = (-1000.0, 65535.0)
    assert clipping(pixels, _WHOLE, ends) == 0
    saturated = np.minimum(pixels, 128 * 128 * 0.9)  # below what can be stored
    assert clipping(saturated, _WHOLE, ends) == pytest.approx(10, abs=0.02)
    low = np.maximum(pixels, 128 * 128 * 0.2)
    assert clipping(low, _WHOLE, (128 * 128 * 0.2, 65535.0)) == pytest.approx(20, abs=0.02)


@pytest.mark.parametrize("slope", [0.0, 0.1, 0.3])
def test_uniformity_of_a_shaded_phantom(slope: float) -> None:
    body = _disc()
    shade = 1000 * (1 + slope * (np.indices(body.shape)[1] - 128) / 80)
    pixels = np.where(body, shade, 0.0) + _random().normal(0, 5, body.shape)
    # Means of 11 x 11 pixels reach to 5 pixels from the border.
    expected = 100 * (1 - slope * 74 / 80)
    assert uniformity(pixels, body, (1.0, 1.0)) == pytest.approx(expected, abs=1.0)


def test_uniformity_of_anatomy_is_undefined() -> None:
    body = _disc()
    pixels = np.where(np.indices(body.shape).sum(axis=0) // 6 % 2, 1000.0, 300.0) * body
    with pytest.raises(UndefinedError, match="phantom"):
        uniformity(pixels, body, None)


def test_ghosting_of_a_phantom_with_a_known_ghost() -> None:
    body = _disc()
    pixels = 1000.0 * body + 10
    pixels[:, :40] += 30  # along the columns
    pixels[:, -40:] += 30
    found = ghosting(pixels, body, ~body)
    left = np.flatnonzero(body.any(axis=0))[0] - 5
    right = 256 - (np.flatnonzero(body.any(axis=0))[-1] + 6)
    assert found == pytest.approx((30 * 40 / left + 30 * 40 / right) / (2 * 1010), rel=1e-9)


def test_ghosting_needs_air_on_four_sides_that_was_measured() -> None:
    body = _disc()
    with pytest.raises(UndefinedError, match="set to 0"):
        ghosting(1000.0 * body, body, ~body)
    with pytest.raises(UndefinedError, match="four sides"):
        ghosting(1000.0 * body + 1, _disc(radius=125), ~_disc(radius=125))
    beside = ~body
    beside[:, :30] = False
    with pytest.raises(UndefinedError, match="something else"):
        ghosting(1000.0 * body + 1, body, beside)


def test_entropy_focus_is_mriqcs_formula() -> None:
    pixels = np.abs(_random().normal(200, 80, (128, 128)))
    n = pixels.size
    largest = n * (1 / math.sqrt(n)) * math.log(1 / math.sqrt(n))
    norm = math.sqrt((pixels**2).sum())
    mriqc = (1 / largest) * np.sum(pixels / norm * np.log((pixels + 1e-16) / norm))
    assert entropy_focus(pixels, _WHOLE) == pytest.approx(mriqc, rel=1e-9)
    assert entropy_focus(np.ones((128, 128)), _WHOLE) == pytest.approx(1)
    point = np.zeros((128, 128))
    point[3, 4] = 5
    assert entropy_focus(point, _WHOLE) == 0


def test_summary_is_arithmetic() -> None:
    assert summary(0.25, 1.0, 0.0) == 1.0
    assert summary(0.25, 1.0, 0.25) == 0.5
    with pytest.raises(UndefinedError):
        summary(0.0, 1.0, 0.1)


# Areas --------------------------------------------------------------------------------------------


def test_otsu_is_scikit_images() -> None:
    random = _random()
    values = np.concatenate([random.normal(20, 5, 4000), random.normal(90, 12, 1500)])
    assert otsu(values) == pytest.approx(threshold_otsu(values), rel=1e-12)


def test_local_statistics_are_numpys() -> None:
    pixels = _random().normal(1e6, 3, (20, 20))
    mean, spread = local_statistics(pixels, 5)
    window = pixels[8:13, 4:9]
    assert mean[10, 6] == pytest.approx(window.mean(), rel=1e-12)
    assert spread[10, 6] == pytest.approx(window.std(ddof=1), rel=1e-6)


def test_a_slice_of_one_value_has_no_body() -> None:
    for modality in ("CT", "MR", "DX"):
        with pytest.raises(UndefinedError, match="one value"):
            body_of(np.zeros((64, 64)), modality, np.ones((64, 64), bool))
    with pytest.raises(UndefinedError, match="no body"):
        body_of(_random().normal(-1000, 5, (64, 64)), "CT", np.ones((64, 64), bool))


# Invariants ---------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(scale=st.floats(0.01, 1000), shift=st.floats(-5000, 5000))
def test_scale_and_shift(scale: float, shift: float) -> None:
    pixels = ndimage.gaussian_filter(_random(3).normal(0, 40, (128, 128)), 2)
    pixels = pixels + _random(4).normal(0, 0.5, pixels.shape)
    moved = scale * pixels + shift
    noise = wavelet_noise(pixels)
    assert wavelet_noise(moved) == pytest.approx(scale * noise, rel=1e-6)
    sharp = gradient_sharpness(pixels, _WHOLE, noise)
    assert gradient_sharpness(moved, _WHOLE, scale * noise) == pytest.approx(sharp, rel=1e-6)
    assert clipping(moved, _WHOLE, (-1e9, 1e9)) == 0
    positive = pixels - pixels.min() + 1
    focus = entropy_focus(positive, _WHOLE)
    assert entropy_focus(scale * positive, _WHOLE) == pytest.approx(focus, rel=1e-9)
    body = _disc((128, 128), 40)
    phantom = 500.0 * body + np.abs(pixels)
    ghost = ghosting(phantom, body, ~body)
    assert ghosting(scale * phantom, body, ~body) == pytest.approx(ghost, rel=1e-9, abs=1e-12)


# Real images --------------------------------------------------------------------------------------


def _real(shared_data: Path, name: str) -> tuple[Array, str | None]:
    image = read(shared_data / name)
    return image.pixels[0].astype(np.float64), image.modality


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("ts/ct_all_syntaxes/CT2_J2KR", 10.0),
        ("mr/uih_t1/00000004.dcm", 20.0),
        ("xr/dx_mono1/dx_image.dcm", 10.0),
        ("us/US1_UNCR.dcm", 20.0),
        ("xr/cr_mono2/RG2_JLSL.dcm", 20.0),
    ],
)
def test_noise_added_to_a_real_image_is_found_within_15_per_cent(
    shared_data: Path, name: str, added: float
) -> None:
    pixels, modality = _real(shared_data, name)
    body = body_of(pixels, modality, np.ones(pixels.shape, bool))
    noisy = pixels + _random().normal(0, added, pixels.shape)
    before, after = wavelet_noise(pixels, body), wavelet_noise(noisy, body)
    assert math.sqrt(after**2 - before**2) == pytest.approx(added, rel=0.15)


def test_ct_noise_added_to_a_real_image(shared_data: Path) -> None:
    pixels, _ = _real(shared_data, "ts/ct_all_syntaxes/CT2_J2KR")
    body = body_of(pixels, "CT", np.ones(pixels.shape, bool))
    found = [
        global_noise_level(pixels + _random().normal(0, s, pixels.shape), body, 13)
        for s in (0.0, 5.0, 20.0)
    ]
    assert math.sqrt(found[1] ** 2 - found[0] ** 2) == pytest.approx(5, rel=0.1)
    assert math.sqrt(found[2] ** 2 - found[0] ** 2) == pytest.approx(20, rel=0.1)


def test_blur_lowers_the_mtf50_of_a_real_ct_as_it_must(shared_data: Path) -> None:
    pixels, _ = _real(shared_data, "ts/ct_all_syntaxes/CT2_J2KR")
    before = skin_mtf50(pixels, 0.468)
    for blur in (0.5, 1.0):
        after = skin_mtf50(ndimage.gaussian_filter(pixels, blur), 0.468)
        # Of two Gaussians the widths add in squares; a real kernel falls off later and steeper.
        width = math.sqrt(math.log(2) / 2) / math.pi
        expected = width / math.hypot(width / before, blur * 0.468)
        assert 0.95 * expected < after < 0.98 * before


@pytest.mark.parametrize(
    "name", ["mr/uih_t1/00000004.dcm", "xr/dx_mono1/dx_image.dcm", "us/US1_UNCR.dcm"]
)
def test_blur_lowers_the_sharpness_of_real_images(shared_data: Path, name: str) -> None:
    pixels, modality = _real(shared_data, name)
    body = body_of(pixels, modality, np.ones(pixels.shape, bool))
    found = []
    for blur in (0.0, 1.0, 2.0, 4.0):
        one = ndimage.gaussian_filter(pixels, blur) if blur else pixels
        found.append(gradient_sharpness(one, body, wavelet_noise(one, body)))
    assert found == sorted(found, reverse=True)


def test_motion_raises_the_entropy_focus_of_a_real_mr(shared_data: Path) -> None:
    pixels, _ = _real(shared_data, "mr/uih_t1/00000004.dcm")
    inside = np.ones(pixels.shape, bool)
    found = []
    for shift in (0.0, 2.0, 6.0):  # the patient moved between every other line of k-space
        lines = np.fft.fft2(pixels)
        turn = np.exp(-2j * np.pi * shift * np.fft.fftfreq(pixels.shape[0]))[:, None]
        lines[::2] = (lines * turn)[::2]
        found.append(entropy_focus(np.abs(np.fft.ifft2(lines)), inside))
    assert found == sorted(found)
    assert found[2] > found[0] + 0.01
