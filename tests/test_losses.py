"""PerceptualLoss against MONAI's own, closed forms, and finite differences."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.losses import PerceptualLoss as MonaiLoss
from torch import Tensor, nn

from medqa.errors import PixelError, UsageError
from medqa.losses import PerceptualLoss, gram_distance, plane_batches, total_variation
from medqa.lpips import GrayLPIPS


def _pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator)
    return (target + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1), target


@pytest.fixture(scope="module")
def monai_loss(official_trunk: Callable[..., AbstractContextManager[None]]) -> MonaiLoss:
    """MONAI's 2.5D loss over all slices, with the trunk that it would download."""
    with official_trunk("alex"):
        return MonaiLoss(3, "alex", fake_3d_ratio=1.0).eval()


def test_volumes_are_a_third_of_monais_sum_over_all_slices(
    shared_weights: Path, monai_loss: MonaiLoss
) -> None:
    made, target = _pair(2, 1, 33, 36, 40)
    ours = PerceptualLoss(3, "alex", weights=shared_weights)(made, target)
    # MONAI expects [-1, 1], though it does not say so, and adds up its three axes.
    theirs = monai_loss(2 * made - 1, 2 * target - 1).detach() / 3
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_images_are_the_mean_distance_of_the_lpips_package(
    shared_weights: Path, monai_loss: MonaiLoss
) -> None:
    made, target = _pair(3, 1, 40, 50)
    ours = PerceptualLoss(2, "alex", weights=shared_weights)(made, target)
    copies = (2 * images.repeat(1, 3, 1, 1) - 1 for images in (made, target))
    theirs = monai_loss.perceptual_function(*copies).detach().mean()
    assert ours.shape == ()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_stride_takes_every_nth_slice_of_each_axis() -> None:
    made, target = _pair(1, 1, 32, 34, 36)
    network = GrayLPIPS()
    planes = []
    for axis in (2, 3, 4):
        slices = range(0, made.shape[axis], 5)
        values = [network(target.select(axis, i), made.select(axis, i)) for i in slices]
        planes.append(float(torch.stack(values).mean()))
    loss = PerceptualLoss(3, stride=5)(made, target)
    assert float(loss) == pytest.approx(sum(planes) / 3, rel=1e-5)


def test_batches_of_slices_keep_the_slices_of_a_volume_together() -> None:
    volume = torch.arange(2 * 3 * 4 * 5).view(2, 1, 3, 4, 5)
    batches = list(plane_batches(volume, stride=2))
    assert [tuple(one.shape) for one in batches] == [(4, 1, 4, 5), (4, 1, 3, 5), (6, 1, 3, 4)]
    np.testing.assert_array_equal(batches[2][4, 0], volume[1, 0, :, :, 2])
    images = volume[..., 0]
    assert next(plane_batches(images)) is images


@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_equal_finite_differences(dims: int) -> None:
    shape = (1, 1, *[32] * dims)
    generator = torch.Generator().manual_seed(dims)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    # Along five directions: all pixels would take minutes. Some values leave [0, 1].
    directions = torch.randn((5, *shape), generator=generator, dtype=torch.float64)
    loss = PerceptualLoss(
        dims,
        stride=16 if dims == 3 else 1,
        l1_weight=0.3,
        style_weight=0.2,
        total_variation_weight=0.1,
    ).double()

    def along(steps: Tensor) -> Tensor:
        return loss(target + torch.tensordot(steps, directions, dims=1), target)

    start = torch.full((5,), 0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, (start,), eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.5, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_images_have_no_loss_and_no_gradient(
    value: float | None, dtype: torch.dtype
) -> None:
    target = _pair(1, 1, 31, 31)[1] if value is None else torch.full((1, 1, 31, 31), value)
    made = target.to(dtype).requires_grad_()
    loss = PerceptualLoss(l1_weight=1, style_weight=1).to(dtype)(made, target.to(dtype))
    loss.backward()
    # Only rounding is left.
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert float(made.grad.abs().max()) == pytest.approx(0, abs=1e-7)


def test_gradients_are_finite_where_features_vanish() -> None:
    """A black image against a textured one, and the other way round."""
    textured = _pair(1, 1, 40, 40)[1]
    black = torch.zeros_like(textured)
    loss = PerceptualLoss(l1_weight=1, style_weight=1, total_variation_weight=1)
    for made, target in ((black, textured), (textured, black), (black - 5, textured)):
        made = made.clone().requires_grad_()
        loss(made, target).backward()
        assert torch.isfinite(made.grad).all()
        assert made.grad.abs().sum() > 0


def test_terms_add_up() -> None:
    made, target = _pair(2, 1, 36, 40)
    network = GrayLPIPS()
    lpips = network(target, made).mean()
    style = gram_distance(network.encode(target), network.encode(made)).mean()
    absolute = np.abs(made.numpy() - target.numpy()).mean()
    rows, columns = (np.abs(np.diff(made.numpy(), axis=axis)).mean() for axis in (2, 3))
    expected = lpips + 0.5 * style + 2 * absolute + 3 * (rows + columns)
    loss = PerceptualLoss(l1_weight=2, style_weight=0.5, total_variation_weight=3)
    assert float(loss(made, target)) == pytest.approx(float(expected), rel=1e-5)
    assert float(PerceptualLoss()(made, target)) == pytest.approx(float(lpips), rel=1e-6)


def test_gram_distance_is_its_closed_form() -> None:
    def features(tap: Tensor) -> tuple[Tensor]:
        return (tap,)

    first, second = torch.zeros(2, 1, 3, 4, 5)
    first[:, 0], second[:, 1] = 1, 1
    # G is e0 e0ᵀ against e1 e1ᵀ: two entries differ by 1.
    assert gram_distance(features(first), features(second)).tolist() == [2.0]
    half = torch.cat([first[..., :2, :], second[..., :2, :]], dim=2)
    assert gram_distance(features(first), features(half)).tolist() == [0.5]
    # Where a texture lies does not count.
    assert gram_distance(features(half), features(half.flip(2))).tolist() == [0.0]


def test_total_variation_is_its_closed_form() -> None:
    row = torch.linspace(0, 1, 11)
    ramp = row.expand(2, 1, 7, 11)
    assert float(total_variation(ramp)) == pytest.approx(0.1)
    volume = ramp[:, :, :, None] + row.view(1, 1, 1, 11, 1)
    assert float(total_variation(volume)) == pytest.approx(0.2)


def test_the_network_is_out_of_reach_of_training() -> None:
    made, target = _pair(1, 1, 40, 40)
    model = nn.ModuleDict({"loss": PerceptualLoss()})
    loss = model["loss"]
    before = loss(made, target)

    def reset(module: nn.Module) -> None:
        if hasattr(module, "weight"):
            nn.init.zeros_(module.weight)

    model.train().requires_grad_(True).apply(reset)
    assert list(model.parameters()) == []
    assert model.state_dict() == {}
    assert not loss.network.training
    assert not any(one.requires_grad for one in loss.network.parameters())
    assert torch.equal(loss(made, target), before)
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):  # noqa: S301 (our own)
        assert torch.equal(again(made, target), before)


def test_the_network_follows_to_another_device_and_keeps_its_precision() -> None:
    made, target = _pair(1, 1, 40, 40)
    model = nn.Sequential(PerceptualLoss())
    loss = model[0]
    before = loss(made, target)
    model.half()
    assert {one.dtype for one in loss.network.parameters()} == {torch.float32}
    assert torch.equal(loss(made, target), before)
    model.double()
    assert {one.dtype for one in loss.network.parameters()} == {torch.float64}
    assert float(loss(made, target)) == pytest.approx(float(before), rel=1e-5)
    model.to("meta")
    assert {one.device.type for one in loss.network.parameters()} == {"meta"}


def test_autocast_changes_nothing() -> None:
    made, target = _pair(1, 1, 40, 40)
    loss = PerceptualLoss(style_weight=1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(made, target)
    assert torch.equal(mixed, loss(made, target))


def test_takes_what_monais_transforms_return() -> None:
    made, target = _pair(1, 1, 40, 40)
    loss = PerceptualLoss()
    tracked = MetaTensor(made.clone()).requires_grad_()
    found = loss(tracked, MetaTensor(target))
    found.backward()
    assert type(found) is Tensor
    torch.testing.assert_close(found, loss(made, target), rtol=1e-5, atol=0)
    assert tracked.grad is not None
    assert tracked.grad.abs().sum() > 0


def test_the_output_of_a_network_may_leave_the_range() -> None:
    made, target = _pair(1, 1, 40, 40)
    far, near = (PerceptualLoss()(made + by, target) for by in (3.0, 0.1))
    assert math.isfinite(far)
    assert far > near > 0


@pytest.mark.parametrize("wrong", [255.0, -1.0, math.nan])
def test_a_target_outside_the_range_is_refused_at_every_call(wrong: float) -> None:
    made, target = _pair(1, 1, 40, 40)
    loss = PerceptualLoss()
    loss(made, target)
    with pytest.raises(PixelError, match=r"not in \[0, 1\]; scale input and target alike"):
        loss(made, target * wrong)


@pytest.mark.parametrize(
    ("dims", "shape", "reason"),
    [
        (2, (1, 3, 40, 40), "instead of (B, 1, H, W); give one channel"),
        (2, (1, 1, 40, 40, 40), "instead of (B, 1, H, W)"),
        (3, (1, 1, 40, 40), "instead of (B, 1, H, W, D)"),
        (2, (1, 1, 30, 40), "30 x 40 has a side below the 31 pixels that network gray needs"),
        (3, (1, 1, 40, 40, 20), "40 x 40 x 20 has a side below"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(dims: int, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(PixelError) as caught:
        PerceptualLoss(dims)(torch.zeros(shape), torch.zeros(shape))
    assert reason in str(caught.value)


def test_two_shapes_are_refused() -> None:
    with pytest.raises(PixelError, match="the target's is"):
        PerceptualLoss()(torch.zeros(1, 1, 40, 40), torch.zeros(2, 1, 40, 40))


@pytest.mark.parametrize(
    "options",
    [
        {"spatial_dims": 1},
        {"spatial_dims": 2, "stride": 2},
        {"spatial_dims": 3, "stride": 0},
        {"l1_weight": -1.0},
        {"style_weight": math.nan},
        {"total_variation_weight": math.inf},
        {"backbone": "resnet50"},
    ],
)
def test_parameters_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        PerceptualLoss(**options)
