"""Pictures of lesions that a model observer looks for: put in, compressed, and what is left."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medqa import pictures
from medqa.compression.codecs import Codec
from medqa.errors import UsageError
from medqa.studies.compression.stored import StoredImage
from medqa.studies.detectability_study import codec_process
from medqa.studies.signals import Signal, calm, inserted, places

__all__ = ["Example", "Examples", "View", "examples"]

_MOST = 2  # places that are shown
_FIELD = 2  # of a picture, in patches of the observer
_SLICE_SIDE, _SIDE = 640, 192  # longest sides on the page, in pixels
_SPREAD = 3.0  # standard deviations of the anatomy on either side of the window's centre
_ALONE = 1.5  # contrasts of the lesion that are in the window of what is left of it
_FAINT = 2.0  # contrasts of the lesion that are in the window on either side, at least

Array = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """A place in one state: ``data:`` URIs of the anatomy, and of what of the lesion is in it."""

    title: str
    anatomy: str
    lesion: str | None


@dataclass(frozen=True)
class Example:
    """A place, without the lesion, with it, and with it at each ratio."""

    row: int
    column: int
    views: tuple[View, ...]


@dataclass(frozen=True)
class Examples:
    """The middle slice of an image and what becomes of lesions on it.

    Parameters
    ----------
    slice
        Its index.
    picture
        The slice without lesions, as a ``data:`` URI.
    rows, columns
        Of the slice.
    aspect
        Of a pixel, width over height.
    low, high
        Values shown black and white, in the image's unit.
    where
        (row, column) of every place on this slice.
    shown
        Some of them, closer.
    """

    slice: int
    picture: str
    rows: int
    columns: int
    aspect: float
    low: float
    high: float
    where: tuple[tuple[int, int], ...]
    shown: tuple[Example, ...]


def examples(
    stored: StoredImage, codec: Codec, ratios: Sequence[float], signal: Signal, seed: int = 0
) -> Examples | None:
    """Put lesions into the middle slice of an image and compress it; None if none has room.

    Everything is shown through one window, about the values at the places; what is left of a lesion
    is the difference between the slice compressed with and without it, mid-grey for none.

    Raises
    ------
    UsageError
        The image has no pixel spacing.
    PixelError
        The codec cannot hold it, or reach a ratio.
    """
    image = stored.image
    if image.spacing_mm is None:
        raise UsageError(image.source, "has no pixel spacing", "give images that have one")
    spacing, index = image.spacing_mm[1:], image.shape[0] // 2
    before = np.asarray(image.pixels[index], np.float32)[None]
    profile = signal.draw(spacing)
    where = places(calm(before, signal, spacing, image.modality), profile.shape, seed)
    if not len(where):
        return None
    added = inserted(before, profile * signal.contrast, where)
    process = codec_process(stored, [index], codec, ratios)
    states = [("before", before, added)]
    states += [
        (f"{ratio:g}:1", bare, lesioned)
        for ratio, bare, lesioned in zip(ratios, process(before), process(added), strict=True)
    ]
    reach = (_FIELD * (profile.shape[0] // 2), _FIELD * (profile.shape[1] // 2))
    cuts = [
        np.s_[
            0,
            max(0, row - reach[0]) : row + reach[0] + 1,
            max(0, column - reach[1]) : column + reach[1] + 1,
        ]
        for _, row, column in where
    ]
    values = np.concatenate([before[cut].ravel() for cut in cuts]).astype(np.float64)
    half = max(_SPREAD * float(values.std()), _FAINT * abs(signal.contrast))
    alone = _ALONE * abs(signal.contrast)
    window = float(values.mean()) - half, float(values.mean()) + half

    def looked_at(cut: tuple[int, slice, slice]) -> tuple[View, ...]:
        return (
            View("without", _uri(before[cut], *window, _SIDE), None),
            *(
                View(
                    "with lesion" if title == "before" else title,
                    _uri(lesioned[cut], *window, _SIDE),
                    # A window of the lesion's own, whatever lies under it.
                    _uri(lesioned[cut] - bare[cut], -alone, alone, _SIDE),
                )
                for title, bare, lesioned in states
            ),
        )

    chosen = range(0, len(where), max(1, len(where) // _MOST))[:_MOST]
    return Examples(
        slice=index,
        picture=_uri(before[0], *window, _SLICE_SIDE),
        rows=before.shape[1],
        columns=before.shape[2],
        aspect=spacing[1] / spacing[0],
        low=window[0],
        high=window[1],
        where=tuple((int(row), int(column)) for _, row, column in where),
        shown=tuple(
            Example(int(where[at, 1]), int(where[at, 2]), looked_at(cuts[at])) for at in chosen
        ),
    )


def _uri(values: NDArray[np.floating], low: float, high: float, side: int) -> str:
    shown = pictures.grayscale((values.astype(np.float64) - low) / (high - low))
    content = pictures.png(pictures.page_picture(shown, side))
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
