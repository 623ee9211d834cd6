"""The pictures, against arithmetic by hand and the definition of CIE lightness."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image
import pytest

from medqa import pictures
from medqa.assessment import Evidence

CYAN = (0, 229, 255)


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L* of sRGB in [0, 255] (IEC 61966-2-1, CIE 15)."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


def same(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (pixels == np.array(colour)).all(axis=-1)


def test_colours_rise_evenly_in_lightness() -> None:
    steps = np.diff(lightness(pictures.colours(np.linspace(0, 1, 11))))
    assert (steps > 0).all()
    assert steps.max() / steps.min() < 2
    # The published ends of "plasma".
    ends = pictures.colours(np.array([-1.0, 0.0, 1.0, 7.0]))
    assert ends.tolist() == [[13, 8, 135]] * 2 + [[240, 249, 33]] * 2


def test_colours_are_never_gray() -> None:
    rgb = pictures.colours(np.linspace(0, 1, 256))
    assert (np.ptp(rgb, axis=-1) > 80).all()


def test_grayscale_is_the_display_value() -> None:
    picture = pictures.grayscale(np.array([[0.0, 0.5, 1.0], [-1.0, 2.0, 0.2]], np.float32))
    assert picture[..., 0].tolist() == [[0, 128, 255], [0, 255, 51]]
    assert (picture == picture[..., :1]).all()


def test_overlay_is_the_anatomy_without_distance_and_colour_with_it() -> None:
    reference = np.full((1, 4), 0.4, np.float32)
    distance = np.array([[0.0, 0.1, 0.2, 5.0]], np.float32)
    shown = pictures.overlay(reference, distance, top=0.2)
    assert shown[0, 0].tolist() == [102, 102, 102]
    # 0.85 of the last colour over 0.15 of the gray, by hand.
    assert shown[0, 2].tolist() == [219, 227, 43]
    assert (shown[0, 3] == shown[0, 2]).all()
    # Half way: opacity 0.425, the colour half way between the two middle ones.
    assert shown[0, 1].tolist() == [145, 89, 110]


def test_pathology_is_a_solid_line_just_outside() -> None:
    mask = np.zeros((20, 30), bool)
    mask[5:9, 10:16] = True
    picture = np.full((20, 30, 3), 7, np.uint8)
    drawn = pictures.outlined(picture, [("pathology", "nodule", mask)])
    expected = np.zeros_like(mask)
    expected[4, 10:16] = expected[9, 10:16] = True
    expected[5:9, 9] = expected[5:9, 16] = True
    assert (same(drawn, CYAN) == expected).all()
    assert (drawn[~expected] == 7).all()
    assert (picture == 7).all()


def test_outline_follows_the_border_where_the_region_reaches_it() -> None:
    drawn = pictures.outlined(
        np.zeros((12, 9, 3), np.uint8), [("pathology", "all", np.ones((12, 9), bool))]
    )
    expected = np.ones((12, 9), bool)
    expected[1:-1, 1:-1] = False
    assert (same(drawn, CYAN) == expected).all()


def test_single_pixel_is_outlined_on_all_four_sides() -> None:
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    for kind in ("pathology", "annotation"):
        drawn = pictures.outlined(np.full((9, 9, 3), 7, np.uint8), [(kind, "", mask)])
        changed = np.argwhere((drawn != 7).any(axis=-1)).tolist()
        assert changed == [[3, 4], [4, 3], [4, 5], [5, 4]]


def test_annotation_is_dashed_in_white_and_black() -> None:
    mask = np.zeros((120, 120), bool)
    mask[20:100, 30:90] = True
    drawn = pictures.outlined(np.full((120, 120, 3), 7, np.uint8), [("annotation", "", mask)])
    line = (drawn != 7).any(axis=-1)
    assert line.sum() == 2 * (80 + 60)
    white = same(drawn, (255, 255, 255))
    assert (white | same(drawn, (0, 0, 0)) == line).all()
    assert 0.3 < white.sum() / line.sum() < 0.7
    # Along one side it alternates.
    assert np.count_nonzero(np.diff(white[20:100, 29].astype(int))) >= 4


@pytest.mark.parametrize(("side", "width"), [(64, 1), (400, 1), (512, 2), (3000, 8)])
def test_line_grows_with_the_picture(side: int, width: int) -> None:
    mask = np.zeros((side, 60), bool)
    mask[30:40, 20:40] = True
    drawn = pictures.outlined(np.zeros((side, 60, 3), np.uint8), [("pathology", "", mask)])
    assert same(drawn, CYAN)[:, 30].sum() == 2 * width


def test_small_region_is_drawn_over_a_large_one_and_an_empty_one_not_at_all() -> None:
    large, small = np.zeros((2, 30, 30), bool)
    large[:, :15] = True
    small[10:13, 11:15] = True  # its right-hand line lies on the outline of the large one
    regions = [
        ("pathology", "s", small),
        ("annotation", "l", large),
        ("pathology", "e", ~large & large),
    ]
    drawn = pictures.outlined(np.zeros((30, 30, 3), np.uint8), regions)
    assert same(drawn, CYAN)[10:13, 15].all()


def make_evidence(**changes: Any) -> Evidence:
    """A mid-grey slice of 32 x 32 pixels on which nothing differs; `changes` replace fields."""
    values: dict[str, Any] = {
        "index": 0,
        "window": "w",
        "reference": np.full((32, 32), 0.4, np.float32),
        "candidate": np.full((32, 32), 0.4, np.float32),
        "distance_map": np.zeros((32, 32), np.float32),
        "edge_map": np.zeros((32, 32), np.float32),
        "texture_map": np.zeros((32, 32), np.float32),
        "lpips": 0.0,
    }
    return Evidence(**values | changes)


def test_views_outline_the_regions_in_all() -> None:
    mask = np.zeros((32, 32), bool)
    mask[10:20, 10:20] = True
    views = pictures.views(make_evidence(regions=(("pathology", "p", mask),)), 1.0)
    assert list(views) == ["reference", "candidate", "distance", "edges", "texture"]
    for picture in views.values():
        assert same(picture, CYAN)[9, 10:20].all()
        assert picture.shape == (32, 32, 3)
        assert picture.dtype == np.uint8


@pytest.mark.parametrize(
    ("field", "view", "top"),
    [("distance_map", "distance", 0.36), ("edge_map", "edges", 1.0), ("texture_map", "texture", 4)],
)
def test_scales_are_fixed(field: str, view: str, top: float) -> None:
    """The same colours at none, half and the top of each scale, whatever else is on the slice."""
    # Texture is |ln| of a ratio: the top is four times the strength, the middle twice.
    steps = np.log([1.0, 2.0, 4.0, 400.0]) if view == "texture" else np.array([0, 0.5, 1, 9]) * top
    values = np.zeros((32, 32), np.float32)
    values[5, [2, 10, 18, 26]] = steps
    views = pictures.views(make_evidence(**{field: values}), 0.36)
    shown = views.pop(view)[5, [2, 10, 18, 26]].tolist()
    # As by hand in test_overlay_is_the_anatomy_without_distance_and_colour_with_it.
    assert shown == [[102, 102, 102], [145, 89, 110], [219, 227, 43], [219, 227, 43]]
    assert all(same(picture, (102, 102, 102)).all() for picture in views.values())


@pytest.mark.parametrize(("side", "width"), [(100, 1), (512, 3), (1024, 5)])
def test_edge_of_one_pixel_is_broad_enough_for_the_page(side: int, width: int) -> None:
    lines = np.zeros((side, 40), np.float32)
    lines[20] = 1.0
    flat = np.full((side, 40), 0.4, np.float32)
    still = np.zeros_like(flat)
    evidence = make_evidence(
        reference=flat, candidate=flat, distance_map=still, edge_map=lines, texture_map=still
    )
    assert same(pictures.views(evidence, 1.0)["edges"], (219, 227, 43))[:, 5].sum() == width


def test_page_picture_enlarges_whole_pixels_and_reduces_by_averaging() -> None:
    small = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert (pictures.page_picture(small, 7) == np.kron(small, np.ones((2, 2, 1)))).all()
    rows, columns = np.indices((400, 200))
    board = ((rows + columns) % 2 * 200).astype(np.uint8)
    reduced = pictures.page_picture(np.stack([board] * 3, axis=-1), 100)
    assert reduced.shape == (100, 50, 3)
    assert np.abs(reduced[5:-5, 5:-5].astype(int) - 100).max() <= 2
    assert pictures.page_picture(np.zeros((5000, 2, 3), np.uint8), 100).shape == (100, 1, 3)


def test_png_keeps_every_pixel() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for shown, mode in ((picture, "RGB"), (picture[..., :1].repeat(3, axis=-1), "L")):
        with PIL.Image.open(io.BytesIO(pictures.png(shown))) as read:
            assert read.format == "PNG"
            assert read.mode == mode
            assert (np.asarray(read.convert("RGB")) == shown).all()
