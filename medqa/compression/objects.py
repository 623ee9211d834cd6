"""DICOM objects of compressed frames: what the header must say of a stream that lost something.

A new object of the same study, in a new series: PS3.3 C.7.6.1.1.5 demands a new SOP Instance UID,
and a series that held every slice twice could be read by nobody as a volume. Both UIDs follow from
the original's, from the approval and from the streams: so all slices of a series that are
compressed one after another come into one series, and the same object made twice is the same
object. A stream that lost nothing leaves the object what it is, and only its encoding changes.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
from collections.abc import Iterator

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import UID, ExplicitVRBigEndian, generate_uid

from medqa._version import __version__
from medqa.compression.adaptive import Stream
from medqa.compression.codecs import Codec, Samples, offset, version
from medqa.dicom.pixels import COLOURS, frame_count
from medqa.errors import ReadError

__all__ = ["check_object", "derived", "samples_of"]

#: Codes of DICOM's own dictionary (PS3.16 CID 7203, 7202 and 7005).
_LOSSY = ("113040", "Lossy Compression")
_PREDECESSOR = ("121320", "Uncompressed predecessor")
_MODIFYING = ("109103", "Modifying Equipment")
#: Attributes that hold stored values, which are raised where the stream carries no sign.
_STORED_VALUES = (
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "RealWorldValueFirstValueMapped",
    "RealWorldValueLastValueMapped",
)
_LONGEST = {"DerivationDescription": 1024, "SeriesDescription": 64}  # PS3.5 6.2: ST, LO
_PIXELS = 0x7FE00000  # the group of pixels and their offsets
_LARGEST_BASIC_OFFSET = 2**32 - 1  # PS3.5 A.4: of 32 bits


def samples_of(ds: Dataset) -> Samples:
    """How an object stores its pixel values."""
    return Samples(int(ds.BitsStored), int(ds.BitsAllocated), bool(ds.PixelRepresentation))


def check_object(ds: Dataset, source: object) -> None:
    """Refuse an object that cannot be compressed, or was before, by its header.

    Raises
    ------
    ReadError
        Colour or floating point, lossy before, big endian, with what compression would lose, or
        without the UIDs that the new object names its original by.
    """
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not ds.get(keyword):
            mend = "give the object as the device made it"
            raise ReadError(source, f"has no {keyword}, by which it could be named", mend)
    photometric = ds.PhotometricInterpretation
    if "PixelData" not in ds or photometric in COLOURS or int(ds.get("SamplesPerPixel", 1)) != 1:
        reason = "its pixels are not grey whole numbers"
        raise ReadError(source, reason, "give an image of MONOCHROME1 or MONOCHROME2")
    if ds.get("LossyImageCompression") == "01" or ds.get("LossyImageCompressionRatio") is not None:
        reason = "was compressed with loss before"
        raise ReadError(source, reason, "compress the original: losses add up unseen")
    if ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
        raise ReadError(source, "is big endian", "convert it with dcmconv +te first")
    if _embedded_overlay(ds):
        reason = "keeps an overlay inside its pixel values, which compression would lose"
        raise ReadError(source, reason, "move it to Overlay Data first")
    if samples_of(ds).signed and ds.get("ModalityLUTSequence"):
        reason = "maps signed values by a Modality LUT"
        raise ReadError(source, reason, "compress it by other means")


def _embedded_overlay(ds: Dataset) -> bool:
    """Whether a plane of bits above or below the pixel values is an overlay (PS3.5 8.1.2)."""
    groups = range(0x6000, 0x6020, 2)
    return any((g, 0x0102) in ds and (g, 0x3000) not in ds for g in groups)


def derived(ds: Dataset, stream: Stream, codec: Codec, approval_id: str) -> Dataset:
    """Make the DICOM object of a stream; the original is left alone.

    Parameters
    ----------
    ds
        The original, which `check_object` passes; with or without its pixel data.
    stream
        Its frames, compressed.
    approval_id
        The approval that allows it.

    Returns
    -------
    Object to be written in explicit VR little endian; its file meta information is complete but
    for who wrote it.
    """
    made = _without_pixels(ds)
    samples = samples_of(ds)
    raised = offset(codec, samples)
    lossy = stream.setting is not None
    made.HighBit = samples.bits_stored - 1  # of old files, not always
    if raised:
        _raise(made, raised)
    for keyword, end in (
        ("SmallestImagePixelValue", stream.lowest),
        ("LargestImagePixelValue", stream.highest),
    ):
        if keyword in made and lossy:
            made[keyword].value = end + raised
    if lossy or raised:
        _derive(made, ds, stream, approval_id)
        _describe(made, stream, codec, approval_id)
    if lossy:
        _declare(made, stream, codec)
    _set_pixels(made, stream.frames)
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.TransferSyntaxUID = UID(stream.syntax)
    return made


def _without_pixels(ds: Dataset) -> Dataset:
    made = Dataset()
    # What follows the pixels is padding, or was left over where they end (PS3.10 7.2).
    for tag in sorted(ds.keys()):
        if tag < _PIXELS:
            made.add(copy.deepcopy(ds[tag]))
    for keyword in ("DigitalSignaturesSequence", "MACParametersSequence"):
        made.pop(keyword, None)  # of bytes that are no longer there
    return made


def _raise(made: Dataset, raised: int) -> None:
    """Say that all stored values are higher, and none is negative, with the same modality values.

    PS3.3 C.7.6.3.1.1, C.7.5.1.1.2, C.11.1: values, padding, ends and the lines that map them.
    """
    made.PixelRepresentation = 0
    mapped = False
    for item in _items(made):
        for keyword in _STORED_VALUES:
            element = item.get_item(keyword)
            if element is not None and item[keyword].value is not None:
                value = item[keyword].value
                del item[keyword]
                setattr(item, keyword, _signed(value, made) + raised)
                item[keyword].VR = "US"
        for slope, intercept in (
            ("RescaleSlope", "RescaleIntercept"),
            ("RealWorldValueSlope", "RealWorldValueIntercept"),
        ):
            if intercept in item:
                factor = float(item.get(slope, 1))
                lowered = float(item[intercept].value) - factor * raised
                setattr(item, intercept, _decimal(lowered) if slope[0:3] == "Res" else lowered)
                mapped |= slope == "RescaleSlope"
    if not mapped:
        item = made
        if "SharedFunctionalGroupsSequence" in made:  # PS3.3 C.7.6.16.2.9
            item = Dataset()
            made.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [item]
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = "1", str(-raised), "US"


def _signed(value: int, made: Dataset) -> int:
    """Value with the sign of the pixels, whichever VR it was written with."""
    size = 1 << int(made.BitsAllocated)
    return (int(value) + size // 2) % size - size // 2


def _decimal(value: float) -> str:
    """Write a number as a decimal string of 16 characters at most (PS3.5 6.2, DS)."""
    for digits in range(17, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(f"{value} cannot be written in 16 characters")


def _items(ds: Dataset) -> Iterator[Dataset]:
    """Yield the object, and every item of its sequences."""
    yield ds
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                yield from _items(item)


def _derive(made: Dataset, ds: Dataset, stream: Stream, approval_id: str) -> None:
    """Give it an identity of its own, and name what it was made of (PS3.3 C.7.6.1.1.2, C.12.4)."""
    content = hashlib.sha256()
    for frame in stream.frames:
        content.update(hashlib.sha256(frame).digest())
    made.SOPInstanceUID = generate_uid(
        entropy_srcs=[str(ds.SOPInstanceUID), approval_id, content.hexdigest()]
    )
    made.SeriesInstanceUID = generate_uid(
        entropy_srcs=[str(ds.get("SeriesInstanceUID") or ds.SOPInstanceUID), approval_id]
    )
    now = datetime.datetime.now().astimezone()
    made.InstanceCreationDate = f"{now:%Y%m%d}"
    made.InstanceCreationTime = f"{now:%H%M%S}"
    if "ImageType" in made:
        made.ImageType = _of_derived(made.ImageType)
    else:
        made.ImageType = ["DERIVED", "PRIMARY"]
    for item in _items(made):
        if item is not made and "FrameType" in item:  # of multi-frame objects: C.8.16.1.1
            item.FrameType = _of_derived(item.FrameType)
    made.SourceImageSequence = [_source(ds)]
    groups = made.get("PerFrameFunctionalGroupsSequence") or []
    for number, group in enumerate(groups[: frame_count(ds)], start=1):
        image = Dataset()  # PS3.3 C.7.6.16.2.6
        image.DerivationCodeSequence = _codes(ds, stream)
        image.SourceImageSequence = [_source(ds, number)]
        group.DerivationImageSequence = [image]
    if groups:  # PS3.3 10.42: where frames name sources, the object lists them
        series = Dataset()
        series.SeriesInstanceUID = ds.SeriesInstanceUID
        series.ReferencedSOPSequence = [_reference(ds)]
        study = Dataset()
        study.StudyInstanceUID = ds.StudyInstanceUID
        study.ReferencedSeriesSequence = [series]
        made.SourceImageEvidenceSequence = [study]
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [_code(*_MODIFYING)]
    equipment.Manufacturer = equipment.ManufacturerModelName = "medqa"
    equipment.SoftwareVersions = __version__
    equipment.ContributionDateTime = f"{now:%Y%m%d%H%M%S%z}"
    made.ContributingEquipmentSequence = [
        *(made.get("ContributingEquipmentSequence") or []),
        equipment,
    ]


def _of_derived(image_type: object) -> list[str]:
    values = [image_type] if isinstance(image_type, str) else list(image_type)  # type: ignore[call-overload]
    return ["DERIVED", *(values[1:] or ["PRIMARY"])]


def _source(ds: Dataset, frame: int | None = None) -> Dataset:
    source = _reference(ds)
    if frame is not None:
        source.ReferencedFrameNumber = frame
    source.PurposeOfReferenceCodeSequence = [_code(*_PREDECESSOR)]
    return source


def _reference(ds: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = ds.SOPClassUID
    reference.ReferencedSOPInstanceUID = ds.SOPInstanceUID
    return reference


def _codes(ds: Dataset, stream: Stream) -> list[Dataset]:
    """How it was derived, after how the original was: one for each step (PS3.3 C.7.6.1.1.3)."""
    before = copy.deepcopy(list(ds.get("DerivationCodeSequence") or []))
    return [*before, _code(*_LOSSY)] if stream.setting is not None else before


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _describe(made: Dataset, stream: Stream, codec: Codec, approval_id: str) -> None:
    kind = "Lossless" if stream.setting is None else "Lossy"
    words = (
        f"{kind} compression, {codec.title} ({version(codec)}), {stream.ratio_stored:.2f}:1 of the "
        f"bits stored, {stream.ratio_allocated:.2f}:1 of the bits allocated, under medqa approval "
        f"{approval_id}"
    )
    before = str(made.get("DerivationDescription") or "").strip()
    words = f"{words}; before: {before}" if before else words
    made.DerivationDescription = words[: _LONGEST["DerivationDescription"]]
    if codes := _codes(made, stream):
        made.DerivationCodeSequence = codes
    series = f"{str(made.get('SeriesDescription') or '').strip()} {kind.lower()}".strip()
    if len(series) <= _LONGEST["SeriesDescription"]:
        made.SeriesDescription = series


def _declare(made: Dataset, stream: Stream, codec: Codec) -> None:
    """PS3.3 C.7.6.1.1.5: that it was lossy, the measured ratio by the bits stored, and the method.

    Of the bits stored, as guidelines and approvals state their limits: by the bits allocated, 12
    bits in 16 would be declared a third higher than any of them means.
    """
    made.LossyImageCompression = "01"
    made.LossyImageCompressionRatio = f"{stream.ratio_stored:.2f}"
    made.LossyImageCompressionMethod = codec.method


def _set_pixels(made: Dataset, frames: tuple[bytes, ...]) -> None:
    """Encapsulate with a table of offsets, so that any frame is found at once (PS3.5 A.4)."""
    if sum(map(len, frames)) + 10 * len(frames) < _LARGEST_BASIC_OFFSET:
        data = encapsulate(list(frames), has_bot=True)
    else:
        data, offsets, lengths = encapsulate_extended(list(frames))
        made.ExtendedOffsetTable, made.ExtendedOffsetTableLengths = offsets, lengths
    made.add_new("PixelData", "OB", data)
    made["PixelData"].is_undefined_length = True
