"""Read an image from a file or a folder, whatever its format: the content decides, not the name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from medqa.catalogue import look, select
from medqa.dicom.files import is_dicom
from medqa.dicom.series import read_dicom
from medqa.errors import ReadError
from medqa.image import Image
from medqa.nifti import is_nifti, read_nifti

__all__ = ["dicom_files", "read", "source_digest"]


def read(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], series: str | None = None
) -> Image:
    """Read a DICOM file, a DICOM series, or a NIfTI file.

    Parameters
    ----------
    path
        DICOM with or without preamble and extension; ``.nii``, ``.nii.gz`` or one of a pair
        ``.hdr`` and ``.img``; a folder that holds a DICOM series; or the files of one series. In
        a folder, objects that are no images (structured reports, segmentations) and files that
        are not DICOM are passed over; subfolders are not read.
    series
        Which series of a folder that holds several: its number, or its Series Instance UID, or at
        least 6 characters of that UID's end. Where a series is several images, because it holds a
        localiser, slices of different orientations or single projections, ``3/2`` is the second
        image of series 3.

    Raises
    ------
    ReadError
        Missing, empty, damaged, truncated, not an image, not decodable, too large, or a folder
        that does not hold exactly one image of the series.
    """
    if not isinstance(path, (str, os.PathLike)):
        return _read_files([Path(one) for one in path])
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, series)
    if series is not None:
        raise ReadError(path, "is not a folder to choose a series of", "leave out the series")
    try:
        head = _head(path)
        if is_dicom(head):
            return read_dicom([path], str(path))
        if head and is_nifti(path):
            return read_nifti(path)
    except OSError as cause:
        mend = "check the path and its permissions"
        raise ReadError(path, "cannot be read", mend, cause.strerror or "") from cause
    mend = "give a DICOM file, a folder holding one DICOM series, or a NIfTI file"
    raise ReadError(path, "is neither DICOM nor NIfTI" if head else "is empty", mend)


def _read_folder(folder: Path, series: str | None) -> Image:
    """Read the one image of a folder, or of one of its series."""
    found = look(folder, series_only=True)
    if found.refused:  # a damaged slice must not go missing unnoticed
        raise found.refused[0]
    if not found.entries:
        mend = "give the folder that holds the series itself: subfolders are not read"
        raise ReadError(folder, "holds no DICOM image", mend)
    return read_dicom(select(found, series).paths, str(folder))


def _read_files(paths: Sequence[Path]) -> Image:
    """Read the files of one image; several are called by the folder that they have in common."""
    if len(paths) == 1:
        return read(paths[0])
    if not paths:
        raise ReadError("nothing", "holds no file", "give at least one")
    source = Path(os.path.commonpath([path.parent for path in paths]))
    for path in paths:
        if not is_dicom(_head(path)):
            raise ReadError(path, "is not DICOM", "give the DICOM files of one series")
    return read_dicom(paths, str(source))


def dicom_files(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Files that `read` makes an image of, in any order; none where it is not DICOM.

    Raises
    ------
    ReadError
        Missing, or a folder that does not hold exactly one image.
    """
    if not isinstance(path, (str, os.PathLike)):
        return [Path(one) for one in path]
    path = Path(path)
    if path.is_dir():
        return list(select(look(path, series_only=True), None).paths)
    return [path] if is_dicom(_head(path)) else []


def source_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as ``sha256sum`` prints it; raises ReadError."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as cause:
        mend = "check the path and its permissions"
        raise ReadError(path, "cannot be read", mend, cause.strerror or "") from cause


def _head(path: Path) -> bytes:
    if not path.exists():
        raise ReadError(path, "does not exist", "check the path")
    if not path.is_file():  # a pipe or a device could keep us waiting for ever
        raise ReadError(path, "is not a regular file", "give a file or a folder")
    with path.open("rb") as file:
        return file.read(132)
