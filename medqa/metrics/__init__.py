"""Companion measures: how else two displayed images differ."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from medqa.metrics.companions import psnr_db, ssim
from medqa.metrics.measure import Measure

__all__ = ["MEASURES", "Measure", "psnr_db", "ssim"]

#: The measures by their name in the record.
MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        one.name: one
        for one in (
            Measure("psnr_db", "peak signal-to-noise ratio", psnr_db, "higher", "", masked=False),
            Measure("ssim", "structural similarity", ssim, "higher", "", masked=False),
        )
    }
)
