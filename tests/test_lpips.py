"""GrayLPIPS against the `lpips` package, published figures, and its definition."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image as Pillow
from safetensors.torch import save_file
from torch import Tensor, nn

import medqa.lpips
import medqa.weights
from medqa.errors import PixelError, UsageError
from medqa.lpips import PRECISIONS, GrayLPIPS
from medqa.networks import fold, positions
from medqa.weights import BACKBONES, Backbone, Weights, digest, find


@pytest.fixture(scope="module")
def peer(
    official_trunk: Callable[..., AbstractContextManager[None]],
) -> Callable[[str], nn.Module]:
    """The `lpips` package, given the same trunk, which it would download."""

    def build(backbone: str, trunk: dict[str, Tensor] | None = None) -> nn.Module:
        with official_trunk(backbone, trunk):
            import lpips

            return lpips.LPIPS(net=backbone, verbose=False).eval()

    return build


@pytest.fixture(scope="module")
def alex(shared_weights: Path) -> GrayLPIPS:
    return GrayLPIPS("alex", shared_weights)


@pytest.fixture
def network(shared_weights: Path) -> Callable[[str], GrayLPIPS]:
    """A network by name; vgg with a random trunk, as its own is 500 MB."""
    return lambda name: _any(name, shared_weights)


@pytest.fixture
def reduced(shared_weights: Path) -> Callable[[str, str], GrayLPIPS]:
    """The same in reduced precision."""
    return lambda name, precision: _any(name, shared_weights, precision)


def _any(name: str, folder: Path, precision: str = "float32") -> GrayLPIPS:
    if name != "vgg":
        return GrayLPIPS(name, folder, precision=precision)
    torch.manual_seed(0)
    trunk = tuple(torchvision.models.vgg16(weights=None).features.parameters())
    heads = medqa.weights._load_heads("vgg")
    return GrayLPIPS("vgg", Weights("vgg", "0", trunk, heads, ""), precision=precision)


def _pair(rows: int, columns: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    # Smooth enough to have structure, not constant anywhere.
    one = torch.rand(2, 1, rows, columns, generator=generator)
    other = (one + noise * torch.randn(one.shape, generator=generator)).clamp(0, 1)
    return one, other


def _of_peer(network: nn.Module, one: Tensor, other: Tensor) -> Tensor:
    rgb = (-1, 3, -1, -1)
    with torch.inference_mode():
        return network(one.expand(rgb), other.expand(rgb), normalize=True).flatten()


@pytest.mark.parametrize("backbone", ["alex", "squeeze"])
@pytest.mark.parametrize(
    ("rows", "columns", "noise"),
    [(31, 31, 0.1), (64, 64, 0.1), (65, 97, 0.02), (130, 127, 0.3), (256, 199, 0.05)],
)
def test_equals_the_lpips_package_on_three_copies(
    peer: Callable[[str], nn.Module],
    shared_weights: Path,
    backbone: str,
    rows: int,
    columns: int,
    noise: float,
) -> None:
    one, other = _pair(rows, columns, noise)
    expected = _of_peer(peer(backbone), one, other)
    torch.testing.assert_close(
        GrayLPIPS(backbone, shared_weights)(one, other), expected, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("backbone", ["alex", "squeeze"])
def test_equals_it_for_faint_damage_in_double_precision(
    peer: Callable[[str], nn.Module], shared_weights: Path, backbone: str
) -> None:
    # Distances of about 1e-6, where float32 rounds both implementations by more than 1e-5.
    one, other = (image.double() for image in _pair(97, 131, 0.0005))
    expected = _of_peer(peer(backbone).double(), one, other)
    found = GrayLPIPS(backbone, shared_weights).double()(one, other)
    # The linear scaling is folded from float32 weights in the network, and not in the peer.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_vgg_equals_the_lpips_package_with_a_random_trunk(
    peer: Callable[[str], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real trunk is 500 MB and cannot be downloaded everywhere; the arithmetic is the same.
    torch.manual_seed(0)
    trunk = torchvision.models.vgg16(weights=None).features.state_dict()
    save_file(trunk, tmp_path / "vgg.safetensors")
    pinned = medqa.weights.BACKBONES["vgg"]
    ordered = [
        trunk[name] for name in sorted(trunk, key=lambda n: (int(n.split(".")[0]), "w" not in n))
    ]
    monkeypatch.setattr(
        medqa.weights,
        "BACKBONES",
        {
            "vgg": Backbone(
                pinned.version,
                pinned.smallest_side,
                ("vgg.safetensors",),
                trunk_sha256=digest(ordered),
                heads_sha256=pinned.heads_sha256,
            )
        },
    )
    one, other = _pair(49, 66)
    expected = _of_peer(peer("vgg", trunk), one, other)
    network = GrayLPIPS("vgg", find("vgg", tmp_path))
    torch.testing.assert_close(network(one, other), expected, rtol=1e-5, atol=0)


class _Rgb(GrayLPIPS):
    """The same weights on three channels."""

    def __init__(self, weights: Weights) -> None:
        nn.Module.__init__(self)
        self._build(weights, channels=3)


# pyiqa's results_official.csv, LPIPS v0.1 alex.
_PUBLISHED = {"I03": 0.7237, "I04": 0.2572, "I06": 0.05079, "I08": 0.05205, "I19": 0.4253}


@pytest.mark.parametrize(("name", "expected"), _PUBLISHED.items())
def test_rgb_path_gives_the_published_figures(
    shared_data: Path, shared_weights: Path, name: str, expected: float
) -> None:
    def rgb(folder: str) -> Tensor:
        path = next((shared_data / "iqa" / folder).glob(f"{name}*"))
        pixels = np.asarray(Pillow.open(path).convert("RGB"), dtype=np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1)[None]

    network = _Rgb(find("alex", shared_weights))
    assert float(network(rgb("ref"), rgb("dist"))) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize(
    ("backbone", "candidate", "expected"),
    [
        ("alex", "ex_p0.png", 0.72188),
        ("alex", "ex_p1.png", 0.13757),
        ("squeeze", "ex_p0.png", 0.71105),
        ("squeeze", "ex_p1.png", 0.14790),
    ],
)
def test_rgb_path_gives_the_reference_implementations_examples(
    shared_weights: Path, backbone: str, candidate: str, expected: float
) -> None:
    def rgb(name: str) -> Tensor:
        pixels = np.asarray(Pillow.open(shared_weights / "golden" / name).convert("RGB"))
        return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]

    network = _Rgb(find(backbone, shared_weights))
    assert float(network(rgb("ex_ref.png"), rgb(candidate))) == pytest.approx(expected, abs=2e-5)


def test_folding_is_exact_at_the_border_too(shared_weights: Path) -> None:
    # In double precision, against the three-channel convolution of the scaled copies.
    weight = find("alex", shared_weights).trunk[0].double()
    x = torch.rand(1, 1, 40, 53, dtype=torch.float64)
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(1, 3, 1, 1)
    scaled = (2 * x.expand(-1, 3, -1, -1) - 1 - shift) / scale
    expected = torch.conv2d(scaled, weight, stride=4, padding=2)
    planes = torch.cat([x, torch.ones_like(x)], dim=1)
    found = torch.conv2d(planes, fold(weight, gray=True), stride=4, padding=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backbone", ["gray", "alex", "squeeze"])
def test_is_a_distance(shared_weights: Path, backbone: str) -> None:
    network = GrayLPIPS(backbone, shared_weights)
    one, other = _pair(96, 80)
    assert network(one, one).tolist() == [0.0, 0.0]
    torch.testing.assert_close(network(one, other), network(other, one))
    assert (network(one, other) > 0).all()
    far = (one + 3 * (other - one)).clamp(0, 1)
    assert (network(one, far) > network(one, other)).all()


@pytest.mark.parametrize("backbone", ["gray", "alex", "squeeze"])
def test_map_is_where_the_damage_is_and_its_mean_is_the_distance(
    shared_weights: Path, backbone: str
) -> None:
    network = GrayLPIPS(backbone, shared_weights)
    one, _ = _pair(256, 256)
    other = one.clone()
    other[:, :, 32:64, 160:200] = 0.5
    maps = network.compare(one, other).map()
    assert maps.shape == one.shape
    assert (maps >= 0).all()
    # Upsampling weighs tap pixels at the border and inside a little differently.
    torch.testing.assert_close(maps.mean(dim=(1, 2, 3)), network(one, other), rtol=0.01, atol=0)
    row, column = divmod(int(maps[0, 0].argmax()), 256)
    assert 24 <= row < 72
    assert 152 <= column < 208
    assert float(maps[0, 0, 200:, :80].max()) < 1e-4 * float(maps[0, 0].max())


def test_reference_features_serve_many_candidates(alex: GrayLPIPS) -> None:
    one, other = _pair(64, 64)
    kept = alex.features(one[:1])
    assert len(kept) == 1
    for index in range(2):
        candidate = other[index : index + 1]
        torch.testing.assert_close(
            alex.differences(kept, candidate).distance(), alex(one[:1], candidate)
        )


def test_a_batch_is_its_images_one_by_one(alex: GrayLPIPS) -> None:
    one, other = _pair(100, 90)
    alone = torch.cat([alex(one[i : i + 1], other[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(alex(one, other), alone, rtol=1e-5, atol=0)


def test_gradients_reach_the_candidate_and_are_finite_for_identical_and_black_images() -> None:
    network = GrayLPIPS()
    one, other = _pair(64, 64)
    other.requires_grad_()
    network(one, other).sum().backward()
    assert other.grad is not None
    assert other.grad.abs().sum() > 0
    for same in (one.clone(), torch.zeros_like(one)):
        candidate = same.clone().requires_grad_()
        network(same, candidate).sum().backward()
        assert candidate.grad is not None
        assert torch.isfinite(candidate.grad).all()
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_wrong_images_are_refused() -> None:
    network = GrayLPIPS()
    good = torch.rand(1, 1, 64, 64)
    for bad, words in (
        (torch.rand(1, 3, 64, 64), "instead of"),
        (torch.rand(64, 64), "instead of"),
        (torch.zeros(1, 1, 64, 64, dtype=torch.uint8), "instead of"),
        (torch.rand(1, 1, 12, 12), "smaller than"),
        (good * 255, r"not in \[0, 1\]"),
        (good * 2 - 1, r"not in \[0, 1\]"),
        (torch.full_like(good, torch.nan), "nan"),
    ):
        with pytest.raises(PixelError, match=words):
            network(bad, bad)
    with pytest.raises(PixelError, match="different shapes"):
        network(good, torch.rand(1, 1, 64, 65))
    with pytest.raises(PixelError, match="of the same size"):
        network.differences(network.features(good), torch.rand(1, 1, 64, 65))
    with pytest.raises(UsageError, match="no such network"):
        GrayLPIPS("resnet")


@pytest.mark.parametrize("backbone", ["gray", "alex", "squeeze"])
@pytest.mark.parametrize("size", [(16, 16), (16, 40), (30, 31), (24, 100)])
def test_small_images_are_continued_by_reflection(
    shared_weights: Path, backbone: str, size: tuple[int, int]
) -> None:
    network = GrayLPIPS(backbone, shared_weights)
    one, other = _pair(*size)
    missing = [max(0, BACKBONES[backbone].smallest_side - n) for n in size]
    widths = [(0, 0), (0, 0), *((n // 2, n - n // 2) for n in missing)]
    padded = [torch.from_numpy(np.pad(x.numpy(), widths, mode="reflect")) for x in (one, other)]
    torch.testing.assert_close(network(one, other), network(*padded))
    found = network.compare(one, other).map()
    top, left = (low for low, _ in widths[2:])
    expected = network.compare(*padded).map()
    torch.testing.assert_close(found, expected[:, :, top : top + size[0], left : left + size[1]])
    kept = network.features(one)
    torch.testing.assert_close(network.differences(kept, other).map(), found)


def test_images_below_the_smallest_side_are_refused() -> None:
    with pytest.raises(PixelError, match="smaller than 16"):
        GrayLPIPS()(*_pair(15, 400))


@pytest.mark.parametrize("backbone", ["gray", "alex", "squeeze", "vgg"])
@pytest.mark.parametrize("size", [(500, 413), (129, 1000)])
def test_tiles_equal_the_whole(
    network: Callable[[str], GrayLPIPS],
    monkeypatch: pytest.MonkeyPatch,
    backbone: str,
    size: tuple[int, int],
) -> None:
    measure = network(backbone)
    one, other = _pair(*size)
    whole = measure.compare(one, other)
    side = 2 * measure._halo + 70
    monkeypatch.setattr(medqa.lpips, "_LARGEST_RUN", {"cpu": measure._bytes(side, side)})
    assert measure._tile_side(*size) < 80
    tiled = measure.compare(one, other)
    torch.testing.assert_close(tiled.distance(), whole.distance(), rtol=1e-5, atol=0)
    torch.testing.assert_close(tiled.map(), whole.map(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backbone", ["gray", "alex", "squeeze", "vgg"])
@pytest.mark.parametrize("size", [(31, 47), (64, 64), (100, 177)])
def test_views_and_positions_are_those_of_the_network(
    network: Callable[[str], GrayLPIPS], backbone: str, size: tuple[int, int]
) -> None:
    # Against the network itself: sizes of its taps, and which pixels reach a position.
    measure = network(backbone).double()
    image = torch.rand(1, 1, *size, dtype=torch.float64, requires_grad=True)
    taps = measure.encode(image)
    counts = zip(*(positions(measure.stages, n) for n in size), strict=True)
    assert [tuple(tap.shape[2:]) for tap in taps] == list(counts)
    for tap, view in zip(taps, measure._views, strict=True):
        at = tap.shape[3] // 2
        (gradient,) = torch.autograd.grad(
            tap[0, :, tap.shape[2] // 2, at].square().sum() + 0 * image.sum(),
            image,
            retain_graph=True,
        )
        reached = gradient[0, 0].abs().sum(dim=0).nonzero().flatten()
        if len(reached):
            assert int(reached[0]) >= at * view.stride + view.first
            assert int(reached[-1]) <= at * view.stride + view.last


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_autocast_does_not_reach_it(precision: str) -> None:
    network = GrayLPIPS(precision=precision)
    pair = _pair(64, 64)
    expected = network(*pair)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(*pair), expected)
        kept = network.features(pair[0])
        found = network.differences(kept, pair[1]).distance()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_identical_pairs_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = GrayLPIPS()
    one, other = _pair(64, 64)
    mixed = torch.stack([one[0], other[1]])
    expected = [0.0, float(network(one[1:], other[1:]))]
    seen: list[int] = []
    taps = network._taps

    def counted(images: Tensor) -> Iterator[Tensor]:
        seen.append(len(images))
        return taps(images)

    monkeypatch.setattr(network, "_taps", counted)
    assert network(one, mixed).tolist() == pytest.approx(expected)
    assert seen == [1, 1]
    nothing = network.compare(one, one)
    assert seen == [1, 1]
    assert nothing.distance().tolist() == [0.0, 0.0]
    assert nothing.map().shape == one.shape


def test_little_memory_splits_the_batch(alex: GrayLPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (torch.cat([x] * 3) for x in _pair(80, 96))
    whole = alex(one, other)
    kept = alex.differences(alex.features(one), other).distance()
    single = alex.differences(alex.features(one[:1]), other).distance()
    assert alex._together(80, 96)[0] >= len(one)
    monkeypatch.setattr(medqa.lpips, "_LARGEST_RUN", {"cpu": alex._bytes(80, 96)})
    assert alex._together(80, 96) == (1, 1)
    torch.testing.assert_close(alex(one, other), whole, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        alex.differences(alex.features(one), other).distance(), kept, rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        alex.differences(alex.features(one[:1]), other).distance(), single, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_same_input_same_bits(precision: str) -> None:
    one, other = _pair(128, 160)
    network = GrayLPIPS(precision=precision)
    first = network.compare(one, other)
    again = GrayLPIPS(precision=precision).compare(one, other)
    assert torch.equal(first.distance(), again.distance())
    assert torch.equal(first.map(), again.map())


@pytest.mark.parametrize("backbone", ["gray", "alex", "squeeze", "vgg"])
@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 0.05), ("float16", 0.02)])
@pytest.mark.parametrize("noise", [0.1, 0.01, 0.001, 0.0001])
def test_reduced_precision_keeps_faint_damage(
    network: Callable[[str], GrayLPIPS],
    reduced: Callable[[str, str], GrayLPIPS],
    backbone: str,
    precision: str,
    error: float,
    noise: float,
) -> None:
    # Run on each image by itself in bfloat16, the faintest of these would be 400 times too large.
    one, other = (
        F.interpolate(x, scale_factor=4, mode="bicubic").clamp(0, 1) for x in _pair(24, 30, noise)
    )
    expected = network(backbone).double()(one.double(), other.double())
    measure = reduced(backbone, precision)
    torch.testing.assert_close(measure(one, other).double(), expected, rtol=error, atol=0)
    kept = measure.features(one)
    torch.testing.assert_close(measure.differences(kept, other).distance(), measure(one, other))


def test_reduced_precision_gives_no_gradients() -> None:
    one, other = _pair(64, 64)
    with pytest.raises(UsageError, match="gives no gradients"):
        GrayLPIPS(precision="bfloat16")(one, other.requires_grad_())
    with pytest.raises(UsageError, match="no such precision"):
        GrayLPIPS(precision="int8")


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="no such device"):
        GrayLPIPS(device="cuda:99")
    with pytest.raises(UsageError, match="no such device"):
        GrayLPIPS(device="toaster")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("precision", "error"), [("float32", 1e-4), ("float16", 0.003), ("bfloat16", 0.02)]
)
def test_accelerator_agrees_with_the_processor(precision: str, error: float) -> None:
    one, other = _pair(200, 231)
    expected = GrayLPIPS()(one, other)
    found = GrayLPIPS(precision=precision, device="cuda")(one, other)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=error, atol=0)


_MAMMOGRAM = """
import pathlib, torch
from medqa.lpips import GrayLPIPS
generator = torch.Generator().manual_seed(0)
one = torch.rand(1, 1, 4096, 6144, generator=generator)
other = (one + 0.01 * torch.randn(one.shape, generator=generator)).clamp(0, 1)
with torch.inference_mode():
    GrayLPIPS().compare(one, other).map()
status = pathlib.Path("/proc/self/status").read_text().split()
print(int(status[status.index("VmHWM:") + 1]) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")
def test_a_mammogram_takes_less_than_two_gibibytes() -> None:
    # In a process of its own, whose peak is that of this comparison; all of torch counts in.
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", _MAMMOGRAM], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) < 2
