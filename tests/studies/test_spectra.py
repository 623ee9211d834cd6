"""Spectra against closed forms: white noise, filters whose transfer is known, Parseval."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import anatomy
from scipy import ndimage

from medqa.quality.areas import UndefinedError
from medqa.studies.enhancement.spectra import (
    SIDE,
    autocorrelation,
    blocks_of,
    noise_power,
    transfer,
)

WHITE = 10 * np.random.default_rng(5).normal(size=(512, 512))
EVERYWHERE = np.ones(WHITE.shape, bool)
BLOCKS = blocks_of(WHITE, EVERYWHERE)


@pytest.mark.parametrize("spacing", [(0.5, 0.5), (0.7, 0.35), None])
def test_white_noise_is_flat_at_variance_times_the_area_of_a_pixel(spacing):
    found = noise_power(WHITE, BLOCKS.all, spacing)
    dy, dx = spacing or (1.0, 1.0)
    assert found.power == pytest.approx(np.full(len(found.power), 100 * dx * dy), rel=0.05)
    assert found.sd == pytest.approx(10, rel=0.01)
    nyquist = 1 / (2 * max(dx, dy))
    assert found.frequency[-1] == pytest.approx(nyquist, rel=0.05)
    assert found.spacing_mm == spacing


def test_the_mean_frequency_of_white_noise_is_that_of_the_disc():
    # Uniform over a disc of radius 0.5: its mean radius is 2/3 of that.
    assert noise_power(WHITE, BLOCKS.all).mean_frequency == pytest.approx(1 / 3, rel=0.03)


def test_noise_after_a_gaussian_is_the_gaussian_squared():
    after = ndimage.gaussian_filter(WHITE, 1.0, mode="wrap")
    before, found = noise_power(WHITE, BLOCKS.all), noise_power(after, BLOCKS.all)
    known = np.exp(-4 * np.pi**2 * found.frequency**2)
    low = found.frequency < 0.3  # above, 1/1000 of the power and less is what the window leaks
    assert (found.power / before.power)[low] == pytest.approx(known[low], rel=0.1)
    assert found.mean_frequency < 0.5 * before.mean_frequency


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_structure_and_noise_pass_a_gaussian_by_its_transfer(sigma):
    clean = anatomy(512)
    noisy = clean + WHITE
    after = ndimage.gaussian_filter(noisy, sigma)
    found = transfer(noisy, after, blocks_of(noisy, EVERYWHERE))
    known = np.exp(-2 * np.pi**2 * sigma**2 * found.frequency**2)
    low = found.frequency < 0.3
    assert found.structure[low] == pytest.approx(known[low], rel=0.1)
    assert found.noise[low] == pytest.approx(known[low], rel=0.1)


def test_a_perfect_denoiser_keeps_the_structure_and_none_of_the_noise():
    clean = anatomy(512)
    noisy = clean + WHITE
    found = transfer(noisy, clean, blocks_of(noisy, EVERYWHERE))
    assert found.structure == pytest.approx(np.ones(len(found.structure)), abs=0.05)
    assert found.noise == pytest.approx(np.zeros(len(found.noise)), abs=0.02)


def test_no_structure_has_no_transfer_at_fine_scales():
    found = transfer(WHITE, WHITE, BLOCKS)
    assert np.isnan(found.structure[1:]).all()
    assert (found.weight[1:] == 0).all()


def test_the_autocorrelation_of_smoothed_noise_is_the_known_one():
    assert autocorrelation(WHITE, BLOCKS.all) == pytest.approx(0, abs=0.01)
    after = ndimage.gaussian_filter(WHITE, 1.0, mode="wrap")
    # Of the Gaussian with itself, one pixel apart: exp(-1 / 4); the blocks' mean takes 2 %.
    assert autocorrelation(after, BLOCKS.all) == pytest.approx(np.exp(-1 / 4), abs=0.025)
    with pytest.raises(UndefinedError, match="one value"):
        autocorrelation(np.zeros((64, 64)), BLOCKS.all[:1])


def test_flat_blocks_lie_in_the_flat_part_and_steep_ones_in_the_other():
    noisy = anatomy(512) + WHITE
    found = blocks_of(noisy, EVERYWHERE)
    assert (found.flat[:, 1] + SIDE < 2 * 512 // 5 + SIDE).all()
    assert (found.steep[:, 1] + SIDE > 2 * 512 // 5).all()
    assert noise_power(noisy, found.flat).sd == pytest.approx(10, rel=0.03)


def test_blocks_lie_in_the_body_as_a_whole():
    body = np.zeros(WHITE.shape, bool)
    body[100:220, 40:200] = True
    places = blocks_of(WHITE, body).all
    assert (places.min(axis=0) >= [100, 40]).all()
    assert (places.max(axis=0) + SIDE <= [220, 200]).all()


@pytest.mark.parametrize(
    ("shape", "reason"), [((31, 64), "smaller than a block"), ((40, 40), "too few blocks")]
)
def test_too_small_is_undefined(shape, reason):
    with pytest.raises(UndefinedError, match=reason):
        blocks_of(np.ones(shape), np.ones(shape, bool) & (np.arange(shape[1]) < 36))
