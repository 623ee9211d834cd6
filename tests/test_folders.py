"""What is compared where folders are given; the assessments themselves are in test_cli."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from medqa.catalogue import look
from medqa.errors import ReadError, UsageError
from medqa.folders import as_record, choose, leftover
from medqa.pairing import pair


def test_two_files_stand_for_themselves() -> None:
    assert choose("a.dcm", "b.dcm").given == (("a.dcm", "b.dcm"),)
    with pytest.raises(UsageError, match="is not a folder"):
        choose("a.dcm", "b.dcm", "2")


def test_one_image_each_is_meant_whatever_the_headers_say(shared_data: Path) -> None:
    ours, theirs = (str(shared_data / name) for name in ("ct/head_series_GE", "mr/uih_t1"))
    choice = choose(ours, theirs)
    assert choice.pairing is None
    assert [len(one) for one in choice.given[0]] == [12, 8]


def test_a_chosen_series_against_a_file_and_a_folder(shared_data: Path) -> None:
    folder = shared_data / "mr/siemens"
    files = tuple(str(folder / f"jp2k{n}.dcm") for n in (1, 2))
    assert choose(str(folder), "x.dcm", "26").given == ((files, "x.dcm"),)
    assert choose(str(folder), str(folder), "26").given == ((files, files),)
    assert len(choose(str(folder), str(folder)).given) == 5
    # Five images against one file: reading the folder says that one must be chosen.
    assert choose(str(folder), "x.dcm").given == ((str(folder), "x.dcm"),)


def test_a_series_of_a_folder_with_damaged_files_is_not_chosen(
    shared_data: Path, tmp_path: Path
) -> None:
    for name in ("01.dcm", "02.dcm"):
        shutil.copy(shared_data / "ct/head_series_GE" / name, tmp_path)
    (tmp_path / "03.dcm").write_bytes(b"junk" * 99)
    with pytest.raises(ReadError, match="is not DICOM"):
        choose(str(tmp_path), "x.dcm", "2")
    with_it = choose(str(tmp_path), str(shared_data / "ct/head_series_GE"))
    assert len(with_it.refused) == 1


def test_nothing_to_compare(shared_data: Path) -> None:
    with pytest.raises(UsageError, match="holds no candidate for any reference"):
        choose(str(shared_data / "mr/siemens"), str(shared_data / "mr/uih_t1"))


def test_the_record_names_no_identifier(shared_data: Path) -> None:
    ours = look(shared_data / "ct/head_series_GE")
    found = pair(ours, look(shared_data / "mr/uih_t1"))
    text = json.dumps(as_record(found)) + str(leftover(found, ()))
    assert str(ours.entries[0].study_uid) not in text
    assert "series 2: CT, 12 slices" in text
