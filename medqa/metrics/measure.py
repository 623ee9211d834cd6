"""What a companion measure is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from medqa.assessment import MEASURE_WORDS, Better

__all__ = ["Measure"]


@dataclass(frozen=True)
class Measure:
    """A companion measure of two displayed images.

    Parameters
    ----------
    name
        As in the record, a key of `medqa.assessment.MEASURE_WORDS`: ``psnr_db``.
    function
        Called as ``function(reference, candidate, data_range=1.0, mask=None)`` with two
        (N, 1, H, W) tensors in [0, data_range] and, where `masked`, an (N, 1, H, W) bool mask;
        returns (N,) values, NaN where undefined.
    source
        The publication that defines it.
    masked
        Whether it is defined inside a mask.
    smallest_side
        Rows and columns below which it is undefined.
    """

    name: str
    function: Callable[..., Tensor]
    source: str
    masked: bool
    smallest_side: int = 1

    @property
    def title(self) -> str:
        """In plain words: ``edges kept``."""
        return MEASURE_WORDS[self.name][0]

    @property
    def better(self) -> Better:
        """Which direction is better."""
        return MEASURE_WORDS[self.name][1]
