"""Published reader limits: ratios that guidelines accept or that readers judged, as data files.

A file names guidelines of ``thresholds/guidelines``, whose figures it does not repeat, and findings
of reader studies. Each may anchor a limit of a profile, or only stand beside it as evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from pydantic import Field

from medqa.errors import UsageError
from medqa.studies.guidelines import (
    LOSSLESS,
    CodecName,
    CodeString,
    Document,
    Text,
    named,
    parsed,
    row_for,
)

__all__ = ["Anchor", "ReaderLimit", "limits_for"]

Anchor = Literal["diagnostic", "screening"]


class _FromGuideline(Document):
    """The figure that a guideline has for the images."""

    name: Text
    anchors: Anchor | None = None


class _FromReaders(Document):
    """What readers made of a ratio; () and no codecs where the study does not say."""

    ratio: float = Field(gt=LOSSLESS)
    modalities: tuple[CodeString, ...] = Field(min_length=1)
    body_parts: tuple[CodeString, ...] = ()
    codecs: tuple[CodecName, ...] = ()
    finding: Text
    source: Text
    anchors: Anchor | None = None


class _ReaderLimits(Document):
    schema_version: Literal[1]
    title: Text
    guidelines: tuple[_FromGuideline, ...] = ()
    limits: tuple[_FromReaders, ...] = ()


@dataclass(frozen=True)
class ReaderLimit:
    """A published ratio for one kind of image and codec.

    Parameters
    ----------
    ratio
        How many to 1.
    finding
        What was found or decided at it, in words.
    source
        Who published it.
    anchors
        The limit of a profile that its distance becomes; None where it is evidence only.
    """

    ratio: float
    finding: str
    source: str
    anchors: Anchor | None


def limits_for(
    path: Path | None, modality: str, body_part: str | None, codec: str
) -> tuple[ReaderLimit, ...]:
    """Return what a file of reader limits says of one kind of image, by ascending ratio.

    Parameters
    ----------
    path
        The file; None takes the shipped one.
    modality, body_part
        DICOM Modality and Body Part Examined. Of a part that is not known no study of certain
        parts counts, and of a guideline the lowest figure of the modality.
    codec
        Name of the codec.

    Raises
    ------
    UsageError
        The file cannot be read, is no valid file of limits, has nothing for these images, no
        single limit that anchors *diagnostic*, or one that accepts no compression.
    """
    file: Traversable = path or files("medqa_thresholds").joinpath("readers", "published.toml")
    document = parsed(_ReaderLimits, file, "thresholds/readers/published.toml shows the form")
    subject = path or file.name
    found = []
    for guideline in document.guidelines:
        published = named(guideline.name)
        row = row_for(published, modality, body_part, codec)
        if row is None:
            continue
        if row.highest <= LOSSLESS:
            raise UsageError(
                subject,
                f"{published.name} accepts no irreversible compression of {row.what}",
                "keep these images lossless, or name limits of your own",
            )
        found.append(ReaderLimit(row.highest, "accepted", published.name, guideline.anchors))
    part = (body_part or "").strip().upper()
    found += [
        ReaderLimit(one.ratio, one.finding, one.source, one.anchors)
        for one in document.limits
        if modality in one.modalities
        and (not one.body_parts or part in one.body_parts)
        and codec in (one.codecs or (codec,))
    ]
    _check(found, subject, f"{codec} on {modality}{f' of {part}' if part else ''}")
    return tuple(sorted(found, key=lambda one: (one.ratio, one.source)))


def _check(found: list[ReaderLimit], subject: object, what: str) -> None:
    for level, least in (("diagnostic", 1), ("screening", 0)):
        count = sum(one.anchors == level for one in found)
        if not least <= count <= 1:
            raise UsageError(
                subject,
                f"{count or 'no'} limit{'s' * (count > 1)} for {what} anchor"
                f"{'s' * (count < 2)} {level}",
                'give one of them anchors = "' + level + '"',
            )
