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
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from medqa.errors import UsageError
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

    @cached_property
    def edge_fidelity(self) -> Tensor:
        """(N,) float64 in [-1, 1]: the correlation of the bands over the edges."""
        return self._correlation(self._bands, self._edges)

    @cached_property
    def texture_fidelity(self) -> Tensor:
        """(N,) float64 in [-1, 1]: the correlation of the bands' local energy over the body."""
        return self._correlation(self._energies, self._body)

    @cached_property
    def edge_map(self) -> Tensor:
        """(N, 1, H, W): how far the bands differ at the edges, in units of the reference's RMS."""
        found = self.reference.new_zeros(self.reference.shape)
        for into, one, other, edges in zip(found, *self._bands, self._edges, strict=True):
            if len(edges):
                one, other = _at(one, edges), _at(other, edges)
                rms = one.square().mean().sqrt()
                into.view(-1)[edges] = (one - other).abs() / (rms + _FLOOR)
        return found

    @cached_property
    def texture_map(self) -> Tensor:
        """(N, 1, H, W): how far the bands' local energy differs, as |ln| of the ratio."""
        found = self.reference.new_zeros(self.reference.shape)
        for into, one, other, body in zip(found, *self._energies, self._body, strict=True):
            ratio = (_at(one, body) + _FLOOR) / (_at(other, body) + _FLOOR)
            into.view(-1)[body] = ratio.log().abs()
        return found

    @cached_property
    def _shown(self) -> tuple[Tensor, Tensor]:
        return self.reference / self.data_range, self.candidate / self.data_range

    @cached_property
    def _bands(self) -> tuple[Tensor, Tensor]:
        one, other = (x - _smooth(x, _BAND_SIGMA) for x in self._shown)
        return one, other

    @cached_property
    def _energies(self) -> tuple[Tensor, Tensor]:
        one, other = (_smooth(band.square(), _LOCAL_SIGMA).sqrt() for band in self._bands)
        return one, other

    @cached_property
    def _body(self) -> list[Tensor]:
        """Flat indices of each image's body; none where it is too small to say anything about."""
        body = _smooth(self._shown[0], _LOCAL_SIGMA) > _BODY_LEVEL
        if self.mask is not None:
            body &= self.mask
        if min(body.shape[2:]) < _SMALLEST_SIDE:
            body[:] = False
        found = [one.flatten().nonzero()[:, 0] for one in body]
        return [one if len(one) >= _FEWEST_PIXELS else one[:0] for one in found]

    @cached_property
    def _edges(self) -> list[Tensor]:
        """Flat indices of each image's edges; pixels as steep as the last one are among them."""
        smooth, slope = _gaussian(_EDGE_SIGMA), _slope(_EDGE_SIGMA)
        x = self._shown[0]
        steepness = _filter(x, smooth, slope).square() + _filter(x, slope, smooth).square()
        found = []
        for steep, body in zip(steepness, self._body, strict=True):
            inside = _at(steep, body)
            steepest = inside.topk(math.ceil(_EDGE_SHARE * len(body)), sorted=False).values
            found.append(body[inside >= steepest.min()] if len(body) else body)
        return found

    def _correlation(self, pair: tuple[Tensor, Tensor], regions: list[Tensor]) -> Tensor:
        # One at a time: each image has a region of its own size.
        values = [
            _pearson(_at(one, region).double(), _at(other, region).double(), torch.equal(*images))
            for one, other, region, *images in zip(
                *pair, regions, self.reference, self.candidate, strict=True
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


def _gaussian(sigma: float) -> Tensor:
    """Kernel of `scipy.ndimage.gaussian_filter1d`: (2 radius + 1,) float64, sum 1."""
    radius = int(4 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).double() / sigma).square())
    return kernel / kernel.sum()


def _slope(sigma: float) -> Tensor:
    """First derivative of the same Gaussian, to be correlated with: rising values give plus."""
    kernel = _gaussian(sigma)
    radius = len(kernel) // 2
    return kernel * torch.arange(-radius, radius + 1) / sigma**2


def _smooth(x: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of (N, 1, H, W)."""
    kernel = _gaussian(sigma)
    return _filter(x, kernel, kernel)


# Rows of output per matrix product: the fastest on CPUs of 16 to 128.
_BLOCK = 32


def _filter(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Correlate (N, 1, H, W) with one kernel along each column and one along each row.

    Each block of rows, then of columns, is the product of what the block needs and a matrix that
    holds the shifted kernel: on CPUs several times as fast as a convolution of one channel.
    With less than torch's default precision of float32 products the finest band is wrong.
    """
    height, width = x.shape[2:]
    left, right = _shifted(down).to(x), _shifted(across).to(x).T
    found = x.new_empty(len(x), height, math.ceil(width / _BLOCK), _BLOCK)
    for into, image in zip(found, x[:, 0], strict=True):
        needed = _extended(image, 0, len(down) // 2).unfold(0, left.shape[1], _BLOCK).mT
        rows = torch.bmm(left.expand(len(needed), -1, -1), needed).flatten(0, 1)[:height]
        needed = _extended(rows, 1, len(across) // 2).unfold(1, len(right), _BLOCK).transpose(0, 1)
        into[:] = torch.bmm(needed, right.expand(len(needed), -1, -1)).transpose(0, 1)
    return found.flatten(2)[:, None, :, :width]


def _extended(x: Tensor, axis: int, radius: int) -> Tensor:
    """Mirror (H, W) along an axis, as far as whole blocks need: ... 1 0 | 0 1 ... n-1 | n-1 ..."""
    length = x.shape[axis]
    end = math.ceil(length / _BLOCK) * _BLOCK + radius
    index = torch.arange(-radius, end, device=x.device) % (2 * length)
    index = torch.minimum(index, 2 * length - 1 - index)
    before, after = index[:radius], index[radius + length :]
    return torch.cat([x.index_select(axis, before), x, x.index_select(axis, after)], axis)


def _shifted(kernel: Tensor) -> Tensor:
    """Return the (block, block + 2 radius) matrix whose rows hold the kernel, each one further."""
    around = F.pad(kernel, (_BLOCK - 1, _BLOCK - 1))
    return around.unfold(0, _BLOCK + len(kernel) - 1, 1).flip(0)
