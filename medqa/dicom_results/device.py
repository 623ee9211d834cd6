"""What the new objects have in common: who made them, when, and in which series."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydicom import Dataset
from pydicom.valuerep import DA, DT, TM

from medqa._version import __version__
from medqa.assessment import Assessment
from medqa.dicom_results.codes import new_uid
from medqa.dicom_results.source import Instance, Source

__all__ = ["DEVICE_UID", "MANUFACTURER", "NOTICE", "complete", "identity"]

MANUFACTURER = "medqa"
#: Said wherever a verdict is shown.
NOTICE = "medqa informs a qualified person; it is not a medical device."
#: This version of medqa as a device (PS3.16 TID 1004): a UUID of its own, and the version's.
DEVICE_UID = new_uid("5f1d4a52-5c3e-4e39-9f7c-7d3a0a9a2c11", __version__)
# Any number does (PS3.3 C.7.3.1). High, so that a viewer lists them behind the images.
_SERIES_NUMBER = 9900


def identity(assessment: Assessment, role: str, number: int, description: str) -> dict[str, Any]:
    """Arguments that every highdicom object takes: its series, its UIDs and its device.

    Each object is a series of its own: reports, maps and pictures differ in what belongs to the
    series (PS3.3 C.7.3.1, C.17.1): modality and frame of reference.
    """
    content = _local(assessment)
    return {
        "series_instance_uid": new_uid(assessment.assessment_id, f"{role} series"),
        "series_number": _SERIES_NUMBER + number,
        "sop_instance_uid": new_uid(assessment.assessment_id, role),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": "medqa",
        "software_versions": assessment.medqa_version,
        "device_serial_number": f"medqa {assessment.medqa_version}",
        "series_description": description,
        "content_date": content.date(),
        "content_time": content.time(),
        "specific_character_set": "ISO_IR 192",
    }


def complete(
    result: Dataset, assessment: Assessment, reference: Source, instances: Sequence[Instance]
) -> None:
    """Put into an object what highdicom cannot: names, true SOP classes, and when it was judged.

    highdicom looks SOP classes up in its tables, which hold neither retired nor private ones. So
    whatever is handed to it is a Secondary Capture, until the object is complete. As the date is
    the assessment's, writing it again makes the very same object.
    """
    for keyword, name in reference.names.items():
        setattr(result, keyword, name)
    classes = {one.sop_uid: one.sop_class for one in instances}
    for item in _items(result):
        if (uid := item.get("ReferencedSOPInstanceUID")) in classes:
            item.ReferencedSOPClassUID = classes[uid]
    moment = _local(assessment)
    day, time = DA(moment.date()), TM(moment.time())
    result.SeriesDate, result.SeriesTime = day, time
    result.InstanceCreationDate, result.InstanceCreationTime = day, time
    for equipment in result.ContributingEquipmentSequence:
        equipment.ContributionDateTime = DT(moment)


def _items(ds: Dataset) -> list[Dataset]:
    """Every dataset inside a dataset, at any depth, and itself."""
    found, rest = [], [ds]
    while rest:
        one = rest.pop()
        found.append(one)
        for element in one:
            if element.VR == "SQ":
                rest.extend(element.value)
    return found


def _local(assessment: Assessment) -> datetime:
    """When it was judged, as DICOM writes times: local, without a zone."""
    return assessment.created_at.astimezone().replace(tzinfo=None, microsecond=0)
