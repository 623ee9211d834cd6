"""Tables of judgments: what is read, and that what is wrong is refused by line and column."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from studying import Row, simulated_rows, write_table

import medqa
from medqa import thresholds
from medqa.assessment import Assessment
from medqa.audit import Store
from medqa.errors import StoreError, UsageError
from medqa.image import Image
from medqa.studies.readers import ReaderStudy, read_study

CT = thresholds.load("ct")
HEADER = "image,reader,judgment,distance,network\n"


def study(tmp_path: Path, text: str, **options: object) -> ReaderStudy:
    table = tmp_path / "table.csv"
    table.write_text(text, "utf-8")
    return read_study(table, CT, **options)  # type: ignore[arg-type]


def test_a_table_is_read(tmp_path: Path) -> None:
    text = "\ufeff" + HEADER + "a,R1,accept,0.01,alex\na,R2,No,0.01,alex\nb,R1,1,0.2,alex\n\n"
    found = study(tmp_path, text)
    first, second = found.images
    assert (first.judgments, first.unacceptable) == ({"R1": 1, "R2": 0}, True)  # a tie refuses
    assert (second.values, second.unacceptable) == ({"distance": 0.2}, False)
    assert found.readers == ("R1", "R2")
    assert found.network == ("alex", "0.1")
    assert not found.clustered
    assert first.patient != second.patient
    assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("judgments", "majority", "any_of_them"),
    [("yyy", False, False), ("yyn", False, True), ("ynn", True, True), ("yn", True, True)],
)
def test_the_rule_combines_the_readers(
    tmp_path: Path, judgments: str, majority: bool, any_of_them: bool
) -> None:
    words = {"y": "yes", "n": "no"}
    rows = [f"a,R{n},{words[one]},0.1,gray\n" for n, one in enumerate(judgments)]
    for rule, expected in (("majority", majority), ("any", any_of_them)):
        found = study(tmp_path, HEADER + "".join(rows), rule=rule)
        assert found.images[0].unacceptable is expected


def test_scores_are_acceptable_from_the_stated_one(tmp_path: Path) -> None:
    rows = "a,R1,3,0.1,gray\nb,R1,2,0.2,gray\n"
    found = study(tmp_path, HEADER + rows, acceptable_from=3)
    assert [one.unacceptable for one in found.images] == [False, True]
    assert found.images[0].judgments == {"R1": 3}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a,R1,maybe,0.1,alex\n", "line 2, column judgment: 'maybe' is no judgment"),
        ("a,R1,4,0.1,alex\n", "--acceptable-from"),
        ("a,R1,left,0.1,alex\n", "2AFC"),
        ("a,R1,yes,0.1,alex\na,R1,yes,0.1,alex\n", "line 3, column reader: .* line 2 already"),
        ("a,R1,yes,0.1,alex\na,R2,yes,0.2,alex\n", "line 3, column distance: differs from line 2"),
        ('a,R1,yes,"0,1",alex\n', "line 2, column distance: '0,1' is no number"),
        ("a,R1,yes,nan,alex\n", "line 2, column distance: 'nan' is no number"),
        ("a,R1,yes,1_0,alex\n", "is no number"),
        ("a,R1,yes,1e999,alex\n", "is no number"),
        ("a,R1,yes,-0.1,alex\n", "line 2, column distance: a distance of -0.1"),
        ("a,R1,yes,,alex\n", "line 2, column distance: is empty"),
        ("a,R1,yes,0.1\n", "line 2: 4 cells, not 5"),
        ("a,R1,yes,0.1,resnet\n", "line 2, column network: 'resnet' is no network"),
        ("a,R1,yes,0.1,alex\nb,R1,yes,0.1,gray\n", "line 3, column network: another network"),
        ('a,R1,yes,"0.1,alex\n', "is not CSV"),
        ("", "holds no judgments"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, rows: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        study(tmp_path, HEADER + rows)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("image;reader;judgment;distance", "semicolons"),
        ("image,reader,judgment", "column distance is missing"),
        ("image,reader,judgment,distance,patients", "column patients is not understood"),
        ("image,reader,judgment,distance,distance", "same name"),
        ("image,reader,judgment,distance,assessment", "stands beside assessment"),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, header: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        study(tmp_path, header + "\n")


def test_distances_of_no_stated_network_are_refused(tmp_path: Path) -> None:
    text = "image,reader,judgment,distance\na,R1,yes,0.1\n"
    with pytest.raises(UsageError, match="which network"):
        study(tmp_path, text)
    assert study(tmp_path, text, network="gray").network == ("gray", "1")
    assert study(tmp_path, text, network="gray 7").network == ("gray", "7")
    with pytest.raises(UsageError, match="leave --backbone out"):
        study(tmp_path, HEADER + "a,R1,yes,0.1,alex\n", network="gray")


def test_an_image_of_another_modality_than_the_base_is_refused(tmp_path: Path) -> None:
    text = "image,reader,judgment,distance,network,modality\na,R1,yes,0.1,alex,{}\n"
    assert study(tmp_path, text.format("CT")).images[0].modality == "CT"
    with pytest.raises(UsageError, match="line 2, column modality: MR"):
        study(tmp_path, text.format("MR"))
    with pytest.raises(UsageError, match="no DICOM code"):
        study(tmp_path, text.format("Computed tomography"))


def test_an_unknown_measure_and_an_unreadable_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no measure"):
        study(tmp_path, HEADER, measures=("sharpness",))
    with pytest.raises(UsageError, match="cannot be read"):
        read_study(tmp_path / "missing.csv", CT)
    (tmp_path / "latin.csv").write_bytes("größe".encode("latin-1"))
    with pytest.raises(UsageError, match="UTF-8"):
        read_study(tmp_path / "latin.csv", CT)


def test_no_error_names_an_image_a_patient_or_a_reader(tmp_path: Path) -> None:
    text = HEADER + "Doe^Jane,Dr Roe,yes,0.1,alex\nDoe^Jane,Dr Roe,yes,0.1,alex\n"
    with pytest.raises(UsageError) as caught:
        study(tmp_path, text)
    assert "Doe" not in str(caught.value)
    assert "Roe" not in str(caught.value)


def test_simulated_rows_have_their_patients(tmp_path: Path) -> None:
    found = read_study(write_table(tmp_path / "t.csv", simulated_rows(12, per_patient=3)), CT)
    assert found.clustered
    assert len({one.patient for one in found.images}) == 4


@pytest.fixture
def recorded(tmp_path: Path, ct: Image) -> tuple[str, list[Assessment]]:
    """Three assessments on record, the last one superseding the second."""
    db = str(tmp_path / "audit.db")
    made = []
    with Store.open(db) as store:
        for shift in (10.0, 40.0, 80.0):
            candidate = replace(ct, pixels=ct.pixels + shift)
            one = medqa.assess(ct, candidate, profile="ct")
            store.add(one, supersedes=made[1].assessment_id if len(made) == 2 else None)
            made.append(one)
    return db, made


@pytest.fixture(scope="module")
def ct() -> Image:
    from pydicom.data import get_testdata_file

    return medqa.read(str(get_testdata_file("CT_small.dcm", download=False)))


def _judged(*ids: str) -> list[Row]:
    return [
        {"image": f"i{n}", "reader": "R", "judgment": "yes", "assessment": one}
        for n, one in enumerate(ids)
    ]


def test_recorded_assessments_bring_their_values(
    tmp_path: Path, recorded: tuple[str, list[Assessment]]
) -> None:
    db, (first, second, third) = recorded
    table = write_table(tmp_path / "t.csv", _judged(first.assessment_id[:8], third.assessment_id))
    found = read_study(table, CT, measures=("distance", "edge_fidelity"), db=db)
    assert found.recorded
    assert found.network == ("gray", "1")
    assert found.images[0].values == {
        "distance": first.base_lpips_score,
        "edge_fidelity": first.metrics["edge_fidelity"],
    }
    assert found.images[0].modality == "CT"
    with pytest.raises(UsageError, match="leave --backbone out"):
        read_study(table, CT, db=db, network="gray")
    with pytest.raises(UsageError, match="not measured under the profile mr"):
        read_study(table, thresholds.load("mr"), db=db)

    superseded = write_table(tmp_path / "s.csv", _judged(second.assessment_id))
    with pytest.raises(UsageError, match="line 2, column assessment: was superseded"):
        read_study(superseded, CT, db=db)
    twice = write_table(tmp_path / "w.csv", _judged(first.assessment_id, first.assessment_id[:9]))
    with pytest.raises(UsageError, match="line 3, column assessment: is that of line 2"):
        read_study(twice, CT, db=db)
    unknown = write_table(tmp_path / "u.csv", _judged("f" * 32))
    with pytest.raises(StoreError, match="line 2, column assessment"):
        read_study(unknown, CT, db=db)
