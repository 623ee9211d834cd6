"""LPIPS as a training loss for networks that make one-channel images or volumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from medqa.errors import PixelError, UsageError
from medqa.lpips import GrayLPIPS
from medqa.weights import BACKBONES, Weights

__all__ = ["PerceptualLoss", "gram_distance", "plane_batches", "total_variation"]


class PerceptualLoss(nn.Module):
    """Differentiable LPIPS distance of a network's output from its target.

    The network that measures is frozen and stays so: it is no submodule, so that ``train()``,
    ``requires_grad_()``, an optimiser, weight initialisation by ``apply`` and checkpoints pass it
    by. It follows ``to(device)``. It computes in float32, or in float64 after ``double()``;
    autocast and ``half()`` do not reach it, because squares of small features vanish in float16.

    Parameters
    ----------
    spatial_dims
        2 for images. 3 for volumes, measured slice by slice along each of the three axes (2.5D).
    backbone
        A network of `medqa.weights.BACKBONES`. Each needs a smallest side: ``gray`` and ``alex``
        31 pixels, ``squeeze`` 17, ``vgg`` 16.
    weights
        Folder of the official weights, as for `medqa.GrayLPIPS`.
    stride
        Every how many slices of a volume are measured, from the first, along each axis.
    l1_weight, style_weight, total_variation_weight
        Of the terms added to LPIPS: the mean absolute difference, `gram_distance` of the
        network's features, and `total_variation` of the input.

    Raises
    ------
    UsageError
        A parameter is out of its range.
    WeightsError
        The weights are missing, or are not the pinned ones.

    References
    ----------
    Zhang et al., CVPR 2018, doi:10.1109/CVPR.2018.00068; style: Gatys et al., CVPR 2016,
    doi:10.1109/CVPR.2016.265; total variation: Rudin et al., Physica D 1992,
    doi:10.1016/0167-2789(92)90242-F.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        backbone: str = "gray",
        *,
        weights: str | Path | Weights | None = None,
        stride: int = 1,
        l1_weight: float = 0.0,
        style_weight: float = 0.0,
        total_variation_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise UsageError("spatial_dims", f"is {spatial_dims}", "give 2 or 3")
        if stride < 1 or (spatial_dims == 2 and stride > 1):
            mend = "give at least 1, and more only with three spatial dimensions"
            raise UsageError("stride", f"is {stride}", mend)
        self.spatial_dims = spatial_dims
        self.stride = stride
        self.l1_weight = _weight("l1_weight", l1_weight)
        self.style_weight = _weight("style_weight", style_weight)
        self.total_variation_weight = _weight("total_variation_weight", total_variation_weight)
        # In a tuple, so that torch does not register it as a submodule.
        self._frozen = (GrayLPIPS(backbone, weights).eval(),)
        self._range_checked = False

    @property
    def network(self) -> GrayLPIPS:
        """The network that measures."""
        return self._frozen[0]

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 (torch's own name)
        """Return the loss of a batch.

        Parameters
        ----------
        input
            (B, 1, H, W), or (B, 1, H, W, D) with three spatial dimensions; what was made. It may
            leave [0, 1], as a network's output does.
        target
            Of the same shape, in [0, 1]; what should have been made. The range is checked at
            every call on a processor, and at the first call only on an accelerator, which each
            check would keep waiting.

        Returns
        -------
        Scalar, at least 0; lower is better. Gradients flow to both arguments, and are finite for
        identical and for all-zero images.

        Raises
        ------
        PixelError
            Another shape, sides too small for the network, or a target outside [0, 1] or NaN.
        """
        dtype = self.network.heads[0].dtype
        made: Tensor = convert_to_tensor(input, dtype=dtype, track_meta=False)
        wanted: Tensor = convert_to_tensor(target, dtype=dtype, track_meta=False)
        self._check(made, wanted)
        with torch.autocast(made.device.type, enabled=False):
            planes = [
                self._plane(one, other)
                for one, other in zip(
                    plane_batches(made, self.stride),
                    plane_batches(wanted, self.stride),
                    strict=True,
                )
            ]
            loss = torch.stack(planes).mean()
            if self.l1_weight:
                loss = loss + self.l1_weight * (made - wanted).abs().mean()
            if self.total_variation_weight:
                loss = loss + self.total_variation_weight * total_variation(made)
            return loss

    def _plane(self, made: Tensor, wanted: Tensor) -> Tensor:
        """LPIPS, and style where it counts, of one batch of slices."""
        # Not `network.compare`, which refuses what leaves [0, 1].
        one, other = self.network.encode(made), self.network.encode(wanted)
        loss = torch.stack([tap.mean() for tap in self.network.tap_maps(other, one)]).sum()
        if self.style_weight:
            loss = loss + self.style_weight * gram_distance(other, one).mean()
        return loss

    def _check(self, made: Tensor, wanted: Tensor) -> None:
        axes = "H, W" if self.spatial_dims == 2 else "H, W, D"
        if wanted.ndim != 2 + self.spatial_dims or wanted.shape[1] != 1:
            reason = f"of shape {tuple(wanted.shape)} instead of (B, 1, {axes})"
            raise PixelError("target", reason, "give one channel; loop over several")
        if made.shape != wanted.shape:
            reason = f"of shape {tuple(made.shape)}, the target's is {tuple(wanted.shape)}"
            raise PixelError("input", reason, "give both in one shape")
        smallest = BACKBONES[self.network.weights.backbone].smallest_side
        if min(wanted.shape[2:]) < smallest:
            size = " x ".join(map(str, wanted.shape[2:]))
            name = self.network.weights.backbone
            raise PixelError(
                "target",
                f"{size} has a side below the {smallest} pixels that network {name} needs",
                "train on larger patches or with another backbone",
            )
        if wanted.device.type == "cpu" or not self._range_checked:
            low, high = (float(end) for end in torch.aminmax(wanted.detach()))
            # Written so that NaN fails too.
            if not (low >= 0 and high <= 1):
                reason = f"values from {low:g} to {high:g}, not in [0, 1]"
                raise PixelError("target", reason, "scale input and target alike, to [0, 1]")
            self._range_checked = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # What `to`, `cuda`, `double` and the like call, for everything torch has registered.
        moved = fn(self.network.heads[0].detach()[:0])
        self.network.to(moved.device, torch.promote_types(moved.dtype, torch.float32))
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]  # torch's


def plane_batches(images: Tensor, stride: int = 1) -> Iterator[Tensor]:
    """Return images as they are, and volumes as a batch of slices along each of their axes.

    Parameters
    ----------
    images
        (B, C, H, W) or (B, C, H, W, D).
    stride
        Every how many slices of a volume are taken, from the first.

    Yields
    ------
    (N, C, rows, columns): once for images, three times for volumes, for their axes in turn; the
    slices of one volume follow each other.
    """
    if images.ndim == 4:
        yield images
        return
    for axis in (2, 3, 4):
        # (B, C, H, W, D) to (B, slices, C, rows, columns) to (B slices, C, rows, columns)
        yield images.movedim(axis, 1)[:, ::stride].flatten(0, 1)


def gram_distance(reference: Sequence[Tensor], candidate: Sequence[Tensor]) -> Tensor:
    """Return how much the textures of two batches' taps differ, wherever they lie: (N,).

    Of each tap, the Gram matrix ``G = mean over (h, w) of u uᵀ`` of its unit-length feature
    vectors *u*; then the sum over the taps of the squared Frobenius norm of the difference of
    both matrices. Feature vectors of unit length make G free of the contrast of the images, and
    its trace 1; so a tap adds at most 2. 0 is identical, lower is better.

    Gatys et al., CVPR 2016, doi:10.1109/CVPR.2016.265, who take features of any length.
    """
    total = reference[0].new_zeros(())
    for one, other in zip(reference, candidate, strict=True):
        total = total + (_gram(one) - _gram(other)).square().sum(dim=(1, 2))
    return total


def _gram(tap: Tensor) -> Tensor:
    vectors = tap.flatten(2)  # (N, C, h, w) to (N, C, h w)
    return vectors @ vectors.transpose(1, 2) / vectors.shape[2]


def total_variation(images: Tensor) -> Tensor:
    """Return the anisotropic total variation: a scalar, at least 0; lower is smoother.

    The mean absolute difference of neighbouring pixels, summed over the spatial axes of
    (B, C, H, W) or (B, C, H, W, D).
    """
    total = images.new_zeros(())
    for axis in range(2, images.ndim):
        total = total + images.diff(dim=axis).abs().mean()
    return total


def _weight(name: str, value: Any) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(name, f"is {value}", "give a number of at least 0")
    return float(value)
