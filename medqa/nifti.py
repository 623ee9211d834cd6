"""NIfTI-1 and NIfTI-2 files to an `Image`, turned so that an axial slice looks as on a display."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.fileholders import FileHolder
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from medqa.dicom import MAX_BYTES
from medqa.dicom_pixels import luminance
from medqa.errors import ReadError
from medqa.image import Image

__all__ = ["is_nifti", "read_nifti"]

_GZIP = b"\x1f\x8b"
_NIFTI1 = (b"n+1\0", b"ni1\0")  # one file, or .hdr and .img
_NIFTI2 = (b"n+2\0", b"ni2\0")


def is_nifti(path: Path) -> bool:
    """Whether a file holds NIfTI, by its content; an .img is judged by the .hdr beside it."""
    with _header_path(path).open("rb") as file:
        zipped = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        try:
            head = gzip.GzipFile(fileobj=file).read(348) if zipped else file.read(348)
        except (OSError, EOFError, zlib.error):
            return False
    return _magic(head) in (*_NIFTI1, *_NIFTI2)


def _header_path(path: Path) -> Path:
    beside = path.with_suffix(".hdr")
    return beside if path.suffix == ".img" and beside.is_file() else path


def _magic(head: bytes) -> bytes:
    """Find the magic bytes, at 4 in a NIfTI-2 header (540 bytes) and at 344 in a NIfTI-1 header."""
    return head[4:8] if head[4:8] in _NIFTI2 else head[344:348]


def read_nifti(path: Path) -> Image:
    """Read a NIfTI file.

    The array is flipped and transposed, never resampled, to (slice, row, column) running
    superior, posterior and left as nearly as it can; the affine stays in RAS mm. Integers
    keep their type where the header does not scale them; everything else becomes float32.

    Raises
    ------
    ReadError
        The file is damaged, too large, complex, or has more than four dimensions.
    """
    try:
        image, digest = _open(path)
        _check(image, path)
        stored = np.asanyarray(image.dataobj.get_unscaled())
        # (x, y, z, volume)
        stored = stored.reshape(*stored.shape[:3], *[1] * (3 - stored.ndim), -1)
        turned, affine = _turn(stored, image.affine)
    except ReadError:
        raise
    except Exception as cause:  # nibabel, gzip and numpy raise nearly every type there is
        mend = "the file is damaged or truncated: fetch it again"
        detail = str(cause) or type(cause).__name__
        raise ReadError(path, "cannot be read as NIfTI", mend, detail) from cause
    volumes = turned.shape[0]
    pixels, value_range = _values(turned.reshape(-1, *turned.shape[2:]), image)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    known = bool(image.header["qform_code"] > 0 or image.header["sform_code"] > 0)
    return Image(
        pixels=pixels,
        source=str(path),
        kind="nifti",
        value_range=value_range,
        spacing_mm=(float(sizes[0]) * (turned.shape[1] > 1), float(sizes[1]), float(sizes[2])),
        affine=affine if known else None,
        volumes=volumes,
        file_sha256=digest,
    )


def _open(path: Path) -> tuple[Any, str]:
    """Wrap the bytes that were read, and digest them; a pair is digested as a series is."""
    header = _header_path(path)
    data = header.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    stream = _stream(data)
    magic = _magic(stream.read(348))
    stream.seek(0)
    holders = {"header": FileHolder(fileobj=stream), "image": FileHolder(fileobj=stream)}
    if magic in (_NIFTI1[1], _NIFTI2[1]):
        pixels = header.with_suffix(".img").read_bytes()
        digests = f"{digest}\n{hashlib.sha256(pixels).hexdigest()}"
        digest = hashlib.sha256(digests.encode()).hexdigest()
        holders["image"] = FileHolder(fileobj=_stream(pixels))
        kind = nib.Nifti1Pair if magic in _NIFTI1 else nib.Nifti2Pair
    else:
        kind = nib.Nifti1Image if magic in _NIFTI1 else nib.Nifti2Image
    return kind.from_file_map(holders), digest


def _stream(data: bytes) -> io.BytesIO | gzip.GzipFile:
    raw = io.BytesIO(data)
    return gzip.GzipFile(fileobj=raw) if data.startswith(_GZIP) else raw


def _check(image: Any, path: Path) -> None:
    dtype, shape = image.get_data_dtype(), image.shape
    if dtype.kind == "c":
        raise ReadError(path, "holds complex numbers", "save the magnitude")
    if len(shape) < 2 or int(np.prod(shape[4:])) != 1:
        reason = f"has {len(shape)} dimensions {shape}"
        raise ReadError(path, reason, "give an image of two, three or four dimensions")
    size = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    if size <= 0:
        raise ReadError(path, f"is empty, of shape {shape}", "give an image")
    if size > MAX_BYTES:
        reason = f"claims {size / 2**30:.0f} GiB of pixels, more than the {MAX_BYTES >> 30} allowed"
        raise ReadError(path, reason, "give fewer volumes; if it has fewer, its header is wrong")


def _turn(
    stored: NDArray[Any], affine: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """(x, y, z, volume) to (volume, slice, row, column), and the affine of the last three."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt("LPS"))
    lps = apply_orientation(stored, turn)
    of_lps = affine @ inv_ornt_aff(turn, stored.shape[:3])
    return lps.T, np.asarray(of_lps[:, [2, 1, 0, 3]], np.float64)


def _values(stored: NDArray[Any], image: Any) -> tuple[NDArray[Any], tuple[float, float] | None]:
    """Scale (slices, rows, columns) as the header says; return them with the format's range."""
    if stored.dtype.names is not None:  # RGB or RGBA: three or four uint8 fields
        colours = np.stack([stored[name] for name in stored.dtype.names[:3]], axis=-1)
        return luminance(colours, 255), (0.0, 255.0)
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    integer = stored.dtype.kind in "iu"
    ends = np.iinfo(stored.dtype) if integer else None
    bounds = sorted(v * slope + inter for v in (ends.min, ends.max)) if ends else None
    value_range = (bounds[0], bounds[1]) if bounds else None
    if integer and (slope, inter) == (1.0, 0.0):
        native = stored.dtype.newbyteorder("=")
        return np.ascontiguousarray(stored, native), value_range
    pixels = np.empty(stored.shape, np.float32)
    for out, one in zip(pixels, stored, strict=True):  # by slice, in double precision
        out[...] = one.astype(np.float64) * slope + inter
    return pixels, value_range
