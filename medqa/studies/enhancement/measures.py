"""Everything that is measured on one slice of an enhanced image: names, units, directions.

Arrays are (rows, columns) float64 in the image's unit, finite, and of one grid; `body` is what
`medqa.quality.areas.body_of` finds on the *input*, so that all methods are measured at the same
place. A measure that is not defined on a slice is left out of `values`, with the reason in
`reasons`: no number is ever made up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from medqa.quality.areas import Mask, UndefinedError
from medqa.quality.noise import wavelet_noise
from medqa.quality.sharpness import gradient_sharpness, skin_mtf50
from medqa.studies.enhancement.residual import residual_of
from medqa.studies.enhancement.resolution import lowered, raised
from medqa.studies.enhancement.spectra import (
    Blocks,
    Spectrum,
    Transfer,
    blocks_of,
    noise_power,
    transfer,
)
from medqa.studies.enhancement.support import Support, support

__all__ = [
    "DENOISING",
    "SUPER_RESOLUTION",
    "Definition",
    "SliceResult",
    "denoising",
    "super_resolution",
]

_T = TypeVar("_T")
_KINDS: tuple[Literal["added", "removed"], ...] = ("added", "removed")
_SQUARE = 1e-3  # relative difference of the sides of a square pixel


@dataclass(frozen=True)
class Definition:
    """A measure.

    Parameters
    ----------
    key
        In `SliceResult.values`.
    title
        In words.
    unit
        ``image`` is the unit of the pixels; empty where there is none.
    better
        Direction; ``neither`` for what describes and does not judge.
    source
        Formula's source.
    """

    key: str
    title: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    source: str


@dataclass(frozen=True, eq=False)
class SliceResult:
    """What was measured on a slice.

    Parameters
    ----------
    values
        By key of the definitions, finite.
    reasons
        By key, why a measure is not defined; keys of `values` and `reasons` together are all.
    support
        Findings and their map (of super-resolution on the low-resolution grid); None where it is
        not defined.
    spectra
        Noise power of ``before``, ``after`` and ``removed``; empty where not defined.
    transfer
        Of structure and of noise, by frequency; None where not defined.
    """

    values: dict[str, float]
    reasons: dict[str, str]
    support: Support | None
    spectra: dict[str, Spectrum]
    transfer: Transfer | None


_TG233 = "NPS: ICRU 54, AAPM TG-233 2019"
_METHOD_NOISE = "method noise, Buades et al. 2005"
_CROSS = "cross spectra of steep and flat blocks; after the TTF of TG-233"
_FIELD = "Gaussian field, Worsley et al. 1996"

_SUPPORT = (
    Definition("added", "findings added", "", "lower", _FIELD),
    Definition("added_z", "strongest added, |z|", "", "lower", _FIELD),
    Definition("added_share", "share of the body with added structure", "", "lower", _FIELD),
    Definition("removed", "findings removed", "", "lower", _FIELD),
    Definition("removed_z", "strongest removed, |z|", "", "lower", _FIELD),
    Definition("removed_share", "share of the body with removed structure", "", "lower", _FIELD),
)

#: Lowest and highest frequency of each third, in units of Nyquist's.
_THIRDS = {"low": (0.0, 1 / 3), "middle": (1 / 3, 2 / 3), "high": (2 / 3, 1.01)}

DENOISING: tuple[Definition, ...] = (
    Definition("noise_before", "noise of the input", "image", "neither", _TG233),
    Definition("noise_after", "noise of the candidate", "image", "lower", _TG233),
    Definition("noise_reduction", "noise taken away, 1 - after / before", "", "higher", _TG233),
    *(
        Definition(
            f"noise_kept_{third}", f"NPS after / before, {third} third", "", "neither", _TG233
        )
        for third in _THIRDS
    ),
    Definition("texture_shift", "mean frequency of noise, after / before", "", "neither", _TG233),
    *(
        Definition(
            f"structure_kept_{third}", f"structure kept, {third} third", "", "higher", _CROSS
        )
        for third in _THIRDS
    ),
    Definition("mtf50_ratio", "MTF50 of the skin, after / before", "", "higher", "ISO 12233"),
    Definition("shift", "mean of the residual", "image", "neither", _METHOD_NOISE),
    Definition("removed_sd", "SD of the residual", "image", "neither", _METHOD_NOISE),
    Definition("edge_correlation", "residual with edges", "", "neither", _METHOD_NOISE),
    Definition("edge_excess", "variance at edges over beside, - 1", "", "neither", _METHOD_NOISE),
    Definition(
        "autocorrelation_excess",
        "autocorrelation of the residual, less that of noise",
        "",
        "neither",
        _METHOD_NOISE,
    ),
    Definition("excess", "share of the residual beyond the noise", "", "lower", _TG233),
    *_SUPPORT,
)

_CONSISTENT = "data consistency, Menon et al. 2020"

SUPER_RESOLUTION: tuple[Definition, ...] = (
    Definition("inconsistency", "RMS of input - lowered candidate", "image", "lower", _CONSISTENT),
    Definition(
        "inconsistency_in_noise",
        "departure from the input, over its noise",
        "",
        "lower",
        _CONSISTENT,
    ),
    Definition(
        "interpolation_inconsistency",
        "departure of cubic interpolation from the input",
        "",
        "neither",
        _CONSISTENT,
    ),
    Definition(
        "sharpness_gain", "sharpness over that of cubic interpolation", "", "higher", "Tenengrad"
    ),
    Definition(
        "new_detail",
        "SD of detail finer than the input, over its structure",
        "",
        "neither",
        "medqa",
    ),
    *_SUPPORT,
)


def denoising(
    noisy: NDArray[np.float64],
    denoised: NDArray[np.float64],
    body: Mask,
    spacing_mm: tuple[float, float] | None = None,
    modality: str | None = None,
    level: float = 0.01,
) -> SliceResult:
    """Measure one denoised slice; values by the keys of `DENOISING`.

    Parameters
    ----------
    noisy, denoised
        (rows, columns).
    body
        (rows, columns), of the noisy image.
    spacing_mm
        Between rows and columns.
    modality
        DICOM Modality: the skin's MTF is measured of a CT only.
    level
        Chance, at most, that one finding or more is false on this slice; of a volume, give the
        volume's level over its slices.
    """
    reasons: dict[str, str] = {}
    blocks = _tried(lambda: blocks_of(noisy, body), (*_OF_BLOCKS, *_OF_RESIDUAL), reasons)
    flat, values = None, {}
    if blocks is not None:
        flat = _tried(lambda: _flat(noisy, denoised, blocks, spacing_mm), _OF_BLOCKS, reasons)
        taken = _tried(lambda: _taken(noisy, denoised, body, blocks), _OF_RESIDUAL, reasons)
        values = (flat.values if flat else {}) | (taken or {})
    skin = _tried(
        lambda: _mtf50_ratio(noisy, denoised, spacing_mm, modality), ("mtf50_ratio",), reasons
    )
    found = _tried(lambda: support(noisy, denoised, body, level), _OF_SUPPORT, reasons)
    values |= (skin or {}) | _counted(found, body)
    return _result(
        values, reasons, found, flat.spectra if flat else {}, flat.transfer if flat else None
    )


def super_resolution(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    body: Mask,
    level: float = 0.01,
) -> SliceResult:
    """Measure one super-resolved slice against its low-resolution input.

    Parameters
    ----------
    low
        (rows, columns) input.
    high
        (as many or more rows and columns) candidate, of the same field of view.
    body
        (rows, columns) of the input.
    level
        As of `denoising`.

    Raises
    ------
    MismatchError
        The candidate has fewer rows or columns than the input.
    """
    coarse, fine = (low.shape[0], low.shape[1]), (high.shape[0], high.shape[1])
    back, cubic = lowered(high, coarse), raised(low, fine)
    fine_body = raised(body.astype(np.float64), fine) > 0.5
    reasons: dict[str, str] = {}
    values = _consistency(low, back, lowered(cubic, coarse), body)
    sharper = _tried(lambda: _sharpness_gain(cubic, high, fine_body), ("sharpness_gain",), reasons)
    detail = _new_detail(low, body, high - raised(back, fine), fine_body)
    found = _tried(lambda: support(low, back, body, level), _OF_SUPPORT, reasons)
    values |= detail | (sharper or {}) | _counted(found, body)
    return _result(values, reasons, found, {}, None)


_OF_SUPPORT = tuple(one.key for one in _SUPPORT)
_OF_RESIDUAL = (
    "shift",
    "removed_sd",
    "edge_correlation",
    "edge_excess",
    "autocorrelation_excess",
    "excess",
)
_OF_BLOCKS = tuple(
    one.key for one in DENOISING if one.key not in (*_OF_SUPPORT, *_OF_RESIDUAL, "mtf50_ratio")
)


@dataclass(frozen=True, eq=False)
class _Flat:
    """What the blocks of a slice tell."""

    values: dict[str, float]
    spectra: dict[str, Spectrum]
    transfer: Transfer


def _tried(measured: Callable[[], _T], keys: tuple[str, ...], reasons: dict[str, str]) -> _T | None:
    """Return what was measured; None, with the reason for its keys, where it is not defined."""
    try:
        return measured()
    except UndefinedError as cause:
        reasons.update(dict.fromkeys(keys, str(cause)))
        return None


def _result(
    values: dict[str, float],
    reasons: dict[str, str],
    found: Support | None,
    spectra: dict[str, Spectrum],
    through: Transfer | None,
) -> SliceResult:
    undefined = {key for key, value in values.items() if not math.isfinite(value)}
    return SliceResult(
        values={key: value for key, value in values.items() if key not in undefined},
        reasons=reasons | dict.fromkeys(undefined, "too little signal beside the noise"),
        support=found,
        spectra=spectra,
        transfer=through,
    )


def _flat(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    blocks: Blocks,
    spacing_mm: tuple[float, float] | None,
) -> _Flat:
    first, second, taken = (
        noise_power(one, blocks.flat, spacing_mm) for one in (before, after, before - after)
    )
    if first.sd == 0:
        raise UndefinedError("the input has no noise in its flat parts")
    through = transfer(before, after, blocks, spacing_mm)
    values = {
        "noise_before": first.sd,
        "noise_after": second.sd,
        "noise_reduction": 1 - second.sd / first.sd,
        "texture_shift": second.mean_frequency / first.mean_frequency
        if second.mean_frequency > 0
        else math.nan,
    }
    for third, ends in _THIRDS.items():
        values[f"noise_kept_{third}"] = _over(first, second.power, first.power, ends)
        values[f"structure_kept_{third}"] = _over(
            first, through.structure * through.weight, through.weight, ends
        )
    return _Flat(values, {"before": first, "after": second, "removed": taken}, through)


def _taken(
    before: NDArray[np.float64], after: NDArray[np.float64], body: Mask, blocks: Blocks
) -> dict[str, float]:
    found = residual_of(before, after, body, blocks)
    return {
        "shift": found.mean,
        "removed_sd": found.sd,
        "edge_correlation": found.edge_correlation,
        "edge_excess": found.edge_excess,
        "autocorrelation_excess": found.autocorrelation - found.noise_autocorrelation,
        "excess": found.excess,
    }


def _over(
    spectrum: Spectrum,
    above: NDArray[np.float64],
    below: NDArray[np.float64],
    ends: tuple[float, float],
) -> float:
    """Ratio of two sums over a band's rings, each by its size; NaN where there is nothing."""
    nyquist = spectrum.frequency[-1]
    band = (spectrum.frequency > ends[0] * nyquist) & (spectrum.frequency <= ends[1] * nyquist)
    size = spectrum.frequency[band]
    total = float(np.nansum(below[band] * size))
    return float(np.nansum(above[band] * size)) / total if total > 0 else math.nan


def _mtf50_ratio(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    spacing_mm: tuple[float, float] | None,
    modality: str | None,
) -> dict[str, float]:
    if modality != "CT":
        raise UndefinedError("only a CT has skin against air of known values")
    if spacing_mm is None or abs(spacing_mm[0] - spacing_mm[1]) > _SQUARE * spacing_mm[0]:
        raise UndefinedError("the pixels are not known to be square")
    first, second = (skin_mtf50(one, spacing_mm[0]) for one in (before, after))
    return {"mtf50_ratio": second / first}


def _counted(found: Support | None, body: Mask) -> dict[str, float]:
    """Return the findings in numbers; none where they are not defined."""
    values: dict[str, float] = {}
    if found is None:
        return values
    for kind in _KINDS:
        ones = found.of(kind)
        values[kind] = float(len(ones))
        values[f"{kind}_z"] = max((abs(one.z) for one in ones), default=0.0)
        values[f"{kind}_share"] = sum(one.pixels for one in ones) / float(np.count_nonzero(body))
    return values


def _consistency(
    low: NDArray[np.float64], back: NDArray[np.float64], cubic: NDArray[np.float64], body: Mask
) -> dict[str, float]:
    try:
        noise = wavelet_noise(low, body)
    except UndefinedError:  # too small a body; what is not over the noise still counts
        noise = 0.0
    apart, interpolated = (
        float(np.sqrt(np.square((low - one)[body]).mean())) for one in (back, cubic)
    )
    return {
        "inconsistency": apart,
        "inconsistency_in_noise": apart / noise if noise > 0 else math.nan,
        "interpolation_inconsistency": interpolated,
    }


def _sharpness_gain(
    cubic: NDArray[np.float64], high: NDArray[np.float64], body: Mask
) -> dict[str, float]:
    first, second = (
        gradient_sharpness(one, body, wavelet_noise(one, body)) for one in (cubic, high)
    )
    return {"sharpness_gain": second / first}


def _new_detail(
    low: NDArray[np.float64], body: Mask, detail: NDArray[np.float64], fine_body: Mask
) -> dict[str, float]:
    structure = float(low[body].std())
    return {"new_detail": float(detail[fine_body].std()) / structure if structure else math.nan}
