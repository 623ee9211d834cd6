"""The bytes of a NIfTI file: what a file is, which two belong together, what they unpack to."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medqa.errors import ReadError

__all__ = [
    "DAMAGED",
    "TRUNCATED",
    "Format",
    "digest",
    "ended",
    "format_of",
    "head",
    "header_path",
    "most_bytes",
    "opened",
    "overlong",
    "unpack",
]

Format = Literal["NIfTI", "NIfTI pair", "Analyze 7.5", "FreeSurfer MGH"]

DAMAGED = "the file is damaged: fetch it again, or save it again with the program it is from"
TRUNCATED = "the file is damaged or truncated: fetch it again"
"""What to do about it."""

_GZIP = b"\x1f\x8b"
_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540
_START = 2**16  # of a compressed file: more than a header and the file's name take
# A bit of deflate never unpacks to more: 258 bytes for a length and a distance of one bit each
# (RFC 1951, 3.2.5).
_MOST_UNPACKED = 1032
_CHUNK = 2**20
_MGH_TYPES = (0, 1, 3, 4, 10)  # uint8, int32, float32, int16, uint16

_OTHERS = {
    "Analyze 7.5": "convert it to NIfTI with a program that knows left from right in it",
    "FreeSurfer MGH": "convert it with mri_convert to .nii.gz",
}


def head(path: Path) -> bytes:
    """First 540 bytes of a file, unpacked; fewer where it is shorter or damaged."""
    with path.open("rb") as file:
        start = file.read(_START)
    if not start.startswith(_GZIP):
        return start[:_NIFTI2_BYTES]
    unpacker, found = zlib.decompressobj(16 + zlib.MAX_WBITS), b""
    # In two parts: at the end of a tiny NIfTI-1 file lies a checksum, which is not for us.
    with suppress(zlib.error):
        found = unpacker.decompress(start, _NIFTI1_BYTES)
        found += unpacker.decompress(unpacker.unconsumed_tail, _NIFTI2_BYTES - _NIFTI1_BYTES)
    return found


def format_of(start: bytes) -> Format | None:
    """Tell what a file is by its first 540 bytes; Analyze and MGH only to be refused by name."""
    for magic in (start[4:8], start[344:348]):  # of NIfTI-2, of NIfTI-1
        if magic in (b"n+1\0", b"n+2\0"):
            return "NIfTI"
        if magic in (b"ni1\0", b"ni2\0"):
            return "NIfTI pair"
    if len(start) < 284:  # the shorter of the two other headers
        return None
    for order in "<>":
        # Analyze: its own length, and from 1 to 7 dimensions.
        if struct.unpack_from(f"{order}i", start)[0] == 348:
            dimensions = struct.unpack_from(f"{order}h", start, 40)[0]
            return "Analyze 7.5" if 1 <= dimensions <= 7 else None
    version, *sizes, kind = struct.unpack_from(">6i", start)
    if version == 1 and min(sizes) > 0 and max(sizes) < 2**16 and kind in _MGH_TYPES:
        return "FreeSurfer MGH"
    return None


def opened(path: Path) -> tuple[list[Path], Any, str]:
    """Return one file, or header and pixels; nibabel's header; and the files' digest.

    Extensions are never read: the pixels' place is known without them.
    """
    first = header_path(path)
    start = head(first)
    found = format_of(start)
    if found in _OTHERS:
        raise ReadError(path, f"is {found}, or NIfTI with a damaged header", _OTHERS[found])
    if found is None:
        raise ReadError(path, "is not NIfTI", "give a NIfTI file")
    paths = [first, _pixel_path(first)] if found == "NIfTI pair" else [first]
    sha256 = digest(paths)
    kind = nib.Nifti2Header if start[4:8] in (b"n+2\0", b"ni2\0") else nib.Nifti1Header
    size = kind.sizeof_hdr
    orders = {size.to_bytes(4, order): sign for order, sign in (("little", "<"), ("big", ">"))}
    if len(start) < size or start[:4] not in orders:  # sizeof_hdr
        raise ReadError(path, f"has no header of {size} bytes", DAMAGED)
    header = kind(start[:size], orders[start[:4]], check=False)
    if kind is nib.Nifti2Header and header["eol_check"].tolist() not in ([13, 10, 26, 10], [0] * 4):
        mend = "transfer it as a binary file"
        raise ReadError(path, "had its line ends changed on the way", mend)
    least = size + 4 if found == "NIfTI" else 0  # 4 bytes say whether extensions follow
    if not (header["vox_offset"] >= least and float(header["vox_offset"]).is_integer()):
        reason = f"says that its pixels start at byte {header['vox_offset']}"
        raise ReadError(path, reason, DAMAGED)
    return paths, header, sha256


def header_path(path: Path) -> Path:
    """File of the header: for an .img or .img.gz, the .hdr or .hdr.gz beside it."""
    stem = _without(path, ".img")
    beside = [path.with_name(stem + end) for end in (".hdr", ".hdr.gz")] if stem else []
    return next((one for one in beside if one.is_file()), path)


def _pixel_path(header: Path) -> Path:
    """File of the pixels of a pair, by its header's name: never by what the header says."""
    stem = _without(header, ".hdr")
    if stem is None:
        mend = "name the header .hdr and the pixels .img, or save both as one .nii"
        raise ReadError(header, "is the header of a pair, but not named .hdr", mend)
    beside = [header.with_name(stem + end) for end in (".img", ".img.gz")]
    for one in beside:
        if one.is_file():
            return one
    raise ReadError(beside[0], "is missing", "put the pixels beside their header")


def digest(paths: Sequence[Path]) -> str:
    """SHA-256 of a file; of a pair, as of a series: of the hex digests joined by newlines."""
    digests = []
    for path in paths:
        with path.open("rb") as raw:
            digests.append(hashlib.file_digest(raw, "sha256").hexdigest())
    joined = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return digests[0] if len(digests) == 1 else joined


def most_bytes(path: Path) -> int | None:
    """How many bytes a compressed file unpacks to, at most; None for one that is not compressed."""
    return path.stat().st_size * _MOST_UNPACKED if _zipped(path) else None


def unpack(path: Path, offset: int, size: int) -> NDArray[np.uint8]:
    """Return (size,) bytes from the offset to the end, unpacking no more than those.

    Raises
    ------
    ReadError
        The file ends before or after them.
    OSError, EOFError, zlib.error
        It is damaged: the end of a gzip file holds a checksum, which is compared.
    """
    with _stream(path) as stream:
        left = offset
        while left:
            skipped = len(stream.read(min(left, _CHUNK)))
            if not skipped:
                raise ended(path, offset - left, offset + size)
            left -= skipped
        # Memory is taken as it is filled, not as it is asked for.
        data = np.empty(size, np.uint8)
        filled = 0
        while filled < size:
            chunk = stream.read(min(size - filled, _CHUNK))
            if not chunk:
                raise ended(path, offset + filled, offset + size)
            data[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
            filled += len(chunk)
        if stream.read(1):
            raise overlong(path)
    return data


def ended(path: Path, found: int, wanted: int) -> ReadError:
    """Return the error for a file that is shorter than its header says."""
    reason = f"ends after {found} of the {wanted} bytes that its header declares"
    return ReadError(path, reason, TRUNCATED)


def overlong(path: Path) -> ReadError:
    """Return the error for a file that is longer than its header says."""
    mend = "its header is wrong or its end is foreign: save it again with the program it is from"
    return ReadError(path, "goes on after the last pixel that its header declares", mend)


def _without(path: Path, end: str) -> str | None:
    """Name without this ending, compressed or not; None where it has another."""
    for one in (end, f"{end}.gz"):
        if path.name.lower().endswith(one):
            return path.name[: -len(one)]
    return None


def _stream(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if _zipped(path) else path.open("rb")


def _zipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP
