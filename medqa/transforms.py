"""Normalise: from modality values to what a reader sees, as a MONAI transform chain.

The numbers of a display come from the profile or from the reference alone, and one chain shows
both images. Scaling each image by itself would hide the very shifts that QA must find.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medqa.errors import MismatchError, PixelError
from medqa.image import TOLERANCE_VOXELS, Image, VoiLut, Window, voxels_apart
from medqa.thresholds import FullRange, Percentiles, Profile, Windows

if TYPE_CHECKING:
    from monai.transforms import Compose

# MONAI stands inside the functions that use it: importing it takes longer than torch does.

__all__ = [
    "KEYS",
    "Display",
    "check_pixels",
    "displays",
    "lut_display",
    "match",
    "pixels_of",
    "same_grid",
    "window_display",
]

#: The two entries of the dictionary that a display's chain takes and returns.
KEYS = ("reference", "candidate")


@dataclass(frozen=True)
class Display:
    """A way to look at both images.

    Parameters
    ----------
    name
        As in the profile, such as ``soft tissue``.
    low, high
        Values shown black and white, in the image's unit; None for a LUT.
    chain
        Takes a dictionary of two (N, H, W) tensors of modality values, under `KEYS`, and returns
        them in [0, 1] float32.
    """

    name: str
    low: float | None
    high: float | None
    chain: Compose

    def __call__(self, reference: NDArray[Any], candidate: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Show slices of both images: two (N, H, W) arrays to two (N, 1, H, W) tensors."""
        shown: Mapping[str, Tensor] = self.chain(
            dict(zip(KEYS, (reference, candidate), strict=True))
        )
        return shown["reference"][:, None], shown["candidate"][:, None]


def displays(profile: Profile, reference: Image) -> tuple[Display, ...]:
    """Return the displays of a profile, with numbers from the profile or the reference.

    Raises
    ------
    PixelError
        The reference has no contrast to scale by, or is one grey in every display.
    MismatchError
        The profile's windows are in another unit than the image.
    """
    shown = _displays(profile, reference)
    ends = np.array([[[reference.survey.minimum, reference.survey.maximum]]])
    for display in shown:
        one, _ = display(ends, ends)
        # What a LUT makes of values between the ends is not known from these.
        if display.low is None or one[..., 0] != one[..., 1]:
            return shown
    raise PixelError(
        reference.source,
        "is one grey all over in every display, so that nothing could be seen on it",
        "name a profile with another display",
    )


def _displays(profile: Profile, reference: Image) -> tuple[Display, ...]:
    rule = profile.normalise
    if isinstance(rule, Windows):
        scale = _per_unit(reference, rule.unit)
        if scale is None:
            raise MismatchError(
                reference.source,
                f"is in {reference.unit}, the windows of profile {profile.name} are in {rule.unit}",
                "name a profile for this kind of image with --profile",
            )
        return tuple(
            window_display(one.name, Window(scale * one.centre, scale * one.width))
            for one in rule.windows
        )
    if isinstance(rule, FullRange):
        low, high = reference.value_range or _percentiles(reference, 0, 100)
        return (_range("full range", low, high),)
    if not isinstance(rule, Percentiles):  # the display that the file asks for
        if isinstance(reference.voi, VoiLut):
            return (lut_display("VOI LUT of the reference", reference.voi),)
        if reference.voi is not None:
            return (window_display("window of the reference", reference.voi),)
    low, high = _percentiles(reference, rule.lower, rule.upper)
    return (_range(f"percentiles {rule.lower:g} to {rule.upper:g} of the reference", low, high),)


def _per_unit(reference: Image, unit: str) -> float | None:
    """How much of the image's unit makes one of a profile's; None where they have no relation."""
    if reference.unit in (unit, "arbitrary"):
        return 1.0
    if unit == "GML" and reference.suv_factor:  # standardised uptake value: PS3.3 C.8.9.1.1.3
        return 1 / reference.suv_factor
    return None


def pixels_of(
    reference: Image, candidate: Image, batch: slice
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Decode slices of both images, with the reference's padding laid over both.

    Where the reference is padding, both get the smallest other value of its slice. The padding of
    the candidate says nothing: lossy compression changes its value.

    Returns
    -------
    Two (n, rows, columns) arrays of modality values.
    """
    one, padding, fill = _decoded(reference, batch)
    other = candidate.pixels[batch]
    if padding is None:
        return one, other
    return np.where(padding, fill, one), np.where(padding, fill, other)


def _decoded(
    image: Image, batch: slice
) -> tuple[NDArray[Any], NDArray[np.bool_] | None, NDArray[Any]]:
    """(n, rows, columns) values, where they are padding, and what stands for that: (n, 1, 1)."""
    pixels = image.pixels[batch]
    padding = image.is_padding(pixels, batch)
    if padding is None:
        return pixels, None, pixels[:, :1, :1]
    inside = ~padding
    inside |= ~inside.any(axis=(1, 2), keepdims=True)  # of padding alone, its own smallest
    fill = pixels.min(axis=(1, 2), keepdims=True, where=inside, initial=pixels.max())
    return pixels, padding, fill


def match(reference: Image, candidate: Image, *, resample: bool) -> Image:
    """Return the candidate on the reference's grid.

    Parameters
    ----------
    resample
        Whether a candidate on another grid is brought over (trilinear, by MONAI); else it is an
        error.

    Raises
    ------
    MismatchError
        Another modality or unit, or another grid: not to be resampled, or not covering the
        reference, whose missing part would have to be made up.
    """
    for what in ("modality", "unit"):
        one, other = getattr(reference, what), getattr(candidate, what)
        # A NIfTI says neither, so only DICOM can contradict DICOM.
        if one != other and reference.kind == candidate.kind == "dicom":
            raise MismatchError(
                candidate.source,
                f"its {what} is {other}, the reference's is {one}",
                "give a candidate made from this reference",
            )
    placed = reference.affine is not None, candidate.affine is not None
    if placed[0] != placed[1] and "nifti" in (reference.kind, candidate.kind):
        raise MismatchError(
            candidate.source,
            "only one of the two has a known position, so one may be the other in a mirror",
            "save the candidate with the reference's header",
        )
    if same_grid(reference, candidate):
        return candidate
    where = (
        f"is {_words(candidate)}, the reference is {_words(reference)}"
        if candidate.shape != reference.shape
        else "lies elsewhere in the patient than the reference"
    )
    possible = max(reference.volumes, candidate.volumes) == 1 and _covers(candidate, reference)
    if not (resample and possible):
        mend = "allow resampling with --resample" if possible else "give a candidate of this place"
        raise MismatchError(candidate.source, where, mend)
    return _resample(candidate, reference)


def same_grid(one: Image, other: Image) -> bool:
    """Whether shapes agree and, where both positions are known, every corner voxel's too."""
    if one.shape != other.shape or one.volumes != other.volumes:
        return False
    if one.affine is None or other.affine is None:
        return True
    volume = (one.shape[0] // one.volumes, *one.shape[1:])
    return voxels_apart(one.affine, other.affine, volume) < TOLERANCE_VOXELS


def check_pixels(image: Image, smallest_side: int) -> None:
    """Refuse values that no distance can be computed from.

    Parameters
    ----------
    smallest_side
        Rows and columns that the network needs.

    Raises
    ------
    PixelError
        Too small, NaN or infinite values, or one value everywhere.
    """
    if min(image.shape[1:]) < smallest_side:
        raise PixelError(
            image.source,
            f"is {_words(image)}, the network needs at least {smallest_side} rows and columns",
            "give a larger image",
        )
    _check_finite(image)
    if image.survey.minimum == image.survey.maximum:
        raise PixelError(
            image.source,
            f"every pixel is {image.survey.minimum:g}: there is nothing to compare",
            "check that the file holds the image that was meant",
        )


def _check_finite(image: Image) -> None:
    if image.survey.not_finite:
        raise PixelError(
            image.source,
            f"{image.survey.not_finite} pixel values are NaN or infinite",
            "mend the step that wrote them",
        )


def window_display(name: str, window: Window) -> Display:
    """Return the display that a window is (PS3.3 C.11.2.1.2)."""
    from monai.transforms import Lambdad

    if window.function == "SIGMOID":  # PS3.3 C.11.2.1.3.1

        def sigmoid(values: Tensor) -> Tensor:
            return torch.sigmoid(4 * (values - window.centre) / window.width)

        low, high = window.centre - window.width / 2, window.centre + window.width / 2
        return Display(name, low, high, _chain(Lambdad(KEYS, sigmoid)))
    if window.function == "LINEAR_EXACT":  # PS3.3 C.11.2.1.3.2
        return _range(name, window.centre - window.width / 2, window.centre + window.width / 2)
    # PS3.3 C.11.2.1.2.1: centre - 0.5, width - 1. A width of 1 is a step: black up to the end.
    low = window.centre - 0.5 - (window.width - 1) / 2
    return _range(name, low, low + max(window.width - 1, 1e-3))


def _range(name: str, low: float, high: float) -> Display:
    from monai.transforms import ScaleIntensityRanged

    scale = ScaleIntensityRanged(KEYS, a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)
    return Display(name, low, high, _chain(scale))


def lut_display(name: str, voi: VoiLut) -> Display:
    """Return the display that a VOI LUT is (PS3.3 C.11.2.1.1)."""
    from monai.transforms import Lambdad

    table = torch.from_numpy(voi.table)

    def look_up(values: Tensor) -> Tensor:
        index = (values - voi.first).round().clamp(0, len(table) - 1)
        return table[index.long()]

    return Display(name, None, None, _chain(Lambdad(KEYS, look_up)))


def _chain(*steps: object) -> Compose:
    from monai.transforms import Compose, EnsureTyped

    ensure = EnsureTyped(KEYS, dtype=torch.float32, track_meta=False)
    return Compose([ensure, *steps, ensure])


def _percentiles(image: Image, lower: float, upper: float) -> tuple[float, float]:
    _check_finite(image)
    # NumPy's own percentile copies the volume and sorts it; this takes one slice after another.
    places = [share / 100 * (math.prod(image.shape) - 1) for share in (lower, upper)]
    nearest = _ranked(image, [end(place) for place in places for end in (math.floor, math.ceil)])
    low, high = (
        a + (b - a) * (place - math.floor(place))
        for place, a, b in zip(places, nearest[::2], nearest[1::2], strict=True)
    )
    if not low < high:
        raise PixelError(
            image.source,
            f"percentiles {lower:g} and {upper:g} are both {low:g}: there is no contrast to show",
            "name a profile with another display",
        )
    return low, high


def _ranked(image: Image, ranks: Sequence[int]) -> list[float]:
    """Values at these places, from 0, of the sorted pixels; exact, one slice in memory.

    Counts 16 bits of the pixels' order at a time, from the highest: of the pixels that share the
    higher bits of a wanted one, how many have each of the next 16 bits.
    """
    dtype = image.pixels.dtype.newbyteorder("=")
    found, left = [0] * len(ranks), list(ranks)
    for shift in reversed(range(0, 8 * dtype.itemsize, 16)):
        counts = {prefix: np.zeros(2**16, np.int64) for prefix in found}
        for index in range(image.shape[0]):
            one, padding, fill = _decoded(image, slice(index, index + 1))
            one = one if padding is None else np.where(padding, fill, one)
            keys = _keys(one.astype(dtype)) >> np.uint64(shift)
            for prefix, count in counts.items():
                digits = keys[keys >> np.uint64(16) == prefix] & np.uint64(2**16 - 1)
                count += np.bincount(digits.astype(np.intp), minlength=2**16)
        for i, prefix in enumerate(found):
            upto = np.cumsum(counts[prefix])
            digit = int(np.searchsorted(upto, left[i], side="right"))
            left[i] -= int(upto[digit - 1]) if digit else 0
            found[i] = (prefix << 16) + digit
    return [_value(key, dtype) for key in found]


def _keys(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Unsigned integers in the order of the values (of -0.0 and 0.0, the first comes first)."""
    size = values.dtype.itemsize
    sign = np.uint64(1 << 8 * size - 1)
    keys = np.ascontiguousarray(values).view(f"u{size}").astype(np.uint64)
    if values.dtype.kind == "f":  # IEEE 754: of negative numbers, the larger bits are the smaller
        return np.where(keys & sign, np.uint64(2 * int(sign) - 1) - keys, keys | sign)
    return keys ^ sign if values.dtype.kind == "i" else keys


def _value(key: int, dtype: np.dtype[Any]) -> float:
    """Return the value that `_keys` makes this of."""
    sign = 1 << 8 * dtype.itemsize - 1
    if dtype.kind == "f":
        key = key ^ sign if key & sign else 2 * sign - 1 - key
    elif dtype.kind == "i":
        key ^= sign
    return float(np.array(key, f"u{dtype.itemsize}").view(dtype))


def _covers(candidate: Image, reference: Image) -> bool:
    """Whether every voxel centre of the reference lies in a voxel of the candidate."""
    if reference.affine is None or candidate.affine is None:
        return False
    corners = np.array(np.meshgrid(*((0, n - 1) for n in reference.shape), [1])).reshape(4, -1)
    inside = np.linalg.solve(candidate.affine, reference.affine @ corners)[:3].T
    half = 0.5 + TOLERANCE_VOXELS
    return bool((inside > -half).all() and (inside < np.array(candidate.shape) - 1 + half).all())


def _resample(candidate: Image, reference: Image) -> Image:
    """Read the candidate where the reference's voxels lie, trilinearly.

    MONAI takes and returns whole volumes: both stay in memory, as float32.
    """
    from monai.data import MetaTensor
    from monai.transforms import SpatialResample

    whole = np.require(np.asarray(candidate.pixels), np.float32, ["C", "W"])
    moving = MetaTensor(torch.from_numpy(whole)[None], affine=candidate.affine)
    resampler = SpatialResample(mode="bilinear", padding_mode="border", align_corners=True)
    moved = resampler(moving, dst_affine=reference.affine, spatial_size=reference.shape)
    return replace(
        candidate,
        pixels=moved.as_tensor()[0].numpy(),
        affine=reference.affine,
        spacing_mm=reference.spacing_mm,
    )


def _words(image: Image) -> str:
    slices, rows, columns = image.shape
    return (f"{slices} slices of " if slices > 1 else "") + f"{rows} x {columns}"
