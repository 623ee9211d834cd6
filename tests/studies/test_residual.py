"""What the residual says of noise alone, of anatomy taken with it, and of noise left at edges."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import anatomy
from scipy import ndimage

from medqa.quality.areas import UndefinedError
from medqa.studies.enhancement.residual import residual_of, structure_map
from medqa.studies.enhancement.spectra import blocks_of

BODY = np.ones((384, 384), bool)
CLEAN = anatomy(384)
NOISE = 10 * np.random.default_rng(2).normal(size=CLEAN.shape)
NOISY = CLEAN + NOISE
BLOCKS = blocks_of(NOISY, BODY)


def test_of_a_perfect_denoiser_it_is_the_noise():
    found = residual_of(NOISY, CLEAN, BODY, BLOCKS)
    assert found.mean == pytest.approx(NOISE.mean())
    assert found.sd == pytest.approx(NOISE.std())
    assert found.edge_correlation == pytest.approx(0, abs=0.05)
    assert found.edge_excess == pytest.approx(0, abs=0.05)
    assert found.autocorrelation == pytest.approx(found.noise_autocorrelation, abs=0.03)
    assert found.excess < 0.05


def test_of_half_the_noise_it_is_no_different_but_in_size():
    one = residual_of(NOISY, CLEAN, BODY, BLOCKS)
    half = residual_of(NOISY, (CLEAN + NOISY) / 2, BODY, BLOCKS)
    assert half.sd == pytest.approx(one.sd / 2)
    assert half.edge_excess == pytest.approx(one.edge_excess)
    assert half.excess == 0


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_oversmoothing_takes_edges_and_more_than_the_noise(sigma):
    found = residual_of(NOISY, ndimage.gaussian_filter(NOISY, sigma), BODY, BLOCKS)
    assert found.edge_correlation > 0.8
    assert found.edge_excess > 5
    assert found.excess > 0.4
    assert found.autocorrelation > found.noise_autocorrelation


def test_noise_left_at_edges_is_below_zero():
    steep = ndimage.gaussian_gradient_magnitude(CLEAN, 2)
    found = residual_of(NOISY, np.where(steep > 5, NOISY, CLEAN), BODY, BLOCKS)
    assert found.edge_excess < -0.5
    assert found.edge_correlation < -0.3


def test_a_shift_of_brightness_is_its_mean():
    found = residual_of(NOISY, CLEAN + 3, BODY, BLOCKS)
    assert found.mean == pytest.approx(NOISE.mean() - 3)
    assert found.sd == pytest.approx(NOISE.std())


def test_noise_that_differs_between_tissues_is_no_anatomy():
    noise = NOISE * (1 + ndimage.gaussian_filter((CLEAN > 50).astype(float), 40))
    found = residual_of(CLEAN + noise, CLEAN, BODY, blocks_of(CLEAN + noise, BODY))
    assert found.edge_excess == pytest.approx(0, abs=0.1)


def test_the_map_is_one_in_noise_and_more_where_edges_went():
    flat, edges = np.s_[20:-20, 20:100], ndimage.gaussian_gradient_magnitude(CLEAN, 1) > 10
    perfect = structure_map(NOISY, CLEAN, BODY)
    smoothed = structure_map(NOISY, ndimage.gaussian_filter(NOISY, 2), BODY)
    assert np.median(perfect) == pytest.approx(1, abs=0.05)
    assert np.median(smoothed[flat]) == pytest.approx(1, abs=0.05)
    assert np.median(smoothed[edges]) > 2
    assert structure_map(NOISY, CLEAN, BODY & (np.arange(384) > 99))[:, :99].max() == 0


def test_nothing_taken_away_is_undefined():
    with pytest.raises(UndefinedError, match="nothing was taken away"):
        residual_of(NOISY, NOISY - 5, BODY, BLOCKS)
    with pytest.raises(UndefinedError, match="too small"):
        residual_of(NOISY, CLEAN, BODY & (np.arange(384) < 1), BLOCKS)
