"""DICOM objects made under an approval, against pydicom, dciodvfy and DCMTK, on real images."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from approving import approval
from pydicom.pixels import apply_rescale
from pydicom.uid import JPEGExtended12Bit

from medqa.audit import Store, sign, verify
from medqa.compression.adaptive import compressed
from medqa.compression.approval import Scope
from medqa.compression.approvals import Approved, get, propose
from medqa.compression.codecs import CODECS, encode, offset
from medqa.compression.compress import Compressed, compress, prepare
from medqa.compression.objects import derived, samples_of
from medqa.errors import MedqaError, PixelError, ReadError, RegionError, UsageError
from medqa.lpips import GrayLPIPS
from medqa.reader import read

HEAD = "ct/head_series_GE/01.dcm"
ENHANCED = "mr/enhanced_multiframe/emri_small.dcm"
#: Image, modality, profile, codec: signed and unsigned, 8 to 16 bits, one and several frames.
CASES = [
    (HEAD, "CT", "ct", "j2k"),
    (HEAD, "CT", "ct", "jpegls"),
    ("mr/transfer_syntax_set/1.dcm", "MR", "mr", "jpeg"),
    (ENHANCED, "MR", "mr", "j2k"),
    (ENHANCED, "MR", "mr", "jpegls"),
    ("us/GH364.dcm", "US", "ultrasound", "jpeg"),
    ("us/GH364.dcm", "US", "ultrasound", "jpegxl"),
    ("xr/cr_mono1/RG3_J2KR.dcm", "CR", "xray", "j2k"),
]


@pytest.fixture(scope="module")
def network() -> GrayLPIPS:
    return GrayLPIPS("gray")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "audit.db"))


def approved(store: Store, **changes: Any) -> Approved:
    one = approval(**changes)
    propose(store, one)
    sign(store, one.approval_id, "approved", "fine")
    return get(store, one.approval_id)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed"
        if os.environ.get("MEDQA_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def errors(file: Path) -> set[str]:
    """What dciodvfy calls an error."""
    done = subprocess.run(  # noqa: S603 - a program of the system's own
        [program("dciodvfy"), file], capture_output=True, text=True, errors="replace", timeout=60
    )
    # Of DERIVED images, PS3.3 C.8.13.4 and C.8.13.5 allow these ("may be present otherwise", since
    # 2020 at the latest); the dciodvfy of Debian 12 does not.
    allowed = re.compile(r"may not be present otherwise.*Module=<(MRPulseSequence|BulkMotion)")
    lines = (done.stdout + done.stderr).splitlines()
    return {one for one in lines if one.startswith("Error") and not allowed.search(one)}


def decoded(file: Path) -> np.ndarray:
    ds = pydicom.dcmread(file)
    values: np.ndarray = apply_rescale(ds.pixel_array, ds)
    return values


def small(file: Path, folder: Path) -> Path:
    """Return the file, or the middle of a radiograph: 3 million pixels take 20 s."""
    ds = pydicom.dcmread(file)
    if ds.Rows <= 1024:
        return file
    ds.decompress(generate_instance_uid=False)
    rows, columns = int(ds.Rows) // 2, int(ds.Columns) // 2
    middle = ds.pixel_array[rows - 256 : rows + 256, columns - 256 : columns + 256]
    ds.Rows, ds.Columns, ds.PixelData = 512, 512, middle.tobytes()
    ds.save_as(folder / "small.dcm")
    return folder / "small.dcm"


@pytest.mark.parametrize(("name", "modality", "profile", "codec"), CASES)
def test_what_is_written(
    shared_data: Path,
    tmp_path: Path,
    store: Store,
    network: GrayLPIPS,
    name: str,
    modality: str,
    profile: str,
    codec: str,
) -> None:
    source, target = small(shared_data / name, tmp_path), tmp_path / "out" / "new.dcm"
    under = approved(
        store, modality=modality, codec=codec, profile_name=profile, highest_ratio=12.0
    )
    found = compress(source, target, prepare(under, None, network), store)
    assert isinstance(found, Compressed)
    stream, known = found.stream, CODECS[codec]
    assert stream.setting is not None
    assert stream.ratio_stored <= 12.0
    assert list(target.parent.iterdir()) == [target]  # no other file is left

    # The record: of exactly these files, diagnostic, and in a whole chain.
    recorded = store.get(found.assessment.assessment_id)
    assert (recorded.verdict, recorded.origin) == ("diagnostic", "medqa compress")
    assert recorded.correlation_id == under.approval.approval_id
    assert recorded.inputs.candidate is not None
    assert recorded.inputs.candidate.file_sha256 == read(target).file_sha256
    assert verify(store).fault is None

    # The header, by pydicom.
    old, new = pydicom.dcmread(source), pydicom.dcmread(target)
    assert new.SOPInstanceUID != old.SOPInstanceUID
    assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID
    assert new.SeriesInstanceUID != old.SeriesInstanceUID
    assert new.StudyInstanceUID == old.StudyInstanceUID
    assert new.ImageType[0] == "DERIVED"
    assert list(new.ImageType[1:]) == list(old.ImageType[1:])
    assert new.LossyImageCompression == "01"
    assert new.LossyImageCompressionMethod == known.method
    fragments = pydicom.encaps.generate_frames(
        new.PixelData, number_of_frames=int(new.get("NumberOfFrames", 1))
    )
    nbytes = sum(map(len, fragments))
    pixels = int(new.Rows) * int(new.Columns) * int(new.get("NumberOfFrames", 1))
    measured = pixels * int(new.BitsStored) / 8 / nbytes
    assert float(new.LossyImageCompressionRatio) == pytest.approx(measured, rel=0.01)
    assert under.approval.approval_id in new.DerivationDescription
    assert new.DerivationCodeSequence[-1].CodeValue == "113040"
    assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert new.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121320"
    for number, group in enumerate(new.get("PerFrameFunctionalGroupsSequence") or [], start=1):
        [image] = group.DerivationImageSequence
        assert image.SourceImageSequence[0].ReferencedFrameNumber == number
    types = [one.value for one in new.iterall() if one.keyword == "FrameType"]
    assert all(one[0] == "DERIVED" for one in types)

    # The values: what the codec gave back is what any reader sees, and each is near its original.
    samples = samples_of(old)
    frames = np.atleast_3d(old.pixel_array.T).T
    given = np.stack([encode(known, one, samples, stream.setting).pixels for one in frames])
    ours = np.asarray(read(target).pixels, np.float64)
    slope, low = float(old.get("RescaleSlope", 1)), float(old.get("RescaleIntercept", 0))
    if "SharedFunctionalGroupsSequence" not in old and old.PhotometricInterpretation[-1] == "2":
        np.testing.assert_array_equal(ours, given * slope + low)
        if new.file_meta.TransferSyntaxUID != JPEGExtended12Bit and codec != "jpegxl":
            # pydicom has no codec for these two.
            np.testing.assert_array_equal(np.atleast_3d(decoded(target).T).T, given * slope + low)
    before = np.asarray(read(source).pixels, np.float64)
    assert ours.shape == before.shape
    assert np.abs(ours - before).mean() < 0.02 * np.ptp(before)

    # Others' programs, of which none knows JPEG XL.
    if codec == "jpegxl":
        return
    assert errors(target) <= errors(source)
    dump = subprocess.run(  # noqa: S603 - a program of the system's own
        [program("dcmdump"), target], capture_output=True, text=True, errors="replace", timeout=60
    )
    assert dump.returncode == 0
    if codec in ("jpegls", "jpeg"):
        tool = program("dcmdjpls" if codec == "jpegls" else "dcmdjpeg")
        plain = tmp_path / "plain.dcm"
        subprocess.run([tool, target, plain], check=True, timeout=60)  # noqa: S603
        values = pydicom.dcmread(plain).pixel_array.astype(np.int32) - offset(known, samples)
        # Decoders of JPEG may round the inverse transform in another way (ISO/IEC 10918-2).
        assert np.abs(values - given.reshape(values.shape)).max() <= (codec == "jpeg")


def test_signed_values_in_a_stream_without_sign(shared_data: Path) -> None:
    """Header and values are raised together: the same HU, padding and ends."""
    old = pydicom.dcmread(shared_data / HEAD)
    old.add_new("SmallestImagePixelValue", "SS", int(old.pixel_array.min()))
    codec, samples = CODECS["jpegls"], samples_of(old)
    stream = compressed(codec, [old.pixel_array], samples, 3)
    new = derived(old, stream, codec, "0" * 36)
    assert (new.PixelRepresentation, old.PixelRepresentation) == (0, 1)
    assert new.RescaleIntercept == old.RescaleIntercept - 32768 * old.RescaleSlope
    assert new.PixelPaddingValue == old.PixelPaddingValue + 32768
    assert new["PixelPaddingValue"].VR == "US"
    assert new.SmallestImagePixelValue == stream.lowest + 32768
    assert "RescaleType" not in old or new.RescaleType == old.RescaleType
    again = derived(old, stream, codec, "0" * 36)
    assert (again.SOPInstanceUID, again.SeriesInstanceUID) == (
        new.SOPInstanceUID,
        new.SeriesInstanceUID,
    )
    other = pydicom.dcmread(shared_data / "ct/head_series_GE/02.dcm")
    beside = derived(other, stream, codec, "0" * 36)
    assert beside.SeriesInstanceUID == new.SeriesInstanceUID
    assert beside.SOPInstanceUID != new.SOPInstanceUID
    del old.RescaleSlope, old.RescaleIntercept  # then values are those that are stored
    bare = derived(old, stream, codec, "0" * 36)
    assert (float(bare.RescaleSlope), float(bare.RescaleIntercept)) == (1, -32768)


def test_without_loss_it_stays_the_same_object(
    shared_data: Path, tmp_path: Path, store: Store, network: GrayLPIPS
) -> None:
    under = approved(store, highest_ratio=1.5)
    target = tmp_path / "new.dcm"
    found = compress(shared_data / HEAD, target, prepare(under, None, network), store)
    assert found is not None
    assert found.stream.setting is None
    old, new = pydicom.dcmread(shared_data / HEAD), pydicom.dcmread(target)
    assert new.SOPInstanceUID == old.SOPInstanceUID
    assert new.ImageType == old.ImageType
    assert "LossyImageCompression" not in new
    np.testing.assert_array_equal(new.pixel_array, old.pixel_array)


def test_no_setting_qualifies(
    shared_data: Path, tmp_path: Path, store: Store, network: GrayLPIPS
) -> None:
    """JPEG XL's gentlest loss is beyond the approved ratio on this image."""
    under = approved(store, codec="jpegxl", highest_ratio=10.0)
    target = tmp_path / "new.dcm"
    assert compress(shared_data / HEAD, target, prepare(under, None, network), store) is None
    assert not target.exists()
    assert store.list() == ()


NAMELESS = "CT.1.3.12.2.1107.5.1.4.60064.30000022120808113428000016580"


@pytest.mark.parametrize(
    ("name", "changes", "error", "words"),
    [
        ("mr/transfer_syntax_set/1.dcm", {}, UsageError, "its modality is MR"),
        (
            HEAD,
            {"scope": Scope(modality="CT", body_part="CHEST", devices=())},
            UsageError,
            "body part",
        ),
        (
            HEAD,
            {"scope": Scope(modality="CT", body_part=None, devices=("A B",))},
            UsageError,
            "device",
        ),
        ("ct/misc/693_J2KI.dcm", {}, ReadError, "lost something|with loss"),
        ("us/US1_UNCR.dcm", {"modality": "US"}, ReadError, "not grey"),
        (HEAD, {"codec": "jpeg"}, PixelError, "8 or 12 bits"),
        ("ct/totalsegmentator_dicom/" + NAMELESS, {}, ReadError, "has no SOPClassUID"),
        ("README.md", {}, ReadError, "no DICOM"),
        ("ct/none.dcm", {}, MedqaError, "no DICOM"),
    ],
)
def test_images_that_are_refused(
    shared_data: Path,
    tmp_path: Path,
    store: Store,
    network: GrayLPIPS,
    name: str,
    changes: dict[str, Any],
    error: type[MedqaError],
    words: str,
) -> None:
    rules = prepare(approved(store, **changes), None, network)
    target = tmp_path / "out" / "new.dcm"
    with pytest.raises(error, match=words):
        compress(shared_data / name, target, rules, store)
    assert not target.parent.exists()
    assert store.list() == ()


def test_nothing_is_written_where_a_region_cannot_be_judged(
    shared_data: Path, tmp_path: Path, store: Store, network: GrayLPIPS
) -> None:
    (tmp_path / "wrong.json").write_text("[]")
    rules = prepare(approved(store), None, network)
    target = tmp_path / "new.dcm"
    with pytest.raises(RegionError):
        compress(
            shared_data / HEAD, target, rules, store, annotations=[str(tmp_path / "wrong.json")]
        )
    assert [one.name for one in tmp_path.iterdir() if "dcm" in one.name] == []
    target.write_bytes(b"mine")
    with pytest.raises(UsageError, match="is there already"):
        compress(shared_data / HEAD, target, rules, store)
    assert target.read_bytes() == b"mine"


def test_approvals_that_are_refused(store: Store, network: GrayLPIPS) -> None:
    draft = approval()
    propose(store, draft)
    with pytest.raises(UsageError, match="nobody has signed"):
        prepare(get(store, draft.approval_id), None, network)
    sign(store, draft.approval_id, "rejected", "streaks")
    with pytest.raises(UsageError, match="was rejected"):
        prepare(get(store, draft.approval_id), None, network)
    good = approval()
    for changes, words in (
        ({"expires_on": "2026-03-02"}, "ended on 2026-03-02"),
        ({"codec_version": "OpenJPEG 1.0"}, "is of OpenJPEG 1.0"),
        ({"profile": good.profile.model_copy(update={"sha256": "b" * 64})}, "not that any more"),
        ({"metric": good.metric.model_copy(update={"weights_sha256": "b" * 64})}, "network"),
        ({"modality": "MG", "profile_name": "mammography"}, "mammograms"),
    ):
        with pytest.raises(UsageError, match=words):
            prepare(approved(store, **changes), None, network)
    prepare(
        approved(store, modality="MG", profile_name="mammography", overridden="by Dr. Ada"),
        None,
        network,
    )
