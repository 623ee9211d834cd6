"""The distance maps of the slices to look at, one frame each, on the grid of the reference.

Where the reference lies in the patient, they are a Parametric Map (PS3.3 A.75) of float32
distances. That class demands a position and an orientation of every frame; a radiograph or a
cine has none, and none is made up: its maps are a Multi-frame Grayscale Word Secondary Capture
(PS3.3 A.8.4), in 65 536 steps from 0 to the largest distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from highdicom import VOILUTTransformation
from highdicom.pm import DerivedPixelContrastValues, ParametricMap, RealWorldValueMapping
from highdicom.sc import SCImage
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.sr.codedict import codes
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)

from medqa.assessment import Assessment, Evidence
from medqa.dicom.geometry import Plane
from medqa.dicom_results import codes as words
from medqa.dicom_results.device import complete, identity
from medqa.dicom_results.source import Place, Source

__all__ = ["distance_map"]

_DIMENSIONS = ("InStackPositionNumber", "FrameLabel")
_EXPLANATION = "Perceptual distance; 0 is identical, lower is better"
_STEPS = 65535


def distance_map(
    assessment: Assessment, reference: Source, candidate: Source | None, top: float
) -> Any:
    """Make the map of an assessment's evidence, which must not be empty.

    Parameters
    ----------
    candidate
        None where it is not DICOM.
    top
        Distance that a viewer shows brightest at first.

    Returns
    -------
    highdicom.pm.ParametricMap or highdicom.sc.SCImage
    """
    places = [reference.places[one.index] for one in assessment.evidence]
    placed = all(_placed(place) for place in places)
    result = (_parametric_map if placed else _capture)(assessment, reference, places, top)
    result.update(reference.lossy or (candidate.lossy if candidate else {}))
    result.NumberOfFrames = len(places)
    result.Laterality = None  # known from the images, where it is known
    complete(result, assessment, reference, reference.instances)
    return result


def _placed(place: Place) -> bool:
    plane = place.plane
    known = (plane.position, plane.axes, plane.spacing, place.frame_of_reference)
    return all(one is not None for one in known)


def _identity(assessment: Assessment) -> dict[str, Any]:
    return identity(assessment, "distance map", 2, "medqa distance map")


def _parametric_map(
    assessment: Assessment, reference: Source, places: Sequence[Place], top: float
) -> Any:
    # highdicom takes each place once, and a slice may be worth a look under two displays. So each
    # frame is made as a map of its own, and they are joined.
    frames = [
        _frame(assessment, one, reference, place, top)
        for one, place in zip(assessment.evidence, places, strict=True)
    ]
    joined = frames[0]
    joined.FloatPixelData = b"".join(frame.FloatPixelData for frame in frames)
    groups = [frame.PerFrameFunctionalGroupsSequence[0] for frame in frames]
    displays = sorted({one.window for one in assessment.evidence})
    for group, one, place in zip(groups, assessment.evidence, places, strict=True):
        content = group.FrameContentSequence[0]
        content.StackID = "1"
        content.InStackPositionNumber = one.index + 1
        content.FrameLabel = one.window[:64]
        content.FrameComments = _frame_words(one)
        content.DimensionIndexValues = [one.index + 1, displays.index(one.window) + 1]
        if place.frame is not None:
            source = group.DerivationImageSequence[0].SourceImageSequence[0]
            source.ReferencedFrameNumber = place.frame
    joined.PerFrameFunctionalGroupsSequence = groups
    uid = words.new_uid(assessment.assessment_id, "dimensions")
    joined.DimensionOrganizationSequence[0].DimensionOrganizationUID = uid
    joined.DimensionIndexSequence = [_dimension(keyword, uid) for keyword in _DIMENSIONS]
    sources = {place.instance.sop_uid: place.instance for place in places}
    joined.SourceImageSequence = [_reference(one.sop_class, uid) for uid, one in sources.items()]
    referred = joined.ReferencedSeriesSequence[0]
    referred.ReferencedInstanceSequence = deepcopy(joined.SourceImageSequence)
    return joined


def _frame_words(evidence: Evidence) -> str:
    return f"slice {evidence.index}, {evidence.window}, LPIPS {evidence.lpips:.6g}"


def _reference(sop_class: str, sop_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class
    item.ReferencedSOPInstanceUID = sop_uid
    return item


def _frame(
    assessment: Assessment, evidence: Evidence, reference: Source, place: Place, top: float
) -> Any:
    return ParametricMap(
        source_images=[_image(reference, place, evidence)],
        pixel_array=evidence.distance_map[np.newaxis],
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[
            RealWorldValueMapping(
                lut_label="LPIPS",
                lut_explanation=_EXPLANATION,
                unit=codes.UCUM.NoUnits,
                value_range=(0.0, float(np.finfo(np.float32).max)),
                slope=1.0,
                intercept=0.0,
                quantity_definition=words.LPIPS,
            )
        ],
        voi_lut_transformations=[
            VOILUTTransformation(top / 2.0, top, voi_lut_function="LINEAR_EXACT")
        ],
        content_label="LPIPS_MAP",
        content_description="Where the candidate looks different from the reference",
        derived_pixel_contrast=DerivedPixelContrastValues.QUANTITY,
        coding_schemes=[words.scheme_item()],
        **_identity(assessment),
    )


def _image(reference: Source, place: Place, evidence: Evidence) -> Dataset:
    """Slice of the reference as a single image, whatever object holds it."""
    plane = place.plane
    image = deepcopy(reference.header)
    image.SOPClassUID = CTImageStorage  # any class whose images lie in the patient
    image.SeriesInstanceUID = place.instance.series_uid
    image.SOPInstanceUID = place.instance.sop_uid
    image.FrameOfReferenceUID = place.frame_of_reference
    image.Rows, image.Columns = evidence.distance_map.shape
    image.ImagePositionPatient, image.ImageOrientationPatient = _position(plane)
    image.PixelSpacing = list(plane.spacing or ())
    image.SliceThickness = plane.step or None
    return image


def _position(plane: Plane) -> tuple[list[float], list[float]]:
    """Position and orientation as DICOM has them: cosines along a row, then along a column."""
    if plane.position is None or plane.axes is None:
        raise ValueError("a slice that lies nowhere has no position")
    return plane.position.tolist(), plane.axes[:, ::-1].T.ravel().tolist()


def _dimension(keyword: str, uid: str) -> Dataset:
    item = Dataset()
    item.DimensionOrganizationUID = uid
    item.DimensionIndexPointer = tag_for_keyword(keyword)
    item.FunctionalGroupPointer = tag_for_keyword("FrameContentSequence")
    item.DimensionDescriptionLabel = keyword
    return item


def _capture(assessment: Assessment, reference: Source, places: Sequence[Place], top: float) -> Any:
    maps = np.stack([one.distance_map for one in assessment.evidence])
    slope = float(maps.max()) / _STEPS or 1.0
    stored = np.rint(maps / slope).astype(np.uint16)
    result = SCImage.from_ref_dataset(
        reference.header,
        pixel_array=stored[0],
        photometric_interpretation="MONOCHROME2",
        bits_allocated=16,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        coding_schemes=[words.scheme_item()],
        **_identity(assessment),
    )
    result.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    result.file_meta.MediaStorageSOPClassUID = result.SOPClassUID
    result.PixelData = stored.astype("<u2").tobytes()
    result.PatientOrientation = None
    result.ConversionType = "WSD"
    result.BurnedInAnnotation = "NO"
    result.DerivationDescription = "Where the candidate looks different from the reference"
    result.DateOfSecondaryCapture = result.ContentDate
    result.TimeOfSecondaryCapture = result.ContentTime
    result.RescaleSlope, result.RescaleIntercept, result.RescaleType = f"{slope:.10g}", 0, "US"
    result.PresentationLUTShape = "IDENTITY"
    result.WindowCenter, result.WindowWidth = f"{top / 2.0:.10g}", f"{top:.10g}"
    result.VOILUTFunction = "LINEAR_EXACT"
    if len(stored) > 1:
        result.FrameIncrementPointer = tag_for_keyword("PageNumberVector")
        result.PageNumberVector = [one.index + 1 for one in assessment.evidence]
    result.ImageComments = "; ".join(_frame_words(one) for one in assessment.evidence)
    result.SourceImageSequence = []
    for place in places:
        source = _reference(place.instance.sop_class, place.instance.sop_uid)
        if place.frame is not None:
            source.ReferencedFrameNumber = place.frame
        result.SourceImageSequence.append(source)
    return result
