"""Loops of the comparison that processors run in one pass over memory, compiled at first use.

Written with torch's operations, each of them is half a dozen passes: what a network's convolutions
leave of the time is mostly these. They serve float32 and bfloat16 on a processor where no gradient
is asked for (`suit`); accelerators, gradients and float64 take torch's operations.

Numba compiles them, and keeps what it compiled beside this file or, where that may not be written,
in the user's cache. bfloat16, which NumPy does not know, comes as the bits of it in uint16; it is
computed with in float32 and rounded to nearest even, as torch does. Sums may be taken in any order
(`reassoc`), which is what lets a processor vectorise them: the same bits on the same machine, and
1e-6 relative on another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "compiled",
    "correlate",
    "pool",
    "pool_difference",
    "relu_difference",
    "suit",
    "unit_difference",
    "unit_followed",
]

_Floats = NDArray[np.float32]
_Bits = NDArray[np.uint16]
_Places = NDArray[np.int64]
_Loop = TypeVar("_Loop", bound=Callable[..., None])

# Values of a kernel that are taken together: one pass over a row for eight of them.
_STEP = 8
# Values that go through a buffer together: they stay in the first-level cache.
_BLOCK = 1024
# As in LPIPS v0.1.
_EPSILON = np.float32(1e-10)


def suit(dtype: torch.dtype, *tensors: Tensor) -> bool:
    """Whether these loops serve tensors, (N, C, h, w), of this type."""
    return all(
        one.device.type == "cpu"
        and one.dtype == dtype
        and one.is_contiguous(memory_format=torch.channels_last)
        and not one.requires_grad
        for one in tensors
    )


def unit_difference(one: Tensor, other: Tensor, head: Tensor) -> Tensor:
    """Weighted squared difference of feature vectors, each made a unit vector.

    Parameters
    ----------
    one, other
        (N, C, h, w) float32.
    head
        (C,) weights.

    Returns
    -------
    (N, 1, h, w) float32.
    """
    out = one.new_empty((len(one), 1, *one.shape[2:]))
    _unit_difference(_vectors(one), _vectors(other), head.numpy(), _flat(out))
    return out


def unit_followed(before: Tensor, difference: Tensor, head: Tensor) -> Tensor:
    """Do the same in bfloat16, of a reference before its ReLU and the difference after it."""
    out = head.new_empty((len(before), 1, *before.shape[2:]))
    _unit_followed(_vectors(before), _vectors(difference), head.numpy(), _flat(out))
    return out


def relu_difference(before: Tensor, difference: Tensor) -> Tensor:
    """relu(p + d) - relu(p) in bfloat16, written over `difference`."""
    _relu_difference(_flat(before), _flat(difference))
    return difference


def pool(image: Tensor, kernel: int, stride: int, size: tuple[int, int]) -> Tensor:
    """Greatest value under each window of (N, C, H, W), without padding.

    Windows over the end are cut. In bfloat16, whose bits are compared, a window in which all is
    below 0 gives any of its values. `size` is the (rows, columns) of the result.
    """
    out = image.new_empty((len(image), *size, image.shape[1])).permute(0, 3, 1, 2)
    for one, result in zip(_images(image), _images(out), strict=True):
        if image.dtype == torch.bfloat16:
            one, result = one.view(np.int16), result.view(np.int16)
        _pool(one, kernel, stride, result)
    return out


def pool_difference(
    before: Tensor, difference: Tensor, pooled: Tensor, kernel: int, stride: int, out: Tensor
) -> None:
    """pool(relu(p) + d) - pool(relu(p)) in bfloat16, where the latter is `pooled`."""
    batches = map(_images, (before, difference, pooled, out))
    for p, d, less, result in zip(*batches, strict=True):
        _pool_difference(p, d, less, kernel, stride, result)


def correlate(image: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Correlate with one kernel along each column and one along each row.

    Beyond its border an image goes on as its mirror image, the outermost pixel repeated.

    Parameters
    ----------
    image
        (N, C, H, W) float32, contiguous.
    down, across
        (2 radius + 1,).
    """
    out = torch.empty_like(image)
    rows, columns = _in_steps(down), _in_steps(across)
    above, before = len(down) // 2, len(across) // 2
    for one, result in zip(image.flatten(0, 1).numpy(), out.flatten(0, 1).numpy(), strict=True):
        _correlate(one, rows, columns, above, before, result)
    return out


def _in_steps(kernel: Tensor) -> NDArray[np.float32]:
    """(k, 8): a kernel, with zeros at its end."""
    padded = np.zeros((-(-len(kernel) // _STEP), _STEP), np.float32)
    padded.flat[: len(kernel)] = kernel
    return padded


def _images(batch: Tensor) -> NDArray[Any]:
    """(N, rows, columns, channels); bfloat16 as its bits."""
    moved = batch.permute(0, 2, 3, 1)
    array: NDArray[Any] = (
        moved.view(torch.uint16) if batch.dtype == torch.bfloat16 else moved
    ).numpy()
    return array


def _vectors(batch: Tensor) -> NDArray[Any]:
    """(positions of all images, channels)."""
    return _images(batch).reshape(-1, batch.shape[1])


def _flat(batch: Tensor) -> NDArray[Any]:
    return _images(batch).reshape(-1)


def compiled(function: _Loop) -> _Loop:
    """Compile a loop at its first call."""
    options: Any = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"contract", "nsz", "reassoc"},
    }
    loop: Any
    try:
        loop = njit(function, cache=True, **options)
    except RuntimeError:  # nowhere to keep it: compiled anew in every process
        loop = njit(function, **options)
    return cast(_Loop, loop)


@compiled
def _unit_difference(one: _Floats, other: _Floats, head: _Floats, out: _Floats) -> None:
    """Weighted squared difference of two feature vectors, each made a unit vector.

    Parameters
    ----------
    one, other
        (positions, channels).
    head
        (channels,) weights.
    out
        (positions,), written.
    """
    positions, channels = one.shape
    for i in range(positions):
        a = b = np.float32(0)
        for c in range(channels):
            a += one[i, c] * one[i, c]
            b += other[i, c] * other[i, c]
        a = np.float32(1) / (np.sqrt(a) + _EPSILON)
        b = np.float32(1) / (np.sqrt(b) + _EPSILON)
        total = np.float32(0)
        for c in range(channels):
            apart = one[i, c] * a - other[i, c] * b
            total += apart * apart * head[c]
        out[i] = total


@compiled
def _unit_followed(before: _Bits, difference: _Bits, head: _Floats, out: _Floats) -> None:
    """Do the same with a reference before its ReLU, and the candidate's difference after it."""
    positions, channels = before.shape
    bits = np.empty((2, channels), np.uint32)
    values = bits.view(np.float32)
    for i in range(positions):
        for c in range(channels):
            bits[0, c] = _widened(before[i, c])
            bits[1, c] = _widened(difference[i, c])
        a = b = np.float32(0)
        for c in range(channels):
            one = max(values[0, c], np.float32(0))
            other = one + values[1, c]
            values[0, c] = one
            values[1, c] = other
            a += one * one
            b += other * other
        a = np.float32(1) / (np.sqrt(a) + _EPSILON)
        b = np.float32(1) / (np.sqrt(b) + _EPSILON)
        total = np.float32(0)
        for c in range(channels):
            apart = values[0, c] * a - values[1, c] * b
            total += apart * apart * head[c]
        out[i] = total


@compiled
def _relu_difference(before: _Bits, difference: _Bits) -> None:
    """relu(p + d) - relu(p), written over `difference`; both flat."""
    bits = np.empty((2, _BLOCK), np.uint32)
    values = bits.view(np.float32)
    for start in range(0, len(before), _BLOCK):
        some = before[start : start + _BLOCK]
        result = difference[start : start + _BLOCK]
        for i in range(len(some)):
            bits[0, i] = _widened(some[i])
            bits[1, i] = _widened(result[i])
        for i in range(len(some)):
            p, d = values[0, i], values[1, i]
            values[1, i] = max(d + min(p, np.float32(0)), -max(p, np.float32(0)))
        for i in range(len(some)):
            result[i] = _rounded(bits[1, i])


@compiled
def _pool(image: _Floats, kernel: int, stride: int, out: _Floats) -> None:
    """Greatest value under a window, without padding; windows over the end are cut.

    Parameters
    ----------
    image
        (rows, columns, channels).
    out
        (rows, columns, channels) of the windows, written.
    """
    rows, columns, channels = image.shape
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            for c in range(channels):
                out[y, x, c] = image[y * stride, x * stride, c]
            for row in range(y * stride, min(y * stride + kernel, rows)):
                for column in range(x * stride, min(x * stride + kernel, columns)):
                    for c in range(channels):
                        out[y, x, c] = max(out[y, x, c], image[row, column, c])


@compiled
def _pool_difference(
    before: _Bits, difference: _Bits, pooled: _Bits, kernel: int, stride: int, out: _Bits
) -> None:
    """pool(relu(p) + d) - pool(relu(p)), where the latter is `pooled`."""
    rows, columns, channels = before.shape
    bits = np.empty((3, channels), np.uint32)
    values = bits.view(np.float32)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            for c in range(channels):
                values[2, c] = -np.inf
            for row in range(y * stride, min(y * stride + kernel, rows)):
                for column in range(x * stride, min(x * stride + kernel, columns)):
                    for c in range(channels):
                        bits[0, c] = _widened(before[row, column, c])
                        bits[1, c] = _widened(difference[row, column, c])
                    for c in range(channels):
                        one = max(values[0, c], np.float32(0)) + values[1, c]
                        values[2, c] = max(values[2, c], one)
            for c in range(channels):
                bits[0, c] = _widened(pooled[y, x, c])
            for c in range(channels):
                values[2, c] -= values[0, c]
            for c in range(channels):
                out[y, x, c] = _rounded(bits[2, c])


@compiled
def _correlate(
    image: _Floats, down: _Floats, across: _Floats, above: int, before: int, out: _Floats
) -> None:
    """Correlate (rows, columns); a row of the result at a time, which stays in the cache.

    Parameters
    ----------
    down, across
        As `_in_steps` gives them.
    above, before
        Their radii.
    """
    rows, columns = image.shape
    pixels = image.reshape(-1)
    line = np.empty(columns + 2 * before + _STEP, np.float32)
    at = np.empty(_STEP, np.int64)
    for y in range(rows):
        line[:] = np.float32(0)
        for k in range(len(down)):
            for i in range(_STEP):
                at[i] = _mirrored(y + k * _STEP + i - above, rows) * columns
            _add(pixels, at, down[k], line[before : before + columns])
        for i in range(before):
            line[i] = line[before + _mirrored(i - before, columns)]
            line[before + columns + i] = line[before + _mirrored(columns + i, columns)]
        out[y] = np.float32(0)
        for k in range(len(across)):
            for i in range(_STEP):
                at[i] = k * _STEP + i
            _add(line, at, across[k], out[y])


@compiled
def _add(values: _Floats, at: _Places, weights: _Floats, out: _Floats) -> None:
    """Add eight stretches of values, each with its weight."""
    a, b, c, d = values[at[0] :], values[at[1] :], values[at[2] :], values[at[3] :]
    e, f, g, h = values[at[4] :], values[at[5] :], values[at[6] :], values[at[7] :]
    p, q, r, s = weights[0], weights[1], weights[2], weights[3]
    t, u, v, w = weights[4], weights[5], weights[6], weights[7]
    for x in range(len(out)):
        first = p * a[x] + q * b[x] + r * c[x] + s * d[x]
        out[x] += first + t * e[x] + u * f[x] + v * g[x] + w * h[x]


@njit(inline="always")
def _mirrored(index: int, size: int) -> int:
    index %= 2 * size
    return min(index, 2 * size - 1 - index)


@njit(inline="always")
def _widened(bits: np.uint16) -> np.uint32:
    """Return the bits in float32 of a value whose bits in bfloat16 these are."""
    return np.uint32(np.uint32(bits) << np.uint32(16))


@njit(inline="always")
def _rounded(bits: np.uint32) -> np.uint16:
    """Round a value in float32 to bfloat16, both as their bits: to nearest even."""
    odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
