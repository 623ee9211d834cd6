"""An image with its values as they are stored, which a codec takes, and how to show what it makes.

The values that a codec returns go through the same modality transform as the reference did when it
was read, so that only the compression differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000MC,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from medqa.compression.codecs import Samples
from medqa.dicom.files import check, load, reading
from medqa.dicom.pixels import COLOURS, frames, grayscale
from medqa.errors import ReadError
from medqa.image import Image, changed
from medqa.reader import dicom_files, read

__all__ = ["StoredImage", "read_stored"]

_ALWAYS_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
_MAYBE_LOSSY = (JPEG2000, JPEG2000MC, HTJ2K, "1.2.840.10008.1.2.4.112")  # the last is JPEG XL
_ORIGINALS = "give images that were never compressed with loss"


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image and what it is made of.

    Parameters
    ----------
    image
        As `medqa.read` returns it.
    samples
        How its values are stored.
    stored
        Takes the index of a slice and returns its (rows, columns) integers as stored.
    shown
        Takes the index of a slice and such integers; returns modality values as the image's.
    device
        Manufacturer and model, where the header says.
    """

    image: Image
    samples: Samples
    stored: Callable[[int], NDArray[Any]]
    shown: Callable[[int, NDArray[Any]], NDArray[Any]]
    device: str | None = None


def read_stored(paths: Sequence[Path]) -> StoredImage:
    """Read an image for compression.

    Parameters
    ----------
    paths
        The files of one image, as `medqa.read` takes them.

    Raises
    ------
    ReadError
        As of `medqa.read`; or it is in colour, of floating point, or was compressed with loss.
    """
    path = paths[0] if len(paths) == 1 else list(paths)
    image = read(path)
    made = _dicom(image, dicom_files(path)) if image.kind == "dicom" else _nifti(image)
    first = made.shown(0, made.stored(0))
    if not np.array_equal(first, image.pixels[0]):  # fail closed: compression alone may differ
        mend = "convert it with another tool"
        raise ReadError(image.source, "its stored values do not lead to those it is read as", mend)
    return made


def _dicom(image: Image, paths: Sequence[Path]) -> StoredImage:
    loaded = lru_cache(maxsize=1)(_checked)
    with reading(image.source):
        samples = {path: _samples(loaded(path), path) for path in paths}
        if len(set(samples.values())) > 1:
            reason = "its slices are stored with different bits"
            raise ReadError(image.source, reason, "give a series of one kind")
        places = _places(image, paths)
        ds = loaded(paths[0])
        device = " ".join(str(ds.get(k) or "") for k in ("Manufacturer", "ManufacturerModelName"))

    def stored(index: int) -> NDArray[Any]:
        path, frame = places[index]
        with reading(path):
            return next(frames(loaded(path), path, [frame]))

    def shown(index: int, values: NDArray[Any]) -> NDArray[Any]:
        path, frame = places[index]
        return grayscale(values, loaded(path), frame)

    kept = lru_cache(maxsize=1)(stored)
    return StoredImage(image, samples[paths[0]], kept, shown, " ".join(device.split()) or None)


def _places(image: Image, paths: Sequence[Path]) -> list[tuple[Path, int]]:
    """File and frame of every slice."""
    if len(paths) == 1:
        return [(paths[0], number - 1) for number in image.identifiers.frames or (1,)]
    # By their values: not every file has a SOP Instance UID, and slices of equal values are one.
    known = {}
    for path in paths:
        ds = _checked(path)
        known[_key(grayscale(next(frames(ds, path)), ds, 0), image)] = path
    try:
        return [(known[_key(one, image)], 0) for one in image.pixels]
    except KeyError:
        raise changed(image.source) from None


def _key(plane: NDArray[Any], image: Image) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(plane, image.pixels.dtype).data).digest()


def _checked(path: Path) -> Dataset:
    ds, _ = load(path)
    check(ds, path)
    return ds


def _samples(ds: Dataset, path: Path) -> Samples:
    if ds.PhotometricInterpretation in COLOURS:
        raise ReadError(path, "is in colour", "give grey-scale images")
    if ds.get("BitsStored") is None:
        raise ReadError(path, "holds floating-point pixels", "give images of integers")
    lossy, syntax = ds.get("LossyImageCompression"), ds.file_meta.TransferSyntaxUID
    if lossy == "01" or syntax in _ALWAYS_LOSSY or (syntax in _MAYBE_LOSSY and lossy != "00"):
        raise ReadError(path, "was, or may have been, compressed with loss before", _ORIGINALS)
    return Samples(int(ds.BitsStored), int(ds.BitsAllocated), bool(ds.PixelRepresentation))


def _nifti(image: Image) -> StoredImage:
    low, high = image.survey.minimum, image.survey.maximum
    if np.dtype(image.pixels.dtype).kind not in "iu":
        reason = "holds no integers that a codec could store"
        raise ReadError(image.source, reason, "give an image of integers without scaling")
    signed = low < 0
    # NIfTI does not say how many bits are used: the fewest that hold the values, at least 8.
    bits = max(8, max(int(low) ^ -1 if signed else 0, int(high)).bit_length() + signed)
    if bits > 16:
        raise ReadError(image.source, f"needs {bits} bits for its values", "give at most 16")
    samples = Samples(bits, 8 if bits == 8 else 16, signed)
    dtype = np.dtype(f"{'i' if signed else 'u'}{samples.bits_allocated // 8}")
    return StoredImage(image, samples, partial(_as, image, dtype), lambda _, values: values)


def _as(image: Image, dtype: np.dtype[Any], index: int) -> NDArray[Any]:
    plane: NDArray[Any] = np.ascontiguousarray(image.pixels[index].astype(dtype))
    return plane
