from __future__ import annotations

from pathlib import Path

import pytest
from enhancing import SOURCES, cut_out, write_slice
from studying import write_table

from medqa.errors import UsageError
from medqa.studies.enhancement.cases import from_folders, from_table


@pytest.fixture
def folders(shared_data: Path, tmp_path: Path) -> Path:
    for name in SOURCES:
        ds, hu = cut_out(shared_data, name)
        for folder in ("noisy", "one", "two", "clean"):
            write_slice(ds, hu, tmp_path / folder / f"{name}.dcm")
    return tmp_path


def test_folders_are_paired(folders: Path) -> None:
    found = from_folders(
        "denoising",
        str(folders / "noisy"),
        {"one": str(folders / "one"), "two": str(folders / "two")},
        str(folders / "clean"),
    )
    assert [case.name for case in found.cases] == ["a.dcm", "b.dcm"]
    assert found.methods == ("one", "two")
    assert found.referenced
    for case, name in zip(found.cases, "ab", strict=True):
        assert case.input == (str(folders / "noisy" / f"{name}.dcm"),)
        assert case.outputs["two"] == (str(folders / "two" / f"{name}.dcm"),)
        assert case.reference == (str(folders / "clean" / f"{name}.dcm"),)
        assert not case.missing
    assert found.left == ()


def test_what_has_no_counterpart_stays_with_the_reason(folders: Path) -> None:
    (folders / "two" / "b.dcm").unlink()
    (folders / "clean" / "a.dcm").unlink()
    found = from_folders(
        "denoising",
        str(folders / "noisy"),
        {"one": str(folders / "one"), "two": str(folders / "two")},
        str(folders / "clean"),
    )
    first, second = found.cases
    assert first.no_reference
    assert first.reference is None
    assert second.no_reference == ""
    assert set(second.missing) == {"two"}
    assert set(second.outputs) == {"one"}


def test_a_damaged_file_and_a_stranger_are_not_passed_over(folders: Path) -> None:
    (folders / "one" / "c.dcm").write_bytes(b"no image")
    (folders / "noisy" / "b.dcm").unlink()
    for name in ("one", "two"):
        (folders / name / "b.dcm").rename(folders / name / "x.dcm")
    paths = {name: str(folders / name) for name in ("one", "two")}
    found = from_folders("denoising", str(folders / "noisy"), paths)
    assert len(found.cases) == 1
    assert len(found.left) >= 2  # c.dcm and x.dcm
    assert any("c.dcm" in line for line in found.left)


def test_two_files_are_one_case(folders: Path) -> None:
    found = from_folders(
        "denoising",
        str(folders / "noisy" / "a.dcm"),
        {"one": str(folders / "one" / "b.dcm")},
        masks=["mask.png"],
    )
    assert len(found.cases) == 1
    assert found.cases[0].masks == ("mask.png",)
    assert not found.referenced


def test_one_mask_is_not_for_several_images(folders: Path) -> None:
    with pytest.raises(UsageError, match="2 images for one mask"):
        from_folders(
            "denoising", str(folders / "noisy"), {"one": str(folders / "one")}, masks=["m.png"]
        )


def test_a_table(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "study.csv",
        [
            {"image": "p1", "case": "p", "noisy": "n/1", "clean": "c/1", "method": "x",
             "denoised": "x/1", "mask": "m1;m2", "annotations": ""},
            {"image": "p1", "case": "p", "noisy": "n/1", "clean": "c/1", "method": "y",
             "denoised": "y/1", "mask": "m1;m2", "annotations": ""},
            {"image": "p2", "case": "p", "noisy": "n/2", "clean": "", "method": "x",
             "denoised": "x/2", "mask": "", "annotations": ""},
        ],
    )  # fmt: skip
    found = from_table("denoising", path)
    first, second = found.cases
    assert found.methods == ("x", "y")
    assert first.outputs == {"x": str(tmp_path / "x/1"), "y": str(tmp_path / "y/1")}
    assert first.masks == (str(tmp_path / "m1"), str(tmp_path / "m2"))
    assert (first.group, second.group) == ("p", "p")
    assert set(second.missing) == {"y"}
    assert second.no_reference  # the study has references, so this one must


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"image": "a", "noisy": "n", "denoised": "d"}], "no column method"),
        (
            [{"image": "a", "noisy": "n", "denoised": "d", "method": "x", "dose": "1"}],
            "unknown column dose",
        ),
        ([{"image": "a", "noisy": "n", "denoised": "d", "method": "x"}] * 2, "line 3.*already"),
        (
            [
                {"image": "a", "noisy": "n", "denoised": "d", "method": "x"},
                {"image": "a", "noisy": "other", "denoised": "d", "method": "y"},
            ],
            "line 3, column noisy: differs from line 2",
        ),
        ([{"image": "a", "noisy": "", "denoised": "d", "method": "x"}], "line 2, column noisy"),
    ],
)
def test_a_table_that_is_wrong(tmp_path: Path, rows: list[dict[str, object]], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        from_table("denoising", write_table(tmp_path / "study.csv", rows))
