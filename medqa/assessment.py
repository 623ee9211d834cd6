"""The assessment: what is recorded, printed, reported and returned to a host.

Its fields are the published record; `schema()` is its JSON Schema. Later steps read it and never
compute anything anew. Distances are LPIPS (0 is identical, lower is better, no unit).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PrivateAttr

from medqa.errors import NotAssessableError
from medqa.image import Code

__all__ = [
    "MEASURE_WORDS",
    "VERDICT_WORDS",
    "AnnotationScore",
    "Assessment",
    "Better",
    "ClinicalSuitability",
    "ComponentScore",
    "CompositeScore",
    "Evidence",
    "GateScore",
    "ImageInput",
    "Inputs",
    "Job",
    "Level",
    "Limit",
    "MeasureScore",
    "MetricRef",
    "PathologyScore",
    "PlaneScore",
    "PlanesScore",
    "ProfileRef",
    "Reason",
    "RegionInput",
    "RegionScore",
    "Scores",
    "SliceScore",
    "Verdict",
    "WindowScore",
    "schema",
]

Verdict = Literal["diagnostic", "expert_review", "unsuitable", "not_assessable"]
Level = Literal["diagnostic", "screening"]

#: Each verdict for people: a sign that needs no colour, its name, and what it means.
VERDICT_WORDS: dict[Verdict, tuple[str, str, str]] = {
    "diagnostic": ("✓", "Diagnostic", "may be read for diagnosis"),
    "expert_review": ("!", "Expert review", "an expert must decide before it is read"),
    "unsuitable": ("✗", "Unsuitable", "must not be read for diagnosis or screening"),
    "not_assessable": ("?", "Not assessable", "no statement can be made about this image"),
}
Better = Literal["higher", "lower"]
Task = Literal["routine", "compression", "denoising", "super-resolution"]
#: The companion measures by their name in a record: in plain words, and which is better.
MEASURE_WORDS: dict[str, tuple[str, Better]] = {
    "psnr_db": ("peak signal-to-noise ratio in dB", "higher"),
    "ssim": ("structural similarity", "higher"),
    "ms_ssim": ("structural similarity over five scales", "higher"),
    "vif": ("visual information kept", "higher"),
    "haarpsi": ("likeness of fine edges", "higher"),
    "fsim": ("likeness of features", "higher"),
    "gmsd": ("unevenness of the damage to edges", "lower"),
    "dists": ("difference in structure and texture", "lower"),
    "nmse": ("error relative to the reference", "lower"),
    "mutual_information": ("information shared, in bits", "higher"),
    "edge_fidelity": ("edges kept", "higher"),
    "texture_fidelity": ("texture kept", "higher"),
}
Distance = Annotated[float, Field(ge=0.0, description="LPIPS; 0 is identical, lower is better")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    """Immutable, and nothing in it that the schema does not name."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class ImageInput(_Record):
    """One of the two images, as far as it is needed to find and check it again."""

    kind: Literal["dicom", "nifti", "array"]
    """Format it was read from; `array` for an image built in memory."""
    shape: tuple[int, int, int] = Field(description="slices, rows, columns")
    modality: str | None
    """DICOM Modality, such as `CT`."""
    unit: str
    """Unit of the pixel values, such as `HU`; `arbitrary` where not calibrated."""
    spacing_mm: tuple[float, float, float] | None = Field(description="slice, row, column")
    body_part: str | None
    """DICOM Body Part Examined."""
    device: str | None = None
    """DICOM Manufacturer and Manufacturer's Model Name."""
    transfer_syntax: str | None
    """UID of the DICOM transfer syntax it was stored in."""
    file_sha256: Sha256 | None
    """SHA-256 of the file; of several files, of their hex digests joined by newlines."""
    pixels_sha256: Sha256
    """SHA-256 of shape, type and values: the same for the same image in another file."""
    device_hmac: Sha256 | None = None
    """Keyed code of manufacturer, model, serial number and station: one for each device."""
    patient_hmac: Sha256 | None = None
    """Keyed code of the Patient ID."""
    study_hmac: Sha256 | None = None
    """Keyed code of the Study Instance UID."""
    series_hmac: Sha256 | None = None
    """Keyed code of the Series Instance UID."""
    instance_hmac: Sha256 | None = Field(
        None, description="of a single SOP instance; None for a series"
    )


class RegionInput(_Record):
    """A mask or annotation file that regions were read from."""

    kind: Literal["pathology", "annotation"]
    """`pathology` from a mask, `annotation` from annotated boxes."""
    file_sha256: Sha256 | None
    """SHA-256 of the file; None for an array."""
    regions: int = Field(ge=0)
    """How many regions it holds."""


class Inputs(_Record):
    """What was compared. An image is None where it could not be read."""

    reference: ImageInput | None
    candidate: ImageInput | None
    regions: tuple[RegionInput, ...] = ()


class ProfileRef(_Record):
    """The thresholds that the verdict rests on."""

    name: str
    """Its name, such as `ct`."""
    version: str
    """Its version."""
    sha256: Sha256
    """SHA-256 of the profile's file."""
    status: Literal["published", "calibrated", "provisional"]
    """What its limits rest on: a study, readings at a site, or neither."""
    caution: str | None = Field(None, description="what these limits are known to get wrong")


class MetricRef(_Record):
    """The network that the distances were measured with."""

    name: Literal["lpips"] = "lpips"
    """The measure."""
    backbone: str
    """The network: `gray`, `alex`, `squeeze` or `vgg`."""
    version: str
    """Version of network and heads together; of adapted heads such as `1+site-ct.3f2a91bc`."""
    weights_sha256: Sha256
    """SHA-256 of the network's tensors."""
    relative_error: float | None = Field(
        None,
        description="stated relative error of an image's distance towards the network that the "
        "thresholds hold for; None where it is that network itself",
    )
    region_relative_error: float | None = Field(
        None, description="the same of a region's distance, which is less certain"
    )
    precision: str = "float32"
    """What the network computed in."""
    device: str = "cpu"
    """Kind of processor that it ran on."""


class Limit(_Record):
    """One threshold, with where it comes from."""

    name: str
    """`diagnostic`, `screening`, `pathology` or `annotation`; of a companion measure
    `edge_fidelity diagnostic` and the like."""
    value: float
    bound: Literal["at_most", "at_least"] = "at_most"
    """On which side of it a value passes; the limit itself passes."""
    unit: str
    """Unit of the value."""
    source: str
    """Where the value comes from."""
    date: str
    """When it was set, as year-month-day."""
    status: Literal["published", "calibrated", "provisional"]
    """What it rests on: a study, readings at a site, or neither."""


class GateScore(_Record):
    """A companion measure that the verdict rests on too."""

    measure: str
    """Its name, such as `edge_fidelity`."""
    value: float | None
    """As aggregated; None where the measure is undefined on every slice."""
    slice: int | None
    """The slice where it is worst."""
    window: str | None
    """The display where it is worst."""
    diagnostic: bool
    """Whether it meets the diagnostic limit."""
    screening: bool
    """Whether it meets the screening limit."""


class CompositeScore(_Record):
    """Several measures as one number, for people who ask for one. No verdict rests on it."""

    value: float = Field(ge=0.0, le=1.0, description="1 is best")
    words: str
    """`excellent`, `very good`, `good`, `acceptable`, `poor` or `very poor`."""
    parts: Mapping[str, float]
    """The weight of each measure in it; they sum to 1."""
    alert: Literal["none", "warning", "critical"]
    """`warning` for a value below 0.6 or an LPIPS distance above 0.3, `critical` for a value below
    0.4 or a distance above 0.5, else `none`."""


class PlaneScore(_Record):
    """A volume cut in an anatomical plane, under the display where it fares worst."""

    plane: Literal["axial", "coronal", "sagittal"]
    lpips: Distance
    slices: int = Field(gt=0)
    """How many slices were compared."""
    window: str
    """Name of that display."""


class PlanesScore(_Record):
    """A volume compared in all three planes (2.5D)."""

    planes: tuple[PlaneScore, ...]
    mean: Distance = Field(description="of the three")
    stride: int = Field(ge=1, description="every how many slices were compared")


class WindowScore(_Record):
    """The image under one display."""

    name: str
    """Name of the display."""
    low: float | None = Field(description="value shown black, in the image's unit; None for a LUT")
    high: float | None = Field(description="value shown white, in the image's unit")
    lpips: Distance


class SliceScore(_Record):
    """One slice, under the display where it fares worst."""

    index: int = Field(ge=0)
    """The slice."""
    lpips: Distance
    window: str
    """Name of that display."""


class ComponentScore(_Record):
    """One connected part of the pathology, on its worst slice and display."""

    name: str
    """Its label."""
    lpips: Distance
    slice: int
    """Its worst slice."""
    window: str
    """Name of its worst display."""
    pixels: int = Field(gt=0)
    """Its size, over all slices."""
    bbox: tuple[int, int, int, int] = Field(description="x1, y1, x2, y2, in pixels, end excluded")
    code: Code | None = None
    """What it is, coded, where its file says so."""


class PathologyScore(_Record):
    """The masked pathology."""

    pathology_lpips: Distance
    pathology_coverage: float = Field(
        gt=0.0, le=1.0, description="share of the pixels of the slices that the mask touches"
    )
    weighted_pathology_score: Distance
    pathology_preserved: bool
    """Whether every part surely is within the pathology limit."""
    masked_lpips: Distance = Field(
        description="both images multiplied by the mask, the textbook form; for comparison only"
    )
    components: tuple[ComponentScore, ...]


class AnnotationScore(_Record):
    """One annotated region, on its worst slice and display."""

    annotation_type: str
    """Its type in words, such as `nodule`."""
    lpips_score: Distance
    preserved: bool
    """Whether it surely is within the annotation limit."""
    slice: int
    """Its slice."""
    window: str
    """Name of its worst display."""
    pixels: int = Field(gt=0)
    """Its size."""
    bbox: tuple[int, int, int, int] = Field(description="x1, y1, x2, y2, in pixels, end excluded")
    code: Code | None = None
    """What it is, coded, where its file says so."""


@dataclass(frozen=True)
class RegionScore:
    """One region as measured, before it is judged: on its worst slice and display."""

    name: str
    lpips: float
    slice: int
    window: str
    pixels: int
    bbox: tuple[int, int, int, int]
    code: Code | None = None


@dataclass(frozen=True)
class MeasureScore:
    """A companion measure as aggregated, and where it is worst; None where undefined.

    An infinite `value` (``psnr_db`` of identical images) is infinite here and None in the record.
    """

    value: float | None
    slice: int | None = None
    window: str | None = None

    @property
    def recorded(self) -> float | None:
        """The value as it stands in a record."""
        return self.value if self.value is not None and math.isfinite(self.value) else None


@dataclass(frozen=True)
class Scores:
    """Everything that was measured, before anything is judged.

    Parameters
    ----------
    windows, slices
        Per display and per slice.
    base_lpips
        The image's distance: slices aggregated, the worst display.
    aggregate
        How the slices were aggregated, such as ``p95``.
    components, annotations
        Connected parts of the pathology masks, and the annotated regions.
    coverage
        Share of the pixels of the touched slices that the masks cover; None without a mask.
    masked_lpips
        Distance of both images multiplied by the mask; None without a mask.
    measures
        Companion measures by name.
    """

    windows: tuple[WindowScore, ...]
    slices: tuple[SliceScore, ...]
    base_lpips: float
    aggregate: str
    components: tuple[RegionScore, ...] = ()
    annotations: tuple[RegionScore, ...] = ()
    coverage: float | None = None
    masked_lpips: float | None = None
    measures: Mapping[str, MeasureScore] = field(default_factory=dict)


class ClinicalSuitability(_Record):
    """What follows for the reader."""

    suitable_for_diagnosis: bool
    """The whole image, the pathology and every annotation are within their limits."""
    suitable_for_screening: bool
    """The whole image is within the screening limit."""
    requires_expert_review: bool
    """Not suitable for diagnosis, but for screening, or too close to tell."""


class Reason(_Record):
    """One thing that the verdict rests on, in words and in numbers."""

    text: str
    """In words."""
    value: float | None = None
    """The distance that was judged."""
    limit: float | None = None
    """The limit that it was held against."""
    place: str | None = Field(None, description="whole image, slice, component or annotation")


@dataclass(frozen=True, eq=False)
class Evidence:
    """A slice to look at; kept beside the assessment for its report, never recorded.

    Parameters
    ----------
    index
        The slice.
    window
        Name of the display.
    reference, candidate
        (rows, columns) float32 in [0, 1], as displayed.
    distance_map
        (rows, columns) float32, at least 0.
    edge_map, texture_map
        (rows, columns) float32: where edges and texture were lost (`medqa.metrics`).
    lpips
        Distance of this slice under this display.
    regions
        (kind, name, (rows, columns) bool) for each region on the slice.
    """

    index: int
    window: str
    reference: NDArray[np.float32]
    candidate: NDArray[np.float32]
    distance_map: NDArray[np.float32]
    edge_map: NDArray[np.float32]
    texture_map: NDArray[np.float32]
    lpips: float
    regions: tuple[tuple[str, str, NDArray[np.bool_]], ...] = ()


class Assessment(_Record):
    """The record of one comparison. Scores are None where the verdict is `not_assessable`."""

    assessment_id: str
    """A UUID: random, or of a batch, made from what was asked."""
    created_at: AwareDatetime
    """When it was judged, in UTC."""
    medqa_version: str
    """Version of medqa that judged."""
    inputs: Inputs
    profile: ProfileRef | None
    metric: MetricRef | None
    limits: tuple[Limit, ...] = ()
    """The profile's limits; empty where no profile was chosen."""
    base_lpips_score: Distance | None = None
    """Distance of the whole image: its slices aggregated, under the worst display."""
    aggregate: str | None = Field(None, description="how the slices make the base score")
    diagnostic_quality: bool | None = None
    """Whether the whole image surely is within the diagnostic limit."""
    screening_quality: bool | None = None
    """Whether the whole image surely is within the screening limit."""
    windows: tuple[WindowScore, ...] = ()
    """The whole image under each display."""
    slices: tuple[SliceScore, ...] = ()
    """Every slice, under the display where it fares worst."""
    pathology_preservation: PathologyScore | None = None
    """The masked pathology; None without a mask."""
    annotation_preservation: tuple[AnnotationScore, ...] = ()
    """Every annotated region."""
    clinical_suitability: ClinicalSuitability
    """What follows for the reader."""
    metrics: Mapping[str, float | None] = Field(
        default_factory=dict,
        description="companion measures, slices aggregated, the worst display; None where "
        "infinite (psnr_db of identical images) or undefined",
    )
    not_measured: Mapping[str, str] = Field(
        default_factory=dict, description="measures that could not run, and why"
    )
    gates: tuple[GateScore, ...] = ()
    """Companion measures that the verdict rests on too."""
    composite: CompositeScore | None = None
    """Several measures as one number; no verdict rests on it."""
    planes: PlanesScore | None = None
    """The three anatomical planes, where they were asked for."""
    verdict: Verdict
    """What the image may be used for."""
    reasons: tuple[Reason, ...]
    """What the verdict rests on, the most damning first."""
    origin: str | None = Field(None, description="who asked: a host, a study, a command")
    correlation_id: str | None = Field(None, description="the host's own id for the request")

    _evidence: tuple[Evidence, ...] = PrivateAttr(default=())
    _failure: NotAssessableError | None = PrivateAttr(default=None)

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """Slices to look at, worst first; empty on an assessment loaded from a store."""
        return self._evidence

    @property
    def failure(self) -> NotAssessableError | None:
        """Why it is not assessable, with the file's path, which is never recorded."""
        return self._failure

    def meets(self, level: Level) -> bool:
        """Whether the verdict allows this use; False when not assessable."""
        suitability = self.clinical_suitability
        return (
            suitability.suitable_for_diagnosis
            if level == "diagnostic"
            else suitability.suitable_for_screening
        )


@dataclass(frozen=True)
class Job:
    """A request for one assessment, from a command or a host. Paths are the caller's own.

    Parameters
    ----------
    reference, candidate
        A DICOM file, a folder holding one DICOM series, or a NIfTI file; as a tuple, the DICOM
        files of one image.
    masks, annotations
        Region files.
    profile
        Name or path of a thresholds profile; None takes the shipped one for the reference and the
        task.
    task
        What was done to the image: ``routine``, ``compression``, ``denoising`` or
        ``super-resolution``.
    require_calibrated
        Refuse a profile whose limits are provisional.
    backbone
        Network to measure with.
    precision, device
        What the network computes in (``float32``, ``bfloat16``, ``float16``), and where: a torch
        device, or ``auto`` for an accelerator where there is one.
    resample
        Bring a candidate on another grid to the reference's, where its geometry is known.
    plane_stride
        Compare a volume in all three anatomical planes, every so many slices; None does not.
    origin, correlation_id
        What asked, and the host's own id for it; both are recorded.
    actor
        Who asked; None takes the user of the operating system.
    supersedes, reason
        Id of the recorded assessment that this one corrects, and why.
    """

    reference: str | tuple[str, ...]
    candidate: str | tuple[str, ...]
    masks: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    profile: str | None = None
    task: Task = "routine"
    require_calibrated: bool = False
    backbone: str = "gray"
    precision: str = "float32"
    device: str = "auto"
    resample: bool = False
    plane_stride: int | None = None
    origin: str | None = None
    correlation_id: str | None = None
    actor: str | None = None
    supersedes: str | None = None
    reason: str | None = None


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the record."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Assessment.model_json_schema(mode="serialization"),
    }
