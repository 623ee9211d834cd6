"""NIfTI reading against nibabel's and ITK's data and coordinates."""

import gzip
import hashlib
import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import SimpleITK

import medqa.image
from medqa.errors import ReadError
from medqa.image import Image, Slices, Window
from medqa.nifti import read_nifti
from medqa.reader import read
from medqa.regions import read_mask
from medqa.transforms import match

ORIENTATIONS = ("AIL", "IRA", "LAS", "LPI", "LPS", "PIR", "RAS", "SPL")


def world(image: Image) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) RAS mm of some voxels, and their values."""
    assert image.affine is not None
    rng = np.random.default_rng(3)
    length = image.shape[0] // image.volumes
    indices = rng.integers(0, (length, *image.shape[1:]), (500, 3))
    homogeneous = np.c_[indices, np.ones(len(indices))]
    return (homogeneous @ image.affine.T)[:, :3], image.pixels[tuple(indices.T)]


@pytest.mark.parametrize(
    "name",
    [
        *(f"mr/nifti_orientations/{code}.nii.gz" for code in ORIENTATIONS),
        "ct/totalsegmentator_nifti/example_ct.nii.gz",  # int32
        "mr/nifti/t1_crop.nii.gz",  # uint8, LIA
        "mr/nifti/strokez.nii.gz",  # scaled
        "mr/nifti/labels.nii.gz",  # float32
        "mr/nifti/anatomical.nii",  # big endian
        "mr/nifti/example4d.nii.gz",
        "mr/nifti/example_nifti2.nii.gz",
    ],
)
def test_values_lie_where_nibabel_says(shared_data: Path, name: str) -> None:
    image = read(shared_data / name)
    oracle = nib.load(shared_data / name)
    places, values = world(image)
    indices = nib.affines.apply_affine(np.linalg.inv(oracle.affine), places)
    np.testing.assert_allclose(indices, indices.round(), atol=1e-3)
    first = np.asanyarray(oracle.dataobj)
    first = first[..., 0] if first.ndim == 4 else first
    expected = first[tuple(indices.round().astype(int).T)]
    np.testing.assert_array_equal(values, expected.astype(image.pixels.dtype))
    zooms = oracle.header.get_zooms()[:3]
    assert sorted(image.spacing_mm or ()) == pytest.approx(sorted(zooms), rel=1e-5)
    assert (image.kind, image.modality, image.unit) == ("nifti", None, "arbitrary")


def test_eight_orientations_are_one_image(shared_data: Path) -> None:
    images = [read(shared_data / f"mr/nifti_orientations/{o}.nii.gz") for o in ORIENTATIONS]
    assert len({image.pixels_sha256 for image in images}) == 1
    for image in images[1:]:
        np.testing.assert_allclose(image.affine, images[0].affine, atol=1e-4)


def test_an_axial_slice_looks_as_on_a_display(shared_data: Path) -> None:
    affine = read(shared_data / "mr/nifti_orientations/SPL.nii.gz").affine
    assert affine is not None
    assert affine[2, 0] > 0  # slices go up
    assert affine[1, 1] < 0  # rows go from anterior to posterior
    assert affine[0, 2] < 0  # columns go from the patient's right to the left


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_unscaled_integers_keep_their_type(tmp_path: Path, dtype: type) -> None:
    info = np.iinfo(dtype)
    data = np.array([info.min, info.max, 1, 2], dtype).reshape(2, 2, 1)
    nib.save(nib.Nifti1Image(data, np.eye(4), dtype=dtype), tmp_path / "a.nii")
    image = read(tmp_path / "a.nii")
    assert image.pixels.dtype == dtype
    assert image.value_range == (info.min, info.max)
    assert sorted(image.pixels.ravel()) == sorted(data.ravel())


def test_scaled_integers_are_float32_of_the_double_result(shared_data: Path) -> None:
    path = shared_data / "mr/nifti/strokez.nii.gz"
    image, oracle = read(path), nib.load(path)
    assert image.pixels.dtype == np.float32
    exact = np.sort(oracle.get_fdata(), axis=None)
    np.testing.assert_allclose(np.sort(image.pixels, axis=None), exact, rtol=6e-8)
    slope = oracle.dataobj.slope
    assert image.value_range == pytest.approx((-32768 * slope, 32767 * slope))


def test_slope_and_intercept(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.array([[[0]], [[200]]], np.uint8), np.diag([-1, -1, 1, 1]))
    image.header.set_slope_inter(0.5, -7)
    nib.save(image, tmp_path / "a.nii")
    stored = nib.load(tmp_path / "a.nii").dataobj.get_unscaled().ravel()
    scaled = read(tmp_path / "a.nii")
    np.testing.assert_array_equal(scaled.pixels.ravel(), stored * 0.5 - 7)
    assert scaled.value_range == (-7, 255 * 0.5 - 7)


def test_floats_are_float32_and_unbounded(tmp_path: Path) -> None:
    data = np.array([[[0.1]], [[np.nan]]])
    nib.save(nib.Nifti1Image(data, np.diag([-1, -1, 1, 1])), tmp_path / "a.nii.gz")
    image = read(tmp_path / "a.nii.gz")
    assert image.pixels.dtype == np.float32
    assert image.value_range is None
    np.testing.assert_array_equal(image.pixels.ravel(), np.float32([0.1, np.nan]))


def test_volumes_follow_one_another(shared_data: Path) -> None:
    path = shared_data / "mr/nifti/example4d.nii.gz"
    image, data = read(path), np.asanyarray(nib.load(path).dataobj)
    assert (image.volumes, image.shape) == (2, (48, 96, 128))
    for volume in (0, 1):  # LAS: the first axis is already left, the second is to be flipped
        expected = data[:, ::-1, :, volume].T
        np.testing.assert_array_equal(image.pixels[24 * volume : 24 * (volume + 1)], expected)


def test_two_dimensions_are_one_slice(tmp_path: Path) -> None:
    data = np.arange(6, dtype=np.int16).reshape(3, 2)
    nib.save(nib.Nifti1Image(data, np.diag([-1, -1, 1, 1])), tmp_path / "a.nii")
    image = read(tmp_path / "a.nii")
    np.testing.assert_array_equal(image.pixels, data.T[None])
    assert image.spacing_mm == (0.0, 1.0, 1.0)


def test_colour_becomes_pillows_luminance(shared_data: Path) -> None:
    path = shared_data / "mr/nifti/ct_perfusion.nii.gz"
    image, data = read(path), np.asanyarray(nib.load(path).dataobj)
    rgb = np.stack([data[channel][:, ::-1, 7].T for channel in "RGB"], axis=-1)  # LAS
    gray = np.asarray(PIL.Image.fromarray(rgb).convert("L"), np.float64)
    np.testing.assert_allclose(image.pixels[7], gray, atol=0.502)  # Pillow rounds
    assert image.value_range == (0.0, 255.0)


def test_unknown_position_has_no_affine(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), None)
    image.header.set_zooms((2, 3, 4))
    nib.save(image, tmp_path / "a.nii")
    read_back = read(tmp_path / "a.nii")
    assert read_back.affine is None
    assert read_back.spacing_mm == (4, 3, 2)


def test_digests(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "mr/nifti/anatomical.nii"
    assert read(path).file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    nib.save(nib.Nifti1Pair(np.ones((2, 3, 4), np.int16), np.eye(4)), tmp_path / "a.img")
    digests = [
        hashlib.sha256((tmp_path / f"a.{s}").read_bytes()).hexdigest() for s in ("hdr", "img")
    ]
    for suffix in ("hdr", "img"):
        image = read(tmp_path / f"a.{suffix}")
        assert (image.pixels == 1).all()
        assert image.shape == (4, 3, 2)
        assert image.file_sha256 == hashlib.sha256("\n".join(digests).encode()).hexdigest()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.zeros((2, 2, 2), np.complex64), "complex"),
        (np.zeros((2, 2, 2, 1, 3), np.float32), "5 dimensions"),
        (np.zeros(4, np.float32), "1 dimensions"),
    ],
)
def test_what_is_no_image(tmp_path: Path, data: np.ndarray, reason: str) -> None:
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ReadError, match=reason) as caught:
        read(tmp_path / "a.nii.gz")
    assert caught.value.subject == str(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", ["mr/nifti/anatomical.nii", "mr/nifti/FLAIR.nii.gz"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated(shared_data: Path, tmp_path: Path, name: str, share: float) -> None:
    data = (shared_data / name).read_bytes()
    path = tmp_path / Path(name).name
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ReadError):
        read(path)


def _oblique(code: str) -> np.ndarray:
    return nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(code), (5, 6, 7)) @ np.diag(
        [2.0, 3, 4, 1]
    )


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.img"])
@pytest.mark.parametrize("code", ["LPS", "RAS", "LAI", "SPL", "PIR"])
@pytest.mark.parametrize(("slope", "dtype"), [(1, "<i2"), (0.37, ">i2"), (1, "<f8")])
def test_slices_on_demand_are_the_array_that_would_be_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: str,
    slope: float,
    dtype: str,
) -> None:
    data = np.random.default_rng(8).integers(-999, 999, (5, 6, 7, 2)).astype(dtype)
    kind = nib.Nifti1Pair if name == "a.img" else nib.Nifti1Image
    header = kind.header_class(endianness=dtype[0])
    header.set_data_dtype(np.dtype(dtype))
    image = kind(data, _oblique(code), header)
    image.header.set_slope_inter(slope, 3 if slope != 1 else 0)
    nib.save(image, tmp_path / name)
    kept = read(tmp_path / name)
    monkeypatch.setattr(medqa.image, "KEPT_BYTES", 0)
    streamed = read(tmp_path / name)
    assert isinstance(kept.pixels, np.ndarray)
    assert isinstance(streamed.pixels, Slices)
    assert streamed.survey == kept.survey
    assert streamed.pixels.dtype == (np.int16 if (slope, dtype) == (1, "<i2") else np.float32)
    np.testing.assert_array_equal(np.asarray(streamed.pixels), kept.pixels)
    assert (streamed.volumes, streamed.file_sha256) == (2, kept.file_sha256)
    expected = np.sort(np.asanyarray(nib.load(tmp_path / name).dataobj), axis=None)
    np.testing.assert_allclose(np.sort(kept.pixels, axis=None), expected, rtol=1e-6)


def test_a_file_that_changes_after_it_was_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medqa.image, "KEPT_BYTES", 0)
    data = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    pixels = read(tmp_path / "a.nii").pixels
    assert len(pixels[:]) == 5
    whole = (tmp_path / "a.nii").read_bytes()
    for content in (whole[:-1] + b"\1", whole[:-1], b""):
        (tmp_path / "a.nii").write_bytes(content)
        with pytest.raises(ReadError, match="changed while it was being compared"):
            pixels[:]


def test_a_header_that_claims_too_much_is_refused_before_decoding(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(99)))
    with pytest.raises(ReadError, match="GiB"):
        read(tmp_path / "a.nii.gz")


def test_a_pair_without_its_pixels(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.ones((2, 3, 4), np.int16), np.eye(4)), tmp_path / "a.img")
    (tmp_path / "a.img").unlink()
    with pytest.raises(ReadError, match=r"a\.img"):
        read_nifti(tmp_path / "a.hdr")


# Which way round, and in which plane -------------------------------------------------------------

NIFTIS = [
    *(f"mr/nifti_orientations/{code}.nii.gz" for code in ORIENTATIONS),
    "ct/totalsegmentator_dicom/example_seg_dicom.nii.gz",
    "ct/totalsegmentator_nifti/example_ct.nii.gz",
    "ct/totalsegmentator_nifti/example_mr_sm.nii.gz",
    "mr/nifti/FLAIR.nii.gz",
    "mr/nifti/anatomical.nii",
    "mr/nifti/ct_perfusion.nii.gz",
    "mr/nifti/example4d.nii.gz",
    "mr/nifti/strokez.nii.gz",
]


@pytest.mark.parametrize("name", NIFTIS)
def test_values_and_sizes_are_where_itk_finds_them(shared_data: Path, name: str) -> None:
    image, oracle = read(shared_data / name), SimpleITK.ReadImage(shared_data / name)
    if oracle.GetDimension() == 4:
        oracle = oracle[..., 0]
    assert image.spacing_mm is not None
    assert sorted(image.spacing_mm) == pytest.approx(sorted(oracle.GetSpacing()), rel=1e-5)
    for place, value in zip(*world(image), strict=True):
        lps = (place * (-1, -1, 1)).tolist()
        index = oracle.TransformPhysicalPointToIndex(lps)
        np.testing.assert_allclose(oracle.TransformIndexToPhysicalPoint(index), lps, atol=2e-3)
        expected = oracle.GetPixel(index)
        if isinstance(expected, tuple):
            expected = float(np.dot(expected[:3], (0.299, 0.587, 0.114)))
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-4)


def head_of(sizes: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """RAS volume of 5 x 6 x 7 voxels of these sizes, and its affine."""
    data = np.random.default_rng(5).integers(0, 4000, (5, 6, 7)).astype(np.int16)
    return data, nib.affines.from_matvec(np.diag(sizes), (-31, 17, 4))


def stored(data: np.ndarray, affine: np.ndarray, code: str) -> nib.Nifti1Image:
    """The same head with its axes stored in another order."""
    image = nib.Nifti1Image(data, affine)
    return image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(code)
        )
    )


EVERY_ORDER = [
    "".join(codes)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*axes)
]


@pytest.mark.parametrize(
    ("sizes", "directions", "slices"),
    [
        ((4, 1, 1), "RIP", 5),  # sagittal
        ((1, 4, 1.2), "PIL", 6),  # coronal
        ((1, 1.2, 4), "SPL", 7),  # axial
        ((1, 1, 1), "SPL", 7),
        ((1.4, 1, 1), "SPL", 7),  # not clearly larger
        ((1.42, 1, 1), "RIP", 5),
        ((3, 3, 1), "SPL", 7),  # two thick axes are no slices
    ],
)
def test_slices_are_those_acquired_whatever_the_order_on_disk(
    tmp_path: Path, sizes: tuple[float, float, float], directions: str, slices: int
) -> None:
    data, affine = head_of(sizes)
    images = []
    for code in EVERY_ORDER:
        nib.save(stored(data, affine, code), tmp_path / f"{code}.nii")
        images.append(read(tmp_path / f"{code}.nii"))
    assert len(images) == 48
    assert len({image.pixels_sha256 for image in images}) == 1
    for image in images:
        assert image.affine is not None
        np.testing.assert_allclose(image.affine, images[0].affine, atol=1e-5)
        assert "".join(nib.aff2axcodes(image.affine)) == directions
        assert len(image.pixels) == slices
        np.testing.assert_allclose(
            image.spacing_mm, np.linalg.norm(image.affine[:3, :3], axis=0), rtol=1e-6
        )
    places, values = world(images[0])
    indices = nib.affines.apply_affine(np.linalg.inv(affine), places).round().astype(int)
    np.testing.assert_array_equal(values, data[tuple(indices.T)])


def test_the_only_slice_of_a_file_is_the_slice(tmp_path: Path) -> None:
    data, affine = head_of((1, 1, 1))
    for axis, directions in enumerate(("RIP", "PIL", "SPL")):
        one = data.take([2], axis)
        nib.save(nib.Nifti1Image(one, affine), tmp_path / "a.nii")
        image = read(tmp_path / "a.nii")
        assert image.affine is not None
        assert "".join(nib.aff2axcodes(image.affine)) == directions
        assert image.shape[0] == 1


def test_what_was_made_without_dim_info_is_cut_the_same_way(tmp_path: Path) -> None:
    data, affine = head_of((1, 1, 1.2))
    reference = nib.Nifti1Image(data, affine)
    reference.header.set_dim_info(freq=1, phase=2, slice=0)
    nib.save(reference, tmp_path / "reference.nii")
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "candidate.nii")
    one, other = read(tmp_path / "reference.nii"), read(tmp_path / "candidate.nii")
    assert match(one, other, resample=False) is other


def test_a_sagittal_series_and_what_itk_makes_of_it_are_one_image(
    shared_data: Path, tmp_path: Path
) -> None:
    folder = shared_data / "mr/uih_t1"
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    SimpleITK.WriteImage(reader.Execute(), tmp_path / "twin.nii.gz")
    series, twin = read(folder), read(tmp_path / "twin.nii.gz")
    assert series.affine is not None
    assert twin.affine is not None
    assert "".join(nib.aff2axcodes(series.affine)) == "RIP"
    np.testing.assert_allclose(twin.affine, series.affine, atol=1e-3)
    np.testing.assert_allclose(twin.spacing_mm, series.spacing_mm, rtol=1e-5)
    np.testing.assert_array_equal(twin.pixels, series.pixels)
    assert match(series, twin, resample=False) is twin


@pytest.mark.parametrize("code", ["RAS", "LPS", "SPL", "PIR"])
def test_a_mask_in_another_order_lands_on_a_sagittal_image(tmp_path: Path, code: str) -> None:
    data, affine = head_of((4, 1, 1))
    nib.save(stored(data, affine, "PIR"), tmp_path / "image.nii.gz")
    inside = np.zeros(data.shape, np.uint8)
    inside[1:3, 2:5, 3] = 1
    nib.save(stored(inside, affine, code), tmp_path / "mask.nii.gz")
    reference = read(tmp_path / "image.nii.gz")
    (region,) = read_mask(tmp_path / "mask.nii.gz", reference)
    marked = np.zeros(reference.shape, bool)
    box = tuple(
        slice(low, low + length)
        for low, length in zip(region.origin, region.mask.shape, strict=True)
    )
    marked[box] = region.mask
    assert sorted(reference.pixels[marked]) == sorted(data[inside > 0])


# Sizes and transforms ----------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["meter", "mm", "micron", "unknown"])
def test_lengths_are_turned_into_mm_as_by_itk(tmp_path: Path, unit: str) -> None:
    data, affine = head_of((0.5, 0.6, 0.7))
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units(unit, "msec")
    nib.save(image, tmp_path / "a.nii")
    ours, oracle = read(tmp_path / "a.nii"), SimpleITK.ReadImage(tmp_path / "a.nii")
    assert ours.affine is not None
    assert ours.spacing_mm is not None
    np.testing.assert_allclose(ours.spacing_mm[::-1], oracle.GetSpacing(), rtol=1e-6)
    factor = {"meter": 1000, "micron": 0.001}.get(unit, 1)
    np.testing.assert_allclose(ours.spacing_mm[::-1], np.multiply((0.5, 0.6, 0.7), factor), 1e-6)
    corner = (ours.affine @ (6, 0, 0, 1))[:3] * (-1, -1, 1)
    ends = [
        oracle.TransformIndexToPhysicalPoint(index)
        for index in itertools.product((0, 4), (0, 5), (0, 6))
    ]
    assert min(np.abs(np.subtract(end, corner)).max() for end in ends) < 1e-3 * factor


def test_an_unknown_position_has_sizes_in_mm(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), None)
    image.header.set_zooms((2, 3, 4))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    assert read(tmp_path / "a.nii").spacing_mm == pytest.approx((0.004, 0.003, 0.002))


def test_an_unknown_position_is_turned_by_the_shape_alone(tmp_path: Path) -> None:
    """Else a mask that lost its sizes together with its position would lie another way round."""
    data, _ = head_of((1, 1, 1))
    for name, sizes in (("a", (5, 1, 1)), ("b", (1, 1, 1)), ("c", (0, 0, 0))):
        image = nib.Nifti1Image(data, None)
        image.header["pixdim"][1:4] = sizes
        nib.save(image, tmp_path / f"{name}.nii")
    a, b, c = (read(tmp_path / f"{name}.nii") for name in "abc")
    assert a.pixels_sha256 == b.pixels_sha256 == c.pixels_sha256
    assert (a.spacing_mm, b.spacing_mm, c.spacing_mm) == ((1, 1, 5), (1, 1, 1), None)


def _patched(tmp_path: Path, **fields: Any) -> Path:
    """A file whose header says what nibabel would not write."""
    data, affine = head_of((1, 1, 1))
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    header = image.header.copy()
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        header[name] = value
    path = tmp_path / "a.nii"
    path.write_bytes(header.binaryblock + bytes(4) + data.tobytes(order="F"))
    return path


MOVED = {"srow_x": (1, 0, 0, 9), "srow_y": (0, 1, 0, 9), "srow_z": (0, 0, 1, 9)}


@pytest.mark.parametrize(
    ("qform", "sform", "found"),
    [
        (1, 0, "qform"),
        (0, 1, "sform"),
        (0, 4, "sform"),
        (1, 2, "sform"),  # both in the patient
        (2, 1, "sform"),
        (1, 4, "qform"),  # the sform leads to a template
        (2, 3, "qform"),
        (4, 1, "sform"),
        (3, 4, "sform"),
    ],
)
def test_the_transform_of_the_patient_is_taken(
    tmp_path: Path, qform: int, sform: int, found: str
) -> None:
    path = _patched(tmp_path, qform_code=qform, sform_code=sform, **MOVED)
    affine = read(path).affine
    assert affine is not None
    header = nib.load(path).header
    expected = header.get_qform() if found == "qform" else header.get_sform()
    corner = affine @ (0, 5, 4, 1)  # the first voxel of the file
    np.testing.assert_allclose(corner, expected[:, 3], atol=1e-5)


@pytest.mark.parametrize("code", [1, 2, 4])
def test_two_transforms_of_one_space_must_agree(tmp_path: Path, code: int) -> None:
    path = _patched(tmp_path, qform_code=code, sform_code=code, **MOVED)
    with pytest.raises(ReadError, match=f"both of code {code}, that lie 40 voxels apart"):
        read(path)


def test_a_sheared_sform_agrees_with_the_qform_nearest_to_it(tmp_path: Path) -> None:
    data, affine = head_of((1, 1, 3))
    affine[1, 2] = 1.2  # gantry tilt of 22 degrees
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, tmp_path / "a.nii")
    places, values = world(read(tmp_path / "a.nii"))
    indices = nib.affines.apply_affine(np.linalg.inv(affine), places)
    np.testing.assert_allclose(indices, indices.round(), atol=1e-4)
    np.testing.assert_array_equal(values, data[tuple(indices.round().astype(int).T)])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"qform_code": 0, "srow_x": (np.nan, 0, 0, 0)}, "no numbers"),
        ({"qform_code": 0, "srow_x": (0, 0, 0, 0)}, "places no voxels"),
        ({"qform_code": 0, "srow_x": (1, 1, 0, 0), "srow_y": (1, 1, 0, 0)}, "one plane"),
        ({"qform_code": 0, "srow_x": (1e9, 0, 0, 0)}, "would measure"),
        ({"qform_code": 0, "srow_x": (1, 0, 0, 1e9)}, "outside the room"),
        ({"sform_code": 0, "quatern_b": 2}, "no rotation"),
        ({"sform_code": 0, "quatern_c": np.nan}, "no rotation"),
        ({"sform_code": 0, "pixdim": (1, 0, 1, 1, 0, 0, 0, 0)}, "would measure 0 x 1 x 1 mm"),
        ({"sform_code": 0, "pixdim": (1, -1, 1, 1, 0, 0, 0, 0)}, "no rotation and voxel size"),
        ({"sform_code": 0, "pixdim": (0.5, 1, 1, 1, 0, 0, 0, 0)}, "no rotation"),
        ({"qform_code": 0, "sform_code": 0, "pixdim": (1, -1, 1, 1, 0, 0, 0, 0)}, "voxel size"),
        ({"qform_code": 0, "sform_code": 0, "pixdim": (1, np.nan, 1, 1, 0, 0, 0, 0)}, "voxel size"),
        ({"sform_code": 77}, "unknown meaning"),
        ({"qform_code": -1}, "unknown meaning"),
        ({"xyzt_units": 5}, "unknown unit"),
    ],
)
def test_a_geometry_that_is_none(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ReadError, match=reason):
        read(_patched(tmp_path, **fields))


def test_itks_picture_of_two_dimensions(tmp_path: Path) -> None:
    array = np.arange(20, dtype=np.uint8).reshape(4, 5)
    picture = SimpleITK.GetImageFromArray(array)
    picture.SetSpacing((0.5, 0.25))
    SimpleITK.WriteImage(picture, tmp_path / "a.nii")
    image = read(tmp_path / "a.nii")
    assert image.spacing_mm == pytest.approx((0, 0.25, 0.5))
    np.testing.assert_array_equal(image.pixels, array[None])


# Values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0, np.nan])
def test_no_slope_no_scaling(tmp_path: Path, slope: float) -> None:
    image = read(_patched(tmp_path, scl_slope=slope, scl_inter=7))
    assert image.pixels.dtype == np.int16
    assert sorted(image.pixels.ravel()) == sorted(head_of((1, 1, 1))[0].ravel())


@pytest.mark.parametrize(
    ("slope", "inter"),
    [(np.inf, 0), (1, np.nan), (2, np.inf), (1e36, 0), (1e-3, 1e6)],
)
def test_a_scaling_that_cannot_be_held(tmp_path: Path, slope: float, inter: float) -> None:
    with pytest.raises(ReadError, match="scales its pixels by"):
        read(_patched(tmp_path, scl_slope=slope, scl_inter=inter))


def test_every_grey_level_of_scaled_16_bits_stays_apart(tmp_path: Path) -> None:
    data = np.arange(-(2**15), 2**15, dtype=np.int16).reshape(64, 64, 16)
    image = nib.Nifti1Image(data, np.eye(4))
    image.header.set_slope_inter(1e-3, 500)
    nib.save(image, tmp_path / "a.nii")
    scaled = read(tmp_path / "a.nii").pixels
    exact = np.sort(nib.load(tmp_path / "a.nii").get_fdata(), axis=None)
    np.testing.assert_allclose(np.sort(scaled, axis=None), exact, rtol=6e-8)
    assert len(np.unique(scaled)) == 2**16


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_64_bit_integers_are_exact_or_refused(tmp_path: Path, dtype: type) -> None:
    data = np.array([0, 1, 2**53 + 1, 2**63 - 1], dtype).reshape(2, 2, 1)
    nib.save(nib.Nifti1Image(data, np.eye(4), dtype=dtype), tmp_path / "a.nii")
    image = read(tmp_path / "a.nii")
    assert image.pixels.dtype == np.int64
    assert sorted(image.pixels.ravel()) == sorted(data.ravel())
    if dtype is np.uint64:
        data[0] = 2**63
        nib.save(nib.Nifti1Image(data, np.eye(4), dtype=dtype), tmp_path / "a.nii")
        with pytest.raises(ReadError, match="integers beyond"):
            read(tmp_path / "a.nii")


def test_doubles_beyond_single_precision_are_infinite_and_counted(tmp_path: Path) -> None:
    data = np.array([1e300, -1e300, 1 + 1e-12, np.nan]).reshape(2, 2, 1)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    assert read(tmp_path / "a.nii").survey.not_finite == 3


def test_opacity_is_left_out(tmp_path: Path) -> None:
    kind = np.dtype([(channel, "u1") for channel in "RGBA"])
    data = np.array([(255, 0, 0, 0), (0, 255, 0, 128), (0, 0, 255, 255)], kind).reshape(3, 1, 1)
    nib.save(nib.Nifti1Image(data, np.diag([-1, -1, 1, 1])), tmp_path / "a.nii")
    found = read(tmp_path / "a.nii").pixels.ravel()
    np.testing.assert_allclose(sorted(found), sorted((76.245, 149.685, 29.07)), atol=1e-4)


@pytest.mark.parametrize(
    ("code", "bits", "reason"),
    [
        (1, 1, "1-bit"),
        (32, 64, "complex"),
        (1536, 128, "128-bit"),
        (1792, 128, "complex"),
        (2048, 256, "complex"),
        (0, 0, "unknown data type 0"),
        (99, 16, "unknown data type 99"),
        (4, 32, "32 bits a pixel and a data type of 16"),
    ],
)
def test_types_that_are_refused(tmp_path: Path, code: int, bits: int, reason: str) -> None:
    with pytest.raises(ReadError, match=reason):
        read(_patched(tmp_path, datatype=code, bitpix=bits))


def test_the_display_that_the_file_asks_for(shared_data: Path, tmp_path: Path) -> None:
    image = read(shared_data / "mr/nifti/example4d.nii.gz")
    assert image.voi == Window(581, 1162, "LINEAR_EXACT")
    assert read(shared_data / "mr/nifti/anatomical.nii").voi is None
    for low, high in ((5, 5), (9, 3), (0, np.nan), (-np.inf, 3)):
        assert read(_patched(tmp_path, cal_min=low, cal_max=high)).voi is None


def test_five_dimensions_of_which_the_fifth_is_one(tmp_path: Path) -> None:
    data = np.arange(120, dtype=np.int16).reshape(2, 3, 4, 5, 1)
    nib.save(nib.Nifti1Image(data, np.diag([-1, -1, 1, 1])), tmp_path / "a.nii.gz")
    image = read(tmp_path / "a.nii.gz")
    assert (image.shape, image.volumes) == ((20, 3, 2), 5)
    np.testing.assert_array_equal(image.pixels[4:8], data[..., 1, 0].T)
