"""LabelMe files against scikit-image and closed forms."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from painting import image, paint
from skimage.draw import disk, polygon2mask

from medqa.errors import RegionError
from medqa.regions import read_annotations


def labelme(tmp_path: Path, *shapes: dict[str, Any], **other: Any) -> Path:
    document = {
        "version": "5.4.1",
        "flags": {},
        "shapes": [{"label": "nodule", "group_id": None, "flags": {}} | one for one in shapes],
        "imagePath": "chest.png",
        "imageData": None,
        "imageHeight": 40,
        "imageWidth": 50,
    }
    (tmp_path / "chest.json").write_text(json.dumps(document | other))
    return tmp_path / "chest.json"


def test_rectangles_from_any_corner(tmp_path: Path) -> None:
    path = labelme(
        tmp_path,
        {"shape_type": "rectangle", "points": [[10.0, 20.0], [15.0, 23.0]]},
        {"shape_type": "rectangle", "points": [[15.4, 20.3], [9.6, 23.2]], "label": " mass "},
    )
    nodule, mass = read_annotations(path, image(1, 40, 50))
    assert (nodule.name, mass.name) == ("nodule", "mass")
    assert nodule.origin == mass.origin == (0, 20, 10)
    assert nodule.mask.shape == mass.mask.shape == (1, 3, 5)
    assert nodule.size == mass.size == 15


def test_polygons_and_circles_are_those_of_scikit_image(tmp_path: Path) -> None:
    points = [[3.3, 4.4], [44.1, 2.2], [30.7, 20.9], [41.2, 37.3], [8.6, 30.1]]
    path = labelme(
        tmp_path,
        {"shape_type": "polygon", "points": points},
        {"points": points},  # of old versions
        {"shape_type": "circle", "points": [[20.3, 18.1], [24.4, 21.1]]},
    )
    reference = image(1, 40, 50)
    polygon, old, circle = read_annotations(path, reference)
    expected = polygon2mask((40, 50), np.array(points)[:, ::-1] - 0.5)
    for region in (polygon, old):
        np.testing.assert_array_equal(paint((region,), reference)[0], expected)
    round_ = np.zeros((40, 50), bool)
    round_[disk((17.6, 19.8), np.hypot(4.1, 3))] = True
    np.testing.assert_array_equal(paint((circle,), reference)[0], round_)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"shape_type": "point", "points": [[3, 4]]}, "marks no area"),
        ({"shape_type": "line", "points": [[3, 4], [5, 6]]}, "marks no area"),
        ({"shape_type": "mask", "points": [[3, 4], [5, 6]], "mask": "iVBO"}, "not read"),
        ({"shape_type": "rectangle", "points": [[3, 4]]}, "rectangle of 1 points"),
        ({"shape_type": "rectangle", "points": []}, "rectangle of 0 points"),
        ({"shape_type": "rectangle", "points": [[3, 4], [51, 6]]}, "empty or outside"),
        ({"shape_type": "rectangle", "points": [[3, 4], [3, 6]]}, "empty or outside"),
        ({"shape_type": "circle", "points": [[3, 4], [9, 4]]}, "3.0 pixels outside"),
        ({"shape_type": "circle", "points": [[4, 4], [4, 4]]}, "marks no pixel"),
        ({"shape_type": "circle", "points": [[1e300, 4], [-1e300, 4]]}, "outside"),
        ({"shape_type": "polygon", "points": [[3, 4], [5, 6]]}, "polygon of 2 points"),
        ({"shape_type": "polygon", "points": [[3, 4], [5, 6], [7, 42]]}, "2.0 pixels outside"),
        ({"points": [[3, 4], [5, 6], [7, float("nan")]]}, "finite number"),
        ({"points": [[3, 4], [5, 6], [7]]}, "points.2.1: Field required"),
        ({"label": " ", "points": [[3, 4], [5, 6], [7, 8]]}, "label: "),
    ],
)
def test_shapes_that_cannot_be_used(tmp_path: Path, shape: dict[str, Any], words: str) -> None:
    fine = {"shape_type": "rectangle", "points": [[10.0, 20.0], [15.0, 23.0]]}
    path = labelme(tmp_path, fine, shape)
    with pytest.raises(RegionError, match=f"shape 2: .*{words}") as caught:
        read_annotations(path, image(1, 40, 50))
    assert caught.value.subject == str(path)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    fine = {"shape_type": "rectangle", "points": [[10.0, 20.0], [15.0, 23.0]]}
    for other, words in (
        ({"imageHeight": 80}, "drawn on 80 x 50 pixels, the image has 40 x 50"),
        ({"imageWidth": "50"}, "imageWidth: "),
        ({"shapes": 3}, "shapes: "),
        ({"shapes": []}, "holds no annotation"),
    ):
        with pytest.raises(RegionError, match=words):
            read_annotations(labelme(tmp_path, fine, **other), image(1, 40, 50))
    with pytest.raises(RegionError, match="LabelMe marks single pictures"):
        read_annotations(labelme(tmp_path, fine), image(2, 40, 50))
