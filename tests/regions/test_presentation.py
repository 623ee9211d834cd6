from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from skimage.draw import polygon2mask

from medqa.dicom.series import read_dicom
from medqa.errors import RegionError
from medqa.image import Image
from medqa.regions import presentation
from medqa.regions.grid import Mark
from medqa.regions.presentation import PRESENTATION_STATES, read_presentation

CORNERS = [(35.8125, 60.3125), (90.1875, 44.6875), (120.3125, 130.8125), (70.6875, 101.4375)]
RING = [*CORNERS, CORNERS[0]]


def test_every_public_name_is_there() -> None:
    assert all(hasattr(presentation, name) for name in presentation.__all__)
    assert [uid.name.split()[0] for uid in PRESENTATION_STATES] == [
        "Grayscale",
        "Color",
        "Pseudo-Color",
    ]


def _marks(path: Path, reference: Image) -> tuple[Mark, ...]:
    return tuple(read_presentation(path, reference))


def _whole(mark: Mark, reference: Image) -> np.ndarray:
    whole = np.zeros(reference.shape, bool)
    box = tuple(slice(o, o + n) for o, n in zip(mark.origin, mark.mask.shape, strict=True))
    whole[box] = mark.mask
    return whole


@pytest.fixture(scope="module")
def liver(shared_data: Path) -> tuple[list[Dataset], Image]:
    """Slices of a real CT as they are ordered in the image, and the image."""
    paths = [shared_data / "ct/liver_3slice_with_SEG" / f"0{n}.dcm" for n in (3, 2, 1)]
    slices = [pydicom.dcmread(path) for path in paths]
    for one in slices:  # highdicom copies these, and wants them in order
        one.PatientName, one.StudyID, one.SpecificCharacterSet = "Test^Patient", "1", "ISO_IR 192"
    return slices, read_dicom(paths, "liver")


LAYER = hd.pr.GraphicLayer("LESIONS", order=1)


def _graphic(kind: str, points: Any, units: str = "PIXEL", **more: Any) -> hd.pr.GraphicObject:
    return hd.pr.GraphicObject(kind, np.array(points, float), units, **more)


def _annotation(
    images: Sequence[Dataset], *graphics: Dataset, texts: Sequence[str] = ()
) -> hd.pr.GraphicAnnotation:
    return hd.pr.GraphicAnnotation(
        images,
        LAYER,
        graphic_objects=graphics,
        text_objects=[
            hd.pr.TextObject(text, "PIXEL", bounding_box=(5, 5, 50, 20)) for text in texts
        ],
    )


@pytest.fixture
def written(liver: Any, tmp_path: Path) -> Callable[..., Path]:
    def write(*annotations: Dataset, change: Callable[[Dataset], None] = lambda _: None) -> Path:
        state = hd.pr.GrayscaleSoftcopyPresentationState(
            referenced_images=liver[0],
            series_instance_uid=hd.UID(),
            series_number=9,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="Test",
            manufacturer_model_name="Test",
            software_versions="1",
            device_serial_number="1",
            content_label="LESIONS",
            graphic_layers=[LAYER],
            graphic_annotations=annotations,
        )
        change(state)
        state.save_as(tmp_path / "state.dcm")
        return tmp_path / "state.dcm"

    return write


def test_graphics_come_back_on_the_images_that_they_name(
    liver: Any, written: Callable[..., Path]
) -> None:
    slices, image = liver
    path = written(
        _annotation([slices[2]], _graphic("POLYLINE", RING), texts=["a mass\r\nin", "the liver"]),
        _annotation(
            [slices[0], slices[1]],
            _graphic("CIRCLE", [(250.5, 250.5), (250.5, 260.5)], is_filled=True),
            _graphic("ELLIPSE", [(100, 200), (180, 200), (140, 170), (140, 230)]),
            _graphic("POLYLINE", RING, tracking_id="nodule 7", tracking_uid=hd.UID()),
        ),
    )
    marks = _marks(path, image)
    names = ["a mass in the liver", "graphic 2", "graphic 3", "nodule 7"]
    assert [mark.name for mark in marks] == names
    mass, circle, ellipse, nodule = (_whole(mark, image) for mark in marks)
    # (0, 0) is the corner of the first pixel, so its centre is (0.5, 0.5).
    outline = polygon2mask((512, 512), np.array(RING)[:, ::-1] - 0.5)
    assert np.array_equal(mass[2], outline)
    assert not mass[:2].any()
    assert circle.sum(axis=(1, 2)).tolist() == [317, 317, 0]  # OEIS A000328, radius 10
    row, column = np.mgrid[:512, :512]
    inside = ((column - 139.5) / 40) ** 2 + ((row - 199.5) / 30) ** 2 <= 1
    assert np.array_equal(ellipse[1], inside)
    assert np.array_equal(nodule[0], outline)


def test_pixels_count_from_the_corner_of_the_first(
    liver: Any, written: Callable[..., Path]
) -> None:
    slices, image = liver
    whole = [(0, 0), (512, 0), (512, 512), (0, 512), (0, 0)]
    first = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]
    annotation = _annotation([slices[1]], _graphic("POLYLINE", whole), _graphic("POLYLINE", first))
    marks = _marks(written(annotation), image)
    assert [m.mask.shape for m in marks] == [(1, 512, 512), (1, 1, 1)]
    assert marks[0].mask.all()
    assert marks[1].origin == (1, 0, 0)


def test_fractions_of_the_displayed_area_are_placed(
    liver: Any, written: Callable[..., Path]
) -> None:
    slices, image = liver
    square = [(0.25, 0.5), (0.75, 0.5), (0.75, 1.0), (0.25, 1.0), (0.25, 0.5)]

    def zoomed(ds: Dataset) -> None:
        for area in ds.DisplayedAreaSelectionSequence:  # columns 101 to 300, rows 201 to 300
            area.DisplayedAreaTopLeftHandCorner = [101, 201]
            area.DisplayedAreaBottomRightHandCorner = [300, 300]

    def turned(ds: Dataset) -> None:
        ds.ImageRotation, ds.ImageHorizontalFlip = 90, "N"

    def empty(ds: Dataset) -> None:
        for area in ds.DisplayedAreaSelectionSequence:
            area.DisplayedAreaBottomRightHandCorner = [0, 0]

    annotation = _annotation([slices[1]], _graphic("POLYLINE", square, "DISPLAY"))
    (mark,) = _marks(written(annotation), image)
    assert (mark.origin, mark.mask.shape) == ((1, 256, 128), (1, 256, 256))
    (mark,) = _marks(written(annotation, change=zoomed), image)
    assert (mark.origin, mark.mask.shape) == ((1, 250, 150), (1, 50, 100))
    for change, reason in ((turned, "turned"), (empty, "displayed area is empty")):
        with pytest.raises(RegionError, match=reason):
            _marks(written(annotation, change=change), image)


def test_what_names_no_image_holds_for_all_of_the_state(
    liver: Any, written: Callable[..., Path]
) -> None:
    slices, image = liver

    def nameless(ds: Dataset) -> None:
        del ds.GraphicAnnotationSequence[0].ReferencedImageSequence

    annotation = _annotation([slices[1]], _graphic("POLYLINE", RING))
    (mark,) = _marks(written(annotation, change=nameless), image)
    assert (mark.origin[0], mark.mask.shape[0]) == (0, 3)


def test_a_state_of_another_image_is_an_error(liver: Any, written: Callable[..., Path]) -> None:
    slices, image = liver
    other = replace(image, identifiers=replace(image.identifiers, sop_uids=("1", "2", "3")))
    path = written(_annotation([slices[1]], _graphic("POLYLINE", RING)))
    with pytest.raises(RegionError, match="names none of its instances"):
        _marks(path, other)


def test_arrows_and_rulers_have_no_area(liver: Any, written: Callable[..., Path]) -> None:
    slices, image = liver
    arrow = _graphic("POLYLINE", [(10, 10), (40, 40), (35, 40)])
    point = _graphic("POINT", [(10, 10)])
    curve = _graphic("INTERPOLATED", [(10, 10), (40, 40), (60, 40)])
    (mark,) = _marks(
        written(_annotation([slices[0]], arrow, point, curve, _graphic("POLYLINE", RING))), image
    )
    assert mark.name == "graphic 4"
    with pytest.raises(RegionError, match="no graphic that has an area"):
        _marks(written(_annotation([slices[0]], arrow, point, curve)), image)
    with pytest.raises(RegionError, match="no graphic that has an area"):
        _marks(written(_annotation([slices[0]], texts=["no lesion"])), image)


def test_the_course_of_a_curve_is_not_guessed(liver: Any, written: Callable[..., Path]) -> None:
    curve = _graphic("INTERPOLATED", RING)
    with pytest.raises(RegionError, match="INTERPOLATED defines no area"):
        _marks(written(_annotation([liver[0][0]], curve)), liver[1])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"GraphicData": [10, 10, 90, 10, 90, math.nan, 10, 10]}, "not finite"),
        ({"GraphicData": [10, 10, 90, 10, 90]}, "incomplete"),
        ({"GraphicData": [10, 10, 513, 10, 90, 90, 10, 10]}, "outside the image"),
        ({"GraphicData": [10, 10, 90, 10, 90, 90], "GraphicFilled": "Y"}, "is filled, but"),
        ({"GraphicAnnotationUnits": "MATRIX"}, "units are not"),
        ({"GraphicAnnotationUnits": None}, "units are not"),
        ({"GraphicType": "CIRCLE"}, "a CIRCLE has 2"),
    ],
)
def test_damaged_graphics_are_refused(
    fields: dict[str, Any], reason: str, liver: Any, written: Callable[..., Path]
) -> None:
    def change(ds: Dataset) -> None:
        for keyword, value in fields.items():
            setattr(ds.GraphicAnnotationSequence[0].GraphicObjectSequence[0], keyword, value)

    path = written(_annotation([liver[0][0]], _graphic("POLYLINE", RING)), change=change)
    with pytest.raises(RegionError, match=f"graphic 1: .*{reason}"):
        _marks(path, liver[1])
