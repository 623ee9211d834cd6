"""What `medqa.inspection` found, in words for the people who look after images."""

from __future__ import annotations

from collections.abc import Sequence

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from medqa.inspection import Compression, DicomImage, NiftiImage

__all__ = ["panel", "rows"]

_SHOWN = 3  # values of an element that changes from file to file
_SAME_RATIO = 0.1  # relative: writers round
_CODES = ("not set", "scanner", "aligned", "Talairach", "MNI", "template")


def rows(image: DicomImage | NiftiImage) -> list[tuple[str, str]]:
    """Return what there is to say of an image, each with its label."""
    found = _nifti(image) if isinstance(image, NiftiImage) else _dicom(image)
    return [(label, words) for label, words in found if words]


def panel(image: DicomImage | NiftiImage) -> Panel:
    """Put the rows of an image under its file's name, for a terminal."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, words in rows(image):
        grid.add_row(Text(label, style="bold"), Text(words))
    return Panel(grid, title=Text(image.source), title_align="left", expand=False)


def _dicom(one: DicomImage) -> list[tuple[str, str]]:
    series = "" if one.series_number is None else f"{one.series_number} "
    return [
        ("image", f"{one.modality or 'unknown modality'}, {one.sop_class}"),
        ("series", f"{series}{one.description or ''}".strip()),
        ("files", str(one.files) if one.files > 1 else ""),
        ("size", f"{_count(one.slices)} of {one.rows} rows x {one.columns} columns"),
        ("geometry", _geometry(one)),
        ("pixels", _pixels(one)),
        ("transfer syntax", _some(one.transfer_syntaxes)),
        ("windows", _some(one.displays) or "none"),
        ("padding", _some(one.padding) or "none"),
        ("values", _some(one.rescale) or "as stored"),
        ("unit", one.unit),
        ("compression", _compression(one)),
        ("lossy history", _history(one)),
        ("made from", _sources(one)),
        *((keyword, value) for keyword, value in (one.identifiers or {}).items()),
    ]


def _count(slices: int) -> str:
    return f"{slices} frame{'s' if slices > 1 else ''}"


def _geometry(one: DicomImage) -> str:
    parts = [one.plane or "orientation unknown"]
    if one.localiser:
        parts.append("localiser")
    if one.spacing_mm is None:
        parts.append("pixel spacing unknown")
    else:
        parts.append(f"pixels of {one.spacing_mm[0]:.4g} x {one.spacing_mm[1]:.4g} mm")
    if one.step_mm:
        many = "slices every" if one.slices > 1 else "slice thickness or distance"
        parts.append(f"{many} {one.step_mm:.4g} mm")
    if one.first_position_mm is None:
        parts.append("position unknown")
    else:
        parts.append("first at ({:.1f}, {:.1f}, {:.1f}) mm".format(*one.first_position_mm))
    parts.append(f"{'a' if one.has_frame_of_reference else 'no'} frame of reference")
    return ", ".join(parts)


def _pixels(one: DicomImage) -> str:
    if one.bits_stored is None:
        return f"{one.bits_allocated} bit floating point, {one.photometric}"
    kind = {True: "signed", False: "unsigned", None: "sign not stated"}[one.signed]
    samples = f"{one.samples} x " if one.samples > 1 else ""
    return (
        f"{samples}{one.bits_stored} bits stored in {one.bits_allocated}, {kind}, {one.photometric}"
    )


def _some(values: Sequence[str]) -> str:
    more = f"; and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return "; ".join(values[:_SHOWN]) + more


def _compression(one: DicomImage) -> str:
    found = one.compression
    if found is None:
        deflated = any("Deflated" in name for name in one.transfer_syntaxes)
        return "of the whole file: not measured" if deflated else "none"
    return (
        f"measured {found.ratio_of_stored_bits:.2f}:1 of the stored bits, "
        f"{found.ratio_of_allocated_bits:.2f}:1 of the allocated bits ({found.stored_bytes} bytes)"
    )


def _history(one: DicomImage) -> str:
    """Hold what the header declares against the transfer syntax and what was measured."""
    if one.lossy != "01":
        said = "declared never to have been" if one.lossy == "00" else "nothing declared:"
        if one.may_lose:
            return f"{said} compressed with loss, but the transfer syntax allows loss"
        return "declared never compressed with loss" if one.lossy == "00" else "nothing declared"
    ratios = ", then ".join(f"{ratio:.4g}:1" for ratio in one.lossy_ratios)
    by = f" by {', '.join(one.lossy_methods)}" if one.lossy_methods else ""
    words = f"declared compressed with loss{by}, {ratios or 'ratio not stated'}"
    if not one.may_lose or one.compression is None:
        return f"{words}; stored without further loss now, so that its ratio cannot be measured"
    if not one.lossy_ratios:
        return words
    return f"{words}; {_agreement(one.lossy_ratios[-1], one.compression)}"


def _agreement(declared: float, measured: Compression) -> str:
    for ratio, bits in (
        (measured.ratio_of_stored_bits, "stored"),
        (measured.ratio_of_allocated_bits, "allocated"),
    ):
        if abs(declared / ratio - 1) <= _SAME_RATIO:
            return f"that is the measured ratio of the {bits} bits"
    return (
        f"that is NOT the measured ratio ({measured.ratio_of_stored_bits:.2f}:1 of the stored, "
        f"{measured.ratio_of_allocated_bits:.2f}:1 of the allocated bits)"
    )


def _sources(one: DicomImage) -> str:
    parts = []
    if one.sources:
        names = f" ({_some(one.purposes)})" if one.purposes else ""
        parts.append(f"{one.sources} source image{'s' if one.sources > 1 else ''} named{names}")
    if one.derivation:
        parts.append(one.derivation)
    if one.references:
        parts.append(f"{one.references} other image{'s' if one.references > 1 else ''} referenced")
    return "; ".join(parts)


def _nifti(one: NiftiImage) -> list[tuple[str, str]]:
    zooms = " x ".join(f"{zoom:.4g}" for zoom in one.zooms)
    space, time = one.units
    slope, intercept = one.scaling
    return [
        ("image", f"NIfTI-{one.version}"),
        ("size", " x ".join(map(str, one.shape))),
        ("voxels", f"{zooms}; unit of length {space}, of time {time}"),
        ("orientation", one.orientation or "unknown: neither qform nor sform is set"),
        ("transforms", _transforms(one)),
        ("values", f"{one.datatype}, {_scaling(slope, intercept)}"),
        ("unit", "not stated: NIfTI has none for values"),
        ("file", f"{one.file_bytes} bytes"),
    ]


def _transforms(one: NiftiImage) -> str:
    codes = [
        f"{name} {code} ({_CODES[code] if 0 <= code < len(_CODES) else 'unknown'})"
        for name, code in (("qform", one.qform_code), ("sform", one.sform_code))
    ]
    words = ", ".join(codes)
    if one.transforms_apart_voxels is None:
        return words
    return f"{words}, {one.transforms_apart_voxels:.2g} voxels apart at most"


def _scaling(slope: float, intercept: float) -> str:
    if (slope, intercept) == (1.0, 0.0):
        return "not scaled"
    return f"{slope:g} x stored {'-' if intercept < 0 else '+'} {abs(intercept):g}"
