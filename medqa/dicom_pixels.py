"""Pixels of one DICOM object: one function per stage of its display pipeline, section cited.

`frames` decodes (PS3.3 C.7.6.3); `grayscale` applies the modality transform (C.11.1), turns
MONOCHROME1 round and fills padding; `luminance` makes one channel of colour; `value_range`, `voi`
and `unit` say from the header what the result can hold and how to show and call it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

from medqa.errors import ReadError
from medqa.image import VoiLut, Window

__all__ = [
    "COLOURS",
    "Range",
    "frame_count",
    "frames",
    "functional_group",
    "grayscale",
    "luminance",
    "modality_transform",
    "number",
    "numbers",
    "unit",
    "value_range",
    "voi",
]

COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
"""Photometric interpretations that are turned into luminance."""

Range = tuple[float, float]
"""Lowest and highest modality value that the stored format can hold."""

_REC_601 = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601-7, 2.5.1: luma of R, G, B
_WINDOW_FUNCTIONS: dict[str, Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]] = {
    "LINEAR_EXACT": "LINEAR_EXACT",
    "SIGMOID": "SIGMOID",
}
# One codec for each transfer syntax, so that a file always decodes to the same pixels: the first
# of these that knows it. Pillow shifts signed JPEG 2000; GDCM ends the whole process on damaged
# JPEG, and is left with the lossless JPEG that nothing else here decodes.
_CODECS = ("pylibjpeg", "pyjpegls", "pydicom", "pillow", "gdcm")
_JPEG_XL = tuple(f"1.2.840.10008.1.2.4.{last}" for last in (110, 111, 112))  # PS3.6 A, 2024d


def functional_group(ds: Dataset, frame: int, keyword: str) -> Dataset:
    """Functional group of a frame: its own, or the shared one (PS3.3 C.7.6.16); else the object."""
    own = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = ds.get("SharedFunctionalGroupsSequence") or []
    for groups in [*own[frame : frame + 1], *shared[:1]]:
        sequence = groups.get(keyword)
        if sequence:
            item: Dataset = sequence[0]
            return item
    return ds


def numbers(ds: Dataset, keyword: str) -> tuple[float, ...]:
    """All values of a numeric element; () where it is missing or empty."""
    value = ds.get(keyword)
    if value is None or value == "":
        return ()
    return tuple(float(v) for v in (value if hasattr(value, "__iter__") else [value]))


def number(ds: Dataset, keyword: str, default: float) -> float:
    """First value of a numeric element, or the default where it is missing or empty."""
    values = numbers(ds, keyword)
    return values[0] if values else default


def frame_count(ds: Dataset) -> int:
    """Count the frames: Number of Frames, or 1 where that is missing."""
    return max(1, int(ds.get("NumberOfFrames") or 1))


def frames(
    ds: Dataset, source: object, indices: Iterable[int] | None = None
) -> Iterator[NDArray[Any]]:
    """Decode the stored values of all frames, or of some, one by one (PS3.3 C.7.6.3, PS3.5 8).

    Yields
    ------
    (rows, columns) integer or float array, or (rows, columns, 3 or 4) unsigned for colour.

    Raises
    ------
    ReadError
        No codec decodes a frame, or there are fewer frames than the header says.
    """
    palette = ds.PhotometricInterpretation == "PALETTE COLOR"
    for index in range(frame_count(ds)) if indices is None else indices:
        try:
            frame = _decoded(ds, index)
        except Exception as cause:  # each codec raises its own
            raise _undecodable(ds, source, cause) from cause
        yield apply_color_lut(frame, ds) if palette else frame


def _decoded(ds: Dataset, index: int) -> NDArray[Any]:
    known = get_decoder(ds.file_meta.TransferSyntaxUID).available_plugins
    codec = next((name for name in _CODECS if name in known), "")
    # Not `iter_pixels`: in pydicom 3.0 it fails where a JPEG 2000 sign has to be mended.
    return pixel_array(ds, index=index, decoding_plugin=codec)


def _undecodable(ds: Dataset, source: object, cause: Exception) -> ReadError:
    """Say which codec is missing, or that the pixel data is damaged."""
    syntax = ds.file_meta.TransferSyntaxUID
    name = syntax.name
    mend = "if it is not damaged, decompress it with another tool"
    if syntax in _JPEG_XL:  # pydicom's dictionary does not name it yet
        name, mend = "JPEG XL", "JPEG XL is not supported by pydicom: store it as JPEG 2000"
    elif syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        mend = "if it is not damaged, pip install medqa[gpl-codecs] (pylibjpeg-libjpeg)"
    elif not syntax.is_compressed:
        mend = "the file is damaged or truncated: fetch it again"
    return ReadError(source, f"pixel data in {name} ({syntax}) cannot be decoded", mend, str(cause))


def _lookup_table(item: Dataset, ds: Dataset, low: float) -> tuple[int, NDArray[np.int64], int]:
    """First value mapped, entries and bits of a LUT whose input starts at `low` (PS3.3 C.11.1.1).

    The descriptor is 16 bit and its VR, US or SS, is often wrong: 0 entries mean 65536, and
    the sign of the first value follows from the values that go in.
    """
    entries, first, bits = (int(v) for v in item.LUTDescriptor)
    entries = entries % 65536 or 65536
    if first > 32767 and low < 0:
        first -= 65536
    elif first < 0 <= low:
        first += 65536
    data = item.LUTData
    if isinstance(data, bytes):
        word = "<u2" if ds.original_encoding[1] else ">u2"
        packed = len(data) <= entries + 1  # 8 bit entries, with the pad byte to even length
        table = np.frombuffer(data, np.uint8 if packed else word)[:entries].astype(np.int64)
    else:
        table = np.atleast_1d(np.asarray(data, np.int64))[:entries] % 65536
    if len(table) < entries:
        raise ValueError(f"LUT Data holds {len(table)} of {entries} entries")
    # Some writers state fewer bits than the entries use.
    return first, table, max(bits, int(table.max()).bit_length())


def modality_transform(
    ds: Dataset, frame: int
) -> tuple[Callable[[NDArray[Any]], NDArray[Any]], Range | None]:
    """Map stored to modality values, by a LUT or a line (PS3.3 C.11.1, C.7.6.16.2.9).

    Returns
    -------
    The function, exact in int64 where everything is an integer and float64 otherwise, and the
    lowest and highest modality value of the stored range: of the ends of BitsStored, or of a
    LUT's entries. None for floating point pixel data.
    """
    if ds.get("BitsStored") is None:  # Float or Double Float Pixel Data: C.7.6.24
        return lambda stored: stored.astype(np.float64), None
    bits, signed = int(ds.BitsStored), int(ds.PixelRepresentation)
    stored_low = -(1 << bits - 1) if signed else 0
    if ds.get("ModalityLUTSequence"):
        first, table, _ = _lookup_table(ds.ModalityLUTSequence[0], ds, stored_low)
        last = len(table) - 1
        return (
            lambda stored: table[np.clip(stored.astype(np.int64) - first, 0, last)],
            (float(table.min()), float(table.max())),
        )
    group = functional_group(ds, frame, "PixelValueTransformationSequence")
    slope = number(group, "RescaleSlope", 1.0)
    intercept = number(group, "RescaleIntercept", 0.0)
    ends = sorted(v * slope + intercept for v in (stored_low, stored_low + (1 << bits) - 1))
    if slope.is_integer() and intercept.is_integer() and -(2**53) < ends[0] <= ends[1] < 2**53:
        whole = int(slope), int(intercept)
        return lambda stored: stored.astype(np.int64) * whole[0] + whole[1], (ends[0], ends[1])
    return lambda stored: stored.astype(np.float64) * slope + intercept, (ends[0], ends[1])


def _padding(stored: NDArray[Any], ds: Dataset) -> NDArray[np.bool_]:
    """Pixels that are no image: Pixel Padding Value to its Range Limit (PS3.3 C.7.5.1.1.2)."""
    if ds.get("PixelPaddingValue") is None or stored.dtype.kind == "f":
        return np.zeros(stored.shape, bool)
    ends = [ds.PixelPaddingValue, ds.get("PixelPaddingRangeLimit", ds.PixelPaddingValue)]
    # Written with the wrong VR, the same 16 bits read as the other sign: take the pixels' own.
    low, high = sorted(np.array(ends, np.int64).astype(stored.dtype))
    inside: NDArray[np.bool_] = (stored >= low) & (stored <= high)
    return inside


def luminance(rgb: NDArray[Any], high: float) -> NDArray[np.float32]:
    """Rec. 601 luma of (..., 3 or more) colours in [0, `high`], scaled to [0, 255]."""
    luma: NDArray[np.float32] = (rgb[..., :3] @ (_REC_601 * (255 / high))).astype(np.float32)
    return luma


def grayscale(stored: NDArray[Any], ds: Dataset, frame: int) -> NDArray[Any]:
    """Modality values of a frame, larger is brighter; of colour, the luminance.

    MONOCHROME1 is turned round as ``low + high - x`` over the stored range (PS3.3 C.7.6.3.1.2);
    padding is set to the smallest other value.

    Returns
    -------
    (rows, columns) int16 where that is exact and float32 otherwise.
    """
    if ds.PhotometricInterpretation in COLOURS:
        palette = ds.PhotometricInterpretation == "PALETTE COLOR"
        bits = stored.dtype.itemsize * 8 if palette else int(ds.BitsStored)
        return luminance(stored, 2**bits - 1)
    transform, ends = modality_transform(ds, frame)
    values = transform(stored)
    if ends is not None and ds.PhotometricInterpretation == "MONOCHROME1":
        total = sum(ends)
        values = (int(total) if values.dtype.kind == "i" else total) - values
    padded = _padding(stored, ds)
    if padded.any() and not padded.all():
        values[padded] = values[~padded].min()
    small = values.dtype.kind == "i" and values.min() >= -32768 and values.max() <= 32767
    return values.astype(np.int16 if small else np.float32)


def value_range(ds: Dataset, frame: int) -> Range | None:
    """Lowest and highest value that `grayscale` can return; None for floating point pixel data."""
    if ds.PhotometricInterpretation in COLOURS:
        return 0.0, 255.0
    return modality_transform(ds, frame)[1]


def voi(ds: Dataset, ends: Range) -> Window | VoiLut | None:
    """Display that the file asks for (PS3.3 C.11.2, C.7.6.16.2.10), in the values of `grayscale`.

    The first window, else the first VOI LUT; of several frames, the first one's. Where
    MONOCHROME1 was turned round, so is the display.
    """
    if ds.PhotometricInterpretation in COLOURS:
        return None
    group = functional_group(ds, 0, "FrameVOILUTSequence")
    turned = ds.PhotometricInterpretation == "MONOCHROME1"
    centre, width = numbers(group, "WindowCenter")[:1], numbers(group, "WindowWidth")[:1]
    function = _WINDOW_FUNCTIONS.get(str(group.get("VOILUTFunction")), "LINEAR")
    linear = function == "LINEAR"
    if centre and width and width[0] > 0 and (width[0] >= 1 or not linear):
        # LINEAR's centre lies half a value above the middle of the window: C.11.2.1.2.1.
        return Window(sum(ends) - centre[0] + linear if turned else centre[0], width[0], function)
    if group.get("VOILUTSequence"):
        first, entries, bits = _lookup_table(group.VOILUTSequence[0], ds, ends[0])
        table = (entries / float((1 << bits) - 1)).astype(np.float32)
        if turned:
            first = round(sum(ends)) - first - (len(table) - 1)
            table = np.ascontiguousarray(1 - table[::-1])
        return VoiLut(first, table)
    return None


def unit(ds: Dataset) -> str:
    """Name the unit of the modality values: PET Units (C.8.9.1), Rescale Type (C.11.1.1.2).

    A CT is in HU unless it says otherwise (C.8.2.1.1.2); ``US`` says unspecified.
    """
    if ds.PhotometricInterpretation in COLOURS:
        return "arbitrary"
    if ds.get("Modality") == "PT" and ds.get("Units"):
        return str(ds.Units)
    if ds.get("ModalityLUTSequence"):
        stated = ds.ModalityLUTSequence[0].get("ModalityLUTType")
        return str(stated) if stated not in (None, "", "US") else "arbitrary"
    group = functional_group(ds, 0, "PixelValueTransformationSequence")
    if "RescaleSlope" not in group or "RescaleIntercept" not in group:
        return "arbitrary"
    stated = group.get("RescaleType")
    if stated in (None, "", "US"):
        return "HU" if ds.get("Modality") == "CT" else "arbitrary"
    return str(stated)
