"""The loops for processors do what torch's operations do, to the bit where nothing is summed."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from medqa import kernels
from medqa.threads import each

SIZES = [(1, 32, 5, 7), (3, 80, 9, 4), (2, 7, 6, 11)]  # 7 channels: a rest that no vector holds


def drawn(*size: int, dtype: torch.dtype = torch.bfloat16, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    values = spread * torch.randn(*size, generator=generator)
    return values.to(dtype).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES)
def test_differences_of_unit_vectors(size: tuple[int, ...]) -> None:
    one, other = drawn(*size, dtype=torch.float32).relu(), drawn(*size, dtype=torch.float32)
    one[:, :, 0] = 0  # without a direction: stays zero
    head = torch.rand(size[1])
    exact = F.normalize(one.double(), eps=1e-10) - F.normalize(other.double(), eps=1e-10)
    expected = (exact.square() * head.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
    found = kernels.unit_difference(one, other, head)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_differences_of_what_is_followed(size: tuple[int, ...]) -> None:
    before, difference = drawn(*size), drawn(*size, spread=1e-3)
    head = torch.rand(size[1])
    one = before.relu().float()
    expected = kernels.unit_difference(one, one + difference.float(), head)
    found = kernels.unit_followed(before, difference, head)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_a_difference_passes_the_relu(size: tuple[int, ...]) -> None:
    before, difference = drawn(*size), drawn(*size, spread=0.5)
    one, other = before.double(), before.double() + difference.double()
    expected = other.relu() - one.relu()
    found = kernels.relu_difference(before, difference.clone())
    # One rounding to the 8 bits of bfloat16.
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=0)
    long = drawn(1, 16, 40, 70), drawn(1, 16, 40, 70, spread=0.1)  # more than one block
    eager = torch.maximum(long[1] + long[0].clamp(max=0), -long[0].clamp(min=0))
    assert torch.equal(kernels.relu_difference(long[0], long[1].clone()), eager)


@pytest.mark.parametrize(
    ("kernel", "stride", "ceil", "side"), [(3, 2, False, 10), (3, 2, True, 10), (2, 2, False, 9)]
)
def test_pooling(kernel: int, stride: int, ceil: bool, side: int) -> None:
    image = drawn(2, 32, side, side + 3, dtype=torch.float32)
    expected = F.max_pool2d(image, kernel, stride, ceil_mode=ceil)
    found = kernels.pool(image, kernel, stride, (expected.shape[2], expected.shape[3]))
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    bits = image.bfloat16().relu()
    bits[0, :, :5] = -0.0
    found = kernels.pool(bits, kernel, stride, (expected.shape[2], expected.shape[3]))
    assert torch.equal(found, F.max_pool2d(bits, kernel, stride, ceil_mode=ceil))

    before, difference = drawn(2, 32, side, side), drawn(2, 32, side, side, spread=0.1)
    one = before.float().relu()
    pooled = F.max_pool2d(one, kernel, stride, ceil_mode=ceil)
    other = F.max_pool2d(one + difference.float(), kernel, stride, ceil_mode=ceil)
    out = torch.empty_like(pooled, dtype=torch.bfloat16)
    kernels.pool_difference(before, difference, pooled.bfloat16(), kernel, stride, out)
    assert torch.equal(out, (other - pooled).bfloat16())


def test_what_the_loops_serve() -> None:
    right = drawn(1, 8, 4, 4, dtype=torch.float32)
    assert kernels.suit(torch.float32, right, right)
    assert not kernels.suit(torch.bfloat16, right)
    assert not kernels.suit(torch.float32, right, right.contiguous())
    assert not kernels.suit(torch.float32, right.clone().requires_grad_())
    assert not kernels.suit(torch.float32, right.to("meta"))


# Narrower than the kernels too: the mirror images of such an image overlap.
@pytest.mark.parametrize("shape", [(1, 1, 3, 50), (2, 1, 40, 5), (1, 3, 33, 64)])
@pytest.mark.parametrize("taps", [(5, 5), (17, 33), (1, 9)])
def test_correlation(shape: tuple[int, ...], taps: tuple[int, int]) -> None:
    image = torch.rand(shape)
    down, across = (torch.randn(count).double() for count in taps)
    exact = image.double().numpy()
    for kernel, axis in ((down, 2), (across, 3)):
        exact = ndimage.correlate1d(exact, kernel.numpy(), axis, mode="reflect")
    found = kernels.correlate(image, down, across)
    np.testing.assert_allclose(found.numpy(), exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    def njit(function: Any, *, cache: bool = False, **_: Any) -> Any:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return function

    monkeypatch.setattr(kernels, "njit", njit)
    function = kernels.compiled(lambda: None)
    assert function() is None
    assert asked == [True, False]


def test_each_keeps_order_modes_and_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        meet = threading.Barrier(2, timeout=60)

        def seen(item: int) -> tuple[int, int, bool]:
            meet.wait()  # or they were not at work at the same time
            return item, torch.get_num_threads(), torch.is_inference_mode_enabled()

        with torch.inference_mode():
            assert list(each(seen, range(4), 2)) == [(n, 2, True) for n in range(4)]
        assert torch.get_num_threads() == 4
        alone = each(lambda n: (n, torch.get_num_threads()), range(2), 1)
        assert list(alone) == [(0, 4), (1, 4)]
        with pytest.raises(ZeroDivisionError):
            each(lambda n: 1 / n, [1, 0], 2)
    finally:
        torch.set_num_threads(before)
