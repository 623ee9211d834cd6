from __future__ import annotations

from pathlib import Path

import pytest
import typer
from enhancing import write_denoising
from typer.testing import CliRunner

from medqa.audit import Store
from medqa.cli.enhancement import denoising, super_resolution
from medqa.errors import UsageError

app = typer.Typer()
app.command("denoising")(denoising)
app.command("super-resolution")(super_resolution)


@pytest.fixture(scope="module")
def images(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_denoising(shared_data, folder)
    return folder


def test_a_study_from_folders(images: Path, tmp_path: Path) -> None:
    out, db = tmp_path / "out", tmp_path / "audit.db"
    given = ["denoising", "--noisy", str(images / "noisy"), "--clean", str(images / "clean")]
    given += [f"--denoised=nlm={images / 'nlm'}", f"--denoised=smooth={images / 'smooth'}"]
    done = CliRunner().invoke(app, [*given, "--out", str(out), "--db", str(db)])
    assert "nlm: Removed noise by" in done.stdout
    assert f"page: {out / 'index.html'}" in done.stdout
    assert done.exit_code in (0, 1)
    assert (out / "results.parquet").is_file()
    with Store.open(str(db)) as store:
        assert len(store.list()) == 4
    again = CliRunner().invoke(app, [*given, "--out", str(out), "--db", str(db), "--resume"])
    assert again.exit_code == done.exit_code
    assert again.stdout == done.stdout
    with Store.open(str(db)) as store:
        assert len(store.list()) == 4


def test_an_erring_method_alone_is_1(images: Path, tmp_path: Path) -> None:
    given = ["denoising", "--noisy", str(images / "noisy"), "--no-record"]
    given += [f"--denoised=painter={images / 'painter'}", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 1
    assert "The method is not acceptable" in done.stdout


def test_an_image_that_cannot_be_read_is_2(images: Path, tmp_path: Path) -> None:
    (tmp_path / "noisy").mkdir()
    (tmp_path / "noisy" / "a.dcm").write_bytes(b"")
    given = ["denoising", "--noisy", str(tmp_path / "noisy" / "a.dcm"), "--no-record"]
    given += [f"--denoised=nlm={images / 'nlm' / 'a.dcm'}", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 2
    assert "is empty" in done.stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["denoising"], "nothing to compare"),
        (["denoising", "--noisy", "x", "--denoised", "y"], "is not NAME=PATH"),
        (["denoising", "--noisy", "x", "--denoised", "a=y", "--denoised", "a=z"], "two methods"),
        (["super-resolution", "--low", "x", "--table", "t.csv"], "says what to compare itself"),
    ],
)
def test_wrong_use(given: list[str], words: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)
