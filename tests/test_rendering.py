"""What is compared, against what DCMTK's dcm2pnm shows of the same file in the same window."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pydicom
import pytest
from numpy.typing import NDArray

from medqa.dicom.series import read_dicom
from medqa.errors import ReadError, UsageError
from medqa.image import Image, VoiLut, Window
from medqa.reader import read
from medqa.rendering import render, render_file, write_png
from medqa.thresholds import choose, load
from medqa.transforms import Display, displays, window_display

_JPEG = [f"1.2.840.10008.1.2.4.{last}" for last in (50, 51, 53, 55, 57, 70)]
_JPEG_LS = [f"1.2.840.10008.1.2.4.{last}" for last in (80, 81)]

#: Files that DCMTK 3.6.7 does not show, and why.
_NOT_SHOWN = {
    "JPEG 2000, HTJ2K and JPEG XL: DCMTK has no decoder": [
        f"1.2.840.10008.1.2.4.{last}" for last in (90, 91, 110, 201, 203)
    ],
    "floating point pixel data: DCMTK has none": [
        "ts/parametric_map/parametric_map_double_float.dcm",
        "ts/parametric_map/parametric_map_float.dcm",
    ],
    "DCMTK waits for more of a JPEG that has its end marker": ["ts/sc/SC_rgb_jpeg.dcm"],
    "DCMTK calls a tag behind the pixels invalid": ["us/GH364.dcm"],
    "DCMTK refuses a palette with a wrong length": ["us/gdcm-US-ALOKA-16.dcm"],
}

#: Two frames that medqa sorts upwards; of these DCMTK's second is not the second slice.
_SECOND_FRAME_FIRST = (
    "ct/misc/eCT_Supplemental.dcm",
    "ts/ct_all_syntaxes/CT0012.fragmented_no_bot_jpeg_baseline.51.dcm",
)

#: Files that differ by two grey levels in more than 0.1 % of the pixels: least share within one
#: level, why, and what makes medqa's pixels those that DCMTK shows, where that can be shown.
_DIFFERENT: dict[str, tuple[float, str, Callable[[NDArray[Any]], NDArray[Any]] | None]] = {
    **{
        f"mr/philips_dti/00{number}.dcm": (
            0.99,
            "DCMTK cuts rescaled values (slope 1.082) to whole numbers before the window",
            np.floor,
        )
        for number in (17, 18, 19, 20, 22, 23, 24, 25, 26)
    },
    "ts/sc/SC_ybr_full_422_uncompressed.dcm": (
        0.97,
        "DCMTK cuts colours to whole numbers twice: from YCbCr to RGB, and to luminance",
        None,
    ),
}


def program(name: str) -> str:
    """Path of a Debian program that is an oracle here."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} (Debian package dcmtk) is not installed"
        if os.environ.get("MEDQA_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def header(path: Path) -> pydicom.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sloppy headers
        return pydicom.dcmread(path, force=True, stop_before_pixels=True)


def first_window(image: Image) -> Window:
    """Return the file's own window, else one that shows most of the middle slice."""
    if isinstance(image.voi, Window):
        return image.voi
    low, high = np.percentile(image.pixels[len(image.pixels) // 2], [1, 99])
    return Window(round((low + high) / 2), max(2, round(high - low)))


def shown(image: Image, ds: pydicom.Dataset) -> tuple[Display, list[str]]:
    """Return a display, and what makes dcm2pnm show the same."""
    if ds.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        return window_display("colour", Window(127.5, 255, "LINEAR_EXACT")), ["+G"]
    if isinstance(image.voi, VoiLut):
        return displays(load("default"), image)[0], ["+Wl", "1"]
    window = first_window(image)
    centre = window.centre
    if ds.PhotometricInterpretation == "MONOCHROME1":  # dcm2pnm turns round after the window
        assert image.value_range is not None
        centre = sum(image.value_range) - centre + (window.function == "LINEAR")
    function = "+Wfs" if window.function == "SIGMOID" else "+Wfl"
    return window_display("x", window), ["+Ww", str(centre), str(window.width), function]


def dcmtk(path: Path, frame: int, options: list[str], out: Path) -> NDArray[np.int64] | None:
    """Show a frame, counted from 0, with DCMTK; None where it cannot."""
    syntax = header(path).file_meta.get("TransferSyntaxUID")
    name = "dcmj2pnm" if syntax in _JPEG else "dcml2pnm" if syntax in _JPEG_LS else "dcm2pnm"
    command = [program(name), "--no-overlays", "+F", str(frame + 1), *options, str(path), str(out)]
    out.unlink(missing_ok=True)
    subprocess.run(command, capture_output=True, check=False)  # noqa: S603
    return np.asarray(PIL.Image.open(out)).astype(np.int64) if out.exists() else None


def within_one(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Share of the pixels that are at most one grey level apart."""
    assert one.shape == other.shape
    return float((np.abs(one.astype(np.int64) - other) <= 1).mean())


def images(root: Path) -> list[tuple[Path, Image]]:
    """Every DICOM image of one file; of the twenty slices of one series, the first."""
    found = []
    for path in sorted(root.rglob("*")):
        later = path.name.startswith("CT.") and not path.name.endswith("16573")
        if not path.is_file() or later or path.suffix in (".png", ".jpg", ".gz", ".ts", ".nrrd"):
            continue
        try:
            found.append((path, read_dicom([path], str(path))))
        except ReadError:
            continue
    return found


def test_every_image_looks_as_dcmtk_shows_it(shared_data: Path, tmp_path: Path) -> None:
    program("dcm2pnm")
    refused = {one for listed in _NOT_SHOWN.values() for one in listed}
    compared, wrong = 0, []
    for path, image in images(shared_data):
        name, ds = str(path.relative_to(shared_data)), header(path)
        index = len(image.pixels) // 2
        frame = 0 if name in _SECOND_FRAME_FIRST else index
        display, options = shown(image, ds)
        expected = dcmtk(path, frame, options, tmp_path / "shown.pnm")
        if expected is None:
            if not refused & {name, str(image.transfer_syntax)}:
                wrong.append(f"{name}: DCMTK cannot show it")
            continue
        compared += 1
        least, _, cut = _DIFFERENT.get(name, (0.999, "", None))
        share = within_one(render(image, index, display), expected)
        if share < least or (share >= 0.999) != (name not in _DIFFERENT):
            wrong.append(f"{name}: {share:.5f} within one grey level")
        if cut is not None:
            as_dcmtk = dataclasses.replace(image, pixels=cut(np.asarray(image.pixels)))
            assert within_one(render(as_dcmtk, index, display), expected) >= 0.999
    assert not wrong
    assert compared >= 150


@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), (40.5, 1), (1000.25, 77.5), (-600, 2)])
def test_windows_of_any_width_look_as_dcmtk_shows_them(
    shared_data: Path, tmp_path: Path, function: Any, centre: float, width: float
) -> None:
    path = shared_data / "ct/misc/CT_small.dcm"
    image = read(path)
    mine = render(image, 0, window_display("x", Window(centre, width, function)))
    options = ["+Ww", str(centre), str(width), "+Wfs" if function == "SIGMOID" else "+Wfl"]
    expected = dcmtk(path, 0, options, tmp_path / "x.pgm")
    assert expected is not None
    assert within_one(mine, expected) >= 0.999


def test_only_padding_of_the_file_is_shown_otherwise(shared_data: Path) -> None:
    image = read(shared_data / "ct/head_series_GE/05.dcm")
    window = window_display("x", Window(-2000, 4000))  # in which padding is not black
    plain = dataclasses.replace(image, padding=None)
    with_padding, without = render(image, 0, window), render(plain, 0, window)
    padded = image.is_padding(np.asarray(image.pixels), slice(0, 1))
    assert padded is not None
    np.testing.assert_array_equal(with_padding[~padded[0]], without[~padded[0]])
    assert (with_padding[padded[0]] == with_padding[~padded[0]].min()).all()


def test_a_slice_that_is_not_there(shared_data: Path) -> None:
    image = read(shared_data / "ct/misc/CT_small.dcm")
    for index in (1, -1):
        with pytest.raises(UsageError, match="from 0 to 0"):
            render(image, index, window_display("x", Window(0, 1)))


# Files -------------------------------------------------------------------------------------------


def written(path: Path, tmp_path: Path, frame: int | None, window: str | None) -> NDArray[Any]:
    out = tmp_path / "out.png"
    render_file(path, frame, window, out)
    assert [one.name for one in tmp_path.iterdir() if one.suffix == ".png"] == ["out.png"]
    return np.asarray(PIL.Image.open(out))


def test_each_way_to_name_a_window(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "ct/misc/J2K_pixelrep_mismatch.dcm"  # 40/100, 40/100 and 40/200
    image = read(path)

    def by_hand(centre: float, width: float) -> NDArray[np.uint8]:
        return render(image, 0, window_display("x", Window(centre, width)))

    for window, expected in (
        ("file", by_hand(40, 100)),
        ("1", by_hand(40, 100)),
        ("3", by_hand(40, 200)),
        ("-600, 1500.5", by_hand(-600, 1500.5)),
    ):
        np.testing.assert_array_equal(written(path, tmp_path, None, window), expected)
    compared = displays(choose("CT", body_part=image.body_part), image)
    first = written(path, tmp_path, 0, None)
    np.testing.assert_array_equal(first, render(image, 0, compared[0]))
    named = written(path, tmp_path, 0, compared[-1].name)
    np.testing.assert_array_equal(named, render(image, 0, compared[-1]))


def test_a_voi_lut_by_number_and_the_middle_slice_by_default(
    shared_data: Path, tmp_path: Path
) -> None:
    path = shared_data / "xr/modality_lut/vlut_04.dcm"
    shown_by_file = written(path, tmp_path, None, "1")
    expected = dcmtk(path, 0, ["+Wl", "1"], tmp_path / "x.pgm")
    assert expected is not None
    assert within_one(shown_by_file, expected) == 1.0
    frames = shared_data / "mr/enhanced_multiframe/6_1.dcm"
    middle, third = (written(frames, tmp_path, frame, "file") for frame in (None, 3))
    np.testing.assert_array_equal(middle, third)


@pytest.mark.parametrize(
    ("window", "words"),
    [("4", "offers 3"), ("0", "offers 3"), ("40,0", "no width"), ("brian", "is no window")],
)
def test_windows_that_are_none(shared_data: Path, tmp_path: Path, window: str, words: str) -> None:
    path = shared_data / "ct/misc/J2K_pixelrep_mismatch.dcm"
    with pytest.raises(UsageError, match=words):
        render_file(path, None, window, tmp_path / "out.png")
    assert not list(tmp_path.glob("*.png"))


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    out = tmp_path / "picture.png"
    out.write_bytes(b"before")
    with pytest.raises(TypeError):
        write_png(out, pixels.astype(np.complex64))
    assert [one.read_bytes() for one in tmp_path.glob("*.png")] == [b"before"]
    write_png(out, pixels)
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(out)), pixels)
    with pytest.raises(UsageError, match="cannot be written"):
        write_png(out / "picture.png", pixels)
