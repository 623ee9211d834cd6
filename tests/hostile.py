"""DICOM files built byte by byte, so that they can say what no library would write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

UNDEFINED = 0xFFFFFFFF
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
JPEG, LOSSLESS, JPEG_LS = (f"1.2.840.10008.1.2.4.{last}" for last in (50, 70, 80))
JPEG_2000, HTJ2K, RLE = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.5"
JPEG_XL = "1.2.840.10008.1.2.4.110"

ITEM, ITEM_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0\0\0\0\0"
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
_LONG = (b"OB", b"OW", b"OF", b"SQ", b"UN", b"UT", b"UC")


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An explicit little-endian element; `length` may lie."""
    if len(value) % 2:
        value += b"\0" if vr in (b"UI", b"OB") else b" "
    size = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return (
        head
        + struct.pack("<HL" if vr in _LONG else "<H", *((0,) if vr in _LONG else ()), size)
        + value
    )


def item(value: bytes = b"", length: int | None = None) -> bytes:
    return ITEM + struct.pack("<L", len(value) if length is None else length) + value


def dicom(*elements: bytes, syntax: str = EXPLICIT, preamble: bytes = bytes(128)) -> bytes:
    """A file of these elements, which are written as they are."""
    assert len(preamble) == 128
    return preamble + b"DICM" + element(0x00020010, b"UI", syntax.encode()) + b"".join(elements)


def deflated(data: bytes) -> bytes:
    """Deflate what comes after the file meta information of `dicom`."""
    start = len(dicom())
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return dicom(packer.compress(data[start:]) + packer.flush(), syntax=DEFLATED)


def header(
    rows: int = 4, columns: int = 4, frames: int | None = None, bits: int = 8, samples: int = 1
) -> bytes:
    """Elements of an image up to its Pixel Data."""
    short = struct.Struct("<H").pack
    kind = b"MONOCHROME2" if samples == 1 else b"RGB"
    parts = [element(0x00280002, b"US", short(samples)), element(0x00280004, b"CS", kind)]
    if samples > 1:
        parts.append(element(0x00280006, b"US", short(0)))
    if frames is not None:
        parts.append(element(0x00280008, b"IS", str(frames).encode()))
    numbers = {0x10: rows, 0x11: columns, 0x100: bits, 0x101: bits, 0x102: bits - 1, 0x103: 0}
    parts += [element(0x00280000 | tag, b"US", short(n)) for tag, n in numbers.items()]
    return b"".join(parts)


def native(pixels: bytes | None = None, syntax: str = EXPLICIT, **elements: int) -> bytes:
    """A file of native pixels, all 8 bits of (4, 4) unless it is said otherwise."""
    pixels = bytes(range(16)) if pixels is None else pixels
    vr = b"OB" if elements.get("bits", 8) <= 8 else b"OW"
    return dicom(header(**elements), element(0x7FE00010, vr, pixels), syntax=syntax)


def encapsulated(
    fragments: Sequence[bytes], syntax: str, offsets: Sequence[int] = (), **elements: int
) -> bytes:
    """A file of encapsulated pixel data."""
    table = item(struct.pack(f"<{len(offsets)}L", *offsets))
    data = table + b"".join(item(one + b"\0" * (len(one) % 2)) for one in fragments)
    pixels = element(0x7FE00010, b"OB", data, UNDEFINED) + SEQUENCE_END
    return dicom(header(**elements), pixels, syntax=syntax)
