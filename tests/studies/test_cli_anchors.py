"""`medqa study anchor` and `medqa guidelines`, as they are called."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import typer
from anchoring import phantom, save
from click.testing import Result
from typer.testing import CliRunner

from medqa import thresholds
from medqa.cli.anchors import anchor, guidelines
from medqa.errors import MedqaError

APP = typer.Typer()
APP.command()(anchor)
APP.command()(guidelines)


def called(*words: object) -> Result:
    return CliRunner().invoke(APP, [str(word) for word in words])


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Four slices of three devices, of other noise each."""
    folder = tmp_path / "images"
    folder.mkdir()
    devices = (("One", 10.0), ("Two", 15.0), ("Three", 20.0), ("Three", 22.0))
    return [
        save(folder / f"{i}.dcm", phantom(i, noise), model, BodyPartExamined="CHEST")
        for i, (model, noise) in enumerate(devices)
    ]


def test_the_profile_states_what_was_measured(tmp_path: Path, images: list[Path]) -> None:
    out = tmp_path / "chest.toml"
    done = called("anchor", *images, "--codec", "j2k", "--backbone", "gray", "--out", out)
    assert done.exit_code == 0, done.output
    profile = thresholds.load(str(out))
    assert (profile.name, profile.extends, profile.task) == ("chest", "ct", "compression")
    assert (profile.status, profile.body_parts) == ("provisional", ("CHEST",))
    assert (profile.metric.backbone, profile.metric.guard_band) == ("gray", ())
    assert profile.aggregate.slices == "max"
    evidence = json.loads(out.with_suffix(".json").read_text())
    assert evidence["profile_sha256"] == profile.sha256
    for level, ratio, body in (("diagnostic", 8, "DRG 2008"), ("screening", 15, "CAR 2008")):
        by_source: dict[int, list[float]] = {}
        for one in evidence["distances"]:
            if one["ratio"] == ratio:
                by_source.setdefault(one["source"], []).append(max(one["distances"].values()))
        values = [statistics.median(worst) for worst in by_source.values()]
        assert len(values) == 3
        limit = getattr(profile.limits, level)
        median = statistics.median(values)
        assert 0.9 * median <= limit.value <= median
        for words in (f"{body}: accepted at {ratio}:1", "3 sources", "medqa study anchor"):
            assert words in limit.source
        digits = [f"{value:.{4 if value >= 0.001 else 5}f}" for value in (min(values), max(values))]
        assert " to ".join(digits) in limit.source
    limits = profile.limits
    assert limits.pathology.value == pytest.approx(0.8 * limits.diagnostic.value, rel=1e-3)
    assert limits.annotation.value == limits.diagnostic.value
    assert "provisional, 3 sources" in done.output
    assert not any(str(path) in out.with_suffix(".json").read_text() for path in images)


def test_the_same_images_give_the_same_limits(tmp_path: Path, images: list[Path]) -> None:
    texts = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        out = tmp_path / folder / "own.toml"
        words = ("--codec", "j2k", "--backbone", "gray", "--base", "ct")
        assert called("anchor", images[0].parent, *words, "--out", out).exit_code == 0
        texts.append((out.read_bytes(), out.with_suffix(".json").read_bytes()))
    assert texts[0] == texts[1]


def test_limits_of_ones_own(tmp_path: Path, images: list[Path]) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'schema_version = 1\ntitle = "ours"\n[[limits]]\nratio = 6\nmodalities = ["CT"]\n'
        'codecs = ["jpegls"]\nfinding = "no reader saw a difference"\nsource = "our study, 2025"\n'
        'anchors = "diagnostic"\n'
    )
    out = tmp_path / "jpegls.toml"
    words = ("--codec", "jpegls", "--limits", own, "--backbone", "gray", "--out", out)
    assert called("anchor", *images, *words).exit_code == 0
    limits = thresholds.load(str(out)).limits
    assert limits.screening.value == limits.diagnostic.value
    assert "our study, 2025: no reader saw a difference at 6:1" in limits.diagnostic.source


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--codec", "gif"), "is no codec that medqa has"),
        (("--codec", "htj2k"), "no limit for htj2k on CT of CHEST anchors diagnostic"),
        (("--codec", "j2k", "--base", "mr"), "is for MR"),
        (("--codec", "j2k", "--base", "nothing"), "is no shipped profile"),
        (("--codec", "j2k", "--limits", "EMPTY"), "schema_version"),
        (("--codec", "j2k", "--out", "THERE"), "is there already"),
        (("--codec", "j2k", "--out", "x.txt"), "does not end in .toml"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(
    tmp_path: Path, images: list[Path], words: tuple[str, ...], told: str
) -> None:
    (tmp_path / "empty.toml").touch()
    (tmp_path / "there.json").touch()
    places = {"EMPTY": tmp_path / "empty.toml", "THERE": tmp_path / "there.toml"}
    given = [places.get(word, word) for word in words]
    out = () if "--out" in words else ("--out", tmp_path / "out.toml")
    done = called("anchor", *images, "--backbone", "gray", *given, *out)
    assert isinstance(done.exception, MedqaError)
    assert told in str(done.exception)
    assert not (tmp_path / "out.toml").exists()
    assert not (tmp_path / "out.json").exists()


def test_too_few_sources_and_mixed_modalities(tmp_path: Path, images: list[Path]) -> None:
    words = ("--codec", "j2k", "--backbone", "gray", "--out", tmp_path / "out.toml")
    few = called("anchor", *images[2:], *words)
    assert "come from 1 source, and 3 are the fewest" in str(few.exception)
    other = save(tmp_path / "mr.dcm", phantom(1), Modality="MR")
    mixed = called("anchor", *images, other, *words)
    assert "are of modality CT and MR" in str(mixed.exception)


def test_guidelines_stand_side_by_side() -> None:
    done = called("guidelines", "--modality", "ct")
    assert done.exit_code == 0
    head = next(line for line in done.output.splitlines() if "HEAD" in line)
    assert "12:1" in head
    assert "5:1 (jpeg, j2k)" in head
    assert "10.1055/s-2008-1027847" in done.output
    assert "MR" not in done.output.split("CAR 2008:")[0]
    assert "XYZ: is in no guideline" in str(called("guidelines", "--modality", "XYZ").exception)
