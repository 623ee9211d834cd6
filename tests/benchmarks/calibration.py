"""Does the guarantee of `medqa calibrate` hold? Simulated reader studies with a known truth.

``python tests/benchmarks/calibration.py [--studies 1000] [--write docs/calibrate.md]``; a minute.
Every image has a severity; beyond a known threshold it truly is unacceptable. Its distance follows
the severity with scatter, rounded to four decimals so that ties occur. Readers judge the severity,
with errors. The true miss rate of each study's limit is read off a population of 400,000 images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tables import Table, publish

from medqa.errors import UsageError
from medqa.studies.calibration import Claim, guaranteed_limit

CLAIM = Claim(miss_rate=0.05, confidence=0.95)
THRESHOLD = 0.3  # of the severity, which is standard normal: 38 % are unacceptable
READERS = 3
_POPULATION = 400_000
_FEW = 100  # studies; a share of fewer says nothing

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
#: (images,) severity to (images, readers) judgments, True is unacceptable.
Judge = Callable[[np.random.Generator, Floats], Flags]


def perfect(_rng: np.random.Generator, severity: Floats) -> Flags:
    return np.repeat(severity[:, np.newaxis] > THRESHOLD, READERS, axis=1)


def slipping(share: float) -> Judge:
    """Each judgment is wrong with this probability, whatever the image."""

    def judge(rng: np.random.Generator, severity: Floats) -> Flags:
        truth = perfect(rng, severity)
        return truth ^ (rng.random(truth.shape) < share)

    return judge


def blurred(scatter: float) -> Judge:
    """Each reader sees the severity with a scatter: errors gather near the threshold."""

    def judge(rng: np.random.Generator, severity: Floats) -> Flags:
        seen = severity[:, np.newaxis] + scatter * rng.standard_normal((len(severity), READERS))
        return seen > THRESHOLD

    return judge


def lenient(_rng: np.random.Generator, severity: Floats) -> Flags:
    """All readers overlook what lies little beyond the threshold."""
    return np.repeat(severity[:, np.newaxis] > THRESHOLD + 0.5, READERS, axis=1)


MODELS: dict[str, Judge] = {
    "perfect": perfect,
    "5 % slips": slipping(0.05),
    "15 % slips": slipping(0.15),
    "blurred, 0.5": blurred(0.5),
    "blurred, 1.0": blurred(1.0),
    "lenient by 0.5": lenient,
}


@dataclass(frozen=True)
class Images:
    """(images,) each."""

    severity: Floats
    distance: Floats
    judged: Flags  # unacceptable by the majority

    @property
    def truth(self) -> Flags:
        return self.severity > THRESHOLD


def images(rng: np.random.Generator, count: int, judge: Judge, per_patient: int = 1) -> Images:
    """Draw images; those of one patient stand together and share most of their scatter."""
    severity = rng.standard_normal(count)
    of_patient = np.repeat(rng.standard_normal(count // per_patient), per_patient)
    own = rng.standard_normal(count)
    scatter = own if per_patient == 1 else np.sqrt(0.8) * of_patient + np.sqrt(0.2) * own
    distance = np.round(np.exp(-3.2 + 0.9 * severity + 0.45 * scatter), 4)
    judged = 2 * judge(rng, severity).sum(axis=1) >= READERS
    return Images(severity, distance, judged)


@dataclass(frozen=True)
class Outcome:
    """What became of many studies; those that were refused count in `refused` only."""

    studies: int
    refused: int
    unacceptable: float  # median number in a study
    covered: int  # the miss rate among what such readers refuse is as claimed
    covered_truth: int  # among what truly is unacceptable
    covered_naive: int  # with the plain 5 % quantile as limit
    missed: float  # median miss rate
    passed: float  # median share of the truly acceptable that pass

    @property
    def used(self) -> int:
        return self.studies - self.refused


def _share(ordered: Floats, limit: float) -> float:
    """Share of sorted values that pass a limit, itself included."""
    return float(np.searchsorted(ordered, limit, side="right")) / len(ordered)


def simulate(judge: Judge, count: int, studies: int, seed: int) -> Outcome:
    rng = np.random.default_rng(seed)
    everybody = images(rng, _POPULATION, judge)
    refused_by_readers, truly, fine = (
        np.sort(everybody.distance[flags])
        for flags in (everybody.judged, everybody.truth, ~everybody.truth)
    )
    found, sizes, too_small = [], [], 0
    for _ in range(studies):
        study = images(rng, count, judge)
        bad = study.distance[study.judged]
        sizes.append(len(bad))
        try:
            limit, _ = guaranteed_limit(bad, CLAIM)
        except UsageError:
            too_small += 1
            continue
        naive = float(np.quantile(bad, CLAIM.miss_rate))
        found.append(
            (
                _share(refused_by_readers, limit),
                _share(truly, limit),
                _share(refused_by_readers, naive),
                _share(fine, limit),
            )
        )
    rates = np.array(found).reshape(-1, 4)
    covered = (rates[:, :3] <= CLAIM.miss_rate).sum(axis=0)
    return Outcome(
        studies,
        too_small,
        float(np.median(sizes)),
        *map(int, covered),
        float(np.median(rates[:, 0])) if found else np.nan,
        float(np.median(rates[:, 3])) if found else np.nan,
    )


def simulate_patients(per_patient: int, patients: int, studies: int, seed: int) -> tuple[int, int]:
    """How many studies keep the claim, with one image of each patient and with all as if apart.

    The claim is of patients: those who have an unacceptable image that passes, among those who
    have an unacceptable image.
    """
    rng = np.random.default_rng(seed)

    def easiest(drawn: Images) -> Floats:
        grid = np.where(drawn.judged, drawn.distance, np.inf).reshape(-1, per_patient)
        lowest = grid.min(axis=1)
        return lowest[np.isfinite(lowest)]

    everybody = images(rng, _POPULATION, perfect, per_patient)
    by_patient = np.sort(easiest(everybody))
    apart = np.sort(everybody.distance[everybody.judged])
    kept = ignored = 0
    for _ in range(studies):
        study = images(rng, patients * per_patient, perfect, per_patient)
        kept += _share(by_patient, guaranteed_limit(easiest(study), CLAIM)[0]) <= CLAIM.miss_rate
        limit, _ = guaranteed_limit(study.distance[study.judged], CLAIM)
        ignored += _share(apart, limit) <= CLAIM.miss_rate
    return kept, ignored


def _words(covered: int, of: int) -> str:
    if of < _FEW:
        return "–"
    interval = stats.binomtest(covered, of).proportion_ci(method="exact")
    return f"{covered / of:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    given = parser.parse_args()
    rows = []
    for name, judge in MODELS.items():
        for count in (100, 200, 400, 1000):
            one = simulate(judge, count, given.studies, seed=count)
            rows.append(
                [
                    name,
                    str(count),
                    f"{one.unacceptable:.0f}",
                    str(one.refused),
                    _words(one.covered, one.used),
                    f"{one.missed:.1%}" if one.used >= _FEW else "–",
                    _words(one.covered_truth, one.used).partition(" ")[0],
                    _words(one.covered_naive, one.used).partition(" ")[0],
                    f"{one.passed:.0%}" if one.used >= _FEW else "–",
                ]
            )
    header = [
        "readers",
        "images",
        "unacceptable",
        "refused",
        "claim kept (95 % interval)",
        "miss rate",
        "claim kept, truth",
        "plain quantile",
        "acceptable pass",
    ]
    patients = []
    for per_patient, count in ((4, 100), (4, 250), (10, 100)):
        kept, ignored = simulate_patients(per_patient, count, given.studies, seed=count)
        patients.append(
            [
                f"{count} × {per_patient}",
                _words(kept, given.studies),
                _words(ignored, given.studies),
            ]
        )
    publish(
        "calibration",
        f"{given.studies} simulated studies a row, {READERS} readers, majority; at most 5 % may "
        "pass with 95 % confidence.",
        [
            Table("Studies whose limit keeps the claim", header, rows),
            Table(
                "Several images of a patient, perfect readers",
                ["patients × images", "one image of each", "all as if of different patients"],
                patients,
            ),
        ],
        given.write,
    )


if __name__ == "__main__":
    main()
