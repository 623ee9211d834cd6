"""Tables of preferences: what is read, and that what is wrong is refused by line and column."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from medqa.errors import UsageError
from medqa.studies.preferences import Preferences, read_preferences

CHOICES = "reference,a,b,preferred\n"
RATINGS = "reference,candidate,rating\n"


def table(tmp_path: Path, text: str, **options: str) -> Preferences:
    path = tmp_path / "table.csv"
    path.write_text(text, "utf-8")
    return read_preferences(path, **options)


def test_choices_are_read(tmp_path: Path) -> None:
    text = (
        "\ufeff"
        + CHOICES
        + "r.dcm,x/1.dcm,2.dcm,a\n\nr.dcm,x/1.dcm,3.dcm,B\nr.dcm,2.dcm,3.dcm,.25\n"
    )
    found = table(tmp_path, text)
    assert [pair.share for pair in found.pairs] == [1.0, 0.0, 0.25]
    assert {pair.weight for pair in found.pairs} == {1.0}
    assert found.pairs[0].reference == tmp_path / "r.dcm"
    assert found.pairs[0].a == tmp_path / "x" / "1.dcm"
    assert (found.kind, found.judgments, found.readers) == ("choices", 3, 0)
    assert not found.clustered
    assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_ratings_become_pairs_of_one_reader_and_reference(tmp_path: Path) -> None:
    rows = "r,1,5,A\nr,2,3,A\nr,3,3,A\nr,1,2,B\ns,9,1,A\ns,8,2,A\n"
    found = table(tmp_path, RATINGS.replace("\n", ",reader\n") + rows)
    said = [(p.reference.name, p.a.name, p.b.name, p.share) for p in found.pairs]
    # Of equal ratings nothing, across references and readers nothing.
    assert said == [("r", "1", "2", 1.0), ("r", "1", "3", 1.0), ("s", "9", "8", 0.0)]
    assert [p.weight for p in found.pairs] == [2 / 3, 2 / 3, 1.0]
    assert (found.kind, found.judgments, found.readers) == ("ratings", 6, 2)


def test_n_different_ratings_weigh_n_minus_one(tmp_path: Path) -> None:
    found = table(tmp_path, RATINGS + "".join(f"r,{n},{n}\n" for n in range(7)))
    assert sum(pair.weight for pair in found.pairs) == pytest.approx(6.0)


def test_a_group_of_readers_is_taken_alone(tmp_path: Path) -> None:
    text = "reference,a,b,preferred,group,patient\nr,1,2,a,neuro,P\nr,1,2,b,chest,P\n"
    found = table(tmp_path, text, group="chest")
    assert [pair.share for pair in found.pairs] == [0.0]
    assert found.pairs[0].patient == "P"
    assert (found.group, found.clustered) == ("chest", True)
    with pytest.raises(UsageError, match="no judgments of this group"):
        table(tmp_path, text, group="abdomen")
    with pytest.raises(UsageError, match="column group is missing"):
        table(tmp_path, CHOICES + "r,1,2,a\n", group="chest")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CHOICES + "r,1,2,left\n", "line 2, column preferred: 'left' is no choice"),
        (CHOICES + "r,1,2,1.5\n", "line 2, column preferred"),
        (CHOICES + "r,1,2,nan\n", "line 2, column preferred"),
        (CHOICES + "r,1,2,1_0\n", "line 2, column preferred"),
        (CHOICES + "r,1,./1,a\n", "line 2, column b: is the same file as a"),
        (CHOICES + "r,1,2,a\n./r,2,1,b\n", "line 3: judged on line 2 already"),
        (CHOICES + "r,1,,a\n", "line 2, column b: is empty"),
        (CHOICES + "r,1,2\n", "line 2: 3 cells, not 4"),
        (CHOICES + 'r,1,2,"a\n', "is not CSV"),
        (CHOICES + "r,1\0,2,a\n", "is no path|is not CSV"),
        (CHOICES, "holds no judgments"),
        ("", "neither of choices nor of ratings"),
        ("reference,a,b\nr,1,2\n", "neither of choices nor of ratings"),
        ("reference,a,b,preferred,rating\nr,1,2,a,3\n", "neither of choices nor of ratings"),
        ("reference,a,b,preferred,mood\nr,1,2,a,3\n", "line 1: column mood is not understood"),
        ("reference,a,a,preferred\nr,1,2,a\n", "two columns have the same name"),
        ("reference;a;b;preferred\nr;1;2;a\n", "semicolons"),
        (RATINGS + "r,1,good\n", "line 2, column rating: 'good' is no number"),
        (RATINGS + "r,1,inf\n", "line 2, column rating"),
        (RATINGS + "r,1,3\nr,1,4\n", "line 3: judged on line 2 already"),
        (RATINGS + "r,1,3\nr,2,3\n", "no two candidates"),
        (
            "reference,a,b,preferred,patient\nr,1,2,a,P\nr,1,3,a,Q\n",
            "line 3, column patient: differs from line 2",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_its_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        table(tmp_path, text)


@pytest.mark.parametrize("cells", [{"a": "a.dcm"}, {"reference": "patient-smith.dcm"}])
def test_errors_name_no_image_and_no_reader(tmp_path: Path, cells: Mapping[str, str]) -> None:
    row = {"reference": "r", "a": "1", "b": "2", "preferred": "?", "reader": "Dr Who", **cells}
    with pytest.raises(UsageError) as caught:
        table(tmp_path, f"{','.join(row)}\n{','.join(row.values())}\n")
    assert caught.value.subject == str(tmp_path / "table.csv")
    assert not any(cell in caught.value.reason for cell in ("Dr Who", "smith", "a.dcm"))


def test_no_table_and_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_preferences(tmp_path / "none.csv")
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\x00r")
    with pytest.raises(UsageError, match="UTF-8"):
        read_preferences(tmp_path / "table.csv")
