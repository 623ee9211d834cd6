"""Standardised uptake value of a PET by body weight, from the header of its files."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence

from pydicom import Dataset
from pydicom.valuerep import DA, DT, TM

__all__ = ["suv_factor"]

_DAY = datetime.timedelta(days=1)


def suv_factor(headers: Sequence[Dataset]) -> float | None:
    """Return what turns the pixels of a PET series into g/ml of body weight (SUVbw).

    ``weight in g / dose at the time the pixels are corrected to``, for pixels in Bq/ml: the
    vendor-neutral formula of the QIBA FDG-PET/CT profile (1.13, appendix G), from PS3.3 C.8.9.1 and
    C.8.9.2. Pixels that are corrected to the start of the scan (Decay Correction START) take the
    dose that was left then; pixels corrected to the injection (ADMIN) the dose that was injected.

    Parameters
    ----------
    headers
        Of all files of a series, or the one file.

    Returns
    -------
    None where a tag is missing or contradicts another, and for other units. 1.0 where the pixels
    are SUVbw already (Units GML).
    """
    if any(one.get("Modality") != "PT" for one in headers):
        return None
    try:
        factors = {_factor(one, headers) for one in headers}
    except (ArithmeticError, TypeError, ValueError):  # a weight, a dose or a time that is none
        return None
    return factors.pop() if len(factors) == 1 else None


def _factor(ds: Dataset, headers: Sequence[Dataset]) -> float | None:
    units = ds.get("Units")
    if units == "GML":
        return 1.0 if ds.get("SUVType") in (None, "", "BW") else None
    corrected = ds.get("CorrectedImage") or ()
    if units != "BQML" or "ATTN" not in corrected or "DECY" not in corrected:
        return None
    doses = ds.get("RadiopharmaceuticalInformationSequence") or []
    weight_kg = float(ds.get("PatientWeight") or 0)
    if len(doses) != 1 or weight_kg <= 0:
        return None
    injected_bq = float(doses[0].get("RadionuclideTotalDose") or 0)
    half_life_s = float(doses[0].get("RadionuclideHalfLife") or 0)
    if injected_bq <= 0 or half_life_s <= 0:
        return None
    waited_s = _waited(ds, doses[0], headers)
    if waited_s is None:
        return None
    return 1000 * weight_kg / (injected_bq * math.pow(2, -waited_s / half_life_s))


def _waited(ds: Dataset, dose: Dataset, headers: Sequence[Dataset]) -> float | None:
    """Seconds from the injection to the time that the pixels' decay is corrected to."""
    if ds.get("DecayCorrection") == "ADMIN":
        return 0.0
    if ds.get("DecayCorrection") != "START":
        return None
    scan = _moment(ds, "Series")
    acquired = [_moment(one, "Acquisition") for one in headers]
    if scan is None or None in acquired:
        return None
    # A series that was processed later may carry the time of that: QIBA then takes no such time.
    if any(one is not None and one < scan for one in acquired):
        return None
    injected = _injection(dose, scan)
    if injected is None:
        return None
    waited = (scan - injected).total_seconds()
    return waited if 0 <= waited < _DAY.total_seconds() else None


def _injection(dose: Dataset, scan: datetime.datetime) -> datetime.datetime | None:
    """Start of the injection: its date and time, else its time of the day before the scan."""
    stated = dose.get("RadiopharmaceuticalStartDateTime")
    if stated:
        return DT(str(stated)).replace(tzinfo=None)
    time = dose.get("RadiopharmaceuticalStartTime")
    if not time:
        return None
    injected = datetime.datetime.combine(scan.date(), TM(str(time)))
    return injected if injected <= scan else injected - _DAY  # the evening before


def _moment(ds: Dataset, what: str) -> datetime.datetime | None:
    date, time = ds.get(f"{what}Date"), ds.get(f"{what}Time")
    if not date or not time:
        return None
    return datetime.datetime.combine(DA(str(date)), TM(str(time)))
