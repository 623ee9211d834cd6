"""Contrast that is kept: known lesions, whose change is known, in noise whose effect is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from phantoms import ct_noise, disc, lesion
from scipy import ndimage

from medqa.errors import RegionError
from medqa.image import Region
from medqa.studies.enhancement.preservation import preservation

SIDE = 192
BODY = disc(SIDE)
FLAT = np.zeros((SIDE, SIDE))
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
INSIDE = np.hypot(ROWS - 90, COLUMNS - 100) <= 6
WHITE = np.random.default_rng(9).normal(size=(SIDE, SIDE))


def region(mask=INSIDE, first=0, slices=1):
    whole = np.zeros((first + slices, SIDE, SIDE), bool)
    whole[first:] = mask
    return Region.crop("pathology", "nodule", whole)


def measured(before, after, one=None, **others):
    return preservation(one or region(), [before], [after], [BODY], **others)


@pytest.mark.parametrize("kept", [1.0, 0.5, 0.0, 1.3, -0.2])
def test_what_is_kept_of_the_contrast_is_recovered(kept):
    nodule = np.where(INSIDE, 40.0, 0.0)
    found = measured(nodule + 5 * WHITE, kept * nodule)
    assert found.pixels == np.count_nonzero(INSIDE)
    assert found.kept_low < kept < found.kept_high
    assert found.kept == pytest.approx(kept, abs=0.06)
    assert found.contrast_after == pytest.approx(40 * kept, abs=1e-9)


def test_the_error_is_that_of_two_means_in_white_noise():
    found = measured(np.where(INSIDE, 40.0, 0.0) + 5 * WHITE, np.where(INSIDE, 40.0, 0.0))
    near = ndimage.binary_dilation(INSIDE, iterations=1)
    ring = ndimage.binary_dilation(near, iterations=5) & ~near
    known = 5 * math.sqrt(1 / found.pixels + 1 / np.count_nonzero(ring))
    assert found.error == pytest.approx(known, rel=0.25)
    assert found.cnr_before == pytest.approx(
        found.contrast_before / (5 * WHITE)[ring].std(), rel=0.1
    )
    assert found.cnr_after is None  # no noise is left


@pytest.mark.parametrize("noise", [lambda white: white, ct_noise], ids=["white", "ct"])
def test_what_noise_alone_does_is_within_two_errors_nearly_always(noise):
    rng = np.random.default_rng(21)
    found = [
        measured(5 * noise(rng.normal(size=FLAT.shape)) + nodule, nodule).change_z
        for nodule in [np.where(INSIDE, 40.0, 0.0)] * 60
    ]
    assert np.std(found) == pytest.approx(1, abs=0.3)
    assert np.mean(np.abs(found) > 2) < 0.15


def test_a_faint_lesion_that_was_erased_shows():
    nodule = np.where(INSIDE, 6.0, 0.0)
    found = measured(nodule + 5 * WHITE, FLAT)
    assert found.change_z < -5
    assert found.kept == 0
    # Half the ring and half the region lie above nothing, and the region above half of itself.
    assert found.size_before > found.pixels / 2


def test_below_the_noise_nothing_is_said_to_be_kept():
    found = measured(np.where(INSIDE, 0.2, 0.0) + 5 * WHITE, FLAT)
    assert found.kept is None
    assert found.kept_low is None
    assert abs(found.change_z) < 3


def test_the_size_of_a_clear_lesion_is_its_size():
    nodule = lesion(SIDE, 90, 100, 6, 50)
    wider = ndimage.gaussian_filter(nodule, 3)
    found = measured(nodule, wider)
    assert found.size_before == pytest.approx(math.pi * 36, rel=0.1)
    assert found.kept < 0.9
    assert measured(nodule, nodule).size_after == found.size_before


def test_slices_count_by_their_share_and_brightness_of_a_slice_does_not():
    masks = [INSIDE, np.hypot(ROWS - 90, COLUMNS - 100) <= 4]
    one = region(np.stack(masks), first=3, slices=2)
    assert list(one.slices) == [3, 4]
    before = [np.where(masks[0], 40.0, 0.0) + 500, np.where(masks[1], 10.0, 0.0)]
    after = [np.where(masks[0], 20.0, 0.0), np.where(masks[1], 5.0, 0.0) - 300]
    found = preservation(one, before, after, [BODY] * 2)
    sizes = [np.count_nonzero(mask) for mask in masks]
    known = (40 * sizes[0] + 10 * sizes[1]) / sum(sizes)
    assert found.contrast_before == pytest.approx(known)
    assert found.contrast_after == pytest.approx(known / 2)


def test_nothing_changed_is_no_change_and_other_lesions_are_no_surroundings():
    image = 5 * WHITE + np.where(INSIDE, 40.0, 0.0)
    same = measured(image, image)
    assert (same.change_z, same.kept) == (0, 1)
    other = np.hypot(ROWS - 90, COLUMNS - 110) <= 3
    beside = np.where(INSIDE, 40.0, 0.0) + np.where(other, 400.0, 0.0)
    assert measured(beside, beside).contrast_before < 35
    found = measured(beside, beside, others=(other & ~INSIDE)[None])
    assert found.contrast_before == pytest.approx(40)


def test_a_large_organ_has_no_error_and_its_contrast_all_the_same():
    organ = np.hypot(ROWS - 96, COLUMNS - 96) <= 60
    found = measured(np.where(organ, 40.0, 0) + WHITE, np.where(organ, 30.0, 0), region(organ))
    assert found.error is None
    assert found.kept == pytest.approx(0.75, abs=0.01)
    assert found.kept_low is None


def test_at_the_border_of_the_image_it_is_measured_with_what_there_is():
    corner = (ROWS < 5) & (COLUMNS < 5)
    everywhere = np.ones(FLAT.shape, bool)
    image = np.where(corner, 30.0, 0.0)
    found = preservation(region(corner), [image + WHITE], [image], [everywhere])
    assert found.contrast_after == pytest.approx(30)


def test_too_few_pixels_are_an_error():
    with pytest.raises(RegionError, match="too few pixels"):
        measured(FLAT, FLAT, region((ROWS == 90) & (COLUMNS < 3)))
    outside = (ROWS < 4) & (COLUMNS < 4)
    with pytest.raises(RegionError, match="no surroundings"):
        measured(FLAT, FLAT, region(outside))
