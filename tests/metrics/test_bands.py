"""Edge and texture fidelity against SciPy, closed forms and real damage."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch
from numpy.typing import NDArray
from torch import Tensor

import medqa
from medqa.errors import UsageError
from medqa.metrics.bands import (
    EDGE_FIDELITY,
    TEXTURE_FIDELITY,
    Bands,
    edge_fidelity,
    edge_map,
    texture_fidelity,
    texture_map,
)
from medqa.thresholds import load
from medqa.transforms import displays

Array = NDArray[np.float64]
MEASURES = (EDGE_FIDELITY, TEXTURE_FIDELITY)


def _scipy(
    reference: Array, candidate: Array, mask: NDArray[np.bool_] | None = None
) -> tuple[float, float]:
    """Compute both measures in float64 by SciPy and NumPy, as the definition says."""
    bands = [x - ndi.gaussian_filter(x, 0.8) for x in (reference, candidate)]
    energies = [np.sqrt(ndi.gaussian_filter(band**2, 4)) for band in bands]
    body = ndi.gaussian_filter(reference, 4) > 0.08
    if mask is not None:
        body &= mask
    steepness = ndi.gaussian_gradient_magnitude(reference, 2)
    count = math.ceil(0.15 * body.sum())
    edges = body & (steepness >= np.sort(steepness[body])[-count])
    edge = np.corrcoef(bands[0][edges], bands[1][edges])[0, 1]
    texture = np.corrcoef(energies[0][body], energies[1][body])[0, 1]
    return float(edge), float(texture)


def _phantom(rows: int, columns: int, seed: int = 0) -> tuple[Array, Array]:
    """Return a noisy disc with a bar in air, and a blurred and noisier copy."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns] / max(rows, columns) - 0.4
    clean = 0.5 * (np.hypot(x, y) < 0.35) + 0.3 * (np.abs(x - 0.05) < 0.03)
    noise = ndi.gaussian_filter(rng.standard_normal(clean.shape), 0.7)
    reference = np.clip(clean + 0.05 * noise, 0, 1)
    worse = ndi.gaussian_filter(reference, 0.6) + 0.02 * rng.standard_normal(clean.shape)
    return reference, np.clip(worse, 0, 1)


def _tensor(*images: Array) -> Tensor:
    return torch.from_numpy(np.stack(images).astype(np.float32))[:, None]


# Sides below, at and off a multiple of what the smoothing works on, and hardly wider than a kernel.
@pytest.mark.parametrize("shape", [(16, 21), (31, 64), (96, 75), (200, 129)])
def test_equals_scipy(shape: tuple[int, int]) -> None:
    reference, candidate = _phantom(*shape)
    pair = _tensor(reference), _tensor(candidate)
    expected = _scipy(reference, candidate)
    assert float(edge_fidelity(*pair)) == pytest.approx(expected[0], abs=1e-5)
    assert float(texture_fidelity(*pair)) == pytest.approx(expected[1], abs=1e-5)


def test_equals_scipy_inside_a_mask() -> None:
    reference, candidate = _phantom(96, 96)
    mask = np.zeros(reference.shape, dtype=bool)
    mask[20:60, 15:70] = True
    pair = _tensor(reference), _tensor(candidate)
    inside = torch.from_numpy(mask)[None, None]
    expected = _scipy(reference, candidate, mask)
    assert float(edge_fidelity(*pair, mask=inside)) == pytest.approx(expected[0], abs=1e-5)
    assert float(texture_fidelity(*pair, mask=inside)) == pytest.approx(expected[1], abs=1e-5)
    assert expected != pytest.approx(_scipy(reference, candidate), abs=1e-3)


def test_each_image_of_a_batch_is_measured_alone() -> None:
    phantoms = [_phantom(64, 80, seed) for seed in range(3)]
    references = _tensor(*(one for one, _ in phantoms))
    candidates = _tensor(*(other for _, other in phantoms))
    expected = np.array([_scipy(*pair) for pair in phantoms])
    assert edge_fidelity(references, candidates).numpy() == pytest.approx(expected[:, 0], abs=1e-5)
    assert texture_fidelity(references, candidates).numpy() == pytest.approx(
        expected[:, 1], abs=1e-5
    )


def test_a_reference_serves_several_candidates() -> None:
    one, other = _phantom(60, 70)
    reference, candidates = _tensor(one), [_tensor(other), _tensor(0.9 * other)]
    kept = Bands(reference, reference)
    assert kept.edge_fidelity == 1
    for candidate in candidates:
        found, expected = kept.against(candidate), Bands(reference, candidate)
        assert torch.equal(found.edge_fidelity, expected.edge_fidelity)
        assert torch.equal(found.texture_map, expected.texture_map)


def test_other_processors_and_gradients_get_the_same() -> None:
    one, other = _phantom(60, 70)
    reference, candidate = _tensor(one), _tensor(other)
    found = Bands(reference, candidate)
    exact = Bands(reference.double(), candidate.double())  # as on an accelerator
    torch.testing.assert_close(found.edge_fidelity, exact.edge_fidelity, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.texture_map.double(), exact.texture_map, rtol=1e-3, atol=1e-4)
    followed = Bands(reference, candidate.clone().requires_grad_()).texture_fidelity
    torch.testing.assert_close(followed, exact.texture_fidelity, rtol=1e-5, atol=0)


def test_the_range_of_the_display_is_divided_out() -> None:
    pair = [_tensor(image) for image in _phantom(64, 64)]
    wide = [255 * image for image in pair]
    for measure in MEASURES:
        assert float(measure.function(*wide, data_range=255.0)) == pytest.approx(
            float(measure.function(*pair)), abs=1e-6
        )


@pytest.mark.parametrize("measure", MEASURES, ids=lambda one: one.name)
def test_identical_images_are_exactly_one(measure: medqa.metrics.Measure) -> None:
    reference, _ = _phantom(65, 70)
    images = _tensor(reference, np.full_like(reference, 0.5))  # the second has no detail at all
    assert measure.function(images, images.clone()).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda one: one.name)
def test_brightness_and_contrast_cost_nothing(measure: medqa.metrics.Measure) -> None:
    # A Pearson correlation does not change when one side is scaled and moved.
    reference, _ = _phantom(64, 64)
    images = _tensor(reference)
    assert float(measure.function(images, 0.6 * images + 0.2)) == pytest.approx(1, abs=1e-6)


def test_an_inverted_image_keeps_texture_and_loses_edges() -> None:
    # B(1 - x) = -B(x), and E forgets the sign.
    images = _tensor(_phantom(64, 64)[0])
    assert float(edge_fidelity(images, 1 - images)) == pytest.approx(-1, abs=1e-6)
    assert float(texture_fidelity(images, 1 - images)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda one: one.name)
def test_undefined_is_nan(measure: medqa.metrics.Measure) -> None:
    rng = np.random.default_rng(0)
    reference, candidate = (_tensor(rng.random((64, 64))) for _ in range(2))
    few = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    few[..., :9, :11] = True  # 99 pixels
    assert math.isnan(float(measure.function(reference, candidate, mask=few)))
    few[..., 20, 20] = True
    assert math.isfinite(float(measure.function(reference, candidate, mask=few)))
    assert math.isnan(float(measure.function(0.05 * reference, candidate)))  # air alone
    assert math.isnan(float(measure.function(torch.full_like(reference, 0.5), candidate)))
    small = reference[..., : measure.smallest_side - 1]
    assert math.isnan(float(measure.function(small, small)))
    least = reference[..., : measure.smallest_side]
    assert float(measure.function(least, least)) == 1.0


@pytest.mark.parametrize("measure", MEASURES, ids=lambda one: one.name)
def test_a_candidate_without_detail_keeps_nothing(measure: medqa.metrics.Measure) -> None:
    reference = _tensor(_phantom(64, 64)[0])
    assert float(measure.function(reference, torch.full_like(reference, 0.5))) == 0.0


@pytest.mark.parametrize(
    ("one", "other", "mask"),
    [((1, 1, 32, 32), (1, 1, 32, 31), None), ((1, 3, 32, 32), (1, 3, 32, 32), None),
     ((32, 32), (32, 32), None), ((2, 1, 32, 32), (2, 1, 32, 32), (1, 1, 32, 32))],
)  # fmt: skip
def test_wrong_shapes_are_refused(
    one: tuple[int, ...], other: tuple[int, ...], mask: tuple[int, ...] | None
) -> None:
    inside = None if mask is None else torch.ones(mask, dtype=torch.bool)
    with pytest.raises(UsageError, match="give tensors of one shape"):
        edge_fidelity(torch.rand(one), torch.rand(other), mask=inside)


def test_maps_are_zero_where_kept_and_show_where_lost() -> None:
    reference, _ = _phantom(96, 96)
    lost = reference.copy()
    lost[25:50, 60:85] = ndi.gaussian_filter(reference, 3)[25:50, 60:85]  # of the disc's rim
    pair = _tensor(reference), _tensor(lost)
    for found in (edge_map(*pair), texture_map(*pair)):
        assert found.shape == (1, 1, 96, 96)
        away = found[0, 0, :, :41]  # the widest Gaussian and the band reach 19 pixels
        inside = found[0, 0, 29:46, 64:81]
        assert float(away.max()) < 1e-5
        assert float(inside.max()) > 0.5
    for draw in (edge_map, texture_map):
        assert float(draw(pair[0], pair[0]).max()) == 0


def test_maps_have_their_closed_forms() -> None:
    # Half the contrast: half the band is missing at each edge, and the energy is halved.
    reference = _tensor(_phantom(96, 96)[0])
    both = Bands(reference, 0.5 * reference)
    edges = both.edge_map[both.edge_map > 0]
    assert float(edges.square().mean().sqrt()) == pytest.approx(0.5, rel=0.05)
    strong = both.texture_map[both.texture_map > 0].max()
    assert 0.6 < float(strong) <= math.log(2) + 1e-5


def test_more_damage_keeps_less_on_a_real_slice(shared_data: Path) -> None:
    image = medqa.read(shared_data / "ct/liver_3slice_with_SEG/01.dcm")
    soft_tissue = displays(load("ct"), image)[0]
    values = np.asarray(image.pixels[:1]).astype(np.float32)
    damaged = [ndi.gaussian_filter(values, (0, sigma, sigma)) for sigma in (0.3, 0.5, 0.8, 1.2)]
    pairs = [soft_tissue(values, one) for one in damaged]
    for measure in MEASURES:
        kept = [float(measure.function(*pair)) for pair in pairs]
        assert kept == sorted(kept, reverse=True)
        assert kept[0] > 0.98 > 0.9 > kept[-1]
    reference, candidate = pairs[1]
    expected = _scipy(*(one[0, 0].double().numpy() for one in (reference, candidate)))
    assert float(edge_fidelity(reference, candidate)) == pytest.approx(expected[0], abs=1e-5)
    assert float(texture_fidelity(reference, candidate)) == pytest.approx(expected[1], abs=1e-5)
