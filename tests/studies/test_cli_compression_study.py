"""The command: exit codes, files, drafts in the record, and a page that names nobody."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pydicom
import pytest
import typer
from typer.testing import CliRunner, Result

from medqa.audit import Store
from medqa.cli.compression_study import compression
from medqa.compression.approvals import listed
from medqa.errors import UsageError

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(compression)


def _run(*arguments: object, fails: bool = False) -> Result:
    found = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=fails)
    if fails and isinstance(found.exception, UsageError):
        raise found.exception
    return found


@pytest.fixture(scope="module")
def image(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CT that names a patient."""
    path = tmp_path_factory.mktemp("images") / "SMITH.dcm"
    ds = pydicom.dcmread(shared_data / "ct/misc/CT_small.dcm")
    ds.PatientName, ds.PatientID, ds.BodyPartExamined = "SMITH^JOHN", "SMITH-1", "CHEST"
    ds.save_as(path)
    return path


def test_a_study_proposes_drafts_and_writes_a_page(image: Path, tmp_path: Path) -> None:
    out, db = tmp_path / "out", tmp_path / "audit.db"
    common = (image, "--out", out, "--db", db, "--codecs", "j2k,jpegls", "--ratios", "5,12")
    done = _run(*common, "--share", 0.05, "--confidence", 0.9, "--jobs", 1)
    assert done.exit_code == 0, done.output
    with Store.open(str(db)) as store:
        drafts = listed(store)
    assert {one.approval.codec for one in drafts} == {"j2k", "jpegls"}
    table = (out / "results.csv").read_bytes()
    for one in drafts:
        assert one.status == "draft"
        assert one.approval.highest_ratio == 5
        assert (one.approval.scope.modality, one.approval.scope.body_part) == ("CT", "CHEST")
        assert one.approval.study_sha256 == hashlib.sha256(table).hexdigest()
        assert (one.approval.expires_on - one.approval.created_at.date()).days == 365
        assert one.approval.guideline is None or one.approval.guideline.body == "DRG 2008"
    page = (out / "index.html").read_text("utf-8")
    for one in drafts:
        assert one.approval.approval_id in page
    assert "SMITH" not in page + table.decode()
    assert str(tmp_path) not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png") == 2 * 2 * 3

    # Once more: nothing is compressed anew, and the table is the same.
    before = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    again = _run(*common, "--resume", "--no-record")
    assert again.exit_code == 1  # 95 % at 95 % takes 59 images
    assert "59 series are needed" in (out / "index.html").read_text("utf-8")
    assert {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()} == before
    assert (out / "results.csv").read_bytes() == table
    with Store.open(str(db)) as store:
        assert len(listed(store)) == 2
    with pytest.raises(UsageError, match="holds a study already"):
        _run(*common, fails=True)
    with pytest.raises(UsageError, match="of other images"):
        _run(*common, "--body-part", "HEAD", "--resume", fails=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--codecs", "mp3"), "is no codec"),
        (("--ratios", "four"), "no list of numbers"),
        (("--ratios", "0.5,4"), "not above 1"),
        (("--share", "1.2"), "not between 0 and 1"),
        (("--guideline", "WHO"), "no guideline"),
        (("--override-mammography", "me"), "no person and reason"),
        (("--auc-loss", "0.02"), "does not say of which lesion"),
        (("--detectability", "4"), "no width and contrast"),
        (("--detectability", "4,12", "--auc-loss", "0.6"), "is 0.6"),
    ],
)
def test_wrong_use_is_refused_before_the_work(
    image: Path, tmp_path: Path, options: tuple[str, str], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        _run(image, "--out", tmp_path / "out", "--no-record", *options, fails=True)
    assert not os.path.exists(tmp_path / "out")
