"""Series: what counts as a point, in which order, and what a patient's studies are held against."""

from __future__ import annotations

import datetime
import math
import random
from pathlib import Path

import numpy as np
import pytest
from watching import DAY, code, daily, noise, record

from medqa.assessment import Assessment, ClinicalSuitability, Inputs, MetricRef, ProfileRef, Reason
from medqa.audit import Store
from medqa.quality.record import Measured, add
from medqa.quality.series import changes, distances, gather, series


def test_one_series_for_each_device_study_type_and_measure() -> None:
    snr = Measured(name="snr", value=20.0, unit="1", better="higher")
    found = series(
        [
            record(1, noise(1.0), snr),
            record(2, noise(2.0), device="other"),
            record(3, noise(3.0), study_type="CT HEAD"),
            record(4, noise(4.0)),
            record(5, noise(9.0), device=None),
            record(6, noise(None), snr),
        ]
    )
    names = {
        (one.subject.device, one.subject.study_type, one.subject.measure): one.values
        for one in found
    }
    assert names == {
        (code("scanner"), "CT CHEST", "noise"): [1.0, 4.0],
        (code("scanner"), "CT CHEST", "snr"): [20.0, 20.0],
        (code("other"), "CT CHEST", "noise"): [2.0],
        (code("scanner"), "CT HEAD", "noise"): [3.0],
    }


def test_points_stand_by_day_then_as_recorded() -> None:
    records = [record(1, noise(1.0), day=5), record(2, noise(2.0), day=3)]
    records += [record(3, noise(3.0), day=5), record(4, noise(4.0), day=4)]
    (found,) = series(records)
    assert found.values == [2.0, 4.0, 1.0, 3.0]
    assert np.diff(found.days).tolist() == [1, 1, 0]
    without = records[0].model_copy(update={"acquired_on": None})
    (found,) = series([without])
    assert found.points[0].day == datetime.date(2026, 6, 1)  # of the record


def test_a_study_counts_once_and_an_image_as_first_measured() -> None:
    (found,) = series(
        [
            record(1, noise(1.0), study="a", day=1),
            record(2, noise(2.0), study="a", day=1),
            record(3, noise(9.0), study="a", day=1),
            record(4, noise(5.0), study="b", day=2, pixels="same"),
            record(5, noise(7.0), study="b", day=2, pixels="same"),
            record(6, noise(8.0), study="b", day=3, pixels="same"),
        ]
    )
    assert [(one.value, one.images) for one in found.points] == [(2.0, 3), (5.0, 1), (8.0, 1)]
    assert found.points[0].record.startswith("00000001")


def test_the_order_of_recording_does_not_matter_for_different_days() -> None:
    records = daily([float(value) for value in range(40)])
    shuffled = random.Random(1).sample(records, len(records))
    assert series(shuffled) == series(records)


def test_names_from_headers_stay_on_one_line() -> None:
    evil = record(1, noise(1.0)).model_copy(update={"device": "ACME\nCRITICAL: all is well"})
    assert series([evil])[0].subject.device_name == "ACME CRITICAL: all is well"


def _population(spread: float, patients: int) -> list[list[float]]:
    rng = np.random.default_rng(2)
    level = 10 + 3 * rng.standard_normal(patients)
    return [list(one + spread * rng.standard_normal(2)) for one in level]


def test_within_patient_spread_by_bland_and_altman() -> None:
    pairs = _population(0.5, 40)
    records, number = [], 0
    for patient, values in enumerate(pairs):
        for value in values:
            number += 1
            records.append(record(number, noise(value), patient=f"p{patient}"))
    found = changes(records)
    assert len(found) == 40
    assert not any(one.other_device for one in found)
    # Of the first patient: the others' sum of squared differences / 2n, by hand.
    within = math.sqrt(sum((b - a) ** 2 for a, b in pairs[1:]) / (2 * 39))
    assert found[0].usual == pytest.approx(3 * math.sqrt(2) * within)
    assert within == pytest.approx(0.5, rel=0.25)
    assert sum(one.unusual for one in found) <= 1
    # The patients differ by far more among each other than each does over time.
    records.append(record(900, noise(pairs[0][1] + 4), patient="p0", device="other"))
    late = [one for one in changes(records) if one.now.record.startswith("00000900")]
    assert [(one.unusual, one.other_device) for one in late] == [(True, True)]


def test_few_pairs_judge_nothing() -> None:
    records = [record(n, noise(float(n)), patient=f"p{n // 2}") for n in range(20)]
    found = changes(records)
    assert len(found) == 10
    assert {one.usual for one in found} == {None}  # nine other patients
    assert not any(one.unusual for one in found)


def _assessed(number: int, version: str = "1", score: float | None = 0.01) -> Assessment:
    return Assessment(
        assessment_id=f"assessment-{number:04d}",
        created_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        + datetime.timedelta(days=number),
        medqa_version="0",
        inputs=Inputs(reference=record(1).image, candidate=record(2).image),
        profile=ProfileRef(name="ct", version=version, sha256="c" * 64, status="provisional"),
        metric=MetricRef(backbone="gray", version="1", weights_sha256="d" * 64),
        base_lpips_score=score,
        clinical_suitability=ClinicalSuitability(
            suitable_for_diagnosis=True, suitable_for_screening=True, requires_expert_review=False
        ),
        verdict="diagnostic",
        reasons=(Reason(text="fine"),),
    )


def test_assessments_by_profile_version_without_what_was_corrected(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "audit.db")) as store:
        store.add(_assessed(2, score=0.02))
        store.add(_assessed(1, score=0.01))
        store.add(_assessed(3, version="2", score=0.03))
        store.add(_assessed(4, score=None))
        store.add(_assessed(5, score=0.05), supersedes="assessment-0002")
        add(store, record(1, noise(1.0)))
        add(store, record(2, noise(1.0), device=None))
        found = distances(store)
        assert [(one.subject.study_type[:22], one.values) for one in found] == [
            ("CT, profile ct 1, netw", [0.01, 0.05]),
            ("CT, profile ct 2, netw", [0.03]),
        ]
        whole = gather(store)
        assert len(whole.series) == 3
        assert whole.without_device == 1
        later = gather(store, since=DAY + datetime.timedelta(days=4))
        assert [one.values for one in later.series] == [[0.05]]
