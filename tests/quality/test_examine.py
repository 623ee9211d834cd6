"""Examinations: what is measured of what, over slices, from headers; and the record."""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from scipy import ndimage

from medqa.errors import PixelError, RegionError
from medqa.image import Image, Region
from medqa.quality.examine import Examination, examine, header_of, record_of
from medqa.quality.measures import WORDS
from medqa.quality.record import Measured
from medqa.reader import read

_KEY = bytes(range(32))
_COMMON = {"noise", "contrast", "sharpness", "entropy", "clipping", "summary"}
_REAL = {
    "ts/ct_all_syntaxes/CT2_J2KR": {"noise_air", "noise_tissue", "mtf50", "cnr"},
    "mr/uih_t1/00000004.dcm": {"snr", "uniformity", "ghosting", "motion"},
    "xr/dx_mono1/dx_image.dcm": {"exposure_index", "target_exposure_index", "deviation_index"},
    "us/US1_UNCR.dcm": set(),
    "pt/GH184.dcm": {"snr"},
}


def _by_name(examination: Examination) -> dict[str, Measured]:
    return {one.name: one for one in examination.measures}


def _value(examination: Examination, name: str) -> float:
    value = _by_name(examination)[name].value
    assert value is not None
    return value


def _changed(image: Image, pixels: NDArray[np.float64]) -> Image:
    return replace(image, pixels=pixels.astype(np.float32))


def _volume(slices: int = 5, **more: object) -> Image:
    """A body in air whose noise is 2, 4, 6 ... HU."""
    row, column = np.indices((128, 128))
    body = np.hypot(row - 64, column - 64) < 45
    random = np.random.default_rng(0)
    pixels = np.stack(
        [
            np.where(body, 50.0, -1000.0) + random.normal(0, 2 * (i + 1), body.shape)
            for i in range(slices)
        ]
    )
    given = {"modality": "CT", "unit": "HU", "spacing_mm": (1.0, 1.0, 1.0), **more}
    return Image(pixels=pixels.astype(np.float32), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "own"), _REAL.items())
def test_only_what_holds_for_the_modality_is_measured(
    shared_data: Path, name: str, own: set[str]
) -> None:
    path = shared_data / name
    found = examine(read(path), header_of(path))
    assert set(_by_name(found)) == _COMMON | own
    for one in found.measures:
        assert one.name in WORDS
        assert one.value is not None or one.detail
        assert one.value is None or math.isfinite(one.value)


@pytest.mark.parametrize("name", list(_REAL))
def test_noise_and_blur_move_real_images_the_right_way(shared_data: Path, name: str) -> None:
    image = read(shared_data / name)
    pixels = image.pixels[:1].astype(np.float64)
    spread = 0.003 * np.ptp(pixels)
    noise = np.random.default_rng(0).normal(0, spread, pixels.shape)
    low, high = pixels.min(), pixels.max()
    plain, noisy, noisier = (
        examine(_changed(image, np.clip(pixels + k * noise, low, high))) for k in (0, 1, 3)
    )
    names = ["noise", "summary"]
    names += [one for one in ("noise_tissue", "snr", "cnr") if one in _by_name(plain)]
    for one in names:
        values = [_value(found, one) for found in (plain, noisy, noisier)]
        better = _by_name(plain)[one].better
        assert values == sorted(values, reverse=better == "higher"), one
    blurred = examine(_changed(image, ndimage.gaussian_filter(pixels, (0, 2, 2))))
    assert _value(blurred, "sharpness") < _value(plain, "sharpness")
    cut = np.minimum(pixels, np.percentile(pixels, 95))
    assert _value(examine(_changed(image, cut)), "clipping") > _value(plain, "clipping") + 3


def test_a_volume_is_its_median_and_names_its_worst_slice() -> None:
    found = examine(_volume())
    noise = _by_name(found)["noise_tissue"]
    assert noise.value == pytest.approx(6, rel=0.06)
    assert noise.detail is not None
    assert noise.detail.startswith("median of 5 slices; worst ")
    assert noise.detail.endswith(" in slice 4")
    assert noise.value == np.median(found.slices["noise_tissue"])
    assert len(found.slices["noise_tissue"]) == 5
    assert found.index == 2


def test_slices_where_a_measure_is_undefined_do_not_count() -> None:
    image = _volume()
    pixels = np.array(image.pixels)
    pixels[1] = -1000
    found = examine(replace(image, pixels=pixels))
    assert found.slices["noise_tissue"][1] is None
    detail = _by_name(found)["noise_tissue"].detail
    assert detail is not None
    assert "median of 4 of 5 slices" in detail


def test_padding_is_no_part_of_any_measure() -> None:
    image = _volume(1)
    pixels = np.array(image.pixels)
    row, column = np.indices((128, 128))
    padded = np.hypot(row - 64, column - 64) > 62
    found = []
    for value in (-2000.0, -3024.0, 30000.0):
        pixels[0][padded] = value
        padding = np.array([[value, value]])
        examined = examine(replace(image, pixels=pixels.copy(), padding=padding))
        found.append({one.name: one.value for one in examined.measures})
    assert found[0]["noise_air"] == pytest.approx(2, rel=0.06)
    for other in found[1:]:
        for name in ("noise", "noise_air", "noise_tissue", "contrast", "entropy"):
            assert other[name] == pytest.approx(found[0][name], rel=0.02), name


def test_large_images_are_measured_slice_by_slice() -> None:
    asked = []
    image = _volume()

    class Watched(np.ndarray):  # type: ignore[type-arg]
        def __getitem__(self, index: object) -> object:
            if isinstance(index, slice) and self.ndim == 3:
                asked.append(len(range(*index.indices(len(self)))))
            return np.asarray(self)[index]  # type: ignore[index]

    examine(replace(image, pixels=np.array(image.pixels).view(Watched)))
    assert asked
    assert set(asked) == {1}


def test_what_cannot_be_measured_is_refused() -> None:
    image = _volume(1)
    broken = np.array(image.pixels)
    broken[0, 3, 3] = np.nan
    with pytest.raises(PixelError, match="NaN"):
        examine(replace(image, pixels=broken))
    with pytest.raises(PixelError, match="every pixel"):
        examine(replace(image, pixels=np.zeros((1, 64, 64))))


def test_cnr_between_two_regions_is_arithmetic() -> None:
    image = _volume(1)
    masks = np.zeros((2, 1, 128, 128), bool)
    masks[0, 0, 50:70, 50:70] = True
    masks[1, 0, 2:12, 2:12] = True
    signal, air = (Region.crop("annotation", "a", mask) for mask in masks)
    found = examine(image, None, (signal, air))
    one, other = np.array(image.pixels)[masks[0]], np.array(image.pixels)[masks[1]]
    expected = abs(float(one.mean(dtype=float)) - float(other.mean(dtype=float)))
    expected /= float(other.std(ddof=1, dtype=float))
    assert _value(found, "cnr_regions") == pytest.approx(expected, rel=1e-5)
    with pytest.raises(RegionError, match="give two"):
        examine(image, None, (signal,))


def test_exposure_indices_are_the_headers(shared_data: Path) -> None:
    path = shared_data / "xr/dx_mono1/dx_image.dcm"
    found = examine(read(path), header_of(path))
    assert _value(found, "exposure_index") == 176
    assert _value(found, "deviation_index") == -7
    # IEC 62494-1, by the header's own other two values.
    ds = header_of(path)
    assert ds is not None
    del ds.DeviationIndex
    computed = _by_name(examine(read(path), ds))["deviation_index"]
    assert computed.value == pytest.approx(10 * math.log10(176 / 876))
    assert computed.value == pytest.approx(-7, abs=0.05)
    empty = _by_name(examine(read(path), Dataset()))["deviation_index"]
    assert empty.value is None
    assert empty.detail == "the header does not say"


def test_the_record_holds_no_identifier(shared_data: Path, tmp_path: Path) -> None:
    ds = dcmread(shared_data / "ts/ct_all_syntaxes/CT2_J2KR")
    secrets = {
        "PatientName": "Doe^Jane",
        "PatientID": "PID-4711",
        "DeviceSerialNumber": "SN-0815",
        "StationName": "STATION-9",
        "InstitutionName": "Institute",
        "ProtocolName": "Doe head",
        "SeriesDescription": "for Doe",
        "ConvolutionKernel": "Doe Jane 1950",
    }
    for keyword, value in secrets.items():
        setattr(ds, keyword, value)
    path = tmp_path / "one.dcm"
    ds.save_as(path)
    record = record_of(examine(read(path)), header_of(path), _KEY)
    text = record.model_dump_json()
    for value in (*secrets.values(), "Doe", str(ds.StudyInstanceUID), str(ds.SOPInstanceUID)):
        assert value not in text
    assert record.image.patient_hmac
    assert record.study_type == "CT"
    assert record.device == f"{ds.Manufacturer} {ds.ManufacturerModelName}"
    assert json.loads(text)["device_hmac"] == record.device_hmac


def test_the_device_code_is_one_for_each_device(shared_data: Path, tmp_path: Path) -> None:
    codes = set()
    for serial in ("1", "2"):
        ds = dcmread(shared_data / "ts/ct_all_syntaxes/CT2_J2KR")
        ds.DeviceSerialNumber = serial
        ds.save_as(tmp_path / serial)
        found = examine(read(tmp_path / serial))
        codes.add(record_of(found, ds, _KEY).device_hmac)
        assert record_of(found, ds, None).device_hmac is None
    assert len(codes) == 2


@pytest.mark.parametrize(
    ("elements", "day"),
    [
        ({"AcquisitionDate": "20240229", "StudyDate": "20240101"}, datetime.date(2024, 2, 29)),
        ({"AcquisitionDateTime": "20240301101112.5"}, datetime.date(2024, 3, 1)),
        ({"AcquisitionDate": "", "SeriesDate": "20230102"}, datetime.date(2023, 1, 2)),
        ({"AcquisitionDate": "20230231", "StudyDate": "20230302"}, datetime.date(2023, 3, 2)),
        ({}, None),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_day_of_the_acquisition(elements: dict[str, str], day: datetime.date | None) -> None:
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    assert record_of(examine(_volume(1)), ds, None).acquired_on == day


def test_study_types(shared_data: Path) -> None:
    expected = {
        "mr/uih_t1/00000004.dcm": "MR HEAD GR+IR",
        "ts/ct_all_syntaxes/CT2_J2KR": "CT FC21",
        "xr/dx_mono1/dx_image.dcm": "DX THORAX",
        "mr/nifti_orientations/LAS.nii.gz": "unknown",
    }
    for name, study_type in expected.items():
        path = shared_data / name
        record = record_of(examine(read(path)), header_of(path), None)
        assert record.study_type == study_type
