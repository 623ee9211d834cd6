"""Guidelines of professional bodies: the highest ratio that each accepts, as cited data files.

The files lie in ``thresholds/guidelines``, one for each body. They disagree, and none is right for
all: `table` shows them side by side, and whoever approves a ratio says which one caps it.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medqa.errors import UsageError

__all__ = [
    "LOSSLESS",
    "Cap",
    "Guideline",
    "GuidelineRatio",
    "cap_for",
    "guidelines",
    "highest_ratio",
    "load",
    "named",
    "row_for",
    "table",
]

#: The ratio of a guideline that accepts no irreversible compression at all.
LOSSLESS = 1.0

CodecName = Literal["j2k", "htj2k", "jpegls", "jpegxl", "jpeg"]
# Of `medqa.compression.codecs`, whose import loads every codec.
_TITLES: dict[CodecName, str] = {
    "j2k": "JPEG 2000",
    "htj2k": "High-Throughput JPEG 2000",
    "jpegls": "JPEG-LS",
    "jpegxl": "JPEG XL",
    "jpeg": "JPEG",
}
Text = Annotated[str, Field(min_length=1)]
CodeString = Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,16}$")]  # DICOM CS, without blanks


class Document(BaseModel):
    """Immutable; no unknown key, no number out of a string, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class GuidelineRatio(Document):
    """One figure of a guideline.

    Parameters
    ----------
    what
        The images in the guideline's words.
    modalities
        DICOM Modality.
    body_parts
        DICOM Body Part Examined; () for all that no other figure of the modality names.
    codecs
        Names of codecs; () where the source does not say which, and then it is taken for every one.
    highest
        Highest ratio accepted; 1 where no irreversible compression is.
    """

    what: Text
    modalities: tuple[CodeString, ...] = Field(min_length=1)
    body_parts: tuple[CodeString, ...] = ()
    codecs: tuple[CodecName, ...] = ()
    highest: float = Field(ge=LOSSLESS)


class Guideline(Document):
    """What a body accepts; a validated file of ``thresholds/guidelines``.

    Parameters
    ----------
    body, year
        Who published it, and when; no year where it is a standing rule.
    title, source, note
        What it is, where it is found, and what to know before it is used.
    ratios
        Its figures.
    """

    schema_version: Literal[1]
    body: Text
    year: int | None = None
    title: Text
    source: Text
    note: Text
    ratios: tuple[GuidelineRatio, ...] = Field(min_length=1)

    @property
    def name(self) -> str:
        """How it is called, such as ``DRG 2008``."""
        return self.body if self.year is None else f"{self.body} {self.year}"


Model = TypeVar("Model", bound=Document)


def guidelines() -> tuple[Guideline, ...]:
    """Return the shipped guidelines, by name."""
    folder = files("medqa_thresholds").joinpath("guidelines")
    found = [load(one) for one in folder.iterdir() if one.name.endswith(".toml")]
    return tuple(sorted(found, key=lambda one: one.name))


def load(path: Traversable) -> Guideline:
    """Load a guideline from a file.

    Raises
    ------
    UsageError
        It cannot be read, or is no valid guideline.
    """
    return parsed(Guideline, path, "the files of thresholds/guidelines show the form")


def named(name: str) -> Guideline:
    """Return a shipped guideline by its name, such as ``DRG 2008``, or its body, such as ``drg``.

    Raises
    ------
    UsageError
        There is none.
    """
    wanted = name.strip().casefold()
    for one in guidelines():
        if wanted in (one.name.casefold(), one.body.casefold()):
            return one
    known = ", ".join(one.name for one in guidelines())
    raise UsageError(name, "is no guideline that medqa knows", f"take one of {known}")


def row_for(
    guideline: Guideline, modality: str, body_part: str | None, codec: str | None
) -> GuidelineRatio | None:
    """Return the figure of a guideline that holds for an image and a codec.

    Parameters
    ----------
    modality
        DICOM Modality.
    body_part
        DICOM Body Part Examined. A figure that names it goes before one for all parts. Where it is
        not known the lowest figure of the modality holds: the image may show any part.
    codec
        Name of the codec; None for the lowest figure of any.

    Returns
    -------
    None where the guideline says nothing on it.
    """
    part = (body_part or "").strip().upper()
    of_kind = [
        row
        for row in guideline.ratios
        if modality.strip().upper() in row.modalities
        and (codec is None or codec in (row.codecs or (codec,)))
    ]
    fitting = [row for row in of_kind if not part or not row.body_parts or part in row.body_parts]
    if part and any(row.body_parts for row in fitting):
        fitting = [row for row in fitting if row.body_parts]
    return min(fitting, key=lambda row: row.highest, default=None)


def highest_ratio(
    guideline: Guideline, modality: str, body_part: str | None, codec: str
) -> float | None:
    """Return the highest ratio that a guideline accepts; None where it says nothing.

    1 means that it accepts no irreversible compression. Parameters as of `row_for`.
    """
    row = row_for(guideline, modality, body_part, codec)
    return None if row is None else row.highest


@dataclass(frozen=True)
class Cap:
    """The ratio that nobody who follows a guideline goes beyond.

    Parameters
    ----------
    highest
        1 where no irreversible compression is accepted.
    note
        What is to be said of it, in words; empty where the guideline names the codec or none.
    """

    highest: float
    note: str = ""


def cap_for(guideline: Guideline, modality: str, body_part: str | None, codec: str) -> Cap | None:
    """Return what caps the ratio of a codec; of one that a guideline does not name, its lowest.

    A guideline that is older than a codec accepts nothing of it. Its figure for the codecs that it
    names is then the most that can be said to be in its spirit.

    Parameters as of `row_for`.

    Returns
    -------
    None where the guideline has no figure at all for such images.
    """
    row = row_for(guideline, modality, body_part, codec)
    if row is not None:
        return Cap(row.highest)
    row = row_for(guideline, modality, body_part, None)
    if row is None:
        return None
    named = " and ".join(_TITLES[name] for name in row.codecs)
    return Cap(row.highest, f"it names {named} only, and the same figure is applied")


def table(
    shown: Sequence[Guideline], modality: str | None = None
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows of all guidelines side by side: modality, body part, a cell for each.

    Parameters
    ----------
    modality
        Only this one.
    """
    kinds = {
        (one, part)
        for guideline in shown
        for row in guideline.ratios
        for one in row.modalities
        for part in (", ".join(row.body_parts),)
    }
    rows = [
        (one, part or "any", *(_cell(guideline, one, part) for guideline in shown))
        for one, part in sorted(kinds)
        if modality is None or one == modality.strip().upper()
    ]
    return ("modality", "body part", *(guideline.name for guideline in shown)), rows


def _cell(guideline: Guideline, modality: str, part: str) -> str:
    """Figures of a guideline for the images of a row, each with the codecs that it is for."""
    rows = [row for row in guideline.ratios if modality in row.modalities]
    exact = [row for row in rows if ", ".join(row.body_parts) == part]
    cells = []
    for row in exact or [row for row in rows if not row.body_parts]:
        figure = "lossless only" if math.isclose(row.highest, LOSSLESS) else f"{row.highest:g}:1"
        codecs = ", ".join(row.codecs) or "codec not given"
        cells.append(figure if row.highest <= LOSSLESS else f"{figure} ({codecs})")
    return "; ".join(cells) or "-"


def parsed(model: type[Model], path: Traversable, mend: str) -> Model:
    """Read a TOML file of the given form.

    Raises
    ------
    UsageError
        It cannot be read, is not TOML, or is not of that form.
    """
    subject = path if isinstance(path, Path) else path.name
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        mend = "check the path and its permissions"
        raise UsageError(subject, f"cannot be read ({error.strerror})", mend) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(subject, f"is not TOML ({error})", "correct the file") from error
    try:
        # By way of JSON, where strict validation takes TOML's arrays for tuples.
        return model.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        wrong = [
            f"{'.'.join(str(part) for part in one['loc']) or 'the file'}: {one['msg'].lower()}"
            for one in error.errors()
        ]
        raise UsageError(subject, ", ".join(wrong), f"correct the file; {mend}") from error
