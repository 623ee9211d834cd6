"""What `read` makes of paths of every kind: the content decides, and every refusal says why."""

import gzip
import hashlib
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from medqa.errors import ReadError
from medqa.reader import read, source_digest


def test_the_content_decides_not_the_name(shared_data: Path, tmp_path: Path) -> None:
    dicom, nifti = shared_data / "ct/misc/CT_small.dcm", shared_data / "mr/nifti/anatomical.nii"
    for source, name in ((dicom, "scan"), (dicom, "scan.nii"), (nifti, "scan.dcm")):
        shutil.copy(source, tmp_path / name)
        image = read(tmp_path / name)
        assert image.kind == ("dicom" if source is dicom else "nifti")
        assert image.source == str(tmp_path / name)
        assert image.pixels_sha256 == read(str(source)).pixels_sha256


def test_dicom_without_preamble_or_meta_information(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "mr/misc/MR_small_implicit.dcm"
    data = path.read_bytes()
    length = int.from_bytes(data[140:144], "little")  # of group 2, which follows its own length
    (tmp_path / "bare").write_bytes(data[144 + length :])
    np.testing.assert_array_equal(read(tmp_path / "bare").pixels, read(path).pixels)


def test_dicom_named_img(shared_data: Path) -> None:
    assert read(shared_data / "mr/enhanced_multiframe/011-0001.img").shape == (25, 64, 64)


_ZIPPED = gzip.compress(b"\x5c\x01\0\0" + 344 * b"x", mtime=0)
_CUT = gzip.compress(random.Random(0).randbytes(999), mtime=0)[:30]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.dcm", None, "does not exist"),
        ("empty.dcm", b"", "is empty"),
        ("text.dcm", b"This is not the image you are looking for.\n" * 9, "neither DICOM nor"),
        ("short.nii", b"\x5c\x01\0\0", "neither DICOM nor NIfTI"),
        ("magic.nii.gz", _ZIPPED, "neither DICOM nor NIfTI"),
        ("cut.nii.gz", _CUT, "neither DICOM nor NIfTI"),
        ("zeros", bytes(4000), "neither DICOM nor NIfTI"),
        ("only.dcm", bytes(128) + b"DICM", "no pixel data"),
    ],
)
def test_what_is_no_image(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ReadError, match=reason) as caught:
        read(path)
    assert caught.value.subject == str(path)
    assert caught.value.mend


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReadError, match="not a regular file"):
        read(tmp_path / "pipe")


def test_every_malformed_file_is_an_image_or_a_read_error(shared_data: Path) -> None:
    """The images among them are those that pydicom decodes too: see the corpus's README."""
    images = set()
    for path in sorted((shared_data / "malformed").iterdir()):
        try:
            read(path)
        except ReadError:
            continue
        images.add(path.name)
    assert images == {
        "ELSCINT1_JP2vsJ2K.dcm",
        "JPEGLossless_1s_1f_i_16_16_bad.dcm",
        "OsirixFake16BitsStoredFakeSpacing.dcm",
        "TOSHIBA_J2K_SIZ0_PixRep1.dcm",
        "TOSHIBA_J2K_SIZ1_PixRep0.dcm",
    }


# Folders -----------------------------------------------------------------------------------------


def test_folder_passes_over_what_is_no_image(shared_data: Path) -> None:
    with_seg = read(shared_data / "ct/liver_3slice_with_SEG")  # two segmentations beside it
    assert with_seg.shape == (3, 512, 512)
    with_structures = read(shared_data / "ct/ct_with_RTSTRUCT")
    assert with_structures.shape == (2, 512, 512)
    with_nifti = read(shared_data / "ct/totalsegmentator_dicom")
    assert with_nifti.kind == "dicom"


def test_folder_with_several_series_lists_them(shared_data: Path) -> None:
    with pytest.raises(ReadError, match="holds 2 images") as caught:
        read(shared_data / "pt")
    assert "series 1: PT, 1 slice of 128 x 128" in caught.value.reason
    assert "--series" in caught.value.mend


def test_series_of_a_folder(shared_data: Path) -> None:
    folder = shared_data / "mr/siemens"
    with pytest.raises(ReadError, match="holds 5 images"):
        read(folder)
    expected = read(folder / "jp2k1.dcm")
    image = read(folder, series="26")
    assert image.shape == (2, 516, 516)
    uid = str(expected.identifiers.series_uid)
    assert image.identifiers.series_uid == uid
    np.testing.assert_array_equal(np.asarray(image.pixels)[0], np.asarray(expected.pixels)[0])
    assert read(folder, series=uid[-15:]).pixels_sha256 == image.pixels_sha256
    with pytest.raises(ReadError, match="holds 0 images of series 27"):
        read(folder, series="27")
    with pytest.raises(ReadError, match="is not a folder"):
        read(folder / "jp2k1.dcm", series="26")


def test_files_of_one_image(shared_data: Path) -> None:
    folder = shared_data / "ct/head_series_GE"
    files = sorted(folder.glob("*.dcm"))
    whole = read(folder)
    assert read(files).pixels_sha256 == read(files[::-1]).pixels_sha256 == whole.pixels_sha256
    assert read(files).source == str(folder)
    assert read(files[:1]).source == str(files[0])
    for wrong in ([], [files[0], shared_data / "mr/nifti/anatomical.nii"]):
        with pytest.raises(ReadError):
            read(wrong)


def test_a_localiser_beside_its_series_is_not_mixed_in(shared_data: Path, tmp_path: Path) -> None:
    import pydicom

    for path in sorted((shared_data / "ct/head_series_GE").glob("0[1-3].dcm")):
        shutil.copyfile(path, tmp_path / path.name)
    scout = pydicom.dcmread(tmp_path / "03.dcm")
    scout.SOPInstanceUID, scout.ImageType = "1.2.3", ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.save_as(tmp_path / "scout.dcm")
    with pytest.raises(ReadError, match=r"series 2/2: CT, 1 slice of 512 x 512, .*localiser"):
        read(tmp_path)
    assert read(tmp_path, series="2/1").shape == (3, 512, 512)


@pytest.mark.parametrize("name", ["iqa/ref", "sr", "ct"])
def test_folder_without_images(shared_data: Path, name: str) -> None:
    with pytest.raises(ReadError, match="holds no DICOM image"):
        read(shared_data / name)


def test_a_damaged_slice_does_not_go_missing(shared_data: Path, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        shutil.copy(shared_data / f"ct/liver_3slice_with_SEG/0{number}.dcm", tmp_path)
    damaged = tmp_path / "02.dcm"
    data = damaged.read_bytes()
    for content in (b"", b"junk" * 99, data[: len(data) // 2]):
        damaged.unlink()  # the copy is read-only, as its source is
        damaged.write_bytes(content)
        with pytest.raises(ReadError) as caught:
            read(tmp_path)
        assert caught.value.subject == str(damaged)


# Digests -----------------------------------------------------------------------------------------


def test_source_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "mask").write_bytes(b"abc")
    # FIPS 180-4, the example of one block.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert source_digest(tmp_path / "mask") == expected == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(ReadError, match="missing: cannot be read"):
        source_digest(tmp_path / "missing")
