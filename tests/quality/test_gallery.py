"""Galleries: what the distance is, what it tells apart on real images, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter

from medqa.errors import PixelError, ReadError, UsageError
from medqa.lpips import GrayLPIPS
from medqa.quality.gallery import (
    FEWEST,
    TEXTBOOK_LIMIT,
    Embedding,
    add,
    compare,
    distances,
    embed,
    load_all,
    pool,
)


@pytest.fixture(scope="module")
def network() -> GrayLPIPS:
    return GrayLPIPS()


def _embedded(network: GrayLPIPS, pixels: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
    return pool([network.features(pixels[None, None]).kept], list(network.heads))


def made(values: Sequence[float] | np.ndarray, name: str) -> Embedding:  # type: ignore[type-arg]
    return Embedding(np.asarray(values, np.float32), "ct, lung", "gray 1 abc", name * 4)


def test_pooled_by_numpy(network: GrayLPIPS) -> None:
    pixels = torch.rand(2, 1, 48, 64, generator=torch.Generator().manual_seed(0))
    slices = [network.features(one[None]).kept for one in pixels]
    expected = []
    for tap, head in enumerate(network.heads):
        both = np.concatenate([one[tap].numpy()[0].reshape(len(head), -1) for one in slices], 1)
        weight = np.sqrt(head.numpy())
        expected += [weight * both.mean(axis=1), weight * both.std(axis=1)]
    assert pool(slices, list(network.heads)) == pytest.approx(np.concatenate(expected), abs=2e-6)


@pytest.mark.parametrize("strength", [0.01, 0.1, 0.5])
def test_never_larger_than_lpips(network: GrayLPIPS, strength: float) -> None:
    generator = torch.Generator().manual_seed(1)
    one = torch.rand(96, 96, generator=generator)
    other = (one + strength * torch.randn(96, 96, generator=generator)).clamp(0, 1)
    ours = distances(_embedded(network, one), _embedded(network, other)[None])[0]
    assert 0 < ours <= float(network(one[None, None], other[None, None])) * (1 + 1e-5)


def test_where_features_lie_does_not_matter(network: GrayLPIPS) -> None:
    """Positions of the taps shuffled: the same embedding. Slices in another order, too."""
    kept = network.features(torch.rand(1, 1, 64, 64)).kept
    shuffled = []
    for tap in kept:
        order = torch.randperm(tap.shape[2] * tap.shape[3])
        shuffled.append(tap.flatten(2)[:, :, order].view(tap.shape))
    heads = list(network.heads)
    assert pool([shuffled], heads) == pytest.approx(pool([kept], heads), abs=1e-6)
    other = network.features(torch.rand(1, 1, 64, 64)).kept
    assert pool([other, kept], heads) == pytest.approx(pool([kept, other], heads), abs=1e-6)


def test_distance_is_a_squared_euclidean_one() -> None:
    references = np.array([[0.0, 0.0], [3.0, 4.0]], np.float32)
    assert distances(np.array([0, 0], np.float32), references).tolist() == [0.0, 25.0]


def test_limit_is_the_percentile_of_leave_one_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((30, 5)).astype(np.float32)
    for number, one in enumerate(values[: FEWEST - 1]):
        assert add(tmp_path, "CT", made(one, f"a{number}"))
    (few,) = load_all(tmp_path)
    assert few.limit is None
    shown = compare(few, made(values[0] + 0.1, "x"))
    assert (shown.limit, shown.limit_source[:8]) == (TEXTBOOK_LIMIT, "textbook")
    for number, one in enumerate(values):
        assert add(tmp_path, "CT", made(one, f"a{number}")) == (number >= FEWEST - 1)
    (whole,) = load_all(tmp_path, " ct ")
    nearest = [
        min(float(((one - other) ** 2).sum()) for j, other in enumerate(values) if j != i)
        for i, one in enumerate(values)
    ]
    assert whole.limit == pytest.approx(np.percentile(nearest, 95), rel=1e-5)
    # The order in which they were added does not matter.
    for number, one in reversed(list(enumerate(values))):
        add(tmp_path / "again", "CT", made(one, f"a{number}"))
    assert load_all(tmp_path / "again")[0].limit == whole.limit
    # An image with a reference's features lies at 0; the reference itself is left out.
    assert compare(whole, made(values[0], "other")).nearest == 0
    itself = compare(whole, made(values[0], "a0"))
    assert itself.nearest == pytest.approx(nearest[0], rel=1e-5)
    assert "left out" in itself.note


def test_what_does_not_compare_is_refused(tmp_path: Path) -> None:
    one = made([1.0, 2.0], "a")
    other = replace(one, network="gray 2 def", pixels_sha256="b")
    with pytest.raises(UsageError, match="no reference gallery"):
        load_all(tmp_path)
    add(tmp_path, "CT", one)
    with pytest.raises(UsageError, match="two networks"):
        add(tmp_path, "CT", other)
    (gallery,) = load_all(tmp_path)
    with pytest.raises(UsageError, match="two networks"):
        compare(gallery, other)
    with pytest.raises(UsageError, match="itself"):
        compare(gallery, one)
    for blank in ("", "  ", "\0"):
        with pytest.raises(UsageError, match="blank"):
            add(tmp_path, blank, one)
    add(tmp_path, "CT../../../x", one)
    assert {place.parent for place in tmp_path.glob("**/*.safetensors")} <= set(tmp_path.iterdir())


def test_damaged_references_are_refused(tmp_path: Path) -> None:
    add(tmp_path, "CT", made([1.0, 2.0], "a"))
    (file,) = tmp_path.glob("*/*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + b"\0\0\0\1")
    with pytest.raises(UsageError, match="not as it was written"):
        load_all(tmp_path)
    file.write_bytes(whole[:20])
    with pytest.raises(UsageError, match="cannot be read"):
        load_all(tmp_path)
    save_file({"features": torch.zeros(2)}, file)
    with pytest.raises(UsageError, match="cannot be read"):
        load_all(tmp_path)
    file.write_bytes(whole)
    assert load_file(file)["features"].tolist() == [1.0, 2.0]


def test_a_thousand_references_in_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for number in range(1000):
        add(tmp_path, "CT", made(rng.standard_normal(992), f"{number:016x}"))
    start = time.perf_counter()
    (gallery,) = load_all(tmp_path)
    assert compare(gallery, made(rng.standard_normal(992), "x")).references == 1000
    assert time.perf_counter() - start < 10


def _real(shared: Path) -> dict[str, list[Path]]:
    return {
        "CT CHEST": sorted((shared / "ct/totalsegmentator_dicom").glob("CT.*")),
        "CT HEAD": sorted((shared / "ct/head_series_GE").glob("*.dcm")),
        "MR": sorted((shared / "mr/uih_t1").glob("*.dcm")),
        "MR DTI": sorted((shared / "mr/philips_dti").glob("*.dcm")),
    }


def _noisy(source: Path, target: Path, sigma: float, blur: float = 0.0) -> Path:
    """The same image in other words: noise in stored values, or blur."""
    data = pydicom.dcmread(source)
    values = data.pixel_array.astype(float)
    values = gaussian_filter(values, blur) if blur else values
    values += sigma * np.random.default_rng(5).standard_normal(values.shape)
    data.compress(
        pydicom.uid.RLELossless,
        values.round().clip(0, 2**data.BitsStored - 1).astype(data.pixel_array.dtype),
    )
    data.save_as(target)
    return target


def test_real_images_are_nearest_to_their_own(
    shared_data: Path, tmp_path: Path, network: GrayLPIPS
) -> None:
    real = _real(shared_data)
    embedded = {name: [embed(file, network) for file in files] for name, files in real.items()}
    for name, ones in embedded.items():
        for one in ones[::2]:  # every other slice is a reference, the rest is compared
            add(tmp_path, name, one)
    galleries = load_all(tmp_path)
    for name, ones in embedded.items():
        for one in ones[1::2]:
            ranked = sorted(
                (compare(gallery, one) for gallery in galleries), key=lambda c: c.nearest
            )
            assert ranked[0].study_type == name
            assert min(ranked, key=lambda c: c.mean).study_type == name

    # A limit of its own, of 20 neighbouring slices of one patient.
    chest = embedded["CT CHEST"]
    for one in chest:
        add(tmp_path, "whole chest", one)
    assert len(chest) == FEWEST
    (whole,) = load_all(tmp_path, "whole chest")
    assert whole.limit is not None
    assert whole.limit < TEXTBOOK_LIMIT
    assert sum(compare(whole, one).within for one in chest) == 19  # 95 %
    source = real["CT CHEST"][5]
    assert compare(whole, chest[5]).within
    noisy = embed(_noisy(source, tmp_path / "noisy.dcm", 100), network)
    blurred = embed(_noisy(source, tmp_path / "blurred.dcm", 0, 2.0), network)
    for wrong in (noisy, blurred, *embedded["CT HEAD"], *embedded["MR"], *embedded["MR DTI"]):
        assert not compare(whole, wrong).within
    assert "shown as" in compare(whole, embedded["MR"][0]).note


def test_the_same_pixels_in_another_file_are_at_zero(
    shared_data: Path, tmp_path: Path, network: GrayLPIPS
) -> None:
    source = shared_data / "ct/misc/CT_small.dcm"
    data = pydicom.dcmread(source)
    data.compress(pydicom.uid.RLELossless)
    data.save_as(tmp_path / "again.dcm")
    one, other = embed(source, network), embed(tmp_path / "again.dcm", network)
    assert one.pixels_sha256 == other.pixels_sha256
    assert distances(one.values, other.values[None]).tolist() == [0.0]


def test_what_is_no_image_is_refused(tmp_path: Path, network: GrayLPIPS, shared_data: Path) -> None:
    with pytest.raises(ReadError):
        embed(tmp_path / "none.dcm", network)
    data = pydicom.dcmread(shared_data / "ct/misc/CT_small.dcm")
    data.PixelData = bytes(len(data.PixelData))
    data.save_as(tmp_path / "black.dcm")
    with pytest.raises(PixelError):
        embed(tmp_path / "black.dcm", network)
