"""Planes against closed forms in patient coordinates, SciPy's interpolation and nibabel's axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

import medqa
from medqa.errors import MismatchError, UsageError
from medqa.image import Identifiers, Image
from medqa.planes import PLANES, Plane, planes, reslice

ORIENTATIONS = ("AIL", "IRA", "LAS", "LPI", "LPS", "PIR", "RAS", "SPL")
EVERY: list[Plane] = ["axial", "coronal", "sagittal"]


def places(image: Image) -> NDArray[np.float64]:
    """(slices, rows, columns, 3) of every pixel, in mm."""
    assert image.affine is not None
    indices = np.moveaxis(np.indices(image.shape), 0, -1)
    return nib.affines.apply_affine(image.affine, indices)


def volume(spacing: tuple[float, float, float], shape: tuple[int, int, int] = (6, 20, 24)) -> Image:
    """Axial slices upwards, rows backwards, columns to the left, full of noise."""
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, -spacing[2]], [0, -spacing[1], 0], [spacing[0], 0, 0]]
    affine[:3, 3] = 30, 20, -10
    pixels = np.random.default_rng(1).integers(-1000, 1000, shape).astype(np.int16)
    return Image(pixels, spacing_mm=spacing, affine=affine)


@given(
    axes=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    tilt=st.floats(0, 30),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    plane=st.sampled_from(EVERY),
    stride=st.integers(1, 4),
)
@settings(max_examples=60)
def test_a_ramp_in_patient_coordinates_stays_that_ramp(
    axes: list[int],
    signs: tuple[int, ...],
    tilt: float,
    spacing: tuple[float, float, float],
    plane: Plane,
    stride: int,
) -> None:
    """Linear interpolation keeps a linear function: values and positions agree everywhere."""
    affine = np.eye(4)
    turned = Rotation.from_euler("xyz", [tilt, tilt / 2, -tilt / 3], degrees=True).as_matrix()
    affine[:3, :3] = turned @ np.eye(3)[:, axes] * signs * spacing
    affine[:3, 3] = 12, -34, 56
    slope = np.array([1.0, -2.0, 0.5])
    image = Image(np.zeros((4, 7, 9)), spacing_mm=spacing, affine=affine)
    image = replace(image, pixels=places(image) @ slope)
    cut = reslice(image, plane, stride)
    pixels = np.asarray(cut.pixels)
    np.testing.assert_allclose(pixels, places(cut) @ slope, atol=2e-4)
    # The whole side, from the first voxel to the last.
    whole, within = (places(one) @ turned for one in (image, cut))  # turned back
    in_plane = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[plane]
    for axis in in_plane:
        assert within[..., axis].min() == pytest.approx(whole[..., axis].min())
        assert within[..., axis].max() == pytest.approx(whole[..., axis].max())
    assert cut.spacing_mm is not None
    # Square to half a pixel over the side, and of the finer spacing of the plane's own axes.
    finest = min(spacing[axes.index(axis)] for axis in in_plane)
    for length, count in zip(cut.spacing_mm[1:], cut.shape[1:], strict=True):
        assert abs(length - finest) * (count - 1) <= finest / 2 + 1e-9


@pytest.mark.parametrize("plane", EVERY)
@pytest.mark.parametrize("name", ["example4d.nii.gz", "ct_perfusion.nii.gz", "anatomical.nii"])
def test_values_are_scipys_of_the_stored_array(shared_data: Path, name: str, plane: Plane) -> None:
    """Each pixel's place in the patient, looked up in the file as nibabel opens it."""
    path = shared_data / "mr" / "nifti" / name
    image = medqa.read(path)
    count = image.shape[0] // image.volumes
    image = replace(image, pixels=image.pixels[:count].astype(np.float32), volumes=1)
    stored = nib.load(path)
    # (x, y, z), from (slice, row, column) at the same places
    there = np.moveaxis(
        nib.affines.apply_affine(np.linalg.inv(stored.affine), places(image)), -1, 0
    )
    array = np.zeros(stored.shape[:3], np.float32)
    array[tuple(there.round().astype(int))] = image.pixels
    cut = reslice(image, plane, stride=5)
    sought = nib.affines.apply_affine(np.linalg.inv(stored.affine), places(cut))
    expected = map_coordinates(array, np.moveaxis(sought, -1, 0), order=1, mode="nearest")
    np.testing.assert_allclose(np.asarray(cut.pixels), expected, atol=2e-3 * array.max())


@pytest.mark.parametrize("plane", EVERY)
def test_eight_orientations_give_one_plane(shared_data: Path, plane: Plane) -> None:
    cuts = [
        reslice(medqa.read(shared_data / f"mr/nifti_orientations/{code}.nii.gz"), plane)
        for code in ORIENTATIONS
    ]
    assert len({np.asarray(cut.pixels).tobytes() for cut in cuts}) == 1
    for cut in cuts:
        assert "".join(nib.aff2axcodes(cut.affine)) == PLANES[plane]


def test_planes_lie_as_on_a_display(shared_data: Path) -> None:
    """The patient's left on the right, the head up, the face to the left."""
    assert PLANES == {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}
    path = shared_data / "ct/totalsegmentator_nifti/example_ct.nii.gz"
    stored = nib.load(path)
    assert nib.aff2axcodes(stored.affine) == ("R", "A", "S")
    array = np.asanyarray(stored.dataobj)
    image = medqa.read(path)
    x, y, z = 40, 30, 70
    for plane, index, expected in (
        ("axial", z, array[::-1, ::-1, z].T),
        ("coronal", -1 - y, array[::-1, y, ::-1].T),
        ("sagittal", -1 - x, array[x, ::-1, ::-1].T),
    ):
        np.testing.assert_array_equal(reslice(image, plane).pixels[index], expected)


def test_thick_slices_become_square_pixels() -> None:
    image = volume((5.0, 0.5, 0.5))
    coronal, sagittal = (reslice(image, plane) for plane in ("coronal", "sagittal"))
    # Five gaps of 5 mm, 0.5 mm a pixel.
    assert coronal.shape == (20, 51, 24)
    assert sagittal.shape == (24, 51, 20)
    assert coronal.spacing_mm == sagittal.spacing_mm == pytest.approx((0.5, 0.5, 0.5))
    lines = np.asarray(coronal.pixels)[7]  # head up: the last slice is the first row
    np.testing.assert_allclose(lines[::10], image.pixels[::-1, 7], rtol=1e-6)
    np.testing.assert_allclose(
        lines[13], 0.7 * image.pixels[4, 7] + 0.3 * image.pixels[3, 7], rtol=1e-4, atol=1e-2
    )


def test_what_needs_no_interpolation_is_a_view() -> None:
    image = volume((5.0, 0.5, 0.5))
    axial = reslice(image, "axial")
    assert np.shares_memory(axial.pixels, image.pixels)
    np.testing.assert_array_equal(axial.pixels, image.pixels)
    np.testing.assert_allclose(axial.affine, image.affine)
    assert axial.spacing_mm == image.spacing_mm
    isotropic = volume((0.5, 0.5, 0.5))
    for plane in EVERY:
        cut = reslice(isotropic, plane, stride=2)
        assert np.shares_memory(cut.pixels, isotropic.pixels)
        assert cut.pixels.dtype == np.int16


def test_a_stride_takes_every_nth_slice() -> None:
    image = volume((5.0, 0.5, 0.75))
    for plane in EVERY:
        whole, some = reslice(image, plane), reslice(image, plane, stride=4)
        np.testing.assert_array_equal(some.pixels, np.asarray(whole.pixels)[::4])
        np.testing.assert_allclose(places(some), places(whole)[::4])
    alone = reslice(image, "axial", stride=100)
    assert alone.shape[0] == 1
    assert alone.spacing_mm is not None
    assert alone.spacing_mm[0] == 0.0


def test_slices_are_computed_when_asked_for() -> None:
    cut = reslice(volume((5.0, 0.5, 0.5)), "coronal")
    pixels = cut.pixels
    whole = np.asarray(pixels)
    assert whole.dtype == pixels.dtype == np.float32
    assert whole.shape == pixels.shape == cut.shape
    assert len(pixels) == 20
    for index in (0, -1, slice(3, 7), slice(None, None, -5), slice(4, 4)):
        np.testing.assert_array_equal(pixels[index], whole[index])
    np.testing.assert_array_equal(list(pixels), whole)
    assert np.asarray(pixels, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        np.asarray(pixels, copy=False)
    with pytest.raises(IndexError):
        pixels[20]


class Counted:
    """Slices that are decoded when they are asked for, and counted."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array, self.decoded = array, 0
        self.shape, self.dtype = array.shape, array.dtype

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: slice) -> NDArray[Any]:
        found = self.array[index].copy()
        self.decoded += len(found)
        return found

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter(self[:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype)


def test_both_images_are_cut_alike_and_decoded_once() -> None:
    reference = volume((4.0, 1.0, 1.0))
    counted = Counted(reference.pixels + np.int16(7))
    candidate = replace(reference, pixels=counted, affine=None, spacing_mm=None, kind="nifti")
    found = planes(reference, candidate, stride=3)
    assert list(found) == list(PLANES)
    for plane, (one, other) in found.items():
        assert other.shape == one.shape
        assert other.kind == "nifti"
        np.testing.assert_array_equal(one.affine, other.affine)
        difference = np.asarray(other.pixels) - np.asarray(one.pixels)
        np.testing.assert_allclose(difference, 7, atol=1e-3)
        np.testing.assert_array_equal(one.pixels, np.asarray(reslice(reference, plane, 3).pixels))
    assert counted.decoded == len(counted)


def test_other_grids_are_refused() -> None:
    reference = volume((4.0, 1.0, 1.0))
    moved = np.array(reference.affine)
    moved[2, 3] += 2
    with pytest.raises(MismatchError, match="another grid"):
        planes(reference, replace(reference, affine=moved))
    with pytest.raises(MismatchError, match="another grid"):
        planes(reference, replace(reference, pixels=reference.pixels[1:]))


def test_a_spacing_alone_takes_the_slices_for_axial() -> None:
    known = volume((5.0, 0.5, 0.8))
    image = replace(known, affine=None)
    for plane in EVERY:
        one, other = reslice(known, plane), reslice(image, plane)
        np.testing.assert_array_equal(one.pixels, np.asarray(other.pixels))
        assert other.spacing_mm == pytest.approx(one.spacing_mm)
        assert other.affine is None


def test_slices_are_no_longer_the_stored_instances() -> None:
    image = replace(volume((1, 1, 1)), identifiers=Identifiers("A", "1", "2", ("3", "4")))
    assert reslice(image, "coronal").identifiers == Identifiers("A", "1", "2")
    assert image.identifiers.sop_uids == ("3", "4")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"volumes": 2}, "is a time series of 2 volumes, and planes cut one volume; give its"),
        ({"affine": None, "spacing_mm": None}, "the spacing of its voxels is unknown; give"),
        ({"affine": None, "spacing_mm": (0.0, 1.0, 1.0)}, "is unknown"),
        ({"affine": np.full((4, 4), np.nan)}, "is unknown"),
        ({"pixels": np.zeros((1, 20, 24))}, "is a single slice, which has no other planes; give"),
    ],
)
def test_what_is_no_volume_is_refused(changes: dict[str, Any], reason: str) -> None:
    image = replace(volume((4.0, 1.0, 1.0)), source="head.nii", **changes)
    with pytest.raises(MismatchError, match=r"^head") as caught:
        reslice(image, "axial")
    assert reason in str(caught.value)


def test_wrong_calls_are_refused() -> None:
    image = volume((4.0, 1.0, 1.0))
    with pytest.raises(UsageError, match="choose one of axial, coronal, sagittal"):
        reslice(image, "oblique")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="stride"):
        planes(image, image, stride=0)
