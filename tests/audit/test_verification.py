"""Attacks with plain SQL, after the triggers were dropped: each must be found and named.

Oracle of the digests: `chain_digest` here, of the standard library alone, as docs/audit.md has it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from auditing import assessment, drop_triggers, plain
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medqa.audit import Checkpoint, Store, Verification, sign, verify
from medqa.audit.chain import canonical
from medqa.audit.verification import make_checkpoint
from medqa.errors import StoreError

COLUMNS = (
    *("sequence", "kind", "assessment_id", "recorded_at", "actor", "account", "reason", "body"),
    "previous_sha256",
)
IDS = ["record-0002", "record-0003", "record-0004", "record-0005"]  # named by their entry
KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)


def chain_digest(entry: dict[str, Any]) -> str:
    covered = {name: entry[name] for name in COLUMNS}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def chain_of(url: str) -> list[dict[str, Any]]:
    names = (*COLUMNS, "sha256")
    rows = plain(url, f"SELECT {', '.join(names)} FROM audit_entries ORDER BY sequence")  # noqa: S608
    return [dict(zip(names, row, strict=True)) for row in rows]


@pytest.fixture
def kept(url: str) -> Checkpoint:
    """Checkpoint of a database of four assessments and a signature, whose triggers are gone."""
    with Store.open(url) as store:
        for one in IDS:
            store.add(assessment(one, verdict="unsuitable"), reason="Prüfung “1” \\ \n\t\x07 €")
        sign(store, IDS[1], "rejected", "streaks over the liver")
        checkpoint = make_checkpoint(store, KEY)
    drop_triggers(url)
    return checkpoint


def check(url: str, checkpoint: Checkpoint | None = None) -> Verification:
    with Store.open(url, readonly=True) as store:
        return verify(store, checkpoint, KEY.public_key() if checkpoint else None)


def assert_found(url: str, sequence: int | None, words: str, about: str | None = None) -> None:
    fault = check(url).fault
    assert fault is not None
    assert fault.sequence == sequence
    assert words in fault.what
    if about is not None:
        assert fault.assessment_id == about


def test_a_whole_record(url: str, kept: Checkpoint) -> None:
    found = check(url, kept)
    assert found.fault is None
    assert (found.entries, found.assessments, found.signatures) == (6, 4, 1)
    assert (found.sequence, found.sha256) == (kept.sequence, kept.sha256)
    with Store.open(url) as store:
        store.add(assessment())
    assert check(url, kept).fault is None  # a checkpoint holds for what came after it


def test_digests_can_be_computed_with_the_standard_library(url: str, kept: Checkpoint) -> None:
    previous = "0" * 64
    for number, entry in enumerate(chain_of(url), start=1):
        assert entry["sequence"] == number
        assert entry["previous_sha256"] == previous
        previous = chain_digest(entry)
        assert entry["sha256"] == previous
    assert previous == kept.sha256
    rows = plain(url, "SELECT assessment_id, record, verdict, base_lpips_score FROM assessments")
    bodies = {entry["assessment_id"]: entry["body"] for entry in chain_of(url)[1:5]}
    for one, record, verdict, distance in rows:
        body = json.loads(bodies[one])
        assert body["record_sha256"] == hashlib.sha256(record.encode()).hexdigest()
        assert body["columns"]["verdict"] == verdict
        assert body["columns"]["base_lpips_score"] == distance


def test_canonical_json_is_rfc_8785() -> None:
    # Section 3.2.4 of the RFC, its example of all three rules.
    given = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '€$\u000f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    assert canonical(given) == (
        '{"literals":[null,true,false],'
        '"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical({"ö": 1, "b": 2.0, "😀": 3, "\ufb33": -0.0}) == (
        '{"b":2,"ö":1,"😀":3,"\ufb33":0}'  # by UTF-16, so the emoji is before U+FB33
    )
    for wrong in (2**53, float("nan"), float("inf"), "\ud800"):
        with pytest.raises(StoreError, match="no canonical JSON"):
            canonical({"value": wrong})


# Changed.


@pytest.mark.usefixtures("kept")
def test_a_verdict_changed_in_the_record(url: str) -> None:
    plain(
        url,
        "UPDATE assessments SET record = replace(record, 'unsuitable', 'diagnostic') "
        "WHERE assessment_id = ?",
        [IDS[2]],
    )
    assert_found(url, 4, "changed: record", IDS[2])


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("verdict", "'diagnostic'"),
        ("created_at", "'2026-03-01 00:00:00.000001'"),
        ("modality", "NULL"),
        ("base_lpips_score", "0.30000000000000010"),  # the next number but one
        ("study_hmac", f"'{'f' * 64}'"),
        ("supersedes", f"'{IDS[0]}'"),
        ("sequence", "99"),
    ],
)
def test_a_search_column_changed(url: str, column: str, value: str) -> None:
    plain(url, f"UPDATE assessments SET {column} = {value} WHERE assessment_id = '{IDS[1]}'")  # noqa: S608
    assert_found(url, 3, f"changed: {column}", IDS[1])


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("column", [name for name in COLUMNS if name != "sequence"])
def test_a_column_of_the_chain_changed(url: str, column: str) -> None:
    plain(url, f"UPDATE audit_entries SET {column} = 'x' || {column} WHERE sequence = 3")  # noqa: S608
    if column == "reason":
        assert plain(url, "SELECT reason FROM audit_entries WHERE sequence = 3")[0][0][0] == "x"
    assert_found(url, 3, "was changed or moved")


@pytest.mark.usefixtures("kept")
def test_a_signature_turned_round(url: str) -> None:
    plain(
        url,
        "UPDATE audit_entries SET body = replace(body, 'rejected', 'approved') "
        "WHERE kind = 'signature'",
    )
    assert_found(url, 6, "was changed or moved", IDS[1])


# Values that medqa cannot have written must be named, not stop the verification.


@pytest.mark.parametrize(
    "change",
    [
        "record = x'ff'",
        "record = CAST(x'ff41' AS TEXT)",
        "verdict = x'00ff'",
        "base_lpips_score = 'much'",
        "base_lpips_score = 9e999",
        "created_at = 'never'",
        "created_at = 7",
        "created_at = '2026-02-28T23:30:00.000000'",
    ],
)
def test_nonsense_in_sqlite(sqlite: str, change: str) -> None:
    with Store.open(sqlite) as store:
        store.add(assessment(IDS[0]))
    drop_triggers(sqlite)
    plain(sqlite, f"UPDATE assessments SET {change}")  # noqa: S608
    assert_found(sqlite, 2, "its row in the table of assessments", IDS[0])


@pytest.mark.parametrize(
    "change",
    ["base_lpips_score = 'NaN'", "created_at = 'infinity'", "created_at = '0044-03-15 BC'"],
)
def test_nonsense_in_postgresql(postgresql: str, change: str) -> None:
    with Store.open(postgresql) as store:
        store.add(assessment(IDS[0]))
    drop_triggers(postgresql)
    plain(postgresql, f"UPDATE assessments SET {change}")  # noqa: S608
    assert_found(postgresql, 2, "its row in the table of assessments", IDS[0])


# Removed.


@pytest.mark.usefixtures("kept")
def test_an_assessment_removed_from_the_table(url: str) -> None:
    plain(url, "DELETE FROM assessments WHERE assessment_id = ?", [IDS[2]])
    assert_found(url, 4, "was removed", IDS[2])


@pytest.mark.usefixtures("kept")
def test_an_assessment_removed_from_both_tables(url: str) -> None:
    plain(url, "DELETE FROM assessments WHERE assessment_id = ?", [IDS[2]])
    plain(url, "DELETE FROM audit_entries WHERE assessment_id = ?", [IDS[2]])
    assert_found(url, 4, "it is missing: after entry 3 comes entry 5")


@pytest.mark.usefixtures("kept")
def test_a_gap_closed_by_counting_anew(url: str) -> None:
    plain(url, "DELETE FROM assessments WHERE assessment_id = ?", [IDS[2]])
    plain(url, "DELETE FROM audit_entries WHERE assessment_id = ?", [IDS[2]])
    for number in (5, 6):
        plain(url, f"UPDATE audit_entries SET sequence = {number - 1} WHERE sequence = {number}")  # noqa: S608
    assert_found(url, 4, "changed or moved")


@pytest.mark.usefixtures("kept")
def test_the_beginning_removed(url: str) -> None:
    plain(url, "DELETE FROM audit_entries WHERE sequence = 1")
    assert_found(url, 1, "missing")


@pytest.mark.usefixtures("kept")
def test_everything_removed(url: str) -> None:
    plain(url, "DELETE FROM audit_entries")
    plain(url, "DELETE FROM assessments")
    assert_found(url, 1, "the chain is empty")


def test_the_end_removed_is_found_by_a_checkpoint_only(url: str, kept: Checkpoint) -> None:
    plain(url, "DELETE FROM audit_entries WHERE sequence > 4")
    assert_found(url, None, "the chain does not", IDS[3])
    plain(url, "DELETE FROM assessments WHERE assessment_id = ?", [IDS[3]])
    assert check(url).fault is None
    fault = check(url, kept).fault
    assert fault is not None
    assert fault.sequence == 5
    assert "the chain ends at 4, the checkpoint is at 6" in fault.what


# Inserted.


@pytest.mark.usefixtures("kept")
def test_a_forged_row_in_the_table(url: str) -> None:
    plain(
        url,
        "INSERT INTO assessments (sequence, assessment_id, created_at, verdict, record) "
        "VALUES (9, 'forged', '2026-01-01 00:00:00', 'diagnostic', '{}')",
    )
    assert_found(url, None, "the table of assessments holds it", "forged")


def insert_entry(url: str, entry: dict[str, Any]) -> None:
    names = ", ".join(entry)
    marks = ", ".join("?" * len(entry))
    plain(url, f"INSERT INTO audit_entries ({names}) VALUES ({marks})", list(entry.values()))  # noqa: S608


@pytest.mark.usefixtures("kept")
def test_a_forged_entry_between_others(url: str) -> None:
    third = chain_of(url)[2]
    for number in (6, 5, 4):  # make room
        plain(url, f"UPDATE audit_entries SET sequence = {number + 1} WHERE sequence = {number}")  # noqa: S608
    body = json.dumps({"meaning": "approved", "signed_sha256": third["sha256"]})
    forged = {**third, "sequence": 4, "kind": "signature", "body": body}
    forged["previous_sha256"] = third["sha256"]
    forged["sha256"] = chain_digest(forged)
    insert_entry(url, forged)
    # The forged entry is well made; what stood at its place no longer fits behind it.
    assert_found(url, 5, "changed or moved")


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "genesis"}, "no place here"),
        ({"kind": "pardon"}, "no place here"),
        ({"body": "nonsense"}, "signs another"),
        ({"body": "[]"}, "signs another"),
        ({"body": '{"signed_sha256":7}'}, "signs another"),
        ({"assessment_id": "nobody"}, "signs another"),
        ({"assessment_id": IDS[0]}, "signs another"),
        ({"previous_sha256": "0" * 64}, "does not follow entry 6"),
        ({"kind": "assessment", "assessment_id": "nobody"}, "was removed"),
        ({"sha256": "0" * 64}, "changed or moved"),
    ],
)
def test_a_forged_entry_at_the_end(url: str, change: dict[str, Any], words: str) -> None:
    last = chain_of(url)[-1]
    forged = {**last, "sequence": 7, "previous_sha256": last["sha256"], **change}
    forged["sha256"] = change.get("sha256") or chain_digest(forged)
    insert_entry(url, forged)
    assert_found(url, 7, words)


# Moved.


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("table", "first", "second"), [("assessments", 2, 3), ("audit_entries", 3, 4)]
)
def test_two_rows_swapped(url: str, table: str, first: int, second: int) -> None:
    for old, new in ((first, 99), (second, first), (99, second)):
        plain(url, f"UPDATE {table} SET sequence = {new} WHERE sequence = {old}")  # noqa: S608
    assert_found(url, 3, "sequence" if table == "assessments" else "changed or moved")


@pytest.mark.usefixtures("kept")
def test_the_contents_of_two_rows_swapped(url: str) -> None:
    records = dict(plain(url, "SELECT assessment_id, record FROM assessments"))
    for one, other in ((IDS[1], IDS[2]), (IDS[2], IDS[1])):
        plain(
            url, "UPDATE assessments SET record = ? WHERE assessment_id = ?", [records[other], one]
        )
    assert_found(url, 3, "changed: record", IDS[1])


@pytest.mark.usefixtures("kept")
def test_an_entry_twice(url: str) -> None:
    rows = "SELECT * FROM audit_entries"
    if "://" in url:
        plain(url, "ALTER TABLE audit_entries DROP CONSTRAINT audit_entries_pkey")
    else:
        plain(url, f"CREATE TABLE copied AS {rows}")
        plain(url, "DROP TABLE audit_entries")
        plain(url, "ALTER TABLE copied RENAME TO audit_entries")
    plain(url, f"INSERT INTO audit_entries {rows} WHERE sequence = 6")
    assert_found(url, 7, "it is missing: after entry 6 comes entry 6")


# Made anew.


def rewrite(url: str, change: Callable[[dict[str, Any]], None]) -> None:
    """What somebody who knows the format can do: change entries and compute all digests anew."""
    previous, digests = "0" * 64, {}
    for entry in chain_of(url):
        change(entry)
        if entry["kind"] == "signature":
            body = json.loads(entry["body"])
            body["signed_sha256"] = digests[entry["assessment_id"]]
            entry["body"] = canonical(body)
        entry["previous_sha256"] = previous
        previous = digests[entry["assessment_id"]] = chain_digest(entry)
        plain(
            url,
            "UPDATE audit_entries SET body = ?, previous_sha256 = ?, sha256 = ? WHERE sequence = ?",
            [entry["body"], entry["previous_sha256"], previous, entry["sequence"]],
        )


def forge_everything(url: str) -> None:
    """Turn a verdict round in the table and in the whole chain behind it."""
    one = plain(url, "SELECT record FROM assessments WHERE assessment_id = ?", [IDS[1]])[0][0]
    forged = one.replace('"verdict":"unsuitable"', '"verdict":"diagnostic"')
    assert forged != one
    plain(
        url,
        "UPDATE assessments SET verdict = 'diagnostic', record = ? WHERE assessment_id = ?",
        [forged, IDS[1]],
    )

    def change(entry: dict[str, Any]) -> None:
        if entry["sequence"] == 3:
            body = json.loads(entry["body"])
            body["columns"]["verdict"] = "diagnostic"
            body["record_sha256"] = hashlib.sha256(forged.encode()).hexdigest()
            entry["body"] = canonical(body)

    rewrite(url, change)


def test_a_chain_made_anew_is_found_by_a_checkpoint_only(url: str, kept: Checkpoint) -> None:
    forge_everything(url)
    assert check(url).fault is None  # consistent in itself: nothing in the database betrays it
    fault = check(url, kept).fault
    assert fault is not None
    assert fault.sequence == 6
    assert "made anew" in fault.what


def test_a_forged_checkpoint_is_found_by_the_key_that_is_named(url: str, kept: Checkpoint) -> None:
    forge_everything(url)
    thief = Ed25519PrivateKey.generate()
    with Store.open(url, readonly=True) as store:
        forged = make_checkpoint(store, thief)
        assert verify(store, forged).fault is None  # checked with the key that it names itself
        for one in (forged, replace(forged, public_key=kept.public_key)):
            fault = verify(store, one, KEY.public_key()).fault
            assert fault is not None
            assert "not signed with the key that was named" in fault.what


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 5},
        {"sha256": "0" * 64},
        {"made_at": "2026-01-01T00:00:00.000000Z"},
        {"database": "other"},
        {"signature": "00" * 64},
        {"signature": "no hex"},
        {"public_key": "00"},
    ],
)
def test_a_checkpoint_that_was_changed(url: str, kept: Checkpoint, change: dict[str, Any]) -> None:
    fault = check(url, replace(kept, **change)).fault
    assert fault is not None
    assert "the checkpoint is not signed" in fault.what


def test_a_checkpoint_of_another_database(url: str, kept: Checkpoint, tmp_path: Any) -> None:
    with Store.open(str(tmp_path / "other.db")) as store:
        for one in IDS:
            store.add(assessment(one))
        other = make_checkpoint(store, KEY)
    assert kept.database != other.database
    fault = check(url, other).fault
    assert fault is not None
    assert "another database" in fault.what


def test_no_checkpoint_is_made_of_a_broken_record(url: str, kept: Checkpoint) -> None:
    plain(url, "UPDATE assessments SET verdict = 'diagnostic'")
    with Store.open(url, readonly=True) as store, pytest.raises(StoreError, match="not whole"):
        make_checkpoint(store, KEY)
    assert kept.is_signed_by(KEY.public_key())
