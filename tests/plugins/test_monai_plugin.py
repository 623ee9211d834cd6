"""medqa inside MONAI: against `medqa.read` and `medqa.assess` on the same real files.

The MONAI Deploy App SDK needs NVIDIA's Holoscan and is not installed: its operator runs here in a
stand-in that has those calls of the SDK, as of 2025, which it uses, and nothing else.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, LoadImaged, Orientationd
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from torch import Tensor, nn

import medqa
from medqa.audit import Store, verify
from medqa.errors import StoreError, UsageError
from medqa.thresholds import load
from medqa_plugins.monai import AssessQualityd, VerdictMetric
from medqa_plugins.monai.handlers import AuditHandler, VerdictHandler
from medqa_plugins.monai.series import assess_series
from medqa_plugins.monai.tensors import image

# MONAI makes each of its readers, and one of them looks for a graphics processor's decoder.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")

NIFTI = [
    "ct/totalsegmentator_nifti/example_ct_sm.nii.gz",
    "ct/totalsegmentator_nifti/example_ct.nii.gz",
    "mr/nifti/anatomical.nii",
    *(f"mr/nifti_orientations/{axes}.nii.gz" for axes in ("AIL", "IRA", "LAS", "LPI", "SPL")),
]
DICOM = ["ct/head_series_GE", "mr/uih_t1", "ct/head_series_GE/01.dcm"]
CT, LABELS = (
    f"ct/totalsegmentator_nifti/{name}.nii.gz" for name in ("example_ct_sm", "example_seg")
)
# Of two assessments of one pair, what may differ.
OWN = {"assessment_id", "created_at", "inputs", "origin", "correlation_id"}


def loaded(path: Path, reader: str = "NibabelReader") -> MetaTensor:
    return LoadImaged("it", reader=reader, ensure_channel_first=True)({"it": str(path)})["it"]


@pytest.fixture(scope="module")
def network() -> medqa.GrayLPIPS:
    return medqa.GrayLPIPS()


@pytest.fixture
def judge(network: medqa.GrayLPIPS) -> AssessQualityd:
    return AssessQualityd("pred", "image", profile="ct", backbone=network)


@pytest.fixture
def files(shared_data: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Four slices of a real CT as NIfTI, the same with noise, and a mask of its organs."""
    whole = nibabel.load(shared_data / CT)
    some = slice(12, 16)
    names = [tmp_path / name for name in ("reference.nii", "candidate.nii", "mask.nii")]
    reference = whole.slicer[:, :, some]
    nibabel.save(reference, names[0])
    values = np.asarray(reference.dataobj).astype(np.float32)
    noisy = values + np.random.default_rng(1).normal(0, 40, values.shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(noisy, reference.affine), names[1])
    labels = np.asarray(nibabel.load(shared_data / LABELS).dataobj)[:, :, some] == 5
    assert labels.any()
    nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), reference.affine), names[2])
    return names[0], names[1], names[2]


def scored(assessment: medqa.Assessment) -> dict[str, Any]:
    return assessment.model_dump(exclude=OWN)


def found(item: dict[Any, Any]) -> medqa.Assessment:
    return medqa.Assessment.model_validate_json(item["pred_assessment"])


# Images


@pytest.mark.parametrize(
    ("name", "reader"),
    [(name, "NibabelReader") for name in NIFTI] + [(name, "PydicomReader") for name in DICOM],
)
def test_images_are_those_of_medqa_read(shared_data: Path, name: str, reader: str) -> None:
    expected = medqa.read(shared_data / name)
    made = image(loaded(shared_data / name, reader), name)
    np.testing.assert_array_equal(made.pixels, np.asarray(expected.pixels))
    assert made.spacing_mm == pytest.approx(expected.spacing_mm, abs=1e-6)
    assert made.affine is not None
    assert expected.affine is not None
    columns = slice(0 if len(made.pixels) > 1 else 1, 4)  # a single slice has no way of its own
    np.testing.assert_allclose(made.affine[:, columns], expected.affine[:, columns], atol=1e-4)


def test_a_series_that_is_stored_upside_down_is_turned(shared_data: Path) -> None:
    # Its rows run to the front and its columns to the right: `medqa.read` leaves it so.
    folder = shared_data / "ct/small_series_torchio"
    made = image(loaded(folder, "PydicomReader"), "it")
    stored = np.asarray(medqa.read(folder).pixels)
    np.testing.assert_array_equal(made.pixels, stored[:, ::-1, ::-1])


@pytest.mark.parametrize("axes", ["LAS", "LPI", "SAR", "AIL"])
def test_turning_by_monai_changes_nothing(shared_data: Path, axes: str) -> None:
    whole = loaded(shared_data / CT)
    labels = (("L", "R"), ("P", "A"), ("I", "S"))
    turned = Orientationd("it", axcodes=axes, labels=labels)({"it": whole})["it"]
    assert nibabel.aff2axcodes(turned.affine.numpy()) == tuple(axes)
    np.testing.assert_array_equal(image(turned, "it").pixels, image(whole, "it").pixels)


def test_what_has_no_affine_is_transposed() -> None:
    x, y, z = 3, 4, 5
    plain = torch.arange(x * y * z).reshape(1, x, y, z)
    for given in (plain, plain.numpy(), MetaTensor(plain)):  # MONAI gives it the identity
        made = image(given, "it")
        assert made.affine is None
        assert made.shape == (z, y, x)
        assert made.pixels[4, 2, 1] == plain[0, 1, 2, 4]
    flat = image(plain[..., 0], "it")
    assert flat.shape == (1, y, x)
    assert flat.pixels[0, 2, 1] == plain[0, 1, 2, 0]


def test_tensors_of_autocast_and_of_training_are_taken() -> None:
    given = torch.rand(1, 4, 5, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        made = image(given.to(dtype), "it")
        np.testing.assert_array_equal(made.pixels[0], given.to(dtype).detach().float().numpy()[0].T)


# The transform


def test_it_judges_as_medqa_does(files: tuple[Path, Path, Path], judge: AssessQualityd) -> None:
    reference, candidate, _ = files
    data = {"image": loaded(reference), "pred": loaded(candidate)}
    before = {name: one.clone() for name, one in data.items()}
    item = judge(data)
    expected = medqa.assess(medqa.read(reference), medqa.read(candidate), profile="ct")
    assert expected.base_lpips_score is not None
    assert expected.base_lpips_score > 0.01
    assert scored(found(item)) == scored(expected)
    assert item["pred_verdict"] == expected.verdict
    assert item["pred_score"] == expected.base_lpips_score
    assert list(data) == ["image", "pred"]
    for name, one in before.items():
        assert torch.equal(data[name], one)


def test_a_plain_candidate_lies_on_the_references_grid(
    files: tuple[Path, Path, Path], judge: AssessQualityd
) -> None:
    reference, candidate = (loaded(path) for path in files[:2])
    expected = judge({"image": reference, "pred": candidate})
    plain = candidate.as_tensor()
    for given in (plain, plain.numpy()):
        assert scored(found(judge({"image": reference, "pred": given}))) == scored(found(expected))


def test_a_mask_is_judged_as_its_file_is(
    files: tuple[Path, Path, Path], network: medqa.GrayLPIPS
) -> None:
    reference, candidate, mask = files
    judge = AssessQualityd(
        "pred", "image", profile="ct", mask_key="mask", backbone=network, allow_missing_keys=True
    )
    data = {"image": loaded(reference), "pred": loaded(candidate), "mask": loaded(mask)}
    expected = medqa.assess(
        medqa.read(reference), medqa.read(candidate), mask=mask, profile="ct"
    ).pathology_preservation
    assert expected is not None
    for given in (data["mask"], data["mask"].as_tensor() * 7):
        one = found(judge(data | {"mask": given})).pathology_preservation
        assert one is not None
        assert one.pathology_lpips == expected.pathology_lpips
        assert one.pathology_coverage == expected.pathology_coverage
        assert [part.bbox for part in one.components] == [part.bbox for part in expected.components]
    assert "pred_verdict" not in judge({"image": data["image"], "mask": data["mask"]})


def moved(given: MetaTensor) -> MetaTensor:
    affine = given.affine.clone()
    affine[0, 3] += 10
    return MetaTensor(given.as_tensor(), affine=affine)


def with_nan(given: MetaTensor) -> MetaTensor:
    bad = given.clone()
    bad[0, 5, 5, 1] = torch.nan
    return bad


BAD: dict[str, tuple[str, Callable[[MetaTensor], Any], str]] = {
    "NaN": ("pred", with_nan, "Candidate: 1 pixel values are NaN"),
    "channels": ("pred", lambda one: torch.cat([one, one]), "Candidate: is of shape (2, "),
    "empty": ("pred", lambda one: one[..., :0], "Candidate: is of shape (1, 122, 101, 0)"),
    "shape": ("pred", lambda one: one.as_tensor()[:, 1:], "Candidate: is 4 slices of 101 x 121"),
    "elsewhere": ("pred", moved, "Candidate: lies elsewhere"),
    "unplaced": ("pred", lambda one: MetaTensor(one.as_tensor()), "Candidate: only one of the two"),
    "constant": ("image", torch.zeros_like, "Reference: every pixel is 0"),
    "scaled": ("image", lambda one: (one + 1024) / 2048, "Reference: spans "),
    "flat affine": (
        "pred",
        lambda one: MetaTensor(one.as_tensor(), affine=torch.diag(torch.tensor([1.0, 1, 0, 1]))),
        "Candidate: has an affine that places no voxels",
    ),
    "mask elsewhere": ("mask", moved, "Mask or annotation: lies on another grid"),
    "mask shape": ("mask", lambda one: one.as_tensor()[:, 1:], "Mask or annotation: lies on"),
    "mask channels": ("mask", lambda one: torch.cat([one, one]), "Mask or annotation: is of shape"),
    "mask empty": ("mask", torch.zeros_like, "Mask or annotation: "),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_judged_is_not_assessable(
    files: tuple[Path, Path, Path], network: medqa.GrayLPIPS, what: str
) -> None:
    key, spoil, reason = BAD[what]
    data = dict(zip(("image", "pred", "mask"), map(loaded, files), strict=True))
    judge = AssessQualityd("pred", "image", profile="ct", mask_key="mask", backbone=network)
    item = judge(data | {key: spoil(data[key])})
    assert item["pred_verdict"] == "not_assessable"
    assert np.isnan(item["pred_score"])
    assessment = found(item)
    assert assessment.reasons[0].text.startswith(reason)
    assert assessment.profile == load("ct").ref
    assert assessment.inputs.reference is not None


def test_a_wrong_profile_or_key_is_an_error(
    files: tuple[Path, Path, Path], judge: AssessQualityd
) -> None:
    with pytest.raises(UsageError):
        AssessQualityd("pred", "image", profile="no such profile")
    with pytest.raises(KeyError, match="pred"):
        judge({"image": loaded(files[0])})


def batch(files: tuple[Path, Path, Path]) -> list[dict[str, MetaTensor]]:
    """Good, bad, identical."""
    reference, candidate = (loaded(path) for path in files[:2])
    return [
        {"image": reference, "pred": candidate},
        {"image": reference, "pred": with_nan(candidate)},
        {"image": reference, "pred": reference},
    ]


def test_workers_of_a_data_loader(files: tuple[Path, Path, Path], judge: AssessQualityd) -> None:
    items = batch(files)
    expected = [judge(item) for item in items]
    loader = DataLoader(Dataset(items, Compose([judge])), batch_size=2, num_workers=2)
    batches = list(loader)
    assert [one for some in batches for one in some["pred_verdict"]] == [
        one["pred_verdict"] for one in expected
    ]
    assert expected[1]["pred_verdict"] == "not_assessable"
    assert expected[2]["pred_verdict"] == "diagnostic"
    scores = torch.cat([some["pred_score"] for some in batches]).tolist()
    # float32 convolutions may be summed in another order where there is another number of threads.
    assert scores == pytest.approx([one["pred_score"] for one in expected], rel=1e-5, nan_ok=True)


def test_threads_and_copies(files: tuple[Path, Path, Path], judge: AssessQualityd) -> None:
    reference, candidate = (loaded(path)[..., :2] for path in files[:2])
    data = {"image": reference, "pred": candidate}
    expected = scored(found(judge(data)))
    copy = pickle.loads(pickle.dumps(judge))  # noqa: S301 (what was made here)
    with ThreadPoolExecutor(4) as pool:
        for item in pool.map(lambda one: one(data), [judge, copy] * 2):
            assert scored(found(item)) == expected


# The metric


def test_shares_are_counted() -> None:
    metric = VerdictMetric()
    rows = metric(["diagnostic", "unsuitable"])
    assert rows.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    metric(["diagnostic", "expert_review", "not_assessable"])
    assert float(metric.aggregate()) == pytest.approx(2 / 5)
    assert metric.shares() == pytest.approx(
        {"diagnostic": 0.4, "expert_review": 0.2, "unsuitable": 0.2, "not_assessable": 0.2}
    )
    metric.reset()
    with pytest.raises(UsageError, match="seen no verdict"):
        metric.aggregate()
    for wrong in (["good"], torch.ones(2, 1)):
        with pytest.raises(UsageError):
            metric(wrong)


# Ignite


class Passed(nn.Module):
    """A network that puts out what it is given."""

    def forward(self, given: Tensor) -> Tensor:
        return given


def evaluator(
    items: list[dict[str, MetaTensor]], judge: AssessQualityd, handlers: list[Any]
) -> SupervisedEvaluator:
    named = [{"image": one["pred"], "label": one["image"]} for one in items]
    engine = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(named), batch_size=2),
        network=Passed(),
        postprocessing=judge,
        key_val_metric={"diagnostic": VerdictHandler("pred")},
        val_handlers=handlers,
    )
    engine.logger.disabled = True
    return engine


@pytest.mark.parametrize("by_url", [False, True])
def test_every_image_of_two_epochs_is_recorded(
    files: tuple[Path, Path, Path], network: medqa.GrayLPIPS, tmp_path: Path, by_url: bool
) -> None:
    judge = AssessQualityd("pred", "label", profile="ct", backbone=network)
    path = str(tmp_path / "audit.db")
    with Store.open(path) as store:
        handler = AuditHandler(path if by_url else store, "pred", "run 7")
        validation = evaluator(batch(files), judge, [handler])
        trainer = Engine(lambda _engine, _batch: None)
        shares = []

        def validate(engine: Engine) -> None:
            validation.run(engine.state.epoch)
            shares.append(validation.state.metrics["diagnostic"])

        trainer.add_event_handler("EPOCH_COMPLETED", validate)
        trainer.run([0], max_epochs=2)
        records = store.list()[::-1]
        assert verify(store).fault is None
    if by_url:
        handler.store.close()
    assert [one.correlation_id for one in records] == [
        f"run 7/epoch {epoch}/image {number}" for epoch in (1, 2) for number in (1, 2, 3)
    ]
    assert {one.origin for one in records} == {"monai"}
    assert [one.verdict for one in records[:3]] == [one.verdict for one in records[3:]]
    assert records[1].verdict == "not_assessable"
    share = sum(one.verdict == "diagnostic" for one in records) / 6
    assert shares == pytest.approx([share, share])
    expected = medqa.assess(*map(medqa.read, files[:2]), profile="ct")
    assert scored(records[0]) == scored(expected)


def test_an_image_that_cannot_be_recorded_stops_the_engine(
    files: tuple[Path, Path, Path], network: medqa.GrayLPIPS, tmp_path: Path
) -> None:
    path = tmp_path / "audit.db"
    Store.open(str(path)).close()
    judge = AssessQualityd("pred", "label", profile="ct", backbone=network)
    with (
        Store.open(str(path), readonly=True) as store,
        pytest.raises(StoreError, match="opened to read"),
    ):
        evaluator(batch(files)[2:], judge, [AuditHandler(store, "pred", "run")]).run()
    with pytest.raises(StoreError):
        AuditHandler(str(tmp_path), "pred", "run")  # a folder


def test_an_engine_that_judges_nothing_is_an_error(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "audit.db")) as store:
        engine = Engine(lambda _engine, _batch: [{"pred": torch.zeros(1)}])
        AuditHandler(store, "pred", "run").attach(engine)
        with pytest.raises(UsageError, match="AssessQualityd"):
            engine.run([0])
        assert store.list() == ()


# MONAI Deploy


@pytest.fixture
def series(shared_data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two slices of a real series in a folder, and the same with noise as a series of its own."""
    folders = tmp_path / "reference", tmp_path / "candidate"
    for folder in folders:
        folder.mkdir()
    generator = np.random.default_rng(2)
    uid = generate_uid()
    for number in ("01", "02"):
        ds = pydicom.dcmread(shared_data / "ct/liver_3slice_with_SEG" / f"{number}.dcm")
        ds.save_as(folders[0] / f"{number}.dcm")
        stored = ds.pixel_array.astype(np.int32)
        noisy = stored + np.rint(generator.normal(0, 20, stored.shape)).astype(np.int32)
        ds.PixelData = (
            np.clip(noisy, stored.min(), stored.max()).astype(ds.pixel_array.dtype).tobytes()
        )
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SeriesInstanceUID, ds.SOPInstanceUID = uid, generate_uid()
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(folders[1] / f"{number}.dcm")
    return folders


def test_a_series_is_judged_recorded_and_written(
    series: tuple[Path, Path], network: medqa.GrayLPIPS, tmp_path: Path
) -> None:
    reference, candidate = map(str, series)
    with Store.open(str(tmp_path / "audit.db")) as store:
        found = assess_series(reference, candidate, tmp_path / "out", store=store, network=network)
        recorded = store.get(found.assessment_id)
    expected = medqa.assess(medqa.read(reference), medqa.read(candidate))
    assert scored(recorded) == scored(expected)
    assert recorded.origin == "monai"
    assert recorded.inputs.reference is not None
    assert recorded.inputs.reference.study_hmac is not None
    report = pydicom.dcmread(tmp_path / "out/dicom/sr.dcm")
    source = pydicom.dcmread(series[0] / "01.dcm")
    assert report.Modality == "SR"
    assert report.StudyInstanceUID == source.StudyInstanceUID
    assert (tmp_path / "out/report.html").is_file()


def test_a_broken_series_is_recorded(
    series: tuple[Path, Path], network: medqa.GrayLPIPS, tmp_path: Path
) -> None:
    broken = series[1] / "02.dcm"
    broken.write_bytes(broken.read_bytes()[:20_000])
    with Store.open(str(tmp_path / "audit.db")) as store:
        found = assess_series(
            str(series[0]), str(series[1]), tmp_path / "out", store=store, network=network
        )
        assert store.list()[0].verdict == found.verdict == "not_assessable"
    assert (tmp_path / "out/dicom/sr.dcm").is_file()


class Conditioned:
    """What `OperatorSpec.output` of Holoscan returns."""

    def condition(self, kind: object) -> Conditioned:
        assert kind == "none"
        return self


class Spec:
    def __init__(self) -> None:
        self.inputs: list[str] = []
        self.outputs: list[str] = []

    def input(self, name: str) -> Conditioned:
        self.inputs.append(name)
        return Conditioned()

    def output(self, name: str) -> Conditioned:
        self.outputs.append(name)
        return Conditioned()


class Fragment:
    pass


class Operator:
    """As Holoscan's in Python: the fragment is first, and `setup` is called while it is made."""

    def __init__(self, fragment: Fragment, *args: Any, name: str = "", **kwargs: Any) -> None:
        assert isinstance(fragment, Fragment)
        assert not args
        assert not kwargs
        self.name = name
        self.spec = Spec()
        self.setup(self.spec)

    def setup(self, spec: Spec) -> None:
        raise NotImplementedError


class Ports:
    """Both contexts of `compute`."""

    def __init__(self, **arrived: Any) -> None:
        self.arrived, self.emitted = arrived, dict[str, Any]()

    def receive(self, name: str) -> Any:
        return self.arrived[name]

    def emit(self, data: Any, name: str) -> None:
        self.emitted[name] = data


def selected(*folders: Path) -> list[Any]:
    """What `DICOMSeriesSelectorOperator` emits: studies with their selected series."""

    def instance(path: Path) -> Any:
        return types.SimpleNamespace(get_native_sop_instance=lambda: pydicom.dcmread(path))

    def one(folder: Path) -> Any:
        instances = [instance(path) for path in sorted(folder.iterdir())]
        return types.SimpleNamespace(
            series=types.SimpleNamespace(get_sop_instances=lambda: instances)
        )

    return [types.SimpleNamespace(selected_series=[one(folder) for folder in folders])]


@pytest.fixture
def deploy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The operator's module, with a stand-in for the SDK's calls."""
    core = types.ModuleType("monai.deploy.core")
    core.__dict__.update(
        ConditionType=types.SimpleNamespace(NONE="none"),
        Fragment=Fragment,
        Operator=Operator,
        OperatorSpec=Spec,
    )
    monkeypatch.setitem(sys.modules, "monai.deploy", types.ModuleType("monai.deploy"))
    monkeypatch.setitem(sys.modules, "monai.deploy.core", core)
    yield importlib.import_module("medqa_plugins.monai.deploy")
    sys.modules.pop("medqa_plugins.monai.deploy")


def test_the_operator_judges_what_arrives(
    deploy: Any, series: tuple[Path, Path], tmp_path: Path
) -> None:
    path = str(tmp_path / "audit.db")
    operator = deploy.AssessQualityOperator(
        Fragment(), output_folder=tmp_path / "out", store=path, name="quality"
    )
    assert operator.name == "quality"
    assert (operator.spec.inputs, operator.spec.outputs) == (
        ["reference", "candidate"],
        ["assessment"],
    )
    ports = Ports(reference=selected(series[0]), candidate=series[1])
    operator.compute(ports, ports, None)
    emitted = medqa.Assessment.model_validate_json(ports.emitted["assessment"])
    expected = medqa.assess(medqa.read(series[0]), medqa.read(series[1]))
    assert scored(emitted) == scored(expected)
    assert operator.store.get(emitted.assessment_id) == emitted
    for wrong in ([], None, selected(*series), selected()):
        ports = Ports(reference=series[0], candidate=wrong)
        with pytest.raises(UsageError, match="select exactly one"):
            operator.compute(ports, ports, None)
        assert not ports.emitted
    operator.store.close()


def test_without_the_sdk_only_the_operator_is_missing() -> None:
    if importlib.util.find_spec("monai.deploy") is not None:
        pytest.skip("the MONAI Deploy App SDK is installed")
    with pytest.raises(ImportError, match=r"monai\.deploy"):
        importlib.import_module("medqa_plugins.monai.deploy")
