"""Whether a lesion is kept: its contrast before and after, in the image's unit and in noise.

Contrast is the mean inside minus the mean of a ring around, so it does not depend on a display, and
a faint lesion that was erased shows as much as a bright one. What noise alone does to it is
measured, not assumed: the same lesion's outline, moved over the residual nearby, gives the spread
of contrast that was taken away where there is no lesion. That holds for any spectrum of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from medqa.errors import RegionError
from medqa.image import Region
from medqa.quality.areas import Mask
from medqa.quality.noise import cnr

__all__ = ["Preservation", "preservation"]

_NORMAL = 0.6744897501960817  # third quartile of the standard normal distribution
_CONFIDENT = 1.959963984540054
_GAP, _RING = 1, 5  # pixels: left out for the partial volume, and wide
_REACH = 48  # pixels that the outline is moved, at most
_FEWEST_PLACES = 200
_FEWEST_PIXELS = 4
_SMOOTH = 1.0  # pixels; before the size is measured
_ROUND = ndimage.generate_binary_structure(2, 1)
_CENTRE = (slice(_REACH, -_REACH), slice(_REACH, -_REACH))
_VISIBLE = 2.0  # standard errors; below, the input itself does not show the lesion


@dataclass(frozen=True)
class Preservation:
    """One lesion before and after.

    Parameters
    ----------
    name
        Of the region.
    pixels
        Inside.
    contrast_before, contrast_after
        Mean inside minus mean of the ring, in the image's unit.
    error
        Standard error of the change of contrast, by what was taken away nearby; None where there
        are too few places nearby to tell, as for a large organ.
    change_z
        ``(contrast_after - contrast_before) / error``: beyond 3, by more than noise. 0 where
        nothing was changed.
    kept
        ``contrast_after / contrast_before``, 1 is all, 0 is none, above 1 is enhanced; None where
        the contrast before is within 2 standard errors of 0.
    kept_low, kept_high
        Its 95 % interval; None without `error`.
    cnr_before, cnr_after
        Contrast over the standard deviation of the ring; None where that is 0.
    size_before, size_after
        Pixels in the region and its surroundings on the lesion's side of half its contrast, of the
        image smoothed by 1 pixel; a proxy.
    """

    name: str
    pixels: int
    contrast_before: float
    contrast_after: float
    error: float | None
    change_z: float | None
    kept: float | None
    kept_low: float | None
    kept_high: float | None
    cnr_before: float | None
    cnr_after: float | None
    size_before: int
    size_after: int


@dataclass(frozen=True, eq=False)
class _Part:
    """A region on one slice, cropped as far as its outline is moved.

    Parameters
    ----------
    images
        Before and after.
    inside, ring
        The region and its surroundings, smaller than the images by `_REACH` on each side.
    blocked
        What no moved outline may touch: outside the body, lesions.
    """

    images: tuple[NDArray[np.float64], NDArray[np.float64]]
    inside: Mask
    ring: Mask
    blocked: Mask


def preservation(
    region: Region,
    before: Sequence[NDArray[np.float64]],
    after: Sequence[NDArray[np.float64]],
    bodies: Sequence[Mask],
    others: Mask | None = None,
) -> Preservation:
    """Measure a lesion on all its slices together.

    Parameters
    ----------
    region
        On the grid of the image.
    before, after
        Of each of ``region.slices``, (rows, columns): input, or clean reference, and candidate.
    bodies
        Of each of these slices, (rows, columns): the ring is kept inside.
    others
        (slices, rows, columns) of ``region.slices``: pixels of other lesions, which are no
        surroundings.

    Raises
    ------
    RegionError
        Fewer than 4 pixels inside or around.
    """
    taken = np.zeros((len(bodies), *bodies[0].shape), np.bool_) if others is None else others
    parts = [
        _part(region, index, (before[at], after[at]), bodies[at], taken[at])
        for at, index in enumerate(region.slices)
        if region.on_slice(index)[2].any()
    ]
    pixels = sum(int(np.count_nonzero(part.inside)) for part in parts)
    fewest = min(int(np.count_nonzero(part.ring)) for part in parts)
    if min(pixels, fewest) < _FEWEST_PIXELS:
        raise RegionError(
            region.name,
            "holds too few pixels, or has no surroundings inside the body",
            "leave this region out of the contrasts",
        )
    first, second = (_contrast(parts, which, pixels) for which in (0, 1))
    error = _error(parts, pixels)
    kept, low, high = _kept(first, second, error)
    noises = [_ring_sd(parts, which) for which in (0, 1)]
    return Preservation(
        name=region.name,
        pixels=pixels,
        contrast_before=first,
        contrast_after=second,
        error=error,
        change_z=_change(first, second, error),
        kept=kept,
        kept_low=low,
        kept_high=high,
        cnr_before=cnr(first, 0, noises[0]) if noises[0] > 0 else None,
        cnr_after=cnr(second, 0, noises[1]) if noises[1] > 0 else None,
        size_before=_size(parts, 0, first),
        size_after=_size(parts, 1, second),
    )


def _part(
    region: Region,
    index: int,
    images: tuple[NDArray[np.float64], NDArray[np.float64]],
    body: Mask,
    others: Mask,
) -> _Part:
    rows, columns, mask = region.on_slice(index)
    inside = np.zeros(body.shape, np.bool_)
    inside[rows, columns] = mask
    margin = _GAP + _RING + _REACH
    box = (
        slice(rows.start, rows.stop + 2 * margin),
        slice(columns.start, columns.stop + 2 * margin),
    )
    # What lies beyond the image is outside the body.
    inside, within, others = (np.pad(one, margin)[box] for one in (inside, body, others))
    near = ndimage.binary_dilation(inside, _ROUND, _GAP)
    ring = ndimage.binary_dilation(near, _ROUND, _RING) & ~near & within & ~others
    first, second = (np.pad(one, margin, "edge")[box] for one in images)
    return _Part((first, second), inside[_CENTRE], ring[_CENTRE], ~within | others | near)


def _contrast(parts: Sequence[_Part], which: int, pixels: int) -> float:
    """Mean over the slices of inside minus ring, each slice by its share of the region."""
    return sum(float((_kernel(part, pixels) * part.images[which][_CENTRE]).sum()) for part in parts)


def _kernel(part: _Part, pixels: int) -> NDArray[np.float64]:
    share = np.count_nonzero(part.inside) / pixels
    return part.inside / pixels - share * part.ring / np.count_nonzero(part.ring)


def _error(parts: Sequence[_Part], pixels: int) -> float | None:
    """Spread of the change of contrast over places nearby where there is no lesion."""
    changes: NDArray[np.float64] = np.zeros((2 * _REACH + 1,) * 2)
    free = np.ones(changes.shape, np.bool_)
    for part in parts:
        change = part.images[1] - part.images[0]
        changes += signal.correlate(change, _kernel(part, pixels), "valid", "fft")
        outline = (part.inside | part.ring).astype(np.float64)
        touched = signal.correlate(part.blocked.astype(np.float64), outline, "valid", "fft")
        free &= touched < 0.5
    if np.count_nonzero(free) < _FEWEST_PLACES:
        return None
    return float(np.median(np.abs(changes[free]))) / _NORMAL


def _change(first: float, second: float, error: float | None) -> float | None:
    if first == second:
        return 0.0
    return (second - first) / error if error else None


def _kept(
    first: float, second: float, error: float | None
) -> tuple[float | None, float | None, float | None]:
    """Share of the contrast that is kept, and its interval."""
    if first == 0 or (error is not None and abs(first) <= _VISIBLE * error):
        return None, None, None
    kept = second / first
    if error is None:
        return kept, None, None
    half = _CONFIDENT * error / abs(first)
    return kept, kept - half, kept + half


def _ring_sd(parts: Sequence[_Part], which: int) -> float:
    """Return the SD around the mean of each slice's ring."""
    found = [(part.images[which][_CENTRE][part.ring]) for part in parts]
    squares = sum(float(np.square(ring - ring.mean()).sum()) for ring in found)
    return float(np.sqrt(squares / sum(ring.size for ring in found)))


def _size(parts: Sequence[_Part], which: int, contrast: float) -> int:
    """Pixels on the lesion's side of half its contrast."""
    count = 0
    for part in parts:
        image = ndimage.gaussian_filter(part.images[which], _SMOOTH)[_CENTRE]
        beyond = (image - image[part.ring].mean()) * np.sign(contrast) > abs(contrast) / 2
        near = ndimage.binary_dilation(part.inside, _ROUND, _GAP) | part.ring
        count += int(np.count_nonzero(beyond & near))
    return count
