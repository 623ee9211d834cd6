"""`medqa study detectability`: whether a small lesion is still detected after compression."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medqa.errors import UsageError

if TYPE_CHECKING:
    from medqa.studies.intervals import Estimate

__all__ = ["detectability"]


class CodecName(StrEnum):
    """The codecs, named here because importing them takes seconds."""

    j2k = "j2k"
    htj2k = "htj2k"
    jpegls = "jpegls"
    jpegxl = "jpegxl"
    jpeg = "jpeg"


class ShapeName(StrEnum):
    """What the lesion looks like."""

    gaussian = "gaussian"
    disc = "disc"


class ChannelsName(StrEnum):
    """What the observer sees through."""

    laguerre_gauss = "laguerre-gauss"
    gabor = "gabor"


def detectability(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="DICOM files, folders of one series, or NIfTI."),
    ],
    diameter: Annotated[float, typer.Option(metavar="MM", help="Width of the lesion at half.")],
    contrast: Annotated[
        float, typer.Option(metavar="VALUE", help="Of the lesion, in the images' unit: CT in HU.")
    ],
    codec: Annotated[CodecName, typer.Option(help="What compresses.")] = CodecName.j2k,
    ratios: Annotated[
        str, typer.Option(metavar="R,R,...", help="By the bits stored.")
    ] = "5,8,10,15,20,30",
    shape: Annotated[ShapeName, typer.Option(help="Of the lesion.")] = ShapeName.gaussian,
    channels: Annotated[
        ChannelsName, typer.Option(help="What the observer sees through.")
    ] = ChannelsName.laguerre_gauss,
    slices: Annotated[int, typer.Option(min=1, help="Of each image at most, evenly spread.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the places of the lesions.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the page and the figures here.")
    ] = None,
) -> None:
    """Put small lesions into images, compress them, and let a model observer look for them.

    Exit code 0: measured. 2: it cannot be measured on these images, or wrong use.
    """
    from functools import partial

    from medqa.compression.codecs import CODECS
    from medqa.console import progress_bar, show, table
    from medqa.files import write_file
    from medqa.report import prepare_folder
    from medqa.studies.compression.lesions import TELLING
    from medqa.studies.compression.stored import read_stored
    from medqa.studies.detectability_examples import examples
    from medqa.studies.detectability_page import Asked, page, record
    from medqa.studies.detectability_study import detectability_by_ratio
    from medqa.studies.signals import Signal

    # Whatever can be refused is refused before the work, not after it.
    asked = _ratios(ratios)
    signal = Signal(diameter, contrast, shape.value)
    chosen = CODECS[codec.value]
    if out is not None:
        prepare_folder(out)
    readers = [partial(read_stored, [one]) for one in images]
    with progress_bar("images") as progress:
        found = detectability_by_ratio(
            readers,
            chosen,
            asked,
            signal,
            channels=channels.value,
            slices=slices,
            seed=seed,
            progress=progress,
        )
    one = found[0].found
    show(
        table(
            ("ratio", "AUC after", "loss of AUC"),
            [(f"{at.ratio:g}:1", _words(at.found.after), _words(at.found.loss)) for at in found],
        )
    )
    typer.echo(
        f"{chosen.title}; AUC before {_words(one.before)}; {one.places} places; "
        f"95 % intervals count {one.units} {one.unit}"
    )
    if one.before.value > TELLING[1]:
        typer.echo("Note: the lesion is so plain that little could be lost; take a fainter one.")
    if out is not None:
        first = readers[0]()
        what = Asked(chosen, signal, channels.value, len(images), slices, seed, first.image.unit)
        seen = examples(first, chosen, asked, signal, seed)
        typer.echo(f"page: {write_file(out / 'index.html', page(what, found, seen))}")
        typer.echo(f"figures: {write_file(out / 'detectability.json', record(what, found))}")


def _ratios(given: str) -> list[float]:
    try:
        found = sorted({float(one) for one in given.split(",")})
    except ValueError:
        raise UsageError(given, "is no list of numbers", "write such as 5,10,20") from None
    if not all(1.0 < one < math.inf for one in found):
        raise UsageError(given, "includes a ratio that is not above 1", "write such as 5,10,20")
    return found


def _words(one: Estimate) -> str:
    if one.low is None or one.high is None:
        return f"{one.value:.3f}"
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"
