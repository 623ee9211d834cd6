"""Stored objects against what they declare of their compression, and against their approval.

Nothing is decoded: the header and the size of the pixel data say it. Where the originals are given
too, each object is compared with its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from medqa.compression.approval import Approval
from medqa.compression.approvals import Approved, outside
from medqa.compression.codecs import CODECS
from medqa.compression.compress import device_of
from medqa.dicom.files import header, is_dicom, reading
from medqa.errors import MedqaError, ProfileError
from medqa.inspection import Compression, DicomImage, inspect
from medqa.lpips import GrayLPIPS
from medqa.pipeline import assess
from medqa.reader import read
from medqa.thresholds import load

__all__ = ["Checked", "against_original", "check_stored", "originals_in"]

#: Declared ratios are approximate (PS3.3 C.7.6.1.1.5.2), but not by more than this part.
_TOLERANCE = 0.1
#: Measured ratios count the padding to even length, which made them smaller by less than this.
_ROUNDING = 0.005
#: Transfer syntaxes by codec: those that `medqa compress` writes, and JPEG of 12 bits.
_CODECS = {
    **{one.lossy_syntax: one.name for one in CODECS.values()},
    "1.2.840.10008.1.2.4.51": "jpeg",
    "1.2.840.10008.1.2.4.90": "j2k",
    "1.2.840.10008.1.2.4.111": "jpeg",
    "1.2.840.10008.1.2.4.201": "htj2k",
    "1.2.840.10008.1.2.4.202": "htj2k",
}
#: They lose always; the others of their family may be reversible.
_ALWAYS_LOSSY = {
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.53",
    "1.2.840.10008.1.2.4.55",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.111",
}


@dataclass(frozen=True)
class Checked:
    """What was found of a stored object.

    Parameters
    ----------
    modality, body_part, codec
        As its header says; the codec's name, None where it is of none that approvals speak of.
    measured
        None where the pixel data is not compressed.
    declared
        The ratio of the last lossy step; None where there is none.
    lossy
        Whether it says, or its transfer syntax shows, that something was lost.
    approved
        The approval that it was held against; None where there is none.
    faults
        What is wrong, in words; empty where all is well.
    """

    path: Path
    modality: str | None
    body_part: str | None
    codec: str | None
    measured: Compression | None
    declared: float | None
    lossy: bool
    approved: Approved | None
    faults: tuple[str, ...]


def check_stored(path: Path, approvals: Sequence[Approved], *, named: bool = False) -> Checked:
    """Hold one stored object against its declarations and its approval.

    Parameters
    ----------
    approvals
        To choose from, the newest first: the one that the object names, else the newest that
        holds for its modality, body part, device and codec.
    named
        Whether `approvals` is the one that the object must keep to.

    Raises
    ------
    ReadError
        The file is damaged or no DICOM image.
    """
    with reading(path):
        found = inspect(path)[0][0]
        ds = header(path)
    if not isinstance(found, DicomImage):
        return Checked(path, None, None, None, None, None, False, None, ("is no DICOM image",))
    syntax = str(ds.file_meta.get("TransferSyntaxUID") or "")
    always = syntax in _ALWAYS_LOSSY
    lossy = found.lossy == "01" or always or bool(found.lossy_ratios)
    undeclared = found.may_lose and found.lossy is None
    codec = _codec(ds, syntax, lossy=lossy)
    declared = found.lossy_ratios[-1] if found.lossy_ratios else None
    faults = [*_undeclared(found, always=always)]
    approved = None
    if lossy or undeclared:
        faults += _declared_wrongly(found, syntax, declared)
        approved = approvals[0] if named and approvals else _approval_of(ds, codec, approvals)
        reached = found.compression.ratio_of_stored_bits if found.compression else declared
        faults += _beyond(ds, codec, reached, approved)
    body_part = str(ds.get("BodyPartExamined") or "").strip() or None
    return Checked(
        path=path,
        modality=found.modality,
        body_part=body_part,
        codec=codec,
        measured=found.compression,
        declared=declared,
        lossy=lossy or undeclared,
        approved=approved,
        faults=tuple(faults),
    )


def _codec(ds: Dataset, syntax: str, *, lossy: bool) -> str | None:
    """Name the codec: of the transfer syntax, or of the method where it is decompressed again."""
    if syntax in _CODECS:
        return _CODECS[syntax]
    methods = _texts(ds, "LossyImageCompressionMethod")
    by_method = {one.method: one.name for one in CODECS.values()}
    return by_method.get(methods[-1]) if methods and lossy else None


def _undeclared(found: DicomImage, *, always: bool) -> list[str]:
    """PS3.3 C.7.6.1.1.5: what must be said where something was lost."""
    if found.lossy == "01":
        lacks = [
            name
            for name, values in (("ratio", found.lossy_ratios), ("method", found.lossy_methods))
            if not values
        ]
        return [f"declares no lossy compression {name}" for name in lacks]
    if always or found.lossy_ratios:
        said = "says 00" if found.lossy == "00" else "does not say"
        return [f"was compressed with loss, and {said} in Lossy Image Compression"]
    if found.may_lose and found.lossy is None:
        return ["does not say whether it was compressed with loss"]
    return []


def _declared_wrongly(found: DicomImage, syntax: str, declared: float | None) -> list[str]:
    faults = []
    ratios, methods = found.lossy_ratios, found.lossy_methods
    if len(ratios) > 1 or len(methods) > 1:
        steps = max(len(ratios), len(methods))
        faults.append(f"was compressed with loss {steps} times")
    method = next((one.method for one in CODECS.values() if one.name == _CODECS.get(syntax)), None)
    if methods and method is not None and methods[-1] != method:
        faults.append(f"declares the method {methods[-1]}, and is stored in {method}")
    measured = found.compression
    if declared is not None and measured is not None:
        either = measured.ratio_of_stored_bits, measured.ratio_of_allocated_bits
        if all(abs(declared - one) > _TOLERANCE * one for one in either):
            faults.append(
                f"declares {declared:g}:1, and measures {either[0]:.2f}:1 of the bits stored, "
                f"{either[1]:.2f}:1 of the bits allocated"
            )
    return faults


def _approval_of(ds: Dataset, codec: str | None, approvals: Sequence[Approved]) -> Approved | None:
    derivation = str(ds.get("DerivationDescription") or "")
    for one in approvals:
        if one.approval.approval_id in derivation:
            return one
    fitting = [one for one in approvals if one.approval.codec == codec and not _outside(ds, one)]
    # A valid one before one that has ended, and that before a draft.
    order = {"approved": 0, "expired": 1, "rejected": 2, "draft": 3}
    return min(fitting, key=lambda one: order[one.status], default=None)


def _outside(ds: Dataset, approved: Approved) -> str | None:
    body_part = str(ds.get("BodyPartExamined") or "").strip() or None
    modality = str(ds.get("Modality") or "") or None
    return outside(approved.approval.scope, modality, body_part, device_of(ds))


def _beyond(
    ds: Dataset, codec: str | None, reached: float | None, approved: Approved | None
) -> list[str]:
    if approved is None:
        kind = CODECS[codec].title if codec else "this compression"
        return [f"has no approval for {ds.get('Modality') or 'its modality'} in {kind}"]
    approval, faults = approved.approval, []
    if approved.status != "approved" and not _made_in_time(ds, approved):
        words = {"expired": f"ended on {approval.expires_on}", "draft": "is signed by nobody"}
        faults.append(f"its approval {words.get(approved.status, 'was rejected')}")
    if approval.codec != codec:
        faults.append(f"is in {codec or 'another codec'}, and its approval is for {approval.codec}")
    if reason := _outside(ds, approved):
        faults.append(f"is outside its approval: {reason}")
    highest = approval.highest_ratio
    if reached is None:
        faults.append("neither shows nor declares its ratio")
    elif reached > highest * (1 + _ROUNDING):
        faults.append(f"has {reached:.2f}:1 of the bits stored, and {highest:g}:1 is approved")
    return faults


def _made_in_time(ds: Dataset, approved: Approved) -> bool:
    """Whether an object says that it was made under an approval that ended later on.

    Only of those that name it: others keep the date of their original.
    """
    named = approved.approval.approval_id in str(ds.get("DerivationDescription") or "")
    made = str(ds.get("InstanceCreationDate") or "")
    last = f"{approved.approval.expires_on:%Y%m%d}"
    return approved.status == "expired" and named and len(made) == len(last) and made <= last


def _texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    value = ds.get(keyword) or ()
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def against_original(
    path: Path, originals: Mapping[str, Path], approval: Approval, network: GrayLPIPS
) -> str | None:
    """Compare an object with the original that it names; say what is wrong, None for nothing.

    Parameters
    ----------
    originals
        By SOP Instance UID (`originals_in`).
    approval
        Whose thresholds judge.

    Raises
    ------
    ProfileError
        The approval's profile is not shipped, or not as it was any more.
    ReadError
        One of the two cannot be read.
    """
    with reading(path):
        sources = header(path).get("SourceImageSequence") or []
    uids = {str(one.get("ReferencedSOPInstanceUID") or "") for one in sources}
    named = [originals[uid] for uid in sorted(uids) if uid in originals]
    if len(named) != 1:
        return "names no original that is here" if not named else "names several originals"
    profile = load(approval.profile.name)
    if profile.sha256 != approval.profile.sha256:
        reason = "is not what the approval was judged by any more"
        raise ProfileError(profile.name, reason, "leave out --original")
    found = assess(read(named[0]), read(path), profile=profile, backbone=network)
    if found.verdict == "diagnostic":
        return None
    return f"is {found.verdict.replace('_', ' ')} against its original: {found.reasons[0].text}"


def originals_in(folder: Path) -> Mapping[str, Path]:
    """DICOM files below a folder by their SOP Instance UID; what cannot be read is passed over."""
    found = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        try:
            with reading(path), path.open("rb") as file:
                if is_dicom(file.read(132)):
                    found[str(header(path).get("SOPInstanceUID") or "")] = path
        except MedqaError:
            continue
    return found
