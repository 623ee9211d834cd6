"""The words of the results, coded: standard codes where there are any, else scheme 99MEDQA.

The table in ``docs/dicom-results.md`` lists the scheme.
"""

from __future__ import annotations

import uuid

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

from medqa.assessment import MEASURE_WORDS, VERDICT_WORDS, Limit, Verdict

__all__ = [
    "DISPLAY",
    "KEPT",
    "LIMIT_SOURCE",
    "LPIPS",
    "PATHOLOGY_KEPT",
    "PIXELS",
    "REASON",
    "ROLE",
    "ROLES",
    "SCHEME",
    "SUITABLE",
    "VERDICT",
    "answer",
    "limit_code",
    "measure_code",
    "measure_unit",
    "new_uid",
    "scheme_item",
    "verdict_code",
]

#: Designator of the private coding scheme.
SCHEME = "99MEDQA"


def _code(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value, SCHEME, meaning)


LPIPS = _code("lpips", "Perceptual distance (LPIPS)")
VERDICT = _code("verdict", "Verdict on image quality")
REASON = _code("reason", "Reason for the verdict")
DISPLAY = _code("display", "Display under which it was measured")
PIXELS = _code("pixels", "Number of pixels")
KEPT = _code("region_kept", "Region preserved")
PATHOLOGY_KEPT = _code("pathology_kept", "Pathology preserved")
LIMIT_SOURCE = _code("limit_source", "Where a limit comes from")
ROLE = _code("role", "Role in the comparison")
ROLES = {"reference": _code("reference", "Reference"), "candidate": _code("candidate", "Candidate")}
#: What follows for the reader, by the field of the record.
SUITABLE = {
    "suitable_for_diagnosis": _code("diagnosis_ok", "Suitable for diagnosis"),
    "suitable_for_screening": _code("screening_ok", "Suitable for screening"),
    "requires_expert_review": _code("review_needed", "Requires expert review"),
}
_UNITS = {"psnr_db": ("dB", "decibel"), "mutual_information": ("bit", "bit")}
_VALUES = {"mutual_information": "mutual_info"}  # a Code Value has 16 characters at most


def verdict_code(verdict: Verdict) -> CodedConcept:
    """Code of a verdict, with what it means."""
    _, name, meaning = VERDICT_WORDS[verdict]
    return _code(verdict, f"{name}: {meaning}")


def measure_code(name: str) -> CodedConcept:
    """Code of a companion measure by its name in a record."""
    words = MEASURE_WORDS[name][0] if name in MEASURE_WORDS else name
    return _code(_VALUES.get(name, name), words[:1].upper() + words[1:])


def measure_unit(name: str) -> CodedConcept:
    """UCUM unit of a companion measure."""
    value, meaning = _UNITS.get(name, ("1", "no units"))
    return CodedConcept(value, "UCUM", meaning)


def limit_code(limit: Limit) -> CodedConcept:
    """Code of a limit beyond the first, by its level."""
    level = limit.name.rpartition(" ")[2]
    return _code(f"{level[:10]}_limit", f"{level.capitalize()} limit")


def answer(yes: bool) -> CodedConcept:
    """Yes or no (PS3.16 CID 230)."""
    return CodedConcept.from_code(codes.SCT.Yes if yes else codes.SCT.No)


def scheme_item() -> CodingSchemeIdentificationItem:
    """Name whose codes 99MEDQA are, for the reader of an object (PS3.3 C.12.1.1.1)."""
    return CodingSchemeIdentificationItem(
        designator=SCHEME, name="medqa", responsible_organization="medqa"
    )


def new_uid(assessment_id: str, role: str) -> str:
    """UID that belongs to a part of an assessment: always the same one (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.UUID(assessment_id), role).int}"
