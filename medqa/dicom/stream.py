"""A DICOM byte stream to pydicom's data set, within the limits.

`parse` is the only way to pydicom's parser. It stops the parser when it has read more elements
than the limits allow, inflates a deflated data set only so far, and refuses what claims more than
is there.
"""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO, cast

from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_preamble, read_sequence
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import VR

from medqa.limits import Limits, RefusedError

__all__ = ["Meter", "parse"]

_DAMAGED = "the file is damaged or truncated: fetch it again"
_HOSTILE = "it is damaged, or made to harm: convert it with another tool if you trust it"

_CHARACTER_SETS = (b"\x08\x00\x05\x00", b"\x00\x08\x00\x05")
_LONGEST_CHARACTER_SET = 1024  # bytes; pydicom splits it at once: 64 MB took two minutes and 9 GB
_LAZY = 4 * 2**20  # bytes of sequences that may be left unparsed, and so uncounted
_BULK = {VR.OB, VR.OW, VR.OF, VR.OD, VR.OL, VR.OV, VR.OB_OW, VR.UN, VR.UT, VR.UC, VR.UR, VR.SQ}
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_UNDEFINED = 0xFFFFFFFF
_READS = 4  # that an element or an item takes, at most: its header, in parts, and its value


class Meter(io.RawIOBase):
    """A file that pydicom may read so often, and never more of than there is.

    pydicom reads the header of each element and item on its own, so that counting what it reads
    counts those, whatever it takes them for.
    """

    def __init__(self, file: BinaryIO, size: int, reads: int) -> None:
        self._file, self._size = file, size
        self.file = cast(BinaryIO, self)  # pydicom asks for no more than it has
        self.left = reads
        self._head = b""
        self.seek, self.tell = file.seek, file.tell  # type: ignore[method-assign]

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes; asks for no more memory than the file has."""
        self.left -= 1
        if self.left < 0:
            raise RefusedError("holds too many data elements", _HOSTILE)
        if size > _LONGEST_CHARACTER_SET and self._head in _CHARACTER_SETS:
            raise RefusedError("has a character set that is too long", _HOSTILE)
        data = self._file.read(min(size, self._size))
        if size == 8:
            self._head = data[:4]
        return data


def parse(
    file: BinaryIO, size: int, limits: Limits, *, stop_before_pixels: bool = False
) -> FileDataset:
    """Parse a file with pydicom, with or without preamble and file meta information.

    Parameters
    ----------
    file
        At its start; left where pydicom stopped, unless it is deflated.
    size
        Its length in bytes.
    limits
        What it may ask for.
    stop_before_pixels
        Stop before Float, Double Float or Pixel Data.

    Raises
    ------
    RefusedError
        It goes beyond a limit, or claims more than it holds.
    Exception
        pydicom cannot read it; it raises nearly every type there is.
    """
    meter = Meter(file, size, _READS * limits.elements)
    preamble = read_preamble(meter.file, force=True)
    meta = read_dataset(meter.file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        data = _inflated(file, limits.file_bytes)
        meter = Meter(io.BytesIO(data), len(data), meter.left)
        stop = _at_pixels if stop_before_pixels else None
        inner = read_dataset(meter.file, False, True, stop_when=stop)
        ds = FileDataset(io.BytesIO(), inner, preamble, FileMetaDataset(meta), False, True)
        ds.set_original_encoding(False, True, inner._character_set)
    else:
        file.seek(0)
        ds = dcmread(meter.file, force=True, stop_before_pixels=stop_before_pixels)
    ds.buffer = None  # or each header of a series would keep its whole file in memory
    _check(ds, limits, meter.left)
    return ds


def _at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag in _PIXELS


def _inflated(file: BinaryIO, most: int) -> bytes:
    """Inflate the rest of a file (PS3.5 A.5), up to `most` bytes."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(file.read(), most)
    if inflater.unconsumed_tail:
        raise RefusedError(f"inflates to more than the {most / 2**30:.3g} GiB allowed", _HOSTILE)
    if not inflater.eof:
        raise RefusedError("is deflated and ends too early", _DAMAGED)
    return data


def _check(ds: Dataset, limits: Limits, reads: int) -> None:
    """Refuse a data set with too deep sequences, too long values, or values that were cut short.

    pydicom leaves sequences of defined length unparsed until they are asked for. If there is much
    of them they are parsed here, with what is left of the number of reads.
    """
    datasets: list[tuple[Dataset, int]] = [(ds, 0)]
    lazy: list[tuple[Dataset, RawDataElement, int]] = []
    unparsed = 0
    while datasets or (lazy and unparsed > _LAZY):
        if not datasets:
            owner, raw, depth = lazy.pop()
            value = raw.value or b""
            meter = Meter(io.BytesIO(value), len(value), reads)
            items = read_sequence(
                meter.file,
                raw.is_implicit_VR,
                raw.is_little_endian,
                raw.length,
                owner._character_set,
            )
            reads = meter.left
            owner[raw.tag] = DataElement(raw.tag, VR.SQ, items)
            datasets = [(item, depth + 1) for item in items]
        one, depth = datasets.pop()
        if depth > limits.depth:
            raise RefusedError(f"nests more than {limits.depth} sequences", _HOSTILE)
        for element in one.values():
            if not isinstance(element, RawDataElement):
                if element.VR == VR.SQ:
                    datasets += [(item, depth + 1) for item in element.value]
            elif element.value and element.length != _UNDEFINED:
                held = len(element.value)
                if held < element.length:
                    reason = f"element {element.tag} claims {element.length} bytes and has {held}"
                    raise RefusedError(reason, _DAMAGED)
                vr = _vr(element)
                if vr == VR.SQ:
                    lazy.append((one, element, depth))
                    unparsed += held
                elif vr not in _BULK and held > limits.value_bytes:
                    raise RefusedError(
                        f"element {element.tag} has {held} bytes of values", _HOSTILE
                    )


def _vr(element: RawDataElement) -> str:
    """Value representation that pydicom will take an element for; UN where it has none."""
    if element.VR not in (None, VR.UN):
        return VR.UN if element.tag.is_private and element.VR != VR.SQ else str(element.VR)
    try:
        return dictionary_VR(element.tag)
    except KeyError:
        return VR.UN
