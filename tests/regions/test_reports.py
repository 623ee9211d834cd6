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
from highdicom.spatial import ImageToReferenceTransformer
from pydicom import Dataset
from pydicom.sr.codedict import codes
from skimage.draw import polygon2mask

from medqa.dicom.series import read_dicom
from medqa.errors import RegionError
from medqa.image import Code, Identifiers, Image
from medqa.reader import read
from medqa.regions import reports
from medqa.regions.grid import Mark
from medqa.regions.reports import REPORTS, read_report

AREA = (35.8125, 60.3125), (90.1875, 44.6875), (120.3125, 130.8125), (70.6875, 101.4375)


def test_every_public_name_is_there() -> None:
    assert all(hasattr(reports, name) for name in reports.__all__)
    assert [uid.name for uid in REPORTS] == [
        "Enhanced SR Storage",
        "Comprehensive SR Storage",
        "Comprehensive 3D SR Storage",
        "Extensible SR Storage",
    ]


def _marks(path: Path, reference: Image) -> tuple[Mark, ...]:
    return tuple(read_report(path, reference))


def _whole(mark: Mark, reference: Image) -> np.ndarray:
    whole = np.zeros(reference.shape, bool)
    box = tuple(slice(o, o + n) for o, n in zip(mark.origin, mark.mask.shape, strict=True))
    whole[box] = mark.mask
    return whole


@pytest.fixture(scope="module")
def small(shared_data: Path) -> Image:
    return read(shared_data / "ct/misc/CT_small.dcm")


@pytest.fixture(scope="module")
def liver(shared_data: Path) -> tuple[list[Dataset], Image]:
    """Slices of a CT as they are ordered in the image, and the image."""
    folder = shared_data / "ct/liver_3slice_with_SEG"
    slices = [pydicom.dcmread(folder / f"0{n}.dcm") for n in (3, 2, 1)]
    paths = [folder / f"0{n}.dcm" for n in (3, 2, 1)]
    for one in slices:  # highdicom copies these, and wants them in order
        one.PatientName, one.StudyID, one.SpecificCharacterSet = "Test^Patient", "1", "ISO_IR 192"
    image = read_dicom(paths, "liver")
    assert image.identifiers.sop_uids == tuple(str(s.SOPInstanceUID) for s in slices)
    return slices, image


# Real reports


def test_the_circle_of_a_real_report_has_the_area_that_it_states(
    shared_data: Path, small: Image
) -> None:
    path = shared_data / "sr/sr_document.dcm"
    (group,) = hd.sr.srread(path).content.get_planar_roi_measurement_groups()
    (mark,) = _marks(path, small)
    assert mark.name == group.tracking_identifier == "Planar ROI Measurements"
    finding = group.finding_type
    assert mark.code == Code(finding.value, finding.scheme_designator, finding.meaning)
    (centre, edge) = group.roi.value
    row, column = np.mgrid[:128, :128]
    radius = math.dist(centre, edge)
    expected = np.hypot(column + 0.5 - centre[0], row + 0.5 - centre[1]) <= radius
    assert np.array_equal(_whole(mark, small)[0], expected)
    assert small.spacing_mm is not None
    area_cm2 = np.count_nonzero(mark.mask) * small.spacing_mm[1] * small.spacing_mm[2] / 100
    stated = group.get_measurements()[0].value
    assert (stated, round(area_cm2, 1)) == (1.7, 1.7)


def test_an_outline_that_was_not_closed_is_an_error_not_left_out(
    shared_data: Path, small: Image, tmp_path: Path
) -> None:
    path = shared_data / "sr/sr_document_with_multiple_groups.dcm"
    with pytest.raises(RegionError, match="measurement group 3: its outline does not end"):
        _marks(path, small)
    ds = pydicom.dcmread(path)
    (outline,) = (
        i
        for i in ds.ContentSequence[-1].ContentSequence[2].ContentSequence
        if i.ValueType == "SCOORD"
    )
    assert outline.GraphicData == [25, 45, 45, 45, 45, 65, 25, 65]
    outline.GraphicData = [*outline.GraphicData, 25, 45]
    ds.save_as(tmp_path / "closed.dcm")
    marks = _marks(tmp_path / "closed.dcm", small)
    # The first group has no region, the last only a point.
    assert [mark.name for mark in marks] == ["LungNodule0001", "Aorta0001"]
    assert marks[0].code == Code("27925004", "SCT", "Nodule")
    # (25, 45) is the corner of pixel 25, 45: the first inside.
    assert (marks[1].origin, marks[1].mask.shape) == ((0, 45, 25), (1, 20, 20))
    assert marks[1].mask.all()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sr.dcm", "segment or region of another object; give that object itself"),
        ("test-SR.dcm", "holds no measurement group"),
        ("reportsi.dcm", "holds no measurement group"),
    ],
)
def test_real_reports_without_outlines_say_why(
    name: str, reason: str, shared_data: Path, small: Image
) -> None:
    with pytest.raises(RegionError, match=reason):
        _marks(shared_data / "sr" / name, small)


def test_a_report_on_another_image_is_an_error(shared_data: Path, liver: Any) -> None:
    with pytest.raises(RegionError, match="names none of its instances"):
        _marks(shared_data / "sr/sr_document.dcm", liver[1])


# Reports written by highdicom on a real CT


def _tracking(name: str) -> hd.sr.TrackingIdentifier:
    return hd.sr.TrackingIdentifier(hd.UID(), name)


def _region(kind: str, points: Any, source: Dataset) -> hd.sr.ImageRegion:
    return hd.sr.ImageRegion(
        kind, np.array(points, float), hd.sr.SourceImageForRegion.from_source_image(source)
    )


def _planar(
    name: str, region: Any, **more: Any
) -> hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        _tracking(name), referenced_region=region, **more
    )


@pytest.fixture
def written(liver: Any, tmp_path: Path) -> Callable[..., Path]:
    def write(groups: Sequence[Any], change: Callable[[Dataset], None] = lambda _: None) -> Path:
        person = hd.sr.ObserverContext(
            codes.DCM.Person, hd.sr.PersonObserverIdentifyingAttributes("Test^Observer")
        )
        report = hd.sr.MeasurementReport(
            hd.sr.ObservationContext(observer_person_context=person),
            procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
            imaging_measurements=groups,
        )
        sr = hd.sr.Comprehensive3DSR(
            evidence=liver[0],
            content=report,
            series_number=9,
            series_instance_uid=hd.UID(),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="Test",
        )
        change(sr)
        sr.save_as(tmp_path / "report.dcm")
        return tmp_path / "report.dcm"

    return write


def _polygon(points: Any) -> np.ndarray:
    """By scikit-image; in DICOM's coordinates, the centre of the first pixel is (0.5, 0.5)."""
    return polygon2mask((512, 512), np.array(points)[:, ::-1] - 0.5)


def test_outlines_come_back_on_the_slices_that_they_name(
    liver: Any, written: Callable[..., Path]
) -> None:
    slices, image = liver
    ring = [*AREA, AREA[0]]
    ends = [(100, 200), (180, 200), (140, 170), (140, 230)]
    path = written(
        [
            _planar("lesion", _region("POLYLINE", ring, slices[2]), finding_type=codes.SCT.Mass),
            _planar("cyst", _region("ELLIPSE", ends, slices[0])),
            _planar("ring", _region("CIRCLE", [(250.5, 250.5), (250.5, 260.5)], slices[1])),
            hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                _tracking("volume"),
                referenced_regions=[_region("POLYLINE", ring, s) for s in (slices[0], slices[2])],
            ),
        ]
    )
    marks = _marks(path, image)
    assert [mark.name for mark in marks] == ["lesion", "cyst", "ring", "volume"]
    assert [mark.origin[0] for mark in marks] == [2, 0, 1, 0]
    lesion, cyst, ring_, volume = (_whole(mark, image) for mark in marks)
    assert np.array_equal(lesion[2], _polygon(ring))
    assert marks[0].code is not None
    assert marks[0].code.meaning == "Mass"
    row, column = np.mgrid[:512, :512]
    away = ((column - 139.5) / 40) ** 2 + ((row - 199.5) / 30) ** 2
    assert np.array_equal(cyst[0], away <= 1)
    assert ring_.sum() == 317  # OEIS A000328, radius 10 around a centre of a pixel
    assert np.array_equal(volume[0], _polygon(ring))
    assert np.array_equal(volume[2], _polygon(ring))
    assert not volume[1].any()


def test_outlines_in_the_patient_are_the_same_pixels(
    liver: Any, written: Callable[..., Path]
) -> None:
    """The way there is highdicom's, from column and row to the patient."""
    slices, image = liver
    ring = np.array([*AREA, AREA[0]])
    one = slices[1]
    there = ImageToReferenceTransformer(
        one.ImagePositionPatient, one.ImageOrientationPatient, one.PixelSpacing
    )
    uid = one.FrameOfReferenceUID
    ends = np.array([(100, 200), (180, 200), (140, 170), (140, 230)], float)
    path = written(
        [
            _planar("flat", _region("POLYLINE", ring, one)),
            _planar("deep", hd.sr.ImageRegion3D("POLYGON", there(ring), uid)),
            _planar("flat ellipse", _region("ELLIPSE", ends, one)),
            _planar("deep ellipse", hd.sr.ImageRegion3D("ELLIPSE", there(ends), uid)),
        ]
    )
    flat, deep, round_, deep_round = (_whole(mark, image) for mark in _marks(path, image))
    assert flat[1].any()
    assert np.array_equal(flat, deep)
    assert np.count_nonzero(round_ != deep_round) <= 2  # a centre on the edge, after rounding
    series = replace(image, volumes=3, pixels=np.zeros((9, 512, 512), np.uint8))
    series = replace(series, identifiers=Identifiers(sop_uids=tuple(f"1.2.{i}" for i in range(9))))
    path = written([_planar("deep", hd.sr.ImageRegion3D("POLYGON", there(ring), uid))])
    (mark,) = _marks(path, series)
    filled = np.flatnonzero(_whole(mark, series).any(axis=(1, 2)))
    assert filled.tolist() == [1, 4, 7]


def test_another_frame_of_reference_is_an_error(liver: Any, written: Callable[..., Path]) -> None:
    slices, image = liver
    one = slices[1]
    there = ImageToReferenceTransformer(
        one.ImagePositionPatient, one.ImageOrientationPatient, one.PixelSpacing
    )
    points = there(np.array([*AREA, AREA[0]]))
    with pytest.raises(RegionError, match="another frame of reference"):
        _marks(written([_planar("it", hd.sr.ImageRegion3D("POLYGON", points, "1.2.3"))]), image)
    points[:, 2] += 40
    region = hd.sr.ImageRegion3D("POLYGON", points, one.FrameOfReferenceUID)
    with pytest.raises(RegionError, match="slices outside the image"):
        _marks(written([_planar("it", region)]), image)


def test_coordinates_of_a_measurement_are_a_groups_region(
    liver: Any, written: Callable[..., Path]
) -> None:
    """As viewers write them: an area and a length, each with what it was measured on (TID 300)."""
    slices, image = liver

    def coordinates(points: Any) -> hd.sr.CoordinatesForMeasurement:
        return hd.sr.CoordinatesForMeasurement(
            "POLYLINE",
            np.array(points, float),
            hd.sr.SourceImageForMeasurement.from_source_image(slices[0]),
        )

    ring = [*AREA, AREA[0]]

    def measurement(name: Any, unit: Any, points: Any) -> hd.sr.Measurement:
        return hd.sr.Measurement(
            name, value=1.0, unit=unit, referenced_coordinates=[coordinates(points)]
        )

    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        _tracking("drawn"),
        measurements=[
            measurement(codes.SCT.Area, codes.UCUM.SquareMillimeter, ring),
            measurement(codes.SCT.Perimeter, codes.UCUM.Millimeter, ring),
            measurement(codes.SCT.Length, codes.UCUM.Millimeter, [AREA[0], AREA[1], AREA[2]]),
        ],
    )
    (mark,) = _marks(written([group]), image)
    assert mark.name == "drawn"
    assert np.array_equal(_whole(mark, image)[0], _polygon(ring))


def _scoord(ds: Dataset) -> Dataset:
    (outline,) = (
        item
        for item in ds.ContentSequence[-1].ContentSequence[0].ContentSequence
        if item.ValueType == "SCOORD"
    )
    return outline


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([10, 10, 90, 10, 90, math.nan, 10, 10], "not finite"),
        ([10, 10, 90, 10, 90, 1e30, 10, 10], "absurd"),
        ([10, 10, 513, 10, 90, 90, 10, 10], "outside the image"),
        ([10, 10, 90, 10, 90, 90, 10], "incomplete"),
        ([10.1, 10.1, 10.2, 10.1, 10.2, 10.2, 10.1, 10.1], "centre of no pixel"),
    ],
)
def test_damaged_outlines_are_refused(
    data: list[float], reason: str, liver: Any, written: Callable[..., Path]
) -> None:
    def change(ds: Dataset) -> None:
        _scoord(ds).GraphicData = data

    ring = [*AREA, AREA[0]]
    path = written([_planar("it", _region("POLYLINE", ring, liver[0][0]))], change)
    with pytest.raises(RegionError, match=f"measurement group 1: .*{reason}"):
        _marks(path, liver[1])


def test_points_have_no_area_and_overlaps_no_meaning(
    liver: Any, written: Callable[..., Path]
) -> None:
    slices, image = liver
    point = _planar("mark", _region("POINT", [(5, 5)], slices[0]))
    line = _planar("ruler", _region("POLYLINE", [(5, 5), (50, 50)], slices[0]))
    with pytest.raises(RegionError, match="that has an area"):
        _marks(written([point, line]), image)
    ring = _region("POLYLINE", [*AREA, AREA[0]], slices[0])
    again = _region("CIRCLE", [(80, 80), (80, 85)], slices[0])
    assert [m.name for m in _marks(written([point, _planar("area", ring)]), image)] == ["area"]
    volume = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        _tracking("volume"), referenced_regions=[ring, again]
    )
    with pytest.raises(RegionError, match="two outlines on one slice overlap"):
        _marks(written([volume]), image)


def test_a_deep_report_is_walked_without_recursion(
    liver: Any, written: Callable[..., Path]
) -> None:
    """Nested as deep as pydicom parses it."""

    def bury(ds: Dataset) -> None:
        for _ in range(40):
            container = Dataset()
            container.ValueType, container.RelationshipType = "CONTAINER", "CONTAINS"
            container.ContentSequence = ds.ContentSequence
            ds.ContentSequence = [container]

    region = _region("POLYLINE", [*AREA, AREA[0]], liver[0][0])
    (mark,) = _marks(written([_planar("deep", region)], bury), liver[1])
    assert mark.name == "deep"
