"""The way from pictures to a network, on data small enough for a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch
from safetensors.torch import load_file

from medqa.lpips import GrayLPIPS
from medqa.training import train
from medqa.training.denoisers import Recipe
from medqa.training.denoisers import train as train_denoiser
from medqa.training.pairs import tap_maps
from medqa.training.sources import Picture
from medqa.weights import load_gray


@pytest.fixture(scope="module")
def some_pictures() -> list[Picture]:
    rng = np.random.default_rng(0)
    found = []
    for modality in ("CT", "MR", "NM", "US", "XR"):
        field = ndi.gaussian_filter(rng.standard_normal((200, 220)), rng.uniform(1, 4))
        pixels = np.clip(0.5 + field / (4 * field.std()), 0, 1).astype(np.float32)
        found.append(Picture(f"phantom {modality}", modality, pixels))
    return found


@pytest.fixture(scope="module")
def teacher(shared_weights: Path) -> GrayLPIPS:
    return GrayLPIPS("alex", shared_weights)


@pytest.fixture(scope="module")
def shards(
    some_pictures: list[Picture], teacher: GrayLPIPS, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "SHARD", 8)
        patch.setattr(train, "RECIPES", train.RECIPES[:1])
        made = list(train.prepare(some_pictures, teacher, folder, groups=16))
        assert len(made) == 2
        written = [path.stat().st_mtime_ns for path in made]
        # A second call finds what the first one made.
        again = list(train.prepare(some_pictures, teacher, folder, groups=16))
    assert [path.stat().st_mtime_ns for path in again] == written
    return folder


def test_shards_hold_what_the_teacher_says(shards: Path, teacher: GrayLPIPS) -> None:
    tensors = load_file(next(iter(sorted(shards.iterdir()))))
    reference, candidates = (tensors[name].float() / 65535 for name in ("reference", "candidates"))
    assert candidates.shape == (8, 12, 160, 160)
    taps = [tensors[f"tap.{tap}"] for tap in range(5)]
    distance = torch.stack([tap.mean(dim=(2, 3)) for tap in taps]).sum(0)
    with torch.inference_mode():
        expected = teacher(reference[3:4].expand(12, -1, -1)[:, None], candidates[3][:, None])
    torch.testing.assert_close(distance[3], expected, rtol=1e-4, atol=1e-7)


def test_training_starts_close_comes_closer_and_goes_on(
    shards: Path, teacher: GrayLPIPS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SHARD", 8)
    start = train.prune(teacher, shards)
    assert [len(head) for head in start.heads] == list(train.WIDTHS)

    def error(network: GrayLPIPS) -> float:
        batch = train._batch(shards, 8, np.random.default_rng(5), "cpu")
        with torch.inference_mode():
            return train._loss(network, batch, 1.0)[1]["scalar"]

    before = error(GrayLPIPS("gray", start))
    trained = train.optimise(start, shards, tmp_path / "run", steps=12, batch=2)
    assert error(trained) < before / 2
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    assert all(bool((head >= 0).all()) for head in trained.heads)
    # From the checkpoint of the last step nothing is left to do: the same network.
    resumed = train.optimise(start, shards, tmp_path / "run", steps=12, batch=2)
    for one, other in zip(trained.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_export_and_load(teacher: GrayLPIPS, shards: Path, tmp_path: Path) -> None:
    network = GrayLPIPS("gray", train.prune(teacher, shards))
    written = train.export(network, tmp_path / "gray.safetensors", "9", 0.125, 0.25)
    loaded = load_gray(tmp_path / "gray.safetensors")
    assert (loaded.version, loaded.sha256) == ("9", written.sha256)
    assert (loaded.relative_error, loaded.region_relative_error) == (0.125, 0.25)
    images = torch.rand(2, 1, 64, 64)
    assert torch.equal(
        GrayLPIPS("gray", loaded)(images, images.flip(0)), network(images, images.flip(0))
    )


def test_tap_maps_are_the_maps_of_the_distance(teacher: GrayLPIPS) -> None:
    reference, candidates = torch.rand(2, 80, 80), torch.rand(2, 3, 80, 80)
    maps = tap_maps(teacher, reference, candidates)
    total = torch.stack([one.mean(dim=(2, 3)) for one in maps]).sum(0)
    for group in range(2):
        expected = teacher(reference[group].expand(3, -1, -1)[:, None], candidates[group][:, None])
        torch.testing.assert_close(total[group], expected)


def test_a_denoiser_takes_noise_away(some_pictures: list[Picture]) -> None:
    denoise = train_denoiser(Recipe(8, 3, "l2", 0.8, seed=0), some_pictures, steps=150)
    clean = some_pictures[0].pixels
    rng = np.random.default_rng(1)
    noisy = clean + 0.05 * rng.standard_normal(clean.shape).astype(np.float32)
    error = np.abs(denoise(noisy, 0.8, rng) - clean).mean()
    assert error < 0.8 * np.abs(noisy - clean).mean()
    np.testing.assert_allclose(denoise(noisy, 0.0, rng), noisy)
