"""The page of a compression study for a committee: one HTML file that needs nothing but itself."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

import jinja2

from medqa._version import __version__
from medqa.compression.approval import Approval
from medqa.compression.codecs import CODECS, version
from medqa.pages import templates
from medqa.report import number
from medqa.studies.compression.curves import FLOOR
from medqa.studies.compression.decision import Decision, Group
from medqa.studies.compression.lesions import words_of
from medqa.studies.compression.pictures import Shown
from medqa.studies.compression.rows import Row
from medqa.studies.compression.study import Study
from medqa.studies.compression.sweep import COMPANIONS
from medqa.studies.guidelines import LOSSLESS, cap_for, guidelines, table
from medqa.studies.intervals import Estimate
from medqa.thresholds import Profile

__all__ = ["page"]

# What an interval of the detectability counts; images of one series are joined there.
_UNITS = {"images": "series", "slices": "slices", "places": "places on these slices"}
_WIDE, _HIGH = 420, 260  # of a plot, in pixels of the drawing


@dataclass(frozen=True)
class _Mark:
    """A line across a plot: where, in pixels, and what it says."""

    at: float
    words: str


@dataclass(frozen=True)
class _Plot:
    """Distance by ratio of one codec, in pixels of the drawing; both axes are logarithmic."""

    median: str
    band: str
    dots: tuple[tuple[float, float], ...]
    limits: tuple[_Mark, ...]
    guidelines: tuple[_Mark, ...]
    approved: float | None
    across: tuple[_Mark, ...]
    up: tuple[_Mark, ...]


def page(
    study: Study,
    approvals: Sequence[Approval],
    shown: Mapping[tuple[str, str], Sequence[Shown]],
    today: datetime.date,
    recorded: bool,
) -> bytes:
    """HTML of the page; it names devices, and no image, no patient and no file.

    Parameters
    ----------
    shown
        Pictures by the words of the kind of image and the codec.
    recorded
        Whether the drafts are in the audit record.
    """
    decided = {(one.group, one.codec): one for one in study.decisions}
    unusable = [row for row in study.rows if row.codec is None]
    reasons = {row.reason: sum(r.reason == row.reason for r in unusable) for row in unusable}
    template = _templates().get_template("compression_study.html")
    return template.render(
        study=study,
        claim=study.claim,
        codecs=[CODECS[name] for name in study.plan.settings.codecs],
        decided=decided,
        plots={
            key: _plot(one, study.profiles[one.group])
            for key, one in decided.items()
            if one.evidence
        },
        shown=shown,
        anchors={key: _lossless(study, one) for key, one in decided.items()},
        approvals=approvals,
        recorded=recorded,
        unusable=reasons,
        guideline_table={
            group.modality: table(guidelines(), group.modality) for group in study.groups
        },
        versions={name: version(CODECS[name]) for name in study.plan.settings.codecs},
        companions={key: _companions(study, one) for key, one in decided.items()},
        images={group: _count(study, group, "image") for group in study.groups},
        sources={group: _count(study, group, "source") for group in study.groups},
        devices={group: _devices(study, group) for group in study.groups},
        cautions=dict.fromkeys(
            f"{one.name}: {one.caution}" for one in study.profiles.values() if one.caution
        ),
        lesion=study.plan.settings.lesion and words_of(study.plan.settings.lesion),
        units=_UNITS,
        today=today,
        wide=_WIDE,
        high=_HIGH,
        medqa_version=__version__,
    ).encode()


def _plot(one: Decision, profile: Profile) -> _Plot:
    points = one.curve.points
    limits = profile.limits
    values = [
        max(value, FLOOR)
        for point in points
        for value in (point.distance.low, point.distance.high, point.distance.value)
        if value is not None and not math.isnan(value)
    ]
    values += [limits.diagnostic.value, limits.screening.value]
    y_low, y_high = math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.1
    caps = {
        f"{g.name}{', of other codecs' if cap.note else ''}": cap.highest
        for g in guidelines()
        if (cap := cap_for(g, one.group.modality, one.group.body_part, one.codec))
        and cap.highest > LOSSLESS
    }
    ratios = [p.ratio for p in points]
    x_low, x_high = math.log(min(ratios)) - 0.08, math.log(max([*ratios, *caps.values()])) + 0.08

    def x(ratio: float) -> float:
        return round(_WIDE * (math.log(ratio) - x_low) / (x_high - x_low), 1)

    def y(distance: float) -> float:
        return round(_HIGH * (y_high - math.log10(max(distance, FLOOR))) / (y_high - y_low), 1)

    known = [p for p in points if not math.isnan(p.distance.value)]
    banded = [p for p in known if p.distance.low is not None and p.distance.high is not None]
    upper = [(x(p.ratio), y(p.distance.high or 0.0)) for p in banded]
    lower = [(x(p.ratio), y(p.distance.low or 0.0)) for p in reversed(banded)]
    dots = tuple((x(p.ratio), y(p.distance.value)) for p in known)
    ticks = range(math.ceil(y_low), math.floor(y_high) + 1)
    return _Plot(
        median=_points(dots),
        band=_points([*upper, *lower]),
        dots=dots,
        limits=(
            _Mark(y(limits.diagnostic.value), f"diagnostic {number(limits.diagnostic.value)}"),
            _Mark(y(limits.screening.value), f"screening {number(limits.screening.value)}"),
        ),
        guidelines=tuple(_Mark(x(cap), f"{name} {cap:g}:1") for name, cap in caps.items()),
        approved=None if one.highest is None else x(one.highest),
        across=tuple(_Mark(x(r), f"{r:g}") for r in ratios),
        up=tuple(_Mark(y(10.0**power), f"{10.0**power:g}") for power in ticks),
    )


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)


def _lossless(study: Study, one: Decision) -> str:
    """Median ratio of the lossless streams."""
    found = sorted(
        row.measured
        for row in study.rows
        if row.ratio is None
        and row.measured is not None
        and (row.modality, row.body_part, row.codec)
        == (one.group.modality, one.group.body_part, one.codec)
    )
    return f"{found[len(found) // 2]:.2f}:1" if found else "none"


def _companions(study: Study, one: Decision) -> dict[float, dict[str, float]]:
    """Median PSNR and SSIM of the images by ratio, where they are finite numbers."""
    found: dict[float, dict[str, list[float]]] = {}
    for row in study.rows:
        kind = row.modality, row.body_part, row.codec
        if row.ratio is None or kind != (one.group.modality, one.group.body_part, one.codec):
            continue
        for name in COMPANIONS:
            value = row.measures.get(name)
            if value is not None:
                found.setdefault(row.ratio, {}).setdefault(name, []).append(value)
    return {
        ratio: {name: median(values) for name, values in by_name.items()}
        for ratio, by_name in found.items()
    }


def _count(study: Study, group: Group, what: str) -> int:
    return len({getattr(row, what) for row in _rows(study, group)})


def _devices(study: Study, group: Group) -> list[str]:
    return sorted({row.device or "not stated" for row in _rows(study, group)})


def _rows(study: Study, group: Group) -> list[Row]:
    return [
        row
        for row in study.rows
        if (row.modality, row.body_part) == (group.modality, group.body_part)
    ]


def _crossing(one: Decision) -> str:
    found = one.curve.crossing
    ends = [f"{end:.1f}" if end else None for end in (found.low, found.high)]
    interval = ""
    if any(ends):
        low = f"{ends[0]}:1" if ends[0] else "below those studied"
        high = f"{ends[1]}:1" if ends[1] else "beyond those studied"
        interval = f" ({low} to {high})"
    if found.ratio is not None:
        return f"{found.ratio:.1f}:1{interval}"
    if found.beyond == "above":
        return f"beyond the ratios studied{interval}"
    return f"below the ratios studied{interval}" if found.beyond else "not known"


def _estimate(one: Estimate) -> str:
    if one.low is None or one.high is None:
        return number(one.value)
    return f"{number(one.value)} ({number(one.low)} to {number(one.high)})"


def _signed(one: Estimate) -> str:
    return f"{one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f})"


def _figure(values: Mapping[str, float], name: str, digits: int) -> str:
    return f"{values[name]:.{digits}f}" if name in values else "-"


def _per_cent(share: float) -> str:
    return f"{math.floor(1000 * share) / 10:.1f} %"


@cache
def _templates() -> jinja2.Environment:
    return templates(number, _crossing, _estimate, _figure, _per_cent, _signed)
