"""Separable filters of images: Gaussians as SciPy makes them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from medqa import kernels

__all__ = ["correlate", "gaussian", "slope", "smooth"]

# Rows of output per matrix product.
_BLOCK = 32


def gaussian(sigma: float, radius: int | None = None) -> Tensor:
    """Kernel of `scipy.ndimage.gaussian_filter1d`: (2 radius + 1,) float64, sum 1.

    Without a radius it is cut at 4 sigma.
    """
    radius = int(4 * sigma + 0.5) if radius is None else radius
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).double() / sigma).square())
    return kernel / kernel.sum()


def slope(sigma: float) -> Tensor:
    """First derivative of the same Gaussian, to be correlated with: rising values give plus."""
    kernel = gaussian(sigma)
    radius = len(kernel) // 2
    return kernel * torch.arange(-radius, radius + 1) / sigma**2


def smooth(x: Tensor, sigma: float, radius: int | None = None) -> Tensor:
    """Gaussian smoothing of (N, 1, H, W), mirrored at the border as `correlate` does it."""
    kernel = gaussian(sigma, radius)
    return correlate(x, kernel, kernel)


def correlate(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Correlate (N, 1, H, W) with one kernel along each column and one along each row.

    Beyond its border an image goes on as its mirror image, the outermost pixel repeated.

    On an accelerator, in double precision, and where gradients are asked for, each block of rows,
    then of columns, is the product of what the block needs and a matrix that holds the shifted
    kernel. With less than torch's default precision of float32 products the finest band is wrong.
    """
    if kernels.suit(torch.float32, x) and x.is_contiguous():
        return kernels.correlate(x, down, across)
    height, width = x.shape[2:]
    left, right = _shifted(down).to(x), _shifted(across).to(x).T
    found = []
    for image in x[:, 0]:
        needed = _extended(image, 0, len(down) // 2).unfold(0, left.shape[1], _BLOCK).mT
        rows = torch.bmm(left.expand(len(needed), -1, -1), needed).flatten(0, 1)[:height]
        needed = _extended(rows, 1, len(across) // 2).unfold(1, len(right), _BLOCK).transpose(0, 1)
        blocks = torch.bmm(needed, right.expand(len(needed), -1, -1)).transpose(0, 1)
        found.append(blocks.flatten(1)[:, :width])
    return torch.stack(found)[:, None]


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
