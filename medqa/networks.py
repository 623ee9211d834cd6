"""The networks of LPIPS on one channel: their layers, and what of an image each tap sees.

Medical images have one channel, the official networks three. Feeding three copies of the image
is the same as one convolution of two planes, the image and a plane of ones, by folded weights::

    z_c = (2x - 1 - shift_c) / scale_c                      the networks' own input scaling
    conv(z, W) = conv(x, sum_c 2 W_c / scale_c) + conv(1, -sum_c W_c (1 + shift_c) / scale_c)

The plane of ones is zero-padded like the image, so this is exact at the border too, where a
constant bias would be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medqa import kernels
from medqa.weights import Weights
from medqa.winograd import Filter, serves

__all__ = [
    "Fire",
    "Pool",
    "Stem",
    "View",
    "alex_stages",
    "compute_in",
    "fold",
    "pieces",
    "positions",
    "stages",
    "views",
    "working_set",
]

# Of the three colour channels, in [-1, 1]; LPIPS v0.1.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


# Pixels in a strip of the first convolution; of fewer than 20480 torch makes no use of oneDNN.
_STRIP = 2**15

# Rows and columns of a tap, and what to take away there.
_Patch = tuple[slice, slice, Tensor]


class Stem(nn.Module):
    """The first convolution, of the image and of a plane of ones.

    It computes in the type of its weights, because an image has more than the 8 bits that
    bfloat16 keeps, and gives on the type `gives` (None: the same).
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.weight = nn.Parameter(torch.zeros(out, channels + 1, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out))
        self.gives: torch.dtype | None = None
        self._border: tuple[object, list[_Patch]] = (None, [])

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, channels, H, W) in [0, 1]."""
        # Where the kernel lies inside the image, the ones add up to a constant, ...
        out = self.convolve(x, self.bias + self.weight[:, -1].sum(dim=(1, 2)))
        # ... and where it hangs over the border, those outside are missing.
        for rows, columns, missing in self._missing(x.shape[2], x.shape[3]):
            out[:, :, rows, columns] -= missing
        return out

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve (N, channels, H, W) alone, without the ones."""
        x, weight = x.to(self.weight.dtype), self.weight[:, :-1]
        if self.gives is None:
            return F.conv2d(x, weight, bias, self.stride, self.padding)
        if self.padding:
            x = F.pad(x, [self.padding] * 4)
        rows, columns = ((n - self.kernel) // self.stride + 1 for n in x.shape[2:])
        out = x.new_empty((len(x), rows, columns, len(weight)), dtype=self.gives)
        # On a processor a few rows at a time: they are rounded while they are in its cache.
        few = max(1, _STRIP // (len(x) * x.shape[3] * self.stride))
        step = few if x.device.type == "cpu" else rows
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            seen = x[:, :, start * self.stride : (stop - 1) * self.stride + self.kernel]
            strip = F.conv2d(seen, weight, bias, self.stride)
            out[:, start:stop] = strip.permute(0, 2, 3, 1)
        return out.permute(0, 3, 1, 2)

    def _missing(self, rows: int, columns: int) -> list[_Patch]:
        """Parts of the border, and what is missing there; the last size's are kept."""
        known = (rows, columns, self.weight.device, self.weight.dtype)
        if self._border[0] == known:
            return self._border[1]
        found: list[_Patch] = []
        if self.padding:
            ones = self.weight[:, -1]
            down, across = self._outside(rows), self._outside(columns)
            top, bottom = _strips(down)
            inner = slice(top.stop, bottom.start)
            parts = [(top, slice(None)), (bottom, slice(None))]
            parts += [(inner, side) for side in _strips(across)]
            found += [(r, c, _missing(ones, down[r], across[c])) for r, c in parts]
        if not self.weight.requires_grad:  # or it may be another one next time
            self._border = (known, found)
        return found

    def _outside(self, size: int) -> Tensor:
        """(positions, kernel): 1 where that part of the kernel hangs over the border, else 0."""
        positions = (size + 2 * self.padding - self.kernel) // self.stride + 1
        device = self.weight.device
        start = torch.arange(positions, device=device)[:, None] * self.stride - self.padding
        under = start + torch.arange(self.kernel, device=device)
        return ((under < 0) | (under >= size)).to(self.weight.dtype)


def _strips(outside: Tensor) -> tuple[slice, slice]:
    """Positions at the low and at the high end whose kernel hangs over the border."""
    inside = (~outside.any(dim=1)).nonzero()
    count = len(outside)
    if not len(inside):
        return slice(0, count), slice(count, count)
    return slice(0, int(inside[0])), slice(int(inside[-1]) + 1, count)


def _missing(ones: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(out, positions, positions): the weights of the ones that lie outside in rows or columns."""
    inside = torch.einsum("iu,ouv,jv->oij", 1 - rows, ones, 1 - columns)
    return ones.sum(dim=(1, 2))[:, None, None] - inside


class Convolution(nn.Conv2d):
    """A convolution; `medqa.winograd` does it where that is faster and no gradient is asked for."""

    _filter: Filter | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        if not serves(self.weight, self.stride[0], x):
            return super().forward(x)
        if self._filter is None:
            self._filter = Filter(self.weight, self.bias, int(self.padding[0]))
        return self._filter(x)


class Pool(nn.MaxPool2d):
    """Max pooling without padding; where bfloat16 is below 0, any value below 0."""

    @property
    def window(self) -> tuple[int, int]:
        """Size and stride."""
        kernel, stride, _ = _reach(self)
        return kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, h, w)."""
        if not (kernels.suit(torch.float32, x) or kernels.suit(torch.bfloat16, x)):
            return F.max_pool2d(x, *self.window, ceil_mode=self.ceil_mode)
        rows, columns = (_windows(self, n) for n in x.shape[2:])
        return kernels.pool(x, *self.window, (rows, columns))


class Fire(nn.Module):
    """SqueezeNet's module: squeeze to few channels, expand by 1x1 and 3x3 side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = Convolution(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w) to (N, 2 expand, h, w)."""
        x = F.relu_(self.squeeze(x))
        return F.relu_(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1))


def alex_stages(widths: Sequence[int], channels: int = 1) -> nn.ModuleList:
    """AlexNet's five convolutions, each stage ending at a tap, with these channel counts."""
    a, b, c, d, e = widths
    return nn.ModuleList(
        [
            nn.Sequential(Stem(channels, a, 11, 4, 2), nn.ReLU(inplace=True)),
            nn.Sequential(Pool(3, 2), Convolution(a, b, 5, padding=2), nn.ReLU(inplace=True)),
            nn.Sequential(Pool(3, 2), Convolution(b, c, 3, padding=1), nn.ReLU(inplace=True)),
            nn.Sequential(Convolution(c, d, 3, padding=1), nn.ReLU(inplace=True)),
            nn.Sequential(Convolution(d, e, 3, padding=1), nn.ReLU(inplace=True)),
        ]
    )


def _squeeze_stages(channels: int) -> nn.ModuleList:
    # SqueezeNet pools with ceil_mode, unlike AlexNet.
    def pool() -> nn.Module:
        return Pool(3, 2, ceil_mode=True)

    return nn.ModuleList(
        [
            nn.Sequential(Stem(channels, 64, 3, 2, 0), nn.ReLU(inplace=True)),
            nn.Sequential(pool(), Fire(64, 16, 64), Fire(128, 16, 64)),
            nn.Sequential(pool(), Fire(128, 32, 128), Fire(256, 32, 128)),
            nn.Sequential(pool(), Fire(256, 48, 192)),
            nn.Sequential(Fire(384, 48, 192)),
            nn.Sequential(Fire(384, 64, 256)),
            nn.Sequential(Fire(512, 64, 256)),
        ]
    )


def _vgg_stages(channels: int) -> nn.ModuleList:
    stages: list[nn.Module] = []
    before = channels
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers: list[nn.Module] = [Pool(2)] if stages else []
        for _ in range(convolutions):
            first = not stages and not layers
            layers += [
                Stem(channels, width, 3, 1, 1)
                if first
                else Convolution(before, width, 3, padding=1),
                nn.ReLU(inplace=True),
            ]
            before = width
        stages.append(nn.Sequential(*layers))
    return nn.ModuleList(stages)


def stages(weights: Weights, channels: int = 1) -> nn.ModuleList:
    """Build the network of these weights, and load them; each stage ends at a tap.

    Parameters
    ----------
    channels
        1, or 3 for an official network on colour, which its published figures are of.
    """
    if weights.backbone in ("gray", "alex"):
        built = alex_stages([len(head) for head in weights.heads], channels)
    else:
        built = {"squeeze": _squeeze_stages, "vgg": _vgg_stages}[weights.backbone](channels)
    tensors = list(weights.trunk)
    if weights.backbone != "gray":
        tensors[0] = fold(tensors[0], gray=channels == 1)
    for parameter, tensor in zip(built.parameters(), tensors, strict=True):
        parameter.data = tensor.clone()
    # What processors convolve fastest, and what the sums over channels want.
    return built.to(memory_format=torch.channels_last)


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


_Layer = Stem | nn.Conv2d | Pool


def compute_in(network: nn.ModuleList, dtype: torch.dtype) -> None:
    """Let the network compute in another type, but for its first convolution."""
    for module in network.modules():
        if isinstance(module, Stem):
            module.gives = None if dtype == torch.float32 else dtype
        elif isinstance(module, nn.Conv2d):
            module.to(dtype)


def pieces(*batches: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut batches, which broadcast, into views: on a processor images, which its cache holds."""
    if batches[0].device.type != "cpu":
        yield batches
        return
    count = max(map(len, batches))
    yield from zip(*(torch.split(one.expand(count, -1, -1, -1), 1) for one in batches), strict=True)


@dataclass(frozen=True)
class View:
    """Which pixels a tap sees: position i sees ``i * stride + first`` to ``i * stride + last``."""

    stride: int
    first: int
    last: int


def views(network: nn.ModuleList) -> tuple[View, ...]:
    """Return the view of every tap, along rows as along columns."""
    seen = []
    stride, first, last = 1, 0, 0
    for stage in network:
        for kernel, step, padding in map(_reach, _layers(stage)):
            first -= padding * stride
            last += (kernel - 1 - padding) * stride
            stride *= step
        seen.append(View(stride, first, last))
    return tuple(seen)


def positions(network: nn.ModuleList, size: int) -> list[int]:
    """Return how many positions each tap has along an axis of `size` pixels."""
    counts = []
    for stage in network:
        for layer in _layers(stage):
            size = _windows(layer, size)
        counts.append(size)
    return counts


def _windows(layer: _Layer, size: int) -> int:
    """How often a layer's window fits along an axis of this size."""
    kernel, stride, padding = _reach(layer)
    rounded = math.ceil if getattr(layer, "ceil_mode", False) else math.floor
    return rounded((size + 2 * padding - kernel) / stride) + 1


def working_set(network: nn.ModuleList) -> float:
    """Return the values that one image needs for each of its pixels, taps and scratch together."""
    values, area = 1.0, 1.0
    for stage in network:
        for layer in _layers(stage):
            area /= _reach(layer)[1] ** 2
            if not isinstance(layer, Pool):
                values += area * layer.weight.shape[0]
    return values


def _layers(stage: nn.Module) -> Iterator[_Layer]:
    """Yield the layers that change what is seen.

    The two side by side in a `Fire` may be taken one after the other: one has a kernel of 1.
    """
    for module in stage.modules():
        if isinstance(module, _Layer):
            yield module


def _reach(layer: _Layer) -> tuple[int, int, int]:
    """Kernel, stride and padding along one axis."""
    if isinstance(layer, Stem):
        return layer.kernel, layer.stride, layer.padding
    values = (layer.kernel_size, layer.stride, layer.padding)
    kernel, stride, padding = (v if isinstance(v, int) else int(v[0]) for v in values)
    return kernel, stride, padding
