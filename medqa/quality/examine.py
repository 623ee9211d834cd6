"""Measure an image without a reference, slice by slice, and make a record of it."""

from __future__ import annotations

import datetime
import math
import re
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medqa._version import __version__
from medqa.dicom.files import header, reading
from medqa.dicom.pixels import number
from medqa.errors import RegionError
from medqa.image import Image, Region
from medqa.pipeline import image_input
from medqa.quality.areas import Mask, UndefinedError
from medqa.quality.measures import Kind, Slice, kinds_of
from medqa.quality.noise import cnr
from medqa.quality.record import Measured, QualityRecord
from medqa.reader import dicom_files
from medqa.thresholds import Profile, choose, load
from medqa.transforms import Display, check_pixels, displays

__all__ = ["Examination", "examine", "header_of", "record_of"]

_EXPOSED = ("CR", "DX")
# A reconstruction kernel's name is one word; anything else could be a person's text.
_KERNEL = re.compile(r"[A-Za-z0-9_+.-]{1,16}")
_DAYS = ("AcquisitionDate", "AcquisitionDateTime", "SeriesDate", "StudyDate")


@dataclass(frozen=True, eq=False)
class Examination:
    """What was measured on an image, and a slice to show.

    Parameters
    ----------
    image
        The image.
    measures
        Of a volume, the median over its slices.
    slices
        Of each measure that has a value for each slice: these, None where it is undefined.
    index
        The slice to show, from 0: the middle one.
    display
        Name of its display.
    shown
        (rows, columns) display values in [0, 1].
    areas
        (kind, name, (rows, columns) mask) each, as `medqa.pictures.outlined` takes them: where was
        measured.
    """

    image: Image
    measures: tuple[Measured, ...]
    slices: Mapping[str, tuple[float | None, ...]]
    index: int
    display: str
    shown: NDArray[np.float64]
    areas: tuple[tuple[str, str, Mask], ...] = field(repr=False, default=())


def examine(
    image: Image, header: Dataset | None = None, regions: Sequence[Region] = ()
) -> Examination:
    """Measure an image; one slice is in memory at a time.

    Parameters
    ----------
    image
        As `medqa.read` returns it.
    header
        Of a DICOM image, for what only it says: exposure indices.
    regions
        None, or two: signal and background, between which contrast is measured too.

    Raises
    ------
    PixelError
        NaN or infinite values, or one value everywhere.
    RegionError
        Not two regions.
    """
    if len(regions) not in (0, 2):
        raise RegionError(
            "regions", f"are {len(regions)}", "give two: first the signal, then its background"
        )
    check_pixels(image, 1)
    display = displays(_profile(image), image)[0]
    called = display.name.replace("the reference", "the image")
    kinds = kinds_of(image.modality)
    found: dict[str, list[float | str]] = {kind.name: [] for kind in kinds}
    middle = image.shape[0] // 2
    for index in range(image.shape[0]):
        one = _slice(image, display, index)
        for kind in kinds:
            found[kind.name].append(_measured(kind, one))
        if index == middle:
            shown, areas = one.shown, _areas(one)
    return Examination(
        image=image,
        measures=(
            *(_over_slices(kind, found[kind.name], image.unit, called) for kind in kinds),
            *([_between(image, *regions)] if regions else []),
            *(_exposure(header) if image.modality in _EXPOSED else []),
        ),
        slices={
            name: tuple(None if isinstance(one, str) else one for one in values)
            for name, values in found.items()
        },
        index=middle,
        display=called,
        shown=shown,
        areas=areas,
    )


def _profile(image: Image) -> Profile:
    """Profile whose display is measured; the default one where the modality is unknown."""
    if image.modality is None:
        return load("default")
    return choose(image.modality, body_part=image.body_part)


def _slice(image: Image, display: Display, index: int) -> Slice:
    batch = slice(index, index + 1)
    pixels = image.pixels[batch]
    padding = image.is_padding(pixels, batch)
    inside = np.ones(pixels.shape, bool) if padding is None else ~padding
    if inside.any():  # filters near the padding must not see its values
        pixels = np.where(inside, pixels, pixels.min(where=inside, initial=pixels.max()))
    shown, _ = display(pixels, pixels)
    return Slice(
        pixels=pixels[0].astype(np.float64),
        shown=shown[0, 0].numpy().astype(np.float64),
        inside=inside[0],
        modality=image.modality,
        spacing_mm=None if image.spacing_mm is None else image.spacing_mm[1:],
        ends=image.value_range or (image.survey.minimum, image.survey.maximum),
    )


def _measured(kind: Kind, one: Slice) -> float | str:
    """Return the value, or why there is none."""
    try:
        value = kind.measure(one)
    except UndefinedError as reason:
        return str(reason)
    return value if math.isfinite(value) else "it has no finite value"


def _areas(one: Slice) -> tuple[tuple[str, str, Mask], ...]:
    try:
        found = [("pathology", "body", one.body), ("annotation", "air", one.air)]
    except UndefinedError:
        return ()
    uses_air = one.modality in ("CT", "MR")
    return tuple(found if uses_air else found[:1])


def _over_slices(kind: Kind, found: Sequence[float | str], unit: str, display: str) -> Measured:
    """Median over the slices, and in words the worst and where it is."""
    values = {i: one for i, one in enumerate(found) if not isinstance(one, str)}
    value, words = None, [f"display {display}"] if kind.of_display else []
    if not values:
        ((reason, _),) = Counter(one for one in found if isinstance(one, str)).most_common(1)
        words = [reason]
    else:
        value = float(np.median(list(values.values())))
        if len(found) > 1:
            words = [_spread(kind, values, value, len(found)), *words]
    return Measured(
        name=kind.name,
        value=value,
        unit=kind.unit or unit,
        better=kind.better,
        detail="; ".join(words) or None,
    )


def _spread(kind: Kind, values: Mapping[int, float], median: float, count: int) -> str:
    if kind.better == "neither":
        worst, word = max(values, key=lambda i: abs(values[i] - median)), "furthest from it"
    else:
        sign = 1 if kind.better == "lower" else -1
        worst, word = max(values, key=lambda i: sign * values[i]), "worst"
    of = f"{count}" if len(values) == count else f"{len(values)} of {count}"
    return f"median of {of} slices; {word} {values[worst]:.4g} in slice {worst}"


def _between(image: Image, signal: Region, background: Region) -> Measured:
    """Contrast-to-noise ratio of two regions, the noise that of the second (ACR)."""
    one, other = _values(image, signal), _values(image, background)
    spread = float(other.std(ddof=1)) if other.size > 1 else 0.0
    defined = spread > 0 and one.size > 0
    return Measured(
        name="cnr_regions",
        value=cnr(float(one.mean()), float(other.mean()), spread) if defined else None,
        unit="1",
        better="higher",
        detail=f"{one.size} pixels against {other.size}, over the spread of these"
        if defined
        else "the second region has no spread",
    )


def _values(image: Image, region: Region) -> NDArray[np.float64]:
    """Pixels of a region that are no padding."""
    parts = []
    for index in region.slices:
        batch = slice(index, index + 1)
        pixels = image.pixels[batch]
        padding = image.is_padding(pixels, batch)
        rows, columns, mask = region.on_slice(index)
        if padding is not None:
            mask = mask & ~padding[0, rows, columns]
        parts.append(pixels[0, rows, columns][mask].astype(np.float64))
    return np.concatenate(parts)


def _exposure(header: Dataset | None) -> list[Measured]:
    """Exposure indices of IEC 62494-1 (PS3.3 C.8.3.1, C.8.11.3), from the header.

    The deviation index is ``10 log10(exposure index / target)``: 0 is right, +3 is twice too much.
    """
    ds = Dataset() if header is None else header
    index, target = (
        number(ds, keyword, math.nan) for keyword in ("ExposureIndex", "TargetExposureIndex")
    )
    deviation, detail = number(ds, "DeviationIndex", math.nan), "the header says"
    if math.isnan(deviation) and index > 0 and target > 0:
        deviation, detail = 10 * math.log10(index / target), "of the header's index and target"
    values = {
        "exposure_index": (index, "1", "the header says"),
        "target_exposure_index": (target, "1", "the header says"),
        "deviation_index": (deviation, "1", detail),
    }
    return [
        Measured(
            name=name,
            value=value if math.isfinite(value) else None,
            unit=unit,
            better="neither",
            detail=words if math.isfinite(value) else "the header does not say",
        )
        for name, (value, unit, words) in values.items()
    ]


def header_of(path: str | Path) -> Dataset | None:
    """Header of an image's first file; None where it is not DICOM.

    Raises
    ------
    ReadError
        It cannot be read.
    """
    files = dicom_files(path)
    if not files:
        return None
    with reading(path):
        return header(files[0])


def record_of(examination: Examination, header: Dataset | None, key: bytes | None) -> QualityRecord:
    """Make the record of an examination.

    Parameters
    ----------
    header
        Of a DICOM image.
    key
        Of the pseudonyms; None leaves them out.
    """
    image = examination.image
    ds = Dataset() if header is None else header
    named = image_input(image, key)
    return QualityRecord(
        quality_id=str(uuid.uuid4()),
        created_at=datetime.datetime.now(datetime.UTC),
        medqa_version=__version__,
        image=named,
        acquired_on=_day(ds),
        device=named.device,
        device_hmac=named.device_hmac,
        study_type=_study_type(image, ds),
        measures=examination.measures,
    )


def _study_type(image: Image, ds: Dataset) -> str:
    """Modality, body part, and what the scanner made of it: coded values only, no free text."""
    words = [image.modality or "unknown", image.body_part or ""]
    if image.modality == "CT":
        kernel = _text(ds, "ConvolutionKernel")
        words.append(kernel if _KERNEL.fullmatch(kernel) else "")
    if image.modality == "MR":
        words.append("+".join(_texts(ds, "ScanningSequence")))
    return " ".join(filter(None, words))


def _texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    """Values of an element; () where there is none."""
    value = ds.get(keyword)
    if value is None:
        return ()
    many = not isinstance(value, str) and hasattr(value, "__iter__")
    return tuple(str(one).strip() for one in (value if many else [value]))


def _text(ds: Dataset, keyword: str) -> str:
    """Value of an element, of several the first; empty where there is none."""
    return next(iter(_texts(ds, keyword)), "")


def _day(ds: Dataset) -> datetime.date | None:
    """Day of the acquisition; None where the header says none that is one."""
    for keyword in _DAYS:
        digits = _text(ds, keyword)[:8]
        if re.fullmatch(r"\d{8}", digits):
            try:
                return datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
            except ValueError:
                continue
    return None
