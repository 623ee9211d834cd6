"""The worklist's choice by device, on both databases."""

from __future__ import annotations

import hashlib

from auditing import assessment, image
from pydicom.data import get_testdata_file

from medqa.audit import Store, pseudonym
from medqa.pipeline import image_input
from medqa.reader import read
from medqa_plugins.web.worklist import Choice, choices, counted, rows


def test_cases_of_one_device(url: str) -> None:
    one, other = ("1" * 64, "2" * 64)
    with Store.open(url) as store:
        for name, device, code in (
            ("a", "GE MEDICAL SYSTEMS CT01", one),
            ("b", "GE MEDICAL SYSTEMS CT01", other),
            ("c", None, one),
            ("d", "SIEMENS", None),
        ):
            found = image("a").model_copy(update={"device": device, "device_hmac": code})
            inputs = assessment().inputs.model_copy(update={"reference": found})
            store.add(assessment(name).model_copy(update={"inputs": inputs}))
        nothing = assessment().inputs.model_copy(update={"reference": None})
        store.add(assessment("e").model_copy(update={"inputs": nothing}))

        def listed(device: str) -> set[str]:
            chosen = Choice(verdict="all", device=device)
            assert counted(store, chosen).total == len(rows(store, chosen))
            return {row.assessment.assessment_id for row in rows(store, chosen)}

        assert listed("") == set("abcde")
        assert listed(one) == {"a", "c"}
        assert listed(other) == {"b"}
        assert listed("3" * 64) == set()
        assert list(choices(store)["device"].items()) == [
            (one, "GE MEDICAL SYSTEMS CT01 (11111111)"),
            (other, "GE MEDICAL SYSTEMS CT01 (22222222)"),
        ]


def test_a_device_is_named_by_maker_and_model_and_coded_with_the_rest() -> None:
    file = get_testdata_file("CT_small.dcm", download=False)
    key = hashlib.sha256(b"key").digest()
    found = image_input(read(file), key)
    assert found.device == "GE MEDICAL SYSTEMS RHAPSODE"
    # dcmdump CT_small.dcm: no serial number, StationName CT01_OC0
    assert found.device_hmac == pseudonym(key, "GE MEDICAL SYSTEMS|RHAPSODE||CT01_OC0")
    assert image_input(read(file), None).device_hmac is None
