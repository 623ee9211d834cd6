"""The page of a calibration: one HTML file that needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import jinja2

from medqa import pages
from medqa._version import __version__
from medqa.assessment import MEASURE_WORDS
from medqa.studies.calibration import Calibration
from medqa.studies.intervals import Estimate
from medqa.studies.readers import DISTANCE, ReaderStudy
from medqa.thresholds import Profile

__all__ = ["page", "root_ticks", "templates"]

_BAND = 84  # height of a strip in pixels
_SIDE = 300  # of the ROC in pixels
_APART = 0.08  # least distance of two ticks, as a share of the axis


@dataclass(frozen=True)
class _Dot:
    """One image in a strip: share of the axis, and share of the strip's height."""

    x: float
    y: float


@dataclass(frozen=True)
class _Strips:
    """The values of a measure by label, on one axis on which nothing is cut off.

    The axis of distances, most of which are small, is a square root's.
    """

    low: float
    high: float
    root: bool
    acceptable: tuple[_Dot, ...]
    unacceptable: tuple[_Dot, ...]
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Share of the axis from 0 to 1."""
        share = (value - self.low) / (self.high - self.low)
        return math.sqrt(share) if self.root else share


@dataclass(frozen=True)
class _Reader:
    """One reader: how many images, and how many of them refused."""

    name: str
    judged: int
    refused: int


def page(
    profile: Profile, base: Profile, study: ReaderStudy, calibrations: Sequence[Calibration]
) -> bytes:
    """HTML of the page. It names readers as the table does, and no image and no patient."""
    template = templates().get_template("calibration.html")
    warnings = dict.fromkeys(warning for one in calibrations for warning in one.warnings)
    return template.render(
        profile=profile,
        base=base,
        study=study,
        readers=_reader_rows(study),
        unacceptable=sum(one.unacceptable for one in study.images),
        patients=len({one.patient for one in study.images}),
        measures=[(one, _strips(study, one), _polyline(one)) for one in calibrations],
        warnings=list(warnings),
        others=[
            _measure_words(gate.measure)
            for gate in profile.measures.gates
            if gate.measure not in study.measures
        ],
        medqa_version=__version__,
    ).encode()


def _reader_rows(study: ReaderStudy) -> list[_Reader]:
    rows = []
    for name in study.readers:
        given = [one.judgments[name] for one in study.images if name in one.judgments]
        rows.append(_Reader(name, len(given), sum(not study.accepts(one) for one in given)))
    return rows


def _strips(study: ReaderStudy, calibration: Calibration) -> _Strips:
    values = [one.values[calibration.measure] for one in study.images]
    ends = [*values, calibration.guaranteed.limit, calibration.youden.limit]
    # A distance starts at 0; of another measure only the range that occurs is shown.
    root = calibration.measure == DISTANCE
    low, high = 0.0 if root else min(ends), max(ends)
    axis = _Strips(low, high if high > low else low + 1.0, root, (), (), ())

    def dots(*, unacceptable: bool) -> tuple[_Dot, ...]:
        shown = sorted(
            value
            for value, one in zip(values, study.images, strict=True)
            if one.unacceptable == unacceptable
        )
        return tuple(
            _Dot(axis.place(value), y) for value, y in zip(shown, pages.spread(), strict=False)
        )

    return replace(
        axis,
        acceptable=dots(unacceptable=False),
        unacceptable=dots(unacceptable=True),
        ticks=_ticks(axis),
    )


def _ticks(axis: _Strips) -> tuple[float, ...]:
    if axis.root:
        return root_ticks(axis.high)
    return tuple(axis.low + (axis.high - axis.low) * step / 4 for step in range(5))


def root_ticks(high: float) -> tuple[float, ...]:
    """Round values that stand apart on a square root's axis from 0 to `high`."""
    top = math.floor(math.log10(high))
    chosen = [0.0]
    for value in (float(f"{digit}e{top + power}") for power in (-2, -1, 0) for digit in (1, 2, 5)):
        if value <= high and math.sqrt(value / high) - math.sqrt(chosen[-1] / high) >= _APART:
            chosen.append(value)
    return tuple(chosen)


def _polyline(calibration: Calibration) -> str:
    """Give the points of the ROC in pixels of the drawing."""
    return " ".join(
        f"{_SIDE * refused:.1f},{_SIDE * (1 - caught):.1f}" for refused, caught in calibration.roc
    )


def _measure_words(name: str) -> str:
    return "perceptual distance (LPIPS)" if name == DISTANCE else MEASURE_WORDS[name][0]


def _number(value: float) -> str:
    return f"{value:.6g}"


def _per_cent(share: float) -> str:
    """Whole per cent, but never 0 or 100 of what is not none or all."""
    digits = 0 if 0.01 <= share <= 0.99 or share in (0.0, 1.0) else 1
    return f"{100 * share:.{digits}f} %"


def _in_hundred(share: float) -> str:
    return f"{100 * share:.3g}"


def _title(words: str) -> str:
    return words[:1].upper() + words[1:]


def _estimate(one: Estimate | None, form: str = "share") -> str:
    if one is None:
        return "–"
    words = _per_cent if form == "share" else "{:.2f}".format
    if one.low is None or one.high is None:
        return words(one.value)
    return f"{words(one.value)} ({words(one.low)} to {words(one.high)})"


@cache
def templates() -> jinja2.Environment:
    """Templates of the pages of a calibration, with their helpers."""
    return pages.templates(
        *(_measure_words, _number, _title, _per_cent, _in_hundred, _estimate),
        band=_BAND,
        side=_SIDE,
    )
