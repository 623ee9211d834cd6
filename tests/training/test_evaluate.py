"""What the shipped `gray` promises, measured again on real images that it was never trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medqa.lpips import GrayLPIPS
from medqa.training.evaluate import Comparison, compare, summarise, table
from medqa.training.sources import pictures


@pytest.fixture(scope="module")
def figures(shared_data: Path, shared_weights: Path) -> dict[str, float]:
    """A part of the model card's evaluation: fewer and smaller pictures, other seeds."""
    alex = GrayLPIPS("alex", shared_weights)
    found = compare(
        GrayLPIPS(), alex, pictures(shared_data, "test"), per_source=2, side=256, seed=7
    )
    return summarise(list(found))


def test_follows_alex_over_all(figures: dict[str, float]) -> None:
    assert figures["spearman"] >= 0.97
    assert figures["median relative error"] <= 0.20


def test_follows_alex_in_every_modality(figures: dict[str, float]) -> None:
    found = {name: rho for name, rho in figures.items() if name.startswith("spearman modality")}
    assert len(found) == 6
    assert min(found.values()) >= 0.93, found


def test_follows_alex_in_every_family(figures: dict[str, float]) -> None:
    found = {name: rho for name, rho in figures.items() if name.startswith("spearman family")}
    assert len(found) == 23
    assert min(found.values()) >= 0.85, found


def test_ranks_twelve_denoised_versions_of_one_image(figures: dict[str, float]) -> None:
    assert figures["spearman within twelve denoised"] >= 0.88


def test_stated_error_covers_what_is_measured_here(figures: dict[str, float]) -> None:
    # A 95th percentile of another sample: half as much again is chance, twice is a lie.
    weights = GrayLPIPS().weights
    assert weights.relative_error is not None
    assert weights.region_relative_error is not None
    assert figures["stated relative error"] <= 1.5 * weights.relative_error
    assert figures["stated relative error of regions"] <= 1.5 * weights.region_relative_error


def test_no_source_is_on_both_sides(shared_data: Path) -> None:
    train, test = (pictures(shared_data, split) for split in ("train", "test"))
    assert not {one.source for one in train} & {one.source for one in test}
    assert {one.modality for one in test} == {"CT", "MG", "MR", "NM", "US", "XR"}
    digests = [{one.pixels.tobytes() for one in split} for split in (train, test)]
    assert not digests[0] & digests[1]


def test_figures_of_a_known_sample() -> None:
    rng = np.random.default_rng(0)
    alex = rng.uniform(0.02, 0.3, 200)
    sample = [
        Comparison("s", "CT", "blur", -1, float(value), float(value * 1.1), 0.1, 0.12)
        for value in alex
    ]
    sample += [Comparison("s", "CT", "denoised", 0, v, -v, 0.1, 0.12) for v in (0.1, 0.2, 0.3)]
    found = summarise(sample)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["spearman within twelve denoised"] == pytest.approx(-1.0)
    assert found["median relative error"] == pytest.approx(0.1, abs=1e-6)
    assert found["stated relative error of regions"] == pytest.approx(0.2, abs=1e-6)
    assert "| ρ | 1 |" in table(found)
