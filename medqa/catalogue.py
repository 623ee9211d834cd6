"""The images in a folder, by the headers of its files alone: no pixel is decoded.

`look` groups files into images as `medqa.read` takes them: the files of a DICOM series that make
one stack, a DICOM file that stands alone, a NIfTI file. `select` picks one of them.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import UID, SecondaryCaptureImageStorage

from medqa.dicom.files import header, is_dicom, is_image, reading
from medqa.dicom.geometry import plane
from medqa.dicom.pixels import frame_count
from medqa.errors import MedqaError, ReadError
from medqa.nifti_files import format_of, head

__all__ = [
    "MAX_DEPTH",
    "MAX_FILES",
    "Catalogue",
    "Entry",
    "Grid",
    "look",
    "plane_words",
    "select",
    "series_words",
]

MAX_FILES = 100_000
"""Most files that a folder and its subfolders may hold."""

MAX_DEPTH = 16
"""Subfolders below subfolders that are looked into; symbolic links to folders are not followed."""

# Modalities whose files are pictures of their own, if no position makes a stack of them.
_PROJECTIONS = (
    *("CR", "DX", "IO", "MG", "PX", "RF", "RG", "RTIMAGE", "XA"),  # by X-rays
    *("ES", "GM", "OP", "SM", "XC"),  # by light
    *("IVOCT", "IVUS", "NM", "US"),
)
# Direction cosines that differ by less are one orientation, as in `medqa.dicom`.
_SAME_DIRECTION = 1e-3
_LISTED = 12  # images named in one message
_SHORTEST_UID_END = 6  # characters; fewer could be meant as a series number


@dataclass(frozen=True)
class Grid:
    """Where the pixels of an image lie.

    Parameters
    ----------
    slices, rows, columns
        Pixels along each axis; of a time series, the slices of all its volumes.
    spacing_mm
        Between rows and between columns; None where unknown.
    cosines
        Image Orientation Patient (PS3.3 C.7.6.2.1.1), of 6 numbers; None where unknown.
    positions_mm
        Image Position Patient of every slice, axes left-posterior-superior, sorted along the
        normal; None where one is unknown.
    """

    slices: int
    rows: int
    columns: int
    spacing_mm: tuple[float, float] | None = None
    cosines: tuple[float, ...] | None = None
    positions_mm: tuple[tuple[float, float, float], ...] | None = None


@dataclass(frozen=True)
class Entry:
    """An image as `medqa.read` takes it, and what its headers say of where it comes from.

    Parameters
    ----------
    paths
        Its files, by instance number.
    names
        The same below the folder that was looked through, with forward slashes.
    kind
        Format of the files.
    grid
        Where its pixels lie.
    modality, study_uid, series_uid, series_number, description, frame_of_reference_uid
        As the header says; None where it does not.
    instances, instance_numbers
        SOP Instance UID and Instance Number of each file; empty, None where missing.
    sources
        SOP instances that it says it was derived from (Source Image Sequence, PS3.3 C.7.6.1.1.4,
        also within Derivation Image Sequence, C.7.6.16.2.6).
    related
        SOP instances that it refers to otherwise (Referenced Image and Referenced Series Sequence).
    localiser
        Whether it is a localiser by its Image Type (PS3.3 C.8.2.1.1.1).
    alone
        Whether it never makes a stack with other files of its series.
    part
        Number of the image among those of its series; 0 where the series is one image.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    kind: Literal["dicom", "nifti"]
    grid: Grid
    modality: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    series_number: int | None = None
    description: str | None = None
    frame_of_reference_uid: str | None = None
    instances: tuple[str, ...] = ()
    instance_numbers: tuple[int | None, ...] = ()
    sources: frozenset[str] = frozenset()
    related: frozenset[str] = frozenset()
    localiser: bool = False
    alone: bool = False
    part: int = 0


@dataclass(frozen=True)
class Catalogue:
    """What a folder holds.

    Parameters
    ----------
    folder
        The folder.
    entries
        Its images, by path.
    refused
        What should be an image and cannot be read as one: each with its file, and why.
    """

    folder: Path
    entries: tuple[Entry, ...]
    refused: tuple[MedqaError, ...] = ()


def look(folder: str | os.PathLike[str], *, series_only: bool = False) -> Catalogue:
    """Look through a folder.

    Hidden files, DICOM directories, objects that are no images (segmentations, structured
    reports) and files of other formats are passed over. A file named ``.dcm``, ``.nii`` or
    ``.nii.gz`` that is not what its name says, a damaged header, and a series that holds the same
    instance twice are among `Catalogue.refused`.

    A DICOM file stands alone if it has several frames, or if it has no position and is a
    projection, an ultrasound image or a secondary capture. All other files of a series make one
    stack, but those of another orientation and localisers are images of their own.

    Parameters
    ----------
    series_only
        Leave out NIfTI files and subfolders, as `medqa.read` does. Otherwise subfolders are
        looked into, `MAX_DEPTH` deep.

    Raises
    ------
    ReadError
        The folder cannot be read, or holds more than `MAX_FILES` files.
    """
    folder = Path(folder)
    refused: list[MedqaError] = []
    files: dict[tuple[str | None, str | None], list[Entry]] = {}
    volumes = []
    for path in _files(folder, series_only):
        name = path.relative_to(folder).as_posix()
        try:
            entry = _dicom(path, name)
            if entry is not None:
                files.setdefault((entry.study_uid, entry.series_uid), []).append(entry)
            elif not series_only and (entry := _nifti(path, name)) is not None:
                volumes.append(entry)
        except MedqaError as error:
            refused.append(error)
    entries = volumes
    for series in files.values():
        uids = Counter(one.instances[0] for one in series if one.instances[0])
        twice = [one.names[0] for one in series if uids[one.instances[0]] > 1]
        if twice:
            reason, mend = "holds the same instance twice", "remove the copies"
            refused.append(ReadError(folder, reason, mend, ", ".join(twice)))
        else:
            entries += _images(series)
    return Catalogue(folder, tuple(sorted(entries, key=lambda one: one.names)), tuple(refused))


def plane_words(cosines: Sequence[float]) -> str:
    """Name the plane nearest to the one that two unit vectors span, such as ``axial``."""
    normal = np.abs(_normal(cosines))
    axis = int(normal.argmax())
    name = ("sagittal", "coronal", "axial")[axis]
    tilt = math.degrees(math.acos(min(1.0, float(normal[axis] / np.linalg.norm(normal)))))
    return name if tilt < 0.5 else f"{name}, tilted by {tilt:.0f}°"


def series_words(entry: Entry) -> str:
    """Say what an image is in words that name no patient."""
    grid = entry.grid
    if entry.kind == "nifti":
        return f"NIfTI, {grid.slices} slices of {grid.rows} x {grid.columns}"
    number = "without number" if entry.series_number is None else f"{entry.series_number}"
    words = f"series {number}{f'/{entry.part}' if entry.part else ''}: "
    words += f"{entry.modality or 'unknown modality'}, "
    words += f"{grid.slices} {'slice' if grid.slices == 1 else 'slices'}"
    words += f" of {grid.rows} x {grid.columns}"
    if grid.cosines is not None:
        words += f", {plane_words(grid.cosines)}"
    return words + (", localiser" if entry.localiser else "")


def select(catalogue: Catalogue, series: str | None = None) -> Entry:
    """Pick the one image of a folder, or the one of a series.

    Parameters
    ----------
    series
        Series number, or Series Instance UID or at least 6 characters of its end; where a series
        is several images followed by a slash and the number of the image, such as ``3/2``. None
        where the folder holds one image only.

    Raises
    ------
    ReadError
        None is chosen, or more than one; the error lists what there is.
    """
    found = list(catalogue.entries)
    if not found:
        mend = "give the folder that holds the images themselves"
        raise ReadError(catalogue.folder, "holds no image", mend)
    if series is not None:
        found = [one for one in found if _is_called(one, series)]
    if len(found) == 1:
        return found[0]
    reason = f"holds {len(found)} images" + (f" of series {series}" if series else "")
    listed = found or catalogue.entries
    words = [series_words(one) for one in listed[:_LISTED]]
    more = f"; and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    described = dict.fromkeys(
        f"series {one.series_number} is {one.description!r}" for one in listed if one.description
    )
    raise ReadError(
        catalogue.folder,
        f"{reason} ({'; '.join(words)}{more})",
        "choose one by its series (--series on the command line), or give its file",
        "; ".join(described),
    )


def _is_called(entry: Entry, series: str) -> bool:
    called, _, part = series.strip().partition("/")
    if part and part != str(entry.part):
        return False
    uid = entry.series_uid or ""
    by_uid = len(called) >= _SHORTEST_UID_END and uid.endswith(called)
    return by_uid or called == str(entry.series_number)


def _files(folder: Path, here_only: bool) -> list[Path]:
    """Regular files in or below a folder that are not hidden, sorted."""

    def failed(error: OSError) -> None:
        mend = "check the path and its permissions"
        raise ReadError(error.filename, "cannot be read", mend, error.strerror or "") from error

    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=failed):
        deep = len(Path(place).relative_to(folder).parts) >= MAX_DEPTH
        folders[:] = [f for f in folders if not (here_only or deep or f.startswith("."))]
        paths = (Path(place, name) for name in names if not name.startswith("."))
        found += (path for path in paths if path.is_file())  # a pipe could keep us waiting
        if len(found) > MAX_FILES:
            raise ReadError(folder, f"holds more than {MAX_FILES} files", "give a smaller folder")
    return sorted(found)


def _dicom(path: Path, name: str) -> Entry | None:
    """Return the image of one DICOM file; None if it is no DICOM, or no image."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as cause:
        mend = "check the path and its permissions"
        raise ReadError(path, "cannot be read", mend, cause.strerror or "") from cause
    if not is_dicom(start):
        if path.suffix.lower() == ".dcm":  # a damaged slice must not go missing unnoticed
            raise ReadError(path, "is named .dcm but is not DICOM", "remove or replace it")
        return None
    with reading(path):
        ds = header(path)
        if not is_image(ds):
            if "Rows" not in ds and "Image Storage" in UID(ds.get("SOPClassUID", "")).name:
                mend = "the file is damaged or truncated: fetch it again"
                raise ReadError(path, "is an image without rows", mend)
            return None
        return _entry(ds, path, name)


def _entry(ds: Dataset, path: Path, name: str) -> Entry:
    grid = _grid(ds)
    groups = [
        ds,
        *(ds.get("SharedFunctionalGroupsSequence") or []),
        *(ds.get("PerFrameFunctionalGroupsSequence") or []),
    ]
    derived = [item for group in groups for item in group.get("DerivationImageSequence") or []]
    series = ds.get("ReferencedSeriesSequence") or []
    series_number, instance_number = (
        _text(ds, keyword) for keyword in ("SeriesNumber", "InstanceNumber")
    )
    modality = _text(ds, "Modality")
    picture = modality in _PROJECTIONS or ds.get("SOPClassUID") == SecondaryCaptureImageStorage
    return Entry(
        paths=(path,),
        names=(name,),
        kind="dicom",
        grid=grid,
        modality=modality,
        study_uid=_text(ds, "StudyInstanceUID"),
        series_uid=_text(ds, "SeriesInstanceUID"),
        series_number=int(series_number) if series_number else None,
        description=_text(ds, "SeriesDescription"),
        frame_of_reference_uid=_text(ds, "FrameOfReferenceUID"),
        instances=(_text(ds, "SOPInstanceUID") or "",),
        instance_numbers=(int(instance_number) if instance_number else None,),
        sources=_references([ds, *derived], "SourceImageSequence"),
        related=_references(groups, "ReferencedImageSequence")
        | _references(series, "ReferencedInstanceSequence"),
        localiser="LOCALIZER" in str(ds.get("ImageType")),
        alone=grid.slices > 1 or (picture and grid.positions_mm is None),
    )


def _references(items: Sequence[Dataset], keyword: str) -> frozenset[str]:
    uids = (
        _text(reference, "ReferencedSOPInstanceUID")
        for item in items
        for reference in item.get(keyword) or []
    )
    return frozenset(uid for uid in uids if uid)


def _text(ds: Dataset, keyword: str) -> str | None:
    value = ds.get(keyword)
    return None if value is None else str(value).strip() or None


def _grid(ds: Dataset) -> Grid:
    planes = [plane(ds, frame) for frame in range(frame_count(ds))]
    first = planes[0]
    positions = [one.position for one in planes if one.position is not None]
    cosines = None if first.axes is None else (*first.axes[:, 1], *first.axes[:, 0])
    return _sorted(
        Grid(
            slices=len(planes),
            rows=int(ds.Rows),
            columns=int(ds.Columns),
            spacing_mm=first.spacing,
            cosines=cosines and tuple(float(v) for v in cosines),
            positions_mm=tuple((float(x), float(y), float(z)) for x, y, z in positions)
            if len(positions) == len(planes)
            else None,
        )
    )


def _sorted(grid: Grid) -> Grid:
    """Put positions in order along the normal, so that equal grids compare slice by slice."""
    if grid.positions_mm is None or grid.cosines is None:
        return grid
    normal = _normal(grid.cosines)
    by_place = sorted(grid.positions_mm, key=lambda one: (float(np.dot(one, normal)), one))
    return replace(grid, positions_mm=tuple(by_place))


def _normal(cosines: Sequence[float]) -> NDArray[np.float64]:
    return np.cross(cosines[:3], cosines[3:])


def _nifti(path: Path, name: str) -> Entry | None:
    """Return the image of a NIfTI file, by its header; None for any other file."""
    try:
        start = head(path)
    except (OSError, EOFError, ValueError):  # a damaged gzip stream
        start = b""
    form = format_of(start)
    if form not in ("NIfTI", "NIfTI pair"):
        if name.lower().endswith((".nii", ".nii.gz")):
            raise ReadError(path, "is named .nii but is not NIfTI", "remove or replace it")
        return None
    with reading(path):
        second = start[4:8] in (b"n+2\0", b"ni2\0")
        kind = nib.Nifti2Header if second else nib.Nifti1Header
        nifti = kind(start[: 540 if second else 348], check=False)
        columns, rows, slices, *others = (*(int(n) for n in nifti.get_data_shape()), 1, 1)
        return Entry((path,), (name,), "nifti", Grid(slices * int(np.prod(others)), rows, columns))


def _images(files: Sequence[Entry]) -> list[Entry]:
    """Make images of the files of one series."""
    stacks: list[list[Entry]] = []
    for one in sorted(files, key=lambda one: (one.instance_numbers[0] or 0, one.names)):
        fitting = (stack for stack in stacks if _together(stack[0], one))
        stack = next(fitting, None)
        if stack is None:
            stacks.append([one])
        else:
            stack.append(one)
    parts = range(1, len(stacks) + 1) if len(stacks) > 1 else [0]
    return [_merged(stack, part) for stack, part in zip(stacks, parts, strict=True)]


def _together(one: Entry, other: Entry) -> bool:
    """Whether two files belong to one stack."""
    mine, its = one.grid.cosines, other.grid.cosines
    if one.alone or other.alone or one.localiser != other.localiser:
        return False
    if (mine is None) != (its is None):
        return False
    return mine is None or bool(np.abs(np.subtract(mine, its or ())).max() <= _SAME_DIRECTION)


def _merged(files: Sequence[Entry], part: int) -> Entry:
    if len(files) == 1:
        return replace(files[0], part=part)
    positions = [place for one in files for place in one.grid.positions_mm or ()]
    grid = replace(
        files[0].grid,
        slices=len(files),
        positions_mm=tuple(positions) if len(positions) == len(files) else None,
    )
    frames = {one.frame_of_reference_uid for one in files}
    return replace(
        files[0],
        paths=tuple(one.paths[0] for one in files),
        names=tuple(one.names[0] for one in files),
        grid=_sorted(grid),
        frame_of_reference_uid=frames.pop() if len(frames) == 1 else None,
        instances=tuple(one.instances[0] for one in files),
        instance_numbers=tuple(one.instance_numbers[0] for one in files),
        sources=frozenset(chain.from_iterable(one.sources for one in files)),
        related=frozenset(chain.from_iterable(one.related for one in files)),
        part=part,
    )
