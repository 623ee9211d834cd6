"""`medqa batch` as its user meets it."""

from __future__ import annotations

import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import typer
from batching import Here, make_pairs, rows_of, write_csv
from pyarrow import parquet
from typer.testing import CliRunner

from medqa.batch.page import outliers, ranking, write_pages
from medqa.cli.batch import batch
from medqa.errors import UsageError

APP = typer.Typer()
APP.command()(batch)


def run(*arguments: object) -> int:
    return CliRunner().invoke(APP, list(map(str, arguments)), catch_exceptions=False).exit_code


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, _: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "href" and value:
                self.links.append(value)
            if name == "id" and value:
                self.ids.append(value)


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker processes, which take seconds to start; they are tested with the pool."""
    # The module: in the package, its function has the same name.
    monkeypatch.setattr(sys.modules[batch.__module__], "_pool", lambda *_: Here())


@pytest.mark.usefixtures("_in_this_process")
def test_results_pages_and_reports(tmp_path: Path) -> None:
    table = make_pairs(tmp_path / "data", 3)
    with table.open("a") as stream:
        stream.write("r0.dcm,nothing.dcm,Müller <b>\n")
    out = tmp_path / "out"
    assert run(table, "--out", out, "--db", tmp_path / "a.db", "--jobs", 1) == 2
    rows = rows_of(out)
    assert [row["verdict"] for row in rows] == [
        "diagnostic",
        "diagnostic",
        "unsuitable",
        "not_assessable",
    ]
    assert float(rows[0]["distance"]) == 0
    assert [row["meets"] for row in rows] == ["true", "true", "false", "false"]
    assert rows[3]["name"] == "Müller <b>"
    columnar = parquet.read_table(out / "results.parquet").to_pylist()
    assert [str(row["assessment_id"]) for row in columnar] == [row["assessment_id"] for row in rows]
    page = (out / "index.html").read_text()
    assert "<b>" not in page
    assert str(tmp_path) not in page
    assert "nothing.dcm" not in page
    links = Links()
    links.feed(page)
    for row in rows:  # every pair leads to its own page
        assert row["report"] in links.links
        assert (out / row["report"]).is_file()
    folders = [(out / row["report"]).parent for row in rows]
    assert list(folders[2].glob("*.png"))
    assert not list(folders[1].glob("*.png"))  # it passed: its page needs no pictures
    order = re.findall(r'<tr id="pair-(\d+)">', page)
    assert order == ["4", "3", "2", "1"]
    # The same again elsewhere: nothing is assessed, and its pages are there all the same.
    other = tmp_path / "other"
    with pytest.raises(UsageError, match="is not empty"):
        run(table, "--out", out, "--db", tmp_path / "a.db", "--jobs", 1)
    assert run(table, "--out", other, "--db", tmp_path / "a.db", "--jobs", 1) == 2
    assert [row["recorded_before"] for row in rows_of(other)] == ["true"] * 4
    assert all((other / row["report"]).is_file() for row in rows_of(other))


@pytest.mark.usefixtures("_in_this_process")
def test_two_folders(tmp_path: Path) -> None:
    make_pairs(tmp_path / "all", 2)
    for kind in "rc":
        (tmp_path / kind).mkdir()
        for number in range(2):
            shutil.copy(tmp_path / "all" / f"{kind}{number}.dcm", tmp_path / kind / f"{number}.dcm")
    (tmp_path / "c" / "1.dcm").unlink()
    arguments = ("--db", tmp_path / "a.db", "--jobs", 1, "--reports", "none")
    assert run(tmp_path / "r", tmp_path / "c", "--out", tmp_path / "out", *arguments) == 1
    (row,) = rows_of(tmp_path / "out")
    assert (row["reference"], row["verdict"], row["report"]) == ("0.dcm", "diagnostic", "")
    assert not (tmp_path / "out" / "reports").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pairs.csv", "data"), "is no folder"),
        (("data",), "is a folder"),
        (("pairs.csv", "--resume"), "no batch to go on with"),
        (("pairs.csv", "--profile", "nonsense"), "no shipped profile"),
        (("pairs.csv", "--cluster", "lsf:a=b"), "is no cluster"),
    ],
)
def test_wrong_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write_csv(Path("pairs.csv"), [("reference", "candidate"), ("r.dcm", "c.dcm")])
    with pytest.raises(UsageError, match=words):
        run(*arguments, "--out", "out", "--db", "a.db")


@pytest.mark.usefixtures("_in_this_process")
def test_a_network_that_cannot_be_had_ends_it_before_any_work(tmp_path: Path) -> None:
    table = make_pairs(tmp_path / "data", 1)
    with pytest.raises(UsageError, match="no such network"):
        run(table, "--backbone", "nonsense", "--out", tmp_path / "out", "--db", tmp_path / "a.db")
    assert not list((tmp_path / "out").glob("*results*"))


def columns(count: int) -> dict[str, object]:
    random = np.random.default_rng(3)
    text = dict.fromkeys(("name", "body_part", "reason", "report", "assessment_id"))
    return {
        "number": list(range(1, count + 1)),
        **{name: [None] * count for name in text},
        "modality": ["CT", "MR"] * (count // 2),
        "profile": ["ct 1", "mr 1"] * (count // 2),
        "verdict": ["diagnostic"] * count,
        "meets": [True] * count,
        "distance": random.uniform(0.01, 0.02, count).tolist(),
        "diagnostic_limit": [0.1] * count,
        "screening_limit": [0.2] * count,
        "pathology_distance": [None] * count,
        "pathology_preserved": [None] * count,
        "annotations": [0] * count,
        "annotations_preserved": [0] * count,
        "edge_fidelity": [0.99] * count,
        "ssim": [0.99] * count,
    }


def test_many_pairs_are_on_several_pages_and_none_is_left_out(tmp_path: Path) -> None:
    given = columns(1204)
    given["distance"][700] = 0.09  # type: ignore[index]
    types = {"pathology_distance": pyarrow.float64(), "pathology_preserved": pyarrow.bool_()}
    table = pyarrow.table(
        {
            name: pyarrow.array(
                values, types.get(name, None if values[0] is not None else pyarrow.string())
            )
            for name, values in given.items()
        }
    )
    pages = write_pages(table, tmp_path, "diagnostic")
    assert [page.name for page in pages] == ["index.html", "index-2.html", "index-3.html"]
    found = [re.findall(r'<tr id="pair-(\d+)">', page.read_text()) for page in pages]
    assert found[0][0] == "701"
    assert sorted(int(one) for some in found for one in some) == list(range(1, 1205))
    links = Links()
    links.feed(pages[0].read_text())
    for link in links.links:  # what a dot leads to is there
        name, _, place = link.partition("#")
        assert (
            not place or place.removeprefix("pair-") in found[[p.name for p in pages].index(name)]
        )


def test_outliers_are_those_of_tukey() -> None:
    """The boxplot of matplotlib's documentation of whiskers: beyond Q3 + 1.5 (Q3 − Q1)."""
    distances = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 100, np.nan])
    first, third = np.percentile(distances[:-1], (25, 75))
    assert outliers(distances).tolist() == [
        bool(d > third + 1.5 * (third - first)) for d in distances
    ]
    assert outliers(distances).sum() == 1
    assert not outliers(np.array([1.0, 1, 1, 100])).any()  # too few to say


def test_the_order_is_verdict_then_outliers_then_share_of_the_limit() -> None:
    given = {
        "number": np.array([1, 2, 3, 4, 5]),
        "verdict": np.array(
            ["diagnostic", "unsuitable", "diagnostic", "not_assessable", "diagnostic"]
        ),
        "distance": np.array([0.05, 0.5, 0.02, np.nan, 0.01]),
        "diagnostic_limit": np.array([0.1, 0.1, 0.02, np.nan, 0.1]),
    }
    marked = np.array([False, False, False, False, True])
    assert ranking(given, marked).tolist() == [3, 1, 4, 2, 0]
