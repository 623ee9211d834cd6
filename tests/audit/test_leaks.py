"""No identifier of real headers may be found in the database, byte for byte."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from auditing import plain
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

import medqa
from medqa.audit import Store, pseudonym
from medqa.lpips import GrayLPIPS

# Elements that PS3.15 table E.1-1 has replaced or removed, as far as they name somebody,
# somewhere or some time; nested ones too.
IDENTIFYING = {"PN", "UI", "DA", "DT", "TM"}
NAMES = {
    "AccessionNumber",
    "DeviceSerialNumber",
    "InstitutionAddress",
    "InstitutionName",
    "IssuerOfPatientID",
    "OtherPatientIDs",
    "PatientAddress",
    "PatientAge",
    "PatientComments",
    "PatientID",
    "PatientTelephoneNumbers",
    "PerformedProcedureStepID",
    "RequestedProcedureID",
    "SeriesDescription",
    "StationName",
    "StudyDescription",
    "StudyID",
}
#: Of these the record speaks on purpose: they are the same for everybody.
PUBLIC = {"TransferSyntaxUID", "SOPClassUID", "MediaStorageSOPClassUID", "ImplementationClassUID"}

PYDICOM_FILES = ["CT_small.dcm", "MR_small.dcm", "J2K_pixelrep_mismatch.dcm"]
SHARED = [
    "ct/head_series_GE/01.dcm",
    "ct/liver_3slice_with_SEG/01.dcm",
    "ct/ct_with_RTSTRUCT/ct_1.dcm",
]


def identifiers(dataset: Dataset) -> Iterator[str]:
    for element in dataset.iterall():
        if element.keyword in PUBLIC or (
            element.VR not in IDENTIFYING and element.keyword not in NAMES
        ):
            continue
        value = element.value
        many = value if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]
        for one in many:
            text = str(one).strip()
            # Shorter ones, such as an age or the ID "4", are found in any number.
            # Nor are zeros anybody's: the first entry of the chain has a digest of them.
            if len(text) >= 6 and text.strip("0") and not text.startswith("1.2.840.10008."):
                yield text
                yield from (part for part in text.split("^") if len(part) >= 6)


def stored_bytes(url: str) -> bytes:
    """Everything that the database holds: the files of SQLite, every row of PostgreSQL."""
    if "://" not in url:
        return b"".join(one.read_bytes() for one in Path(url).parent.iterdir())
    tables = ("assessments", "audit_entries")
    return str([plain(url, f"SELECT * FROM {name}") for name in tables]).encode()  # noqa: S608


@pytest.fixture(scope="module")
def network() -> GrayLPIPS:
    return GrayLPIPS("gray")


def search(url: str, files: list[str], network: GrayLPIPS) -> int:
    wanted: set[str] = set()
    kinds: set[str] = set()
    with Store.open(url) as store:
        key = store.key
        for file in files:
            medqa.run(medqa.Job(reference=file, candidate=file), store, network=network)
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            with warnings.catch_warnings():  # one of them has a UID that is none
                warnings.simplefilter("ignore")
                wanted |= set(identifiers(dataset)) | set(identifiers(dataset.file_meta))
            # The record names the kind of device, after which some hospitals are called.
            kinds |= {str(dataset.get(name)) for name in ("Manufacturer", "ManufacturerModelName")}
            assert store.list(1)[0].inputs.reference is None or (
                pseudonym(key, dataset.StudyInstanceUID).encode() in stored_bytes(url)
            )
        assert len(store.list(100)) == len(files)
    held = stored_bytes(url)
    assert key not in held
    assert key.hex().encode() not in held
    wanted = {one for one in wanted if not any(one in kind for kind in kinds)}
    assert [one for one in sorted(wanted) if one.encode() in held] == []
    return len(wanted)


def test_no_identifier_of_pydicoms_files(url: str, network: GrayLPIPS) -> None:
    files = [str(get_testdata_file(name, download=False)) for name in PYDICOM_FILES]
    assert search(url, files, network) > 25


def test_no_identifier_of_real_files(sqlite: str, network: GrayLPIPS, shared_data: Path) -> None:
    assert search(sqlite, [str(shared_data / name) for name in SHARED], network) > 25
