"""Detectability of a lesion in stored images, by codec and ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqa.compression.codecs import Codec, at_ratios, check
from medqa.errors import UsageError
from medqa.studies.compression.stored import StoredImage
from medqa.studies.detectability import Detectability, Processes, Responses, evaluate, respond
from medqa.studies.observer import Channels
from medqa.studies.signals import Signal

__all__ = ["AtRatio", "codec_process", "detectability_by_ratio", "spread_over"]


@dataclass(frozen=True)
class AtRatio:
    """Detectability at a ratio, by the bits stored, that was asked for."""

    ratio: float
    found: Detectability


def detectability_by_ratio(
    images: Sequence[Callable[[], StoredImage]],
    codec: Codec,
    ratios: Sequence[float],
    signal: Signal,
    *,
    channels: Channels = "laguerre-gauss",
    slices: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> tuple[AtRatio, ...]:
    """Measure what a codec costs of the detectability of a lesion, over several images.

    Parameters
    ----------
    images
        Each is read when it is its turn.
    ratios
        By the bits stored.
    signal
        The lesion; diameter in mm, contrast in the images' unit.
    slices
        Of each image at most so many, evenly spread.
    progress
        Called with the images done and their number.

    Raises
    ------
    UsageError
        An image has no known spacing, so that a size in mm says nothing.
    PixelError
        The codec cannot hold an image or reach a ratio, or there are too few places for lesions.
    """
    answers: list[Responses] = []
    for number, read in enumerate(images, start=1):
        stored = read()
        image = stored.image
        check(codec, stored.samples, image.source)
        if image.spacing_mm is None:
            raise UsageError(image.source, "has no pixel spacing", "give images that have one")
        indices = spread_over(image.shape[0], slices)
        answers.append(
            respond(
                np.stack([image.pixels[index] for index in indices]),
                codec_process(stored, indices, codec, ratios),
                signal,
                spacing=image.spacing_mm[1:],
                modality=image.modality,
                channels=channels,
                seed=seed,
            )
        )
        progress(number, len(images))
    return tuple(AtRatio(ratio, one) for ratio, one in zip(ratios, evaluate(answers), strict=True))


def codec_process(
    stored: StoredImage, indices: Sequence[int], codec: Codec, ratios: Sequence[float]
) -> Processes:
    """Return what compresses modality values of some slices, as they would have been stored.

    Parameters
    ----------
    indices
        The slices that it will be given.

    Returns
    -------
    Takes (indices, rows, columns) modality values, finds the nearest that can be stored, and gives
    what each ratio leaves of them, as modality values again.
    """

    def process(stack: NDArray[Any]) -> list[NDArray[Any]]:
        made = [np.empty(stack.shape, np.float32) for _ in ratios]
        for at, (index, values) in enumerate(zip(indices, stack, strict=True)):
            frame = _as_stored(stored, index, values)
            for out, one in zip(made, at_ratios(codec, frame, stored.samples, ratios), strict=True):
                out[at] = stored.shown(index, one.pixels)
        return made

    return process


def _as_stored(stored: StoredImage, index: int, values: NDArray[Any]) -> NDArray[Any]:
    """Give the stored values whose modality values are nearest; what is beyond them is clipped."""
    bits, signed = stored.samples.bits_stored, stored.samples.signed
    low = -(1 << bits - 1) if signed else 0
    dtype = np.dtype(f"{'i' if signed else 'u'}{stored.samples.bits_allocated // 8}")
    every = np.arange(low, low + (1 << bits)).astype(dtype)
    shown = stored.shown(index, every[None])[0].astype(np.float64)
    order = np.argsort(shown, kind="stable")
    middles = (shown[order][1:] + shown[order][:-1]) / 2
    nearest: NDArray[Any] = every[order][np.searchsorted(middles, values)]
    return nearest


def spread_over(count: int, most: int) -> list[int]:
    """Choose at most so many of `count` slices: the middles of as many equal parts."""
    parts = min(count, most)
    return [(2 * part + 1) * count // (2 * parts) for part in range(parts)]
