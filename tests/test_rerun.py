"""Repetition of recorded assessments, on pydicom's example files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

import medqa
from medqa.assessment import Assessment
from medqa.audit import Store
from medqa.errors import MedqaError, UsageError
from medqa.rerun import rerun


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """A CT image, and the same with noise."""
    reference = Path(str(get_testdata_file("CT_small.dcm", download=False)))
    dataset = pydicom.dcmread(reference)
    noise = np.random.default_rng(1).normal(0, 20, dataset.pixel_array.shape)
    dataset.PixelData = (dataset.pixel_array + noise).astype(np.int16).tobytes()
    candidate = tmp_path / "candidate.dcm"
    dataset.save_as(candidate)
    return str(reference), str(candidate)


@pytest.fixture
def recorded(pair: tuple[str, str], tmp_path: Path) -> Assessment:
    with Store.open(str(tmp_path / "audit.db")) as store:
        made = medqa.run(medqa.Job(*pair), store)
        return store.get(made.assessment_id)


def test_the_same_inputs_give_the_same_bits(recorded: Assessment, pair: tuple[str, str]) -> None:
    found = rerun(recorded, *pair)
    assert found.exact
    assert found.reproduces
    assert found.differences == ()
    assert found.again.assessment_id != recorded.assessment_id


def test_the_same_pixels_in_another_file_will_do(
    recorded: Assessment, pair: tuple[str, str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.dcm"
    shutil.copy(pair[1], copy)
    dataset = pydicom.dcmread(copy)
    dataset.PatientName = "Nobody"
    dataset.save_as(copy)
    assert rerun(recorded, pair[0], str(copy)).exact


def altered(recorded: Assessment, **changes: Any) -> Assessment:
    return Assessment.model_validate(recorded.model_dump() | changes)


def test_other_numbers_are_told_and_tolerated_within_the_tolerance(
    recorded: Assessment, pair: tuple[str, str]
) -> None:
    distance = recorded.base_lpips_score
    assert distance
    near = rerun(altered(recorded, base_lpips_score=distance * 1.00005), *pair)
    assert (near.exact, near.reproduces) == (False, True)
    assert near.differences[0].startswith("base_lpips_score: ")
    far = rerun(altered(recorded, base_lpips_score=distance * 1.001), *pair)
    assert (far.exact, far.reproduces) == (False, False)
    other = rerun(altered(recorded, verdict="not_assessable"), *pair)
    assert (other.exact, other.reproduces) == (False, False)


def test_other_inputs_are_refused(recorded: Assessment, pair: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="its candidate had other pixels"):
        rerun(recorded, pair[0], pair[0])
    with pytest.raises(UsageError, match="its reference had other pixels"):
        rerun(recorded, pair[1], pair[1])
    with pytest.raises(UsageError, match="kind pathology"):
        rerun(recorded, *pair, masks=[pair[0]])
    with pytest.raises(MedqaError):
        rerun(recorded, "nowhere.dcm", pair[1])


def test_another_profile_or_network_is_refused(recorded: Assessment, pair: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="was another file"):
        rerun(recorded, *pair, profile="mr")
    assert recorded.metric is not None
    other = recorded.metric.model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(UsageError, match="other weights"):
        rerun(recorded.model_copy(update={"metric": other}), *pair)
    with pytest.raises(UsageError, match="refused before anything"):
        rerun(recorded.model_copy(update={"metric": None}), *pair)


def test_weights_of_then_that_are_missing_are_an_error(
    recorded: Assessment, pair: tuple[str, str], tmp_path: Path
) -> None:
    missing = tmp_path / "site.safetensors"
    with pytest.raises(UsageError) as caught:
        rerun(recorded, *pair, backbone=str(missing))
    assert caught.value.subject == str(missing)
