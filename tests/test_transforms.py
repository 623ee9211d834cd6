"""Displays against the formulas of DICOM, geometry against constructions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import medqa.image
from medqa import thresholds
from medqa.errors import MismatchError, PixelError
from medqa.image import Image, VoiLut, Window, gather
from medqa.transforms import (
    _percentiles,
    check_pixels,
    displays,
    match,
    pixels_of,
    same_grid,
)

_VALUES = np.arange(-1200, 3000, dtype=np.int16).reshape(1, 60, 70)


def _shown(image: Image, profile: str) -> list[NDArray[np.float32]]:
    """The image under each display, as reference and as candidate, which must be the same."""
    found = []
    for display in displays(thresholds.load(profile), image):
        one, other = display(image.pixels, image.pixels)
        assert torch.equal(one, other)
        assert one.dtype == torch.float32
        found.append(one[:, 0].numpy())
    return found


def test_ct_windows_are_dicoms_linear_function() -> None:
    # PS3.3 C.11.2.1.2.1, written out for each pixel.
    image = Image(_VALUES, modality="CT", unit="HU")
    profile = thresholds.load("ct").normalise
    assert isinstance(profile, thresholds.Windows)
    for window, shown in zip(profile.windows, _shown(image, "ct"), strict=True):
        centre, width = window.centre - 0.5, window.width - 1
        expected = np.clip((_VALUES - centre) / width + 0.5, 0, 1)
        np.testing.assert_allclose(shown, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", lambda x: np.clip((x - 99.5) / 399 + 0.5, 0, 1)),
        ("LINEAR_EXACT", lambda x: np.clip((x - 100) / 400 + 0.5, 0, 1)),
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 100) / 400.0))),
    ],
)
def test_voi_windows_of_the_reference(function: str, expected: object) -> None:
    image = Image(_VALUES, voi=Window(100, 400, function))  # type: ignore[arg-type]
    (shown,) = _shown(image, "xray")
    np.testing.assert_allclose(shown, expected(_VALUES.astype(float)), atol=2e-6)  # type: ignore[operator]


def test_voi_lut_of_the_reference_clamps_at_both_ends() -> None:
    table = np.linspace(0, 1, 11, dtype=np.float32) ** 2
    image = Image(np.array([[[-5, 0, 3], [10, 11, 400]]], dtype=np.int16), voi=VoiLut(0, table))
    (shown,) = _shown(image, "xray")
    np.testing.assert_allclose(shown, [[[0, 0, 0.09], [1, 1, 1]]], atol=1e-6)


def test_mr_takes_the_percentiles_of_the_reference_for_both() -> None:
    generator = np.random.default_rng(0)
    reference = Image(generator.normal(500, 100, (3, 40, 50)).astype(np.float32), modality="MR")
    brighter = reference.pixels + 50
    (display,) = displays(thresholds.load("mr"), reference)
    low, high = np.percentile(reference.pixels, [0.5, 99.5])
    assert (display.low, display.high) == pytest.approx((low, high))
    one, other = display(reference.pixels, brighter)
    # A shift of the candidate stays a shift: it is not scaled away.
    middle = (one > 0.05) & (one < 0.8)
    np.testing.assert_allclose((other - one)[middle], 50 / (high - low), atol=1e-5)


_GENERATOR = np.random.default_rng(3)


@pytest.mark.parametrize(
    "pixels",
    [
        _GENERATOR.integers(-30000, 30000, (3, 40, 50)).astype(np.int16),
        _GENERATOR.integers(0, 4, (3, 40, 50)).astype(np.uint8),  # ties
        _GENERATOR.integers(0, 2**31, (3, 40, 50)).astype(np.uint32),
        _GENERATOR.normal(0, 100, (3, 40, 50)).astype(np.float32),
        _GENERATOR.normal(0, 1, (3, 40, 50)).round().astype(np.float32),  # ties, and -0.0
        _GENERATOR.normal(0, 1e-3, (3, 40, 50)),
        _GENERATOR.normal(0, 1, (2, 3, 5)).astype(">f4"),
        np.array([[[-1.5, 2.0]]], np.float32),
    ],
    ids=lambda pixels: f"{pixels.dtype.str}-{pixels.size}",
)
@pytest.mark.parametrize("budget", [None, 0])
def test_percentiles_are_numpys(
    pixels: NDArray[np.generic], budget: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if budget is not None:
        monkeypatch.setattr(medqa.image, "KEPT_BYTES", budget)
    image = Image(gather(pixels.__getitem__, len(pixels), "scan"))
    for shares in ((0, 100), (0.5, 99.5), (12.3, 77.7), (33, 66)):
        low, high = np.percentile(pixels.astype(np.float64), shares)
        if low < high:
            assert _percentiles(image, *shares) == pytest.approx((low, high), rel=1e-12)


def test_percentiles_of_nan_are_refused() -> None:
    with pytest.raises(PixelError, match="1 pixel values are NaN"):
        displays(thresholds.load("mr"), Image(np.array([[[np.nan, 1.0, 2.0]]])))


def test_ultrasound_takes_the_stored_range() -> None:
    pixels = np.array([[[51, 102], [0, 255]]], np.uint8)
    (shown,) = _shown(Image(pixels, modality="US", value_range=(0, 510)), "ultrasound")
    np.testing.assert_allclose(shown, [[[0.1, 0.2], [0, 0.5]]], atol=1e-6)


def test_windows_in_another_unit_are_refused() -> None:
    with pytest.raises(MismatchError, match="BQML"):
        displays(thresholds.load("ct"), Image(_VALUES, unit="BQML"))


def test_a_reference_without_contrast_is_refused() -> None:
    pixels = np.zeros((1, 100, 100), np.int16)
    pixels[0, 0, 0] = 1
    with pytest.raises(PixelError, match="no contrast"):
        displays(thresholds.load("mr"), Image(pixels))


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.where(np.eye(40) > 0, np.nan, 1.0)[None], "40 pixel values are NaN"),
        (np.where(np.eye(40) > 0, np.inf, 1.0)[None], "40 pixel values are NaN or infinite"),
        (np.full((2, 40, 40), 7), "every pixel is 7"),
        (np.arange(144).reshape(1, 12, 12), "12 x 12"),
    ],
)
def test_pixels_that_cannot_be_scored(pixels: NDArray[np.generic], words: str) -> None:
    with pytest.raises(PixelError, match=words):
        check_pixels(Image(pixels, source="scan.dcm"), 31)


def _ramp(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Image:
    """An image whose value is the sum of the patient coordinates: the same on any grid."""
    indices = np.stack([*np.indices(shape), np.ones(shape)]).reshape(4, -1)
    values = (affine @ indices)[:3].sum(axis=0).reshape(shape)
    return Image(values.astype(np.float32), affine=affine)


def test_resampling_reads_the_candidate_where_the_reference_lies() -> None:
    reference = _ramp((6, 10, 12), np.diag([3.0, 2.0, 1.0, 1.0]))
    finer = _ramp(
        (21, 44, 26), np.array([[0.9, 0, 0, -1], [0, 0.5, 0, -1], [0, 0, 0.5, 0], [0, 0, 0, 1.0]])
    )
    moved = match(reference, finer, resample=True)
    assert moved.shape == reference.shape
    np.testing.assert_allclose(moved.pixels, reference.pixels, atol=1e-3)
    with pytest.raises(MismatchError, match="--resample"):
        match(reference, finer, resample=False)


def test_grids_are_told_apart_by_shape_and_by_place() -> None:
    affine = np.diag([3.0, 1.0, 1.0, 1.0])
    image = _ramp((5, 40, 40), affine)
    assert same_grid(image, image)
    assert match(image, image, resample=False) is image
    for shift, same in ((0.05, True), (0.5, False)):
        moved = affine.copy()
        moved[2, 3] += shift
        assert same_grid(image, replace(image, affine=moved)) is same
    turned = affine.copy()
    turned[1, 1] = 1.004  # 0.16 voxels at the far corner
    assert not same_grid(image, replace(image, affine=turned))
    with pytest.raises(MismatchError, match="lies elsewhere"):
        match(image, replace(image, affine=turned), resample=False)
    # What the candidate does not show cannot be resampled: it would be made up at the border.
    away = affine.copy()
    away[0, 3] += 3.0  # one slice further
    with pytest.raises(MismatchError, match="give a candidate of this place"):
        match(image, replace(image, affine=away), resample=True)
    # What has no place can only be compared by shape.
    assert same_grid(image, replace(image, affine=None))
    with pytest.raises(
        MismatchError, match="5 slices of 39 x 40, the reference is 5 slices of 40 x 40"
    ):
        match(image, replace(image, pixels=image.pixels[:, 1:]), resample=False)


def test_modalities_and_units_must_agree() -> None:
    ct = Image(_VALUES, kind="dicom", modality="CT", unit="HU")
    with pytest.raises(MismatchError, match="modality is MR, the reference's is CT"):
        match(ct, replace(ct, modality="MR"), resample=False)
    with pytest.raises(MismatchError, match="unit is arbitrary, the reference's is HU"):
        match(ct, replace(ct, unit="arbitrary"), resample=False)


def _padded() -> tuple[Image, Image]:
    """Two slices with padding of -2000 and -1000 to -900; the candidate's is perturbed."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(-100, 300, (2, 20, 30)).astype(np.int16)
    other = (pixels + rng.integers(-9, 10, pixels.shape)).astype(np.int16)
    pixels[0, :5], pixels[1, 3, :7], pixels[1, 4, :7] = -2000, -1000, -900
    other[0, :5], other[1, 3:5, :7] = -1993, 77
    padding = np.array([[-2000.0, -2000.0], [-1000.0, -900.0]])
    return Image(pixels, padding=padding), Image(other, padding=padding)


def test_the_references_padding_holds_for_both_images() -> None:
    reference, candidate = _padded()
    one, other = pixels_of(reference, candidate, slice(None))
    for index, rows, columns in ((0, slice(5), slice(None)), (1, slice(3, 5), slice(7))):
        image = np.ones((20, 30), bool)
        image[rows, columns] = False
        smallest = reference.pixels[index][image].min()
        for found, stored in ((one, reference), (other, candidate)):
            assert (found[index][~image] == smallest).all()
            np.testing.assert_array_equal(found[index][image], stored.pixels[index][image])
    np.testing.assert_array_equal(pixels_of(reference, candidate, slice(1, 2))[1], other[1:])


def test_a_slice_of_padding_alone_stays_as_it_is() -> None:
    reference, candidate = _padded()
    blank = replace(reference, pixels=np.full((2, 20, 30), -2000, np.int16))
    one, other = pixels_of(blank, candidate, slice(0, 1))
    assert (one == -2000).all()
    assert (other == -2000).all()


def test_padding_does_not_count_among_the_percentiles() -> None:
    reference, _ = _padded()
    filled, _ = pixels_of(reference, reference, slice(None))
    expected = np.percentile(filled, [0, 99])
    np.testing.assert_allclose(_percentiles(reference, 0, 99), expected, rtol=1e-12)
    assert expected[0] == -100


def test_windows_in_uptake_values_are_turned_into_the_references_unit() -> None:
    ct = thresholds.load("ct")
    rule = ct.normalise.model_copy(update={"unit": "GML"})
    profile = ct.model_copy(update={"normalise": rule})
    assert isinstance(ct.normalise, thresholds.Windows)
    expected = [window.centre / 0.00025 for window in ct.normalise.windows]
    image = Image(_VALUES, modality="PT", unit="BQML", suv_factor=0.00025)
    found = displays(profile, image)
    # PS3.3 C.11.2.1.2.1: the middle of a linear window lies half a value below its centre.
    centres = [(one.low + one.high) / 2 + 0.5 for one in found if one.low and one.high]
    np.testing.assert_allclose(centres, expected)
    with pytest.raises(MismatchError, match="is in BQML, the windows of profile ct are in GML"):
        displays(profile, replace(image, suv_factor=None))


@pytest.mark.parametrize("kind", ["window", "profile"])
def test_a_display_that_shows_one_grey_is_refused(kind: str) -> None:
    # A window that lies outside the data would make every candidate perfect.
    if kind == "window":
        image, name = Image(_VALUES, voi=Window(9000, 100)), "xray"
    else:
        image, name = Image(_VALUES + np.int16(9000), modality="CT", unit="HU"), "ct"
    with pytest.raises(PixelError, match="one grey all over in every display"):
        displays(thresholds.load(name), image)


def test_a_nifti_that_lost_its_position_may_be_a_mirror_image() -> None:
    reference = Image(_VALUES, kind="nifti", affine=np.eye(4))
    lost = replace(reference, affine=None)
    with pytest.raises(MismatchError, match="only one of the two has a known position"):
        match(reference, lost, resample=False)
    assert match(lost, lost, resample=False) is lost
    assert match(Image(_VALUES, affine=np.eye(4)), Image(_VALUES), resample=False) is not None
