"""The demonstration, run once: what it writes, and whether its verdicts are what they should be."""

from __future__ import annotations

import json
import socket
import sqlite3
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import numpy as np
import PIL.Image
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import generate_frames
from pydicom.pixels import pixel_array

from medqa import assessment, demo
from medqa.assessment import Assessment
from medqa.errors import ReadError, UsageError

# Highest ratios of the guidelines (DRG 2008: CT of the brain, MR; CAR 2008: ultrasound).
ACCEPTED = {"ct-head": 5, "mr-liver": 7, "us-lymph-node": 12, "us-heart": 12}
HARSH = 100
PAINTED = ("ct-head", "mr-liver", "us-lymph-node")


class Run:
    """What one run left behind."""

    def __init__(self, out: Path, outside: set[Path]) -> None:
        self.out, self.outside = out, outside

    def judged(self, case: str) -> Assessment:
        text = (self.out / case / "assessment.json").read_text("utf-8")
        return Assessment.model_validate_json(text)

    def candidate(self, case: str) -> Path:
        return self.out / "inputs" / f"{case}.dcm"

    @property
    def records(self) -> list[dict[str, Any]]:
        with sqlite3.connect(self.out / "audit.db") as connection:
            return [
                json.loads(row[0]) for row in connection.execute("SELECT record FROM assessments")
            ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run without network, in a home of its own, into a folder that held something before."""
    home, out = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("demo")
    (out / "mine.txt").write_text("not the demo's")

    def refuse(*_: object) -> None:
        raise AssertionError("the demo opened a network connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "TORCH_HOME"):
            patch.setenv(name, str(home))
        for name in ("MEDQA_DB", "MEDQA_KEY", "MEDQA_WEIGHTS"):
            patch.delenv(name, raising=False)
        patch.chdir(home)
        demo.run_demo(out)
    return Run(out, {path for path in home.rglob("*") if path.is_file()})


def stored(path: Path) -> np.ndarray:
    """(frames, rows, columns[, 3]), by pydicom alone."""
    ds = dcmread(path)
    frames = int(ds.get("NumberOfFrames", 1))
    return np.stack([pixel_array(ds, index=n) for n in range(frames)])


def test_only_its_folder_is_written_and_nothing_in_it_is_lost(run: Run) -> None:
    assert run.outside == set()
    assert (run.out / "mine.txt").read_text() == "not the demo's"


@pytest.mark.parametrize("image", ACCEPTED)
def test_lossless_copy_is_identical(run: Run, image: str) -> None:
    judged = run.judged(f"{image}/copy")
    inputs = run.candidate(f"{image}/copy").parent
    assert np.array_equal(stored(inputs / "copy.dcm"), stored(inputs / "reference.dcm"))
    assert (inputs / "copy.dcm").read_bytes() != (inputs / "reference.dcm").read_bytes()
    assert judged.base_lpips_score == 0.0
    assert judged.verdict == "diagnostic"


@pytest.mark.parametrize("image", ACCEPTED)
def test_more_compression_is_more_distance(run: Run, image: str) -> None:
    """As far as the guidelines go it is read; far beyond them it may not be."""
    gentle = run.judged(f"{image}/jpeg2000-{ACCEPTED[image]}")
    harsh = run.judged(f"{image}/jpeg2000-{HARSH}")
    assert gentle.base_lpips_score is not None
    assert harsh.base_lpips_score is not None
    assert 0.0 < gentle.base_lpips_score < 0.25 * harsh.base_lpips_score
    assert gentle.verdict == "diagnostic"
    assert not harsh.clinical_suitability.suitable_for_diagnosis
    for one in (gentle, harsh):
        assert one.inputs.candidate is not None
        assert one.inputs.candidate.transfer_syntax == "1.2.840.10008.1.2.4.91"  # JPEG 2000, lossy


@pytest.mark.parametrize("image", ACCEPTED)
def test_stated_ratio_is_the_real_one(run: Run, image: str) -> None:
    for ratio in (ACCEPTED[image], HARSH):
        ds = dcmread(run.candidate(f"{image}/jpeg2000-{ratio}"))
        frames = int(ds.get("NumberOfFrames", 1))
        bits = ds.Rows * ds.Columns * ds.SamplesPerPixel * ds.BitsStored * frames
        coded = 8 * sum(map(len, generate_frames(ds.PixelData, number_of_frames=frames)))
        assert bits / coded == pytest.approx(ratio, rel=0.03)
        assert ds.LossyImageCompression == "01"


@pytest.mark.parametrize("image", PAINTED)
def test_lost_lesion_is_seen_where_the_whole_image_passes(run: Run, image: str) -> None:
    judged = run.judged(f"{image}/patch")
    pathology = judged.pathology_preservation
    assert pathology is not None
    assert judged.diagnostic_quality
    assert not pathology.pathology_preserved
    assert judged.verdict == "expert_review"
    # The textbook form, on both images multiplied by the mask, would have let it pass.
    limits = {limit.name: limit.value for limit in judged.limits}
    assert pathology.masked_lpips < limits["pathology"] < pathology.pathology_lpips


@pytest.mark.parametrize("image", PAINTED)
def test_paint_stays_in_and_around_the_mask(run: Run, image: str) -> None:
    inputs = run.candidate(f"{image}/patch").parent
    with PIL.Image.open(inputs / "patch-mask.png") as picture:
        mask = np.asarray(picture).astype(bool)
    changed = stored(inputs / "patch.dcm")[0] != stored(inputs / "reference.dcm")[0]
    changed = changed.any(axis=-1) if changed.ndim == 3 else changed
    rows, columns = np.nonzero(mask)
    around = np.zeros_like(mask)
    around[rows.min() - 8 : rows.max() + 9, columns.min() - 8 : columns.max() + 9] = True
    assert mask.mean() < 0.03  # the size of a lesion
    assert changed[mask].mean() > 0.8
    assert not changed[~around].any()


def test_annotations_are_judged_on_their_own(run: Run) -> None:
    """At 30:1 the posterior fossa is plain grey: the ventricle is gone, and edges are lost."""
    ventricle = run.judged("ct-head/annotated")
    valve = run.judged("us-heart/denoised")
    assert ventricle.profile is not None
    assert ventricle.profile.name == "ct-head"
    assert ventricle.verdict == "expert_review"
    assert [one.annotation_type for one in ventricle.annotation_preservation] == [
        "fourth ventricle"
    ]
    assert not ventricle.annotation_preservation[0].preserved
    assert [one.annotation_type for one in valve.annotation_preservation] == ["mitral valve"]
    assert valve.annotation_preservation[0].slice == 15


def test_lost_edges_are_seen_where_the_distance_passes(run: Run) -> None:
    """A median filter rounds off what it leaves bright; hardly a distance, but fewer edges."""
    for case in ("mr-liver/denoised", "us-heart/denoised"):
        judged = run.judged(case)
        assert judged.diagnostic_quality
        assert "edge_fidelity" in [one.measure for one in judged.gates if not one.diagnostic]
        assert not judged.clinical_suitability.suitable_for_diagnosis


def test_one_blurred_frame_is_found_and_not_averaged_away(run: Run) -> None:
    judged = run.judged("us-heart/one-frame")
    assert len(judged.slices) == 30
    assert [one.index for one in judged.slices if one.lpips > 0.0] == [12]
    assert judged.diagnostic_quality  # the 95th percentile of 30 frames does not see it
    assert judged.verdict == "expert_review"
    assert judged.reasons[0].place == "slice 12"
    page = (run.out / "us-heart" / "one-frame" / "report.html").read_text("utf-8")
    assert "Worst slice" in page


def test_every_candidate_is_an_object_of_its_own_that_names_its_source(run: Run) -> None:
    uids = set()
    candidates = sorted(set(run.out.glob("inputs/*/*.dcm")) - set(run.out.glob("inputs/*/ref*")))
    for path in candidates:
        ds, source = dcmread(path), dcmread(path.with_name("reference.dcm"))
        uids.add(ds.SOPInstanceUID)
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID != source.SOPInstanceUID
        assert ds.SeriesInstanceUID != source.SeriesInstanceUID
        assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert ds.ImageType[0] == "DERIVED"
    assert len(uids) == len(candidates) == len(run.records)


def test_records_follow_the_schema_and_name_nobody(run: Run) -> None:
    records = run.records
    assert len(records) == len({record["correlation_id"] for record in records}) >= 20
    for record in records:
        jsonschema.validate(record, assessment.schema())
        assert record["verdict"] != "not_assessable"
    for path in run.out.glob("inputs/*/reference.dcm"):
        assert f'"{dcmread(path).PatientID}"' not in json.dumps(records)


def test_index_shows_every_comparison_and_leads_to_its_report(run: Run) -> None:
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "a":
                links.append(unquote(str(dict(attrs)["href"])))

    Links().feed((run.out / "index.html").read_text("utf-8"))
    assert sorted(links) == sorted(f"{one['correlation_id']}/report.html" for one in run.records)
    assert all((run.out / link).is_file() for link in links)


def test_second_run_replaces_its_files_and_adds_to_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = demo._EXAMPLES[1]
    short = demo._Example(example.name, example.title, example.file, example.cases[:1])
    monkeypatch.setattr(demo, "_EXAMPLES", (short,))
    demo.run_demo(tmp_path)
    first = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    demo.run_demo(tmp_path)
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == first
    assert len(Run(tmp_path, set()).records) == 2
    assert "0.0000 / 0.120" in capsys.readouterr().out


def test_what_could_not_be_judged_is_an_error_after_the_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncated = get_testdata_file("MR_truncated.dcm", download=False)
    good = demo._EXAMPLES[1]
    short = demo._Example(good.name, good.title, good.file, good.cases[:1])
    monkeypatch.setattr(demo, "_EXAMPLES", (short,))
    copy = demo._derived

    def damaged(reference: Path, case: demo._Case) -> object:
        ds = copy(reference, case)
        reference.write_bytes(Path(str(truncated)).read_bytes())
        return ds

    monkeypatch.setattr(demo, "_derived", damaged)
    with pytest.raises(ReadError):
        demo.run_demo(tmp_path)
    assert "Not assessable" in (tmp_path / "index.html").read_text("utf-8")


def test_missing_examples_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "get_testdata_file", lambda *_, **__: None)
    with pytest.raises(UsageError, match=r"J2K_pixelrep_mismatch\.dcm is missing"):
        demo.run_demo(tmp_path)


def test_folder_that_cannot_be_written_is_named_first(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(UsageError, match="cannot be written"):
        demo.run_demo(file / "demo")
