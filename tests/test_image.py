"""The image's digest and the geometry of regions, against closed forms."""

import hashlib

import numpy as np
import pytest

from medqa.image import Image, Region, voxels_apart


def test_digest_is_of_shape_type_and_little_endian_values() -> None:
    pixels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    by_hand = hashlib.sha256(b"(2, 3, 4) <i2\n" + pixels.astype("<i2").tobytes()).hexdigest()
    assert Image(pixels).pixels_sha256 == by_hand


def test_digest_does_not_depend_on_the_layout_in_memory() -> None:
    pixels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    turned = np.ascontiguousarray(pixels.transpose(2, 1, 0)).transpose(2, 1, 0)
    for same in (pixels.astype(">i2"), np.asfortranarray(pixels), turned):
        assert Image(same).pixels_sha256 == Image(pixels).pixels_sha256


@pytest.mark.parametrize(
    "other",
    [
        np.arange(24, dtype=np.int16).reshape(4, 3, 2),
        np.arange(24, dtype=np.uint16).reshape(2, 3, 4),
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.arange(1, 25, dtype=np.int16).reshape(2, 3, 4),
    ],
)
def test_digest_tells_images_apart(other: np.ndarray) -> None:
    pixels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    assert Image(other).pixels_sha256 != Image(pixels).pixels_sha256


def test_crop_keeps_every_pixel_in_its_place() -> None:
    whole = np.random.default_rng(1).random((5, 9, 7)) < 0.05
    region = Region.crop("pathology", "lesion", whole)
    inside = np.argwhere(whole)
    assert region.origin == tuple(inside.min(axis=0))
    assert region.mask.shape == tuple(np.ptp(inside, axis=0) + 1)
    assert region.size == len(inside)
    rebuilt = np.zeros_like(whole)
    for index in region.slices:
        rows, columns, mask = region.on_slice(index)
        rebuilt[index, rows, columns] = mask
    np.testing.assert_array_equal(rebuilt, whole)


def test_crop_does_not_share_memory_with_the_mask() -> None:
    whole = np.ones((1, 4, 4), bool)
    region = Region.crop("pathology", "lesion", whole)
    whole[:] = False
    assert region.size == 16


def test_shape_is_slices_rows_columns() -> None:
    assert Image(np.zeros((2, 3, 4))).shape == (2, 3, 4)


def test_grids_lie_as_far_apart_as_their_furthest_corners() -> None:
    grid = np.diag([5.0, 0.5, 0.5, 1.0])
    shape = (3, 101, 201)
    assert voxels_apart(grid, grid, shape) == 0.0
    moved = grid.copy()
    moved[2, 3] += 0.25  # half a column
    assert voxels_apart(grid, moved, shape) == pytest.approx(0.5)
    scaled = grid.copy()
    scaled[1, 1] *= 1.01  # 100 rows, each 1 % taller
    assert voxels_apart(grid, scaled, shape) == pytest.approx(1.0)
