"""What is measured on a slice, by modality: names, units, directions, and how to get each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medqa.quality.areas import Mask, UndefinedError, air_of, body_of
from medqa.quality.artefacts import (
    clipping,
    contrast,
    entropy,
    entropy_focus,
    ghosting,
    summary,
    uniformity,
)
from medqa.quality.noise import (
    air_noise,
    cnr,
    global_noise_level,
    snr_dual_region,
    soft_tissue,
    wavelet_noise,
    window_side,
)
from medqa.quality.sharpness import gradient_sharpness, skin_mtf50

__all__ = ["WORDS", "Kind", "Slice", "kinds_of"]

_SQUARE = 1e-3  # relative difference of the sides of a square pixel


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice; what several measures need is computed once.

    Parameters
    ----------
    pixels
        (rows, columns) modality values.
    shown
        (rows, columns) display values in [0, 1].
    inside
        (rows, columns), where it is no padding.
    modality
        DICOM Modality.
    spacing_mm
        Between rows and columns; None where unknown.
    ends
        Lowest and highest value that can be stored, or that occur in the image.
    """

    pixels: NDArray[np.float64]
    shown: NDArray[np.float64]
    inside: Mask
    modality: str | None
    spacing_mm: tuple[float, float] | None
    ends: tuple[float, float]

    @cached_property
    def body(self) -> Mask:
        """Where the patient or phantom is; raises UndefinedError."""
        return body_of(self.pixels, self.modality, self.inside)

    @cached_property
    def air(self) -> Mask:
        """Where the air around it is; raises UndefinedError."""
        return air_of(self.pixels, self.modality, self.inside, self.body)

    @cached_property
    def noise(self) -> float:
        """`wavelet_noise` of the body."""
        return wavelet_noise(self.pixels, self.body)

    @cached_property
    def shown_noise(self) -> float:
        """`wavelet_noise` of the displayed body."""
        return wavelet_noise(self.shown, self.body)

    @cached_property
    def contrast(self) -> float:
        """`contrast` of the displayed body."""
        return contrast(self.shown, self.body, self.shown_noise)

    @cached_property
    def sharpness(self) -> float:
        """`gradient_sharpness` of the displayed body."""
        return gradient_sharpness(self.shown, self.body, self.shown_noise)

    @cached_property
    def tissue_noise(self) -> float:
        """`global_noise_level` of a CT."""
        return global_noise_level(self.pixels, self.body, self.side)

    @cached_property
    def air_spread(self) -> float:
        """`air_noise`."""
        return air_noise(self.pixels, self.air, self.side)

    @property
    def side(self) -> int:
        """Of a window of 6 mm, in pixels."""
        return window_side(self.spacing_mm)


@dataclass(frozen=True)
class Kind:
    """A measure of a slice.

    Parameters
    ----------
    name
        As recorded.
    better
        Which direction is better.
    words
        What it is, for people.
    measure
        Returns it for a slice, or raises UndefinedError.
    unit
        None for the unit of the image's pixels.
    of_display
        Whether it depends on the display, whose name then stands with the value.
    """

    name: str
    better: Literal["lower", "higher", "neither"]
    words: str
    measure: Callable[[Slice], float]
    unit: str | None = "1"
    of_display: bool = False


def kinds_of(modality: str | None) -> tuple[Kind, ...]:
    """Return what can be measured on the slices of a modality; None where it is unknown."""
    return (*_NOISE, *_BY_MODALITY.get(modality or "", ()), *_ALWAYS)


def _mtf50(one: Slice) -> float:
    if one.spacing_mm is None:
        raise UndefinedError("the size of a pixel is unknown")
    row, column = one.spacing_mm
    if abs(row - column) > _SQUARE * row:
        raise UndefinedError("the pixels are not square")
    return skin_mtf50(one.pixels, row)


def _ct_cnr(one: Slice) -> float:
    if not one.air.any():
        raise UndefinedError("too little air around the body")
    tissue, _ = soft_tissue(one.pixels, one.body, one.side)
    air = float(one.pixels[one.air].mean())
    return cnr(float(np.median(tissue)), air, one.tissue_noise)


def _mr_snr(one: Slice) -> float:
    return snr_dual_region(float(one.pixels[one.body].mean()), one.air_spread)


def _emission_snr(one: Slice) -> float:
    if one.noise == 0:
        raise UndefinedError("there is no noise in the finest band")
    return float(one.pixels[one.body].mean()) / one.noise


def _summary(one: Slice) -> float:
    return summary(one.contrast, one.sharpness, one.shown_noise)


_NOISE = (Kind("noise", "lower", "noise of the body, finest wavelets", lambda s: s.noise, None),)
_ALWAYS = (
    Kind("contrast", "higher", "RMS contrast", lambda s: s.contrast, of_display=True),
    Kind("sharpness", "higher", "gradient over structure", lambda s: s.sharpness, "1/pixel", True),
    Kind("entropy", "neither", "Shannon entropy", lambda s: entropy(s.shown, _all(s)), "bit", True),
    Kind("clipping", "lower", "pixels cut off", lambda s: clipping(s.pixels, s.body, s.ends), "%"),
    Kind("summary", "higher", "(contrast + sharpness) / (1 + noise)", _summary, "1", True),
)
_EMISSION = (Kind("snr", "higher", "signal over noise", _emission_snr),)
_BY_MODALITY: dict[str, tuple[Kind, ...]] = {
    "CT": (
        Kind("noise_air", "lower", "noise in air around the body", lambda s: s.air_spread, None),
        Kind("noise_tissue", "lower", "noise in uniform tissue", lambda s: s.tissue_noise, None),
        Kind("mtf50", "higher", "modulation of 50 % at the skin", _mtf50, "lp/mm"),
        Kind("cnr", "higher", "soft tissue against air, over noise", _ct_cnr),
    ),
    "MR": (
        Kind("snr", "higher", "signal over noise", _mr_snr),
        Kind(
            "uniformity",
            "higher",
            "percent integral uniformity",
            lambda s: uniformity(s.pixels, s.body, s.spacing_mm),
            "%",
        ),
        Kind(
            "ghosting",
            "lower",
            "ghost over signal",
            lambda s: ghosting(s.pixels, s.body, s.air),
        ),
        Kind(
            "motion",
            "lower",
            "entropy focus criterion",
            lambda s: entropy_focus(s.pixels, s.inside),
        ),
    ),
    "PT": _EMISSION,
    "NM": _EMISSION,
}


#: Every measure in plain words, by its name.
WORDS: dict[str, str] = {
    kind.name: kind.words for kinds in (_NOISE, *_BY_MODALITY.values(), _ALWAYS) for kind in kinds
} | {
    "cnr_regions": "contrast between two regions, over noise",
    "exposure_index": "exposure index of the detector",
    "target_exposure_index": "exposure index that was aimed at",
    "deviation_index": "exposure against its target; 0 is on it",
}


def _all(one: Slice) -> Mask:
    """Everything but padding, of which there must be some."""
    if not one.inside.any():
        raise UndefinedError("the slice is padding alone")
    return one.inside
