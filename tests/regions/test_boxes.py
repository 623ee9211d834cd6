"""Boxes in JSON and CSV against closed forms."""

import json
from pathlib import Path

import pytest
from painting import image

from medqa.errors import RegionError
from medqa.regions import annotation_regions, read_annotations, read_mask


def annotate(tmp_path: Path, *entries: object) -> Path:
    (tmp_path / "boxes.json").write_text(json.dumps({"annotations": entries}))
    return tmp_path / "boxes.json"


def test_boxes_are_columns_then_rows_and_end_excluded(tmp_path: Path) -> None:
    path = annotate(
        tmp_path,
        {"type": "nodule", "bbox": [2, 3, 5, 7], "slice": 1, "reader": "B"},
        {"type": "cyst", "bbox": [0, 0, 30, 20], "slice": 0},
    )
    reference = image(2, 20, 30)
    nodule, cyst = read_annotations(path, reference)
    assert (nodule.kind, nodule.name, nodule.origin) == ("annotation", "nodule", (1, 3, 2))
    assert nodule.mask.shape == (1, 4, 3)
    assert nodule.mask.all()
    assert (cyst.origin, cyst.size) == ((0, 0, 0), 600)


def test_slice_may_be_left_out_of_a_single_image() -> None:
    (region,) = annotation_regions([{"type": "nodule", "bbox": [0, 0, 1, 1]}], image(1, 2, 2))
    assert region.origin == (0, 0, 0)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"bbox": [0, 0, 1, 1], "slice": 0}, "type: Field required"),
        ({"type": " ", "bbox": [0, 0, 1, 1], "slice": 0}, "type: .*at least 1 character"),
        ({"type": "x", "slice": 0}, "bbox: Field required"),
        ({"type": "x", "bbox": [0, 0, 1], "slice": 0}, "bbox.3: Field required"),
        ({"type": "x", "bbox": [0, 0, 1.5, 1], "slice": 0}, "valid integer"),
        ({"type": "x", "bbox": [0, 0, "1", 1], "slice": 0}, "valid integer"),
        ({"type": "x", "bbox": [0, 0, True, 1], "slice": 0}, "valid integer"),
        ({"type": "x", "bbox": [5, 0, 5, 1], "slice": 0}, "empty or outside"),
        ({"type": "x", "bbox": [5, 0, 4, 1], "slice": 0}, "empty or outside"),
        ({"type": "x", "bbox": [-1, 0, 4, 1], "slice": 0}, "empty or outside"),
        ({"type": "x", "bbox": [0, 0, 31, 1], "slice": 0}, "empty or outside"),
        ({"type": "x", "bbox": [0, 0, 1, 21], "slice": 0}, "empty or outside"),
        ({"type": "x", "bbox": [0, 0, 1, 1]}, "no slice given, and the image has 2"),
        ({"type": "x", "bbox": [0, 0, 1, 1], "slice": 2}, "slice 2 is not among the image's 2"),
        ({"type": "x", "bbox": [0, 0, 1, 1], "slice": -1}, "slice -1 is not among"),
        ({"type": "x", "bbox": [0, 0, 1, 1], "slice": 0.5}, "valid integer"),
        ("nodule", "it: .*dictionary"),
    ],
)
def test_wrong_entries_are_named_by_number(tmp_path: Path, entry: object, words: str) -> None:
    path = annotate(tmp_path, {"type": "nodule", "bbox": [0, 0, 1, 1], "slice": 0}, entry)
    with pytest.raises(RegionError, match=f"annotation 2: .*{words}") as caught:
        read_annotations(path, image(2, 20, 30))
    assert caught.value.subject == str(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("", "is empty"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", 'no list "annotations"'),
        ('{"annotations": 3}', 'no list "annotations"'),
        ('{"annotations": []}', "holds no annotation"),
    ],
)
def test_annotation_files_that_cannot_be_used(
    tmp_path: Path, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(RegionError, match=words) as caught:
        read_annotations(tmp_path / "boxes.json", image(1, 20, 30))
    assert caught.value.subject == str(tmp_path / "boxes.json")


def test_boxes_may_be_the_pathology(tmp_path: Path) -> None:
    path = annotate(tmp_path, {"type": "nodule", "bbox": [2, 3, 5, 7]})
    (region,) = read_mask(path, image(1, 20, 30))
    assert (region.kind, region.name, region.size) == ("pathology", "nodule", 12)


def test_too_many_entries_and_too_large_files(tmp_path: Path) -> None:
    path = annotate(tmp_path, *[{"type": "x", "bbox": [0, 0, 1, 1]}] * 10_001)
    with pytest.raises(RegionError, match="more than 10000 marks"):
        read_annotations(path, image(1, 20, 30))
    path.write_text("{" + 32 * 2**20 * " " + "}")
    with pytest.raises(RegionError, match="larger than the 32 MiB"):
        read_annotations(path, image(1, 20, 30))


# CSV ---------------------------------------------------------------------------------------------


def table(tmp_path: Path, text: str) -> Path:
    (tmp_path / "boxes.csv").write_text(text, encoding="utf-8")
    return tmp_path / "boxes.csv"


@pytest.mark.parametrize(
    "text",
    [
        "name,x1,y1,x2,y2\nnodule,2,3,5,7\n",
        "Label,xmin,ymin,xmax,ymax\nnodule,2,3,5,7\n",
        "x_min;y_min;x_max;y_max;class\r\n2;3;5;7;nodule\r\n\r\n",
        "type\tx\ty\twidth\theight\nnodule\t2\t3\t3\t4",
        '\N{ZERO WIDTH NO-BREAK SPACE}"name","x1","y1","x2","y2","by"\n"nodule",2,3,5,7,"B, C"\n',
        "name,x1,y1,x2,y2\n nodule ,2.4,2.6,5.49,7.3\n",  # centres at 2.5 to 4.5 and 3.5 to 6.5
        "name,x1,y1,x2,y2,slice\nnodule,2,3,5,7,\n",
    ],
)
def test_csv_of_boxes(tmp_path: Path, text: str) -> None:
    (region,) = read_annotations(table(tmp_path, text), image(1, 20, 30))
    assert (region.kind, region.name, region.origin) == ("annotation", "nodule", (0, 3, 2))
    assert region.mask.shape == (1, 4, 3)
    assert region.mask.all()


def test_csv_with_slices_and_images(tmp_path: Path) -> None:
    text = "image,name,slice,x1,y1,x2,y2\n"
    text += "a/one.png,nodule,1,0,0,2,2\ntwo.png,cyst,0,1,1,4,4\none.png,mass,0,0,0,9,9\n"
    path = table(tmp_path, text.replace("a/one.png", "one.png"))
    found = read_annotations(path, image(2, 20, 30, source="/data/one.dcm"))
    assert [(r.name, r.origin, r.size) for r in found] == [
        ("nodule", (1, 0, 0), 4),
        ("mass", (0, 0, 0), 81),
    ]
    with pytest.raises(RegionError, match="about 2 images, and none of them has the name"):
        read_annotations(path, image(2, 20, 30, source="/data/three.dcm"))
    path = table(tmp_path, text)  # a/one.png and one.png: which is it?
    with pytest.raises(RegionError, match="about 3 images, and 2 of them have the name"):
        read_annotations(path, image(2, 20, 30, source="/data/one.png"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("nodule,0,0,1", "line 3 has 4 cells, the header 6"),
        ("nodule,0,0,1,1,0,7", "line 3 has 7 cells, the header 6"),
        (",0,0,1,1,0", "line 3: no name"),
        ("nodule,0,0,one,1,0", "line 3: a coordinate or slice is no number"),
        ("nodule,0,0,1,1,0.5", "line 3: a coordinate or slice is no number"),
        ("nodule,0,0,nan,1,0", "line 3: bbox .* is empty or outside"),
        ("nodule,0,0,inf,1,0", "line 3: bbox .* is empty or outside"),
        ("nodule,0,0,30.2,1,0", "line 3: bbox .* is empty or outside"),
        ("nodule,-0.2,0,1,1,0", "line 3: bbox .* is empty or outside"),
        ("nodule,0.6,0,1.4,1,0", "line 3: bbox .* is empty or outside"),  # no centre inside
        ("nodule,0,0,1,1,2", "line 3: slice 2 is not among the image's 2"),
        ("nodule,0,0,1,1,", "line 3: no slice given"),
        ('"nodule,0,0,1,1,0', "cannot be read"),
    ],
)
def test_wrong_rows_are_named_by_line(tmp_path: Path, row: str, words: str) -> None:
    path = table(tmp_path, f"name,x1,y1,x2,y2,slice\nnodule,0,0,1,1,0\n{row}\n")
    with pytest.raises(RegionError, match=words) as caught:
        read_annotations(path, image(2, 20, 30))
    assert caught.value.subject == str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,x1,y1,x2,y2\n", "holds no annotation"),
        ("name,x1,y1,x2\nnodule,0,0,1\n", "no mask or annotation file"),
        ("x1,y1,x2,y2\n0,0,1,1\n", "no mask or annotation file"),
        ("name,label,x1,y1,x2,y2\na,b,0,0,1,1\n", "no mask or annotation file"),  # which name?
        ("name,x1,x1,y1,x2,y2\na,0,1,0,1,1\n", "no mask or annotation file"),
        ("nodule,0,0,1,1\n", "no mask or annotation file"),
    ],
)
def test_csv_files_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RegionError, match=words):
        read_annotations(table(tmp_path, text), image(1, 20, 30))
