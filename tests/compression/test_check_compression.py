"""`medqa compress`, `check-compression`, `approvals`, and what stored objects declare wrongly."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import Any

import pydicom
import pytest
import typer
from approving import approval
from typer.testing import CliRunner, Result

from medqa.audit import Store, sign
from medqa.cli.compression import approvals_app, check_compression, compress
from medqa.compression.approvals import Approved, get, listed, propose
from medqa.compression.stored import check_stored
from medqa.errors import MedqaError

HEAD = "ct/head_series_GE"

app = typer.Typer()
app.command()(compress)
app.command()(check_compression)
app.add_typer(approvals_app, name="approvals")


def medqa(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def approve(db: Path, **changes: Any) -> str:
    one = approval(**changes)
    with Store.open(str(db)) as store:
        propose(store, one)
        sign(store, one.approval_id, "approved", "fine", actor="Dr. Ada")
    return one.approval_id


@pytest.fixture(scope="module")
def done(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, str, Result]:
    """Folder, database and approval of a run over good files and a bad one."""
    folder = tmp_path_factory.mktemp("compressed")
    given = folder / "in" / "series"
    given.mkdir(parents=True)
    for name in ("01.dcm", "02.dcm"):
        shutil.copy(shared_data / HEAD / name, given / name)
    damaged = (shared_data / HEAD / "03.dcm").read_bytes()[:200_000]
    (given / "03.dcm").write_bytes(damaged)
    (given / "notes.txt").write_text("no image")
    db = folder / "audit.db"
    named = approve(db)
    result = medqa("compress", folder / "in", folder / "out", "--approval", named[:8], "--db", db)
    return folder, db, named, result


def test_a_folder_with_a_bad_file(done: tuple[Path, Path, str, Result]) -> None:
    folder, db, named, result = done
    assert result.exit_code == 2, result.output
    out = sorted(one.name for one in (folder / "out" / "series").iterdir())
    assert out == ["01.dcm", "02.dcm"]
    assert "03.dcm" in result.output
    one, two = (pydicom.dcmread(folder / "out" / "series" / name) for name in out)
    assert one.SeriesInstanceUID == two.SeriesInstanceUID
    assert one.SOPInstanceUID != two.SOPInstanceUID
    with Store.open(str(db)) as store:
        assert len(store.list()) == 2
    shown = medqa("approvals", "show", named[:8], "--db", db).output
    assert "approved" in shown
    assert "60 of 60" in shown
    assert "approved by Dr. Ada" in medqa("approvals", "list", "--db", db).output


def test_what_compress_wrote_is_good(
    done: tuple[Path, Path, str, Result], shared_data: Path
) -> None:
    folder, db, named, _ = done
    result = medqa("check-compression", folder / "out", "--db", db)
    assert result.exit_code == 0, result.output
    assert result.output.count("good") == 2
    same = medqa(
        *("check-compression", folder / "out", "--db", db, "--approval", named[:8]),
        *("--original", shared_data / HEAD),
    )
    assert same.exit_code == 0, same.output
    other = medqa("check-compression", folder / "out", "--db", db, "--original", folder / "out")
    assert other.exit_code == 1
    assert "no original that is here" in other.output


def test_nothing_qualifies_is_exit_code_1(
    done: tuple[Path, Path, str, Result], shared_data: Path, tmp_path: Path
) -> None:
    _, db, _, _ = done
    named = approve(db, codec="jpegxl")
    result = medqa(
        *("compress", shared_data / HEAD / "01.dcm", tmp_path / "new.dcm"),
        *("--approval", named, "--db", db),
    )
    assert result.exit_code == 1, result.output
    assert "no setting" in result.output
    assert list(tmp_path.glob("*.dcm")) == []


def test_a_draft_ends_the_run(tmp_path: Path, shared_data: Path) -> None:
    draft = approval()
    db = tmp_path / "audit.db"
    with Store.open(str(db)) as store:
        propose(store, draft)
    result = medqa(
        *("compress", shared_data / HEAD / "01.dcm", tmp_path / "new.dcm"),
        *("--approval", draft.approval_id, "--db", db),
    )
    assert isinstance(result.exception, MedqaError)
    assert "nobody has signed" in str(result.exception)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"LossyImageCompressionRatio": "5"}, "declares 5:1, and measures"),
        ({"LossyImageCompressionRatio": None}, "declares no lossy compression ratio"),
        ({"LossyImageCompressionMethod": None}, "declares no lossy compression method"),
        ({"LossyImageCompressionMethod": "ISO_14495_1"}, "and is stored in ISO_15444_1"),
        ({"LossyImageCompression": "00"}, "says 00"),
        (
            {"LossyImageCompression": None, "LossyImageCompressionRatio": None},
            "does not say whether",
        ),
        ({"LossyImageCompressionRatio": ["2", "9.92"]}, "2 times"),
        ({"Modality": "MR", "DerivationDescription": ""}, "no approval for MR in JPEG 2000"),
        ({"Modality": "MR"}, "outside its approval"),
    ],
)
def test_wrong_declarations(
    done: tuple[Path, Path, str, Result], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    folder, db, _, _ = done
    ds = pydicom.dcmread(folder / "out" / "series" / "01.dcm")
    for keyword, value in change.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
    ds.save_as(tmp_path / "changed.dcm")
    with Store.open(str(db), readonly=True) as store:
        found = check_stored(tmp_path / "changed.dcm", listed(store))
    assert any(words in fault for fault in found.faults), found.faults
    assert medqa("check-compression", tmp_path / "changed.dcm", "--db", db).exit_code == 1


def test_the_approval_decides(done: tuple[Path, Path, str, Result]) -> None:
    folder, db, named, _ = done
    file = folder / "out" / "series" / "01.dcm"
    with Store.open(str(db), readonly=True) as store:
        one = get(store, named)
    ended = datetime.date.today() - datetime.timedelta(days=1)
    strict = one.approval.model_copy(update={"highest_ratio": 8.0})
    past = one.approval.model_copy(update={"expires_on": ended})
    cases = [
        (Approved(strict, "approved", ()), "8:1 is approved"),
        (Approved(one.approval, "draft", ()), "signed by nobody"),
        (Approved(one.approval, "rejected", ()), "was rejected"),
        (Approved(past, "expired", ()), f"ended on {ended}"),
        (Approved(one.approval, "expired", ()), None),  # it was made before it ended
    ]
    for held, words in cases:
        faults = check_stored(file, [held], named=True).faults
        assert (words is None) == (not faults)
        assert words is None or words in " ".join(faults)
    assert "no approval" in check_stored(file, []).faults[0]


def test_objects_of_others(shared_data: Path) -> None:
    """Real files: what pydicom's own test files declare, and lack."""
    lossless = check_stored(shared_data / HEAD / "01.dcm", [])
    assert (lossless.lossy, lossless.faults) == (False, ())
    lacking = check_stored(shared_data / "ct/misc/693_J2KI.dcm", [])
    assert lacking.codec == "j2k"
    assert lacking.measured is not None
    assert lacking.faults
    near = check_stored(shared_data / "xr/cr_mono1/RG1_JLSN.dcm", [])
    assert near.codec == "jpegls"
    assert any("no approval for CR in JPEG-LS" in one for one in near.faults)
