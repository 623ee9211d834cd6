"""Lesions in the images of a study: the loss is that of the command for one image, and it gates."""

from __future__ import annotations

import datetime
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medqa.compression.codecs import CODECS
from medqa.errors import UsageError
from medqa.lpips import GrayLPIPS
from medqa.studies.compression import runner
from medqa.studies.compression.decision import Claim
from medqa.studies.compression.lesions import Detected, detected
from medqa.studies.compression.planning import Plan, Settings, plan
from medqa.studies.compression.stored import read_stored
from medqa.studies.compression.study import Study, approvals_of, conclude
from medqa.studies.compression.sweep import Swept, sweep_image
from medqa.studies.detectability import Responses
from medqa.studies.detectability_study import detectability_by_ratio
from medqa.studies.signals import Signal

LESION = Signal(4.0, 20.0)
RATIOS = (5.0, 30.0)


@pytest.fixture(scope="module")
def files(shared_data: Path) -> list[Path]:
    return sorted((shared_data / "ct/liver_3slice_with_SEG").glob("0*.dcm"))[:2]


@pytest.fixture(scope="module")
def made(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """A study of a series, slice by slice, as it lies on the disk."""
    out = tmp_path_factory.mktemp("study")
    settings = Settings(("j2k",), RATIOS, "ct-compression", body_part="LIVER", lesion=LESION)
    planned, network = plan(list(map(str, files)), settings, [], []), GrayLPIPS()
    for one in planned.images:
        runner._save(out, one, planned.sha256, sweep_image(one, settings, network))
    return out, planned


def _concluded(out: Path, planned: Plan, claim: Claim) -> Study:
    found = runner.finished(out, planned)
    return conclude(planned, found, claim, partial(runner.answers, out))


def _of(study: Study) -> Detected:
    (found,) = study.detected.values()
    return found


def test_slices_of_a_series_lose_what_the_series_does(
    made: tuple[Path, Plan], files: list[Path]
) -> None:
    found = _of(_concluded(*made, Claim())).found
    readers = [partial(read_stored, [file]) for file in files]
    alone = detectability_by_ratio(readers, CODECS["j2k"], RATIOS, LESION)
    for one in alone:
        same = found[one.ratio]
        assert same.loss.value == pytest.approx(one.found.loss.value)
        assert same.before == one.found.before
        assert (same.places, same.unit) == (one.found.places, "places")
    assert found[30.0].loss.value > found[5.0].loss.value + 0.05


def test_the_loss_gates_and_enters_the_draft(made: tuple[Path, Plan]) -> None:
    easy = Claim(share=0.05, confidence=0.5)
    upper = _of(_concluded(*made, easy)).losses
    assert upper[5.0] < 0.1 < upper[30.0]
    (decided,) = _concluded(*made, replace(easy, auc_loss=0.1)).decisions
    assert decided.highest == 5
    assert [one.auc_loss for one in decided.evidence] == [upper[ratio] for ratio in RATIOS]
    study = _concluded(*made, replace(easy, auc_loss=upper[5.0] * 0.9))
    assert study.decisions[0].highest is None
    assert "of the AUC of small lesions may be lost" in study.decisions[0].why
    passed = _concluded(*made, replace(easy, auc_loss=0.1))
    (draft,) = approvals_of(passed, 30, datetime.datetime.now(datetime.UTC))
    assert draft.highest_auc_loss == 0.1
    assert draft.lesion == "a Gaussian lesion of 4 mm and +20"


def test_what_is_not_known_is_not_taken_for_no_loss(made: tuple[Path, Plan]) -> None:
    out, planned = made
    rows = [row for one in runner.finished(out, planned).values() for row in one.rows]

    def spoilt(change: float, number: int, codec: str, ratio: float) -> Responses | None:
        one = runner.answers(out, number, codec, ratio)
        assert one is not None
        before = one.before + change * (one.before[1] - one.before[0]) * [[[0]], [[1]]]
        return replace(one, before=before)

    for change, word in ((50.0, "plain"), (-0.9999, "faint")):
        found = detected(rows, "j2k", partial(spoilt, change), {})
        assert not found.found
        assert f"the lesion is too {word}" in found.missing[5.0]
    alone = [row for row in rows if row.image == 1]
    few = detected(alone, "j2k", partial(runner.answers, out), {}).missing[5.0]
    assert "places for a lesion, where 60 are needed" in few

    def lost(number: int, codec: str, ratio: float) -> Responses | None:
        return None if number == 2 else runner.answers(out, number, codec, ratio)

    gone = detected(rows, "j2k", lost, {2: "has no pixel spacing"})
    assert gone.missing[5.0] == "1 of 2 images could not be used: has no pixel spacing"
    with pytest.raises(UsageError, match="go on with --resume"):
        runner.answers(out, 77, "j2k", 5.0)


def test_an_image_without_spacing_says_so(shared_data: Path, tmp_path: Path) -> None:
    ds = pydicom.dcmread(shared_data / "ct/misc/CT_small.dcm")
    del ds.PixelSpacing
    ds.save_as(tmp_path / "a.dcm")
    settings = Settings(("j2k",), (5.0,), "ct-compression", lesion=LESION)
    (one,) = plan([str(tmp_path / "a.dcm")], settings, [], []).images
    swept: Swept = sweep_image(one, settings, GrayLPIPS())
    assert (dict(swept.answers), swept.unseen) == ({}, "has no pixel spacing")
    assert np.isfinite(swept.rows[1].distance or np.nan)
