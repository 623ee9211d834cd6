"""Adapted weights against simulated readers with known weights, on real images."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import typer
from safetensors import safe_open
from scipy import ndimage, optimize
from typer.testing import CliRunner

import medqa
from medqa import thresholds
from medqa.cli.adaptation import adapt as adapt_command
from medqa.errors import MedqaError, ProfileError, UsageError
from medqa.lpips import GrayLPIPS
from medqa.studies import adaptation
from medqa.studies.adaptation import Adaptation, Model, adapt, fitted_multipliers
from medqa.studies.adapted_weights import adapted_heads, write
from medqa.studies.observations import Observations, channel_terms, observe
from medqa.studies.preferences import read_preferences
from medqa.thresholds import check_backbone
from medqa.weights import Weights, digest, find

_SIDE = 64


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("adaptation")
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def images(simulation: ModuleType, shared_data: Path) -> Any:
    return simulation.measured(shared_data / "ct", 280, _SIDE)


def observed(simulation: ModuleType, images: Any, multipliers: Any, **options: Any) -> Observations:
    reader = simulation.Reader(multipliers, options.get("slope", 20.0))
    count = options.get("count", 200)
    found: Observations = simulation.study(images, np.arange(count), reader, options.get("seed", 1))
    return found


def test_terms_add_up_to_the_distance(simulation: ModuleType, shared_data: Path) -> None:
    crop = simulation.crops(shared_data / "ct", 3, _SIDE)[-1]
    candidates = torch.from_numpy(simulation.damaged(np.random.default_rng(0), crop)).float()
    references = torch.from_numpy(crop.copy()).float().expand_as(candidates)
    pair = references[:, None], candidates[:, None]
    network = GrayLPIPS()
    terms = channel_terms(network, *pair)
    assert terms.min() >= 0.0
    np.testing.assert_allclose(terms.sum(axis=1), network(*pair).numpy(), atol=1e-6)
    assert not channel_terms(network, pair[0], pair[0]).any()


@pytest.mark.parametrize("kind", ["finest", "structural"])
def test_readers_with_weights_of_their_own_are_followed(
    simulation: ModuleType, images: Any, kind: str
) -> None:
    own = getattr(simulation, kind)(images)
    found = adapt(observed(simulation, images, own))
    assert found.better
    assert found.score > found.original_score + 0.02
    assert found.log_loss < found.original_log_loss
    # On crops that were in no study, and choices that nobody has seen.
    reader = simulation.Reader(own, 20.0)
    fresh = [simulation.study(images, np.arange(200, 280), reader, seed) for seed in range(10)]
    new, old = (
        np.mean([simulation.agreement(one, multipliers) for one in fresh])
        for multipliers in (found.multipliers, np.ones(len(own)))
    )
    assert new > old + 0.01


@pytest.mark.parametrize("slope", [20.0, 0.0])
def test_readers_who_follow_the_original_or_nothing_change_nothing(
    simulation: ModuleType, images: Any, slope: float
) -> None:
    ones = np.ones(images.terms.shape[2])
    for seed in range(5):
        found = adapt(observed(simulation, images, ones, slope=slope, count=100, seed=seed))
        assert not found.better


def test_the_same_table_gives_the_same_weights(simulation: ModuleType, images: Any) -> None:
    one = observed(simulation, images, simulation.finest(images), count=60)
    first, second = adapt(one), adapt(one)
    np.testing.assert_array_equal(first.multipliers, second.multipliers)
    assert first.score_gain == second.score_gain


@pytest.mark.parametrize("by_channel", [False, True])
def test_with_a_boundless_penalty_nothing_moves(
    simulation: ModuleType, images: Any, by_channel: bool
) -> None:
    one = observed(simulation, images, simulation.finest(images))
    multipliers = fitted_multipliers(one, Model(by_channel, 1e12))
    original = find("gray")
    for head, before in zip(adapted_heads(original, multipliers), original.heads, strict=True):
        torch.testing.assert_close(head, before, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("model", [Model(False, 0.1), Model(True, 1.0)])
def test_the_fit_is_the_least_of_the_stated_loss(
    simulation: ModuleType, images: Any, model: Model
) -> None:
    one = observed(simulation, images, simulation.finest(images), count=80)
    terms = adaptation._terms(one, by_channel=model.by_channel)
    found = adaptation._strengths(terms, one, np.arange(80), model.penalty)

    def loss(strengths: Any) -> float:  # as the module's docstring states it
        chance = 1 / (1 + np.exp(-terms @ strengths))
        likelihood = np.where(one.share == 1.0, chance, 1 - chance)
        apart = strengths - strengths.mean()
        return float(
            -np.log(likelihood).sum()
            + model.penalty * (apart**2).sum()
            + 0.01 * strengths.mean() ** 2
        )

    rng = np.random.default_rng(0)
    for size in (1e-1, 1e-2):
        for _ in range(50):
            nearby = np.maximum(found + size * rng.standard_normal(len(found)), 0.0)
            assert loss(found) <= loss(nearby) + 1e-6
    if not model.by_channel:
        other = optimize.minimize(
            loss, np.ones(len(found)), method="SLSQP", bounds=[(0, None)] * len(found)
        )
        assert loss(found) == pytest.approx(other.fun, rel=1e-4)


def test_multipliers_keep_the_mean_distance(simulation: ModuleType, images: Any) -> None:
    one = observed(simulation, images, simulation.structural(images))
    multipliers = fitted_multipliers(one, Model(True, 1.0))
    both = np.concatenate((one.a, one.b)).astype(np.float64)
    assert multipliers.min() >= 0.0
    assert (both @ multipliers).mean() == pytest.approx(both.sum(axis=1).mean(), rel=1e-9)


def test_readers_against_the_original_leave_it(simulation: ModuleType, images: Any) -> None:
    one = observed(simulation, images, np.ones(images.terms.shape[2]))
    against = replace(one, share=1.0 - one.share)  # the damaged one is always preferred
    assert not adapt(against).better
    assert (fitted_multipliers(against, Model(False, 100.0)) == 1.0).all()


def test_pairs_of_one_patient_are_never_in_two_folds(simulation: ModuleType, images: Any) -> None:
    one = observed(simulation, images, simulation.finest(images), count=120)
    patients = replace(one, cluster=one.cluster // 4)
    for rest, held in adaptation._folds(patients):
        assert not set(patients.cluster[rest]) & set(patients.cluster[held])


def test_an_interval_counts_patients(simulation: ModuleType, images: Any) -> None:
    one = observed(simulation, images, simulation.finest(images), count=100)
    gains = np.repeat(np.random.default_rng(0).standard_normal(25), 4)
    alone = adaptation._gain(gains, one)
    together = adaptation._gain(gains, replace(one, cluster=one.cluster // 4))
    width = [found.high - found.low for found in (alone, together)]  # type: ignore[operator]
    # Four copies of 25 values: standard errors are those of 100 and of 25.
    assert width[1] / width[0] == pytest.approx(2.0, rel=0.15)
    assert alone.value == pytest.approx(gains.mean())
    assert together.value == pytest.approx(gains.mean())


def test_few_patients_are_refused_or_said(simulation: ModuleType, images: Any) -> None:
    own = simulation.finest(images)
    with pytest.raises(UsageError, match="24 patients: too few"):
        adapt(observed(simulation, images, own, count=24))
    few = adapt(replace(observed(simulation, images, own, count=30), clustered=False))
    assert len(few.warnings) == 2
    assert "30 references" in few.warnings[1]
    assert adapt(observed(simulation, images, own, count=60)).warnings == ()


# Files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(simulation: ModuleType, shared_data: Path, tmp_path_factory: Any) -> Path:
    """NIfTI in HU: of each reference a blurred and a noisy candidate; the blurred is preferred."""
    folder: Path = tmp_path_factory.mktemp("preferences")
    rng = np.random.default_rng(3)

    def save(name: str, shown: Any) -> str:
        hu = np.rint(shown * 400 - 160).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(hu[..., np.newaxis], np.eye(4)), folder / name)  # type: ignore[no-untyped-call,attr-defined]
        return name

    rows = ["reference,a,b,preferred,group"]
    for number, crop in enumerate(simulation.crops(shared_data / "ct", 60, _SIDE)):
        blurred = ndimage.gaussian_filter(crop, rng.uniform(0.3, 1.0))
        noisy = np.clip(crop + rng.uniform(0.02, 0.06) * rng.standard_normal(crop.shape), 0, 1)
        names = [f"{kind}{number}.nii" for kind in "rbn"]
        for name, shown in zip(names, (crop, blurred, noisy), strict=True):
            save(name, shown)
        rows.append(f"{','.join(names)},a,experts")
        rows.append(f"{','.join(names)},{rng.choice(['a', 'b'])},dice")
    path = folder / "table.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def site(table: Path) -> tuple[Path, Adaptation]:
    preferences = read_preferences(table, group="experts")
    profile = thresholds.load("ct")
    network = GrayLPIPS()
    found = adapt(observe(network, preferences, profile))
    out = table.with_name("site.safetensors")
    date = medqa.thresholds.load("ct").date
    write(out, network.weights, found, preferences, profile, name="site-ct", date=date)
    return out, found


def test_observed_pairs_are_the_distances_of_an_assessment(table: Path) -> None:
    profile = thresholds.load("ct")
    preferences = read_preferences(table, group="experts")
    some = replace(preferences, pairs=preferences.pairs[:2])
    one = observe(GrayLPIPS(), some, profile)
    for row, pair in enumerate(some.pairs):
        for terms, candidate in ((one.a, pair.a), (one.b, pair.b)):
            again = medqa.assess(
                medqa.read(str(pair.reference)), medqa.read(str(candidate)), profile=profile
            )
            shown = [window.lpips for window in again.windows]
            assert len(shown) > 1
            # An assessment's distance is the mean of the map, which upsampling changes a little.
            assert terms[row].sum() == pytest.approx(np.mean(shown), rel=5e-3)
    assert not one.clustered
    assert one.cluster.tolist() == [0, 1]


def test_a_written_file_is_another_version_of_the_network(site: tuple[Path, Adaptation]) -> None:
    path, found = site
    original, adapted = find("gray"), find(str(path))
    assert found.better
    assert adapted.backbone == "gray"
    assert adapted.version == f"1+site-ct.{adapted.sha256[:8]}"
    assert adapted.sha256 == digest((*adapted.trunk, *adapted.heads)) != original.sha256
    assert adapted.relative_error is None
    with safe_open(path, "pt") as file:
        evidence = json.loads(file.metadata()["evidence"])
        assert set(file.keys()) == {f"head.{tap}" for tap in range(5)}
    assert evidence["score"] == found.score
    assert evidence["score_gain"]["low"] > 0.0
    assert (evidence["judgments"], evidence["reader_group"]) == (60, "experts")


def test_distances_are_the_sum_of_weights_times_differences(
    site: tuple[Path, Adaptation], table: Path
) -> None:
    weights = find(str(site[0]))
    network = GrayLPIPS(weights.backbone, weights)
    pixels = [np.asarray(medqa.read(str(table.with_name(f"{kind}5.nii"))).pixels) for kind in "rbn"]
    reference, *candidates = (
        torch.from_numpy(np.clip((one + 160) / 400.0, 0, 1)).float()[:, None] for one in pixels
    )
    for candidate in candidates:
        total = 0.0
        taps = zip(network.encode(reference), network.encode(candidate), strict=True)
        for (one, other), head in zip(taps, weights.heads, strict=True):
            squared = (one.numpy().astype(np.float64) - other.numpy()) ** 2
            total += float(head.numpy() @ squared.mean(axis=(0, 2, 3)))
        assert float(network(reference, candidate)) == pytest.approx(total, abs=1e-6)
        assert total > 0.0
    assert float(network(reference, reference)) == 0.0


def test_limits_of_the_original_are_refused(site: tuple[Path, Adaptation], table: Path) -> None:
    weights = find(str(site[0]))
    network = GrayLPIPS(weights.backbone, weights)
    pair = [medqa.read(str(table.with_name(name))) for name in ("r0.nii", "b0.nii")]
    # `gray` is within the profile's guard band, its adapted version is not.
    with pytest.raises(ProfileError, match=rf"not for gray 1\+site-ct\.{weights.sha256[:8]}"):
        medqa.assess(*pair, profile="ct", backbone=network)
    own = table.with_name("own.toml")
    own.write_text(
        'schema_version = 1\nextends = "ct"\nname = "own"\nversion = "1"\ntitle = "CT, here"\n'
        'status = "provisional"\ndate = 2026-11-21\n\n[metric]\nbackbone = "gray"\n'
        f'version = "{weights.version}"\nguard_band = []\n'
    )
    record = medqa.assess(*pair, profile=str(own), backbone=network)
    assert record.metric is not None
    assert (record.metric.backbone, record.metric.version) == ("gray", weights.version)
    assert record.metric.weights_sha256 == weights.sha256
    assert record.metric.relative_error is None
    profile = thresholds.load(str(own))
    for version in ("1", "1+site-ct.00000000"):
        with pytest.raises(ProfileError):
            check_backbone(profile, "gray", version, None)


def test_what_is_no_better_or_there_already_is_not_written(
    site: tuple[Path, Adaptation], table: Path, tmp_path: Path
) -> None:
    path, found = site
    preferences, profile = read_preferences(table, group="dice"), thresholds.load("ct")

    def put(out: Path, one: Adaptation, name: str = "site-ct") -> Weights:
        base = find("gray")
        return write(out, base, one, preferences, profile, name=name, date=profile.date)

    worse = replace(found, score_gain=replace(found.score_gain, low=0.0))
    with pytest.raises(UsageError, match="no better"):
        put(tmp_path / "new.safetensors", worse)
    with pytest.raises(UsageError, match="there already"):
        put(path, found)
    with pytest.raises(UsageError, match="does not end in"):
        put(tmp_path / "new.pth", found)
    with pytest.raises(UsageError, match="cannot be written"):
        put(tmp_path / "nowhere" / "new.safetensors", found)
    with pytest.raises(UsageError, match="no name"):
        put(tmp_path / "new.safetensors", found, name="../Site")
    assert list(tmp_path.glob("*.safetensors")) == []


def _run(table: Path, out: Path, *options: str) -> Any:
    app = typer.Typer()
    app.command()(adapt_command)
    given = [str(table), "--profile", "ct", "--name", "site-ct", "--out", str(out), *options]
    return CliRunner().invoke(app, given)


def test_the_command_writes_what_is_better(
    table: Path, tmp_path: Path, site: tuple[Path, Adaptation]
) -> None:
    out = tmp_path / "site.safetensors"
    done = _run(table, out, "--group", "experts")
    assert done.exit_code == 0, done.output
    assert find(str(out)).sha256 == find(str(site[0])).sha256  # the same table, the same weights
    assert find(str(out)).version in done.output
    assert "choices agreed with" in done.output
    assert [one.name for one in tmp_path.glob("*.safetensors")] == ["site.safetensors"]
    again = _run(table, out, "--group", "experts")
    assert isinstance(again.exception, UsageError)


def test_the_command_refuses_what_is_not(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "site.safetensors"
    done = _run(table, out, "--group", "dice")
    assert done.exit_code == 1
    assert "the original stays" in done.output
    assert not out.exists()
    assert isinstance(_run(table, out, "--group", "nobody").exception, MedqaError)
    assert isinstance(_run(table.with_name("r0.nii"), out).exception, MedqaError)
