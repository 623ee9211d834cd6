"""Results as DICOM objects: judged by dciodvfy, read back by DCMTK, pydicom and highdicom."""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from PIL import Image as PILImage
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, generate_uid

import medqa
from medqa.assessment import VERDICT_WORDS, Assessment
from medqa.dicom.pixels import frames
from medqa.dicom_results import write_dicom
from medqa.dicom_results.codes import SCHEME
from medqa.dicom_results.summary import picture
from medqa.errors import UsageError
from medqa.lpips import GrayLPIPS

_NAMES = ["sr.dcm", "summary.dcm", "distance-map.dcm"]
_CLEAN: dict[str, list[str]] = {name: [] for name in _NAMES}
_REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


@dataclass(frozen=True)
class _Pair:
    """Reference and candidate on disk, and what was found."""

    reference: list[Path]
    candidate: list[Path]
    assessment: Assessment

    def write(self, folder: Path) -> dict[str, Path]:
        written = write_dicom(self.assessment, self.reference, self.candidate, folder)
        return {path.name: path for path in written}


@pytest.fixture(scope="module")
def network() -> GrayLPIPS:
    return GrayLPIPS("gray")


Make = Callable[..., _Pair]


@pytest.fixture(scope="module")
def make(network: GrayLPIPS, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Copy real files, add noise in the copies of them, and assess with two regions."""

    def made(
        sources: list[Path],
        sigma: float = 0.05,
        change: Callable[[pydicom.Dataset], None] = lambda _: None,
        change_candidate: Callable[[pydicom.Dataset], None] = lambda _: None,
    ) -> _Pair:
        folder = tmp_path_factory.mktemp("pair")
        pair: dict[str, list[Path]] = {"reference": [], "candidate": []}
        for number, source in enumerate(sources):
            for role, paths in pair.items():
                path = folder / role / f"{number}.dcm"
                path.parent.mkdir(exist_ok=True)
                ds = pydicom.dcmread(source)
                _fill(ds, source)
                change(ds)
                if role == "candidate":
                    _degrade(ds, source, sigma)
                    ds.SOPInstanceUID = generate_uid(entropy_srcs=[ds.SOPInstanceUID])
                    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[ds.SeriesInstanceUID])
                    change_candidate(ds)
                ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
                ds.save_as(path)
                paths.append(path)
        reference, candidate = (medqa.read(paths) for paths in pair.values())
        slices, rows, columns = reference.shape
        mask = np.zeros(reference.shape, bool)
        mask[slices // 2, rows // 3 : rows // 2, columns // 3 : columns // 2] = True
        note = folder / "notes.json"
        box = [columns // 2, rows // 2, columns // 2 + 20, rows // 2 + 16]
        entry = {"type": "nodule 結節", "bbox": box, "slice": slices // 2}
        note.write_text(json.dumps({"annotations": [entry]}), "utf-8")
        found = medqa.assess(reference, candidate, mask=mask, annotations=note, backbone=network)
        return _Pair(pair["reference"], pair["candidate"], found)

    return made


def _fill(ds: pydicom.Dataset, source: Path) -> None:
    """Give public samples back the UIDs that their publishers took out."""
    for keyword in _REQUIRED:
        if not ds.get(keyword):
            parts = [keyword, source.name if keyword == "SOPInstanceUID" else ""]
            setattr(ds, keyword, generate_uid(entropy_srcs=parts))
    if not ds.get("SOPClassUID"):
        ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPClassUID = CTImageStorage


def _degrade(ds: pydicom.Dataset, source: Path, sigma: float) -> None:
    stored = np.stack(list(frames(ds, source)))
    span = float(np.ptp(stored))
    noise = np.random.default_rng(0).normal(0.0, sigma * span, stored.shape[:3])
    noisy = stored + (noise[..., np.newaxis] if stored.ndim == 4 else noise)
    changed = np.clip(np.rint(noisy), stored.min(), stored.max()).astype(stored.dtype)
    colour = stored.ndim == 4  # of a palette, in 16 bits
    bits = 8 * stored.dtype.itemsize if colour else ds.BitsStored
    photometric = "RGB" if colour else ds.PhotometricInterpretation
    ds.set_pixel_data(changed if len(changed) > 1 else changed[0], photometric, bits)


@pytest.fixture(scope="module")
def ct(make: Make, shared_data: Path) -> _Pair:
    """Three slices of a CT, given in the wrong order."""
    files = sorted((shared_data / "ct" / "totalsegmentator_dicom").glob("CT.*"))[8:11]

    def name(ds: pydicom.Dataset) -> None:
        ds.PatientName, ds.PatientID, ds.PatientSex = "Yamada^Tarou=山田^太郎", "4711", "M"
        ds.SpecificCharacterSet, ds.StudyID, ds.AccessionNumber = "ISO_IR 192", "7", "A1"
        ds.PatientBirthDate, ds.StudyDate = "19700102", "20260304"

    return make([files[1], files[0], files[2]], change=name)


@pytest.fixture(scope="module")
def written(ct: _Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return ct.write(tmp_path_factory.mktemp("written"))


def _program(name: str, *arguments: str | Path) -> str:
    """Run a Debian program and return everything that it says."""
    if shutil.which(name) is None:
        reason = f"{name} is not installed (Debian: dcmtk, dicom3tools)"
        if os.environ.get("MEDQA_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    done = subprocess.run([name, *map(str, arguments)], capture_output=True, check=False)  # noqa: S603
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def _errors(path: Path) -> list[str]:
    said = _program("dciodvfy", path).splitlines()
    assert said  # at least the name of the IOD
    return [line for line in said if line.startswith("Error")]


_CASES = {
    "enhanced MR": ["mr/enhanced_multiframe/6_1.dcm"],
    "enhanced MR that lies nowhere": ["mr/enhanced_multiframe/emri_small.dcm"],
    "DX": ["xr/dx_mono1/dx_image.dcm"],
    "CR": ["xr/cxr_pair_mono1_mono2/Fake_MONOHR1.dcm"],
    "US cine": ["us/OBXXXX1A_rle_2frame.dcm"],
    "NM": ["nm/JPEG2000_UNC.dcm"],
    "PT": ["pt/GH184.dcm"],
    "GE CT": ["ct/head_series_GE/05.dcm", "ct/head_series_GE/06.dcm"],
}


@pytest.mark.parametrize("files", _CASES.values(), ids=_CASES.keys())
def test_dciodvfy_finds_no_error(
    files: list[str], make: Make, shared_data: Path, tmp_path: Path
) -> None:
    pair = make([shared_data / name for name in files])
    results = pair.write(tmp_path)
    assert list(results) == _NAMES
    assert {name: _errors(path) for name, path in results.items()} == _CLEAN
    report = hd.sr.srread(results["sr.dcm"])
    assert report.StudyInstanceUID == pydicom.dcmread(pair.reference[0]).StudyInstanceUID
    for path in results.values():
        assert "cannot read" not in _program("dcmdump", path)


def test_dciodvfy_finds_no_error_in_a_ct(written: dict[str, Path]) -> None:
    assert {name: _errors(path) for name, path in written.items()} == _CLEAN


def test_patient_and_study_are_the_references(ct: _Pair, written: dict[str, Path]) -> None:
    source = pydicom.dcmread(ct.reference[0])
    copied = (
        *("StudyInstanceUID", "PatientID", "PatientSex", "PatientBirthDate"),
        *("StudyDate", "StudyID", "AccessionNumber"),
    )
    series = {source.SeriesInstanceUID}
    for path in written.values():
        ds = pydicom.dcmread(path)
        assert [ds[key].value for key in copied] == [source[key].value for key in copied]
        assert str(ds.PatientName) == "Yamada^Tarou=山田^太郎"
        assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
        assert (ds.Manufacturer, ds.SoftwareVersions) == ("medqa", medqa.__version__)
        series.add(ds.SeriesInstanceUID)
    assert len(series) == 4  # each in a new series
    said = _program("dcmdump", "+P", "PatientName", written["sr.dcm"])
    assert "Yamada^Tarou=山田^太郎" in said


def _groups(report: Any) -> dict[str, Any]:
    return {
        str(group.tracking_identifier): group
        for group in (
            *report.content.get_image_measurement_groups(),
            *report.content.get_planar_roi_measurement_groups(),
        )
    }


def _values(group: Any) -> dict[str, float]:
    return {one.name.value: one.value for one in group.get_measurements()}


def _upwards(paths: list[Path]) -> list[int]:
    """Which file holds each slice of an axial series, from the feet up."""
    heights = [float(pydicom.dcmread(path).ImagePositionPatient[2]) for path in paths]
    return sorted(range(len(paths)), key=heights.__getitem__)


def test_report_holds_the_values_of_the_record(ct: _Pair, written: dict[str, Path]) -> None:
    a = ct.assessment
    groups = _groups(hd.sr.srread(written["sr.dcm"]))
    whole = groups[f"medqa assessment {a.assessment_id}"]
    expected = {"lpips": a.base_lpips_score} | {k: v for k, v in a.metrics.items() if v is not None}
    assert _values(whole) == {
        k.replace("mutual_information", "mutual_info"): v for k, v in expected.items()
    }
    answers = {one.name.value: one.value for one in whole.get_qualitative_evaluations()}
    _, name, meaning = VERDICT_WORDS[a.verdict]
    assert (answers["verdict"].value, answers["verdict"].meaning) == (
        a.verdict,
        f"{name}: {meaning}",
    )
    assert answers["verdict"].scheme_designator == SCHEME
    yes, no = codes.SCT.Yes, codes.SCT.No
    fits = a.clinical_suitability
    assert answers["diagnosis_ok"] == (yes if fits.suitable_for_diagnosis else no)
    assert answers["screening_ok"] == (yes if fits.suitable_for_screening else no)
    assert answers["review_needed"] == (yes if fits.requires_expert_review else no)

    worst = max(a.slices, key=lambda one: one.lpips)
    group = groups[f"medqa assessment {a.assessment_id}, slice {worst.index}"]
    assert _values(group) == {"lpips": worst.lpips}
    files = {pydicom.dcmread(path).SOPInstanceUID: path for path in (*ct.reference, *ct.candidate)}
    shown = [files[one.referenced_sop_instance_uid] for one in group.source_images]
    place = _upwards(ct.reference)[worst.index]
    assert shown == [ct.reference[place], ct.candidate[place]]


def test_limits_are_the_normal_range(ct: _Pair, written: dict[str, Path]) -> None:
    a = ct.assessment
    whole = _groups(hd.sr.srread(written["sr.dcm"]))[f"medqa assessment {a.assessment_id}"]
    limits = {one.name: one for one in a.limits}
    for name, bound, key in (
        ("diagnostic", codes.SCT.NormalRangeUpperLimit, "lpips"),
        ("edge_fidelity diagnostic", codes.SCT.NormalRangeLowerLimit, "edge_fidelity"),
    ):
        (measured,) = (one for one in whole.get_measurements() if one.name.value == key)
        items = {item.name.value: item.value for item in measured[0].ContentSequence}
        assert items[bound.value] == limits[name].value
        assert items[codes.DCM.NormalRangeAuthority.value] == limits[name].source
        assert items["screening_limit"] == limits[name.replace("diagnostic", "screening")].value


def test_regions_lie_where_they_were_judged(ct: _Pair, written: dict[str, Path]) -> None:
    a = ct.assessment
    groups = _groups(hd.sr.srread(written["sr.dcm"]))
    assert a.pathology_preservation is not None
    component, note = a.pathology_preservation.components[0], a.annotation_preservation[0]
    for name, value, one in (
        (f"{component.name} (pathology 1)", component.lpips, component),
        ("nodule 結節 (annotation 1)", note.lpips_score, note),
    ):
        group = groups[name]
        assert _values(group) == {"lpips": value, "pixels": one.pixels}
        region = group.roi
        x1, y1, x2, y2 = one.bbox
        np.testing.assert_array_equal(region.value.min(axis=0), (x1, y1))
        np.testing.assert_array_equal(region.value.max(axis=0), (x2, y2))
        image = region.ContentSequence[0].referenced_sop_instance_uid
        path = ct.reference[_upwards(ct.reference)[one.slice]]
        assert image == pydicom.dcmread(path).SOPInstanceUID
    kept = groups["nodule 結節 (annotation 1)"].get_qualitative_evaluations()[0]
    assert kept.value == (codes.SCT.Yes if note.preserved else codes.SCT.No)


def test_report_in_words(ct: _Pair, written: dict[str, Path]) -> None:
    page = html.unescape(_program("dsr2html", written["sr.dcm"]))
    for reason in ct.assessment.reasons:
        assert reason.text in page
    assert "not a medical device" in page
    assert "nodule 結節" in page
    ds = pydicom.dcmread(written["sr.dcm"])
    (scheme,) = ds.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == SCHEME
    assert (ds.CompletionFlag, ds.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    referred = {
        item.ReferencedSOPInstanceUID
        for study in ds.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert referred == {
        pydicom.dcmread(path).SOPInstanceUID for path in (*ct.reference, *ct.candidate)
    }


def test_parametric_map_holds_the_distances(ct: _Pair, written: dict[str, Path]) -> None:
    result = hd.pm.ParametricMap.from_file(written["distance-map.dcm"])
    evidence = ct.assessment.evidence
    assert len(evidence) > 1
    pixels = pydicom.dcmread(written["distance-map.dcm"]).pixel_array
    np.testing.assert_array_equal(pixels, np.stack([one.distance_map for one in evidence]))
    real = result.get_frames(apply_real_world_transform=True)
    np.testing.assert_array_equal(real, pixels)
    (mapping,) = result.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    shared = result.SharedFunctionalGroupsSequence[0]
    for group, one in zip(result.PerFrameFunctionalGroupsSequence, evidence, strict=True):
        source = pydicom.dcmread(ct.reference[_upwards(ct.reference)[one.index]])
        assert group.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
        orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        assert orientation == source.ImageOrientationPatient
        assert shared.PixelMeasuresSequence[0].PixelSpacing == source.PixelSpacing
        referred = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert referred.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert referred.ReferencedSOPClassUID == source.SOPClassUID
        assert result.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert one.window in group.FrameContentSequence[0].FrameComments


def test_map_of_a_multi_frame_names_its_frames(
    make: Make, shared_data: Path, tmp_path: Path
) -> None:
    pair = make([shared_data / "mr/enhanced_multiframe/6_1.dcm"])
    source = pydicom.dcmread(pair.reference[0])
    result = pydicom.dcmread(pair.write(tmp_path)["distance-map.dcm"])
    for group in result.PerFrameFunctionalGroupsSequence:
        referred = group.DerivationImageSequence[0].SourceImageSequence[0]
        frame = source.PerFrameFunctionalGroupsSequence[referred.ReferencedFrameNumber - 1]
        assert group.PlanePositionSequence[0].ImagePositionPatient == pytest.approx(
            list(frame.PlanePositionSequence[0].ImagePositionPatient)
        )


def test_map_without_a_position_is_a_secondary_capture(
    make: Make, shared_data: Path, tmp_path: Path
) -> None:
    pair = make([shared_data / "us/OBXXXX1A_rle_2frame.dcm"])
    result = pydicom.dcmread(pair.write(tmp_path)["distance-map.dcm"])
    maps = np.stack([one.distance_map for one in pair.assessment.evidence])
    assert "ImagePositionPatient" not in result
    pages = [result.PageNumberVector] if result.NumberOfFrames == 1 else result.PageNumberVector
    assert [int(page) - 1 for page in pages] == [one.index for one in pair.assessment.evidence]
    found = result.pixel_array * float(result.RescaleSlope) + float(result.RescaleIntercept)
    np.testing.assert_allclose(found, maps, rtol=0, atol=0.51 * float(maps.max()) / 65535)


def test_summary_is_shown_as_drawn(ct: _Pair, written: dict[str, Path], tmp_path: Path) -> None:
    drawn = picture(ct.assessment, 2 * 0.18)
    assert drawn.shape == (768, 1024, 3)
    shown = tmp_path / "shown.ppm"
    said = _program("dcm2pnm", "+op", written["summary.dcm"], shown)
    assert shown.is_file(), said
    np.testing.assert_array_equal(np.asarray(PILImage.open(shown)), drawn)
    ds = pydicom.dcmread(written["summary.dcm"])
    assert ds.ConversionType == "WSD"
    assert "BurnedInAnnotation" not in ds  # the CT does not say whether its pixels name anybody


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("NO", "NO", "NO"), ("YES", "NO", "YES"), ("NO", "", None), ("", "YES", "YES")],
)
def test_summary_names_nobody_only_if_the_images_do_not(
    one: str, other: str, expected: str | None, make: Make, shared_data: Path, tmp_path: Path
) -> None:
    def said(value: str) -> Callable[[pydicom.Dataset], None]:
        return lambda ds: setattr(ds, "BurnedInAnnotation", value)

    dx = [shared_data / "xr/dx_mono1/dx_image.dcm"]
    pair = make(dx, change=said(one), change_candidate=said(other))
    ds = pydicom.dcmread(pair.write(tmp_path)["summary.dcm"])
    assert ds.get("BurnedInAnnotation") == expected


def test_written_again_it_is_the_same(ct: _Pair, written: dict[str, Path], tmp_path: Path) -> None:
    again = ct.write(tmp_path / "again")
    for name in _NAMES:
        assert pydicom.dcmread(again[name]) == pydicom.dcmread(written[name])
        assert again[name].read_bytes() == written[name].read_bytes()
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(_NAMES)


def test_from_a_store_it_has_no_pictures(ct: _Pair, tmp_path: Path) -> None:
    stored = Assessment.model_validate_json(ct.assessment.model_dump_json())
    results = write_dicom(stored, ct.reference, ct.candidate, tmp_path)
    assert [path.name for path in results] == ["sr.dcm", "summary.dcm"]
    assert [_errors(path) for path in results] == [[], []]


def test_not_assessable_has_its_reason(
    ct: _Pair, make: Make, network: GrayLPIPS, shared_data: Path, tmp_path: Path
) -> None:
    other = make([shared_data / "ct/misc/CT_small.dcm"])
    found = medqa.assess(medqa.read(other.reference), medqa.read(ct.candidate), backbone=network)
    assert found.verdict == "not_assessable"
    results = write_dicom(found, other.reference, ct.candidate, tmp_path)
    assert [path.name for path in results] == ["sr.dcm", "summary.dcm"]
    assert [_errors(path) for path in results] == [[], []]
    page = html.unescape(_program("dsr2html", results[0]))
    assert found.reasons[0].text in page
    assert "no statement can be made about this image" in page
    assert pydicom.dcmread(results[1]).BurnedInAnnotation == "NO"


def test_sloppy_headers_are_mended(make: Make, shared_data: Path, tmp_path: Path) -> None:
    def spoil(ds: pydicom.Dataset) -> None:
        with pydicom.config.disable_value_validation():
            ds.PatientName = "A^B^C^D^E^F^G"
            ds.PatientBirthDate, ds.PatientSex, ds.StudyTime = "1990-13-40", "male", "12:00"
            ds.ReferringPhysicianName = "x" * 80
            ds.StudyDescription = "y" * 90
            del ds.StudyID, ds.AccessionNumber
            ds.add_new(0x00091001, "UN", b"private")
            ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.12.77"  # of no table

    pair = make([shared_data / "xr/dx_mono1/dx_image.dcm"], change=spoil)
    results = pair.write(tmp_path)
    for path in results.values():
        ds = pydicom.dcmread(path)
        for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyTime", "StudyID"):
            assert not ds[keyword].value
        assert not ds.ReferringPhysicianName
        assert "StudyDescription" not in ds
        assert ds.PatientID == "123456"
    assert "1.2.840.10008.5.1.4.1.1.12.77" in pydicom.dcmread(results["sr.dcm"]).to_json()
    assert _errors(results["distance-map.dcm"]) == []


def test_candidate_with_the_references_uids_is_not_referred_to(
    make: Make, shared_data: Path, tmp_path: Path
) -> None:
    dx = shared_data / "xr/dx_mono1/dx_image.dcm"
    uid = pydicom.dcmread(dx).SOPInstanceUID
    pair = make([dx], change_candidate=lambda ds: setattr(ds, "SOPInstanceUID", uid))
    report = pydicom.dcmread(pair.write(tmp_path)["sr.dcm"])
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert len(series.ReferencedSOPSequence) == 1
    assert "cannot be referred to" in report.to_json()


def test_candidate_of_another_study(make: Make, shared_data: Path, tmp_path: Path) -> None:
    other = generate_uid()
    pair = make(
        [shared_data / "xr/dx_mono1/dx_image.dcm"],
        change_candidate=lambda ds: setattr(ds, "StudyInstanceUID", other),
    )
    results = pair.write(tmp_path)
    (study,) = pydicom.dcmread(results["sr.dcm"]).PertinentOtherEvidenceSequence
    assert study.StudyInstanceUID == other
    assert _errors(results["sr.dcm"]) == []


def test_other_files_are_refused(ct: _Pair, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not the image that was assessed"):
        write_dicom(ct.assessment, ct.candidate, ct.candidate, tmp_path)
    with pytest.raises(UsageError, match="is not the image that was assessed"):
        write_dicom(ct.assessment, ct.reference[:2], ct.candidate, tmp_path)
    with pytest.raises(UsageError, match="is not DICOM"):
        write_dicom(ct.assessment, [], ct.candidate, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("StudyInstanceUID", "", "has no valid StudyInstanceUID"),
        ("SOPInstanceUID", "../../x", "has no valid SOPInstanceUID"),
        ("PatientID", "7" * 65, "has an invalid Patient ID"),
    ],
)
def test_headers_that_lead_nowhere_are_refused(
    keyword: str,
    value: str,
    reason: str,
    network: GrayLPIPS,
    shared_data: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "one.dcm"
    with pydicom.config.disable_value_validation():
        ds = pydicom.dcmread(shared_data / "xr/dx_mono1/dx_image.dcm")
        setattr(ds, keyword, value)
        ds.save_as(path)
    image = medqa.read(path)
    found = medqa.assess(image, image, backbone=network)
    with pytest.raises(UsageError, match=reason):
        write_dicom(found, [path], [path], tmp_path / "out")
