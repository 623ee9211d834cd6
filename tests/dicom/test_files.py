"""What a DICOM file claims is held against limits and against the file, before it is believed."""

import hashlib
import itertools
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from hostile import (
    DEFLATED,
    EXPLICIT,
    HTJ2K,
    IMPLICIT,
    ITEM_END,
    JPEG,
    JPEG_2000,
    JPEG_LS,
    JPEG_XL,
    LOSSLESS,
    RLE,
    SEQUENCE_END,
    UNDEFINED,
    deflated,
    dicom,
    element,
    encapsulated,
    header,
    item,
    native,
)

from medqa.dicom import files as dicom_files
from medqa.dicom.encapsulated import codestream_size
from medqa.dicom.files import load, reading
from medqa.errors import MedqaError, ReadError, RegionError, UsageError
from medqa.image import Image
from medqa.limits import Limits, RefusedError, limits
from medqa.reader import read

SEQUENCE = 0x00081140
Refuse = Callable[..., ReadError]


@pytest.fixture
def given(tmp_path: Path) -> Callable[[bytes], Path]:
    def path(data: bytes) -> Path:
        file = tmp_path / "image.dcm"
        file.write_bytes(data)
        return file

    return path


@pytest.fixture
def refuse(given: Callable[[bytes], Path]) -> Refuse:
    """Read bytes, and demand that they are refused: within a time, and the memory of 20 files."""

    def error(data: bytes, match: str, *, seconds: float = 5.0, memory: int = 0) -> ReadError:
        path = given(data)
        tracemalloc.start()
        started = time.perf_counter()
        with pytest.raises(ReadError, match=match) as raised:
            np.asarray(read(path).pixels)
        took = time.perf_counter() - started
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert took < seconds
        assert peak < 20 * len(data) + memory + 2**22
        return raised.value

    return error


def image(data: bytes, given: Callable[[bytes], Path]) -> Image:
    return read(given(data))


# Limits -------------------------------------------------------------------------------------------


def test_limits_are_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits() == Limits()
    monkeypatch.setenv("MEDQA_MAX_FILE_GIB", "0.5")
    monkeypatch.setenv("MEDQA_MAX_IMAGE_GIB", "16")
    assert (limits().file_bytes, limits().image_bytes) == (2**29, 2**34)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "many"])
def test_a_limit_that_is_none_is_an_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDQA_MAX_FILE_GIB", value)
    with pytest.raises(UsageError, match="MEDQA_MAX_FILE_GIB"):
        limits()


def test_what_is_refused_becomes_the_error_asked_for() -> None:
    with pytest.raises(RegionError, match="x: why; mend"), reading("x", RegionError):
        raise RefusedError("why", "mend")


def test_a_file_beyond_the_limit_is_not_read(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDQA_MAX_FILE_GIB", str(1 / 2**10))
    data = encapsulated([bytes(2 * 2**20)], JPEG_2000)
    with monkeypatch.context() as patch:
        patch.setattr(dicom_files, "_framed", lambda _: None)
        refuse(data, "is larger than the 0.000977 GiB allowed")


@pytest.mark.parametrize(
    ("claims", "match"),
    [
        ({"rows": 65535, "columns": 65535, "frames": 3}, r"claims 12 GiB of pixels"),
        ({"rows": 65535, "columns": 65535}, r"more than 268435456 pixels"),
        ({"rows": 1, "columns": 1, "frames": 2**31 - 1}, r"claims 2147483647 frames"),
        ({"rows": 1, "columns": 1, "frames": 2**17 + 1}, r"claims 131073 frames"),
        ({"rows": 0}, r"has 0 rows"),
        ({"columns": 0}, r"0 columns"),
        ({"rows": 1000, "columns": 1000}, r"claims 1000000 bytes of pixels and has 16"),
        ({"frames": 100}, r"claims 1600 bytes of pixels and has 16"),
        ({"rows": 1}, r"has 12 bytes more of pixels than its header says"),
    ],
)
@pytest.mark.parametrize("syntax", [EXPLICIT, DEFLATED])
def test_claims_are_held_against_limits_and_the_file(
    claims: dict[str, int], match: str, syntax: str, refuse: Refuse
) -> None:
    data = native(pixels=bytes(range(1, 17)), **claims)
    if syntax == DEFLATED:
        data = deflated(data)
    refuse(data, match)


def test_zeros_after_the_pixels_are_padding(given: Callable[[bytes], Path]) -> None:
    assert image(native(pixels=bytes(range(16)) + bytes(8)), given).shape == (1, 4, 4)


def test_no_frames_are_one_and_fewer_are_refused(
    given: Callable[[bytes], Path], refuse: Refuse
) -> None:
    assert image(native(frames=0), given).shape == (1, 4, 4)
    refuse(native(frames=-5), "than its header says")


# Lengths, depth and number of elements ------------------------------------------------------------


@pytest.mark.parametrize("length", [17, 2**20, 2**31, 2**32 - 2])
def test_pixel_data_that_claims_more_than_the_file_has(length: int, refuse: Refuse) -> None:
    pixels = element(0x7FE00010, b"OB", bytes(16), length)
    refuse(dicom(header(), pixels), "has 16")


def test_an_element_that_claims_more_than_the_file_has(refuse: Refuse) -> None:
    refuse(dicom(header(), element(0x00291001, b"OB", b"abcd", 2**32 - 2)), "and has 4")


def test_an_item_that_claims_more_than_the_file_has(refuse: Refuse) -> None:
    inside = element(0x00081150, b"UI", b"1.2", 60000)
    sequence = element(SEQUENCE, b"SQ", item(inside, 2**31), UNDEFINED)
    refuse(dicom(sequence, header()), "claims 60000 bytes|No tag to read")


@pytest.mark.parametrize("vr", [b"SQ", b"UN"])
@pytest.mark.parametrize("depth", [51, 100, 10_000, 100_000])
def test_sequences_nest_only_so_deep(vr: bytes, depth: int, refuse: Refuse) -> None:
    tag = SEQUENCE if vr == b"SQ" else 0x00091001
    opened = element(tag, vr, b"", UNDEFINED) + item(b"", UNDEFINED)
    refuse(dicom(opened * depth, header()), "nests|recursion|End of file|No tag")


def deep(depth: int) -> bytes:
    opened = element(SEQUENCE, b"SQ", b"", UNDEFINED) + item(b"", UNDEFINED)
    sequences = opened * depth + (ITEM_END + SEQUENCE_END) * depth
    return dicom(sequences, header(), element(0x7FE00010, b"OB", bytes(16)))


def test_50_sequences_in_one_another_are_read(given: Callable[[bytes], Path]) -> None:
    assert image(deep(50), given).shape == (1, 4, 4)
    with pytest.raises(ReadError, match="nests more than 50"):
        image(deep(51), given)


@pytest.mark.parametrize("defined", [True, False])
def test_the_number_of_items_is_limited(
    defined: bool, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With the limits as they are, this takes 20 s and 800 MB; see docs/robustness.md.
    monkeypatch.setattr("medqa.dicom.files.limits", lambda: Limits(elements=2000))
    monkeypatch.setattr("medqa.dicom.stream._LAZY", 1000)
    items = item() * 100_000
    sequence = element(
        SEQUENCE, b"SQ", items + SEQUENCE_END * (not defined), None if defined else UNDEFINED
    )
    refuse(dicom(sequence, header()), "too many data elements", memory=2**24)


def test_the_number_of_elements_is_limited(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medqa.dicom.files.limits", lambda: Limits(elements=2000))
    many = b"".join(element(0x00090000 | n, b"LO", b"") for n in range(10_000))
    refuse(dicom(many, header()), "too many data elements", memory=2**24)


def test_sequences_parsed_at_once_are_as_if_parsed_when_asked_for(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shared_data / "mr/enhanced_multiframe/emri_small.dcm"
    expected = pydicom.dcmread(path)
    monkeypatch.setattr("medqa.dicom.stream._LAZY", 0)
    ds, _ = load(path)
    assert ds == expected


@pytest.mark.parametrize("tag", [0x00080005, 0x05000800])
def test_a_silly_character_set_is_not_split(tag: int, refuse: Refuse) -> None:
    value = b"\\" * 2**21  # pydicom takes four seconds and 300 MB for it
    if tag == 0x00080005:
        refuse(dicom(element(tag, b"UC", value), header()), "character set", seconds=0.5)
    else:
        long = b"\x00\x08\x00\x05UC\0\0" + struct.pack(">L", len(value)) + value
        refuse(long, "character set|cannot be read", seconds=0.5)


def test_silly_numbers_are_not_converted(refuse: Refuse) -> None:
    value = struct.pack("<HHL", 0x0028, 0x1050, 10 * 2**20) + b"1\\" * (5 * 2**20)
    refuse(dicom(value, syntax=IMPLICIT), "bytes of values", seconds=1)


# Deflate ------------------------------------------------------------------------------------------


def test_a_deflated_file_is_read(given: Callable[[bytes], Path]) -> None:
    pixels = image(native(), given).pixels_sha256
    assert image(deflated(native()), given).pixels_sha256 == pixels


def test_a_deflate_bomb_is_stopped(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDQA_MAX_FILE_GIB", str(16 / 2**10))
    bomb = deflated(dicom(header(), element(0x7FE00010, b"OB", bytes(200 * 2**20))))
    assert len(bomb) < 2**18
    refuse(bomb, "inflates to more than the 0.0156 GiB allowed", memory=40 * 2**20)


def test_every_truncation_of_a_deflated_file_is_refused(given: Callable[[bytes], Path]) -> None:
    data = deflated(native(pixels=bytes(range(256)) * 4, rows=32, columns=32))
    for end in range(132, len(data)):
        with pytest.raises(ReadError):
            image(data[:end], given)


# Encapsulated -------------------------------------------------------------------------------------

GRAY = np.arange(16, dtype=np.uint8).reshape(4, 4)
STREAMS = {
    JPEG: imagecodecs.jpeg8_encode(GRAY),
    LOSSLESS: imagecodecs.jpeg8_encode(GRAY, lossless=True),
    JPEG_LS: imagecodecs.jpegls_encode(GRAY),
    JPEG_2000: imagecodecs.jpeg2k_encode(GRAY, codecformat="J2K"),
    HTJ2K: imagecodecs.htj2k_encode(GRAY) if imagecodecs.HTJ2K.available else b"",
    JPEG_XL: imagecodecs.jpegxl_encode(GRAY),
}
"""A 4 x 4 codestream of each transfer syntax."""


def large(syntax: str) -> bytes:
    """The codestream, claiming 65,000 x 65,000."""
    data, side = bytearray(STREAMS[syntax]), struct.pack(">H", 65000)
    if syntax in (JPEG, LOSSLESS, JPEG_LS):
        for marker in (0xC0, 0xC1, 0xC3, 0xF7):
            at = bytes(data).find(bytes([0xFF, marker]))
            if at > 0:
                data[at + 5 : at + 9] = side * 2
                return bytes(data)
    at = bytes(data).find(b"\xff\x51")
    data[at + 6 : at + 14] = struct.pack(">LL", 65000, 65000)
    return bytes(data)


@pytest.mark.parametrize("syntax", [s for s in STREAMS if STREAMS[s]])
def test_a_codestream_of_the_right_size_is_decoded(
    syntax: str, given: Callable[[bytes], Path]
) -> None:
    assert image(encapsulated([STREAMS[syntax]], syntax), given).shape == (1, 4, 4)


@pytest.mark.parametrize("syntax", [JPEG, LOSSLESS, JPEG_LS, JPEG_2000])
def test_a_codestream_larger_than_the_image_meets_no_codec(syntax: str, refuse: Refuse) -> None:
    refuse(encapsulated([large(syntax)], syntax), "codestream of 65000 x 65000 x 1", seconds=0.5)


def test_sizes_are_those_of_the_encoder() -> None:
    """Rows, columns, components and bits of what imagecodecs encoded."""
    for rows, columns, dtype in itertools.product((1, 7, 64), (1, 40, 100), (np.uint8, np.uint16)):
        gray, bits = np.zeros((rows, columns), dtype), 8 * np.dtype(dtype).itemsize
        colour = np.zeros((rows, columns, 3), dtype)
        for pixels, components in ((gray, 1), (colour, 3)):
            size = (rows, columns, components, bits)
            for data in (
                imagecodecs.jpeg2k_encode(pixels, codecformat="J2K"),
                imagecodecs.jpeg2k_encode(pixels, codecformat="JP2"),
                imagecodecs.jpegls_encode(pixels),
                *([imagecodecs.jpeg8_encode(pixels)] if bits == 8 else []),
            ):
                found = codestream_size(data)
                assert found is not None
                assert (found.rows, found.columns, found.components, found.bits) == size
        for container in (False, True):
            found = codestream_size(imagecodecs.jpegxl_encode(gray, usecontainer=container))
            assert found is not None
            assert (found.rows, found.columns) == (rows, columns)


def test_no_size_in_what_is_cut_short_or_something_else() -> None:
    for data in (b"", b"\xff\xd8", b"GIF89a", STREAMS[JPEG_2000][:40], STREAMS[JPEG][:20]):
        assert codestream_size(data) is None


@pytest.mark.parametrize(
    ("fragments", "offsets", "frames", "match"),
    [
        (2, (), 3, "fewer fragments than frames"),
        (1, (), 2, "1 of 2 encoded frames"),
        (3, (), 2, "more encoded frames"),
        (2, (0, 2**31), 2, "does not point at its frames"),
        (2, (0, 3), 2, "does not point at its frames"),
        (2, (0,), 2, "does not point at its frames"),
        (2, (0, 0), 2, "does not point at its frames|1 of 2|header"),
    ],
)
def test_fragments_and_offsets_are_held_against_the_frames(
    fragments: int, offsets: tuple[int, ...], frames: int, match: str, refuse: Refuse
) -> None:
    data = encapsulated([STREAMS[JPEG_2000]] * fragments, JPEG_2000, offsets, frames=frames)
    refuse(data, match)


def test_an_extended_offset_table_cannot_multiply_its_file(refuse: Refuse) -> None:
    data = STREAMS[JPEG_2000]
    count = 1000
    tables = [struct.pack("<Q", 0) * count, struct.pack("<Q", len(data)) * count]
    extended = element(0x7FE00001, b"OB", tables[0]) + element(0x7FE00002, b"OB", tables[1])
    pixels = element(0x7FE00010, b"OB", item() + item(data + b"\0" * (len(data) % 2)), UNDEFINED)
    whole = dicom(header(frames=count), extended, pixels, SEQUENCE_END, syntax=JPEG_2000)
    refuse(whole, "more encoded frames")


def test_many_frames_take_time_in_proportion(given: Callable[[bytes], Path]) -> None:
    """Without an offset table, pydicom looks for each frame from the start."""
    runs = struct.pack("<L15L", 1, 64, *[0] * 14) + b"\xf1\x07"
    path = given(encapsulated([runs] * 3000, RLE, frames=3000))
    started = time.perf_counter()
    pixels = np.asarray(read(path).pixels)
    assert time.perf_counter() - started < 10
    assert pixels.shape == (3000, 4, 4)


def test_run_lengths_cannot_multiply_their_frame(refuse: Refuse) -> None:
    head = struct.pack("<L15L", 1, 64, *[0] * 14)
    refuse(encapsulated([head + b"\x81\x00" * 100_000], RLE), "more run lengths than pixels")


@pytest.mark.parametrize("offsets", [(2**31, 64), (80, 64), (64, 2**32 - 1)])
def test_run_lengths_lie_inside_their_frame(offsets: tuple[int, int], refuse: Refuse) -> None:
    head = struct.pack("<L15L", 2, *offsets, *[0] * 13)
    data = encapsulated([head + b"\xf1\x07" * 16], RLE, bits=16)
    refuse(data, "outside its frame")


def test_native_pixels_are_not_taken_for_encapsulated_ones(refuse: Refuse) -> None:
    data = STREAMS[JPEG_2000]
    refuse(encapsulated([data], EXPLICIT), "encapsulated pixel data in Explicit VR")
    refuse(native(syntax=JPEG_2000), "native pixel data in JPEG 2000")


# Names and preambles ------------------------------------------------------------------------------

PREAMBLES = {
    "executable": b"MZ\x90\0\x03",
    "elf": b"\x7fELF\x02\x01\x01",
    "html": b"<html><script>alert(1)</script>",
    "tiff": b"II*\0\x08\0\0\0",
    "nifti": struct.pack("<L", 348),
}


@pytest.mark.parametrize("kind", PREAMBLES)
def test_a_preamble_is_not_looked_at(kind: str, given: Callable[[bytes], Path]) -> None:
    expected = image(native(), given)
    preamble = PREAMBLES[kind].ljust(128, b"\0")
    found = image(preamble + native()[128:], given)
    assert found.kind == "dicom"
    assert found.pixels_sha256 == expected.pixels_sha256
    assert found.file_sha256 != expected.file_sha256


def test_no_path_is_made_of_a_uid(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    uid = b"../../outside"
    tags = [(0x00080018, b"UI"), (0x0020000D, b"UI"), (0x0020000E, b"UI"), (0x00041500, b"CS")]
    data = dicom(
        *(element(tag, vr, uid) for tag, vr in sorted(tags)),
        header(),
        element(0x7FE00010, b"OB", bytes(16)),
    )
    (folder / "image.dcm").write_bytes(data)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    there = sorted(os.listdir())
    assert read(folder).identifiers.sop_uids == ("../../outside",)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    assert sorted(os.listdir()) == there


def test_the_digest_is_that_of_the_file(given: Callable[[bytes], Path]) -> None:
    for data in (native(), native(frames=2, pixels=bytes(32)), deflated(native())):
        assert image(data, given).file_sha256 == hashlib.sha256(data).hexdigest()


def test_the_header_alone_is_read_within_the_limits(
    given: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = given(deflated(dicom(header(), element(0x7FE00010, b"OB", bytes(2**22)))))
    assert "PixelData" not in dicom_files.header(path)
    monkeypatch.setenv("MEDQA_MAX_FILE_GIB", str(1 / 2**10))
    with pytest.raises(MedqaError, match="inflates"), reading(path):
        dicom_files.header(path)


def test_the_limit_of_an_image_is_eight_gibibytes() -> None:
    assert limits().image_bytes == 8 * 2**30
