"""What a folder holds, against the headers of real files and against files made to be awkward."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medqa import catalogue
from medqa.catalogue import look, plane_words, select, series_words
from medqa.errors import ReadError

Put = Callable[..., Path]


@pytest.fixture
def put(shared_data: Path, tmp_path: Path) -> Put:
    """Copy a shared file into a folder, edited."""

    def done(source: str, name: str, **elements: object) -> Path:
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ds = pydicom.dcmread(shared_data / source)
        for keyword, value in elements.items():
            setattr(ds, keyword, value)
        ds.save_as(path)
        return tmp_path / "folder"

    return done


def test_every_file_of_a_series_is_in_one_image(shared_data: Path) -> None:
    """Against pydicom's own reading of each header."""
    folder = shared_data / "mr/siemens"
    by_series: dict[str, set[str]] = {}
    for path in folder.iterdir():
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        by_series.setdefault(str(ds.SeriesInstanceUID), set()).add(str(ds.SOPInstanceUID))
    found = look(folder)
    assert {str(one.series_uid): set(one.instances) for one in found.entries} == by_series
    assert len(found.entries) == 5
    for one in found.entries:
        ds = pydicom.dcmread(one.paths[0], stop_before_pixels=True)
        assert one.grid.slices == len(one.paths)
        assert (one.grid.rows, one.grid.columns) == (ds.Rows, ds.Columns)
        assert one.series_number == ds.SeriesNumber
        assert one.description == ds.SeriesDescription
        assert one.frame_of_reference_uid == ds.FrameOfReferenceUID
        np.testing.assert_allclose(one.grid.cosines, ds.ImageOrientationPatient, atol=1e-9)
        np.testing.assert_allclose(one.grid.positions_mm[0], ds.ImagePositionPatient, atol=1e-9)
        np.testing.assert_allclose(one.grid.spacing_mm, ds.PixelSpacing)
        assert one.related == {item.ReferencedSOPInstanceUID for item in ds.ReferencedImageSequence}
    kinds = [series_words(one).rsplit(", ", 2) for one in found.entries]
    assert [words[1] for words in kinds if "tilted" in words[2]].count("axial") == 3


def test_nothing_but_images(shared_data: Path, put: Put) -> None:
    """Segmentations, RT structures, hidden files, DICOMDIR and notes are passed over."""
    for name in ("ct/liver_3slice_with_SEG", "ct/ct_with_RTSTRUCT"):
        (one,) = look(shared_data / name).entries
        assert one.modality == "CT"
    folder = put("ct/misc/CT_small.dcm", "a.dcm")
    put("ct/misc/CT_small.dcm", ".hidden.dcm")
    put("ct/misc/CT_small.dcm", ".hidden/b.dcm")
    (folder / "notes.txt").write_text("of another format")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder)
    found = look(folder)
    assert [one.names for one in found.entries] == [("a.dcm",)]
    assert not found.refused


def test_subfolders_and_their_limits(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put("ct/misc/CT_small.dcm", "a/b/c/d.dcm")
    put("mr/misc/MR_small.dcm", "e.dcm")
    assert [one.names[0] for one in look(folder).entries] == ["a/b/c/d.dcm", "e.dcm"]
    assert [one.names[0] for one in look(folder, series_only=True).entries] == ["e.dcm"]
    monkeypatch.setattr(catalogue, "MAX_DEPTH", 2)
    assert [one.names[0] for one in look(folder).entries] == ["e.dcm"]
    monkeypatch.setattr(catalogue, "MAX_FILES", 0)
    with pytest.raises(ReadError, match="holds more than 0 files"):
        look(folder)
    with pytest.raises(ReadError, match="cannot be read"):
        look(folder / "missing")


def test_what_should_be_an_image_and_is_not_is_named(put: Put) -> None:
    folder = put("ct/misc/CT_small.dcm", "good.dcm")
    (folder / "junk.dcm").write_bytes(b"junk" * 99)
    (folder / "cut.dcm").write_bytes((folder / "good.dcm").read_bytes()[:700])
    (folder / "junk.nii.gz").write_bytes(b"junk" * 200)
    found = look(folder)
    assert [one.names for one in found.entries] == [("good.dcm",)]
    assert {Path(error.subject).name for error in found.refused} == {
        "junk.dcm",
        "cut.dcm",
        "junk.nii.gz",
    }


def test_the_same_instance_twice_is_refused(put: Put) -> None:
    folder = put("ct/misc/CT_small.dcm", "a.dcm")
    put("ct/misc/CT_small.dcm", "b.dcm")
    found = look(folder)
    assert not found.entries
    assert "same instance twice" in str(found.refused[0])
    assert "a.dcm, b.dcm" in found.refused[0].detail


def test_a_series_with_a_localiser_and_two_orientations(put: Put) -> None:
    source = "ct/misc/CT_small.dcm"
    for number in range(1, 4):
        place = {"ImagePositionPatient": [0, 0, 5 * number], "InstanceNumber": number}
        folder = put(source, f"{number}.dcm", SOPInstanceUID=f"1.{number}", **place)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "InstanceNumber": 0}
    upright = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    put(source, "scout.dcm", SOPInstanceUID="1.4", **scout)
    put(source, "coronal.dcm", SOPInstanceUID="1.5", InstanceNumber=9, **upright)
    found = look(folder)
    assert [(one.names, one.part) for one in found.entries] == [
        (("1.dcm", "2.dcm", "3.dcm"), 2),
        (("coronal.dcm",), 3),
        (("scout.dcm",), 1),
    ]
    assert {series_words(one) for one in found.entries} == {
        "series 1/1: CT, 1 slice of 128 x 128, axial, localiser",
        "series 1/2: CT, 3 slices of 128 x 128, axial",
        "series 1/3: CT, 1 slice of 128 x 128, coronal",
    }
    assert select(found, "1/2").grid.slices == 3
    with pytest.raises(ReadError, match="holds 3 images of series 1 "):
        select(found, "1")


def test_projections_and_multi_frame_files_stand_alone(shared_data: Path, put: Put) -> None:
    folder = put("mg/GH133.dcm", "left.dcm")
    put("mg/GH133.dcm", "right.dcm", SOPInstanceUID="1.2.3", InstanceNumber=5)
    found = look(folder)
    assert [one.grid.slices for one in found.entries] == [1, 1]
    assert [one.part for one in found.entries] == [1, 2]
    (cine,) = look(shared_data / "xa").entries
    assert cine.grid.slices == 96
    assert cine.grid.positions_mm is None


def test_frames_have_their_own_places(shared_data: Path) -> None:
    entries = {one.names[0]: one for one in look(shared_data / "mr/enhanced_multiframe").entries}
    ds = pydicom.dcmread(shared_data / "mr/enhanced_multiframe/6_1.dcm")
    places = [
        tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))
        for group in ds.PerFrameFunctionalGroupsSequence
    ]
    assert set(entries["6_1.dcm"].grid.positions_mm or ()) == set(places)


def test_sources_are_found_wherever_they_stand(shared_data: Path, put: Put) -> None:
    ds = pydicom.dcmread(shared_data / "ct/misc/693_J2KI.dcm")
    source = ds.SourceImageSequence
    item = pydicom.Dataset()
    item.SourceImageSequence = source
    group = pydicom.Dataset()
    group.DerivationImageSequence = [item]
    for name, elements in {
        "at the top": {"SourceImageSequence": source},
        "derivation": {"DerivationImageSequence": [item]},
        "shared": {"SharedFunctionalGroupsSequence": [group]},
        "per frame": {"PerFrameFunctionalGroupsSequence": [group]},
    }.items():
        folder = put("ct/misc/CT_small.dcm", f"{name}/a.dcm", **elements)
        (one,) = look(folder / name).entries
        assert one.sources == {source[0].ReferencedSOPInstanceUID}, name


def test_nifti_headers(shared_data: Path) -> None:
    import nibabel as nib

    found = look(shared_data / "mr/nifti")
    for one in found.entries:
        if one.kind == "nifti":
            shape = (*nib.load(one.paths[0]).shape, 1, 1)[:4]
            grid = one.grid
            assert (grid.columns, grid.rows, grid.slices) == (*shape[:2], shape[2] * shape[3])


# Choosing ----------------------------------------------------------------------------------------


def test_choosing_a_series(shared_data: Path) -> None:
    found = look(shared_data / "mr/siemens")
    chosen = select(found, "13")
    assert chosen.description == "cor_asc_36sl"
    uid = str(chosen.series_uid)
    assert select(found, uid) == select(found, uid[20:]) == chosen
    for wrong in ("14", "3", uid[-5:], "13/1"):
        with pytest.raises(ReadError, match="holds 0 images of series"):
            select(found, wrong)


def test_the_list_names_no_patient_and_no_description(shared_data: Path) -> None:
    with pytest.raises(ReadError) as caught:
        select(look(shared_data / "mr/siemens"))
    reason = caught.value.reason
    assert reason.startswith("holds 5 images (series 9: MR, 2 slices of 384 x 384, axial")
    assert "asc_36sl" not in reason + caught.value.mend
    assert "cor_asc_36sl" in caught.value.detail
    assert not any(
        str(one.series_uid) in str(caught.value) for one in look(shared_data / "mr/siemens").entries
    )


@pytest.mark.parametrize(
    ("cosines", "words"),
    [
        ((1, 0, 0, 0, 1, 0), "axial"),
        ((-1, 0, 0, 0, 1, 0), "axial"),
        ((1, 0, 0, 0, 0, -1), "coronal"),
        ((0, 1, 0, 0, 0, -1), "sagittal"),
        ((1, 0, 0, 0, 0.5, 0.75**0.5), "coronal, tilted by 30°"),
    ],
)
def test_planes_in_words(cosines: tuple[float, ...], words: str) -> None:
    assert plane_words(cosines) == words


def test_headers_only(shared_data: Path, tmp_path: Path) -> None:
    """A file whose pixels are missing is an entry all the same: nothing is decoded."""
    shutil.copy(shared_data / "malformed/MR_truncated.dcm", tmp_path)
    (one,) = look(tmp_path).entries
    assert one.modality == "MR"
