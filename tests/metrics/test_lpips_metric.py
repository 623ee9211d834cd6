"""LPIPS in MONAI's clothes, against the `lpips` package and Ignite's own bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.handlers import from_engine
from monai.transforms import Compose, EnsureTyped
from torch import Tensor

from medqa.errors import PixelError, UsageError
from medqa.lpips import GrayLPIPS
from medqa.metrics.lpips_metric import LPIPSd, LPIPSHandler, LPIPSMetric


def _pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator)
    return (target + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1), target


@pytest.fixture(scope="module")
def package(
    official_trunk: Callable[..., AbstractContextManager[None]],
) -> Callable[[Tensor, Tensor], Tensor]:
    """The `lpips` package with AlexNet on three copies of images in [0, 1]: (N,)."""
    with official_trunk("alex"):
        import lpips

        peer = lpips.LPIPS(net="alex", verbose=False).eval()

    def distances(one: Tensor, other: Tensor) -> Tensor:
        copies = (images.repeat(1, 3, 1, 1) for images in (one, other))
        return peer(*copies, normalize=True).detach().flatten()

    return distances


def test_images_are_those_of_the_lpips_package(
    shared_weights: Path, package: Callable[[Tensor, Tensor], Tensor]
) -> None:
    made, target = _pair(5, 1, 48, 64)
    metric = LPIPSMetric("alex", weights=shared_weights)
    expected = package(made, target)
    first = metric(made[:2], target[:2])
    assert first.shape == (2, 1)
    # A list of items without the batch axis, as MONAI's `decollate_batch` returns.
    metric(list(made[2:]), list(target[2:]))
    torch.testing.assert_close(metric.get_buffer()[:, 0], expected, rtol=1e-5, atol=0)
    assert float(metric.aggregate()) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert float(metric.aggregate("sum")) == pytest.approx(float(expected.sum()), rel=1e-5)
    assert metric.aggregate("none").shape == (5, 1)
    metric.reset()
    metric(made[:1], target[:1])
    assert float(metric.aggregate()) == pytest.approx(float(expected[0]), rel=1e-5)


def test_a_volume_is_the_mean_of_its_planes_means(
    shared_weights: Path, package: Callable[[Tensor, Tensor], Tensor]
) -> None:
    made, target = _pair(2, 1, 33, 36, 40)
    found = LPIPSMetric("alex", weights=shared_weights)(made, target)
    for one, other, value in zip(made, target, found, strict=True):
        # (1, H, W, D), each axis in turn as the batch
        planes = [
            package(one.movedim(axis, 0), other.movedim(axis, 0)).mean() for axis in (1, 2, 3)
        ]
        assert float(value) == pytest.approx(float(sum(planes)) / 3, rel=1e-5)


def test_ignite_reports_the_mean() -> None:
    made, target = _pair(5, 1, 40, 40)
    # Batches of three and two: a mean of batch means would be another.
    batches = [
        [{"image": made[i], "label": target[i]} for i in some] for some in ((0, 1, 2), (3, 4))
    ]
    evaluator = Engine(lambda _engine, batch: batch)
    handler = LPIPSHandler(output_transform=from_engine(["image", "label"]))
    handler.attach(evaluator, "lpips")
    expected = GrayLPIPS()(target, made)
    for _ in range(2):  # the second run starts afresh
        evaluator.run(batches)
        assert evaluator.state.metrics["lpips"] == pytest.approx(float(expected.mean()), rel=1e-5)
    details = evaluator.state.metric_details["lpips"][:, 0]
    torch.testing.assert_close(details, expected, rtol=1e-5, atol=0)


def test_the_handler_hands_on_the_reduction() -> None:
    made, target = _pair(3, 1, 40, 40)
    evaluator = Engine(lambda _engine, batch: batch)
    LPIPSHandler(reduction="sum", save_details=False).attach(evaluator, "lpips")
    evaluator.run([(made, target)])
    expected = float(GrayLPIPS()(target, made).sum())
    assert evaluator.state.metrics["lpips"] == pytest.approx(expected, rel=1e-5)
    assert not hasattr(evaluator.state, "metric_details")


@pytest.mark.parametrize("kind", [np.asarray, Tensor, MetaTensor])
def test_the_transform_adds_distances_to_the_dictionary(
    kind: Callable[[object], object],
) -> None:
    made, target = _pair(1, 1, 40, 50)
    data = {"original": kind(target[0]), "denoised": kind(made[0]), "copy": kind(target[0])}
    found = LPIPSd(["denoised", "copy"], "original")(data)
    assert found["denoised_lpips"] == pytest.approx(float(GrayLPIPS()(target, made)), rel=1e-5)
    assert found["copy_lpips"] == 0.0
    assert type(found["denoised_lpips"]) is float
    assert set(data) == {"original", "denoised", "copy"}


def test_the_transform_works_in_a_chain_and_a_loader() -> None:
    made, target = _pair(4, 1, 40, 40)
    items = [{"made": m.numpy(), "target": t.numpy()} for m, t in zip(made, target, strict=True)]
    chain = Compose([EnsureTyped(["made", "target"]), LPIPSd("made", "target")])
    batch = next(iter(DataLoader(Dataset(items, chain), batch_size=4)))
    expected = GrayLPIPS()(target, made).double()
    torch.testing.assert_close(batch["made_lpips"], expected, rtol=1e-5, atol=0)


def test_a_missing_key_is_an_error_unless_allowed() -> None:
    _, target = _pair(1, 1, 40, 40)
    with pytest.raises(KeyError):
        LPIPSd("made", "target")({"target": target[0]})
    found = LPIPSd("made", "target", allow_missing_keys=True)({"target": target[0]})
    assert set(found) == {"target"}


def test_what_leaves_the_range_is_refused() -> None:
    made, target = _pair(1, 1, 40, 40)
    metric = LPIPSMetric()
    for one, other in ((made * 255, target), (made, target * 255)):
        with pytest.raises(PixelError, match=r"not in \[0, 1\]"):
            metric(one, other)
    with pytest.raises(UsageError, match="has measured nothing"):
        metric.aggregate()


def test_what_cannot_be_compared_is_refused() -> None:
    made, target = _pair(2, 1, 40, 40)
    metric = LPIPSMetric()
    with pytest.raises(UsageError, match="has no target"):
        metric(made)
    with pytest.raises(PixelError, match="of shapes"):
        metric(made[:1], target)
    with pytest.raises(PixelError, match="of shapes"):
        metric(made[0], target[0])


def test_no_gradient_and_no_half_precision() -> None:
    made, target = _pair(1, 1, 40, 40)
    metric = LPIPSMetric()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = metric(made.requires_grad_(), target)
    assert not mixed.requires_grad
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, metric(made, target))
