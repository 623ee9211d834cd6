"""How much of the finest detail of a reference a candidate keeps: at its edges, in its texture.

The finest band of a displayed image x is what the smallest Gaussian takes away, and its local
energy is how strong that band is around a pixel. G is a Gaussian of that sigma in pixels::

    B(x) = x - G_0.8(x)                E(x) = sqrt(G_4(B(x)^2))

    body  = where G_4(reference) is above 0.08 of the display's range
    edges = the 15 % of the body's pixels where |grad G_2(reference)| is largest

    edge fidelity    = Pearson correlation over the edges of B(reference) and B(candidate)
    texture fidelity = Pearson correlation over the body of E(reference) and E(candidate)

1 is kept, 0 is lost. A change of brightness or contrast that is the same everywhere costs nothing.
Gaussians are those of `scipy.ndimage.gaussian_filter`: cut at 4 sigma, mirrored at the border with
the outermost pixel repeated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from medqa.errors import UsageError
from medqa.metrics.gaussian import correlate, gaussian, slope, smooth
from medqa.metrics.measure import Measure

__all__ = [
    "EDGE_FIDELITY",
    "TEXTURE_FIDELITY",
    "Bands",
    "edge_fidelity",
    "edge_map",
    "texture_fidelity",
    "texture_map",
]

# The definition, with the settings that followed radiologists on CT.
_BAND_SIGMA = 0.8
_EDGE_SIGMA = 2.0
_LOCAL_SIGMA = 4.0
_BODY_LEVEL = 0.08
_EDGE_SHARE = 0.15

# A correlation over fewer pixels (15 of them edges) says nothing.
_FEWEST_PIXELS = 100
# The radius of the widest Gaussian: below it, the mirror images of an image would overlap.
_SMALLEST_SIDE = 16
# A standard deviation that rounding to float32 can make, of a display in [0, 1].
_FLAT = 1e-6
# Keeps the maps finite where the reference has no detail; a quarter of an 8-bit grey level.
_FLOOR = 0.001


@dataclass(frozen=True)
class _Detail:
    """The finest band of displayed images, (N, 1, H, W) in [0, 1], and where to look at it.

    Each part is computed once, when it is first asked for.
    """

    shown: Tensor
    mask: Tensor | None = None

    @cached_property
    def band(self) -> Tensor:
        return self.shown - smooth(self.shown, _BAND_SIGMA)

    @cached_property
    def energy(self) -> Tensor:
        return smooth(self.band.square(), _LOCAL_SIGMA).sqrt_()

    @cached_property
    def body(self) -> list[Tensor]:
        """Flat indices of each image's body; none where it is too small to say anything about."""
        body = smooth(self.shown, _LOCAL_SIGMA) > _BODY_LEVEL
        if self.mask is not None:
            body &= self.mask
        if min(body.shape[2:]) < _SMALLEST_SIDE:
            body[:] = False
        found = [one.flatten().nonzero()[:, 0] for one in body]
        return [one if len(one) >= _FEWEST_PIXELS else one[:0] for one in found]

    @cached_property
    def edges(self) -> list[Tensor]:
        """Flat indices of each image's edges; pixels as steep as the last one are among them."""
        along, over = gaussian(_EDGE_SIGMA), slope(_EDGE_SIGMA)
        down, across = correlate(self.shown, over, along), correlate(self.shown, along, over)
        found = []
        for steep, body in zip(down.square_().add_(across.square_()), self.body, strict=True):
            inside = _at(steep, body)
            others = len(body) - math.ceil(_EDGE_SHARE * len(body))
            found.append(body[inside >= inside.kthvalue(others + 1).values] if others else body)
        return found


@dataclass(frozen=True)
class Bands:
    """The finest band of two displayed images, and what is left of it in the second.

    Each part is computed once, when it is first asked for.

    Parameters
    ----------
    reference, candidate
        (N, 1, H, W) float32 tensors in [0, data_range].
    data_range
        Width of the display's range.
    mask
        (N, 1, H, W) bool: keep to these pixels. The edges are then 15 % of the masked body.

    Raises
    ------
    UsageError
        The shapes do not agree, or are not (N, 1, H, W).
    """

    reference: Tensor
    candidate: Tensor
    data_range: float = 1.0
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        shape = self.reference.shape
        others = [self.candidate] if self.mask is None else [self.candidate, self.mask]
        if len(shape) != 4 or shape[1] != 1 or any(one.shape != shape for one in others):
            found = ", ".join(str(tuple(one.shape)) for one in (self.reference, *others))
            raise UsageError(
                "images", f"have the shapes {found}", "give tensors of one shape (N, 1, H, W)"
            )

    def against(self, candidate: Tensor) -> Bands:
        """Compare another candidate with the same reference, which is not computed again."""
        other = replace(self, candidate=candidate)
        other.__dict__["_one"] = self._one
        return other

    @cached_property
    def edge_fidelity(self) -> Tensor:
        """(N,) float64 in [-1, 1]: the correlation of the bands over the edges."""
        return self._correlation(self._one.band, self._other.band, self._one.edges)

    @cached_property
    def texture_fidelity(self) -> Tensor:
        """(N,) float64 in [-1, 1]: the correlation of the bands' local energy over the body."""
        return self._correlation(self._one.energy, self._other.energy, self._one.body)

    @cached_property
    def edge_map(self) -> Tensor:
        """(N, 1, H, W): how far the bands differ at the edges, in units of the reference's RMS."""
        found = self.reference.new_zeros(self.reference.shape)
        pairs = zip(found, self._one.band, self._other.band, self._one.edges, strict=True)
        for into, one, other, edges in pairs:
            if len(edges):
                one, other = _at(one, edges), _at(other, edges)
                rms = one.square().mean().sqrt()
                into.view(-1)[edges] = (one - other).abs() / (rms + _FLOOR)
        return found

    @cached_property
    def texture_map(self) -> Tensor:
        """(N, 1, H, W): how far the bands' local energy differs, as |ln| of the ratio."""
        found = self.reference.new_zeros(self.reference.shape)
        pairs = zip(found, self._one.energy, self._other.energy, self._one.body, strict=True)
        for into, one, other, body in pairs:
            ratio = (_at(one, body) + _FLOOR) / (_at(other, body) + _FLOOR)
            into.view(-1)[body] = ratio.log().abs()
        return found

    @cached_property
    def _one(self) -> _Detail:
        return _Detail(self.reference / self.data_range, self.mask)

    @cached_property
    def _other(self) -> _Detail:
        return _Detail(self.candidate / self.data_range)

    def _correlation(self, one: Tensor, other: Tensor, regions: list[Tensor]) -> Tensor:
        # One at a time: each image has a region of its own size.
        values = [
            _pearson(_at(a, region).double(), _at(b, region).double(), torch.equal(*images))
            for a, b, region, *images in zip(
                one, other, regions, self.reference, self.candidate, strict=True
            )
        ]
        return torch.stack(values)


def edge_fidelity(
    reference: Tensor, candidate: Tensor, data_range: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """How well the finest band is kept at the edges: 1 is kept, 0 is lost; higher is better.

    The Pearson correlation of the two finest bands over the reference's edges. In a CT reader
    study it followed what radiologists said of contrast and structure.

    Parameters
    ----------
    reference, candidate
        (N, 1, H, W) float32 tensors in [0, data_range].
    data_range
        Width of the display's range.
    mask
        (N, 1, H, W) bool: keep to these pixels. The edges are then the steepest 15 % of the
        body's pixels inside.

    Returns
    -------
    (N,) float64 in [-1, 1]. Exactly 1 for identical images. 0 where the candidate has no detail
    at all. NaN where it is undefined: a side under 16 pixels, a body (within the mask) of fewer
    than 100 pixels, or a reference without detail there.

    Raises
    ------
    UsageError
        The shapes do not agree, or are not (N, 1, H, W).
    """
    return Bands(reference, candidate, data_range, mask).edge_fidelity


def texture_fidelity(
    reference: Tensor, candidate: Tensor, data_range: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """How well the place and strength of fine texture is kept: 1 is kept; higher is better.

    The Pearson correlation over the reference's body of the finest bands' local energy. In a CT
    reader study it followed what radiologists said of noise texture. Parameters, result and
    errors are those of `edge_fidelity`.
    """
    return Bands(reference, candidate, data_range, mask).texture_fidelity


def edge_map(reference: Tensor, candidate: Tensor, data_range: float = 1.0) -> Tensor:
    """Where edges were lost: (N, 1, H, W), 0 is kept.

    The difference of the two finest bands at the reference's edges, in units of the RMS of the
    reference's band there: near 1, an edge is lost; above, something else stands in its place.
    0 away from edges. Parameters and errors are those of `edge_fidelity`.
    """
    return Bands(reference, candidate, data_range).edge_map


def texture_map(reference: Tensor, candidate: Tensor, data_range: float = 1.0) -> Tensor:
    """Where texture was lost or added: (N, 1, H, W), 0 is kept.

    The absolute natural logarithm of the ratio of the finest bands' local energy in the
    reference's body: 0.7 is twice or half the strength. 0 outside the body. Unlike
    `texture_fidelity` it also shows a change that is the same everywhere. Parameters and errors
    are those of `edge_fidelity`.
    """
    return Bands(reference, candidate, data_range).texture_map


_SOURCE = "medqa, docs/bands.md: settings found on one half of a public CT reader study"

EDGE_FIDELITY = Measure(
    "edge_fidelity",
    edge_fidelity,
    _SOURCE,
    masked=True,
    smallest_side=_SMALLEST_SIDE,
)
TEXTURE_FIDELITY = Measure(
    "texture_fidelity",
    texture_fidelity,
    _SOURCE,
    masked=True,
    smallest_side=_SMALLEST_SIDE,
)


def _at(image: Tensor, pixels: Tensor) -> Tensor:
    """Values of an image at flat indices; by index_select, the fastest of torch's ways."""
    return image.flatten().index_select(0, pixels)


def _pearson(one: Tensor, other: Tensor, identical: bool) -> Tensor:
    """Correlation of a reference's values and a candidate's; each (n,) float64."""
    if not len(one):
        return one.new_tensor(math.nan)
    if identical:  # exact, where rounding would leave 1 - 1e-16, and defined without detail too
        return one.new_tensor(1.0)
    one, other = one - one.mean(), other - other.mean()
    if one.square().mean().sqrt() < _FLAT:
        return one.new_tensor(math.nan)
    if other.square().mean().sqrt() < _FLAT:
        return one.new_tensor(0.0)
    return (one @ other / (one.square().sum() * other.square().sum()).sqrt()).clamp(-1, 1)
