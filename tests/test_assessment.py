"""Oracles: the jsonschema package, and records written by hand."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import ValidationError

from medqa.assessment import Assessment, WindowScore, schema

# As it stands in a database: everything filled in, written without the models' help.
RECORD: dict[str, Any] = {
    "assessment_id": "0123456789abcdef",
    "created_at": "2026-03-01T01:30:00Z",
    "medqa_version": "0.1.0",
    "inputs": {
        "reference": {
            "kind": "dicom",
            "shape": [2, 64, 64],
            "modality": "CT",
            "unit": "HU",
            "spacing_mm": [5.0, 0.7, 0.7],
            "body_part": "ABDOMEN",
            "device": "ACME CT 1",
            "transfer_syntax": "1.2.840.10008.1.2.1",
            "file_sha256": "a" * 64,
            "pixels_sha256": "b" * 64,
            "device_hmac": "9" * 64,
            "patient_hmac": "c" * 64,
            "study_hmac": "d" * 64,
            "series_hmac": "e" * 64,
            "instance_hmac": None,
        },
        "candidate": None,
        "regions": [{"kind": "pathology", "file_sha256": None, "regions": 1}],
    },
    "profile": {
        "name": "ct",
        "version": "1.0",
        "sha256": "0" * 64,
        "status": "provisional",
        "caution": None,
    },
    "metric": {
        "name": "lpips",
        "backbone": "gray",
        "version": "1",
        "weights_sha256": "1" * 64,
        "relative_error": 0.08,
        "region_relative_error": 0.2,
        "precision": "float32",
        "device": "cpu",
    },
    "limits": [
        {
            "name": "diagnostic",
            "value": 0.1,
            "bound": "at_most",
            "unit": "LPIPS",
            "source": "somewhere",
            "date": "2026-01-01",
            "status": "provisional",
        }
    ],
    "base_lpips_score": 0.034,
    "aggregate": "p95",
    "diagnostic_quality": True,
    "screening_quality": True,
    "windows": [{"name": "lung", "low": -1350.0, "high": 150.0, "lpips": 0.034}],
    "slices": [{"index": 0, "lpips": 0.034, "window": "lung"}],
    "pathology_preservation": {
        "pathology_lpips": 0.06,
        "pathology_coverage": 0.25,
        "weighted_pathology_score": 0.075,
        "pathology_preserved": True,
        "masked_lpips": 0.001,
        "components": [
            {
                "name": "nodule",
                "lpips": 0.06,
                "slice": 0,
                "window": "lung",
                "pixels": 9,
                "bbox": [1, 2, 4, 5],
                "code": None,
            }
        ],
    },
    "annotation_preservation": [
        {
            "annotation_type": "arrow",
            "lpips_score": 0.01,
            "preserved": True,
            "slice": 1,
            "window": "lung",
            "pixels": 4,
            "bbox": [1, 2, 3, 4],
            "code": {"value": "4147007", "scheme": "SCT", "meaning": "Mass"},
        }
    ],
    "clinical_suitability": {
        "suitable_for_diagnosis": True,
        "suitable_for_screening": True,
        "requires_expert_review": False,
    },
    "metrics": {"ssim": 0.99, "psnr_db": None, "edge_fidelity": 0.93},
    "not_measured": {"dists": "the weights of VGG-16 are not on this machine"},
    "gates": [
        {
            "measure": "edge_fidelity",
            "value": 0.93,
            "slice": 0,
            "window": "lung",
            "diagnostic": True,
            "screening": True,
        }
    ],
    "composite": {
        "value": 0.97,
        "words": "excellent",
        "parts": {"lpips": 0.5, "ssim": 0.5},
        "alert": "none",
    },
    "planes": {
        "planes": [{"plane": "axial", "lpips": 0.03, "slices": 10, "window": "lung"}],
        "mean": 0.03,
        "stride": 4,
    },
    "verdict": "diagnostic",
    "reasons": [
        {"text": "Whole image: …", "value": 0.034, "limit": 0.1, "place": "whole image"},
    ],
    "origin": "tests",
    "correlation_id": "7",
}


def validator() -> Draft202012Validator:
    return Draft202012Validator(schema(), format_checker=FormatChecker())


def changed(path: str, value: object) -> dict[str, Any]:
    """A copy of RECORD with one value replaced; `path` is dotted."""
    copy: dict[str, Any] = json.loads(json.dumps(RECORD))
    *parents, last = path.split(".")
    at: Any = copy
    for key in parents:
        at = at[int(key) if key.isdigit() else key]
    at[last] = value
    return copy


def test_schema_is_valid_draft_2020_12() -> None:
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema())


def test_record_fits_the_schema_and_comes_back_unchanged() -> None:
    validator().validate(RECORD)
    assessment = Assessment.model_validate_json(json.dumps(RECORD))
    assert json.loads(assessment.model_dump_json()) == RECORD
    assert Assessment.model_validate_json(assessment.model_dump_json()) == assessment
    assert assessment.created_at == datetime(2026, 3, 1, 1, 30, tzinfo=UTC)
    assert assessment.evidence == ()


WRONG = [
    ("surprise", 1),
    ("inputs.surprise", 1),
    ("inputs.reference.patient_name", "Doe^Jane"),
    ("metric.surprise", 1),
    ("limits.0.surprise", 1),
    ("reasons.0.surprise", 1),
    ("verdict", "fine"),
    ("base_lpips_score", -0.01),
    ("slices.0.index", -1),
    ("profile.sha256", "A" * 64),
    ("profile.sha256", "a" * 63),
    ("profile.status", "proven"),
    ("inputs.reference.shape", [64, 64]),
    ("pathology_preservation.pathology_coverage", 0.0),
    ("pathology_preservation.pathology_coverage", 1.01),
    ("pathology_preservation.components.0.pixels", 0),
    ("metrics.ssim", "high"),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_model_and_schema_refuse_the_same(path: str, value: object) -> None:
    record = changed(path, value)
    assert not validator().is_valid(record)
    with pytest.raises(ValidationError):
        Assessment.model_validate_json(json.dumps(record))


@pytest.mark.parametrize("missing", ["inputs", "verdict", "reasons", "profile", "metric"])
def test_nothing_that_the_verdict_rests_on_may_be_left_out(missing: str) -> None:
    record = {key: value for key, value in RECORD.items() if key != missing}
    assert not validator().is_valid(record)
    with pytest.raises(ValidationError):
        Assessment.model_validate_json(json.dumps(record))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "path",
    [
        "base_lpips_score",
        "metrics.ssim",
        "metric.relative_error",
        "windows.0.low",
        "reasons.0.value",
    ],
)
def test_no_nan_and_no_infinity(path: str, number: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Assessment.model_validate(changed(path, number))


@given(st.floats(0.0, 1e300), st.floats(allow_nan=False, allow_infinity=False))
def test_no_digit_is_lost(distance: float, low: float) -> None:
    window = WindowScore(name="w", low=low, high=None, lpips=distance)
    assert WindowScore.model_validate_json(window.model_dump_json()) == window


def test_a_record_cannot_be_changed() -> None:
    assessment = Assessment.model_validate(RECORD)
    with pytest.raises(ValidationError, match="frozen"):
        assessment.verdict = "unsuitable"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        assessment.limits[0].value = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(("diagnosis", "screening"), [(True, True), (False, True), (False, False)])
def test_meets(diagnosis: bool, screening: bool) -> None:
    record = changed("clinical_suitability.suitable_for_diagnosis", diagnosis)
    record["clinical_suitability"]["suitable_for_screening"] = screening
    assessment = Assessment.model_validate(record)
    assert assessment.meets("diagnostic") is diagnosis
    assert assessment.meets("screening") is screening
