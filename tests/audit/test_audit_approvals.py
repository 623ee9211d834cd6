"""Approvals in the chain, on both databases: their state, their signatures, and attacks on them."""

from __future__ import annotations

import datetime
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from auditing import assessment, drop_triggers, plain
from typer.testing import CliRunner

from medqa.assessment import MetricRef, ProfileRef
from medqa.audit import Store, export, sign, verify
from medqa.audit.chain import canonical
from medqa.audit.journal import append
from medqa.audit.roles import grants
from medqa.cli.audit import audit_app
from medqa.compression.approval import Approval, RatioEvidence, Scope, Share
from medqa.compression.approvals import get, listed, propose
from medqa.errors import StoreError

LAST = datetime.date(2027, 3, 1)
ONE = "11111111-aaaa-4aaa-8aaa-000000000001"


def approval(identity: str = ONE, **changes: Any) -> Approval:
    values: dict[str, Any] = {
        "approval_id": identity,
        "created_at": datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC),
        "medqa_version": "0.1.0",
        "scope": Scope(modality="CT", body_part="CHEST", devices=("Maker Größe 1",)),
        "codec": "j2k",
        "codec_version": "OpenJPEG 2.5.4",
        "highest_ratio": 8.1,
        "profile": ProfileRef(name="ct", version="1.0", sha256="c" * 64, status="provisional"),
        "metric": MetricRef(backbone="gray", version="1", weights_sha256="d" * 64),
        "required_share": 0.95,
        "confidence": 0.95,
        "highest_auc_loss": None,
        "evidence": (
            RatioEvidence(
                ratio=8.0,
                measured=8.1,
                share=Share(good=60, images=60, lower=0.951),
                median_distance=0.1 + 0.2,
                worst_distance=1 / 3,
            ),
        ),
        "guideline": None,
        "study_sha256": "a" * 64,
        "expires_on": LAST,
        "voided_by": ("another version of the codec",),
    }
    return Approval.model_validate(values | changes)


def test_from_a_draft_to_its_end(url: str) -> None:
    before, after = LAST, LAST + datetime.timedelta(days=1)
    with Store.open(url) as store:
        entry = propose(store, approval(), actor="study")
        assert (entry.kind, entry.assessment_id, entry.actor) == ("approval", ONE, "study")
        assert get(store, ONE, today=before).status == "draft"
        sign(store, ONE[:8], "reviewed", "seen")
        assert get(store, ONE, today=before).status == "draft"
        assert get(store, ONE, today=after).status == "expired"
        signed = sign(store, ONE, "approved", "good for the archive", actor="Dr. Ada")
        assert json.loads(signed.body) == {"meaning": "approved", "signed_sha256": entry.sha256}
        found = get(store, ONE[:8], today=before)
        assert found.status == "approved"
        assert found.approval == approval()  # no digit lost
        assert [one.meaning for one in found.signatures] == ["reviewed", "approved"]
        assert get(store, ONE, today=after).status == "expired"
        sign(store, ONE, "rejected", "streaks")
        assert get(store, ONE, today=before).status == "rejected"
        assert get(store, ONE, today=after).status == "rejected"
        sign(store, ONE, "approved", "they were in the original")
        assert get(store, ONE, today=before).status == "approved"
        checked = verify(store)
    assert checked.fault is None
    assert (checked.entries, checked.signatures) == (6, 4)


def test_the_newest_is_first_and_each_is_there_once(url: str) -> None:
    other = str(uuid.uuid4())
    with Store.open(url) as store:
        propose(store, approval())
        propose(store, approval(other))
        with pytest.raises(StoreError, match="in the record already"):
            propose(store, approval())
        assert [one.approval.approval_id for one in listed(store)] == [other, ONE]
        with pytest.raises(StoreError, match="is no approval"):
            get(store, ONE[:7])
        with pytest.raises(StoreError, match="is no approval"):
            get(store, "nobody-there")


def test_an_id_of_an_assessment_and_of_an_approval_begin_alike(url: str) -> None:
    with Store.open(url) as store:
        store.add(assessment(ONE[:-1] + "9"))
        propose(store, approval())
        with pytest.raises(StoreError, match="more than one record"):
            sign(store, ONE[:10], "approved", "fine")
        sign(store, ONE, "approved", "fine")
        sign(store, ONE[:-1] + "9", "rejected", "not fine")
        assert get(store, ONE, today=LAST).status == "approved"
        assert store.get(ONE[:10]).assessment_id.endswith("9")
        assert verify(store).fault is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE audit_entries SET body = replace(body, '8.1', '80.1') WHERE sequence = 2", "cont"),
        ("UPDATE audit_entries SET actor = 'somebody' WHERE sequence = 2", "content"),
        ("UPDATE audit_entries SET body = 'nonsense' WHERE sequence = 2", "content"),
        ("DELETE FROM audit_entries WHERE sequence = 2", "missing"),
    ],
)
def test_a_changed_approval_is_named_and_neither_signed_nor_used(
    url: str, change: str, words: str
) -> None:
    with Store.open(url) as store:
        propose(store, approval())
        sign(store, ONE, "approved", "fine")
        drop_triggers(url)
        plain(url, change)
        with pytest.raises(StoreError):
            sign(store, ONE, "approved", "again")
        with pytest.raises(StoreError):
            get(store, ONE)
        fault = verify(store).fault
    assert fault is not None
    assert fault.sequence == 2
    assert words in fault.what
    if words != "missing":
        assert fault.assessment_id == ONE


def test_a_rejection_cannot_be_turned_round_in_the_database(url: str) -> None:
    with Store.open(url) as store:
        propose(store, approval())
        sign(store, ONE, "rejected", "streaks")
        drop_triggers(url)
        plain(url, "UPDATE audit_entries SET body = replace(body, 'rejected', 'approved')")
        with pytest.raises(StoreError, match="is not what was recorded"):
            get(store, ONE)
        fault = verify(store).fault
    assert fault is not None
    assert fault.sequence == 3


def test_a_second_approval_of_a_signed_id_is_not_the_signed_one(url: str) -> None:
    """Who may add drafts cannot slip another content under a signature."""
    with Store.open(url) as store:
        propose(store, approval())
        sign(store, ONE, "approved", "fine")
        forged = canonical(approval(highest_ratio=80.0).model_dump(mode="json"))
        with store.writing() as connection:
            append(connection, "approval", ONE, forged)
        assert get(store, ONE, today=LAST).approval.highest_ratio == 8.1
        assert len(listed(store, today=LAST)) == 1
        fault = verify(store).fault
    assert fault is not None
    assert (fault.sequence, fault.assessment_id) == (4, ONE)
    assert "recorded before" in fault.what


def test_an_approval_under_anothers_id_is_found(url: str) -> None:
    with Store.open(url) as store:
        body = canonical(approval(str(uuid.uuid4())).model_dump(mode="json"))
        with store.writing() as connection:
            append(connection, "approval", ONE, body)
        with pytest.raises(StoreError, match="is not what was recorded"):
            get(store, ONE)
        fault = verify(store).fault
    assert fault is not None
    assert "another id" in fault.what


def test_a_signature_of_another_content_is_found_and_does_not_count(url: str) -> None:
    with Store.open(url) as store:
        propose(store, approval())
        body = canonical({"meaning": "approved", "signed_sha256": "0" * 64})
        with store.writing() as connection:
            append(connection, "signature", ONE, body, reason="fine")
        assert get(store, ONE, today=LAST).status == "draft"
        fault = verify(store).fault
    assert fault is not None
    assert (fault.sequence, fault.assessment_id) == (3, ONE)


def test_the_other_commands_know_approvals(url: str, tmp_path: Path) -> None:
    with Store.open(url) as store:
        store.add(assessment("record-0002"))
        propose(store, approval())
        assert export(store, tmp_path / "record.jsonl", "jsonl") == 3
        assert export(store, tmp_path / "record.csv", "csv") == 3
    row = json.loads((tmp_path / "record.jsonl").read_text("utf-8").splitlines()[2])
    assert (row["kind"], row["assessment_id"], row["record"]) == ("approval", ONE, None)
    assert Approval.model_validate_json(row["body"]) == approval()
    runner = CliRunner()
    for arguments, words in (
        (["sign", ONE[:8], "--meaning", "approved", "--comment", "fine"], f"{ONE}: approved"),
        (["list"], "record-0"),
        (["show", "record-0002", "--json"], "record-0002"),
        (["verify"], "4 entries, 1 assessments, 1 signatures"),
    ):
        result = runner.invoke(audit_app, [*arguments, "--db", url])
        assert result.exit_code == 0, result.output
        assert words in result.output


def test_a_writer_proposes_and_only_a_reviewer_signs(postgresql: str) -> None:
    Store.open(postgresql).close()
    names = [f"{role} {uuid.uuid4().hex[:8]}" for role in ("reader", "writer", "reviewer")]
    for name in names:
        plain(postgresql, f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'only-here'")
    plain(postgresql, grants(*names))
    reader, writer, reviewer = (
        postgresql.replace("medqa:", f"{name.replace(' ', '%20')}:") for name in names
    )
    with Store.open(writer) as store:
        propose(store, approval())
        with pytest.raises(StoreError, match="row-level security"):
            sign(store, ONE, "approved", "fine")
    with Store.open(reviewer) as store:
        sign(store, ONE, "approved", "fine")
    with Store.open(reader, readonly=True) as store:
        found = get(store, ONE, today=LAST)
        assert found.status == "approved"
        assert found.signatures[0].account.startswith("reviewer ")
