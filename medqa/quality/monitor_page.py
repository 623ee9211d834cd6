"""The page of the control charts: one HTML file that needs nothing but itself."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import jinja2

from medqa._version import __version__
from medqa.pages import templates
from medqa.quality.alerts import QUIET, Watched
from medqa.quality.charts import RULES, SMALLEST_BASELINE, Rule, Side, Signal, worse
from medqa.quality.series import Change, History

__all__ = ["page"]

_SHOWN = 250  # newest points that a chart shows; more could not be told apart
_HEIGHT = {"individuals": 190.0, "ewma": 110.0}  # of the drawings, in pixels
_APART = 15.0  # least distance of two labels, in pixels
_TICKS = 4


@dataclass(frozen=True)
class _Dot:
    """A point: shares of width and height from the top left, how it is drawn, what it says."""

    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class _Level:
    """A horizontal line; `label` is empty where it would lie on another one's."""

    y: float
    label: str
    kind: str


@dataclass(frozen=True)
class _Panel:
    name: str
    height: float
    dots: tuple[_Dot, ...]
    levels: tuple[_Level, ...]


@dataclass(frozen=True)
class _Broken:
    """A rule that was broken, in words."""

    rule: Rule
    words: str
    side: Side
    worse: bool
    points: int
    first: datetime.date
    latest: datetime.date


@dataclass(frozen=True)
class _Drawn:
    """A chart ready to be shown."""

    watched: Watched
    panels: tuple[_Panel, ...]
    baseline_share: float
    ticks: tuple[tuple[float, str], ...]
    broken: tuple[_Broken, ...]
    left_out: int


def page(found: History, watched: Sequence[Watched], first: int, now: datetime.datetime) -> bytes:
    """HTML of the page. It names no patient, and no study but by the beginning of its record's id.

    Parameters
    ----------
    watched
        Of `medqa.quality.alerts.watch`, the worst first.
    first
        Points of a baseline.
    now
        When it is made.
    """
    charted = [_draw(one) for one in watched if one.chart.baseline is not None]
    template = _templates().get_template("monitor.html")
    return template.render(
        standing=[one for one in watched if one.alerts],
        charted=charted,
        waiting=[one for one in watched if one.chart.baseline is None],
        found=found,
        unusual=[one for one in found.changes if one.unusual],
        judged=sum(one.usual is not None for one in found.changes),
        first=max(first, SMALLEST_BASELINE),
        quiet=QUIET,
        now=now,
        medqa_version=__version__,
    ).encode()


def _draw(watched: Watched) -> _Drawn:
    points, chart = watched.series.points, watched.chart
    found = chart.baseline
    if found is None:
        raise ValueError("a series without a baseline has no chart")
    start = max(0, len(points) - _SHOWN)
    shown = range(start, len(points))
    values = [points[index].value for index in shown]
    low, high = found.limits
    lines = [(high, "upper limit"), (found.centre, "centre"), (low, "lower limit")]
    panels = [_panel("individuals", watched, shown, values, lines)]
    if chart.ewma_limits is not None:
        # No average belongs to the points of the baseline.
        later = range(max(start, found.count), len(points))
        averages = [chart.ewma[index - found.count] for index in later]
        bottom, top = chart.ewma_limits
        ends = [(top, "upper limit"), (found.centre, "centre"), (bottom, "lower limit")]
        panels.append(_panel("ewma", watched, later, averages, ends, shown))
    return _Drawn(
        watched=watched,
        panels=tuple(panels),
        baseline_share=max(0, found.count - start) / len(shown),
        ticks=tuple(_ticks(watched, shown)),
        broken=tuple(_broken(watched)),
        left_out=start,
    )


def _panel(
    name: str,
    watched: Watched,
    indices: range,
    values: Sequence[float],
    lines: Sequence[tuple[float, str]],
    across: range | None = None,
) -> _Panel:
    """Place points and lines; the axis holds every one of them, so that nothing is cut off."""
    ends = [*values, *(value for value, _ in lines)]
    low, high = min(ends), max(ends)
    span = (high - low) or abs(high) or 1.0
    across = across or indices
    height = _HEIGHT[name]

    def share(value: float) -> float:
        return 0.08 + 0.84 * (high - value) / span

    by_point: dict[int, list[Signal]] = {}
    for signal in watched.chart.signals:
        if (signal.rule == "EWMA") == (name == "ewma"):
            by_point.setdefault(signal.index, []).append(signal)
    dots = tuple(
        _dot(
            watched,
            index,
            value,
            (index - across.start + 0.5) / len(across),
            share(value),
            by_point.get(index, []),
        )
        for index, value in zip(indices, values, strict=True)
    )
    middle = share(lines[1][0])
    levels = tuple(
        _Level(
            share(value),
            f"{value:.4g}"
            if what == "centre" or abs(share(value) - middle) * height >= _APART
            else "",
            "centre" if what == "centre" else "limit",
        )
        for value, what in lines
    )
    return _Panel(name, height, dots, levels)


def _dot(
    watched: Watched, index: int, value: float, x: float, y: float, broken: Sequence[Signal]
) -> _Dot:
    subject, point = watched.series.subject, watched.series.points[index]
    found = watched.chart.baseline
    bad = [one for one in broken if worse(one.side, subject.better)]
    kind = "plain"
    if found is not None and index < found.count:
        kind = "base"
    elif bad:
        kind = "bad"
    elif broken:
        kind = "well"
    images = f", median of {point.images} images" if point.images > 1 else ""
    rules = "".join(f"; {one.rule}, {one.side} the centre" for one in broken)
    unit = "" if subject.unit == "1" else f" {subject.unit}"
    return _Dot(
        x,
        y,
        kind,
        f"{point.day.isoformat()}: {value:.4g}{unit}{images}{rules} [{point.record[:8]}]",
    )


def _broken(watched: Watched) -> Iterator[_Broken]:
    """Every rule that was ever broken, those for the worse first."""
    points, better = watched.series.points, watched.series.subject.better
    kinds = dict.fromkeys((one.rule, one.side) for one in watched.chart.signals)
    for rule, side in sorted(kinds, key=lambda kind: not worse(kind[1], better)):
        indices = [
            one.index for one in watched.chart.signals if (one.rule, one.side) == (rule, side)
        ]
        yield _Broken(
            rule,
            RULES[rule],
            side,
            worse(side, better),
            len(indices),
            points[indices[0]].day,
            points[indices[-1]].day,
        )


def _ticks(watched: Watched, shown: range) -> Iterator[tuple[float, str]]:
    """Days, at places apart from each other."""
    step = max(1, -(-len(shown) // _TICKS))
    for place in range(0, len(shown), step):
        day = watched.series.points[shown[place]].day
        yield (place + 0.5) / len(shown), day.isoformat()


def _number(value: float) -> str:
    return f"{value:.4g}"


def _with_unit(value: float, unit: str) -> str:
    return f"{value:.4g}" + ("" if unit == "1" else f" {unit}")


def _words(better: str) -> str:
    return "neither direction is better" if better == "neither" else f"{better} is better"


def _plain(words: str) -> str:
    return words.replace("_", " ")


def _unlike(change: Change) -> str:
    """Say which of the two studies is better."""
    higher = change.now.value > change.before.value
    if change.subject.better == "neither":
        return "higher" if higher else "lower"
    return "worse" if higher == (change.subject.better == "lower") else "better"


@cache
def _templates() -> jinja2.Environment:
    return templates(_number, _with_unit, _words, _plain, _unlike)
