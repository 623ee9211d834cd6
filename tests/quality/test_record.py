"""Records of quality control stand in the audit chain like every other entry."""

from __future__ import annotations

import datetime
import sqlite3
import uuid
from pathlib import Path

import pytest

from medqa.assessment import ImageInput
from medqa.audit import Store, verify
from medqa.errors import StoreError
from medqa.quality.record import Measured, QualityRecord, add, history


def record(value: float | None = 12.5) -> QualityRecord:
    return QualityRecord(
        quality_id=str(uuid.uuid4()),
        created_at=datetime.datetime(2026, 3, 1, 8, 30, tzinfo=datetime.UTC),
        medqa_version="0.1.0",
        image=ImageInput(
            kind="dicom",
            shape=(1, 64, 64),
            modality="CT",
            unit="HU",
            spacing_mm=None,
            body_part="CHEST",
            transfer_syntax=None,
            file_sha256=None,
            pixels_sha256="ab" * 32,
        ),
        acquired_on=datetime.date(2026, 2, 28),
        device="Maker Model",
        device_hmac="cd" * 32,
        study_type="CT CHEST",
        measures=(Measured(name="noise", value=value, unit="HU", better="lower"),),
    )


def test_records_come_back_in_order_and_the_chain_is_whole(tmp_path: Path) -> None:
    given = [record(12.5), record(None), record(13.25)]
    with Store.open(str(tmp_path / "audit.db")) as store:
        for one in given:
            entry = add(store, one, actor="a.physicist")
            assert (entry.kind, entry.actor) == ("quality", "a.physicist")
        assert list(history(store)) == given
        assert verify(store).fault is None
        assert store.list() == ()


def test_a_changed_record_is_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with Store.open(str(path)) as store:
        add(store, record(12.5))
        add(store, record(13.25))
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER audit_entries_refuse_update")
        connection.execute(
            "UPDATE audit_entries SET body = replace(body, '12.5', '11.5') WHERE sequence = 2"
        )
    with Store.open(str(path), readonly=True) as store:
        found = verify(store)
        assert found.fault is not None
        assert found.fault.sequence == 2


def test_a_record_of_a_newer_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with Store.open(str(path)) as store:
        add(store, record())
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER audit_entries_refuse_update")
        newer = """UPDATE audit_entries SET body = '{"new": 1}' WHERE kind = 'quality'"""
        connection.execute(newer)
    with (
        Store.open(str(path), readonly=True) as store,
        pytest.raises(StoreError, match="does not understand"),
    ):
        list(history(store))
