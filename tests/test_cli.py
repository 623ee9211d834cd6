"""The command as a user calls it: outcomes, exit codes, and one clear line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000, JPEG2000Lossless

from medqa import cli


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Medqa = Callable[..., Outcome]


@pytest.fixture
def medqa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Medqa:
    """The command, in this process: importing torch for every call would take minutes."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["medqa", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else 0, printed.out, printed.err)

    return call


@pytest.fixture
def ct() -> Path:
    return Path(str(get_testdata_file("CT_small.dcm", download=False)))


@pytest.fixture
def harsh(ct: Path, tmp_path: Path) -> Path:
    dataset = pydicom.dcmread(ct)
    dataset.compress(JPEG2000, j2k_cr=[60], generate_instance_uid=True)
    dataset.save_as(tmp_path / "harsh.dcm")
    return tmp_path / "harsh.dcm"


def _changed(source: Path, target: Path, **elements: object) -> Path:
    dataset = pydicom.dcmread(source)
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(target)
    return target


def test_good_pair(medqa: Medqa, ct: Path, tmp_path: Path) -> None:
    done = medqa("assess", ct, ct, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "DIAGNOSTIC" in done.out
    assert "0.0000" in done.out
    assert "0.100" in done.out
    assert "not a medical device" in " ".join(done.out.replace("│", " ").split())
    assert (tmp_path / "out/report.html").is_file()
    record = json.loads((tmp_path / "out/assessment.json").read_text())
    assert record["verdict"] == "diagnostic"
    listed = medqa("audit", "list")
    assert record["assessment_id"][:8] in listed.out
    shown = medqa("audit", "show", record["assessment_id"][:8], "--json")
    assert json.loads(shown.out) == record


def test_bad_pair_and_the_level_that_is_required(medqa: Medqa, ct: Path, harsh: Path) -> None:
    strict = medqa("assess", ct, harsh, "--json", "--no-record")
    assert strict.code == 1, strict.err
    record = json.loads(strict.out)
    assert record["verdict"] in ("expert_review", "unsuitable")
    suitable = record["clinical_suitability"]["suitable_for_screening"]
    assert medqa("assess", ct, harsh, "--no-record", "--require", "screening").code == (
        0 if suitable else 1
    )
    assert medqa("assess", ct, ct, "--no-record", "--require", "screening").code == 0


def test_planes_precision_and_device(medqa: Medqa, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    volume = generator.normal(100, 20, (40, 36, 20)).astype(np.float32)
    paths = []
    for name in ("one", "other"):
        paths.append(tmp_path / f"{name}.nii")
        nib.save(nib.Nifti1Image(volume, np.diag([1.0, 1.0, 2.0, 1.0])), paths[-1])
        volume = volume + generator.normal(0, 5, volume.shape).astype(np.float32)
    options = ("--profile", "mr", "--planes", 4, "--precision", "bfloat16", "--device", "cpu")
    done = medqa("assess", *paths, *options, "--no-record", "--json")
    record = json.loads(done.out)
    assert record["metric"]["precision"] == "bfloat16"
    # 20 slices of 2 mm are 39 pixels of 1 mm in the planes across.
    slices = {one["plane"]: one["slices"] for one in record["planes"]["planes"]}
    assert slices == {"axial": 5, "coronal": 9, "sagittal": 10}
    assert medqa("assess", *paths, "--profile", "mr", "--device", "toaster").code == 2
    assert medqa("assess", *paths, "--precision", "int8").code == 2


def test_no_record_leaves_no_database(medqa: Medqa, ct: Path, tmp_path: Path) -> None:
    assert medqa("assess", ct, ct, "--no-record").code == 0
    assert not list(tmp_path.rglob("audit.db"))
    assert medqa("assess", ct, ct, "--db", tmp_path / "own.db").code == 0
    assert (tmp_path / "own.db").is_file()


# Every case: file name of the candidate or further arguments, and what the one line must say.
def _missing(ct: Path, folder: Path) -> list[object]:  # noqa: ARG001
    return [folder / "missing.dcm"]


def _text(ct: Path, folder: Path) -> list[object]:  # noqa: ARG001
    (folder / "text.dcm").write_text("This is no image.\n" * 30)
    return [folder / "text.dcm"]


def _truncated(ct: Path, folder: Path) -> list[object]:
    (folder / "truncated.dcm").write_bytes(ct.read_bytes()[:-5000])
    return [folder / "truncated.dcm"]


def _no_pixels(ct: Path, folder: Path) -> list[object]:
    dataset = pydicom.dcmread(ct)
    del dataset.PixelData
    dataset.save_as(folder / "no-pixels.dcm")
    return [folder / "no-pixels.dcm"]


def _unknown_syntax(ct: Path, folder: Path) -> list[object]:
    dataset = pydicom.dcmread(ct)
    dataset.compress(JPEG2000Lossless)
    path = folder / "jpip.dcm"
    dataset.save_as(path)
    # To JPIP Referenced, which nothing decodes; pydicom would not write it.
    path.write_bytes(
        path.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.94")
    )
    return [path]


def _other_shape(ct: Path, folder: Path) -> list[object]:
    dataset = pydicom.dcmread(ct)
    pixels = dataset.pixel_array[:100]
    dataset.Rows, dataset.PixelData = 100, pixels.tobytes()
    dataset.save_as(folder / "shape.dcm")
    return [folder / "shape.dcm"]


def _other_modality(ct: Path, folder: Path) -> list[object]:
    return [_changed(ct, folder / "modality.dcm", Modality="MR", RescaleType="HU")]


def _mask_off_the_grid(ct: Path, folder: Path) -> list[object]:
    Pillow.fromarray(np.full((64, 64), 255, np.uint8)).save(folder / "mask.png")
    return [ct, "--mask", folder / "mask.png"]


def _empty_mask(ct: Path, folder: Path) -> list[object]:
    Pillow.fromarray(np.zeros((128, 128), np.uint8)).save(folder / "mask.png")
    return [ct, "--mask", folder / "mask.png"]


def _box_outside(ct: Path, folder: Path) -> list[object]:
    boxes = {"annotations": [{"type": "nodule", "bbox": [100, 100, 140, 120]}]}
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return [ct, "--annotations", folder / "boxes.json"]


def _constant(ct: Path, folder: Path) -> list[object]:
    return [_changed(ct, folder / "constant.dcm", PixelData=b"\x10\x00" * 128 * 128)]


def _tiny(ct: Path, folder: Path) -> list[object]:
    pixels = np.arange(144, dtype=np.int16)
    return [_changed(ct, folder / "tiny.dcm", Rows=12, Columns=12, PixelData=pixels.tobytes())]


def _unknown_profile(ct: Path, folder: Path) -> list[object]:  # noqa: ARG001
    return [ct, "--profile", "cardiac"]


def _wrong_weights(ct: Path, folder: Path) -> list[object]:
    (folder / "alexnet-owt-7be5be79.pth").write_bytes(b"not weights")
    return [ct, "--backbone", "alex", "--weights", folder]


def _other_network(ct: Path, folder: Path) -> list[object]:
    return [ct, "--backbone", "vgg", "--weights", folder]


def _database_is_a_folder(ct: Path, folder: Path) -> list[object]:
    return [ct, "--db", folder]


def _database_is_no_database(ct: Path, folder: Path) -> list[object]:
    (folder / "notes.db").write_text("some notes " * 500)
    return [ct, "--db", folder / "notes.db"]


def _out_is_a_file(ct: Path, folder: Path) -> list[object]:
    (folder / "file").write_text("")
    return [ct, "--out", folder / "file"]


def _nan(_ct: Path, folder: Path) -> list[object]:
    volume = np.random.default_rng(0).random((40, 40, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "good.nii.gz")
    volume[3, 4, 1] = np.nan
    nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "nan.nii.gz")
    return [folder / "nan.nii.gz", "--profile", "mr"]


@pytest.mark.parametrize(
    ("make", "subject", "words"),
    [
        (_missing, "missing.dcm", "does not exist"),
        (_text, "text.dcm", "neither DICOM nor NIfTI"),
        (_truncated, "truncated.dcm", "truncated"),
        (_no_pixels, "no-pixels.dcm", "no pixel data"),
        (_unknown_syntax, "jpip.dcm", "JPIP Referenced"),
        (_other_shape, "shape.dcm", "100 x 128, the reference is 128 x 128"),
        (_other_modality, "modality.dcm", "modality is MR, the reference's is CT"),
        (_mask_off_the_grid, "mask.png", "64"),
        (_empty_mask, "mask.png", "marks nothing"),
        (_box_outside, "boxes.json", "outside"),
        (_constant, "constant.dcm", "every pixel is"),
        (_tiny, "tiny.dcm", "12 x 12"),
        (_unknown_profile, "cardiac", "no shipped profile"),
        (_wrong_weights, "alexnet-owt-7be5be79.pth", "replace it"),
        (_other_network, "vgg", "holds no weights"),
        (_database_is_a_folder, "", "database"),
        (_database_is_no_database, "notes.db", "not a database"),
        (_out_is_a_file, "file", "files cannot be written"),
        (_nan, "nan.nii.gz", "NaN"),
    ],
)
def test_each_mistake_is_one_line_and_exit_code_2(
    medqa: Medqa,
    ct: Path,
    tmp_path: Path,
    make: Callable[[Path, Path], list[object]],
    subject: str,
    words: str,
) -> None:
    arguments = make(ct, tmp_path)
    reference = tmp_path / "good.nii.gz" if make is _nan else ct
    done = medqa("assess", reference, *arguments)
    assert done.code == 2
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("medqa: ")
    assert subject in line
    assert words.lower() in line.lower()
    assert "; " in line  # what to do about it
    assert not list(tmp_path.rglob("*.part"))


def test_a_nifti_needs_a_profile(medqa: Medqa, tmp_path: Path, ct: Path) -> None:
    _nan(ct, tmp_path)
    good = tmp_path / "good.nii.gz"
    done = medqa("assess", good, good)
    assert done.code == 2
    assert "--profile" in done.err
    assert medqa("assess", good, good, "--profile", "mr", "--no-record").code == 0


def test_not_assessable_is_recorded_and_reported(medqa: Medqa, ct: Path, tmp_path: Path) -> None:
    other = _other_shape(ct, tmp_path)
    done = medqa("assess", ct, *other, "--out", tmp_path / "out", "--json")
    assert done.code == 2
    assert json.loads(done.out)["verdict"] == "not_assessable"
    assert "not_assessable" in medqa("audit", "list").out
    assert "Not assessable" in (tmp_path / "out/report.html").read_text()


def test_a_read_only_database_is_refused_before_the_work(
    medqa: Medqa, ct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medqa import pipeline

    def must_not_run(*_: object, **__: object) -> None:
        raise AssertionError("worked before it knew where to record")

    monkeypatch.setattr(pipeline, "run", must_not_run)
    done = medqa("assess", ct, ct, "--db", "/proc/audit.db")
    assert done.code == 2
    assert "/proc/audit.db" in done.err


# Folders ------------------------------------------------------------------------------------------


@pytest.fixture
def folders(shared_data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two series in each of two folders; one candidate is a compressed copy, one is harsh."""
    ours, theirs = tmp_path / "originals", tmp_path / "compressed"
    for folder in (ours, theirs):
        folder.mkdir()
    for number, name in enumerate(("IMG0001.dcm", "IMG0002.dcm", "IMG0003.dcm")):
        dataset = pydicom.dcmread(shared_data / "ct/small_series_torchio" / name)
        dataset.save_as(ours / name)
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        dataset.save_as(theirs / f"copy{number}.dcm")
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    dataset.save_as(ours / "small.dcm")
    dataset.compress(JPEG2000, j2k_cr=[60], generate_instance_uid=False)
    dataset.save_as(theirs / "small.dcm")
    return ours, theirs


def test_pair(medqa: Medqa, folders: tuple[Path, Path]) -> None:
    done = medqa("pair", *folders)
    assert done.code == 0, done.err
    assert done.out.count("same SOP instances") == 2
    record = json.loads(medqa("pair", *folders, "--json").out)
    assert [len(one["reference"]["files"]) for one in record["pairs"]] == [3, 1]
    assert record["missing"] == record["unmatched"] == record["ambiguous"] == []
    (folders[1] / "copy1.dcm").unlink()
    (folders[1] / "small.dcm").unlink()
    lacking = medqa("pair", *folders)
    assert lacking.code == 1
    assert "1 slices lack in the candidate: IMG0002.dcm" in lacking.out
    assert "small.dcm: no candidate" in lacking.out
    assert medqa("pair", folders[0], folders[0] / "missing").code == 2


def test_assess_each_pair_of_two_folders(
    medqa: Medqa, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = medqa("assess", *folders, "--out", out)
    assert done.code == 1, done.err  # the worst of both
    verdicts = {
        number: json.loads((out / number / "assessment.json").read_text())["verdict"]
        for number in ("001", "002")
    }
    assert verdicts["001"] == "diagnostic"
    assert verdicts["002"] in ("expert_review", "unsuitable")
    assert medqa("audit", "list").out.count("CT") == 2
    page = (out / "index.html").read_text()
    assert page.index("002/report.html") < page.index("001/report.html")  # the worst first
    assert "small.dcm" not in page  # file names may name patients
    records = json.loads(medqa("assess", *folders, "--json", "--no-record").out)
    assert [one["verdict"] for one in records] == [verdicts["001"], verdicts["002"]]
    assert medqa("assess", *folders, "--mask", "lesion.nii.gz").code == 2


def test_assess_a_series_of_a_folder(medqa: Medqa, folders: tuple[Path, Path]) -> None:
    done = medqa("assess", *folders, "--series", "123456", "--no-record")
    assert done.code == 0, done.err
    assert medqa("assess", folders[0], folders[1] / "small.dcm", "--series", "1").code == 1
    wrong = medqa("assess", *folders, "--series", "7", "--no-record")
    assert wrong.code == 2
    assert "series 123456: CT, 3 slices" in wrong.err


def test_a_missing_or_damaged_image_is_never_a_pass(
    medqa: Medqa, folders: tuple[Path, Path]
) -> None:
    (folders[1] / "small.dcm").unlink()
    missing = medqa("assess", *folders, "--no-record")
    assert missing.code == 1
    assert "small.dcm: no candidate" in missing.err
    assert "diagnostic" in missing.out
    (folders[1] / "small.dcm").write_bytes(b"junk" * 99)
    damaged = medqa("assess", *folders, "--no-record")
    assert damaged.code == 2
    assert "named .dcm but is not DICOM" in damaged.err
    (folders[1] / "small.dcm").unlink()
    (folders[1] / "copy1.dcm").unlink()
    partly = medqa("assess", *folders, "--no-record")
    assert partly.code == 2  # two slices cannot be held against three
    assert "IMG0002.dcm" in partly.err


def test_nothing_is_assessed_where_a_pair_is_ambiguous(
    medqa: Medqa, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset = pydicom.dcmread(folders[1] / "small.dcm")
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.save_as(folders[1] / "again.dcm")
    done = medqa("assess", *folders, "--out", tmp_path / "out")
    assert done.code == 2
    assert "1 reference and 2 candidates belong together by same SOP instances" in done.err
    assert not (tmp_path / "out").exists()
    assert medqa("pair", *folders).code == 1


def test_one_image_in_each_folder_needs_no_pairing(
    medqa: Medqa, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    for folder in folders:
        (folder / "small.dcm").unlink()
    labels = nib.Nifti1Image(np.zeros((88, 128, 3), np.uint8), np.eye(4))
    nib.save(labels, folders[0] / "labels.nii.gz")  # a mask, no second reference
    done = medqa("assess", *folders, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["inputs"]["reference"]["shape"] == [3, 128, 88]
    assert (tmp_path / "out/report.html").is_file()


def test_inspect(medqa: Medqa, ct: Path, harsh: Path, tmp_path: Path) -> None:
    done = medqa("inspect", ct, harsh)
    assert done.code == 0, done.err
    assert "axial, pixels of 0.6615 x 0.6615 mm" in done.out
    assert "measured" in done.out
    dataset = pydicom.dcmread(ct)
    assert dataset.PatientID not in done.out
    assert dataset.PatientID in medqa("inspect", ct, "--identifiers").out
    found = json.loads(medqa("inspect", harsh, "--json").out)
    assert found[0]["transfer_syntaxes"] == ["JPEG 2000 Image Compression"]
    text = _text(ct, tmp_path)[0]
    partly = medqa("inspect", ct, text)
    assert partly.code == 2
    assert "CT Image Storage" in partly.out
    assert "neither DICOM nor NIfTI" in partly.err


def test_profiles(medqa: Medqa) -> None:
    listed = medqa("profiles", "list")
    assert listed.code == 0
    assert "mammography" in listed.out
    assert "0.08" in listed.out
    shown = medqa("profiles", "show", "ct")
    assert shown.out == (Path(__file__).parents[1] / "thresholds/ct.toml").read_text("utf-8")
    assert medqa("profiles", "show", "nothing").code == 2


def test_weights(medqa: Medqa, shared_weights: Path, tmp_path: Path) -> None:
    assert "not on this machine" in medqa("weights", "list").out
    imported = medqa("weights", "import", shared_weights)
    assert imported.code == 0
    assert "squeeze" in imported.out
    verified = medqa("weights", "verify")
    assert verified.code == 0
    assert verified.out.count("as pinned") == 3
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"damaged")
    assert medqa("weights", "verify", "--weights", tmp_path).code == 2


def test_doctor(medqa: Medqa, tmp_path: Path) -> None:
    fine = medqa("doctor")
    assert fine.code == 0
    for part in ("torch", "device", "network gray", "JPEG 2000", "audit database"):
        assert part in fine.out
    broken = medqa("doctor", "--db", tmp_path)
    assert broken.code == 2
    assert "fails" in broken.out


def test_wrong_use(medqa: Medqa) -> None:
    assert medqa("assess").code == 2
    assert medqa("nonsense").code == 2
    assert medqa("assess", "a", "b", "--backbone", "resnet").code == 2
    version = medqa("--version")
    assert (version.code, version.out.startswith("medqa 0.")) == (0, True)
    alone = medqa()
    assert alone.out.count("medqa assess ") == 3
    assert "medqa pair " in alone.out


def _shell(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medqa", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603


def test_in_a_shell_too(ct: Path, tmp_path: Path) -> None:
    done = _shell("assess", ct, tmp_path / "missing.dcm", "--no-record")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"medqa: {tmp_path / 'missing.dcm'}: does not exist; check the path"
    ]


def test_help_answers_without_the_heavy_imports() -> None:
    # What takes the time is importing torch; the time itself would depend on the machine.
    code = (
        "import sys; sys.argv = ['medqa', '--help']\n"
        "from medqa.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'monai', 'numpy', 'pydicom', 'sqlalchemy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: medqa" in done.stdout


def test_render(medqa: Medqa, ct: Path, tmp_path: Path) -> None:
    # PS3.3 C.11.2.1.2.1, written out; the slope of this file is 1 and its intercept -1024.
    values = pydicom.dcmread(ct).pixel_array - 1024.0
    expected = np.clip((values - 39.5) / 399 + 0.5, 0, 1) * 255
    for number, window in enumerate(([], ["--window", "40,400"], ["--window", "soft tissue"])):
        picture = tmp_path / f"{number}.png"
        assert medqa("render", ct, *window, "-o", picture).code == 0
        found = np.asarray(Pillow.open(picture)).astype(float)
        assert np.abs(found - expected).max() <= 0.51
    for wrong in (["--window", "liver"], ["--frame", 1], ["--window", "2"]):
        done = medqa("render", ct, *wrong, "-o", tmp_path / "none.png")
        assert done.code == 2
        assert done.err.startswith("medqa: ")
    assert not (tmp_path / "none.png").exists()


def test_profiles_check_and_diff(medqa: Medqa, tmp_path: Path) -> None:
    shown = medqa("profiles", "show", "ct").out
    own = tmp_path / "own.toml"
    own.write_text(shown.replace("value = 0.100", "value = 0.090"), "utf-8")
    assert medqa("profiles", "check", own).code == 0
    same = medqa("profiles", "diff", "ct", "ct")
    assert same.code == 0
    differ = medqa("profiles", "diff", "ct", own)
    assert differ.code == 1
    assert "limits.diagnostic.value" in differ.out
    own.write_text(shown.replace("value = 0.100", 'value = "0.1"'), "utf-8")
    wrong = medqa("profiles", "check", own)
    assert wrong.code == 2
    assert "limits.diagnostic.value" in wrong.err


def test_a_task_has_limits_of_its_own(medqa: Medqa, ct: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(ct)
    dataset.compress(JPEG2000, j2k_cr=[16], generate_instance_uid=True)
    dataset.save_as(tmp_path / "candidate.dcm")
    given = ("assess", ct, tmp_path / "candidate.dcm", "--json", "--no-record")
    assert json.loads(medqa(*given).out)["profile"]["name"] == "ct"
    strict = medqa(*given, "--task", "compression")
    assert strict.code == 1
    assert json.loads(strict.out)["profile"]["name"] == "ct-compression"
    none = medqa(*given, "--task", "denoising")
    assert none.code == 2
    assert "no shipped profile is for denoising of CT" in none.err
    refused = medqa(*given, "--require-calibrated")
    assert refused.code == 2
    assert "its limits are provisional" in refused.err


def test_results_as_dicom(medqa: Medqa, ct: Path, harsh: Path, tmp_path: Path) -> None:
    done = medqa("assess", ct, harsh, "--dicom", tmp_path / "dicom", "--no-record")
    assert done.code == 1
    found = {path.name: pydicom.dcmread(path) for path in (tmp_path / "dicom").iterdir()}
    assert set(found) == {"sr.dcm", "summary.dcm", "distance-map.dcm"}
    assert found["sr.dcm"].StudyInstanceUID == pydicom.dcmread(ct).StudyInstanceUID
    nifti = tmp_path / "image.nii"
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 3), np.int16), np.eye(4)), nifti)
    refused = medqa("assess", nifti, nifti, "--profile", "ct", "--dicom", tmp_path / "none")
    assert refused.code == 2
    assert "no DICOM object can refer to it" in refused.err
    assert medqa("audit", "list").out.count("\n") < 5  # refused before the work: no record


def test_a_correction_names_what_it_corrects(medqa: Medqa, ct: Path, harsh: Path) -> None:
    first = json.loads(medqa("assess", ct, harsh, "--json").out)["assessment_id"]
    given = ("--supersedes", first, "--reason", "wrong file", "--user", "a.physicist")
    second = json.loads(medqa("assess", ct, ct, *given, "--json").out)["assessment_id"]
    assert f"SUPERSEDED by {second}" in medqa("audit", "show", first).out
    shown = medqa("audit", "show", second).out
    assert first in shown
    assert "wrong file" in shown
    assert "a.physicist" in shown
    again = medqa("assess", ct, ct, *given)
    assert again.code == 2
    assert medqa("assess", ct, ct, *given, "--no-record").code == 2


def test_records_are_found_by_identifier_under_every_key(medqa: Medqa, ct: Path) -> None:
    patient = str(pydicom.dcmread(ct).PatientID)
    first = json.loads(medqa("assess", ct, ct, "--json").out)["assessment_id"][:8]
    assert medqa("audit", "rotate-key").code == 0
    second = json.loads(medqa("assess", ct, ct, "--json").out)["assessment_id"][:8]
    for identifier in (patient, str(pydicom.dcmread(ct).StudyInstanceUID)):
        listed = medqa("audit", "list", "--about", identifier).out
        assert first in listed
        assert second in listed
    nobody = medqa("audit", "list", "--about", "nobody").out
    assert first not in nobody
    assert medqa("audit", "verify").code == 0
