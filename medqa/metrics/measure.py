"""What a companion measure is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["Measure"]


@dataclass(frozen=True)
class Measure:
    """A companion measure of two displayed images.

    Parameters
    ----------
    name
        As in the record: ``psnr_db``.
    title
        In plain words: ``edges kept``.
    function
        Called as ``function(reference, candidate, data_range=1.0, mask=None)`` with two
        (N, 1, H, W) tensors in [0, data_range] and, where `masked`, an (N, 1, H, W) bool mask;
        returns (N,) values, NaN where undefined.
    better
        Which direction is better.
    source
        The publication that defines it.
    masked
        Whether it is defined inside a mask.
    smallest_side
        Rows and columns below which it is undefined.
    """

    name: str
    title: str
    function: Callable[..., Tensor]
    better: Literal["higher", "lower"]
    source: str
    masked: bool
    smallest_side: int = 1
