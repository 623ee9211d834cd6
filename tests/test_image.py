"""The image's digest, slices on demand and the geometry of regions, against closed forms."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import medqa.image
from medqa.errors import ReadError
from medqa.image import Image, Region, Slices, gather, voxels_apart


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


def _mixed() -> list[np.ndarray]:
    """Slices of two types: the digest is of float32, which only the third one says."""
    whole = np.random.default_rng(5).integers(-2000, 2000, (6, 7, 9)).astype(np.int16)
    return [one if index < 2 else one + np.float32(0.5) for index, one in enumerate(whole)]


def test_slices_on_demand_are_the_array_that_would_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = _mixed()
    kept = gather(ones.__getitem__, 6, "scan")
    assert isinstance(kept, np.ndarray)
    assert kept.dtype == np.float32
    np.testing.assert_array_equal(kept, np.stack(ones))
    monkeypatch.setattr(medqa.image, "KEPT_BYTES", kept.nbytes - 1)
    slices = gather(ones.__getitem__, 6, "scan")
    assert isinstance(slices, Slices)
    assert (slices.shape, slices.dtype, slices.ndim) == (kept.shape, kept.dtype, 3)
    assert (slices.nbytes, len(slices)) == (kept.nbytes, 6)
    for index in (0, -1, np.int64(3), slice(1, 4), slice(4, 99), slice(None, None, -2)):
        np.testing.assert_array_equal(slices[index], kept[index])
        assert slices[index].dtype == kept.dtype
    np.testing.assert_array_equal(list(slices), kept)
    np.testing.assert_array_equal(np.asarray(slices), kept)
    with pytest.raises(IndexError):
        slices[6]
    assert Image(slices).survey == Image(kept).survey


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_survey(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(6).integers(-2000, 2000, (3, 5, 4)).astype(dtype)
    for budget in (medqa.image.KEPT_BYTES, 0):
        monkeypatch.setattr(medqa.image, "KEPT_BYTES", budget)
        survey = Image(gather(pixels.__getitem__, 3, "scan")).survey
        assert (survey.minimum, survey.maximum) == (pixels.min(), pixels.max())
        assert survey.not_finite == 0
        header = f"(3, 5, 4) {np.dtype(dtype).newbyteorder('<').str}\n".encode()
        assert survey.sha256 == hashlib.sha256(header + pixels.tobytes()).hexdigest()


def test_survey_counts_what_is_not_finite() -> None:
    assert Image(np.array([[[0.0, np.nan], [np.inf, -np.inf]]])).survey.not_finite == 3


def test_each_slice_is_decoded_once_and_few_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def decode(index: int) -> np.ndarray:
        asked.append(index)
        return np.full((2, 3), index, np.int16)

    for budget in (medqa.image.KEPT_BYTES, 0):
        monkeypatch.setattr(medqa.image, "KEPT_BYTES", budget)
        asked.clear()
        pixels = gather(decode, 5, "scan")
        assert asked == [0, 1, 2, 3, 4]
    asked.clear()
    np.testing.assert_array_equal(pixels[2:4], [[[2] * 3] * 2, [[3] * 3] * 2])
    assert asked == [2, 3]


def test_a_slice_that_decodes_to_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medqa.image, "KEPT_BYTES", 0)
    ones = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    slices = gather(ones.__getitem__, 2, "scan")
    ones[1, 2, 3] += 1
    assert slices[0][0, 1] == 1
    with pytest.raises(ReadError, match="scan: changed while it was being compared"):
        slices[:]


def test_several_threads_may_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medqa.image, "KEPT_BYTES", 0)
    pixels = np.random.default_rng(7).integers(0, 99, (40, 30, 20)).astype(np.uint8)
    slices = gather(pixels.__getitem__, 40, "scan")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda start: slices[start : start + 4], range(0, 40, 4)))
    np.testing.assert_array_equal(np.concatenate(found), pixels)


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
