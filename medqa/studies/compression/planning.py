"""What a study works through: its images, where each is from, and which regions lie on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medqa.catalogue import look
from medqa.compression.codecs import CODECS
from medqa.dicom.files import header, is_dicom, reading
from medqa.errors import MedqaError, UsageError
from medqa.studies.signals import Signal

__all__ = ["Plan", "Planned", "Settings", "check_settings", "plan"]

_SHARED = ("SeriesInstanceUID", "FrameOfReferenceUID", "StudyInstanceUID")
_ENDINGS = (".nii.gz", ".nii", ".dcm", ".json", ".png", ".seg")


@dataclass(frozen=True)
class Settings:
    """What is done with every image.

    Parameters
    ----------
    codecs, ratios
        Names of codecs, and ratios by the bits stored, ascending.
    profile
        Name or path of the thresholds; None: those for compression of the image's kind.
    backbone
        The network.
    body_part
        Of the images whose header names none.
    lesion
        Whose detectability is measured; None: it is not.
    """

    codecs: tuple[str, ...]
    ratios: tuple[float, ...]
    profile: str | None = None
    backbone: str = "gray"
    body_part: str | None = None
    lesion: Signal | None = None


@dataclass(frozen=True)
class Planned:
    """An image of the study: its number and its source's from 1, its files and its regions'."""

    number: int
    source: int
    paths: tuple[str, ...]
    masks: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A study that can be done in parts: the same plan makes the same table."""

    settings: Settings
    images: tuple[Planned, ...]

    @property
    def text(self) -> str:
        """As JSON: which number stands for which files."""
        return json.dumps(asdict(self), indent=1)

    @property
    def sha256(self) -> str:
        """Of the plan: what was measured under another one does not count."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def check_settings(settings: Settings) -> None:
    """Raise UsageError where a codec is unknown, or a ratio is none."""
    if unknown := [name for name in settings.codecs if name not in CODECS]:
        raise UsageError(", ".join(unknown), "is no codec here", f"choose from {', '.join(CODECS)}")
    if not settings.codecs or not settings.ratios:
        raise UsageError("study", "has no codec or no ratio", "name at least one of each")
    if min(settings.ratios) <= 1:
        reason = "includes one that is not above 1"
        raise UsageError("ratios", reason, "leave it out: lossless is always studied")


def plan(
    images: Sequence[str], settings: Settings, masks: Sequence[str], annotations: Sequence[str]
) -> Plan:
    """Find the images and number them, in the order given.

    Parameters
    ----------
    images
        Files, each an image, and folders: of these every series and every other image, in their
        subfolders too.
    masks, annotations
        Files of regions, or folders of such. Of a single image they are all; of several, a file
        belongs to the image whose file, or whose series' folder, has its name, or the beginning
        of its name up to ``_`` or ``-``.

    Raises
    ------
    UsageError
        There is no image, or a file of regions belongs to none or to several.
    ReadError
        A folder cannot be looked through.
    """
    found: dict[tuple[str, ...], str] = {}  # files to what names their source
    for given in images:
        if Path(given).is_dir():
            catalogue = look(given)
            for entry in catalogue.entries:
                files = tuple(map(str, entry.paths))
                found.setdefault(files, entry.series_uid or _source_of(files[0]))
            for error in catalogue.refused:
                found.setdefault((error.subject,), error.subject)
        else:
            found.setdefault((given,), _source_of(given))
    if not found:
        raise UsageError("study", "finds no image", "give DICOM or NIfTI files, or their folders")
    sources = {name: number for number, name in enumerate(dict.fromkeys(found.values()), start=1)}
    of_masks, of_annotations = (_owners(some, list(found)) for some in (masks, annotations))
    return Plan(
        settings,
        tuple(
            Planned(
                number,
                sources[source],
                files,
                tuple(of_masks.get(files, ())),
                tuple(of_annotations.get(files, ())),
            )
            for number, (files, source) in enumerate(found.items(), start=1)
        ),
    )


def _source_of(path: str) -> str:
    """Name what the images of one series share, so that they do not count as several.

    It is what the header says first of series, frame of reference and study; of DICOM that says
    none of it, the folder. What is no DICOM, or cannot be read, stands for itself.
    """
    try:
        with Path(path).open("rb") as file:
            if not is_dicom(file.read(132)):
                return path
        with reading(path):
            ds = header(Path(path))
    except (OSError, MedqaError):  # its row will say so
        return path
    uids = (str(ds.get(keyword) or "") for keyword in _SHARED)
    return next(filter(None, uids), str(Path(path).parent))


def _owners(
    given: Sequence[str], images: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], list[str]]:
    """Files of regions by the image that they lie on."""
    files: list[Path] = []
    for one in map(Path, given):
        files += sorted(one.iterdir()) if one.is_dir() else [one]
    if len(images) == 1:
        return {images[0]: [str(file) for file in files]}
    owners: dict[tuple[str, ...], list[str]] = {}
    for file in files:
        name = _stem(file)
        fitting = [
            image
            for image in images
            if name == (called := _name(image)) or name.startswith((f"{called}_", f"{called}-"))
        ]
        if len(fitting) != 1:
            reason = f"belongs to {len(fitting) or 'none'} of the images by its name"
            raise UsageError(file, reason, "name it like its image")
        owners.setdefault(fitting[0], []).append(str(file))
    return owners


def _name(image: tuple[str, ...]) -> str:
    first = Path(image[0])
    return _stem(first) if len(image) == 1 else first.parent.name


def _stem(path: Path) -> str:
    name = path.name
    ending = next((one for one in _ENDINGS if name.lower().endswith(one)), "")
    return name[: len(name) - len(ending)]
