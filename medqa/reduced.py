"""Reduced precision without losing faint damage: a network carries differences.

bfloat16 keeps 8 bits. Run on both images by itself, a network in bfloat16 rounds their features
apart by more than light compression does: distances below 0.0005 come out several times too
large. So the reference alone goes through the network, and beside it the candidate's *difference*
from it, which keeps its own 8 bits however small it is::

    convolution   conv(x + d) - conv(x)  =  conv(d), without the bias
    ReLU          relu(p + d) - relu(p)  =  max(d + min(p, 0), -max(p, 0))     nothing cancels
    pooling       pool(x + d) - pool(x)                                        summed in float32

The reference's part, its *trail*, does not depend on the candidate and can be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medqa import kernels
from medqa.networks import Fire, Pool, Stem, pieces

__all__ = ["follow", "trail"]


def trail(stages: nn.ModuleList, images: Tensor) -> list[Tensor]:
    """Return what the network computes of the reference: each convolution's and pooling's result.

    Parameters
    ----------
    images
        (N, 1, H, W) float32 in [0, 1].
    """
    kept: list[Tensor] = []
    x = images
    for layer in _layers(stages):
        if isinstance(layer, nn.ReLU):
            continue  # what comes next does it
        if isinstance(layer, Pool):
            x = layer(x).relu_()  # the same as before it, of fewer values
        elif isinstance(layer, Fire):
            kept.append(layer.squeeze(x.relu()))
            inner = kept[-1].relu()
            x = torch.cat([layer.expand1x1(inner), layer.expand3x3(inner)], dim=1)
        else:
            x = layer(x if x is images else x.relu())
        kept.append(x)
    return kept


def follow(
    stages: nn.ModuleList, kept: Sequence[Tensor], difference: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield at every tap the reference before its last ReLU, and the difference after it.

    Parameters
    ----------
    kept
        Of `trail`.
    difference
        (N, 1, H, W) float32: candidates less references.
    """
    past = iter(kept)
    d = difference
    p = kept[0]
    for stage in stages:
        for layer in _layers([stage]):
            if isinstance(layer, nn.ReLU):
                d = _relu(p, d)
            elif isinstance(layer, Pool):
                d = _pool(layer, p, d, next(past))
            elif isinstance(layer, Fire):
                p = next(past)
                d = _relu(p, _convolve(layer.squeeze, d))
                p = next(past)
                both = [_convolve(one, d) for one in (layer.expand1x1, layer.expand3x3)]
                d = _relu(p, torch.cat(both, dim=1))
            else:
                p = next(past)
                d = _convolve(layer, d)
        yield p, d


def _layers(stages: Sequence[nn.Module] | nn.ModuleList) -> Iterator[nn.Module]:
    for stage in stages:
        yield from stage.children()


def _convolve(layer: nn.Module, d: Tensor) -> Tensor:
    if isinstance(layer, Stem):
        return layer.convolve(d, None)
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(d, layer.weight, None, layer.stride, layer.padding)
    raise TypeError(f"{type(layer).__name__} has no rule for differences")


def _relu(p: Tensor, d: Tensor) -> Tensor:
    for before, one in pieces(p, d):
        if kernels.suit(torch.bfloat16, before, one):
            kernels.relu_difference(before, one)
            continue
        one += before.clamp(max=0)
        torch.maximum(one, before.clamp(min=0).neg_(), out=one)
    return d


def _pool(layer: Pool, p: Tensor, d: Tensor, pooled: Tensor) -> Tensor:
    out = torch.empty_like(pooled.expand(len(d), -1, -1, -1), memory_format=torch.channels_last)
    for before, one, after, result in pieces(p, d, pooled, out):
        if kernels.suit(torch.bfloat16, before, one, after, result):
            kernels.pool_difference(before, one, after, *layer.window, result)
            continue
        result.copy_(layer(before.relu().float().add_(one)).sub_(after))
    return out
