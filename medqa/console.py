"""What the command shows on a terminal, by Rich."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from medqa.assessment import MEASURE_WORDS, VERDICT_WORDS, Assessment, Verdict

if TYPE_CHECKING:
    from medqa.pipeline import Progress as Advance

__all__ = ["panel", "progress_bar", "show", "table"]

_COLOURS: dict[Verdict, str] = {
    "diagnostic": "green",
    "expert_review": "yellow",
    "unsuitable": "red",
    "not_assessable": "magenta",
}


def show(renderable: RenderableType) -> None:
    """Print to standard output."""
    # A file or a pipe has no width, unless it is told: rows stay on one line.
    unbounded = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    Console(width=200 if unbounded else None).print(renderable)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Rows of text under headings; long cells fold, nothing is cut off."""
    made = Table(*columns, box=box.SIMPLE, pad_edge=False)
    for column in made.columns:
        column.overflow = "fold"
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def panel(
    assessment: Assessment, *, report: Path | None = None, recorded: str | None = None
) -> Panel:
    """Verdict, each value beside its limit, the reasons, and where to look further."""
    colour = _COLOURS[assessment.verdict]
    _, name, meaning = VERDICT_WORDS[assessment.verdict]
    parts: list[RenderableType] = [Text(f"{name.upper()}: {meaning}", style=f"bold {colour}")]
    if assessment.base_lpips_score is not None:
        parts.append(_values(assessment))
    parts += [Text(f"• {reason.text}") for reason in assessment.reasons]
    parts.append(Text(_small_print(assessment), style="dim"))
    if report is not None:
        parts.append(Text(f"report: {report}"))
    if recorded is not None:
        parts.append(Text(f"record: {assessment.assessment_id} in {recorded}"))
    return Panel(Group(*parts), title="medqa", border_style=colour, box=box.ROUNDED, expand=False)


def _values(assessment: Assessment) -> Table:
    made = Table("", "value", "limit", "", box=box.SIMPLE, pad_edge=False)
    for column in made.columns[1:3]:
        column.justify = "right"
    limits = {limit.name: limit for limit in assessment.limits}

    def add(what: str, value: float | None, limit: str, passed: bool | None) -> None:
        outcome = {True: "passed", False: "not passed", None: ""}[passed]
        sign = "≤" if limits[limit].bound == "at_most" else "≥"
        shown = "undefined" if value is None else f"{value:.4f}"
        bound = limits[limit].value
        figure = f"{bound:.3f}" if bound >= 0.01 else f"{bound:.2g}"
        made.add_row(Text(what), shown, f"{sign} {figure}", outcome)

    base = assessment.base_lpips_score or 0.0
    add("distance, for diagnosis", base, "diagnostic", assessment.diagnostic_quality)
    add("distance, for screening", base, "screening", assessment.screening_quality)
    for gate in assessment.gates:
        words = f"{MEASURE_WORDS[gate.measure][0]}, for diagnosis"
        add(words, gate.value, f"{gate.measure} diagnostic", gate.diagnostic)
    if (pathology := assessment.pathology_preservation) is not None:
        add("pathology", pathology.pathology_lpips, "pathology", pathology.pathology_preserved)
    for one in assessment.annotation_preservation:
        add(f"annotation: {one.annotation_type}", one.lpips_score, "annotation", one.preserved)
    return made


def _small_print(assessment: Assessment) -> str:
    profile, metric = assessment.profile, assessment.metric
    lines = []
    if profile is not None and metric is not None:
        lines.append(
            f"LPIPS by network {metric.backbone} {metric.version}, profile {profile.name} "
            f"{profile.version} ({profile.status} limits)."
        )
    if profile is not None and profile.caution:
        lines.append(profile.caution)
    lines.append("medqa informs a qualified person; it is not a medical device.")
    return " ".join(lines)


@contextmanager
def progress_bar(what: str = "comparing slices") -> Iterator[Advance]:
    """Show how much is done, on standard error; nothing for one step or without a terminal."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=None, visible=False)

    def advance(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total, visible=total > 1)

    with bar:
        yield advance
