"""Guidelines as data files, beside a second table typed by hand."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from medqa.errors import UsageError
from medqa.studies.guidelines import guidelines, highest_ratio, load, named, row_for, table

# Typed by hand from the abstract of doi 10.1055/s-2008-1027847 (DRG), from a secondary source of
# the CAR standards of 2008, and from FDA's Policy Guidance Help System on mammograms.
FIGURES = [
    ("DRG 2008", "CT", "BRAIN", "j2k", 5),
    ("DRG 2008", "CT", "HEAD", "jpeg", 5),
    ("DRG 2008", "CT", "ABDOMEN", "j2k", 8),
    ("DRG 2008", "CR", "CHEST", "j2k", 10),
    ("DRG 2008", "DX", None, "jpeg", 10),
    ("DRG 2008", "MG", "BREAST", "j2k", 15),
    ("DRG 2008", "MR", "BRAIN", "j2k", 7),
    ("DRG 2008", "RF", None, "j2k", 6),
    ("DRG 2008", "XA", "HEART", "jpeg", 6),
    ("CAR 2008", "CR", "CHEST", "j2k", 30),
    ("CAR 2008", "DX", None, "jpeg", 30),
    ("CAR 2008", "MG", "BREAST", "j2k", 25),
    ("CAR 2008", "CT", "CHEST", "j2k", 15),
    ("CAR 2008", "CT", "SKULL", "j2k", 12),
    ("CAR 2008", "US", None, "j2k", 12),
    ("CAR 2008", "MR", "KNEE", "j2k", 24),
    ("CAR 2008", "NM", None, "jpeg", 11),
    ("FDA", "MG", None, "j2k", 1),
]


@pytest.mark.parametrize(("name", "modality", "part", "codec", "ratio"), FIGURES)
def test_figures_are_the_published_ones(
    name: str, modality: str, part: str | None, codec: str, ratio: float
) -> None:
    assert highest_ratio(named(name), modality, part, codec) == ratio


def test_every_figure_of_the_files_is_in_the_table_above() -> None:
    held = {
        (one.name, modality, row.highest)
        for one in guidelines()
        for row in one.ratios
        for modality in row.modalities
    }
    assert held == {(name, modality, ratio) for name, modality, _, _, ratio in FIGURES}


def test_a_guideline_says_nothing_on_other_codecs_and_modalities() -> None:
    drg, car, fda = named("drg"), named("CAR 2008"), named(" fda ")
    assert highest_ratio(drg, "CT", "HEAD", "htj2k") is None
    assert highest_ratio(drg, "US", None, "j2k") is None
    assert highest_ratio(fda, "CT", None, "j2k") is None
    # Its source does not say which codec: a cap that holds for all is stricter than none.
    assert highest_ratio(car, "CT", "CHEST", "jpegxl") == 15


@pytest.mark.parametrize("part", [None, "", "  "])
def test_a_part_that_is_not_known_gets_the_lowest_figure(part: str | None) -> None:
    assert highest_ratio(named("DRG"), "CT", part, "j2k") == 5
    assert highest_ratio(named("DRG"), " ct ", " chest ", "j2k") == 8


def test_each_figure_is_cited() -> None:
    row = row_for(named("DRG"), "CT", "HEAD", "j2k")
    assert row is not None
    assert (row.what, row.codecs) == ("CT of the brain", ("jpeg", "j2k"))
    for one in guidelines():
        assert re.search(r"\d{4}", one.source)
        assert len(one.note) > 20
    assert {one.year for one in guidelines()} == {2008, None}


def test_disagreements_stand_side_by_side() -> None:
    headings, rows = table(guidelines())
    assert headings == ("modality", "body part", "CAR 2008", "DRG 2008", "FDA")
    cells = {row[:2]: row[2:] for row in rows}
    assert cells["MR", "any"] == ("24:1 (codec not given)", "7:1 (jpeg, j2k)", "-")
    assert cells["MG", "any"] == ("25:1 (codec not given)", "15:1 (jpeg, j2k)", "lossless only")
    assert cells["CT", "HEAD, BRAIN, SKULL"][1] == "5:1 (jpeg, j2k)"
    assert [row[0] for row in table(guidelines(), "ct")[1]] == ["CT", "CT"]
    assert table(guidelines(), "OT")[1] == []


def test_an_unknown_guideline_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="CAR 2008, DRG 2008, FDA"):
        named("ACR")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("schema_version = 1", "schema_version = 2", "schema_version"),
        ('body = "DRG"', "", "body: field required"),
        ("highest = 5", "highest = 0.5", "ratios.0.highest"),
        ("highest = 5", 'highest = "5"', "ratios.0.highest"),
        ("highest = 5", "higest = 5", "ratios.0.higest"),
        ('"j2k"', '"jpeg2000"', "codecs"),
        ('modalities = ["MR"]', "modalities = []", "modalities"),
        ("highest = 5", "highest = ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_and_says_where(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    folder = files("medqa_thresholds").joinpath("guidelines")
    text = folder.joinpath("drg-2008.toml").read_text("utf-8")
    path = tmp_path / "own.toml"
    path.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(UsageError, match=re.escape(words)):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: cannot be read"):
        load(tmp_path / "none.toml")
