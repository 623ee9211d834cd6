"""Pictures for the page of a study: the worst image of a codec at a ratio."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from medqa import pictures
from medqa.assessment import Evidence, Scores, SliceScore
from medqa.image import Image
from medqa.lpips import GrayLPIPS
from medqa.report import number, scale_top
from medqa.scoring import evidence
from medqa.studies.compression.decision import Decision
from medqa.studies.compression.rows import Row
from medqa.studies.compression.stored import read_stored
from medqa.studies.compression.study import Study
from medqa.studies.compression.sweep import compressed, regions_of
from medqa.transforms import displays

__all__ = ["Shown", "worst_images"]

_SIDE = 384  # longest side on the page, in pixels


@dataclass(frozen=True)
class Shown:
    """An image on the page: what it is, and reference, candidate and map as ``data:`` URIs."""

    caption: str
    views: dict[str, str]


def worst_images(study: Study, one: Decision, network: GrayLPIPS) -> Iterator[Shown]:
    """Show the worst image at the highest ratio that may be approved, and at the next one."""
    ratios = [ratio.ratio for ratio in one.evidence]
    chosen = [ratio for ratio in ratios if one.highest is not None and ratio == one.highest]
    chosen += [ratio for ratio in ratios if ratio > (one.highest or 0.0)][:1]
    for ratio in chosen:
        rows = [
            row
            for row in study.rows
            if (row.modality, row.body_part, row.codec, row.ratio)
            == (one.group.modality, one.group.body_part, one.codec, ratio)
            and row.distance is not None
        ]
        worst = max(rows, key=lambda row: row.distance or 0.0)
        views = pictures.views(
            _evidence(study, one, worst, ratio, network),
            scale_top(study.profiles[one.group].limit_records),
        )
        approved = "highest ratio that may be approved" if ratio == one.highest else "next ratio"
        if one.highest is None:
            approved = "lowest ratio studied"
        yield Shown(
            f"{ratio:g}:1, {approved}: image {worst.image}, slice {worst.slice}, {worst.window}, "
            f"distance {number(worst.distance or 0.0)}",
            {name: _uri(views[name]) for name in ("reference", "candidate", "distance")},
        )


def _evidence(study: Study, one: Decision, row: Row, ratio: float, network: GrayLPIPS) -> Evidence:
    planned = study.plan.images[row.image - 1]
    stored = read_stored([Path(path) for path in planned.paths])
    slices = (SliceScore(index=row.slice or 0, lpips=row.distance or 0.0, window=row.window or ""),)
    made = compressed(stored, one.codec, ratio)
    candidate = Image(cast(NDArray[Any], made))  # `evidence` only slices it
    return evidence(
        network,
        stored.image,
        candidate,
        displays(study.profiles[one.group], stored.image),
        Scores((), slices, row.distance or 0.0, ""),
        regions_of(planned, stored.image),
    )[0]


def _uri(picture: NDArray[np.uint8]) -> str:
    content = pictures.png(pictures.page_picture(picture, _SIDE))
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
