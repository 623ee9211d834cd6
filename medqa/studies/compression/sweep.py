"""Every image with every codec at every ratio: compressed for real, decoded, scored and judged.

An image is the unit of work. Its rows are written whole or not at all, as soon as it is done, so
that a killed run loses the images under way and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqa.assessment import MetricRef, Scores
from medqa.compression.codecs import (
    CODECS,
    Encoded,
    at_ratios,
    check,
    encode,
    ratio_allocated,
    ratio_stored,
)
from medqa.errors import MedqaError
from medqa.image import Image, Region
from medqa.lpips import SMALLEST_SIDE, GrayLPIPS
from medqa.pipeline import metric_ref
from medqa.regions import read_annotations, read_mask
from medqa.scoring import score_candidates
from medqa.studies.compression.lesions import Answers, answers_of
from medqa.studies.compression.planning import Planned, Settings
from medqa.studies.compression.rows import Row
from medqa.studies.compression.stored import StoredImage, read_stored
from medqa.thresholds import Profile, check_backbone, check_modality, choose, load
from medqa.transforms import check_pixels, displays
from medqa.verdict import judge

__all__ = [
    "COMPANIONS",
    "Compressed",
    "Swept",
    "compressed",
    "kind_of",
    "profile_of",
    "regions_of",
    "sweep_image",
]


#: Measured of every image, whatever the profile asks for: everybody knows them.
COMPANIONS = ("psnr_db", "ssim")


@dataclass(frozen=True)
class Swept:
    """What became of an image.

    Parameters
    ----------
    rows
        A single one where the image could not be used.
    metric
        What the distances were measured with; None where none were.
    seconds
        Spent on ``codecs``, on ``scores`` and on ``lesions``.
    answers
        Of the observer who looks for lesions, where one does; not of an image that was read again.
    unseen
        Why he does not, or not with every codec.
    """

    rows: tuple[Row, ...]
    metric: MetricRef | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    answers: Answers = field(default_factory=dict)
    unseen: str | None = None


class _Encoder:
    """One codec on one image: each slice at every ratio in turn, with what it took."""

    def __init__(self, image: StoredImage, codec: str, ratios: Sequence[float]) -> None:
        self._image, self._codec = image, CODECS[codec]
        self._ratios = list(ratios)
        self._index = -1
        self._coming: Iterator[Encoded] = iter(())
        self.name = codec
        self.bytes: dict[float | None, int] = dict.fromkeys((None, *ratios), 0)
        self.failed: dict[float, str] = {}
        self.lossless: str | None = None  # why there is no lossless stream
        self.seconds = 0.0

    def check(self) -> None:
        """Raise PixelError where the codec cannot hold the image."""
        check(self._codec, self._image.samples, self._image.image.source)

    def shown(self, index: int, ratio: float) -> NDArray[Any]:
        """(rows, columns) modality values of a slice at a ratio; ratios in order.

        Those of the reference, which cost nothing, where the ratio has failed.
        """
        started = time.perf_counter()
        if index != self._index:
            self._begin(index)
        values = self._image.stored(index)
        if ratio not in self.failed:
            try:
                encoded = next(self._coming)
            except MedqaError as error:
                self._give_up(ratio, error.reason)
            except Exception as error:  # whatever a library in C makes of an odd image
                self._give_up(ratio, f"the codec failed ({type(error).__name__})")
            else:
                self.bytes[ratio] += len(encoded.data)
                values = encoded.pixels
        self.seconds += time.perf_counter() - started
        return self._image.shown(index, values)

    def _begin(self, index: int) -> None:
        """Compress a slice without loss, which a ratio of 1 comes down to."""
        self._index = index
        frame, samples = self._image.stored(index), self._image.samples
        left = [ratio for ratio in self._ratios if ratio not in self.failed]
        self._coming = iter(at_ratios(self._codec, frame, samples, (1.0, *left)))
        try:
            first = next(self._coming)
            if first.setting is not None:  # noise, which no lossless stream makes smaller
                first = encode(self._codec, frame, samples, None)
        except MedqaError as error:
            self.lossless = error.reason
        except Exception as error:
            self.lossless = f"the codec failed ({type(error).__name__})"
        else:
            self.bytes[None] += len(first.data)
            if not np.array_equal(first.pixels, frame):
                self.lossless = "the lossless stream does not give the values back"

    def _give_up(self, ratio: float, reason: str) -> None:
        """Nothing higher can be reached either."""
        self.failed |= {one: reason for one in self._ratios if one >= ratio}


@dataclass(frozen=True)
class Compressed:
    """A candidate as `score_candidates` takes it."""

    encoder: _Encoder
    ratio: float
    slices: int

    def __getitem__(self, batch: slice, /) -> NDArray[Any]:
        """(n, rows, columns) modality values."""
        indices = range(self.slices)[batch]
        return np.stack([self.encoder.shown(index, self.ratio) for index in indices])


def compressed(image: StoredImage, codec: str, ratio: float) -> Compressed:
    """Return an image as one codec makes it at one ratio; each slice when it is asked for."""
    return Compressed(_Encoder(image, codec, (ratio,)), ratio, image.image.shape[0])


def sweep_image(one: Planned, settings: Settings, network: GrayLPIPS) -> Swept:
    """Compress an image in every way, and judge each; never raises for what is in the image."""
    try:
        stored = read_stored([Path(path) for path in one.paths])
        modality, body_part = kind_of(stored.image, settings)
        profile = profile_of(settings, stored.image)
        found = _Found(one, stored, modality or _only(profile.modalities), body_part, profile.name)
        if found.modality is None:
            return Swept((_refused(one, "its header names no modality"),))
        return _swept(found, profile, settings, network)
    except MedqaError as error:
        return Swept((_refused(one, error.reason),))
    except MemoryError:
        return Swept((_refused(one, "there is not enough memory for it"),))
    except Exception as error:  # one bad image never ends the run
        return Swept((_refused(one, f"could not be worked on ({type(error).__name__})"),))


@dataclass(frozen=True)
class _Found:
    """What all rows of an image have in common."""

    planned: Planned
    stored: StoredImage
    modality: str | None
    body_part: str | None
    profile: str

    def row(self, **values: Any) -> Row:
        samples = self.stored.samples
        return Row(
            image=self.planned.number,
            source=self.planned.source,
            modality=self.modality,
            body_part=self.body_part,
            device=self.stored.device,
            profile=self.profile,
            bits_stored=samples.bits_stored,
            bits_allocated=samples.bits_allocated,
            **values,
        )

    def ratios(self, nbytes: int) -> dict[str, float]:
        shape, samples = self.stored.image.shape, self.stored.samples
        return {
            "measured": ratio_stored(shape, samples, nbytes),
            "measured_allocated": ratio_allocated(shape, samples, nbytes),
        }


def kind_of(image: Image, settings: Settings) -> tuple[str | None, str | None]:
    """Modality and body part of an image."""
    part = (image.body_part or settings.body_part or "").strip().upper()
    return image.modality, part or None


def profile_of(settings: Settings, image: Image) -> Profile:
    """Thresholds for an image; raises ProfileError where they are not for its modality."""
    if settings.profile is None:
        return choose(image.modality, "compression", kind_of(image, settings)[1])
    profile = load(settings.profile)
    check_modality(profile, image.modality)
    return profile


def _only(modalities: Sequence[str]) -> str | None:
    return modalities[0] if len(modalities) == 1 else None


def regions_of(one: Planned, image: Image) -> list[Region]:
    """Pathologies and annotations of an image; raises RegionError."""
    found = [region for path in one.masks for region in read_mask(path, image)]
    found += [region for path in one.annotations for region in read_annotations(path, image)]
    return found


def _refused(one: Planned, reason: str) -> Row:
    return Row(one.number, one.source, "not_assessable", good=False, reason=reason)


def _swept(found: _Found, profile: Profile, settings: Settings, network: GrayLPIPS) -> Swept:
    image, weights = found.stored.image, network.weights
    check_backbone(profile, weights.backbone, weights.version, weights.relative_error)
    check_pixels(image, SMALLEST_SIDE)
    regions = regions_of(found.planned, image)
    encoders, rows = [], []
    for name in settings.codecs:
        encoder = _Encoder(found.stored, name, settings.ratios)
        try:
            encoder.check()
            encoders.append(encoder)
        except MedqaError as error:
            rows += [_unmade(found, name, ratio, error.reason) for ratio in settings.ratios]
    started = time.perf_counter()
    candidates = [
        Compressed(encoder, ratio, image.shape[0])
        for encoder in encoders
        for ratio in settings.ratios
    ]
    scored = score_candidates(
        network,
        image,
        candidates,
        displays(profile, image),
        regions,
        measures=_measures(profile),
        aggregate=profile.aggregate.slices,
    )
    whole = time.perf_counter() - started
    metric = metric_ref(profile, network)
    rows += [_anchor(found, encoder) for encoder in encoders]
    for candidate, scores in zip(candidates, scored, strict=True):
        encoder, ratio = candidate.encoder, candidate.ratio
        if reason := encoder.failed.get(ratio):
            rows.append(_unmade(found, encoder.name, ratio, reason))
        else:
            rows.append(_judged(found, encoder, ratio, scores, profile, metric))
    order = {name: number for number, name in enumerate(settings.codecs)}
    rows.sort(key=lambda row: (order[row.codec or ""], row.ratio or 0.0))
    codecs = sum(encoder.seconds for encoder in encoders)
    seconds = {"codecs": codecs, "scores": whole - codecs}
    if settings.lesion is None:
        return Swept(tuple(rows), metric, seconds)
    started = time.perf_counter()
    reached = {
        one.name: [ratio for ratio in settings.ratios if ratio not in one.failed]
        for one in encoders
    }
    answers, unseen = answers_of(found.stored, reached, settings.lesion)
    seconds["lesions"] = time.perf_counter() - started
    return Swept(tuple(rows), metric, seconds, answers, unseen)


def _measures(profile: Profile) -> list[str]:
    """Companion measures: the two that everybody knows, and those that decide."""
    return list(dict.fromkeys((*COMPANIONS, *(gate.measure for gate in profile.measures.gates))))


def _unmade(found: _Found, codec: str, ratio: float | None, reason: str) -> Row:
    """Row of an image that a codec cannot bring to a ratio, which is no success of the codec."""
    return found.row(codec=codec, ratio=ratio, verdict="not_assessable", good=False, reason=reason)


def _anchor(found: _Found, encoder: _Encoder) -> Row:
    """Row of the lossless stream, which was checked to give every value back."""
    if encoder.lossless is not None:
        return _unmade(found, encoder.name, None, encoder.lossless)
    return found.row(
        codec=encoder.name,
        distance=0.0,
        verdict="diagnostic",
        good=True,
        reason="lossless: every value is the same",
        **found.ratios(encoder.bytes[None]),
    )


def _judged(
    found: _Found,
    encoder: _Encoder,
    ratio: float,
    scores: Scores,
    profile: Profile,
    metric: MetricRef,
) -> Row:
    judgement = judge(scores, profile, metric.relative_error, metric.region_relative_error)
    worst = max(scores.slices, key=lambda one: one.lpips)
    regions = [one.lpips for one in (*scores.components, *scores.annotations)]
    preserved = [one.preserved for one in judgement.annotations]
    if judgement.pathology is not None:
        preserved.append(judgement.pathology.pathology_preserved)
    return found.row(
        codec=encoder.name,
        ratio=ratio,
        verdict=judgement.verdict,
        good=judgement.verdict == "diagnostic",
        reason=judgement.reasons[0].text,
        distance=scores.base_lpips,
        slice=worst.index,
        window=worst.window,
        region_distance=max(regions, default=None),
        regions_preserved=all(preserved) if preserved else None,
        measures={name: one.recorded for name, one in scores.measures.items()},
        **found.ratios(encoder.bytes[ratio]),
    )
