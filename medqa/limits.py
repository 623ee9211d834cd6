"""What an image file may ask for, before anything of it is decoded.

A header can claim anything: every claim is held against these before memory or time is spent on it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from medqa.errors import UsageError

__all__ = ["Limits", "RefusedError", "limits"]


class RefusedError(Exception):
    """Input that goes beyond a limit; `medqa.dicom.files.reading` makes a `MedqaError` of it.

    Parameters
    ----------
    reason, mend
        As of `MedqaError`; they name no file.
    """

    def __init__(self, reason: str, mend: str) -> None:
        super().__init__(reason, mend)
        self.reason = reason
        self.mend = mend


@dataclass(frozen=True)
class Limits:
    """The largest input that is read.

    Parameters
    ----------
    file_bytes
        Of a file that has to be in memory as a whole, and of what a deflated one inflates to.
    image_bytes
        Of all pixels of an image, decoded.
    frame_pixels
        Rows times columns of one frame: codecs need all of it at once, several times over. The
        largest mammogram has 25 million.
    frames
        Of one file. An hour of functional MR as one object has 64,000.
    elements
        Data elements that are parsed, and items of sequences. pydicom takes 5 and 20 µs for each.
    depth
        Sequences within sequences. The deepest real structured reports have about 12; pydicom
        ends at about 150.
    value_bytes
        Of an element at the top of a data set that holds text or numbers. pydicom makes a Python
        object of each number.
    """

    file_bytes: int = 4 * 2**30
    image_bytes: int = 8 * 2**30
    frame_pixels: int = 2**28
    frames: int = 2**17
    elements: int = 1_000_000
    depth: int = 50
    value_bytes: int = 4 * 2**20


def limits() -> Limits:
    """Return the limits that hold: ``MEDQA_MAX_FILE_GIB`` and ``MEDQA_MAX_IMAGE_GIB`` set two.

    Raises
    ------
    UsageError
        A setting is not a positive number.
    """
    return Limits(
        file_bytes=_gib("MEDQA_MAX_FILE_GIB", Limits.file_bytes),
        image_bytes=_gib("MEDQA_MAX_IMAGE_GIB", Limits.image_bytes),
    )


def _gib(name: str, default: int) -> int:
    given = os.environ.get(name)
    if not given:
        return default
    try:
        size = float(given)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise UsageError(name, "is not a positive number", "give gibibytes, such as 4")
    return int(size * 2**30)
