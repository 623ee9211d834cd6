"""Bringing images to another grid, against plain arithmetic, torch and SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from phantoms import anatomy
from scipy import ndimage

from medqa.errors import MismatchError
from medqa.studies.enhancement.resolution import lowered, preserved, raised

HIGH = anatomy(96) + np.random.default_rng(1).normal(size=(96, 96))


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_whole_factors_are_means_of_blocks(factor):
    found = lowered(HIGH, (96 // factor, 96 // factor))
    known = torch.nn.functional.avg_pool2d(torch.from_numpy(HIGH)[None], factor)[0].numpy()
    assert found == pytest.approx(known)


def test_other_factors_share_pixels_by_area():
    assert lowered(np.array([[3.0, 6.0, 12.0]]), (1, 2)) == pytest.approx(
        np.array([[(3 + 0.5 * 6) / 1.5, (0.5 * 6 + 12) / 1.5]])
    )
    assert lowered(HIGH, (40, 70)).mean() == pytest.approx(HIGH.mean())
    assert lowered(np.full((9, 7), 5.0), (4, 5)) == pytest.approx(np.full((4, 5), 5.0))


def test_a_ramp_is_interpolated_at_the_centres_of_the_pixels():
    low = np.broadcast_to(np.arange(20.0), (20, 20))
    found = raised(low, (40, 60))
    centres = (np.arange(60) + 0.5) / 3 - 0.5
    assert found.shape == (40, 60)
    assert found[20, 15:45] == pytest.approx(centres[15:45], abs=1e-3)


def test_interpolation_is_that_of_simpleitk():
    low = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=(32, 32)), 1.5)
    grid = sitk.GetImageFromArray(low)
    grid.SetSpacing((2.0, 2.0))
    grid.SetOrigin((0.5, 0.5))  # the fields of view coincide, the first centres do not
    same = sitk.Transform()
    known = sitk.GetArrayFromImage(
        sitk.Resample(
            grid, (64, 64), same, sitk.sitkBSpline3, (0.0, 0.0), (1.0, 1.0), (1.0, 0, 0, 1)
        )
    )
    inner = np.s_[12:-12, 12:-12]  # the borders are continued in another way
    assert raised(low, (64, 64))[inner] == pytest.approx(known[inner], abs=1e-3)


def test_the_wrong_way_round_is_refused():
    with pytest.raises(MismatchError, match="fewer rows"):
        lowered(HIGH, (97, 96))
    with pytest.raises(MismatchError, match="fewer rows"):
        raised(HIGH, (96, 95))


def test_preservation_is_one_for_no_distance_and_falls():
    assert preserved(0.0) == 1
    assert preserved(1.0) == 0.5
    assert preserved(0.02) > preserved(0.1)
