"""Damaged files: each ends in an image or a `MedqaError`, soon, and never in a wrong image unseen.

What is wrong is this: a file that was cut short may give the image it held or an error, nothing
else. A changed byte may be a pixel, which no reader can know; it may not be anything but an image
or an error either, nor change how many pixels there are. docs/robustness.md has the counts.
"""

import json
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pydicom
import pytest
from hostile import EXPLICIT, dicom, element, header, native
from hypothesis import strategies
from pydicom.encaps import encapsulate, generate_frames

from medqa.errors import MedqaError, ReadError
from medqa.reader import read

NATIVE = (
    "ct/misc/CT_small.dcm",
    "mr/misc/MR_small.dcm",
    "mr/misc/MR_small_implicit.dcm",
    "mr/misc/MR_small_bigendian.dcm",
    "mr/misc/MR_small_padded.dcm",
    "ts/sc/SC_rgb_small_odd.dcm",
    "ts/sc/SC_rgb_small_odd_big_endian.dcm",
    "ts/sc/SC_ybr_full_422_uncompressed.dcm",
)
ENCODED = (
    "mr/misc/MR_small_RLE.dcm",
    "mr/misc/MR_small_jp2klossless.dcm",
    "mr/misc/MR_small_jpeg_ls_lossless.dcm",
    "mr/enhanced_multiframe/emri_small_jpeg_2k_lossless.dcm",
    "ts/sc/SC_rgb_jpeg_dcmtk.dcm",
    "ts/sc/SC_rgb_jpeg_gdcm.dcm",
    "ts/sc/SC_rgb_rle_2frame.dcm",
    "ts/sc/SC_rgb_small_odd_jpeg.dcm",
    "ts/sc/SC_rgb_jls_lossy_line.dcm",
)
SECONDS = 10  # for one file, on a busy machine; it takes milliseconds

few = hypothesis.settings(
    max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


def test_every_malformed_file_is_an_image_or_a_read_error(shared_data: Path) -> None:
    became, named = {}, False
    for path in sorted((shared_data / "malformed").iterdir()):
        started = time.perf_counter()
        try:
            image = read(path)
        except ReadError as error:
            became[path.name] = "an error"
            named = named or path.name in error.reason + error.mend
        else:
            assert np.isfinite(np.asarray(image.pixels)).all()
            became[path.name] = "an image"
        assert time.perf_counter() - started < SECONDS
    assert sorted(name for name, what in became.items() if what == "an image") == [
        "ELSCINT1_JP2vsJ2K.dcm",
        "JPEGLossless_1s_1f_i_16_16_bad.dcm",
        "OsirixFake16BitsStoredFakeSpacing.dcm",
        "TOSHIBA_J2K_SIZ0_PixRep1.dcm",
        "TOSHIBA_J2K_SIZ1_PixRep0.dcm",
    ]
    assert not named


@pytest.mark.parametrize("name", NATIVE)
@few
@hypothesis.given(where=strategies.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_short_is_whole_or_an_error(
    name: str, where: float, shared_data: Path, tmp_path: Path
) -> None:
    data = (shared_data / name).read_bytes()
    path = tmp_path / "image.dcm"
    path.write_bytes(data[: int(where * len(data))])
    try:
        image = read(path)
    except MedqaError:
        return
    assert image.pixels_sha256 == read(shared_data / name).pixels_sha256


@pytest.mark.parametrize("name", NATIVE)
@few
@hypothesis.given(where=strategies.floats(0, 1, exclude_max=True), flip=strategies.integers(1, 255))
def test_a_changed_byte_does_not_change_how_many_pixels_there_are(
    name: str, where: float, flip: int, shared_data: Path, tmp_path: Path
) -> None:
    data = bytearray((shared_data / name).read_bytes())
    data[int(where * len(data))] ^= flip
    path = tmp_path / "image.dcm"
    path.write_bytes(data)
    try:
        image = read(path)
    except MedqaError:
        return
    assert image.shape == read(shared_data / name).shape


@pytest.mark.parametrize("tag", ["Rows", "Columns", "BitsAllocated", "SamplesPerPixel"])
@pytest.mark.parametrize("name", ["ct/misc/CT_small.dcm", "mr/misc/MR_small_implicit.dcm"])
def test_no_value_of_the_size_but_its_own_is_believed(
    name: str, tag: str, shared_data: Path, tmp_path: Path
) -> None:
    """Every bit of the elements that say how many pixels there are."""
    data = (shared_data / name).read_bytes()
    ds = pydicom.dcmread(shared_data / name)
    at = ds.get_item(tag).value_tell
    for bit in range(16):
        changed = bytearray(data)
        value = struct.unpack_from("<H", data, at)[0] ^ (1 << bit)
        struct.pack_into("<H", changed, at, value)
        path = tmp_path / "image.dcm"
        path.write_bytes(changed)
        with pytest.raises(ReadError):
            read(path)


def test_damaged_codestreams_end_in_an_image_or_an_error(shared_data: Path) -> None:
    """In one process for all: a codec that crashes ends that one, not this one."""
    script = Path(__file__).parent / "fuzzing" / "damage.py"
    files = [str(shared_data / name) for name in ENCODED]
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(script), "60", *files],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for line in done.stdout.splitlines():
        found = json.loads(line)
        assert found["wrong"] == []
        assert found["changed"].get("another shape", 0) == 0
        assert found["slowest"] < SECONDS
    assert len(done.stdout.splitlines()) == len(ENCODED)


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("part", [0.5, 0.9, 0.99])
def test_a_codestream_that_is_cut_short_in_a_whole_file_is_an_error(
    name: str, part: float, shared_data: Path, tmp_path: Path
) -> None:
    """Codecs fill what is missing with zeros or a blur, and some only warn."""
    ds = pydicom.dcmread(shared_data / name)
    count = int(ds.get("NumberOfFrames") or 1)
    frames = list(generate_frames(ds.PixelData, number_of_frames=count))
    frames[-1] = frames[-1][: int(len(frames[-1]) * part)]
    ds.PixelData = encapsulate(frames)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(tmp_path / "image.dcm")
    with pytest.raises(ReadError):
        np.asarray(read(tmp_path / "image.dcm").pixels)


# What fuzzing and reading the code found ----------------------------------------------------------


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[bytes], ReadError]:
    def error(data: bytes) -> ReadError:
        path = tmp_path / "image.dcm"
        path.write_bytes(data)
        started = time.perf_counter()
        with pytest.raises(ReadError) as raised:
            np.asarray(read(path).pixels)
        assert time.perf_counter() - started < SECONDS
        return raised.value

    return error


def test_two_thousand_million_frames_of_one_pixel(refused: Callable[[bytes], ReadError]) -> None:
    """They fit into 8 GiB: this hung, putting them in order before any of them was looked for."""
    refused(native(rows=1, columns=1, frames=2**31 - 1, pixels=b"\0\0"))


def test_a_character_set_of_backslashes(refused: Callable[[bytes], ReadError]) -> None:
    """Of 64 MB, this took two minutes and 9 GB."""
    charset = element(0x00080005, b"UC", b"\\" * 2**22)
    refused(dicom(charset, header(), element(0x7FE00010, b"OB", bytes(16)), syntax=EXPLICIT))


def test_rows_of_a_corrupted_header_are_not_left_out(
    refused: Callable[[bytes], ReadError],
) -> None:
    """One row fewer than there is was an image of one row fewer."""
    refused(native(rows=3, pixels=bytes(range(16))))


def test_a_jpeg_ls_without_its_end_meets_no_codec(shared_data: Path, tmp_path: Path) -> None:
    """CharLS takes 12 s for this one of 4 KB."""
    ds = pydicom.dcmread(shared_data / "mr/misc/MR_small_jpeg_ls_lossless.dcm")
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    ds.PixelData = encapsulate([frame[: int(0.99 * len(frame))]])
    ds.save_as(tmp_path / "image.dcm")
    started = time.perf_counter()
    with pytest.raises(ReadError, match="without its end"):
        read(tmp_path / "image.dcm")
    assert time.perf_counter() - started < 2
