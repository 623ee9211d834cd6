"""What results refer to: the reference and the candidate as their DICOM headers name them.

Real headers are sloppy. What is copied into new objects is checked first; nothing else is copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR
from pydicom.multival import MultiValue
from pydicom.uid import SecondaryCaptureImageStorage
from pydicom.valuerep import validate_value

from medqa.assessment import ImageInput
from medqa.dicom.files import load, reading
from medqa.dicom.geometry import Plane, arrange, order_of, plane
from medqa.dicom.pixels import frame_count
from medqa.errors import UsageError

__all__ = ["Instance", "Place", "Source", "read_source"]

_NAMES = ("PatientName", "ReferringPhysicianName")
# Patient and General Study (PS3.3 C.7.1.1 and C.7.2.1): attributes that shall be there, empty where
# nothing valid is known ...
_TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
# ... and some that may be there.
_TYPE_3 = ("IssuerOfPatientID", "PatientAge", "StudyDescription")
_SEXES = ("M", "F", "O")


@dataclass(frozen=True)
class Instance:
    """A SOP instance that can be referred to (PS3.3 10.8 and C.17.2)."""

    study_uid: str
    series_uid: str
    sop_class: str
    sop_uid: str


@dataclass(frozen=True, eq=False)
class Place:
    """Where a slice is stored and lies.

    Parameters
    ----------
    instance
        The object that holds it.
    frame
        Its number in a multi-frame object, from 1; None in any other.
    plane
        Where it lies in the patient.
    frame_of_reference
        Its UID; None where the header names none.
    """

    instance: Instance
    frame: int | None
    plane: Plane
    frame_of_reference: str | None


@dataclass(frozen=True, eq=False)
class Source:
    """One of the two images, as far as results need it.

    Parameters
    ----------
    header
        Patient and study, checked, in UTF-8; as a Secondary Capture (see `complete`).
    names
        Person names, which are not in `header`: highdicom warns of those it takes for wrong.
    instances
        Every object of the image.
    places
        Of each slice of the image, in order; empty where nothing was scored.
    lossy
        Lossy compression that its pixels went through (PS3.3 C.7.6.1.1.5), else empty.
    burned_in
        Whether text that names the patient is part of its pixels; None where the header does not
        say (PS3.3 C.7.6.1).
    """

    header: Dataset
    names: Mapping[str, str]
    instances: tuple[Instance, ...]
    places: tuple[Place, ...]
    lossy: Mapping[str, object]
    burned_in: bool | None


def read_source(paths: Sequence[Path], image: ImageInput | None, *, scored: bool) -> Source:
    """Read the headers of an image's files.

    Parameters
    ----------
    paths
        The files of the image, in any order.
    image
        What was recorded of it; None where it could not be read.
    scored
        Whether its slices were: then their order is needed.

    Raises
    ------
    UsageError
        The files are not those of the record, or no results can refer to them.
    """
    headers, frames = [], []
    for path in paths:
        with reading(path, UsageError):
            ds, sha256 = load(path)
            instance, count = _instance(ds, path), frame_count(ds)
            headers.append((ds, instance, sha256))
            for frame in range(count if scored else 0):
                uid = _valid(ds, "FrameOfReferenceUID") or None
                place = Place(instance, frame + 1 if count > 1 else None, plane(ds, frame), uid)
                frames.append((place, order_of(ds, frame), sha256))
            for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
                ds.pop(keyword, None)
    if scored:
        with reading(paths[0], UsageError):
            chosen, _ = arrange([one.plane for one, _, _ in frames], [o for _, o, _ in frames], "")
            frames = [frames[index] for index in chosen]
    digests = [sha256 for _, _, sha256 in (frames if scored else headers)]
    _check_digest(paths, image, digests, scored=scored)
    with reading(paths[0], UsageError):
        return Source(
            header=_clean(headers[0][0], headers[0][1], paths[0]),
            names={keyword: _valid(headers[0][0], keyword) for keyword in _NAMES},
            instances=tuple(instance for _, instance, _ in headers),
            places=tuple(place for place, _, _ in frames),
            lossy=_lossy(headers[0][0]),
            burned_in={"YES": True, "NO": False}.get(_valid(headers[0][0], "BurnedInAnnotation")),
        )


def _instance(ds: Dataset, path: Path) -> Instance:
    uids = []
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"):
        uid = ds.get(keyword)
        if not uid or not str(uid).replace(".", "").isdigit() or len(str(uid)) > 64:
            raise UsageError(
                path, f"has no valid {keyword}", "results cannot refer to it: correct its header"
            )
        uids.append(str(uid))
    return Instance(*uids)


def _check_digest(
    paths: Sequence[Path], image: ImageInput | None, digests: Sequence[str], *, scored: bool
) -> None:
    """Results of one image must not be written into the study of another."""
    recorded = image and image.file_sha256
    if recorded is None or (len(digests) > 1 and len(paths) > 1 and not scored):
        return
    found = digests[0] if len(paths) == 1 else _joined(digests)
    if found != recorded:
        raise UsageError(
            paths[0], "is not the image that was assessed", "name the files of the assessment"
        )


def _joined(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _clean(ds: Dataset, instance: Instance, path: Path) -> Dataset:
    """Header with the patient and the study, and nothing that is not valid."""
    clean = Dataset()
    clean.SpecificCharacterSet = "ISO_IR 192"
    clean.SOPClassUID = SecondaryCaptureImageStorage
    clean.SOPInstanceUID = instance.sop_uid
    clean.StudyInstanceUID = instance.study_uid
    clean.SeriesInstanceUID = instance.series_uid
    for keyword in _TYPE_2:
        setattr(clean, keyword, "" if keyword in _NAMES else _valid(ds, keyword))
    for keyword in _TYPE_3:
        if value := _valid(ds, keyword):
            setattr(clean, keyword, value)
    if clean.PatientSex not in _SEXES:
        clean.PatientSex = ""
    if ds.get("PatientID") and not clean.PatientID:  # without it, they could reach another patient
        raise UsageError(path, "has an invalid Patient ID", "correct it in its header")
    return clean


def _valid(ds: Dataset, keyword: str) -> str:
    """Value of an attribute as text; empty where it is not as PS3.5 6.2 has it."""
    vr = dictionary_VR(keyword)
    try:
        given = ds.get(keyword)
        value = "" if given is None or isinstance(given, MultiValue) else str(given).strip()
        validate_value(vr, value, RAISE)
    except (ValueError, TypeError, LookupError):
        return ""
    one_line = value.isprintable() and "\\" not in value
    names = vr != "PN" or all(group.count("^") <= 4 for group in value.split("="))
    return value if one_line and names else ""


def _lossy(ds: Dataset) -> dict[str, object]:
    if str(ds.get("LossyImageCompression", "")) != "01":
        return {}
    found: dict[str, object] = {"LossyImageCompression": "01"}
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if ds.get(keyword):
            found[keyword] = ds[keyword].value
    return found
