"""The sweep against whole assessments of the same pairs, on real images; and after a kill."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pydicom
import pytest

from medqa import pipeline, thresholds
from medqa.compression.codecs import CODECS, at_ratio
from medqa.image import Image, Region
from medqa.lpips import GrayLPIPS
from medqa.reader import read
from medqa.scoring import score, score_candidates
from medqa.studies.compression import runner
from medqa.studies.compression.planning import Plan, Settings, plan
from medqa.studies.compression.rows import csv_of, write_parquet
from medqa.studies.compression.runner import begin, finished, sweep
from medqa.studies.compression.stored import read_stored
from medqa.studies.compression.sweep import compressed, sweep_image
from medqa.transforms import displays


@pytest.fixture(scope="module")
def network() -> GrayLPIPS:
    return GrayLPIPS()


@pytest.fixture(scope="module")
def small_ct(shared_data: Path) -> Path:
    return shared_data / "ct/misc/CT_small.dcm"


def _settings(**changes: object) -> Settings:
    return replace(Settings(("j2k", "jpegls"), (5.0, 12.0)), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("profile", ["ct-compression", "mr-compression"])
def test_candidates_score_as_they_do_one_by_one(
    network: GrayLPIPS, shared_data: Path, profile: str
) -> None:
    name = "ct/liver_3slice_with_SEG" if profile.startswith("ct") else "mr/enhanced_multiframe"
    reference = read(shared_data / name / ("" if profile.startswith("ct") else "6_1.dcm"))
    pixels = np.asarray(reference.pixels)
    if pixels.shape[1] > 160:  # a part is enough
        pixels = np.ascontiguousarray(pixels[:, 150:310, 150:310])
    reference = replace(reference, pixels=pixels)
    generator = np.random.default_rng(0)
    noisy = pixels + generator.integers(-9, 10, pixels.shape).astype(pixels.dtype)
    partly = np.concatenate([pixels[:1], noisy[1:]])
    mask = np.zeros(pixels.shape, bool)
    rows, columns = (size // 2 for size in pixels.shape[1:])
    mask[1, rows : rows + 9, columns : columns + 12] = True
    regions = [Region.crop("pathology", "one", mask), Region.crop("annotation", "two", mask)]
    shown = displays(thresholds.load(profile), reference)
    options = {"measures": ["edge_fidelity", "psnr_db"], "aggregate": "max"}
    several = score_candidates(
        network, reference, [noisy, pixels, partly], shown, regions, **options
    )
    for scores, made in zip(several, (noisy, pixels, partly), strict=True):
        candidate = replace(reference, pixels=made)
        alone = score(network, reference, candidate, shown, regions, **options)
        for one, other in zip(scores.slices, alone.slices, strict=True):
            # In float32, through the network in batches of other sizes.
            assert one.lpips == pytest.approx(other.lpips, rel=1e-5, abs=0.0)
        assert scores.base_lpips == pytest.approx(alone.base_lpips, rel=1e-5, abs=0.0)
        assert scores.components[0].lpips == pytest.approx(alone.components[0].lpips, rel=1e-5)
        assert scores.annotations[0].lpips == pytest.approx(alone.annotations[0].lpips, rel=1e-5)
        assert scores.masked_lpips == alone.masked_lpips
        assert scores.measures == alone.measures
        assert scores.coverage == alone.coverage
    assert several[1].base_lpips == several[2].slices[0].lpips == 0.0


def test_padding_is_laid_over_every_candidate(network: GrayLPIPS) -> None:
    generator = np.random.default_rng(1)
    pixels = generator.normal(0, 60, (2, 64, 64)).astype(np.int16)
    pixels[:, :20] = -2000
    reference = Image(pixels, modality="CT", unit="HU", padding=np.full((2, 2), -2000.0))
    candidate = pixels.copy()
    candidate[:, :20] += 400  # only where the reference is no image
    shown = displays(thresholds.load("ct"), reference)
    (found,) = score_candidates(network, reference, [candidate], shown)
    assert found.base_lpips == 0.0


def test_rows_are_those_of_assessments_of_files(
    network: GrayLPIPS, small_ct: Path, tmp_path: Path
) -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[60:80, 50:75] = 1
    PIL.Image.fromarray(mask * 255).save(tmp_path / "mask.png")
    planned = plan([str(small_ct)], _settings(), [str(tmp_path / "mask.png")], [])
    swept = sweep_image(planned.images[0], planned.settings, network)
    assert [(row.codec, row.ratio) for row in swept.rows] == [
        (codec, ratio) for codec in ("j2k", "jpegls") for ratio in (None, 5.0, 12.0)
    ]
    stored = read_stored([small_ct])
    for row in swept.rows:
        if row.ratio is None:
            assert (row.distance, row.good) == (0.0, True)
            continue
        # The same stream decoded into a file of its own, read and assessed like any other.
        encoded = at_ratio(CODECS[row.codec or ""], stored.stored(0), stored.samples, row.ratio)
        ds = pydicom.dcmread(small_ct)
        ds.PixelData = encoded.pixels.tobytes()
        ds.save_as(tmp_path / "candidate.dcm")
        found = pipeline.assess(
            read(small_ct),
            read(tmp_path / "candidate.dcm"),
            mask=tmp_path / "mask.png",
            profile="ct-compression",
            backbone=network,
        )
        assert row.distance == pytest.approx(found.base_lpips_score, rel=1e-5)
        assert found.pathology_preservation is not None
        pathology = found.pathology_preservation
        assert row.region_distance == pytest.approx(pathology.pathology_lpips, rel=1e-5)
        assert row.regions_preserved == pathology.pathology_preserved
        assert row.verdict == found.verdict
        assert row.good == (found.verdict == "diagnostic")
        assert row.measures == {name: found.metrics[name] for name in row.measures}
        assert swept.metric == found.metric
        assert row.measured == pytest.approx(128 * 128 * 16 / 8 / len(encoded.data))
        assert row.measured >= row.ratio


def test_stored_values_lead_to_those_that_are_read(shared_data: Path) -> None:
    for name in ("mr/enhanced_multiframe/6_1.dcm", "ct/totalsegmentator_nifti/example_ct.nii.gz"):
        made = read_stored([shared_data / name])
        for index in (0, made.image.shape[0] - 1):
            again = made.shown(index, made.stored(index))
            assert np.array_equal(again, made.image.pixels[index])
    files = sorted((shared_data / "ct/liver_3slice_with_SEG").glob("0*.dcm"))
    made = read_stored(files[::-1])
    by_file = {pydicom.dcmread(file).pixel_array.tobytes(): file for file in files}
    assert {made.stored(index).tobytes() for index in range(3)} == set(by_file)


def test_a_bad_image_is_a_row_with_its_reason(
    network: GrayLPIPS, shared_data: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "SMITH_JOHN.dcm"
    broken.write_bytes((shared_data / "ct/misc/CT_small.dcm").read_bytes()[:9000])
    lossy = shared_data / "ct/misc/693_J2KI.dcm"
    planned = plan([str(broken), str(lossy)], _settings(), [], [])
    rows = [sweep_image(one, planned.settings, network).rows for one in planned.images]
    assert [len(one) for one in rows] == [1, 1]
    assert all(row.verdict == "not_assessable" and not row.good for (row,) in rows)
    assert "SMITH" not in csv_of([row for (row,) in rows]).decode()
    assert "compressed with loss before" in rows[1][0].reason


def test_what_a_codec_cannot_hold_is_a_row_of_that_codec(
    network: GrayLPIPS, small_ct: Path
) -> None:
    planned = plan([str(small_ct)], _settings(codecs=("jpeg", "j2k"), ratios=(5.0,)), [], [])
    rows = sweep_image(planned.images[0], planned.settings, network).rows
    assert [(row.codec, row.ratio, row.verdict) for row in rows] == [
        ("jpeg", 5.0, "not_assessable"),  # 16 bits
        ("j2k", None, "diagnostic"),
        ("j2k", 5.0, "diagnostic"),
    ]


def test_a_plan_numbers_images_and_their_series(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "ct/liver_3slice_with_SEG"
    files = sorted(map(str, folder.glob("0*.dcm")))
    apart = plan(files, _settings(), [], [])
    assert [(one.number, one.source) for one in apart.images] == [(1, 1), (2, 1), (3, 1)]
    # Empty Series Instance UIDs: the frame of reference says that they belong together.
    without = sorted(map(str, (shared_data / "ct/totalsegmentator_dicom").glob("CT.*")))[:2]
    assert not pydicom.dcmread(without[0]).SeriesInstanceUID
    both = plan([*without, files[0]], _settings(), [], [])
    assert [one.source for one in both.images] == [1, 1, 2]
    for number, path in enumerate(without):  # without any of it: the folder
        ds = pydicom.dcmread(path)
        del ds.FrameOfReferenceUID, ds.StudyInstanceUID
        ds.save_as(tmp_path / f"{number}.dcm")
    names = [str(tmp_path / f"{number}.dcm") for number in range(2)]
    assert [one.source for one in plan(names, _settings(), [], []).images] == [1, 1]
    together = plan([str(folder)], _settings(), [], [])
    assert [sorted(one.paths) for one in together.images] == [files]
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("01_lesion.png", "02.png"):
        (masks / name).write_bytes(b"")
    marked = plan(files, _settings(), [str(masks)], [])
    assert [[Path(mask).name for mask in one.masks] for one in marked.images] == [
        ["01_lesion.png"],
        ["02.png"],
        [],
    ]


def test_a_table_says_the_same_in_both_forms(
    network: GrayLPIPS, small_ct: Path, tmp_path: Path
) -> None:
    planned = plan([str(small_ct)], _settings(codecs=("j2k",)), [], [])
    rows = sweep_image(planned.images[0], planned.settings, network).rows
    written = list(csv.DictReader(csv_of(rows).decode().splitlines()))
    table = pq.read_table(write_parquet(tmp_path / "table.parquet", rows)).to_pylist()
    assert [float(row["distance"]) for row in written] == [row["distance"] for row in table]
    assert list(written[0]) == list(table[0])


@pytest.fixture
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not load everything anew, which takes most of a test's time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["medqa.studies.compression.runner"])
    monkeypatch.setattr(multiprocessing, "get_context", lambda _kind: context)


@pytest.mark.usefixtures("quick_start")
def test_a_killed_run_goes_on_where_it_was(small_ct: Path, tmp_path: Path) -> None:
    names = []
    for number in range(6):  # the same image six times, each quickly done
        names.append(str(tmp_path / f"{number}.dcm"))
        os.symlink(small_ct, names[-1])
    made = plan(names, _settings(codecs=("j2k",), ratios=(5.0,)), [], [])
    out = tmp_path / "killed"
    begin(out, made, resume=False)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from medqa.studies.compression import planning, runner\n"
        "if __name__ == '__main__':\n"
        "    s = planning.Settings(('j2k',), (5.0,))\n"
        "    runner.sweep(Path(sys.argv[1]), planning.plan(sys.argv[2:], s, [], []), 1,"
        " lambda a, b: None)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(out), *names]
    child = subprocess.Popen(command)  # noqa: S603 (our own script)
    while not (out / "images").exists() or len(list((out / "images").glob("*.json"))) < 2:
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = {path.name: path.stat().st_mtime_ns for path in (out / "images").glob("*.json")}
    begin(out, made, resume=True)
    resumed = sweep(out, made, 1, lambda _done, _all: None)
    after = {path.name: path.stat().st_mtime_ns for path in (out / "images").glob("*.json")}
    assert len(after) == len(resumed) == 6
    assert before.items() <= after.items()  # no image twice
    straight = [sweep_image(one, made.settings, GrayLPIPS()).rows for one in made.images]
    assert csv_of([row for rows in straight for row in rows]) == csv_of(
        [row for number in sorted(resumed) for row in resumed[number].rows]
    )


def _die_on_two(out: Path, one: runner.Planned, _settings: Settings, plan_sha256: str) -> None:
    """Stand in for an image that crashes the codec."""
    if one.number == 1:
        os._exit(11)
    runner._save(out, one, plan_sha256, runner.Swept(()))


@pytest.mark.usefixtures("quick_start")
def test_a_crash_takes_only_its_own_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Plan(_settings(), tuple(runner.Planned(n, n, (str(n),)) for n in (1, 2)))
    for name, stand_in in (("_work", _die_on_two), ("_start", _nothing)):
        monkeypatch.setattr(runner, name, stand_in)
    found = sweep(tmp_path, made, 1, lambda _done, _all: None)
    assert "died" in found[1].rows[0].reason
    assert found[2].rows == ()
    # What was done under another plan does not count.
    assert finished(tmp_path, replace(made, settings=_settings(ratios=(4.0,)))) == {}


def _nothing(_backbone: str) -> None:
    """Stand in for loading the network."""


def test_compressed_gives_the_slices_asked_for(shared_data: Path) -> None:
    stored = read_stored([shared_data / "mr/enhanced_multiframe/6_1.dcm"])
    made = compressed(stored, "jpegls", 4.0)
    found = made[2:4]
    for at, index in enumerate((2, 3)):
        encoded = at_ratio(CODECS["jpegls"], stored.stored(index), stored.samples, 4.0)
        assert np.array_equal(found[at], stored.shown(index, encoded.pixels))
