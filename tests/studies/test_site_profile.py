"""What a calibration writes: a profile that judges as promised, and a page that says so."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from studying import simulated_rows, write_table
from typer.testing import CliRunner

import medqa
from medqa import thresholds
from medqa.cli.calibration import calibrate as command
from medqa.errors import UsageError
from medqa.studies import intervals, site_profile
from medqa.studies.calibration import Calibration, Claim, calibrate
from medqa.studies.readers import ReaderStudy, read_study
from medqa.thresholds import Profile

DATE = datetime.date(2026, 11, 21)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_RESAMPLES", 40)


def calibrated(
    table: Path, measures: Sequence[str] = ("distance",), base: str = "ct", **options: object
) -> tuple[Profile, ReaderStudy, list[Calibration]]:
    extended = thresholds.load(base)
    study = read_study(table, extended, measures=measures, **options)  # type: ignore[arg-type]
    return extended, study, [calibrate(study, one, Claim()) for one in measures]


def written(out: Path, base: Profile, study: ReaderStudy, found: Sequence[Calibration]) -> Profile:
    return site_profile.write(out, base, study, found, version="1", title="CT, here", date=DATE)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "readings.csv", simulated_rows(240))


def test_the_profile_states_its_evidence(tmp_path: Path, table: Path) -> None:
    base, study, found = calibrated(table)
    profile = written(tmp_path / "site-ct.toml", base, study, found)
    assert profile == thresholds.load(str(tmp_path / "site-ct.toml"))
    assert (profile.name, profile.extends, profile.status) == ("site-ct", "ct", "calibrated")
    assert profile.normalise == base.normalise
    assert profile.metric == base.metric
    assert profile.body_parts == ("CHEST", "HEAD")
    limits = profile.limits
    assert limits.diagnostic.value == found[0].guaranteed.limit
    assert limits.screening.value == max(found[0].guaranteed.limit, found[0].youden.limit)
    assert limits.diagnostic.status == limits.screening.status == "calibrated"
    # No region was judged: the rule from the new limit, and never looser than the base.
    assert limits.pathology.value == pytest.approx(0.8 * limits.diagnostic.value, rel=1e-3)
    assert limits.pathology.status == "provisional"
    for part in ("240 images of 240 patients", "3 readers", "5 %", "95 %", study.sha256, "Wilks"):
        assert part in limits.diagnostic.source
    assert "No reader study" not in str(profile.caution)
    thresholds.check_calibrated(profile)


def test_the_limit_lets_pass_what_was_counted(tmp_path: Path, table: Path) -> None:
    base, study, found = calibrated(table)
    limit = written(tmp_path / "site.toml", base, study, found).limits.diagnostic.value
    bad = [one.values["distance"] for one in study.images if one.unacceptable]
    assert sum(value <= limit for value in bad) == found[0].rank - 1


def test_region_limits_are_never_loosened(tmp_path: Path) -> None:
    rows = [{**one, "distance": float(str(one["distance"])) * 20} for one in simulated_rows(240)]
    base, study, found = calibrated(write_table(tmp_path / "t.csv", rows))
    limits = written(tmp_path / "site.toml", base, study, found).limits
    assert limits.diagnostic.value > base.limits.diagnostic.value
    assert limits.pathology == base.limits.pathology
    assert limits.annotation == base.limits.annotation


def test_another_network_is_named_and_has_no_guard_band(tmp_path: Path) -> None:
    rows = [{**one, "network": "gray"} for one in simulated_rows(240)]
    base, study, found = calibrated(write_table(tmp_path / "t.csv", rows))
    profile = written(tmp_path / "site.toml", base, study, found)
    metric = profile.metric
    assert (metric.backbone, metric.version, metric.guard_band) == ("gray", "1", ())
    thresholds.check_backbone(profile, "gray", "1", 0.1)


def test_a_gate_alone_leaves_the_profile_provisional(tmp_path: Path, table: Path) -> None:
    base, study, found = calibrated(table, ("edge_fidelity",))
    profile = written(tmp_path / "site.toml", base, study, found)
    assert profile.status == "provisional"
    assert profile.limits == base.limits
    edges, texture = profile.measures.gates
    assert edges.diagnostic == found[0].guaranteed.limit
    assert edges.screening <= edges.diagnostic
    assert edges.status == "calibrated"
    assert texture == base.measures.gates[1]
    assert str(base.caution).strip() in str(profile.caution)


def test_nothing_is_written_over(tmp_path: Path, table: Path) -> None:
    base, study, found = calibrated(table)
    (tmp_path / "site.html").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        written(tmp_path / "site.toml", base, study, found)
    with pytest.raises(UsageError, match=r"\.toml"):
        written(tmp_path / "site.txt", base, study, found)
    with pytest.raises(UsageError, match="cannot be written"):
        written(tmp_path / "nowhere" / "site.toml", base, study, found)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["readings.csv", "site.html"]


def test_what_appears_meanwhile_is_kept_and_nothing_half_is_left(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, study, found = calibrated(table)
    out = tmp_path / "site.toml"
    monkeypatch.setattr(site_profile, "check_new", lambda _: out.write_text("theirs"))
    with pytest.raises(UsageError, match="cannot be written"):
        written(out, base, study, found)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["readings.csv", "site.toml"]
    assert out.read_text() == "theirs"


class _Page(HTMLParser):
    """Tags that were opened and not closed, and everything that would be loaded."""

    VOID = ("meta", "circle", "rect", "line", "polyline", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.dots = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loaded += [str(value) for key, value in attrs if key in ("src", "href")]
        self.dots += given.get("class") in ("dot", "box")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_every_image_and_names_none(tmp_path: Path) -> None:
    rows = [
        {**one, "reader": f"<b>{one['reader']}</b>"} for one in simulated_rows(240, scores=True)
    ]
    table = write_table(tmp_path / "t.csv", rows)
    base, study, found = calibrated(table, ("distance", "edge_fidelity"), acceptable_from=3)
    profile = written(tmp_path / "site.toml", base, study, found)
    text = (tmp_path / "site.html").read_text("utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.loaded == []  # it needs nothing but itself
    assert page.dots == 2 * 240
    assert "patient 17" not in text
    assert "image 17" not in text
    assert "&lt;b&gt;reader 1&lt;/b&gt;" in text
    for one in found:
        assert f"{one.guaranteed.limit:.6g}" in text
    for part in (study.sha256, profile.sha256, "ICC(2,1)", "HEAD", "not a medical device"):
        assert part in text


def test_the_command_writes_a_profile_that_assess_takes(tmp_path: Path, table: Path) -> None:
    from pydicom.data import get_testdata_file

    app = typer.Typer()
    app.command()(command)
    out = tmp_path / "site-ct.toml"
    done = CliRunner().invoke(app, [str(table), "--base", "ct", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "guaranteed" in done.output
    image = medqa.read(str(get_testdata_file("CT_small.dcm", download=False)))
    same = medqa.assess(image, image, profile=str(out))
    assert same.verdict == "diagnostic"
    assert same.profile is not None
    assert (same.profile.name, same.profile.status) == ("site-ct", "calibrated")
    worse = medqa.assess(image, replace(image, pixels=image.pixels[..., ::-1]), profile=str(out))
    assert worse.verdict == "unsuitable"


def test_the_command_refuses_what_the_data_cannot_support(tmp_path: Path) -> None:
    few = write_table(tmp_path / "few.csv", simulated_rows(60))
    app = typer.Typer()
    app.command()(command)
    given = [str(few), "--base", "ct", "--out", str(tmp_path / "site.toml")]
    refused = CliRunner().invoke(app, given)
    assert isinstance(refused.exception, UsageError)
    assert "until 59 are unacceptable" in str(refused.exception)
    assert [one.name for one in tmp_path.iterdir()] == ["few.csv"]
    less = [*given, "--miss-rate", "0.2", "--confidence", "0.9"]
    assert CliRunner().invoke(app, less).exit_code == 0
    other = CliRunner().invoke(app, [str(few), "--base", "few", "--out", str(tmp_path / "x.toml")])
    assert isinstance(other.exception, UsageError)
