"""Repetition: whether a recorded assessment comes out again from its inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medqa.assessment import Assessment, ImageInput
from medqa.errors import StoreError, UsageError
from medqa.image import Image
from medqa.lpips import GrayLPIPS, choose_device
from medqa.pipeline import assess
from medqa.reader import read, source_digest
from medqa.thresholds import load

__all__ = ["ABSOLUTE_TOLERANCE", "RELATIVE_TOLERANCE", "Repetition", "rerun"]

#: How far a number may lie from the recorded one on another machine, where sums are taken in
#: another order: ten times what batches, tiles and kept features differ by (docs/performance.md).
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-6

#: Who and when, not what; without the record's key, the pseudonyms cannot be made again.
_VOLATILE = {
    "assessment_id",
    "created_at",
    "medqa_version",
    "origin",
    "correlation_id",
    "file_sha256",
    "device_hmac",
    "patient_hmac",
    "study_hmac",
    "series_hmac",
    "instance_hmac",
    "device",
}
#: Which of two equally bad slices is named, and how numbers are worded, may tip with the last bit.
_TIPS = {"slice", "window", "text"}


@dataclass(frozen=True)
class Repetition:
    """What came out.

    Parameters
    ----------
    exact
        Every score, verdict and reason is the same, bit for bit.
    reproduces
        Exact, or within the tolerances with the same verdict.
    differences
        The fields that are not the same: recorded and new value, the tolerated ones too.
    again
        The new assessment; it is not recorded.
    """

    exact: bool
    reproduces: bool
    differences: tuple[str, ...]
    again: Assessment


def rerun(
    recorded: Assessment,
    reference: str,
    candidate: str,
    *,
    masks: Sequence[str] = (),
    annotations: Sequence[str] = (),
    profile: str | None = None,
    backbone: str | None = None,
    weights: Path | None = None,
    device: str = "auto",
    resample: bool = False,
) -> Repetition:
    """Repeat a recorded assessment from its inputs, and compare.

    A record holds digests and no paths, so the files are named anew; they must be the same.

    Parameters
    ----------
    reference, candidate, masks, annotations
        The files of then; images may lie in other files, if the pixels are the same.
    profile
        Name or file of the profile of then; None takes the shipped one of the recorded name.
    backbone
        File of the adapted weights of then; None takes the network that the record names.
    weights
        Folder of the official networks' weights.
    device
        Where the network runs.
    resample
        Whether the candidate was brought to the reference's grid, which no record says.

    Raises
    ------
    UsageError
        The inputs, the profile or the network are not those of then: nothing was repeated.
    ReadError
        A file cannot be read.
    """
    if recorded.profile is None or recorded.metric is None:
        raise _other(recorded, "it was refused before anything could be measured", "repeat another")
    thresholds = load(profile or recorded.profile.name)
    if thresholds.ref.sha256 != recorded.profile.sha256:
        raise _other(
            recorded,
            f"profile {recorded.profile.name} {recorded.profile.version} was another file",
            "name the file of then with --profile",
        )
    network = GrayLPIPS(
        backbone or recorded.metric.backbone,
        weights,
        precision=recorded.metric.precision,
        device=choose_device(device),
    )
    if network.weights.sha256 != recorded.metric.weights_sha256:
        raise _other(recorded, "the network had other weights", "install that version of medqa")
    first = _same(recorded, read(reference), recorded.inputs.reference, "reference")
    second = _same(recorded, read(candidate), recorded.inputs.candidate, "candidate")
    _check_regions(recorded, masks, annotations)
    again = assess(
        first,
        second,
        mask=masks,
        annotations=annotations,
        profile=thresholds,
        backbone=network,
        resample=resample,
        plane_stride=None if recorded.planes is None else recorded.planes.stride,
    )
    return _compare(recorded, again)


def _other(recorded: Assessment, reason: str, mend: str) -> UsageError:
    return StoreError(recorded.assessment_id, reason, mend)


def _same(recorded: Assessment, image: Image, then: ImageInput | None, name: str) -> Image:
    if then is None:
        raise _other(recorded, f"its {name} could not be read then", "repeat another")
    if image.pixels_sha256 != then.pixels_sha256:
        raise _other(recorded, f"its {name} had other pixels than this file", "name that of then")
    return image


def _check_regions(recorded: Assessment, masks: Sequence[str], annotations: Sequence[str]) -> None:
    for kind, files in (("pathology", masks), ("annotation", annotations)):
        then = [one.file_sha256 for one in recorded.inputs.regions if one.kind == kind]
        if then != [source_digest(file) for file in files]:
            raise _other(
                recorded,
                f"it was made with {len(then)} file(s) of kind {kind}, and these are not they",
                "name those of then, in the same order",
            )


def _compare(recorded: Assessment, again: Assessment) -> Repetition:
    old, new = recorded.model_dump(mode="json"), again.model_dump(mode="json")
    found = list(_differences("", old, new))
    return Repetition(
        exact=not found,
        reproduces=all(tolerated for tolerated, _ in found),
        differences=tuple(words for _, words in found),
        again=again,
    )


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[bool, str]]:
    """Yield every leaf that differs: whether that is tolerated, and in words."""
    name = path.rpartition(".")[2]
    if name in _VOLATILE or old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            yield from _differences(f"{path}.{key}".lstrip("."), old[key], new[key])
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(f"{path}[{number}]", one, other)
    else:
        numbers = isinstance(old, float) and isinstance(new, float)
        tolerated = name in _TIPS or (
            numbers
            and math.isclose(old, new, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
        )
        yield tolerated, f"{path}: {old} recorded, {new} now"
