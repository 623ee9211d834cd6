"""The approval of a codec: what a study found, up to which ratio, for which images, until when."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from medqa.assessment import MetricRef, ProfileRef

__all__ = ["Approval", "GuidelineRef", "RatioEvidence", "Scope", "Share", "Status"]

Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class _Record(BaseModel):
    """Immutable, and nothing in it that the schema does not name."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Scope(_Record):
    """The images that an approval speaks of."""

    modality: str
    """DICOM Modality, such as `CT`."""
    body_part: str | None
    """DICOM Body Part Examined; None for any."""
    devices: tuple[str, ...]
    """Manufacturer and model of the studied images; empty for any."""


class Share(_Record):
    """How many of the images stayed good, with the lower bound of a one-sided interval."""

    good: int = Field(ge=0)
    """Images that are still diagnostic, with every pathology and annotation preserved."""
    images: int = Field(gt=0)
    """Images that were compressed at this ratio."""
    lower: Probability
    """Lower confidence bound of the share (Clopper and Pearson)."""


class RatioEvidence(_Record):
    """What a ratio did to the images of the study."""

    ratio: Positive
    """Target ratio, by the bits stored."""
    measured: Positive
    """Median of the ratios that were reached."""
    share: Share
    median_distance: float = Field(ge=0.0)
    """Median of the images' LPIPS."""
    worst_distance: float = Field(ge=0.0)
    """Largest of the images' LPIPS."""
    auc_loss: float | None = None
    """Upper confidence bound of the detectability lost (AUC before less AUC after); None where it
    was not measured."""


class GuidelineRef(_Record):
    """The guideline that caps a ratio."""

    body: str
    """Who published it, such as `DRG 2008`."""
    highest_ratio: Positive
    """The highest ratio that it accepts for this modality and body part."""
    source: str
    """Where it is found."""


class Approval(_Record):
    """One codec for one kind of image. A draft until somebody signs it."""

    approval_id: str
    """A random UUID."""
    created_at: AwareDatetime
    """When the study was judged, in UTC."""
    medqa_version: str
    """Version of medqa that judged."""
    scope: Scope
    codec: str
    """Name of the codec: `j2k`, `htj2k`, `jpegls`, `jpegxl` or `jpeg`."""
    codec_version: str
    """Library and version that encoded, such as `OpenJPEG 2.5.4`."""
    highest_ratio: Positive
    """The highest ratio approved, by the bits stored."""
    profile: ProfileRef
    """The thresholds that the images were judged by."""
    metric: MetricRef
    """The network that the distances were measured with."""
    required_share: Probability
    """Share of images that must stay good."""
    confidence: Probability
    """Confidence of the share's lower bound."""
    highest_auc_loss: float | None
    """Detectability that may be lost at most; None where it does not gate."""
    lesion: str | None = None
    """The lesion whose detectability was measured, in words; None where none was."""
    evidence: tuple[RatioEvidence, ...]
    """Every ratio that was studied, ascending."""
    guideline: GuidelineRef | None
    """What caps the ratio beside the study; None where the guideline has no figure."""
    overridden: str | None = None
    """What was overridden by name and by whom, such as the rule that mammograms stay lossless."""
    study_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the study's table of results."""
    expires_on: datetime.date
    """The day after which nothing may be compressed under it."""
    voided_by: tuple[str, ...]
    """What ends it before that day, in words."""


#: What a draft became: see `medqa.compression.approvals`.
Status = Literal["draft", "approved", "rejected", "expired"]
