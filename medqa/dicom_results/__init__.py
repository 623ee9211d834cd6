"""Results as DICOM objects in the patient's study: a structured report, a map and a picture.

They are made by highdicom, each in a new series of the reference's study. Values are those of the
record; nothing is computed anew.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medqa.assessment import Assessment
from medqa.dicom_results.maps import distance_map
from medqa.dicom_results.report import structured_report
from medqa.dicom_results.source import Source, read_source
from medqa.dicom_results.summary import secondary_capture
from medqa.errors import UsageError
from medqa.files import write_file
from medqa.report import scale_top

__all__ = ["write_dicom"]


def write_dicom(
    assessment: Assessment,
    reference: Sequence[Path],
    candidate: Sequence[Path],
    folder: Path,
) -> list[Path]:
    """Write an assessment as DICOM objects: ``sr.dcm``, ``summary.dcm``, ``distance-map.dcm``.

    The map needs the evidence, which an assessment from a store has no more, and a scored image:
    without, it is not written. UIDs follow from the assessment's id: written again, the objects
    are the same, so that an archive never holds them twice.

    Parameters
    ----------
    assessment
        Straight from `pipeline.assess` or `pipeline.run`, or from a store.
    reference, candidate
        The DICOM files of the two images, in any order. Empty for a candidate that is not DICOM.
    folder
        Made where it does not exist. Files of the same names are replaced, each as a whole.

    Returns
    -------
    Paths of the files.

    Raises
    ------
    UsageError
        The reference is not DICOM, a file is not one of the image that was assessed, a header
        has no valid UIDs to refer to, or the folder cannot be written.
    """
    inputs = assessment.inputs
    if not reference or (inputs.reference is not None and inputs.reference.kind != "dicom"):
        raise UsageError(
            "reference",
            "is not DICOM, so there is no study that results could be written into",
            "write the report with --out instead",
        )
    scored = bool(assessment.slices)
    one = read_source(reference, inputs.reference, scored=scored)
    other = read_source(candidate, inputs.candidate, scored=scored) if candidate else None
    top = scale_top(assessment.limits)
    results: dict[str, Any] = {
        "sr.dcm": structured_report(assessment, one, _apart(other, one)),
        "summary.dcm": secondary_capture(assessment, one, other, top),
    }
    if assessment.evidence:
        results["distance-map.dcm"] = distance_map(assessment, one, other, top)
    # All are encoded before one is written, so that an error leaves no half result.
    files = {name: _encoded(result) for name, result in results.items()}
    return [write_file(folder / name, content) for name, content in files.items()]


def _apart(candidate: Source | None, reference: Source) -> Source | None:
    """Return the candidate, unless its UIDs are the reference's: they would lead to the wrong one.

    A program that keeps the SOP Instance UIDs of what it changes breaks PS3.5 9, and many do.
    """
    if candidate is None:
        return None
    taken = {one.sop_uid for one in reference.instances}
    return None if any(one.sop_uid in taken for one in candidate.instances) else candidate


def _encoded(result: Any) -> bytes:
    buffer = io.BytesIO()
    result.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
