"""The report of an assessment: JSON, an HTML page that needs nothing but itself, and pictures.

Nothing is computed anew: values, limits and what passed are printed as they were recorded.
"""

from __future__ import annotations

import base64
import os
import re
import uuid
from collections.abc import Sequence
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
from medqa.assessment import VERDICT_WORDS, Assessment, Evidence, ImageInput, Limit
from medqa.errors import UsageError

__all__ = ["IndexRow", "index", "prepare_folder", "write"]

_AGGREGATES = {"p95": "95th percentile", "max": "worst", "mean": "mean"}
# Companion measures known by name: title, unit, what it says.
_METRICS = {
    "psnr_db": ("PSNR", "dB", "peak signal-to-noise ratio; higher is closer"),
    "ssim": ("SSIM", "no unit", "structural similarity; 1 is identical, higher is closer"),
}


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
    """

    label: str
    group: str
    assessment: Assessment
    report: str


@dataclass(frozen=True)
class _Judged:
    """A recorded value and the limits it was held against, each with what was recorded of it."""

    what: str
    detail: str
    value: float
    limits: tuple[tuple[Limit, bool], ...]


def write(assessment: Assessment, folder: Path) -> Path:
    """Write ``assessment.json``, ``report.html`` and one PNG per picture into a folder.

    The JSON is the record itself. The page shows the evidence where the assessment still has it.
    Each slice of the evidence makes three PNGs in the image's own pixels, such as
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
    top = _scale_top(assessment.limits)
    named = dict(zip(_stems(assessment.evidence), assessment.evidence, strict=True))
    drawn = {stem: pictures.views(evidence, top) for stem, evidence in named.items()}
    files = {"assessment.json": f"{assessment.model_dump_json(indent=2)}\n".encode()}
    for stem, views in drawn.items():
        files |= {f"{stem}-{view}.png": pictures.png(one) for view, one in views.items()}
    files["report.html"] = _page(
        "report.html",
        assessment=assessment,
        judged=_judged(assessment),
        shown=[(stem, evidence, drawn[stem]) for stem, evidence in named.items()],
        colour_top=top,
        colour_bar=pictures.overlay(np.full((1, 256), 0.5), np.linspace(0, top, 256)[None], top),
    )
    for name, content in files.items():
        _write(folder / name, content)
    return folder / "report.html"


def prepare_folder(folder: Path) -> None:
    """Make a folder for reports and prove that it can be written, before hours of work.

    Raises
    ------
    UsageError
        It cannot be made or written.
    """
    _write(folder / ".writable", b"").unlink()


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
    groups: dict[str, list[tuple[IndexRow, dict[str, NDArray[np.uint8]]]]] = {}
    for row in rows:
        top = _scale_top(row.assessment.limits)
        views = [pictures.views(evidence, top) for evidence in row.assessment.evidence[:1]]
        groups.setdefault(row.group, []).append((row, views[0] if views else {}))
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
    return _write(path, page)


def _judged(assessment: Assessment) -> list[_Judged]:
    limits = {limit.name: limit for limit in assessment.limits}

    def against(**passed: bool | None) -> tuple[tuple[Limit, bool], ...]:
        return tuple((limits[name], bool(ok)) for name, ok in passed.items() if name in limits)

    judged = []
    if assessment.base_lpips_score is not None:
        judged.append(
            _Judged(
                "Whole image",
                f"{_AGGREGATES.get(assessment.aggregate or '', assessment.aggregate)} of "
                f"{len(assessment.slices)} slices, worst display"
                if len(assessment.slices) > 1
                else "worst display",
                assessment.base_lpips_score,
                against(
                    diagnostic=assessment.diagnostic_quality,
                    screening=assessment.screening_quality,
                ),
            )
        )
    # A reason that names a slice says that it is not surely within the screening limit.
    judged.extend(
        _Judged("Worst slice", str(one.place), one.value, against(screening=False))
        for one in assessment.reasons
        if one.value is not None and re.fullmatch(r"slice \d+", one.place or "")
    )
    if pathology := assessment.pathology_preservation:
        judged.append(
            _Judged(
                "Pathology",
                "the worst of its connected parts",
                pathology.pathology_lpips,
                against(pathology=pathology.pathology_preserved),
            )
        )
    judged.extend(
        _Judged(
            f"Annotation: {one.annotation_type}",
            f"slice {one.slice}, {one.window}" if len(assessment.slices) > 1 else one.window,
            one.lpips_score,
            against(annotation=one.preserved),
        )
        for one in assessment.annotation_preservation
    )
    return judged


def _scale_top(limits: Sequence[Limit]) -> float:
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


def _number(value: float, beside: Sequence[float] = ()) -> str:
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


def _data_uri(picture: NDArray[np.uint8], side: int = 700) -> str:
    content = pictures.png(pictures.page_picture(picture, side))
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _provisional(assessment: Assessment) -> bool:
    profile = assessment.profile
    statuses = [limit.status for limit in assessment.limits] + ([profile.status] if profile else [])
    return "provisional" in statuses


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medqa"),
        autoescape=True,  # names of regions come from whoever made the file
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers = (
        *(_number, _exact, _at, _anchor, _ticks, _slice_ticks, _numbered, _aspect),
        *(_image_words, _unit_words, _data_uri, _utc, _provisional, _judged),
    )
    environment.globals |= {helper.__name__.lstrip("_"): helper for helper in helpers}
    environment.globals |= {"badges": VERDICT_WORDS, "known_metrics": _METRICS}
    return environment


def _page(name: str, **values: Any) -> bytes:
    return _templates().get_template(name).render(values).encode()


def _write(path: Path, content: bytes) -> Path:
    """Write a file as a whole or not at all: under another name first, then renamed."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            path.parent,
            f"the report cannot be written here ({error.strerror or error})",
            "name a folder that you may write to and that has space",
        ) from error
    return path
