"""The report of an assessment: JSON, an HTML page that needs nothing but itself, and pictures.

Nothing is computed anew: values, limits and what passed are printed as they were recorded.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from pydicom.config import IGNORE
from pydicom.uid import UID

from medqa import pictures
from medqa.assessment import (
    MEASURE_WORDS,
    VERDICT_WORDS,
    Assessment,
    CompositeScore,
    Evidence,
    GateScore,
    ImageInput,
    Limit,
)
from medqa.files import write_file
from medqa.pages import templates

__all__ = [
    "IndexRow",
    "Thumbs",
    "index",
    "number",
    "prepare_folder",
    "scale_top",
    "thumbs",
    "write",
]

# What a composite has beside the companion measures.
_COMPOSITE_WORDS = {"lpips": "perceptual distance", "fid": "distance of the two sets of images"}
_AGGREGATES = {"p95": "95th percentile", "max": "worst", "mean": "mean"}
# What stands beside the distance wherever it was measured, whether it decides or not.
_KEPT = {
    "edge_fidelity": "fine detail at the edges; 1 is all of it, higher is better",
    "texture_fidelity": "place and strength of the fine texture; 1 is all of it, higher is better",
}
# Longest side of a picture on the page, in pixels: as displayed, and drawn over in colour, which
# a PNG holds less well. The files beside the page have every pixel.
_PAGE_SIDES = {"reference": 512, "candidate": 512, "distance": 384, "edges": 384, "texture": 384}
_THUMB_SIDES = {"reference": 352, "candidate": 352, "distance": 352}


@dataclass(frozen=True)
class Thumbs:
    """The worst slice in small pictures.

    Parameters
    ----------
    pictures
        Reference, candidate and distance map, each as a ``data:`` URI.
    aspect
        Width to height, for CSS.
    slice
        Index of the slice.
    """

    pictures: Mapping[str, str]
    aspect: str
    slice: int


@dataclass(frozen=True)
class IndexRow:
    """One assessment on an index page.

    Parameters
    ----------
    label
        What was compared, such as ``JPEG 2000, 8:1``.
    group
        What the rows of a block have in common, such as the source image.
    assessment
        The assessment, with its evidence where it is at hand.
    report
        Path of its report, relative to the index page, with forward slashes.
    small
        Its pictures, where they were made before; else they are made of the evidence.
    """

    label: str
    group: str
    assessment: Assessment
    report: str
    small: Thumbs | None = None


@dataclass(frozen=True)
class _Judged:
    """A recorded value and the limits it was held against, each with what was recorded of it."""

    what: str
    detail: str
    value: float | None
    limits: tuple[tuple[Limit, bool], ...] = ()
    unit: str = "LPIPS"
    meaning: str = ""

    @property
    def words(self) -> str:
        """The value with its unit; what is infinite meets every limit, what is undefined none."""
        if self.value is None:
            met = [passed for _, passed in self.limits]
            return "identical" if met and all(met) else "not defined here"
        beside = [limit.value for limit, _ in self.limits]
        if self.unit:
            return f"{number(self.value, beside)} {self.unit}"
        return number(self.value, [*beside, 1.0])  # 1 is said of what is all there only


def write(assessment: Assessment, folder: Path) -> Path:
    """Write ``assessment.json``, ``report.html`` and one PNG per picture into a folder.

    The JSON is the record itself. The page shows the evidence where the assessment still has it.
    Each slice of the evidence makes five PNGs in the image's own pixels, such as
    ``slice-012-soft-tissue-candidate.png``.

    Parameters
    ----------
    assessment
        The assessment; with its evidence straight after `pipeline.assess`, without from a store.
    folder
        Made where it does not exist. Files of the same names are replaced, each as a whole.

    Returns
    -------
    Path of ``report.html``.

    Raises
    ------
    UsageError
        The folder or a file in it cannot be written.
    """
    # Everything is made before anything is written, so that an error leaves no half report.
    top = scale_top(assessment.limits)
    files = {"assessment.json": f"{assessment.model_dump_json(indent=2)}\n".encode()}
    shown = []
    for stem, evidence in zip(_stems(assessment.evidence), assessment.evidence, strict=True):
        views = pictures.views(evidence, top)
        files |= {f"{stem}-{view}.png": pictures.png(one) for view, one in views.items()}
        shown.append((stem, evidence, _data_uris(views, _PAGE_SIDES)))
    files["report.html"] = _page(
        "report.html",
        assessment=assessment,
        judged=_judged(assessment),
        shown=shown,
        colour_top=top,
        colour_bar=_data_uri(
            pictures.overlay(np.full((1, 256), 0.5), np.linspace(0, 1, 256)[None], 1.0), 512
        ),
    )
    for name, content in files.items():
        write_file(folder / name, content)
    return folder / "report.html"


def prepare_folder(folder: Path) -> None:
    """Make a folder for reports and prove that it can be written, before hours of work.

    Raises
    ------
    UsageError
        It cannot be made or written.
    """
    write_file(folder / ".writable", b"").unlink()


def thumbs(assessment: Assessment) -> Thumbs | None:
    """Return small pictures of the worst slice; None where there is no evidence."""
    if not assessment.evidence:
        return None
    worst = assessment.evidence[0]
    views = pictures.views(worst, scale_top(assessment.limits))
    aspect = _aspect(worst, assessment.inputs.reference)
    return Thumbs(_data_uris(views, _THUMB_SIDES), aspect, worst.index)


def index(rows: Sequence[IndexRow], path: Path, *, title: str = "", introduction: str = "") -> Path:
    """Write an index page over many assessments: pictures, verdict, distances, link.

    Parameters
    ----------
    rows
        In the order to show; rows of one group stand together, where its first one is. A group's
        reference is shown once, as the first of its rows with pictures has it.
    path
        The page; its folder is made where it does not exist.
    title
        Heading; the number of comparisons where empty.
    introduction
        What the page shows and why, in a paragraph.

    Returns
    -------
    `path`.

    Raises
    ------
    UsageError
        The page cannot be written.
    """
    groups: dict[str, list[tuple[IndexRow, Thumbs | None]]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append((row, row.small or thumbs(row.assessment)))
    counts = {
        verdict: sum(row.assessment.verdict == verdict for row in rows) for verdict in VERDICT_WORDS
    }
    title = title or f"Image quality of {len(rows)} comparisons"
    page = _page(
        "index.html",
        rows=rows,
        groups=groups,
        counts=counts,
        title=title,
        introduction=introduction,
    )
    return write_file(path, page)


def _whole_image(assessment: Assessment) -> list[_Judged]:
    """Rows of the image as a whole: its distance, edges and texture kept, and other gates."""
    a = assessment
    if a.base_lpips_score is None:
        return []
    many = f"{_AGGREGATES.get(a.aggregate or '', a.aggregate)} of {len(a.slices)} slices, "
    quality = {"diagnostic": a.diagnostic_quality, "screening": a.screening_quality}
    distance = _Judged(
        "Perceptual distance",
        f"whole image, {many if len(a.slices) > 1 else ''}worst display",
        a.base_lpips_score,
        _against(a, quality),
        meaning="how different the two look; 0 is identical, lower is better",
    )
    gates = {gate.measure for gate in a.gates}
    beside = [name for name in _KEPT if name in a.metrics and name not in gates]
    kept = [_gate_row(a, gate) for gate in a.gates] + [
        _Judged(_measure_words(name)[0], "", a.metrics[name], unit="", meaning=_KEPT[name])
        for name in beside
    ]
    return [distance, *kept]


def _gate_row(assessment: Assessment, gate: GateScore) -> _Judged:
    words, better = _measure_words(gate.measure)
    where = "whole image"
    if gate.window is not None:
        slices = len(assessment.slices) > 1 and gate.slice is not None
        where += f", worst on {f'slice {gate.slice}, ' if slices else ''}{gate.window}"
    return _Judged(
        words,
        where,
        gate.value,
        _against(
            assessment,
            {
                f"{gate.measure} diagnostic": gate.diagnostic,
                f"{gate.measure} screening": gate.screening,
            },
        ),
        unit="",
        meaning=_KEPT.get(gate.measure, f"{better} is better"),
    )


def _judged(assessment: Assessment) -> list[_Judged]:
    """Every recorded value that is, or may be, held against a limit."""
    judged = _whole_image(assessment)
    # A reason that names a slice says that it is not surely within the screening limit.
    judged.extend(
        _Judged(
            "Worst slice", str(one.place), one.value, _against(assessment, {"screening": False})
        )
        for one in assessment.reasons
        if one.value is not None and re.fullmatch(r"slice \d+", one.place or "")
    )
    if pathology := assessment.pathology_preservation:
        judged.append(
            _Judged(
                "Pathology",
                "the worst of its connected parts",
                pathology.pathology_lpips,
                _against(assessment, {"pathology": pathology.pathology_preserved}),
            )
        )
    judged.extend(
        _Judged(
            f"Annotation: {one.annotation_type}",
            f"slice {one.slice}, {one.window}" if len(assessment.slices) > 1 else one.window,
            one.lpips_score,
            _against(assessment, {"annotation": one.preserved}),
        )
        for one in assessment.annotation_preservation
    )
    return judged


def _against(
    assessment: Assessment, met: Mapping[str, bool | None]
) -> tuple[tuple[Limit, bool], ...]:
    """Limits by name, each with whether it was met; a limit that is not recorded is left out."""
    limits = {limit.name: limit for limit in assessment.limits}
    return tuple((limits[name], bool(ok)) for name, ok in met.items() if name in limits)


def _measure_words(name: str) -> tuple[str, str]:
    """Name of a companion measure in plain words, and which direction is better."""
    words, better = MEASURE_WORDS.get(name, (name, "–"))
    return words[:1].upper() + words[1:], better


def _metric_words(assessment: Assessment, name: str) -> str:
    """Value of a companion measure; a ratio to no error is infinite, and recorded as None."""
    value = assessment.metrics[name]
    if value is not None:
        return number(value, [1.0])
    if name == "psnr_db" and assessment.base_lpips_score == 0.0:
        return "identical"
    return "not defined here"


def _parts_words(composite: CompositeScore) -> str:
    words = {**{name: words for name, (words, _) in MEASURE_WORDS.items()}, **_COMPOSITE_WORDS}
    parts = [f"{100 * one:.0f} % {words.get(name, name)}" for name, one in composite.parts.items()]
    return ", ".join(parts)


def _limit_level(limit: Limit) -> str:
    """Name of a limit without the measure that it is of."""
    return limit.name.rpartition(" ")[2]


def _limit_subject(limit: Limit) -> str:
    """Say what a limit is of, where no value stands beside it."""
    measure = limit.name.rpartition(" ")[0]
    return _measure_words(measure)[0] if measure else limit.name.capitalize()


def _origins(limits: Sequence[Limit]) -> dict[tuple[str, str, str], list[str]]:
    """Names of the limits by their status, date and source, which some have in common."""
    origins: dict[tuple[str, str, str], list[str]] = {}
    for limit in limits:
        key = (limit.status, limit.date, limit.source)
        origins.setdefault(key, []).append(_limit_level(limit))
    return origins


def _bound(limit: Limit) -> str:
    sign = "≤" if limit.bound == "at_most" else "≥"
    return f"{sign} {_exact(limit.value)}" + f" {limit.unit}" * (limit.unit == "LPIPS")


def _inside(value: float | None, limit: Limit) -> bool:
    """Whether a value by itself is on the passing side, guard band aside."""
    if value is None:
        return False
    return value <= limit.value if limit.bound == "at_most" else value >= limit.value


def scale_top(limits: Sequence[Limit]) -> float:
    """Distance at the top of the colour scale: twice the screening limit.

    Fixed by the limits, never by the image: the same colour means the same distance on every
    slice and in every report of a profile. Twice, because a slice's distance is the mean of its
    map, whose peaks are higher. 1 where there is no such limit.
    """
    return next((2.0 * limit.value for limit in limits if limit.name == "screening"), 1.0)


def _stems(evidence: Sequence[Evidence]) -> list[str]:
    stems: list[str] = []
    for one in evidence:
        words = re.sub(r"[^a-z0-9]+", "-", one.window.lower()).strip("-")[:40] or "display"
        stem = f"slice-{one.index:03d}-{words}"
        stems.append(f"{stem}-{len(stems) + 1}" if stem in stems else stem)
    return stems


def number(value: float, beside: Sequence[float] = ()) -> str:
    """Three significant digits; more where rounding would move it onto or across a limit."""
    for digits in range(3, 17):
        text = f"{value:.{digits}g}"
        rounded = float(text)
        if all(
            (rounded > limit) == (value > limit) and (rounded < limit) == (value < limit)
            for limit in beside
        ):
            break
    return f"{Decimal(text):f}"


def _exact(value: float) -> str:
    """Every digit, without an exponent: a limit is never rounded."""
    return f"{Decimal(repr(value)):f}".removesuffix(".0")


def _at(value: float, top: float, low: float = 0.5, high: float = 99.5) -> str:
    """Where a value stands on an axis from 0 to `top`, as a percentage between `low` and `high`."""
    return f"{low + (high - low) * min(value / top, 1.0):.2f}%"


def _anchor(value: float, top: float) -> str:
    """SVG text-anchor that keeps a label inside the drawing."""
    share = value / top
    return "start" if share < 0.2 else "end" if share > 0.8 else "middle"


def _ticks(top: float) -> list[float]:
    """At most six round values from 0 to `top`."""
    magnitude = 10.0 ** np.floor(np.log10(top / 5.0))
    step = next(step for step in (1, 2, 5, 10) if step * magnitude * 5.0 >= top * 0.999)
    return [float(f"{n * step * magnitude:.6g}") for n in range(6) if n * step * magnitude <= top]


def _slice_ticks(first: int, last: int) -> list[int]:
    return list(range(first, last + 1, max(1, -(-(last - first) // 8))))


def _numbered(evidence: Evidence) -> list[dict[str, Any]]:
    """Give each region of a slice a number and its place, in per cent of the picture."""
    shown: list[dict[str, Any]] = []
    rows, columns = evidence.reference.shape
    for kind, name, mask in evidence.regions:
        if mask.any():
            right, upper = int(np.flatnonzero(mask.any(axis=0))[-1]), int(mask.any(axis=1).argmax())
            place = {"left": 100 * (right + 1) / columns, "top": 100 * upper / rows}
            shown.append({"number": len(shown) + 1, "kind": kind, "name": name, **place})
    return shown


def _aspect(evidence: Evidence, image: ImageInput | None) -> str:
    """CSS aspect ratio of a slice: millimetres where known, pixels otherwise."""
    rows, columns = evidence.reference.shape
    _, row_mm, column_mm = (image and image.spacing_mm) or (0.0, 1.0, 1.0)
    return f"{columns * column_mm:.6g} / {rows * row_mm:.6g}"


def _image_words(image: ImageInput) -> str:
    """Say what an image is, without anything that names the patient."""
    slices, rows, columns = image.shape
    words = [
        "DICOM" if image.kind == "dicom" else "NIfTI" if image.kind == "nifti" else "array",
        image.modality or "modality not given",
        f"{rows} × {columns} pixels" + (f" × {slices} slices" if slices > 1 else ""),
    ]
    if image.body_part:
        words.insert(2, image.body_part.lower())
    if image.transfer_syntax:
        words.append(UID(image.transfer_syntax, validation_mode=IGNORE).name)
    return ", ".join(words)


def _unit_words(image: ImageInput | None) -> str:
    return "" if image is None or image.unit == "arbitrary" else f" {image.unit}"


def _data_uris(views: Mapping[str, NDArray[np.uint8]], sides: Mapping[str, int]) -> dict[str, str]:
    return {view: _data_uri(views[view], side) for view, side in sides.items()}


def _data_uri(picture: NDArray[np.uint8], side: int) -> str:
    content = pictures.png(pictures.page_picture(picture, side))
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _provisional(assessment: Assessment) -> list[str]:
    """Names of the limits that are provisional; ``all`` where none is better."""
    names = [limit.name for limit in assessment.limits if limit.status == "provisional"]
    whole = assessment.profile is not None and assessment.profile.status == "provisional"
    every = whole or (bool(names) and len(names) == len(assessment.limits))
    return ["all"] if every else names


@cache
def _templates() -> jinja2.Environment:
    return templates(
        *(number, _exact, _at, _anchor, _ticks, _slice_ticks, _numbered, _aspect),
        *(_image_words, _unit_words, _utc, _provisional, _judged, _whole_image),
        *(_measure_words, _metric_words, _parts_words, _bound, _inside),
        *(_limit_level, _limit_subject, _origins),
        badges=VERDICT_WORDS,
        kept_names=tuple(_KEPT),
    )


def _page(name: str, **values: Any) -> bytes:
    return _templates().get_template(name).render(values).encode()
