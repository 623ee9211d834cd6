"""Detectability in a study: what each codec costs a small lesion, over the images of a kind.

Each image is looked at when it is compressed, by the process that has it in memory; what the
observer's channels answer is a few numbers for each place, which are kept in a file beside its
rows. The observer is trained on the places of all images of a kind, once all are done.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqa.compression.codecs import CODECS
from medqa.errors import MedqaError
from medqa.studies.compression.rows import Row
from medqa.studies.compression.stored import StoredImage
from medqa.studies.detectability import Detectability, Responses, evaluate, respond
from medqa.studies.detectability_study import codec_process, spread_over
from medqa.studies.signals import Signal, calm

__all__ = ["Answers", "Detected", "answers_of", "detected", "packed", "unpacked", "words_of"]

#: AUC before, from a lesion that is hardly seen to one that hardly can be missed: outside, little
#: could be lost, and that little is lost would say nothing.
TELLING = (0.7, 0.98)

#: Slices of an image that are looked at, at most, evenly spread.
_SLICES = 20

#: What the channels answer: ``slices`` and ``before``, and ``after`` by codec and ratio.
Answers = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Detected:
    """What one codec costs a lesion on one kind of image.

    Parameters
    ----------
    found
        By ratio.
    missing
        Why there is none at a ratio that images were compressed to.
    """

    found: Mapping[float, Detectability] = field(default_factory=dict)
    missing: Mapping[float, str] = field(default_factory=dict)

    @property
    def losses(self) -> dict[float, float]:
        """Upper end of the loss's 95 % interval, by ratio."""
        ends = {ratio: one.loss.high for ratio, one in self.found.items()}
        return {ratio: high for ratio, high in ends.items() if high is not None}


def words_of(lesion: Signal) -> str:
    """Such as ``a Gaussian lesion of 4 mm and +12``, its contrast in the unit of the images."""
    kind = "Gaussian" if lesion.shape == "gaussian" else lesion.shape
    return f"a {kind} lesion of {lesion.diameter:g} mm and {lesion.contrast:+g}"


def answers_of(
    stored: StoredImage, ratios: Mapping[str, Sequence[float]], lesion: Signal
) -> tuple[Answers, str | None]:
    """Put lesions into an image, compress it with and without, and look at every place.

    Parameters
    ----------
    ratios
        Those that each codec reaches on this image.
    lesion
        Its diameter in mm, its contrast in the unit of the image.

    Returns
    -------
    The answers, and why there are none or not of all codecs: the image has no known spacing, or
    with the lesions in it a codec fails or does not reach a ratio.
    """
    image = stored.image
    if image.spacing_mm is None:
        return {}, "has no pixel spacing"
    indices = spread_over(image.shape[0], _SLICES)
    stack = np.stack([image.pixels[index] for index in indices])
    spacing = image.spacing_mm[1], image.spacing_mm[2]
    inside = calm(stack, lesion, spacing, image.modality)
    made: dict[str, NDArray[Any]] = {}
    unseen = None
    for name, reached in ratios.items():
        process = codec_process(stored, indices, CODECS[name], reached)
        try:
            one = respond(
                stack, process, lesion, spacing=spacing, modality=image.modality, inside=inside
            )
        except MedqaError as error:
            unseen = error.reason
        except Exception as error:  # whatever a library in C makes of an odd image
            unseen = f"the codec failed ({type(error).__name__})"
        else:
            made |= {"slices": one.slices, "before": one.before}  # the same for every codec
            made |= {
                _key(name, ratio): after for ratio, after in zip(reached, one.after, strict=True)
            }
    return made, unseen


def packed(answers: Answers) -> bytes:
    """NumPy's ``.npz`` of the answers."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **answers)
    return file.getvalue()


def unpacked(path: Path, codec: str, ratio: float) -> Responses | None:
    """Answers from a file of `packed`; None where it has none of that codec and ratio."""
    with np.load(path, allow_pickle=False) as file:
        name = _key(codec, ratio)
        if name not in file:
            return None
        return Responses(file["slices"], file["before"], (file[name],))


def detected(
    rows: Sequence[Row],
    codec: str,
    answers: Callable[[int, str, float], Responses | None],
    unseen: Mapping[int, str],
) -> Detected:
    """Train and test the observer on all images of a kind, at each ratio of a codec.

    Parameters
    ----------
    rows
        Of this kind of image and codec.
    answers
        Gives those of an image, by its number, the codec and the ratio.
    unseen
        Why images have none, or not all.

    Returns
    -------
    Nothing is found at a ratio where one image that was compressed to it has no answers, where all
    have too few places, or where the lesion is too plain or too faint to tell anything.
    """
    compressed: dict[float, list[Row]] = {}
    for row in rows:
        if row.ratio is not None and row.distance is not None:
            compressed.setdefault(row.ratio, []).append(row)
    found, missing = {}, {}
    for ratio, some in sorted(compressed.items()):
        given = {row.image: answers(row.image, codec, ratio) for row in some}
        if without := [number for number, one in given.items() if one is None]:
            reason = unseen.get(without[0], "it was not looked at")
            missing[ratio] = f"{len(without)} of {len(given)} images could not be used: {reason}"
            continue
        try:
            (one,) = evaluate(_by_source(some, given))
        except MedqaError as error:
            missing[ratio] = error.reason
            continue
        low, high = TELLING
        if not low <= one.before.value <= high:
            word = "faint" if one.before.value < low else "plain"
            missing[ratio] = (
                f"the lesion is too {word} (AUC before {one.before.value:.3f}, not {low:g} to "
                f"{high:g})"
            )
            continue
        found[ratio] = one
    return Detected(found, missing)


def _key(codec: str, ratio: float) -> str:
    return f"{codec} {ratio!r}"


def _by_source(rows: Sequence[Row], given: Mapping[int, Responses | None]) -> list[Responses]:
    """Join the images of a series, which are no images of their own to an interval."""
    of_source: dict[int, list[Responses]] = {}
    for row in rows:
        one = given[row.image]
        if one is not None:
            of_source.setdefault(row.source, []).append(one)
    joined = []
    for several in of_source.values():
        slices, first = [], 0
        for one in several:
            slices.append(one.slices + first)
            first += _SLICES
        joined.append(
            Responses(
                np.concatenate(slices),
                np.concatenate([one.before for one in several], axis=1),
                (np.concatenate([one.after[0] for one in several], axis=1),),
            )
        )
    return joined
