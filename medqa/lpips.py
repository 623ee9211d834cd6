"""LPIPS on one channel: the learned perceptual image patch similarity of Zhang et al., CVPR 2018.

The distance of two images is, summed over the taps of a network, the spatial mean of the weighted
squared difference of their unit-normalised feature vectors. 0 is identical; lower is better.

Medical images have one channel, the official networks three. Feeding three copies of the image
is the same as one convolution of two planes, the image and a plane of ones, by folded weights::

    z_c = (2x - 1 - shift_c) / scale_c                      the networks' own input scaling
    conv(z, W) = conv(x, sum_c 2 W_c / scale_c) + conv(1, -sum_c W_c (1 + shift_c) / scale_c)

The plane of ones is zero-padded like the image, so this is exact at the border too, where a
constant bias would be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medqa.errors import PixelError, UsageError
from medqa.weights import BACKBONES, Weights, find

__all__ = ["Features", "GrayLPIPS"]

# Added to the norm of a feature vector before dividing by it, as in LPIPS v0.1.
_EPSILON = 1e-10
# Of the three colour channels, in [-1, 1]; LPIPS v0.1.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class Features:
    """What a network sees in a batch of images; compute it once per reference.

    Parameters
    ----------
    taps
        One (N, C, h, w) tensor per tap, each feature vector of unit length.
    size
        (rows, columns) of the images.
    """

    taps: tuple[Tensor, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self.taps[0].shape[0])


class _Stem(nn.Module):
    """First convolution, of the image and of a plane of ones."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.weight = nn.Parameter(torch.zeros(out, channels + 1, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        # The ones are the same for every image: convolved once, added to all.
        ones = x.new_ones(1, 1, *x.shape[2:])
        offset = F.conv2d(ones, self.weight[:, -1:], self.bias, self.stride, self.padding)
        return F.conv2d(x, self.weight[:, :-1], None, self.stride, self.padding) + offset


class _Fire(nn.Module):
    """SqueezeNet's module: squeeze to few channels, expand by 1x1 and 3x3 side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)


def alex_stages(widths: Sequence[int], channels: int = 1) -> nn.ModuleList:
    """AlexNet's five convolutions, each stage ending at a tap, with these channel counts."""
    a, b, c, d, e = widths
    return nn.ModuleList(
        [
            nn.Sequential(_Stem(channels, a, 11, 4, 2), nn.ReLU()),
            nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(a, b, 5, padding=2), nn.ReLU()),
            nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(d, e, 3, padding=1), nn.ReLU()),
        ]
    )


def _squeeze_stages(channels: int) -> nn.ModuleList:
    # SqueezeNet pools with ceil_mode, unlike AlexNet.
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.ModuleList(
        [
            nn.Sequential(_Stem(channels, 64, 3, 2, 0), nn.ReLU()),
            nn.Sequential(pool(), _Fire(64, 16, 64), _Fire(128, 16, 64)),
            nn.Sequential(pool(), _Fire(128, 32, 128), _Fire(256, 32, 128)),
            nn.Sequential(pool(), _Fire(256, 48, 192)),
            nn.Sequential(_Fire(384, 48, 192)),
            nn.Sequential(_Fire(384, 64, 256)),
            nn.Sequential(_Fire(512, 64, 256)),
        ]
    )


def _vgg_stages(channels: int) -> nn.ModuleList:
    stages: list[nn.Module] = []
    before = channels
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if stages else []
        for _ in range(convolutions):
            first = not stages and not layers
            layers += [
                _Stem(channels, width, 3, 1, 1)
                if first
                else nn.Conv2d(before, width, 3, padding=1),
                nn.ReLU(),
            ]
            before = width
        stages.append(nn.Sequential(*layers))
    return nn.ModuleList(stages)


def _stages(weights: Weights, channels: int) -> nn.ModuleList:
    if weights.backbone in ("gray", "alex"):
        return alex_stages([len(head) for head in weights.heads], channels)
    return _squeeze_stages(channels) if weights.backbone == "squeeze" else _vgg_stages(channels)


def fold(weight: Tensor, *, gray: bool) -> Tensor:
    """Fold the input scaling into a first convolution on RGB in [-1, 1].

    Parameters
    ----------
    weight
        (out, 3, k, k).
    gray
        Whether the three channels are copies of one.

    Returns
    -------
    (out, 2, k, k) for gray, else (out, 4, k, k): for an input in [0, 1] and a plane of ones.
    """
    exact = weight.double()
    shift = exact.new_tensor(_SHIFT).view(1, 3, 1, 1)
    scale = exact.new_tensor(_SCALE).view(1, 3, 1, 1)
    gain = 2 * exact / scale
    offset = -(exact * (1 + shift) / scale).sum(dim=1, keepdim=True)
    if gray:
        gain = gain.sum(dim=1, keepdim=True)
    return torch.cat([gain, offset], dim=1).to(weight.dtype)


class GrayLPIPS(nn.Module):
    """LPIPS distance of single-channel images.

    Parameters
    ----------
    backbone
        ``gray``, the network shipped with medqa, or ``alex``, ``squeeze``, ``vgg``, the official
        v0.1 networks, folded exactly to one channel.
    weights
        Folder that holds the official weights, or weights already loaded. None looks where
        `medqa.weights.find` says.

    Raises
    ------
    WeightsError
        The weights are missing, or are not the pinned ones.

    Notes
    -----
    Always in evaluation mode: there is no dropout, and no parameter asks for a gradient. Gradients
    flow to the images.
    """

    def __init__(self, backbone: str = "gray", weights: str | Path | Weights | None = None) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise UsageError(backbone, "no such network", f"choose one of {', '.join(BACKBONES)}")
        self._build(weights if isinstance(weights, Weights) else find(backbone, weights))

    def _build(self, weights: Weights, channels: int = 1) -> None:
        self.weights = weights
        self.channels = channels
        self.stages = _stages(weights, channels)
        tensors = list(weights.trunk)
        if weights.backbone != "gray":
            tensors[0] = fold(tensors[0], gray=channels == 1)
        for parameter, tensor in zip(self.stages.parameters(), tensors, strict=True):
            parameter.data = tensor.clone()
        self.heads = nn.ParameterList([head.clone() for head in weights.heads])
        self.requires_grad_(False)

    def forward(self, reference: Tensor, candidate: Tensor) -> Tensor:
        """Return the distances of the pairs of two batches.

        Parameters
        ----------
        reference, candidate
            (N, 1, H, W) floating point in [0, 1].

        Returns
        -------
        (N,) distances; 0 is identical, lower is better.

        Raises
        ------
        PixelError
            Another shape, values outside [0, 1] or NaN, or sides too small for the network.
        """
        return self.distance(*self._both(reference, candidate))

    def distance_map(self, reference: Tensor, candidate: Tensor) -> Tensor:
        """Return where the images differ: (N, 1, H, W), at least 0; arguments as `forward`.

        Each tap's map is upsampled bilinearly. The mean over the image equals the distance to
        about 1e-4 relative, because upsampling does not weigh every tap pixel alike.
        """
        return self.map(*self._both(reference, candidate))

    def features(self, images: Tensor) -> Features:
        """Encode (N, 1, H, W) images in [0, 1], to be compared by `distance` and `map`."""
        self._check(images)
        return self.encode(images)

    def distance(self, reference: Features, candidate: Features) -> Tensor:
        """Return the (N,) distances of encoded images; one reference serves any number."""
        total = reference.taps[0].new_zeros(())
        for tap in self._tap_maps(reference, candidate):
            total = total + tap.mean(dim=(1, 2, 3))
        return total

    def map(self, reference: Features, candidate: Features) -> Tensor:
        """Return the (N, 1, H, W) distance maps of encoded images."""
        total = reference.taps[0].new_zeros(())
        for tap in self._tap_maps(reference, candidate):
            total = total + F.interpolate(
                tap, size=reference.size, mode="bilinear", align_corners=False
            )
        return total

    def _tap_maps(self, reference: Features, candidate: Features) -> list[Tensor]:
        if reference.size != candidate.size:
            raise PixelError(
                "features",
                f"of images of different sizes, {reference.size} and {candidate.size}",
                "compare images of one size",
            )
        return [
            # (N, C, h, w) squared differences, weighted and summed over C: (N, 1, h, w)
            F.conv2d((one - other).square(), head.view(1, -1, 1, 1))
            for one, other, head in zip(reference.taps, candidate.taps, self.heads, strict=True)
        ]

    def _both(self, reference: Tensor, candidate: Tensor) -> tuple[Features, Features]:
        if reference.shape != candidate.shape:
            raise PixelError(
                "images",
                f"of different shapes, {tuple(reference.shape)} and {tuple(candidate.shape)}",
                "compare images of one shape",
            )
        return self.features(reference), self.features(candidate)

    def encode(self, images: Tensor) -> Features:
        """`features` without the checks, for images that are known to be right."""
        taps = []
        x = images
        for stage in self.stages:
            x = stage(x)
            # Under the root: the same value, and a finite gradient where x is all zero.
            norm = (x.square().sum(dim=1, keepdim=True) + _EPSILON**2).sqrt()
            taps.append(x / norm)
        rows, columns = images.shape[2:]
        return Features(tuple(taps), (rows, columns))

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise PixelError(
                "images",
                f"{tuple(images.shape)} {images.dtype} instead of floating point "
                f"(N, {self.channels}, H, W)",
                "add the missing axes and scale to [0, 1]",
            )
        smallest = BACKBONES[self.weights.backbone].smallest_side
        if min(images.shape[2:]) < smallest:
            raise PixelError(
                "images",
                f"{images.shape[2]} x {images.shape[3]} is smaller than the {smallest} pixels that "
                f"network {self.weights.backbone} needs",
                "compare larger images",
            )
        low, high = (float(end) for end in torch.aminmax(images.detach()))
        # Written so that NaN fails too.
        if not (low >= 0 and high <= 1):
            raise PixelError(
                "images", f"values from {low:g} to {high:g}, not in [0, 1]", "scale them to [0, 1]"
            )
