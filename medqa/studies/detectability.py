"""Whether a small lesion is still detected after processing: the AUC of a model observer.

A lesion that is known exactly is put at many places of real images *before* the processing, the
whole image is processed with and without it, and a channelised Hotelling observer tells the two
apart from the patch around each place. Its AUC before and after, on the same places, says how much
of what can be detected the processing costs: a task, where a distance is only a likeness (Barrett
and Myers, Foundations of Image Science, 2004, chapter 14).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medqa.errors import MismatchError, PixelError
from medqa.studies.intervals import Estimate
from medqa.studies.observer import Channels, channels_of, compare, patches, scores
from medqa.studies.signals import Signal, calm, inserted, places

__all__ = [
    "FEWEST_PER_CHANNEL",
    "Detectability",
    "Process",
    "Processes",
    "Responses",
    "detectability",
    "evaluate",
    "respond",
]

#: Takes (slices, rows, columns) of one image, and returns it processed, of the same shape.
Process = Callable[[NDArray[Any]], NDArray[Any]]

#: The same for several processes, such as a codec at several ratios: one stack after the other.
Processes = Callable[[NDArray[Any]], Iterable[NDArray[Any]]]

Unit = Literal["images", "slices", "places"]

#: Fewest places for each channel: with fewer, the observer learns its template too badly.
FEWEST_PER_CHANNEL = 10

# An interval counts the outermost units of which there are at least so many.
_FEWEST_UNITS = 10
_FOLDS = 10


@dataclass(frozen=True, eq=False)
class Responses:
    """What the channels answer at every place of one image.

    Parameters
    ----------
    slices
        (places,) index of the slice that each place lies on.
    before
        (2, places, channels) float64, without and with the lesion, not processed.
    after
        The same for each process.
    """

    slices: NDArray[np.int64]
    before: NDArray[np.float64]
    after: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class Detectability:
    """How well the lesion is detected, before and after.

    Parameters
    ----------
    before, after
        AUC with a 95 % interval; 0.5 is chance, 1 never wrong. No interval where the observer was
        never wrong: then the lesion is too plain to tell anything.
    loss
        ``before - after``, of the same places, with a 95 % interval; positive is worse.
    places
        How many, each without and with the lesion.
    units, unit
        What the interval counts: it speaks of other images of the kind, of other slices of these
        images, or only of other places on these slices.
    """

    before: Estimate
    after: Estimate
    loss: Estimate
    places: int
    units: int
    unit: Unit


def detectability(
    reference: NDArray[Any],
    process: Process,
    signal: Signal,
    *,
    spacing: tuple[float, float] = (1.0, 1.0),
    modality: str | None = None,
    inside: NDArray[np.bool_] | None = None,
    channels: Channels = "laguerre-gauss",
    seed: int = 0,
) -> Detectability:
    """Measure what a process costs of the detectability of a lesion in one image.

    Of several images or processes, take `respond` and `evaluate`: an image is in memory only while
    it is its turn, and its unprocessed half is computed once for all processes.

    Parameters
    ----------
    reference
        (slices, rows, columns) finite values, integer or float. A lesion in an image of integers
        is rounded as a scanner would round it.
    process
        Is given the image without and with lesions, as arrays of their own of the reference's type.
    signal
        The lesion; its contrast in the unit of the values.
    spacing
        Of pixel centres along (row, column), in the unit of the lesion's diameter.
    modality
        DICOM Modality, which says what the body is.
    inside
        (slices, rows, columns) where the middle of a lesion may be; None for the body away from
        strong edges (`signals.calm`).
    channels
        What the observer sees through.
    seed
        Of the places: the same one gives the same places.

    Raises
    ------
    PixelError
        Too few places for a lesion of this size.
    MismatchError
        The process returns another shape, or values that are not finite.
    """
    one = respond(
        reference,
        lambda stack: (process(stack),),
        signal,
        spacing=spacing,
        modality=modality,
        inside=inside,
        channels=channels,
        seed=seed,
    )
    return evaluate([one])[0]


def respond(
    reference: NDArray[Any],
    processes: Processes,
    signal: Signal,
    *,
    spacing: tuple[float, float] = (1.0, 1.0),
    modality: str | None = None,
    inside: NDArray[np.bool_] | None = None,
    channels: Channels = "laguerre-gauss",
    seed: int = 0,
) -> Responses:
    """Put lesions into an image, process it, and look at every place through the channels.

    Parameters
    ----------
    processes
        Is called twice: with the image as it is, and with a lesion at every place.

    Others are as of `detectability`.

    Raises
    ------
    MismatchError
        A process returns another shape, or values that are not finite.
    """
    profile = signal.draw(spacing)
    bank = channels_of(channels, signal.sigma, spacing, profile.shape)
    if inside is None:
        inside = calm(reference, signal, spacing, modality)
    where = places(inside, profile.shape, seed)
    both = reference, inserted(reference, profile * signal.contrast, where)
    before = np.stack([patches(one, where, profile.shape) @ bank for one in both])
    after = tuple(
        np.stack(
            [patches(_checked(made, reference.shape), where, profile.shape) @ bank for made in pair]
        )
        # Copies, since a process may write into what it is given.
        for pair in zip(*(processes(one.copy()) for one in both), strict=True)
    )
    return Responses(where[:, 0], before, after)


def evaluate(images: Sequence[Responses]) -> tuple[Detectability, ...]:
    """Train and test the observer on the places of all images, for each process.

    Parameters
    ----------
    images
        Of each image, by the same processes, lesion and channels.

    Raises
    ------
    PixelError
        The images have too few places together.
    """
    before = np.concatenate([one.before for one in images], axis=1)
    count, width = before.shape[1:]
    if count < FEWEST_PER_CHANNEL * width:
        raise PixelError(
            "detectability",
            f"{count} places for a lesion, where {FEWEST_PER_CHANNEL * width} are needed",
            "give more images or slices, or a smaller lesion",
        )
    unit, groups = _groups(images)
    units = int(groups.max()) + 1
    fold = groups * min(_FOLDS, units) // units  # neighbouring slices are in one fold
    scored = scores(before, fold)
    found = []
    for index in range(len(images[0].after)):
        after = np.concatenate([one.after[index] for one in images], axis=1)
        one = compare(scored, scores(after, fold), groups)
        found.append(Detectability(one.before, one.after, one.loss, count, units, unit))
    return tuple(found)


def _groups(images: Sequence[Responses]) -> tuple[Unit, NDArray[np.int64]]:
    """(places,) number of the unit that each lies in: the outermost one of which there are enough.

    Units without a place do not count.
    """
    image = np.repeat(np.arange(len(images)), [len(one.slices) for one in images])
    of_slices = np.stack([image, np.concatenate([one.slices for one in images])])
    levels: tuple[tuple[Unit, NDArray[np.int64]], ...] = (
        ("images", np.unique(image, return_inverse=True)[1]),
        ("slices", np.unique(of_slices, axis=1, return_inverse=True)[1].ravel()),
    )
    for unit, groups in levels:
        if groups.max() + 1 >= _FEWEST_UNITS:
            return unit, groups
    return "places", np.arange(len(image))


def _checked(made: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if made.shape != shape:
        raise MismatchError(
            "processed image",
            f"its shape is {made.shape}, the reference's is {shape}",
            "give a process that keeps the grid",
        )
    if not np.isfinite(made).all():
        raise MismatchError(
            "processed image", "holds values that are not finite", "mend the process"
        )
    return made
