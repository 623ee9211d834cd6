"""Pixels of one DICOM object: one function per stage of its display pipeline, section cited.

`frames` decodes (PS3.3 C.7.6.3); `grayscale` applies the modality transform (C.11.1) and turns
MONOCHROME1 round; `luminance` makes one channel of colour; `value_range`, `padding_range`,
`voi_windows` and `unit` say from the header what the result can hold, which of it is no image, and
how to show and call it. Overlays (C.9.2) are no part of the image and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut

from medqa.dicom.codecs import decompressed
from medqa.errors import ReadError
from medqa.image import VoiLut, Window

__all__ = [
    "COLOURS",
    "Range",
    "check_polarity",
    "frame_count",
    "frames",
    "functional_group",
    "grayscale",
    "luminance",
    "modality_transform",
    "number",
    "numbers",
    "padding_range",
    "unit",
    "value_range",
    "voi",
    "voi_explanations",
    "voi_windows",
]

COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
"""Photometric interpretations that are turned into luminance."""

Range = tuple[float, float]
"""Lowest and highest modality value."""

_REC_601 = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601-7, 2.5.1: luma of R, G, B
_WINDOW_FUNCTIONS: dict[str, Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]] = {
    "LINEAR_EXACT": "LINEAR_EXACT",
    "SIGMOID": "SIGMOID",
}


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
        frame = decompressed(ds, index, source)
        yield apply_color_lut(frame, ds) if palette else frame


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


def _stored_range(ds: Dataset) -> tuple[int, int]:
    """Lowest and highest value that Bits Stored can hold (PS3.5 8.1.1)."""
    bits = int(ds.BitsStored)
    low = -(1 << bits - 1) if int(ds.PixelRepresentation) else 0
    return low, low + (1 << bits) - 1


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
    stored_low, stored_high = _stored_range(ds)
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
    ends = sorted(v * slope + intercept for v in (stored_low, stored_high))
    if slope.is_integer() and intercept.is_integer() and -(2**53) < ends[0] <= ends[1] < 2**53:
        whole = int(slope), int(intercept)
        return lambda stored: stored.astype(np.int64) * whole[0] + whole[1], (ends[0], ends[1])
    return lambda stored: stored.astype(np.float64) * slope + intercept, (ends[0], ends[1])


def luminance(rgb: NDArray[Any], high: float) -> NDArray[np.float32]:
    """Rec. 601 luma of (..., 3 or more) colours in [0, `high`], scaled to [0, 255]."""
    luma: NDArray[np.float32] = (rgb[..., :3] @ (_REC_601 * (255 / high))).astype(np.float32)
    return luma


def check_polarity(ds: Dataset, source: object) -> None:
    """Refuse an image that says both that its smallest value is white and that it is black.

    Presentation LUT Shape is IDENTITY with MONOCHROME2 and INVERSE with MONOCHROME1 (PS3.3
    C.8.11.3.1.2). Of headers that say otherwise, some programs follow the one and some the other.

    Raises
    ------
    ReadError
        It does, or it brings a Presentation LUT of its own (C.11.4), which no window can stand for.
    """
    shape, photometric = str(ds.get("PresentationLUTShape") or ""), ds.PhotometricInterpretation
    if (shape, photometric) in (("INVERSE", "MONOCHROME2"), ("IDENTITY", "MONOCHROME1")):
        reason = (
            f"is {photometric} with Presentation LUT Shape {shape}, which contradict each other"
        )
        raise ReadError(source, reason, "correct the one that is wrong")
    if ds.get("PresentationLUTSequence"):
        raise ReadError(source, "brings a Presentation LUT", "apply it to the pixels and remove it")


def _turned(ds: Dataset) -> bool:
    """Whether the smallest value is the brightest (PS3.3 C.7.6.3.1.2)."""
    return str(ds.PhotometricInterpretation) == "MONOCHROME1"


def _values(stored: NDArray[Any], ds: Dataset, frame: int) -> NDArray[Any]:
    """Modality values, MONOCHROME1 turned round, in int64 or float64."""
    transform, ends = modality_transform(ds, frame)
    values = transform(stored)
    if ends is not None and _turned(ds):
        total = sum(ends)
        values = (int(total) if values.dtype.kind == "i" else total) - values
    return values


def grayscale(stored: NDArray[Any], ds: Dataset, frame: int) -> NDArray[Any]:
    """Modality values of a frame, larger is brighter; of colour, the luminance.

    MONOCHROME1 is turned round as ``low + high - x`` over the stored range (PS3.3 C.7.6.3.1.2).
    Padding is turned and rescaled like all the rest.

    Returns
    -------
    (rows, columns) int16 where that is exact and float32 otherwise.
    """
    if ds.PhotometricInterpretation in COLOURS:
        palette = ds.PhotometricInterpretation == "PALETTE COLOR"
        bits = stored.dtype.itemsize * 8 if palette else int(ds.BitsStored)
        return luminance(stored, 2**bits - 1)
    values = _values(stored, ds, frame)
    small = values.dtype.kind == "i" and values.min() >= -32768 and values.max() <= 32767
    return values.astype(np.int16 if small else np.float32)


def value_range(ds: Dataset, frame: int) -> Range | None:
    """Lowest and highest value that `grayscale` can return; None for floating point pixel data."""
    if ds.PhotometricInterpretation in COLOURS:
        return 0.0, 255.0
    return modality_transform(ds, frame)[1]


def padding_range(ds: Dataset, frame: int) -> Range | None:
    """Lowest and highest value of `grayscale` that is no image (PS3.3 C.7.5.1.1.2); None if none.

    From Pixel Padding Value to Pixel Padding Range Limit, which are stored values. None as well
    where a Modality LUT gives other stored values the same results, so that padding cannot be told
    from image any more: then everything is image, and nothing is left out of a comparison.
    """
    ends = _stored_padding(ds)
    if ends is None:
        return None
    # The cast is that of `grayscale`: to float32, which holds every int16.
    values = _values(ends, ds, frame).astype(np.float32)
    if ds.get("ModalityLUTSequence"):
        low, high = _stored_range(ds)
        stored = np.arange(low, min(high, low + 65535) + 1)  # the descriptor has 16 bits
        padded = (stored >= ends[0]) & (stored <= ends[1])
        values, others = _values(stored[padded], ds, frame), _values(stored[~padded], ds, frame)
        if ((others >= values.min()) & (others <= values.max())).any():
            return None
    return float(values.min()), float(values.max())


def _stored_padding(ds: Dataset) -> NDArray[Any] | None:
    """(2,) lowest and highest stored value that is padding, in a type that holds it."""
    if ds.PhotometricInterpretation in COLOURS:
        return None
    if ds.get("BitsStored") is None:
        for kind in ("Float", "DoubleFloat"):  # PS3.3 C.7.6.24
            value = ds.get(f"{kind}PixelPaddingValue")
            if value is not None:
                return np.sort([value, ds.get(f"{kind}PixelPaddingRangeLimit", value)])
        return None
    value = ds.get("PixelPaddingValue")
    if value is None:
        return None
    # Written with the wrong VR, the same bits read as the other sign: take the pixels' own.
    size = 1 << int(ds.BitsAllocated)
    low = -(size >> 1) if int(ds.PixelRepresentation) else 0
    limit = ds.get("PixelPaddingRangeLimit")
    ends = np.sort(
        [(int(v) - low) % size + low for v in (value, value if limit is None else limit)]
    )
    lowest, highest = _stored_range(ds)
    # A value that the stored bits cannot hold occurs in no pixel.
    return ends if ends[1] >= lowest and ends[0] <= highest else None


def voi_windows(ds: Dataset, frame: int) -> tuple[Window | VoiLut, ...]:
    """Return the displays that the file offers for a frame (PS3.3 C.11.2, C.7.6.16.2.10).

    In the values of `grayscale`: where MONOCHROME1 was turned round, so is the display. Windows
    come first, then VOI LUTs; a window that shows nothing, of no width, is left out.
    """
    return tuple(one for one, _ in _displays(ds, frame))


def voi_explanations(ds: Dataset, frame: int) -> tuple[str, ...]:
    """Return what the file calls each of `voi_windows`, such as ``BONE``, or ""."""
    return tuple(called for _, called in _displays(ds, frame))


def voi(ds: Dataset, frame: int = 0) -> Window | VoiLut | None:
    """Return the first display that the file offers for a frame, if it offers one."""
    return next(iter(voi_windows(ds, frame)), None)


def _displays(ds: Dataset, frame: int) -> Iterator[tuple[Window | VoiLut, str]]:
    if ds.PhotometricInterpretation in COLOURS:
        return
    group = functional_group(ds, frame, "FrameVOILUTSequence")
    ends = value_range(ds, frame) or (0.0, 0.0)
    turned = _turned(ds)
    function = _WINDOW_FUNCTIONS.get(str(group.get("VOILUTFunction")), "LINEAR")
    linear = function == "LINEAR"
    centres, widths = numbers(group, "WindowCenter"), numbers(group, "WindowWidth")
    names = _texts(group, "WindowCenterWidthExplanation")
    for i, (centre, width) in enumerate(zip(centres, widths, strict=False)):
        if width >= 1 or (width > 0 and not linear):
            # LINEAR's centre lies half a value above the middle of the window: C.11.2.1.2.1.
            middle = sum(ends) - centre + linear if turned else centre
            yield Window(middle, width, function), names[i] if i < len(names) else ""
    for item in group.get("VOILUTSequence") or []:
        first, entries, bits = _lookup_table(item, ds, ends[0])
        table = (entries / float((1 << bits) - 1)).astype(np.float32)
        if turned:
            first = round(sum(ends)) - first - (len(table) - 1)
            table = np.ascontiguousarray(1 - table[::-1])
        yield VoiLut(first, table), str(item.get("LUTExplanation") or "")


def _texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    value = ds.get(keyword) or ()
    return (value,) if isinstance(value, str) else tuple(str(one) for one in value)


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
