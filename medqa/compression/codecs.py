"""Lossy compression of stored pixel values: a codec, a setting or a target, the pixels again.

Each stream is decoded again at once, so that what is judged is what a reader of the file will see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from medqa.compression.search import controlled, crossing
from medqa.compression.streams import STREAMS
from medqa.errors import PixelError

__all__ = [
    "CODECS",
    "Codec",
    "Encoded",
    "Samples",
    "at_max_error",
    "at_psnr",
    "at_ratio",
    "at_ratios",
    "check",
    "encode",
    "offset",
    "psnr",
    "ratio_allocated",
    "ratio_stored",
    "span",
    "syntax",
    "version",
]

#: A ratio is met within 1 %, a PSNR within 0.05 dB.
_RATIO_SLACK = math.log(1.01)
_PSNR_SLACK = 0.05


@dataclass(frozen=True)
class Samples:
    """How pixel values are stored (DICOM Bits Stored, Bits Allocated, Pixel Representation)."""

    bits_stored: int
    bits_allocated: int
    signed: bool


@dataclass(frozen=True)
class Codec:
    """A way to compress a frame.

    Parameters
    ----------
    name
        As on the command line: ``j2k``, ``htj2k``, ``jpegls``, ``jpegxl``, ``jpeg``.
    title
        For people.
    lossy_syntax, lossless_syntax
        DICOM transfer syntaxes; see `syntax` for JPEG of more than 8 bits.
    method
        Lossy Image Compression Method (PS3.3 C.7.6.1.1.5.1).
    parameter
        What a setting is.
    gentlest, strongest
        The settings between which it works: from the first to the second, streams get smaller and
        losses greater. JPEG-LS ends earlier for less than 9 bits: see `span`.
    integer
        Whether a setting is a whole number.
    carries_sign
        Whether the stream says that values are signed. Where not, signed values are raised by half
        their range before they are compressed (`offset`), and a DICOM file must say so.
    """

    name: str
    title: str
    lossy_syntax: str
    lossless_syntax: str
    method: str
    parameter: str
    gentlest: float
    strongest: float
    integer: bool
    carries_sign: bool


@dataclass(frozen=True, eq=False)
class Encoded:
    """A frame, compressed.

    Parameters
    ----------
    codec
        Its name.
    setting
        In the codec's own parameter; None where it is lossless.
    syntax
        DICOM transfer syntax of the stream.
    data
        The stream, without DICOM's padding.
    pixels
        The values again, in shape and type of those given.
    """

    codec: str
    setting: float | None
    syntax: str
    data: bytes
    pixels: NDArray[Any]


# JPEG XL is not in pydicom's dictionary yet (PS3.6 A of 2024d).
_ALL = (
    Codec(
        "j2k", "JPEG 2000", JPEG2000, JPEG2000Lossless, "ISO_15444_1",
        "target ratio, by the bits stored", 1.0, 1000.0, False, True,
    ),
    Codec(
        "htj2k", "High-Throughput JPEG 2000", HTJ2K, HTJ2KLossless, "ISO_15444_15",
        "quantisation step, as a part of the stored range", 2.0**-16, 0.25, False, True,
    ),
    Codec(
        "jpegls", "JPEG-LS", JPEGLSNearLossless, JPEGLSLossless, "ISO_14495_1",
        "largest error, in grey levels", 1, 255, True, False,
    ),
    Codec(
        "jpegxl", "JPEG XL", "1.2.840.10008.1.2.4.112", "1.2.840.10008.1.2.4.110", "ISO_18181_1",
        "Butteraugli distance", 0.01, 25.0, False, False,
    ),
    Codec(
        "jpeg", "JPEG", JPEGBaseline8Bit, JPEGLosslessSV1, "ISO_10918_1",
        "quality of libjpeg, 1 to 100", 100, 1, True, False,
    ),
)  # fmt: skip
#: By name.
CODECS: Mapping[str, Codec] = MappingProxyType({one.name: one for one in _ALL})


def check(codec: Codec, samples: Samples, source: object) -> None:
    """Raise PixelError, naming `source`, where a codec cannot hold such samples."""
    bits, allocated = samples.bits_stored, samples.bits_allocated
    if allocated not in (8, 16) or not 8 <= bits <= allocated:
        reason = f"{bits} bits stored in {allocated} cannot be compressed"
        raise PixelError(source, reason, "give an image of 8 to 16 bits, in 8 or 16")
    if codec.name == "jpeg" and bits not in (8, 12):
        # PS3.5 8.2.1: the DCT processes that DICOM has are those of 8 and 12 bits.
        reason = f"JPEG holds 8 or 12 bits, and this image has {bits} bits stored"
        raise PixelError(source, reason, "choose j2k, htj2k, jpegls or jpegxl")


def span(codec: Codec, samples: Samples) -> tuple[float, float]:
    """Gentlest and strongest setting for such samples."""
    if codec.name == "jpegls":  # ISO/IEC 14495-1 C.2.3: NEAR <= min(255, MAXVAL / 2)
        return codec.gentlest, min(codec.strongest, (2**samples.bits_stored - 1) // 2)
    return codec.gentlest, codec.strongest


def syntax(codec: Codec, samples: Samples, setting: float | None) -> str:
    """DICOM transfer syntax of a stream; ``setting`` None: of a lossless one."""
    if setting is None:
        return codec.lossless_syntax
    deep = codec.name == "jpeg" and samples.bits_stored > 8
    return JPEGExtended12Bit if deep else codec.lossy_syntax


def offset(codec: Codec, samples: Samples) -> int:
    """Give what is added to each value before it is compressed: 0, or half the range."""
    return 2 ** (samples.bits_stored - 1) if samples.signed and not codec.carries_sign else 0


def version(codec: Codec) -> str:
    """Name and version of the library that compresses, such as ``OpenJPEG 2.5.4``."""
    return STREAMS[codec.name].version()


def ratio_stored(shape: Sequence[int], samples: Samples, nbytes: int) -> float:
    """Compression ratio by the bits that are stored: 12 of 16 count as 12."""
    return math.prod(shape) * samples.bits_stored / (8 * nbytes)


def ratio_allocated(shape: Sequence[int], samples: Samples, nbytes: int) -> float:
    """Compression ratio by the bits that an uncompressed file spends: 12 in 16 count as 16."""
    return math.prod(shape) * samples.bits_allocated / (8 * nbytes)


def psnr(frame: NDArray[Any], other: NDArray[Any], samples: Samples) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the range of the bits stored; inf if equal."""
    mean = float(np.mean((frame.astype(np.float64) - other) ** 2))
    return 10 * math.log10((2**samples.bits_stored - 1) ** 2 / mean) if mean else math.inf


def encode(codec: Codec, frame: NDArray[Any], samples: Samples, setting: float | None) -> Encoded:
    """Compress a frame and decode it again.

    Parameters
    ----------
    frame
        (rows, columns) integers, as stored.
    setting
        In the codec's own parameter, within its `span`; None: lossless.

    Raises
    ------
    PixelError
        The codec cannot hold such samples, the frame is no plane of such integers, or the setting
        is outside the span.
    """
    _check_frame(codec, frame, samples)
    return _decoded(codec, frame, samples, setting, _stream(codec, frame, samples, setting))


def at_ratio(codec: Codec, frame: NDArray[Any], samples: Samples, ratio: float) -> Encoded:
    """Compress a frame to a ratio by the bits stored: `at_ratios` of one ratio."""
    return next(at_ratios(codec, frame, samples, (ratio,)))


def at_ratios(
    codec: Codec, frame: NDArray[Any], samples: Samples, ratios: Iterable[float]
) -> Iterator[Encoded]:
    """Compress a frame to several ratios, each stream of the search made only once.

    Parameters
    ----------
    frame
        (rows, columns) integers, as stored.
    ratios
        By the bits stored, in any order.

    Yields
    ------
    Of each ratio, in the order given, the gentlest stream that reaches it: lossless where that
    does. Where the setting is a whole number it is exactly the gentlest; elsewhere it is within
    about 1 %, and JPEG 2000's rate control within some percent on very small frames. The ratio can
    lie far above the target where the codec has nothing in between, as JPEG XL beyond its gentlest
    loss and JPEG-LS below an error of one grey level: judge by the ratio that was reached.

    Raises
    ------
    PixelError
        As `encode`; or not even the strongest setting reaches a ratio.
    """
    _check_frame(codec, frame, samples)

    @cache
    def stream(setting: float | None) -> bytes:
        return _stream(codec, frame, samples, setting)

    def reached(setting: float | None) -> float:
        return math.log(ratio_stored(frame.shape, samples, len(stream(setting))))

    tries: dict[float, float] = {}
    for ratio in ratios:
        target, setting = math.log(ratio), None
        if reached(None) < target:
            if codec.name == "j2k":
                setting = controlled(ratio, reached, codec.strongest)
            else:
                aim = target if codec.integer else target + _RATIO_SLACK / 2
                _, setting = crossing(
                    reached, tries, span(codec, samples), target, aim, codec.integer
                )
            if setting is None:
                best = math.exp(reached(span(codec, samples)[1]))
                reason = f"{codec.title} reaches {best:.1f}:1 at most, not {ratio:g}:1"
                raise PixelError("the frame", reason, "ask for a lower ratio, or another codec")
        yield _decoded(codec, frame, samples, setting, stream(setting))


def at_psnr(codec: Codec, frame: NDArray[Any], samples: Samples, decibels: float) -> Encoded:
    """Compress a frame as strongly as a PSNR allows.

    Parameters
    ----------
    frame
        (rows, columns) integers, as stored.
    decibels
        Lowest `psnr`: of the range of the bits stored.

    Returns
    -------
    The strongest stream that keeps it, within 0.05 dB; lossless where not even the gentlest
    setting does.

    Raises
    ------
    PixelError
        As `encode`.
    """

    def lost(pixels: NDArray[Any]) -> float:
        return -psnr(frame, pixels, samples)

    return _within(codec, frame, samples, lost, -decibels, _PSNR_SLACK)


def at_max_error(codec: Codec, frame: NDArray[Any], samples: Samples, error: float) -> Encoded:
    """Compress a frame as strongly as a largest error of any pixel, in grey levels, allows.

    Returns
    -------
    The strongest stream found that keeps it; lossless where not even the gentlest setting does.
    Only JPEG-LS promises its largest error beforehand; with the others it jumps from setting to
    setting, so that a stronger stream may exist.

    Raises
    ------
    PixelError
        As `encode`.
    """
    if codec.name == "jpegls":
        _, strongest = span(codec, samples)
        near = min(math.floor(error), int(strongest))
        return encode(codec, frame, samples, near if near >= 1 else None)

    def lost(pixels: NDArray[Any]) -> float:
        return float(np.abs(frame.astype(np.int32) - pixels).max())

    return _within(codec, frame, samples, lost, error, 0.0)


def _within(
    codec: Codec,
    frame: NDArray[Any],
    samples: Samples,
    lost: Callable[[NDArray[Any]], float],
    most: float,
    slack: float,
) -> Encoded:
    """Find the strongest setting with which no more than ``most`` is lost."""

    def measured(setting: float) -> float:
        return lost(encode(codec, frame, samples, setting).pixels)

    lossless = encode(codec, frame, samples, None)
    tries: dict[float, float] = {}
    if codec.name == "j2k":  # no need to look at streams that are larger than that
        first = max(codec.gentlest, ratio_stored(frame.shape, samples, len(lossless.data)))
        tries[first] = measured(first)
    beyond = math.nextafter(most, math.inf)
    aim = most - (0.0 if codec.integer else slack / 2)
    setting, _ = crossing(measured, tries, span(codec, samples), beyond, aim, codec.integer)
    found = encode(codec, frame, samples, setting)
    return found if len(found.data) < len(lossless.data) else lossless


def _check_frame(codec: Codec, frame: NDArray[Any], samples: Samples) -> None:
    check(codec, samples, "the frame")
    if frame.ndim != 2 or frame.dtype.kind not in "iu" or not frame.size:
        reason = f"an array of {frame.ndim} dimensions and type {frame.dtype} is no frame"
        raise PixelError("the frame", reason, "give rows x columns of whole numbers, one channel")
    low = -(2 ** (samples.bits_stored - 1)) if samples.signed else 0
    high = low + 2**samples.bits_stored - 1
    if frame.min() < low or frame.max() > high:
        kind = "signed" if samples.signed else "unsigned"
        reason = f"values from {frame.min()} to {frame.max()} are not {samples.bits_stored} bits"
        mend = "correct Bits Stored and Pixel Representation in the header, or the values"
        raise PixelError("the frame", f"{reason}, {kind}", mend)


def _stream(codec: Codec, frame: NDArray[Any], samples: Samples, setting: float | None) -> bytes:
    if setting is not None:
        low, high = sorted(span(codec, samples))
        if not low <= setting <= high or (codec.integer and setting != int(setting)):
            whole = "a whole number " if codec.integer else ""
            reason = f"{setting} is no setting of {codec.title} ({codec.parameter})"
            raise PixelError("the frame", reason, f"give {whole}from {low:g} to {high:g}")
    raised = offset(codec, samples)
    values = frame.astype(np.int32) + raised if raised else frame
    carried = samples.signed and codec.carries_sign
    return STREAMS[codec.name].compress(values, samples.bits_stored, carried, setting)


def _decoded(
    codec: Codec, frame: NDArray[Any], samples: Samples, setting: float | None, data: bytes
) -> Encoded:
    values = STREAMS[codec.name].decompress(data).astype(np.int32) - offset(codec, samples)
    pixels = values.astype(frame.dtype)
    if setting is None and not np.array_equal(pixels, frame):
        reason = f"{version(codec)} gave other values back from a lossless stream"
        raise PixelError("the frame", reason, "do not use this version of the library")
    return Encoded(codec.name, setting, syntax(codec, samples, setting), data, pixels)
