"""What `inspect` says of real files, against DCMTK, pydicom, nibabel and plain arithmetic."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import pydicom
import pytest

from medqa.errors import ReadError
from medqa.inspection import Compression, DicomImage, NiftiImage, inspect
from medqa.inspection_text import rows


def dicom(path: Path, *, identifiers: bool = False) -> DicomImage:
    (found,), refused = inspect(path, identifiers=identifiers)
    assert not refused
    assert isinstance(found, DicomImage)
    return found


def nifti(path: Path) -> NiftiImage:
    (found,), _ = inspect(path)
    assert isinstance(found, NiftiImage)
    return found


def dcmdump(path: Path) -> str:
    """DCMTK's own listing; without it, skip, but not where the servers are demanded."""
    if shutil.which("dcmdump") is None:
        message = "dcmdump of DCMTK is not installed"
        if os.environ.get("MEDQA_REQUIRE_SERVERS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    command = ["dcmdump", "+L", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603


# Compression --------------------------------------------------------------------------------------

COMPRESSED = [
    "ct/misc/693_J2KI.dcm",
    "ct/misc/693_J2KR.dcm",
    "us/US1_J2KI.dcm",
    "nm/JPEG-lossy.dcm",
    "xr/cr_mono1/RG3_J2KI.dcm",
    "mg/GH133.dcm",
    "pt/GH184.dcm",
    "us/OBXXXX1A_rle_2frame.dcm",
    "mr/enhanced_multiframe/emri_small_jpeg_ls_lossless.dcm",
    "ts/htj2k/HTJ2K_08_RGB.dcm",
    "us/examples_ybr_color.dcm",
]


@pytest.mark.parametrize("name", COMPRESSED)
def test_the_measured_bytes_are_those_of_dcmdumps_fragments(shared_data: Path, name: str) -> None:
    found = dicom(shared_data / name)
    listing = dcmdump(shared_data / name).rpartition("\n(7fe0,0010)")[2]  # not an icon's
    items = re.findall(r"\(fffe,e000\) pi .*# +(\d+), 1 Item", listing)
    sizes = [int(size) for size in items]  # the first item is the offset table
    ds = pydicom.dcmread(shared_data / name, stop_before_pixels=True)
    values = ds.Rows * ds.Columns * int(ds.get("NumberOfFrames", 1)) * ds.SamplesPerPixel
    assert found.compression is not None
    assert found.compression.stored_bytes == sum(sizes[1:])
    measured = found.compression
    assert measured.ratio_of_stored_bits == pytest.approx(
        values * ds.BitsStored / 8 / sum(sizes[1:])
    )
    assert measured.ratio_of_allocated_bits == pytest.approx(
        values * ds.BitsAllocated / 8 / sum(sizes[1:])
    )


def test_a_series_is_measured_as_a_whole(shared_data: Path, tmp_path: Path) -> None:
    sizes = []
    for path in (shared_data / "ct/totalsegmentator_dicom").glob("CT*"):
        shutil.copy(path, tmp_path)
        ds = pydicom.dcmread(path)
        frames = pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)
        sizes.append(sum(map(len, frames)))
    found = dicom(tmp_path)
    assert (found.files, found.slices) == (20, 20)
    assert found.compression == Compression(
        sum(sizes),
        pytest.approx(20 * 512 * 512 * 12 / 8 / sum(sizes)),
        pytest.approx(20 * 512 * 512 * 2 / sum(sizes)),
    )


def test_nothing_is_measured_where_nothing_is_compressed(shared_data: Path) -> None:
    assert dicom(shared_data / "ct/misc/CT_small.dcm").compression is None
    assert dict(rows(dicom(shared_data / "ct/misc/CT_small.dcm")))["compression"] == "none"
    deflated = dicom(shared_data / "ts/deflated/image_dfl.dcm")
    assert "not measured" in dict(rows(deflated))["compression"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        # 512 x 512 x 16 bit are 524,288 bytes, 1,548 of JPEG 2000.
        ("ct/misc/693_J2KI.dcm", "338.7:1; that is the measured ratio of the allocated bits"),
        ("ct/misc/693_UNCI.dcm", "stored without further loss now"),
        ("us/US1_J2KI.dcm", "16:1; that is the measured ratio of the stored bits"),
        ("us/examples_ybr_color.dcm", "19:1; that is NOT the measured ratio (36.48:1"),
        ("mr/misc/MR2_J2KR.dcm", "declared never compressed with loss"),
        ("ct/misc/CT_small.dcm", "nothing declared"),
        ("ts/htj2k/HTJ2K_08_RGB.dcm", "but the transfer syntax allows loss"),
    ],
)
def test_what_is_declared_is_held_against_what_is_measured(
    shared_data: Path, name: str, words: str
) -> None:
    assert words in dict(rows(dicom(shared_data / name)))["lossy history"]


def test_sources(shared_data: Path) -> None:
    found = dicom(shared_data / "ct/misc/693_J2KI.dcm")
    assert (found.sources, found.purposes) == (1, ("Uncompressed predecessor",))
    assert found.derivation == "lossy conversion"


# What is in the header ----------------------------------------------------------------------------


def test_a_ct(shared_data: Path) -> None:
    found = dicom(shared_data / "ct/misc/693_J2KI.dcm")
    ds = pydicom.dcmread(shared_data / "ct/misc/693_J2KI.dcm", stop_before_pixels=True)
    assert found.sop_class == "CT Image Storage"
    assert (found.rows, found.columns, found.slices) == (ds.Rows, ds.Columns, 1)
    assert (found.bits_stored, found.bits_allocated) == (ds.BitsStored, ds.BitsAllocated)
    assert found.signed is True
    assert found.spacing_mm == tuple(ds.PixelSpacing)
    assert found.first_position_mm == tuple(ds.ImagePositionPatient)
    assert found.displays == ("40/100 LINEAR",)
    assert found.padding == (str(ds.PixelPaddingValue),)
    assert found.rescale == ("1 x stored - 1024",)
    assert (found.unit, found.plane, found.has_frame_of_reference) == ("HU", "axial", False)
    assert found.transfer_syntaxes == ("JPEG 2000 Image Compression",)


def test_several_windows_and_a_padding_range(shared_data: Path) -> None:
    found = dicom(shared_data / "mg/GH133.dcm")
    assert found.displays[0] == "2653/900 SIGMOID (NORMAL)"
    assert len(found.displays) == 6
    assert found.padding == ("0 to 30",)
    assert found.plane is None


def test_a_series_a_cine_and_an_enhanced_file(shared_data: Path) -> None:
    series = dicom(shared_data / "ct/head_series_GE")
    assert (series.slices, series.step_mm) == (12, pytest.approx(4.4666, abs=0.3))
    assert series.plane == "axial, tilted by 19°"
    cine = dicom(shared_data / "xa/jpeg_baseline_8bit.dcm")
    assert (cine.slices, cine.step_mm, cine.photometric) == (96, None, "MONOCHROME2")
    enhanced = dicom(shared_data / "mr/enhanced_multiframe/6_1.dcm")
    assert (enhanced.slices, enhanced.step_mm) == (6, pytest.approx(2.4, abs=1e-4))


def test_jpeg_xl_is_named_though_pydicom_does_not_know_it(shared_data: Path) -> None:
    found = dicom(shared_data / "ts/jpegxl/test_ct1_jxl.dcm")
    assert found.transfer_syntaxes == ("JPEG XL Lossless",)
    assert found.compression is not None


# Identifiers --------------------------------------------------------------------------------------


def test_identifiers_only_where_asked_for(shared_data: Path) -> None:
    path = shared_data / "ct/misc/CT_small.dcm"
    ds = pydicom.dcmread(path)
    hidden = [
        str(ds[keyword].value)
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "SOPInstanceUID")
    ]
    silent = dicom(path)
    text = json.dumps(dataclasses.asdict(silent)) + str(rows(silent))
    assert not any(value in text for value in hidden)
    shown = str(rows(dicom(path, identifiers=True)))
    assert all(value in shown for value in hidden)


# NIfTI and folders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "nifti/anatomical.nii",
        "nifti/example_nifti2.nii.gz",
        "nifti/example4d.nii.gz",
        "nifti_orientations/LAS.nii.gz",
        "nifti_orientations/PIR.nii.gz",
    ],
)
def test_nifti_against_nibabel(shared_data: Path, name: str) -> None:
    path = shared_data / "mr" / name
    found, image = nifti(path), nib.load(path)
    assert found.shape == image.shape
    assert found.zooms == pytest.approx(image.header.get_zooms())
    assert found.units == image.header.get_xyzt_units()
    assert found.datatype == image.header.get_data_dtype().name
    assert (found.qform_code, found.sform_code) == (
        image.header["qform_code"],
        image.header["sform_code"],
    )
    assert found.orientation == "".join(nib.aff2axcodes(image.affine))
    assert found.scaling == (image.dataobj.slope, image.dataobj.inter)
    assert found.version == (2 if isinstance(image, nib.Nifti2Image) else 1)
    assert found.file_bytes == path.stat().st_size
    assert all(words for _, words in rows(found))


def test_qform_and_sform_that_disagree(tmp_path: Path) -> None:
    import numpy as np

    image = nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 3
    image.set_sform(np.eye(4), 1)
    image.set_qform(moved, 1)
    nib.save(image, tmp_path / "moved.nii")
    assert nifti(tmp_path / "moved.nii").transforms_apart_voxels == pytest.approx(3)
    assert "3 voxels apart" in dict(rows(nifti(tmp_path / "moved.nii")))["transforms"]


def test_a_folder_shows_each_image_and_what_is_damaged(shared_data: Path, tmp_path: Path) -> None:
    found, refused = inspect(shared_data / "mr/siemens")
    assert len(found) == 5
    assert not refused
    shutil.copy(shared_data / "ct/misc/CT_small.dcm", tmp_path)
    (tmp_path / "junk.dcm").write_bytes(b"junk" * 99)
    found, refused = inspect(tmp_path)
    assert (len(found), len(refused)) == (1, 1)


@pytest.mark.parametrize("name", ["sr/sr.dcm", "README.md", "missing", "seg/liver.dcm"])
def test_what_is_no_image(shared_data: Path, name: str) -> None:
    with pytest.raises(ReadError):
        inspect(shared_data / name)


def test_every_file_is_described_or_refused(shared_data: Path) -> None:
    for path in sorted((shared_data / "malformed").iterdir()):
        try:
            found, _ = inspect(path)
        except ReadError:
            continue
        assert all(rows(one) for one in found)
