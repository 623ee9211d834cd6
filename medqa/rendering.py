"""A slice as it is compared, as a PNG: what the distance sees, for a person to look at."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medqa.dicom.series import windows_of
from medqa.errors import UsageError
from medqa.files import write_file
from medqa.image import Image, VoiLut, Window
from medqa.reader import read
from medqa.thresholds import choose
from medqa.transforms import Display, displays, lut_display, pixels_of, window_display

__all__ = ["render", "render_file", "write_png"]

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


def render(image: Image, index: int, display: Display) -> NDArray[np.uint8]:
    """Show one slice as the comparison shows it.

    Parameters
    ----------
    image
        What is compared; its padding is shown as the smallest other value of the slice.
    index
        Of the slice, from 0, as in the record.
    display
        Of `medqa.transforms.displays`, for one.

    Returns
    -------
    (rows, columns) uint8, 0 is black and 255 white, rounded to the nearest.

    Raises
    ------
    UsageError
        There is no such slice.
    """
    count = image.shape[0]
    if not 0 <= index < count:
        mend = f"choose one from 0 to {count - 1}"
        raise UsageError(image.source, f"has no slice {index}", mend)
    shown, _ = display(*pixels_of(image, image, slice(index, index + 1)))
    gray: NDArray[np.uint8] = np.rint(shown[0, 0].numpy() * 255).astype(np.uint8)
    return gray


def write_png(path: str | os.PathLike[str], pixels: NDArray[np.uint8]) -> None:
    """Write (rows, columns) gray values as a PNG file: whole, or not at all.

    Raises
    ------
    UsageError
        The file cannot be written.
    """
    encoded = io.BytesIO()
    PIL.Image.fromarray(pixels).save(encoded, format="PNG")
    write_file(Path(path), encoded.getvalue())


def render_file(
    path: str | os.PathLike[str],
    frame: int | None,
    window: str | None,
    out: str | os.PathLike[str],
) -> None:
    """Read an image and write one of its slices as it would be compared.

    Parameters
    ----------
    path
        As of `medqa.reader.read`.
    frame
        Index of the slice, from 0, in the order of the comparison; None for the middle one.
    window
        ``centre,width`` in the unit of the image; ``file`` for the first window of the file, or its
        number, from 1, of those that the file offers for this slice; the name of one of the
        profile's displays; None for the first of these.
    out
        PNG file to write.

    Raises
    ------
    ReadError
        The image cannot be read.
    UsageError
        There is no such slice or window, or the file cannot be written.
    """
    image = read(path)
    index = image.shape[0] // 2 if frame is None else frame
    display = _chosen(image, Path(path), index, window)
    write_png(out, render(image, index, display))


def _chosen(image: Image, path: Path, index: int, window: str | None) -> Display:
    stated = re.fullmatch(rf"\s*({_NUMBER})\s*,\s*({_NUMBER})\s*", window or "")
    if stated is not None:
        centre, width = (float(one) for one in stated.groups())
        if width <= 0:
            raise UsageError(window, "is a window of no width", "give centre,width")
        return window_display(f"{centre:g},{width:g}", Window(centre, width))
    if window == "file":
        return _of_file(window, [] if image.voi is None else [image.voi], 1)
    if window is not None and window.isdecimal():
        single = image.kind == "dicom" and path.is_file()
        offered = windows_of(path, index) if single and 0 <= index < image.shape[0] else ()
        return _of_file(window, offered, int(window))
    offered_here = displays(choose(image.modality, body_part=image.body_part), image)
    names = [one.name for one in offered_here]
    if window is None:
        return offered_here[0]
    if window not in names:
        mend = f"give centre,width, file, the number of one, or one of: {', '.join(names)}"
        raise UsageError(window, "is no window of this image", mend)
    return offered_here[names.index(window)]


def _of_file(called: str, offered: Sequence[Window | VoiLut], number: int) -> Display:
    if not 1 <= number <= len(offered):
        reason = f"is no window of this file, which offers {len(offered)}"
        raise UsageError(called, reason, "give centre,width")
    one = offered[number - 1]
    name = f"window {number} of the file"
    return lut_display(name, one) if isinstance(one, VoiLut) else window_display(name, one)
