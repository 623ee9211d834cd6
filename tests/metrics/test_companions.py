"""Companion measures against closed forms, a published figure and another implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from medqa.metrics import MEASURES, psnr_db, ssim


def test_psnr_is_its_closed_form() -> None:
    one = torch.full((3, 1, 20, 20), 0.5)
    other = one + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    found = psnr_db(one, other)
    assert found[:2].tolist() == pytest.approx([20.0, 40.0], abs=1e-4)
    assert math.isinf(float(found[2]))


def test_ssim_equals_scikit_images() -> None:
    generator = np.random.default_rng(0)
    one = generator.random((64, 80)).astype(np.float32)
    other = np.clip(one + 0.1 * generator.standard_normal(one.shape), 0, 1).astype(np.float32)
    _, full = structural_similarity(
        one,
        other,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    tensors = (torch.from_numpy(image)[None, None] for image in (one, other))
    # Ours leaves out the border that the window does not cover, as Wang's code does.
    assert float(ssim(*tensors)) == pytest.approx(float(full[5:-5, 5:-5].mean()), abs=1e-4)


def test_all_measures_take_batches_and_say_identical() -> None:
    images = torch.rand(4, 1, 32, 40)
    expected = {"psnr_db": math.inf, "ssim": 1.0}
    for name, measure in MEASURES.items():
        found = measure(images, images)
        assert found.shape == (4,)
        assert found.tolist() == pytest.approx([expected[name]] * 4)
