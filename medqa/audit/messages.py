"""DICOM audit messages (PS3.15 A.5): what an entry of the chain says to an audit repository.

Patients, studies and instances stand in them as the keyed codes of the record, never by their
identifiers: a repository can tell which messages are about the same patient, not who that is.
"""

from __future__ import annotations

import base64
import json
import socket
from xml.etree import ElementTree as ET

from medqa.assessment import Assessment, ImageInput
from medqa.audit.chain import Entry

__all__ = ["audit_message", "syslog_message"]

# PS3.16 CID 400 and 402; what they have no code for has one of the project's own.
_APPLICATION_ACTIVITY = ("110100", "DCM", "Application Activity")
_INSTANCES_ACCESSED = ("110103", "DCM", "DICOM Instances Accessed")
_APPLICATION = ("110150", "DCM", "Application")
_EVENTS = {
    "genesis": (_APPLICATION_ACTIVITY, "E", "Audit database made"),
    "assessment": (_INSTANCES_ACCESSED, "R", "Image quality assessed"),
    "quality": (_INSTANCES_ACCESSED, "R", "Image quality measured"),
    "signature": (_APPLICATION_ACTIVITY, "U", "Record signed"),
    "approval": (_APPLICATION_ACTIVITY, "C", "Compression approval proposed"),
}
_OWN = "99MEDQA"
# RFC 5424 6.2.1: facility 10 (security), severity 5 (notice) or 4 (warning), as PS3.15 A.6 asks.
_NOTICE, _WARNING = 10 * 8 + 5, 10 * 8 + 4
_FAILED = "4"  # PS3.15 A.5.1: a minor failure


def audit_message(entry: Entry, record: str | None, source: str) -> bytes:
    """Return the message about an entry, XML in UTF-8 of the schema in PS3.15 A.5.1.

    Parameters
    ----------
    entry
        Of the chain.
    record
        The assessment's record as it is stored, where the entry is about one.
    source
        AuditSourceID: which installation speaks.
    """
    event, action, words = _EVENTS[entry.kind]
    images, outcome, result = _images(entry, record)
    message = ET.Element("AuditMessage")
    what = ET.SubElement(
        message,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=entry.recorded_at,
        EventOutcomeIndicator=outcome,
    )
    _coded(what, "EventID", *event)
    _coded(what, "EventTypeCode", entry.kind, _OWN, words)
    if result:
        ET.SubElement(what, "EventOutcomeDescription").text = result
    ET.SubElement(
        message,
        "ActiveParticipant",
        UserID=entry.actor,
        AlternativeUserID=entry.account,
        UserIsRequestor="true",
    )
    program = ET.SubElement(message, "ActiveParticipant", UserID="medqa", UserIsRequestor="false")
    _coded(program, "RoleIDCode", *_APPLICATION)
    ET.SubElement(message, "AuditSourceIdentification", AuditSourceID=source)
    for keyword, name, kind, role in (
        ("patient_hmac", "Keyed code of the patient", "1", "1"),
        ("study_hmac", "Keyed code of the study", "2", "3"),
    ):
        codes = dict.fromkeys(code for image in images if (code := getattr(image, keyword)))
        for code in codes:
            _object(message, code, (keyword, _OWN, name), kind, role)
    subject = entry.assessment_id or f"entry {entry.sequence}"
    report = _object(message, subject, ("9", "RFC-3881", "Report Number"), "2", "3")
    for kind, value in (("sequence", str(entry.sequence)), ("sha256", entry.sha256)):
        text = base64.b64encode(value.encode()).decode()
        ET.SubElement(report, "ParticipantObjectDetail", type=kind, value=text)
    # Not by ElementTree, which ends the declaration with a line feed: repositories escape that.
    return (
        b'<?xml version="1.0" encoding="UTF-8"?>'
        + ET.tostring(message, encoding="unicode").encode()
    )


def syslog_message(message: bytes, recorded_at: str, *, failed: bool = False) -> bytes:
    """Return an audit message as syslog carries it (RFC 5424, PS3.15 A.6)."""
    priority = _WARNING if failed else _NOTICE
    head = f"<{priority}>1 {recorded_at} {socket.gethostname()} medqa - DICOM+RFC3881 - "
    return head.encode() + b"\xef\xbb\xbf" + message


def _images(entry: Entry, record: str | None) -> tuple[list[ImageInput], str, str]:
    """Images that an entry is about, its outcome, and the outcome in a few words."""
    if entry.kind == "quality":
        return [ImageInput.model_validate(json.loads(entry.body)["image"])], "0", ""
    if entry.kind == "signature":
        return [], "0", str(json.loads(entry.body)["meaning"])
    if entry.kind != "assessment" or record is None:
        return [], "0", ""
    assessment = Assessment.model_validate_json(record)
    images = [one for one in (assessment.inputs.reference, assessment.inputs.candidate) if one]
    failed = assessment.verdict == "not_assessable"
    return images, _FAILED if failed else "0", assessment.verdict


def _coded(parent: ET.Element, tag: str, code: str, system: str, words: str) -> None:
    """Add a coded value: csd-code has a hyphen, so it is no keyword argument."""
    names = {"csd-code": code, "codeSystemName": system, "originalText": words}
    ET.SubElement(parent, tag, names)


def _object(
    message: ET.Element, identifier: str, code: tuple[str, str, str], kind: str, role: str
) -> ET.Element:
    found = ET.SubElement(
        message,
        "ParticipantObjectIdentification",
        ParticipantObjectID=identifier,
        ParticipantObjectTypeCode=kind,
        ParticipantObjectTypeCodeRole=role,
    )
    _coded(found, "ParticipantObjectIDTypeCode", *code)
    return found
