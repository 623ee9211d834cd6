"""Scores against plain arithmetic on the network's own distances and maps."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from medqa import scoring, thresholds
from medqa.assessment import MeasureScore
from medqa.image import Image, Region
from medqa.lpips import GrayLPIPS
from medqa.metrics import MEASURES
from medqa.planes import reslice
from medqa.scoring import AGGREGATES, evidence, score, score_planes
from medqa.transforms import displays


@pytest.fixture(scope="module")
def network() -> GrayLPIPS:
    return GrayLPIPS()


@pytest.fixture(scope="module")
def pair() -> tuple[Image, Image]:
    """Ten slices of texture in HU; noise on slice 3, a patch wiped out on slice 7."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :112]
    base = 100 * np.sin(rows / 5) + 80 * np.cos(columns / 7)
    reference = (base + generator.normal(0, 15, (10, 96, 112))).astype(np.int16)
    candidate = reference.copy()
    candidate[3] += generator.normal(0, 30, (96, 112)).astype(np.int16)
    candidate[7, 40:60, 50:80] = 0
    return Image(reference, modality="CT", unit="HU"), Image(candidate, modality="CT", unit="HU")


def _box(kind: str, name: str, index: int, rows: slice, columns: slice) -> Region:
    mask = np.zeros((10, 96, 112), bool)
    mask[index, rows, columns] = True
    return Region.crop(kind, name, mask)  # type: ignore[arg-type]


def test_slices_and_windows(network: GrayLPIPS, pair: tuple[Image, Image]) -> None:
    shown = displays(thresholds.load("ct"), pair[0])
    calls: list[int] = []
    scores = score(network, *pair, shown, aggregate="p95", progress=calls.append)
    assert sum(calls) == 10
    by_window = {}
    for display in shown:
        values = [
            float(network(*display(pair[0].pixels[i : i + 1], pair[1].pixels[i : i + 1])))
            for i in range(10)
        ]
        by_window[display.name] = values
    for window in scores.windows:
        # Linear interpolation between the two worst of ten: 0.55 of the way.
        second, worst = sorted(by_window[window.name])[-2:]
        assert window.lpips == pytest.approx(second + 0.55 * (worst - second), rel=1e-4)
    assert scores.base_lpips == max(window.lpips for window in scores.windows)
    for one in scores.slices:
        values = {name: found[one.index] for name, found in by_window.items()}
        assert one.lpips == pytest.approx(max(values.values()), rel=1e-4, abs=1e-9)
    untouched = [one.lpips for one in scores.slices if one.index not in (3, 7)]
    assert untouched == [0.0] * 8


def test_regions_are_means_of_the_map_on_their_worst_slice(
    network: GrayLPIPS, pair: tuple[Image, Image]
) -> None:
    shown = displays(thresholds.load("ct"), pair[0])
    lesion = _box("pathology", "lesion", 7, slice(40, 60), slice(50, 80))
    elsewhere = _box("annotation", "elsewhere", 5, slice(10, 20), slice(10, 20))
    scores = score(network, *pair, shown, [lesion, elsewhere])
    (component,), (annotation,) = scores.components, scores.annotations
    assert annotation.lpips == 0.0
    assert (annotation.slice, annotation.bbox) == (5, (10, 10, 20, 20))
    assert (component.slice, component.bbox, component.pixels) == (7, (50, 40, 80, 60), 600)
    expected = max(
        float(
            network.compare(*d(pair[0].pixels[7:8], pair[1].pixels[7:8]))
            .map()[0, 0, 40:60, 50:80]
            .mean()
        )
        for d in shown
    )
    assert component.lpips == pytest.approx(expected, rel=1e-4)
    # A wiped-out lesion stands out inside the map, and drowns in the textbook product form.
    slice_distance = next(one.lpips for one in scores.slices if one.index == 7)
    assert component.lpips > 3 * slice_distance
    assert scores.masked_lpips is not None
    assert scores.masked_lpips < component.lpips / 2
    assert scores.coverage == pytest.approx(600 / (96 * 112))


def test_masked_lpips_is_the_distance_of_the_products(
    network: GrayLPIPS, pair: tuple[Image, Image]
) -> None:
    (shown,) = displays(thresholds.load("mr"), pair[0])
    lesion = _box("pathology", "lesion", 7, slice(40, 60), slice(50, 80))
    scores = score(network, *pair, [shown], [lesion])
    mask = torch.zeros(1, 1, 96, 112)
    mask[..., 40:60, 50:80] = 1
    one, other = shown(pair[0].pixels[7:8], pair[1].pixels[7:8])
    assert scores.masked_lpips == pytest.approx(float(network(one * mask, other * mask)), rel=1e-5)


def test_identical_images(network: GrayLPIPS, pair: tuple[Image, Image]) -> None:
    shown = displays(thresholds.load("ct"), pair[0])
    names = ["psnr_db", "ssim", "gmsd", "edge_fidelity"]
    scores = score(network, pair[0], pair[0], shown, measures=names)
    assert scores.base_lpips == 0.0
    assert {name: one.value for name, one in scores.measures.items()} == {
        "psnr_db": math.inf,
        "ssim": pytest.approx(1.0),
        "gmsd": pytest.approx(0.0),
        "edge_fidelity": 1.0,
    }


@pytest.mark.parametrize("name", ["ssim", "gmsd", "edge_fidelity"])
def test_measures_are_aggregated_towards_the_bad_end(
    network: GrayLPIPS, pair: tuple[Image, Image], name: str
) -> None:
    shown = displays(thresholds.load("ct"), pair[0])
    found = score(network, *pair, shown, measures=[name], aggregate="p95").measures[name]
    measure = MEASURES[name]
    by_window = {}
    for display in shown:
        both = display(pair[0].pixels, pair[1].pixels)
        by_window[display.name] = measure.function(*both).numpy()
    bad_end = 5 if measure.better == "higher" else 95
    ends = {window: np.percentile(values, bad_end) for window, values in by_window.items()}
    worst = min(ends.values()) if measure.better == "higher" else max(ends.values())
    assert found.value == pytest.approx(worst, rel=1e-5)
    assert found.window is not None
    values = by_window[found.window]
    assert found.slice == (values.argmin() if measure.better == "higher" else values.argmax())


def test_slices_where_a_measure_is_undefined_are_left_out(network: GrayLPIPS) -> None:
    generator = np.random.default_rng(1)
    reference = generator.normal(0, 60, (3, 64, 64)).astype(np.int16)
    reference[1] = -1000  # air: no body, no edges
    candidate = reference + generator.normal(0, 20, reference.shape).astype(np.int16)
    images = [Image(one, modality="CT", unit="HU") for one in (reference, candidate)]
    (shown, *_) = displays(thresholds.load("ct"), images[0])
    found = score(network, *images, [shown], measures=["edge_fidelity"], aggregate="max")
    assert found.measures["edge_fidelity"].slice in (0, 2)
    air = [Image(np.stack([one.pixels[1]] * 2), modality="CT", unit="HU") for one in images]
    found = score(network, *air, [shown], measures=["edge_fidelity"])
    assert found.measures["edge_fidelity"] == MeasureScore(None)


def test_planes_are_scored_as_volumes_of_their_own(
    network: GrayLPIPS, pair: tuple[Image, Image]
) -> None:
    # 32 slices of 2 mm, pixels of 1 mm: coronal and sagittal slices are stretched to 1 mm.
    placed = [
        Image(np.concatenate([one.pixels] * 4)[:32], "CT", unit="HU", spacing_mm=(2.0, 1.0, 1.0))
        for one in pair
    ]
    shown = displays(thresholds.load("ct"), placed[0])
    found = score_planes(network, *placed, shown, stride=8, aggregate="mean")
    assert [(one.plane, one.slices) for one in found.planes] == [
        ("axial", 4),
        ("coronal", 12),
        ("sagittal", 14),
    ]
    for one in found.planes:
        both = [reslice(image, one.plane, 8) for image in placed]
        expected = score(network, *both, shown, aggregate="mean")
        assert one.lpips == pytest.approx(expected.base_lpips, rel=1e-6)
    assert found.mean == pytest.approx(sum(one.lpips for one in found.planes) / 3)
    assert found == score_planes(network, *placed, shown, stride=8, aggregate="mean")


def test_reading_runs_ahead_of_comparing(
    network: GrayLPIPS, pair: tuple[Image, Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batches of two slices; each is asked for once per image, in order, not by the main thread.
    monkeypatch.setattr(scoring, "_BATCH_PIXELS", 2 * 96 * 112)
    asked: list[tuple[int, int]] = []

    class Counted(np.ndarray):  # type: ignore[type-arg]
        def __getitem__(self, index: object) -> object:
            if isinstance(index, slice):
                asked.append((index.start, threading.get_ident()))
            return np.asarray(super().__getitem__(index))  # type: ignore[index]

    counted = replace(pair[0], pixels=pair[0].pixels.view(Counted))
    shown = displays(thresholds.load("ct"), pair[0])
    scores = score(network, counted, pair[1], shown)
    assert [start for start, _ in asked] == [0, 2, 4, 6, 8]
    assert threading.get_ident() not in {thread for _, thread in asked}
    assert scores == score(network, *pair, shown)


def test_evidence_shows_the_worst_slices_and_the_regions(
    network: GrayLPIPS, pair: tuple[Image, Image]
) -> None:
    shown = displays(thresholds.load("ct"), pair[0])
    quiet = _box("annotation", "quiet", 5, slice(10, 20), slice(10, 20))
    scores = score(network, *pair, shown, [quiet])
    found = evidence(network, *pair, shown, scores, [quiet])
    worst = max(scores.slices, key=lambda one: one.lpips)
    assert (found[0].index, found[0].window) == (worst.index, worst.window)
    assert found[0].edge_map.shape == found[0].distance_map.shape == (96, 112)
    assert found[0].lpips == pytest.approx(worst.lpips, rel=1e-4)
    (with_region,) = [one for one in found if one.regions]
    assert with_region.index == 5
    _, name, mask = with_region.regions[0]
    assert (name, int(mask.sum())) == ("quiet", 100)


def test_aggregates() -> None:
    values = [float(value) for value in range(101)]
    assert AGGREGATES["p95"](values) == pytest.approx(95)
    assert AGGREGATES["max"](values) == 100
    assert AGGREGATES["mean"](values) == 50
