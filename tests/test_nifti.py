"""NIfTI reading against nibabel's own data and coordinates."""

import gzip
import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

import medqa.image
from medqa.errors import ReadError
from medqa.image import Image, Slices
from medqa.nifti import read_nifti
from medqa.reader import read

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
