"""Oracles: plain SQL through sqlite3 and psycopg, pydantic's serialiser, RFC 4231, the kernel.

Everything runs on SQLite; on PostgreSQL too, in a throw-away cluster, where it is installed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

import medqa.audit
from medqa.assessment import (
    Assessment,
    ClinicalSuitability,
    ImageInput,
    Inputs,
    MetricRef,
    ProfileRef,
    Reason,
    Verdict,
)
from medqa.audit import Store, canonical_json, pseudonym
from medqa.errors import StoreError

REFUSED = "the audit record cannot be changed"


def image(pixels: str) -> ImageInput:
    return ImageInput(
        kind="dicom",
        shape=(1, 64, 64),
        modality="CT",
        unit="HU",
        spacing_mm=(0.0, 0.7, 0.7),
        body_part=None,
        transfer_syntax="1.2.840.10008.1.2.1",
        file_sha256=None,
        pixels_sha256=pixels * 64,
        study_hmac="e" * 64,
    )


def assessment(identity: str | None = None, verdict: Verdict = "diagnostic") -> Assessment:
    return Assessment(
        assessment_id=identity or secrets.token_hex(16),
        created_at=datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2))),
        medqa_version="0.1.0",
        inputs=Inputs(reference=image("a"), candidate=image("b")),
        profile=ProfileRef(name="ct", version="1.0", sha256="c" * 64, status="provisional"),
        metric=MetricRef(backbone="gray", version="1", weights_sha256="d" * 64),
        base_lpips_score=0.1 + 0.2,  # 0.30000000000000004: no digit may be lost
        clinical_suitability=ClinicalSuitability(
            suitable_for_diagnosis=True, suitable_for_screening=True, requires_expert_review=False
        ),
        metrics={"ssim": 1 / 3, "psnr_db": None},
        verdict=verdict,
        reasons=(Reason(text="Ganzes Bild: 0,03 ≤ 0,10 – “gut”"),),
        origin="tests",
    )


def not_assessable() -> Assessment:
    return Assessment(
        assessment_id=secrets.token_hex(16),
        created_at=datetime.now(UTC),
        medqa_version="0.1.0",
        inputs=Inputs(reference=None, candidate=None),
        profile=None,
        metric=None,
        clinical_suitability=ClinicalSuitability(
            suitable_for_diagnosis=False,
            suitable_for_screening=False,
            requires_expert_review=False,
        ),
        verdict="not_assessable",
        reasons=(Reason(text="unreadable"),),
    )


# The two databases.


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL, without a database, of a PostgreSQL cluster that lives as long as the tests."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        reason = "no PostgreSQL server under /usr/lib/postgresql (apt-get install postgresql)"
        if os.environ.get("MEDQA_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    # PostgreSQL refuses to run as root.
    account: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []}
    account = account if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="medqa-pg-") as name:
        folder = Path(name)
        password = folder / "password"
        password.write_text("only-here")
        if account:
            for path in (folder, password):
                os.chown(path, *_ids("postgres"))

        def run(program: str, *arguments: str) -> None:
            subprocess.run(  # noqa: S603 - a program of the system's own
                [found[-1].with_name(program), "-D", folder / "data", *arguments],
                check=True,
                cwd=folder,
                stdout=subprocess.DEVNULL,
                timeout=120,
                **account,
            )

        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        run("initdb", "-U", "medqa", "-A", "scram-sha-256", "--pwfile", str(password), "-N")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", options)
        try:
            yield f"postgresql://medqa:only-here@127.0.0.1:{port}"
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate")


def _ids(user: str) -> tuple[int, int]:
    import pwd  # not on Windows

    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


@pytest.fixture
def postgresql(server: str) -> str:
    """URL of a blank PostgreSQL database."""
    name = f"db_{secrets.token_hex(8)}"
    plain(f"{server}/postgres", f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
    return f"{server}/{name}"


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    """Path of an SQLite file that is not there yet."""
    return str(tmp_path / "new" / "audit.db")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def plain(url: str, statement: str) -> list[tuple[Any, ...]]:
    """What anybody with the database's own client could do: no code of medqa takes part."""
    if "://" not in url:
        with closing(sqlite3.connect(url, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


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
            "INSERT INTO assessments (assessment_id, created_at, verdict, record) "
            "VALUES ('later-0001', '2026-01-01 00:00:00', 'diagnostic', '{\"verdict\": 7}')",
        )
        with pytest.raises(StoreError, match="does not understand"):
            store.get("later-0001")


# Attacks with plain SQL.


CHANGES = [
    "UPDATE assessments SET verdict = 'diagnostic'",
    "UPDATE assessments SET record = '{}' WHERE sequence = 1",
    "DELETE FROM assessments",
    "INSERT INTO assessments SELECT * FROM assessments WHERE true "
    "ON CONFLICT (assessment_id) DO UPDATE SET verdict = 'diagnostic'",
]
CHANGES_OF_SQLITE = [
    "REPLACE INTO assessments SELECT * FROM assessments",
    "INSERT OR REPLACE INTO assessments "
    "SELECT 99, assessment_id, created_at, 'diagnostic', modality, profile_name, backbone, "
    "base_lpips_score, reference_sha256, candidate_sha256, study_hmac, origin, '{}' "
    "FROM assessments",
    "INSERT OR REPLACE INTO assessments (sequence, assessment_id, created_at, verdict, record) "
    "VALUES (1, 'other', '2026-01-01', 'diagnostic', '{}')",
    "UPDATE OR REPLACE assessments SET verdict = 'diagnostic'",
]
CHANGES_OF_POSTGRESQL = [
    "TRUNCATE assessments",
    "DELETE FROM ONLY assessments WHERE false",
    "WITH gone AS (DELETE FROM assessments RETURNING *) SELECT * FROM gone",
]


def attack(url: str, statement: str) -> None:
    one = assessment(verdict="unsuitable")
    with Store.open(url) as store:
        store.add(one)
    before = plain(url, "SELECT * FROM assessments")
    with pytest.raises(Exception, match=REFUSED):
        plain(url, statement)
    assert plain(url, "SELECT * FROM assessments") == before
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


# Schema.


def test_blank_database_is_migrated_once(url: str) -> None:
    for _ in range(2):
        Store.open(url).close()
        assert plain(url, "SELECT version_num FROM medqa_schema_version") == [("0001",)]


def test_migrations_and_model_describe_the_same_table(url: str) -> None:
    Store.open(url).close()
    engine = create_engine(medqa.audit._parse_url(url))
    with closing(engine.connect()) as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": "medqa_schema_version", "compare_type": True}
        )
        assert compare_metadata(context, medqa.audit._Base.metadata) == []
    engine.dispose()


def test_newer_schema_is_left_alone(url: str) -> None:
    Store.open(url).close()
    plain(url, "UPDATE medqa_schema_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="newer than this version") as caught:
        Store.open(url)
    assert caught.value.mend == "update medqa"
    assert plain(url, "SELECT version_num FROM medqa_schema_version") == [("9999",)]


def test_failed_migration_leaves_no_trace(url: str) -> None:
    if "://" not in url:
        Path(url).parent.mkdir()
    plain(url, "CREATE TABLE assessments (mine text)")
    with pytest.raises(StoreError, match="already exists"):
        Store.open(url)
    catalogue = "pg_tables WHERE schemaname = 'public'" if "://" in url else "sqlite_master"
    assert plain(url, f"SELECT count(*) FROM {catalogue}") == [(1,)]  # noqa: S608


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
        with Store.open(sqlite) as store, store._transaction() as session:
            assert session.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL
            assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1
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


def test_a_role_needs_to_add_and_to_read_only(postgresql: str) -> None:
    """The role that medqa runs under need not own the table, whose triggers it then cannot drop."""
    Store.open(postgresql).close()
    reader, writer = f"reader_{secrets.token_hex(4)}", f"writer_{secrets.token_hex(4)}"
    for role in (reader, writer):
        plain(postgresql, f"CREATE ROLE {role} LOGIN PASSWORD 'only-here'")
        plain(postgresql, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    plain(postgresql, f"GRANT INSERT ON assessments TO {writer}")
    plain(postgresql, f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {writer}")
    with Store.open(postgresql.replace("medqa:", f"{writer}:")) as store:
        store.add(assessment())
    with pytest.raises(Exception, match="must be owner"):
        plain(
            postgresql.replace("medqa:", f"{writer}:"),
            "DROP TRIGGER assessments_refuse ON assessments",
        )
    with pytest.raises(StoreError, match="permission denied"):
        Store.open(postgresql.replace("medqa:", f"{reader}:"))


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
    assert plain(url, "SELECT count(*), min(sequence), max(sequence) FROM assessments") == [
        (60, 1, 60)
    ]


# The key.


def test_pseudonym_is_hmac_sha_256() -> None:
    # RFC 4231, test case 2.
    assert pseudonym(b"Jefe", "what do ya want for nothing?") == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MEDQA_KEY", raising=False)
    monkeypatch.setattr(medqa.audit, "_data_folder", lambda: tmp_path / "data")
    return tmp_path / "data"


def test_key_file_is_made_once_for_its_owner(sqlite: str, data_folder: Path) -> None:
    with Store.open(sqlite) as store:
        key = store.key
    file = data_folder / "hmac.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert bytes.fromhex(file.read_text()) == key
    assert len(key) == 32
    assert list(data_folder.iterdir()) == [file]
    with Store.open(sqlite) as store:
        assert store.key == key


def test_key_file_of_another_process_is_not_overwritten(data_folder: Path) -> None:
    file = data_folder / "hmac.key"
    medqa.audit._make_key_file(file)
    first = file.read_text()
    medqa.audit._make_key_file(file)  # both saw none, this one came second
    assert file.read_text() == first
    assert list(data_folder.iterdir()) == [file]


def test_key_of_the_environment(
    sqlite: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDQA_KEY", "0f" * 32)
    with Store.open(sqlite) as store:
        assert store.key == b"\x0f" * 32
    assert not data_folder.exists()


@pytest.mark.parametrize("wrong", ["", "0f" * 31, "0f" * 31 + "x"])
def test_weak_key_is_refused_and_not_shown(
    sqlite: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("MEDQA_KEY", wrong)
    with Store.open(sqlite) as store, pytest.raises(StoreError, match="32 bytes") as caught:
        _ = store.key
    assert not wrong or wrong not in str(caught.value)
    monkeypatch.delenv("MEDQA_KEY")
    data_folder.mkdir()
    (data_folder / "hmac.key").write_text(wrong)
    with Store.open(sqlite) as store, pytest.raises(StoreError, match="32 bytes"):
        _ = store.key


def test_the_newest_migration_is_the_schema_that_is_expected() -> None:
    config = Config()
    config.set_main_option("script_location", "medqa:migrations")
    script = ScriptDirectory.from_config(config)
    assert script.get_current_head() == medqa.audit._SCHEMA_REVISION
