"""Roles as the database enforces them, with real roles of PostgreSQL."""

from __future__ import annotations

import secrets

import pytest
from auditing import REFUSED, assessment, plain

from medqa.assessment import Job
from medqa.audit import Store, sign, verify
from medqa.audit.roles import grants
from medqa.errors import StoreError
from medqa.queue import counts, enqueue, finish, lease


@pytest.fixture
def roles(postgresql: str) -> dict[str, str]:
    """URL of each role; the owner has made the tables and given the rights, twice."""
    Store.open(postgresql).close()
    names = [f"{role} {secrets.token_hex(4)}" for role in ("reader", "writer", "reviewer")]
    for name in names:
        plain(postgresql, f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'only-here'")
    for _ in range(2):
        plain(postgresql, grants(*names))
    urls = [postgresql.replace("medqa:", f"{name.replace(' ', '%20')}:") for name in names]
    return dict(zip(("reader", "writer", "reviewer"), urls, strict=True)) | {"owner": postgresql}


def test_a_reader_reads_and_adds_nothing(roles: dict[str, str]) -> None:
    one = assessment()
    with Store.open(roles["writer"]) as store:
        store.add(one)
    with Store.open(roles["reader"], readonly=True) as store:
        assert store.list() == (one,)
        found = verify(store)
        assert found.fault is None
        assert found.entries == 2
    with pytest.raises(StoreError, match="permission denied"):
        Store.open(roles["reader"])
    for table in ("assessments", "audit_entries"):
        with pytest.raises(Exception, match="permission denied"):
            plain(roles["reader"], f"INSERT INTO {table} SELECT * FROM {table}")  # noqa: S608


def test_a_writer_adds_and_does_not_sign(roles: dict[str, str]) -> None:
    with Store.open(roles["writer"]) as store:
        entry = store.add(assessment("record-0002"))
        assert entry.account.startswith("writer ")
        with pytest.raises(StoreError, match="row-level security"):
            sign(store, "record-0002", "approved", "fine")
        assert verify(store).entries == 2


def test_a_writer_has_the_queue_and_a_reader_looks_at_it(roles: dict[str, str]) -> None:
    job = Job(reference="r", candidate="c")
    with Store.open(roles["writer"]) as store:
        enqueue(store, job, "k")
        leased = lease(store, "w")
        assert leased is not None
        one = assessment()
        store.add(one, beside=lambda c: finish(c, leased, one.assessment_id))
    with Store.open(roles["reader"], readonly=True) as store:
        assert counts(store)["done"] == 1
    with pytest.raises(Exception, match="permission denied"):
        plain(roles["reader"], "DELETE FROM jobs")


def test_a_reviewer_signs_under_their_own_name(roles: dict[str, str]) -> None:
    with Store.open(roles["writer"]) as store:
        store.add(assessment("record-0002"))
    with Store.open(roles["reviewer"]) as store:
        entry = sign(store, "record-0002", "approved", "fine", actor="Dr. Ada")
        assert entry.account.startswith("reviewer ")
        assert verify(store).signatures == 1


def test_nobody_signs_in_anothers_name(roles: dict[str, str]) -> None:
    with Store.open(roles["writer"]) as store:
        store.add(assessment("record-0002"))
    with pytest.raises(Exception, match="must be the role that adds it"):
        plain(
            roles["reviewer"],
            "INSERT INTO audit_entries SELECT 3, 'signature', assessment_id, recorded_at, actor, "
            "account, reason, body, sha256, sha256 FROM audit_entries WHERE sequence = 2",
        )


@pytest.mark.parametrize("role", ["reader", "writer", "reviewer"])
def test_no_role_changes_or_removes(roles: dict[str, str], role: str) -> None:
    with Store.open(roles["owner"]) as store:
        store.add(assessment())
    for table in ("assessments", "audit_entries"):
        for statement in (
            f"UPDATE {table} SET sequence = 9",  # noqa: S608
            f"DELETE FROM {table}",  # noqa: S608
            f"TRUNCATE {table}",
        ):
            with pytest.raises(Exception, match="permission denied"):
                plain(roles[role], statement)
            with pytest.raises(Exception, match=REFUSED):
                plain(roles["owner"], statement)
        with pytest.raises(Exception, match="must be owner"):
            plain(roles[role], f"DROP TRIGGER {table}_refuse ON {table}")
        with pytest.raises(Exception, match="must be owner"):
            plain(roles[role], f"ALTER TABLE {table} DISABLE TRIGGER ALL")
    with pytest.raises(Exception, match="must be owner"):
        plain(roles[role], "ALTER TABLE audit_entries DISABLE ROW LEVEL SECURITY")


def test_a_role_that_may_not_add_is_told_so_when_it_opens(roles: dict[str, str]) -> None:
    """Not only at the first assessment, when the work is done."""
    for table in ("assessments", "audit_entries"):
        plain(roles["owner"], f"REVOKE INSERT ON {table} FROM PUBLIC")
        name = f"half {secrets.token_hex(4)}"
        plain(roles["owner"], f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'only-here'")
        plain(roles["owner"], f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{name}"')
        plain(roles["owner"], f'GRANT INSERT ON {table} TO "{name}"')
        url = roles["owner"].replace("medqa:", f"{name.replace(' ', '%20')}:")
        with pytest.raises(StoreError, match="permission denied"):
            Store.open(url)
