"""The record as a structured report: PS3.16 TID 1500, Measurement Report.

A Comprehensive SR: the oldest class that holds coordinates in an image, so the one that most
archives and viewers take. Values are those of the record; nothing is computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes

from medqa.assessment import AnnotationScore, Assessment, ComponentScore, Limit
from medqa.dicom_results import codes as words
from medqa.dicom_results.device import DEVICE_UID, MANUFACTURER, NOTICE, complete, identity
from medqa.dicom_results.source import Instance, Place, Source

__all__ = ["structured_report"]

_CONTAINS = sr.RelationshipTypeValues.CONTAINS
_HAS_PROPERTIES = sr.RelationshipTypeValues.HAS_PROPERTIES
_HAS_ACQ_CONTEXT = sr.RelationshipTypeValues.HAS_ACQ_CONTEXT
_AGGREGATES = {"mean": codes.SCT.Mean, "max": codes.SCT.Maximum}


def structured_report(assessment: Assessment, reference: Source, candidate: Source | None) -> Any:
    """Make the structured report of an assessment.

    Parameters
    ----------
    candidate
        None where it is not DICOM, or carries the UIDs of the reference.

    Returns
    -------
    highdicom.sr.ComprehensiveSR
    """
    sources = {"reference": reference} | ({"candidate": candidate} if candidate else {})
    groups = [_whole_image(assessment)]
    if assessment.slices:
        groups += _worst_slice(assessment, sources)
        groups += _regions(assessment, reference)
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=DEVICE_UID,
            name="medqa",
            manufacturer_name=MANUFACTURER,
            model_name="medqa",
            serial_number=f"medqa {assessment.medqa_version}",
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    root = content[0].ContentSequence
    measurements = next(
        index for index, one in enumerate(root) if one.name == codes.DCM.ImagingMeasurements
    )
    root.insert(measurements, _library(sources))
    root.append(_evaluations(assessment, sources))
    instances = [one for source in sources.values() for one in source.instances]
    evidence = [_evidence(one, reference.header) for one in instances]
    report = sr.ComprehensiveSR(
        evidence=evidence,
        content=content,
        is_complete=True,
        is_final=True,
        is_verified=False,
        coding_schemes=[words.scheme_item()],
        **identity(assessment, "sr", 1, "medqa image quality report"),
    )
    complete(report, assessment, reference, instances)
    return report


def _evidence(instance: Instance, header: Dataset) -> Dataset:
    """Instance of either image, as highdicom takes it: its UIDs, and the reference's patient."""
    one = deepcopy(header)
    one.StudyInstanceUID = instance.study_uid
    one.SeriesInstanceUID = instance.series_uid
    one.SOPInstanceUID = instance.sop_uid
    return one


def _library(sources: dict[str, Source]) -> Any:
    """Image library (TID 1600): which image was the reference and which the candidate."""
    library = sr.ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=_CONTAINS)
    library.ContentSequence = sr.ContentSequence()
    for role, source in sources.items():
        group = sr.ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=_CONTAINS)
        group.ContentSequence = sr.ContentSequence(
            [sr.CodeContentItem(words.ROLE, words.ROLES[role], relationship_type=_HAS_ACQ_CONTEXT)]
        )
        group.ContentSequence.extend(
            sr.ImageContentItem(
                name=codes.DCM.SourceOfMeasurement,
                referenced_sop_class_uid=source.header.SOPClassUID,
                referenced_sop_instance_uid=one.sop_uid,
                relationship_type=_CONTAINS,
            )
            for one in source.instances
        )
        library.ContentSequence.append(group)
    return library


def _evaluations(assessment: Assessment, sources: dict[str, Source]) -> Any:
    """Qualitative evaluations (TID 1500): the reasons in words, the most damning first."""
    container = sr.ContainerContentItem(
        sr.CodedConcept("C0034375", "UMLS", "Qualitative Evaluations"), relationship_type=_CONTAINS
    )
    texts = [(words.REASON, one.text) for one in assessment.reasons]
    if assessment.profile and assessment.profile.caution:
        texts.append((codes.DCM.Comment, " ".join(assessment.profile.caution.split())))
    if "candidate" not in sources:
        texts.append((codes.DCM.Comment, _NOT_REFERRED_TO))
    texts.append((codes.DCM.Comment, NOTICE))
    container.ContentSequence = sr.ContentSequence(
        [sr.TextContentItem(name, text, relationship_type=_CONTAINS) for name, text in texts]
    )
    return container


_NOT_REFERRED_TO = (
    "The candidate cannot be referred to: it is not DICOM, or its SOP Instance UIDs are those of "
    "the reference."
)


def _whole_image(assessment: Assessment) -> Any:
    """Group of the image as a whole: verdict, distance, companion measures."""
    a = assessment
    measurements = []
    if a.base_lpips_score is not None:
        measurements.append(
            _measurement(
                words.LPIPS,
                a.base_lpips_score,
                _limits(a, "diagnostic", "screening"),
                derivation=_AGGREGATES.get(a.aggregate or "") if len(a.slices) > 1 else None,
            )
        )
    for name, value in a.metrics.items():
        if value is not None:  # infinite or undefined: the reasons say so where it decides
            limits = _limits(a, f"{name} diagnostic", f"{name} screening")
            unit = words.measure_unit(name)
            measurements.append(_measurement(words.measure_code(name), value, limits, unit=unit))
    evaluations = [(words.VERDICT, words.verdict_code(a.verdict))]
    evaluations += [
        (code, words.answer(getattr(a.clinical_suitability, field)))
        for field, code in words.SUITABLE.items()
    ]
    if p := a.pathology_preservation:
        evaluations.append((words.PATHOLOGY_KEPT, words.answer(p.pathology_preserved)))
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=words.new_uid(a.assessment_id, "whole image"), identifier=_identifier(a)
        ),
        algorithm_id=_algorithm(a),
        measurements=measurements,
        qualitative_evaluations=[sr.QualitativeEvaluation(*one) for one in evaluations],
    )


def _identifier(assessment: Assessment, part: str = "") -> str:
    return f"medqa assessment {assessment.assessment_id}" + (f", {part}" if part else "")


def _algorithm(assessment: Assessment) -> Any:
    parameters = []
    if (m := assessment.metric) is not None:
        parameters += [
            f"network: {m.backbone} {m.version}, {m.precision} on {m.device}",
            f"weights SHA-256: {m.weights_sha256}",
        ]
    if (p := assessment.profile) is not None:
        parameters += [
            f"profile: {p.name} {p.version} ({p.status})",
            f"profile SHA-256: {p.sha256}",
        ]
    if assessment.aggregate:
        parameters.append(f"slices aggregated: {assessment.aggregate}")
    for role in ("reference", "candidate"):
        if (image := getattr(assessment.inputs, role)) is not None:
            parameters.append(f"pixels SHA-256 of the {role}: {image.pixels_sha256}")
    return sr.AlgorithmIdentification(
        name="medqa",
        version=assessment.medqa_version,
        parameters=parameters,
        manufacturer=MANUFACTURER,
    )


def _worst_slice(assessment: Assessment, sources: dict[str, Source]) -> list[Any]:
    """Group of the slice with the largest distance, unless it is the only one."""
    if len(assessment.slices) == 1:
        return []
    worst = max(assessment.slices, key=lambda one: one.lpips)
    images = [
        sr.SourceImageForMeasurementGroup(*_at(source, worst.index))
        for source in sources.values()
        if len(source.places) == len(assessment.slices)  # else it was brought to another grid
    ]
    part = f"slice {worst.index}"
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=words.new_uid(assessment.assessment_id, part),
            identifier=_identifier(assessment, part),
        ),
        measurements=[_measurement(words.LPIPS, worst.lpips, _limits(assessment, "screening"))],
        source_images=images,
    )
    return [_with_display(group, worst.window)]


def _regions(assessment: Assessment, reference: Source) -> list[Any]:
    """Make a planar ROI group (TID 1410) for each region, on its worst slice."""
    groups = []
    if p := assessment.pathology_preservation:
        for number, one in enumerate(p.components, start=1):
            groups.append(_region(assessment, reference, f"pathology {number}", one, one.name))
    for number, scored in enumerate(assessment.annotation_preservation, start=1):
        part = f"annotation {number}"
        groups.append(_region(assessment, reference, part, scored, scored.annotation_type))
    return groups


def _region(
    assessment: Assessment,
    reference: Source,
    part: str,
    region: ComponentScore | AnnotationScore,
    name: str,
) -> Any:
    annotation = isinstance(region, AnnotationScore)
    value = region.lpips_score if isinstance(region, AnnotationScore) else region.lpips
    evaluations = []
    if isinstance(region, AnnotationScore):
        evaluations = [sr.QualitativeEvaluation(words.KEPT, words.answer(region.preserved))]
    x1, y1, x2, y2 = (float(edge) for edge in region.bbox)
    # Coordinates count from the outer corner of the first pixel (PS3.3 C.18.6.1.1).
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])
    unit = sr.CodedConcept("{pixels}", "UCUM", "pixels")
    code = region.code
    group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=words.new_uid(assessment.assessment_id, part), identifier=f"{name} ({part})"
        ),
        referenced_region=sr.ImageRegion(
            graphic_type=sr.GraphicTypeValues.POLYLINE,
            graphic_data=corners,
            source_image=sr.SourceImageForRegion(*_at(reference, region.slice)),
        ),
        finding_type=code and sr.CodedConcept(code.value, code.scheme, code.meaning),
        geometric_purpose=codes.SCT.BoundedBy,
        measurements=[
            _measurement(
                words.LPIPS, value, _limits(assessment, "annotation" if annotation else "pathology")
            ),
            _measurement(words.PIXELS, region.pixels, [], unit=unit),
        ],
        qualitative_evaluations=evaluations,
    )
    return _with_display(group, region.window)


def _at(source: Source, index: int) -> tuple[str, str, list[int] | None]:
    """Class, UID and frame of a slice, as highdicom's references take them."""
    place: Place = source.places[index]
    frames = None if place.frame is None else [place.frame]
    return source.header.SOPClassUID, place.instance.sop_uid, frames


def _with_display(group: Any, window: str) -> Any:
    group[0].ContentSequence.append(
        sr.TextContentItem(words.DISPLAY, window, relationship_type=_CONTAINS)
    )
    return group


def _limits(assessment: Assessment, *names: str) -> list[Limit]:
    limits = {limit.name: limit for limit in assessment.limits}
    return [limits[name] for name in names if name in limits]


def _measurement(
    name: Any,
    value: float,
    limits: Sequence[Limit],
    *,
    unit: Any = codes.UCUM.NoUnits,
    derivation: Any = None,
) -> Any:
    """Measurement (TID 300); the first limit is its normal range, a second one a property."""
    properties = None
    for first in limits[:1]:
        upper, lower = codes.SCT.NormalRangeUpperLimit, codes.SCT.NormalRangeLowerLimit
        bound = upper if first.bound == "at_most" else lower
        properties = sr.MeasurementProperties(
            normal_range_properties=sr.NormalRangeProperties(
                values=[sr.NumContentItem(bound, first.value, unit, None, _HAS_PROPERTIES)],
                description=_limit_words(first),
                authority=first.source,
            )
        )
    measurement = sr.Measurement(name, value, unit, derivation=derivation, properties=properties)
    for limit in limits[1:]:
        measurement[0].ContentSequence.extend(
            [
                sr.NumContentItem(
                    words.limit_code(limit), limit.value, unit, None, _HAS_PROPERTIES
                ),
                sr.TextContentItem(
                    words.LIMIT_SOURCE,
                    f"{_limit_words(limit)}: {limit.source}",
                    relationship_type=_HAS_PROPERTIES,
                ),
            ]
        )
    return measurement


def _limit_words(limit: Limit) -> str:
    side = "at most" if limit.bound == "at_most" else "at least"
    return f"{limit.name.capitalize()} limit, {side}; {limit.status}, {limit.date}"
