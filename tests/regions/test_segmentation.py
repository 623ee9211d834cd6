"""DICOM segmentations against highdicom, SimpleITK, pydicom and plain arithmetic."""

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from painting import by_sitk, image, labelled, paint

from medqa.errors import RegionError
from medqa.image import Code, Identifiers, Image
from medqa.reader import read
from medqa.regions import read_annotations, read_mask


@pytest.fixture
def liver(shared_data: Path) -> Image:
    return read(shared_data / "ct/liver_3slice_with_SEG")


def grid_of(seg: highdicom.seg.Segmentation) -> Image:
    """Image on the grid of a segmentation, as highdicom finds it, gaps filled."""
    grid = seg.get_volume_geometry(allow_missing_positions=True)
    affine = np.diag([-1.0, -1, 1, 1]) @ grid.affine
    uid = Identifiers(frame_of_reference_uid=seg.FrameOfReferenceUID)
    return image(*grid.spatial_shape, affine=affine, identifiers=uid)


def by_highdicom(path: Path, reference: Image) -> dict[int, NDArray[np.bool_]]:
    """Masks of the segments on the reference's slices, as highdicom puts them."""
    seg = highdicom.seg.segread(path)
    numbers = sorted(seg.segment_numbers)
    pixels = seg.get_pixels_by_source_instance(
        reference.identifiers.sop_uids,
        numbers,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,  # these files do not say that they are preserved
    )
    return {number: pixels[..., i] > 0 for i, number in enumerate(numbers)}


@pytest.mark.parametrize(
    "name",
    [
        "ct/liver_3slice_with_SEG/liver.dcm",
        "ct/liver_3slice_with_SEG/partial_overlaps.dcm",
        "seg/liver_j2k.dcm",
    ],
)
def test_seg_marks_what_highdicom_says(shared_data: Path, liver: Image, name: str) -> None:
    regions = read_mask(shared_data / name, liver)
    seg = pydicom.dcmread(shared_data / name)
    expected = by_highdicom(shared_data / name, liver)
    for segment in seg.SegmentSequence:
        ours = paint(labelled(regions, segment.SegmentLabel), liver)
        np.testing.assert_array_equal(ours, expected[segment.SegmentNumber])
    assert sum(r.size for r in regions) == np.count_nonzero(seg.pixel_array)


ENCODED = sorted(
    f"liver{aligned}{encoding}"
    for aligned in ("", "_nonbyte_aligned")
    for encoding in ("", "_deflate", "_j2k", "_rle", "_expb")
    if (aligned, encoding) != ("_nonbyte_aligned", "_expb")
)


@pytest.mark.parametrize("name", ENCODED)
def test_every_encoding_marks_the_same(shared_data: Path, liver: Image, name: str) -> None:
    # Those of 510 x 510 pixels lie on another grid: the first rows and columns of the image.
    native = highdicom.seg.segread(shared_data / "seg/liver.dcm").get_volume().array[..., 0]
    (annotation,) = read_annotations(shared_data / f"seg/{name}.dcm", liver)
    assert annotation.name == "Liver"
    assert annotation.size == np.count_nonzero(native) == 107098
    np.testing.assert_array_equal(paint((annotation,), liver)[::-1], native > 0)


def test_name_and_code_are_those_of_the_segment(shared_data: Path, liver: Image) -> None:
    path = shared_data / "ct/liver_3slice_with_SEG/partial_overlaps.dcm"
    seg = highdicom.seg.segread(path)
    expected = {}
    for number in seg.segment_numbers:
        item = seg.get_segment_description(number)
        kind = item.segmented_property_type
        code = Code(kind.value, kind.scheme_designator, kind.meaning)
        expected[item.segment_label] = (
            code,
            int(np.count_nonzero(seg.get_volume(segment_numbers=[number]).array)),
        )
    found = read_annotations(path, liver)
    assert {r.name: (r.code, r.size) for r in found} == expected
    assert {r.code for r in read_mask(path, liver)} == {code for code, _ in expected.values()}


@pytest.mark.parametrize(
    "name",
    [
        "sr/seg.dcm",
        "seg/seg_image_ct_binary_overlap.dcm",
        "seg/seg_image_ct_binary.dcm",
        "seg/seg_image_ct_binary_fractional.dcm",
    ],
)
def test_segs_lie_where_highdicom_puts_them(shared_data: Path, name: str) -> None:
    seg = highdicom.seg.segread(shared_data / name)
    reference = grid_of(seg)
    regions = read_annotations(shared_data / name, reference)
    for number in seg.segment_numbers:
        label = seg.get_segment_description(number).segment_label
        expected = seg.get_volume(segment_numbers=[number]).array[..., 0] > 0
        (ours,) = [r for r in regions if r.name == label]
        np.testing.assert_array_equal(paint((ours,), reference), expected)


@pytest.mark.parametrize(
    "name",
    ["sr/seg.dcm", "seg/seg_image_ct_binary.dcm", "ct/liver_3slice_with_SEG/partial_overlaps.dcm"],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_seg_on_another_grid_is_resampled_as_by_simpleitk(
    shared_data: Path, name: str, seed: int
) -> None:
    seg = highdicom.seg.segread(shared_data / name)
    grid = grid_of(seg)
    assert grid.affine is not None
    random = np.random.default_rng(seed)
    affine = grid.affine @ np.diag([*random.uniform(0.5, 0.95, 3), 1])
    affine[:3, 3] += random.uniform(-0.3, 0.3, 3)
    slices, rows, columns = grid.shape
    reference = image(2 * slices + 1, 2 * rows, 2 * columns, affine=affine)
    regions = read_annotations(shared_data / name, reference)
    for number in seg.segment_numbers:
        label = seg.get_segment_description(number).segment_label
        inside = (seg.get_volume(segment_numbers=[number]).array[..., 0] > 0).astype(np.uint8)
        (ours,) = [r for r in regions if r.name == label]
        expected = by_sitk(inside, grid.affine, reference) > 0
        np.testing.assert_array_equal(paint((ours,), reference), expected)


def test_slices_between_those_of_the_image(shared_data: Path) -> None:
    """A frame marks the slices whose centre lies in its thickness, and only those."""
    path = shared_data / "seg/seg_image_ct_binary.dcm"
    seg = highdicom.seg.segread(path)
    volume, grid = seg.get_volume().array[..., 0], grid_of(seg)
    assert grid.affine is not None
    affine = grid.affine @ np.diag([5.0, 1, 1, 1])  # every fifth slice
    for off, inside in ((0.3, 0), (0.7, 1), (-0.4, 0), (2.4, 2)):
        affine[:3, 3] = (grid.affine @ [off, 0, 0, 1])[:3]
        reference = image(4, 16, 16, affine=affine)
        (region,) = read_annotations(path, reference)
        whole = paint((region,), reference)
        np.testing.assert_array_equal(whole[0], volume[inside] > 0)
        assert not whole[1:].any()
    affine[:3, 3] = (grid.affine @ [-1, 0, 0, 1])[:3]  # 1 before the first, 2 after the last
    with pytest.raises(RegionError, match="segment 1 marks no pixel of the image"):
        read_annotations(path, image(4, 16, 16, affine=affine))


def test_slices_that_are_left_out_are_not_filled(shared_data: Path) -> None:
    path = shared_data / "seg/seg_image_ct_binary_overlap.dcm"  # 165 places, 8 frames
    grid = grid_of(highdicom.seg.segread(path))
    assert grid.affine is not None
    reference = image(330, 16, 16, affine=grid.affine @ np.diag([0.5, 1, 1, 1]))
    ds = pydicom.dcmread(path)
    total = sum(int(r.size) for r in read_annotations(path, reference))
    # Each frame is one slice thick: two of the image's, or three where two are on its ends.
    assert 2 * ds.pixel_array.sum() - 80 <= total <= 3 * ds.pixel_array.sum()


def test_frames_without_thickness_are_not_spread(shared_data: Path, tmp_path: Path) -> None:
    ds = pydicom.dcmread(shared_data / "seg/seg_image_ct_binary.dcm")
    grid = grid_of(highdicom.seg.segread(shared_data / "seg/seg_image_ct_binary.dcm"))
    assert grid.affine is not None
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    for keyword in ("SliceThickness", "SpacingBetweenSlices"):
        if keyword in measures:
            delattr(measures, keyword)
    ds.save_as(tmp_path / "seg.dcm")
    fine = image(9, 16, 16, affine=grid.affine @ np.diag([0.4, 1, 1, 1]))
    with pytest.raises(RegionError, match="states no distance"):
        read_mask(tmp_path / "seg.dcm", fine)


def test_a_segment_that_is_not_described(shared_data: Path, liver: Image, tmp_path: Path) -> None:
    ds = pydicom.dcmread(shared_data / "seg/liver.dcm")
    ds.SegmentSequence[0].SegmentNumber = 2
    ds.save_as(tmp_path / "seg.dcm")
    with pytest.raises(RegionError, match="segment 1, which it does not describe"):
        read_mask(tmp_path / "seg.dcm", liver)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("liver_rle", struct.pack("<16I", 1, 64, *[0] * 14) + 250 * b"\x81\0"),
        ("liver_deflate", zlib.compress(bytes(32767), wbits=-15)),
        ("liver_rle", b"\xff" * 70),
        ("liver_deflate", b"\xff" * 70),
    ],
)
def test_frames_that_end_early(
    shared_data: Path, liver: Image, tmp_path: Path, name: str, short: bytes
) -> None:
    path = shared_data / f"seg/{name}.dcm"
    pixels = pydicom.dcmread(path).PixelData
    frame = list(pydicom.encaps.generate_frames(pixels, number_of_frames=3))[1]
    broken = path.read_bytes().replace(frame, short.ljust(len(frame), b"\0"))
    (tmp_path / "seg.dcm").write_bytes(broken)
    with pytest.raises(RegionError, match=r"frame 2 ends|cannot be read"):
        read_mask(tmp_path / "seg.dcm", liver)


def test_liver_is_where_the_liver_is(shared_data: Path, liver: Image) -> None:
    inside = paint(read_mask(shared_data / "seg/liver_expb.dcm", liver), liver)
    assert 20 < np.median(liver.pixels[inside]) < 70  # HU of an unenhanced liver


def test_seg_is_placed_by_position_where_the_instances_are_others(
    shared_data: Path, liver: Image
) -> None:
    path = shared_data / "ct/liver_3slice_with_SEG/partial_overlaps.dcm"
    anonymous = image(*liver.shape, affine=liver.affine)
    by_name, by_place = read_mask(path, liver), read_mask(path, anonymous)
    np.testing.assert_array_equal(paint(by_name, liver), paint(by_place, liver))


def test_seg_is_placed_by_instance_where_there_is_no_position(
    shared_data: Path, tmp_path: Path
) -> None:
    path = shared_data / "seg/seg_image_cr_binary.dcm"
    seg = pydicom.dcmread(path)
    group = seg.PerFrameFunctionalGroupsSequence[0]
    source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    reference = image(1, 16, 16, identifiers=Identifiers(sop_uids=(source,)))
    whole = paint(read_mask(path, reference), reference)
    np.testing.assert_array_equal(whole[0], seg.pixel_array == 1)
    with pytest.raises(RegionError, match="names no slice of the image"):
        read_mask(path, image(1, 16, 16))
    derived = group.DerivationImageSequence[0].SourceImageSequence[0]
    derived.SpatialLocationsPreserved = "NO"
    seg.save_as(tmp_path / "moved.dcm")
    with pytest.raises(RegionError, match="names no slice of the image"):
        read_mask(tmp_path / "moved.dcm", reference)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("seg_image_ct_binary_fractional.dcm", lambda f: f > 0),
        ("seg_image_ct_true_fractional.dcm", lambda f: f >= 127.5),
    ],
)
def test_fractional_seg_is_cut_at_one_half(
    shared_data: Path, name: str, inside: Callable[[NDArray[Any]], NDArray[np.bool_]]
) -> None:
    seg = pydicom.dcmread(shared_data / "seg" / name)
    uids = tuple(
        f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for f in seg.PerFrameFunctionalGroupsSequence
    )
    reference = image(3, 16, 16, identifiers=Identifiers(sop_uids=uids))
    regions = read_mask(shared_data / "seg" / name, reference)
    expected = inside(seg.pixel_array)
    assert 0 < expected.sum() <= (seg.pixel_array > 0).sum()
    np.testing.assert_array_equal(paint(regions, reference), expected)


def test_seg_of_a_single_slice(shared_data: Path) -> None:
    reference = read(shared_data / "seg/ct_image.dcm")
    path = shared_data / "seg/seg_image_ct_binary_single_frame.dcm"
    whole = paint(read_mask(path, reference), reference)
    np.testing.assert_array_equal(whole[0], pydicom.dcmread(path).pixel_array == 1)


def test_label_map_seg(shared_data: Path, liver: Image, tmp_path: Path) -> None:
    headers = [
        pydicom.dcmread(path, stop_before_pixels=True)
        for path in sorted((shared_data / "ct/liver_3slice_with_SEG").glob("0*.dcm"))
    ]
    for header in headers:
        header.SpecificCharacterSet = "ISO_IR 100"  # theirs is empty, which highdicom refuses
    labels = np.zeros((3, 512, 512), np.uint8)
    labels[0, 10:20, 30:50] = 1
    labels[2, 100:110, 30:50] = 2
    organ = highdicom.sr.CodedConcept("10200004", "SCT", "Liver")
    described = [
        highdicom.seg.SegmentDescription(
            number, name, organ, organ, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number, name in ((1, "left"), (2, "right"))
    ]
    maker = ("maker", "model", "1", "serial")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the patient's name, which is a placeholder
        seg = highdicom.seg.Segmentation(
            headers, labels, "LABELMAP", described, highdicom.UID(), 1, highdicom.UID(), 1, *maker
        )
    seg.save_as(tmp_path / "labels.dcm")
    left, right = read_mask(tmp_path / "labels.dcm", liver)
    # The files are sorted downwards and the image upwards.
    assert (left.name, left.origin, left.mask.shape) == ("left", (2, 10, 30), (1, 10, 20))
    assert (right.name, right.origin, right.mask.shape) == ("right", (0, 100, 30), (1, 10, 20))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("seg/seg_image_ct_binary.dcm", "another frame of reference"),
        ("seg/seg_image_sm_dots.dcm", "whole-slide"),
        ("seg/seg_image_sm_dots_tiled_full.dcm", "whole-slide"),
        ("seg/seg_image_sm_control_labelmap.dcm", "whole-slide"),
        ("seg/seg_image_sm_control_labelmap_palette_color.dcm", "whole-slide"),
        ("ct/misc/CT_small.dcm", "marks no regions"),
    ],
)
def test_segs_that_cannot_be_used(shared_data: Path, liver: Image, name: str, words: str) -> None:
    with pytest.raises(RegionError, match=words) as caught:
        read_mask(shared_data / name, liver)
    assert caught.value.subject == str(shared_data / name)


def test_a_seg_whose_slices_lie_elsewhere(shared_data: Path, liver: Image, tmp_path: Path) -> None:
    ds = pydicom.dcmread(shared_data / "seg/liver.dcm")
    first = ds.PerFrameFunctionalGroupsSequence[0]
    x, y, z = first.PlanePositionSequence[0].ImagePositionPatient
    for position, words in (
        ([x, y, z + 1], "names one slice of the image and lies elsewhere"),
        ([x, y, z - 1], "names one slice of the image and lies elsewhere"),
        ([x + 1, y, z], "names one slice of the image and lies elsewhere"),
    ):
        first.PlanePositionSequence[0].ImagePositionPatient = position
        ds.save_as(tmp_path / "seg.dcm")
        with pytest.raises(RegionError, match=words):
            read_mask(tmp_path / "seg.dcm", liver)
