"""Rounding errors of Winograd's convolution in float32, by the points that it evaluates at.

``python tests/benchmarks/winograd.py [--write docs/performance.md]``: seconds. Patches of 6 x 6
pixels with four points besides 0 and infinity, of 8 x 8 with six: -a and a for each. All multiples
of 1/8 from 0.25 to 2.5 are tried. Values as after a ReLU, 32 channels; the error is the root mean
square over that of the result. Direct sums in float32 stand beside it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tables import Table, publish

from medqa.winograd import POINTS

Array = NDArray[np.float64]
EIGHTHS = [count / 8 for count in range(2, 21)]


def transforms(points: Sequence[float], size: int) -> tuple[Array, Array, Array]:
    """A', G and B' for these points and infinity, and a kernel of this size."""
    count = len(points) + 1
    apart = [float(np.prod([p - q for q in points if q != p])) for p in points]
    kernel = np.zeros((count, size))
    back = np.zeros((count - size + 1, count))
    values = np.zeros((count, count))
    for i, p in enumerate(points):
        kernel[i] = np.power(p, np.arange(size)) / apart[i]
        back[:, i] = np.power(p, np.arange(len(back)))
        values[i, :-1] = np.poly([q for q in points if q != p])[::-1]
    kernel[-1, -1] = back[-1, -1] = 1
    values[-1] = np.poly(points)[::-1]
    return back, kernel, values


def errors(points: Sequence[float], size: int, patches: int = 60) -> tuple[float, float]:
    """Of Winograd's convolution, and of the direct sum."""
    rng = np.random.default_rng(0)
    back, kernel, values = transforms(points, size)
    side, step = len(values), len(back)
    x = np.maximum(rng.standard_normal((patches, side, side, 32)), 0).astype(np.float32)
    w = rng.standard_normal((8, size, size, 32)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    rows = windows.transpose(0, 1, 2, 4, 5, 3).reshape(patches * step * step, -1)
    direct = (rows @ w.reshape(8, -1).T).reshape(patches, step, step, 8)
    exact = (rows.astype(np.float64) @ w.reshape(8, -1).T).reshape(direct.shape)
    weights = np.einsum("ai,bj,kijc->abck", kernel, kernel, w, optimize=True).astype(np.float32)
    forth, off = values.astype(np.float32), back.astype(np.float32)
    at = np.einsum("bj,najc->nabc", forth, np.einsum("ai,nijc->najc", forth, x))
    products = np.einsum("nabc,abck->nabk", at, weights)
    found = np.einsum("xb,nybk->nyxk", off, np.einsum("ya,nabk->nybk", off, products))
    scale = np.sqrt((exact**2).mean())
    own, other = (float(np.sqrt(((one - exact) ** 2).mean()) / scale) for one in (found, direct))
    return own, other


def both(values: Sequence[float]) -> list[float]:
    return [0.0, *(sign * one for one in values for sign in (1, -1))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    page = parser.parse_args().write
    rows = []
    for size, side in ((3, 6), (5, 6), (5, 8)):
        tried = list(itertools.combinations(EIGHTHS, side // 2 - 1))
        best = sorted(tried, key=lambda one: errors(both(one), size, 8)[0])[:3]
        shown = [(1.0, 2.0, 0.5)[: side // 2 - 1], *best]
        if side == len(POINTS) + 1:
            shown.insert(1, tuple(one for one in POINTS if one > 0))
        for one in dict.fromkeys(shown):
            own, direct = errors(both(one), size)
            listed = ", ".join(f"±{value:g}" for value in one)
            kinds = [f"{size} × {size}", f"{side} × {side}", listed]
            rows.append([*kinds, f"{own:.1e}", f"{direct:.1e}"])
    head = ["kernel", "patch", "points besides 0 and ∞", "error", "direct sum"]
    publish(
        "winograd",
        f"Root mean square, relative, in float32. numpy {np.__version__}.",
        [Table("Rounding errors", head, rows)],
        page,
    )


if __name__ == "__main__":
    main()
