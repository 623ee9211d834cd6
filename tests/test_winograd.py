"""Winograd's convolution is the direct one, with rounding errors of the same order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medqa.lpips import GrayLPIPS
from medqa.networks import Convolution
from medqa.threads import each
from medqa.winograd import Filter, serves


def drawn(*size: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(*size, generator=generator).to(memory_format=torch.channels_last)


# Sides from less than a patch to several blocks of them, with and without a rest.
@pytest.mark.parametrize("size", [(1, 32, 3, 5), (2, 33, 16, 17), (3, 40, 63, 50), (1, 64, 1, 90)])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (3, 0), (5, 2), (5, 0), (3, 2)])
def test_equals_the_direct_sum(size: tuple[int, ...], kernel: int, padding: int) -> None:
    if min(size[2:]) + 2 * padding < kernel:
        padding = kernel // 2
    x, weight, bias = drawn(*size).relu(), drawn(48, size[1], kernel, kernel), torch.randn(48)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=padding)
    found = Filter(weight, bias, padding)(x)
    assert found.shape == exact.shape
    assert found.is_contiguous(memory_format=torch.channels_last)

    def error(result: Tensor) -> float:
        return float((result - exact).square().mean().sqrt() / exact.square().mean().sqrt())

    # Most where the border, which it computes with as with any pixel, is most of the image.
    assert error(found) < 6 * error(F.conv2d(x, weight, bias, padding=padding)) < 6e-6


def test_does_not_depend_on_threads() -> None:
    x, ready = drawn(2, 64, 60, 60), Filter(drawn(64, 64, 3, 3), torch.zeros(64), 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ready(x)
        torch.set_num_threads(4)
        several = ready(x)
        nested = list(each(ready, [x[:1], x[1:]], 2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, several)
    assert torch.equal(alone, torch.cat(nested))


def test_serves_only_where_it_is_right_and_faster() -> None:
    x, weight = drawn(1, 64, 20, 20), drawn(64, 64, 3, 3)
    assert serves(weight, 1, x)
    assert not serves(weight, 2, x)
    assert not serves(drawn(64, 16, 3, 3), 1, drawn(1, 16, 20, 20))  # too few channels
    assert not serves(drawn(64, 64, 7, 7), 1, x)
    assert not serves(weight, 1, x.contiguous())
    assert not serves(weight.double(), 1, x.double())
    assert not serves(weight, 1, x.clone().requires_grad_())
    assert not serves(torch.nn.Parameter(weight), 1, x)


def test_networks_use_it_and_gradients_do_not() -> None:
    torch.manual_seed(0)
    layer = Convolution(32, 40, 3, padding=1).to(memory_format=torch.channels_last)
    x = drawn(2, 32, 30, 30)
    direct = layer(x)  # its weights may change yet
    assert direct.requires_grad
    assert layer._filter is None
    layer.requires_grad_(False)
    torch.testing.assert_close(layer(x), direct, rtol=1e-5, atol=1e-5)
    assert layer._filter is not None
    followed = x.clone().requires_grad_()
    assert torch.equal(layer(followed), direct)


def test_faint_damage_is_seen_as_in_double_precision() -> None:
    """Distances of a few 1e-6, where rounding shows first; the direct sum is 1.5e-4 off, too."""
    torch.manual_seed(0)
    reference = F.avg_pool2d(torch.rand(1, 1, 200, 200), 9, 1, 4)
    candidate = (reference + 1e-4 * torch.randn_like(reference)).clamp(0, 1)
    network = GrayLPIPS("gray")
    found = network(reference, candidate)
    exact = GrayLPIPS("gray").double()(reference.double(), candidate.double())
    assert 1e-6 < float(exact) < 1e-5
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=0)
