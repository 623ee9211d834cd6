"""Made-up images whose anatomy, noise and lesions are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

Array = NDArray[np.float64]


def anatomy(side: int) -> Array:
    """Nothing on the left, 9/20 of the columns; on the right, discs that lie on each other."""
    rng = np.random.default_rng(1)
    made = np.zeros((side, side))
    rows, columns = np.mgrid[:side, :side]
    right = columns >= 9 * side // 20
    for _ in range(side * side // 60):
        row, column = rng.uniform(0, side, 2)
        radius, value = rng.uniform(3, 12), rng.uniform(-100, 250)
        first, last = (max(0, int(row - radius))), int(row + radius) + 2
        near = np.s_[first:last, max(0, int(column - radius)) : int(column + radius) + 2]
        inside = np.hypot(rows[near] - row, columns[near] - column) <= radius
        made[near][inside & right[near]] = value
    return made


def ct_noise(white: Array) -> Array:
    """Noise as of a filtered back-projection: a ramp, apodised by Hann; its variance is kept."""
    f = np.hypot(fft.fftfreq(white.shape[0])[:, None], fft.fftfreq(white.shape[1])[None, :])
    shape = np.sqrt(f) * np.where(f < 0.5, np.cos(np.pi * f), 0.0)
    made: Array = fft.ifft2(fft.fft2(white) * shape / np.sqrt(np.mean(shape**2))).real
    return made


def disc(side: int) -> NDArray[np.bool_]:
    """A body that nearly fills the image."""
    rows, columns = np.mgrid[:side, :side]
    inside: NDArray[np.bool_] = np.hypot(rows - side / 2, columns - side / 2) <= 0.45 * side
    return inside


def lesion(side: int, row: float, column: float, radius: float, contrast: float) -> Array:
    """A disc with an edge as soft as a scanner makes it."""
    rows, columns = np.mgrid[:side, :side]
    away = np.hypot(rows - row, columns - column)
    made: Array = contrast * special.ndtr((radius - away) / 0.7)
    return made
