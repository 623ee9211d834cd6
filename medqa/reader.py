"""Read an image from a file or a folder, whatever its format: the content decides, not the name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pydicom import dcmread

from medqa.dicom import is_dicom, is_image, read_dicom, reading
from medqa.errors import ReadError
from medqa.image import Image
from medqa.nifti import is_nifti, read_nifti

__all__ = ["read", "source_digest"]


def read(path: str | os.PathLike[str]) -> Image:
    """Read a DICOM file, a folder holding one DICOM series, or a NIfTI file.

    Parameters
    ----------
    path
        DICOM with or without preamble and extension; ``.nii``, ``.nii.gz`` or one of a pair
        ``.hdr`` and ``.img``; or a folder. In a folder, objects that are no images (structured
        reports, segmentations) and files that are not DICOM are passed over; subfolders are
        not read.

    Raises
    ------
    ReadError
        Missing, empty, damaged, truncated, not an image, not decodable, too large, or
        a folder that does not hold exactly one series.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return read_dicom(_series(path), str(path))
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


def _series(folder: Path) -> list[Path]:
    """Files of the one image series in a folder."""
    series: dict[str, list[Path]] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        if not is_dicom(_head(path)):
            if path.suffix.lower() == ".dcm":  # a damaged slice must not go missing unnoticed
                raise ReadError(path, "is named .dcm but is not DICOM", "remove or replace it")
            continue
        with reading(path):
            header = dcmread(path, force=True, stop_before_pixels=True)
            if is_image(header):
                series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(path)
    if not series:
        mend = "give the folder that holds the series itself: subfolders are not read"
        raise ReadError(folder, "holds no DICOM image", mend)
    if len(series) > 1:
        reason = f"holds {len(series)} series"
        raise ReadError(folder, reason, "give a folder holding one series' files, or one file")
    return next(iter(series.values()))
