"""Exports, read back by the standard library and by pyarrow."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from auditing import assessment, not_assessable, plain
from pyarrow import parquet

from medqa.audit import Store, export, sign
from medqa.audit.exports import COLUMNS, Format
from medqa.errors import StoreError

FORMS: list[Format] = ["jsonl", "csv", "parquet"]


def read(file: Path, form: str) -> list[dict[str, Any]]:
    if form == "jsonl":
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    if form == "parquet":
        rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
        return rows
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def fill(store: Store) -> None:
    store.add(assessment("record-0002"), reason='quoted "words", comma\nand a second line; €')
    store.add(not_assessable())
    sign(store, "record-0002", "approved", "fine")


@pytest.mark.parametrize("form", FORMS)
def test_an_export_holds_the_chain_as_it_is_stored(url: str, tmp_path: Path, form: Format) -> None:
    file = tmp_path / "export"
    with Store.open(url) as store:
        fill(store)
        assert export(store, file, form) == 4
    assert list(tmp_path.glob("*export*")) == [file]
    rows = read(file, form)
    assert all(tuple(row) == COLUMNS for row in rows)
    stored = plain(url, "SELECT * FROM audit_entries ORDER BY sequence")
    for row, entry in zip(rows, stored, strict=True):
        there = tuple(row[name] for name in COLUMNS[:10])
        expected = entry if form != "csv" else tuple("" if v is None else str(v) for v in entry)
        assert there == expected
    [(record,)] = plain(url, "SELECT record FROM assessments WHERE sequence = 1")
    assert rows[1]["record"] == record
    assert float(rows[1]["base_lpips_score"]) == 0.30000000000000004
    assert rows[2]["base_lpips_score"] in (None, "")
    assert int(rows[2]["assessment_sequence"]) == 2
    assert rows[3]["record"] in (None, "")


def test_an_export_can_be_verified_without_the_database(url: str, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    with Store.open(url) as store:
        fill(store)
        export(store, file, "jsonl")
    previous = "0" * 64
    for row in read(file, "jsonl"):
        assert row["previous_sha256"] == previous
        covered = {name: row[name] for name in COLUMNS[:9]}
        text = json.dumps(covered, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        previous = hashlib.sha256(text.encode()).hexdigest()
        assert row["sha256"] == previous
        if row["kind"] == "assessment":
            body = json.loads(row["body"])
            assert body["record_sha256"] == hashlib.sha256(row["record"].encode()).hexdigest()
            assert body["columns"]["verdict"] == row["verdict"]
            assert body["columns"]["created_at"] == row["created_at"]


def test_only_what_is_new(url: str, tmp_path: Path) -> None:
    with Store.open(url) as store:
        store.add(assessment())
        time.sleep(0.01)  # SQLite's clock counts milliseconds
        since = store.add(assessment()).recorded_at
        assert export(store, tmp_path / "later", "jsonl", since) == 1
        assert export(store, tmp_path / "none", "jsonl", "9") == 0


@pytest.mark.parametrize("form", FORMS)
def test_batches_join_without_a_seam(sqlite: str, tmp_path: Path, form: Format) -> None:
    with Store.open(sqlite) as store:
        first = store.add(assessment())
    names = ", ".join(COLUMNS[2:10])
    plain(
        sqlite,
        "WITH RECURSIVE n(i) AS (SELECT 3 UNION ALL SELECT i + 1 FROM n WHERE i < 1003) "  # noqa: S608
        f"INSERT INTO audit_entries (sequence, kind, {names}) "
        f"SELECT i, 'signature', {names} FROM n, audit_entries WHERE sequence = 2",
    )
    with Store.open(sqlite, readonly=True) as store:
        assert export(store, tmp_path / "all", form) == 1003
    numbers = [int(row["sequence"]) for row in read(tmp_path / "all", form)]
    assert numbers == list(range(1, 1004))
    assert first.sequence == 2


def test_an_export_replaces_no_file_and_leaves_no_half_one(sqlite: str, tmp_path: Path) -> None:
    file = tmp_path / "export"
    file.write_text("mine")
    with Store.open(sqlite) as store:
        with pytest.raises(StoreError, match="is there already"):
            export(store, file, "csv")
        with pytest.raises(StoreError, match="cannot be written"):
            export(store, tmp_path / "nowhere" / "export", "csv")
    assert file.read_text() == "mine"
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file()) == ["export"]
