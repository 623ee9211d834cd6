"""The page of a batch: how many passed, how the values spread, and every pair, outliers first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from medqa.assessment import MEASURE_WORDS, VERDICT_WORDS, Level
from medqa.files import write_file
from medqa.pages import spread, templates
from medqa.report import number

__all__ = ["outliers", "ranking", "write_pages"]

ROWS = 500  # on one page
_DOTS = 600  # in one strip: the worst, and an even choice of the others
_TICKS = 6
_FENCE = 1.5  # Tukey, Exploratory Data Analysis (1977), 2D: beyond the inner fence
_SMALLEST = 8  # fewer have no quartiles worth the name
_SEVERITY = {"not_assessable": 0, "unsuitable": 1, "expert_review": 2, "diagnostic": 3}
_STRIPS = ("distance", "pathology_distance", "edge_fidelity", "ssim")


@dataclass(frozen=True)
class _Dot:
    """One pair in a strip, in shares of its width and height."""

    x: float
    y: float
    row: int
    verdict: str


@dataclass(frozen=True)
class _Strip:
    """One measure of the pairs of a group on one axis."""

    measure: str
    words: str
    top: float
    ticks: tuple[float, ...]
    limits: tuple[tuple[str, float], ...]
    dots: tuple[_Dot, ...]
    shown: int
    count: int
    median: float


def write_pages(
    table: Any, out: Path, require: Level, *, left: int = 0, title: str = ""
) -> tuple[Path, ...]:
    """Write ``index.html``, and ``index-2.html`` and so on where there are more than 500 pairs.

    Parameters
    ----------
    table
        Arrow table of the results.
    require
        Level that a pair must meet.
    left
        How many images of the folders are in no pair.
    title
        Heading; the number of pairs where empty.

    Returns
    -------
    The pages.

    Raises
    ------
    UsageError
        They cannot be written.
    """
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    groups = _groups(columns)
    marked = np.zeros(table.num_rows, np.bool_)
    for members in groups.values():
        marked[members] = outliers(columns["distance"][members].astype(np.float64))
    order = ranking(columns, marked)
    shown = {
        "title": title or f"{table.num_rows} pairs",
        "require": require,
        "left": left,
        "counts": Counter(columns["verdict"].tolist()),
        "met": int(columns["meets"].astype(bool).sum()),
        "groups": _group_counts(columns, groups),
        "plots": [(name, _strips(columns, members, order)) for name, members in groups.items()],
        "pages": max(1, math.ceil(table.num_rows / ROWS)),
    }
    places = {int(row): place for place, row in enumerate(order)}
    shown["target"] = lambda row: _target(columns, row, places[row])
    written = []
    for page in range(shown["pages"]):
        rows = order[page * ROWS : (page + 1) * ROWS]
        pairs = table.take(rows).to_pylist()
        flags = marked[rows].tolist()
        content = _page(page=page, pairs=list(zip(pairs, flags, strict=True)), **shown)
        written.append(write_file(out / _name(page), content))
    return tuple(written)


def outliers(distances: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) Which distances lie above the upper fence, the third quartile and 1.5 quartile ranges.

    NaN is none. Among fewer than 8 there are none.
    """
    known = distances[np.isfinite(distances)]
    if len(known) < _SMALLEST:
        return np.zeros(len(distances), np.bool_)
    first, third = np.percentile(known, (25, 75))
    found: NDArray[np.bool_] = np.nan_to_num(distances) > third + _FENCE * (third - first)
    return found


def ranking(columns: Mapping[str, Any], marked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n,) Rows in the order to look at them: by verdict, outliers, then distance to limit."""
    severity = np.array([_SEVERITY[one] for one in columns["verdict"]])
    distance = columns["distance"].astype(np.float64)
    limit = columns["diagnostic_limit"].astype(np.float64)
    share = np.nan_to_num(distance / limit, nan=0.0)
    return np.lexsort((columns["number"], -share, ~marked, severity)).astype(np.int64)


def _groups(columns: Mapping[str, Any]) -> dict[str, NDArray[np.int64]]:
    """Rows by modality and profile: only these have limits, displays and values in common."""
    names = [
        f"{modality or 'modality not known'}, {f'profile {profile}' if profile else 'no profile'}"
        for modality, profile in zip(columns["modality"], columns["profile"], strict=True)
    ]
    made: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        made.setdefault(name, []).append(row)
    return {name: np.array(rows, np.int64) for name, rows in sorted(made.items())}


def _group_counts(
    columns: Mapping[str, Any], groups: Mapping[str, NDArray[np.int64]]
) -> list[tuple[str, int, Counter[str], float | None, float | None]]:
    """Return name, pairs, pairs by verdict, and median and 95th percentile of the distance."""
    rows = []
    for name, members in groups.items():
        distances = columns["distance"][members].astype(np.float64)
        known = distances[np.isfinite(distances)]
        middle, high = np.percentile(known, (50, 95)).tolist() if len(known) else (None, None)
        verdicts = Counter(columns["verdict"][members].tolist())
        rows.append((name, len(members), verdicts, middle, high))
    return rows


def _strips(
    columns: Mapping[str, Any], members: NDArray[np.int64], order: NDArray[np.int64]
) -> list[_Strip]:
    within = set(members.tolist())
    ranked = np.array([row for row in order.tolist() if row in within], np.int64)
    strips = []
    for measure in _STRIPS:
        values = columns[measure].astype(np.float64)
        known = ranked[np.isfinite(values[ranked])]
        if len(known) > 1:
            strips.append(_strip(columns, measure, values, known))
    return strips


def _strip(
    columns: Mapping[str, Any],
    measure: str,
    values: NDArray[np.float64],
    known: NDArray[np.int64],
) -> _Strip:
    """Make a strip of the rows where a measure is known, worst first."""
    limits = []
    if measure == "distance":
        for level in ("diagnostic", "screening"):
            value = columns[f"{level}_limit"][known[0]]
            limits += [] if value is None or not np.isfinite(value) else [(level, float(value))]
    top = max(float(values[known].max()), *(value for _, value in limits), 1e-9) * 1.05
    half = _DOTS // 2
    chosen = known
    if len(known) > _DOTS:
        even = np.linspace(half, len(known) - 1, _DOTS - half).astype(np.int64)
        chosen = np.concatenate([known[:half], known[even]])
    chosen = chosen[np.argsort(values[chosen], kind="stable")]
    dots = tuple(
        _Dot(float(values[row]) / top, y, int(row), str(columns["verdict"][row]))
        for row, y in zip(chosen.tolist(), spread(), strict=False)
    )
    words, better = MEASURE_WORDS.get(measure, ("", "lower"))
    words = words or ("whole image" if measure == "distance" else "worst part of the pathology")
    return _Strip(
        measure=measure.replace("_", " "),
        words=f"{words}; {better} is better",
        top=top,
        ticks=_ticks(top),
        limits=tuple(limits),
        dots=dots,
        shown=len(chosen),
        count=len(known),
        median=float(np.median(values[known])),
    )


def _ticks(top: float) -> tuple[float, ...]:
    """Round values from 0, at most six."""
    step = 10.0 ** math.floor(math.log10(top / (_TICKS - 1)))
    step *= next(k for k in (1, 2, 5, 10) if top / (k * step) <= _TICKS - 1)
    return tuple(k * step for k in range(math.floor(top / step + 1e-9) + 1))


def _target(columns: Mapping[str, Any], row: int, place: int) -> str:
    """Return where a dot leads: to the pair's own page, or to its row on these pages."""
    report = columns["report"][row]
    return str(report) if report else f"{_name(place // ROWS)}#pair-{columns['number'][row]}"


def _name(page: int) -> str:
    return "index.html" if page == 0 else f"index-{page + 1}.html"


def _at(share: float) -> str:
    """Give `x` of a drawing, which keeps room at both ends."""
    return f"{2 + 96 * share:.2f}%"


def _figure(value: float | None, beside: Sequence[float | None] = ()) -> str:
    """Three digits, more where rounding would move it across what stands beside it."""
    if value is None or not math.isfinite(value):
        return "–"
    return number(value, [one for one in beside if one is not None])


@cache
def _template() -> jinja2.Template:
    return templates(_at, _figure, _name, badges=VERDICT_WORDS).get_template("batch.html")


def _page(**values: Any) -> bytes:
    return _template().render(values).encode()
