"""Judge one DICOM series against another: what the operator for MONAI Deploy does."""

from __future__ import annotations

from pathlib import Path

import medqa
from medqa.assessment import Assessment, Task
from medqa.dicom_results import write_dicom
from medqa.reader import dicom_files
from medqa.report import write

__all__ = ["assess_series"]


def assess_series(
    reference: str | tuple[str, ...],
    candidate: str | tuple[str, ...],
    folder: Path,
    *,
    profile: str | None = None,
    task: Task = "routine",
    store: medqa.Store | None = None,
    network: medqa.GrayLPIPS | None = None,
) -> Assessment:
    """Judge one DICOM series against another, record it, and write the results to a folder.

    Parameters
    ----------
    reference, candidate
        A folder holding one series, or its files.
    folder
        Gets ``assessment.json``, ``report.html``, pictures, and ``dicom`` with the structured
        report; what is there already is replaced.
    profile, task
        As `medqa.Job`.
    store
        Where to record; None records nothing.
    network
        To use again; None loads ``gray``.

    Raises
    ------
    UsageError
        The profile, the weights, the store or the folder cannot be used.
    """
    job = medqa.Job(reference, candidate, profile=profile, task=task, origin="monai")
    assessment = medqa.run(job, store, network=network)
    write(assessment, folder)
    inputs = assessment.inputs
    if inputs.reference is not None and inputs.reference.kind == "dicom":
        other = [] if inputs.candidate is None else dicom_files(candidate)
        write_dicom(assessment, dicom_files(reference), other, folder / "dicom")
    return assessment
