"""The page of a calibration by forced choices: one HTML file that needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from medqa._version import __version__
from medqa.studies.calibration_page import root_ticks, templates
from medqa.studies.discrimination import Bin, Discrimination
from medqa.studies.psychometric import TOLD_APART
from medqa.studies.readers import ReaderStudy
from medqa.thresholds import Profile

__all__ = ["page"]

_WIDTH, _HEIGHT = 640, 320  # of the drawing in its own units
_STEP = 0.25  # of the axis of shares


@dataclass(frozen=True)
class _Drawing:
    """The curve in the units of the drawing; distances on a square root's axis."""

    farthest: float
    lowest: float

    def x(self, distance: float) -> float:
        return _WIDTH * math.sqrt(distance / self.farthest)

    def y(self, share: float) -> float:
        return _HEIGHT * (1.0 - (share - self.lowest) / (1.0 - self.lowest))

    def points(self, distances: Iterable[float], shares: Iterable[float]) -> str:
        """Return the points of a polyline or polygon."""
        pairs = zip(distances, shares, strict=True)
        return " ".join(f"{self.x(one):.1f},{self.y(share):.1f}" for one, share in pairs)


def page(profile: Profile, base: Profile, study: ReaderStudy, found: Discrimination) -> bytes:
    """HTML of the page. It names readers as the table does, and no image and no patient."""
    distances, low, high = found.band
    drawing = _drawing(float(distances[-1]), found.bins)
    outline = [*distances, *distances[::-1]], [*low, *high[::-1]]
    return (
        templates()
        .get_template("discrimination.html")
        .render(
            profile=profile,
            base=base,
            study=study,
            found=found,
            drawing=drawing,
            curve=drawing.points(distances, found.curve.share(distances)),
            outline=drawing.points(*outline),
            shares=[
                1.0 - _STEP * step for step in range(5) if 1.0 - _STEP * step >= drawing.lowest
            ],
            ticks=root_ticks(drawing.farthest),
            told_apart=TOLD_APART,
            width=_WIDTH,
            height=_HEIGHT,
            medqa_version=__version__,
        )
        .encode()
    )


def _drawing(farthest: float, bins: Iterable[Bin]) -> _Drawing:
    """From 50 % upwards, or as low as an interval goes."""
    ends = [one.right.low for one in bins if one.right.low is not None]
    lowest = _STEP * math.floor(min([0.5, *ends]) / _STEP)
    return _Drawing(farthest, lowest)
