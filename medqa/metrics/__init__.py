"""Companion measures: how else two displayed images differ; and LPIPS as a MONAI metric."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from medqa.metrics.bands import EDGE_FIDELITY, TEXTURE_FIDELITY, edge_fidelity, texture_fidelity
from medqa.metrics.companions import (
    COMPANIONS,
    dists,
    fsim,
    gmsd,
    haarpsi,
    ms_ssim,
    mutual_information,
    nmse,
    psnr_db,
    ssim,
    unavailable,
    vif,
)
from medqa.metrics.composite import composite, quality_word
from medqa.metrics.measure import Measure

if TYPE_CHECKING:
    from medqa.metrics.lpips_metric import LPIPSd, LPIPSHandler, LPIPSMetric

__all__ = [
    "MEASURES",
    "LPIPSHandler",
    "LPIPSMetric",
    "LPIPSd",
    "Measure",
    "composite",
    "dists",
    "edge_fidelity",
    "fsim",
    "gmsd",
    "haarpsi",
    "ms_ssim",
    "mutual_information",
    "nmse",
    "psnr_db",
    "quality_word",
    "ssim",
    "texture_fidelity",
    "unavailable",
    "vif",
]

#: The measures by their name in the record.
MEASURES: Mapping[str, Measure] = MappingProxyType(
    {one.name: one for one in (*COMPANIONS, EDGE_FIDELITY, TEXTURE_FIDELITY)}
)


def __getattr__(name: str) -> Any:
    # Imported when first used: MONAI, whose classes these extend, takes seconds.
    if name not in ("LPIPSHandler", "LPIPSMetric", "LPIPSd"):
        raise AttributeError(f"module 'medqa.metrics' has no attribute {name!r}")
    from medqa.metrics import lpips_metric

    return getattr(lpips_metric, name)
