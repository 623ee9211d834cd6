"""One codec for each transfer syntax, against DCMTK's, twins, and damage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, get_frame

from medqa.dicom.codecs import codec_of, decompressed
from medqa.errors import ReadError


def program(name: str) -> str:
    """Path of a Debian program that is an oracle here."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} (Debian package dcmtk) is not installed"
        if os.environ.get("MEDQA_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def dataset(path: Path) -> pydicom.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sloppy headers
        return pydicom.dcmread(path, force=True)


def decoded(path: Path) -> NDArray[np.int64]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return decompressed(dataset(path), 0, path).astype(np.int64)


JPEG = [
    "malformed/JPEGLossless_1s_1f_i_16_16_bad.dcm",
    "mg/GH133.dcm",
    "mr/misc/JPEGLossless_1s_1f_u_16_12.dcm",
    "mr/transfer_syntax_set/5.dcm",
    "nm/JPEG-LL.dcm",
    "nm/JPEG-lossy.dcm",
    "nm/JPGExtended.dcm",
    "pt/GH184.dcm",
    "ts/ct_all_syntaxes/CT0012.fragmented_no_bot_jpeg_baseline.51.dcm",
    "ts/ct_all_syntaxes/CTImage.dcm_JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55.dcm",
    "ts/ct_all_syntaxes/CTImage.dcm_JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53.dcm",
    "ts/ct_all_syntaxes/CTImage.dcm_JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57.dcm",
    "ts/ct_all_syntaxes/CTImage.dcm_JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70.dcm",
    "ts/ct_all_syntaxes/CTImage.dcm_JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50.dcm",
    "ts/sc/SC_jpeg_no_color_transform.dcm",
    "ts/sc/SC_jpeg_no_color_transform_2.dcm",
    "ts/sc/SC_rgb_dcmtk_+eb+cr.dcm",
    "ts/sc/SC_rgb_dcmtk_+eb+cy+n1.dcm",
    "ts/sc/SC_rgb_dcmtk_+eb+cy+np.dcm",
    "ts/sc/SC_rgb_dcmtk_+eb+cy+s4.dcm",
    "ts/sc/SC_rgb_jpeg_app14_dcmd.dcm",
    "ts/sc/SC_rgb_jpeg_gdcm.dcm",
    "ts/sc/SC_rgb_small_odd_jpeg.dcm",
    "ts/testpattern/TestPattern_JPEG-Baseline_YBR422.dcm",
    "ts/testpattern/TestPattern_JPEG-Baseline_YBRFull.dcm",
    "ts/testpattern/TestPattern_JPEG-Lossless_RGB.dcm",
    "us/examples_ybr_color.dcm",
    "xr/cr_mono2/RG2_JPLY.dcm",
    "xr/cxr_pair_mono1_mono2/Fake_MONOHR1.dcm",
    "xr/modality_lut/CR-ModalitySequenceLUT.dcm",
]
ROUNDED = {  # YCbCr to RGB, which DCMTK rounds in whole numbers
    "ts/testpattern/TestPattern_JPEG-Baseline_YBR422.dcm",
    "ts/testpattern/TestPattern_JPEG-Baseline_YBRFull.dcm",
}


@pytest.mark.parametrize("name", JPEG)
def test_jpeg_equals_dcmtks(shared_data: Path, tmp_path: Path, name: str) -> None:
    plain = tmp_path / "plain.dcm"
    command = [program("dcmdjpeg"), shared_data / name, plain]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    found, expected = decoded(shared_data / name), decoded(plain)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (name in ROUNDED)


def test_jpeg_xl_equals_its_uncompressed_twin(shared_data: Path) -> None:
    twin = dataset(shared_data / "ts/jpegxl/test_ct1.dcm")
    compressed = decoded(shared_data / "ts/jpegxl/test_ct1_jxl.dcm")
    stored = np.frombuffer(twin.PixelData, "<u2").reshape(twin.Rows, twin.Columns)
    np.testing.assert_array_equal(compressed, stored)


def test_a_sign_that_header_and_jpeg_2000_disagree_on(shared_data: Path) -> None:
    """The signs that the maker of the files states: 1 or 0 by Pixel Representation."""
    for name in ("malformed/TOSHIBA_J2K_SIZ0_PixRep1", "ct/misc/J2K_pixelrep_mismatch"):
        assert decoded(shared_data / f"{name}.dcm").min() < 0
    assert decoded(shared_data / "malformed/TOSHIBA_J2K_SIZ1_PixRep0.dcm").min() >= 0


def test_each_syntax_has_one_codec() -> None:
    for last, codec in (("70", "libjpeg-turbo"), ("90", "pylibjpeg"), ("110", "libjxl")):
        assert codec_of(f"1.2.840.10008.1.2.4.{last}") == codec
    assert codec_of("1.2.840.10008.1.2.1.99") == "pydicom"


def test_quantisation_that_overshoots_white_stays_white(shared_data: Path) -> None:
    path = shared_data / "ts/ct_all_syntaxes/CT0012.fragmented_no_bot_jpeg_baseline.51.dcm"
    ds = dataset(path)
    whole = decompressed(ds, 0, path).astype(int)
    assert whole.max() > 2047
    ds.BitsStored, ds.HighBit = 11, 10
    np.testing.assert_array_equal(decompressed(ds, 0, path), np.minimum(whole, 2047))


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC.*ffmpeg"),
        ("1.2.840.10008.1.2.4.94", "JPIP server"),
        ("1.2.840.10008.1.2.8.1", "highdicom"),
        ("1.2.840.10008.1.2.4.52", "dcmdjpeg"),
        ("1.2.3.4", "1.2.3.4.*dcmdjpeg"),
    ],
)
def test_a_syntax_without_a_codec_is_named_with_what_helps(
    shared_data: Path, syntax: str, words: str
) -> None:
    ds = dataset(shared_data / "nm/JPEG-LL.dcm")
    ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    assert codec_of(syntax) is None
    with pytest.raises(ReadError, match=words):
        decompressed(ds, 0, "x")


@pytest.mark.parametrize(
    "name", ["pt/GH184.dcm", "nm/JPGExtended.dcm", "us/examples_ybr_color.dcm"]
)
def test_a_jpeg_cut_anywhere_is_refused(shared_data: Path, name: str) -> None:
    ds = dataset(shared_data / name)
    frames = int(ds.get("NumberOfFrames") or 1)
    src = get_frame(ds.PixelData, 0, number_of_frames=frames)
    ds.NumberOfFrames = 1
    for cut in np.linspace(2, src.rindex(b"\xff\xd9") + 1, 50).astype(int):
        ds.PixelData = encapsulate([src[:cut]])
        with pytest.raises(ReadError):
            decompressed(ds, 0, name)


def test_a_jpeg_of_another_size_is_refused_before_memory_is_asked_for(shared_data: Path) -> None:
    ds = dataset(shared_data / "pt/GH184.dcm")
    src = bytearray(get_frame(ds.PixelData, 0, number_of_frames=1))
    size = src.index(b"\xff\xc3") + 5
    src[size : size + 4] = b"\xff\xff\xff\xff"
    ds.PixelData = encapsulate([bytes(src)])
    with pytest.raises(ReadError, match=r"65535, 65535.*128, 128"):
        decompressed(ds, 0, "x")


_DAMAGE = """
import sys, warnings
import numpy as np
import pydicom
from pydicom.encaps import encapsulate, get_frame
from medqa.dicom.codecs import decompressed
from medqa.errors import ReadError

warnings.simplefilter("ignore")
rng = np.random.default_rng(3)
for name in sys.argv[1:]:
    ds = pydicom.dcmread(name)
    src = get_frame(ds.PixelData, 0, number_of_frames=int(ds.get("NumberOfFrames") or 1))
    ds.NumberOfFrames = 1
    shape = decompressed(ds, 0, name).shape
    for turn in range(300):
        damaged = bytearray(src)
        damaged[rng.integers(min(len(src), 400) if turn % 2 else len(src))] = rng.integers(256)
        ds.PixelData = encapsulate([bytes(damaged)])
        try:
            assert decompressed(ds, 0, name).shape == shape
        except ReadError:
            pass
print("survived")
"""


def test_damaged_frames_end_in_an_image_or_an_error(shared_data: Path) -> None:
    """In a process of its own, which a crash would end, as it did with GDCM and lj92."""
    names = ("pt/GH184.dcm", "nm/JPGExtended.dcm", "ts/sc/SC_rgb_jpeg_dcmtk.dcm")
    paths = [str(shared_data / name) for name in (*names, "ts/jpegxl/test_ct1_jxl.dcm")]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", _DAMAGE, *paths], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr[-500:]
