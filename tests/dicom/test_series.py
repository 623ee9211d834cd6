"""DICOM reading against pydicom's own processing, real files and closed forms."""

import contextlib
import hashlib
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import medqa.image
from medqa.dicom.files import is_dicom, reading
from medqa.dicom.geometry import Plane, arrange, check_distances
from medqa.dicom.pixels import voi_explanations, voi_windows
from medqa.dicom.series import read_dicom, windows_of
from medqa.errors import ReadError
from medqa.image import Image, Slices, VoiLut, Window
from medqa.reader import read

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write pixels as a DICOM file; keyword arguments are its elements."""

    def written(pixels: NDArray[Any], name: str = "image.dcm", **elements: object) -> Path:
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[name])
        ds.SeriesInstanceUID = "1.2.3"
        ds.Modality = "OT"
        ds.Rows, ds.Columns = pixels.shape[-2:]
        if pixels.ndim == 3:
            ds.NumberOfFrames = len(pixels)
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.BitsAllocated = 8 * pixels.dtype.itemsize
        ds.BitsStored = ds.BitsAllocated
        ds.HighBit = ds.BitsAllocated - 1
        ds.PixelRepresentation = int(pixels.dtype.kind == "i")
        ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        ds["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
        for keyword, value in elements.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)
        path = tmp_path / name
        ds.save_as(path, enforce_file_format=True)
        return path

    return written


@pytest.fixture
def quiet() -> Iterator[None]:
    """Keep pydicom, when a test calls it as the oracle, from warning of sloppy headers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def series(folder: Path) -> Image:
    """Read all files of a folder as one series."""
    return read_dicom(sorted(folder.glob("*.dcm")), str(folder))


def lut(first: int, entries: list[int] | bytes, bits: int, count: int | None = None) -> Sequence:
    item = Dataset()
    descriptor = [len(entries) % 65536 if count is None else count, first, bits]
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", descriptor)
    item.add_new("LUTData", "OW" if isinstance(entries, bytes) else "US", entries)
    return Sequence([item])


def display(image: Image) -> NDArray[np.float64]:
    """Show an image as PS3.3 C.11.2.1 says, in [0, 1]: the formulas, written out once more."""
    x = image.pixels.astype(np.float64)
    if isinstance(image.voi, VoiLut):
        last = len(image.voi.table) - 1
        return image.voi.table[np.clip(x - image.voi.first, 0, last).astype(int)].astype(float)
    assert image.voi is not None
    c, w = image.voi.centre, image.voi.width
    if image.voi.function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (x - c) / w))
    if image.voi.function == "LINEAR_EXACT":
        return np.clip((x - c) / w + 0.5, 0, 1)
    return np.clip((x - (c - 0.5)) / (w - 1) + 0.5, 0, 1)


# Whole corpus ------------------------------------------------------------------------------------


def dicom_files(root: Path) -> list[Path]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return [path for path in files if is_dicom(path.read_bytes()[:132])]


@pytest.mark.usefixtures("quiet")
def test_every_real_file_is_an_image_equal_to_pydicoms_or_a_read_error(shared_data: Path) -> None:
    wrong, compared = [], 0
    for path in dicom_files(shared_data):
        try:
            image = read(path)
        except ReadError:
            continue
        ds = pydicom.dcmread(path, force=True)
        if "TransferSyntaxUID" not in ds.file_meta:
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if ds.PhotometricInterpretation != "MONOCHROME2" or "SharedFunctionalGroupsSequence" in ds:
            continue
        try:
            stored = ds.pixel_array.reshape(image.shape)
        except (NotImplementedError, RuntimeError):  # 12-bit JPEG, JPEG XL: pydicom cannot
            continue
        expected = apply_modality_lut(stored, ds)
        compared += 1
        if not np.array_equal(image.pixels, expected.astype(image.pixels.dtype)):
            wrong.append(path)
    assert not wrong
    assert compared > 100


@pytest.mark.parametrize(
    "patterns",
    [
        ["mr/transfer_syntax_set/*.dcm"],
        ["mr/misc/MR_small*.dcm"],
        ["mr/enhanced_multiframe/emri_small*.dcm"],
        [
            f"ts/ct_all_syntaxes/CTImage.dcm{syntax}"
            for syntax in ("", "_Little*.dcm", "_Big*.dcm", "_JPEGProcess14*.dcm")
        ],
    ],
)
def test_one_image_in_lossless_transfer_syntaxes_is_one_image(
    shared_data: Path, patterns: list[str]
) -> None:
    images = [read(path) for pattern in patterns for path in shared_data.glob(pattern)]
    assert len({image.transfer_syntax for image in images}) >= 4
    assert len({image.pixels_sha256 for image in images}) == 1


def test_a_lossy_file_equals_what_another_toolkit_decoded_from_it(shared_data: Path) -> None:
    lossy, plain = (read(shared_data / f"ct/misc/693_{n}.dcm") for n in ("J2KI", "UNCI"))
    np.testing.assert_array_equal(lossy.pixels, plain.pixels)


# Modality values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2, 3), (0.1, -7.25), (-1, 0)])
def test_rescale_equals_pydicoms_to_float32(
    write: Write, dtype: type, slope: float, intercept: float
) -> None:
    info = np.iinfo(dtype)
    stored = np.linspace(info.min, info.max, 30 * 20).astype(dtype).reshape(30, 20)
    path = write(stored, RescaleSlope=slope, RescaleIntercept=intercept)
    image = read(path)
    ds = pydicom.dcmread(path)
    exact = apply_modality_lut(stored, ds)
    assert image.pixels.dtype in (np.int16, np.float32)
    np.testing.assert_array_equal(image.pixels[0], exact.astype(np.float32))
    assert image.value_range == (exact.min(), exact.max())


def test_integers_that_fit_stay_int16(write: Write) -> None:
    stored = np.array([[0, 4095], [7, 8]], np.uint16)
    image = read(write(stored, BitsStored=12, HighBit=11, RescaleSlope=1, RescaleIntercept=-1024))
    assert image.pixels.dtype == np.int16
    assert image.value_range == (-1024.0, 3071.0)  # of 12 bits, not of what occurs


def test_large_integers_are_exact_in_float32(write: Write) -> None:
    stored = np.array([[0, 65535], [65534, 32768]], np.uint16)
    image = read(write(stored))
    assert image.pixels.dtype == np.float32
    np.testing.assert_array_equal(image.pixels[0], stored.astype(np.float64))


def test_a_slope_too_large_for_integers_does_not_wrap(write: Write) -> None:
    image = read(write(np.array([[1, 60000]], np.uint16), RescaleSlope="1e16", RescaleIntercept=0))
    np.testing.assert_allclose(image.pixels[0, 0], [1e16, 6e20])


def test_modality_lut_of_real_files_equals_pydicoms(shared_data: Path) -> None:
    path = shared_data / "xr/modality_lut/mlut_18.dcm"
    ds = pydicom.dcmread(path)
    image = read(path)
    np.testing.assert_array_equal(image.pixels[0], apply_modality_lut(ds.pixel_array, ds))
    path = shared_data / "xr/modality_lut/CR-ModalitySequenceLUT.dcm"  # MONOCHROME1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its UIDs are not valid
        ds = pydicom.dcmread(path)
        expected = apply_modality_lut(ds.pixel_array, ds)
    np.testing.assert_array_equal(read(path).pixels[0], 1023 - expected.astype(int))


def test_modality_lut_clamps_at_both_ends_and_reads_a_mistyped_sign(write: Write) -> None:
    stored = np.array([[-5, -2, -1, 0, 1, 9]], np.int16)
    table = [100, 90, 70, 40]
    for first in (-2, 65536 - 2):
        modality = lut(first, table, 16)
        modality[0].ModalityLUTType = "OD"
        image = read(write(stored, ModalityLUTSequence=modality))
        np.testing.assert_array_equal(image.pixels[0], [[100, 100, 90, 70, 40, 40]])
        assert (image.unit, image.value_range) == ("OD", (40.0, 100.0))


def test_a_lut_of_zero_entries_has_65536(write: Write) -> None:
    table = np.arange(65536)[::-1]
    stored = np.array([[0, 1, 40000, 65535]], np.uint16)
    modality = lut(0, table.astype("<u2").tobytes(), 16, count=0)
    image = read(write(stored, ModalityLUTSequence=modality))
    np.testing.assert_array_equal(image.pixels[0, 0], table[stored[0]])


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("ct/misc/CT_small.dcm", "HU"),  # a CT with rescale and no Rescale Type
        ("ct/misc/eCT_Supplemental.dcm", "HU"),
        ("pt/GH184.dcm", "BQML"),
        ("pt/GH610.dcm", "PROPCPS"),
        ("mr/misc/MR_small.dcm", "arbitrary"),
        ("mr/philips_dti/0016.dcm", "normalized"),
        ("us/US1_UNCR.dcm", "arbitrary"),
    ],
)
def test_unit(shared_data: Path, name: str, unit: str) -> None:
    assert read(shared_data / name).unit == unit


def test_floating_point_pixel_data(shared_data: Path) -> None:
    for name in ("float", "double_float"):
        path = shared_data / f"ts/parametric_map/parametric_map_{name}.dcm"
        image = read(path)
        expected = pydicom.dcmread(path).pixel_array.astype(np.float32)
        np.testing.assert_array_equal(image.pixels[0], expected)
        assert image.value_range is None


# Padding -----------------------------------------------------------------------------------------


def test_padding_keeps_its_value_and_is_known(write: Write) -> None:
    stored = np.array([[-2000, -1900, -1500, 5, 40]], np.int16)
    one = read(write(stored, PixelPaddingValue=-2000))
    np.testing.assert_array_equal(one.pixels[0], stored)
    assert one.padding is not None
    assert one.padding.tolist() == [[-2000, -2000]]
    several = read(write(stored, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1500))
    inside = several.is_padding(np.asarray(several.pixels), slice(0, 1))
    np.testing.assert_array_equal(inside, [[[True, True, True, False, False]]])
    assert read(write(stored)).padding is None


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("limit", [None, 203, 211])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (-2, 7), (0.1, -7.3), (1e5, 0.7)])
def test_padding_is_exactly_the_pixels_that_were_stored_as_padding(
    write: Write, photometric: str, limit: int | None, slope: float, intercept: float
) -> None:
    stored = np.arange(400, dtype=np.uint16).reshape(1, 20, 20)
    elements = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    elements |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
    path = write(
        stored[0],
        PixelPaddingValue=207,
        PhotometricInterpretation=photometric,
        BitsStored=12,
        HighBit=11,
        **elements,
    )
    image = read(path)
    low, high = sorted((207, 207 if limit is None else limit))
    inside = image.is_padding(np.asarray(image.pixels), slice(0, 1))
    np.testing.assert_array_equal(inside, (stored >= low) & (stored <= high))


def test_padding_written_with_the_other_sign(shared_data: Path, tmp_path: Path) -> None:
    ds = pydicom.dcmread(shared_data / "ct/liver_3slice_with_SEG/01.dcm")
    assert ds.PixelRepresentation == 1
    assert ds.PixelPaddingValue == -2000
    assert (ds.pixel_array == -2000).any()
    ds["PixelPaddingValue"] = pydicom.DataElement(0x00280120, "US", 65536 - 2000)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(tmp_path / "us.dcm", implicit_vr=False)
    image = read(tmp_path / "us.dcm")
    assert image.padding is not None
    assert image.padding.tolist() == [[-2000 - 1024, -2000 - 1024]]
    inside = image.is_padding(np.asarray(image.pixels), slice(0, 1))
    np.testing.assert_array_equal(inside, [ds.pixel_array == -2000])


def test_padding_behind_a_modality_lut_is_known_where_nothing_else_is_mapped_to_it(
    write: Write,
) -> None:
    stored = np.array([[0, 1, 2, 3]], np.uint8)
    for table, padding in (([500, 10, 20, 30], [[500, 500]]), ([20, 10, 20, 30], None)):
        path = write(stored, PixelPaddingValue=0, ModalityLUTSequence=lut(0, table, 16))
        found = read(path).padding
        assert (None if found is None else found.tolist()) == padding


def test_padding_that_the_stored_bits_cannot_hold_is_none(write: Write) -> None:
    stored = np.array([[0, 1, 2096, 4095]], np.uint16)
    image = read(write(stored, BitsStored=12, HighBit=11, PixelPaddingValue=63536))
    assert image.padding is None


def test_slices_of_a_series_have_their_own_padding(write: Write) -> None:
    place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}
    paths = [
        write(
            np.array([[0, 7, 9]], np.int16),
            f"{z}.dcm",
            ImagePositionPatient=[0, 0, z],
            **place,
            **elements,
        )
        for z, elements in enumerate([{}, {"PixelPaddingValue": 7}, {"PixelPaddingValue": 9}])
    ]
    padding = read_dicom(paths, "series").padding
    np.testing.assert_array_equal(padding, [[np.nan, np.nan], [7, 7], [9, 9]])


def test_padding_of_real_mammography_is_its_background(shared_data: Path) -> None:
    image = read(shared_data / "mg/GH133.dcm")
    assert image.padding is not None
    assert image.padding.tolist() == [[0, 30]]
    stored = pydicom.dcmread(shared_data / "mg/GH133.dcm").pixel_array
    inside = image.is_padding(np.asarray(image.pixels), slice(0, 1))
    np.testing.assert_array_equal(inside, [stored <= 30])


# Pixel cells -------------------------------------------------------------------------------------


def test_overlays_and_garbage_above_bits_stored_are_left_out(write: Write) -> None:
    values = np.array([[0, 1, 2047, 4095]], np.uint16)
    image = read(write(values | 0xA000, BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(image.pixels[0], values)
    signed = np.array([[-2048, -1, 0, 2047]], np.int16)
    garbage = (signed & 0x0FFF) | 0x5000
    image = read(write(garbage.astype(np.int16), BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(image.pixels[0], signed)


def test_samples_that_do_not_start_at_bit_0(write: Write) -> None:
    signed = np.array([[-2048, -1, 0, 2047]], np.int16)
    for high, below in ((15, 0xF), (13, 0x3)):
        cells = (signed << (high - 11)) | below
        image = read(write(cells.astype(np.int16), BitsStored=12, HighBit=high))
        np.testing.assert_array_equal(image.pixels[0], signed)
    with pytest.raises(ReadError, match="High Bit 10 with 12 Bits Stored"):
        read(write(signed, BitsStored=12, HighBit=10))


def test_planar_configuration_does_not_matter(write: Write) -> None:
    rgb = np.random.default_rng(5).integers(0, 256, (6, 4, 3)).astype(np.uint8)
    colours = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "Rows": 6, "Columns": 4}
    by_pixel = read(write(rgb, **colours, PlanarConfiguration=0, NumberOfFrames=1))
    planes_first = np.ascontiguousarray(np.moveaxis(rgb, 2, 0))
    by_plane = read(write(planes_first, **colours, PlanarConfiguration=1, NumberOfFrames=1))
    np.testing.assert_allclose(by_pixel.pixels[0], rgb @ [0.299, 0.587, 0.114], rtol=1e-6)
    np.testing.assert_array_equal(by_pixel.pixels, by_plane.pixels)


def test_a_supplemental_palette_leaves_the_gray_values(shared_data: Path) -> None:
    path = shared_data / "ct/misc/eCT_Supplemental.dcm"
    assert "RedPaletteColorLookupTableDescriptor" in pydicom.dcmread(path)
    assert read(path).unit == "HU"


@pytest.mark.parametrize(
    ("photometric", "shape", "refused"),
    [
        ("MONOCHROME1", "INVERSE", False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_polarity_is_said_once_or_twice_but_not_both_ways(
    write: Write, photometric: str, shape: str, refused: bool
) -> None:
    stored = np.array([[0, 255]], np.uint8)
    path = write(stored, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    if refused:
        with pytest.raises(ReadError, match="contradict"):
            read(path)
    else:
        expected = stored if photometric == "MONOCHROME2" else 255 - stored
        np.testing.assert_array_equal(read(path).pixels[0], expected)


def test_a_presentation_lut_is_refused(write: Write) -> None:
    with pytest.raises(ReadError, match="Presentation LUT"):
        read(write(np.zeros((2, 2), np.uint8), PresentationLUTSequence=lut(0, [0, 1], 8)))


# Display -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (1, -1024), (0.5, 3.25)])
def test_monochrome1_and_its_twin_look_the_same(
    write: Write, function: str, slope: float, intercept: float
) -> None:
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    centre, width = 1000 * slope + intercept, 700 * slope
    elements = {"BitsStored": 12, "HighBit": 11, "VOILUTFunction": function}
    elements |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
    elements |= {"WindowCenter": centre, "WindowWidth": width}
    path = write(stored, PhotometricInterpretation="MONOCHROME1", **elements)
    ds = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds)
    low, high = (0 * slope + intercept, 4095 * slope + intercept)  # pydicom's output range
    expected = 1 - (shown - low) / (high - low)  # MONOCHROME1: the smallest value is white
    np.testing.assert_allclose(display(read(path))[0], expected, atol=1e-9)

    turned = write(4095 - stored, "twin.dcm", **elements | {"WindowCenter": 0, "WindowWidth": 1})
    np.testing.assert_array_equal(read(path).pixels, read(turned).pixels)


def test_monochrome1_voi_lut_is_reversed_and_inverted(write: Write) -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    entries = (np.linspace(0, 1, 100) ** 2 * 4095).round().astype(int).tolist()
    path = write(
        stored, PhotometricInterpretation="MONOCHROME1", VOILUTSequence=lut(60, entries, 12)
    )
    ds = pydicom.dcmread(path)
    expected = 1 - apply_voi_lut(ds.pixel_array, ds) / 4095
    np.testing.assert_allclose(display(read(path))[0], expected, atol=1e-6)


def test_real_pair_with_the_same_pixels_and_opposite_photometric(shared_data: Path) -> None:
    folder = shared_data / "xr/cxr_pair_mono1_mono2"
    turned = read(folder / "Fake_MONOHR1.dcm")
    plain = read(next(folder.glob("1.2.276*.dcm")))
    np.testing.assert_array_equal(turned.pixels, 255 - plain.pixels)
    assert turned.value_range == plain.value_range == (0.0, 255.0)


def test_voi_lut_of_real_files_shows_what_pydicom_shows(shared_data: Path) -> None:
    path = shared_data / "xr/modality_lut/vlut_04.dcm"
    ds = pydicom.dcmread(path)
    image = read(path)
    expected = apply_voi_lut(ds.pixel_array, ds) / 65535
    np.testing.assert_allclose(display(image)[0], expected, atol=1e-7)


def test_voi_lut_whose_entries_need_more_bits_than_stated(write: Write) -> None:
    path = write(np.array([[0, 1]], np.uint8), VOILUTSequence=lut(0, [0, 65535], 8))
    voi = read(path).voi
    assert isinstance(voi, VoiLut)
    np.testing.assert_array_equal(voi.table, [0.0, 1.0])


def test_voi_lut_with_packed_8_bit_entries(write: Write) -> None:
    packed = lut(0, bytes([0, 51, 255, 0]), 8, count=3)
    voi = read(write(np.array([[0, 1]], np.uint8), VOILUTSequence=packed)).voi
    assert isinstance(voi, VoiLut)
    np.testing.assert_allclose(voi.table, [0, 0.2, 1])


def test_the_first_window_is_taken_and_a_useless_one_is_not(
    shared_data: Path, write: Write
) -> None:
    path = shared_data / "ct/misc/J2K_pixelrep_mismatch.dcm"  # three windows
    assert read(path).voi == Window(40, 100)
    assert read(shared_data / "mg/GH133.dcm").voi == Window(2653, 900, "SIGMOID")
    flat = write(np.array([[0, 1]], np.uint8), WindowCenter=5, WindowWidth=0)
    assert read(flat).voi is None


def test_all_windows_with_their_names_and_the_luts_after_them(write: Write) -> None:
    path = write(
        np.zeros((2, 2), np.uint8),
        WindowCenter=[40, 300, 7],
        WindowWidth=[100, 1500, 0],
        WindowCenterWidthExplanation=["SOFT", "BONE", "NOTHING"],
        VOILUTSequence=lut(0, [0, 255], 8),
    )
    ds = pydicom.dcmread(path)
    windows = voi_windows(ds, 0)
    assert windows[:2] == (Window(40, 100), Window(300, 1500))
    assert isinstance(windows[2], VoiLut)
    assert voi_explanations(ds, 0) == ("SOFT", "BONE", "")
    assert len(voi_windows(pydicom.dcmread(write(np.zeros((2, 2), np.uint8))), 0)) == 0


def test_frames_have_their_own_windows(shared_data: Path, tmp_path: Path) -> None:
    ds = pydicom.dcmread(shared_data / "mr/enhanced_multiframe/6_1.dcm")
    for number, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        window = group.FrameVOILUTSequence[0]
        window.WindowCenter, window.WindowWidth = 100 + number, 50 + number
    groups = list(ds.PerFrameFunctionalGroupsSequence)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups[::-1])  # so that frames are sorted
    ds.PixelData = ds.pixel_array[::-1].tobytes()
    ds.save_as(tmp_path / "windows.dcm")
    for index in range(6):
        assert windows_of(tmp_path / "windows.dcm", index) == (Window(100 + index, 50 + index),)


# Colour ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["us/US1_UNCR.dcm", "ts/sc/SC_rgb_jpeg.dcm", "us/examples_ybr_color.dcm"]
)
@pytest.mark.usefixtures("quiet")
def test_colour_becomes_pillows_luminance(shared_data: Path, name: str) -> None:
    image = read(shared_data / name)
    ds = pydicom.dcmread(shared_data / name)
    colours = ds.pixel_array.reshape(*image.shape, 3)
    for pixels, one in zip(image.pixels, colours, strict=True):
        gray = np.asarray(PIL.Image.fromarray(one).convert("L"), np.float64)
        np.testing.assert_allclose(pixels, gray, atol=0.502)  # Pillow rounds to whole numbers
    assert image.value_range == (0.0, 255.0)
    assert image.pixels.dtype == np.float32


@pytest.mark.parametrize("name", ["us/examples_palette.dcm", "us/gdcm-US-ALOKA-16.dcm"])
@pytest.mark.usefixtures("quiet")
def test_palette_becomes_luminance_of_its_entries(shared_data: Path, name: str) -> None:
    ds = pydicom.dcmread(shared_data / name)
    rgb = apply_color_lut(ds.pixel_array, ds) / np.iinfo(np.uint16).max
    luma = 255 * (0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2])
    np.testing.assert_allclose(read(shared_data / name).pixels[0], luma, atol=1e-4)


def test_one_colour_picture_in_three_encodings(shared_data: Path) -> None:
    folder = shared_data / "ts/testpattern"
    plain = read(folder / "TestPattern_RGB.dcm")
    for name in ("JPEG-LS-Lossless", "JPEG-Lossless_RGB"):
        same = read(folder / f"TestPattern_{name}.dcm")
        np.testing.assert_array_equal(same.pixels, plain.pixels)


# Geometry ----------------------------------------------------------------------------------------


def test_a_series_has_the_grid_of_its_nifti_twin(shared_data: Path) -> None:
    series = read(shared_data / "ct/totalsegmentator_dicom")
    twin = read(shared_data / "ct/totalsegmentator_dicom/example_seg_dicom.nii.gz")
    assert series.shape == twin.shape == (20, 512, 512)
    np.testing.assert_allclose(series.affine, twin.affine, atol=1e-3)
    np.testing.assert_allclose(series.spacing_mm, (2.0, 0.9765625, 0.9765625))


def test_gantry_tilt_is_in_the_affine(shared_data: Path) -> None:
    image = read(shared_data / "ct/head_series_GE")
    headers = [
        pydicom.dcmread(path, stop_before_pixels=True)
        for path in sorted((shared_data / "ct/head_series_GE").glob("*.dcm"))
    ]
    assert image.affine is not None
    flip = np.array([-1, -1, 1])  # LPS to RAS
    for index in (0, 5, 11):  # the rows of each header against the affine, corner by corner
        h = headers[index]
        right, down = np.split(np.array(h.ImageOrientationPatient, float), 2)
        for row, column in ((0, 0), (511, 0), (0, 511)):
            place = np.array(h.ImagePositionPatient, float)
            place = place + down * row * h.PixelSpacing[0] + right * column * h.PixelSpacing[1]
            found = (image.affine @ (index, row, column, 1))[:3]
            np.testing.assert_allclose(found, place * flip, atol=1e-3)


def test_slices_are_sorted_by_position_not_by_name_or_number(write: Write) -> None:
    place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [2, 3]}
    for name, z, number in (("a.dcm", 30, 1), ("b.dcm", 10, 3), ("c.dcm", 20, 2)):
        path = write(
            np.full((4, 5), z, np.uint8),
            name,
            ImagePositionPatient=[7, 8, z],
            InstanceNumber=number,
            **place,
        )
    image = read(path.parent)
    assert image.pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert image.spacing_mm == (10, 2, 3)
    expected = [[0, 0, -3, -7], [0, -2, 0, -8], [10, 0, 0, 10], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, expected)


def test_without_positions_the_instance_number_decides(write: Write) -> None:
    for name, number in (("a.dcm", 10), ("b.dcm", 9), ("c.dcm", 2)):
        path = write(np.full((4, 5), number, np.uint8), name, InstanceNumber=number)
    image = series(path.parent)
    assert image.pixels[:, 0, 0].tolist() == [2, 9, 10]
    assert image.affine is None


def test_single_slice_has_an_invertible_affine_and_no_slice_spacing(shared_data: Path) -> None:
    image = read(shared_data / "ct/misc/CT_small.dcm")
    assert image.affine is not None
    assert image.spacing_mm == (0.0, 0.661468, 0.661468)
    np.testing.assert_allclose(np.linalg.norm(image.affine[:3, 0]), 5.0)  # its slice thickness
    np.testing.assert_allclose(image.affine[:3, 3], [158.135803, 179.035797, -75.699997])


def test_projection_has_the_detectors_spacing_and_no_position(shared_data: Path) -> None:
    image = read(shared_data / "mg/GH133.dcm")
    assert image.spacing_mm == (0.0, 0.09409090909091, 0.09409090909091)
    assert image.affine is None


def test_one_position_for_many_frames_places_none_of_them(write: Write) -> None:
    frames = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    place = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    image = read(write(frames, PixelSpacing=[2, 3], **place))
    np.testing.assert_array_equal(image.pixels, frames)
    assert (image.volumes, image.affine, image.spacing_mm) == (1, None, (0, 2, 3))


def test_enhanced_frames_are_sorted_by_position(shared_data: Path) -> None:
    path = shared_data / "ct/misc/eCT_Supplemental.dcm"
    ds = pydicom.dcmread(path)
    shared = ds.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    assert orientation == [-1, 0, 0, 0, 1, 0]  # the normal points down ...
    z = [
        f.PlanePositionSequence[0].ImagePositionPatient[2]
        for f in ds.PerFrameFunctionalGroupsSequence
    ]
    assert z == [-159, -149]  # ... so that the second frame is the first slice
    image = read(path)
    assert image.affine is not None
    line = shared.PixelValueTransformationSequence[0]
    expected = ds.pixel_array * float(line.RescaleSlope) + float(line.RescaleIntercept)
    np.testing.assert_array_equal(image.pixels, expected[::-1])
    assert image.affine[2, 3] == -149
    assert image.spacing_mm == (10.0, *map(float, shared.PixelMeasuresSequence[0].PixelSpacing))
    voi = shared.FrameVOILUTSequence[0]
    assert image.voi == Window(float(voi.WindowCenter), float(voi.WindowWidth))


def test_enhanced_frames_in_reverse_are_turned_round(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "mr/enhanced_multiframe/6_1.dcm"
    ds = pydicom.dcmread(path)
    ds.PixelData = ds.pixel_array[::-1].tobytes()
    ds.PerFrameFunctionalGroupsSequence = Sequence(list(ds.PerFrameFunctionalGroupsSequence)[::-1])
    ds.save_as(tmp_path / "reversed.dcm")
    turned, plain = read(tmp_path / "reversed.dcm"), read(path)
    np.testing.assert_array_equal(turned.pixels, plain.pixels)
    np.testing.assert_array_equal(turned.affine, plain.affine)
    assert plain.spacing_mm == pytest.approx((2.4, 3.375, 3.375), abs=1e-4)


def test_enhanced_frames_have_their_own_rescale(shared_data: Path, tmp_path: Path) -> None:
    ds = pydicom.dcmread(shared_data / "mr/enhanced_multiframe/6_1.dcm")
    lines = [(1, 0), (2, 5), (0.5, -3), (3, 0), (1, 1), (0.25, 0)]
    for group, line in zip(ds.PerFrameFunctionalGroupsSequence, lines, strict=True):
        item = group.PixelValueTransformationSequence[0]
        item.RescaleSlope, item.RescaleIntercept = line
    ds.save_as(tmp_path / "lines.dcm")
    image = read(tmp_path / "lines.dcm")
    for pixels, stored, (slope, intercept) in zip(image.pixels, ds.pixel_array, lines, strict=True):
        np.testing.assert_array_equal(pixels, stored * slope + intercept)
    assert image.value_range == (-3, 3 * 4095)


def test_enhanced_time_series(shared_data: Path, tmp_path: Path) -> None:
    ds = pydicom.dcmread(shared_data / "mr/enhanced_multiframe/6_1.dcm")
    groups = ds.PerFrameFunctionalGroupsSequence
    for frame, group in enumerate(groups):  # two volumes of three slices, the later one first
        place = groups[frame % 3].PlanePositionSequence[0].ImagePositionPatient
        group.PlanePositionSequence[0].ImagePositionPatient = list(place)
        group.FrameContentSequence[0].TemporalPositionIndex = 2 - frame // 3
    ds.save_as(tmp_path / "series.dcm")
    image = read(tmp_path / "series.dcm")
    assert image.volumes == 2
    np.testing.assert_array_equal(image.pixels, ds.pixel_array[[3, 4, 5, 0, 1, 2]])
    assert image.spacing_mm == pytest.approx((2.4, 3.375, 3.375), abs=1e-4)


def test_real_time_series_has_one_volume_for_each_instance(shared_data: Path) -> None:
    image = read(shared_data / "mr/philips_dti")
    assert (image.volumes, image.shape) == (12, (12, 80, 80))
    files = sorted((shared_data / "mr/philips_dti").glob("*.dcm"))
    for index, path in enumerate(files):
        np.testing.assert_array_equal(image.pixels[index], read(path).pixels[0])
    assert image.identifiers.sop_uids == tuple(
        str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files
    )


def planes(*z: float) -> list[Plane]:
    axes = np.array([[0.0, 1], [1, 0], [0, 0]])
    return [Plane(np.array([0, 0, one]), axes, (1.0, 1.0)) for one in z]


def test_time_series_numbered_slice_by_slice_or_volume_by_volume() -> None:
    by_slice = arrange(planes(0, 0, 5, 5), [(0, n, "", 0) for n in (1, 2, 3, 4)], "x")
    by_volume = arrange(planes(0, 5, 0, 5), [(0, n, "", 0) for n in (1, 2, 3, 4)], "x")
    by_temporal_position = arrange(planes(0, 5, 0, 5), [(t, 0, "", 0) for t in (2, 2, 1, 1)], "x")
    assert by_slice == ([0, 2, 1, 3], 2)
    assert by_volume == ([0, 1, 2, 3], 2)
    assert by_temporal_position == ([2, 3, 0, 1], 2)


def test_incomplete_time_series_is_refused() -> None:
    with pytest.raises(ReadError, match="3 slices at 2 positions"):
        arrange(planes(0, 0, 5), [(0, n, "", 0) for n in (1, 2, 3)], "x")


def test_gaps_uneven_and_shifted_slices_are_refused_with_the_place() -> None:
    check_distances(planes(0, 5, 10, 15.2), "x")  # half a millimetre in five is no gap
    cases = {
        (0, 5, 10, 20, 25): r"1 of 6 slices is missing.*between 10.00 and 20.00 mm",
        (0, 5, 20, 25, 30, 40): r"3 of 9 slices are missing.*between 5.00 and 20.00 mm",
        (0, 5, 10, 17, 24, 31): r"5.00 to 7.00 mm apart.*between 10.00 and 17.00 mm",
    }
    for places, words in cases.items():
        with pytest.raises(ReadError, match=words):
            check_distances(planes(*places), "x")
    shifted = planes(0, 5, 10)
    shifted[1] = replace(shifted[1], position=np.array([0.0, 0.4, 5.0]))
    with pytest.raises(ReadError, match=r"slice at 5.00 mm is shifted sideways by 0.40 mm"):
        check_distances(shifted, "x")


def test_a_real_series_without_a_slice_or_with_one_twice_is_refused(
    shared_data: Path, tmp_path: Path
) -> None:
    files = sorted((shared_data / "ct/small_series_torchio").glob("*.dcm"))
    with pytest.raises(ReadError, match="1 of 17 slices is missing"):
        read_dicom(files[:5] + files[6:], "series")
    twin = pydicom.dcmread(files[3])
    twin.SOPInstanceUID = "1.2.3"
    twin.save_as(tmp_path / "twin.dcm")
    with pytest.raises(ReadError, match=r"18 slices at 17 positions.* 2 at"):
        read_dicom([*files, tmp_path / "twin.dcm"], "series")


def test_localisers_in_a_series_are_counted(shared_data: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "ct/small_series_torchio").glob("*.dcm"))
    scout = pydicom.dcmread(files[0])
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    scout.SOPInstanceUID = "1.2.3"
    scout.save_as(tmp_path / "scout.dcm")
    with pytest.raises(ReadError, match=r"2 different orientations \(17 and 1 slices\)"):
        read_dicom([*files, tmp_path / "scout.dcm"], "series")
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.save_as(tmp_path / "scout.dcm")
    with pytest.raises(ReadError, match="1 of 18 slices is not of the stack"):
        read_dicom([*files, tmp_path / "scout.dcm"], "series")


def test_frames_in_time_have_no_distance(write: Write, shared_data: Path) -> None:
    cine = np.zeros((3, 4, 5), np.uint8)
    sizes = {"PixelSpacing": [2, 3], "SliceThickness": 5, "SpacingBetweenSlices": 6}
    for pointer, apart in ((0x00181063, 0.0), (0x00540080, 6.0), (None, 6.0)):
        elements = {} if pointer is None else {"FrameIncrementPointer": pointer}
        assert read(write(cine, **sizes, **elements)).spacing_mm == (apart, 2, 3)
    xa = read(shared_data / "xa/jpeg_baseline_8bit.dcm")
    assert (xa.shape, xa.volumes, xa.spacing_mm, xa.affine) == ((96, 512, 512), 1, None, None)
    thick = write(cine, PixelSpacing=[2, 3], SliceThickness=5)
    assert read(thick).spacing_mm == (0.0, 2, 3)


def test_spacing_of_an_ultrasound_is_that_of_its_regions(shared_data: Path, write: Write) -> None:
    image = read(shared_data / "us/examples_ybr_color.dcm")
    assert image.spacing_mm == pytest.approx((0.0, 0.5104970559, 0.5104970559))
    regions = []
    for size in (0.05, 0.06):
        region = Dataset()
        region.RegionSpatialFormat = 1
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
        region.PhysicalDeltaX = region.PhysicalDeltaY = size
        regions.append(region)
    pixels = np.zeros((2, 2), np.uint8)
    one = write(pixels, SequenceOfUltrasoundRegions=Sequence(regions[:1]))
    assert read(one).spacing_mm == (0.0, 0.5, 0.5)
    both = write(pixels, SequenceOfUltrasoundRegions=Sequence(regions))
    assert read(both).spacing_mm is None


def test_where_the_pixel_size_is_taken_from(write: Write) -> None:
    pixels = np.zeros((2, 2), np.uint8)
    sizes = {
        "NominalScannedPixelSpacing": [3, 3],
        "ImagerPixelSpacing": [2, 2],
        "PixelSpacing": [1, 1],
    }
    given: dict[str, object] = {}
    assert read(write(pixels)).spacing_mm is None
    for keyword, (size, _) in sizes.items():
        given[keyword] = [size, size]
        assert read(write(pixels, **given)).spacing_mm == (0.0, size, size)


def test_files_that_make_no_stack_are_refused(write: Write) -> None:
    one = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    folder = write(np.zeros((4, 5), np.uint8), "a.dcm", **one).parent
    cases = {
        "different sizes": ((4, 6), one),
        "different orientations": (
            (4, 5),
            one | {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        ),
        "same instance": ((4, 5), {"SOPInstanceUID": generate_uid(entropy_srcs=["a.dcm"])}),
        "several multi-frame": ((2, 4, 5), {}),
    }
    for message, (shape, elements) in cases.items():
        write(np.zeros(shape, np.uint8), "b.dcm", **elements)
        with pytest.raises(ReadError, match=message):
            series(folder)


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rt/rtplan.dcm", "no pixel data (RT Plan Storage)"),
        ("sr/sr_document.dcm", "no pixel data (Comprehensive 3D SR Storage)"),
        ("seg/liver.dcm", "pass it with --mask"),
        ("seg/seg_image_sm_control_labelmap.dcm", "pass it with --mask"),
        ("rt/rtdose.dcm", "dose grid"),
        ("malformed/badVR.dcm", "dose grid"),
        ("malformed/MR_truncated.dcm", "fetch it again"),
    ],
)
def test_refusals_say_what_it_is_and_what_helps(shared_data: Path, name: str, words: str) -> None:
    with pytest.raises(ReadError) as caught:
        read(shared_data / name)
    assert caught.value.subject == str(shared_data / name)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "ct/misc/CT_small.dcm",
        "mr/misc/MR_small_jp2klossless.dcm",
        "mr/misc/MR_small_jpeg_ls_lossless.dcm",
        "mr/enhanced_multiframe/emri_small.dcm",
        "mr/enhanced_multiframe/emri_small_RLE.dcm",
        "ts/deflated/image_dfl.dcm",
        "nm/JPEG-LL.dcm",
        "us/examples_ybr_color.dcm",
    ],
)
def test_truncated_files_never_become_another_image(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    data = (shared_data / name).read_bytes()
    whole = read(shared_data / name)
    refused = 0
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.999):
        (tmp_path / "cut.dcm").write_bytes(data[: int(len(data) * share)])
        try:
            image = read(tmp_path / "cut.dcm")
        except ReadError:
            refused += 1
            continue
        np.testing.assert_array_equal(image.pixels, whole.pixels)  # cut behind the pixels
    assert refused >= 7


def test_compressed_files_cut_short_are_called_so(shared_data: Path, tmp_path: Path) -> None:
    data = (shared_data / "nm/JPEG-LL.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(data[:-1000])
    with pytest.raises(ReadError, match="End of file reached"):
        read(tmp_path / "cut.dcm")


@pytest.mark.parametrize("name", ["ts/sc/SC_rgb_jpeg_dcmtk.dcm", "ct/misc/CT_small.dcm"])
def test_damaged_files_neither_crash_nor_end_the_process(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    data = (shared_data / name).read_bytes()
    rng = np.random.default_rng(7)
    for _ in range(100):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 20):
            damaged[place] = rng.integers(256)
        (tmp_path / "damaged.dcm").write_bytes(damaged)
        with contextlib.suppress(ReadError):
            read(tmp_path / "damaged.dcm")


def test_a_jpeg_of_255_bits_is_a_read_error(shared_data: Path, tmp_path: Path) -> None:
    data = (shared_data / "ts/sc/SC_rgb_jpeg_dcmtk.dcm").read_bytes()
    frame_header, precision = b"\xff\xc0\x00\x11", b"\x08"  # ISO 10918-1 B.2.2
    assert frame_header + precision in data
    damaged = data.replace(frame_header + precision, frame_header + b"\xff")
    (tmp_path / "damaged.dcm").write_bytes(damaged)
    with pytest.raises(ReadError, match="damaged"):
        read(tmp_path / "damaged.dcm")


def test_an_element_that_claims_too_much_is_refused_before_decoding(write: Write) -> None:
    pixels = np.zeros((2, 2), np.uint16)
    with pytest.raises(ReadError, match="GiB"):
        read(write(pixels, Rows=60000, Columns=60000, NumberOfFrames=2**33 // 60000**2))
    with pytest.raises(ReadError, match="0 rows"):
        read(write(pixels, Rows=0))


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"PhotometricInterpretation": "HSV"}, "HSV is not supported"),
        ({"PhotometricInterpretation": None}, "missing is not supported"),
        ({"SamplesPerPixel": 3}, "MONOCHROME2 with 3 samples"),
        ({"NumberOfFrames": 3}, "damaged or truncated|cannot be decoded"),
        ({"BitsStored": 17}, "cannot"),
        ({"Rows": None}, "cannot be read"),
        ({"TotalPixelMatrixColumns": 5}, "whole-slide"),
        ({"VOILUTSequence": lut(0, [1, 2], 16, count=9)}, "2 of 9 entries"),
    ],
)
def test_wrong_headers_are_read_errors(
    write: Write, elements: dict[str, object], words: str
) -> None:
    with pytest.raises(ReadError, match=words):
        read(write(np.zeros((4, 4), np.uint16), **elements))


def test_a_sequence_nested_deeply_is_a_read_error(write: Write) -> None:
    path = write(np.zeros((4, 4), np.uint8))
    data = path.read_bytes()
    # (0008,1140) SQ of undefined length, holding an item of undefined length, 3000 deep.
    opening = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    start = data.index(b"\x08\x00\x60\x00CS")  # Modality: keep the tags in order
    path.write_bytes(data[:start] + opening * 3000 + data[start:])
    with pytest.raises(ReadError):
        read(path)


# Identity ----------------------------------------------------------------------------------------


def test_identifiers_and_digests_are_those_of_the_files(shared_data: Path) -> None:
    files = [shared_data / f"ct/liver_3slice_with_SEG/0{n}.dcm" for n in (3, 2, 1)]  # upwards
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert read(files[0]).file_sha256 == digests[0]
    series = read(files[0].parent)
    assert series.file_sha256 == hashlib.sha256("\n".join(digests).encode()).hexdigest()
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    who = series.identifiers
    assert who.sop_uids == tuple(str(h.SOPInstanceUID) for h in headers)
    assert who.patient_id == str(headers[0].PatientID)
    assert who.study_uid == str(headers[0].StudyInstanceUID)
    assert who.series_uid == str(headers[0].SeriesInstanceUID)
    assert who.frame_of_reference_uid == str(headers[0].FrameOfReferenceUID)
    assert (series.modality, series.kind) == ("CT", "dicom")


# Slices on demand --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "ct/liver_3slice_with_SEG",  # a series
        "ct/misc/CT_small.dcm",
        "mr/philips_dti",  # a time series in JPEG
        "mr/enhanced_multiframe/6_1.dcm",  # uncompressed frames
        "mr/enhanced_multiframe/emri_small.dcm",
        "mr/enhanced_multiframe/emri_small_RLE.dcm",
        "mr/enhanced_multiframe/emri_small_jpeg_ls_lossless.dcm",
        "ct/misc/eCT_Supplemental.dcm",
        "us/examples_ybr_color.dcm",
        "ts/deflated/image_dfl.dcm",
        "xr/modality_lut/mlut_18.dcm",
    ],
)
def test_slices_on_demand_are_the_array_that_would_be_kept(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kept = read(shared_data / name)
    monkeypatch.setattr(medqa.image, "KEPT_BYTES", 0)
    streamed = read(shared_data / name)
    assert isinstance(kept.pixels, np.ndarray)
    assert isinstance(streamed.pixels, Slices)
    assert streamed.survey == kept.survey
    np.testing.assert_array_equal(np.asarray(streamed.pixels), kept.pixels)
    for field in ("file_sha256", "value_range", "unit", "spacing_mm", "identifiers", "volumes"):
        assert getattr(streamed, field) == getattr(kept, field)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 3, 5)])  # frames of whole words, and not
def test_frames_of_an_uncompressed_file_equal_pydicoms(
    write: Write, shape: tuple[int, int, int], photometric: str
) -> None:
    for dtype in (np.uint8, np.uint16):
        stored = np.random.default_rng(9).integers(0, 255, shape).astype(dtype)
        path = write(stored, PhotometricInterpretation=photometric)
        expected = pydicom.dcmread(path).pixel_array.astype(np.float64)
        if photometric == "MONOCHROME1":
            expected = np.iinfo(dtype).max - expected
        image = read(path)
        np.testing.assert_array_equal(image.pixels, expected)
        assert image.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_changes_after_it_was_read_is_refused(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medqa.image, "KEPT_BYTES", 0)
    frames = write(np.arange(72, dtype=np.uint16).reshape(3, 4, 6), "frames.dcm")
    alone = read(frames)
    frames.unlink()
    for name in ("a.dcm", "b.dcm"):
        write(np.full((4, 6), ord(name[0]), np.uint16), name, InstanceNumber=ord(name[0]))
    several = series(frames.parent)
    assert np.asarray(several.pixels)[:, 0, 0].tolist() == [97, 98]
    write(np.arange(1, 73, dtype=np.uint16).reshape(3, 4, 6), "frames.dcm")
    # The same pixels under another header: another file all the same.
    write(np.full((4, 6), 98, np.uint16), "b.dcm", InstanceNumber=98, RescaleIntercept=1)
    for image, source in ((alone, frames), (several, frames.parent)):
        with pytest.raises(ReadError, match="changed while it was being compared") as caught:
            image.pixels[:]
        assert caught.value.subject == str(source)
    frames.unlink()
    with pytest.raises(ReadError, match="changed"):
        alone.pixels[0]


def test_a_damaged_slice_of_a_large_series_is_refused_when_it_is_read(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medqa.image, "KEPT_BYTES", 0)
    for number in (1, 2, 3):
        path = write(np.full((40, 60), number, np.uint16), f"{number}.dcm", InstanceNumber=number)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ReadError, match="damaged or truncated") as caught:
        series(path.parent)
    assert caught.value.subject == str(path)


def test_threads_that_read_at_once_leave_the_warning_filters_as_they_were() -> None:
    before = list(warnings.filters)
    first, second = reading("a"), reading("b")
    first.__enter__()
    inside = list(warnings.filters)
    second.__enter__()
    first.__exit__(None, None, None)
    assert warnings.filters == inside != before
    second.__exit__(None, None, None)
    assert warnings.filters == before


_MEASURE = """
import resource, sys
from pathlib import Path
import medqa.image
from medqa.dicom.series import read_dicom

medqa.image.KEPT_BYTES = 2**20
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
pixels = read_dicom(sorted(Path(sys.argv[1]).glob('*.dcm')), 'files').pixels
for start in range(0, len(pixels), 8):
    pixels[start : start + 8]
print(len(pixels), pixels.dtype, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
@pytest.mark.parametrize("slope", [1, 0.5])
@pytest.mark.parametrize("files", [200, 1])
def test_memory_does_not_grow_with_the_series(write: Write, files: int, slope: float) -> None:
    frame = np.random.default_rng(1).integers(0, 4000, (512, 512)).astype(np.int16)
    elements = {"RescaleSlope": slope, "RescaleIntercept": -1024}
    if files == 1:
        folder = write(np.broadcast_to(frame, (200, 512, 512)), **elements).parent
    else:
        for number in range(files):
            path = write(frame, f"{number:03}.dcm", InstanceNumber=number, **elements)
        folder = path.parent
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", _MEASURE, str(folder)], capture_output=True, text=True, check=True
    )
    slices, dtype, grown_mib = done.stdout.split()
    assert (int(slices), dtype) == (200, "int16" if slope == 1 else "float32")
    assert int(grown_mib) < 50  # the whole is 100 or 200 MiB
