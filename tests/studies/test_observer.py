from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import beta, norm
from sklearn.metrics import roc_auc_score

from medqa.errors import UsageError
from medqa.studies.observer import Channels, auc, channels_of, compare, patches, scores
from medqa.studies.signals import Signal

SIGMA = 3.0
LESION = Signal(SIGMA * 2 * math.sqrt(2 * math.log(2)), 1.0)
FLAT = (1.0, 1.0)


def trial(
    noise: NDArray[np.float64], signal: NDArray[np.float64], channels: Channels = "laguerre-gauss"
) -> float:
    """AUC over (places, height, width) of noise, half of the folds training the others."""
    bank = channels_of(channels, LESION.sigma, FLAT, signal.shape)
    both = np.stack([noise, noise + signal]).reshape(2, len(noise), -1) @ bank
    return auc(scores(both, np.arange(len(noise)) % 10)).value


def error_of(value: float, places: int) -> float:
    """Four standard errors of an AUC, at most as if both samples were independent."""
    return 4 * math.sqrt(value * (1 - value) / places)


@pytest.mark.parametrize("index", [0.7, 1.5, 2.5])
def test_white_noise_ideal(index: float) -> None:
    """In white noise the ideal observer's d' is the lesion's length over the noise."""
    signal = LESION.draw(FLAT)
    signal *= index / np.linalg.norm(signal)
    noise = np.random.default_rng(1).standard_normal((3000, *signal.shape))
    ideal = norm.cdf(index / math.sqrt(2))
    assert trial(noise, signal) == pytest.approx(ideal, abs=error_of(ideal, 3000))


def test_white_noise_gabor_at_most_ideal() -> None:
    signal = LESION.draw(FLAT) * 0.3
    noise = np.random.default_rng(2).standard_normal((3000, *signal.shape))
    ideal = norm.cdf(np.linalg.norm(signal) / math.sqrt(2))
    found = trial(noise, signal, "gabor")
    assert 0.6 < found < ideal + error_of(ideal, 3000)


def test_correlated_noise_hotelling() -> None:
    """With the covariance known, d'^2 is s' K^-1 s, in the channels and, no less, without them."""
    signal = LESION.draw(FLAT)
    rng = np.random.default_rng(3)
    side = len(signal)
    signal = signal * 0.6
    field = gaussian_filter(rng.standard_normal((4000, side + 28, side + 28)), (0, 1.5, 1.5))
    field = field[:, 14:-14, 14:-14] / field.std()
    field += 0.3 * rng.standard_normal(field.shape)
    # The covariance of the smoothed field: the kernel with itself, sampled by pixel offsets.
    impulse = np.zeros(61)
    impulse[30] = 1.0
    along = gaussian_filter(impulse, 1.5)
    once = np.correlate(along, along, "full")[60:]  # by lag
    line = once[np.abs(np.subtract.outer(np.arange(side), np.arange(side)))]
    covariance = np.kron(line, line) / once[0] ** 2 + 0.3**2 * np.eye(side**2)
    s = signal.ravel()
    bank = channels_of("laguerre-gauss", SIGMA, FLAT, signal.shape)
    seen = bank.T @ s
    channelised = math.sqrt(seen @ np.linalg.solve(bank.T @ covariance @ bank, seen))
    hotelling = math.sqrt(s @ np.linalg.solve(covariance, s))
    assert channelised <= hotelling
    expected = norm.cdf(channelised / math.sqrt(2))
    assert trial(field, signal) == pytest.approx(expected, abs=error_of(expected, 4000))


def test_training_loss_is_that_of_reed_mallett_and_brennan() -> None:
    """With n independent training samples and a known lesion, E[SNR^2] is d'^2 (n+2-p)/(n+1).

    Reed, Mallett and Brennan, IEEE Trans. Aerosp. Electron. Syst. 10 (1974) 853: the share is
    Beta(n + 2 - p, p - 1) for complex samples, and half of both parameters for real ones.
    """
    rng = np.random.default_rng(4)
    places, width, index = 60, 6, 1.5
    lesion = np.zeros(width)
    lesion[0] = index
    found = []
    for _ in range(400):
        background = rng.standard_normal((places, width))
        both = np.stack([background, background + lesion])
        found.append(auc(scores(both, np.arange(places) * 10 // places)).value)
    freedom = places * 9 // 10 - 1  # the mean is estimated too
    share = beta((freedom + 2 - width) / 2, (width - 1) / 2)
    quantiles = share.ppf((np.arange(1000) + 0.5) / 1000)
    expected = norm.cdf(index * np.sqrt(quantiles) / math.sqrt(2)).mean()
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / math.sqrt(400))
    assert np.mean(found) > norm.cdf(index / math.sqrt(2)) - 0.02


def test_auc_against_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    absent, present = rng.integers(0, 9, 40) * 1.0, rng.integers(3, 12, 40) * 1.0
    labels = np.repeat([0, 1], 40)
    every = roc_auc_score(labels, np.concatenate([absent, present]))
    own = (np.sum(present > absent) + np.sum(present == absent) / 2) / 40
    found = auc(np.stack([absent, present]))
    assert found.value == pytest.approx((1600 * every - 40 * own) / 1560)
    assert found.influence.sum() == pytest.approx(0.0, abs=1e-9)


def test_variance_against_independent_samples() -> None:
    """The spread over many studies is what one study says of its error."""
    rng = np.random.default_rng(6)
    widths, values = [], []
    for _ in range(500):
        background = rng.standard_normal(80)
        one = np.stack([background, background + 1.2 + 0.6 * rng.standard_normal(80)])
        found = compare(one, one + 0.7 * rng.standard_normal(one.shape), np.arange(80))
        assert found.loss.low is not None
        widths.append((found.loss.value - found.loss.low) / 1.99)
        values.append(found.loss.value)
    assert np.mean(widths) == pytest.approx(np.std(values), rel=0.1)


def test_clusters_widen_the_interval() -> None:
    rng = np.random.default_rng(7)
    shift = np.repeat(rng.standard_normal(20), 10)  # ten places of each slice share much
    background = shift + 0.3 * rng.standard_normal(200)
    before = np.stack([background, background + 1.0 + 0.2 * rng.standard_normal(200)])
    after = before + np.stack([shift, -shift])
    apart = compare(before, after, np.arange(200)).loss
    together = compare(before, after, np.repeat(np.arange(20), 10)).loss
    assert together.value == apart.value
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_identical_scores_lose_nothing() -> None:
    one = np.random.default_rng(8).standard_normal((2, 50))
    loss = compare(one, one.copy(), np.arange(50)).loss
    assert (loss.value, loss.low, loss.high) == (0.0, 0.0, 0.0)


def test_never_wrong_has_no_interval() -> None:
    one = np.stack([np.arange(20.0), np.arange(20.0) + 100])
    found = compare(one, one, np.arange(20)).before
    assert (found.value, found.low, found.high) == (1.0, None, None)


def test_destroyed_lesion_is_chance() -> None:
    seen = np.repeat(np.random.default_rng(9).standard_normal((1, 100, 6)), 2, axis=0)
    assert auc(scores(seen, np.arange(100) % 10)).value == 0.5
    assert auc(scores(np.zeros((2, 100, 6)), np.arange(100) % 10)).value == 0.5


def test_laguerre_gauss_are_orthonormal() -> None:
    shape = LESION.draw(FLAT).shape
    bank = channels_of("laguerre-gauss", SIGMA, FLAT, shape)
    np.testing.assert_allclose(bank.T @ bank, np.eye(6), atol=2e-3)
    lesion = LESION.draw(FLAT).ravel()
    np.testing.assert_allclose(bank[:, 0], lesion / np.linalg.norm(lesion), atol=1e-9)


def test_channels_scale_with_the_pixels() -> None:
    """A finer grid shows the same channels: the lesion is in mm."""
    coarse = channels_of("gabor", SIGMA, FLAT, (31, 31)).reshape(31, 31, -1)
    fine = channels_of("gabor", SIGMA, (0.5, 0.5), (61, 61)).reshape(61, 61, -1)[::2, ::2]
    np.testing.assert_allclose(fine * 2, coarse, atol=2e-3)


def test_unknown_channels() -> None:
    with pytest.raises(UsageError, match="set of channels"):
        channels_of("haar", 1.0, FLAT, (9, 9))  # type: ignore[arg-type]


def test_patches_are_cut_around_the_places() -> None:
    stack = np.arange(2 * 20 * 30).reshape(2, 20, 30)
    cut = patches(stack, np.array([[1, 5, 7], [0, 10, 20]]), (3, 5)).reshape(2, 3, 5)
    np.testing.assert_array_equal(cut[0], stack[1, 4:7, 5:10])
    np.testing.assert_array_equal(cut[1], stack[0, 9:12, 18:23])
