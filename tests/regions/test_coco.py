"""COCO files against scikit-image, closed forms and the encoder of pycocotools, written again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from painting import image, paint
from skimage.draw import polygon2mask

from medqa.errors import RegionError
from medqa.regions import read_annotations, read_mask


def coco(tmp_path: Path, *entries: dict[str, Any], **other: Any) -> Path:
    document = {
        "info": {"year": 2024},
        "images": [{"id": 7, "file_name": "chest.png", "height": 40, "width": 50}],
        "categories": [{"id": 1, "name": "nodule"}, {"id": 2, "name": "mass"}],
        "annotations": [
            {"id": n, "image_id": 7, "category_id": 1, "iscrowd": 0} | entry
            for n, entry in enumerate(entries, start=1)
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document | other))
    return tmp_path / "coco.json"


def test_boxes_are_x_y_width_height(tmp_path: Path) -> None:
    path = coco(
        tmp_path,
        {"bbox": [10, 20, 5.0, 3], "segmentation": []},
        {"bbox": [0, 0, 50, 40], "category_id": 2},
        {"bbox": [49.6, 0, 0.4000001, 1.2]},  # the last column's centre is at 49.5
    )
    with pytest.raises(RegionError, match=r"annotation 3: bbox .* is empty or outside"):
        read_annotations(path, image(1, 40, 50))
    path = coco(tmp_path, {"bbox": [10, 20, 5.0, 3]}, {"bbox": [0, 0, 50, 40], "category_id": 2})
    nodule, mass = read_annotations(path, image(1, 40, 50))
    assert (nodule.name, nodule.origin, nodule.mask.shape) == ("nodule", (0, 20, 10), (1, 3, 5))
    assert (mass.name, mass.size) == ("mass", 2000)
    assert {r.kind for r in read_mask(path, image(1, 40, 50))} == {"pathology"}


@pytest.mark.parametrize("seed", range(5))
def test_polygons_are_those_of_scikit_image(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, 12))
    radius = random.uniform(4, 18, 12)
    points = np.stack([25 + radius * np.cos(angles), 20 + radius * np.sin(angles)], axis=1)
    other = np.array([[1.2, 1.3], [9.7, 2.1], [6.3, 8.8]])
    path = coco(tmp_path, {"segmentation": [points.ravel().tolist(), other.ravel().tolist()]})
    reference = image(1, 40, 50)
    whole = paint(read_annotations(path, reference), reference)[0]
    # Theirs are (row, column) with centres at whole numbers.
    expected = polygon2mask((40, 50), points[:, ::-1] - 0.5)
    expected |= polygon2mask((40, 50), other[:, ::-1] - 0.5)
    np.testing.assert_array_equal(whole, expected)


def test_polygon_of_whole_pixels_has_their_area(tmp_path: Path) -> None:
    """As pycocotools: the rectangle from 10 to 15 has 5 columns."""
    path = coco(tmp_path, {"segmentation": [[10, 20, 15, 20, 15, 23, 10, 23]]})
    (region,) = read_annotations(path, image(1, 40, 50))
    assert (region.origin, region.mask.shape, region.size) == ((0, 20, 10), (1, 3, 5), 15)


def runs(mask: NDArray[np.bool_]) -> list[int]:
    """Run lengths down the columns, first of zeros."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, flat.size]).tolist()
    return [0, *counts] if flat[0] else counts


def packed(counts: list[int]) -> str:
    """``rleToString`` of pycocotools."""
    text = ""
    for i, count in enumerate(counts):
        x = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            c = x & 31
            x >>= 5
            more = x != -1 if c & 16 else x != 0
            text += chr((c | 32 if more else c) + 48)
    return text


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_run_lengths(tmp_path: Path, seed: int, compressed: bool) -> None:
    random = np.random.default_rng(seed)
    inside = np.kron(random.random((4, 5)) < 0.4, np.ones((10, 10))) > 0
    inside[random.integers(0, 40, 9), random.integers(0, 50, 9)] ^= True
    counts = packed(runs(inside)) if compressed else runs(inside)
    path = coco(tmp_path, {"segmentation": {"size": [40, 50], "counts": counts}, "iscrowd": 1})
    reference = image(1, 40, 50)
    whole = paint(read_annotations(path, reference), reference)[0]
    np.testing.assert_array_equal(whole, inside)


def test_the_image_is_found_by_its_name(tmp_path: Path) -> None:
    pictures = [
        {"id": "a", "file_name": "train/chest_1.png", "height": 40, "width": 50},
        {"id": "b", "file_name": "train\\chest_2.png", "height": 99, "width": 99},
    ]
    path = coco(
        tmp_path,
        {"bbox": [0, 0, 1, 1], "image_id": "b"},
        {"bbox": [3, 4, 2, 2], "image_id": "a", "category_id": 2},
        images=pictures,
    )
    (region,) = read_annotations(path, image(1, 40, 50, source="/data/chest_1.dcm"))
    assert (region.name, region.origin) == ("mass", (0, 4, 3))
    with pytest.raises(RegionError, match="drawn on 99 x 99 pixels, the image has 40 x 50"):
        read_annotations(path, image(1, 40, 50, source="/data/chest_2.png"))
    with pytest.raises(RegionError, match="about 2 images, and none"):
        read_annotations(path, image(1, 40, 50, source="/data/chest_3.png"))
    pictures[1]["file_name"] = "test/chest_1.png"
    path = coco(tmp_path, images=pictures, annotations=[{"image_id": "a"}])
    with pytest.raises(RegionError, match="about 2 images, and 2 of them"):
        read_annotations(path, image(1, 40, 50, source="chest_1.png"))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "neither bbox nor segmentation"),
        ({"bbox": [0, 0, 1]}, "bbox.3: Field required"),
        ({"bbox": [0, 0, float("nan"), 1]}, "finite number"),
        ({"bbox": [0, 0, "1", 1]}, "valid number"),
        ({"bbox": [0, 0, 51, 1]}, "empty or outside"),
        ({"bbox": [0, 0, -1, 1]}, "empty or outside"),
        ({"category_id": 3, "bbox": [0, 0, 1, 1]}, "category is not in the file"),
        ({"segmentation": [[0, 0, 1, 1]]}, "polygon of 2 points"),
        ({"segmentation": [[]]}, "polygon of 0 points"),
        ({"segmentation": [[0, 0, 1, 1, 2]]}, "ends after an x"),
        ({"segmentation": [[0, 0, 9, 0, 9, float("inf")]]}, "finite number"),
        ({"segmentation": [[0, 0, 9, 0, 9, 41]]}, "1.0 pixels outside the image"),
        ({"segmentation": [[-3, 0, 9, 0, 9, 4]]}, "3.0 pixels outside the image"),
        ({"segmentation": [[0, 0, 0.4, 0, 0.4, 0.4]]}, "marks no pixel"),
        ({"segmentation": [[0, 0] * 10_001]}, "polygon of 10001 points"),
        ({"segmentation": {"size": [40, 50], "counts": [2000]}}, "marks no pixel"),
        ({"segmentation": {"size": [40, 50], "counts": [1, 1]}}, "do not make 40 x 50"),
        ({"segmentation": {"size": [40, 50], "counts": [10**12]}}, "do not make 40 x 50"),
        ({"segmentation": {"size": [40, 50], "counts": [2001, -1]}}, "segmentation"),
        ({"segmentation": {"size": [40, 50], "counts": "o" * 99}}, "do not make"),
        ({"segmentation": {"size": [40, 50], "counts": "\x00"}}, "do not make"),
        ({"segmentation": {"size": [10**9, 10**9], "counts": [10**18]}}, "drawn on"),
    ],
)
def test_entries_that_cannot_be_used(tmp_path: Path, entry: dict[str, Any], words: str) -> None:
    path = coco(tmp_path, {"bbox": [0, 0, 1, 1]}, entry)
    with pytest.raises(RegionError, match=words) as caught:
        read_annotations(path, image(1, 40, 50))
    assert caught.value.subject == str(path)
    assert "drawn on" in words or "annotation 2: " in caught.value.reason


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"images": []}, 'no list "images"'),
        ({"categories": None}, 'no list "categories"'),
        ({"annotations": {}}, 'no list "annotations"'),
        ({"images": [{"id": 7}]}, "image 1: file_name: Field required"),
        ({"categories": ["nodule"]}, "category 1: it: "),
        ({"annotations": ["nodule"]}, "annotation 1: names no image"),
        ({"annotations": [{"image_id": 8}]}, "holds no annotation"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, other: dict[str, Any], words: str) -> None:
    with pytest.raises(RegionError, match=words):
        read_annotations(coco(tmp_path, {"bbox": [0, 0, 1, 1]}, **other), image(1, 40, 50))


def test_a_picture_is_no_volume(tmp_path: Path) -> None:
    with pytest.raises(RegionError, match="COCO marks single pictures, and the image has 3"):
        read_annotations(coco(tmp_path, {"bbox": [0, 0, 1, 1]}), image(3, 40, 50))
