"""Forced choices to a limit: known thresholds, independent fits, simulated coverage, refusals."""

from __future__ import annotations

import datetime
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import statsmodels.api as sm
import typer
from scipy import stats
from studying import Row, write_table
from typer.testing import CliRunner

import medqa
from medqa import thresholds
from medqa.cli.calibration import calibrate as command
from medqa.errors import UsageError
from medqa.studies import discrimination, discrimination_profile
from medqa.studies.discrimination import Discrimination, discriminate, rise
from medqa.studies.psychometric import Curve, Trials, fit, log_likelihood, resample
from medqa.studies.readers import ReaderStudy, read_study
from medqa.thresholds import Profile

CT = thresholds.load("ct")
DATE = datetime.date(2026, 11, 21)
CURVE = Curve(0.02, 1.5, 0.02)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discrimination, "_RESAMPLES", 200)


def choices(
    images: int = 120,
    share: Callable[[float], float] = lambda distance: float(CURVE.share(distance)),
    *,
    least: float = 0.002,
    most: float = 0.2,
    readers: int = 3,
    seed: int = 3,
    **cells: object,
) -> list[dict[str, object]]:
    """Rows of readers who are right with the probability `share` of the distance."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for number, distance in enumerate(np.geomspace(least, most, images)):
        for reader in range(readers):
            right = rng.random() < share(float(distance))
            rows.append(
                {
                    "image": f"image {number}",
                    "reader": f"reader {reader + 1}",
                    "judgment": "right" if right else "wrong",
                    "distance": f"{distance:.6f}",
                    "patient": f"patient {number}",
                    "modality": "CT",
                    "body_part": ("HEAD", "CHEST")[number % 2],
                    "network": "alex",
                }
                | cells
            )
    return rows


def study(tmp_path: Path, rows: list[dict[str, object]]) -> ReaderStudy:
    table: list[Row] = list(rows)
    return read_study(write_table(tmp_path / "choices.csv", table), CT)


def trials(images: int, readers: int, curve: Curve = CURVE, seed: int = 1) -> Trials:
    rng = np.random.default_rng(seed)
    distance = np.exp(np.log(curve.threshold) + rng.standard_normal(images))
    right = rng.binomial(readers, curve.share(distance))
    return Trials(distance, right, readers - right, np.arange(images))


def test_the_curve_is_the_weibull_function() -> None:
    distance = np.array([0.0, 0.005, 0.02, 0.3])
    rising = 1 - np.exp(-((distance / CURVE.alpha) ** CURVE.slope))
    np.testing.assert_allclose(CURVE.share(distance), 0.5 + (0.5 - CURVE.lapse) * rising)
    assert float(CURVE.share(CURVE.threshold)) == pytest.approx(0.75)
    cdf = stats.weibull_min.cdf(distance, CURVE.slope, scale=CURVE.alpha)
    np.testing.assert_allclose(CURVE.share(distance), 0.5 + 0.48 * cdf)


def test_the_likelihood_is_the_binomial_one() -> None:
    given = trials(50, 4)
    shares = CURVE.share(given.distance)
    whole = stats.binom.logpmf(given.right, 4, shares).sum()
    pattern = stats.binom.logpmf(given.right, 4, given.right / 4).sum()
    saturated = sum(
        stats.binom.logpmf(k, 4, k / 4) - k * np.log(k / 4 or 1) - (4 - k) * np.log(1 - k / 4 or 1)
        for k in given.right
    )
    assert np.isfinite(pattern)
    assert log_likelihood(given, CURVE) == pytest.approx(whole - saturated)


@pytest.mark.parametrize("curve", [CURVE, Curve(0.1, 3.0, 0.04), Curve(0.004, 1.0, 0.0)])
def test_large_data_give_the_parameters_back(curve: Curve) -> None:
    found = fit(trials(1500, 80, curve))
    assert found.threshold == pytest.approx(curve.threshold, rel=0.03)
    assert found.alpha == pytest.approx(curve.alpha, rel=0.04)
    assert found.slope == pytest.approx(curve.slope, rel=0.05)
    assert found.lapse == pytest.approx(curve.lapse, abs=0.005)


class _Guessing(sm.families.links.CLogLog):
    """Complementary log-log above a guess rate of one half: the Weibull curve without lapses."""

    def __call__(self, p: np.ndarray) -> np.ndarray:
        return super().__call__(np.clip(2 * p - 1, 1e-9, 1 - 1e-9))

    def inverse(self, z: np.ndarray) -> np.ndarray:
        return 0.5 + 0.5 * super().inverse(z)

    def deriv(self, p: np.ndarray) -> np.ndarray:
        return 2 * super().deriv(np.clip(2 * p - 1, 1e-9, 1 - 1e-9))


def test_without_lapses_it_is_the_generalised_linear_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medqa.studies.psychometric.LAPSES", (0.0, 0.0))
    given = trials(300, 5, Curve(0.02, 1.5, 0.0))
    model = sm.GLM(
        np.stack((given.right, given.wrong), axis=1),
        sm.add_constant(np.log(given.distance)),
        family=sm.families.Binomial(link=_Guessing()),
    )
    constant, slope = model.fit(start_params=[5.0, 1.2]).params
    found = fit(given)
    assert found.slope == pytest.approx(slope, rel=1e-3)
    assert found.alpha == pytest.approx(np.exp(-constant / slope), rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_no_curve_of_a_fine_grid_is_more_likely(seed: int) -> None:
    given = trials(60, 3, seed=seed)
    found = fit(given)
    alpha, beta, lapse = np.meshgrid(
        np.geomspace(0.004, 0.15, 90), np.geomspace(0.4, 12, 60), np.linspace(0, 0.06, 7)
    )
    total = np.zeros(alpha.shape)
    for distance, right, wrong in zip(given.distance, given.right, given.wrong, strict=True):
        share = 0.5 + (0.5 - lapse) * (1 - np.exp(-((distance / alpha) ** beta)))
        share = np.clip(share, 0, 1 - 1e-12)
        total += right * np.log(share) + wrong * np.log(1 - share)
    assert log_likelihood(given, found) >= total.max() - 1e-6
    best = np.unravel_index(total.argmax(), total.shape)
    assert found.alpha == pytest.approx(alpha[best], rel=0.1)


def test_resamples_are_fitted_as_the_study_is() -> None:
    given = trials(80, 3)
    curves = resample(given, 60)
    draws = np.random.default_rng(20261121).multinomial(80, np.full(80, 1 / 80), size=60)
    exact = [
        fit(Trials(given.distance, given.right * one, given.wrong * one, given.unit)).threshold
        for one in draws
    ]
    assert np.median(np.abs(np.log(curves.threshold / exact))) < 0.01
    assert curves.bound(0.95) == pytest.approx(np.quantile(exact, 0.05), rel=0.03)
    np.testing.assert_array_equal(resample(given, 60).threshold, curves.threshold)


def test_patients_are_drawn_whole() -> None:
    one = trials(40, 3)
    # Each image four times over, as four images of one patient: no more is known than before.
    copied = Trials(*(np.tile(part, 4) for part in (one.distance, one.right, one.wrong, one.unit)))
    assert copied.units == 40
    apart = Trials(copied.distance, copied.right, copied.wrong, np.arange(160))
    single, whole = resample(one, 200).bound(0.95), resample(copied, 200).bound(0.95)
    assert whole == pytest.approx(single, rel=1e-9)
    assert resample(apart, 200).bound(0.95) > 1.1 * whole


def test_the_rise_is_tested_against_one_share() -> None:
    rising = trials(60, 3)
    assert rise(rising, fit(rising)) < 1e-4
    p = []
    for seed in range(40):  # one share at all distances: a rise is found by chance only
        right = np.random.default_rng(seed).binomial(3, 0.7, 60)
        flat = Trials(np.geomspace(0.01, 1, 60), right, 3 - right, np.arange(60))
        p.append(rise(flat, fit(flat)))
    assert np.count_nonzero(np.array(p) < 0.05) <= stats.binom.ppf(0.995, 40, 0.05)


def test_a_study_gives_a_limit_below_the_truth(tmp_path: Path) -> None:
    given = study(tmp_path, choices())
    assert given.forced_choice
    found = discriminate(given)
    assert found.limit < CURVE.threshold < 2.0 * found.limit
    assert found.limit < found.curve.threshold
    assert (found.choices, found.units) == (360, 120)
    assert found.rise_p < 1e-6
    assert sum(one.choices for one in found.bins) == 360
    within = [one for one in given.images if one.values["distance"] <= found.limit]
    right = sum(sum(one.judgments.values()) for one in within)
    assert found.within is not None
    assert found.within.value == pytest.approx(right / (3 * len(within)))
    exact = stats.binomtest(right, 3 * len(within)).proportion_ci(method="exact")
    assert (found.within.low, found.within.high) == pytest.approx((exact.low, exact.high))
    assert [one.choices for one in found.readers] == [120, 120, 120]
    distance, low, high = found.band
    shares = found.curve.share(distance)
    assert np.mean((low <= shares) & (shares <= high)) > 0.9
    assert found.warnings == ()
    assert discriminate(given, 0.5).limit > found.limit
    assert discriminate(given).limit == found.limit


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (choices(29), "of 29 patients .* 30 are needed; judge images of 1 more"),
        (choices(60, most=0.008), "75 % right are not reached: .* stronger processing"),
        (choices(60, least=0.1, most=0.9), "passed at the least distance, 0.1, already"),
        (choices(60, lambda _: 0.5), "75 % right are not reached"),
        (choices(60, lambda _: 0.0), "75 % right are not reached"),
        (choices(60, lambda _: 1.0), "passed at the least distance"),
        (choices(200, lambda _: 0.75), "do not become more with distance"),
        (choices(60, least=0.015, most=0.1), "none was judged .* about [0-9]+ more patients"),
        (choices(60, distance="0"), "distance 0"),
    ],
)
def test_what_supports_no_limit_is_refused(
    tmp_path: Path, rows: list[dict[str, object]], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        discriminate(study(tmp_path, rows))


@pytest.mark.parametrize(("below", "share"), [(0.01, 0.8), (0.006, 0.9)])
def test_a_limit_that_the_choices_within_it_contradict_is_refused(
    tmp_path: Path, below: float, share: float
) -> None:
    # Readers see something at small distances, and less at larger ones.
    def seen(distance: float) -> float:
        return share if distance < below else 0.5 if distance < 0.03 else 0.98

    with pytest.raises(UsageError, match="does not follow what the readers see"):
        discriminate(study(tmp_path, choices(200, seen)))


def test_what_the_choices_cannot_support_is_said(tmp_path: Path) -> None:
    rows = choices(60, readers=1)
    for row in rows:
        del row["patient"]
    text = " ".join(discriminate(study(tmp_path, rows)).warnings)
    for words in ("names no patients", "single reader", "There are few choices"):
        assert words in text
    lapsing = Curve(0.02, 2.0, 0.2)
    rows = choices(200, lambda distance: float(lapsing.share(distance)))
    assert "not attentive" in " ".join(discriminate(study(tmp_path, rows)).warnings)
    # Of the head every difference is seen, of the chest none below 0.05.
    kinds = choices(200, lambda distance: float(CURVE.share(distance)))
    for row in kinds:
        if float(str(row["distance"])) < 0.03:
            seen = row["body_part"] == "HEAD" or row["reader"] == "reader 1"
            row["judgment"] = "right" if seen else "wrong"
    assert "Of HEAD" in " ".join(discriminate(study(tmp_path, kinds)).warnings)


def test_a_reader_below_chance_is_said_and_not_named(tmp_path: Path) -> None:
    rows = choices(120, readers=6)
    for row in rows:
        if row["reader"] == "reader 1":
            row["judgment"] = {"right": "wrong", "wrong": "right"}[str(row["judgment"])]
    text = " ".join(discriminate(study(tmp_path, rows)).warnings)
    assert "may be swapped" in text
    assert "reader 1" not in text


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("right", "accept", "line 3, column judgment: forced choices and other"),
        ("yes", "wrong", "line 3, column judgment: forced choices and other"),
        ("right", "left", "line 3, column judgment: 'left' does not say .* was right"),
        ("right", "maybe", "line 3, column judgment: 'maybe' is no judgment"),
        ("a", "right", "line 2, column judgment: 'a' does not say"),
    ],
)
def test_a_table_is_of_one_kind(tmp_path: Path, first: str, second: str, words: str) -> None:
    rows = choices(1, readers=2)
    rows[0]["judgment"], rows[1]["judgment"] = first, second
    with pytest.raises(UsageError, match=words):
        study(tmp_path, rows)


def test_scores_are_no_forced_choices(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", choices(2))
    with pytest.raises(UsageError, match="leave --acceptable-from out"):
        read_study(table, CT, acceptable_from=3)
    both = write_table(tmp_path / "b.csv", [{**one, "ssim": 0.9} for one in choices(60)])
    given = read_study(both, CT, measures=("distance", "ssim"))
    with pytest.raises(UsageError, match="calibrate the distance"):
        discriminate(given)


def written(out: Path, given: ReaderStudy, found: Discrimination, base: Profile = CT) -> Profile:
    return discrimination_profile.write(
        out, base, given, found, version="1", title="CT, here", date=DATE
    )


def test_the_profile_states_its_evidence(tmp_path: Path) -> None:
    given = study(tmp_path, choices())
    found = discriminate(given)
    profile = written(tmp_path / "site.toml", given, found)
    assert (profile.status, profile.extends) == ("calibrated", "ct")
    limits = profile.limits
    assert limits.diagnostic.value == found.limit
    assert limits.diagnostic.status == "calibrated"
    for part in ("95 % confidence", "at most 75 % of forced choices", given.sha256, "3 readers"):
        assert part in limits.diagnostic.source
    assert limits.screening == CT.limits.screening  # the looser
    assert "screening limit is that of ct, provisional" in str(profile.caution)
    assert limits.pathology.value == pytest.approx(0.8 * found.limit, rel=1e-3)
    assert limits.annotation.value == pytest.approx(found.limit)
    assert limits.pathology.status == "provisional"
    thresholds.check_calibrated(profile)
    page = (tmp_path / "site.html").read_text("utf-8")
    for part in (given.sha256, profile.sha256, f"{found.limit:.6g}", "reader 3"):
        assert part in page
    assert page.count('class="dot"') == len(found.bins)
    assert "patient 17" not in page
    assert "image 17" not in page
    assert "src=" not in page
    with pytest.raises(UsageError, match="is there already"):
        written(tmp_path / "site.toml", given, found)


def test_screening_is_never_below_diagnostic_nor_of_another_network(tmp_path: Path) -> None:
    far = choices(least=0.02, most=4.0, share=lambda d: float(Curve(0.4, 1.5, 0.02).share(d)))
    given = study(tmp_path, far)
    found = discriminate(given)
    limits = written(tmp_path / "far.toml", given, found).limits
    assert found.limit > CT.limits.screening.value
    assert limits.screening.value == limits.diagnostic.value == found.limit
    assert "is not above it" in limits.screening.source
    given = study(tmp_path, choices(network="gray"))
    profile = written(tmp_path / "gray.toml", given, discriminate(given))
    assert profile.metric.backbone == "gray"
    assert profile.limits.screening.value == profile.limits.diagnostic.value
    assert "another network" in profile.limits.screening.source


def test_the_command_takes_forced_choices(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    app = typer.Typer()
    app.command()(command)
    table, out = write_table(tmp_path / "t.csv", choices()), tmp_path / "site.toml"
    given = [str(table), "--base", "ct", "--out", str(out)]
    refused = CliRunner().invoke(app, [*given, "--miss-rate", "0.1"])
    assert isinstance(refused.exception, UsageError)
    assert "says nothing of forced choices" in str(refused.exception)
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert "75 % right at" in done.output
    image = medqa.read(str(get_testdata_file("CT_small.dcm", download=False)))
    assert medqa.assess(image, image, profile=str(out)).verdict == "diagnostic"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("discrimination")
    finally:
        sys.path.remove(folder)


@pytest.mark.parametrize("setting", ["60 images", "patients differ by 0.5, 4 images each"])
def test_simulated_bounds_hold(benchmark: ModuleType, setting: str) -> None:
    # Fewer than the 1 % quantile of a true 95 % would be chance once in a hundred.
    found = benchmark.simulate(benchmark.SETTINGS[setting], 40, seed=11)
    used = found.studies - found.refused
    assert used > 30
    assert found.covered >= stats.binom.ppf(0.01, used, 0.95)
    assert 0.85 < found.estimate < 1.15
