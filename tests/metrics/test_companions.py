"""Companion measures against published figures, other implementations and closed forms."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import piq
import pytest
import torch
from monai.metrics import MultiScaleSSIMMetric
from monai.metrics.regression import compute_ssim_and_cs
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from scipy.stats import entropy
from skimage.metrics import (
    normalized_mutual_information,
    normalized_root_mse,
    peak_signal_noise_ratio,
    structural_similarity,
)
from torch import Tensor
from torchmetrics.functional.image import dists as torchmetrics_dists
from torchmetrics.functional.image import visual_information_fidelity
from torchvision.models.vgg import cfgs, make_layers

from medqa import metrics, weights
from medqa.errors import PixelError, RegionError, UsageError, WeightsError
from medqa.metrics import (
    MEASURES,
    companions,
    dists,
    fsim,
    gmsd,
    haarpsi,
    ms_ssim,
    mutual_information,
    nmse,
    psnr_db,
    ssim,
    unavailable,
    vif,
)

PAIRS = ("I03", "I04", "I06", "I08", "I19")
NAMES = [one.name for one in companions.COMPANIONS]
MASKED = [one.name for one in companions.COMPANIONS if one.masked]
IDENTICAL = {"psnr_db": math.inf, "gmsd": 0.0, "dists": 0.0, "nmse": 0.0}
IDENTICAL |= dict.fromkeys(("ssim", "ms_ssim", "vif", "haarpsi", "fsim"), 1.0)


def published(*values: float) -> pytest.MarkDecorator:
    """A figure for each of the pairs."""
    cases = list(zip(PAIRS, values, strict=True))
    return pytest.mark.parametrize(("name", "expected"), cases)


@pytest.fixture(scope="session")
def random_vgg() -> Any:
    """VGG-16's convolutions with random weights."""
    torch.manual_seed(0)
    return make_layers(cfgs["D"]).requires_grad_(False)


@pytest.fixture
def vgg(random_vgg: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let DISTS find the random weights."""
    found = SimpleNamespace(trunk=tuple(random_vgg.parameters()))
    monkeypatch.setattr(companions, "locate", lambda _name: Path("vgg16.pth"))
    monkeypatch.setattr(companions, "find", lambda _name, _folder: found)
    companions._dists_weights.cache_clear()
    yield
    companions._dists_weights.cache_clear()


@pytest.fixture(scope="session")
def ct() -> Tensor:
    """A real CT slice, (1, 1, 161, 170), with air that the display cuts off."""
    pixels = dcmread(get_testdata_file("CT_small.dcm", download=False)).pixel_array
    low, high = np.percentile(pixels, (15, 99))
    shown = np.clip((np.pad(pixels, ((0, 33), (0, 42)), "reflect") - low) / (high - low), 0, 1)
    return torch.from_numpy(shown.astype(np.float32))[None, None]


@pytest.fixture(scope="session")
def noisy(ct: Tensor) -> Tensor:
    noise = torch.randn(ct.shape, generator=torch.Generator().manual_seed(1))
    return (ct + 0.05 * noise).clamp(0, 1)


def pair(folder: Path, name: str, mode: str = "L") -> tuple[Tensor, Tensor]:
    """A pair of photographs: "L", the rounded luma that MATLAB's rgb2gray gives, or "RGB"."""
    both = (Image.open(folder / "iqa" / kind / f"{name}.bmp") for kind in ("ref", "dist"))
    arrays = (np.atleast_3d(np.asarray(one.convert(mode), dtype=np.float32)) for one in both)
    one, other = (torch.from_numpy(array).permute(2, 0, 1)[None] / 255 for array in arrays)
    return one, other


def cropped(name: str, *images: Tensor) -> list[Tensor]:
    """A corner that is large enough for a measure, because VGG-16 is slow."""
    side = max(72, MEASURES[name].smallest_side)
    return [image[..., :side, -side:] for image in images]


def array(image: Tensor) -> NDArray[np.float64]:
    return image[0, 0].double().numpy()


# --- every measure ---


@pytest.mark.usefixtures("vgg")
@pytest.mark.parametrize("name", NAMES)
def test_identical_images_are_best(name: str, ct: Tensor) -> None:
    (ct,) = cropped(name, ct)
    images = torch.cat([ct, ct.flip(2)])
    found = MEASURES[name].function(images, images.clone())
    if name == "mutual_information":
        counts = [np.histogram(one.numpy(), 64, (0, 1))[0] for one in images]
        assert found.tolist() == pytest.approx([entropy(one, base=2) for one in counts], rel=1e-6)
    else:
        assert found.tolist() == pytest.approx([IDENTICAL[name]] * 2, abs=1e-6)


@pytest.mark.usefixtures("vgg")
@pytest.mark.parametrize("name", NAMES)
def test_more_noise_is_worse(name: str, ct: Tensor) -> None:
    (ct,) = cropped(name, ct)
    measure = MEASURES[name]
    noise = torch.randn(ct.shape, generator=torch.Generator().manual_seed(0))
    values = [
        float(measure.function(ct, (ct + level * noise).clamp(0, 1))) for level in (0.02, 0.1, 0.3)
    ]
    if name == "gmsd":  # the deviation sees that damage is uneven, not that there is more of it
        values = values[:2]
    assert values == sorted(values, reverse=measure.better == "higher")
    assert len(set(values)) == len(values)


@pytest.mark.usefixtures("vgg")
@pytest.mark.parametrize("name", NAMES)
def test_data_range_scales(name: str, ct: Tensor, noisy: Tensor) -> None:
    ct, noisy = cropped(name, ct, noisy)
    function = MEASURES[name].function
    one, other = (ct * 65535).round(), (noisy * 65535).round()
    expected = function(one / 65535, other / 65535)
    assert torch.allclose(function(one, other, data_range=65535), expected, rtol=1e-6)
    stored = (one.to(torch.int32), other.to(torch.uint16))
    assert torch.allclose(function(*stored, data_range=65535), expected, rtol=1e-6)
    # Floating point that is no multiple of a step: but for rounding.
    scaled = function(ct * 65535, noisy * 65535, 65535.0)
    assert torch.allclose(scaled, function(ct, noisy), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("vgg")
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_images(name: str, ct: Tensor, noisy: Tensor) -> None:
    ct, noisy = cropped(name, ct, noisy)
    function = MEASURES[name].function
    # An identical pair beside others must not poison them.
    one = torch.cat([ct, ct, noisy.flip(3)])
    other = torch.cat([noisy, ct, ct.flip(3)])
    before = one.clone(), other.clone()
    with torch.inference_mode():
        found = function(one, other)
        again = function(one, other)
    assert found.shape == (3,)
    assert found.dtype == torch.float32
    assert torch.equal(found, again)
    assert torch.equal(one, before[0])
    assert torch.equal(other, before[1])
    alone = torch.cat([function(one[i : i + 1], other[i : i + 1]) for i in range(3)])
    assert torch.allclose(found, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("vgg")
@pytest.mark.parametrize("name", NAMES)
def test_undefined_below_its_smallest_side(name: str) -> None:
    measure = MEASURES[name]
    side = measure.smallest_side
    one = torch.rand(2, 1, side, 200, generator=torch.Generator().manual_seed(0))
    other = (one + 0.1).clamp(0, 1)
    for turn in (lambda image: image, lambda image: image.transpose(2, 3)):
        assert measure.function(turn(one), turn(other)).isfinite().all()
        if side > 1:
            small = measure.function(turn(one[:, :, 1:]), turn(other[:, :, 1:]))
            assert small.shape == (2,)
            assert small.isnan().all()


@pytest.mark.parametrize(
    ("function", "side"), [(piq.multi_scale_ssim, 161), (piq.vif_p, 41), (piq.haarpsi, 16)]
)
def test_smallest_side_is_the_librarys(function: Any, side: int) -> None:
    function(torch.rand(1, 1, side, 200), torch.rand(1, 1, 200, side).transpose(2, 3))
    with pytest.raises(ValueError, match="size"):
        function(torch.rand(1, 1, side - 1, 200), torch.rand(1, 1, side - 1, 200))
    assert side in {one.smallest_side for one in companions.COMPANIONS}


@pytest.mark.parametrize("name", NAMES)
def test_other_images_are_refused(name: str, ct: Tensor) -> None:
    function = MEASURES[name].function
    with pytest.raises(PixelError, match=rf"{name}: images .* instead of \(N, 1, H, W\)"):
        function(ct[0], ct[0])
    with pytest.raises(PixelError, match="instead of"):
        function(ct, ct[..., :-1])
    with pytest.raises(PixelError, match=r"not in \[0, 1\].*data_range"):
        function(ct, 255 * ct)
    with pytest.raises(PixelError, match="values from nan to nan"):
        function(ct.where(ct < 0.9, math.nan), ct)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_is_used_or_refused(name: str, ct: Tensor, noisy: Tensor) -> None:
    measure = MEASURES[name]
    mask = torch.zeros(ct.shape, dtype=torch.bool)
    if not measure.masked:
        with pytest.raises(UsageError, match=f"{name}: it is not defined inside a mask"):
            measure.function(ct, noisy, mask=mask)
        return
    assert measure.function(ct, noisy, mask=mask).isnan().all()
    whole = measure.function(ct, noisy, mask=~mask)
    assert torch.allclose(whole, measure.function(ct, noisy), rtol=1e-5)
    for wrong in (mask[..., 1:], mask.float()):
        with pytest.raises(RegionError, match="instead of bool"):
            measure.function(ct, noisy, mask=wrong)


@pytest.mark.parametrize("name", [name for name in MASKED if name != "ssim"])
def test_inside_a_mask_is_inside_its_box(name: str, ct: Tensor, noisy: Tensor) -> None:
    function = MEASURES[name].function
    mask = torch.zeros(2, *ct.shape[1:], dtype=torch.bool)
    mask[0, :, 20:90, 30:100] = True
    mask[1, :, 5:150, 60:65] = True
    found = function(ct.repeat(2, 1, 1, 1), noisy.repeat(2, 1, 1, 1), mask=mask)
    boxes = [(..., slice(20, 90), slice(30, 100)), (..., slice(5, 150), slice(60, 65))]
    expected = torch.cat([function(ct[box], noisy[box]) for box in boxes])
    assert torch.allclose(found, expected, rtol=1e-5)


def test_the_documentation_says_what_the_records_say() -> None:
    page = Path(__file__).parents[2] / "docs" / "measures.md"
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.read_text("utf-8").splitlines()
        if line.startswith("| `")
    ]
    said = [
        (name.strip("`"), better, masked == "yes", int(side), source)
        for name, better, _, masked, side, source in (row for row in rows if len(row) == 6)
    ]
    assert said == [
        (one.name, one.better, one.masked, one.smallest_side, one.source)
        for one in companions.COMPANIONS
    ]


# --- each measure against the world ---


def test_psnr_is_its_closed_form() -> None:
    one = torch.full((3, 1, 20, 20), 0.5)
    other = one + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    assert psnr_db(one, other).tolist() == pytest.approx([20.0, 40.0, math.inf], abs=1e-4)


def test_psnr_and_nmse_equal_scikit_images(ct: Tensor, noisy: Tensor) -> None:
    one, other = array(ct), array(noisy)
    expected = peak_signal_noise_ratio(one, other, data_range=1.0)
    assert float(psnr_db(ct, noisy)) == pytest.approx(expected, rel=1e-5)
    assert float(nmse(ct, noisy)) == pytest.approx(normalized_root_mse(one, other) ** 2, rel=1e-5)


def test_ssim_equals_monais(ct: Tensor, noisy: Tensor) -> None:
    window: dict[str, Any] = {"kernel_size": (11, 11), "kernel_sigma": (1.5, 1.5)}
    expected, _ = compute_ssim_and_cs(noisy, ct, 2, **window)
    assert float(ssim(ct, noisy)) == pytest.approx(float(expected.mean()), abs=1e-5)


def test_ssim_equals_scikit_images_also_in_a_mask(ct: Tensor, noisy: Tensor) -> None:
    _, full = structural_similarity(
        array(ct),
        array(noisy),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    # Ours leaves out the border that the window does not cover, as Wang's code does.
    assert float(ssim(ct, noisy)) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)
    mask = torch.zeros(ct.shape, dtype=torch.bool)
    mask[..., :60, 40:50] = True
    assert float(ssim(ct, noisy, mask=mask)) == pytest.approx(full[5:60, 40:50].mean(), abs=1e-4)


@published(0.6993, 0.9978, 0.9989, 0.9669, 0.6519)
def test_ssim_is_the_authors(name: str, expected: float, shared_data: Path) -> None:
    # Of the authors' MATLAB code without its halving, on rgb2gray: published with pyiqa.
    assert float(ssim(*pair(shared_data, name))) == pytest.approx(expected, abs=1e-4)


@published(0.6733, 0.9996, 0.9998, 0.9566, 0.8462)
def test_ms_ssim_is_monais_and_nearly_the_authors(
    name: str, expected: float, shared_data: Path
) -> None:
    one, other = pair(shared_data, name)
    found = float(ms_ssim(one, other))
    monai = MultiScaleSSIMMetric(spatial_dims=2, reduction="none")(other, one)
    assert found == pytest.approx(float(monai), abs=1e-5)
    # The authors' MATLAB code filters the border otherwise when it halves the image.
    assert found == pytest.approx(expected, abs=0.005)


@published(
    0.220347639470143,
    0.0005220585050504579,
    0.0004482814810014102,
    0.134631933046914,
    0.204996493556054,
)
def test_gmsd_is_the_authors(name: str, expected: float, shared_data: Path) -> None:
    # Of the authors' MATLAB code on rgb2gray: published with pyiqa.
    assert float(gmsd(*pair(shared_data, name))) == pytest.approx(expected, abs=1e-5)


@published(0.6890, 0.9702, 0.9927, 0.9575, 0.8220)
def test_fsim_is_the_authors(name: str, expected: float, shared_data: Path) -> None:
    # Published with pyiqa is FSIMc, with colour. On three copies of a channel it is FSIM.
    one, other = pair(shared_data, name, "RGB")
    assert float(piq.fsim(other, one)) == pytest.approx(expected, abs=2e-4)
    one, other = pair(shared_data, name)
    copies = (image.repeat(1, 3, 1, 1) for image in (other, one))
    assert float(fsim(one, other)) == pytest.approx(float(piq.fsim(*copies)), abs=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_vif_equals_torchmetrics(name: str, shared_data: Path) -> None:
    one, other = pair(shared_data, name)
    expected = visual_information_fidelity(other * 255, one * 255)
    assert float(vif(one, other)) == pytest.approx(float(expected), abs=1e-5)


def test_vif_loses_little_to_single_precision(ct: Tensor, noisy: Tensor) -> None:
    expected = visual_information_fidelity(noisy.double() * 255, ct.double() * 255)
    assert float(vif(ct, noisy)) == pytest.approx(float(expected), abs=1e-4)


def test_vif_exceeds_one_with_contrast_and_sees_what_was_lost(ct: Tensor) -> None:
    dull = 0.25 + ct / 2
    assert float(vif(dull, ct)) > 1.2 > 1 > float(vif(ct, dull)) > 0.5
    blurred = torch.from_numpy(gaussian_filter(ct, (0, 0, 2, 2)))
    assert 0 < float(vif(ct, blurred)) < 0.5


def haarpsi_of(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    """HaarPSI of images in [0, 255] of even sides, written after its authors' code."""
    # Means of 2 x 2 pixels, then at each scale the differences of the halves of a square.
    images = [
        image.reshape(len(image) // 2, 2, -1, 2).mean(axis=(1, 3))
        for image in (reference, candidate)
    ]
    numerator = denominator = 0.0
    for turn in (np.asarray, np.transpose):
        bands = [
            [
                np.abs(
                    convolve2d(
                        # So that the result is MATLAB's "same", which SciPy's is not.
                        np.pad(turn(image), (side // 2 - 1, side // 2)),
                        np.repeat([[1.0], [-1.0]], side // 2, axis=0) * np.ones((1, side)) / side,
                        mode="valid",
                    )
                )
                for side in (2, 4, 8)
            ]
            for image in images
        ]
        similarity = sum(
            (2 * one * other + 30) / (one**2 + other**2 + 30)
            for one, other in zip(bands[0][:2], bands[1][:2], strict=True)
        )
        weight = np.maximum(bands[0][2], bands[1][2])
        numerator += float((weight / (1 + np.exp(-4.2 * similarity / 2))).sum())
        denominator += float(weight.sum())
    share = numerator / denominator
    return (math.log(share / (1 - share)) / 4.2) ** 2


@pytest.mark.parametrize("name", PAIRS)
def test_haarpsi_follows_its_authors_code(name: str, shared_data: Path) -> None:
    one, other = pair(shared_data, name)
    expected = haarpsi_of(array(one) * 255, array(other) * 255)
    assert float(haarpsi(one, other)) == pytest.approx(expected, abs=1e-4)


def test_mutual_information_equals_scikit_images(ct: Tensor, noisy: Tensor) -> None:
    one, other = array(ct), array(noisy)
    assert (one.min(), one.max()) == (other.min(), other.max()) == (0, 1)
    joint, *_ = np.histogram2d(one.ravel(), other.ravel(), bins=64)
    # scikit-image's is (H(one) + H(other)) / H(both).
    ratio = normalized_mutual_information(one, other, bins=64)
    expected = (ratio - 1) * entropy(joint.ravel(), base=2)
    assert float(mutual_information(ct, noisy)) == pytest.approx(expected, rel=1e-5)


def test_undefined_where_a_measure_has_nothing_to_hold_on_to(ct: Tensor) -> None:
    black, grey = torch.zeros_like(ct), torch.full_like(ct, 0.5)
    assert vif(torch.cat([black, grey, ct]), ct.repeat(3, 1, 1, 1)).isnan().tolist() == [
        True,
        True,
        False,
    ]
    for function in (haarpsi, nmse):
        assert function(torch.cat([black, grey]), torch.cat([black, grey])).isnan().tolist() == [
            True,
            False,
        ]
    for function in (ssim, ms_ssim, fsim):
        assert float(function(black, black)) == pytest.approx(1)


# --- DISTS and its weights ---


@pytest.mark.usefixtures("vgg")
def test_dists_equals_torchmetrics(
    random_vgg: Any, ct: Tensor, noisy: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torchmetrics_dists, "vgg16", lambda **_: SimpleNamespace(features=random_vgg)
    )
    network = torchmetrics_dists.DISTSNetwork().requires_grad_(False)
    ct, noisy = cropped("dists", ct, noisy)
    one, other = torch.cat([ct, noisy]), torch.cat([noisy, ct.flip(2)])
    expected = network(one.repeat(1, 3, 1, 1), other.repeat(1, 3, 1, 1))
    assert dists(one, other).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert float(expected.min()) > 0.001


@published(0.4742, 0.1424, 0.06825, 0.02867, 0.3123)
def test_dists_is_the_authors(
    name: str,
    expected: float,
    shared_data: Path,
    shared_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if weights.locate("vgg", shared_weights) is None:
        pytest.skip(f"VGG-16's weights are not in {shared_weights}")
    monkeypatch.setenv("MEDQA_WEIGHTS", str(shared_weights))
    # Published for colour.
    found = companions._dists(*pair(shared_data, name, "RGB"))
    assert float(found) == pytest.approx(expected, abs=2e-4)


def test_dists_says_that_its_weights_are_missing(ct: Tensor) -> None:
    missing = unavailable("dists")
    assert isinstance(missing, WeightsError)
    assert "vgg16-397923af.pth" in missing.mend
    with pytest.raises(WeightsError, match="dists: the weights of VGG-16 are not on this machine"):
        dists(ct, ct)
    assert [name for name in MEASURES if unavailable(name)] == ["dists"]


def test_dists_says_that_torchmetrics_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companions, "_dists_file", lambda: tmp_path / "weights.pt")
    missing = unavailable("dists")
    assert missing is not None
    assert missing.mend == "install torchmetrics 1.7 or later"


@pytest.mark.usefixtures("vgg")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ({"alpha": torch.ones(1475)}, "cannot be read"),
        ({"alpha": torch.ones(1475), "beta": torch.ones(1475)}, "are not the pinned ones"),
    ],
)
def test_dists_refuses_other_weights(
    content: dict[str, Tensor] | None,
    reason: str,
    ct: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "weights.pt"
    if content is None:
        file.write_bytes(b"no weights")
    else:
        torch.save(content, file)
    monkeypatch.setattr(companions, "_dists_file", lambda: file)
    assert unavailable("dists") is None
    with pytest.raises(WeightsError, match=reason):
        dists(ct, ct)


@pytest.mark.usefixtures("vgg")
def test_dists_runs_where_its_weights_are() -> None:
    assert unavailable("dists") is None


def test_libraries_of_measures_are_not_loaded_before_they_measure() -> None:
    code = (
        "import sys, medqa.metrics\n"
        "found = {'monai', 'piq', 'torchmetrics', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(f'loaded {found}' if found else 0)"
    )
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    assert all(hasattr(metrics, name) for name in metrics.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'LPIPS'"):
        metrics.LPIPS  # noqa: B018
