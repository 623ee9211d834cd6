"""The compressed streams of one frame, as each library makes and reads them.

A stream carries its samples at the bits that are stored, not at those of the array that holds them:
a decoder clips at that depth, and DICOM asks for it (PS3.5 8.2). Each is decoded again by the
library that `medqa.dicom.codecs` reads it with, since two decoders may round differently.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import imagecodecs
import jpeg_ls
import numpy as np
import openjpeg.utils as openjpeg
from numpy.typing import NDArray

__all__ = ["STREAMS", "Stream"]

#: libjxl's effort. On a CT at 8:1 it is 0.1 dB below the default, 7, in half the time; an effort
#: of 4 is 1 dB below.
_EFFORT = 5
#: Where the depth of the first component lies in a JPEG 2000 header: SOC, SIZ and its fields up to
#: Csiz (ISO/IEC 15444-1 A.5.1).
_SSIZ = 42


class Stream(NamedTuple):
    """How a codec makes and reads its stream.

    Parameters
    ----------
    compress
        Of (rows, columns) integers, the bits stored, whether signed, and the setting (None:
        lossless).
    decompress
        The values again, in a type of the decoder's choice.
    version
        The name and version of the library that compresses.
    """

    compress: Callable[[NDArray[Any], int, bool, float | None], bytes]
    decompress: Callable[[bytes], NDArray[Any]]
    version: Callable[[], str]


def _held(frame: NDArray[Any], bits: int, signed: bool) -> NDArray[Any]:
    """In the smallest type for so many bits, rows one after the other in memory."""
    kind = f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}"
    return np.ascontiguousarray(frame, dtype=kind)


def _j2k(frame: NDArray[Any], bits: int, signed: bool, ratio: float | None) -> bytes:
    """5/3 reversible, or 9/7 at a ratio of the bits stored."""
    ratios = None if ratio is None else [float(ratio)]
    return openjpeg.encode_array(
        _held(frame, bits, signed), bits_stored=bits, compression_ratios=ratios, use_mct=False
    )


def _htj2k(frame: NDArray[Any], bits: int, signed: bool, step: float | None) -> bytes:
    """5/3 reversible, or 9/7 with a base step given as a part of the range of the bits stored.

    OpenJPH is offered 16 bits here and writes that depth; the header then gets the true one. That
    changes no sample: a lossy stream is a fraction of the range, so the values are enlarged to 16
    bits before; a reversible one is whole numbers around zero, so they are centred before.
    """
    if step is None:
        centred = frame.astype(np.int32) - (0 if signed else 2 ** (bits - 1))
        data = imagecodecs.htj2k_encode(centred.astype(np.int16), reversible=True)
    else:
        enlarged = frame.astype(np.int32) << (16 - bits)
        kind = np.int16 if signed else np.uint16
        data = imagecodecs.htj2k_encode(enlarged.astype(kind), level=step, reversible=False)
    stream = bytearray(data)
    stream[_SSIZ] = (0x80 if signed else 0) | (bits - 1)
    return bytes(stream)


def _jpegls(frame: NDArray[Any], bits: int, _signed: bool, near: float | None) -> bytes:
    data = jpeg_ls.encode_buffer(
        _held(frame, bits, False).tobytes(),
        rows=frame.shape[0],
        columns=frame.shape[1],
        samples_per_pixel=1,
        bits_stored=bits,
        lossy_error=int(near or 0),
    )
    return bytes(data)


def _jpegxl(frame: NDArray[Any], bits: int, _signed: bool, distance: float | None) -> bytes:
    return bytes(
        imagecodecs.jpegxl_encode(
            _held(frame, bits, False),
            distance=distance,
            lossless=distance is None,
            effort=_EFFORT,
            bitspersample=bits,
            numthreads=1,
        )
    )


def _jpeg(frame: NDArray[Any], bits: int, _signed: bool, quality: float | None) -> bytes:
    """Lossless (process 14, selection value 1), or DCT of 8 or 12 bits."""
    samples = _held(frame, bits, False)
    if quality is None:
        return bytes(
            imagecodecs.jpeg8_encode(samples, lossless=True, predictor=1, bitspersample=bits)
        )
    return bytes(
        imagecodecs.jpeg8_encode(samples, level=int(quality), bitspersample=bits, optimize=True)
    )


def _from_jpegls(data: bytes) -> NDArray[Any]:
    return np.asarray(jpeg_ls.decode(np.frombuffer(data, np.uint8)))


def _openjpeg_version() -> str:
    return f"OpenJPEG {'.'.join(map(str, openjpeg.get_openjpeg_version()))}"


def _charls_version() -> str:
    """Of the binding: which CharLS it holds, it does not say."""
    return f"CharLS of pyjpegls {metadata.version('pyjpegls')}"


def _imagecodecs_version(title: str, own: Callable[[], str]) -> Callable[[], str]:
    """Of a library in imagecodecs, whose words are such as ``libjpeg_turbo 3.1.3/8.0``."""
    return lambda: f"{title} {own().split()[-1].split('/')[0]}"


#: By name of the codec.
STREAMS = {
    "j2k": Stream(_j2k, openjpeg.decode, _openjpeg_version),
    "htj2k": Stream(
        _htj2k, openjpeg.decode, _imagecodecs_version("OpenJPH", imagecodecs.htj2k_version)
    ),
    "jpegls": Stream(_jpegls, _from_jpegls, _charls_version),
    "jpegxl": Stream(
        _jpegxl,
        imagecodecs.jpegxl_decode,
        _imagecodecs_version("libjxl", imagecodecs.jpegxl_version),
    ),
    "jpeg": Stream(
        _jpeg,
        imagecodecs.jpeg8_decode,
        _imagecodecs_version("libjpeg-turbo", imagecodecs.jpeg8_version),
    ),
}
