"""The strongest setting of a codec that is still good for one image, by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqa.compression.codecs import Codec, Samples, encode, ratio_allocated, ratio_stored, span

__all__ = ["Stream", "compressed", "settings", "strongest"]

#: Settings that a codec without whole numbers is tried with: neighbours are 1 to 4 % apart.
_STEPS = 513
#: The search for the highest ratio ends within 1 % of it.
_NEAR = 0.99


@dataclass(frozen=True)
class Stream:
    """All frames of an image, compressed with one setting.

    Parameters
    ----------
    setting
        In the codec's own parameter; None where it is lossless.
    syntax
        DICOM transfer syntax.
    frames
        The stream of each frame.
    ratio_stored, ratio_allocated
        Of all frames together, by the bits stored and by the bits allocated.
    lowest, highest
        Of all values when they are decoded again.
    """

    setting: float | None
    syntax: str
    frames: tuple[bytes, ...]
    ratio_stored: float
    ratio_allocated: float
    lowest: int
    highest: int

    @property
    def nbytes(self) -> int:
        """Bytes of all frames."""
        return sum(map(len, self.frames))


def compressed(
    codec: Codec, frames: Sequence[NDArray[Any]], samples: Samples, setting: float | None
) -> Stream:
    """Compress all frames, each (rows, columns) integers, with one setting; None is lossless.

    Raises
    ------
    PixelError
        The codec cannot hold such values.
    """
    data, ends = [], []
    for frame in frames:
        encoded = encode(codec, frame, samples, setting)
        data.append(encoded.data)
        ends += [int(encoded.pixels.min()), int(encoded.pixels.max())]
    shape = (len(frames), *frames[0].shape)
    nbytes = sum(map(len, data))
    return Stream(
        setting=setting,
        syntax=str(encoded.syntax),
        frames=tuple(data),
        ratio_stored=ratio_stored(shape, samples, nbytes),
        ratio_allocated=ratio_allocated(shape, samples, nbytes),
        lowest=min(ends),
        highest=max(ends),
    )


def settings(codec: Codec, samples: Samples) -> list[float]:
    """Return the settings to try, the gentlest first: whole numbers, or equal ratios apart."""
    gentlest, strongest = span(codec, samples)
    if codec.integer:
        step = 1 if strongest >= gentlest else -1
        return list(range(int(gentlest), int(strongest) + step, step))
    return [float(one) for one in np.geomspace(gentlest, strongest, _STEPS)]


def strongest(
    codec: Codec,
    frames: Sequence[NDArray[Any]],
    samples: Samples,
    highest_ratio: float,
    good: Callable[[Stream], bool],
) -> Stream | None:
    """Compress an image as strongly as it stays good and within a ratio.

    Streams get smaller and images worse from setting to setting, nearly always; where they do
    not, a stronger setting may be missed, but what is returned was found good itself.

    Parameters
    ----------
    frames
        Each (rows, columns) integers, as stored.
    highest_ratio
        By the bits stored, of all frames together.
    good
        Whether a stream may be used. It is asked about few: first about the strongest within the
        ratio, which most images bear.

    Returns
    -------
    Lossless, where that is no larger than the strongest good one, or reaches the ratio by itself.
    None where not even the gentlest setting is good.

    Raises
    ------
    PixelError
        The codec cannot hold such values.
    """
    lossless = compressed(codec, frames, samples, None)
    if lossless.ratio_stored >= highest_ratio:
        return lossless
    tried = settings(codec, samples)

    @cache
    def stream(index: int) -> Stream:
        return compressed(codec, frames, samples, tried[index])

    within = _within(len(tried), lambda index: stream(index).ratio_stored, highest_ratio)
    if within is None:
        return None
    best = within if good(stream(within)) else _last(within, lambda one: good(stream(one)))
    if best is None:
        return None
    return stream(best) if stream(best).nbytes < lossless.nbytes else lossless


def _within(count: int, ratio: Callable[[int], float], highest: float) -> int | None:
    """Return the last number, or nearly, whose ratio is no higher than that; None for none.

    By interpolation, as ratios rise smoothly and each costs a stream.
    """
    low, high = 0, count - 1
    if ratio(low) > highest:
        return None
    if ratio(high) <= highest:
        return high
    while high - low > 1 and ratio(low) < _NEAR * highest:
        part = math.log(highest / ratio(low)) / math.log(ratio(high) / ratio(low))
        # Never too near an end: each guess must narrow what is left.
        guess = low + round(min(max(part, 0.1), 0.9) * (high - low))
        guess = min(max(guess, low + 1), high - 1)
        low, high = (guess, high) if ratio(guess) <= highest else (low, guess)
    return low


def _last(count: int, holds: Callable[[int], bool]) -> int | None:
    """Return the last of the first `count` numbers for which something holds; None for none.

    It is taken to hold up to there and not beyond.
    """
    low, high = -1, count  # holds at low, does not at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low if low >= 0 else None
