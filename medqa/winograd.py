"""Convolution with fewer multiplications than its sum has: Winograd's minimal filtering.

A processor runs the direct sum at its peak already; only less work is faster. Patches of 6 x 6
pixels and the kernel are evaluated as polynomials at five points and at infinity; there a
convolution is a product, and the result is read off again (Lavin & Gray, CVPR 2016)::

    out = A' [ (G w G') * (B' x B) ] A        per patch; the product * is summed over channels

A patch gives 4 x 4 results of a 3 x 3 kernel with 36 products instead of 144, or 2 x 2 of a 5 x 5
kernel with 36 instead of 100. At the usual points, 0, +-1 and +-2, rounding errors are five times
those of the direct sum; at these, the best of all multiples of 1/8, about twice
(``tests/benchmarks/winograd.py``).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medqa import kernels
from medqa.threads import each

__all__ = ["POINTS", "Filter", "serves"]

_Floats = NDArray[np.float32]

_SIDE = 6  # pixels of a patch
#: Where polynomials are evaluated; and at infinity.
POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
# Powers of them, as the transforms need them: all are exact in float32.
_A, _B = np.float32(POINTS[1]), np.float32(POINTS[3])
_AA, _BB = np.float32(_A * _A), np.float32(_B * _B)
_AAA, _BBB = np.float32(_AA * _A), np.float32(_BB * _B)
_ABB, _BAA = np.float32(_A * _BB), np.float32(_B * _AA)
_PRODUCT, _SUM = np.float32(_AA * _BB), np.float32(_AA + _BB)

# Patches that are taken together: few enough for the cache, enough for the products to be fast and
# for threads to wait for the interpreter seldom.
_TOGETHER = 256
# Input channels below which the transforms cost more than the products save.
_CHANNELS = 32


def serves(weight: Tensor, stride: int, x: Tensor) -> bool:
    """Whether it convolves (N, C, h, w) with (K, C, k, k) faster than the direct sum."""
    return (
        kernels.suit(torch.float32, weight, x)
        and tuple(weight.shape[2:]) in ((3, 3), (5, 5))
        and stride == 1
        and weight.shape[1] >= _CHANNELS
    )


class Filter:
    """A kernel, ready to convolve; nothing of it is written after it was made.

    Parameters
    ----------
    weight
        (K, C, k, k) float32, k being 3 or 5.
    bias
        (K,); None for none.
    padding
        Zeros beyond each border.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int) -> None:
        self._kernel, self._padding = weight.shape[2], padding
        at = _evaluation(self._kernel)
        points = torch.einsum("ai,bj,kcij->abck", at, at, weight.double()).float()
        self._weight = points.reshape(_SIDE**2, *points.shape[2:])
        self._bias = (weight.new_zeros(len(weight)) if bias is None else bias).numpy()

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W), channels last, to (N, K, h, w), channels last."""
        rows, columns = (n + 2 * self._padding - self._kernel + 1 for n in x.shape[2:])
        out = x.new_empty((len(x), rows, columns, self._weight.shape[2]))
        step = _SIDE + 1 - self._kernel
        across = -(-columns // step)
        count = -(-rows // step) * across
        images, results = x.permute(0, 2, 3, 1).numpy(), out.numpy()

        def convolve(part: tuple[int, int]) -> None:
            n, start = part
            some = min(_TOGETHER, count - start)
            patches = x.new_empty((_SIDE**2, some, x.shape[1]))
            where = (self._kernel, across, start)
            _evaluate(images[n], self._padding, *where, patches.numpy())
            found = torch.bmm(patches, self._weight)
            _interpolate(found.numpy(), self._bias, *where, results[n])

        parts = [(n, start) for n in range(len(x)) for start in range(0, count, _TOGETHER)]
        for _ in each(convolve, parts, len(parts)):
            pass
        return out.permute(0, 3, 1, 2)


def _evaluation(size: int) -> Tensor:
    """(6, size): a kernel's values at the points, less the factor that belongs to them: G."""
    rows = []
    for point in POINTS:
        others = torch.tensor([point - one for one in POINTS if one != point])
        rows.append([point**power / float(others.double().prod()) for power in range(size)])
    return torch.tensor([*rows, [0.0] * (size - 1) + [1.0]], dtype=torch.float64)


@kernels.compiled
def _evaluate(
    image: _Floats, padding: int, kernel: int, across: int, start: int, out: _Floats
) -> None:
    """Evaluate patches: B' x B.

    Parameters
    ----------
    image
        (rows, columns, channels).
    across, start
        Patches in a row of them, and the first to take.
    out
        (36, patches, channels), written.
    """
    rows, columns, channels = image.shape
    step = _SIDE + 1 - kernel
    pixels = image.reshape(-1, channels)
    points = out.reshape(-1, channels)
    count = out.shape[1]
    patch = np.empty((_SIDE * _SIDE, channels), np.float32)
    half = np.empty((_SIDE * _SIDE, channels), np.float32)
    for n in range(count):
        top = (start + n) // across * step - padding
        left = (start + n) % across * step - padding
        inside = min(top, left) >= 0 and top + _SIDE <= rows and left + _SIDE <= columns
        if not inside:
            for k in range(_SIDE * _SIDE):
                row, column = top + k // _SIDE, left + k % _SIDE
                if 0 <= row < rows and 0 <= column < columns:
                    for c in range(channels):
                        patch[k, c] = image[row, column, c]
                else:
                    for c in range(channels):
                        patch[k, c] = 0
        for k in range(_SIDE):
            if inside:
                _to_points(pixels, top * columns + left + k, columns, half, k, _SIDE)
            else:
                _to_points(patch, k, _SIDE, half, k, _SIDE)
        for k in range(_SIDE):
            _to_points(half, _SIDE * k, 1, points, _SIDE * k * count + n, count)


@kernels.compiled
def _to_points(
    values: _Floats, first: int, step: int, out: _Floats, start: int, stride: int
) -> None:
    """Six vectors of (vectors, channels), as coefficients, at the points: B' x."""
    for c in range(values.shape[1]):
        a, b = values[first, c], values[first + step, c]
        d, e = values[first + 2 * step, c], values[first + 3 * step, c]
        f, g = values[first + 4 * step, c], values[first + 5 * step, c]
        even, odd = f - _BB * d, _A * e - _ABB * b
        out[start, c] = _PRODUCT * a - _SUM * d + f
        out[start + stride, c] = even + odd
        out[start + 2 * stride, c] = even - odd
        even, odd = f - _AA * d, _B * e - _BAA * b
        out[start + 3 * stride, c] = even + odd
        out[start + 4 * stride, c] = even - odd
        out[start + 5 * stride, c] = _PRODUCT * b - _SUM * e + g


@kernels.compiled
def _interpolate(
    points: _Floats, bias: _Floats, kernel: int, across: int, start: int, out: _Floats
) -> None:
    """Read the results of patches off their points: A' p A.

    Parameters
    ----------
    points
        (36, patches, channels).
    bias
        (channels,).
    out
        (rows, columns, channels), written where these patches are.
    """
    rows, columns, channels = out.shape
    step = _SIDE + 1 - kernel
    count = points.shape[1]
    found = points.reshape(-1, channels)
    half = np.empty((step * _SIDE, channels), np.float32)
    result = np.empty((step * step, channels), np.float32)
    for n in range(count):
        top, left = (start + n) // across * step, (start + n) % across * step
        for k in range(_SIDE):
            _from_points(found, k * count + n, _SIDE * count, half, k, _SIDE, step)
        for k in range(step):
            _from_points(half, _SIDE * k, 1, result, step * k, 1, step)
        for row in range(min(step, rows - top)):
            for column in range(min(step, columns - left)):
                for c in range(channels):
                    out[top + row, left + column, c] = result[row * step + column, c] + bias[c]


@kernels.compiled
def _from_points(
    values: _Floats, first: int, step: int, out: _Floats, start: int, stride: int, count: int
) -> None:
    """Two or four vectors of (vectors, channels) from their six at the points: A' p."""
    for c in range(values.shape[1]):
        a, b = values[first + step, c], values[first + 2 * step, c]
        d, e = values[first + 3 * step, c], values[first + 4 * step, c]
        even, odd, other_even, other_odd = a + b, a - b, d + e, d - e
        last = values[first + 5 * step, c]
        out[start, c] = values[first, c] + even + other_even
        linear = _A * odd + _B * other_odd
        if count == 2:
            out[start + stride, c] = linear + last
        else:
            out[start + stride, c] = linear
            out[start + 2 * stride, c] = _AA * even + _BB * other_even
            out[start + 3 * stride, c] = _AAA * odd + _BBB * other_odd + last
