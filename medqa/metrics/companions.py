"""Companion measures: how else two displayed images differ.

Each takes two (N, 1, H, W) tensors in [0, 1] and returns (N,) values. They stand in the record
beside the distance; no verdict rests on them.
"""

from __future__ import annotations

import torch
from monai.metrics.regression import compute_ssim_and_cs
from torch import Tensor

__all__ = ["psnr_db", "ssim"]


def psnr_db(reference: Tensor, candidate: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, of the display's range; higher is better.

    Infinite for identical images.
    """
    error = (reference - candidate).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error)


def ssim(reference: Tensor, candidate: Tensor) -> Tensor:
    """Structural similarity; 1 is identical, higher is better.

    Gaussian window of 11 pixels, sigma 1.5, K1 0.01, K2 0.03 (Wang et al., IEEE TIP 2004,
    doi:10.1109/TIP.2003.819861), by MONAI.
    """
    value, _ = compute_ssim_and_cs(
        candidate,
        reference,
        spatial_dims=2,
        kernel_size=(11, 11),
        kernel_sigma=(1.5, 1.5),
        data_range=1.0,
    )
    return torch.as_tensor(value).mean(dim=(1, 2, 3))
