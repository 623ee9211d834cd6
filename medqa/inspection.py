"""What medqa understands of a file, by its header and the size of its pixel data.

`inspect` returns one finding for each image of a file or folder; `medqa.inspection_text` puts it in
words. Nothing is decoded. No names, identities or UIDs of patients, studies and instances are in
it, unless they are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.encaps import generate_fragments, parse_basic_offsets
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from medqa.catalogue import Entry, look, plane_words
from medqa.dicom.files import is_dicom, is_image, reading
from medqa.dicom.geometry import plane
from medqa.dicom.pixels import frame_count, functional_group, number, numbers, unit
from medqa.dicom.stream import parse
from medqa.errors import MedqaError, ReadError
from medqa.image import voxels_apart
from medqa.limits import limits
from medqa.nifti_files import format_of, head, header_path, opened

__all__ = ["Compression", "DicomImage", "NiftiImage", "inspect"]

# They may lose: JPEG 2000 and HTJ2K of these syntaxes may be reversible all the same.
_LOSSY = {
    *(JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K),
    *("1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55", "1.2.840.10008.1.2.4.112"),
}
_ENCAPSULATED = "1.2.840.10008.1.2.4."  # and what pydicom does not know yet
_JPEG_XL = {110: "JPEG XL Lossless", 111: "JPEG XL JPEG Recompression", 112: "JPEG XL"}
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class Compression:
    """How many times smaller pixel data is than its pixels.

    Parameters
    ----------
    stored_bytes
        Of the pixel data in the files: fragments with their padding, without offset table.
    ratio_of_stored_bits
        rows x columns x frames x samples x Bits Stored to them.
    ratio_of_allocated_bits
        The same with Bits Allocated.
    """

    stored_bytes: int
    ratio_of_stored_bits: float
    ratio_of_allocated_bits: float


@dataclass(frozen=True)
class DicomImage:
    """A DICOM image as medqa understands it; tuples hold the different values among its files.

    Parameters
    ----------
    compression
        Measured; None where the pixel data is not compressed, or its size cannot be told because
        the whole file is deflated.
    lossy
        Lossy Image Compression (PS3.3 C.7.6.1.1.5): ``01`` yes, ``00`` no, None where not said.
    lossy_ratios, lossy_methods
        As declared, one for each time.
    may_lose
        Whether the transfer syntax allows loss.
    sources, purposes
        Number of source images that it names, and what for.
    identifiers
        Of patient, study and series; None where not asked for.
    """

    source: str
    files: int
    modality: str | None
    sop_class: str
    series_number: int | None
    description: str | None
    localiser: bool
    slices: int
    rows: int
    columns: int
    samples: int
    bits_stored: int | None
    bits_allocated: int
    signed: bool | None
    photometric: str
    transfer_syntaxes: tuple[str, ...]
    plane: str | None
    spacing_mm: tuple[float, float] | None
    step_mm: float | None
    first_position_mm: tuple[float, float, float] | None
    has_frame_of_reference: bool
    displays: tuple[str, ...]
    padding: tuple[str, ...]
    rescale: tuple[str, ...]
    unit: str
    compression: Compression | None
    may_lose: bool
    lossy: str | None
    lossy_ratios: tuple[float, ...]
    lossy_methods: tuple[str, ...]
    derivation: str | None
    sources: int
    purposes: tuple[str, ...]
    references: int
    identifiers: dict[str, str] | None = None


@dataclass(frozen=True)
class NiftiImage:
    """A NIfTI image as its header describes it.

    Parameters
    ----------
    transforms_apart_voxels
        How far qform and sform put a corner voxel apart; None unless both are set.
    orientation
        Where the axes of the array point to, such as ``RAS``; None where no transform is set.
    scaling
        Slope and intercept.
    """

    source: str
    version: int
    shape: tuple[int, ...]
    datatype: str
    zooms: tuple[float, ...]
    units: tuple[str, str]
    qform_code: int
    sform_code: int
    transforms_apart_voxels: float | None
    orientation: str | None
    scaling: tuple[float, float]
    file_bytes: int


def inspect(
    path: str | os.PathLike[str], *, identifiers: bool = False
) -> tuple[list[DicomImage | NiftiImage], list[MedqaError]]:
    """Say what a file, or each image in a folder, is.

    Parameters
    ----------
    path
        DICOM or NIfTI file, or a folder; its subfolders count too.
    identifiers
        Tell those of patient, study and series too.

    Returns
    -------
    The images, and why what should be one is not.

    Raises
    ------
    ReadError
        The file is damaged or no image; the folder holds none.
    """
    path = Path(path)
    if not path.is_dir():
        return [_inspect_file(path, identifiers)], []
    catalogue = look(path)
    found: list[DicomImage | NiftiImage] = []
    refused = list(catalogue.refused)
    for entry in catalogue.entries:
        try:
            if entry.kind == "nifti":
                found.append(_nifti(entry.paths[0]))
            else:
                found.append(_dicom(entry.paths, identifiers, entry))
        except MedqaError as error:
            refused.append(error)
    if not found and not refused:
        raise ReadError(path, "holds no image", "give the folder that holds the images")
    return found, refused


def _inspect_file(path: Path, identifiers: bool) -> DicomImage | NiftiImage:
    try:
        if not path.is_file():
            raise ReadError(path, "is no file or folder", "check the path")
        with path.open("rb") as file:
            dicom = is_dicom(file.read(132))
        if dicom:
            return _dicom([path], identifiers)
        with reading(path):
            start = head(header_path(path))
        if format_of(start) is not None:
            return _nifti(path)
    except OSError as cause:
        mend = "check the path and its permissions"
        raise ReadError(path, "cannot be read", mend, cause.strerror or "") from cause
    raise ReadError(path, "is neither DICOM nor NIfTI", "give a DICOM or a NIfTI file")


def _dicom(paths: Sequence[Path], identifiers: bool, entry: Entry | None = None) -> DicomImage:
    headers, sizes = [], []
    for path in paths:
        with reading(path):
            ds, size = _header(path)
            if not is_image(ds):
                name = UID(ds.get("SOPClassUID") or "").name or "object of unknown class"
                raise ReadError(path, f"is no image ({name})", "give an image")
            headers.append(ds)
            sizes.append(size)
    source = str(paths[0]) if len(paths) == 1 else os.path.commonpath([p.parent for p in paths])
    with reading(source):
        return _described(headers, sizes, source, identifiers, entry)


def _header(path: Path) -> tuple[Dataset, int | None]:
    """Header, and bytes of the pixel data in the file; None where they cannot be told."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        ds = parse(file, size, limits(), stop_before_pixels=True)
        syntax = ds.file_meta.get("TransferSyntaxUID")
        if syntax is None or not _is_encapsulated(UID(syntax)):
            return ds, None
        # PS3.5 A.4: explicit VR little endian, a length that is not defined, items.
        element = file.read(12)
        group, number = (int.from_bytes(element[i : i + 2], "little") for i in (0, 2))
        if (group << 16) + number not in _PIXELS or int.from_bytes(element[8:], "little") != (
            _UNDEFINED
        ):
            return ds, None
        parse_basic_offsets(file)
        return ds, sum(len(fragment) for fragment in generate_fragments(file))


def _is_encapsulated(syntax: UID) -> bool:
    known = syntax.is_transfer_syntax
    return syntax.is_encapsulated if known else syntax.startswith(_ENCAPSULATED)


def _described(
    headers: Sequence[Dataset],
    sizes: Sequence[int | None],
    source: str,
    identifiers: bool,
    entry: Entry | None,
) -> DicomImage:
    ds = headers[0]
    where = plane(ds, 0)
    slices = sum(map(frame_count, headers))
    syntaxes = _distinct(one.file_meta.get("TransferSyntaxUID") or "" for one in headers)
    named = [item for one in headers for item in one.get("SourceImageSequence") or []]
    purposes = (item.get("PurposeOfReferenceCodeSequence") or [Dataset()] for item in named)
    cosines = None if where.axes is None else (*where.axes[:, 1], *where.axes[:, 0])
    position = where.position
    stored, signed = ds.get("BitsStored"), ds.get("PixelRepresentation")
    return DicomImage(
        source=source,
        files=len(headers),
        modality=_text(ds, "Modality"),
        sop_class=UID(ds.get("SOPClassUID") or "").name or "unknown",
        series_number=None if not _text(ds, "SeriesNumber") else int(ds.SeriesNumber),
        description=_text(ds, "SeriesDescription"),
        localiser="LOCALIZER" in str(ds.get("ImageType")),
        slices=slices,
        rows=int(ds.Rows),
        columns=int(ds.Columns),
        samples=int(ds.get("SamplesPerPixel", 1)),
        bits_stored=None if stored is None else int(stored),
        bits_allocated=int(ds.BitsAllocated),
        signed=None if signed is None else bool(signed),
        photometric=_text(ds, "PhotometricInterpretation") or "missing",
        transfer_syntaxes=tuple(map(_syntax, syntaxes)),
        plane=None if cosines is None else plane_words(cosines),
        spacing_mm=where.spacing,
        step_mm=_step(headers, entry),
        first_position_mm=None if position is None else tuple(float(v) for v in position),  # type: ignore[arg-type]
        has_frame_of_reference=bool(_text(ds, "FrameOfReferenceUID")),
        displays=_distinct(word for one in headers for word in _displays(one)),
        padding=_distinct(_padding(one) for one in headers),
        rescale=_distinct(word for one in headers for word in _rescales(one)),
        unit=unit(ds),
        compression=_compression(headers, sizes),
        may_lose=any(syntax in _LOSSY for syntax in syntaxes),
        lossy=_text(ds, "LossyImageCompression"),
        lossy_ratios=numbers(ds, "LossyImageCompressionRatio"),
        lossy_methods=_strings(ds, "LossyImageCompressionMethod"),
        derivation=_text(ds, "DerivationDescription"),
        sources=len(named) if entry is None else max(len(named), len(entry.sources)),
        purposes=_distinct(str(one[0].get("CodeMeaning") or "") for one in purposes),
        references=sum(len(one.get("ReferencedImageSequence") or []) for one in headers),
        identifiers=_identifiers(headers) if identifiers else None,
    )


def _compression(headers: Sequence[Dataset], sizes: Sequence[int | None]) -> Compression | None:
    known = [size for size in sizes if size]
    if len(known) < len(headers):
        return None
    stored = allocated = 0
    for ds in headers:
        values = (
            int(ds.Rows) * int(ds.Columns) * frame_count(ds) * int(ds.get("SamplesPerPixel", 1))
        )
        allocated += values * int(ds.BitsAllocated)
        stored += values * int(ds.get("BitsStored") or ds.BitsAllocated)
    size = sum(known)
    return Compression(size, stored / (8 * size), allocated / (8 * size))


def _step(headers: Sequence[Dataset], entry: Entry | None) -> float | None:
    """Distance between slices in mm: of the first two places, else as the header states it."""
    if entry is not None and entry.grid.positions_mm and entry.grid.cosines:
        places = np.array(entry.grid.positions_mm)
    else:
        planes = [plane(headers[0], frame) for frame in range(min(2, frame_count(headers[0])))]
        known = [one.position for one in planes if one.position is not None]
        places = np.array(known) if len(known) == len(planes) else np.empty((0, 3))
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1) if len(places) > 1 else np.empty(0)
    steps = steps[steps > 0]
    if steps.size:
        return float(np.median(steps))
    return plane(headers[0], 0).step or None


def _displays(ds: Dataset) -> list[str]:
    group = functional_group(ds, 0, "FrameVOILUTSequence")
    function = _text(group, "VOILUTFunction") or "LINEAR"
    names = _strings(group, "WindowCenterWidthExplanation")
    words = [
        f"{centre:g}/{width:g} {function}" + (f" ({names[i]})" if i < len(names) else "")
        for i, (centre, width) in enumerate(
            zip(numbers(group, "WindowCenter"), numbers(group, "WindowWidth"), strict=False)
        )
    ]
    tables = len(group.get("VOILUTSequence") or [])
    return words + [f"VOI LUT {n}" for n in range(1, tables + 1)]


def _padding(ds: Dataset) -> str:
    value, limit = (_text(ds, f"PixelPadding{end}") for end in ("Value", "RangeLimit"))
    if value is None:
        return ""
    return value if limit is None else f"{value} to {limit}"


def _rescales(ds: Dataset) -> list[str]:
    if ds.get("ModalityLUTSequence"):
        return ["by a Modality LUT"]
    found = []
    for frame in range(frame_count(ds)):
        group = functional_group(ds, frame, "PixelValueTransformationSequence")
        if "RescaleSlope" in group:
            slope, start = number(group, "RescaleSlope", 1), number(group, "RescaleIntercept", 0)
            found.append(f"{slope:g} x stored {'-' if start < 0 else '+'} {abs(start):g}")
    return found


def _identifiers(headers: Sequence[Dataset]) -> dict[str, str]:
    keywords = (
        *("PatientID", "PatientName", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID"),
        *("FrameOfReferenceUID", "SOPInstanceUID"),
    )
    found = {keyword: _distinct(_text(ds, keyword) or "" for ds in headers) for keyword in keywords}
    return {keyword: ", ".join(values) for keyword, values in found.items() if values}


def _syntax(uid: str) -> str:
    last = uid.rpartition(".")[2]
    if uid.startswith(_ENCAPSULATED) and int(last) in _JPEG_XL:
        return _JPEG_XL[int(last)]
    return UID(uid).name or "not stated"


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))


def _text(ds: Dataset, keyword: str) -> str | None:
    value = ds.get(keyword)
    return None if value is None else str(value).strip() or None


def _strings(ds: Dataset, keyword: str) -> tuple[str, ...]:
    value = ds.get(keyword) or ()
    return (str(value),) if isinstance(value, str) else tuple(str(one) for one in value)


def _nifti(path: Path) -> NiftiImage:
    import nibabel as nib

    with reading(path):
        paths, header, _ = opened(path)
        shape = tuple(int(n) for n in header.get_data_shape())
        codes = int(header["qform_code"]), int(header["sform_code"])
        apart = None
        if min(codes) > 0:
            x, y, z = (*shape, 1, 1, 1)[:3]
            apart = voxels_apart(header.get_qform(), header.get_sform(), (x, y, z))
        affine: Any = header.get_best_affine()
        slope, intercept = header.get_slope_inter()
        return NiftiImage(
            source=str(path),
            version=2 if header.sizeof_hdr == 540 else 1,
            shape=shape,
            datatype=str(header.get_value_label("datatype")),
            zooms=tuple(float(v) for v in header.get_zooms()),
            units=header.get_xyzt_units(),
            qform_code=codes[0],
            sform_code=codes[1],
            transforms_apart_voxels=apart,
            orientation="".join(nib.aff2axcodes(affine)) if max(codes) > 0 else None,
            scaling=(
                1.0 if slope is None else float(slope),
                0.0 if intercept is None else float(intercept),
            ),
            file_bytes=sum(one.stat().st_size for one in paths),
        )
