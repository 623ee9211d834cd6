"""The verdict as one picture for the reading room, in a Secondary Capture (PS3.3 A.8.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom import Dataset

from medqa import pictures
from medqa.assessment import VERDICT_WORDS, Assessment, Evidence, Verdict
from medqa.dicom_results.device import NOTICE, complete, identity
from medqa.dicom_results.source import Source
from medqa.report import number

__all__ = ["picture", "secondary_capture"]

_SIZE = (1024, 768)  # columns, rows: fits every diagnostic and clinical display
_MARGIN = 24
_INK, _QUIET, _PAPER = (235, 235, 235), (165, 165, 165), (16, 18, 22)
# Told apart without colour too: the sign and the words say it.
_COLOURS: dict[Verdict, tuple[int, int, int]] = {
    "diagnostic": (20, 122, 62),
    "expert_review": (181, 108, 0),
    "unsuitable": (176, 28, 38),
    "not_assessable": (84, 88, 96),
}
_BANNER = 104
_PANE = 312
_PANES_TOP = _BANNER + 38
_SMOOTH = PIL.Image.Resampling.LANCZOS
_TITLES = {"reference": "Reference", "candidate": "Candidate", "distance": "Where they differ"}


def secondary_capture(
    assessment: Assessment, reference: Source, candidate: Source | None, top: float
) -> Any:
    """Make the Secondary Capture of an assessment's summary.

    Parameters
    ----------
    candidate
        None where it is not DICOM.
    top
        Distance at the top of the colour scale.

    Returns
    -------
    highdicom.sc.SCImage
    """
    result = SCImage.from_ref_dataset(
        reference.header,
        pixel_array=picture(assessment, top),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        **identity(assessment, "summary", 3, "medqa image quality summary"),
    )
    # A page of text and pictures has neither.
    result.PatientOrientation = result.Laterality = None
    result.ConversionType = "WSD"
    result.DerivationDescription = "Summary of an image quality assessment by medqa"
    result.DateOfSecondaryCapture = result.ContentDate
    result.TimeOfSecondaryCapture = result.ContentTime
    if assessment.evidence:
        place = reference.places[assessment.evidence[0].index]
        source = Dataset()
        source.ReferencedSOPClassUID = place.instance.sop_class
        source.ReferencedSOPInstanceUID = place.instance.sop_uid
        if place.frame is not None:
            source.ReferencedFrameNumber = place.frame
        result.SourceImageSequence = [source]
        result.update(reference.lossy or (candidate.lossy if candidate else {}))
    # The page itself names nobody; the slices that it shows may: an ultrasound often does.
    sources = [one for one in (reference, candidate) if one is not None]
    burned_in = {one.burned_in for one in sources} if assessment.evidence else {False}
    if True in burned_in or burned_in == {False}:
        result.BurnedInAnnotation = "YES" if True in burned_in else "NO"
    complete(result, assessment, reference, reference.instances)
    return result


def picture(assessment: Assessment, top: float) -> NDArray[np.uint8]:
    """Draw the summary: (768, 1024, 3) uint8 RGB, without anything that names the patient."""
    page = PIL.Image.new("RGB", _SIZE, _PAPER)
    draw = PIL.ImageDraw.Draw(page)
    _banner(draw, assessment)
    below = _BANNER + 30
    if assessment.evidence:
        _panes(page, draw, assessment, top)
        below = _PANES_TOP + _PANE + 34
    _reasons(draw, assessment, _distance(draw, assessment, below))
    _footer(draw, assessment)
    return np.asarray(page)


def _banner(draw: PIL.ImageDraw.ImageDraw, assessment: Assessment) -> None:
    _, name, meaning = VERDICT_WORDS[assessment.verdict]
    draw.rectangle((0, 0, _SIZE[0], _BANNER), fill=_COLOURS[assessment.verdict])
    _sign(draw, assessment.verdict, (_MARGIN + 36, _BANNER // 2), 32)
    _text(draw, (_MARGIN + 92, 14), name, 42, (255, 255, 255))
    _text(draw, (_MARGIN + 94, 66), f"{meaning[:1].upper()}{meaning[1:]}.", 22, (255, 255, 255))
    image = assessment.inputs.reference
    title = ["Image quality", image.modality or "" if image else ""]
    for row, words in enumerate(title):
        _text(draw, (_SIZE[0] - _MARGIN, 22 + 30 * row), words, 22, (255, 255, 255), anchor="ra")


def _sign(
    draw: PIL.ImageDraw.ImageDraw, verdict: Verdict, centre: tuple[int, int], radius: int
) -> None:
    """Draw the verdict's sign in a circle: no font at hand holds all four."""
    x, y = centre
    white, width = (255, 255, 255), 7
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=white, width=5)
    if verdict == "diagnostic":
        draw.line(((x - 15, y + 1), (x - 4, y + 13), (x + 16, y - 12)), white, width, "curve")
    elif verdict == "unsuitable":
        draw.line(((x - 12, y - 12), (x + 12, y + 12)), white, width)
        draw.line(((x - 12, y + 12), (x + 12, y - 12)), white, width)
    else:
        _text(draw, (x, y), "!" if verdict == "expert_review" else "?", 44, white, anchor="mm")


def _panes(
    page: PIL.Image.Image, draw: PIL.ImageDraw.ImageDraw, assessment: Assessment, top: float
) -> None:
    """Worst slice: as it was, as it is, and where it differs."""
    worst = assessment.evidence[0]
    views = pictures.views(worst, top)
    gap = (_SIZE[0] - 2 * _MARGIN - 3 * _PANE) // 2
    columns, rows = _fitted(worst, assessment)
    for pane, (view, title) in enumerate(_TITLES.items()):
        left = _MARGIN + pane * (_PANE + gap)
        _text(draw, (left, _PANES_TOP - 26), title, 19, _INK)
        shown = PIL.Image.fromarray(views[view]).resize((columns, rows), _SMOOTH)
        draw.rectangle((left, _PANES_TOP, left + _PANE, _PANES_TOP + _PANE), fill=(0, 0, 0))
        page.paste(shown, (left + (_PANE - columns) // 2, _PANES_TOP + (_PANE - rows) // 2))
    image = assessment.inputs.reference
    slices = image.shape[0] if image is not None else 1
    where = f"Worst slice: {worst.index} (of 0 to {slices - 1}); " if slices > 1 else ""
    below = _PANES_TOP + _PANE + 6
    _text(draw, (_MARGIN, below), f"{where}display: {worst.window}", 15, _QUIET)
    bar = pictures.overlay(np.full((1, 256), 0.5), np.linspace(0.0, top, 256)[np.newaxis], top)
    left = _SIZE[0] - _MARGIN - _PANE
    page.paste(PIL.Image.fromarray(bar).resize((_PANE - 124, 10)), (left + 48, below + 5))
    _text(draw, (left, below), "same", 15, _QUIET)
    _text(draw, (left + _PANE, below), "different", 15, _QUIET, anchor="ra")


def _fitted(evidence: Evidence, assessment: Assessment) -> tuple[int, int]:
    """Columns and rows of a slice in its pane: millimetres where known, pixels otherwise."""
    rows, columns = evidence.reference.shape
    image = assessment.inputs.reference
    _, row_mm, column_mm = (image and image.spacing_mm) or (0.0, 1.0, 1.0)
    scale = _PANE / max(rows * row_mm, columns * column_mm)
    return max(1, round(columns * column_mm * scale)), max(1, round(rows * row_mm * scale))


def _distance(draw: PIL.ImageDraw.ImageDraw, assessment: Assessment, y: int) -> int:
    """Draw the distance against its limits; return where the next line goes."""
    value, limits = assessment.base_lpips_score, {one.name: one.value for one in assessment.limits}
    if value is None or "diagnostic" not in limits or "screening" not in limits:
        return y
    diagnostic, screening = limits["diagnostic"], limits["screening"]
    left, right = _MARGIN + 250, _SIZE[0] - _MARGIN
    top = max(1.6 * screening, 1.1 * value)

    def at(distance: float) -> int:
        return left + round((right - left) * distance / top)

    _text(draw, (_MARGIN, y + 6), "Perceptual distance", 19, _INK)
    _text(draw, (_MARGIN, y + 32), number(value, list(limits.values())), 30, _INK)
    zones: tuple[tuple[float, float, Verdict], ...] = (
        (0.0, diagnostic, "diagnostic"),
        (diagnostic, screening, "expert_review"),
        (screening, top, "unsuitable"),
    )
    for low, high, verdict in zones:
        draw.rectangle((at(low), y + 30, at(high), y + 44), fill=_COLOURS[verdict])
    for limit, words in ((diagnostic, "diagnostic"), (screening, "screening")):
        draw.line(((at(limit), y + 26), (at(limit), y + 48)), _INK, 2)
        anchor, shift = ("ra", 4) if words == "diagnostic" else ("la", -4)
        _text(draw, (at(limit) + shift, y + 50), f"{words} {limit:g}", 15, _QUIET, anchor)
    draw.polygon(((at(value), y + 30), (at(value) - 10, y + 10), (at(value) + 10, y + 10)), _INK)
    return y + 84


def _reasons(draw: PIL.ImageDraw.ImageDraw, assessment: Assessment, y: int) -> None:
    """Write the reasons, the most damning first, as far as there is room."""
    room = _SIZE[1] - 64
    for done, reason in enumerate(assessment.reasons):
        lines = _wrapped(reason.text, 18, _SIZE[0] - 2 * _MARGIN - 22)
        left = len(assessment.reasons) - done
        if y + 24 * (len(lines) + (left > 1)) > room:
            _text(draw, (_MARGIN + 22, y), f"and {left} more in the structured report", 18, _QUIET)
            return
        draw.ellipse((_MARGIN + 4, y + 8, _MARGIN + 11, y + 15), fill=_INK)
        for line in lines:
            _text(draw, (_MARGIN + 22, y), line, 18, _INK)
            y += 24


def _wrapped(words: str, size: int, width: int) -> list[str]:
    font = PIL.ImageFont.load_default(size)
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _footer(draw: PIL.ImageDraw.ImageDraw, assessment: Assessment) -> None:
    basis = [f"medqa {assessment.medqa_version}"]
    if assessment.profile is not None:
        one = assessment.profile
        basis.append(f"profile {one.name} {one.version}, {one.status}")
    if assessment.metric is not None:
        basis.append(f"network {assessment.metric.backbone} {assessment.metric.version}")
    basis.append(f"assessment {assessment.assessment_id[:8]}")
    line = _SIZE[1] - 52
    draw.line(((_MARGIN, line), (_SIZE[0] - _MARGIN, line)), (70, 74, 82), 1)
    _text(draw, (_MARGIN, line + 8), NOTICE, 15, _INK)
    _text(draw, (_SIZE[0] - _MARGIN, line + 8), "; ".join(basis), 14, _QUIET, anchor="ra")


def _text(
    draw: PIL.ImageDraw.ImageDraw,
    at: tuple[int, int],
    words: str,
    size: int,
    colour: tuple[int, int, int],
    anchor: str = "la",
) -> None:
    draw.text(at, words, colour, PIL.ImageFont.load_default(size), anchor=anchor)
