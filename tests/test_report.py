"""The report, against what a reader must find on it; assessments are made by hand here."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import PIL.Image
import pytest
from rich.console import Console

from medqa import assessment, console, pictures, report
from medqa.assessment import Assessment, Evidence
from medqa.errors import UsageError

NOTE = "medqa informs a qualified person; it is not a medical device."
INJECTION = '<script>alert("x")</script><img src=http://evil.example/a.png onerror=x>'
VOID = {"meta", "img", "br", "link", "input", "hr", "col"}
VIEWS = ("reference", "candidate", "distance", "edges", "texture")


def make_image(**changes: Any) -> assessment.ImageInput:
    values: dict[str, Any] = {
        "kind": "dicom",
        "shape": (20, 64, 48),
        "modality": "CT",
        "unit": "HU",
        "spacing_mm": (5.0, 0.8, 0.8),
        "body_part": "CHEST",
        "transfer_syntax": "1.2.840.10008.1.2.4.91",
        "file_sha256": "a" * 64,
        "pixels_sha256": "b" * 64,
        "patient_hmac": "c" * 64,
    }
    return assessment.ImageInput(**values | changes)


def make_limit(name: str, value: float) -> assessment.Limit:
    return assessment.Limit(
        name=name,
        value=value,
        unit="LPIPS",
        source=f"textbook value for the {name} limit",
        date="2025-11-20",
        status="provisional",
    )


def make_gate(measure: str, value: float | None, *met: bool) -> assessment.GateScore:
    """Worst on slice 7; `met` is for diagnosis, for screening."""
    return assessment.GateScore(
        measure=measure,
        value=value,
        slice=7,
        window="lung",
        diagnostic=met[0],
        screening=met[1],
    )


def make_gate_limits(
    measure: str, diagnostic: float, screening: float
) -> tuple[assessment.Limit, ...]:
    return tuple(
        assessment.Limit(
            name=f"{measure} {level}",
            value=value,
            bound="at_least",
            unit=measure,
            source=f"reader study of {measure}",
            date="2026-01-02",
            status="provisional",
        )
        for level, value in (("diagnostic", diagnostic), ("screening", screening))
    )


def make_evidence(
    shape: tuple[int, int] = (64, 48), index: int = 12, name: str = "nodule"
) -> Evidence:
    """A phantom: a bright disc on a ramp; the candidate lost the disc."""
    rows, columns = np.indices(shape)
    unit = min(shape) / 48
    disc = np.hypot(rows - 30 * unit, columns - 24 * unit) < 6 * unit
    box = np.zeros(shape, bool)
    box[int(4 * unit) : int(14 * unit), int(4 * unit) : int(20 * unit)] = True
    ramp = (0.2 + 0.4 * columns / shape[1]).astype(np.float32)
    distance = np.exp(-(((rows - 30 * unit) ** 2 + (columns - 24 * unit) ** 2) / (60 * unit**2)))
    return Evidence(
        index=index,
        window="soft tissue",
        reference=np.where(disc, np.float32(0.95), ramp),
        candidate=ramp,
        distance_map=distance.astype(np.float32),
        edge_map=np.where(disc, np.float32(1.0), np.float32(0.0)),
        texture_map=np.zeros(shape, np.float32),
        lpips=float(distance.mean()),
        regions=(("pathology", name, disc), ("annotation", "Annotated box", box)),
    )


def make_assessment(evidence: tuple[Evidence, ...] = (), **changes: Any) -> Assessment:
    """A CT of 20 slices that fails in the pathology; `changes` replace fields."""
    values: dict[str, Any] = {
        "assessment_id": "0198a2f0-0000-7000-8000-000000000001",
        # One hour east, so that the page has to turn it into UTC.
        "created_at": datetime(2025, 11, 20, 17, 22, 3, tzinfo=timezone(timedelta(hours=1))),
        "medqa_version": "0.1.0",
        "inputs": assessment.Inputs(
            reference=make_image(),
            candidate=make_image(file_sha256="d" * 64, pixels_sha256="e" * 64),
            regions=(
                assessment.RegionInput(kind="pathology", file_sha256="f" * 64, regions=1),
                assessment.RegionInput(kind="annotation", file_sha256="0" * 64, regions=1),
            ),
        ),
        "profile": assessment.ProfileRef(
            name="ct", version="1.0", sha256="1" * 64, status="provisional"
        ),
        "metric": assessment.MetricRef(
            backbone="gray", version="2", weights_sha256="2" * 64, relative_error=0.043
        ),
        "limits": (
            make_limit("diagnostic", 0.1),
            make_limit("screening", 0.18),
            make_limit("pathology", 0.08),
            make_limit("annotation", 0.1),
        ),
        "base_lpips_score": 0.0437219,
        "aggregate": "p95",
        "diagnostic_quality": True,
        "screening_quality": True,
        "windows": (
            assessment.WindowScore(name="soft tissue", low=-160.0, high=240.0, lpips=0.0437219),
            assessment.WindowScore(name="lung", low=-1350.0, high=150.0, lpips=0.0211),
        ),
        "slices": tuple(
            assessment.SliceScore(
                index=n, lpips=0.02 + 0.1 * np.exp(-((n - 12) ** 2) / 8), window="soft tissue"
            )
            for n in range(20)
        ),
        "pathology_preservation": assessment.PathologyScore(
            pathology_lpips=0.2134567,
            pathology_coverage=0.0371,
            weighted_pathology_score=0.2213759,
            pathology_preserved=False,
            masked_lpips=0.00313,
            components=(
                assessment.ComponentScore(
                    name="nodule",
                    lpips=0.2134567,
                    slice=12,
                    window="soft tissue",
                    pixels=113,
                    bbox=(18, 24, 30, 36),
                ),
            ),
        ),
        "annotation_preservation": (
            assessment.AnnotationScore(
                annotation_type="Annotated box",
                lpips_score=0.0999999,
                preserved=True,
                slice=12,
                window="soft tissue",
                pixels=160,
                bbox=(4, 4, 20, 14),
            ),
        ),
        "clinical_suitability": assessment.ClinicalSuitability(
            suitable_for_diagnosis=False,
            suitable_for_screening=True,
            requires_expert_review=True,
        ),
        "metrics": {"psnr_db": 38.125, "ssim": 0.9712, "made_up_measure": 0.625},
        "verdict": "expert_review",
        "reasons": (
            assessment.Reason(
                text="The pathology is not preserved.",
                value=0.2134567,
                limit=0.08,
                place="nodule, slice 12",
            ),
            assessment.Reason(
                text="The whole image is of diagnostic quality.",
                value=0.0437219,
                limit=0.1,
                place="whole image",
            ),
        ),
    }
    made = Assessment(**values | changes)
    made._evidence = evidence
    return made


def make_gated(evidence: tuple[Evidence, ...] = (), **changes: Any) -> Assessment:
    """The same with edges that pass for screening only, texture that passes, and all the rest."""
    values: dict[str, Any] = {
        "limits": (
            *make_assessment().limits,
            *make_gate_limits("edge_fidelity", 0.95, 0.9),
            *make_gate_limits("texture_fidelity", 0.9, 0.8),
        ),
        "gates": (
            make_gate("edge_fidelity", 0.9213, False, True),
            make_gate("texture_fidelity", 0.98765, True, True),
        ),
        "metrics": {
            "psnr_db": 38.125,
            "ssim": 0.99996,
            "gmsd": None,
            "edge_fidelity": 0.9213,
            "texture_fidelity": 0.98765,
        },
        "not_measured": {"dists": "its weights are not at hand; run medqa weights"},
        "composite": assessment.CompositeScore(
            value=0.5512, words="poor", parts={"lpips": 0.75, "psnr_db": 0.25}, alert="warning"
        ),
        "planes": assessment.PlanesScore(
            planes=(
                assessment.PlaneScore(plane="axial", lpips=0.041, slices=5, window="lung"),
                assessment.PlaneScore(plane="coronal", lpips=0.052, slices=16, window="lung"),
                assessment.PlaneScore(plane="sagittal", lpips=0.0489, slices=12, window="lung"),
            ),
            mean=0.0473,
            stride=4,
        ),
    }
    return make_assessment(evidence, **values | changes)


def make_not_assessable() -> Assessment:
    nothing = {
        "base_lpips_score": None,
        "aggregate": None,
        "diagnostic_quality": None,
        "screening_quality": None,
        "windows": (),
        "slices": (),
        "pathology_preservation": None,
        "annotation_preservation": (),
        "metrics": {},
        "metric": None,
        "profile": None,
        "limits": (),
    }
    return make_assessment(
        **nothing,
        inputs=assessment.Inputs(reference=make_image(), candidate=None),
        clinical_suitability=assessment.ClinicalSuitability(
            suitable_for_diagnosis=False,
            suitable_for_screening=False,
            requires_expert_review=False,
        ),
        verdict="not_assessable",
        reasons=(
            assessment.Reason(
                text="candidate: the pixel data end after 512 bytes; export the image again"
            ),
        ),
    )


class Page(HTMLParser):
    """What a browser would make of the page: its elements, its text, and whether tags match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def data_pictures(page: Page) -> list[np.ndarray]:
    uris = [str(image["src"]) for image in page.all("img")]
    prefix = "data:image/png;base64,"
    assert all(uri.startswith(prefix) for uri in uris)
    return [
        np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix)))))
        for uri in uris
    ]


EVERY_KIND = {
    "with evidence": make_assessment((make_evidence(),)),
    "from a store": make_assessment(),
    "not assessable": make_not_assessable(),
    "with everything": make_gated((make_evidence(),)),
    "single slice": make_assessment(
        (make_evidence(index=0),),
        slices=(assessment.SliceScore(index=0, lpips=0.04, window="soft tissue"),),
    ),
    "identical": make_assessment(
        base_lpips_score=0.0,
        slices=tuple(assessment.SliceScore(index=n, lpips=0.0, window="x") for n in range(2)),
        limits=(),
        metrics={"psnr_db": None, "ssim": 1.0},
        pathology_preservation=None,
        annotation_preservation=(),
        reasons=(),
    ),
}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_page_asks_for_nothing_from_outside_and_runs_nothing(kind: str, tmp_path: Path) -> None:
    made = EVERY_KIND[kind]
    page = read(report.write(made, tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 2 + 5 * len(made.evidence)
    for _, attributes in page.elements:
        for name, value in attributes.items():
            if name == "href":
                assert value in names
            elif name == "src":
                assert str(value).startswith("data:image/png;base64,")
            else:
                assert not re.search(r"https?://|url\(", str(value))
                assert not name.startswith("on")
    style = re.search(r"<style>(.*?)</style>", (tmp_path / "report.html").read_text(), re.S)
    assert style is not None
    assert not re.search(r"url\(|@import|//", style.group(1))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert all(image["alt"] for image in page.all("img"))
    assert all(cell.get("scope") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_json_is_the_record(kind: str, tmp_path: Path) -> None:
    made = EVERY_KIND[kind]
    report.write(made, tmp_path)
    text = (tmp_path / "assessment.json").read_text(encoding="utf-8")
    jsonschema.validate(json.loads(text), assessment.schema())
    assert Assessment.model_validate_json(text) == Assessment.model_validate(made.model_dump())


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("diagnostic", "Diagnostic: may be read for diagnosis"),
        ("expert_review", "Expert review: an expert must decide before it is read"),
        ("unsuitable", "Unsuitable: must not be read for diagnosis or screening"),
        ("not_assessable", "Not assessable: no statement can be made about this image"),
    ],
)
def test_verdict_is_in_words_with_the_note_and_the_main_reason(
    verdict: str, words: str, tmp_path: Path
) -> None:
    page = read(report.write(make_assessment(verdict=verdict), tmp_path))
    assert words in page.text
    assert NOTE in page.text
    assert "The thresholds are provisional" in page.text
    assert page.text.index(words) < page.text.index("The pathology is not preserved.")


def test_only_provisional_thresholds_are_called_so(tmp_path: Path) -> None:
    made = make_assessment()
    calibrated = made.model_copy(
        update={
            "profile": made.profile.model_copy(update={"status": "calibrated"}),
            "limits": tuple(x.model_copy(update={"status": "calibrated"}) for x in made.limits),
        }
    )
    assert "thresholds are provisional" not in read(report.write(calibrated, tmp_path)).text


def test_of_calibrated_thresholds_those_that_are_provisional_are_named(tmp_path: Path) -> None:
    made = make_assessment()
    limits = tuple(
        limit.model_copy(update={"status": "provisional" if number else "calibrated"})
        for number, limit in enumerate(made.limits)
    )
    assert made.profile is not None
    mixed = made.model_copy(
        update={
            "limits": limits,
            "profile": made.profile.model_copy(update={"status": "calibrated"}),
        }
    )
    text = " ".join(read(report.write(mixed, tmp_path)).text.split())
    names = ", ".join(limit.name for limit in limits[1:])
    assert f"These thresholds are provisional ({names}): neither a published" in text


def test_every_value_stands_beside_its_limit_with_its_recorded_result(tmp_path: Path) -> None:
    text = read(report.write(make_assessment(), tmp_path)).text
    for value, name, limit, result in [
        ("0.0437", "diagnostic", "0.1", "✓ pass"),
        ("0.0437", "screening", "0.18", "✓ pass"),
        ("0.213", "pathology", "0.08", "✗ fail"),
        ("0.0999999", "annotation", "0.1", "✓ pass"),
    ]:
        assert f"{result} {name}: ≤ {limit} LPIPS" in text
        assert f"provisional , 2025-11-20: textbook value for the {name} limit" in text
        assert text.count(f"{value} LPIPS") >= 2  # in the table, and in the drawing
        assert f"{name} limit {limit} LPIPS" in text  # in the drawing


def test_result_is_the_recorded_one_and_not_worked_out_again(tmp_path: Path) -> None:
    """A guard band may fail a value below its limit."""
    text = read(report.write(make_assessment(diagnostic_quality=False), tmp_path)).text
    assert "0.0437 LPIPS ✗ fail, too close ≤ 0.1 LPIPS ✓ pass ≤ 0.18 LPIPS" in text
    assert "0.0437 LPIPS ✗ fail, too close diagnostic: ≤ 0.1 LPIPS" in text
    assert "relative error towards the network that the limits hold for is 4.3 %" in text


def test_ruined_slice_stands_among_the_values(tmp_path: Path) -> None:
    """A reason that names a slice is the record of one that is not within the screening limit."""
    reason = assessment.Reason(text="Slice 12: bad.", value=0.3, limit=0.18, place="slice 12")
    text = read(report.write(make_assessment(reasons=(reason,)), tmp_path)).text
    assert "Worst slice slice 12 0.3 LPIPS ✗ fail screening: ≤ 0.18 LPIPS provisional" in text
    assert "Worst slice slice 12" not in read(report.write(make_assessment(), tmp_path)).text


def test_limits_without_a_value_are_listed(tmp_path: Path) -> None:
    made = make_assessment(pathology_preservation=None)
    text = read(report.write(made, tmp_path)).text
    assert "Pathology not measured not judged pathology: ≤ 0.08 LPIPS" in text


@pytest.mark.parametrize(
    ("value", "limit", "words"),
    [
        (0.10000004, 0.1, "0.10000004"),
        (0.1, 0.1, "0.1"),
        (0.00003456, 0.1, "0.0000346"),
        (0.0, 0.1, "0"),
        (0.12345678, 0.1, "0.123"),
    ],
)
def test_rounding_never_moves_a_value_across_its_limit(
    value: float, limit: float, words: str, tmp_path: Path
) -> None:
    reason = assessment.Reason(text="Because.", value=value, limit=limit, place="here")
    text = read(report.write(make_assessment(reasons=(reason,)), tmp_path)).text
    assert f"Because. here {words} {limit}" in text


def test_first_table_holds_the_whole_image_against_its_limits(tmp_path: Path) -> None:
    page = read(report.write(make_gated(), tmp_path))
    head = page.text[: page.text.index("What was compared")]
    for words in (
        "Perceptual distance how different the two look; 0 is identical, lower is better "
        "0.0437 LPIPS ✓ pass ≤ 0.1 LPIPS ✓ pass ≤ 0.18 LPIPS",
        "Edges kept fine detail at the edges; 1 is all of it, higher is better "
        "0.921 ✗ fail ≥ 0.95 ✓ pass ≥ 0.9",
        "Texture kept place and strength of the fine texture; 1 is all of it, higher is better "
        "0.988 ✓ pass ≥ 0.9 ✓ pass ≥ 0.8",
    ):
        assert words in head
    assert (
        "Edges kept whole image, worst on slice 7, lung 0.921 ✗ fail diagnostic: ≥ 0.95 "
        "✓ pass screening: ≥ 0.9 provisional , 2026-01-02: reader study of edge_fidelity"
    ) in page.text


def test_undefined_gate_is_not_met_and_says_so(tmp_path: Path) -> None:
    gates = (make_gate("edge_fidelity", None, False, False),)
    text = read(report.write(make_gated(gates=gates), tmp_path)).text
    assert "not defined here ✗ fail ≥ 0.95 ✗ fail ≥ 0.9" in text


def test_identical_images_pass_a_gate_on_the_signal_to_noise_ratio(tmp_path: Path) -> None:
    """Its ratio is infinite, which a record holds as None; the pass is as recorded."""
    made = make_assessment(
        gates=(make_gate("psnr_db", None, True, True),),
        limits=(*make_assessment().limits, *make_gate_limits("psnr_db", 40.0, 35.0)),
    )
    text = read(report.write(made, tmp_path)).text
    assert "Peak signal-to-noise ratio in dB higher is better identical ✓ pass ≥ 40" in text


def test_edges_and_texture_stand_beside_the_distance_without_limits_too(tmp_path: Path) -> None:
    made = make_assessment(metrics={"edge_fidelity": 0.5, "texture_fidelity": None})
    text = read(report.write(made, tmp_path)).text
    assert "higher is better 0.5 no limit no limit" in text
    assert "higher is better not defined here no limit no limit" in text
    assert "no limit" not in read(report.write(make_assessment(), tmp_path)).text


def test_limits_with_other_origins_are_told_apart(tmp_path: Path) -> None:
    strict, loose = make_gate_limits("edge_fidelity", 0.95, 0.9)
    loose = loose.model_copy(update={"source": "our readers"})
    made = make_gated(limits=(strict, loose), gates=(make_gate("edge_fidelity", 0.96, True, True),))
    text = read(report.write(made, tmp_path)).text
    assert "diagnostic: provisional , 2026-01-02: reader study of edge_fidelity" in text
    assert "screening: provisional , 2026-01-02: our readers" in text


def test_gate_limits_of_what_was_not_assessed_are_listed(tmp_path: Path) -> None:
    made = make_not_assessable().model_copy(
        update={"limits": make_gate_limits("edge_fidelity", 0.95, 0.9)}
    )
    text = read(report.write(made, tmp_path)).text
    assert "Edges kept not measured not judged diagnostic: ≥ 0.95" in text
    assert "For screening" not in text


def test_other_measures_say_which_direction_is_better(tmp_path: Path) -> None:
    text = read(report.write(make_gated(), tmp_path)).text
    other = text[text.index("Other measures") : text.index("Provenance")]
    assert "Peak signal-to-noise ratio in dB psnr_db 38.1 higher" in other
    # 1 is said of what is identical only.
    assert "Structural similarity ssim 0.99996 higher" in other
    assert "Unevenness of the damage to edges gmsd not defined here lower" in other
    assert "dists not measured: its weights are not at hand; run medqa weights lower" in other
    assert "Edges kept" not in other
    unknown = read(report.write(make_assessment(), tmp_path)).text
    assert "made_up_measure 0.625 –" in unknown.lower()
    identical = read(report.write(EVERY_KIND["identical"], tmp_path)).text
    assert "psnr_db identical" in identical


def test_composite_is_one_line_that_decides_nothing(tmp_path: Path) -> None:
    text = read(report.write(make_gated(), tmp_path)).text
    assert (
        "Composite: 0.551 of 1, poor; alert: ! warning . Made of 75 % perceptual distance, "
        "25 % peak signal-to-noise ratio in dB. No verdict rests on it."
    ) in text
    assert "Composite" not in read(report.write(make_assessment(), tmp_path)).text


def test_planes_and_their_mean(tmp_path: Path) -> None:
    text = read(report.write(make_gated(), tmp_path)).text
    assert "one slice in 4" in text
    assert "Axial 0.041 LPIPS 5 lung Coronal 0.052 LPIPS 16 lung Sagittal 0.0489" in text
    assert "Mean of the three 0.0473 LPIPS" in text
    assert "Anatomical planes" not in read(report.write(make_assessment(), tmp_path)).text


def test_panel_has_one_line_for_each_gate() -> None:
    def shown(made: Assessment) -> str:
        terminal = Console(width=100, file=io.StringIO())
        terminal.print(console.panel(made))
        return " ".join(terminal.file.getvalue().replace("│", "").split())

    gates = (
        make_gate("edge_fidelity", 0.9213, False, True),
        make_gate("texture_fidelity", None, False, False),
    )
    text = shown(make_gated(gates=gates))
    assert "distance, for diagnosis 0.0437 ≤ 0.100 passed" in text
    assert "edges kept, for diagnosis 0.9213 ≥ 0.950 not passed" in text
    assert "texture kept, for diagnosis undefined ≥ 0.900 not passed" in text
    assert "kept, for" not in shown(make_assessment())


def test_provenance_is_complete_and_names_no_patient(tmp_path: Path) -> None:
    page = read(report.write(make_assessment(), tmp_path))
    for words in (
        "0198a2f0-0000-7000-8000-000000000001",
        "2025-11-20 16:22:03 UTC",
        "ct, version 1.0, provisional",
        "LPIPS gray, version 2, computed in float32 on cpu",
        "20 × 64 × 48 (slices × rows × columns), unit HU, spacing 5.0 × 0.8 × 0.8 mm",
        "DICOM, CT, chest, 64 × 48 pixels × 20 slices, JPEG 2000 Image Compression",
        *(digit * 64 for digit in "abdef012"),
    ):
        assert words in page.text
    assert "c" * 64 not in page.text  # the patient's HMAC


def test_slice_plot_marks_the_worst_and_the_limits(tmp_path: Path) -> None:
    page = read(report.write(make_assessment(), tmp_path))
    # Gaussian on 0.02 with its top of 0.1 at slice 12.
    assert "▼ worst: slice 12" in page.text
    assert "The worst is slice 12 with 0.12 LPIPS (soft tissue)" in page.text
    assert "Slice (counted from 0)" in page.text
    assert "95th percentile of 20 slices, worst display" in page.text
    bars = [r for r in page.all("rect") if r["class"] == "bar" and "%" not in str(r["height"])]
    heights = [float(str(r["height"])) for r in bars if float(str(r["y"])) > 20]
    assert len(heights) == 20
    assert heights[12] / heights[0] == pytest.approx(0.12 / 0.02, rel=1e-3)
    axis = next(line for line in page.all("line") if line["class"] == "axis")
    limit = next(
        line
        for line in page.all("line")
        if line["class"] == "limit diagnostic" and line["y1"] == line["y2"]
    )
    above = float(str(axis["y1"])) - float(str(limit["y1"]))
    assert above / heights[12] == pytest.approx(0.1 / 0.12, rel=1e-3)


def test_single_slice_has_no_slice_plot(tmp_path: Path) -> None:
    text = read(report.write(EVERY_KIND["single slice"], tmp_path)).text
    assert "Slice by slice" not in text
    assert "Display: soft tissue. Distance:" in text
    assert "Slice, from 0" not in text


def test_pictures_on_the_page_and_beside_it(tmp_path: Path) -> None:
    page = read(report.write(make_assessment((make_evidence((64, 48)),)), tmp_path))
    names = [f"slice-012-soft-tissue-{view}.png" for view in VIEWS]
    for name in names:
        with PIL.Image.open(tmp_path / name) as picture:
            assert picture.size == (48, 64)
    assert [link["href"] for link in page.all("a")] == names
    bar, *shown = data_pictures(page)
    # 8 and 6 are the largest whole numbers of times that 64 fits into 512 and 384.
    assert [one.shape for one in shown] == [(512, 384, 3)] * 2 + [(384, 288, 3)] * 3
    for one, name, times in zip(shown, names, (8, 8, 6, 6, 6), strict=True):
        with PIL.Image.open(tmp_path / name) as picture:
            assert (one[times // 2 :: times, times // 2 :: times] == np.asarray(picture)).all()
    # The scale ends at twice the screening limit, for every slice.
    assert bar.shape[1] > bar.shape[0] * 100
    assert "Distance identical 0.18 LPIPS 0.36 LPIPS" in page.text
    assert "Texture changed same strength twice or half four times or a quarter" in page.text
    assert "Reference 1 2 Candidate 1 2 Distance 1 2 Edges lost 1 2 Texture changed" in page.text
    assert "1 nodule (pathology, solid outline) 2 Annotated box (annotation, dashed" in page.text
    assert [image["style"] for image in page.all("img")[1:]] == ["aspect-ratio: 38.4 / 51.2"] * 5


def test_large_pictures_are_reduced_on_the_page_only(tmp_path: Path) -> None:
    page = read(report.write(make_assessment((make_evidence((3000, 2400)),)), tmp_path))
    shapes = [one.shape for one in data_pictures(page)[1:]]
    assert shapes == [(512, 410, 3)] * 2 + [(384, 307, 3)] * 3
    with PIL.Image.open(tmp_path / "slice-012-soft-tissue-distance.png") as picture:
        assert picture.size == (2400, 3000)


def test_two_displays_that_are_spelt_alike_keep_their_pictures(tmp_path: Path) -> None:
    one = make_evidence()
    other = dataclasses.replace(one, window="Soft/Tissue")
    report.write(make_assessment((one, other)), tmp_path)
    assert len(list(tmp_path.glob("slice-012-soft-tissue*.png"))) == 10


def test_without_evidence_the_page_says_so(tmp_path: Path) -> None:
    page = read(report.write(make_assessment(), tmp_path))
    assert "The pictures were not kept" in page.text
    assert page.all("img") == []


def test_not_assessable_shows_reason_and_mend_first(tmp_path: Path) -> None:
    page = read(report.write(make_not_assessable(), tmp_path))
    reason = "candidate: the pixel data end after 512 bytes; export the image again"
    assert page.text.count(reason) == 1
    assert page.text.index(reason) < page.text.index("What was compared")
    assert "Candidate could not be read" in page.text
    assert "Values and limits" not in page.text


def test_text_from_files_is_escaped_everywhere(tmp_path: Path) -> None:
    made = make_assessment(
        (dataclasses.replace(make_evidence(name=INJECTION), window=INJECTION),),
        reasons=(assessment.Reason(text=INJECTION, place=INJECTION),),
        annotation_preservation=(
            make_assessment()
            .annotation_preservation[0]
            .model_copy(update={"annotation_type": INJECTION, "window": INJECTION}),
        ),
        inputs=assessment.Inputs(
            reference=make_image(body_part=INJECTION, modality=INJECTION, unit=INJECTION),
            candidate=make_image(transfer_syntax=INJECTION),
        ),
        metrics={INJECTION: 1.0},
        not_measured={INJECTION: INJECTION},
        gates=(make_gate(INJECTION, 0.5, False, False),),
    )
    rows = [report.IndexRow(INJECTION, INJECTION, made, "a b/report.html")]
    for path in (report.write(made, tmp_path), report.index(rows, tmp_path / "index.html")):
        page = read(path)
        assert page.all("script") == []
        assert not any("onerror" in attributes for _, attributes in page.elements)
        assert INJECTION in page.text


def test_long_names_and_many_reasons_are_all_there(tmp_path: Path) -> None:
    name = "x" * 500
    reasons = tuple(assessment.Reason(text=f"Reason number {n}.") for n in range(60))
    page = read(
        report.write(make_assessment((make_evidence(name=name),), reasons=reasons), tmp_path)
    )
    assert name in page.text
    assert all(f"Reason number {n}." in page.text for n in range(60))


def test_failing_picture_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_assessment((make_evidence(index=1), make_evidence(index=2)))
    whole, calls = pictures.png, []

    def third_fails(picture: np.ndarray) -> bytes:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return whole(picture)

    monkeypatch.setattr(pictures, "png", third_fails)
    with pytest.raises(MemoryError):
        report.write(made, tmp_path / "report")
    assert list(tmp_path.rglob("*")) == []


def test_full_disk_leaves_only_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second file is cut short while it is written over an older one."""
    report.write(make_assessment((make_evidence(),)), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    flush, calls = os.fsync, []

    def second_is_cut(handle: int) -> None:
        calls.append(1)
        if len(calls) == 2:
            os.ftruncate(handle, 10)
            raise OSError(28, "No space left on device")
        flush(handle)

    monkeypatch.setattr(os, "fsync", second_is_cut)
    changed = make_assessment((make_evidence(name="other"),), medqa_version="9.9")
    with pytest.raises(UsageError, match="No space left on device"):
        report.write(changed, tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"assessment.json"}


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(UsageError) as caught:
        report.write(make_assessment(), file)
    assert caught.value.subject == str(file)
    with pytest.raises(UsageError):
        report.index([], file / "index.html")


def test_index_groups_and_links(tmp_path: Path) -> None:
    rows = [
        report.IndexRow("5:1", "Abdomen", make_gated((make_evidence(),)), "a b/report.html"),
        report.IndexRow("cut off", "Head", make_not_assessable(), "na/report.html"),
        report.IndexRow("15:1", "Abdomen", make_assessment(verdict="unsuitable"), "c/report.html"),
    ]
    path = tmp_path / "out" / "index.html"
    assert report.index(rows, path) == path
    page = read(path)
    assert [link["href"] for link in page.all("a")] == [
        "a%20b/report.html",
        "c/report.html",
        "na/report.html",
    ]
    parts = ("Abdomen Reference", "5:1 Report", "15:1 Report", "Head", "cut off Report")
    order = [page.text.index(words) for words in parts]
    assert order == sorted(order)
    assert (
        "Perceptual distance: 0.0437 LPIPS ✓ pass diagnostic: ≤ 0.1 LPIPS "
        "✓ pass screening: ≤ 0.18 LPIPS" in page.text
    )
    assert "Edges kept: 0.921 ✗ fail diagnostic: ≥ 0.95 ✓ pass screening: ≥ 0.9" in page.text
    assert "Pathology: 0.213 LPIPS ✗ fail pathology: ≤ 0.08 LPIPS" in page.text
    assert "✗ Unsuitable 1: must not be read for diagnosis or screening" in page.text
    assert NOTE in page.text
    assert "The thresholds are provisional" in page.text
    # The reference of the group, then the candidate and the distance of its row.
    assert [one.shape for one in data_pictures(page)] == [(320, 240, 3)] * 3


def test_index_has_its_title_introduction_and_cautions_once(tmp_path: Path) -> None:
    made = make_assessment()
    careful = made.model_copy(
        update={"profile": made.profile.model_copy(update={"caution": "Not for <bones>."})}
    )
    rows = [report.IndexRow(f"{n}:1", "Chest", careful, f"{n}.html") for n in (5, 15)]
    path = tmp_path / "index.html"
    text = read(report.index(rows, path, title="A <study>", introduction="Made & read.")).text
    assert text.count("A <study>") == 2  # title and heading
    assert text.count("Made & read.") == 1
    assert text.count("Not for <bones>.") == 1
    assert "Image quality of 2 comparisons" in read(report.index(rows, path)).text
