"""Label tables as ITK-SNAP, 3D Slicer and TotalSegmentator write them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
from painting import image

from medqa.errors import RegionError
from medqa.regions import read_annotations, read_mask

ITK_SNAP = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
    0     0    0    0        0  0  0    "Clear Label"
    1   255    0    0        1  1  1    "left lung"
    2     0  255    0     0.55  1  0    "tumour (GTV)"
"""
SLICER = """\
# Color table file /tmp/Segmentation-label_ColorTable.ctbl
# 2 values
0 Background 0 0 0 0
1 left_lung 128 174 128 255
2 tumour 241 214 145 255
"""


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    labels = np.array([[0, 1, 1, 2], [3, 0, 1, 2]], np.uint8)
    PIL.Image.fromarray(labels).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def names(path: Path) -> list[str]:
    return [region.name for region in read_annotations(path, image(1, 2, 4))]


@pytest.mark.parametrize(
    ("file", "table", "second"),
    [
        ("mask.label", ITK_SNAP, "tumour (GTV)"),
        ("mask.txt", ITK_SNAP, "tumour (GTV)"),
        ("mask.ctbl", SLICER, "tumour"),
        ("mask.txt", SLICER.replace("\n", "\r\n"), "tumour"),
        ("mask.txt", "\N{ZERO WIDTH NO-BREAK SPACE}" + SLICER, "tumour"),
    ],
)
def test_names_come_from_the_table_beside_the_mask(
    mask: Path, file: str, table: str, second: str
) -> None:
    (mask.parent / file).write_text(table, encoding="utf-8")
    assert names(mask) == ["left lung", second, "label 3"]


def test_parts_are_numbered_and_a_single_label_keeps_its_name(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.array([[1, 0, 1]], np.uint8)).save(tmp_path / "one.png")
    (tmp_path / "one.ctbl").write_text(SLICER)
    regions = read_mask(tmp_path / "one.png", image(1, 1, 3))
    assert [region.name for region in regions] == ["left lung", "left lung 2"]


@pytest.mark.parametrize(
    ("file", "text"),
    [("mask.txt", "a report of 2 words\n"), ("mask.txt", ""), ("other.label", ITK_SNAP)],
)
def test_other_text_is_no_table(mask: Path, file: str, text: str) -> None:
    (mask.parent / file).write_text(text)
    assert names(mask) == ["label 1", "label 2", "label 3"]


@pytest.mark.parametrize(
    "text", ["", SLICER + "3 no colour\n", "# nothing\n", SLICER + 2**20 * " "]
)
@pytest.mark.parametrize("end", ["label", "ctbl"])
def test_a_damaged_table_is_an_error(mask: Path, end: str, text: str) -> None:
    mask.with_suffix(f".{end}").write_text(text)
    with pytest.raises(RegionError, match=f".{end} file beside it is no label table") as caught:
        names(mask)
    assert caught.value.subject == str(mask)


def test_several_tables_are_an_error(mask: Path) -> None:
    mask.with_suffix(".label").write_text(ITK_SNAP)
    mask.with_suffix(".ctbl").write_text(SLICER)
    with pytest.raises(RegionError, match=r"several label tables .*\.label and \.ctbl"):
        names(mask)


CARET = b"""<?xml version="1.0"?><CaretExtension><VolumeInformation Index="0"><LabelTable>
<Label Key="1" Red="0" Green="1" Blue="0" Alpha="1"><![CDATA[left lung]]></Label>
<Label Key="2" Red="0" Green="1" Blue="0" Alpha="1"><![CDATA[tumour]]></Label>
</LabelTable></VolumeInformation></CaretExtension>"""


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("end", ["nii", "nii.gz"])
def test_names_inside_a_nifti_file(tmp_path: Path, kind: type[nib.Nifti1Image], end: str) -> None:
    affine = np.diag([2.0, 3, 4, 1])
    labels = kind(np.array([1, 2, 3], np.uint8).reshape(3, 1, 1), affine)
    labels.header.extensions.append(nib.nifti1.Nifti1Extension(0, CARET))
    nib.save(labels, tmp_path / f"mask.{end}")
    reference = image(1, 1, 3, affine=affine[:, [2, 1, 0, 3]])
    found = [region.name for region in read_annotations(tmp_path / f"mask.{end}", reference)]
    assert found == ["left lung", "tumour", "label 3"]


def test_a_table_beside_the_mask_holds_rather_than_the_header(tmp_path: Path) -> None:
    affine = np.diag([2.0, 3, 4, 1])
    labels = nib.Nifti1Image(np.array([1, 2, 3], np.uint8).reshape(3, 1, 1), affine)
    labels.header.extensions.append(nib.nifti1.Nifti1Extension(0, CARET))
    nib.save(labels, tmp_path / "mask.nii.gz")
    reference = image(1, 1, 3, affine=affine[:, [2, 1, 0, 3]])
    found = [region.name for region in read_annotations(tmp_path / "mask.nii.gz", reference)]
    assert found == ["left lung", "tumour", "label 3"]
    (tmp_path / "mask.label").write_text(ITK_SNAP)
    found = [region.name for region in read_annotations(tmp_path / "mask.nii.gz", reference)]
    assert found == ["left lung", "tumour (GTV)", "label 3"]


def test_a_header_whose_names_would_expand_is_not_parsed(tmp_path: Path) -> None:
    bomb = b'<!DOCTYPE a [<!ENTITY b "bbbb">]>' + CARET.partition(b"?>")[2]
    affine = np.diag([2.0, 3, 4, 1])
    labels = nib.Nifti1Image(np.array([1, 2, 3], np.uint8).reshape(3, 1, 1), affine)
    labels.header.extensions.append(nib.nifti1.Nifti1Extension(0, bomb))
    nib.save(labels, tmp_path / "mask.nii.gz")
    reference = image(1, 1, 3, affine=affine[:, [2, 1, 0, 3]])
    found = [region.name for region in read_annotations(tmp_path / "mask.nii.gz", reference)]
    assert found == ["label 1", "label 2", "label 3"]
