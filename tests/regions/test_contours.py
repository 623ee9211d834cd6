from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.draw import polygon as skimage_polygon
from skimage.draw import polygon2mask
from skimage.measure import grid_points_in_poly

from medqa.errors import RegionError
from medqa.image import Identifiers, Image
from medqa.regions import contours
from medqa.regions.contours import (
    MAX_CROSSINGS,
    check_inside,
    circle,
    drawn,
    ellipse,
    even_odd,
    fill,
    is_closed,
    onto_slice,
    points_of,
    slices_of_instances,
    stacked,
)

# Oblique and sheared (a tilted gantry): slice, row, column to RAS mm.
AFFINE = np.array(
    [[0.1, -0.2, -0.69, 31.0], [0.6, -0.66, 0.21, 12.0], [2.9, 0.13, 0.08, -7.0], [0, 0, 0, 1.0]]
)


def _square(low: float, high: float) -> np.ndarray:
    return np.array([[low, low], [high, low], [high, high], [low, high]], float)


def _image(shape: tuple[int, int, int] = (5, 40, 30), volumes: int = 1) -> Image:
    uids = tuple(f"1.2.{i}" for i in range(shape[0]))
    return Image(
        np.zeros(shape, np.uint8),
        affine=AFFINE,
        identifiers=Identifiers(sop_uids=uids),
        volumes=volumes,
    )


def test_every_public_name_is_there() -> None:
    assert all(hasattr(contours, name) for name in contours.__all__)


def _star(seed: int, corners: int) -> np.ndarray:
    """A random simple polygon of irrational corners: no centre lies on an edge."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
    radii = rng.uniform(5, 40, corners)
    return np.stack([51.3 + radii * np.cos(angles), 47.7 + radii * np.sin(angles)], axis=1)


@pytest.mark.parametrize("seed", range(40))
def test_a_polygon_holds_the_pixels_that_scikit_image_says(seed: int) -> None:
    polygon = _star(seed, 3 + seed)
    shape = (100, 110)
    ours = fill([polygon], shape)
    rows_columns = polygon[:, ::-1]
    assert np.array_equal(ours, grid_points_in_poly(shape, rows_columns))
    assert np.array_equal(ours, polygon2mask(shape, rows_columns))
    drawn_there = np.zeros(shape, bool)
    drawn_there[skimage_polygon(*rows_columns.T, shape=shape)] = True
    assert np.array_equal(ours, drawn_there)


@pytest.mark.parametrize("seed", range(10))
def test_a_polygon_that_crosses_itself_follows_the_even_odd_rule(seed: int) -> None:
    polygon = np.random.default_rng(seed).uniform(0, 60, (25, 2))
    assert np.array_equal(fill([polygon], (60, 60)), polygon2mask((60, 60), polygon[:, ::-1]))


@pytest.mark.parametrize("corners", [3, 17, 200])
def test_the_area_is_the_shoelace_formulas(corners: int) -> None:
    polygon = _star(corners, corners) * 10
    onwards = np.roll(polygon, -1, axis=0)
    (x, y), (x2, y2) = polygon.T, onwards.T
    area = abs(np.sum(x * y2 - x2 * y)) / 2
    perimeter = np.hypot(x2 - x, y2 - y).sum()
    pixels = np.count_nonzero(fill([polygon], (1000, 1000)))
    # Two centres apart at most along every edge; in fact far less.
    assert abs(pixels - area) < perimeter
    assert abs(pixels - area) < 6 * math.sqrt(perimeter)


def test_a_centre_on_an_edge_is_inside_at_the_left_and_on_top() -> None:
    mask = fill([_square(2, 6)], (10, 10))
    expected = np.zeros((10, 10), bool)
    expected[2:6, 2:6] = True
    assert np.array_equal(mask, expected)
    for low, high in ((2.1, 2.9), (6, 6)):
        assert not fill([_square(low, high)], (10, 10)).any()
    assert fill([_square(1.9, 2.1)], (10, 10)).sum() == 1


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=3, max_size=12))
def test_parts_that_share_edges_share_no_pixel(corners: list[tuple[int, int]]) -> None:
    """A fan of triangles from one point is the polygon itself, pixel by pixel, by parity."""
    polygon = np.array(corners, float)
    fan = [np.array([polygon[0], a, b]) for a, b in pairwise(polygon[1:])]
    whole = fill([polygon], (14, 14))
    assert np.array_equal(whole, fill(fan, (14, 14)))
    assert np.array_equal(whole, fill([polygon[::-1]], (14, 14)))
    assert np.array_equal(whole, fill([np.roll(polygon, 2, axis=0)], (14, 14)))
    closed = np.vstack([polygon, polygon[:1]])
    assert np.array_equal(whole, fill([closed], (14, 14)))


def test_an_inner_polygon_is_a_hole_and_so_is_a_keyhole() -> None:
    outer, inner = _square(3.3, 30.7), _square(9.4, 20.2)[::-1]
    expected = fill([outer], (40, 40)) & ~fill([inner], (40, 40))
    assert np.array_equal(fill([outer, inner], (40, 40)), expected)
    keyhole = np.vstack([outer, outer[:1], inner, inner[:1], outer[:1]])
    assert np.array_equal(fill([keyhole], (40, 40)), expected)


def test_what_lies_outside_the_grid_is_cut_off() -> None:
    whole = fill([_star(1, 20)], (100, 110))
    assert np.array_equal(fill([_star(1, 20) - (40, 30)], (25, 33)), whole[30:55, 40:73])
    assert fill([_square(-1e9, 1e9)], (7, 5)).all()
    assert not fill([], (7, 5)).any()


def test_more_crossings_than_a_machine_will_do_are_refused() -> None:
    rows = 4096
    zigzag = np.zeros((2 + MAX_CROSSINGS // rows, 2))
    zigzag[1::2, 1] = rows
    with pytest.raises(ValueError, match="more than the"):
        fill([zigzag], (rows, 8))
    image = Image(np.zeros((1, rows, 8), np.uint8))
    with pytest.raises(RegionError, match="fewer points"):
        drawn("POLYGON", zigzag, image, "a.dcm", "it")


@pytest.mark.parametrize("radius", [0.4, 3.0, 5.0, 17.3, 40.25])
def test_a_circle_is_every_centre_within_its_radius(radius: float) -> None:
    row, column = np.mgrid[:100, :110]
    expected = (column - 50) ** 2 + (row - 48) ** 2 <= radius**2 + 1e-9
    mask = circle(np.array([50.0, 48.0]), np.array([50.0, 48.0 - radius]), (100, 110))
    assert np.array_equal(mask, expected)


def test_gauss_counted_the_pixels_of_circles() -> None:
    """Lattice points in a circle of radius r around the origin: OEIS A000328."""
    counts = [1, 5, 13, 29, 49, 81, 113, 149, 197, 253, 317]
    centre = np.array([20.0, 20.0])
    found = [int(circle(centre, np.array([20.0 + r, 20.0]), (41, 41)).sum()) for r in range(1, 11)]
    assert found == counts[1:]


def test_a_turned_ellipse_is_what_its_equation_says() -> None:
    centre, a, b, angle = np.array([60.3, 45.8]), 31.7, 12.4, 0.6
    u = np.array([math.cos(angle), math.sin(angle)])
    v = np.array([-math.sin(angle), math.cos(angle)])
    ends = np.array([centre - a * u, centre + a * u, centre + b * v, centre - b * v])
    mask = ellipse(ends, (100, 110))
    row, column = np.mgrid[:100, :110]
    away = np.stack([column, row], axis=-1) - centre
    assert np.array_equal(mask, (away @ u / a) ** 2 + (away @ v / b) ** 2 <= 1)
    assert abs(mask.sum() - math.pi * a * b) < 6 * math.sqrt(2 * math.pi * a)
    assert not ellipse(np.array([[1, 1], [9, 9], [1, 1], [9, 9]], float), (20, 20)).any()
    assert ellipse(ends - (55, 40), (30, 30)).sum() == mask[40:70, 55:85].sum()


def test_areas_inside_each_other_alternate() -> None:
    shape = (40, 40)
    rings = [fill([_square(low, 40 - low)], shape) for low in (14, 2, 8)]
    expected = rings[1] ^ rings[2] ^ rings[0]
    combined = even_odd(rings)
    assert combined is not None
    assert np.array_equal(combined, expected)
    apart = [fill([_square(1, 9)], shape), fill([_square(9, 30)], shape), np.zeros(shape, bool)]
    combined = even_odd(apart)
    assert combined is not None
    assert np.array_equal(combined, apart[0] | apart[1])
    everything = even_odd([np.ones(shape, bool)])
    assert everything is not None
    assert everything.all()


def test_areas_that_cross_or_are_the_same_mean_nothing() -> None:
    one, other = (fill([_square(low, low + 10)], (40, 40)) for low in (5, 8))
    assert even_odd([one, other]) is None
    assert even_odd([one, one]) is None
    assert even_odd([fill([_square(2, 30)], (40, 40)), one, one]) is None


def test_points_of_a_patient_come_back_to_their_slice() -> None:
    image = _image()
    flat = _star(3, 12) * 0.3
    indices = np.column_stack([np.full(12, 3.2), flat[:, 1], flat[:, 0], np.ones(12)])
    in_lps = (AFFINE @ indices.T)[:3].T * (-1, -1, 1)
    before = in_lps.copy()
    index, off, found = onto_slice(in_lps, image, "a.dcm", "it")
    assert (index, round(off, 6)) == (3, 0.2)
    assert np.allclose(found, flat)
    assert np.array_equal(in_lps, before)


@pytest.mark.parametrize(
    ("along", "reason"),
    [
        ((2, 2.6), "plane of a slice"),
        ((2, 4), "plane of a slice"),
        ((2.5, 2.5), "plane of a slice"),
        ((-0.6, -0.6), "slices outside the image"),
        ((7, 7), "3.0 slices outside the image"),
    ],
)
def test_points_off_their_slice_are_refused(along: tuple[float, float], reason: str) -> None:
    indices = np.array([[z, y, x, 1] for z in along for y in (2, 9) for x in (2, 9)])
    in_lps = (AFFINE @ indices.T)[:3].T * (-1, -1, 1)
    with pytest.raises(RegionError, match=reason):
        onto_slice(in_lps, _image(), "a.dcm", "it")


def test_without_a_position_nothing_is_placed() -> None:
    with pytest.raises(RegionError, match="position of the image is unknown"):
        onto_slice(np.zeros((4, 3)), replace(_image(), affine=None), "a.dcm", "it")


def test_the_image_ends_half_a_pixel_past_its_centres() -> None:
    image = _image((1, 40, 30))
    check_inside(np.array([[-0.5, -0.5], [29.5, 39.5]]), image, "a.dcm", "it")
    for point in ((-0.7, 0), (0, -0.7), (29.7, 0), (0, 39.7), (math.nan, 0)):
        with pytest.raises(RegionError, match="outside the image"):
            check_inside(np.array([point]), image, "a.dcm", "it")


def test_coordinates_must_be_whole_and_finite() -> None:
    assert points_of([1, 2, 3, 4, 5, 6], 3, "a", "it").tolist() == [[1, 2, 3], [4, 5, 6]]
    for values in ([], [1, 2, 3], [1, math.nan], [math.inf, 1], [1e300, 1]):
        with pytest.raises(RegionError, match="coordinates"):
            points_of(values, 2, "a", "it")


def test_closed_is_where_it_began() -> None:
    square = _square(1, 5)
    assert not is_closed(square)
    assert is_closed(np.vstack([square, square[:1]]))
    assert not is_closed(np.array([[1, 1], [2, 2], [1, 1]]))  # there and back


def test_an_instance_names_its_slice() -> None:
    image = _image()
    named = [("1.2.3", []), ("9.9", []), ("1.2.1", [1])]
    assert slices_of_instances(named, image, "a", "it") == [1, 3]
    with pytest.raises(RegionError, match="names none of its instances"):
        slices_of_instances([("9.9", [])], image, "a", "it")
    with pytest.raises(RegionError, match="which slice"):
        slices_of_instances([("1.2.3", [2])], image, "a", "it")


def test_a_frame_names_its_slice_where_slices_are_frames() -> None:
    identifiers = Identifiers(sop_uids=("1.2",), frames=(1, 5, 2, 3, 4))
    cine = replace(_image(), affine=None, identifiers=identifiers)
    assert slices_of_instances([("1.2", [2, 5])], cine, "a", "it") == [1, 2]
    assert slices_of_instances([("1.2", [])], cine, "a", "it") == [0, 1, 2, 3, 4]
    unknown = replace(cine, identifiers=replace(identifiers, frames=()))
    for image, frame in ((cine, 6), (unknown, 2)):
        with pytest.raises(RegionError, match="which slice"):
            slices_of_instances([("1.2", [frame])], image, "a", "it")


def test_planes_become_a_mark_of_their_bounding_box() -> None:
    planes = {i: np.zeros((40, 30), bool) for i in (1, 2, 4)}
    planes[1][3, 5] = planes[4][9, 2] = True
    mark = stacked("spot", planes, None, "a", "it")
    assert (mark.origin, mark.mask.shape, int(mark.mask.sum())) == ((1, 3, 2), (4, 7, 4), 2)
    assert mark.mask[0, 0, 3]
    assert mark.mask[3, 6, 0]
    with pytest.raises(RegionError, match="centre of no pixel"):
        stacked("spot", {0: np.zeros((4, 4), bool)}, None, "a", "it")


@pytest.mark.parametrize(
    ("kind", "count"),
    [("CIRCLE", 3), ("ELLIPSE", 2), ("INTERPOLATED", 9), ("ELLIPSOID", 6), ("Doe^J", 4)],
)
def test_shapes_that_define_no_pixels_are_refused(kind: str, count: int) -> None:
    with pytest.raises(RegionError, match="it says" if "^" in kind else kind):
        drawn(kind, np.ones((count, 2)), _image(), "a", "it")
