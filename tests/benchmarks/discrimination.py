"""Is the limit from forced choices below the truth as often as stated? Simulated studies.

``python tests/benchmarks/discrimination.py [--studies 1000] [--write docs/calibrate.md]``; ten
minutes. Images have distances that scatter about a known threshold; readers choose by a known
curve, with 2 % lapses. Where images or readers differ, the true threshold is where the share of
right choices, averaged over them, is 75 %.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tables import Table, publish

from medqa.errors import UsageError
from medqa.studies.discrimination import fitted
from medqa.studies.psychometric import Curve, Trials

CONFIDENCE = 0.95
THRESHOLD = 0.02
_RESAMPLES = 399  # of which the 20th is the 5 % quantile
_AVERAGE = stats.norm.ppf((np.arange(400) + 0.5) / 400)  # a normal variable in 400 equal parts

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """What a study is like; spreads are standard deviations of a threshold's logarithm."""

    patients: int
    images: int = 1  # of each patient
    readers: int = 3
    slope: float = 1.5
    lapse: float = 0.02
    centre: float = 1.0  # of the distances, in thresholds
    patients_differ: float = 0.0
    readers_differ: float = 0.0

    @property
    def curve(self) -> Curve:
        return Curve(THRESHOLD, self.slope, self.lapse)


@dataclass(frozen=True)
class Outcome:
    """Of how many studies that were not refused the bound holds, and where it lies."""

    studies: int
    refused: int
    covered: int  # the bound is at or below the true threshold of the study's own readers
    covered_others: int  # and of readers to come
    bound: float  # median, in thresholds
    estimate: float  # median, in thresholds


def draw(rng: np.random.Generator, setting: Setting) -> tuple[Trials, Floats]:
    """Draw a study, and by how much its readers differ, as logarithms."""
    count = setting.patients * setting.images
    distance = THRESHOLD * setting.centre * np.exp(rng.standard_normal(count))
    unit = np.repeat(np.arange(setting.patients), setting.images)
    seen = setting.patients_differ * rng.standard_normal(setting.patients)[unit]
    readers = setting.readers_differ * rng.standard_normal(setting.readers)
    shares = setting.curve.share(distance * np.exp(seen + readers[:, np.newaxis]))
    right = (rng.random(shares.shape) < shares).sum(axis=0)
    return Trials(distance, right, setting.readers - right, unit), readers


def true_threshold(setting: Setting, readers: Floats) -> float:
    """Where the share of right choices, averaged over patients and these readers, is 75 %."""
    scatter = setting.patients_differ * _AVERAGE + readers[:, np.newaxis]
    low, high = math.log(THRESHOLD / 20), math.log(THRESHOLD * 20)
    for _ in range(40):
        middle = (low + high) / 2
        below = setting.curve.share(np.exp(middle + scatter)).mean() < 0.75
        low, high = (middle, high) if below else (low, middle)
    return math.exp(low)


def simulate(setting: Setting, studies: int, seed: int) -> Outcome:
    rng = np.random.default_rng(seed)
    everybody = true_threshold(setting, setting.readers_differ * _AVERAGE)
    bounds, truths, estimates = [], [], []
    for _ in range(studies):
        trials, readers = draw(rng, setting)
        try:
            one = fitted(trials, CONFIDENCE, _RESAMPLES)
        except UsageError:
            continue
        bounds.append(one.bound)
        estimates.append(one.curve.threshold)
        truths.append(true_threshold(setting, readers) if setting.readers_differ else everybody)
    found = np.array(bounds)
    return Outcome(
        studies,
        studies - len(bounds),
        int((found <= np.array(truths)).sum()),
        int((found <= everybody).sum()),
        float(np.median(found) / everybody),
        float(np.median(estimates) / everybody),
    )


SETTINGS: dict[str, Setting] = {
    "30 images": Setting(30),
    "40 images": Setting(40),
    "60 images": Setting(60),
    "120 images": Setting(120),
    "300 images": Setting(300),
    "120 images, 1 reader": Setting(120, readers=1),
    "steep, β 4": Setting(60, slope=4.0),
    "images too strong, × 2.5": Setting(60, centre=2.5),
    "10 % lapses": Setting(120, lapse=0.1),
    "images differ by 0.5": Setting(120, patients_differ=0.5),
    "patients differ by 0.5, 4 images each": Setting(40, images=4, patients_differ=0.5),
    "readers differ by 0.3": Setting(120, readers_differ=0.3),
}


def _words(covered: int, of: int) -> str:
    interval = stats.binomtest(covered, of).proportion_ci(method="exact")
    return f"{covered / of:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    given = parser.parse_args()
    rows = []
    for name, setting in SETTINGS.items():
        one = simulate(setting, given.studies, seed=7)
        used = one.studies - one.refused
        others = _words(one.covered_others, used) if setting.readers_differ else "–"
        rows.append(
            [
                name,
                str(setting.patients * setting.images * setting.readers),
                str(one.refused),
                _words(one.covered, used),
                others,
                f"{one.estimate:.2f}",
                f"{one.bound:.2f}",
            ]
        )
    header = [
        "study",
        "choices",
        "refused",
        "bound holds",
        "for other readers",
        "estimate",
        "bound",
    ]
    publish(
        "discrimination",
        f"{given.studies} simulated studies a row, 3 readers where nothing else is said; 95 % "
        "confidence. Estimate and bound are medians, in true thresholds.",
        [Table("Studies whose bound is not above the true threshold", header, rows)],
        given.write,
    )


if __name__ == "__main__":
    main()
