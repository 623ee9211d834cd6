"""Decompression of one frame: one codec for each transfer syntax, so that a file has one content.

A second codec that steps in where the first one fails would decode the same file to other pixels
on another machine. pydicom finds the frame and mends signs and unused bits (PS3.5 8.1.1, 8.2);
the codecs are pydicom's own for RLE, pyjpegls for JPEG-LS, OpenJPEG (pylibjpeg) for JPEG 2000 and
HTJ2K, and libjpeg-turbo and libjxl (imagecodecs) for JPEG and JPEG XL.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import Decoder, DecodeRunner, get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medqa.errors import ReadError

__all__ = ["codec_of", "decompressed", "is_readable"]

_LOSSLESS_JPEG = (JPEGLossless, JPEGLosslessSV1)
# Spectral selection and full progression: retired, but in archives (PS3.5 A.4.1 of 1998).
_PROGRESSIVE_JPEG = (UID("1.2.840.10008.1.2.4.53"), UID("1.2.840.10008.1.2.4.55"))
_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, *_LOSSLESS_JPEG, *_PROGRESSIVE_JPEG)
_CODECS = {
    **dict.fromkeys((JPEG2000Lossless, JPEG2000), "pylibjpeg"),
    **dict.fromkeys((HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), "pylibjpeg"),
    **dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), "pyjpegls"),
    RLELossless: "pydicom",
    **dict.fromkeys(_JPEG, "libjpeg-turbo"),
}
# Lossless, of a JPEG, and any (PS3.6 A of 2024d): pydicom's dictionary does not name them yet.
_JPEG_XL = tuple(f"1.2.840.10008.1.2.4.{last}" for last in (110, 111, 112))
_VIDEO = tuple(f"1.2.840.10008.1.2.4.{last}" for last in range(100, 109))  # MPEG-2 to HEVC
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_JPIP = ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95")


def codec_of(syntax: str) -> str | None:
    """Name what decodes a transfer syntax; None where nothing here does."""
    uid = UID(syntax)
    if uid in _JPEG_XL:
        return "libjxl"
    if uid in _CODECS:
        return _CODECS[uid]
    return "pydicom" if uid.is_transfer_syntax and not uid.is_encapsulated else None


def is_readable(syntax: str) -> bool:
    """Whether there is a codec for a transfer syntax."""
    return codec_of(syntax) is not None


def decompressed(ds: Dataset, index: int, source: object) -> NDArray[Any]:
    """Decode the stored values of a frame (PS3.3 C.7.6.3, PS3.5 8).

    Returns
    -------
    (rows, columns) integer or float array, or (rows, columns, 3 or 4) for colour, as RGB. Bits
    above Bits Stored, where old files keep overlays, are left out.

    Raises
    ------
    ReadError
        There is no codec for the transfer syntax, or it cannot decode the frame.
    """
    syntax = ds.file_meta.TransferSyntaxUID
    try:
        if syntax in _JPEG_XL:
            return _jpeg_xl(ds, index)
        if not is_readable(syntax):
            raise NotImplementedError("no decoder for this transfer syntax")
        decoder = _JPEG_DECODERS.get(syntax) or get_decoder(syntax)
        plain = syntax == RLELossless or not syntax.is_encapsulated
        high = int(ds.get("HighBit", 0)) if plain and "BitsStored" in ds else 0
        elsewhere = high > 0 and high != int(ds.BitsStored) - 1
        # Not `iter_array`: in pydicom 3.0 it fails where a JPEG 2000 sign has to be mended.
        codec = _CODECS.get(syntax, "")
        if not elsewhere:
            return decoder.as_array(ds, index=index, decoding_plugin=codec)[0]
        kept: Any = {"correct_unused_bits": False}
        cells, _ = decoder.as_array(ds, index=index, decoding_plugin=codec, **kept)
        return _from_high_bit(cells, high, int(ds.BitsStored))
    except Exception as cause:  # each codec raises its own
        raise _undecodable(syntax, source, cause) from cause


def _from_high_bit(cells: NDArray[Any], high: int, stored: int) -> NDArray[Any]:
    """Take samples out of pixel cells in which they do not start at bit 0 (PS3.5 8.1.1 of 2011).

    The standard has retired such cells; pydicom leaves them as they are.
    """
    above = 8 * cells.dtype.itemsize - 1 - high
    if above < 0 or high + 1 < stored:
        raise ValueError(f"High Bit {high} with {stored} Bits Stored")
    return (cells << above) >> (8 * cells.dtype.itemsize - stored)


def _undecodable(syntax: UID, source: object, cause: Exception) -> ReadError:
    """Say what would help: the syntax has no codec here, or the pixel data is damaged."""
    name = "JPEG XL" if syntax in _JPEG_XL else syntax.name
    if syntax in _VIDEO:
        mend = "it is a video: take out the frames that were read with ffmpeg, as secondary capture"
    elif syntax in _JPIP:
        mend = "its pixels are on a JPIP server: fetch the image from the archive once more"
    elif syntax == _DEFLATED_FRAMES:
        mend = "inflate it with highdicom 0.26 or newer and pydicom 3.1 or newer"
    elif not is_readable(syntax):
        mend = "decompress it with dcmdjpeg (DCMTK) or gdcmconv --raw (GDCM)"
    elif syntax.is_private or syntax in _JPEG_XL or syntax.is_compressed:
        mend = "if it is not damaged, decompress it with another tool"
    else:
        mend = "the file is damaged or truncated: fetch it again"
    return ReadError(source, f"pixel data in {name} ({syntax}) cannot be decoded", mend, str(cause))


# JPEG ---------------------------------------------------------------------------------------------


class _Header(NamedTuple):
    """What the headers of a JPEG say (ITU-T T.81 B.2.2; Adobe Technical Note 5116)."""

    precision: int
    shape: tuple[int, ...]
    rgb: bool | None


def _jpeg_header(src: bytes) -> _Header:
    """Read the headers up to the frame's own, and make sure that the stream has an end."""
    place, rgb = 2, None
    while src[place] == 0xFF:
        code = src[place + 1]
        if code == 0xFF:  # fill
            place += 1
            continue
        segment = src[place + 4 : place + 2 + int.from_bytes(src[place + 2 : place + 4])]
        if code == 0xEE and segment[:5] == b"Adobe" and len(segment) >= 12:
            rgb = segment[11] == 0
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            rows, columns = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
            shape = (rows, columns) if segment[5] == 1 else (rows, columns, segment[5])
            break
        place += 4 + len(segment)
    else:
        raise ValueError("no frame header in this JPEG")
    # libjpeg makes up what a stream that was cut short lacks, and only warns.
    if src.rfind(b"\xff\xd9") < src.rfind(b"\xff\xda"):
        raise ValueError("JPEG data is cut short: it has no end marker")
    return _Header(segment[0], shape, rgb)


def is_available(_uid: UID) -> bool:
    """Whether the codec can be used: what pydicom asks of a plugin."""
    return bool(imagecodecs.JPEG8.available)


def decode_jpeg(src: bytes, runner: DecodeRunner) -> bytearray:
    """Decode a JPEG of 8 to 16 bits, lossy or lossless, with libjpeg-turbo: a pydicom plugin.

    The size that the stream claims is checked before memory is asked for. Colours are left as they
    are, for pydicom to convert as its header says, unless the stream's Adobe marker contradicts it.
    """
    header = _jpeg_header(src)
    samples = () if runner.samples_per_pixel == 1 else (runner.samples_per_pixel,)
    expected = (runner.rows, runner.columns, *samples)
    if header.shape != expected:
        raise ValueError(f"the JPEG is {header.shape}, the header says {expected}")
    frame: NDArray[Any] = np.empty(expected, np.uint8 if header.precision <= 8 else np.uint16)
    colours = "RGB" if samples else None  # from this to this: left as they are
    imagecodecs.jpeg8_decode(src, colorspace=colours, outcolorspace=colours, out=frame)
    if runner.transfer_syntax not in _LOSSLESS_JPEG:
        # Quantisation overshoots: without this, just above white would become black.
        np.minimum(frame, frame.dtype.type(2 ** min(runner.bits_stored, 16) - 1), out=frame)
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    if samples and header.rgb is not None:
        runner.set_option("photometric_interpretation", "RGB" if header.rgb else "YBR_FULL")
    return bytearray(frame.tobytes())


def _jpeg_decoder(syntax: UID) -> Decoder:
    decoder = Decoder(syntax)
    decoder.add_plugin("libjpeg-turbo", (__name__, "decode_jpeg"))
    return decoder


# Our own, not those of pydicom, which belong to the whole process.
_JPEG_DECODERS = {syntax: _jpeg_decoder(syntax) for syntax in _JPEG}


# JPEG XL ------------------------------------------------------------------------------------------


def _jpeg_xl(ds: Dataset, index: int) -> NDArray[Any]:
    """Decode a JPEG XL frame with libjxl; of colour, whatever was stored, RGB."""
    if int(ds.PixelRepresentation) != 0:
        raise ValueError("JPEG XL holds no signed samples")
    src = get_frame(ds.PixelData, index, number_of_frames=int(ds.get("NumberOfFrames") or 1))
    samples = int(ds.get("SamplesPerPixel", 1))
    shape = (int(ds.Rows), int(ds.Columns), *([samples] if samples > 1 else []))
    # Raises where the stream claims another size, before it is decoded.
    frame: NDArray[Any] = np.empty(shape, np.uint8 if int(ds.BitsAllocated) == 8 else np.uint16)
    imagecodecs.jpegxl_decode(src, out=frame)
    return frame
