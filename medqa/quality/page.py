"""Pages of quality control: one for each image, and one for a group; each needs only itself."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from medqa import pictures
from medqa.files import write_file
from medqa.pages import spread, templates
from medqa.quality.examine import Examination
from medqa.quality.measures import WORDS
from medqa.quality.record import Measured, QualityRecord

__all__ = ["Examined", "value_words", "write_group", "write_page"]

_SIDE = 512  # longest side of the picture, in pixels
_TICKS = 5
_BETTER = {"lower": "lower is better", "higher": "higher is better", "neither": "a change matters"}


@dataclass(frozen=True)
class Examined:
    """An image on the pages.

    Parameters
    ----------
    label
        What to call it: the name of its file.
    record
        Its record.
    page
        Path of its page relative to the group's, with forward slashes.
    """

    label: str
    record: QualityRecord
    page: str


@dataclass(frozen=True)
class _Dot:
    """One value: shares of the axis and of the strip's height, and what it is."""

    x: float
    y: float
    label: str
    words: str
    page: str = ""


@dataclass(frozen=True)
class _Axis:
    """An axis from the smallest to the largest value: nothing is cut off."""

    low: float
    high: float

    @property
    def ticks(self) -> tuple[float, ...]:
        """Round values that stand apart, within the axis."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / (_TICKS - 1)))
        step *= next(k for k in (1, 2, 5, 10) if (self.high - self.low) / (k * step) <= _TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return tuple(k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1))

    def place(self, value: float) -> float:
        """Share of the axis from 0 to 1."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class _Plot:
    """The values of one measure on one axis."""

    measure: Measured
    axis: _Axis
    dots: tuple[_Dot, ...]
    median: float
    missing: int = 0


def write_page(path: Path, label: str, record: QualityRecord, examination: Examination) -> Path:
    """Write the page of one image.

    Parameters
    ----------
    path
        Of the page; its folder is made where it does not exist.
    label
        What to call the image.
    record, examination
        What was recorded, and what it was made of.

    Raises
    ------
    UsageError
        It cannot be written.
    """
    shown = pictures.outlined(pictures.grayscale(examination.shown), examination.areas)
    content = pictures.png(pictures.page_picture(shown, _SIDE))
    page = _page(
        "quality.html",
        label=label,
        record=record,
        picture=f"data:image/png;base64,{base64.b64encode(content).decode()}",
        index=examination.index,
        display=examination.display,
        areas=[name for _, name, _ in examination.areas],
        plots=_slice_plots(record, examination),
    )
    return write_file(path, page)


def write_group(path: Path, images: Sequence[Examined]) -> Path:
    """Write the page of a group: a strip of dots for each measure, each dot a link to its image.

    Images are compared with those of their own study type only.

    Raises
    ------
    UsageError
        It cannot be written.
    """
    types: dict[str, list[Examined]] = {}
    for image in images:
        types.setdefault(image.record.study_type, []).append(image)
    page = _page(
        "quality_group.html",
        count=len(images),
        types=[(name, members, _strips(members)) for name, members in types.items()],
    )
    return write_file(path, page)


def _slice_plots(record: QualityRecord, examination: Examination) -> list[_Plot]:
    """Plot each measure over the slices of a volume; x is the slice."""
    plots = []
    last = max(examination.image.shape[0] - 1, 1)
    for measure in record.measures:
        of_slices = examination.slices.get(measure.name, ())
        values = {i: value for i, value in enumerate(of_slices) if value is not None}
        if len(values) < 2 or measure.value is None:
            continue
        axis = _axis(list(values.values()))
        dots = tuple(
            _Dot(i / last, 1 - axis.place(value), f"slice {i}", value_words(value, measure.unit))
            for i, value in values.items()
        )
        missing = len(of_slices) - len(values)
        plots.append(_Plot(measure, axis, dots, measure.value, missing))
    return plots


def _strips(members: Sequence[Examined]) -> list[_Plot]:
    """Plot each measure over the images of one type; y only keeps the dots apart."""
    found: dict[tuple[str, str], list[tuple[Examined, Measured]]] = {}
    for image in members:
        for measure in image.record.measures:
            found.setdefault((measure.name, measure.unit), []).append((image, measure))
    plots = []
    for pairs in found.values():
        # In order of their values, so that neighbours on the axis stand apart in height.
        defined = [(m.value, image) for image, m in pairs if m.value is not None]
        if not defined:
            continue
        defined.sort(key=lambda pair: pair[0])
        values = [value for value, _ in defined]
        axis, unit = _axis(values), pairs[0][1].unit
        dots = tuple(
            _Dot(axis.place(value), y, image.label, value_words(value, unit), image.page)
            for (value, image), y in zip(defined, spread(), strict=False)
        )
        half = len(values) // 2
        median = (values[half] + values[~half]) / 2
        plots.append(_Plot(pairs[0][1], axis, dots, median, len(pairs) - len(values)))
    return plots


def _axis(values: Sequence[float]) -> _Axis:
    low, high = min(values), max(values)
    room = (high - low) / 20 or abs(high) / 10 or 1.0
    return _Axis(low - room if low < 0 else max(low - room, 0.0), high + room)


def value_words(value: float | None, unit: str) -> str:
    """Four digits and the unit, where there is one."""
    if value is None:
        return "not defined"
    return f"{value:.4g}" + ("" if unit in ("1", "arbitrary") else f" {unit}")


def _unit(unit: str) -> str:
    return {"1": "no unit", "arbitrary": "in the image's values"}.get(unit, f"in {unit}")


def _better(measure: Measured) -> str:
    return _BETTER[measure.better]


def _words(measure: Measured) -> str:
    return WORDS[measure.name]


def _at(share: float) -> str:
    """Give `x` of a drawing, which keeps room at both ends."""
    return f"{2 + 96 * share:.2f}%"


@cache
def _templates() -> jinja2.Environment:
    return templates(value_words, _unit, _better, _words, _at)


def _page(name: str, **values: Any) -> bytes:
    return _templates().get_template(name).render(values).encode()
