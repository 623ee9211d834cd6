"""The whole way: read, normalise, compare, judge, record."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from medqa._version import __version__
from medqa.assessment import (
    Assessment,
    ClinicalSuitability,
    ImageInput,
    Inputs,
    Job,
    MetricRef,
    Reason,
    RegionInput,
)
from medqa.audit import Store, pseudonym
from medqa.errors import NotAssessableError, ProfileError, RegionError
from medqa.image import Image, Region
from medqa.lpips import SMALLEST_SIDE, GrayLPIPS, choose_device
from medqa.metrics import composite, unavailable
from medqa.reader import read, source_digest
from medqa.regions import mask_regions, read_annotations, read_mask
from medqa.scoring import evidence, score, score_planes
from medqa.thresholds import (
    Profile,
    Task,
    check_backbone,
    check_calibrated,
    check_modality,
    choose,
    load,
)
from medqa.transforms import check_pixels, displays, match
from medqa.verdict import judge

__all__ = ["Progress", "assess", "image_input", "judge_job", "metric_ref", "refuse", "run"]

PathLike = str | os.PathLike[str]
T = TypeVar("T")
#: Called with the slices done and their number.
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class _Context:
    """What an assessment records whatever becomes of it; no profile before an image is read."""

    profile: Profile | None
    network: GrayLPIPS
    key: bytes | None = None
    origin: str | None = None
    correlation_id: str | None = None


def assess(
    reference: Image,
    candidate: Image,
    *,
    mask: PathLike | NDArray[Any] | Sequence[PathLike | NDArray[Any]] = (),
    annotations: PathLike | Sequence[PathLike] = (),
    profile: str | Profile | None = None,
    task: Task = "routine",
    backbone: str | GrayLPIPS = "gray",
    resample: bool = False,
    plane_stride: int | None = None,
    progress: Progress | None = None,
) -> Assessment:
    """Compare a candidate with its reference and judge it.

    Parameters
    ----------
    reference, candidate
        Two images of the same view, as `medqa.read` returns them.
    mask
        Pathology: a file (NIfTI, PNG, DICOM SEG) or a (rows, columns) or (slices, rows, columns)
        array, not zero inside; or several of them.
    annotations
        JSON file, or several.
    profile
        Thresholds: a shipped name, the path of a ``.toml`` file, or a loaded profile. None takes
        the one of the reference's modality and body part, for the task.
    task
        What was done to the image, where no profile is named.
    backbone
        Name of the network, or a network to use again.
    resample
        Bring a candidate on another grid to the reference's; a profile may allow this too.
    plane_stride
        Compare a volume in all three anatomical planes too, every so many slices.
    progress
        Called with the slices done and their number.

    Returns
    -------
    The record, with pictures in `Assessment.evidence`. What cannot be compared is
    ``not_assessable``, with the error in `Assessment.failure`; it never passes.

    Raises
    ------
    UsageError
        The profile or the weights cannot be used: nothing was judged.
    """
    chosen = _profile(profile, reference, task)
    return _assess(
        _Context(chosen, _network(backbone)),
        chosen,
        reference,
        candidate,
        _as_sequence(mask),
        _as_sequence(annotations),
        resample,
        plane_stride,
        progress,
    )


def judge_job(
    job: Job,
    key: bytes | None = None,
    *,
    network: GrayLPIPS | None = None,
    progress: Progress | None = None,
    read: Callable[[str | tuple[str, ...]], Image] = read,
) -> Assessment:
    """Do a job without recording it: read its files and assess.

    Parameters
    ----------
    key
        Of the identifiers' codes in the record (`Store.key`); None leaves them out.
    network
        The job's network, where it is loaded already.
    progress
        Called with the slices done and their number.
    read
        What reads the two images: `medqa.read`, or a `medqa.decoder.Decoder` where strangers
        send them.

    Raises
    ------
    UsageError
        The profile or the weights cannot be used: nothing was judged.
    """
    network = network or GrayLPIPS(
        job.backbone, precision=job.precision, device=choose_device(job.device)
    )
    named = None if job.profile is None else load(job.profile)
    context = _Context(named, network, key, job.origin, job.correlation_id)
    reference = candidate = None
    try:
        reference = read(job.reference)
        candidate = read(job.candidate)
    except NotAssessableError as error:
        return _refused(context, error, reference, candidate)
    profile = _profile(named, reference, job.task)
    if job.require_calibrated:
        check_calibrated(profile)
    return _assess(
        replace(context, profile=profile),
        profile,
        reference,
        candidate,
        job.masks,
        job.annotations,
        job.resample,
        job.plane_stride,
        progress,
    )


def run(
    job: Job,
    store: Store | None = None,
    *,
    network: GrayLPIPS | None = None,
    progress: Progress | None = None,
) -> Assessment:
    """Do a job: read its files, assess, and record the outcome in one transaction.

    Parameters
    ----------
    store
        Where to record; None records nothing.
    network, progress
        As `judge_job`.

    Raises
    ------
    UsageError
        The profile, the weights or the store cannot be used: nothing was judged or recorded.
    """
    key = None if store is None else store.key
    assessment = judge_job(job, key, network=network, progress=progress)
    if store is not None:
        store.add(assessment, supersedes=job.supersedes, reason=job.reason, actor=job.actor)
    return assessment


def _assess(
    context: _Context,
    profile: Profile,
    reference: Image,
    candidate: Image,
    masks: Sequence[PathLike | NDArray[Any]],
    annotations: Sequence[PathLike],
    resample: bool,
    plane_stride: int | None,
    progress: Progress | None,
) -> Assessment:
    network, weights = context.network, context.network.weights
    check_modality(profile, reference.modality)
    check_backbone(profile, weights.backbone, weights.version, weights.relative_error)
    measures, not_measured = _measures(profile)
    region_inputs: list[RegionInput] = []
    try:
        for image in (reference, candidate):
            check_pixels(image, SMALLEST_SIDE)
        moved = match(reference, candidate, resample=resample or profile.geometry.resample)
        regions = list(_regions(reference, masks, annotations, region_inputs))
        shown = displays(profile, reference)
        done = 0

        def advance(slices: int) -> None:
            nonlocal done
            done += slices
            if progress is not None:
                progress(done, reference.shape[0])

        scores = score(
            network,
            reference,
            moved,
            shown,
            regions,
            measures=measures,
            aggregate=profile.aggregate.slices,
            progress=advance,
        )
        in_planes = None
        if plane_stride is not None:
            in_planes = score_planes(
                network,
                reference,
                moved,
                shown,
                stride=plane_stride,
                aggregate=profile.aggregate.slices,
            )
        metric = metric_ref(context.profile, network)
        judgement = judge(scores, profile, metric.relative_error, metric.region_relative_error)
        gated = [gate.measure for gate in profile.measures.gates]
        pictures = evidence(network, reference, moved, shown, scores, regions, gated)
    except NotAssessableError as error:
        return _refused(context, error, reference, candidate, tuple(region_inputs))
    assessment = Assessment(
        assessment_id=str(uuid.uuid4()),
        created_at=datetime.now(UTC),
        medqa_version=__version__,
        inputs=_inputs(context, reference, candidate, tuple(region_inputs)),
        profile=profile.ref,
        metric=metric,
        limits=profile.limit_records,
        base_lpips_score=scores.base_lpips,
        aggregate=scores.aggregate,
        diagnostic_quality=judgement.diagnostic_quality,
        screening_quality=judgement.screening_quality,
        windows=scores.windows,
        slices=scores.slices,
        pathology_preservation=judgement.pathology,
        annotation_preservation=judgement.annotations,
        clinical_suitability=judgement.suitability,
        metrics={name: one.recorded for name, one in scores.measures.items()},
        not_measured=not_measured,
        gates=judgement.gates,
        composite=composite(
            scores.base_lpips, {name: one.value for name, one in scores.measures.items()}
        ),
        planes=in_planes,
        verdict=judgement.verdict,
        reasons=judgement.reasons,
        origin=context.origin,
        correlation_id=context.correlation_id,
    )
    assessment._evidence = pictures
    return assessment


def refuse(
    profile: Profile,
    network: GrayLPIPS,
    error: NotAssessableError,
    reference: Image | None = None,
    candidate: Image | None = None,
) -> Assessment:
    """Return the record that an error leaves, for callers that find one before `assess` does."""
    return _refused(_Context(profile, network), error, reference, candidate)


def _refused(
    context: _Context,
    error: NotAssessableError,
    reference: Image | None = None,
    candidate: Image | None = None,
    regions: tuple[RegionInput, ...] = (),
) -> Assessment:
    profile = context.profile
    place = _place(error, reference, candidate)
    refused = Assessment(
        assessment_id=str(uuid.uuid4()),
        created_at=datetime.now(UTC),
        medqa_version=__version__,
        inputs=_inputs(context, reference, candidate, regions),
        profile=profile and profile.ref,
        metric=metric_ref(profile, context.network),
        limits=profile.limit_records if profile else (),
        clinical_suitability=ClinicalSuitability(
            suitable_for_diagnosis=False, suitable_for_screening=False, requires_expert_review=False
        ),
        verdict="not_assessable",
        # Neither subject nor detail: a path may name the patient, and the record must not.
        reasons=(Reason(text=f"{place.capitalize()}: {error.reason}; {error.mend}", place=place),),
        origin=context.origin,
        correlation_id=context.correlation_id,
    )
    refused._failure = error
    return refused


def _place(error: NotAssessableError, reference: Image | None, candidate: Image | None) -> str:
    """Say which input an error is about."""
    if reference is None or error.subject == reference.source:
        return "reference"
    if candidate is None or error.subject == candidate.source:
        return "candidate"
    return "mask or annotation" if isinstance(error, RegionError) else "both images"


def _profile(named: str | Profile | None, reference: Image, task: Task) -> Profile:
    if isinstance(named, Profile):
        return named
    if named is None:
        return choose(reference.modality, task, reference.body_part)
    return load(named)


def _network(backbone: str | GrayLPIPS) -> GrayLPIPS:
    return backbone if isinstance(backbone, GrayLPIPS) else GrayLPIPS(backbone)


def _as_sequence(given: T | Sequence[T]) -> Sequence[T]:
    """Turn one path or array into a sequence of one."""
    if isinstance(given, (str, os.PathLike, np.ndarray)):
        return (cast(T, given),)
    return cast(Sequence[T], given)


def _regions(
    reference: Image,
    masks: Sequence[PathLike | NDArray[Any]],
    annotations: Sequence[PathLike],
    inputs: list[RegionInput],
) -> Iterable[Region]:
    """Read every region, and note each source in `inputs`."""
    for number, mask in enumerate(masks, start=1):
        if isinstance(mask, np.ndarray):
            name = "mask" if len(masks) == 1 else f"mask {number}"
            digest, found = None, mask_regions(mask, reference, name)
        else:
            digest, found = source_digest(mask), read_mask(mask, reference)
        inputs.append(RegionInput(kind="pathology", file_sha256=digest, regions=len(found)))
        yield from found
    for path in annotations:
        found = read_annotations(path, reference)
        inputs.append(
            RegionInput(kind="annotation", file_sha256=source_digest(path), regions=len(found))
        )
        yield from found


def _measures(profile: Profile) -> tuple[list[str], dict[str, str]]:
    """Companion measures that can run here, and why others cannot.

    Raises
    ------
    ProfileError
        One that cannot run decides.
    """
    run, missing = [], {}
    for name in profile.measures.run:
        if error := unavailable(name):
            missing[name] = f"{error.reason}; {error.mend}"
        else:
            run.append(name)
    for gate in profile.measures.gates:
        if reason := missing.get(gate.measure):
            raise ProfileError(
                profile.source, f"{gate.measure} decides, but {reason}", "or use another profile"
            )
    return run, missing


def metric_ref(profile: Profile | None, network: GrayLPIPS) -> MetricRef:
    """Return what a record says of the network: near a profile's limits, its error, if it has one.

    Parameters
    ----------
    profile
        The thresholds; None before an image is read.
    """
    weights = network.weights
    own = profile is not None and profile.metric.backbone == weights.backbone
    near = profile.metric.relative_error.get(weights.backbone, 0.0) if profile else 0.0

    def error(stated: float | None) -> float | None:
        return None if own or stated is None else max(stated, near)

    return MetricRef(
        backbone=weights.backbone,
        version=weights.version,
        weights_sha256=weights.sha256,
        relative_error=error(weights.relative_error),
        region_relative_error=error(weights.region_relative_error),
        precision=str(network.dtype).removeprefix("torch."),
        device=network.device.type,
    )


def _inputs(
    context: _Context,
    reference: Image | None,
    candidate: Image | None,
    regions: tuple[RegionInput, ...],
) -> Inputs:
    return Inputs(
        reference=reference and image_input(reference, context.key),
        candidate=candidate and image_input(candidate, context.key),
        regions=regions,
    )


def image_input(image: Image, key: bytes | None) -> ImageInput:
    """Return what a record says of an image; identifiers as codes under the key, or not at all."""

    def hidden(value: str | None) -> str | None:
        return pseudonym(key, value) if key and value else None

    named = image.identifiers
    return ImageInput(
        kind=image.kind,
        shape=image.shape,
        modality=image.modality,
        unit=image.unit,
        spacing_mm=image.spacing_mm,
        body_part=image.body_part,
        device=image.device,
        transfer_syntax=image.transfer_syntax,
        file_sha256=image.file_sha256,
        pixels_sha256=image.pixels_sha256,
        device_hmac=hidden(named.device),
        patient_hmac=hidden(named.patient_id),
        study_hmac=hidden(named.study_uid),
        series_hmac=hidden(named.series_uid),
        instance_hmac=hidden(named.sop_uids[0]) if len(named.sop_uids) == 1 else None,
    )
