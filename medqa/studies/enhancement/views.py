"""Pictures of one slice: before, after, what was taken away, what was added, what is missing."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqa import pictures
from medqa.quality.areas import Mask
from medqa.studies.enhancement.residual import structure_map
from medqa.studies.enhancement.rows import Pictures
from medqa.studies.enhancement.support import Finding, Support
from medqa.transforms import Display

__all__ = ["Slice", "draw"]

_SIDE = 320  # longest side of a picture on the page
# Tops of the colours, the same on every page, so that any two pages compare.
_TOP_RESIDUAL = 2.0  # beyond the noise nearby, in units of it: three times the noise
_TOP_SUPPORT = 12.0  # |z|
_TOP_DIFFERENCE = 0.25  # of the range from black to white
_LEAST_Z = 4.0  # |z| that gets colour: less is noise at any usual limit


@dataclass(frozen=True, eq=False)
class Slice:
    """What is drawn.

    Parameters
    ----------
    index, why
        The slice, and why this one.
    many
        Whether the image has more slices.
    display
        How it is shown.
    plain, after, reference
        (1, rows, columns) input (of super-resolution interpolated), output and reference, in the
        image's unit and of one size; no reference is None.
    on_grid
        (rows, columns) input and output on the input's own grid,
    body, support
        where these were measured.
    regions
        (kind, name, (rows, columns) mask), on the grid of `after` or of the input.
    spacing_mm
        Of the pixels.
    """

    index: int
    why: str
    many: bool
    display: Display
    plain: NDArray[Any]
    after: NDArray[Any]
    reference: NDArray[Any] | None
    on_grid: tuple[NDArray[np.float64], NDArray[np.float64]]
    body: Mask
    support: Support | None
    regions: tuple[tuple[str, str, Mask], ...]
    spacing_mm: tuple[float, float, float] | None


def draw(one: Slice) -> Pictures:
    """Draw a slice."""
    before, after = (tensor[0, 0].numpy() for tensor in one.display(one.plain, one.after))
    shape = (after.shape[0], after.shape[1])
    regions = [(kind, name, _enlarged(mask, shape)) for kind, name, mask in one.regions]
    views = [
        ("Input", pictures.outlined(pictures.grayscale(before), regions)),
        ("Output", pictures.outlined(pictures.grayscale(after), regions)),
        ("Taken away beyond noise", _residual(one, before)),
        ("Unsupported (dashed) and lost", _unsupported(one, after)),
    ]
    if one.reference is not None:
        clean = one.display(one.reference, one.reference)[0][0, 0].numpy()
        apart = pictures.overlay(clean, np.abs(after - clean), _TOP_DIFFERENCE)
        views += [
            ("Reference", pictures.outlined(pictures.grayscale(clean), regions)),
            ("Difference from the reference", pictures.outlined(apart, regions)),
        ]
    row, column = one.spacing_mm[1:] if one.spacing_mm else (1.0, 1.0)
    return Pictures(
        slice=one.index,
        window=one.display.name,
        aspect=f"{shape[1] * column:g} / {shape[0] * row:g}",
        views=tuple((title, _uri(picture)) for title, picture in views),
        why=f"slice {one.index}: {one.why}" if one.many else one.why,
    )


def _residual(one: Slice, before: NDArray[np.float32]) -> NDArray[np.uint8]:
    if not one.body.any():
        return pictures.grayscale(before)
    found = structure_map(*one.on_grid, one.body) - 1
    beyond = _enlarged(np.maximum(found, 0), (before.shape[0], before.shape[1]))
    return pictures.overlay(before, beyond, _TOP_RESIDUAL)


def _unsupported(one: Slice, after: NDArray[np.float32]) -> NDArray[np.uint8]:
    if one.support is None:
        return pictures.grayscale(after)
    shape = (after.shape[0], after.shape[1])
    strength = np.abs(one.support.z)
    beyond = _enlarged(np.where(strength > _LEAST_Z, strength, 0), shape)
    drawn = pictures.overlay(after, beyond, _TOP_SUPPORT)
    rings = [_ring(found, one.support.z.shape) for found in one.support.of("added")]
    return pictures.outlined(
        drawn, [("annotation", "unsupported", _enlarged(ring, shape)) for ring in rings]
    )


def _ring(found: Finding, shape: tuple[int, ...]) -> Mask:
    """Surround a finding with what its band is made of."""
    rows, columns = np.indices(shape)
    inside: Mask = np.hypot(rows - found.row, columns - found.column) <= 2 * found.scale + 2
    return inside


def _enlarged(values: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Nearest neighbours on a finer grid of the same field of view."""
    rows, columns = (
        np.minimum(np.arange(many) * few // many, few - 1)
        for many, few in zip(shape, values.shape, strict=True)
    )
    found: NDArray[Any] = values[rows[:, None], columns[None, :]]
    return found


def _uri(picture: NDArray[np.uint8]) -> str:
    content = pictures.png(pictures.page_picture(picture, _SIDE))
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
