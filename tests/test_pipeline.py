"""The whole way on real images: what must come out is known from how the candidate was made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pydicom
import pytest
import scipy.ndimage as ndi
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000

import medqa
from medqa import pipeline
from medqa.assessment import Job, schema
from medqa.audit import Store, pseudonym
from medqa.errors import PixelError, ProfileError, WeightsError
from medqa.image import Image
from medqa.lpips import GrayLPIPS
from medqa.pipeline import assess, run
from medqa.thresholds import load
from medqa.transforms import pixels_of


@pytest.fixture(scope="module")
def network() -> GrayLPIPS:
    return GrayLPIPS()


@pytest.fixture(scope="module")
def ct() -> Path:
    """A real CT, 128x128, that comes with pydicom."""
    return Path(str(get_testdata_file("CT_small.dcm", download=False)))


def _compressed(source: Path, target: Path, ratio: float) -> Path:
    dataset = pydicom.dcmread(source)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress()
    dataset.compress(JPEG2000, j2k_cr=[ratio], generate_instance_uid=True)
    dataset.save_as(target)
    return target


def test_identical_images_are_diagnostic_and_at_distance_zero(ct: Path) -> None:
    image = medqa.read(ct)
    assessment = medqa.assess(image, image)
    assert assessment.base_lpips_score == 0.0
    assert assessment.verdict == "diagnostic"
    assert assessment.meets("diagnostic")
    assert assessment.metrics["psnr_db"] is None


def test_one_slice_from_every_modality_against_itself_and_a_ruin(
    shared_data: Path, network: GrayLPIPS
) -> None:
    files = {
        "CT": "ct/head_series_GE/05.dcm",
        "MR": "mr/misc/examples_overlay.dcm",
        "CR": "xr/cr_mono2/RG2_JLSL.dcm",
        "MG": "mg/GH133.dcm",
        "US": "us/GH364.dcm",
        "PT": "pt/GH184.dcm",
    }
    for modality, name in files.items():
        image = medqa.read(shared_data / name)
        assert image.modality == modality
        assert assess(image, image, backbone=network).verdict == "diagnostic"
        generator = np.random.default_rng(0)
        spread = float(image.pixels.std())
        ruin = image.pixels + generator.normal(0, spread, image.shape)
        ruined = Image(ruin.astype(np.float32), "ruin", modality=modality, unit=image.unit)
        assert assess(image, ruined, backbone=network).verdict == "unsuitable", modality


def test_distance_grows_with_compression(ct: Path, tmp_path: Path, network: GrayLPIPS) -> None:
    reference = medqa.read(ct)
    found = [
        assess(reference, medqa.read(_compressed(ct, tmp_path / f"{r}.dcm", r)), backbone=network)
        for r in (2, 5, 10, 20, 40)
    ]
    distances = [one.base_lpips_score or 0.0 for one in found]
    assert distances == sorted(distances)
    assert distances[0] < 0.01 < 0.1 < distances[-1]
    assert found[0].verdict == "diagnostic"


def test_gray_agrees_with_alex_within_its_stated_error_on_compressed_ct(
    shared_data: Path, shared_weights: Path, tmp_path: Path, network: GrayLPIPS
) -> None:
    source = shared_data / "ct/head_series_GE/05.dcm"
    reference = medqa.read(source)
    alex = GrayLPIPS("alex", shared_weights)
    for ratio in (10, 20, 30):
        candidate = medqa.read(_compressed(source, tmp_path / "c.dcm", ratio))
        gray, exact = (
            assess(reference, candidate, backbone=one).base_lpips_score for one in (network, alex)
        )
        assert gray is not None
        assert exact is not None
        stated = network.weights.relative_error
        assert stated is not None
        assert abs(gray - exact) <= stated * exact


def test_a_smoothed_away_lesion_is_found_only_inside_the_mask(
    shared_data: Path, network: GrayLPIPS
) -> None:
    reference = medqa.read(shared_data / "ct/head_series_GE/05.dcm")
    mask = np.zeros(reference.shape[1:], bool)
    mask[250:274, 230:254] = True
    pixels = reference.pixels.astype(np.float32)
    smooth = ndi.gaussian_filter(pixels[0], 6)
    pixels[0][mask] = smooth[mask]
    candidate = Image(pixels, "smoothed", modality="CT", unit="HU")
    whole = assess(reference, candidate, backbone=network, profile="ct")
    assert whole.verdict == "diagnostic"
    inside = assess(reference, candidate, backbone=network, mask=mask)
    assert inside.pathology_preservation is not None
    assert not inside.pathology_preservation.pathology_preserved
    assert inside.verdict == "expert_review"
    assert inside.pathology_preservation.masked_lpips < 0.08


def test_series_folder_and_its_nifti_twin_give_the_same_scores(
    shared_data: Path, tmp_path: Path, network: GrayLPIPS
) -> None:
    folder = shared_data / "ct/liver_3slice_with_SEG"
    series = medqa.read(folder)
    assert series.shape == (3, 512, 512)
    assert series.affine is not None
    noisy = series.pixels + np.random.default_rng(0).normal(0, 40, series.shape)
    # NIfTI stores (column, row, slice).
    xyz = series.affine @ np.eye(4)[[2, 1, 0, 3]]
    for name, pixels in (("reference", series.pixels), ("candidate", noisy.astype(np.float32))):
        volume = np.ascontiguousarray(pixels.transpose(2, 1, 0))
        nib.save(nib.Nifti1Image(volume, xyz), tmp_path / f"{name}.nii.gz")
    dicom = assess(
        replace(series, padding=None),  # which NIfTI cannot say
        Image(noisy.astype(np.float32), affine=series.affine),
        profile="ct",
        backbone=network,
    )
    nifti = run(
        Job(str(tmp_path / "reference.nii.gz"), str(tmp_path / "candidate.nii.gz"), profile="ct"),
        network=network,
    )
    assert nifti.base_lpips_score == pytest.approx(dicom.base_lpips_score, rel=1e-4)


def test_a_run_is_recorded_once_validates_and_names_nobody(
    ct: Path, tmp_path: Path, network: GrayLPIPS
) -> None:
    dataset = pydicom.dcmread(ct)
    dataset.PatientID = "Secret^Patient"
    named = tmp_path / "Secret Patient.dcm"
    dataset.save_as(named)
    boxes = tmp_path / "Secret boxes.json"
    boxes.write_text('{"annotations": [{"type": "nodule", "bbox": [40, 40, 80, 80]}]}')
    job = Job(
        str(named),
        str(_compressed(named, tmp_path / "c.dcm", 8)),
        annotations=(str(boxes),),
        origin="test",
        correlation_id="42",
    )
    with Store.open(str(tmp_path / "audit.db")) as store:
        assessment = run(job, store, network=network)
        (recorded,) = store.list()
        key = store.key
    assert recorded.model_dump() == assessment.model_dump()
    record = json.loads(recorded.model_dump_json())
    jsonschema.validate(record, schema())
    assert "secret" not in recorded.model_dump_json().lower()
    assert str(tmp_path) not in recorded.model_dump_json()
    reference = recorded.inputs.reference
    assert reference is not None
    assert reference.patient_hmac == pseudonym(key, "Secret^Patient")
    assert (recorded.origin, recorded.correlation_id) == ("test", "42")
    assert recorded.annotation_preservation[0].annotation_type == "nodule"


def test_same_input_same_record(ct: Path, tmp_path: Path, network: GrayLPIPS) -> None:
    reference = medqa.read(ct)
    candidate = medqa.read(_compressed(ct, tmp_path / "c.dcm", 10))
    ours = {"assessment_id", "created_at"}
    one, other = (
        assess(reference, candidate, backbone=network).model_dump(exclude=ours) for _ in range(2)
    )
    assert one == other


def test_what_cannot_be_read_is_recorded_with_what_could(
    ct: Path, tmp_path: Path, network: GrayLPIPS
) -> None:
    with Store.open(str(tmp_path / "audit.db")) as store:
        assessment = run(Job(str(ct), str(tmp_path / "missing.dcm")), store, network=network)
        (recorded,) = store.list()
    assert recorded.verdict == "not_assessable"
    assert recorded.inputs.reference is not None
    assert recorded.inputs.candidate is None
    assert not recorded.meets("screening")
    assert recorded.reasons[0].text == "Candidate: does not exist; check the path"
    assert recorded.reasons[0].place == "candidate"
    assert assessment.failure is not None
    assert "missing.dcm" in str(assessment.failure)
    jsonschema.validate(json.loads(recorded.model_dump_json()), schema())


def test_arrays_are_refused_like_files(network: GrayLPIPS) -> None:
    generator = np.random.default_rng(0)
    image = Image(generator.normal(0, 1, (1, 64, 64)).astype(np.float32))
    broken = Image(np.where(np.eye(64) > 0, np.nan, 0.5)[None], "broken")
    assessment = assess(image, broken, profile="default", backbone=network)
    assert assessment.verdict == "not_assessable"
    assert isinstance(assessment.failure, PixelError)
    with pytest.raises(ProfileError, match="does not say its modality"):
        assess(image, image, backbone=network)
    assert assessment.reasons[0].place == "candidate"
    empty = assess(image, image, mask=np.zeros((64, 64)), profile="default", backbone=network)
    assert empty.verdict == "not_assessable"
    assert empty.reasons[0].place == "mask or annotation"


def test_a_profile_for_another_modality_is_refused(ct: Path, network: GrayLPIPS) -> None:
    image = medqa.read(ct)
    with pytest.raises(ProfileError, match="is for MR, and the image is CT"):
        assess(image, image, profile="mr", backbone=network)
    assert assess(image, image, profile="default", backbone=network).verdict == "diagnostic"


def test_thresholds_of_another_network_are_refused(ct: Path, shared_weights: Path) -> None:
    image = medqa.read(ct)
    with pytest.raises(ProfileError, match="not for squeeze"):
        assess(image, image, backbone=GrayLPIPS("squeeze", shared_weights))
    exact = assess(image, image, backbone=GrayLPIPS("alex", shared_weights))
    assert exact.metric is not None
    assert exact.metric.relative_error is None


def test_several_masks_and_annotations(network: GrayLPIPS) -> None:
    generator = np.random.default_rng(0)
    image = Image(generator.normal(0, 1, (2, 64, 64)).astype(np.float32))
    one, other = np.zeros((2, 2, 64, 64), bool)
    one[0, 5:20, 5:20] = other[1, 30:40, 30:40] = True
    found = assess(image, image, mask=[one, other], profile="default", backbone=network)
    assert found.pathology_preservation is not None
    names = [component.name for component in found.pathology_preservation.components]
    assert names == ["mask 1", "mask 2"]
    assert [source.regions for source in found.inputs.regions] == [1, 1]


def test_blur_that_the_distance_lets_pass_fails_by_its_edges(
    shared_data: Path, network: GrayLPIPS
) -> None:
    reference = medqa.read(shared_data / "ct/head_series_GE/05.dcm")
    pixels, _ = pixels_of(reference, reference, slice(None))  # or the padding would bleed
    blurred = ndi.gaussian_filter(pixels.astype(np.float32), (0, 1.2, 1.2))
    candidate = replace(reference, pixels=blurred, source="blurred")
    found = assess(reference, candidate, profile="ct", backbone=network)
    assert found.diagnostic_quality  # by the distance alone
    edges = {gate.measure: gate for gate in found.gates}["edge_fidelity"]
    assert edges.value == found.metrics["edge_fidelity"]
    assert not edges.screening
    assert found.verdict == "unsuitable"
    assert found.reasons[0].place == "edges kept"
    limits = {limit.name: limit for limit in found.limits}
    assert limits["edge_fidelity screening"].bound == "at_least"


def test_a_composite_says_what_it_is_made_of(ct: Path, network: GrayLPIPS) -> None:
    reference = medqa.read(ct)
    found = assess(reference, reference, backbone=network).composite
    assert found is not None
    # .3 of LPIPS, .3 of SSIM and .1 of PSNR, as neither DISTS nor FID ran.
    assert found.parts == pytest.approx({"lpips": 3 / 7, "ssim": 3 / 7, "psnr_db": 1 / 7})
    assert found.value == pytest.approx(1.0)


def test_a_volume_is_compared_in_three_planes_on_request(
    shared_data: Path, network: GrayLPIPS
) -> None:
    image = medqa.read(shared_data / "ct/head_series_GE")
    found = assess(image, image, backbone=network, plane_stride=16)
    assert found.planes is not None
    assert found.planes.mean == 0.0
    assert [one.plane for one in found.planes.planes] == ["axial", "coronal", "sagittal"]
    slice_only = medqa.read(shared_data / "ct/head_series_GE/05.dcm")
    refused = assess(slice_only, slice_only, backbone=network, plane_stride=1)
    assert refused.verdict == "not_assessable"


def test_the_record_says_what_the_network_computed_in(ct: Path) -> None:
    reference = medqa.read(ct)
    exact = assess(reference, reference).metric
    assert (exact.precision, exact.device) == ("float32", "cpu")
    job = Job(reference=str(ct), candidate=str(ct), precision="bfloat16", device="cpu")
    assert run(job).metric.precision == "bfloat16"


def test_a_measure_that_cannot_run_is_named_and_may_not_decide(
    ct: Path, network: GrayLPIPS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = WeightsError("dists", "its weights are elsewhere", "bring them")
    monkeypatch.setattr(pipeline, "unavailable", lambda name: why if name == "dists" else None)
    text = load("ct").text
    start, stop = text.index("[measures]"), text.index("[limits.diagnostic]")
    named = tmp_path / "dists.toml"
    named.write_text(f'{text[:start]}[measures]\nrun = ["ssim", "dists"]\n{text[stop:]}')
    image = medqa.read(ct)
    found = assess(image, image, profile=str(named), backbone=network)
    assert found.not_measured == {"dists": "its weights are elsewhere; bring them"}
    assert set(found.metrics) == {"ssim"}
    gate = 'measure = "dists"\ndiagnostic = 0.1\nscreening = 0.2\nsource = "x"\ndate = 2026-01-01'
    named.write_text(
        f'{text[:start]}[measures]\nrun = ["ssim", "dists"]\n[[measures.gates]]\n{gate}\n'
        f'status = "provisional"\n{text[stop:]}'
    )
    with pytest.raises(ProfileError, match="dists decides, but its weights are elsewhere"):
        assess(image, image, profile=str(named), backbone=network)


def test_compression_is_judged_by_limits_of_its_own(
    ct: Path, tmp_path: Path, network: GrayLPIPS
) -> None:
    # Readers accept 8:1 on CT and refuse 12:1; the routine limits pass 20:1 of the same image.
    candidate = str(_compressed(ct, tmp_path / "c.dcm", 16))
    routine, strict = (
        run(Job(str(ct), candidate, task=task), network=network)
        for task in ("routine", "compression")
    )
    assert routine.base_lpips_score == pytest.approx(strict.base_lpips_score)
    assert routine.profile is not None
    assert strict.profile is not None
    assert strict.metric is not None
    assert (routine.profile.name, strict.profile.name) == ("ct", "ct-compression")
    assert strict.metric.relative_error == 0.5
    assert not strict.meets("diagnostic")


def test_provisional_limits_are_refused_where_calibrated_ones_are_required(
    ct: Path, tmp_path: Path, network: GrayLPIPS
) -> None:
    job = Job(str(ct), str(ct), require_calibrated=True)
    with Store.open(str(tmp_path / "audit.db")) as store:
        with pytest.raises(ProfileError, match="its limits are provisional"):
            run(job, store, network=network)
        assert store.list() == ()


def test_padding_that_a_codec_perturbed_costs_nothing(
    shared_data: Path, tmp_path: Path, network: GrayLPIPS
) -> None:
    source = shared_data / "ct/head_series_GE/05.dcm"
    candidate = _compressed(source, tmp_path / "c.dcm", 8)
    stored = [pydicom.dcmread(path) for path in (source, candidate)]
    padding = stored[0].pixel_array == stored[0].PixelPaddingValue
    assert padding.mean() > 0.1
    assert len(np.unique(stored[1].pixel_array[padding])) > 5
    reference, other = medqa.read(source), medqa.read(candidate)
    # The same copy with the padding put back, and one with nothing but anatomy in the corners.
    pixels = np.asarray(other.pixels).copy()
    for value in (np.asarray(reference.pixels)[0][padding], 1000):
        pixels[0][padding] = value
        mended = assess(reference, replace(other, pixels=pixels), backbone=network)
        assert assess(reference, other, backbone=network).slices == mended.slices
