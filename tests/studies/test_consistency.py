"""Slices that were treated unlike their neighbours are named; even treatment is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from phantoms import anatomy, disc
from scipy import ndimage

from medqa.studies.enhancement.consistency import OUTLIER, SliceChange, consistency, through_plane

SIDE, SLICES = 96, 24
BODY = disc(SIDE)
CLEAN = [anatomy(SIDE)] * SLICES
NOISE = 10 * np.random.default_rng(8).normal(size=(SLICES, SIDE, SIDE))


def changes(after, before=None):
    noisy = [one + noise for one, noise in zip(CLEAN, NOISE, strict=True)]
    return through_plane(
        (one, other, BODY) for one, other in zip(before or noisy, after, strict=True)
    )


def test_of_a_perfect_denoiser_slices_are_noise_and_independent():
    found = changes(CLEAN)
    assert [one.index for one in found] == list(range(SLICES))
    for one, noise in zip(found, NOISE, strict=True):
        assert one.mean == pytest.approx(noise[BODY].mean())
        assert one.sd == pytest.approx(noise[BODY].std())
    assert found[0].correlation is None
    pixels = np.count_nonzero(BODY)
    volume = consistency(found)
    assert abs(volume.correlation) < 3 / math.sqrt(pixels)
    # The means differ by noise alone: median of |N(0, 2 / n)|.
    assert volume.flicker == pytest.approx(0.6745 * math.sqrt(2 / pixels), rel=0.7)


def test_anatomy_that_was_taken_goes_on_through_the_plane():
    smoothed = [
        ndimage.gaussian_filter(one + noise, 2) for one, noise in zip(CLEAN, NOISE, strict=True)
    ]
    assert consistency(changes(smoothed)).correlation > 0.5


def test_a_shifted_slice_and_one_that_was_left_noisy_stand_out():
    after = list(CLEAN)
    after[7] = CLEAN[7] + 5
    after[15] = CLEAN[15] + 0.8 * NOISE[15]
    volume = consistency(changes(after))
    assert {index for index, _ in volume.outliers} >= {7, 15}
    assert {index for index, _ in volume.outliers[:2]} == {7, 15}
    assert max(volume.worst_mean, volume.worst_sd) == pytest.approx(abs(volume.outliers[0][1]))
    assert all(abs(z) > OUTLIER for _, z in volume.outliers)


def test_a_slow_change_through_the_body_is_no_outlier():
    found = [
        SliceChange(at, 0.1 * at + 0.01 * math.sin(9 * at), math.exp(0.05 * at), None)
        for at in range(40)
    ]
    volume = consistency(found)
    assert not [index for index, _ in volume.outliers if 2 <= index < 38]
    assert volume.correlation is None


def test_even_slices_are_found_to_stand_out_seldom():
    rng = np.random.default_rng(1)
    found = [
        len(
            consistency(
                [SliceChange(at, m, 1 + 0.01 * s, None) for at, (m, s) in enumerate(pairs)]
            ).outliers
        )
        for pairs in rng.normal(size=(100, 40, 2))
    ]
    assert np.mean(found) / 40 < 0.02


def test_an_unchanged_volume_is_steady():
    noisy = [one + noise for one, noise in zip(CLEAN, NOISE, strict=True)]
    volume = consistency(changes(noisy, noisy))
    assert (volume.flicker, volume.worst_mean, volume.worst_sd) == (0, 0, 0)
    assert volume.outliers == ()
    assert volume.correlation is None
    assert consistency(changes(CLEAN)[:4]) is None


def test_a_slice_without_a_body_is_left_out():
    bodies = [BODY] * SLICES
    bodies[5] = np.zeros(BODY.shape, bool)
    found = through_plane(
        (one + noise, one, body) for one, noise, body in zip(CLEAN, NOISE, bodies, strict=True)
    )
    assert [one.index for one in found] == [*range(5), *range(6, SLICES)]
    assert found[5].correlation is None
