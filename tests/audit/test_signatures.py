"""Sign-off: what it is bound to, and what may not be signed."""

from __future__ import annotations

import json

import pytest
from auditing import assessment, drop_triggers, plain

from medqa.audit import Meaning, Store, histories, sign, verify
from medqa.errors import StoreError

ONE, OTHER = "record-0002", "record-0003"


def test_a_signature_is_bound_to_what_was_signed(url: str) -> None:
    with Store.open(url) as store:
        entry = store.add(assessment(ONE))
        store.add(assessment(OTHER))
        signed = sign(store, ONE[:10] + "2", "approved", "agrees with the prior", actor="Dr. Ada")
        sign(store, ONE, "reviewed", "second look", actor="Dr. Bo")
        found = histories(store, [ONE, OTHER, "unknown"])
        assert verify(store).signatures == 2
    [row] = plain(
        url,
        "SELECT kind, assessment_id, actor, reason, body FROM audit_entries WHERE sequence = 4",
    )
    assert row[:4] == ("signature", ONE, "Dr. Ada", "agrees with the prior")
    assert json.loads(row[4]) == {"meaning": "approved", "signed_sha256": entry.sha256}
    assert signed.sequence == 4
    assert set(found) == {ONE, OTHER}
    assert found[ONE].entry == entry
    assert [(one.meaning, one.actor, one.comment) for one in found[ONE].signatures] == [
        ("approved", "Dr. Ada", "agrees with the prior"),
        ("reviewed", "Dr. Bo", "second look"),
    ]
    assert found[OTHER].signatures == ()


@pytest.mark.parametrize(
    ("meaning", "comment", "words"),
    [("blessed", "fine", "what a signature can mean"), ("approved", " \n", "comment is empty")],
)
def test_a_signature_without_sense_is_refused(
    url: str, meaning: Meaning, comment: str, words: str
) -> None:
    with Store.open(url) as store:
        store.add(assessment(ONE))
        with pytest.raises(StoreError, match=words):
            sign(store, ONE, meaning, comment)
        with pytest.raises(StoreError, match="is no assessment"):
            sign(store, "nobody-there", "approved", "fine")
        assert verify(store).entries == 2


def test_what_is_superseded_is_not_signed(url: str) -> None:
    with Store.open(url) as store:
        store.add(assessment(ONE))
        store.add(assessment(OTHER), supersedes=ONE, reason="wrong mask")
        with pytest.raises(StoreError, match=f"superseded by {OTHER}"):
            sign(store, ONE, "approved", "fine")
        sign(store, OTHER, "approved", "fine")
        found = histories(store, [ONE, OTHER])
    assert (found[ONE].supersedes, found[ONE].superseded_by) == (None, OTHER)
    assert (found[OTHER].supersedes, found[OTHER].superseded_by) == (ONE, None)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE assessments SET verdict = 'unsuitable'",
        "UPDATE assessments SET record = replace(record, 'CT', 'MR')",
        "UPDATE audit_entries SET actor = 'somebody' WHERE sequence = 2",
        "DELETE FROM audit_entries WHERE sequence = 2",
    ],
)
def test_what_was_tampered_with_is_not_signed(url: str, change: str) -> None:
    with Store.open(url) as store:
        store.add(assessment(ONE))
        drop_triggers(url)
        plain(url, change)
        with pytest.raises(StoreError, match="is not what was recorded"):
            sign(store, ONE, "approved", "fine")
    assert plain(url, "SELECT count(*) FROM audit_entries WHERE kind = 'signature'") == [(0,)]
