"""From a study of enough series to a signed approval, a compressed image, and its check.

A share of 95 % with a lower bound at 95 % needs 59 series without a failure: alpha = 0.05 =
0.95 ** 59. No set of real images here is that large, so that the series are made up.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy import ndimage
from scipy.stats import beta
from typer.testing import CliRunner, Result

from medqa.audit import Store
from medqa.cli import app
from medqa.compression.approvals import listed
from medqa.errors import UsageError

SERIES, SIDE = 60, 96


def medqa(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def chest(seed: int) -> NDArray[np.int16]:
    """Lungs with vessels, in soft tissue, in air; noise of 12 HU."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.indices((SIDE, SIDE)) - SIDE / 2) / SIDE
    body = (rows / rng.uniform(0.32, 0.4)) ** 2 + (columns / rng.uniform(0.42, 0.47)) ** 2 < 1
    made = np.where(body, 40.0, -1000.0)
    for side in (-1, 1):
        off = columns - side * rng.uniform(0.18, 0.22)
        lung = (rows / rng.uniform(0.2, 0.28)) ** 2 + (off / rng.uniform(0.11, 0.15)) ** 2 < 1
        texture = ndimage.gaussian_filter(rng.normal(size=made.shape), 1.5)
        made[lung] = np.where(texture > 1.6 * texture.std(), 20.0, -830.0)[lung]
    made = ndimage.gaussian_filter(made, 0.7) + rng.normal(0, 12, made.shape)
    return np.rint(np.clip(made, -1024, 2000)).astype(np.int16)


def write(path: Path, seed: int) -> Path:
    """Write a series of one slice, under the header of pydicom's CT."""
    ds = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    values = chest(seed)
    ds.Rows, ds.Columns = values.shape
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    ds.PixelSpacing = [4.0, 4.0]
    ds.BodyPartExamined = "CHEST"
    ds.LossyImageCompression = "00"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(ds, keyword, generate_uid())
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword in ("PixelPaddingValue", "SmallestImagePixelValue", "LargestImagePixelValue"):
        if keyword in ds:
            delattr(ds, keyword)
    ds.PixelData = values.tobytes()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    """Database, id and ratio of an approval that the study proposed and somebody signed."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "images").mkdir()
    for seed in range(SERIES):
        write(folder / "images" / f"{seed:02}.dcm", seed)
    db, out = folder / "audit.db", folder / "out"
    done = medqa(
        "study", "compression", folder / "images", "--codecs", "j2k", "--ratios", "4,30",
        "--out", out, "--db", db, "--jobs", 1,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    with Store.open(str(db)) as store:
        (draft,) = listed(store)
    assert draft.status == "draft"
    named = draft.approval.approval_id
    refused = medqa("compress", folder / "images", folder / "no", "--approval", named, "--db", db)
    assert isinstance(refused.exception, UsageError)
    assert "nobody has signed" in str(refused.exception)
    assert not list((folder / "no").glob("**/*.dcm"))
    sign = ("audit", "sign", named, "--meaning", "approved", "--comment", "fine", "--db", db)
    assert medqa(*sign).exit_code == 0
    page = (out / "index.html").read_text("utf-8")
    assert "approval is proposed" in page
    # Clopper and Pearson's bound for 60 of 60, one-sided at 95 %.
    assert f"{np.floor(1000 * beta.ppf(0.05, SERIES, 1)) / 10:.1f} %" in page
    return db, named, draft.approval.highest_ratio


def test_a_study_of_sixty_series_ends_in_an_approval_below_what_the_images_bear(
    signed: tuple[Path, str, float],
) -> None:
    db, named, highest = signed
    assert highest == 4.0  # at 30:1 little is left
    assert "approved" in medqa("approvals", "list", "--db", db).output
    checked = medqa("audit", "verify", "--db", db)
    assert checked.exit_code == 0, checked.output
    assert "1 signatures" in checked.output
    assert named


def test_under_it_an_image_is_compressed_and_checked(
    signed: tuple[Path, str, float], tmp_path: Path
) -> None:
    db, named, highest = signed
    given = write(tmp_path / "new.dcm", 1000)
    made = tmp_path / "made.dcm"
    done = medqa("compress", given, made, "--approval", named, "--db", db)
    assert done.exit_code == 0, done.output
    ds = pydicom.dcmread(made)
    assert ds.LossyImageCompression == "01"
    stored = len(pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1))
    ratio = SIDE * SIDE * 2 / stored
    assert 1 < ratio <= highest
    assert float(ds.LossyImageCompressionRatio) == pytest.approx(ratio, rel=0.02)
    original = pydicom.dcmread(given)
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == original.SOPInstanceUID
    error = ds.pixel_array.astype(float) - original.pixel_array
    assert 0 < np.abs(error).max() < 100
    checked = medqa("check-compression", made, "--db", db)
    assert checked.exit_code == 0, checked.output


def test_what_was_compressed_further_than_approved_is_found(
    signed: tuple[Path, str, float], tmp_path: Path
) -> None:
    db, named, _ = signed
    given = write(tmp_path / "new.dcm", 1000)
    made = tmp_path / "made.dcm"
    assert medqa("compress", given, made, "--approval", named, "--db", db).exit_code == 0
    ds = pydicom.dcmread(made)
    ds.decompress()
    ds.compress(pydicom.uid.JPEG2000, j2k_cr=[30])
    ds.LossyImageCompressionRatio = 30
    ds.save_as(tmp_path / "worse.dcm", enforce_file_format=True)
    found = medqa("check-compression", tmp_path / "worse.dcm", "--db", db)
    assert found.exit_code == 1, found.output
