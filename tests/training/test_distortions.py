"""Distortions stay in form, grow with their strength, and repeat with their seed."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage as ndi
from numpy.typing import NDArray

from medqa.training.distortions import FAMILIES


@pytest.fixture(scope="module")
def image() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    smooth = ndi.gaussian_filter(rng.standard_normal((96, 112)), 3)
    return np.clip(0.5 + 2 * smooth + 0.03 * rng.standard_normal(smooth.shape), 0, 1).astype("f4")


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, image: NDArray[np.float32]) -> None:
    before = image.copy()

    def error(strength: float) -> float:
        errors = []
        for seed in range(5):
            made = FAMILIES[name](image, strength, np.random.default_rng(seed))
            again = FAMILIES[name](image, strength, np.random.default_rng(seed))
            np.testing.assert_array_equal(made, again)
            assert made.shape == image.shape
            assert np.isfinite(made).all()
            errors.append(float(np.abs(np.clip(made, 0, 1) - image).mean()))
        return float(np.median(errors))

    gentle, gross = error(0.05), error(0.95)
    assert gentle < gross
    assert gentle < 0.03
    np.testing.assert_array_equal(image, before)
