"""Migrations from blank and from the earlier schema with data in it, up and down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from auditing import REFUSED, assessment, plain
from sqlalchemy import create_engine

from medqa.assessment import Assessment
from medqa.audit import Store, sign, verify
from medqa.audit.database import (
    SCHEMA_REVISION,
    alembic_config,
    connect,
    parse_url,
    transaction,
)
from medqa.audit.tables import METADATA
from medqa.errors import StoreError


@contextmanager
def migrating(url: str) -> Iterator[Config]:
    """Alembic on the database, in one transaction."""
    engine = connect(parse_url(url), readonly=False)
    with transaction(engine, readonly=False) as connection:
        yield alembic_config(connection, actor="the admin", account="admin")


def old_record(one: Assessment) -> str:
    """What medqa with schema 0001 wrote: sorted, but numbers as Python writes them."""
    return json.dumps(
        one.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )


def add_to_0001(url: str, sequence: int, one: Assessment) -> None:
    """Insert a row as SQLAlchemy did: the time as its own text in SQLite, with a zone else."""
    time = one.created_at.isoformat() if "://" in url else "2026-02-28 23:30:00.000000"
    plain(
        url,
        "INSERT INTO assessments (sequence, assessment_id, created_at, verdict, modality, "
        "base_lpips_score, origin, record) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(sequence, one.assessment_id, time, one.verdict, "CT"),
            *(one.base_lpips_score, one.origin, old_record(one)),
        ),
    )


@pytest.fixture
def old(url: str) -> tuple[str, list[Assessment]]:
    """A database of schema 0001, with the gap that a failed insert leaves in PostgreSQL."""
    if "://" not in url:
        Path(url).parent.mkdir()
    with migrating(url) as config:
        command.upgrade(config, "0001")
    many = [assessment() for _ in range(4)]
    for sequence, one in zip((1, 2, 5, 6), many, strict=True):
        add_to_0001(url, sequence, one)
    return url, many


def test_records_of_before_are_taken_over_in_their_order(
    old: tuple[str, list[Assessment]],
) -> None:
    url, many = old
    rows = plain(url, "SELECT sequence, assessment_id, record FROM assessments ORDER BY sequence")
    with Store.open(url) as store:
        assert store.list() == tuple(reversed(many))
        assert verify(store).fault is None
        new = store.add(assessment())
        assert sign(store, many[0].assessment_id, "reviewed", "seen").sequence == 7
        assert verify(store).assessments == 5
    assert new.sequence == 6
    after = plain(url, "SELECT sequence, assessment_id, record FROM assessments ORDER BY sequence")
    assert after[:4] == rows  # not a character of them is touched
    assert after[4][:2] == (7, new.assessment_id)
    chained = plain(
        url, "SELECT kind, assessment_id, reason, actor FROM audit_entries ORDER BY sequence"
    )
    assert chained[0] == ("genesis", None, None, chained[0][3])
    reason = "taken over from a database without a chain"
    assert [row[:3] for row in chained[1:5]] == [
        ("assessment", one.assessment_id, reason) for one in many
    ]


@pytest.mark.parametrize("change", ["verdict = 'unsuitable'", "record = '{}'", "sequence = 4"])
def test_what_was_taken_over_is_under_the_chain(
    old: tuple[str, list[Assessment]], change: str
) -> None:
    url, many = old
    Store.open(url).close()
    for name in ("assessments_refuse_update", "assessments_refuse"):
        on = " ON assessments" if "://" in url else ""
        plain(url, f"DROP TRIGGER IF EXISTS {name}{on}")
    plain(url, f"UPDATE assessments SET {change} WHERE sequence = 5")  # noqa: S608
    with Store.open(url, readonly=True) as store:
        fault = verify(store).fault
    assert fault is not None
    assert (fault.sequence, fault.assessment_id) == (4, many[2].assessment_id)
    assert fault.what.endswith(change.partition(" ")[0])


def test_many_records_are_taken_over(url: str) -> None:
    if "://" not in url:
        Path(url).parent.mkdir()
    with migrating(url) as config:
        command.upgrade(config, "0001")
    plain(
        url,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1234) "
        "INSERT INTO assessments (sequence, assessment_id, created_at, verdict, record) "
        "SELECT i, 'id-' || i, '2026-01-01 00:00:00.000000', 'diagnostic', '{}' FROM n",
    )
    with Store.open(url) as store:
        found = verify(store)
    assert found.fault is None
    assert found.assessments == 1234


def test_down_and_up_again_with_data(old: tuple[str, list[Assessment]]) -> None:
    url, many = old
    before = plain(url, "SELECT * FROM assessments ORDER BY sequence")
    for _ in range(2):
        with migrating(url) as config:
            command.upgrade(config, "0002")
        with migrating(url) as config:
            command.downgrade(config, "0001")
        assert plain(url, "SELECT * FROM assessments ORDER BY sequence") == before
        with pytest.raises(Exception, match=REFUSED):
            plain(url, "DELETE FROM assessments")
    if "://" in url:
        # What schema 0001 needs to go on: its sequence, after the last number.
        plain(
            url,
            "INSERT INTO assessments (assessment_id, created_at, verdict, record) "
            "VALUES ('later-0001', now(), 'diagnostic', '{}')",
        )
        assert plain(url, "SELECT max(sequence) FROM assessments") == [(7,)]
    with Store.open(url) as store:
        assert verify(store).fault is None
        assert store.get(many[0].assessment_id) == many[0]


def test_down_is_refused_where_it_would_lose_what_was_recorded(
    old: tuple[str, list[Assessment]],
) -> None:
    url, many = old
    with Store.open(url) as store:
        sign(store, many[0].assessment_id, "approved", "looks right")
    with pytest.raises(StoreError, match="1 entries were recorded since"), migrating(url) as config:
        command.downgrade(config, "0001")
    with Store.open(url) as store:
        assert verify(store).signatures == 1


def test_blank_database_is_migrated_once(url: str) -> None:
    for _ in range(2):
        Store.open(url).close()
        assert plain(url, "SELECT version_num FROM medqa_schema_version") == [(SCHEMA_REVISION,)]
        assert plain(url, "SELECT kind FROM audit_entries") == [("genesis",)]


def test_an_older_schema_is_not_read_without_the_right_to_migrate(
    old: tuple[str, list[Assessment]],
) -> None:
    url, _ = old
    with pytest.raises(StoreError, match="schema 0001 is older") as caught:
        Store.open(url, readonly=True)
    assert "medqa doctor" in caught.value.mend


def test_migrations_and_tables_describe_the_same(url: str) -> None:
    Store.open(url).close()
    engine = create_engine(parse_url(url))
    with closing(engine.connect()) as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": "medqa_schema_version", "compare_type": True}
        )
        assert compare_metadata(context, METADATA) == []
    engine.dispose()


@pytest.mark.parametrize("readonly", [False, True])
def test_newer_schema_is_left_alone(url: str, readonly: bool) -> None:
    Store.open(url).close()
    plain(url, "UPDATE medqa_schema_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="newer than this version") as caught:
        Store.open(url, readonly=readonly)
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


def test_the_newest_migration_is_the_schema_that_is_expected() -> None:
    config = Config()
    config.set_main_option("script_location", "medqa:migrations")
    script = ScriptDirectory.from_config(config)
    assert script.get_current_head() == SCHEMA_REVISION
    # Which schema is newer is told by comparing the names.
    names = [one.revision for one in script.walk_revisions()]
    assert names == sorted(names, reverse=True)
