"""The series of a study, by one header each: which are derived, and which they may come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .rest import Orthanc

__all__ = ["Series", "digest", "needed", "read_series"]

_MAKER = "medqa"  # Manufacturer of our own results, see medqa.dicom_results.device
# Values 3 and on of Image Type (PS3.3 C.7.6.1.1.2) of images that do not show what they were
# derived from: other views of a volume, and quantities (C.8.16.1.4, and as vendors write).
_OTHER_VIEWS = {"MPR", "MIP", "MINIP", "MAX_IP", "MIN_IP", "CURVED_MPR", "PROJECTION IMAGE"}
_OTHER_VIEWS |= {"REFORMATTED", "CSA REFORMAT", "VRT", "VR", "VOLUME_RENDERING", "SSD"}
_QUANTITIES = {"ADDITION", "DIVISION", "MAXIMUM", "MEAN", "MINIMUM", "MULTIPLICATION", "QUANTITY"}
_QUANTITIES |= {"STD_DEVIATION", "SUBTRACTION", "SUB", "ADC", "EADC", "FA", "TRACEW", "TENSOR"}
_QUANTITIES |= {
    "CBF",
    "RCBF",
    "CBV",
    "RCBV",
    "MTT",
    "TTP",
    "TMAX",
    "T1 MAP",
    "T2 MAP",
    "T2_STAR MAP",
}


@dataclass(frozen=True)
class Series:
    """A series of images, by Orthanc's own ids and the header of its first instance.

    Parameters
    ----------
    files
        Id of each instance, and that of its file, which is another when it is replaced.
    derived
        Whether it says that it was derived from another image.
    lossy
        Whether it says that it was compressed with loss.
    source
        SOP instance that the first one names as its source.
    """

    series: str
    modality: str
    files: tuple[tuple[str, str], ...]
    derived: bool
    lossy: bool
    source: str | None


def read_series(orthanc: Orthanc, found: dict[str, Any]) -> Series | None:
    """Return a series of images; None for anything else, and for our own results."""
    tags = orthanc.get(f"/instances/{found['Instances'][0]}/simplified-tags")
    instances = orthanc.get(f"/series/{found['ID']}/instances")
    if not tags or not instances or "Rows" not in tags or tags.get("Manufacturer") == _MAKER:
        return None
    kind = [value.strip() for value in tags.get("ImageType", "").upper().split("\\")]
    if tags.get("Modality") == "SEG" or (_OTHER_VIEWS | _QUANTITIES) & set(kind[2:]):
        return None
    named = tags.get("SourceImageSequence") or ()
    source = next((one.get("ReferencedSOPInstanceUID") for one in named), None)
    return Series(
        series=found["ID"],
        modality=tags.get("Modality", ""),
        files=tuple(sorted((one["ID"], one["FileUuid"]) for one in instances)),
        derived=kind[0] == "DERIVED",
        lossy=tags.get("LossyImageCompression") == "01",
        source=source,
    )


def needed(orthanc: Orthanc, images: Sequence[Series]) -> tuple[list[Series], str | None]:
    """Return derived series and those that may be their sources; and a source that is not there.

    Scanners name raw data as the source of an original, so a source alone makes nothing derived:
    it has to be in Orthanc, as another series. Ultrasound is compressed with loss to begin with, so
    neither does that, unless the study has the like without.
    """
    plain = {image.modality for image in images if not image.lossy}
    derived: dict[str, Series] = {}
    sources: dict[str, Series] = {}
    lacking = None
    for image in images:
        instance = orthanc.lookup(image.source) if image.source else None
        found = orthanc.get(f"/instances/{instance}/series") if instance else None
        if found is not None and found["ID"] != image.series:
            source = read_series(orthanc, found)
            if source is not None:
                derived[image.series] = replace(image, derived=True)
                sources[source.series] = source
                continue
        if image.derived or (image.lossy and image.modality in plain):
            derived[image.series] = replace(image, derived=True)
            lacking = lacking or image.source
            sources |= {one.series: one for one in images if one.modality == image.modality}
    return list((sources | derived).values()) if derived else [], lacking


def digest(series: Iterable[Series]) -> str:
    """Digest of which files a study's series have, and which are derived."""
    lines = sorted(f"{one.derived} {one.series} {one.files}" for one in series)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
