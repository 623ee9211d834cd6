"""Oracles: plain SQL through sqlite3 and psycopg, pydantic's serialiser, the kernel.

Everything runs on SQLite; on PostgreSQL too, in a throw-away cluster, where it is installed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pwd
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from auditing import REFUSED, assessment, not_assessable, plain
from sqlalchemy import text

from medqa.assessment import Verdict
from medqa.audit import Store, canonical_json, pseudonym, verify
from medqa.audit.keys import pseudonym_key, rotate_pseudonym_key
from medqa.errors import StoreError

# Adding and reading.


def test_what_was_added_comes_back(url: str) -> None:
    one, other = assessment(), not_assessable()
    with Store.open(url) as store:
        store.add(one)
        store.add(other)
    with Store.open(url) as store:
        assert store.get(one.assessment_id) == one
        assert store.get(other.assessment_id) == other


def test_columns_and_record_as_another_client_sees_them(url: str) -> None:
    one = assessment()
    with Store.open(url) as store:
        store.add(one)
    [row] = plain(
        url,
        "SELECT sequence, assessment_id, verdict, modality, profile_name, backbone, "
        "base_lpips_score, reference_sha256, candidate_sha256, study_hmac, origin "
        "FROM assessments",
    )
    assert row == (
        *(1, one.assessment_id, "diagnostic", "CT", "ct", "gray", 0.30000000000000004),
        *("a" * 64, "b" * 64, "e" * 64, "tests"),
    )
    [(record,)] = plain(url, "SELECT record FROM assessments")
    assert json.loads(record) == json.loads(one.model_dump_json())
    assert record == canonical_json(one)


def test_time_is_utc(url: str) -> None:
    with Store.open(url) as store:
        store.add(assessment())  # 01:30 at +02:00
    in_utc = "created_at AT TIME ZONE 'UTC'" if "://" in url else "created_at"
    [(when,)] = plain(url, f"SELECT CAST({in_utc} AS text) FROM assessments")  # noqa: S608
    assert when.startswith("2026-02-28 23:30:00")


def test_canonical_json_is_sorted_dense_and_keeps_letters() -> None:
    record = canonical_json(assessment("0" * 32))
    keys = list(json.loads(record))
    assert keys == sorted(keys)
    assert '"base_lpips_score":0.30000000000000004,' in record
    assert "Ganzes Bild: 0,03 ≤ 0,10 – “gut”" in record


def test_list_is_newest_first(url: str) -> None:
    verdicts: list[Verdict] = ["diagnostic", "unsuitable", "diagnostic", "expert_review"]
    many = [assessment(verdict=verdict) for verdict in verdicts]
    with Store.open(url) as store:
        assert store.list() == ()
        for one in many:
            store.add(one)
        assert store.list() == tuple(reversed(many))
        assert store.list(limit=2) == (many[3], many[2])
        assert store.list(verdict="diagnostic") == (many[2], many[0])
        assert store.list(verdict="not_assessable") == ()


def test_get_by_the_beginning_of_an_id(url: str) -> None:
    first, second = assessment("abcdef0123456789"), assessment("abcdef0199999999")
    whole = assessment("abcdef01")
    with Store.open(url) as store:
        store.add(first)
        store.add(second)
        assert store.get("abcdef012") == first
        with pytest.raises(StoreError, match="more than one"):
            store.get("abcdef01")
        store.add(whole)
        assert store.get("abcdef01") == whole


@pytest.mark.parametrize(
    "wrong", ["abcdef0", "", "ABCDEF012", "%%%%%%%%", "________", "ffffffffff", "' OR '1'='1"]
)
def test_get_what_is_not_there(url: str, wrong: str) -> None:
    with Store.open(url) as store:
        store.add(assessment("abcdef0123456789"))
        with pytest.raises(StoreError, match="is no assessment"):
            store.get(wrong)


def test_an_id_is_there_once(url: str) -> None:
    one = assessment()
    with Store.open(url) as store:
        store.add(one)
        with pytest.raises(StoreError) as caught:
            store.add(one)
        assert "c" * 64 not in str(caught.value)  # the record's values stay out of messages
        assert store.list() == (one,)


def test_record_of_a_later_version_is_not_misread(url: str) -> None:
    with Store.open(url) as store:
        plain(
            url,
            "INSERT INTO assessments (sequence, assessment_id, created_at, verdict, record) "
            "VALUES (1, 'later-0001', '2026-01-01 00:00:00', 'diagnostic', '{\"verdict\": 7}')",
        )
        with pytest.raises(StoreError, match="does not understand"):
            store.get("later-0001")


# Who, when and why.


def test_an_entry_says_who_when_and_why(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = datetime.now(UTC)
    with Store.open(url) as store:
        plainly = store.add(assessment())
        named = store.add(assessment(), actor="Dr. Ada", reason="first reading")
        monkeypatch.setenv("MEDQA_USER", "orthanc")
        told = store.add(assessment())
    user = pwd.getpwuid(os.geteuid()).pw_name
    account = "medqa" if "://" in url else user
    assert [one.actor for one in (plainly, named, told)] == [user, "Dr. Ada", "orthanc"]
    assert {one.account for one in (plainly, named, told)} == {account}
    assert [one.reason for one in (plainly, named, told)] == [None, "first reading", None]
    assert [one.sequence for one in (plainly, named, told)] == [2, 3, 4]
    for one in (plainly, named, told):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", one.recorded_at)
        when = datetime.fromisoformat(one.recorded_at)
        assert before - timedelta(seconds=1) < when < datetime.now(UTC) + timedelta(seconds=1)
    query = "SELECT actor, account, reason FROM audit_entries WHERE sequence = 3"
    assert plain(url, query) == [("Dr. Ada", account, "first reading")]


def test_time_is_the_servers_not_this_machines(
    postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(postgresql) as store:
        monkeypatch.setenv("PGTZ", "Asia/Tokyo")
        entry = store.add(assessment())
    [(behind,)] = plain(
        postgresql, "SELECT clock_timestamp() - max(recorded_at)::timestamptz FROM audit_entries"
    )
    assert timedelta(0) < behind < timedelta(seconds=5)
    assert entry.recorded_at.endswith("Z")


def test_text_that_is_not_unicode_is_refused_and_leaves_nothing(url: str) -> None:
    with Store.open(url) as store:
        with pytest.raises(StoreError, match="canonical JSON"):
            store.add(assessment(), reason="\udc80")  # a byte of the command line, undecoded
        assert store.list() == ()
        assert verify(store).entries == 1


# Corrections.


def test_a_correction_names_what_it_supersedes_once(url: str) -> None:
    old, new, other = assessment(), assessment(), assessment()
    with Store.open(url) as store:
        store.add(old)
        store.add(new, supersedes=old.assessment_id[:10], reason="wrong mask")
        with pytest.raises(StoreError, match=f"superseded by {new.assessment_id} already"):
            store.add(other, supersedes=old.assessment_id)
        with pytest.raises(StoreError, match="is no assessment"):
            store.add(other, supersedes="ffffffff")
        assert store.list() == (new, old)
        store.add(other, supersedes=new.assessment_id)
    pairs = "SELECT assessment_id, supersedes FROM assessments ORDER BY sequence"
    assert plain(url, pairs) == [
        (old.assessment_id, None),
        (new.assessment_id, old.assessment_id),
        (other.assessment_id, new.assessment_id),
    ]


# Attacks with plain SQL.


CHANGES = [
    "UPDATE assessments SET verdict = 'diagnostic'",
    "UPDATE assessments SET record = '{}' WHERE sequence = 1",
    "DELETE FROM assessments",
    "INSERT INTO assessments SELECT * FROM assessments WHERE true "
    "ON CONFLICT (assessment_id) DO UPDATE SET verdict = 'diagnostic'",
    "UPDATE audit_entries SET actor = 'somebody else'",
    "DELETE FROM audit_entries WHERE sequence = 2",
    "INSERT INTO audit_entries SELECT * FROM audit_entries WHERE true "
    "ON CONFLICT (sequence) DO UPDATE SET body = '{}'",
]
CHANGES_OF_SQLITE = [
    "REPLACE INTO assessments SELECT * FROM assessments",
    "INSERT OR REPLACE INTO assessments "
    "SELECT 99, assessment_id, created_at, 'diagnostic', modality, profile_name, backbone, "
    "base_lpips_score, reference_sha256, candidate_sha256, study_hmac, origin, '{}', NULL "
    "FROM assessments",
    "INSERT OR REPLACE INTO assessments (sequence, assessment_id, created_at, verdict, record) "
    "VALUES (1, 'other', '2026-01-01', 'diagnostic', '{}')",
    "UPDATE OR REPLACE assessments SET verdict = 'diagnostic'",
    "INSERT OR REPLACE INTO assessments (sequence, assessment_id, created_at, verdict, record, "
    "supersedes) VALUES (9, 'other', '2026-01-01', 'diagnostic', '{}', 'old-0001')",
    "REPLACE INTO audit_entries SELECT * FROM audit_entries",
    "INSERT OR REPLACE INTO audit_entries SELECT 9, kind, assessment_id, recorded_at, 'other', "
    "account, reason, body, previous_sha256, sha256 FROM audit_entries WHERE sequence = 3",
]
CHANGES_OF_POSTGRESQL = [
    "TRUNCATE assessments",
    "TRUNCATE audit_entries",
    "DELETE FROM ONLY assessments WHERE false",
    "WITH gone AS (DELETE FROM assessments RETURNING *) SELECT * FROM gone",
]


def attack(url: str, statement: str) -> None:
    one = assessment(verdict="unsuitable")
    both = [
        "SELECT * FROM assessments ORDER BY sequence",
        "SELECT * FROM audit_entries ORDER BY sequence",
    ]
    with Store.open(url) as store:
        store.add(assessment("old-0001"))
        store.add(one, supersedes="old-0001")
    before = [plain(url, query) for query in both]
    with pytest.raises(Exception, match=REFUSED):
        plain(url, statement)
    assert [plain(url, query) for query in both] == before
    with Store.open(url) as store:
        assert store.get(one.assessment_id) == one


@pytest.mark.parametrize("statement", CHANGES)
def test_a_row_cannot_be_changed(url: str, statement: str) -> None:
    attack(url, statement)


@pytest.mark.parametrize("statement", CHANGES_OF_SQLITE)
def test_a_row_cannot_be_changed_in_sqlite(sqlite: str, statement: str) -> None:
    attack(sqlite, statement)


@pytest.mark.parametrize("statement", CHANGES_OF_POSTGRESQL)
def test_a_row_cannot_be_changed_in_postgresql(postgresql: str, statement: str) -> None:
    attack(postgresql, statement)


# Opening.


def test_environment_names_the_database(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDQA_DB", f"sqlite:///{sqlite}")
    with Store.open() as store:
        assert store.url_for_people == sqlite
    assert Path(sqlite).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="XDG folders")
def test_default_is_the_users_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDQA_DB", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    Store.open().close()
    assert (tmp_path / "medqa" / "audit.db").exists()


def test_file_is_for_its_owner_only_and_durable(sqlite: str) -> None:
    umask = os.umask(0)
    try:
        with Store.open(sqlite) as store, store.writing() as connection:
            assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL
            assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
            for file in Path(sqlite).parent.iterdir():  # the WAL and its index too
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
    finally:
        os.umask(umask)
    assert plain(sqlite, "PRAGMA journal_mode") == [("wal",)]


@contextmanager
def somebody_else() -> Iterator[None]:
    """Root may write anywhere, so be nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_read_only_file_and_folder_are_refused_at_once() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own is closed to nobody
        folder = Path(name)
        file = folder / "audit.db"
        Store.open(str(file)).close()
        file.chmod(0o444)
        folder.chmod(0o555)
        with somebody_else():
            with pytest.raises(StoreError, match=r"readonly|unable to open"):
                Store.open(str(file))
            with pytest.raises(StoreError, match="Permission denied"):
                Store.open(str(folder / "new.db"))
        folder.chmod(0o755)


def test_what_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "scan.dcm"
    file.write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00" * 1000)
    before = file.read_bytes()
    with pytest.raises(StoreError, match="not a database") as caught:
        Store.open(str(file))
    assert caught.value.subject == str(file)
    assert file.read_bytes() == before
    with pytest.raises(StoreError, match="unable to open"):
        Store.open(str(tmp_path))


SECRET = "hunter2"  # noqa: S105 - opens nothing


@pytest.mark.parametrize(
    "wrong",
    [
        f"mysql://me:{SECRET}@127.0.0.1/qa",
        f"postgresql+psycopg2://me:{SECRET}@127.0.0.1/qa",
        f"postgresql://me:{SECRET}@127.0.0.1:port/qa",
        f"postgresql://me:{SECRET}@127.0.0.1:1/qa",
        f"postgresql://me@127.0.0.1:1/qa?password={SECRET}",
        f"postgresql://me:{SECRET}@127.0.0.1:1/qa?nonsense=1",
        f"://{SECRET}",
        "sqlite://",
        "sqlite:///:memory:",
        ":memory:",
        "sqlite:///audit.db?mode=ro",
    ],
)
def test_wrong_url_is_refused_without_its_password(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError) as caught:
        Store.open(wrong)
    assert SECRET not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_wrong_password_is_refused_and_not_shown(server: str) -> None:
    with pytest.raises(StoreError, match="password authentication failed") as caught:
        Store.open(server.replace("only-here", SECRET) + "/postgres")
    assert SECRET not in str(caught.value)
    assert caught.value.subject.startswith("postgresql+psycopg://medqa:***@127.0.0.1:")


def test_missing_driver_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match="driver is not installed") as caught:
        Store.open("postgresql://me@127.0.0.1:1/qa")
    assert "medqa[postgresql]" in caught.value.mend


# Opening to read.


def test_reading_changes_nothing_and_adds_nothing(url: str) -> None:
    one = assessment()
    with Store.open(url) as store:
        store.add(one)
    with Store.open(url, readonly=True) as store:
        assert store.list() == (one,)
        with pytest.raises(StoreError, match="opened to read"):
            store.add(assessment())
        with pytest.raises(StoreError, match=r"read-?only"), store.reading() as connection:
            connection.execute(text("CREATE TABLE mine (x INTEGER)"))


def test_reading_a_file_that_is_not_there_makes_none(sqlite: str) -> None:
    with pytest.raises(StoreError, match="no such database"):
        Store.open(sqlite, readonly=True)
    assert not Path(sqlite).parent.exists()


def test_reading_a_blank_database_says_so(url: str) -> None:
    if "://" not in url:
        Path(url).parent.mkdir()
        Path(url).touch()
    with pytest.raises(StoreError, match="holds no audit record"):
        Store.open(url, readonly=True)


def test_a_reader_keeps_no_writer_waiting(url: str) -> None:
    with Store.open(url) as store:
        store.add(assessment())
        with store.reading() as connection:
            count = text("SELECT count(*) FROM assessments")
            assert connection.scalar(count) == 1
            store.add(assessment())
            assert connection.scalar(count) == 1  # still as of one moment
        assert len(store.list()) == 2


# Several processes.


def _add_many(url: str, start: Barrier, count: int) -> None:
    start.wait(60)
    with Store.open(url) as store:
        for _ in range(count):
            store.add(assessment())


def test_processes_migrate_and_add_at_the_same_time(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    workers = [context.Process(target=_add_many, args=(url, start, 20)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    for table, rows in (("assessments", 60), ("audit_entries", 61)):
        counted = plain(url, f"SELECT count(*), min(sequence), max(sequence) FROM {table}")  # noqa: S608
        assert counted == [(rows, 1, rows)]
    with Store.open(url, readonly=True) as store:
        assert verify(store).fault is None


def test_records_about_a_patient_are_found_under_every_key(url: str) -> None:
    with Store.open(url) as store:
        for number in range(2):
            code = pseudonym(pseudonym_key(), "p%_")
            made = assessment(f"record-{number:04d}")
            assert made.inputs.reference is not None
            image = made.inputs.reference.model_copy(update={"patient_hmac": code})
            inputs = made.inputs.model_copy(update={"reference": image})
            store.add(made.model_copy(update={"inputs": inputs}))
            rotate_pseudonym_key()
        assert [one.assessment_id for one in store.about("p%_")] == ["record-0001", "record-0000"]
        assert store.about("pxx") == ()
