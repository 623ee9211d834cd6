"""SUV by body weight against the published arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence

from medqa.dicom.suv import suv_factor
from medqa.reader import read


def pet(**elements: object) -> Dataset:
    """Return the header of a PET: 370 MBq of 18F given to 70 kg, scanned an hour later."""
    dose = Dataset()
    dose.RadionuclideTotalDose = 370e6
    dose.RadionuclideHalfLife = 6588
    dose.RadiopharmaceuticalStartTime = "100000"
    ds = Dataset()
    ds.Modality, ds.Units, ds.DecayCorrection = "PT", "BQML", "START"
    ds.CorrectedImage = ["DECY", "ATTN"]
    ds.PatientWeight = 70
    ds.SeriesDate = ds.AcquisitionDate = "20260131"
    ds.SeriesTime = ds.AcquisitionTime = "110000"
    for keyword, value in elements.items():
        where = dose if keyword.startswith("Radio") else ds
        if value is None:
            delattr(where, keyword)
        else:
            setattr(where, keyword, value)
    ds.RadiopharmaceuticalInformationSequence = Sequence([dose])
    return ds


def test_real_file_by_hand(shared_data: Path) -> None:
    """90 kg, 474,592,928 Bq at 9:32:00, scanned at 11:00:36: 5316 s, of a half-life of 6588 s."""
    left = 474_592_928 * 0.5 ** (5316 / 6588)
    image = read(shared_data / "pt/GH184.dcm")
    assert image.suv_factor == pytest.approx(90_000 / left, rel=1e-12)
    assert read(shared_data / "pt/GH610.dcm").suv_factor is None  # in PROPCPS
    assert read(shared_data / "ct/misc/CT_small.dcm").suv_factor is None


def test_everywhere_the_same_dose_is_an_suv_of_one() -> None:
    """Keyes 1995: activity spread evenly over 1 g/ml of body has an SUV of 1."""
    left_bq_per_ml = 370e6 * 0.5 ** (3600 / 6588) / 70_000
    assert suv_factor([pet()]) == pytest.approx(1 / left_bq_per_ml, rel=1e-12)


def test_pixels_corrected_to_the_injection_take_the_injected_dose() -> None:
    assert suv_factor([pet(DecayCorrection="ADMIN")]) == pytest.approx(70_000 / 370e6, rel=1e-12)


def test_an_injection_before_midnight() -> None:
    elements = {"RadiopharmaceuticalStartTime": "233000", "SeriesTime": "003000.000000"}
    late = pet(**elements, AcquisitionTime="003500")
    assert suv_factor([late]) == pytest.approx(suv_factor([pet()]), rel=1e-12)
    dated = pet(**elements, RadiopharmaceuticalStartDateTime="20260130233000.00")
    dated.AcquisitionTime = "003500"
    assert suv_factor([dated]) == pytest.approx(suv_factor([pet()]), rel=1e-12)


def test_pixels_that_are_suv_already() -> None:
    assert suv_factor([pet(Units="GML")]) == 1.0
    assert suv_factor([pet(Units="GML", SUVType="BW")]) == 1.0
    assert suv_factor([pet(Units="GML", SUVType="LBM")]) is None


@pytest.mark.parametrize(
    "elements",
    [
        {"PatientWeight": None},
        {"PatientWeight": 0},
        {"RadionuclideTotalDose": None},
        {"RadionuclideHalfLife": None},
        {"RadiopharmaceuticalStartTime": None},
        {"DecayCorrection": "NONE"},
        {"DecayCorrection": None},
        {"CorrectedImage": ["ATTN"]},
        {"CorrectedImage": ["DECY"]},
        {"SeriesTime": None},
        {"SeriesTime": "120000"},  # after the acquisition: when it was processed
        {"AcquisitionDate": None},
        {"Units": "CNTS"},
        {"RadiopharmaceuticalStartDateTime": "20251231100000"},
    ],
)
def test_without_the_tags_there_is_none(elements: dict[str, object]) -> None:
    assert suv_factor([pet(**elements)]) is None


def test_a_series_takes_its_first_acquisition_and_one_factor() -> None:
    later = pet(AcquisitionTime="111000")
    assert suv_factor([later, pet()]) == suv_factor([pet()])
    assert suv_factor([pet(), pet(PatientWeight=71)]) is None
    assert suv_factor([pet(), pet(AcquisitionTime="105900")]) is None
