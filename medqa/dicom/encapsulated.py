"""Encapsulated Pixel Data: its frames, and the size that each states of itself.

A codec believes the header of the codestream, not the data set: 65,535 x 65,535 pixels fit into a
file of a kilobyte. `encoded_frames` refuses a codestream that is not of the size of the image, so
that no codec is shown it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.encaps import generate_fragments, generate_frames, parse_basic_offsets, parse_fragments
from pydicom.uid import RLELossless

from medqa.limits import RefusedError

__all__ = ["CodestreamSize", "codestream_size", "encoded_frames"]

_DAMAGED = "the file is damaged: fetch it again, or convert it with another tool"

# Frame headers: every SOF of ITU-T T.81 B.1.1.3 (C0 to CF without DHT, JPG and DAC), and SOF55 of
# JPEG-LS (T.87 C.1.1). RSTn, SOI, EOI and TEM stand alone.
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_END = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000
_TAIL = 10  # bytes at the end that hold it, as in pydicom: some writers align frames to 8 bytes
_JPEG_ALONE = {0x01, *range(0xD0, 0xDA)}
_JPEG_SCAN = 0xDA
_JP2 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_JPEG_XL = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
# ISO/IEC 18181-1 D.2: bits of the four ways to write a length; width to height of the seven ratios.
_JPEG_XL_BITS = (9, 13, 18, 30)
_JPEG_XL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
# A run takes two bytes and a byte that cannot be repeated two; PackBits may hold no-ops besides.
_RLE_SLACK = 2


@dataclass(frozen=True)
class CodestreamSize:
    """What a codestream states of itself; components and bits are None for JPEG XL."""

    rows: int
    columns: int
    components: int | None = None
    bits: int | None = None


def codestream_size(data: bytes) -> CodestreamSize | None:
    """Size in the header of a JPEG, JPEG-LS, JPEG 2000, HTJ2K or JPEG XL codestream.

    Returns
    -------
    None where the bytes begin like none of these, or end before the size.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
        if data[:12] == _JP2:
            return _jpeg_2000(_box(data, b"jp2c"))
        if data[:4] == b"\xff\x4f\xff\x51":
            return _jpeg_2000(data)
        if data[:12] == _JPEG_XL:
            return _jpeg_xl(_box(data, b"jxlc", b"jxlp"))
        if data[:2] == b"\xff\x0a":
            return _jpeg_xl(data)
    except IndexError:
        return None
    return None


def encoded_frames(ds: Dataset) -> list[bytes]:
    """Join the encoded frames of encapsulated Pixel Data from their fragments (PS3.5 A.4).

    Raises
    ------
    RefusedError
        There are not as many as the header says, an offset table does not point at them, or a
        codestream is not of the size of the image.
    """
    stored, count = ds.PixelData, max(1, int(ds.get("NumberOfFrames") or 1))
    _check_fragments(ds, stored, count)
    extended = None
    if ds.get("ExtendedOffsetTable") and ds.get("ExtendedOffsetTableLengths"):
        extended = (ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths)
    frames: list[bytes] = []
    held = 0
    for frame in generate_frames(stored, number_of_frames=count, extended_offsets=extended):
        held += len(frame)
        if held > len(stored) or len(frames) == count:
            raise RefusedError("has more encoded frames than its header says", _DAMAGED)
        _check_size(frame, ds)
        frames.append(frame)
    if len(frames) < count:
        raise RefusedError(f"has {len(frames)} of {count} encoded frames", _DAMAGED)
    return frames


def _check_fragments(ds: Dataset, stored: bytes, count: int) -> None:
    """Refuse fragments that do not fill Pixel Data, and a Basic Offset Table that misses them."""
    buffer = io.BytesIO(stored)
    table = parse_basic_offsets(buffer)
    start = buffer.tell()
    fragments, positions = parse_fragments(buffer)
    length = start + sum(8 + len(fragment) for fragment in generate_fragments(buffer))
    if not fragments or length != len(stored):
        raise RefusedError("has fragments that are cut short", _DAMAGED)
    if ds.get("ExtendedOffsetTable"):
        return
    pointed = {offset + start for offset in table}
    if table and (len(table) != count or not pointed <= set(positions)):
        raise RefusedError("has an offset table that does not point at its frames", _DAMAGED)


def _check_size(frame: bytes, ds: Dataset) -> None:
    rows, columns, samples = int(ds.Rows), int(ds.Columns), int(ds.get("SamplesPerPixel", 1))
    bits = int(ds.BitsAllocated)
    if ds.file_meta.TransferSyntaxUID == RLELossless:
        segments = samples * max(1, bits // 8)
        if len(frame) > 64 + segments * (_RLE_SLACK * rows * columns + 2):
            raise RefusedError("has more run lengths than pixels", _DAMAGED)
        offsets = [int.from_bytes(frame[at : at + 4], "little") for at in range(4, 64, 4)]
        if offsets[:segments] != sorted(offsets[:segments]) or max(offsets) > len(frame):
            raise RefusedError("has segments of run lengths outside its frame", _DAMAGED)
        return
    size = codestream_size(frame)
    if size is None:
        raise RefusedError("has an encoded frame without a header", _DAMAGED)
    if size.components is not None and _END not in frame[-_TAIL:]:
        raise RefusedError("holds a codestream without its end", _DAMAGED)
    if (size.rows, size.columns) != (rows, columns) or size.components not in (None, samples):
        stated = f"{size.rows} x {size.columns} x {size.components or samples}"
        reason = f"holds a codestream of {stated}, its header says {rows} x {columns} x {samples}"
        raise RefusedError(reason, _DAMAGED)
    if size.bits is not None and size.bits > bits:
        raise RefusedError(f"holds a codestream of {size.bits} bits in {bits} allocated", _DAMAGED)


def _word(data: bytes, at: int, length: int = 2) -> int:
    """Big-endian number; IndexError past the end."""
    if at + length > len(data):
        raise IndexError(at)
    return int.from_bytes(data[at : at + length], "big")


def _jpeg(data: bytes) -> CodestreamSize | None:
    at = 2
    while True:
        if data[at] != 0xFF:
            return None
        while data[at] == 0xFF:  # any number of fill bytes: T.81 B.1.1.2
            at += 1
        marker, at = data[at], at + 1
        if marker in _JPEG_FRAMES:
            return CodestreamSize(
                _word(data, at + 3), _word(data, at + 5), _word(data, at + 7, 1), data[at + 2]
            )
        if marker == _JPEG_SCAN:
            return None
        if marker not in _JPEG_ALONE:
            at += _word(data, at)


def _jpeg_2000(data: bytes) -> CodestreamSize | None:
    """SIZ, which comes first (ISO/IEC 15444-1 A.5.1)."""
    if data[:4] != b"\xff\x4f\xff\x51":
        return None
    right, bottom, left, top = (_word(data, at, 4) for at in range(8, 24, 4))
    components = _word(data, 40)
    sizes = [data[at : at + 3] for at in range(42, 42 + 3 * components, 3)]
    if len(sizes[-1:]) == 0 or len(sizes[-1]) < 3 or any(size[1:] != b"\1\1" for size in sizes):
        return None  # subsampled components: in no photometric interpretation that is read here
    return CodestreamSize(
        bottom - top, right - left, components, max((size[0] & 0x7F) + 1 for size in sizes)
    )


def _box(data: bytes, *kinds: bytes) -> bytes:
    """Content of the first box of one of these kinds (ISO/IEC 15444-1 I.4); IndexError if none."""
    at = 0
    while True:
        length, kind, header = _word(data, at, 4), data[at + 4 : at + 8], 8
        if length == 1:
            length, header = _word(data, at + 8, 8), 16
        if kind in kinds:
            return data[at + header + (4 if kind == b"jxlp" else 0) :][: 2**16]
        if length < header:
            raise IndexError(at)
        at += length


def _jpeg_xl(data: bytes) -> CodestreamSize:
    """SizeHeader, which comes first, least significant bit first (ISO/IEC 18181-1 D.2)."""
    if len(data) < 16:
        data = data + bytes(16 - len(data))
    bits = int.from_bytes(data[2:16], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def length(small: int) -> int:
        return 8 * (take(5) + 1) if small else take(_JPEG_XL_BITS[take(2)]) + 1

    small = take(1)
    rows = length(small)
    ratio = take(3)
    if ratio:
        across, down = _JPEG_XL_RATIOS[ratio - 1]
        return CodestreamSize(rows, rows * across // down)
    return CodestreamSize(rows, length(small))
