"""One number and one word for several measures, by the textbook's weights.

For people who ask for one number. No verdict rests on it: its weights have no reader study behind
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

from medqa.assessment import CompositeScore

__all__ = ["composite", "quality_word"]

#: A measure's weight, and its value as a quality, of which 1 is best; clipped to [0, 1] then.
_PARTS: Mapping[str, tuple[float, Callable[[float], float]]] = MappingProxyType(
    {
        "lpips": (0.3, lambda distance: 1 - distance),
        "ssim": (0.3, lambda likeness: likeness),
        "dists": (0.2, lambda distance: 1 - distance),
        "psnr_db": (0.1, lambda decibels: decibels / 50),
        # The textbook gives the weight alone; that 100 is worst is medqa's choice.
        "fid": (0.1, lambda distance: 1 - distance / 100),
    }
)
_WORDS = (
    (0.9, "excellent"),
    (0.8, "very good"),
    (0.7, "good"),
    (0.6, "acceptable"),
    (0.5, "poor"),
)
_DISTANCE_WORDS = ((0.1, "excellent"), (0.2, "good"), (0.4, "acceptable"))


def composite(lpips: float | None, measures: Mapping[str, float | None]) -> CompositeScore | None:
    """Weigh an LPIPS distance and the measures that are there to one value.

    Parameters
    ----------
    lpips
        The distance, at least 0; without it (None or NaN) there is no composite.
    measures
        Values by name. ``ssim``, ``dists``, ``psnr_db`` and, for sets of images, ``fid`` count;
        others, None and NaN do not. The weights of those that count are scaled to sum to 1, so
        that composites compare only where their `parts` agree. The infinite PSNR of
        identical images is the best one.

    Returns
    -------
    The composite, or None without an LPIPS distance.
    """
    there = {
        name: value
        for name, value in {**measures, "lpips": lpips}.items()
        if name in _PARTS and value is not None and not math.isnan(value)
    }
    distance = there.get("lpips")
    if distance is None:
        return None
    weights = {name: weight for name, (weight, _) in _PARTS.items() if name in there}
    total = math.fsum(weights.values())
    value = math.fsum(weights[name] * _quality(name, there[name]) for name in weights) / total
    parts = {name: weight / total for name, weight in weights.items()}
    alert: Literal["none", "warning", "critical"] = "none"
    if value < 0.4 or distance > 0.5:
        alert = "critical"
    elif value < 0.6 or distance > 0.3:
        alert = "warning"
    word = next((word for least, word in _WORDS if value >= least), "very poor")
    return CompositeScore(value=value, words=word, parts=parts, alert=alert)


def quality_word(distance: float) -> str:
    """Return the textbook's word for an LPIPS distance: excellent, good, acceptable or poor."""
    return next((word for limit, word in _DISTANCE_WORDS if distance < limit), "poor")


def _quality(name: str, value: float) -> float:
    return min(max(_PARTS[name][1](value), 0.0), 1.0)
