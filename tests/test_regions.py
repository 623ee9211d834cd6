"""Masks and annotations against highdicom, nibabel, anatomy and closed forms."""

import json
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import PIL.Image
import pydicom
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from medqa.errors import RegionError
from medqa.image import Identifiers, Image, Region
from medqa.reader import read
from medqa.regions import annotation_regions, mask_regions, read_annotations, read_mask


def paint(regions: tuple[Region, ...], reference: Image) -> NDArray[np.bool_]:
    """Put regions back onto the whole grid."""
    whole = np.zeros(reference.shape, bool)
    for region in regions:
        for index in region.slices:
            rows, columns, mask = region.on_slice(index)
            whole[index, rows, columns] |= mask
    return whole


def labelled(regions: tuple[Region, ...], name: str) -> tuple[Region, ...]:
    return tuple(r for r in regions if r.name == name or r.name.startswith(f"{name} "))


def image(*shape: int, **fields: Any) -> Image:
    return Image(np.zeros(shape, np.int16), **fields)


@pytest.fixture
def chest(shared_data: Path) -> Image:
    return read(shared_data / "ct/totalsegmentator_dicom")


@pytest.fixture
def liver(shared_data: Path) -> Image:
    return read(shared_data / "ct/liver_3slice_with_SEG")


# Arrays ------------------------------------------------------------------------------------------


def test_components_are_those_of_scipy_with_full_connectivity() -> None:
    mask = np.random.default_rng(5).random((4, 20, 30)) < 0.06
    regions = mask_regions(mask, image(4, 20, 30), "lesion")
    _, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert len(regions) == count > 5
    assert [r.name for r in regions[:3]] == ["lesion", "lesion 2", "lesion 3"]
    np.testing.assert_array_equal(paint(regions, image(4, 20, 30)), mask)
    assert sum(r.size for r in regions) == mask.sum()  # none overlap
    assert {r.kind for r in regions} == {"pathology"}


def test_pixels_that_touch_at_a_corner_are_connected_and_labels_are_not() -> None:
    mask = np.array([[1, 0, 0], [0, 1, 2], [0, 0, 0]])
    regions = mask_regions(mask, image(1, 3, 3))
    assert [(r.name, r.size, r.origin) for r in regions] == [
        ("label 1", 2, (0, 0, 0)),
        ("label 2", 1, (0, 1, 2)),
    ]


def test_a_mask_of_one_volume_marks_every_volume() -> None:
    series = image(6, 4, 5, volumes=3)
    mask = np.zeros((2, 4, 5), bool)
    mask[:, 1, 2] = True  # touches the first and the last slice of a volume
    mask[0, 3, 4] = True
    regions = mask_regions(mask, series)
    assert [r.size for r in regions] == [6, 3]
    np.testing.assert_array_equal(paint(regions, series), np.tile(mask, (3, 1, 1)))


def test_a_mask_of_all_volumes_that_is_the_same_in_each_is_one_mask() -> None:
    mask = np.zeros((4, 4, 5), bool)
    mask[[0, 2], 1, 1] = True
    (region,) = mask_regions(mask, image(4, 4, 5, volumes=2))
    assert region.size == 2


def test_a_mask_of_all_volumes_keeps_them_apart() -> None:
    series = image(4, 4, 5, volumes=2)
    mask = np.zeros((4, 4, 5), bool)
    mask[1:3, 1, 1] = True  # the last slice of one volume, the first of the next
    regions = mask_regions(mask, series)
    assert [(r.origin, r.size) for r in regions] == [((1, 1, 1), 1), ((2, 1, 1), 1)]


def test_masks_are_not_changed_or_kept() -> None:
    mask = np.ones((3, 3), np.uint8)
    (region,) = mask_regions(mask, image(1, 3, 3))
    mask[:] = 0
    assert region.size == 9


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((3, 3), bool), "marks nothing"),
        (np.ones((3, 4), bool), r"\(3, 4\), the image \(1, 3, 3\)"),
        (np.ones((2, 3, 3), bool), r"\(2, 3, 3\), the image \(1, 3, 3\)"),
        (np.full((3, 3), 0.5), "no labels"),
        (np.full((3, 3), np.nan), "no labels"),
        (np.full((3, 3), -1), "no labels"),
        (np.full((3, 3), 70000), "no labels"),
        (np.full((3, 3), 1j), "no labels"),
    ],
)
def test_masks_that_cannot_be_used(mask: NDArray[Any], words: str) -> None:
    with pytest.raises(RegionError, match=words) as caught:
        mask_regions(mask, image(1, 3, 3), source="my mask")
    assert caught.value.subject == "my mask"


# NIfTI -------------------------------------------------------------------------------------------


def test_a_real_label_image_lies_on_its_dicom_series(shared_data: Path, chest: Image) -> None:
    path = shared_data / "ct/totalsegmentator_dicom/example_seg_dicom.nii.gz"
    regions = read_mask(path, chest)
    labels = np.asanyarray(nib.load(path).dataobj)
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    for value, count in zip(values, counts, strict=True):
        assert sum(r.size for r in labelled(regions, f"label {value}")) == count
    # The anatomy, in HU, of TotalSegmentator's classes: flipped masks would hit fat and air.
    bones = {32: "vertebra", 69: "humerus", 70: "humerus", 101: "rib", 113: "rib"}
    for label in bones:
        inside = paint(labelled(regions, f"label {label}"), chest)
        assert chest.pixels[inside].mean() > 100
    soft = chest.pixels[paint(labelled(regions, "label 5"), chest)]  # liver
    assert 40 < soft.mean() < 150
    assert soft.std() < 40


def test_a_real_label_image_lies_on_its_nifti_image(shared_data: Path) -> None:
    folder = shared_data / "ct/totalsegmentator_nifti"
    reference = read(folder / "example_ct_sm.nii.gz")
    regions = read_mask(folder / "example_seg.nii.gz", reference)
    labels = np.asanyarray(nib.load(folder / "example_seg.nii.gz").dataobj)
    hounsfield = np.asanyarray(nib.load(folder / "example_ct_sm.nii.gz").dataobj)
    for value in np.unique(labels[labels > 0]):
        inside = paint(labelled(regions, f"label {value}"), reference)
        assert inside.sum() == (labels == value).sum()
        np.testing.assert_allclose(
            reference.pixels[inside].mean(), hounsfield[labels == value].mean(), rtol=1e-6
        )


@pytest.mark.parametrize("code", ["RAS", "LPS", "LAI", "SPL", "AIL", "IRP"])
def test_a_mask_stored_any_way_round_marks_the_same_voxels(
    shared_data: Path, tmp_path: Path, code: str
) -> None:
    reference = read(shared_data / "mr/uih_t1")  # sagittal, oblique
    assert reference.affine is not None
    inside = np.random.default_rng(2).random(reference.shape) < 0.0005
    # Axes in reversed order, as NIfTI stores them, then in the order of `code`.
    affine = reference.affine[:, [2, 1, 0, 3]]
    stored = nib.Nifti1Image(inside.T.astype(np.uint8), affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(code)
    )
    nib.save(stored.as_reoriented(turn), tmp_path / "mask.nii.gz")
    regions = read_mask(tmp_path / "mask.nii.gz", reference)
    np.testing.assert_array_equal(paint(regions, reference), inside)


def save(tmp_path: Path, data: NDArray[Any], affine: NDArray[np.float64] | None) -> Path:
    nib.save(nib.Nifti1Image(data.astype(np.uint8), affine), tmp_path / "mask.nii")
    return tmp_path / "mask.nii"


def test_grids_that_differ_are_refused(tmp_path: Path) -> None:
    affine = np.diag([-2.0, -2, 3, 1])  # columns to the left, rows to posterior, slices up
    reference = image(4, 6, 8, affine=affine[:, [2, 1, 0, 3]])
    data = np.ones((8, 6, 4))
    assert len(read_mask(save(tmp_path, data, affine), reference)) == 1

    shifted = affine.copy()
    shifted[0, 3] = 0.15  # 0.075 voxels: rounding
    assert len(read_mask(save(tmp_path, data, shifted), reference)) == 1
    shifted[0, 3] = 0.3
    with pytest.raises(RegionError, match=r"0\.15 voxels off"):
        read_mask(save(tmp_path, data, shifted), reference)
    with pytest.raises(RegionError, match="off the image's grid"):
        read_mask(save(tmp_path, data, affine @ np.diag([1, 1, 1.1, 1])), reference)
    with pytest.raises(RegionError, match=r"\(4, 6, 7\).*\(4, 6, 8\)"):
        read_mask(save(tmp_path, data[1:], affine), reference)
    with pytest.raises(RegionError, match="position of the mask is unknown"):
        read_mask(save(tmp_path, data, None), reference)
    with pytest.raises(RegionError, match="position of the image is unknown"):
        read_mask(save(tmp_path, data, affine), image(4, 6, 8, kind="dicom"))
    with pytest.raises(RegionError, match="marks nothing"):
        read_mask(save(tmp_path, data * 0, affine), reference)


def test_a_three_dimensional_mask_on_a_time_series(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "mr/nifti/example4d.nii.gz"
    reference, stored = read(path), nib.load(path)
    inside = np.asanyarray(stored.dataobj)[..., 0] > 500
    nib.save(nib.Nifti1Image(inside.astype(np.uint8), stored.affine), tmp_path / "mask.nii.gz")
    whole = paint(read_mask(tmp_path / "mask.nii.gz", reference), reference)
    np.testing.assert_array_equal(whole[:24], reference.pixels[:24] > 500)
    np.testing.assert_array_equal(whole[24:], whole[:24])


# PNG ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB", "LA", "RGBA"])
def test_png_marks_what_is_not_black(tmp_path: Path, mode: str) -> None:
    inside = np.zeros((20, 30), bool)
    inside[3:9, 4:20] = True
    gray = PIL.Image.fromarray(inside.astype(np.uint8) * 255)
    if mode == "I;16":
        picture = PIL.Image.fromarray(inside.astype(np.uint16) * 4000)
    elif mode == "P":
        picture = PIL.Image.fromarray(inside.astype(np.uint8), "L").convert("P")
    else:
        picture = gray.convert(mode)
    picture.save(tmp_path / "mask.png")
    (region,) = read_mask(tmp_path / "mask.png", image(1, 20, 30))
    assert (region.name, region.origin, region.mask.shape) == ("mask", (0, 3, 4), (1, 6, 16))
    assert region.size == 96


def test_png_with_several_values_holds_labels(tmp_path: Path) -> None:
    labels = np.zeros((5, 9), np.uint8)
    labels[:, 0:2], labels[:, 4], labels[:, 8] = 1, 3, 3
    PIL.Image.fromarray(labels).save(tmp_path / "mask.png")
    regions = read_mask(tmp_path / "mask.png", image(1, 5, 9))
    assert [(r.name, r.size) for r in regions] == [
        ("label 1", 10),
        ("label 3", 5),
        ("label 3 2", 5),
    ]


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"\xff\xd8\xff\xe0 a JPEG", "is not NIfTI, PNG or DICOM SEG"),
        (png(10000, 10000), "decompression bomb"),
        (png(60000, 60000), "decompression bomb"),
        (png(20, 20), "cannot be read"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read"),
        (b"\x5c\x01\0\0" + 340 * b"\0" + b"n+1\0", "cannot be read"),
        (bytes(128) + b"DICM", "no segmentation"),
    ],
)
def test_mask_files_that_cannot_be_used(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "mask.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RegionError, match=words) as caught:
        read_mask(path, image(1, 20, 20))
    assert caught.value.subject == str(path)


# DICOM SEG ---------------------------------------------------------------------------------------


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
        ("seg/liver_nonbyte_aligned.dcm", "510 x 510 pixels a frame, the image 512 x 512"),
        ("seg/liver_rle.dcm", "cannot be decoded"),
        ("ct/ct_with_RTSTRUCT/rt.dcm", "no segmentation"),
        ("ct/misc/CT_small.dcm", "no segmentation"),
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
        ([x, y, z + 1], "names one slice of the image and lies on another"),
        ([x, y, z - 1], "1.00 voxels off"),
        ([x + 1, y, z], "voxels off"),
    ):
        first.PlanePositionSequence[0].ImagePositionPatient = position
        ds.save_as(tmp_path / "seg.dcm")
        with pytest.raises(RegionError, match=words):
            read_mask(tmp_path / "seg.dcm", liver)


# Annotations -------------------------------------------------------------------------------------


def annotate(tmp_path: Path, *entries: object) -> Path:
    (tmp_path / "boxes.json").write_text(json.dumps({"annotations": entries}))
    return tmp_path / "boxes.json"


def test_boxes_are_columns_then_rows_and_end_excluded(tmp_path: Path) -> None:
    path = annotate(
        tmp_path,
        {"type": "nodule", "bbox": [2, 3, 5, 7], "slice": 1, "reader": "B"},
        {"type": "cyst", "bbox": [0, 0, 30, 20], "slice": 0},
    )
    reference = image(2, 20, 30)
    nodule, cyst = read_annotations(path, reference)
    assert (nodule.kind, nodule.name, nodule.origin) == ("annotation", "nodule", (1, 3, 2))
    assert nodule.mask.shape == (1, 4, 3)
    assert nodule.mask.all()
    assert (cyst.origin, cyst.size) == ((0, 0, 0), 600)


def test_slice_may_be_left_out_of_a_single_image() -> None:
    (region,) = annotation_regions([{"type": "nodule", "bbox": [0, 0, 1, 1]}], image(1, 2, 2))
    assert region.origin == (0, 0, 0)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"bbox": [0, 0, 1, 1], "slice": 0}, "type: Field required"),
        ({"type": " ", "bbox": [0, 0, 1, 1], "slice": 0}, "type: .*at least 1 character"),
        ({"type": "x", "slice": 0}, "bbox: Field required"),
        ({"type": "x", "bbox": [0, 0, 1], "slice": 0}, "bbox.3: Field required"),
        ({"type": "x", "bbox": [0, 0, 1.5, 1], "slice": 0}, "valid integer"),
        ({"type": "x", "bbox": [0, 0, "1", 1], "slice": 0}, "valid integer"),
        ({"type": "x", "bbox": [0, 0, True, 1], "slice": 0}, "valid integer"),
        ({"type": "x", "bbox": [5, 0, 5, 1], "slice": 0}, "empty or outside"),
        ({"type": "x", "bbox": [5, 0, 4, 1], "slice": 0}, "empty or outside"),
        ({"type": "x", "bbox": [-1, 0, 4, 1], "slice": 0}, "empty or outside"),
        ({"type": "x", "bbox": [0, 0, 31, 1], "slice": 0}, "empty or outside"),
        ({"type": "x", "bbox": [0, 0, 1, 21], "slice": 0}, "empty or outside"),
        ({"type": "x", "bbox": [0, 0, 1, 1]}, "no slice given, and the image has 2"),
        ({"type": "x", "bbox": [0, 0, 1, 1], "slice": 2}, "slice 2 is not among the image's 2"),
        ({"type": "x", "bbox": [0, 0, 1, 1], "slice": -1}, "slice -1 is not among"),
        ({"type": "x", "bbox": [0, 0, 1, 1], "slice": 0.5}, "valid integer"),
        ("nodule", "it: .*dictionary"),
    ],
)
def test_wrong_entries_are_named_by_number(tmp_path: Path, entry: object, words: str) -> None:
    path = annotate(tmp_path, {"type": "nodule", "bbox": [0, 0, 1, 1], "slice": 0}, entry)
    with pytest.raises(RegionError, match=f"annotation 2: .*{words}") as caught:
        read_annotations(path, image(2, 20, 30))
    assert caught.value.subject == str(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("", "is empty"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", 'no list "annotations"'),
        ('{"annotations": 3}', 'no list "annotations"'),
        ('{"annotations": []}', "holds no annotation"),
    ],
)
def test_annotation_files_that_cannot_be_used(
    tmp_path: Path, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(RegionError, match=words) as caught:
        read_annotations(tmp_path / "boxes.json", image(1, 20, 30))
    assert caught.value.subject == str(tmp_path / "boxes.json")
