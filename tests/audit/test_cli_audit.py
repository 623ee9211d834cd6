"""`medqa audit`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from auditing import assessment, drop_triggers, plain
from typer.testing import CliRunner

from medqa.assessment import Assessment, Verdict
from medqa.audit import Store
from medqa.cli.audit import audit_app
from medqa.errors import MedqaError


@dataclass(frozen=True)
class Done:
    code: int
    out: str


def audit(*arguments: str | Path) -> Done:
    """Run the command as `medqa.cli.main` does: medqa's own errors end with 2."""
    done = CliRunner().invoke(audit_app, [str(one) for one in arguments])
    if isinstance(done.exception, MedqaError):
        return Done(2, str(done.exception))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.output)


def unmeasured(identity: str, verdict: Verdict = "diagnostic") -> Assessment:
    """One that shows without limits."""
    return assessment(identity, verdict).model_copy(update={"base_lpips_score": None})


@pytest.fixture
def filled(url: str) -> str:
    with Store.open(url) as store:
        store.add(unmeasured("record-0002"))
        store.add(unmeasured("record-0003", verdict="unsuitable"))
        store.add(unmeasured("record-0004"), supersedes="record-0003", reason="wrong mask")
    return url


def test_sign_list_and_show(filled: str) -> None:
    signed = audit(
        *("sign", "record-0002", "--meaning", "approved", "--comment", "seen on a workstation"),
        *("--user", "Dr. Ada", "--db", filled),
    )
    assert signed.code == 0
    assert "record-0002: approved by Dr. Ada (account " in signed.out
    listed = audit("list", "--db", filled)
    lines = listed.out.strip().splitlines()
    assert listed.code == 0
    assert lines[-1].rstrip().endswith("approved by Dr. Ada")
    assert "superseded by record-0" in listed.out
    shown = audit("show", "record-0003", "--db", filled)
    assert "SUPERSEDED by record-0004" in shown.out
    shown = audit("show", "record-0004", "--db", filled)
    assert "supersedes record-0003: wrong mask" in shown.out
    shown = audit("show", "record-0002", "--db", filled)
    assert "approved 20" in shown.out
    assert "seen on a workstation" in shown.out
    assert "OF ANOTHER RECORD" not in shown.out
    shown = audit("show", "record-0002", "--json", "--db", filled)
    assert json.loads(shown.out)["assessment_id"] == "record-0002"


def test_sign_refuses(filled: str) -> None:
    sign = ("sign", "record-0002", "--db", filled)
    assert audit(*sign, "--meaning", "approved", "--comment", " ").code == 2
    assert audit(*sign, "--meaning", "blessed", "--comment", "fine").code == 2
    assert audit(*sign, "--meaning", "approved").code == 2


def test_verify_with_a_checkpoint(filled: str, tmp_path: Path) -> None:
    kept, public = tmp_path / "kept.json", tmp_path / "public.pem"
    assert audit("checkpoint", "--out", kept, "--db", filled).code == 0
    public.write_text(audit("public-key").out)
    plainly = audit("verify", "--db", filled)
    assert plainly.code == 0
    assert plainly.out.startswith("WHOLE")
    assert "4 entries, 3 assessments, 0 signatures" in plainly.out
    assert "Without a checkpoint" in plainly.out
    own = audit("verify", "--checkpoint", kept, "--db", filled)
    assert own.code == 0
    assert "proves little" in own.out
    named = audit("verify", "--checkpoint", kept, "--public-key", public, "--db", filled)
    assert named.code == 0
    assert "as signed" in named.out
    assert "proves little" not in named.out
    assert audit("checkpoint", "--out", kept, "--db", filled).code == 2  # is there already
    assert audit("verify", "--public-key", public, "--db", filled).code == 2
    assert audit("verify", "--checkpoint", public, "--db", filled).code == 2
    assert audit("verify", "--checkpoint", tmp_path / "none", "--db", filled).code == 2

    drop_triggers(filled)
    plain(filled, "DELETE FROM audit_entries WHERE sequence = 4")
    plain(filled, "DELETE FROM assessments WHERE assessment_id = 'record-0004'")
    assert audit("verify", "--db", filled).code == 0
    cut = audit("verify", "--checkpoint", kept, "--public-key", public, "--db", filled)
    assert cut.code == 1
    assert "NOT WHOLE" in cut.out
    assert "entry 4" in cut.out


def test_verify_names_what_was_changed(filled: str, tmp_path: Path) -> None:
    drop_triggers(filled)
    plain(filled, "UPDATE assessments SET verdict = 'diagnostic' WHERE verdict = 'unsuitable'")
    found = audit("verify", "--db", filled)
    assert found.code == 1
    assert "entry 3, record record-0003" in found.out
    assert "changed: verdict" in found.out
    assert audit("checkpoint", "--out", tmp_path / "kept.json", "--db", filled).code == 2
    assert not (tmp_path / "kept.json").exists()
    plain(filled, "DELETE FROM audit_entries WHERE sequence = 4")
    assert "NOT IN THE CHAIN" in audit("list", "--db", filled).out
    assert "NOT IN THE CHAIN" in audit("show", "record-0004", "--db", filled).out


def test_what_cannot_be_read_is_wrong_use(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.db")
    for command in (("list",), ("verify",), ("show", "record-0002")):
        assert audit(*command, "--db", missing).code == 2
    assert not (tmp_path / "none.db").exists()


def test_export(filled: str, tmp_path: Path) -> None:
    done = audit("export", "--out", tmp_path / "all.csv", "--format", "csv", "--db", filled)
    assert (done.code, "4 entries" in done.out) == (0, True)
    since = ("--since", "2999-01-01T00:00:00")
    done = audit("export", "--out", tmp_path / "none.jsonl", *since, "--db", filled)
    assert (done.code, "0 entries" in done.out) == (0, True)


def test_grants_are_printed() -> None:
    done = audit("grants", "--reader", 'odd "name"')
    assert done.code == 0
    assert 'TO "odd ""name""", "medqa_writer", "medqa_reviewer";' in done.out
