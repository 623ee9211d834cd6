"""Which pairs a table or two folders name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow
import pytest
from batching import make_pairs, write_csv
from pyarrow import parquet

from medqa.assessment import Job
from medqa.batch.table import from_folders, read_table
from medqa.errors import UsageError

TEMPLATE = Job(reference="", candidate="", task="compression", origin="tests")


def test_a_row_says_what_to_assess_and_the_template_the_rest(tmp_path: Path) -> None:
    table = write_csv(
        tmp_path / "t.csv",
        [
            ("candidate", "reference", "mask", "annotations", "profile", "task", "name"),
            ("b/c.dcm", "/else/r.dcm", "m1.nii; m2.nii", "", "own.toml", "denoising", "first"),
            ("c2.dcm", "r,2.dcm", "", "a.json", "", "", ""),
        ],
    )
    found = read_table(table, TEMPLATE)
    first, second = found.rows
    assert found.count == 2
    assert found.profiles == (str(tmp_path / "own.toml"),)
    assert first.job.reference == "/else/r.dcm"
    assert first.job.candidate == str(tmp_path / "b/c.dcm")
    assert first.job.masks == (str(tmp_path / "m1.nii"), str(tmp_path / "m2.nii"))
    assert (first.job.task, first.name, first.number) == ("denoising", "first", 1)
    assert second.job.annotations == (str(tmp_path / "a.json"),)
    assert (second.job.task, second.job.profile, second.job.masks) == ("compression", None, ())
    assert second.job.origin == "tests"
    assert (second.reference, second.number) == ("r,2.dcm", 2)


def test_parquet_is_read_as_csv_is_and_may_hold_lists(tmp_path: Path) -> None:
    columns = {"reference": ["r.dcm"], "candidate": ["c.dcm"], "mask": [["m;1.nii", "m2.nii"]]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    (row,) = read_table(tmp_path / "t.parquet", TEMPLATE).rows
    assert row.job.masks == (str(tmp_path / "m;1.nii"), str(tmp_path / "m2.nii"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("reference", "candidate", "masks"), ("r", "c", "m")], "mean nothing here: masks"),
        ([("reference",), ("r",)], "no column candidate"),
        ([("reference;candidate",), ("r;c",)], "mean nothing here"),
        ([("reference", "candidate"), ("r", "c"), ("r2", "")], "row 2 names no candidate"),
        ([("reference", "candidate", "task"), ("r", "c", "magic")], "'magic' is no task"),
        ([("reference", "candidate")], "names no pair"),
        ([("reference", "candidate"), ("r", "c", "d")], "cannot be read as a table"),
        ([("reference", "candidate", "candidate"), ("r", "c", "d")], "column twice"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(
    tmp_path: Path, rows: list[tuple[str, ...]], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        read_table(write_csv(tmp_path / "t.csv", rows), TEMPLATE)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.xlsx"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\x00PAR1 nothing")
    with pytest.raises(UsageError):
        read_table(tmp_path / name, TEMPLATE)


def test_numbers_are_no_paths(tmp_path: Path) -> None:
    columns = {"reference": [1, 2], "candidate": ["c", "d"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="reference that is not text"):
        read_table(tmp_path / "t.parquet", TEMPLATE)


def test_folders_are_paired_and_what_is_left_over_is_told(tmp_path: Path) -> None:
    make_pairs(tmp_path / "all", 3)
    for kind in "rc":
        (tmp_path / kind).mkdir()
        for number in range(3):
            shutil.copy(tmp_path / "all" / f"{kind}{number}.dcm", tmp_path / kind / f"{number}.dcm")
    (tmp_path / "c" / "2.dcm").unlink()
    content = (tmp_path / "r" / "0.dcm").read_bytes()
    (tmp_path / "r" / "bad.dcm").write_bytes(content[:600])
    found = from_folders(str(tmp_path / "r"), str(tmp_path / "c"), TEMPLATE)
    pairs = [
        (Path(row.job.reference[0]).name, Path(row.job.candidate[0]).name) for row in found.rows
    ]
    assert pairs == [("0.dcm", "0.dcm"), ("1.dcm", "1.dcm")]
    assert found.count == 2
    assert found.damaged
    assert any(line.startswith("2.dcm: no candidate") for line in found.left)
    assert any("bad.dcm" in line for line in found.left)


def test_folders_without_a_pair_are_refused(tmp_path: Path) -> None:
    make_pairs(tmp_path / "all", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError):
        from_folders(str(tmp_path / "all"), str(tmp_path / "empty"), TEMPLATE)
