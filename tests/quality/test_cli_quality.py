"""`medqa qc` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from medqa.audit import Store
from medqa.cli.quality import qc
from medqa.errors import UsageError
from medqa.quality.record import history

_app = typer.Typer()
_app.command()(qc)
_CT = "ts/ct_all_syntaxes/CT2_J2KR"
_MR = "mr/uih_t1/00000004.dcm"
_PLAN = "rt/rtplan.dcm"


def _qc(*arguments: object) -> Result:
    return CliRunner().invoke(_app, [str(one) for one in arguments])


def test_one_image_is_shown_paged_and_recorded(shared_data: Path, tmp_path: Path) -> None:
    db, out = tmp_path / "qc.db", tmp_path / "out"
    result = _qc(shared_data / _CT, "--db", db, "--out", out)
    assert result.exit_code == 0, result.output
    assert "noise_tissue" in result.output
    assert "lp/mm" in result.output
    assert [one.name for one in out.iterdir()] == ["001.html"]
    with Store.open(str(db)) as store:
        (record,) = history(store)
    assert record.quality_id in result.output
    assert record.device_hmac
    assert str(shared_data) not in record.model_dump_json()


def test_several_have_a_page_of_the_group(shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = _qc(shared_data / _CT, shared_data / _MR, "--out", out, "--no-record")
    assert result.exit_code == 0, result.output
    assert sorted(one.name for one in out.iterdir()) == ["001.html", "002.html", "index.html"]
    assert "uih_t1/00000004.dcm" in result.output
    assert "MR HEAD GR+IR" in result.output
    assert not list(tmp_path.glob("**/*.db"))


def test_json_is_the_records_and_nothing_else(shared_data: Path) -> None:
    result = _qc(shared_data / _CT, "--json", "--no-record")
    (record,) = json.loads(result.stdout)
    assert record["study_type"] == "CT FC21"
    assert {one["name"] for one in record["measures"]} >= {"noise", "mtf50", "summary"}
    assert record["device_hmac"] is None  # without a record there is no key


def test_what_cannot_be_read_is_exit_code_2_and_stops_nothing(
    shared_data: Path, tmp_path: Path
) -> None:
    db = tmp_path / "qc.db"
    result = _qc(shared_data / _PLAN, shared_data / _MR, tmp_path / "none", "--db", db)
    assert result.exit_code == 2
    assert "holds no pixel data" in result.stderr
    assert "does not exist" in result.stderr
    with Store.open(str(db)) as store:
        assert [one.study_type for one in history(store)] == ["MR HEAD GR+IR"]


def test_regions_measure_contrast_between_them(shared_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "regions.json"
    boxes = [
        {"type": "brain", "bbox": [200, 200, 220, 220]},
        {"type": "bone", "bbox": [240, 90, 275, 125]},
    ]
    file.write_text(json.dumps({"annotations": boxes}))
    result = _qc(shared_data / _CT, "--regions", file, "--json", "--no-record")
    assert result.exit_code == 0, result.output
    found = {one["name"]: one for one in json.loads(result.stdout)[0]["measures"]}
    assert found["cnr_regions"]["value"] > 0
    assert found["cnr_regions"]["detail"] == "400 pixels against 1225, over the spread of these"


def test_regions_are_of_one_image(shared_data: Path) -> None:
    result = _qc(shared_data / _CT, shared_data / _MR, "--regions", "r.json", "--no-record")
    assert isinstance(result.exception, UsageError)


@pytest.mark.parametrize("option", ["--db", "--out", "--no-record", "--json", "--regions"])
def test_help_names_the_options(option: str) -> None:
    assert option in _qc("--help").output
