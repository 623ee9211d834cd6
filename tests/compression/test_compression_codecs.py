"""Codecs of stored values: against other decoders, other libraries' measures, and arithmetic."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openjpeg.utils as openjpeg
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.pixels import get_decoder
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from skimage.metrics import peak_signal_noise_ratio

import medqa.reader
from medqa.compression.codecs import (
    CODECS,
    Codec,
    Encoded,
    Samples,
    check,
    encode,
    offset,
    psnr,
    ratio_allocated,
    ratio_stored,
    span,
    syntax,
    version,
)
from medqa.errors import PixelError

HEAD = "ct/head_series_GE/06.dcm"  # 16 bits, signed, down to -1500
ABDOMEN = "ct/totalsegmentator_dicom/CT.1.3.12.2.1107.5.1.4.60064.30000022120808113428000016580"
BRAIN = "mr/siemens/MR.1.3.12.2.1107.5.2.32.35131.2014031012525641770887330"
CHEST = "xr/cr_mono1/RG3_J2KR.dcm"  # 10 bits
ULTRASOUND = "us/GH364.dcm"  # 8 bits
REAL = (HEAD, ABDOMEN, BRAIN, CHEST, ULTRASOUND)
# A setting with visible loss, of each.
LOSSY = {"j2k": 8.0, "htj2k": 0.004, "jpegls": 9, "jpegxl": 0.5, "jpeg": 70}
LAYOUTS = [
    Samples(bits, 8 if bits == 8 else 16, signed)
    for bits in (8, 9, 10, 12, 14, 16)
    for signed in (False, True)
]
PAIRS = [
    pytest.param(codec, samples, id=f"{codec.name}-{samples.bits_stored}{'su'[not samples.signed]}")
    for codec in CODECS.values()
    for samples in LAYOUTS
    if codec.name != "jpeg" or samples.bits_stored in (8, 12)
]


def program(name: str) -> str:
    """Path of a Debian program that is an oracle here."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} (Debian package dcmtk) is not installed"
        if os.environ.get("MEDQA_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def real(path: Path) -> tuple[pydicom.Dataset, NDArray[Any], Samples]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sloppy headers
        ds = pydicom.dcmread(path)
        frame = ds.pixel_array
    return ds, frame, Samples(ds.BitsStored, ds.BitsAllocated, bool(ds.PixelRepresentation))


def pattern(samples: Samples) -> NDArray[Any]:
    """Noise, a ramp, and black beside white, over the whole range."""
    low = -(2 ** (samples.bits_stored - 1)) if samples.signed else 0
    high = low + 2**samples.bits_stored - 1
    frame = np.random.default_rng(0).integers(low, high, (61, 83), endpoint=True)
    frame[20:40] = np.linspace(low, high, 83).round()
    frame[40:50, ::2], frame[40:50, 1::2] = low, high
    frame[50:, :40], frame[50:, 40:] = low, high
    kind = f"{'i' if samples.signed else 'u'}{samples.bits_allocated // 8}"
    return frame.astype(kind)


def dicom(path: Path, ds: pydicom.Dataset, codec: Codec, samples: Samples, one: Encoded) -> Path:
    """Write a stream under the header of its image."""
    written = _header(ds)
    written.file_meta.TransferSyntaxUID = one.syntax
    written.PixelData = encapsulate([one.data])
    written["PixelData"].VR = "OB"
    written["PixelData"].is_undefined_length = True
    if raised := offset(codec, samples):
        written.PixelRepresentation = 0
        slope = float(written.get("RescaleSlope", 1))
        written.RescaleIntercept = float(written.get("RescaleIntercept", 0)) - slope * raised
    return save(path, written)


def native(path: Path, ds: pydicom.Dataset, pixels: NDArray[Any]) -> Path:
    written = _header(ds)
    written.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    written.PixelData = pixels.tobytes()
    written["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    return save(path, written)


def _tags(ds: pydicom.Dataset) -> list[pydicom.tag.BaseTag]:
    return list(ds.keys())  # not by the elements: those of one file cannot be converted


def save(path: Path, ds: pydicom.Dataset) -> Path:
    """As `dcmwrite`, which refuses the syntaxes of JPEG XL: it does not know them yet."""
    with path.open("wb") as file:
        buffer = DicomFileLike(file)
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        buffer.write(bytes(128) + b"DICM")
        write_file_meta_info(buffer, ds.file_meta)
        write_dataset(buffer, ds)
    return path


def _header(ds: pydicom.Dataset) -> pydicom.Dataset:
    groups = (0x0008, 0x0010, 0x0018, 0x0020, 0x0028)
    written = pydicom.Dataset({tag: deepcopy(ds[tag]) for tag in _tags(ds) if tag.group in groups})
    for name in ("PixelPaddingValue", "SmallestImagePixelValue", "LargestImagePixelValue"):
        if name in written:
            del written[name]
    written.file_meta = pydicom.dataset.FileMetaDataset()
    # One of these images was anonymised so far that it has none.
    written.SOPClassUID = ds.SOPClassUID or CTImageStorage
    written.SOPInstanceUID = ds.SOPInstanceUID or "1.2.3"
    written.file_meta.MediaStorageSOPClassUID = written.SOPClassUID
    written.file_meta.MediaStorageSOPInstanceUID = written.SOPInstanceUID
    return written


# Streams ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "samples"), PAIRS)
def test_lossless_is_lossless(codec: Codec, samples: Samples) -> None:
    frame = pattern(samples)
    before = frame.copy()
    one = encode(codec, frame, samples, None)
    assert one.setting is None
    assert one.syntax == codec.lossless_syntax
    assert one.pixels.dtype == frame.dtype
    np.testing.assert_array_equal(one.pixels, before)
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize(("codec", "samples"), PAIRS)
def test_loss_stays_in_range(codec: Codec, samples: Samples) -> None:
    """Beyond white must not become black: what overshoots is clipped at the bits stored."""
    frame = pattern(samples)
    one = encode(codec, frame, samples, LOSSY[codec.name])
    assert one.pixels.dtype == frame.dtype
    assert one.pixels.shape == frame.shape
    low = -(2 ** (samples.bits_stored - 1)) if samples.signed else 0
    assert low <= one.pixels.min()
    assert one.pixels.max() < low + 2**samples.bits_stored
    halves = frame[54:, :40], one.pixels[54:, :40], frame[54:, 42:], one.pixels[54:, 42:]
    black, black_again, white, white_again = (half.astype(int) for half in halves)
    assert np.abs(black - black_again).max() < 0.45 * 2**samples.bits_stored
    assert np.abs(white - white_again).max() < 0.45 * 2**samples.bits_stored


@pytest.mark.parametrize(("codec", "samples"), PAIRS)
@pytest.mark.parametrize("lossless", [True, False], ids=["lossless", "lossy"])
def test_streams_say_how_many_bits_they_hold(
    codec: Codec, samples: Samples, lossless: bool
) -> None:
    """PS3.5 8.2: the depth in the stream is Bits Stored."""
    one = encode(codec, pattern(samples), samples, None if lossless else LOSSY[codec.name])
    if codec.name in ("j2k", "htj2k"):
        found = openjpeg.get_parameters(one.data)
        assert found["precision"] == samples.bits_stored
        assert found["is_signed"] == samples.signed
    elif codec.name in ("jpegls", "jpeg"):
        codes = (0xF7,) if codec.name == "jpegls" else (0xC0, 0xC1, 0xC3)
        place = min(at for at in (one.data.find(bytes((0xFF, code))) for code in codes) if at > 0)
        assert one.data[place + 4] == samples.bits_stored
        baseline = one.syntax == "1.2.840.10008.1.2.4.50"
        assert (one.data[place + 1] == 0xC0) == baseline
    else:
        assert imagecodecs.jpegxl_decode(one.data).dtype.itemsize * 8 >= samples.bits_stored


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_same_stream_every_time(codec: Codec) -> None:
    samples = Samples(12, 16, False)
    first, second = (encode(codec, pattern(samples), samples, LOSSY[codec.name]) for _ in "12")
    assert first.data == second.data


@pytest.mark.parametrize("name", [HEAD, ABDOMEN, ULTRASOUND])
@pytest.mark.parametrize("near", [1, 3, 20])
def test_jpegls_keeps_its_largest_error(shared_data: Path, name: str, near: int) -> None:
    _, frame, samples = real(shared_data / name)
    one = encode(CODECS["jpegls"], frame, samples, near)
    assert np.abs(frame.astype(int) - one.pixels).max() == near


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_from_gentlest_to_strongest(shared_data: Path, codec: Codec) -> None:
    """Streams get smaller and losses greater."""
    _, frame, samples = real(shared_data / ABDOMEN)
    gentlest, strongest = span(codec, samples)
    settings = np.geomspace(gentlest, strongest, 6)
    found = [
        encode(codec, frame, samples, round(one) if codec.integer else float(one))
        for one in settings
    ]
    sizes = [len(one.data) for one in found]
    lost = [psnr(frame, one.pixels, samples) for one in found]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 3 * sizes[-1]
    assert lost == sorted(lost, reverse=True)


# Other decoders -----------------------------------------------------------------------------------

CASES = [
    pytest.param(name, codec, lossless, id=f"{name.split('/')[0]}-{codec.name}-{lossless}")
    for name in REAL
    for codec in CODECS.values()
    for lossless in (True, False)
    if codec.name != "jpeg" or name in (ABDOMEN, BRAIN, ULTRASOUND)
]


@pytest.mark.parametrize(("name", "codec", "lossless"), CASES)
def test_pixels_are_what_a_file_gives(
    shared_data: Path, tmp_path: Path, name: str, codec: Codec, lossless: bool
) -> None:
    """Read from DICOM, a stream gives the values that `Encoded` holds."""
    ds, frame, samples = real(shared_data / name)
    setting = None if lossless else LOSSY[codec.name]
    one = encode(codec, frame, samples, setting)
    assert one.syntax == syntax(codec, samples, setting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = medqa.reader.read(dicom(tmp_path / "stream.dcm", ds, codec, samples, one))
        plain = medqa.reader.read(native(tmp_path / "plain.dcm", ds, one.pixels))
    assert stream.unit == plain.unit
    np.testing.assert_array_equal(stream.pixels, plain.pixels)


@pytest.mark.parametrize(
    ("name", "codec", "lossless"),
    [case for case in CASES if case.values[1].name in ("jpegls", "jpeg")],
)
def test_dcmtk_decodes_the_same(
    shared_data: Path, tmp_path: Path, name: str, codec: Codec, lossless: bool
) -> None:
    ds, frame, samples = real(shared_data / name)
    one = encode(codec, frame, samples, None if lossless else LOSSY[codec.name])
    command = program("dcmdjpls" if codec.name == "jpegls" else "dcmdjpeg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = dicom(tmp_path / "stream.dcm", ds, codec, samples, one)
        run = [command, str(path), str(tmp_path / "plain.dcm")]
        subprocess.run(run, check=True, capture_output=True)  # noqa: S603
        found = pydicom.dcmread(tmp_path / "plain.dcm").pixel_array.astype(int)
    np.testing.assert_array_equal(found - offset(codec, samples), one.pixels)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("lossless", [True, False], ids=["lossless", "lossy"])
def test_gdcm_decodes_the_same_jpeg2000(
    shared_data: Path, tmp_path: Path, name: str, lossless: bool
) -> None:
    pytest.importorskip("gdcm")
    ds, frame, samples = real(shared_data / name)
    codec = CODECS["j2k"]
    one = encode(codec, frame, samples, None if lossless else LOSSY["j2k"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = dicom(tmp_path / "stream.dcm", ds, codec, samples, one)
        decoder = get_decoder(one.syntax)
        found, _ = decoder.as_array(pydicom.dcmread(path), decoding_plugin="gdcm")
    # 9/7 is arithmetic with reals: a decoder may round the other way (ISO/IEC 15444-4).
    assert np.abs(found.astype(int) - one.pixels).max() <= (0 if lossless else 1)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("lossless", [True, False], ids=["lossless", "lossy"])
def test_openjph_decodes_the_same(shared_data: Path, name: str, lossless: bool) -> None:
    """OpenJPEG decodes here; OpenJPH reads the depth and sign that the header was given."""
    _, frame, samples = real(shared_data / name)
    one = encode(CODECS["htj2k"], frame, samples, None if lossless else LOSSY["htj2k"])
    found = imagecodecs.htj2k_decode(one.data).astype(int)
    assert np.abs(found - one.pixels).max() <= (0 if lossless else 1)


def test_htj2k_of_bits_stored_is_that_of_16(shared_data: Path) -> None:
    """The header's depth changes no sample: the step is a part of the range, whatever its bits."""
    _, frame, samples = real(shared_data / ABDOMEN)
    one = encode(CODECS["htj2k"], frame, samples, 0.004)
    plain = imagecodecs.htj2k_encode(frame << 4, level=0.004, reversible=False)
    assert len(plain) == len(one.data)
    found = imagecodecs.htj2k_decode(plain) / 16
    assert np.abs(found - one.pixels).max() <= 1


# Figures ------------------------------------------------------------------------------------------


def test_ratios_by_hand() -> None:
    """12 bits in 16: 10:1 of the bits stored are 13.3:1 of those allocated."""
    samples = Samples(12, 16, False)
    nbytes = 512 * 512 * 12 // 8 // 10
    assert ratio_stored((512, 512), samples, nbytes) == pytest.approx(10, rel=1e-4)
    assert ratio_allocated((512, 512), samples, nbytes) == pytest.approx(13.3333, rel=1e-4)
    assert ratio_stored((3, 512, 512), samples, 3 * nbytes) == pytest.approx(10, rel=1e-4)
    full = Samples(16, 16, True)
    assert ratio_stored((100, 80), full, 1600) == ratio_allocated((100, 80), full, 1600) == 10


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_psnr_is_that_of_scikit_image(shared_data: Path, codec: Codec) -> None:
    _, frame, samples = real(shared_data / ABDOMEN)
    one = encode(codec, frame, samples, LOSSY[codec.name])
    expected = peak_signal_noise_ratio(frame, one.pixels, data_range=4095)
    assert psnr(frame, one.pixels, samples) == pytest.approx(expected, abs=1e-9)
    assert psnr(frame, frame, samples) == np.inf


def test_offset_where_the_sign_is_not_carried() -> None:
    signed = Samples(12, 16, True)
    given = {name: offset(codec, signed) for name, codec in CODECS.items()}
    assert given == {"j2k": 0, "htj2k": 0, "jpegls": 2048, "jpegxl": 2048, "jpeg": 2048}
    assert not any(offset(codec, Samples(12, 16, False)) for codec in CODECS.values())


def test_codecs_name_their_library() -> None:
    words = {name: version(codec) for name, codec in CODECS.items()}
    assert words["j2k"] == "OpenJPEG " + ".".join(map(str, openjpeg.get_openjpeg_version()))
    own = imagecodecs.version(dict)
    assert words["htj2k"] == f"OpenJPH {own['openjph']}"
    assert words["jpegxl"] == f"libjxl {own['libjxl']}"
    assert own["libjpeg_turbo"].startswith(words["jpeg"].removeprefix("libjpeg-turbo ") + "/")
    assert words["jpegls"].startswith("CharLS of pyjpegls 1.")


def test_syntaxes_and_methods() -> None:
    """PS3.6 Annex A and PS3.3 C.7.6.1.1.5.1."""
    methods = [codec.method for codec in CODECS.values()]
    assert methods == ["ISO_15444_1", "ISO_15444_15", "ISO_14495_1", "ISO_18181_1", "ISO_10918_1"]
    jpeg, eight, twelve = CODECS["jpeg"], Samples(8, 8, False), Samples(12, 16, False)
    assert pydicom.uid.UID(syntax(jpeg, eight, 90)).keyword == "JPEGBaseline8Bit"
    assert pydicom.uid.UID(syntax(jpeg, twelve, 90)).keyword == "JPEGExtended12Bit"
    assert pydicom.uid.UID(syntax(jpeg, twelve, None)).keyword == "JPEGLosslessSV1"
    for name, codec in CODECS.items():
        if name != "jpegxl":
            assert not pydicom.uid.UID(codec.lossy_syntax).is_private
            assert pydicom.uid.UID(codec.lossless_syntax).is_compressed


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "samples", [Samples(1, 8, False), Samples(12, 32, True), Samples(32, 32, True)]
)
def test_depths_that_are_not_compressed(samples: Samples) -> None:
    for codec in CODECS.values():
        with pytest.raises(PixelError, match=r"one\.dcm: .* cannot be compressed"):
            check(codec, samples, "one.dcm")


def test_jpeg_holds_8_or_12_bits() -> None:
    for bits in (10, 16):
        with pytest.raises(PixelError, match=f"{bits} bits stored; choose j2k"):
            check(CODECS["jpeg"], Samples(bits, 16, False), "one.dcm")
    check(CODECS["jpeg"], Samples(12, 16, False), "one.dcm")


@pytest.mark.parametrize(
    ("frame", "samples"),
    [
        (np.full((4, 4), 4096, np.uint16), Samples(12, 16, False)),
        (np.full((4, 4), -1, np.int16), Samples(12, 16, False)),
        (np.full((4, 4), 2048, np.int16), Samples(12, 16, True)),
        (np.full((4, 4), -2049, np.int16), Samples(12, 16, True)),
    ],
)
def test_values_beyond_the_bits_stored(frame: NDArray[Any], samples: Samples) -> None:
    with pytest.raises(PixelError, match="are not 12 bits"):
        encode(CODECS["j2k"], frame, samples, None)


@pytest.mark.parametrize(
    "frame", [np.zeros((2, 4, 4), np.uint16), np.zeros((4, 4)), np.zeros((0, 4), np.uint16)]
)
def test_what_is_no_frame(frame: NDArray[Any]) -> None:
    with pytest.raises(PixelError, match="is no frame"):
        encode(CODECS["j2k"], frame, Samples(12, 16, False), None)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("j2k", 0.5), ("htj2k", 0.0), ("jpegls", 0), ("jpegls", 2.5), ("jpegls", 256),
        ("jpegxl", 26.0), ("jpeg", 0), ("jpeg", 101), ("j2k", float("nan")),
    ],
)  # fmt: skip
def test_settings_outside_the_span(name: str, setting: float) -> None:
    samples = Samples(12, 16, False)
    with pytest.raises(PixelError, match="is no setting of"):
        encode(CODECS[name], pattern(samples), samples, setting)


def test_jpegls_span_ends_at_half_the_range() -> None:
    """ISO/IEC 14495-1 C.2.3: NEAR is at most 255, and half of MAXVAL."""
    codec = CODECS["jpegls"]
    assert span(codec, Samples(8, 8, False)) == (1, 127)
    assert span(codec, Samples(12, 16, False)) == (1, 255)
    samples = Samples(8, 8, False)
    one = encode(codec, pattern(samples), samples, 127)
    assert np.abs(pattern(samples).astype(int) - one.pixels).max() <= 127
    with pytest.raises(PixelError, match="from 1 to 127"):
        encode(codec, pattern(samples), samples, 128)
