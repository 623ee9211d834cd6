"""Lesions are what they claim to be, and AUCs what others compute."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch
from scipy.stats import mannwhitneyu

from medqa.errors import UsageError
from medqa.lpips import GrayLPIPS
from medqa.training import lesions
from medqa.training.lesions import AREAS, CONTRASTS, Trial, draw_lesion, report, trials, wins
from medqa.training.sources import Picture


def _anatomy(seed: int, shape: tuple[int, int] = (160, 150)) -> np.ndarray:
    """Return smooth tissue with black air around it."""
    rng = np.random.default_rng(seed)
    field = ndi.gaussian_filter(rng.standard_normal(shape), 5)
    image = 0.5 + 0.1 * field / field.std() + 0.01 * rng.standard_normal(shape)
    image[:, :40] = 0
    return np.clip(image, 0, 1)


@pytest.fixture(scope="module")
def found() -> list[Trial]:
    return _trials(seed=0)


def _trials(seed: int) -> list[Trial]:
    pictures = [Picture("one", "CT", _anatomy(k).astype(np.float32)) for k in range(3)]
    pictures.append(Picture("two", "MR", _anatomy(9).astype(np.float32)))
    return list(trials({"gray": GrayLPIPS()}, pictures, visits=1, side=96, seed=seed))


def _trial(picture: int, damaged: float, untouched: float, process: str = "blur") -> Trial:
    scores = ({"s": damaged}, {"s": untouched})
    return Trial(picture, "CT", process, "removed", 0.01, 0.02, *scores)


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_lesion_has_its_area_and_contrast_and_lies_in_the_anatomy(
    area: float, contrast: float
) -> None:
    image = _anatomy(1)
    areas, signs = [], set()
    for seed in range(20):
        lesion = draw_lesion(image, area, contrast, np.random.default_rng(seed))
        assert lesion is not None
        areas.append(lesion.mask.mean())
        signs.add(math.copysign(1, lesion.contrast))
        added = lesion.into(image) - image
        assert abs(added).max() == pytest.approx(contrast)
        assert abs(added[lesion.mask]).min() >= 0.49 * contrast
        # Nothing saturates, and nothing lies in the air or beyond the border.
        assert 0 <= lesion.into(image).min() <= lesion.into(image).max() <= 1
        assert not added[:, :40].any()
        assert not any(edge.any() for edge in (added[0], added[-1], added[:, -1]))
    # Pixels make a small ellipse larger or smaller than it is; on the mean they do not.
    assert np.mean(areas) == pytest.approx(area, rel=0.1)
    assert signs == {-1.0, 1.0}


def test_no_lesion_where_there_is_no_room() -> None:
    rng = np.random.default_rng(0)
    assert draw_lesion(np.zeros((64, 64)), 0.01, 0.02, rng) is None
    checks = np.indices((64, 64)).sum(axis=0) % 2.0  # black and white: any change saturates
    assert draw_lesion(checks, 0.01, 0.02, rng) is None


def test_auc_is_what_scipy_says_and_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    # Rounded, so that there are draws.
    damaged, untouched = rng.normal(1, 1, 400).round(1), rng.normal(0, 1, 400).round(1)
    sample = [_trial(k % 7, *pair) for k, pair in enumerate(zip(damaged, untouched, strict=True))]
    found = wins(sample, "s").auc
    assert found == pytest.approx(mannwhitneyu(damaged, untouched).statistic / 400**2)
    # Of two normal distributions one standard deviation apart: Phi(1 / sqrt(2)) = 0.760.
    assert found == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.04)


def test_auc_compares_within_a_stratum_only_and_leaves_undefined_scores_out() -> None:
    sample = [_trial(0, 2, 1), _trial(0, 20, 10, "noise")]
    sample += [_trial(1, 1, 0), _trial(1, math.nan, 0, "noise")]
    # Blur: 2 > 1, 2 > 0, 1 = 1, 1 > 0. Noise: 20 > 10.
    assert wins(sample, "s").auc == pytest.approx(4.5 / 5)
    assert math.isnan(wins([_trial(0, math.nan, 0)], "s").auc)


def test_interval_of_the_bootstrap_is_that_of_theory() -> None:
    # One lesion in each of 200 pictures: Hanley and McNeil 1982 give the standard error.
    rng = np.random.default_rng(1)
    n = 200
    sample = [_trial(k, rng.exponential(3), rng.exponential(1)) for k in range(n)]
    won = wins(sample, "s")
    draws = rng.multinomial(n, np.full(n, 1 / n), 2000).astype(float)
    found = won.resampled(draws)
    # Two exponential distributions: their formula is exact.
    area = 3 / 4
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = math.sqrt((area * (1 - area) + (n - 1) * (q1 + q2 - 2 * area**2)) / n**2)
    assert won.auc == pytest.approx(area, abs=3 * error)
    assert found.std() == pytest.approx(error, rel=0.15)
    assert found.mean() == pytest.approx(won.auc, abs=0.1 * error)
    np.testing.assert_allclose(won.resampled(np.ones((1, n))), won.auc)


def test_same_seed_same_trials_and_another_seed_others(found: list[Trial]) -> None:
    def scores(of: list[Trial]) -> list[float]:
        return [value for one in of for value in (*one.damaged.values(), *one.untouched.values())]

    np.testing.assert_array_equal(scores(found), scores(_trials(seed=0)))
    assert not np.array_equal(scores(found), scores(_trials(seed=1)))


def test_trials_are_balanced(found: list[Trial]) -> None:
    # 2 modalities, 4 processes, 1 visit, 2 scenarios, 9 lesions, all of which had room.
    assert len(found) == 2 * 4 * 2 * 9
    assert {one.picture for one in found if one.modality == "MR"} == {3}
    for name in ("scenario", "area", "contrast", "process", "modality"):
        counts = np.unique([str(getattr(one, name)) for one in found], return_counts=True)[1]
        assert len(set(counts)) == 1


@pytest.mark.parametrize("backbone", ["gray", "alex"])
def test_scores_are_those_of_the_four_pairs_one_by_one(backbone: str, shared_weights: Path) -> None:
    network = GrayLPIPS(backbone, shared_weights)
    image = _anatomy(2)
    rng = np.random.default_rng(0)
    drawn = [draw_lesion(image, 0.01, 0.08, rng) for _ in range(2)]
    blobs = [lesion for lesion in drawn if lesion]

    def copy(x: np.ndarray) -> np.ndarray:
        return ndi.gaussian_filter(x, 0.7)

    scores = lesions._scores({backbone: network}, image, blobs, copy)
    lesion = blobs[1]
    sick = lesion.into(image)
    expected = {
        ("removed", 0): (sick, copy(image)),
        ("removed", 1): (sick, copy(sick)),
        ("inserted", 0): (image, copy(sick)),
        ("inserted", 1): (image, copy(image)),
    }
    for (scenario, kind), pair in expected.items():
        one, other = (torch.from_numpy(x).float()[None, None] for x in pair)
        with torch.inference_mode():
            map_ = network.compare(one, other).map()[0, 0].numpy()
        found = scores[scenario][kind]
        assert float(found[backbone][1]) == pytest.approx(map_[lesion.mask].mean(), rel=1e-4)
        change = (pair[1] - pair[0])[lesion.mask]
        assert float(found["mean change"][1]) == pytest.approx(abs(change.mean()), abs=1e-6)
        assert float(found["absolute change"][1]) == pytest.approx(abs(change).mean(), abs=1e-6)


def test_report_holds_the_figures_of_a_known_sample() -> None:
    scores = ("gray", "alex", "mean change", "absolute change", "edges lost", "texture lost")
    sample = []
    for picture in range(6):
        low, high = dict.fromkeys(scores, 0.05), dict.fromkeys(scores, 0.5)
        low["edges lost"] = math.nan
        high["alex"] = 0.05
        sample += [
            Trial(picture, "CT", "blur", scenario, 0.01, 0.04, high, low)
            for scenario in ("removed", "inserted")
        ]
    rows = report(sample).splitlines()
    assert (
        "| all | 12 | 6 | 1.00 (1.00 to 1.00) | 0.50 (0.50 to 0.50) | +0.500 (+0.500 to +0.500) "
        "| 100% | 1.00 | 1.00 | – | 1.00 |"
    ) in rows
    # CT's shipped pathology limit is 0.08.
    assert "| 4%, 1.00% | 12 | 100% | 0% | 0% | 0% |" in rows
    # Of fewer than five pictures no interval.
    assert any(
        row.startswith("| all | 4 | 2 | 1.00 | 0.50 |") for row in report(sample[:4]).split("\n")
    )


def test_update_replaces_what_stands_between_the_markers() -> None:
    page = "before\n<!-- lesions: begin -->\nold\n<!-- lesions: end -->\nafter\n"
    updated = lesions.update(page, "| new |\n")
    assert updated == (
        "before\n<!-- lesions: begin -->\n\n| new |\n\n<!-- lesions: end -->\nafter\n"
    )
    assert lesions.update(updated, "| new |\n") == updated
    with pytest.raises(UsageError, match="no place for the tables"):
        lesions.update("no markers", "| new |\n")
