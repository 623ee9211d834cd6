"""The pages of a study: one that decides, and one with the pictures of each case.

The first needs nothing but itself; its points lead to the others. None names a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from medqa._version import __version__
from medqa.assessment import VERDICT_WORDS
from medqa.files import write_file
from medqa.pages import templates
from medqa.studies.enhancement.measures import Definition
from medqa.studies.enhancement.ranking import FEWEST, Comparison, Ranking, cliques
from medqa.studies.enhancement.rows import LEAST_KEPT, Pictures, Row
from medqa.studies.enhancement.study import Method, Study, case_path, outcome_of

__all__ = ["decision", "method_words", "write_pages"]

_WIDTH = 640  # of a critical-difference plot, in pixels
_MARGIN = 30
_MUCH = 0.05  # share of the residual beyond the noise that is worth a figure in words
_STRIP_STEP = 26  # height of a method's strip
_BETTER = {"lower": "lower is better", "higher": "higher is better", "neither": "describes"}
_BEFORE_WORDS = {"denoising": "noisy input", "super-resolution": "low-resolution input"}


@dataclass(frozen=True)
class _Dot:
    """One case in a strip: share of the axis, what it is, and where its pictures are."""

    x: float
    words: str
    page: str
    wrong: bool


@dataclass(frozen=True)
class _Strip:
    """A measure of all methods on one axis; `ends` are the smallest and largest, and where."""

    measure: Definition
    ends: tuple[tuple[float, float], ...]
    methods: tuple[tuple[str, tuple[_Dot, ...], float | None], ...]


@dataclass(frozen=True)
class _Label:
    """A method in a critical-difference plot: where its rank is, and where its name."""

    name: str
    rank: float
    x: float
    y: float
    left: bool


@dataclass(frozen=True)
class _Plot:
    """A critical-difference plot, in pixels."""

    measure: Definition
    ranking: Ranking
    ticks: tuple[tuple[int, float], ...]
    labels: tuple[_Label, ...]
    bars: tuple[tuple[float, float, float], ...]
    difference: float
    height: float


@dataclass(frozen=True)
class _Worst:
    """The case of a method to look at first."""

    method: Method
    row: Row
    pictures: Pictures | None


def write_pages(study: Study, out: Path) -> Path:
    """Write ``index.html`` and a page for each case.

    Returns
    -------
    Path of ``index.html``.

    Raises
    ------
    UsageError
        One cannot be written.
    """
    last = len(study.cases.cases)
    worst = {method.name: _worst(method, study) for method in study.methods}
    shown: dict[str, _Worst] = {}
    for case in study.cases.cases:
        outcome = outcome_of(out, case.number)
        content = _page("enhancement_case.html", outcome=outcome, number=case.number, last=last)
        write_file(out / case_path(case.number), content)
        for method in study.methods:
            row = worst[method.name]
            if row is not None and row.number == case.number:
                shown[method.name] = _Worst(method, row, outcome.pictures.get(method.name))
    page = _page(
        "enhancement_study.html",
        study=study,
        worst=[shown[method.name] for method in study.methods if method.name in shown],
        strips=_strips(study),
        plots=_plots(study),
        bests={key: _best(study, key) for key in study.rankings},
        profiles=sorted({row.profile for row in _rows(study) if row.profile}),
        measures={one.key: one for _, some in study.definitions for one in some},
    )
    return write_file(out / "index.html", page)


def decision(study: Study) -> str:
    """Say in a sentence what the study found."""
    good = [method.name for method in study.methods if method.acceptable]
    total = len(study.cases.cases)
    cases = "the case" if total == 1 else f"all {total} cases"
    if study.cases.left:
        return "Not every image could be used, so nothing is decided: see what is left over."
    if good:
        first = "" if len(good) == 1 or study.methods[0].order is None else f", {good[0]} first"
        verb = "is" if len(good) == 1 else "are"
        return f"{_and(good)} {verb} acceptable on {cases}{first}."
    if study.code == 2:
        open_ = [one.name for one in study.methods if not one.unacceptable]
        return f"Whether {_and(open_)} may be used could not be judged on {cases}."
    what = "The method" if len(study.methods) == 1 else "No method"
    return f"{what} is {'not ' if len(study.methods) == 1 else ''}acceptable on {cases}."


def method_words(method: Method) -> str:
    """Say in plain words what a method did."""
    said = []
    if (found := method.median("noise_reduction")) is not None:
        did = "removed" if found >= 0 else "added"
        said.append(f"{did} noise by {100 * abs(found):.0f} %")
    if (found := method.median("edge_fidelity")) is not None:
        said.append(f"kept edges to {found:.2f} of 1")
    elif (found := method.median("structure_kept_high")) is not None:
        said.append(f"kept {100 * found:.0f} % of the finest structure")
    if (found := method.median("excess")) is not None:
        alone = "took noise alone" if found == 0 else "took little but noise"
        taken = f"{100 * found:.0f} % of what it took was structure, not noise"
        said.append(taken if found > _MUCH else alone)
    if (found := method.median("sharpness_gain")) is not None:
        said.append(f"is {found:.2f} times as sharp as cubic interpolation")
    if (found := method.median("inconsistency_in_noise")) is not None:
        said.append(f"departs from its input by {found:.1f} times the noise")
    if any("added" in row.values for row in method.rows):
        count = method.total("added")
        where = sum(bool(row.values.get("added")) for row in method.rows)
        many = f"{count} structure{'s' * (count != 1)} on {where} case{'s' * (where != 1)}"
        said.append(f"made {many if count else 'no structure'} that the input does not support")
    kept, of = method.lesions
    if of:
        said.append(f"preserved {kept} of {of} lesion{'s' * (of != 1)}")
    if method.unjudged:
        said.append(f"could not be judged on {method.unjudged} of {len(method.rows)} cases")
    words = ", ".join(said) or "nothing could be measured"
    return f"{words[:1].upper()}{words[1:]}."


def _rows(study: Study) -> list[Row]:
    return [row for method in study.methods for row in method.rows]


def _worst(method: Method, study: Study) -> Row | None:
    """Choose the row with most that is wrong; among equals by the first headline measure."""
    better = {one.key: one.better for _, some in study.definitions for one in some}
    key = next((key for key in study.headlines if key in better), None)

    def badness(row: Row) -> tuple[float, ...]:
        value = row.values.get(key or "", 0.0)
        bad = -value if key and better[key] == "higher" else value
        return (bool(row.failure), -len(row.wrong), -row.values.get("added_z", 0.0), -bad)

    return min(method.rows, key=badness, default=None)


def _best(study: Study, key: str) -> set[str]:
    """Names of the methods that are best by a measure."""
    one = next(one for _, some in study.definitions for one in some if one.key == key)
    medians = {method.name: method.summed_up(key) for method in study.methods}
    found = {name: value for name, value in medians.items() if value is not None}
    if len(found) < 2 or len({_number(value) for value in found.values()}) == 1:
        return set()
    best = (max if one.better == "higher" else min)(found.values())
    return {name for name, value in found.items() if _number(value) == _number(best)}


def _beats_all(study: Study, key: str, name: str) -> bool:
    """Whether a method is better than each other one by Wilcoxon's test after correction."""
    own = [one for one in study.rankings[key].comparisons if name in (one.one, one.other)]
    return all(_says(one) == f"{name} is better" for one in own)


def _strips(study: Study) -> list[_Strip]:
    measures = [
        *study.headlines,
        "noise_reduction",
        "excess",
        "structure_kept_high",
        "added",
        "sharpness_gain",
        "inconsistency_in_noise",
    ]
    known = {one.key: one for _, some in study.definitions for one in some}
    return [_strip(study, known[key]) for key in dict.fromkeys(measures) if key in known]


def _strip(study: Study, measure: Definition) -> _Strip:
    values = [row.values[measure.key] for row in _rows(study) if measure.key in row.values]
    low, high = min(values), max(values)
    room = (high - low) / 20 or abs(high) / 10 or 1.0
    ends = sorted({low, high})
    low, high = low - room, high + room
    methods = []
    for method in study.methods:
        at = study.cases.methods.index(method.name) + 1
        dots = tuple(
            _Dot(
                (row.values[measure.key] - low) / (high - low),
                f"case {row.number}, {method.name}: {_number(row.values[measure.key])}",
                f"{case_path(row.number)}#method-{at}",
                bool(row.wrong),
            )
            for row in method.rows
            if measure.key in row.values
        )
        median = method.median(measure.key)
        place = None if median is None else (median - low) / (high - low)
        methods.append((method.name, dots, place))
    places = tuple((one, (one - low) / (high - low)) for one in ends)
    return _Strip(measure, places, tuple(methods))


def _plots(study: Study) -> list[_Plot]:
    known = {one.key: one for _, some in study.definitions for one in some}
    return [
        _plot(known[key], ranking)
        for key in study.headlines
        if (ranking := study.rankings.get(key)) and ranking.critical_difference is not None
    ]


def _plot(measure: Definition, ranking: Ranking) -> _Plot:
    """Lay out a critical-difference plot (Demšar 2006, figure 1); the best is on the left."""
    count, difference = len(ranking.methods), ranking.critical_difference or 0.0
    scale = (_WIDTH - 2 * _MARGIN) / (count - 1)

    def x(rank: float) -> float:
        return _MARGIN + (rank - 1) * scale

    bars = []
    for level, (low, high) in enumerate(cliques(ranking.ranks, difference)):
        bars.append((x(low) - 4, x(high) + 4, 62.0 + 9 * level))
    below = 76.0 + 9 * len(bars)
    order = sorted(zip(ranking.ranks, ranking.methods, strict=True))
    half = (count + 1) // 2
    labels = []
    for at, (rank, name) in enumerate(order):
        step = at if at < half else count - 1 - at
        labels.append(_Label(name, rank, x(rank), below + 20 * step, at < half))
    return _Plot(
        measure=measure,
        ranking=ranking,
        ticks=tuple((rank, x(rank)) for rank in range(1, count + 1)),
        labels=tuple(labels),
        bars=tuple(bars),
        difference=min(difference * scale, _WIDTH),
        height=below + 20 * half,
    )


def _and(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return "0" if abs(value) < 1e-9 else f"{value:.3g}"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _better(measure: Definition) -> str:
    return _BETTER[measure.better]


def _unit(measure: Definition) -> str:
    return "in the image's values" if measure.unit == "image" else measure.unit


def _outcome_words(row: Row) -> str:
    if row.unjudged:
        return "not judged"
    return "acceptable" if row.acceptable else "not acceptable"


def _says(one: Comparison) -> str:
    """Say what a comparison means."""
    if one.holm is None:
        few = f"{one.cases} case{'s' * (one.cases != 1)} differ{'s' * (one.cases == 1)}"
        return f"{few}: too few for a p value" if one.cases else "no difference"
    if one.holm >= 0.05:
        return "no difference shown"
    return f"{one.one if one.effect > 0 else one.other} is better"


@cache
def _templates() -> jinja2.Environment:
    return templates(
        *(decision, method_words, case_path),
        *(_number, _p, _better, _unit, _outcome_words, _says, _and, _beats_all),
        verdict_words=VERDICT_WORDS,
        before_words=_BEFORE_WORDS,
        medqa_version=__version__,
        width=_WIDTH,
        step=_STRIP_STEP,
        fewest=FEWEST,
        least_kept=LEAST_KEPT,
    )


def _page(name: str, **values: Any) -> bytes:
    return _templates().get_template(name).render(values).encode()
