"""NIfTI-1 and NIfTI-2 files to an `Image`, turned so that an axial slice looks as on a display."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

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
from medqa.image import Image, changed, gather

__all__ = ["is_nifti", "read_nifti"]

_GZIP = b"\x1f\x8b"
_NIFTI1 = (b"n+1\0", b"ni1\0")  # one file, or .hdr and .img
_NIFTI2 = (b"n+2\0", b"ni2\0")


def is_nifti(path: Path) -> bool:
    """Whether a file holds NIfTI, by its content; an .img is judged by the .hdr beside it."""
    with _stream(_header_path(path)) as stream:
        try:
            return _magic(stream.read(348)) in (*_NIFTI1, *_NIFTI2)
        except (OSError, EOFError, zlib.error):
            return False


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

    Of a large file that is not compressed and holds its axial slices one after another, a slice
    is read when it is asked for. Of any other large file, the whole array stays in memory in the
    type in which it was stored, and a slice is scaled when it is asked for.

    Raises
    ------
    ReadError
        The file is damaged, too large, complex, or has more than four dimensions.
    """
    try:
        files, digest = _files(path)
        with ExitStack() as stack:
            image = _open([stack.enter_context(_stream(file)) for file in files])
            _check(image, path)
            turn, affine = _turn(image)
            stored = _stored(image, files[-1], turn)
        shape = (*image.shape, 1, 1)[:4]
        count = shape[int(np.flatnonzero(turn[:, 0] == 2)[0])]
        volumes = shape[3]
        pixels = gather(lambda index: _values(stored(index), image), count * volumes, str(path))
        if _files(path)[1] != digest:
            raise changed(path)
    except ReadError:
        raise
    except Exception as cause:  # nibabel, gzip and numpy raise nearly every type there is
        mend = "the file is damaged or truncated: fetch it again"
        detail = str(cause) or type(cause).__name__
        raise ReadError(path, "cannot be read as NIfTI", mend, detail) from cause
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    known = bool(image.header["qform_code"] > 0 or image.header["sform_code"] > 0)
    return Image(
        pixels=pixels,
        source=str(path),
        kind="nifti",
        value_range=_value_range(image),
        spacing_mm=(float(sizes[0]) * (count > 1), float(sizes[1]), float(sizes[2])),
        affine=affine if known else None,
        volumes=volumes,
        file_sha256=digest,
    )


def _files(path: Path) -> tuple[list[Path], str]:
    """One file, or header and pixels; and their digest, of a pair as of a series."""
    header = _header_path(path)
    with _stream(header) as stream:
        single = _magic(stream.read(348)) in (_NIFTI1[0], _NIFTI2[0])
    files = [header] if single else [header, header.with_suffix(".img")]
    digests = []
    for file in files:
        with file.open("rb") as raw:
            digests.append(hashlib.file_digest(raw, "sha256").hexdigest())
    joined = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return files, digests[0] if single else joined


def _open(streams: Sequence[IO[bytes]]) -> Any:
    """Wrap one stream, or header and pixels."""
    magic = _magic(streams[0].read(348))
    streams[0].seek(0)
    holders = {
        "header": FileHolder(fileobj=streams[0]),
        "image": FileHolder(fileobj=streams[-1]),
    }
    kinds = dict(
        zip(
            (*_NIFTI1, *_NIFTI2),
            (nib.Nifti1Image, nib.Nifti1Pair, nib.Nifti2Image, nib.Nifti2Pair),
            strict=True,
        )
    )
    return kinds[magic].from_file_map(holders, mmap=False)


def _stream(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if _zipped(path) else path.open("rb")


def _zipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


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


def _turn(image: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Orientation that takes (x, y, z) to left, posterior, superior; affine of the turned array."""
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("LPS"))
    of_lps = image.affine @ inv_ornt_aff(turn, (*image.shape, 1)[:3])
    return turn, np.asarray(of_lps[:, [2, 1, 0, 3]], np.float64)


def _stored(image: Any, path: Path, turn: NDArray[Any]) -> Callable[[int], NDArray[Any]]:
    """Return what reads a slice as it is stored, turned: (rows, columns)."""
    proxy = image.dataobj
    x, y, z, _ = (*image.shape, 1, 1)[:4]
    if _zipped(path) or turn[2, 0] != 2:
        # (x, y, z, volume) to (volume, slice, row, column)
        whole = apply_orientation(proxy.get_unscaled().reshape(x, y, z, -1), turn).T
        return lambda index: whole[divmod(index, whole.shape[1])]
    offset, dtype, flipped = proxy.offset, proxy.dtype, turn[2, 1] < 0

    def read(index: int) -> NDArray[Any]:
        volume, place = divmod(index, z)
        place = volume * z + (z - 1 - place if flipped else place)
        with path.open("rb") as file:
            file.seek(offset + place * x * y * dtype.itemsize)
            data = file.read(x * y * dtype.itemsize)
        if len(data) < x * y * dtype.itemsize:
            mend = "the file is damaged or truncated: fetch it again"
            raise ReadError(path, f"ends in slice {index + 1}", mend)
        # (x, y, 1, 1) to (1, 1, row, column)
        plane = np.frombuffer(data, dtype).reshape((x, y, 1, 1), order="F")
        turned: NDArray[Any] = apply_orientation(plane, turn).T[0, 0]
        return turned

    return read


def _value_range(image: Any) -> tuple[float, float] | None:
    """Lowest and highest value that the stored format can hold; None for floating point."""
    dtype = image.get_data_dtype()
    if dtype.names is not None:
        return 0.0, 255.0
    if dtype.kind not in "iu":
        return None
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    low, high = sorted(v * slope + inter for v in (np.iinfo(dtype).min, np.iinfo(dtype).max))
    return low, high


def _values(stored: NDArray[Any], image: Any) -> NDArray[Any]:
    """Scale a slice as the header says."""
    if stored.dtype.names is not None:  # RGB or RGBA: three or four uint8 fields
        colours = np.stack([stored[name] for name in stored.dtype.names[:3]], axis=-1)
        return luminance(colours, 255)
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    if stored.dtype.kind in "iu" and (slope, inter) == (1.0, 0.0):
        return stored.astype(stored.dtype.newbyteorder("="))
    return (stored.astype(np.float64) * slope + inter).astype(np.float32)
