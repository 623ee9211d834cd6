"""Compress one image under an approval: as strongly as it stays diagnostic, or not at all.

What is judged is the file as it was written, read again as any other.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info

from medqa.assessment import Assessment, Job
from medqa.audit import Store
from medqa.compression.adaptive import Stream, strongest
from medqa.compression.approval import Approval
from medqa.compression.approvals import Approved, outside
from medqa.compression.codecs import CODECS, check, version
from medqa.compression.objects import check_object, derived, samples_of
from medqa.dicom.files import check as check_image
from medqa.dicom.files import is_dicom, load, reading
from medqa.dicom.pixels import frames
from medqa.errors import PixelError, ReadError, UsageError
from medqa.image import changed
from medqa.inspection import DicomImage, inspect
from medqa.lpips import GrayLPIPS
from medqa.pipeline import assess, run
from medqa.reader import read
from medqa.thresholds import Profile
from medqa.thresholds import load as load_profile

__all__ = ["Compressed", "Rules", "compress", "device_of", "prepare"]

#: Of JPEG files put into JPEG XL as they are, which lost what JPEG loses.
_JPEG_RECOMPRESSION = "JPEG XL JPEG Recompression"


@dataclass(frozen=True)
class Rules:
    """What images are compressed by, checked.

    Parameters
    ----------
    profile
        The approval's thresholds, and where they were loaded from.
    network
        The approval's network.
    """

    approval: Approval
    profile: Profile
    profile_source: str
    network: GrayLPIPS


@dataclass(frozen=True)
class Compressed:
    """What was written.

    Parameters
    ----------
    stream
        What the image was compressed to.
    assessment
        The record of the file against its original.
    """

    path: Path
    stream: Stream
    assessment: Assessment


def prepare(approved: Approved, profile: str | None, network: GrayLPIPS) -> Rules:
    """Check that images may be compressed under an approval, here and now.

    Parameters
    ----------
    profile
        Name or path of the approval's profile; None looks for it among those that are shipped.
    network
        To measure with.

    Raises
    ------
    UsageError
        The approval is no longer, or not yet, valid; mammograms stay lossless under it; or the
        profile, the network or the codec's library is another than the approval speaks of.
    """
    approval = approved.approval
    named = approval.approval_id
    if approved.status != "approved":
        words = {"draft": "is a draft that nobody has signed", "rejected": "was rejected"}
        reason = words.get(approved.status, f"ended on {approval.expires_on}")
        raise UsageError(named, reason, "name one that is approved: see medqa approvals list")
    if approval.scope.modality == "MG" and approval.overridden is None:
        reason = "is of mammograms, which stay lossless"
        raise UsageError(named, reason, "compress them without loss")
    codec = CODECS.get(approval.codec)
    if codec is None:
        reason = f"is of the codec {approval.codec}, which this version of medqa does not know"
        raise UsageError(named, reason, "update medqa")
    if version(codec) != approval.codec_version:
        reason = f"is of {approval.codec_version}, and {version(codec)} is installed here"
        raise UsageError(named, reason, "study the new version, or install the approved one")
    weights = network.weights
    if weights.sha256 != approval.metric.weights_sha256:
        reason = (
            f"was judged with network {approval.metric.backbone} {approval.metric.version}, "
            f"not with {weights.backbone} {weights.version}"
        )
        raise UsageError(named, reason, "name that network with --backbone")
    source = profile or approval.profile.name
    loaded = load_profile(source)
    if loaded.sha256 != approval.profile.sha256:
        reason = (
            f"was judged by profile {approval.profile.name} {approval.profile.version}, and "
            f"{source} is not that any more"
        )
        raise UsageError(named, reason, "name its file with --profile")
    return Rules(approval, loaded, source, network)


def compress(
    source: Path,
    target: Path,
    rules: Rules,
    store: Store,
    *,
    masks: Sequence[str] = (),
    annotations: Sequence[str] = (),
    actor: str | None = None,
) -> Compressed | None:
    """Compress a DICOM image as strongly as the approval and the image itself allow.

    Parameters
    ----------
    source
        DICOM file of one or more frames.
    target
        New file; it is there whole, judged and recorded, or not at all.
    store
        Where the assessment of what is written is recorded.
    masks, annotations
        Regions that must be preserved, in the forms of `medqa.assess`.

    Returns
    -------
    What was written: without loss, where that is no larger. None where no setting keeps the image
    diagnostic: then nothing was written and nothing recorded.

    Raises
    ------
    UsageError
        The image is outside the approval's scope, the target is there already or cannot be
        written, or the record cannot be.
    NotAssessableError
        The image cannot be compressed, was compressed with loss before, or cannot be judged.
    """
    approval, codec = rules.approval, CODECS[rules.approval.codec]
    if target.exists():
        raise UsageError(target, "is there already", "name another")
    ds, sha256 = _loaded(source, approval)
    samples = samples_of(ds)
    check(codec, samples, source)
    with reading(source):
        stored = list(frames(ds, source))
    reference = read(source)
    if reference.file_sha256 != sha256:
        raise changed(source)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")

    def good(stream: Stream) -> bool:
        _write(derived(ds, stream, codec, approval.approval_id), part)
        found = assess(
            reference,
            read(part),
            mask=list(masks),
            annotations=list(annotations),
            profile=rules.profile,
            backbone=rules.network,
        )
        if found.failure is not None:
            raise found.failure
        return found.verdict == "diagnostic"

    try:
        try:
            stream = strongest(codec, stored, samples, approval.highest_ratio, good)
        except PixelError as error:  # which knows the frame, not the file
            raise PixelError(source, error.reason, error.mend, error.detail) from error
        if stream is None:
            return None
        _write(derived(ds, stream, codec, approval.approval_id), part)
        job = Job(
            reference=str(source),
            candidate=str(part),
            masks=tuple(masks),
            annotations=tuple(annotations),
            profile=rules.profile_source,
            origin="medqa compress",
            correlation_id=approval.approval_id,
            actor=actor,
        )
        assessment = run(job, store, network=rules.network)
        if assessment.failure is not None:
            raise assessment.failure
        if assessment.verdict != "diagnostic":
            return None
        _keep(part, target)
    finally:
        part.unlink(missing_ok=True)
    return Compressed(target, stream, assessment)


def _loaded(source: Path, approval: Approval) -> tuple[Dataset, str]:
    """Header and pixels of an image that the approval covers, and the SHA-256 of its file."""
    with reading(source):
        if not source.is_file() or not is_dicom(_head(source)):
            raise ReadError(source, "is no DICOM file", "give a DICOM image")
        ds, sha256 = load(source)
        check_image(ds, source)
    check_object(ds, source)
    [found], _ = inspect(source)
    if isinstance(found, DicomImage):
        undeclared = found.may_lose and found.lossy != "00"
        if undeclared or _JPEG_RECOMPRESSION in found.transfer_syntaxes:
            reason = f"is stored in {found.transfer_syntaxes[0]}, and may have lost something"
            raise ReadError(source, reason, "compress the original: losses add up unseen")
    body_part = str(ds.get("BodyPartExamined") or "").strip() or None
    modality = str(ds.get("Modality") or "") or None
    if why := outside(approval.scope, modality, body_part, device_of(ds)):
        raise UsageError(source, f"is outside the approval: {why}", "name another approval")
    return ds, sha256


def _head(source: Path) -> bytes:
    with source.open("rb") as file:
        return file.read(132)


def device_of(ds: Dataset) -> str | None:
    """Manufacturer and model, as the header says."""
    parts = (str(ds.get(one) or "") for one in ("Manufacturer", "ManufacturerModelName"))
    return " ".join(" ".join(parts).split()) or None


def _write(made: Dataset, path: Path) -> None:
    """Write an object to a file of ours."""
    # Not `dcmwrite`: pydicom 3.0 does not know the transfer syntaxes of JPEG XL, and refuses.
    content = DicomBytesIO()
    content.is_implicit_VR, content.is_little_endian = False, True
    content.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(content, made.file_meta, enforce_standard=True)
    write_dataset(content, made)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.write(content.getvalue())
    except OSError as error:
        raise UsageError(
            path.parent,
            f"files cannot be written here ({error.strerror or error})",
            "name a folder that you may write to and that has space",
        ) from error


def _keep(part: Path, target: Path) -> None:
    """See that a file is on the disk, and give it its name, unless another has it by now."""
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())
    try:
        os.link(part, target)
    except FileExistsError as error:
        raise UsageError(target, "is there already", "name another") from error
    except OSError:  # a file system without hard links
        os.replace(part, target)
