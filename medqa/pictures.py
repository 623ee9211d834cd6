"""Pictures for the report: a slice as displayed, and over the anatomy where it was changed.

Pictures are (rows, columns, 3) uint8 RGB arrays in the pixels of the image itself.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from scipy import ndimage

from medqa.assessment import Evidence

__all__ = [
    "EDGE_TOP",
    "TEXTURE_TOP",
    "colours",
    "grayscale",
    "outlined",
    "overlay",
    "page_picture",
    "png",
    "views",
]

# Tops of the colour scale that never change, so that any two reports compare.
#: Edges: the finest band differs by as much as the reference's own edges hold (their RMS).
EDGE_TOP = 1.0
#: Texture: four times or a quarter of the reference's strength, as |ln| of the ratio.
TEXTURE_TOP = math.log(4.0)

# The colour map "plasma" of Smith and van der Walt (matplotlib, CC0) at ten equal steps:
# perceptually uniform, ordered by lightness, so legible with colour blindness. It holds neither
# black, white nor gray, so that no anatomy can be taken for a distance.
_PLASMA = np.array(
    [
        (13, 8, 135),
        (70, 3, 159),
        (114, 1, 168),
        (156, 23, 158),
        (189, 55, 134),
        (216, 87, 107),
        (237, 121, 83),
        (251, 159, 58),
        (253, 202, 38),
        (240, 249, 33),
    ],
    dtype=np.float32,
)
_OPACITY = 0.85  # at the top of the scale: the anatomy still shows through
# Neither is near a colour of the map: cyan, and white broken by black.
_PATHOLOGY = (0, 229, 255)
_ANNOTATION = (255, 255, 255)
_GAP = (0, 0, 0)


def colours(fraction: NDArray[np.floating]) -> NDArray[np.float32]:
    """Colours of the scale.

    Parameters
    ----------
    fraction
        (...,) share of the scale's top; below 0 and above 1 is shown as 0 and 1.

    Returns
    -------
    (..., 3) float32 RGB in [0, 255].
    """
    steps = np.linspace(0.0, 1.0, len(_PLASMA))
    channels = [np.interp(fraction, steps, channel) for channel in _PLASMA.T]
    return np.stack(channels, axis=-1).astype(np.float32)


def grayscale(pixels: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Picture of (rows, columns) display values in [0, 1]; 0 is black."""
    gray = np.rint(np.clip(pixels, 0.0, 1.0) * 255.0).astype(np.uint8)
    return np.stack((gray, gray, gray), axis=-1)


def overlay(
    reference: NDArray[np.floating], differences: NDArray[np.floating], top: float
) -> NDArray[np.uint8]:
    """Map over the anatomy; the larger the difference, the more colour covers the gray.

    Parameters
    ----------
    reference
        (rows, columns) display values in [0, 1].
    differences
        (rows, columns) values of a map, at least 0.
    top
        Difference that gets the scale's last colour; larger ones get it too.
    """
    fraction = np.clip(differences / top, 0.0, 1.0)
    opacity = _OPACITY * fraction[..., np.newaxis]
    blend = (1.0 - opacity) * grayscale(reference) + opacity * colours(fraction)
    picture: NDArray[np.uint8] = np.rint(blend).astype(np.uint8)
    return picture


def outlined(
    picture: NDArray[np.uint8], regions: Sequence[tuple[str, str, NDArray[np.bool_]]]
) -> NDArray[np.uint8]:
    """Copy of a picture with each region's outline.

    The line runs just outside the region, so that it hides nothing of it, and along the border
    where the region reaches it. Pathology is a solid line, an annotation a dashed one.

    Parameters
    ----------
    picture
        (rows, columns, 3) uint8.
    regions
        (kind, name, (rows, columns) bool mask) each.
    """
    drawn = picture.copy()
    # Thick enough to be seen when the picture is fitted to the page.
    width = max(1, -(-max(picture.shape[:2]) // 400))
    # The smallest last, so that a large one never covers it.
    for kind, _, mask in sorted(regions, key=lambda region: -int(region[2].sum())):
        if not mask.any():
            continue
        box = _box(mask, width)
        line = _outline(mask[box], width)
        if kind == "pathology":
            drawn[box][line] = _PATHOLOGY
        else:
            drawn[box][line] = _GAP
            drawn[box][line & _dashes(mask[box], 6 * width)] = _ANNOTATION
    return drawn


def _box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """Bounding box of a mask and a margin, inside the picture."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        slice(max(0, rows[0] - margin), rows[-1] + 1 + margin),
        slice(max(0, columns[0] - margin), columns[-1] + 1 + margin),
    )


def _outline(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    # `mask` comes with a margin of `width` wherever the picture has room for one, so its pixels
    # that near the edge of the array are at the border of the picture.
    border = np.ones_like(mask)
    border[width:-width, width:-width] = False
    line: NDArray[np.bool_] = (ndimage.binary_dilation(mask, iterations=width) & ~mask) | (
        mask & border
    )
    return line


def _dashes(mask: NDArray[np.bool_], length: int) -> NDArray[np.bool_]:
    """Sectors around the region's centre that are about `length` pixels wide at its outline."""
    rows, columns = np.nonzero(mask)
    row, column = np.indices(mask.shape)
    angle = np.arctan2(row - rows.mean(), column - columns.mean()) / (2.0 * np.pi) + 0.5
    circumference = 2.0 * (np.ptp(rows) + np.ptp(columns) + 2)
    pairs = max(4, round(circumference / (2 * length)))
    odd: NDArray[np.bool_] = np.floor(angle * 2 * pairs) % 2 == 1
    return odd


def views(evidence: Evidence, top: float) -> dict[str, NDArray[np.uint8]]:
    """Draw a slice with its regions outlined.

    Parameters
    ----------
    evidence
        The slice.
    top
        Distance at the top of the colour scale, in LPIPS.

    Returns
    -------
    ``reference``, ``candidate``, and over the reference ``distance``, ``edges`` (lost) and
    ``texture`` (changed).
    """
    pictures = {
        "reference": grayscale(evidence.reference),
        "candidate": grayscale(evidence.candidate),
        "distance": overlay(evidence.reference, evidence.distance_map, top),
        "edges": overlay(evidence.reference, _broad(evidence.edge_map), EDGE_TOP),
        "texture": overlay(evidence.reference, evidence.texture_map, TEXTURE_TOP),
    }
    return {name: outlined(picture, evidence.regions) for name, picture in pictures.items()}


def _broad(lines: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest value nearby: a line of one pixel is lost when the picture is fitted to the page."""
    reach = round(max(lines.shape) / 512)
    broad: NDArray[np.float32] = ndimage.maximum_filter(lines, 2 * reach + 1)
    return broad


def page_picture(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Picture for the page, its longest side at most `side` pixels.

    A small one is enlarged a whole number of times without blurring, so that its pixels stay
    visible; a large one is reduced with an antialiasing filter.
    """
    longest = max(picture.shape[:2])
    if longest <= side:
        times = side // longest
        return picture.repeat(times, axis=0).repeat(times, axis=1)
    rows, columns = (max(1, round(size * side / longest)) for size in picture.shape[:2])
    reduced = PIL.Image.fromarray(picture).resize((columns, rows), PIL.Image.Resampling.LANCZOS)
    return np.asarray(reduced)


def png(picture: NDArray[np.uint8]) -> bytes:
    """Encode a picture as a PNG file, of one channel where the three are equal."""
    file = io.BytesIO()
    gray = bool((picture == picture[..., :1]).all())
    PIL.Image.fromarray(picture[..., 0] if gray else picture).save(file, format="PNG")
    return file.getvalue()
