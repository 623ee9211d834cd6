"""Label arrays, PNG and NIfTI against SciPy, nibabel, SimpleITK, anatomy and closed forms."""

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from painting import by_sitk, image, labelled, paint
from scipy import ndimage

from medqa.errors import RegionError
from medqa.image import Image
from medqa.reader import read
from medqa.regions import mask_regions, read_annotations, read_mask


@pytest.fixture
def chest(shared_data: Path) -> Image:
    return read(shared_data / "ct/totalsegmentator_dicom")


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


def names_in(path: Path) -> dict[int, str]:
    """Names that TotalSegmentator wrote into the header."""
    (table,) = nib.load(path).header.extensions
    found = re.findall(rb'<Label Key="(\d+)"[^>]*><!\[CDATA\[(.*?)\]\]>', table.get_content())
    return {int(key): name.decode() for key, name in found}


def test_a_real_label_image_lies_on_its_dicom_series(shared_data: Path, chest: Image) -> None:
    path = shared_data / "ct/totalsegmentator_dicom/example_seg_dicom.nii.gz"
    regions, names = read_mask(path, chest), names_in(path)
    labels = np.asanyarray(nib.load(path).dataobj)
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    assert sum(r.size for r in regions) == counts.sum()
    for value, count in zip(values, counts, strict=True):
        assert sum(r.size for r in labelled(regions, names[value])) == count
    # The anatomy, in HU, of TotalSegmentator's classes: flipped masks would hit fat and air.
    for bone in ("vertebrae_T12", "humerus_left", "humerus_right", "rib_left_10", "rib_right_10"):
        assert chest.pixels[paint(labelled(regions, bone), chest)].mean() > 100
    soft = chest.pixels[paint(labelled(regions, "liver"), chest)]
    assert 40 < soft.mean() < 150
    assert soft.std() < 40


def test_a_real_label_image_lies_on_its_nifti_image(shared_data: Path) -> None:
    folder = shared_data / "ct/totalsegmentator_nifti"
    reference = read(folder / "example_ct_sm.nii.gz")
    regions = read_mask(folder / "example_seg.nii.gz", reference)
    names = names_in(folder / "example_seg.nii.gz")
    labels = np.asanyarray(nib.load(folder / "example_seg.nii.gz").dataobj)
    hounsfield = np.asanyarray(nib.load(folder / "example_ct_sm.nii.gz").dataobj)
    for value in np.unique(labels[labels > 0]):
        inside = paint(labelled(regions, names[value]), reference)
        assert inside.sum() == (labels == value).sum()
        np.testing.assert_allclose(
            reference.pixels[inside].mean(), hounsfield[labels == value].mean(), rtol=1e-6
        )


def test_a_mask_may_be_annotations(shared_data: Path, chest: Image) -> None:
    path = shared_data / "ct/totalsegmentator_dicom/example_seg_dicom.nii.gz"
    regions = read_annotations(path, chest)
    labels = np.asanyarray(nib.load(path).dataobj)
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    names = names_in(path)
    found = {r.name: r.size for r in regions}
    assert found == {names[v]: n for v, n in zip(values, counts, strict=True)}
    assert {r.kind for r in regions} == {"annotation"}


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


def test_grids_that_differ_a_little_are_one(tmp_path: Path) -> None:
    affine = np.diag([-2.0, -2, 3, 1])  # columns to the left, rows to posterior, slices up
    reference = image(4, 6, 8, affine=affine[:, [2, 1, 0, 3]])
    shifted = affine.copy()
    shifted[0, 3] = 0.15  # 0.075 voxels: rounding
    (region,) = read_mask(save(tmp_path, np.ones((8, 6, 4)), shifted), reference)
    assert region.size == 8 * 6 * 4


@pytest.mark.parametrize("seed", range(6))
def test_a_mask_on_another_grid_is_resampled_as_by_simpleitk(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * random.uniform(1, 4, 3)
    affine[:3, 3] = random.uniform(-20, 20, 3)
    reference = image(12, 30, 25, affine=affine)
    of_mask = affine @ np.diag([*random.uniform(0.6, 1.7, 3), 1])
    of_mask[:3, 3] += random.uniform(-6, 6, 3)
    if seed % 2:  # another orientation too
        of_mask[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0] @ of_mask[:3, :3]
        of_mask[:3, 3] += affine[:3, :3] @ [6, 15, 12] - of_mask[:3, :3] @ [5, 11, 10]
    labels = ndimage.zoom(random.integers(0, 4, (3, 6, 5)), (4, 4, 4), order=0).astype(np.uint8)
    expected = by_sitk(labels, of_mask, reference)
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    nib.save(nib.Nifti1Image(labels.T, of_mask[:, [2, 1, 0, 3]]), tmp_path / "mask.nii")
    regions = read_annotations(tmp_path / "mask.nii", reference)
    for value in (1, 2, 3):
        ours = paint(labelled(regions, f"label {value}"), reference)
        np.testing.assert_array_equal(ours, expected == value)


def test_real_labels_are_resampled_as_by_simpleitk(shared_data: Path) -> None:
    folder = shared_data / "ct/totalsegmentator_nifti"
    path, coarse = folder / "example_seg.nii.gz", read(folder / "example_ct_sm.nii.gz")
    assert coarse.affine is not None
    affine = coarse.affine @ np.diag([0.71, 0.83, 0.93, 1])
    affine[:3, 3] = (coarse.affine @ [0.31, 0.173, -0.41, 1])[:3]
    reference = image(42, 121, 130, affine=affine)
    whole = read_annotations(path, coarse)
    for region in read_annotations(path, reference):
        (same,) = labelled(whole, region.name)
        expected = by_sitk(paint((same,), coarse).astype(np.uint8), coarse.affine, reference)
        np.testing.assert_array_equal(paint((region,), reference), expected > 0)


def test_a_mask_of_one_volume_on_another_grid_is_for_every_volume(tmp_path: Path) -> None:
    data = np.zeros((16, 12, 4))
    data[4:8, 2:6, 1] = 1
    affine = np.diag([1.0, 1, 3, 1])
    affine[:2, 3] = -0.5  # two by two pixels in each of the image's
    # The affine of the image takes (slice, row, column) to x, y, z; NIfTI's takes (x, y, z).
    reference = image(8, 6, 8, volumes=2, affine=np.diag([2.0, 2, 3, 1])[:, [2, 1, 0, 3]])
    (region,) = read_mask(save(tmp_path, data, affine), reference)
    assert (region.origin, region.size) == ((1, 1, 2), 8)
    assert region.mask[[0, 4]].all()


def test_masks_that_have_no_place_on_the_image(tmp_path: Path) -> None:
    affine = np.diag([-2.0, -2, 3, 1])
    reference = image(4, 6, 8, affine=affine[:, [2, 1, 0, 3]])
    data = np.ones((8, 6, 4))
    with pytest.raises(RegionError, match="position of the mask is unknown"):
        read_mask(save(tmp_path, data, None), reference)
    with pytest.raises(RegionError, match="position of the image is unknown"):
        read_mask(save(tmp_path, data, affine), image(4, 6, 8, kind="dicom"))
    with pytest.raises(RegionError, match="marks nothing"):
        read_mask(save(tmp_path, data * 0, affine), reference)
    far = affine.copy()
    far[2, 3] = 100
    with pytest.raises(RegionError, match="label 1 marks no pixel of the image: it lies outside"):
        read_mask(save(tmp_path, data, far), reference)
    fine = affine @ np.diag([0.2, 0.2, 1, 1])
    labels = np.ones((40, 30, 4))
    labels[12, 12, 2] = 7  # between the centres of the image's pixels, at 10 and 15
    with pytest.raises(RegionError, match="label 7 marks no pixel"):
        read_mask(save(tmp_path, labels, fine), reference)


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
        (b"\xff\xd8\xff\xe0 a JPEG", "no mask or annotation file"),
        (b"NRRD0004\ntype: uchar\n", "is NRRD"),
        (png(10000, 10000), "decompression bomb"),
        (png(60000, 60000), "decompression bomb"),
        (png(20, 20), "cannot be read"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read"),
        (b"\x5c\x01\0\0" + 340 * b"\0" + b"n+1\0", "mask.png: "),
        (bytes(128) + b"DICM", "marks no regions"),
    ],
)
def test_mask_files_that_cannot_be_used(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "mask.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RegionError, match=words) as caught:
        read_mask(path, image(1, 20, 20))
    assert caught.value.subject == str(path)
