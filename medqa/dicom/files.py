"""One DICOM file: what it is, whether it can be an image, and its frames when they are asked for.

`load` and `check` are for every object; `opened` hands out an image's frames as modality values.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate
from pydicom.filereader import data_element_generator
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RTDoseStorage,
    SegmentationStorage,
)

from medqa.dicom.codecs import is_readable
from medqa.dicom.encapsulated import encoded_frames
from medqa.dicom.pixels import COLOURS, frame_count, frames, grayscale
from medqa.dicom.stream import Meter, parse
from medqa.errors import MedqaError, ReadError
from medqa.image import changed
from medqa.limits import RefusedError, limits

__all__ = [
    "SEGMENTATIONS",
    "Decode",
    "check",
    "check_size",
    "header",
    "is_dicom",
    "is_image",
    "load",
    "opened",
    "reading",
]

Decode = Callable[[int], NDArray[Any]]
"""Takes the index of a frame; returns (rows, columns) of modality values; from any thread."""

SEGMENTATIONS = (SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of segmentations: binary or fractional, and label map."""

_PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
_NATIVE = (*_PLAIN, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
_ELEMENT = 1000  # reads that the header of one element may take, and those of 400 fragments
_PIXEL_DATA = 0x7FE00010
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with these 132 bytes is DICOM, with or without its preamble.

    PS3.10 7.1 demands the preamble; a file without it starts with the first element of its group
    2 or 8, little or big endian.
    """
    little = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
    big = head[:3] == b"\x00\x08\x00"
    return head[128:132] == b"DICM" or little or big


def is_image(header: Dataset) -> bool:
    """Whether an object can be an image at all; its pixel data need not have been read."""
    return "Rows" in header and header.get("SOPClassUID") not in (*SEGMENTATIONS, RTDoseStorage)


class _Filters:
    """Warning filters that hold while any thread is reading.

    They belong to the whole process: threads that overlap and each put back what they found would
    leave them wrong, and lose the error of a truncated file.
    """

    def __init__(self) -> None:
        self._lock, self._threads, self._before = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                self._before.enter_context(warnings.catch_warnings())
                # pydicom warns of sloppy headers that it reads correctly all the same ...
                warnings.filterwarnings("ignore", module=r"pydicom\.")
                # ... and of a file that ends inside an element, which it then leaves out.
                warnings.filterwarnings("error", message="End of file reached", module=r"pydicom\.")

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                self._before.close()


_FILTERS = _Filters()


@contextmanager
def reading(source: object, error: type[MedqaError] = ReadError) -> Iterator[None]:
    """Turn whatever a damaged or hostile file makes the libraries raise into an `error`."""
    with _FILTERS:
        try:
            yield
        except MedqaError:
            raise
        except RefusedError as cause:
            raise error(source, cause.reason, cause.mend) from cause
        except Exception as cause:  # pydicom and its codecs raise nearly every type there is
            mend = "if it is not damaged or truncated, convert it with another tool"
            detail = str(cause) or type(cause).__name__
            raise error(source, "cannot be read", mend, detail) from cause


def load(path: Path) -> tuple[Dataset, str]:
    """Parse a file; return it with the SHA-256 of exactly the bytes that were parsed."""
    most = limits()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most.file_bytes:
            reason = f"is larger than the {most.file_bytes / 2**30:.3g} GiB allowed"
            raise ReadError(path, reason, "set MEDQA_MAX_FILE_GIB if you trust it")
        data = file.read(size)
    ds = parse(io.BytesIO(data), len(data), most)
    if "TransferSyntaxUID" not in ds.file_meta:  # without it, pixel data is never compressed
        implicit, little = ds.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return ds, hashlib.sha256(data).hexdigest()


def header(path: Path) -> Dataset:
    """Parse a file up to its pixel data."""
    with path.open("rb") as file:
        return parse(file, os.fstat(file.fileno()).st_size, limits(), stop_before_pixels=True)


def check(ds: Dataset, source: object) -> None:
    """Refuse what is not an image, cannot be shown or is too large, before anything is decoded."""
    sop_class = ds.get("SOPClassUID")
    if sop_class in SEGMENTATIONS:
        raise ReadError(source, "is a segmentation, not an image", "pass it with --mask")
    if sop_class == RTDoseStorage:
        raise ReadError(source, "is a dose grid, not an image", "give the image it was planned on")
    if "TotalPixelMatrixColumns" in ds:
        raise ReadError(source, "is a tiled whole-slide image", "give a radiology image")
    if not any(keyword in ds for keyword in _PIXELS):
        kind = sop_class.name if sop_class else "object of unknown class"
        reason = f"holds no pixel data ({kind})"
        mend = "give an image object; if it should be one, it is truncated: fetch it again"
        raise ReadError(source, reason, mend)
    photometric = str(ds.get("PhotometricInterpretation", ""))
    colour = photometric in COLOURS
    if not colour and photometric not in ("MONOCHROME1", "MONOCHROME2"):
        reason = f"photometric interpretation {photometric or 'missing'} is not supported"
        raise ReadError(source, reason, "store it as MONOCHROME2 or RGB")
    expected = 3 if colour and photometric != "PALETTE COLOR" else 1
    if int(ds.get("SamplesPerPixel", 1)) != expected:
        reason = f"{photometric} with {ds.SamplesPerPixel} samples per pixel"
        raise ReadError(source, reason, "its header is wrong: convert it again")
    if photometric == "MONOCHROME1" and "PixelData" not in ds:
        # A floating point range has no ends to turn around.
        raise ReadError(source, "holds floating point MONOCHROME1", "store it as MONOCHROME2")
    check_size(ds, source)


def check_size(ds: Dataset, source: object) -> None:
    """Refuse an empty image, and one that is larger than the limits, by its header."""
    most, count = limits(), frame_count(ds)
    rows, columns, bits = int(ds.Rows), int(ds.Columns), int(ds.BitsAllocated)
    samples = int(ds.get("SamplesPerPixel", 1))
    size = rows * columns * count * samples * max(8, bits) // 8
    if size <= 0:
        raise ReadError(source, f"has {rows} rows and {columns} columns", "give an image")
    mend = "give fewer frames; if it has fewer, its header is wrong"
    if size > most.image_bytes:
        allowed = f"{most.image_bytes / 2**30:.3g}"
        reason = f"claims {size / 2**30:.3g} GiB of pixels, more than the {allowed} allowed"
        raise ReadError(source, reason, mend)
    if count > most.frames:
        raise ReadError(source, f"claims {count} frames, more than {most.frames}", mend)
    if rows * columns > most.frame_pixels:
        reason = f"claims frames of {rows} x {columns}, more than {most.frame_pixels} pixels"
        raise ReadError(source, reason, "give an image of radiology")


def opened(path: Path, *, alone: bool) -> tuple[Dataset, str, Decode]:
    """Return a file's header, its SHA-256, and what decodes its frames.

    Of an uncompressed multi-frame file, a frame is read when it is asked for. Any other file that
    is alone stays in memory as it was stored; a file of a series is read again. What is read
    again must have the digest that it had.

    Raises
    ------
    ReadError
        The file is damaged or holds no image that can be shown.
    """
    with reading(path):
        framed = _framed(path) if alone else None
        if framed is not None:
            return framed
        ds, sha256 = load(path)
        check(ds, path)
        decode = _decoder(ds, path)
        if alone:
            return ds, sha256, decode
        return _without_pixels(ds), sha256, partial(_reloaded, path, sha256)


def _framed(path: Path) -> tuple[Dataset, str, Decode] | None:
    """Header and SHA-256 of an uncompressed multi-frame file, and what decodes one of its frames.

    None for any other file, and where a frame's place does not follow from the header: frames
    that end inside a byte or a word, shared chroma, a length that is not what the header says.
    """
    with path.open("rb") as file:
        size, most = os.fstat(file.fileno()).st_size, limits()
        ds = parse(file, size, most, stop_before_pixels=True)
        if ds.file_meta.get("TransferSyntaxUID") not in _PLAIN:
            return None
        end = file.tell()
        implicit, little = (bool(one) for one in ds.original_encoding)
        meter = Meter(file, size, _ELEMENT)
        element = next(data_element_generator(meter.file, implicit, little, defer_size=1), None)
        if not isinstance(element, RawDataElement) or element.tag != _PIXEL_DATA:
            return None
        if element.value_tell > most.file_bytes:
            return None
        file.seek(0)
        head = file.read(element.value_tell)
        # Once more, of the very bytes that are digested.
        ds = parse(io.BytesIO(head[:end]), end, most)
        ds.add_new("PixelData", element.VR or "OW", b"")  # it has some, but not here
        check(ds, path)
        count = frame_count(ds)
        values = int(ds.Rows) * int(ds.Columns) * int(ds.get("SamplesPerPixel", 1))
        length, odd = divmod(values * int(ds.BitsAllocated), 16)
        length *= 2
        shared = ds.PhotometricInterpretation == "YBR_FULL_422"
        whole = element.length == length * count <= size - len(head)
        if count < 2 or odd or shared or not whole:
            return None
        file_digest, digests = hashlib.sha256(head), []
        for _ in range(count):
            stored = file.read(length)
            file_digest.update(stored)
            digests.append(hashlib.sha256(stored).digest())
        while rest := file.read(2**20):
            file_digest.update(rest)
    found = _Frames(ds, path, len(head), length, digests)
    return ds, file_digest.hexdigest(), found.decode


@dataclass(frozen=True, eq=False)
class _Frames:
    """Frames that lie one after another in a file, from `start`, each of `length` bytes."""

    header: Dataset
    path: Path
    start: int
    length: int
    sha256: Sequence[bytes]

    def decode(self, index: int) -> NDArray[Any]:
        """Modality values of a frame."""
        with self.path.open("rb") as file:
            file.seek(self.start + index * self.length)
            stored = file.read(self.length)
        if hashlib.sha256(stored).digest() != self.sha256[index]:
            raise changed(self.path)
        with reading(self.path):
            return _single(self.header, self.path, self.header["PixelData"].VR, stored, index)


def _decoder(ds: Dataset, path: Path) -> Decode:
    """Hold the pixel data of a file in memory against its header; return what decodes a frame."""
    syntax = ds.file_meta.TransferSyntaxUID
    keyword = next(keyword for keyword in _PIXELS if keyword in ds)
    element = ds[keyword]
    if not is_readable(syntax):
        return partial(_frame, ds, path)  # which says what would help
    native, stored = syntax in _NATIVE, element.value or b""
    if native == bool(element.is_undefined_length):
        reason = f"has {'encapsulated' if native else 'native'} pixel data in {syntax.name}"
        raise RefusedError(reason, "its header is wrong: convert it again")
    if not native:
        encoded = encoded_frames(ds)
        return partial(_encoded, _without_pixels(ds), path, element.VR, encoded)
    expected = get_expected_length(ds)
    if len(stored) < expected:
        reason = f"claims {expected} bytes of pixels and has {len(stored)}"
        raise RefusedError(reason, "the file is damaged or truncated: fetch it again")
    # To even length with anything, beyond with zeros; all else is rows that would be lost.
    if stored[expected + expected % 2 :].strip(b"\0"):
        reason = f"has {len(stored) - expected} bytes more of pixels than its header says"
        raise RefusedError(reason, "its header is wrong: convert it again")
    return partial(_frame, ds, path)


def _without_pixels(ds: Dataset) -> Dataset:
    for keyword in _PIXELS:
        ds.pop(keyword, None)
    return ds


def _encoded(ds: Dataset, path: Path, vr: str, stored: Sequence[bytes], index: int) -> NDArray[Any]:
    """Modality values of an encoded frame, found once: looking for it takes a look at them all."""
    with reading(path):
        return _single(ds, path, vr, encapsulate([stored[index]]), index)


def _single(ds: Dataset, path: Path, vr: str, stored: bytes, index: int) -> NDArray[Any]:
    """Modality values of a frame whose Pixel Data lies apart from the header."""
    one = ds.group_dataset(0x0028)  # all that decoding takes: PS3.3 C.7.6.3
    one.file_meta = ds.file_meta
    one.NumberOfFrames = 1
    one.add_new("PixelData", vr, stored)
    one["PixelData"].is_undefined_length = ds.file_meta.TransferSyntaxUID not in _NATIVE
    return grayscale(next(frames(one, path)), ds, index)


def _frame(ds: Dataset, path: Path, index: int) -> NDArray[Any]:
    """Modality values of a frame of a file that is in memory."""
    with reading(path):
        return grayscale(next(frames(ds, path, [index])), ds, index)


def _reloaded(path: Path, sha256: str, index: int) -> NDArray[Any]:
    """Modality values of a frame of a file that is read once more."""
    with reading(path):
        ds, found = load(path)
        if found != sha256:
            raise changed(path)
        return _decoder(ds, path)(index)
