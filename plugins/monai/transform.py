"""`AssessQualityd`: judge images inside a MONAI pipeline."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

import medqa
from medqa.assessment import Assessment
from medqa.errors import NotAssessableError, PixelError
from medqa.image import Image
from medqa.pipeline import refuse
from medqa.thresholds import Profile, Windows, load

from .tensors import image, image_like, mask_like

__all__ = ["AssessQualityd"]

# What spans less of a window than this is all one grey in it, and so is any candidate of it.
_LEAST_OF_A_WINDOW = 0.05


class AssessQualityd(MapTransform):  # type: ignore[misc]  # MONAI ships no types
    """Judge images against a reference, all in one dictionary, as `medqa.assess` does.

    For each key it adds, after the key: ``_assessment``, the record as JSON (which survives
    batches and worker processes; `medqa.Assessment.model_validate_json` reads it), ``_verdict``,
    and ``_score``, the LPIPS distance (0 is identical; NaN where not assessable). An image that
    cannot be judged is ``not_assessable``, with the reason in the record; it raises nothing.

    Images are (1, X, Y) or (1, X, Y, Z) in modality values, such as HU: as MONAI's readers give
    them, **before** they are scaled for a network, or scaled back. With the affine of a MetaTensor
    they are turned as `medqa.read` turns a NIfTI file; without, X are columns, Y rows and Z slices.
    A candidate or mask that is no MetaTensor lies on the reference's grid.

    Parameters
    ----------
    keys
        Of the candidates.
    reference_key
        Of what they are compared with.
    profile
        Thresholds: a shipped name, the path of a ``.toml`` file, or a loaded profile.
    mask_key
        Of the pathology, not zero inside, on the reference's grid.
    backbone
        Name of the network, or a network to use again. It is loaded once.
    allow_missing_keys
        Whether a candidate may be missing.

    Raises
    ------
    UsageError
        The profile or the weights cannot be used.
    """

    def __init__(
        self,
        keys: KeysCollection,
        reference_key: Hashable,
        *,
        profile: str | Profile,
        mask_key: Hashable | None = None,
        backbone: str | medqa.GrayLPIPS = "gray",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key = reference_key
        self.mask_key = mask_key
        self.profile = load(profile) if isinstance(profile, str) else profile
        self.network = medqa.GrayLPIPS(backbone) if isinstance(backbone, str) else backbone

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with assessments, verdicts and scores added."""
        found = dict(data)
        mask = None if self.mask_key is None else data[self.mask_key]
        for key in self.key_iterator(found):
            assessment = self._assess(data[self.reference_key], data[key], mask)
            score = assessment.base_lpips_score
            found[f"{key}_assessment"] = assessment.model_dump_json()
            found[f"{key}_verdict"] = assessment.verdict
            found[f"{key}_score"] = float("nan") if score is None else score
        return found

    def _assess(self, reference: Any, candidate: Any, mask: Any) -> Assessment:
        one = other = None
        try:
            one = image(reference, "reference")
            _check_scale(one, self.profile)
            other = image_like(candidate, "candidate", reference)
            masks = () if mask is None else (mask_like(mask, reference, one),)
        except NotAssessableError as error:
            return refuse(self.profile, self.network, error, one, other)
        return medqa.assess(one, other, mask=masks, profile=self.profile, backbone=self.network)


def _check_scale(reference: Image, profile: Profile) -> None:
    """Refuse an image that was scaled, as for a network, where a profile's windows have a unit."""
    if not isinstance(profile.normalise, Windows):
        return
    span = reference.survey.maximum - reference.survey.minimum
    width, unit = min(one.width for one in profile.normalise.windows), profile.normalise.unit
    if 0 < span < _LEAST_OF_A_WINDOW * width:
        reason = f"spans {span:.3g} of a window that is {width:g} {unit} wide, as what is scaled "
        reason += "for a network does"
        raise PixelError(reference.source, reason, f"scale it back to {unit}")
