from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom import Dataset
from skimage.draw import polygon2mask

from medqa.errors import RegionError
from medqa.image import Code, Image
from medqa.reader import read
from medqa.regions import rtstruct
from medqa.regions.contours import onto_slice
from medqa.regions.grid import Mark
from medqa.regions.rtstruct import read_rtstruct

CT_FRAME_OF_REFERENCE = "1.2.840.113619.2.405.3.84541899.902.1605198123.912.6060.1"


def test_every_public_name_is_there() -> None:
    assert rtstruct.__all__ == ["read_rtstruct"]


def _marks(path: Path, reference: Image) -> tuple[Mark, ...]:
    return tuple(read_rtstruct(path, reference))


def _points(contour: Dataset) -> np.ndarray:
    return np.array(contour.ContourData, float).reshape(-1, 3)


def _taller(image: Image, slices: int, uids: tuple[str, ...], first_mm: float) -> Image:
    """An image of the same grid with other slices: the structure set's own, which are not here."""
    assert image.affine is not None
    affine = image.affine.copy()
    affine[2, 3] = first_mm
    return replace(
        image,
        pixels=np.zeros((slices, *image.shape[1:]), np.uint8),
        affine=affine,
        identifiers=replace(image.identifiers, sop_uids=uids),
    )


@pytest.fixture(scope="module")
def ct(shared_data: Path) -> Image:
    return read(shared_data / "ct" / "ct_with_RTSTRUCT")


@pytest.fixture
def edited(shared_data: Path, tmp_path: Path) -> Callable[..., Path]:
    """Saves a real structure set, in the CT's frame of reference, as a function changed it."""

    def save(change: Callable[[Dataset], None] = lambda _: None) -> Path:
        ds = pydicom.dcmread(shared_data / "ct/ct_with_RTSTRUCT/rt.dcm")
        ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = CT_FRAME_OF_REFERENCE
        change(ds)
        ds.save_as(tmp_path / "rt.dcm")
        return tmp_path / "rt.dcm"

    return save


@pytest.fixture(scope="module")
def plan(shared_data: Path) -> tuple[Dataset, Image, dict[str, Mark]]:
    """A planning system's structure set, its 98 slices, and what was read of it."""
    path = shared_data / "rt" / "rtss.dcm"
    ds = pydicom.dcmread(path)
    uid_at = {
        round(_points(contour)[0, 2] * 100): str(contour.ContourImageSequence[0][0x00081155].value)
        for roi in ds.ROIContourSequence
        for contour in roi.get("ContourSequence", [])
    }
    slice_there = read(shared_data / "rt" / "ct.0.dcm")
    assert slice_there.identifiers.sop_uids == (uid_at[max(uid_at)],)
    reference = _taller(slice_there, len(uid_at), tuple(uid_at[z] for z in sorted(uid_at)), -122.44)
    return ds, reference, {mark.name: mark for mark in _marks(path, reference)}


def test_every_drawn_roi_of_a_planning_system_is_read(
    plan: tuple[Dataset, Image, dict[str, Mark]],
) -> None:
    ds, reference, marks = plan
    drawn = {
        str(roi.ROIName)
        for roi, contours in zip(ds.StructureSetROISequence, ds.ROIContourSequence, strict=True)
        if contours.get("ContourSequence")
    }
    assert reference.shape == (98, 512, 512)
    assert set(marks) == drawn
    assert "Areola" not in marks  # described, not drawn
    assert marks["BODY"].code == Code("C44.9", "ICD-O-2", "Skin, NOS")
    assert marks["Heart"].code is None


def _contours(ds: Dataset, name: str) -> list[np.ndarray]:
    number = next(r.ROINumber for r in ds.StructureSetROISequence if r.ROIName == name)
    item = next(r for r in ds.ROIContourSequence if r.ReferencedROINumber == number)
    return [_points(contour) for contour in item.ContourSequence]


ROIS = ["BODY", "Borders", "Breast", "Heart", "Nodes", "Scar", "Tumor Bed", "Tumor Bed Block"]


@pytest.mark.parametrize("name", ROIS)
def test_its_volumes_are_the_shoelace_formulas(
    name: str, plan: tuple[Dataset, Image, dict[str, Mark]]
) -> None:
    """In mm³: area of every contour by plain arithmetic, times 3 mm. None of these has a hole."""
    ds, _, marks = plan
    expected = outline = 0.0
    for contour in _contours(ds, name):
        (x, y, _), (x2, y2, _) = contour.T, np.roll(contour, -1, axis=0).T
        expected += 3 * abs(np.sum(x * y2 - x2 * y)) / 2
        outline += np.hypot(x2 - x, y2 - y).sum()
    spacing = 1.074219
    volume = np.count_nonzero(marks[name].mask) * spacing**2 * 3
    # An edge takes or gives a pixel at random: the error grows as the root of their number.
    assert abs(volume - expected) < 3 * math.sqrt(outline / spacing) * spacing**2 * 3
    if expected > 1e5:
        assert volume == pytest.approx(expected, rel=0.003)


@pytest.mark.parametrize("name", ["Heart", "Lt Lung"])
def test_its_pixels_are_scikit_images(
    name: str, plan: tuple[Dataset, Image, dict[str, Mark]]
) -> None:
    """By its own rasteriser, slice by slice, holes by exclusive or; placed by plain arithmetic."""
    ds, reference, marks = plan
    expected: dict[int, np.ndarray] = {}
    for contour in _contours(ds, name):
        index = round((contour[0, 2] + 122.44) / 3)
        row_column = (contour[:, 1::-1] - (-524, -275)) / 1.074219
        mask = polygon2mask((512, 512), row_column)
        expected[index] = expected[index] ^ mask if index in expected else mask
    mark = marks[name]
    whole = np.zeros(reference.shape, bool)
    box = tuple(slice(o, o + n) for o, n in zip(mark.origin, mark.mask.shape, strict=True))
    whole[box] = mark.mask
    stack = np.stack([expected.get(i, np.zeros((512, 512), bool)) for i in range(98)])
    assert np.count_nonzero(whole != stack) <= 3  # centres on an edge
    if name == "Lt Lung":
        assert len(_contours(ds, name)) == 165 > len(expected)  # parts and holes


def test_points_lie_where_simpleitk_says(shared_data: Path, ct: Image) -> None:
    paths = [str(shared_data / f"ct/ct_with_RTSTRUCT/ct_{number}.dcm") for number in (1, 2)]
    theirs = SimpleITK.ReadImage(paths)
    contours = pydicom.dcmread(shared_data / "ct/ct_with_RTSTRUCT/invalid_reference_rt.dcm")
    for contour in contours.ROIContourSequence[3].ContourSequence[1:]:
        points = _points(contour)
        index, off, found = onto_slice(points, ct, "a", "it")
        expected = [theirs.TransformPhysicalPointToContinuousIndex(p) for p in points.tolist()]
        depth = np.full(len(points), index + off)
        assert np.allclose(np.column_stack([found, depth]), expected, atol=1e-6)


def test_slices_that_are_not_in_the_image_are_an_error(shared_data: Path, ct: Image) -> None:
    with pytest.raises(RegionError, match=r"ROI 1: lies 97\.0 slices outside"):
        _marks(shared_data / "rt/rtss.dcm", read(shared_data / "rt/ct.0.dcm"))
    for name in ("invalid_reference_rt.dcm", "non_existent_reference_rt.dcm"):
        with pytest.raises(RegionError, match=r"ROI 1: lies 1\.0 slices outside"):
            _marks(shared_data / "ct/ct_with_RTSTRUCT" / name, ct)


@pytest.mark.parametrize("name", ["invalid_reference_rt.dcm", "non_existent_reference_rt.dcm"])
def test_contours_of_all_slices_are_read_whatever_the_series_sequence_says(
    name: str, shared_data: Path, ct: Image
) -> None:
    """Both name the slice of each contour; one lists instances that no contour is on, one none."""
    uids = (*ct.identifiers.sop_uids, "2.16.840.1.114362.1.11940992.23790159890.563423471.995.90")
    reference = _taller(ct, 3, uids, 60.0)
    path = shared_data / "ct/ct_with_RTSTRUCT" / name
    marks = _marks(path, reference)
    assert [mark.name for mark in marks] == ["ROI-1", "ROI-2", "ROI-3", "ROI-4"]
    assert all(mark.mask.shape[0] == 3 for mark in marks)
    shuffled = (uids[1], uids[0], uids[2])
    wrong = replace(reference, identifiers=replace(reference.identifiers, sop_uids=shuffled))
    with pytest.raises(RegionError, match="names one slice of the image and lies on another"):
        _marks(path, wrong)


def test_another_frame_of_reference_is_an_error(shared_data: Path, ct: Image) -> None:
    """This one names the CT's own instances, in a frame of reference made up for it."""
    for name in ("ct/ct_with_RTSTRUCT/rt.dcm", "rt/rtstruct.dcm"):
        with pytest.raises(RegionError, match="another frame of reference"):
            _marks(shared_data / name, ct)


def test_a_contour_inside_another_is_a_hole(edited: Callable[..., Path], ct: Image) -> None:
    (mark,) = _marks(edited(), ct)
    # 24 mm square less a square of 15 mm whose four corners are cut by 3 mm or so; see the file.
    square, hole = (_points(c) for c in _file(edited()).ContourSequence)
    expected = np.zeros((512, 512), bool)
    for contour in (square, hole):
        expected ^= polygon2mask((512, 512), (contour[:, 1::-1] + 125) / 0.488281)
    row, column = np.nonzero(expected)
    assert mark.origin == (0, row.min(), column.min())
    found = np.zeros((512, 512), bool)
    found[mark.origin[1] :, mark.origin[2] :][: mark.mask.shape[1], : mark.mask.shape[2]] = (
        mark.mask[0]
    )
    assert np.count_nonzero(found != expected) <= 2
    centre = ((-47 - 32) / 2 + 125) / 0.488281
    assert not found[round(centre), round(centre)]


def _file(path: Path) -> Dataset:
    return pydicom.dcmread(path).ROIContourSequence[0]


def _contour(kind: str, points: list[tuple[float, float, float]]) -> Dataset:
    contour = Dataset()
    contour.ContourGeometricType = kind
    contour.NumberOfContourPoints = len(points)
    contour.ContourData = [value for point in points for value in point]
    return contour


def _square(low: float, high: float, z: float = 60) -> list[tuple[float, float, float]]:
    return [(low, low, z), (high, low, z), (high, high, z), (low, high, z)]


def _drawn(*contours: Dataset) -> Callable[[Dataset], None]:
    def change(ds: Dataset) -> None:
        ds.ROIContourSequence[0].ContourSequence = list(contours)

    return change


CLOSED, XOR = "CLOSED_PLANAR", "CLOSEDPLANAR_XOR"


def test_exclusive_or_is_what_the_type_says(edited: Callable[..., Path], ct: Image) -> None:
    one, other = _contour(XOR, _square(0, 10)), _contour(XOR, _square(5, 15))
    (mark,) = _marks(edited(_drawn(one, other)), ct)
    assert np.count_nonzero(mark.mask) * 0.488281**2 == pytest.approx(150, rel=0.05)
    with pytest.raises(RegionError, match="cross or are the same"):
        _marks(
            edited(_drawn(_contour(CLOSED, _square(0, 10)), _contour(CLOSED, _square(5, 15)))), ct
        )


def test_nothing_is_drawn_between_slices(edited: Callable[..., Path], ct: Image) -> None:
    reference = _taller(ct, 5, tuple("abcde"), 60.0)
    contours = [_contour(CLOSED, _square(0, 10, z)) for z in (60, 70, 80)]
    (mark,) = _marks(edited(_drawn(*contours)), reference)
    assert mark.mask.any(axis=(1, 2)).tolist() == [True, False, True, False, True]


def test_contours_hold_for_every_volume_of_a_time_series(
    edited: Callable[..., Path], ct: Image
) -> None:
    series = replace(_taller(ct, 6, tuple("abcdef"), 60.0), volumes=3)
    (mark,) = _marks(edited(_drawn(_contour(CLOSED, _square(0, 10, 65)))), series)
    assert mark.origin[0] == 1
    assert mark.mask.any(axis=(1, 2)).tolist() == [True, False, True, False, True]
    named = _contour(CLOSED, _square(0, 10, 65))
    image = Dataset()
    image.ReferencedSOPInstanceUID = "1.2.3"
    named.ContourImageSequence = [image]
    uids = replace(series.identifiers, sop_uids=tuple(f"1.2.{i}" for i in range(6)))
    (mark,) = _marks(edited(_drawn(named)), replace(series, identifiers=uids))
    assert (mark.origin[0], mark.mask.shape[0]) == (3, 1)


def test_points_and_open_lines_have_no_area(edited: Callable[..., Path], ct: Image) -> None:
    """An isocentre beside an outline is passed over; alone, there is nothing to judge."""
    point = _contour("POINT", [(0, 0, -400)])
    line = _contour("OPEN_PLANAR", _square(0, 9))

    def beside(ds: Dataset) -> None:
        extra = Dataset()
        extra.ReferencedROINumber, extra.ContourSequence = 2, [point, line]
        ds.ROIContourSequence.append(extra)

    assert len(_marks(edited(beside), ct)) == 1
    with pytest.raises(RegionError, match="holds no closed contour"):
        _marks(edited(_drawn(point, line)), ct)
    with pytest.raises(RegionError, match="contours of several types"):
        _marks(edited(_drawn(_contour(CLOSED, _square(0, 9)), point)), ct)


@pytest.mark.parametrize(
    ("contours", "reason"),
    [
        ([_contour(CLOSED, _square(0, 10, 62.5))], "plane of a slice"),
        ([_contour(CLOSED, [(0, 0, 60), (9, 0, 60), (9, 9, 64)])], "plane of a slice"),
        ([_contour(CLOSED, _square(0, 10)), _contour(CLOSED, _square(20, 30, 61))], "two planes"),
        ([_contour(CLOSED, _square(-200, 10))], "outside the image"),
        ([_contour(CLOSED, [(0, 0, 60), (9, 0, 60)])], "2 points"),
        ([_contour(CLOSED, _square(0.05, 0.1))], "centre of no pixel"),
        ([_contour(CLOSED, _square(0, 10))] * 2, "cross or are the same"),
        ([_contour(CLOSED, [*_square(0, 9), (float("1e300"), 0, 60)])], "absurd"),
    ],
)
def test_what_has_no_defined_inside_is_refused(
    contours: list[Dataset], reason: str, edited: Callable[..., Path], ct: Image
) -> None:
    with pytest.raises(RegionError, match=f"ROI 1: .*{reason}"):
        _marks(edited(_drawn(*contours)), ct)


def test_damaged_structure_sets_are_refused(edited: Callable[..., Path], ct: Image) -> None:
    def short(ds: Dataset) -> None:
        ds.ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints = 5

    def torn(ds: Dataset) -> None:
        ds.ROIContourSequence[0].ContourSequence[0].ContourData = [1, 2, 60, 4]

    def unknown(ds: Dataset) -> None:
        ds.ROIContourSequence[0].ReferencedROINumber = 7

    def twice(ds: Dataset) -> None:
        ds.StructureSetROISequence.append(ds.StructureSetROISequence[0])

    reasons = {short: "points", torn: "coordinates", unknown: "not described", twice: "one number"}
    for change, reason in reasons.items():
        with pytest.raises(RegionError, match=reason):
            _marks(edited(change), ct)


def test_a_roi_without_a_name_is_called_by_its_number(
    edited: Callable[..., Path], ct: Image
) -> None:
    def nameless(ds: Dataset) -> None:
        ds.StructureSetROISequence[0].ROIName = ""

    assert [mark.name for mark in _marks(edited(nameless), ct)] == ["ROI 1"]
