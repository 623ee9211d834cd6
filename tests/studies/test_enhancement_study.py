from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from enhancing import LESION, PAINTED, cut_out, write_denoising, write_mask, write_slice
from pyarrow import parquet
from scipy import ndimage
from studying import write_table

from medqa.audit import Store
from medqa.errors import UsageError
from medqa.studies.enhancement import study as studies
from medqa.studies.enhancement.cases import Cases, from_folders, from_table
from medqa.studies.enhancement.page import decision, method_words, write_pages
from medqa.studies.enhancement.rows import Row
from medqa.studies.enhancement.study import (
    Study,
    conclude,
    outcome_of,
    run,
    setting_for,
    write_results,
)

METHODS = ("nlm", "smooth", "painter", "eraser")


def table_of(folder: Path, *, clean: bool) -> Cases:
    write_mask(folder / "mask.png")
    rows = [
        {
            "image": name,
            "method": method,
            "noisy": f"noisy/{name}.dcm",
            "denoised": f"{method}/{name}.dcm",
            "clean": f"clean/{name}.dcm" if clean else "",
            "mask": "mask.png",
        }
        for name in "ab"
        for method in METHODS
    ]
    return from_table("denoising", write_table(folder / "study.csv", rows))


@pytest.fixture(scope="module")
def images(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_denoising(shared_data, folder)
    return folder


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """Study with clean references."""
    out = tmp_path_factory.mktemp("out")
    cases = table_of(images, clean=True)
    study = run(cases, setting_for(cases), out)
    write_results(study, out)
    write_pages(study, out)
    return study, out


def method_of(study: Study, name: str) -> studies.Method:
    return next(one for one in study.methods if one.name == name)


def test_smoothing_ranks_below_nlm_in_texture(finished: tuple[Study, Path]) -> None:
    study, _ = finished
    for key in ("texture_fidelity", "edge_fidelity", "distance"):
        ranking = study.rankings[key]
        ranks = dict(zip(ranking.methods, ranking.ranks, strict=True))
        assert ranks["nlm"] < ranks["smooth"]
    nlm, smooth = method_of(study, "nlm"), method_of(study, "smooth")
    assert (smooth.median("excess") or 0) > (nlm.median("excess") or 0)
    # More noise taken away is no merit where anatomy goes with it.
    assert (smooth.median("noise_reduction") or 0) > 0.5


def test_a_painted_lesion_is_called_out(finished: tuple[Study, Path]) -> None:
    study, out = finished
    painter = method_of(study, "painter")
    assert not painter.acceptable
    for row in painter.rows:
        assert row.values["added"] >= 1
        assert any("does not support" in line for line in row.wrong)
    assert method_of(study, "nlm").total("added") == 0
    assert "structures on 2 cases that the input does not support" in method_words(painter)
    assert "made no structure" in method_words(method_of(study, "nlm"))
    # The pictures ring it: the slice, and what was found there.
    assert "painter" in outcome_of(out, 1).pictures
    assert PAINTED != LESION


def test_an_erased_lesion_is_called_lost(finished: tuple[Study, Path]) -> None:
    study, _ = finished
    eraser, nlm = method_of(study, "eraser"), method_of(study, "nlm")
    assert eraser.lesions == (0, 2)
    assert nlm.lesions == (2, 2)
    for row in eraser.rows:
        assert row.lesions[0].kept == pytest.approx(0.0, abs=0.2)
        assert "1 lesion lost" in row.wrong
    assert not eraser.acceptable
    assert "preserved 0 of 2 lesions" in method_words(eraser)


def test_noise_reduction_is_that_of_the_filter(finished: tuple[Study, Path]) -> None:
    # White noise under a Gaussian of sigma 2.5 keeps 1 / (2 sqrt(pi) 2.5) of its SD.
    expected = 1 - 1 / (2 * math.sqrt(math.pi) * 2.5)
    for row in method_of(finished[0], "smooth").rows:
        assert row.values["noise_reduction"] == pytest.approx(expected, abs=0.08)


def test_results_are_one_row_for_each_case_and_method(finished: tuple[Study, Path]) -> None:
    study, out = finished
    with (out / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["number"], row["method"]) for row in rows] == [
        (str(case), method) for case in (1, 2) for method in METHODS
    ]
    assert rows[0]["image"] == "a"
    nlm = method_of(study, "nlm").rows[0]
    assert float(rows[0]["distance"]) == pytest.approx(nlm.values["distance"], rel=1e-9)
    table = parquet.read_table(out / "results.parquet")
    assert table.num_rows == 8
    kept = zip(table["method"].to_pylist(), table["lesions_preserved"].to_pylist(), strict=True)
    assert set(kept) >= {("nlm", 1), ("eraser", 0)}


def test_the_page_needs_nothing_but_itself(finished: tuple[Study, Path]) -> None:
    _, out = finished
    for page in (out / "index.html", out / "cases" / "0001.html"):
        text = page.read_text()
        links = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert all(not one.startswith(("http", "/")) for one in links)
        for one in links:
            if not one.startswith("data:"):
                path, _, place = one.partition("#")
                target = page.parent / path
                assert target.is_file()
                assert not place or f'id="{place}"' in target.read_text()
        assert "a.dcm" not in text
        assert str(out) not in text
    text = (out / "index.html").read_text()
    assert "too few to show that one method is better" in text
    assert "not a medical device" in text


def test_without_a_reference(images: Path, tmp_path: Path) -> None:
    cases = table_of(images, clean=False)
    with Store.open(str(tmp_path / "audit.db")) as store:
        study = run(cases, setting_for(cases), tmp_path / "out", store)
        assert store.list() == ()  # the input is no target: no verdict beside it is recorded
    nlm, smooth = method_of(study, "nlm"), method_of(study, "smooth")
    assert nlm.acceptable
    assert not smooth.acceptable
    assert any("of the input lost" in line for row in smooth.rows for line in row.wrong)
    assert not method_of(study, "painter").acceptable
    assert not method_of(study, "eraser").acceptable
    assert study.code == 0
    assert decision(study).startswith("nlm")
    assert all("distance" not in row.values for row in nlm.rows)
    assert all(0 < row.values["detail_preservation"] < 1 for row in nlm.rows)
    write_pages(study, tmp_path / "out")


def test_a_bad_case_is_a_row_and_records_are_not_doubled(images: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("noisy", "clean", "nlm")}
    for name, folder in folders.items():
        folder.mkdir()
        for one in "ab":
            (folder / f"{one}.dcm").write_bytes((images / name / f"{one}.dcm").read_bytes())
    broken = folders["nlm"] / "b.dcm"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-5000])
    out = tmp_path / "out"

    def cases() -> Cases:
        return from_folders(
            "denoising", str(folders["noisy"]), {"nlm": str(folders["nlm"])}, str(folders["clean"])
        )

    with Store.open(str(tmp_path / "audit.db")) as store:
        found = cases()
        first = run(found, setting_for(found, pseudonyms=store.key), out, store)
        rows = first.methods[0].rows
        assert rows[0].assessment is not None
        assert rows[1].unjudged
        assert first.code in (1, 2)
        recorded = {one.assessment_id for one in store.list()}
        assert {one.origin for one in store.list()} == {"medqa study denoising"}
        with pytest.raises(UsageError, match="holds a study already"):
            run(found, setting_for(found, pseudonyms=store.key), out, store)
        broken.write_bytes(whole)
        again = run(cases(), setting_for(found, pseudonyms=store.key), out, store, resume=True)
        assert again.methods[0].rows[0].assessment is not None
        kept = again.methods[0].rows[0].assessment.assessment_id
        assert kept == rows[0].assessment.assessment_id  # taken over, not done again
        after = {one.assessment_id for one in store.list()}
        assert recorded < after
        assert not again.methods[0].rows[1].unjudged


def test_images_of_one_case_count_once() -> None:
    cases = Cases("denoising", ("x", "y"), (), referenced=True)
    rows = [
        Row(number=n, case=case, name="", method=method, values={"distance": value})
        for n, case, x, y in ((1, "p", 0.1, 0.2), (2, "p", 0.3, 0.2), (3, "q", 0.1, 0.4))
        for method, value in (("x", x), ("y", y))
    ]
    ranking = conclude(cases, setting_for(cases), rows).rankings["distance"]
    assert ranking.cases == 2
    assert ranking.means == pytest.approx(((0.2 + 0.1) / 2, (0.2 + 0.4) / 2))


def test_worker_processes_find_the_same(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, _ = finished
    given = (*study.cases.cases, *study.cases.cases)
    outputs = [{name: case.outputs[name] for name in ("nlm",)} for case in given]
    cases = Cases(
        "denoising",
        ("nlm",),
        tuple(
            replace(case, number=number, outputs=some)
            for number, (case, some) in enumerate(zip(given, outputs, strict=True), start=1)
        ),
        referenced=True,
    )
    alone = run(cases, setting_for(cases), tmp_path / "one")
    both = run(cases, setting_for(cases), tmp_path / "two", jobs=2)
    assert [row.number for row in both.methods[0].rows] == [1, 2, 3, 4]
    for one, other in zip(alone.methods[0].rows, both.methods[0].rows, strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-5)
        assert one.wrong == other.wrong


@pytest.fixture
def low(shared_data: Path, tmp_path: Path) -> Path:
    """A cut-out at half the resolution, and what three methods make of it."""
    rng = np.random.default_rng(5)
    ds, hu = cut_out(shared_data, "b")
    noisy = hu + rng.normal(0, 10, hu.shape)
    side = hu.shape[0] // 2
    coarse = noisy.reshape(side, 2, side, 2).mean(axis=(1, 3))
    cubic = ndimage.zoom(coarse, 2, order=3, mode="nearest", grid_mode=True)
    painted = cubic.copy()
    painted[56:68, 56:68] += 150
    for name, image in (("high", hu), ("cubic", cubic), ("painter", painted)):
        write_slice(ds, image, tmp_path / name / "b.dcm")
    ds.PixelSpacing = [2 * float(one) for one in ds.PixelSpacing]
    own = np.array(ds.ImageOrientationPatient, float)
    shift = (own[:3] + own[3:]) * float(ds.PixelSpacing[0]) / 4
    ds.ImagePositionPatient = [
        f"{one:.6f}" for one in np.array(ds.ImagePositionPatient, float) + shift
    ]
    write_slice(ds, coarse, tmp_path / "low" / "b.dcm")
    return tmp_path


@pytest.mark.parametrize("referenced", [True, False])
def test_super_resolution(low: Path, tmp_path: Path, referenced: bool) -> None:
    cases = from_folders(
        "super-resolution",
        str(low / "low"),
        {"cubic": str(low / "cubic"), "painter": str(low / "painter")},
        str(low / "high") if referenced else None,
    )
    study = run(cases, setting_for(cases), tmp_path / "out")
    cubic, painter = (method_of(study, name).rows[0] for name in ("cubic", "painter"))
    assert cubic.failure is None
    assert cubic.values["added"] == 0
    assert painter.values["added"] >= 1
    assert cubic.values["sharpness_gain"] == pytest.approx(1, abs=0.02)
    assert cubic.values["inconsistency"] < painter.values["inconsistency"]
    if referenced:
        # Cubic interpolation is what a reader gets without super-resolution: nothing is gained.
        assert cubic.values["improvement"] == pytest.approx(0, abs=0.05)
        assert cubic.assessment is not None
    assert study.methods[0].name == "cubic"
    write_pages(study, tmp_path / "out")


def test_another_field_of_view_is_refused(low: Path, tmp_path: Path) -> None:
    from pydicom import dcmread

    ds = dcmread(low / "cubic" / "b.dcm")
    place = np.array(ds.ImagePositionPatient, float) + np.array([20.0, 0.0, 0.0])
    ds.ImagePositionPatient = list(map(str, place))
    ds.save_as(low / "cubic" / "b.dcm")
    cases = from_folders(
        "super-resolution", str(low / "low" / "b.dcm"), {"cubic": str(low / "cubic" / "b.dcm")}
    )
    study = run(cases, setting_for(cases), tmp_path / "out")
    assert "another field of view" in (study.methods[0].rows[0].failure or "")
    assert study.code == 2
