"""Which candidate belongs to which reference, on copies made of real series."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid

from medqa.catalogue import Catalogue, Entry, Grid, look
from medqa.pairing import RULES, Pairing, pair

Edit = Callable[[Dataset], None]


def copy(source: Path, target: Path, edit: Edit | None = None, names: Sequence[str] = ()) -> Path:
    """Copy the DICOM files of a folder, or some of them, edited."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.suffix in (".gz", ".txt") or (names and path.name not in names):
            continue
        ds = pydicom.dcmread(path)
        if edit is not None:
            edit(ds)
        ds.save_as(target / path.name)
    return target


def derived(ds: Dataset) -> None:
    """A processed copy as the standard wants it: new UIDs, and its source named."""
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = (
        ds.SOPClassUID,
        ds.SOPInstanceUID,
    )
    ds.SourceImageSequence = [source]
    renewed(ds)


def renewed(ds: Dataset) -> None:
    """New series and instance UIDs, the same for the same original."""
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=["new", ds.get("SeriesInstanceUID", "")])
    ds.SOPInstanceUID = generate_uid(entropy_srcs=["new", ds.SOPInstanceUID])
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID


def renumbered(ds: Dataset) -> None:
    renewed(ds)
    ds.SeriesNumber = int(ds.SeriesNumber or 0) + 1000
    ds.InstanceNumber = int(ds.InstanceNumber) + 1000


def anonymised(ds: Dataset) -> None:
    renumbered(ds)
    ds.StudyInstanceUID = generate_uid(entropy_srcs=["new", ds.StudyInstanceUID])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=["new", ds.FrameOfReferenceUID])


def of(reference: Path, candidate: Path) -> Pairing:
    return pair(look(reference), look(candidate))


@pytest.fixture
def ct(shared_data: Path, tmp_path: Path) -> Path:
    """20 slices, JPEG 2000, with the instance UIDs that the originals lack."""

    def complete(ds: Dataset) -> None:
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[str(ds.InstanceNumber)])
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID

    return copy(shared_data / "ct/totalsegmentator_dicom", tmp_path / "reference", complete)


def compressed(ds: Dataset) -> None:
    ds.decompress(generate_instance_uid=False)
    ds.compress(RLELossless, generate_instance_uid=False)


def compressed_and_derived(ds: Dataset) -> None:
    compressed(ds)
    derived(ds)


@pytest.mark.parametrize(
    ("edit", "rule"),
    [(compressed, "same SOP instances"), (compressed_and_derived, "source image sequence")],
)
def test_a_series_against_its_compressed_copy_is_one_pair(
    ct: Path, tmp_path: Path, edit: Edit, rule: str
) -> None:
    (one,) = of(ct, copy(ct, tmp_path / "rle", edit)).pairs
    assert (one.rule, one.lacking) == (rule, ())
    assert one.reference.grid == one.candidate.grid
    assert len(one.candidate.paths) == len(set(one.reference.instances)) == 20


def test_without_identifiers_there_are_the_names(shared_data: Path, tmp_path: Path) -> None:
    """These real files have neither instance nor series UIDs, and a label image beside them."""
    reference = shared_data / "ct/totalsegmentator_dicom"
    found = of(reference, copy(reference, tmp_path / "b"))
    assert [(one.rule, len(one.reference.paths)) for one in found.pairs] == [("file name", 20)]
    assert [one.names[0] for one in found.missing] == ["example_seg_dicom.nii.gz"]


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (None, "same SOP instances"),
        (derived, "source image sequence"),
        (renewed, "series and instance numbers"),
        (renumbered, "geometry and series description"),
        (anonymised, "file name"),
    ],
)
def test_the_surest_rule_that_holds_pairs(
    shared_data: Path, tmp_path: Path, edit: Edit | None, rule: str
) -> None:
    found = of(shared_data / "mr/uih_t1", copy(shared_data / "mr/uih_t1", tmp_path / "b", edit))
    assert [one.rule for one in found.pairs] == [rule]
    assert found.complete


def test_geometry_alone(shared_data: Path, tmp_path: Path) -> None:
    def called_otherwise(ds: Dataset) -> None:
        renumbered(ds)
        ds.SeriesDescription = "processed"

    candidate = copy(shared_data / "ct/head_series_GE", tmp_path / "b/sub", called_otherwise)
    (one,) = of(shared_data / "ct/head_series_GE", candidate.parent).pairs
    assert one.rule == "geometry"


def test_a_time_series_is_one_image(shared_data: Path, tmp_path: Path) -> None:
    candidate = copy(shared_data / "mr/philips_dti", tmp_path / "b", renewed)
    (one,) = of(shared_data / "mr/philips_dti", candidate).pairs
    assert one.reference.grid.slices == one.candidate.grid.slices == 12
    assert not one.lacking


def test_several_series_of_one_folder(shared_data: Path, tmp_path: Path) -> None:
    """Five series of one study; two of them have one grid."""
    reference = shared_data / "mr/siemens"
    for edit, rules in (
        (renewed, {"series and instance numbers"}),
        (renumbered, {"geometry and series description", "geometry"}),
        (anonymised, {"file name"}),
    ):
        found = of(reference, copy(reference, tmp_path / edit.__name__, edit))
        assert {one.rule for one in found.pairs} <= rules
        assert found.complete, found
        assert len(found.pairs) == 5
        for one in found.pairs:  # the copies kept their file names, whatever paired them
            assert one.reference.names == one.candidate.names


def test_two_series_of_one_grid_and_other_names_are_ambiguous(
    shared_data: Path, tmp_path: Path
) -> None:
    def anonymous(ds: Dataset) -> None:
        renumbered(ds)
        ds.SeriesDescription = "processed"

    names = ("jp2k1.dcm", "jp2k2.dcm", "jpg1.dcm", "jpg2.dcm")
    reference = copy(shared_data / "mr/siemens", tmp_path / "a", names=names)
    candidate = copy(reference, tmp_path / "b/sub", anonymous).parent
    found = of(reference, candidate)
    assert (found.pairs, found.missing, found.unmatched) == ((), (), ())
    assert not found.complete
    (one,) = found.ambiguous
    assert (len(one.references), len(one.candidates), one.rule) == (2, 2, "geometry")
    # The same two in folders of the same names are told apart by them.
    assert len(of(reference, candidate / "sub").pairs) == 2


def test_missing_instances_are_named(shared_data: Path, tmp_path: Path) -> None:
    names = [f"{n:02d}.dcm" for n in range(1, 13) if n not in (4, 9)]
    for edit in (None, derived, renewed, anonymised):
        folder = tmp_path / (edit.__name__ if edit else "same")
        candidate = copy(shared_data / "ct/head_series_GE", folder, edit, names)
        found = of(shared_data / "ct/head_series_GE", candidate)
        (one,) = found.pairs
        assert one.short_by == 2
        assert one.lacking == ("04.dcm", "09.dcm")
        assert not found.complete


def test_missing_and_unmatched_images_are_listed(shared_data: Path, tmp_path: Path) -> None:
    reference, candidate = tmp_path / "a", tmp_path / "b"
    for number, source in enumerate(("ct/head_series_GE", "mr/uih_t1", "ct/ct_with_RTSTRUCT")):
        if number != 1:
            copy(shared_data / source, reference / str(number))
        if number != 2:
            copy(shared_data / source, candidate / str(number), derived)
    found = of(reference, candidate)
    assert [one.reference.modality for one in found.pairs] == ["CT"]
    assert [len(one.paths) for one in found.missing] == [2]
    assert [one.modality for one in found.unmatched] == ["MR"]


def test_two_candidates_for_one_reference_are_ambiguous(shared_data: Path, tmp_path: Path) -> None:
    """Even if one of them has the reference's file names: both say that they were made of it."""
    reference = copy(shared_data / "ct/ct_with_RTSTRUCT", tmp_path / "a", names=["ct_1.dcm"])
    copy(reference, tmp_path / "b", derived)

    def other(ds: Dataset) -> None:
        derived(ds)
        ds.SOPInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()

    copy(reference, tmp_path / "b/other", other)
    found = of(reference, tmp_path / "b")
    (one,) = found.ambiguous
    assert (len(one.references), len(one.candidates)) == (1, 2)
    assert one.rule == "source image sequence"
    assert not found.pairs


def test_real_derived_images(shared_data: Path, tmp_path: Path) -> None:
    """Lossy images of pydicom's collection name their originals, which are there too."""
    for name in ("ct/misc/693_J2KR.dcm", "us/US1_UNCR.dcm"):
        (tmp_path / "a").mkdir(exist_ok=True)
        shutil.copy(shared_data / name, tmp_path / "a")
    for name in ("ct/misc/693_J2KI.dcm", "us/US1_J2KI.dcm"):
        (tmp_path / "b").mkdir(exist_ok=True)
        shutil.copy(shared_data / name, tmp_path / "b")
    found = of(tmp_path / "a", tmp_path / "b")
    assert {(one.reference.names[0], one.candidate.names[0], one.rule) for one in found.pairs} == {
        ("693_J2KR.dcm", "693_J2KI.dcm", "source image sequence"),
        ("US1_UNCR.dcm", "US1_J2KI.dcm", "source image sequence"),
    }


def test_nifti_pairs_by_name_only(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "b/sub").mkdir(parents=True)
    orientations = shared_data / "mr/nifti_orientations"
    for name in ("RAS", "LPS"):
        shutil.copy(orientations / f"{name}.nii.gz", tmp_path / "b")
    shutil.copy(orientations / "AIL.nii.gz", tmp_path / "b/sub")
    found = of(orientations, tmp_path / "b")
    assert [(one.reference.names, one.candidate.names) for one in found.pairs] == [
        (("LPS.nii.gz",), ("LPS.nii.gz",)),
        (("RAS.nii.gz",), ("RAS.nii.gz",)),
    ]
    assert [one.names for one in found.unmatched] == [("sub/AIL.nii.gz",)]
    assert len(found.missing) == 6


def test_a_name_does_not_pair_what_headers_contradict(shared_data: Path, tmp_path: Path) -> None:
    for folder, source in (("a", "ct/misc/CT_small.dcm"), ("b", "mr/misc/MR_small.dcm")):
        (tmp_path / folder).mkdir()
        shutil.copy(shared_data / source, tmp_path / folder / "image.dcm")
    found = of(tmp_path / "a", tmp_path / "b")
    assert (len(found.pairs), len(found.missing), len(found.unmatched)) == (0, 1, 1)


def image(name: str, **fields: object) -> Entry:
    return dataclasses.replace(
        Entry((Path(name),), (name,), "dcm", Grid(1, 8, 8), instances=(name,)),  # type: ignore[arg-type]
        **fields,  # type: ignore[arg-type]
    )


def test_a_copied_reference_to_a_source_is_no_proof() -> None:
    """A map made of a scan names the scan, and so does a compressed copy of the map."""
    scan = image("scan", study_uid="1", series_number=1, instance_numbers=(1,))
    made = image(
        "map",
        study_uid="1",
        series_number=2,
        instance_numbers=(1,),
        sources=frozenset(["scan"]),
    )
    copied = dataclasses.replace(made, names=("copy",), instances=("copy",))
    here = Catalogue(Path("a"), (scan, made))
    found = pair(here, Catalogue(Path("b"), (copied,)))
    assert [(one.reference.names[0], one.rule) for one in found.pairs] == [
        ("map", "series and instance numbers")
    ]
    assert [one.names[0] for one in found.missing] == ["scan"]
    nameless = dataclasses.replace(copied, study_uid=None)
    assert pair(here, Catalogue(Path("b"), (nameless,))).ambiguous


def test_no_pair_by_elimination() -> None:
    """What is left over when the others are paired need not belong together."""
    place = {
        "grid": Grid(1, 8, 8, (1.0, 1.0), (1, 0, 0, 0, 1, 0), ((0.0, 0.0, 0.0),)),
        "study_uid": "1",
        "frame_of_reference_uid": "2",
    }
    references = Catalogue(Path("a"), (image("t1", **place), image("t2", **place)))
    candidates = Catalogue(
        Path("b"), (image("x", sources=frozenset(["t1"]), **place), image("y", **place))
    )
    found = pair(references, candidates)
    assert [(one.reference.names[0], one.candidate.names[0]) for one in found.pairs] == [
        ("t1", "x")
    ]
    (one,) = found.ambiguous
    assert (one.references[0].names, one.candidates[0].names) == (("t2",), ("y",))


few = st.sampled_from("pqr")


@st.composite
def images(draw: st.DrawFn, side: str) -> tuple[Entry, ...]:
    """Images that have much in common with one another."""
    found = []
    for number in range(draw(st.integers(0, 5))):
        place = draw(st.sampled_from([None, 0.0, 5.0]))
        grid = Grid(
            1,
            8,
            8,
            None if place is None else (1.0, 1.0),
            None if place is None else (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            None if place is None else ((0.0, 0.0, place),),
        )
        found.append(
            image(
                draw(few) + (f"/{side}{number}" if draw(st.booleans()) else f"/{number}"),
                grid=grid,
                instances=(draw(few),),
                sources=draw(st.frozensets(few, max_size=2)),
                related=draw(st.frozensets(few, max_size=1)),
                study_uid=draw(st.sampled_from([None, "1"])),
                frame_of_reference_uid=draw(st.sampled_from([None, "1"])),
                series_number=draw(st.integers(1, 2)),
                instance_numbers=(draw(st.integers(1, 2)),),
                description=draw(st.sampled_from([None, "t1", "t1 dn"])),
                modality=draw(st.sampled_from(["CT", "MR"])),
            )
        )
    return tuple({one.names: one for one in found}.values())


@given(images("a"), images("b"), st.randoms())
def test_a_partial_one_to_one_map_whatever_the_order(
    ours: tuple[Entry, ...], theirs: tuple[Entry, ...], random: object
) -> None:
    found = pair(Catalogue(Path("a"), ours), Catalogue(Path("b"), theirs))
    paired = [one.reference for one in found.pairs], [one.candidate for one in found.pairs]
    unsure = (
        [one for group in found.ambiguous for one in group.references],
        [one for group in found.ambiguous for one in group.candidates],
    )
    # Each image is in one place, and in one only.
    assert sorted(one.names for one in (*paired[0], *found.missing, *unsure[0])) == sorted(
        one.names for one in ours
    )
    assert sorted(one.names for one in (*paired[1], *found.unmatched, *unsure[1])) == sorted(
        one.names for one in theirs
    )
    assert all(one.references and one.candidates for one in found.ambiguous)
    by_name = {rule.name: rule for rule in RULES}
    for one in found.pairs:
        rule = by_name[one.rule]
        assert set(rule.of_reference(one.reference)) & set(rule.of_candidate(one.candidate))
    shuffled = [list(ours), list(theirs)]
    for side in shuffled:
        random.shuffle(side)  # type: ignore[attr-defined]
    again = pair(Catalogue(Path("a"), tuple(shuffled[0])), Catalogue(Path("b"), tuple(shuffled[1])))
    assert again == found
